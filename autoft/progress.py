"""Shows a search while it runs: a live view on a terminal, plain lines elsewhere, JSON lines for programs, or nothing.

What a person watches goes to stderr; what a program reads goes to stdout.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from autoft.errors import printable
from autoft.events import Event, Listener

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Mode = Literal["live", "plain", "json", "quiet"]

# The summary of these is printed by the command itself, once it is over.
AT_THE_END = ("done", "stopped")


def choose_mode(*, quiet: bool, json_lines: bool) -> Mode:
    """Return how to show progress: `--json` and `--quiet` win, a terminal gets the live view."""
    if json_lines:
        return "json"
    if quiet:
        return "quiet"
    return "live" if sys.stderr.isatty() else "plain"


@contextlib.contextmanager
def show(mode: Mode) -> Iterator[Listener]:
    """Give a listener that shows events until the block ends."""
    if mode == "live":
        with _live() as listener:
            yield listener
    else:
        yield {"json": _json_line, "plain": _plain_line, "quiet": _quiet_line}[mode]


def duration(seconds: float) -> str:
    """Return seconds as people say them.

    Example:
        >>> duration(75)
        '1 min 15 s'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _json_line(event: Event) -> None:
    print(json.dumps({"event": event.kind, "text": event.text, **event.data}), flush=True)


def _plain_line(event: Event) -> None:
    if event.kind in AT_THE_END:
        return
    left = event.data.get("seconds_left")
    ending = f", about {duration(left)} left" if left else ""
    print(f"{'warning: ' if event.kind == 'warning' else ''}{printable(event.text)}{ending}", file=sys.stderr, flush=True)


def _quiet_line(event: Event) -> None:
    if event.kind == "warning":
        print(f"warning: {printable(event.text)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _live() -> Iterator[Listener]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True, highlight=False)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
    ) as progress:
        yield _LiveView(progress)


class _LiveView:
    """Turns events into bars, one of all trials and one of each that trains, with the finished ones as lines above them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._trials: TaskID | None = None
        self._under_way: dict[int, TaskID] = {}
        self._epochs = 1
        self._best = ""

    def __call__(self, event: Event) -> None:
        from rich.markup import escape

        data, progress = event.data, self._progress
        if event.kind == "search":
            self._trials = progress.add_task("trials", total=data["trials"], completed=data["done"], note="")
            self._epochs = data["epochs"]
        elif event.kind == "trial" and self._trials is not None:
            progress.update(self._bar(data["trial"]), completed=data.get("from_epoch", 0))
            return
        elif event.kind == "epoch" and self._trials is not None:
            progress.update(
                self._bar(data["trial"]), completed=data["epoch"], total=data["epochs"], note=f"{data['value']:.4f}"
            )
            progress.update(self._trials, note=f"{self._best}about {duration(data['seconds_left'])} left")
            return
        elif event.kind == "trial_end" and self._trials is not None:
            if data["trial"] in self._under_way:  # else it rested
                progress.remove_task(self._under_way.pop(data["trial"]))
            if data.get("state") != "paused":
                progress.advance(self._trials)
            if data["best"]:
                self._best = f"best {data['value']:.4f} (trial {data['trial']}), "
        elif event.kind == "export" and self._trials is not None:
            progress.update(self._trials, note=self._best.removesuffix(", "))
        if event.kind not in AT_THE_END:
            style = "[yellow]warning:[/] " if event.kind == "warning" else ""
            progress.console.print(style + escape(printable(event.text)))

    def _bar(self, trial: int) -> TaskID:
        """Return the bar of a trial that trains, added where it has none yet."""
        if trial not in self._under_way:
            self._under_way[trial] = self._progress.add_task(f"trial {trial}", total=self._epochs, note="")
        return self._under_way[trial]
