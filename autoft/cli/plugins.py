"""`autoft plugins` and what is under it: list, look at, make and check plugins."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from autoft.cli.app import BAD_INPUT, app
from autoft.cli.completing import complete_provided
from autoft.cli.options import AsJson
from autoft.cli.printing import print_pairs, print_table

plugins_app = typer.Typer(help="List the installed plugins, or look at what they provide.", rich_markup_mode=None)
app.add_typer(plugins_app, name="plugins")


@plugins_app.callback(invoke_without_command=True)
def plugins(
    context: typer.Context,
    load: Annotated[
        bool, typer.Option("--load", help="Import every plugin now, to see which are broken.  [default: off]")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the installed plugins, without importing any.

    The status is what the last command that loaded plugins found; --load finds out now.
    """
    if context.invoked_subcommand is not None:
        return
    from autoft.discovery import discover, installed

    listed = discover().plugins if load else installed()
    if as_json:
        entries = [
            {
                "name": plugin.name,
                "package": plugin.package,
                "version": plugin.version,
                "status": plugin.state,
                "reason": plugin.reason,
                "provides": [{"kind": given.kind, "name": given.name, "help": given.help} for given in plugin.provides],
            }
            for plugin in listed
        ]
        print(json.dumps(entries, indent=2))
        return
    rows = [("PLUGIN", "PACKAGE", "STATUS", "PROVIDES")]
    for plugin in listed:
        provides = ", ".join(f"{given.name} ({given.kind})" for given in plugin.provides)
        rows.append((plugin.name, f"{plugin.package} {plugin.version}", plugin.status, provides))
    print_table(rows)
    if any(plugin.state == "not loaded yet" for plugin in listed):
        print("hint: `autoft plugins --load` loads them and shows what they provide", file=sys.stderr)


@plugins_app.command("show")
def plugins_show(
    name: Annotated[
        str,
        typer.Argument(
            help="A backbone such as timm/resnet18, a family, head, data format, strategy or logger.",
            autocompletion=complete_provided,
        ),
    ],
    cuts: Annotated[
        bool,
        typer.Option("--cuts", help="Try at which stages the output of frozen ones can be stored.  [default: off]"),
    ] = False,
    cost: Annotated[
        bool, typer.Option("--cost", help="Measure a backbone's time and memory on this processor.  [default: off]")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a plugin provides: for a backbone its stages, features, preprocessing and licence.

    --cuts runs the backbone forward and backward on generated samples, at each depth, which takes seconds to minutes;
    --cost runs it on 8 of them.
    """
    from autoft.discovery import discover
    from autoft.inspection import describe

    described = describe(discover(), name, cuts=cuts, cost=cost)
    if as_json:
        print(json.dumps(described, indent=2))
        return
    stages = described.pop("stages", None)
    print_pairs((key, value if isinstance(value, str | int) else json.dumps(value)) for key, value in described.items())
    if stages is not None:
        print()
        rows: list[tuple[str, ...]] = [("FREEZE_DEPTH", "STAGE", "PARAMETERS", *(["CUT"] if cuts else []))]
        for stage in stages:
            held = [stage["cut"]] if cuts else []
            rows.append((str(stage["depth"]), stage["name"], f"{stage['parameters']:,}", *held))
        print_table(rows)


@plugins_app.command("presets")
def plugins_presets(as_json: AsJson = False) -> None:
    """List the backbones of each preset, by kind of data; the strongest first."""
    from autoft.discovery import discover
    from autoft.presets import PRESETS, listed

    found = listed(discover())
    if as_json:
        print(json.dumps([{**vars(each), "backbones": list(each.backbones)} for each in found], indent=2))
        return
    rows: list[tuple[str, ...]] = [("PRESET", "DATA", "BACKBONE")]
    rows += [(each.preset, each.data, name) for each in found for name in each.backbones]
    print_table(rows)
    print()
    print_pairs((preset.name, f"{preset.help}; {preset.trials} trials") for preset in PRESETS)


@plugins_app.command("new")
def plugins_new(
    name: Annotated[str, typer.Argument(help="Of the plugin and of what it provides, such as flowers.")],
    kind: Annotated[
        str, typer.Option("--kind", help="What it provides: backbone, head or data.", show_default=True)
    ] = "backbone",
    into: Annotated[
        Path, typer.Option("--into", metavar="FOLDER", help="Where the package's folder is made.", show_default=True)
    ] = Path(),
) -> None:
    """Make a new plugin: one module, an entry point, tests by the conformance kit, README, CI; it passes its own tests."""
    from autoft.template import make_plugin

    folder = make_plugin(name, kind, into)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(file)
    print(f"next: pip install -e '{folder}[test]' && pytest {folder}", file=sys.stderr)


@plugins_app.command("check")
def plugins_check(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_PACKAGE",
            help="A backbone such as timm/resnet18, family, head, data format, strategy or logger; or a plugin or package.",
            autocompletion=complete_provided,
        ),
    ],
    example: Annotated[
        Path | None, typer.Option("--example", metavar="PATH", help="Data that a data format can read.  [default: none]")
    ] = None,
    waive: Annotated[
        list[str] | None,
        typer.Option(
            "--waive", metavar="CHECK=REASON", help="A failure that is known, and why; may be repeated.  [default: none]"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the conformance checks, with random weights and without a network; exits with 2 where one fails.

    Of a plugin or package, everything that it provides is checked. A backbone that gives several kinds of features is
    checked with each that an installed head can use.
    """
    from autoft.testing import checks_for

    checks = checks_for(name, example=example, waive=_waivers(waive or ()))
    marks = {"passed": "ok", "warned": "warn", "failed": "FAIL", "waived": "skip"}
    several = len({check.subject for check in checks}) > 1
    results = []
    for check in checks:
        result = check.run()
        results.append(result)
        if not as_json:
            message = result.message.replace("\n", "\n      ")
            print(f"{marks[result.outcome]:4}  {check if several else check.id}" + (f"\n      {message}" if message else ""))
            sys.stdout.flush()  # a check may take a minute
    if as_json:
        entries = [
            {
                "subject": result.subject,
                "check": result.id,
                "about": check.about,
                "outcome": result.outcome,
                "passed": result.passed,
                "message": result.message,
                "seconds": round(result.seconds, 3),
            }
            for check, result in zip(checks, results, strict=True)
        ]
        print(json.dumps(entries, indent=2))
    if not all(result.passed for result in results):
        raise typer.Exit(BAD_INPUT)


def _waivers(given: Iterable[str]) -> dict[str, str]:
    """Parse `CHECK=REASON`."""
    found = {}
    for text in given:
        check, equals, reason = text.partition("=")
        if not equals or not reason.strip():
            raise typer.BadParameter(f"a waiver must be CHECK=REASON, but got {text!r}", param_hint="--waive")
        found[check.strip()] = reason.strip()
    return found
