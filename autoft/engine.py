"""How the driver reaches workers: start, submit, poll, stop; and the engine that runs tasks in this very process.

It decides nothing about trials; training itself is in `worker.py`, worker processes are in `processes.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from autoft.catalog import Catalog
from autoft.discovery import discover
from autoft.files import as_path
from autoft.ragged import Rows
from autoft.specs import Backbone, BackboneRequest, Preprocessing, Sample, Targets
from autoft.train import EpochReport, Objective, TrainConfig
from autoft.worker import Job, Outcome, PauseTrial, StopTrial, Worker

# --- what travels ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BackboneSetup:
    """What a process needs to resolve a backbone again.

    Attributes:
        family: The family's name.
        request: What the family was asked for.
        preprocessing: Fitted to the training split.
    """

    family: str
    request: BackboneRequest
    preprocessing: Preprocessing


@dataclass(frozen=True)
class Setup:
    """All that a process makes its `Worker` of, as plain values.

    Attributes:
        backbones: The candidates, in the order that `Task.backbone` counts.
        head: Name of the task.
        targets: Its targets.
        metric: The metric that selects the best epoch.
        splits: Samples and encoded targets of each split.
        devices: Where to train, in torch's words; the workers take them in turn.
        memory: Bytes that decoded samples of all workers may take together.
        cache: Folder of this search alone for decoded texts, as text, or None to hold them in memory.
        shared: Folder of this search alone for decoded samples of other kinds, which all workers map, or None likewise.
        prefix: Folder of this search alone for what frozen stages give, or None to store nothing.
        sharing: How many trials are expected to use one store of that.
        heads: Folder of the heads that probes found, or None where no training starts from one.
        threads: Threads of one worker process.
        plugins: Whether third-party plugins may be loaded.
        allow: Names of the third-party plugins that may be, or None for all.
    """

    backbones: tuple[BackboneSetup, ...]
    head: str
    targets: Targets
    metric: str
    splits: Mapping[str, tuple[Sequence[Sample], Rows]]
    devices: tuple[str, ...]
    memory: int
    cache: str | None = None
    shared: str | None = None
    prefix: str | None = None
    sharing: int = 1
    heads: str | None = None
    threads: int = 1
    plugins: bool = True
    allow: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Task:
    """One trial to run, or to go on with from its checkpoint.

    Attributes:
        number: The trial's number, or whatever else tells it from other tasks under way.
        backbone: Place of its backbone in `Setup.backbones`.
        config: How to train.
        augmentation: Policy for the training split.
        folder: The trial's own folder: a local path, or an address of any file system of fsspec.
        seconds: From its beginning to its deadline, or None. The epoch that ends after it is the last (`time limit`); a
            step that would begin after it ends the task as `interrupted`.
        one_epoch: Whether an epoch must have ended before steps heed the deadline.
        whole: Whether only a training to its end counts: an epoch that ends after the deadline is then not the last, but the
            next step ends the task as `interrupted`.
        pause_after: The epoch after which it pauses, unless it is the last; or None.
    """

    number: int
    backbone: int
    config: TrainConfig
    augmentation: str
    folder: str
    seconds: float | None = None
    one_epoch: bool = False
    whole: bool = False
    pause_after: int | None = None


@dataclass(frozen=True)
class Ready:
    """A worker has imported everything and waits for tasks.

    Attributes:
        worker: Its number.
        seconds: What that took.
    """

    worker: int
    seconds: float


@dataclass(frozen=True)
class Epoch:
    """An epoch has ended, and its checkpoint is safe.

    Attributes:
        worker: Who trains.
        number: The trial's number.
        report: What the epoch gave.
    """

    worker: int
    number: int
    report: EpochReport


@dataclass(frozen=True)
class Ended:
    """A task has ended, well or not; its worker is free.

    Attributes:
        worker: Who trained.
        number: The trial's number.
        outcome: How it ended.
    """

    worker: int
    number: int
    outcome: Outcome


@dataclass(frozen=True)
class Died:
    """A worker's process has ended unasked; another takes its place with the next task that it is given.

    Attributes:
        worker: Its number.
        number: Of the trial that it was running, which can go on from its checkpoint; None where it had none.
        code: The exit code; -N for signal N.
        ready: Whether it had been ready: where not, another may well end in the same way.
        errors: The last lines of its stderr.
        silent: Where it was ended because its lease had run out: the seconds for which it had not been heard of.
    """

    worker: int
    number: int | None
    code: int
    ready: bool
    errors: str
    silent: float | None = None


@dataclass(frozen=True)
class Refused:
    """What a worker told after its lease had run out: its task is another's by now, so it does not count.

    Attributes:
        worker: Its number, which another process has by now.
        number: The trial's number; None where it told of none.
    """

    worker: int
    number: int | None


Message = Ready | Epoch | Ended | Died | Refused


class Engine(Protocol):
    """Where tasks run; each worker has one at a time."""

    def start(self, setup: Setup, workers: int) -> None:
        """Start so many workers; each tells when it is ready, but takes a task before."""

    def submit(self, worker: int, task: Task) -> None:
        """Give a free worker a task; one that has died is replaced for it."""

    def poll(self, timeout: float) -> list[Message]:
        """Return what has happened, in order for each worker; wait at most so many seconds where nothing has."""

    def stop(self, *, gracefully: bool) -> None:
        """End all workers: at their next step, or at once. What they told until then can still be polled."""


# --- what both kinds of engine share --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Equipment:
    """What runs tasks.

    Attributes:
        worker: Trains.
        backbones: The candidates, in the setup's order.
    """

    worker: Worker
    backbones: tuple[Backbone, ...]


def equip(setup: Setup, number: int = 0) -> Equipment:
    """Load the plugins, and resolve backbones and head by name.

    Args:
        setup: What to make it of.
        number: Of the worker.

    Raises:
        AutoftError: Something that the setup names is not there.
    """
    catalog = discover(enabled=setup.plugins, allow=setup.allow)
    backbones = tuple(replace(_resolve(catalog, wanted), preprocessing=wanted.preprocessing) for wanted in setup.backbones)
    worker = Worker(
        setup.splits,
        Objective(catalog.head(setup.head), setup.targets, setup.metric),
        device=torch.device(setup.devices[number % len(setup.devices)]),
        memory=setup.memory,
        cache=_path(setup.cache),
        shared=_path(setup.shared),
        prefix=_path(setup.prefix),
        sharing=setup.sharing,
        heads=_path(setup.heads),
        strategies=catalog.strategies,
    )
    return Equipment(worker, backbones)


def _resolve(catalog: Catalog, wanted: BackboneSetup) -> Backbone:
    asked = wanted.request
    return catalog.resolve_backbone(
        f"{wanted.family}/{asked.model}",
        asked.weights,
        asked.image_size,
        asked.typical_size,
        asked.features,
        asked.max_length,
    )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def run_task(
    equipment: Equipment, task: Task, on_epoch: Callable[[EpochReport], None], should_stop: Callable[[], bool]
) -> Outcome:
    """Run a task to its end, its pause or its deadline.

    Args:
        equipment: What runs it.
        task: What to run.
        on_epoch: Hears each epoch; may raise `StopTrial` or `PauseTrial`.
        should_stop: Asked before every step; True ends it as `interrupted`.
    """
    began = time.monotonic()
    trained = not task.one_epoch

    def late() -> bool:
        return task.seconds is not None and time.monotonic() - began > task.seconds

    def after_epoch(report: EpochReport) -> None:
        nonlocal trained
        trained = True
        on_epoch(report)
        if report.epoch == task.config.epochs:
            return
        if late() and not task.whole:
            raise StopTrial("time limit")
        if task.pause_after is not None and report.epoch >= task.pause_after:
            raise PauseTrial

    job = Job(equipment.backbones[task.backbone], task.config, task.augmentation, as_path(task.folder))
    return equipment.worker.run(job, on_epoch=after_epoch, should_stop=lambda: should_stop() or (trained and late()))


class LocalEngine:
    """Runs tasks in this process, one after another, while it is polled.

    Args:
        on_message: Hears every `Epoch` at once, which `poll` then leaves out; it may raise `StopTrial` or `PauseTrial`.
        should_stop: Asked before every step; True ends the task as `interrupted`.
        equipment: What runs the tasks where it exists already; made by `start` where None.
    """

    def __init__(
        self,
        on_message: Callable[[Message], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        equipment: Equipment | None = None,
    ) -> None:
        self._on_message = on_message
        self._should_stop = should_stop
        self._equipment = equipment
        self._task: Task | None = None
        self._messages: list[Message] = []
        self._stopped = False

    def start(self, setup: Setup, workers: int = 0) -> None:
        """Make what runs the tasks; there is one worker, number 0, whatever is asked."""
        began = time.monotonic()
        if self._equipment is None:
            self._equipment = equip(setup)
        self._stopped = False
        self._messages.append(Ready(0, time.monotonic() - began))

    def submit(self, worker: int, task: Task) -> None:
        """Keep a task for the next `poll`.

        Raises:
            ValueError: There is no such worker, it has a task, or nothing was started.
        """
        if worker != 0 or self._equipment is None or self._stopped:
            raise ValueError(f"a task must go to a worker that runs, but worker {worker} does not")
        if self._task is not None:
            raise ValueError(f"a worker takes one task at a time, but it still has trial {self._task.number}")
        self._task = task

    def poll(self, timeout: float = 0.0) -> list[Message]:
        """Run the task, if there is one, to its end; return what happened. There is nothing to wait for."""
        task, equipment = self._task, self._equipment
        if task is not None and equipment is not None and not self._stopped:
            self._task = None

            def on_epoch(report: EpochReport) -> None:
                (self._on_message or self._messages.append)(Epoch(0, task.number, report))

            outcome = run_task(equipment, task, on_epoch, lambda: self._stopped or self._should_stop())
            self._messages.append(Ended(0, task.number, outcome))
        told, self._messages = self._messages, []
        return told

    def stop(self, *, gracefully: bool) -> None:
        """Take no further task; called while one runs, from `on_message` or a signal's handler, end it at its next step."""
        self._stopped = True
