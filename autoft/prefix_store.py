"""Keeps what frozen stages give for each sample, made once for all trials, and feeds it to the trainer; it cuts no model."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from autoft.errors import first_line
from autoft.files import checksum_of, read_json, write_checked
from autoft.loading import Batch, FixedData, RaggedData, SplitData
from autoft.model import FineTuneModel
from autoft.prefix import Cut, find_cut, record, replaying
from autoft.ragged import Ragged, Rows
from autoft.specs import Backbone
from autoft.train import Objective, TrainConfig, autocast, predict, to_channels_last

MASK = "attention_mask"
SMALLEST_GAIN = 1.2  # predicted; below it, a store is not worth its disk and its risk
# How far a store in a lower precision may move validation outputs, as a share of the largest: four roundings, as batches of
# another size may take another kernel.
STORE_TOLERANCE = {torch.bfloat16: 4 * 2.0**-8, torch.float16: 4 * 2.0**-11}
METRIC_TOLERANCE = 0.001  # and the metric; of metrics above 1, as a share
FLOAT32_SLACK = 4  # times that tolerance, for stages computed in float32 where training computes them in less
logger = logging.getLogger("autoft")

_ZEROS = 1 << 24  # bytes written at once
DISK = 20 << 30  # bytes of a folder of stores; what was used least recently goes first


@dataclass(frozen=True)
class Reuse:
    """What a trial needs to train from stored activations.

    Attributes:
        run: Takes a batch of `train` or `validation`, and gives the model's outputs.
        train: The training split, as activations.
        validation: The validation split, as activations.
    """

    run: Callable[..., Tensor]
    train: SplitData
    validation: SplitData


@dataclass(frozen=True)
class _Items:
    """A batch's activations, and the tokens that they come from, where the model wants those too."""

    activations: Rows
    tokens: Ragged | None

    def to(self, device: torch.device, *, non_blocking: bool = False) -> _Items:
        tokens = None if self.tokens is None else self.tokens.to(device, non_blocking=non_blocking)
        return _Items(self.activations.to(device, non_blocking=non_blocking), tokens)

    def pin_memory(self) -> _Items:
        tokens = None if self.tokens is None else self.tokens.pin_memory()
        return _Items(self.activations.pin_memory(), tokens)


@dataclass(frozen=True)
class _Kept:
    """One view's activations: a row of bytes a sample, or a place of a text."""

    values: np.ndarray
    dtype: torch.dtype
    shape: tuple[int, ...]

    def take(self, places: np.ndarray) -> Tensor:
        return torch.from_numpy(self.values[places]).view(self.dtype).view(len(places), *self.shape)


