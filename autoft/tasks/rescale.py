"""The module that brings a head's numbers back to the targets' unit, so that the exported graph answers in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Rescale(nn.Module):
    """Multiplies and adds, in float32 whatever comes in.

    Args:
        offset: What is added, `(D,)`.
        scale: What is multiplied with before, `(D,)`.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, offset: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor(offset, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))

    def forward(self, values: Tensor) -> Tensor:
        """Return numbers `(..., D)` in the targets' unit."""
        # float32 even under autocast: the digits of a half-precision number would be spent on the mean
        return values.float() * self.scale + self.offset
