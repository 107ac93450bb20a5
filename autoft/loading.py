"""Feeds batches to the trainer: decoded once and kept where they fit, otherwise read as needed, always in order."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from functools import reduce
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from autoft.batching import batches_by_length, even_batches, longest_first, turns, within_budget
from autoft.decoded import Shared, hold, share
from autoft.errors import BackboneError, DataError
from autoft.ragged import Ragged, Rows
from autoft.specs import Preprocessing, RaggedPreprocessing, Sample, SpatialPreprocessing, Warp
from autoft.tokens import Tokens, decode_all

Batch = tuple[tuple[Tensor, ...], Tensor]

# Token slots of a forward pass in training. On a GPU it fills the machine; on a CPU more would only leave the caches.
TOKENS = {"cuda": 16384}
TOKENS_ELSEWHERE = 8192
EVALUATED = 512  # texts of a batch in evaluation, at most


class SplitData:
    """One split of the data, ready for batches; `load_split` makes the right kind.

    Attributes:
        samples: The split's samples.
        targets: Their encoded targets, a row a sample.
        preprocessing: Decodes, augments, and makes inputs.
    """

    def __init__(self, samples: Sequence[Sample], targets: Rows, preprocessing: Preprocessing) -> None:
        self.samples = samples
        self.targets = targets
        self.preprocessing = preprocessing
        self._threads = min(8, os.cpu_count() or 1)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    @abstractmethod
    def in_memory(self) -> bool:
        """Whether all decoded samples are held in memory."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of decoded samples held in memory."""

    @property
    def cut(self) -> int:
        """How many samples were too long for the backbone, and so cut."""
        return 0

    @abstractmethod
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
        """Cut an epoch's order into optimizer steps, and each into the parts that go through the model together.

        Args:
            order: Numbers of the samples, shuffled.
            batch_size: Samples a step, at most.
            micro_batch: Samples a part, at most; None for the whole step where memory allows.
            rng: For further shuffling.
            device: Where the model is, which decides how much fits.
            group_by_length: Whether samples of similar length share a step, where they have one; else chance alone decides.
        """

    @abstractmethod
    def evaluation_batches(self, batch_size: int, *, device: torch.device) -> list[np.ndarray]:
        """Cut the split into batches for evaluation, in whatever order is quickest."""

    def units(self, rows: np.ndarray) -> np.ndarray:
        """Return how many outputs are scored for each of some samples `(N,)`: one, or one for each word."""
        return np.ones(len(rows), dtype=np.int64)

    @abstractmethod
    def _gather(self, rows: np.ndarray, again: np.ndarray, seed: tuple[int, ...]) -> tuple[Rows, Tensor]:
        """Return decoded samples and the targets that their outputs are compared with.

        Args:
            rows: Numbers of the samples.
            again: How many times each has come before under this seed.
            seed: What the augmentation depends on.
        """

    @property
    @abstractmethod
    def _ready(self) -> bool:
        """Whether a batch needs no more than a plain gather, for which threads would only add cost."""

    def batches(
        self, rows: Sequence[np.ndarray], *, device: torch.device, seed: Sequence[int] = (0,), pin: bool = False
    ) -> Iterator[Batch]:
        """Yield one batch for each array of row numbers: inputs and encoded targets, on the device.

        Batches are prepared ahead in threads and yielded in order; the augmentation of a sample depends only on `seed`, its
        row, and how many times it came before, never on the threads.

        Args:
            rows: For each batch, the numbers of its samples.
            device: Where the batches are wanted.
            seed: What the augmentation depends on, such as the trial's seed and the epoch.
            pin: Whether to page-lock host memory, so that the copy to a GPU overlaps with computation.
        """
        parts = zip(rows, turns(rows), strict=True)
        if self._ready and not pin:
            for chosen, again in parts:
                yield self._to_device(*self._gather(chosen, again, tuple(seed)), device)
            return
        with ThreadPoolExecutor(self._threads, thread_name_prefix="autoft-load") as pool:
            pending: deque[Future[tuple[Rows, Tensor]]] = deque()
            try:
                for chosen, again in parts:
                    pending.append(pool.submit(self._assemble, chosen, again, tuple(seed), pin))
                    if len(pending) > self._threads:
                        yield self._to_device(*pending.popleft().result(), device)
                while pending:
                    yield self._to_device(*pending.popleft().result(), device)
            finally:
                for future in pending:
                    future.cancel()

    def _assemble(self, rows: np.ndarray, again: np.ndarray, seed: tuple[int, ...], pin: bool) -> tuple[Rows, Tensor]:
        items, targets = self._gather(rows, again, seed)
        return (items.pin_memory(), targets.pin_memory()) if pin else (items, targets)

    def _to_device(self, items: Rows, targets: Tensor, device: torch.device) -> Batch:
        moved = items.to(device, non_blocking=True)
        return self.preprocessing.inputs(moved), targets.to(device, non_blocking=True)


