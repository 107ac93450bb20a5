"""The gradients of one optimizer step: the plain loss, R-Drop, adversarial and sharpness-aware passes over a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoft.mixing import Mixed, mixed_loss
from autoft.regularize import SAM, Adversary, still
from autoft.specs import Head, Targets


@dataclass(frozen=True)
class Part:
    """What goes through the model together.

    Attributes:
        mixed: The inputs, mixed or as they are.
        wanted: Encoded targets.
        units: How many targets it has: its weight in the step.
    """

    mixed: Mixed
    wanted: Tensor
    units: int


class Gradients:
    """Leaves the gradients of a step's loss in the parameters.

    Args:
        forward: The model, or what stands for it.
        head: Whose loss it is.
        targets: Of the task.
        knobs: Values of the head's knobs.
        autocast: Gives the context of a forward pass.
        scaler: Of the gradients, for fp16.
        r_drop: Weight of the divergence between two passes with different dropout (R-Drop, arXiv:2106.14448); 0 for one
            pass. As in the authors' code, the loss is the mean of both passes' plus this times the divergence.
        adversary: Perturbs the embeddings for a second pass, whose loss is added; or None.
        sam: Takes the gradients uphill instead; or None.
        batch_norms: Of the backbone: a second pass must not count a batch twice.
    """

    def __init__(
        self,
        forward: Callable[..., Tensor],
        head: Head,
        targets: Targets,
        knobs: Any,
        *,
        autocast: Callable[[], AbstractContextManager[Any]],
        scaler: torch.amp.GradScaler,
        r_drop: float = 0.0,
        adversary: Adversary | None = None,
        sam: SAM | None = None,
        batch_norms: Sequence[nn.Module] = (),
    ) -> None:
        if r_drop and head.divergence is None:
            raise ValueError(f"R-Drop needs a head with a divergence, but {head.name} has none")
        self._forward, self._head, self._targets, self._knobs = forward, head, targets, knobs
        self._autocast, self._scaler = autocast, scaler
        self._r_drop, self._adversary, self._sam, self._batch_norms = r_drop, adversary, sam, batch_norms

    def of_step(self, parts: Iterable[Part], units: int, loss_sum: Tensor) -> None:
        """Add a step's gradients to those that the parameters have, which are none.

        Args:
            parts: Of the step; read one after the other unless they are needed twice.
            units: Of all parts together.
            loss_sum: To which the loss of each part, times its units, is added; on the device, so that nothing waits.
        """
        if self._sam is None:
            for part in parts:
                loss_sum += self._backward(part, units)
            return
        parts = list(parts)
        for part in parts:
            loss_sum += self._backward(part, units)
        with self._sam.uphill(), still(self._batch_norms):
            for part in parts:
                self._backward(part, units)
            # the gradients stay; the weights go back

    def _backward(self, part: Part, units: int) -> Tensor:
        """Return the loss of a part times its units, detached; its gradients are added to the parameters'."""
        weight = part.units / units
        with self._adversary.watched() if self._adversary else nullcontext():
            loss = self._loss(part)
            self._scaler.scale(loss * weight).backward()  # type: ignore[no-untyped-call]
        if self._adversary is not None:
            with self._adversary.attacking(), still(self._batch_norms):
                attacked = mixed_loss(self._task_loss, self._outputs(part), part.wanted, part.mixed)
                self._scaler.scale(attacked * weight).backward()  # type: ignore[no-untyped-call]
        return loss.detach() * part.units

    def _loss(self, part: Part) -> Tensor:
        outputs = self._outputs(part)
        loss = mixed_loss(self._task_loss, outputs, part.wanted, part.mixed)
        if not self._r_drop:
            return loss
        assert self._head.divergence is not None
        with still(self._batch_norms):
            again = self._outputs(part)
        both = (loss + mixed_loss(self._task_loss, again, part.wanted, part.mixed)) / 2
        return both + self._r_drop * self._head.divergence(outputs, again, part.wanted, self._targets)

    def _outputs(self, part: Part) -> Tensor:
        with self._autocast():
            return self._forward(*part.mixed.inputs)

    def _task_loss(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        return self._head.loss(outputs, wanted, self._targets, self._knobs)
