"""Runs one trial after another with data kept warm: trains, checkpoints, and gives every failure a type."""

from __future__ import annotations

import errno
import gc
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from autoft.checkpoint import ADAPTER, DamagedCheckpointError, read_best
from autoft.errors import DataError, RunError, first_line
from autoft.files import checksum, copy_atomically, load_tensors, read_json, remove_tree, write_bytes, write_checked
from autoft.loading import FixedData, SplitData, load_split
from autoft.model import FineTuneModel, assemble
from autoft.prefix_store import PrefixStore
from autoft.ragged import Rows
from autoft.reuse import ReusePlanner
from autoft.specs import WHOLE, Backbone, Sample, Strategy
from autoft.train import EpochReport, Interrupted, NonFiniteError, Objective, TrainConfig, fit

FailureKind = Literal["oom", "nan", "data", "infra", "disk", "bug"]
State = Literal["complete", "pruned", "paused", "interrupted", "failed"]

_Value = TypeVar("_Value")

WEIGHTS = "model.safetensors"
RESULT = "result.json"
CHECKPOINT = "checkpoint"


class StopTrial(Exception):  # noqa: N818 - a request, not an error
    """Raised by `on_epoch` to end a trial after an epoch; carries why, such as `pruned` or `time limit`."""


class PauseTrial(Exception):  # noqa: N818 - a request, not an error
    """Raised by `on_epoch` to leave a trial after an epoch with its checkpoint, so that it may go on later."""


class _CallerError(Exception):
    """Carries what `on_epoch` or `should_stop` raised through the training: it is no failure of the trial."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Job:
    """One trial to run.

    Attributes:
        backbone: What to fine-tune.
        config: How.
        augmentation: Policy for the training split.
        folder: The trial's own folder: its checkpoint lives there while it runs, its weights and result after. Of
            `files.as_path`, so it may lie on another file system.
    """

    backbone: Backbone
    config: TrainConfig
    augmentation: str
    folder: Path


@dataclass(frozen=True)
class Failure:
    """Why a trial failed.

    Attributes:
        kind: `oom`, `nan`, `data`, `infra`, `disk` or `bug`.
        message: The exception, in a line.
        trace: The whole traceback.
        place: Where it was raised, to tell equal bugs from different ones.
    """

    kind: FailureKind
    message: str
    trace: str
    place: str


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        state: `complete`; `pruned` (stopped early, its best epoch kept); `paused` (left with its checkpoint, to be continued
            or settled); `interrupted` (stopped between two epochs, to be continued); `failed`.
        best: The best epoch, or None where there was none.
        epochs: Epochs trained.
        seconds: Wall time of this run of it.
        stopped: Why it ended: `finished`, `patience`, or what `StopTrial` said.
        failure: For `failed`.
        micro_batch: The micro-batch it ended with, where memory forced a smaller one.
        reuse: Whether stored outputs of frozen stages were used, from where, or why not.
        history: The epochs trained, of all runs of it; empty where it failed or was interrupted.
        redone: Why it was begun again although it had been trained before: what of it was damaged. Empty otherwise.
    """

    state: State
    best: EpochReport | None
    epochs: int
    seconds: float
    stopped: str
    failure: Failure | None = None
    micro_batch: int | None = None
    reuse: str = ""
    history: tuple[EpochReport, ...] = ()
    redone: str = ""


