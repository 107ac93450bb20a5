"""Tells where a search stands, from its log and from the processes that work on it; it takes no lock and writes nothing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from autoft.errors import RunError
from autoft.runfolder import Holder, holder, read_events, was_searched

Phase = Literal["preparing", "probing", "trials", "confirming", "exporting", "done", "stopped"]
PHASES: Mapping[str, Phase] = {  # by the kind of event that begins it
    "data": "preparing",
    "preflight": "preparing",
    "tuned": "preparing",
    "probe": "probing",
    "search": "trials",
    "trial": "trials",
    "epoch": "trials",
    "trial_end": "trials",
    "confirm": "confirming",
    "export": "exporting",
    "done": "done",
    "stopped": "stopped",
}
OVER: frozenset[Phase] = frozenset({"done", "stopped"})


@dataclass(frozen=True)
class TrialStatus:
    """What a trial has come to.

    Attributes:
        number: Of the trial.
        state: `running`, `paused`, `complete`, `pruned`, `failed` or `interrupted`; of one that was running when its session
            ended, `waiting`.
        role: `preset`, `lp-ft`, or `trial` for one that was searched.
        backbone: Its backbone.
        epoch: The last one that it has trained.
        epochs: How many a whole trial has; 0 before the first epoch.
        value: Of the metric: the last epoch's while it runs, the best one's once it has ended; None before.
        best: Whether it was the best when it ended.
        heard: When it was last heard of, in seconds since 1970.
    """

    number: int
    state: str
    role: str
    backbone: str
    epoch: int
    epochs: int
    value: float | None
    best: bool
    heard: float


@dataclass(frozen=True)
class WorkerStatus:
    """A process that trains.

    Attributes:
        number: Of the worker, from 0.
        pid: Of the process.
        memory: Bytes that it holds.
        state: What the system says: `running`, `sleeping`, `stopped` ...
    """

    number: int
    pid: int
    memory: int
    state: str


@dataclass(frozen=True)
class Status:
    """Where a search stands.

    Attributes:
        run: The run folder.
        name: Of the study; empty before the first trial.
        phase: What it does, or did last.
        alive: Whether a process works on it; None where that cannot be seen from this machine.
        holder: The process that works on it, or worked on it last.
        metric: What is optimized; empty before that is known.
        direction: `maximize` or `minimize`.
        budget: Trials in all, or None before the first.
        time_limit: Seconds in all, or None.
        trials: Those that have begun, in order.
        workers: Processes that train now, where they are on this machine.
        began: When the first session began, in seconds since 1970.
        heard: When anything was last heard.
        seconds_left: Until the end of the trials, as estimated from what epochs cost; None where nothing tells it.
        warnings: How many were told.
        bundle: The exported model, once there is one.
    """

    run: Path
    name: str
    phase: Phase
    alive: bool | None
    holder: Holder | None
    metric: str
    direction: str
    budget: int | None
    time_limit: float | None
    trials: tuple[TrialStatus, ...]
    workers: tuple[WorkerStatus, ...]
    began: float
    heard: float
    seconds_left: float | None
    warnings: int
    bundle: Path | None

    @property
    def over(self) -> bool:
        """Whether nothing more will come of itself: it is done, was stopped, or was killed."""
        return self.phase in OVER or self.alive is False

    @property
    def killed(self) -> bool:
        """Whether it ended without saying so."""
        return self.phase not in OVER and self.alive is False

    @property
    def state(self) -> str:
        """What became of it, in a word: `done`, `stopped`, `killed`, or `running`."""
        return "killed" if self.killed else self.phase if self.over else "running"

    @property
    def ended(self) -> int:
        """How many trials have ended, in whatever way."""
        return sum(trial.state in ("complete", "pruned", "failed") for trial in self.trials)

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials in each state."""
        return dict(Counter(trial.state for trial in self.trials))

    @property
    def best(self) -> TrialStatus | None:
        """The best trial so far: the last that was the best when it ended or rested."""
        return max((trial for trial in self.trials if trial.best), key=self._worth, default=None)

    @property
    def preset(self) -> TrialStatus | None:
        """The first preset, once it has a value."""
        return next((trial for trial in self.trials if trial.role == "preset" and trial.value is not None), None)

    def ranked(self) -> tuple[TrialStatus, ...]:
        """Return the trials that have a value, the best first."""
        return tuple(sorted((trial for trial in self.trials if trial.value is not None), key=self._worth, reverse=True))

    def _worth(self, trial: TrialStatus) -> tuple[float, int]:
        value = trial.value if trial.value is not None else float("nan")
        return (value if self.direction != "minimize" else -value, -trial.number)


