"""The `autoft` command: parses, calls, prints; everything it does is a function elsewhere.

Results go to stdout, progress and messages to stderr. Exit codes: 0 fine, 1 a bug in autoft (with a trace) or a score that
`autoft reproduce` does not reach, 2 something that you can mend (with a hint), 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoft import __version__
from autoft.errors import AutoftError, ConfigError, RepeatedBugError, printable
from autoft.stopping import SIGNALLED, StopRequest

if TYPE_CHECKING:
    from autoft.deployed import Point
    from autoft.events import Event
    from autoft.finish import SearchResult

BUG, BAD_INPUT = 1, 2
STDOUT = 1

app = typer.Typer(
    name="autoft",
    help="Find the best way to fine-tune a pretrained model on your data, and get an ONNX bundle proven to behave in "
    "production as it did in validation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
plugins_app = typer.Typer(help="List the installed plugins, or look at what they provide.", rich_markup_mode=None)
app.add_typer(plugins_app, name="plugins")

VariantName = Annotated[
    str, typer.Option("--variant", metavar="NAME", help="Graph of the bundle to run, such as int8.", show_default=True)
]
NoPlugins = Annotated[bool, typer.Option("--no-plugins", help="Use autoft's own plugins alone.  [default: off]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.  [default: off]")]


def main() -> None:
    """Run the command line; turn what the user can mend into a message, and leave bugs their trace."""
    _log_to_stderr()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except AutoftError as error:
        _print_error(error)
        sys.exit(BAD_INPUT)
    except (BrokenPipeError, SystemExit) as leaving:
        if not isinstance(leaving, BrokenPipeError) and not isinstance(leaving.__context__, BrokenPipeError):
            raise  # typer leaves this way, with the exit code
        # the reader of a pipe, such as `head`, has seen enough; what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
        sys.exit(SIGNALLED + signal.SIGPIPE)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"autoft {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(BAD_INPUT)


@app.command()
def search(
    target: Annotated[Path, typer.Argument(metavar="STUDY_OR_PATH", help="A study file (.yaml), or the data itself.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="RUN_DIR", help="Run folder.  [default: runs/NAME]")
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            "--backbone", "-b", help="Backbone to try, FAMILY/MODEL; may be repeated.  [default: the study's, or suggested]"
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="Weights of every --backbone: `pretrained`, `none`, or a local file or folder.  [default: pretrained]",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="COLUMN", help="Column of the texts; twice for text pairs.  [default: found]"),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label", metavar="COLUMN", help="Column of the labels; repeated for a column a label.  [default: found]"
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="What to learn, such as regression.  [default: the study's, or as the labels are]"),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="COLUMN", help="Column whose equal values stay in one split.  [default: none]"),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", help="Backbones by purpose: fast, balanced or best, in place of --backbone.  [default: off]"
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="Metric to optimize.  [default: the study's, or the task's own]")
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", help="Trials in all, over resumes.  [default: the study's, or 20]")
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(
            "--time-limit", help="Time in all, over resumes, such as 90s, 30m, 1h30m.  [default: the study's, or none]"
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Epochs a trial.  [default: the study's, or by the data]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of everything random.  [default: the study's, or 0]")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", help="Seeds to confirm the best over; 1: no confirmation.  [default: the study's, or 3]"),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.  [default: the study's, or auto]")
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option("--workers", help="Processes that train at the same time; 0: none.  [default: the study's, or auto]"),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option("--devices", help="all, or a list as cuda:0,cuda:1; a worker each.  [default: the study's, or auto]"),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="URL",
            help="Database that keeps the trials.  [default: the study's, or AUTOFT_STORAGE, or none]",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="A.B=VALUE",
            help="Override one setting of the study, such as trainer.batch_size=64; may be repeated.  [default: none]",
        ),
    ] = None,
    no_plugins: NoPlugins = False,
    strict_plugins: Annotated[
        bool, typer.Option("--strict-plugins", help="Fail where any installed plugin is broken.  [default: off]")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show warnings and the result alone.  [default: off]")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every event as a line of JSON on stdout.  [default: off]")
    ] = False,
) -> None:
    """Search for the best way to fine-tune on your data, and export it as a checked ONNX bundle.

    Without a study file everything has a default: `autoft search FOLDER_OF_IMAGES` and `autoft search SOME.csv`
    work. The same command on the same run folder resumes an interrupted search.
    """
    overrides = _overrides(
        {
            "data.text": _columns(text),
            "data.label": _columns(label),
            "data.group": None if group is None else json.dumps(group),
            "task": task,
            "search.metric": metric,
            "search.trials": trials,
            "search.time_limit": time_limit,
            "search.seed": seed,
            "search.seeds": seeds,
            "search.workers": workers,
            "search.devices": devices,
            "search.storage": None if storage is None else json.dumps(storage),  # JSON is YAML
            "trainer.epochs": epochs,
            "trainer.device": device,
        },
        _with_preset(preset, backbone),
        weights,
        settings or [],
    )
    stop = StopRequest()
    try:
        with stop.listening():  # the imports too: they take seconds
            from autoft.driver import search as run_search
            from autoft.progress import choose_mode, show

            mode = choose_mode(quiet=quiet, json_lines=as_json)
            with show(mode) as listener:

                def hear(event: Event) -> None:
                    stop.follow(event)
                    listener(event)

                result = run_search(
                    target,
                    output=output,
                    overrides=overrides,
                    plugins=not no_plugins,
                    strict_plugins=strict_plugins,
                    on_event=hear,
                    should_stop=lambda: stop.asked is not None,
                )
    except RepeatedBugError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(BUG) from error
    except BaseException as error:
        # some libraries turn an interrupt into an exception of their own
        if not stop.at_once and not isinstance(error, KeyboardInterrupt):
            raise
        print("stopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(SIGNALLED + (stop.asked or signal.SIGINT)) from None
    if mode != "json":
        _print_result(result, mode == "quiet")
    if stop.asked is not None and result.interrupted:
        raise typer.Exit(SIGNALLED + stop.asked)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUTS]...",
            help="Files of images; or texts, of a bundle for pairs two each, or - to read a text a line.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="A file of texts: .txt (a text a line), .csv, .tsv or .jsonl.  [default: none]"),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Inputs at once.", show_default=True)] = 32,
    variant: VariantName = "fp32",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line: the input and its answer.  [default: off]")
    ] = False,
    no_plugins: NoPlugins = False,
) -> None:
    """Answer for images or texts with a bundle, through ONNX Runtime.

    An input that cannot be answered is named on stderr, the others are still answered, and the exit code is 2.
    """
    from autoft import deploy
    from autoft.discovery import discover

    opened = deploy.open_bundle(bundle, discover(enabled=not no_plugins), variant=variant)
    unanswered = cut = 0
    for answer in deploy.predict(opened, deploy.inputs_of(opened, inputs or (), file), batch_size=batch_size):
        unanswered += "error" in answer
        cut += "cut" in answer
        print(deploy.line(opened, answer, as_json=as_json), file=sys.stderr if "error" in answer else sys.stdout)
    if cut:
        print(f"{cut} longer than the model takes: answered by their beginning", file=sys.stderr)
    if unanswered:
        raise typer.Exit(BAD_INPUT)


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    data: Annotated[Path, typer.Argument(help="Labelled data, such as a folder with a folder of images a class.")],
    split: Annotated[
        str | None,
        typer.Option("--split", help="all, train, validation or test.  [default: test where the data has one, else all]"),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="COLUMN", help="Column of the texts; twice for pairs.  [default: the bundle's]"),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="COLUMN", help="Column of the labels; may be repeated.  [default: the bundle's]"),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples at once.", show_default=True)] = 32,
    variant: VariantName = "fp32",
    as_json: AsJson = False,
    no_plugins: NoPlugins = False,
) -> None:
    """Score a bundle on labelled data, from the raw inputs through ONNX Runtime."""
    from autoft import deploy
    from autoft.discovery import discover

    catalog = discover(enabled=not no_plugins)
    opened = deploy.open_bundle(bundle, catalog, variant=variant)
    named = {"text": text, "label": label}
    columns = {name: value[0] if len(value) == 1 else value for name, value in named.items() if value}
    scores = deploy.evaluate(opened, data, catalog, split=split, batch_size=batch_size, columns=columns, on_note=_print_note)
    if as_json:
        print(json.dumps(scores))
    else:
        _print_pairs((name, f"{value:.6g}" if isinstance(value, float) else value) for name, value in scores.items())


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
        typer.Option("--set", metavar="export.NAME=VALUE", help="Change a setting of the export; may be repeated."),
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
            _print_note(event.text)

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
    _print_pairs(
        [
            ("trial", f"{found.trial}: {found.weights}"),
            ("scores", f"{found.metric} {found.validation:.4f} on validation, through the bundle{test}"),
            ("bundle", found.bundle),
            ("next", f"autoft predict {found.bundle} INPUTS..."),
        ]
    )


@app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle to measure.")],
    threads: Annotated[
        int, typer.Option("--threads", min=0, help="Threads of one run; 0 leaves the choice to ONNX Runtime.")
    ] = 1,
    batch_sizes: Annotated[
        list[int] | None,
        typer.Option("--batch-size", min=1, metavar="N", help="Samples a run; may be repeated.  [default: 1 and 8]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a bundle's variants on this machine: latency, size, peak memory.

    The bundle's own golden samples are run, without preprocessing, and the variants take turns.
    """
    from autoft.bench import fastest, report

    measured = report(bundle, threads=threads, batch_sizes=tuple(dict.fromkeys(batch_sizes or (1, 8))))
    if as_json:
        content = {"threads": threads, "variants": {name: one.to_dict() for name, one in measured.items()}}
        print(json.dumps({**content, "fastest": fastest(measured)}, indent=2))
        return
    sizes = list(next(iter(measured.values())).latency)
    rows = [("VARIANT", *(f"P50/P95 MS, {size} AT ONCE" for size in sizes), "MB", "PEAK MB")]
    for name, one in measured.items():
        cells = (f"{each.p50:.3g} / {each.p95:.3g}" for each in one.latency.values())
        rows.append((name, *cells, f"{one.size_mb:.3g}", "unknown" if one.peak_mb is None else f"{one.peak_mb:.0f}"))
    _print_table(rows)