class FixedData(SplitData):
    """Samples that all decode to one shape, such as images.

    Decoding and augmentation run in threads: image libraries and torch release the interpreter's lock, and threads need
    no copies, no start-up, and no care on any platform.

    Args:
        samples: The split's samples.
        targets: Their encoded targets, one row a sample.
        preprocessing: Decodes, augments, and makes inputs.
        policy: Augmentation policy; `none` for validation and test.
        memory: Bytes that decoded samples may take; beyond it they are decoded again every epoch.
        cache: Folder where processes share the decoded samples, or None for this process's memory.
        name: Of the split, for the cache.
        move: Moves the target of a sample as its augmentation moved it (`Head.move`); None where targets stay.

    Raises:
        BackboneError: Targets move, but the preprocessing does not show the whole image.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        targets: Tensor,
        preprocessing: Preprocessing,
        *,
        policy: str = "none",
        memory: int = 1 << 30,
        cache: Path | None = None,
        name: str = "split",
        move: Callable[[Tensor, Warp], Tensor] | None = None,
    ) -> None:
        super().__init__(samples, targets, preprocessing)
        if move is not None and not getattr(preprocessing, "whole", False):
            raise BackboneError(
                "targets that lie in an image need inputs that show all of it, but those of the backbone may lack parts",
                "choose a backbone whose family gives what the task asks for, such as one of timm's",
            )
        self.move = move
        self.policy = self._known(policy)
        self._mapped = cache is not None
        self._decoded = self._decode_all(memory, cache, name)

    def varied(self, policy: str) -> FixedData:
        """Return the split under another augmentation policy, with the decoded samples of this one.

        Raises:
            DataError: The policy is unknown.
            ValueError: One of the two policies is `none`, whose samples are decoded without the margin of the others.
        """
        if self._known(policy) == self.policy:
            return self
        if "none" in (policy, self.policy):
            raise ValueError(f"{self.policy!r} and {policy!r} are decoded differently: load the split once for each")
        other = copy(self)  # the pixels are shared: nothing writes to them
        other.policy = policy
        return other

    @property
    def in_memory(self) -> bool:
        """Whether all decoded samples are held in memory, be it as pages of a file that processes share."""
        return self._decoded is not None

    @property
    def nbytes(self) -> int:
        """Bytes of decoded samples held in this process's own memory."""
        if self._decoded is None or self._mapped:
            return 0
        return self._decoded.numel() * self._decoded.element_size()

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
        """Cut an epoch's order into even steps, and each into even parts."""
        return [even_batches(batch, micro_batch or batch_size) for batch in even_batches(order, batch_size)]

    def evaluation_batches(self, batch_size: int, *, device: torch.device) -> list[np.ndarray]:
        """Cut the split into even batches, in its order."""
        return even_batches(np.arange(len(self)), batch_size)

    @property
    def _ready(self) -> bool:
        return self._decoded is not None and self.policy == "none"

    def _gather(self, rows: np.ndarray, again: np.ndarray, seed: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        targets = cast(Tensor, self.targets)[rows]
        if self._decoded is not None and self.policy == "none":
            return self._decoded[rows], targets
        found = [self._item(int(row), int(turn), seed) for row, turn in zip(rows, again, strict=True)]
        if self.move is not None and self.policy != "none":
            pairs = zip(targets, found, strict=True)
            targets = torch.stack([reduce(self.move, warps, target) for target, (_, warps) in pairs])
        return torch.stack([item for item, _ in found]), targets

    def _item(self, row: int, turn: int, seed: tuple[int, ...]) -> tuple[Tensor, tuple[Warp, ...]]:
        item = self._decoded[row] if self._decoded is not None else self._decode(row)
        if self.policy == "none":
            return item, ()
        rng = np.random.default_rng((*seed, row, turn) if turn else (*seed, row))
        if self.move is None:
            return self.preprocessing.augment(item, self.policy, rng), ()
        return cast(SpatialPreprocessing, self.preprocessing).vary(item, self.policy, rng)

    def _known(self, policy: str) -> str:
        if policy not in self.preprocessing.policies:
            raise DataError(
                f"`augmentation` must be one of {', '.join(self.preprocessing.policies)}, but got {policy!r}",
                "set `trainer.augmentation`",
            )
        return policy

    def _decode(self, row: int) -> Tensor:
        sample = self.samples[row]
        try:
            return self.preprocessing.decode(sample.source, augmented=self.policy != "none")
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(
                f"the sample {sample.id} was readable when the search began, but is not any more: {error}",
                "restore the file, then type the same command again",
            ) from error

    def _decode_all(self, memory: int, cache: Path | None, name: str) -> Tensor | None:
        if not self.samples:
            return None
        first, count = self._decode(0), len(self.samples)
        if cache is None:
            return hold(first, count, self._decode_each, memory=memory)
        described = {"preprocessing": self.preprocessing.to_dict(), "augmented": self.policy != "none", "samples": count}
        return share(first, count, self._decode_each, Shared(cache, name, described))

    def _decode_each(self) -> Iterator[Tensor]:
        with ThreadPoolExecutor(self._threads, thread_name_prefix="autoft-decode") as pool:
            yield from pool.map(self._decode, range(len(self.samples)))


class RaggedData(SplitData):
    """Samples that differ in length, such as texts: decoded once for all trials, and batched with others of their length.

    Args:
        samples: The split's samples.
        targets: Their encoded targets: a tensor, or a `Ragged` where the parts of a sample have them.
        preprocessing: Decodes and pads.
        memory: Bytes that decoded samples may take; beyond it they are read from the cache's file.
        cache: Folder for the decoded samples, or None for memory alone.
        name: Of the split, for the cache.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        targets: Rows,
        preprocessing: RaggedPreprocessing,
        *,
        memory: int = 1 << 30,
        cache: Path | None = None,
        name: str = "split",
    ) -> None:
        super().__init__(samples, targets, preprocessing)
        self._ragged = preprocessing
        self.tokens: Tokens = decode_all(samples, preprocessing, memory=memory, cache=cache, name=name)

    @property
    def in_memory(self) -> bool:
        """Whether all decoded samples are held in memory."""
        return self.tokens.in_memory

    @property
    def nbytes(self) -> int:
        """Bytes of decoded samples held in memory."""
        return self.tokens.nbytes

    @property
    def cut(self) -> int:
        """How many samples were too long for the backbone, and so cut."""
        return self.tokens.cut

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
        """Cut an epoch's order into steps, of similar length where asked for, and what is too large into parts."""
        lengths, budget = self.tokens.lengths, TOKENS.get(device.type, TOKENS_ELSEWHERE)
        most = micro_batch or batch_size
        if micro_batch is not None:  # memory ran out: a sample fewer is so many tokens fewer, too
            budget = min(budget, micro_batch * int(lengths.max()))
        grouped = batches_by_length(order, lengths, batch_size, rng) if group_by_length else even_batches(order, batch_size)
        return [within_budget(batch, lengths, budget, most) for batch in grouped]

    def evaluation_batches(self, batch_size: int, *, device: torch.device) -> list[np.ndarray]:
        """Cut the split into batches of similar length, longest first; short texts go many at a time."""
        budget = min(TOKENS.get(device.type, TOKENS_ELSEWHERE), batch_size * int(self.tokens.lengths.max()))
        return longest_first(self.tokens.lengths, budget, EVALUATED)

    def units(self, rows: np.ndarray) -> np.ndarray:
        """Return how many outputs are scored for each of some samples `(N,)`: one, or one for each word not cut off."""
        return self.tokens.parts[rows] if isinstance(self.targets, Ragged) else super().units(rows)

    @property
    def _ready(self) -> bool:
        return self.in_memory

    def _gather(self, rows: np.ndarray, again: np.ndarray, seed: tuple[int, ...]) -> tuple[Ragged, Tensor]:
        items = self.tokens.take(rows)
        if isinstance(self.targets, Ragged):
            return items, self._ragged.align(items, self.targets[rows])
        return items, self.targets[rows]


def load_split(
    samples: Sequence[Sample],
    targets: Rows,
    preprocessing: Preprocessing,
    *,
    policy: str = "none",
    memory: int = 1 << 30,
    cache: Path | None = None,
    name: str = "split",
    move: Callable[[Tensor, Warp], Tensor] | None = None,
) -> SplitData:
    """Make a split ready for batches, decoded as its preprocessing does.

    Args:
        samples: The split's samples.
        targets: Their encoded targets, a row a sample.
        preprocessing: Decodes, augments, and makes inputs.
        policy: Augmentation policy; `none` for validation and test.
        memory: Bytes that decoded samples may take.
        cache: Folder for decoded samples, which processes share, or None for this process's memory.
        name: Of the split, for the cache.
        move: Moves a sample's target as augmentation moved the sample; `Head.move`.

    Raises:
        DataError: A sample cannot be decoded, or the policy is unknown.
        BackboneError: Targets move, but the preprocessing does not show the whole image.
    """
    if preprocessing.ragged:
        ragged = cast(RaggedPreprocessing, preprocessing)
        return RaggedData(samples, targets, ragged, memory=memory, cache=cache, name=name)
    return FixedData(
        samples, cast(Tensor, targets), preprocessing, policy=policy, memory=memory, cache=cache, name=name, move=move
    )
