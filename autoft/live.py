"""What a terminal shows while a search runs: trials that train, the best that have ended, the time left, workers."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autoft.errors import printable
from autoft.events import AT_THE_END, Event, Listener, duration
from autoft.status import Fold, Status, TrialStatus, WorkerStatus, workers_of

BEST = 5  # trials that have a value, beside those that train
ROWS = ("trial", "epoch")  # kinds of events that are rows of the table, not lines
BAR = 20  # columns
EVERY = 2.0  # seconds between two looks at the workers
OTHER_LINES = 6  # of a terminal: the summary, the heading, workers, and where lines scroll by
STYLES = {"running": "bold", "failed": "red", "pruned": "dim", "paused": "dim", "waiting": "dim"}


@contextlib.contextmanager
def live_view(console: Console | None = None) -> Iterator[Listener]:
    """Give a listener that shows a search on a terminal until the block ends; then only the lines that it printed stay.

    Args:
        console: Where; the terminal that stderr is, if None.
    """
    console = Console(stderr=True, highlight=False) if console is None else console
    view = LiveView(console)
    with Live(view, console=console, refresh_per_second=4, transient=True):
        yield view


class LiveView:
    """Listens to a search, prints what stays, and renders where it stands.

    Args:
        console: Where it prints.
        workers: Returns the processes that train.
    """

    def __init__(
        self, console: Console, workers: Callable[[], tuple[WorkerStatus, ...]] = lambda: workers_of(os.getpid())
    ) -> None:
        self._console = console
        self._find_workers = workers
        self._fold = Fold()
        self._lock = threading.Lock()  # events come while a thread of rich's renders
        self._workers: tuple[WorkerStatus, ...] = ()
        self._looked = -EVERY

    def __call__(self, event: Event) -> None:
        """Take an event."""
        with self._lock:
            self._fold.add({**event.data, "event": event.kind, "time": time.time()})
        if event.kind not in (*AT_THE_END, *ROWS):
            style = "[yellow]warning:[/] " if event.kind == "warning" else ""
            self._console.print(style + escape(printable(event.text)))

    def __rich__(self) -> RenderableType:
        """Return where the search stands now."""
        if time.monotonic() - self._looked >= EVERY:
            self._workers, self._looked = self._find_workers(), time.monotonic()
        with self._lock:
            status = self._fold.status(Path(), time.time(), alive=True, workers=self._workers)
        if status.budget is None or status.over:
            return Text()
        return Group(*_rendered(status, time.time(), max(1, self._console.height - OTHER_LINES)))


def _rendered(status: Status, now: float, rows: int) -> Iterator[RenderableType]:
    ended = sum(trial.state not in ("running", "paused", "waiting") for trial in status.trials)
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        "trials", ProgressBar(status.budget or 1, ended, width=BAR), f"{ended}/{status.budget}", _summary(status, now)
    )
    yield bar
    running = [trial for trial in status.trials if trial.state == "running"]
    best = [trial for trial in status.ranked() if trial.state != "running"][:BEST]
    if not running and not best:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("trial", "state", status.metric, "epoch", "", "backbone"):
        table.add_column(name, justify="right" if name == status.metric else "left", no_wrap=True)
    for trial in [*running, *best][:rows]:
        table.add_row(*_row(trial), style=STYLES.get(trial.state, ""))
    yield table
    if status.workers:
        told = ", ".join(f"{one.number}: {one.memory / 1e6:.0f} MB {one.state}" for one in status.workers)
        yield Text(f"workers  {told}", style="dim", no_wrap=True, overflow="ellipsis")


def _summary(status: Status, now: float) -> str:
    best, preset = status.best, status.preset
    parts: list[str] = [] if status.phase == "trials" else [status.phase]
    if best is not None and best.value is not None:
        against = "" if preset is None or preset.value is None or best.role == "preset" else f", preset {preset.value:.4f}"
        parts.append(f"best {best.value:.4f} (trial {best.number}{against})")
    parts.append(duration(max(0.0, now - status.began)))
    if status.seconds_left is not None:
        parts.append(f"about {duration(status.seconds_left)} left")
    return ", ".join(parts)


def _row(trial: TrialStatus) -> tuple[RenderableType, ...]:
    role = "" if trial.role == "trial" else f" ({trial.role})"
    known = trial.epochs > 0
    return (
        f"{trial.number}{role}",
        trial.state,
        "" if trial.value is None else f"{trial.value:.4f}",
        f"{trial.epoch}/{trial.epochs}" if known else f"{trial.epoch}",
        ProgressBar(trial.epochs, trial.epoch, width=BAR) if known and trial.state == "running" else "",
        escape(printable(trial.backbone)),
    )
