"""`autoft compare`: several runs beside each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from autoft.cli.app import app
from autoft.cli.options import AsJson, NoPlugins
from autoft.cli.printing import print_note, print_table
from autoft.errors import printable


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR RUN_DIR...", help="Run folders, finished or not; the others are compared with the first."
        ),
    ],
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page of HTML too.  [default: none]")
    ] = None,
    as_json: AsJson = False,
    no_plugins: NoPlugins = False,
) -> None:
    """Compare runs: their scores, what differs between their studies, and whether that is more than chance.

    Where both kept their answers to the same test samples, these tell what chance does to the difference; else the winners'
    validation scores over seeds. Runs of other data or another metric are shown, and said not to be comparable.
    """
    from autoft.comparison import as_json as in_json
    from autoft.comparison import compare as put_together
    from autoft.comparison import contrasts_table, explained, runs_table, settings_table

    found = put_together(*runs, plugins=not no_plugins)
    if page is not None:
        from autoft.report.compared import write_comparison

        write_comparison(found, page)
    if as_json:
        print(json.dumps({**in_json(found), "page": None if page is None else str(page)}, indent=2))
        return
    for rows in (runs_table(found), contrasts_table(found)):
        print_table([tuple(map(printable, row)) for row in rows])
        print()
    for line in explained(found):
        print(printable(line))
    for title, values in (("studies differ in", found.settings), ("winners differ in", found.winners)):
        if values:
            heading, *rows = settings_table(found, values)
            print()
            print_table([tuple(map(printable, row)) for row in ((title, *heading[1:]), *rows)])
    if page is not None:
        print_note(f"page: {page}")
