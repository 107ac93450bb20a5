"""`autoft doctor`: whether this machine is fit for a search."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from autoft.cli.app import BAD_INPUT, app
from autoft.cli.options import AsJson, NoPlugins
from autoft.cli.printing import print_pairs


@app.command()
def doctor(
    as_json: AsJson = False,
    no_plugins: NoPlugins = False,
) -> None:
    """Show versions, devices, plugins and disk, and what to mend; exits with 2 where something is wrong."""
    from autoft.discovery import discover
    from autoft.doctor import examine

    findings = examine(discover(enabled=not no_plugins), Path.cwd())
    if as_json:
        print(
            json.dumps([{"about": item.about, "value": item.value, "problem": item.problem} for item in findings], indent=2)
        )
    else:
        print_pairs((item.about, item.value + (f"  <- {item.problem}" if item.problem else "")) for item in findings)
    if any(item.problem for item in findings):
        raise typer.Exit(BAD_INPUT)
