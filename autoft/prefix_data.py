"""A split as what frozen stages give for it, made view by view as it is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoft.loading import Batch, FixedData, RaggedData, SplitData
from autoft.model import FineTuneModel
from autoft.prefix import Cut, record, replaying
from autoft.prefix_store import Kept, PrefixStore
from autoft.ragged import Ragged, Rows
from autoft.train import TrainConfig, autocast, to_channels_last


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
        policy = policy_of(source)
        self.varied = policy != "none"
        self._key = {
            "weights": weights, "module": cut.module, "depth": cut.depth, "split": name, "samples": len(source),
            "preprocessing": source.preprocessing.to_dict(), "policy": policy, "precision": config.precision,
            "device": device.type, "torch": torch.__version__,
        }  # fmt: skip
        lengths = source.tokens.lengths if cut.ragged and isinstance(source, RaggedData) else np.ones(len(source), np.int64)
        self._lengths = lengths
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])
        self._view: Kept | None = None

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
        if self._config.precision == "fp32" and self._cut.dtype.itemsize < torch.float32.itemsize:
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
        with evaluating(self._model), context, torch.no_grad(), autocast(self._where, self._config.precision):
            for rows, (inputs, _) in zip(batches, feed, strict=True):
                if self._where.type == "cuda":
                    inputs = tuple(to_channels_last(item) for item in inputs)
                activation = record(self._model, self._cut, inputs)
                if self._cut.ragged:
                    lengths = torch.from_numpy(self._lengths[rows]).to(activation.device)
                    places = torch.arange(activation.shape[1], device=activation.device) < lengths[:, None]
                    activation = activation[places]
                yield self._numbers(rows), activation.cpu()


def policy_of(split: SplitData) -> str:
    """Return the name of a split's augmentation; `none` where it has none."""
    return split.policy if isinstance(split, FixedData) else "none"


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Hold a model in evaluation mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