class Worker:
    """Runs trials of one search on one device; keeps decoded splits from trial to trial.

    Args:
        splits: Samples and encoded targets of the `train`, `validation` and `test` splits.
        objective: Task, targets and metric.
        device: Where to train.
        memory: Bytes that decoded samples of all splits may take together.
        cache: Folder of this search alone for decoded texts, or None to hold them in memory.
        shared: Folder of this search alone for other decoded samples, mapped by all its workers, or None likewise.
        prefix: Folder of this search alone for what frozen stages give, shared by its workers, or None to store nothing.
        reuse: Whether to store that and start from it, where the cut is proven exact and a gain is predicted.
        sharing: How many trials are expected to use one store.
        heads: Folder of the heads that probes found, for trainings that start from one.
        strategies: Those of plugins, by name.
    """

    def __init__(
        self,
        splits: Mapping[str, tuple[Sequence[Sample], Rows]],
        objective: Objective,
        *,
        device: torch.device,
        memory: int,
        cache: Path | None = None,
        shared: Path | None = None,
        prefix: Path | None = None,
        reuse: bool = True,
        sharing: int = 1,
        heads: Path | None = None,
        strategies: Mapping[str, Strategy] | None = None,
    ) -> None:
        self._splits = splits
        self._heads = heads
        self._strategies = strategies or {}
        self._cache = cache
        self._shared = shared
        self._objective = objective
        self._device = device
        self._memory = memory
        self._planner: ReusePlanner | None = None
        if reuse and prefix is not None:
            self._planner = ReusePlanner(PrefixStore(prefix, memory=memory), sharing=sharing)
        self._warm: dict[str, SplitData] = {}
        self._micro_batch: dict[str, int] = {}  # learned from running out of memory, by backbone

    def data(self, split: str, backbone: Backbone, policy: str = "none") -> SplitData:
        """Return a split decoded for a backbone; what was decoded before is kept while it fits into memory."""
        # all policies but `none` vary the same pixels, which have a margin; texts have one policy, so all trials share them
        key = f"{split} {policy != 'none'} {backbone.preprocessing.to_dict()}"
        if key in self._warm:
            data = self._warm.pop(key)
            # put back at the end: the order of the dictionary is that of the last use
            self._warm[key] = data.varied(policy) if isinstance(data, FixedData) else data
            return self._warm[key]
        samples, encoded = self._splits[split]
        total = sum(len(rows) for rows, _ in self._splits.values())
        share = int(self._memory * len(samples) / max(1, total))
        self._warm[key] = load_split(
            samples,
            encoded,
            backbone.preprocessing,
            policy=policy,
            memory=share,
            cache=self._cache if backbone.preprocessing.ragged else self._shared,
            name=split,
            move=self._objective.head.move,
        )
        for stale in list(self._warm)[:-1]:
            if sum(data.nbytes for data in self._warm.values()) <= self._memory:
                break
            del self._warm[stale]
        return self._warm[key]

    def build(self, backbone: Backbone, config: TrainConfig, *, finished: bool = False) -> FineTuneModel:
        """Build a backbone and head, as every trial of that configuration starts.

        Args:
            backbone: What to build.
            config: Of the trial.
            finished: Whether the model is to take the weights that a trial has left, and not to be trained.
        """
        start = None
        if config.head_start is not None:
            if self._heads is None:
                raise AssertionError(f"the head {config.head_start} is wanted, but this worker has no folder of heads")
            start = self._heads / config.head_start
        head, targets = self._objective.head, self._objective.targets
        return assemble(
            backbone,
            head,
            targets,
            config.knobs,
            seed=config.seed,
            head_start=start,
            stochastic_depth=config.stochastic_depth,
            strategy=self.strategy(config),
            depth=config.freeze_depth,
            finished=finished,
        )

    def strategy(self, config: TrainConfig) -> Strategy | None:
        """Return how a trial trains what it does not freeze; None for all of the weights."""
        return None if config.strategy == WHOLE else self._strategies[config.strategy]

    def run(
        self,
        job: Job,
        *,
        on_epoch: Callable[[EpochReport], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Outcome:
        """Train one trial to its end, from its checkpoint where it has one.

        Running out of memory halves the micro-batch at the same effective batch and goes on. A damaged result or checkpoint
        is dropped, and the trial begins again; `Outcome.redone` says so. No exception of the training
        escapes: it becomes a typed `Failure`. Those of `on_epoch` and `should_stop` do: they are no failure of the trial.

        Returns:
            The outcome; for `complete` and `pruned` the best weights are in `job.folder / "model.safetensors"`.
        """
        finished, redone = _whole_outcome(job.folder)
        if finished is not None:
            # a kill came between the result and its being told, or even its checkpoint's removal
            remove_tree(job.folder / CHECKPOINT, ignore_errors=True)
            return finished
        started = time.monotonic()
        micro = self._micro_batch.get(job.backbone.name, job.config.micro_batch)
        dropped = False
        while True:
            try:
                outcome = self._attempt(job, micro, started, on_epoch, should_stop)
                return replace(outcome, redone=redone) if redone else outcome
            except _CallerError as carrier:
                raise carrier.error from carrier.error.__cause__
            except DamagedCheckpointError as error:
                if dropped:  # a disk that keeps nothing
                    failure = failure_of(error)
                    return Outcome("failed", None, 0, time.monotonic() - started, "bug", failure, micro)
                dropped, redone = True, str(error)
                remove_tree(job.folder / CHECKPOINT)
                continue
            except (Exception, torch.OutOfMemoryError) as error:  # noqa: BLE001 - typed and handed to the driver
                kind = classify(error)
                current = micro or job.config.batch_size
                if kind == "oom" and current > 1:
                    micro = self._micro_batch[job.backbone.name] = (current + 1) // 2
                    trace = None
                else:
                    failure = failure_of(error)
                    trace = failure.trace
            # outside the handler: the traceback no longer holds the tensors that filled the memory
            self.free()
            if trace is not None:
                epochs = len(_checkpoint_history(job.folder))
                return Outcome("failed", None, epochs, time.monotonic() - started, kind, failure, micro)

    def free(self) -> None:
        """Give back the device memory that no live tensor uses."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _attempt(
        self,
        job: Job,
        micro: int | None,
        started: float,
        on_epoch: Callable[[EpochReport], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> Outcome:
        job.folder.mkdir(parents=True, exist_ok=True)
        history: list[EpochReport] = []
        reuse = ""

        def note(report: EpochReport) -> None:
            history.append(report)
            if on_epoch is not None:
                _call(lambda: on_epoch(report))

        try:
            model = self.build(job.backbone, job.config)
            config = replace(job.config, micro_batch=micro)
            train, validation = self.data("train", job.backbone, job.augmentation), self.data("validation", job.backbone)
            plan = None
            if self._planner is not None and config.freeze_depth:
                plan, reuse = self._planner.plan(
                    model, job.backbone, config, train, validation, device=self._device, objective=self._objective
                )
            result = fit(
                model,
                plan.train if plan else train,
                plan.validation if plan else validation,
                self._objective,
                config,
                device=self._device,
                no_weight_decay=job.backbone.no_weight_decay(model.backbone),
                checkpoint=job.folder / CHECKPOINT,
                on_epoch=note,
                should_stop=None if should_stop is None else lambda: _call(should_stop),
                run=plan.run if plan else None,
            )
            return self._keep(job.folder, "complete", result.stopped, started, micro, reuse)
        except StopTrial as request:
            return self._keep(job.folder, "pruned", str(request), started, micro, reuse)
        except PauseTrial:
            described = load_tensors(job.folder / CHECKPOINT / "last.safetensors")[1]
            best = _best_of(described)
            seconds = time.monotonic() - started
            return Outcome(
                "paused",
                best,
                len(described["history"]),
                seconds,
                "paused",
                micro_batch=micro,
                reuse=reuse,
                history=_reports(described),
            )
        except Interrupted:
            done = _checkpoint_history(job.folder)
            return Outcome("interrupted", None, len(done), time.monotonic() - started, "interrupted", reuse=reuse)

    def _keep(self, folder: Path, state: State, stopped: str, started: float, micro: int | None, reuse: str) -> Outcome:
        return settle(folder, state, stopped, seconds=time.monotonic() - started, micro_batch=micro, reuse=reuse)


def settle(
    folder: Path, state: State, stopped: str, *, seconds: float, micro_batch: int | None = None, reuse: str = ""
) -> Outcome:
    """End a trial that will not go on: keep its best weights and its result, and drop its checkpoint.

    In this order, so that a kill loses nothing; done already, it returns what was kept.

    Raises:
        DamagedCheckpointError: There is no result, and the checkpoint is gone or not what was written.
    """
    finished, _ = _whole_outcome(folder)
    if finished is not None:
        remove_tree(folder / CHECKPOINT, ignore_errors=True)
        return finished
    described, weights, adapter = read_best(folder / CHECKPOINT)
    copy_atomically(weights, folder / WEIGHTS)
    for name, content in adapter.items():
        write_bytes(folder / ADAPTER / name, content)
    outcome = Outcome(
        state,
        _best_of(described),
        len(described["history"]),
        seconds,
        stopped,
        micro_batch=micro_batch,
        reuse=reuse,
        history=_reports(described),
    )
    sums = {name: checksum(content) for name, content in adapter.items()}
    write_checked(folder / RESULT, {**asdict(outcome), "adapter": sums})
    remove_tree(folder / CHECKPOINT)
    return outcome


def _best_of(described: Mapping[str, Any]) -> EpochReport:
    """Return the best epoch's report of a checkpoint's description."""
    epoch = int(Path(described["best"]).stem.removeprefix("best-"))
    return EpochReport(**described["history"][epoch - 1])


def _reports(described: Mapping[str, Any]) -> tuple[EpochReport, ...]:
    """Return all epochs' reports of a checkpoint's, or a result's, description."""
    return tuple(EpochReport(**report) for report in described["history"])


def _call(function: Callable[[], _Value]) -> _Value:
    """Call a function of the caller's; what it raises must not be taken for the training's."""
    try:
        return function()
    except (StopTrial, PauseTrial):
        raise
    except Exception as error:  # noqa: BLE001 - passed on, unchanged, by `run`
        raise _CallerError(error) from None  # no `from error`: raised again, the two would name each other as cause


def _whole_outcome(folder: Path) -> tuple[Outcome | None, str]:
    """Return the outcome that a trial left, or None and what is wrong with it, whose file is then removed."""
    try:
        return load_outcome(folder), ""
    except RunError as error:
        (folder / RESULT).unlink()
        return None, error.message


def kept_whole(folder: Path) -> bool:
    """Return whether a finished trial's folder holds the weights that it left, and its adapter where there is one.

    Raises:
        ValueError: They are there, but not what was written.
    """
    if not (folder / WEIGHTS).exists():
        return False
    load_tensors(folder / WEIGHTS)
    wanted = read_json(folder / RESULT).get("adapter", {}) if (folder / RESULT).exists() else {}
    for name, sums in wanted.items():
        if not (folder / ADAPTER / name).exists():
            return False
        if checksum((folder / ADAPTER / name).read_bytes()) != sums:
            raise ValueError(f"{folder / ADAPTER / name} is altered: its content does not match its checksum")
    return True


def load_outcome(folder: Path) -> Outcome | None:
    """Return the outcome that a finished trial left in its folder, or None.

    Raises:
        RunError: The file is damaged; autoft itself writes it whole or not at all.
    """
    if not (folder / RESULT).exists():
        return None
    try:
        stored = read_json(folder / RESULT)
        best = EpochReport(**stored["best"])
        return Outcome(
            stored["state"],
            best,
            stored["epochs"],
            stored["seconds"],
            stored["stopped"],
            micro_batch=stored["micro_batch"],
            reuse=stored.get("reuse", ""),  # not in the results of runs made before it was there
            history=_reports(stored),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder / RESULT} is damaged: {first_line(error)}", f"remove the folder {folder}, to train that trial again"
        ) from error


def failure_of(error: BaseException) -> Failure:
    """Describe a trial's exception."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    trace = "".join(traceback.format_exception(error))
    return Failure(classify(error), _line(error), trace, f"{type(error).__name__} at {frame.filename}:{frame.lineno}")


def classify(error: BaseException) -> FailureKind:
    """Give a trial's exception its type, which decides what happens next."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return "oom"
    if isinstance(error, NonFiniteError):
        return "nan"
    if isinstance(error, DataError):
        return "data"
    if is_full_disk(error):
        return "disk"
    if isinstance(error, ConnectionError | TimeoutError):
        return "infra"
    return "bug"


def is_full_disk(error: BaseException | None) -> bool:
    """Return whether an exception, or one that it was raised from, says that a disk or a quota is full."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(words in str(error) for words in ("No space left on device", "database or disk is full")):
            return True
        error = error.__cause__ or error.__context__
    return False


def _checkpoint_history(folder: Path) -> list[dict[str, Any]]:
    file = folder / CHECKPOINT / "last.safetensors"
    if not file.exists():
        return []
    try:
        history: list[dict[str, Any]] = load_tensors(file)[1]["history"]
    except ValueError:
        return []  # damaged: whoever wants to go on from it is told so by the trainer
    return history


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