@dataclass
class Fold:
    """What events have told so far; `add` takes the next one, in the form of `log.jsonl`."""

    name: str = ""
    phase: Phase = "preparing"
    metric: str = ""
    direction: str = "maximize"
    budget: int | None = None
    time_limit: float | None = None
    seconds_left: float | None = None
    left_at: float = 0.0
    warnings: int = 0
    began: float = 0.0
    heard: float = 0.0
    trials: dict[int, TrialStatus] = field(default_factory=dict)

    def add(self, event: Mapping[str, Any]) -> None:
        """Take an event; one of a kind that is not known changes nothing."""
        kind, when = event["event"], float(event.get("time", self.heard))
        self.began = self.began or when
        self.heard = max(self.heard, when)
        self.warnings += kind == "warning"
        self.phase = PHASES.get(kind, self.phase)
        if kind == "data" and "path" in event:  # a session begins: what an earlier one left running waits
            self._wait()
        self.metric = event.get("metric", self.metric) if kind in ("data", "search") else self.metric
        if kind == "search":
            self._wait()
            self.name, self.direction = event["name"], event["direction"]
            self.budget, self.time_limit = event["trials"], event.get("time_limit")
        elif kind == "trial":
            known, epoch = self.trials.get(event["trial"]), event.get("from_epoch", 0)
            begun = TrialStatus(
                event["trial"], "running", event["role"], event["backbone"], epoch, 0, None, False, when
            )  # fmt: skip
            self.trials[event["trial"]] = replace(known, state="running", heard=when) if known is not None else begun
        elif kind == "epoch":
            self._note(event, epoch=event["epoch"], epochs=event["epochs"], value=event["value"], heard=when)
            self.seconds_left, self.left_at = event.get("seconds_left"), when
        elif kind == "trial_end":
            value = {} if event.get("value") is None else {"value": event["value"]}
            self._note(event, state=event["state"], best=event["best"], heard=when, **value)
        elif self.phase in OVER:
            self._wait()

    def status(
        self,
        run: Path,
        now: float,
        *,
        alive: bool | None,
        held: Holder | None = None,
        workers: tuple[WorkerStatus, ...] = (),
        bundle: Path | None = None,
    ) -> Status:
        """Return where the search stands.

        Args:
            run: The run folder.
            now: Seconds since 1970.
            alive: Whether a process works on it; None where that cannot be seen.
            held: The process that works on it, or worked on it last.
            workers: Processes that train.
            bundle: The exported model.
        """
        left = None
        if self.seconds_left is not None and alive and self.phase == "trials":
            left = max(0.0, self.seconds_left - (now - self.left_at))
        return Status(
            run=run,
            name=self.name,
            phase=self.phase,
            alive=alive if self.phase not in OVER else False,
            holder=held,
            metric=self.metric,
            direction=self.direction,
            budget=self.budget,
            time_limit=self.time_limit,
            trials=tuple(self.trials[number] for number in sorted(self.trials)),
            workers=workers,
            began=self.began,
            heard=self.heard,
            seconds_left=left,
            warnings=self.warnings,
            bundle=bundle,
        )

    def _note(self, event: Mapping[str, Any], **changes: Any) -> None:
        known = self.trials.get(event["trial"])
        if known is not None:
            self.trials[event["trial"]] = replace(known, **changes)

    def _wait(self) -> None:
        for number, trial in self.trials.items():
            if trial.state == "running":
                self.trials[number] = replace(trial, state="waiting")


def read_status(run: Path) -> Status:
    """Return where a search stands, while it goes on, or after it has ended, in whatever way.

    Raises:
        RunError: There is no run in the folder.
    """
    if not was_searched(run) and not (run / "log.jsonl").exists():
        raise RunError(
            f"the run folder of a search is needed, but {run} {'has no log' if run.is_dir() else 'is no folder'}",
            "name the folder that `autoft search` printed as `run`, such as runs/NAME",
        )
    return status_of(run, read_events(run), time.time())


def status_of(run: Path, events: Iterable[Mapping[str, Any]], now: float) -> Status:
    """Return what events and processes tell of a search.

    Args:
        run: The run folder.
        events: As `log.jsonl` has them, in order.
        now: Seconds since 1970.
    """
    fold = Fold()
    for event in events:
        fold.add(event)
    held = holder(run)
    alive = False if held is None else held.alive
    bundle = run / "bundle"
    return fold.status(
        run,
        now,
        alive=alive,
        held=held,
        workers=workers_of(held.pid) if held is not None and alive and fold.phase not in OVER else (),
        bundle=bundle if (bundle / "autoft.json").is_file() else None,
    )


def workers_of(pid: int) -> tuple[WorkerStatus, ...]:
    """Return the workers of a driver on this machine; those that end meanwhile are left out."""
    found = []
    try:
        children = psutil.Process(pid).children()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ()
    for child in children:
        try:
            line = child.cmdline()
            if "autoft-worker" in line:
                found.append(WorkerStatus(int(line[-1]), child.pid, child.memory_info().rss, child.status()))
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return tuple(sorted(found, key=lambda worker: worker.number))
