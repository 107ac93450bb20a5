"""Averages of the weights along a training: exponential (EMA), or of the last epochs (SWA); `train.py` decides when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

AVERAGES = ("none", "ema", "swa")


class Average:
    """A running average of what changes in a model: its trained parameters, and its buffers such as running statistics.

    - Exponential (EMA): `a <- d * a + (1 - d) * w` after each step, with `d = min(decay, (1 + n) / (10 + n))` at step n, as
      TensorFlow's `ExponentialMovingAverage`: without that, a short training would average mostly its start.
    - Plain (SWA, arXiv:1803.05407): the mean of the weights at the ends of the last epochs.

    Args:
        model: Its trained parameters and its buffers of real numbers are averaged.
        decay: Of EMA; None for the plain mean.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self._decay = decay
        self._live = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._live |= {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        self.values = {name: value.clone() for name, value in self._live.items()}
        self.count = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights into the average."""
        self.count += 1
        share = 1 / self.count if self._decay is None else 1 - min(self._decay, (1 + self.count) / (10 + self.count))
        values, live = list(self.values.values()), list(self._live.values())
        if share == 1.0:
            torch._foreach_copy_(values, live)  # the first of a plain mean: exactly the weights
        else:
            torch._foreach_lerp_(values, live, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the average within the context, and its own weights and buffers again after it."""
        before = {name: value.clone() for name, value in self._live.items()}
        self._write(self.values)
        try:
            yield
        finally:
            self._write(before)

    def restore(self, values: Mapping[str, Tensor], count: int) -> None:
        """Go on from an average that was stored."""
        with torch.no_grad():
            for name, value in self.values.items():
                value.copy_(values[name])
        self.count = count

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, value in self._live.items():
            value.copy_(values[name])
