"""`autoft status`, `autoft list`, `autoft dashboard`: where searches stand, seen from another terminal or a browser."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoft.cli.app import app
from autoft.cli.options import AsJson
from autoft.cli.printing import megabytes, print_note, print_pairs, print_table
from autoft.errors import printable
from autoft.progress import KERNEL

if TYPE_CHECKING:
    from autoft.status import Status, TrialStatus

BEST = 5  # trials that are listed beside those that run
EVERY = 2.0  # seconds between two looks of --watch


@app.command()
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run folder of a search, under way or over.")],
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it again every 2 seconds until the search is over.  [default: off]")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show where a search stands, from another terminal: trials, the best so far, the time left, its workers.

    It reads the log and looks at the processes; it takes no lock, changes nothing, and does not disturb the search.
    """
    from autoft.status import read_status

    while True:
        found = read_status(run)
        if as_json:
            print(json.dumps(_plain(found)), flush=True)
        else:
            if watch and sys.stdout.isatty() and KERNEL not in os.environ:
                print("\x1b[2J\x1b[H", end="")  # an empty screen, from its top
            _print(found)
        if not watch or found.over:
            return
        time.sleep(EVERY)


@app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Folder of runs.", show_default=True)] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs of a folder, the latest first: what became of each, its score, its trials, its size.

    Nothing is changed; a run that cannot be read is listed as damaged, with the reason.
    """
    from autoft.listing import runs_in

    found = runs_in(folder)
    if as_json:
        print(json.dumps([{**asdict(run), "path": str(run.path)} for run in found], indent=2))
        return
    if not found:
        print_note(f"there is no run in {folder}")
        return
    rows = [("run", "state", "metric", "validation", "test", "trials", "backbone", "last heard", "size")]
    for run in found:
        of = "" if run.budget is None else f" of {run.budget}"
        rows.append(
            (
                printable(str(run.path)),
                run.state,
                run.metric,
                "" if run.value is None else f"{run.value:.4f}",
                "" if run.test is None else f"{run.test:.4f}",
                f"{run.ended}{of}",
                printable(run.backbone),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(run.heard)) if run.heard else "",
                megabytes(run.size),
            )
        )
    print_table(rows)
    for run in found:
        if run.problem is not None:
            print_note(f"{run.path} is damaged: {printable(run.problem)}")


@app.command()
def dashboard(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run folder of a search, under way or over.")],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port to listen on; 0 for any that is free.")
    ] = 8080,
) -> None:
    """Show a run in optuna-dashboard, in a browser, with notes, learning curves and the worst mistakes attached.

    What it shows is a copy that follows the search; nothing that is done in the browser reaches the run. Ctrl-C ends it.
    """
    from autoft.dashboard.serving import LOOPBACK, serve

    def ready(address: str) -> None:
        print(address, flush=True)
        print_note("Ctrl-C ends it")
        if host not in LOOPBACK:
            print_note(f"warning: whoever reaches {host} can read the run; there is no password")

    for each in (signal.SIGINT, signal.SIGTERM):  # also where a shell had them ignored, as of what it puts in the background
        signal.signal(each, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):  # it is how this ends
        serve(run, host, port, ready)


def _plain(found: Status) -> dict[str, Any]:
    """Return a status, JSON-ready."""
    plain = asdict(found)
    best, preset = found.best, found.preset
    return {
        **plain,
        "run": str(found.run),
        "bundle": None if found.bundle is None else str(found.bundle),
        "counts": found.counts,
        "best": None if best is None else {"trial": best.number, "value": best.value},
        "preset": None if preset is None else preset.value,
        "over": found.over,
        "killed": found.killed,
    }


def _print(found: Status) -> None:
    from autoft.events import duration

    now = time.time()
    pairs: list[tuple[str, object]] = [("run", f"{found.run}" + (f" ({printable(found.name)})" if found.name else ""))]
    pairs.append(("state", _state(found)))
    if found.budget is not None:
        counts = ", ".join(f"{count} {state}" for state, count in found.counts.items())
        pairs.append(("trials", f"{counts or 'none yet'}, of {found.budget}"))
    best, preset = found.best, found.preset
    if best is not None and best.value is not None:
        against = "" if preset is None or preset.value is None else f" (preset {preset.value:.4f})"
        pairs.append(("best", f"trial {best.number}: {found.metric} {best.value:.4f}{against}"))
    until = found.heard if found.over else now
    left = "" if found.seconds_left is None else f", about {duration(found.seconds_left)} left"
    pairs.append(("time", f"{duration(max(0.0, until - found.began))} since it began{left}"))
    if found.warnings:
        pairs.append(("warnings", f"{found.warnings}, in {found.run / 'log.jsonl'}"))
    if found.bundle is not None:
        pairs.append(("bundle", found.bundle))
    if found.killed:
        pairs.append(("next", f"autoft search {found.run / 'study.yaml'} -o {found.run}    goes on where it was"))
    print_pairs(pairs)
    running = [trial for trial in found.trials if trial.state == "running"] if not found.over else []
    shown = [*running, *(trial for trial in found.ranked() if trial not in running)][: len(running) + BEST]
    if shown:
        print()
        print_table([("trial", "state", found.metric, "epoch", "backbone", "heard"), *_rows(shown, until)])
    if found.workers:
        print()
        print_table(
            [
                ("worker", "pid", "memory", "state"),
                *((str(one.number), str(one.pid), megabytes(one.memory), one.state) for one in found.workers),
            ]
        )


def _state(found: Status) -> str:
    if found.killed:
        return f"ended without a word while {found.phase}: it was killed, or the machine went down"
    if found.holder is None or found.over:
        return found.phase
    if found.alive is None:
        return f"{found.phase}, by pid {found.holder.pid} on {found.holder.host}, which cannot be seen from here"
    return f"{found.phase}, by pid {found.holder.pid}"


def _rows(trials: list[TrialStatus], now: float) -> Iterator[tuple[str, ...]]:
    from autoft.events import duration

    for trial in trials:
        yield (
            f"{trial.number}" + (f" ({trial.role})" if trial.role != "trial" else ""),
            trial.state,
            "" if trial.value is None else f"{trial.value:.4f}",
            f"{trial.epoch}/{trial.epochs}" if trial.epochs else f"{trial.epoch}",
            printable(trial.backbone),
            f"{duration(max(0.0, now - trial.heard))} ago",
        )
