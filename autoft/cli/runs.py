"""Commands about a run folder: export again, free room, train the winner again, learn from the trials, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoft.cli.app import BUG, app
from autoft.cli.completing import complete_export_setting
from autoft.cli.options import AsJson, NoPlugins
from autoft.cli.printing import megabytes, print_note, print_pairs, print_table
from autoft.errors import AutoftError

if TYPE_CHECKING:
    from autoft.events import Event


@app.command()
def export(
    target: Annotated[
        Path, typer.Argument(metavar="RUN_OR_TRIAL", help="Run folder, or that of one of its trials: RUN_DIR/trials/N.")
    ],
    trial: Annotated[
        int | None, typer.Option("--trial", metavar="N", help="The trial's number.  [default: the winner]")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Where the bundle is to be.  [default: RUN_DIR/bundle for the winner, RUN_DIR/exports/N for others]",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="export.NAME=VALUE",
            help="Change a setting of the export; may be repeated.",
            autocompletion=complete_export_setting,
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="PATH", help="Where the data is now.  [default: where the study says]")
    ] = None,
    as_json: AsJson = False,
    no_plugins: NoPlugins = False,
) -> None:
    """Export any trial of a run again, through the same gate as the winner.

    Where the run did not keep the trial's weights, it is trained again first. A bundle that is there already is replaced
    only once the gate has passed.
    """
    from dataclasses import asdict

    from autoft.reexport import export_again

    def hear(event: Event) -> None:
        if event.kind in ("export", "warning"):
            print_note(event.text)

    found = export_again(
        target,
        trial=trial,
        output=output,
        overrides=settings or (),
        data=data,
        plugins=not no_plugins,
        on_event=hear,
    )
    if as_json:
        print(json.dumps({**asdict(found), "bundle": str(found.bundle)}, indent=2))
        return
    test = "" if found.test is None else f", {found.test:.4f} on test"
    print_pairs(
        [
            ("trial", f"{found.trial}: {found.weights}"),
            ("scores", f"{found.metric} {found.validation:.4f} on validation, through the bundle{test}"),
            ("bundle", found.bundle),
            ("next", f"autoft predict {found.bundle} INPUTS..."),
        ]
    )


@app.command()
def clean(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run that is finished or given up.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be freed, and remove nothing.  [default: off]")
    ] = False,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="Keep the weights of all trials.  [default: the winner's alone]")
    ] = False,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Free the winner's weights too; the bundle stays.  [default: off]"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Free the disk that a run needs for going on, but not for its result.

    What makes the result stays: the bundle, exports, result.json, the trials and their scores, the log. The same search can
    still go on, and comes to the same result; it makes again what it needs.
    """
    from dataclasses import asdict

    from autoft.clean import clean as free

    if keep_weights and everything:
        raise AutoftError("--keep-weights and --all exclude each other, but both are given", "leave one of them out")
    done = free(run, keep_weights=keep_weights, everything=everything, dry_run=dry_run)
    if as_json:
        print(json.dumps({"run": str(run), "dry_run": dry_run, **asdict(done)}, indent=2))
        return
    rows = [(one.what, megabytes(one.bytes), one.afterwards) for one in done.freed]
    if rows:
        print_table(rows)
    verb = "would be freed" if dry_run else "freed"
    print(f"{megabytes(done.bytes)} {verb}, {megabytes(done.kept)} stay")


@app.command()
def reproduce(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run folder of a finished search; it is not changed.")],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="PATH", help="Where the data is now.  [default: where the study says]")
    ] = None,
    test: Annotated[bool, typer.Option("--test", help="Score the test split too.  [default: off]")] = False,
    as_json: AsJson = False,
    no_plugins: NoPlugins = False,
) -> None:
    """Train a finished run's winner again and compare the score; exits with 1 where it differs.

    On the same machine with the same versions the scores are equal to the last bit. Where they are not, what is not as it
    was is listed. Other data is an error, not a difference.
    """
    from autoft.reproduce import reproduce as train_again

    found = train_again(run, data=data, test=test, plugins=not no_plugins, on_note=print_note)
    scores = [("validation", found.validation), *([("test", found.test)] if found.test else [])]
    if as_json:
        content = {
            "reproduced": found.reproduced,
            "metric": found.metric,
            "trial": found.trial,
            "weights": found.weights,
            "seeds": found.seeds,
            **{split: {"run": score.run, "here": score.here, "difference": score.difference} for split, score in scores},
            "differences": [{"what": one.what, "run": one.run, "here": one.here} for one in found.differences],
        }
        print(json.dumps(content, indent=2))
    else:
        rows = [
            ("verdict", "reproduced" if found.reproduced else "differs"),
            ("winner", f"trial {found.trial}: {found.weights}"),
        ]
        for split, score in scores:
            compared = f"{score.run!r} in the run, {score.here!r} here, difference {score.difference:g}"
            rows.append((split, f"{found.metric} {compared}"))
        print_pairs(rows)
        if found.differences or not found.reproduced:
            print()
            print_table(
                [
                    ("NOT AS IT WAS", "IN THE RUN", "HERE"),
                    *((one.what, str(one.run), str(one.here)) for one in found.differences),
                ]
                if found.differences
                else [("all that lock.json records is as it was",)]
            )
    if not found.reproduced:
        raise typer.Exit(BUG)


@app.command()
def insight(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run folder of a search, finished or interrupted.")],
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            metavar="NAME",
            help="Show how the metric depends on this setting too; may be repeated.  [default: those that stand out]",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page.  [default: RUN_DIR/insight.html]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a search learned: which settings matter, how deep to freeze, which learning rate.

    It is told in words and tables, and plotted on a page of HTML that needs no network.
    Nothing is trained, and nothing but the page is written; the search may go on meanwhile.
    """
    from autoft.insight import look_into
    from autoft.insight.page import PAGE, write_page
    from autoft.insight.tables import as_json as in_json
    from autoft.insight.tables import summary, tables

    found = look_into(run, parameter or ())
    page = output or run / PAGE
    write_page(found, page)
    if as_json:
        print(json.dumps({**in_json(found), "page": str(page)}, indent=2))
        return
    for sentence in summary(found):
        print(sentence)
    for rows in tables(found):
        print()
        print_table(rows)
    print()
    print_pairs([("page", page)])


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run folder of a search, finished or not.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page.  [default: RUN_DIR/report.html]")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Show it in the browser.  [default: off]")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the report of a run: one page of HTML that needs no network.

    It has the winner against the preset, all trials, plots of the search, what was learned, and how to run and reproduce the
    result. A finished search has written it already. Nothing is trained; the search may go on meanwhile.
    """
    from autoft.report.page import write_report

    page = write_report(run, output)
    if as_json:
        print(json.dumps({"run": str(run), "page": str(page)}, indent=2))
    else:
        print_pairs([("page", page)])
    if open_page and typer.launch(page.resolve().as_uri()) != 0:
        raise AutoftError(f"no browser could be started for {page}", "open the file by hand")
