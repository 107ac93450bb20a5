"""The driver's crew: how many workers there are, who is free, and what becomes of the work of one that died.

It trains nothing and decides nothing about trials; how workers are reached is in `engine.py`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from autoft.engine import (
    BackboneSetup,
    Died,
    Ended,
    Engine,
    Epoch,
    Equipment,
    LocalEngine,
    Message,
    Ready,
    Refused,
    Setup,
    Task,
)
from autoft.errors import RunError
from autoft.events import Event, Listener
from autoft.files import as_path, remove_unfinished
from autoft.prepare import Prepared
from autoft.runfolder import RunFolder
from autoft.specs import Backbone
from autoft.train import EpochReport, TrainConfig
from autoft.worker import CHECKPOINT, Failure, Outcome, Worker

RETRIES = 3  # of a task whose worker died, since its last epoch: it goes on from its checkpoint, and costs no budget
MOST = 8  # workers that `auto` starts: the more train at once, the less each new trial can learn from the others
MEMORY_EACH = 2 << 30  # bytes that a worker takes with torch, a model and its optimizer, roughly
WAIT = 0.2  # seconds between two looks at whether the user wants to stop


@dataclass(frozen=True)
class Manning:
    """Who trains.

    Attributes:
        workers: Processes; 0 to train in this one.
        devices: Where, in torch's words; the workers take them in turn.
        threads: Of each worker.
    """

    workers: int
    devices: tuple[str, ...]
    threads: int


def choose_manning(prepared: Prepared) -> Manning:
    """Return who trains: as the study asks, else several one-thread workers on a CPU, one for each of several GPUs.

    Threads that torch would use (all cores, or `OMP_NUM_THREADS`) are divided among the workers.
    """
    search, threads = prepared.config.search, torch.get_num_threads()
    devices = prepared.devices
    if search.workers != "auto":
        return Manning(search.workers, devices, max(1, threads // max(1, search.workers)))
    if len(devices) > 1:
        return Manning(len(devices), devices, max(1, threads // len(devices)))
    if prepared.device.type != "cpu":
        return Manning(0, devices, threads)  # one worker beside this process would only hold the device's memory twice
    room = int(psutil.virtual_memory().available // MEMORY_EACH)
    count = min(threads, MOST, room, search.trials)
    return Manning(count, devices, threads // count) if count > 1 else Manning(0, devices, threads)


def make_setup(prepared: Prepared, run: RunFolder, manning: Manning, *, plugins: bool, sharing: int) -> Setup:
    """Return what worker processes are made of."""
    config = prepared.config
    return Setup(
        backbones=tuple(_asked(backbone) for backbone in prepared.backbones),
        head=prepared.objective.head.name,
        targets=prepared.objective.targets,
        metric=prepared.objective.metric,
        splits={split: (prepared.samples[split], prepared.encoded[split]) for split in prepared.samples},
        devices=manning.devices,
        memory=prepared.memory,
        cache=str(run.tokens),
        shared=str(run.pixels),
        prefix=str(run.prefix) if config.search.reuse else None,
        sharing=sharing,
        heads=str(run.heads),
        threads=manning.threads,
        plugins=plugins,
        allow=config.plugins.allow,
    )


def _asked(backbone: Backbone) -> BackboneSetup:
    if backbone.request is None:
        raise AssertionError("a backbone of a study is resolved by the catalog")
    return BackboneSetup(backbone.name.partition("/")[0], backbone.request, backbone.preprocessing)


class Crew:
    """Workers of one search, and what each is doing.

    Args:
        engine: Where they run; started already.
        workers: How many there are, counted from 0.
        backbones: The study's, in its order.
        listener: Hears of workers that died.
    """

    def __init__(self, engine: Engine, workers: int, backbones: Sequence[Backbone], listener: Listener) -> None:
        self.size = workers
        self._engine = engine
        self._backbones = backbones
        self._listener = listener
        self._busy: dict[int, tuple[Task, float]] = {}  # what each worker does, and since when
        self._deaths: Counter[int] = Counter()  # of each task's workers since its last epoch
        self._reached: dict[int, int] = {}  # by each task that is under way: the last epoch that was told
        self._stillborn = 0  # workers that were killed before they were ready, since the last that was

    @property
    def free(self) -> int:
        """How many workers have nothing to do."""
        return self.size - len(self._busy)

    def submit(
        self,
        number: int,
        backbone: Backbone,
        config: TrainConfig,
        augmentation: str,
        folder: Path,
        *,
        seconds: float | None = None,
        one_epoch: bool = False,
        whole: bool = False,
        pause_after: int | None = None,
    ) -> None:
        """Give a free worker a task; see `engine.Task` for what the arguments mean."""
        place = next(index for index, each in enumerate(self._backbones) if each is backbone)
        worker = next(worker for worker in range(self.size) if worker not in self._busy)
        self._deaths.pop(number, None)
        self._reached.pop(number, None)
        self._give(
            worker,
            Task(
                number,
                place,
                config,
                augmentation,
                str(folder.resolve()),
                seconds=seconds,
                one_epoch=one_epoch,
                whole=whole,
                pause_after=pause_after,
            ),
        )

    def poll(self, timeout: float = WAIT) -> list[Epoch | Ended]:
        """Return what has happened, after so many seconds at most; the tasks of workers that died go on in others.

        Raises:
            RunError: A worker ended before it could take anything up.
        """
        return [told for message in self._engine.poll(timeout) for told in self._take(message)]

    def stop(self, *, gracefully: bool) -> list[Epoch | Ended]:
        """End all workers: at their next step, or at once. Return what they told since the last `poll`."""
        self._engine.stop(gracefully=gracefully)
        return [message for message in self._engine.poll(0.0) if isinstance(message, Epoch | Ended)]

    def _give(self, worker: int, task: Task) -> None:
        self._busy[worker] = (task, time.monotonic())
        self._engine.submit(worker, task)

    def _take(self, message: Message) -> list[Epoch | Ended]:
        if isinstance(message, Ready):
            self._stillborn = 0
            return []
        if isinstance(message, Died):
            return self._replace(message)
        if isinstance(message, Refused):
            self._note_refused(message)
            return []
        if isinstance(message, Ended):
            del self._busy[message.worker]
        elif message.report.epoch > self._reached.get(message.number, 0):  # a checkpoint's is told again
            self._reached[message.number] = message.report.epoch
            self._deaths.pop(message.number, None)
        return [message]

    def _note_refused(self, refused: Refused) -> None:
        what = "a message" if refused.number is None else f"what it told of trial {refused.number}"
        self._listener(
            Event(
                "warning",
                f"worker {refused.worker} was heard of after its lease had run out; {what} does not count",
                {"about": "lease", "worker": refused.worker, "trial": refused.number},
            )
        )

    def _replace(self, died: Died) -> list[Epoch | Ended]:
        how = f"was killed by signal {-died.code}" if died.code < 0 else f"ended with exit code {died.code}"
        if died.silent is not None:
            how = f"had not been heard of for {died.silent:.0f} s and was ended"
        last = f": {died.errors.splitlines()[-1]}" if died.errors else ""
        self._stillborn += not died.ready
        if not died.ready and (died.code >= 0 or self._stillborn > RETRIES):  # a signal may come from outside
            raise RunError(
                f"a worker process {how} before it was ready{last}",
                "`--workers 0` trains in the process of the search itself"
                + (f"; its last words:\n{died.errors}" if died.errors else ""),
            )
        self._listener(
            Event(
                "warning",
                f"worker {died.worker} {how}{last}; "
                + ("another takes its place" if died.number is None else f"trial {died.number} goes on from its checkpoint"),
                {
                    "about": "worker",
                    "worker": died.worker,
                    "trial": died.number,
                    "code": died.code,
                    "silent": None if died.silent is None else round(died.silent, 3),
                    "errors": died.errors,
                },
            )
        )
        if died.worker not in self._busy:
            return []
        task, since = self._busy.pop(died.worker)
        for folder in (as_path(task.folder), as_path(task.folder) / CHECKPOINT):
            remove_unfinished(folder)
        self._deaths[task.number] += died.ready  # it had not begun otherwise
        if self._deaths[task.number] <= RETRIES:
            left = None if task.seconds is None else max(0.0, task.seconds - (time.monotonic() - since))
            self._give(died.worker, replace(task, seconds=left))
            return []
        message = f"its worker {how}, {RETRIES + 1} times without an epoch between{last}"
        failure = Failure("infra", message, died.errors or message, f"worker {how}")
        return [Ended(died.worker, task.number, Outcome("failed", None, 0, time.monotonic() - since, "infra", failure))]


def start_local(
    worker: Worker,
    prepared: Prepared,
    setup: Setup,
    listener: Listener,
    on_epoch: Callable[[int, EpochReport], None],
    should_stop: Callable[[], bool],
) -> Crew:
    """Return a crew of one, which trains in this process while it is polled."""

    def tell(message: Message) -> None:
        if isinstance(message, Epoch):
            on_epoch(message.number, message.report)

    engine = LocalEngine(tell, should_stop, Equipment(worker, tuple(prepared.backbones)))
    engine.start(setup)
    return Crew(engine, 1, prepared.backbones, listener)