class PrefixStore:
    """Makes and keeps activations of one study's data.

    Args:
        folder: For stores, of one study's data alone, shared by its processes; None keeps them in memory.
        memory: Bytes of activations that may be held in memory; larger stores are read from their files.
        disk: Bytes that the folder may take.
        sharing: How many trials are expected to use a store, over which the cost of making it is spread.
    """

    def __init__(self, folder: Path | None, *, memory: int, disk: int = DISK, sharing: int = 1) -> None:
        self._folder = folder
        self._memory = memory
        self._disk = disk
        self._sharing = sharing
        self._held: dict[str, _Kept] = {}
        self._compared: set[str] = set()  # by this process, which opens mapped files again and again
        self._fingerprints: dict[tuple[Any, ...], dict[int, str]] = {}
        self._cuts: dict[tuple[Any, ...], tuple[Cut | None, str]] = {}
        self._counted: dict[tuple[Any, ...], tuple[int, int, int]] = {}
        self._harm: dict[
            tuple[Any, ...], tuple[str | None, str | None]
        ] = {}  # of stores in a lower precision, and in float32

    @property
    def nbytes(self) -> int:
        """Bytes of activations held in memory."""
        return sum(kept.values.nbytes for kept in self._held.values())

    def plan(
        self,
        model: FineTuneModel,
        backbone: Backbone,
        config: TrainConfig,
        train: SplitData,
        validation: SplitData,
        *,
        device: torch.device,
        force: bool = False,
        objective: Objective | None = None,
    ) -> tuple[Reuse | None, str]:
        """Decide whether a trial shall start at its frozen stages' stored output.

        It shall where the predicted gain is at least `SMALLEST_GAIN`: a step's operations with the whole model, over those
        of a replayed step and of its share in making the store. All three are counted on one batch.

        What the model gives in a lower precision is stored so only where the validation split's outputs and metric are those
        of the whole model; where they are not, it is made and stored in float32.

        Args:
            model: As built, before any training; moved to `device`.
            backbone: What it was built from.
            config: How it will be trained; `micro_batch` is respected.
            train: The training split.
            validation: The validation split.
            device: Where it trains.
            force: Reuse wherever a cut holds, whatever it gains.
            objective: Task and metric, by which a store in a lower precision is judged; None to judge it by outputs alone.

        Returns:
            What to train with, or None; and what was decided, in words.
        """
        if config.freeze_depth == 0:
            return None, "declined: nothing is frozen"
        if config.changes_inputs:  # anew in each step, so that frozen stages give something else each time
            return None, "declined: mixing, erasing or perturbing changes what frozen stages are given in each step"
        if objective is not None and _policy(train) != "none" and _draws(objective, train, config):
            return None, "declined: what is drawn again in an epoch is augmented anew, and one view of each is stored"
        if _policy(train) != "none" and getattr(train, "move", None) is not None:
            return None, "declined: targets move with the augmented images, and only these are stored"
        model.to(device)
        if device.type == "cuda":
            model.to(memory_format=torch.channels_last)
        known = (backbone.name, backbone.weights, config.freeze_depth, config.precision, str(backbone.image_size))
        if known not in self._cuts:
            self._cuts[known] = _cut(model, backbone, config, validation, device)
        cut, why = self._cuts[known]
        if cut is None:
            return None, f"declined: {why}"
        model.freeze(config.freeze_depth)
        start = (backbone.name, backbone.weights, str(backbone.image_size), config.seed)  # the seed draws random weights
        if start not in self._fingerprints:
            self._fingerprints[start] = _fingerprints(model)
        weights = self._fingerprints[start]

        def stored(precision: str) -> dict[str, PrefixData]:
            recorded = replace(config, precision=precision)
            return {
                name: PrefixData(self, source, name, cut, model, recorded, weights[cut.depth], device)
                for name, source in (("train", train), ("validation", validation))
            }

        def run(*inputs: Tensor) -> Tensor:
            with replaying(model, cut):
                outputs: Tensor = model(*inputs)
            return outputs

        made = stored(config.precision)
        views = config.views or config.epochs
        views = min(views, config.epochs) if made["train"].varied else 1
        too_large = self._too_large(made["train"], views)
        if too_large is not None:
            return None, f"declined: {too_large}"
        if not force:
            batch = min(config.micro_batch or config.batch_size, len(train))
            counted = (*known, batch)
            if counted not in self._counted:
                self._counted[counted] = _measure(model, cut, train, config, batch, device)
            full, replayed, making = self._counted[counted]
            # counted also where the store exists: else the decision, and with it the last bits of a trial, would depend on
            # what ran before, and a resumed search would differ from an uninterrupted one
            gain = full / max(1, replayed + making * views / config.epochs / self._sharing)
            if gain < SMALLEST_GAIN:
                return None, f"declined: predicted gain {gain:.2f}"
            told = f"from {cut.module or 'the features'} (depth {cut.depth}), predicted gain {gain:.2f}"
        else:
            told = f"from {cut.module or 'the features'} (depth {cut.depth})"
        for (*others, depth, precision, side), (shallower, _) in self._cuts.items():
            same = (*others, precision, side) == (
                backbone.name,
                backbone.weights,
                config.precision,
                str(backbone.image_size),
            )
            if same and depth < config.freeze_depth and shallower is not None and shallower.depth < cut.depth:
                for data in made.values():
                    data.start_from(shallower, weights[shallower.depth])
        if cut.dtype not in STORE_TOLERANCE:
            return Reuse(run, made["train"], made["validation"]), told
        judged = (*known, config.seed)  # which draws the head
        exact = stored("fp32")
        if judged not in self._harm:
            judge = partial(_harm, model, cut, config, validation, run=run, device=device)
            harm = judge(made["validation"], objective=objective)
            # nothing but the rounding of the frozen stages is left then, and it is the better part that is kept
            left = None if harm is None else judge(exact["validation"], objective=None, slack=FLOAT32_SLACK)
            self._harm[judged] = harm, left
        harm, left = self._harm[judged]
        if harm is None:
            return Reuse(run, made["train"], made["validation"]), told
        left = left or self._too_large(exact["train"], views)
        if left is not None:
            return None, f"declined: {harm}; and in float32: {left}"
        return Reuse(run, exact["train"], exact["validation"]), f"{told}, stored in float32: {harm}"

    def _too_large(self, data: PrefixData, views: int) -> str | None:
        size = data.row_bytes * data.places * views
        limit = self._memory if self._folder is None else self._disk
        if size <= limit:
            return None
        return f"{size / 1e9:.1f} GB of activations are more than the {limit / 1e9:.1f} GB allowed"

    def exists(self, key: str) -> bool:
        """Return whether a store is complete."""
        return key in self._held or (self._folder is not None and (self._folder / f"{key}.json").exists())

    def get(self, key: str, places: int, make: Callable[[], Iterator[tuple[np.ndarray, Tensor]]]) -> _Kept:
        """Return a store, made where there is none.

        Args:
            key: Its name.
            places: Rows of it.
            make: Yields the numbers of some rows, and the rows.
        """
        if key in self._held:
            self._held[key] = self._held.pop(key)  # the order is that of the last use
            return self._held[key]
        if self._folder is None:
            kept = _filled(places, make(), None)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            stem = self._folder / key
            with FileLock(stem.with_suffix(".lock")):
                opened = self._open(stem, places)
                if opened is None:
                    _write(stem, places, make())
                    self._make_room(stem)
                    opened = _open(stem, places, self._memory, compare=False)
                kept = opened
                os.utime(stem.with_suffix(".json"))
        if isinstance(kept.values, np.memmap):
            return kept  # not held: a file that is removed to make room would stay on the disk as long
        self._held[key] = kept
        for stale in list(self._held)[:-1]:
            if self.nbytes <= self._memory:
                break
            del self._held[stale]
        return kept

    def _open(self, stem: Path, places: int) -> _Kept | None:
        """Return a store of the folder; None where there is none, or it is damaged and so has to be made again."""
        if not stem.with_suffix(".json").exists():
            return None
        try:
            kept = _open(stem, places, self._memory, compare=stem.name not in self._compared)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("the outputs of frozen stages in %s are damaged and are made again: %s", stem, first_line(error))
            stem.with_suffix(".json").unlink()
            return None
        self._compared.add(stem.name)
        return kept

    def _make_room(self, latest: Path) -> None:
        """Remove the stores that were used least recently; a process that reads one keeps its open file."""
        assert self._folder is not None
        with FileLock(self._folder / "room.lock"):  # one process at a time
            files = sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
            sizes = {file: file.with_suffix(".bin").stat().st_size for file in files}
            for file in files:
                if sum(sizes.values()) <= self._disk:
                    return
                if file.stem == latest.name:
                    continue
                try:
                    with FileLock(file.with_suffix(".lock"), timeout=0):
                        file.unlink()  # first: without it, the rest is no store
                        file.with_suffix(".bin").unlink()
                except Timeout:
                    continue  # being opened, so not the one to remove
                del sizes[file]


