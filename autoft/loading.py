"""Feeds batches to the trainer: decoded once into memory where they fit, otherwise read as needed, always in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from autoft.errors import DataError
from autoft.specs import Preprocessing, Sample

Batch = tuple[tuple[Tensor, ...], Tensor]


class SplitData:
    """One split of the data, ready for batches.

    Decoding and augmentation run in threads: image libraries and torch release the interpreter's lock, and threads need
    no copies, no start-up, and no care on any platform.

    Args:
        samples: The split's samples.
        targets: Their encoded targets, one row a sample.
        preprocessing: Decodes, augments, and makes inputs.
        policy: Augmentation policy; `none` for validation and test.
        memory: Bytes that decoded samples may take; beyond it they are decoded again every epoch.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        targets: Tensor,
        preprocessing: Preprocessing,
        *,
        policy: str = "none",
        memory: int = 1 << 30,
    ) -> None:
        if policy not in preprocessing.policies:
            raise DataError(
                f"`augmentation` must be one of {', '.join(preprocessing.policies)}, but got {policy!r}",
                "set `trainer.augmentation`",
            )
        self.samples = tuple(samples)
        self.targets = targets
        self.preprocessing = preprocessing
        self.policy = policy
        self._threads = min(8, os.cpu_count() or 1)
        self._decoded = self._decode_all(memory)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def in_memory(self) -> bool:
        """Whether all decoded samples are held in memory."""
        return self._decoded is not None

    @property
    def nbytes(self) -> int:
        """Bytes of decoded samples held in memory."""
        return 0 if self._decoded is None else self._decoded.numel() * self._decoded.element_size()

    def batches(
        self, rows: Sequence[np.ndarray], *, device: torch.device, seed: Sequence[int] = (0,), pin: bool = False
    ) -> Iterator[Batch]:
        """Yield one batch for each array of row numbers: inputs and encoded targets, on the device.

        Batches are prepared ahead in threads and yielded in order; the augmentation of a sample depends only on `seed` and
        its row, never on the threads.

        Args:
            rows: For each batch, the numbers of its samples.
            device: Where the batches are wanted.
            seed: What the augmentation depends on, such as the trial's seed and the epoch.
            pin: Whether to page-lock host memory, so that the copy to a GPU overlaps with computation.
        """
        if self._decoded is not None and self.policy == "none" and not pin:
            for chosen in rows:  # a plain gather: threads would only add cost
                yield self._to_device(self._decoded[chosen], self.targets[chosen], device)
            return
        with ThreadPoolExecutor(self._threads, thread_name_prefix="autoft-load") as pool:
            pending: deque[Future[tuple[Tensor, Tensor]]] = deque()
            waiting = iter(rows)
            try:
                for chosen in waiting:
                    pending.append(pool.submit(self._assemble, chosen, tuple(seed), pin))
                    if len(pending) > self._threads:
                        yield self._to_device(*pending.popleft().result(), device)
                while pending:
                    yield self._to_device(*pending.popleft().result(), device)
            finally:
                for future in pending:
                    future.cancel()

    def _assemble(self, rows: np.ndarray, seed: tuple[int, ...], pin: bool) -> tuple[Tensor, Tensor]:
        items = torch.stack([self._item(int(row), seed) for row in rows])
        targets = self.targets[rows]
        return (items.pin_memory(), targets.pin_memory()) if pin else (items, targets)

    def _item(self, row: int, seed: tuple[int, ...]) -> Tensor:
        item = self._decoded[row] if self._decoded is not None else self._decode(row)
        if self.policy == "none":
            return item
        return self.preprocessing.augment(item, self.policy, np.random.default_rng((*seed, row)))

    def _to_device(self, items: Tensor, targets: Tensor, device: torch.device) -> Batch:
        moved = items.to(device, non_blocking=True)
        return self.preprocessing.inputs(moved), targets.to(device, non_blocking=True)

    def _decode(self, row: int) -> Tensor:
        sample = self.samples[row]
        try:
            return self.preprocessing.decode(sample.source, augmented=self.policy != "none")
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(
                f"the sample {sample.id} was readable when the search began, but is not any more: {error}",
                "restore the file, then type the same command again",
            ) from error

    def _decode_all(self, memory: int) -> Tensor | None:
        if not self.samples:
            return None
        first = self._decode(0)
        if first.numel() * first.element_size() * len(self.samples) > memory:
            return None
        decoded = torch.empty((len(self.samples), *first.shape), dtype=first.dtype)
        with ThreadPoolExecutor(self._threads, thread_name_prefix="autoft-decode") as pool:
            for row, item in enumerate(pool.map(self._decode, range(len(self.samples)))):
                decoded[row] = item
        return decoded


def even_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut an order into batches of nearly equal size, none above `batch_size`.

    No sample is dropped, and from a batch size of 3 on no batch holds one sample alone, which BatchNorm could not take.

    Example:
        >>> [len(batch) for batch in even_batches(np.arange(10), 4)]
        [4, 3, 3]
    """
    return np.array_split(order, -(-len(order) // batch_size))
