"""`autoft search`: options become settings of the study, and the result is printed."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoft.cli.app import BUG, app
from autoft.cli.completing import complete_logger, complete_setting, complete_task
from autoft.cli.options import NoPlugins
from autoft.cli.printing import print_pairs
from autoft.errors import AutoftError, RepeatedBugError
from autoft.stopping import SIGNALLED, StopRequest

if TYPE_CHECKING:
    from autoft.deployed import Point
    from autoft.events import Event
    from autoft.finish import SearchResult


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
        typer.Option(
            "--task",
            help="What to learn, such as regression.  [default: the study's, or as the labels are]",
            autocompletion=complete_task,
        ),
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
    log: Annotated[
        list[str] | None,
        typer.Option(
            "--log",
            metavar="NAME",
            help="Logger of the trials, such as mlflow; may be repeated.  [default: the study's]",
            autocompletion=complete_logger,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="A.B=VALUE",
            help="Override one setting of the study, such as trainer.batch_size=64; may be repeated.  [default: none]",
            autocompletion=complete_setting,
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
            "logging": json.dumps(log) if log else None,
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
def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help="The data: a folder, a file, or hf://datasets/OWNER/NAME.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The study file; `-` prints it.", show_default=True)
    ] = Path("study.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.  [default: off]")] = False,
    backbone: Annotated[
        list[str] | None,
        typer.Option("--backbone", "-b", help="Backbone to try, FAMILY/MODEL; may be repeated.  [default: suggested]"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="Weights of every --backbone: `pretrained`, `none`, or a local file or folder.  [default: pretrained]",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="A.B=VALUE",
            help="Set one setting of the study, such as data.label=COLUMN; may be repeated.  [default: none]",
            autocompletion=complete_setting,
        ),
    ] = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Write a study file for your data: what autoft finds in it, and every setting at its default, explained.

    The data is read as `autoft search` reads it, so whatever is wrong with it is told now.
    """
    overrides = _overrides({}, backbone, weights, settings or [])
    from autoft.prepare import load_config, prepare
    from autoft.starter import starter, write_starter

    heard: list[Event] = []
    config, catalog = load_config(Path(data), overrides, plugins=not no_plugins)
    printed = str(output) == "-"
    text = starter(prepare(config, catalog, heard.append), heard, Path.cwd() if printed else output.parent)
    if printed:
        print(text, end="")
        return
    write_starter(output, text, force=force)
    print_pairs([("study", output), ("next", f"autoft search {output}")])


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
    print_pairs(
        [
            ("best", f"trial {result.trial}: {result.metric} {result.value:.4f} on validation{preset}{test}"),
            *(("front", _front_line(point, result.metric)) for point in result.front),
            ("trials", ", ".join(f"{count} {state}" for state, count in result.trials.items())),
            *_failure_lines(result.failures),
            *(("not logged", f"{name}: {why}") for name, why in result.unlogged.items()),
            ("run", result.run),
            ("bundle", result.bundle),
            *([("report", result.report)] if result.report is not None else []),
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