class PrefixData(SplitData):
    """A split as activations at a cut, made view by view as they are asked for.

    Args:
        store: Keeps them.
        source: The split itself.
        name: Its name.
        cut: Where.
        model: Makes them; its frozen stages must not change.
        config: The training's seed and precision.
        weights: Fingerprint of what lies before the cut.
        device: Where to make them.
    """

    def __init__(
        self,
        store: PrefixStore,
        source: SplitData,
        name: str,
        cut: Cut,
        model: FineTuneModel,
        config: TrainConfig,
        weights: str,
        device: torch.device,
    ) -> None:
        super().__init__(source.samples, source.targets, source.preprocessing)
        self._store = store
        self._source = source
        self._name = name
        self._cut = cut
        self._model = model
        self._config = config
        self._weights = weights
        self._where = device
        self._base: PrefixData | None = None
        policy = _policy(source)
        self.varied = policy != "none"
        self._key = {
            "weights": weights, "module": cut.module, "depth": cut.depth, "split": name, "samples": len(source),
            "preprocessing": source.preprocessing.to_dict(), "policy": policy, "precision": config.precision,
            "device": device.type, "torch": torch.__version__,
        }  # fmt: skip
        lengths = source.tokens.lengths if cut.ragged and isinstance(source, RaggedData) else np.ones(len(source), np.int64)
        self._lengths = lengths
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])
        self._view: _Kept | None = None

    @property
    def in_memory(self) -> bool:
        """Whether no file is read for a batch."""
        return self._view is not None and not isinstance(self._view.values, np.memmap)

    @property
    def nbytes(self) -> int:
        """Bytes of decoded samples held in memory; activations are counted by their store."""
        return self._source.nbytes

    @property
    def cut(self) -> int:
        """How many samples were too long for the backbone, and so cut."""
        return self._source.cut

    @property
    def places(self) -> int:
        """Rows of a view: one a sample, or one a token."""
        return int(self._offsets[-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of such a row, float32 or less."""
        if self._config.precision == "fp32" and self._cut.dtype in STORE_TOLERANCE:
            return self._cut.row_bytes * 4 // self._cut.dtype.itemsize  # of training in a lower precision
        return self._cut.row_bytes

    def steps(
        self,
        order: np.ndarray,
        batch_size: int,
        micro_batch: int | None,
        *,
        rng: np.random.Generator,
        device: torch.device,
        group_by_length: bool = True,
    ) -> list[list[np.ndarray]]:
        """Cut an epoch's order as the split itself does."""
        return self._source.steps(order, batch_size, micro_batch, rng=rng, device=device, group_by_length=group_by_length)

    def evaluation_batches(self, batch_size: int, *, device: torch.device) -> list[np.ndarray]:
        """Cut the split into batches as itself does."""
        return self._source.evaluation_batches(batch_size, device=device)

    def units(self, rows: np.ndarray) -> np.ndarray:
        """Return how many outputs are scored for each of some samples."""
        return self._source.units(rows)

    def start_from(self, cut: Cut, weights: str) -> None:
        """Make what is missing from a shallower cut's activations, for views of which those are stored."""
        if self._base is None or self._base._cut.depth < cut.depth:
            base = PrefixData(
                self._store, self._source, self._name, cut, self._model, self._config, weights, self._where
            )  # fmt: skip
            self._base = base

    def exists(self, view: int) -> bool:
        """Return whether a view is stored."""
        return self._store.exists(self._name_of(view))

    def batches(
        self, rows: Sequence[np.ndarray], *, device: torch.device, seed: Sequence[int] = (0,), pin: bool = False
    ) -> Iterator[Batch]:
        """Yield batches as the split does, with `(activation, *tokens)` as inputs; the view is the seed's last number."""
        if self.varied and (len(seed) != 2 or seed[0] != self._config.seed):
            raise ValueError(f"`seed` must be ({self._config.seed}, view) for stored views, but got {tuple(seed)}")
        view = int(seed[-1])
        # at once, not at the first batch: the caller sets the model's mode after this
        self._view = self._store.get(self._name_of(view), self.places, lambda: self._make(view))
        return super().batches(rows, device=device, seed=seed, pin=pin)

    @property
    def _ready(self) -> bool:
        return self.in_memory

    def _name_of(self, view: int) -> str:
        drawn = {"seed": self._config.seed, "view": view} if self.varied else {}
        declared = json.dumps({**self._key, **drawn}, sort_keys=True)
        return f"{self._name}-{hashlib.sha256(declared.encode()).hexdigest()[:24]}"

    def _numbers(self, rows: np.ndarray) -> np.ndarray:
        if not self._cut.ragged:
            return rows
        return np.concatenate([np.arange(self._offsets[row], self._offsets[row + 1]) for row in rows])

    def _gather(self, rows: np.ndarray, again: np.ndarray, seed: tuple[int, ...]) -> tuple[Any, Tensor]:
        assert self._view is not None  # `batches` sets it
        values = self._view.take(self._numbers(rows))
        taken: Rows = values
        if self._cut.ragged:
            taken = Ragged(values, torch.from_numpy(np.concatenate([[0], np.cumsum(self._lengths[rows])])))
        if self._cut.takes_inputs:
            tokens, targets = self._source._gather(rows, again, seed)
            assert isinstance(tokens, Ragged)  # only texts are taken besides
            return _Items(taken, tokens), targets
        assert isinstance(self.targets, Tensor)
        return _Items(taken, None), self.targets[rows]

    def _to_device(self, items: Any, targets: Tensor, device: torch.device) -> Batch:
        moved = items.to(device, non_blocking=True)
        first = moved.activations.padded(0) if isinstance(moved.activations, Ragged) else moved.activations
        rest = () if moved.tokens is None else self.preprocessing.inputs(moved.tokens)
        return (first, *rest), targets.to(device, non_blocking=True)

    def _make(self, view: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        base = self._base if self._base is not None and self._base.exists(view) else None
        source: SplitData = base or self._source
        batches = self._source.evaluation_batches(2 * self._config.batch_size, device=self._where)
        context = replaying(self._model, base._cut) if base is not None else nullcontext()
        feed = source.batches(batches, device=self._where, seed=(self._config.seed, view))
        with _evaluating(self._model), context, torch.no_grad(), autocast(self._where, self._config.precision):
            for rows, (inputs, _) in zip(batches, feed, strict=True):
                if self._where.type == "cuda":
                    inputs = tuple(to_channels_last(item) for item in inputs)
                activation = record(self._model, self._cut, inputs)
                if self._cut.ragged:
                    lengths = torch.from_numpy(self._lengths[rows]).to(activation.device)
                    places = torch.arange(activation.shape[1], device=activation.device) < lengths[:, None]
                    activation = activation[places]
                yield self._numbers(rows), activation.cpu()


def _policy(split: SplitData) -> str:
    return split.policy if isinstance(split, FixedData) else "none"


def _draws(objective: Objective, train: SplitData, config: TrainConfig) -> bool:
    """Return whether an epoch has some samples more often than others."""
    return objective.head.draw_weights(train.targets, objective.targets, config.knobs) is not None


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _cut(
    model: FineTuneModel, backbone: Backbone, config: TrainConfig, split: SplitData, device: torch.device
) -> tuple[Cut | None, str]:
    """Find a cut, tried on a few samples of a split."""
    if len(split) < 5:
        return None, "too few samples to prove a cut on"
    order = np.arange(len(split))
    mask = backbone.inputs.index(MASK) if MASK in backbone.inputs else None
    if isinstance(split, RaggedData):
        order = np.argsort(-split.tokens.lengths, kind="stable")
        if mask is None or split.tokens.lengths[order[0]] == split.tokens.lengths[order[-1]]:
            return None, "no texts of different length to prove a cut on"
    feed = split.batches([order[:3], order[-2:]], device=device)
    batches = [inputs for inputs, _ in feed]
    cut, failures = find_cut(model, config.freeze_depth, batches, mask=mask, precision=config.precision)
    return cut, "; ".join(failures)


def _harm(
    model: FineTuneModel,
    cut: Cut,
    config: TrainConfig,
    whole: SplitData,
    stored: SplitData,
    *,
    run: Callable[..., Tensor],
    objective: Objective | None,
    device: torch.device,
    slack: float = 1.0,
) -> str | None:
    """Return how a store changes what training in a lower precision gives on validation, or None where it does not."""
    once = partial(predict, model, device=device, batch_size=2 * config.batch_size, precision=config.precision)
    with _evaluating(model):
        wanted = once(whole)
        try:
            found = once(stored, run=run)
        except (RuntimeError, TypeError) as error:  # a model that takes no other format than its own
            return f"the replay fails: {first_line(error)}"
    before, after = (rows.values if isinstance(rows, Ragged) else rows for rows in (wanted, found))
    difference = 0.0 if torch.equal(after, before) else float((after - before).abs().max() / before.abs().max())
    form = str(cut.dtype).removeprefix("torch.")
    if not difference <= slack * STORE_TOLERANCE[cut.dtype]:  # also where it is not a number
        return f"outputs differ by {difference:.2g} from those in {form}"
    if objective is None:
        return None
    scores = [objective.head.metrics(rows, whole.targets, objective.targets)[objective.metric] for rows in (wanted, found)]
    if not abs(scores[1] - scores[0]) <= METRIC_TOLERANCE * max(1.0, abs(scores[0])):
        return f"{objective.metric} is {scores[1]:.4f} instead of {scores[0]:.4f} in {form}"
    return None


def _fingerprints(model: FineTuneModel) -> dict[int, str]:
    """Return for each depth a hash of all buffers and of the parameters up to there."""
    digest = hashlib.sha256()
    for name, buffer in model.backbone.named_buffers():
        _add(digest, name, buffer)
    parameters = dict(model.backbone.named_parameters())
    found = {}
    for depth, stage in enumerate(model.stages, start=1):
        for name in stage.parameters:
            _add(digest, name, parameters[name])
        found[depth] = digest.hexdigest()
    return found


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _measure(
    model: FineTuneModel, cut: Cut, train: SplitData, config: TrainConfig, batch: int, device: torch.device
) -> tuple[int, int, int]:
    """Return the operations (of products and convolutions) of a whole step, of a replayed one, and of recording a batch.

    Counted, not timed: no time is the same twice, and a search that is bounded by trials alone is to repeat bit for bit.
    """
    inputs, _ = next(iter(train.batches([np.arange(batch)], device=device, seed=(config.seed, 1))))
    with _evaluating(model), torch.no_grad(), autocast(device, config.precision):
        activation = record(model, cut, inputs)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step(*given: Tensor) -> None:
        with autocast(device, config.precision):
            outputs = model(*given)
        torch.autograd.grad(outputs.float().sum(), trained, allow_unused=True)

    def making() -> None:
        with torch.no_grad(), autocast(device, config.precision):
            record(model, cut, inputs)

    def replayed() -> None:
        with replaying(model, cut):
            step(activation.clone(), *cut.carried(inputs))

    # in evaluation mode: counting must not move the running statistics
    with _evaluating(model):
        return _operations(lambda: step(*inputs)), _operations(replayed), _operations(making)


def _operations(function: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


# --- files: the values, then the description, which commits ------------------------------------------------------------


def _filled(places: int, parts: Iterator[tuple[np.ndarray, Tensor]], file: Path | None) -> _Kept:
    kept: _Kept | None = None
    for numbers, rows in parts:
        flat = rows.contiguous().reshape(len(rows), -1).view(torch.uint8).numpy()
        if kept is None:
            shape = (places, flat.shape[1])
            if file is not None:
                _reserve(file, shape[0] * shape[1])
            values = np.empty(shape, np.uint8) if file is None else np.memmap(file, np.uint8, "r+", shape=shape)
            kept = _Kept(values, rows.dtype, tuple(rows.shape[1:]))
        kept.values[numbers] = flat
    assert kept is not None  # a split has samples
    return kept


def _reserve(file: Path, size: int) -> None:
    """Make a file of a size whose disk is ours: a map that finds the disk full would end the process by a signal."""
    with open(file, "wb") as new:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(new.fileno(), 0, size)
            return
        for start in range(0, size, _ZEROS):
            new.write(bytes(min(_ZEROS, size - start)))


def _write(stem: Path, places: int, parts: Iterator[tuple[np.ndarray, Tensor]]) -> None:
    draft = stem.with_suffix(".part")
    try:
        kept = _filled(places, parts, draft)
        assert isinstance(kept.values, np.memmap)
        kept.values.flush()
        content = checksum_of(draft)
        described = {
            "places": places, "bytes": kept.values.nbytes, "dtype": str(kept.dtype).removeprefix("torch."),
            "shape": list(kept.shape), "content": content,
        }  # fmt: skip
        del kept  # closes the file, which Windows wants before it is renamed
        os.replace(draft, stem.with_suffix(".bin"))
    finally:
        draft.unlink(missing_ok=True)
    write_checked(stem.with_suffix(".json"), described)


def _open(stem: Path, places: int, memory: int, *, compare: bool) -> _Kept:
    """Open a store, and with `compare` hold it against its checksum; what it raises says that it is damaged."""
    described = read_json(stem.with_suffix(".json"))
    file = stem.with_suffix(".bin")
    size = file.stat().st_size
    if described["places"] != places or described["bytes"] != size:
        raise ValueError(f"it holds {described['places']} rows in {size} bytes")
    if compare and described["content"] != checksum_of(file):
        raise ValueError("its content does not match its checksum")
    shape = (places, size // places)
    small = size <= memory
    values = np.fromfile(file, np.uint8).reshape(shape) if small else np.memmap(file, np.uint8, "r", shape=shape)
    return _Kept(values, getattr(torch, described["dtype"]), tuple(described["shape"]))
