"""Rows of different lengths in one tensor: texts as tokens, tags as numbers, outputs for words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """N rows of different lengths, one after another.

    Attributes:
        values: `(M, ...)`: all rows' elements.
        offsets: `(N + 1,)` int64 on the CPU, ascending from 0 to M: row i is `values[offsets[i] : offsets[i + 1]]`.

    Example:
        >>> rows = Ragged.of([torch.tensor([5, 6]), torch.tensor([7])])
        >>> rows.padded(0).tolist()
        [[5, 6], [7, 0]]
    """

    values: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> Ragged:
        """Join rows `(T, ...)`, at least one, that differ in their first axis alone."""
        lengths = torch.tensor([0, *(len(row) for row in rows)], dtype=torch.int64)
        return cls(torch.cat(list(rows)), lengths.cumsum(0))

    @classmethod
    def cat(cls, parts: Sequence[Ragged]) -> Ragged:
        """Put the rows of several, at least one, below each other."""
        lengths = torch.cat([part.lengths for part in parts])
        return cls(torch.cat([part.values for part in parts]), torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: Any) -> Ragged:
        """Return some rows, chosen as a tensor's are: by numbers, a slice or a mask."""
        if isinstance(rows, np.ndarray):
            rows = torch.from_numpy(rows)
        starts, lengths = self.offsets[:-1][rows], self.lengths[rows]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        # element j of the result lies as far behind its row's start here as it does there
        where = torch.arange(int(offsets[-1])) + torch.repeat_interleave(starts - offsets[:-1], lengths)
        return Ragged(self.values[where.to(self.values.device)], offsets)

    def row(self, number: int) -> Tensor:
        """Return one row, `(T, ...)`, a view."""
        return self.values[int(self.offsets[number]) : int(self.offsets[number + 1])]

    @property
    def lengths(self) -> Tensor:
        """Length of each row, `(N,)` int64."""
        return self.offsets.diff()

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.values.numel() * self.values.element_size()

    def mask(self, width: int | None = None) -> Tensor:
        """Return `(N, T)` bool on the values' device: where `padded` holds an element rather than a filler."""
        width = int(self.lengths.max()) if width is None else width
        lengths = self.lengths.to(self.values.device, non_blocking=True)
        return torch.arange(width, device=self.values.device) < lengths[:, None]

    def padded(self, fill: float) -> Tensor:
        """Return `(N, T, ...)`, T being the longest row's length, with `fill` after the end of shorter rows."""
        mask = self.mask()
        out = self.values.new_full((*mask.shape, *self.values.shape[1:]), fill)
        # not out[mask] = ...: a GPU would have to tell the host first how many there are
        shape = (*mask.shape, *(1 for _ in self.values.shape[1:]))
        return out.masked_scatter_(mask.view(shape).expand_as(out), self.values)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Ragged:
        """Return it with its values on a device; the offsets stay on the CPU."""
        return Ragged(self.values.to(device, non_blocking=non_blocking), self.offsets)

    def pin_memory(self) -> Ragged:
        """Return it with its values page-locked, so that a copy to a GPU overlaps with computation."""
        return Ragged(self.values.pin_memory(), self.offsets)


Rows = Tensor | Ragged  # a row a sample: all of one shape, or of their own lengths