@app.command()
def push(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle to upload.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Model repository on the Hugging Face hub.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.  [default: private]")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="Branch to commit to.  [default: the main one]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a bundle to the Hugging Face hub, as it is; transformers.js and others load it from there.

    Every file is checked against its hash first. A bundle may hold some of your validation samples (golden/), so a new
    repository is private unless you say --public; `autoft export RUN --set export.golden=0` makes a bundle without them.
    """
    from dataclasses import asdict

    from autoft.push import push as upload

    done = upload(bundle, repository, public=public, revision=revision)
    if as_json:
        print(json.dumps(asdict(done), indent=2))
        return
    _print_pairs(
        [
            ("url", done.url),
            ("commit", done.commit),
            ("files", f"{done.files}, {done.samples} validation samples among them"),
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
    rows = [(one.what, _megabytes(one.bytes), one.afterwards) for one in done.freed]
    if rows:
        _print_table(rows)
    verb = "would be freed" if dry_run else "freed"
    print(f"{_megabytes(done.bytes)} {verb}, {_megabytes(done.kept)} stay")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; nothing in it is executed.")],
    public_key: Annotated[
        Path | None,
        typer.Option("--public-key", metavar="FILE", help="Require a signature by this key (PEM).  [default: none]"),
    ] = None,
    as_json: AsJson = False,
    no_plugins: NoPlugins = False,
) -> None:
    """Verify a bundle: contract, hashes, graphs, signature, golden vectors; exits with 2 where a check fails.

    A check that cannot be made, or that nobody asked for, is shown as `--` and is no failure.
    """
    from dataclasses import asdict

    from autoft.discovery import discover
    from autoft.verify import passed
    from autoft.verify import verify as verify_bundle

    checks = verify_bundle(bundle, discover(enabled=not no_plugins), public_key=public_key)
    if as_json:
        print(json.dumps({"bundle": str(bundle), "ok": passed(checks), "checks": list(map(asdict, checks))}, indent=2))
    else:
        marks = {"ok": "ok", "failed": "FAIL", "not checked": "--"}
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{marks[check.outcome]:4}  {check.name:{width}}  {check.message}")
    if not passed(checks):
        raise typer.Exit(BAD_INPUT)


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Private elliptic key (PEM).", show_default=False)],
) -> None:
    """Sign a bundle with your key, for `autoft verify --public-key`; needs `pip install 'autoft[sign]'`.

    The password of a key that has one is read from the environment variable AUTOFT_KEY_PASSWORD.
    """
    from autoft.export.contract import read_contract
    from autoft.signing import sign_bundle

    read_contract(bundle)  # a folder that is no bundle is not signed
    print(sign_bundle(bundle, key, password=os.environ.get("AUTOFT_KEY_PASSWORD")))


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

    found = train_again(run, data=data, test=test, plugins=not no_plugins, on_note=_print_note)
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
        _print_pairs(rows)
        if found.differences or not found.reproduced:
            print()
            _print_table(
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
        _print_table(rows)
    print()
    _print_pairs([("page", page)])


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
        _print_pairs((item.about, item.value + (f"  <- {item.problem}" if item.problem else "")) for item in findings)
    if any(item.problem for item in findings):
        raise typer.Exit(BAD_INPUT)


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
    _print_table(rows)
    if any(plugin.state == "not loaded yet" for plugin in listed):
        print("hint: `autoft plugins --load` loads them and shows what they provide", file=sys.stderr)


@plugins_app.command("show")
def plugins_show(
    name: Annotated[str, typer.Argument(help="A backbone such as timm/resnet18, a family, a head or a data format.")],
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
    _print_pairs((key, value if isinstance(value, str | int) else json.dumps(value)) for key, value in described.items())
    if stages is not None:
        print()
        rows: list[tuple[str, ...]] = [("FREEZE_DEPTH", "STAGE", "PARAMETERS", *(["CUT"] if cuts else []))]
        for stage in stages:
            held = [stage["cut"]] if cuts else []
            rows.append((str(stage["depth"]), stage["name"], f"{stage['parameters']:,}", *held))
        _print_table(rows)


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
    _print_table(rows)
    print()
    _print_pairs((preset.name, f"{preset.help}; {preset.trials} trials") for preset in PRESETS)


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
            help="A backbone such as timm/resnet18, a family, head, data format or strategy; or a plugin or package.",
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


def _overrides(
    named: dict[str, Any], backbones: Sequence[str] | None, weights: str | None, settings: Sequence[str]
) -> list[str]:
    """Turn options into the `a.b=value` form that studies take; `--set` comes last and wins."""
    overrides = [f"{where}={value}" for where, value in named.items() if value is not None]
    if backbones:
        entries = [{"name": name, **({"weights": weights} if weights else {})} for name in backbones]
        overrides.append(f"backbones={json.dumps(entries)}")  # JSON is YAML
    elif weights:
        raise AutoftError("`--weights` needs a `--backbone` to belong to", "add --backbone FAMILY/MODEL")
    return [*overrides, *settings]


def _with_preset(preset: str | None, backbones: Sequence[str] | None) -> Sequence[str] | None:
    if preset is None:
        return backbones
    from autoft.presets import require_preset

    if backbones:
        raise AutoftError("`--preset` names backbones itself, but `--backbone` is given too", "leave one of them out")
    return [require_preset(preset)]


def _columns(names: Sequence[str] | None) -> str | None:
    """Return one column as a text, several as a list; as JSON, which is YAML, so that any name is only a name."""
    return json.dumps(names[0] if len(names) == 1 else names) if names else None


def _print_result(result: SearchResult, brief: bool) -> None:
    if result.bundle is None:
        ended = sum(count for state, count in result.trials.items() if state not in ("waiting", "running", "paused"))
        print(
            f"stopped; {result.run} keeps all that was done (trials ended: {ended}), and the same command goes on",
            file=sys.stderr,
        )
        return
    if brief:
        print(result.bundle)
        return
    test = f", {result.test[result.metric]:.4f} ± {result.test_error:.4f} on test" if result.metric in result.test else ""
    preset = f" (preset {result.preset:.4f})" if result.preset is not None else " (the preset failed)"
    _print_pairs(
        [
            ("best", f"trial {result.trial}: {result.metric} {result.value:.4f} on validation{preset}{test}"),
            *(("front", _front_line(point, result.metric)) for point in result.front),
            ("trials", ", ".join(f"{count} {state}" for state, count in result.trials.items())),
            *_failure_lines(result.failures),
            ("run", result.run),
            ("bundle", result.bundle),
            ("next", f"autoft predict {result.bundle} INPUTS..."),
        ]
    )


def _failure_lines(failures: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str]]:
    """Return how often what failed or was survived, where anything did."""
    counted = {name: ", ".join(f"{count} {kind}" for kind, count in kinds.items()) for name, kinds in failures.items()}
    return [(name, words) for name, words in counted.items() if words]


def _front_line(point: Point, metric: str) -> str:
    cost = f"{point.latency_ms:.3g} ms an answer, {point.size_mb:.3g} MB"
    return f"trial {point.trial}: {metric} {point.value:.4f} on validation, {cost}, {point.backbone}"


def _print_note(note: str) -> None:
    print(note, file=sys.stderr)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    listed = list(pairs)
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        print(f"{name:{width}}  {value}")


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_error(error: AutoftError) -> None:
    message = error.message if isinstance(error, ConfigError) else str(error)
    print(f"error: {printable(message)}", file=sys.stderr)


def _log_to_stderr() -> None:
    """Show autoft's own log: warnings by default, such as those of broken plugins."""
    logger = logging.getLogger("autoft")
    for handler in list(logger.handlers):  # of an earlier call in this process, whose stderr may be closed
        logger.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter())
    logger.addHandler(handler)


class _PlainFormatter(logging.Formatter):
    """Writes `warning: text`, as the command's own messages look."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"


if __name__ == "__main__":
    main()
