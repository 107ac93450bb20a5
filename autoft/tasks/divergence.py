"""How far two outputs for the same batch are apart, by kind of task; what R-Drop (arXiv:2106.14448) makes small."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoft.specs import IGNORED, Targets
from autoft.tasks.numeric import constant

if TYPE_CHECKING:
    from torch import Tensor


def of_classes(one: Tensor, other: Tensor, encoded: Tensor, targets: Targets) -> Tensor:
    """Return the mean symmetric Kullback-Leibler divergence of the classes' probabilities.

    Args:
        one: Logits `(..., K)`.
        other: Logits of the same shape.
        encoded: Class indices `(...)`; positions that are `IGNORED` are left out.
        targets: Of the task; not needed.
    """
    known = (encoded != IGNORED).float()
    first, second = one.float().log_softmax(dim=-1), other.float().log_softmax(dim=-1)
    # (KL(p, q) + KL(q, p)) / 2 = sum (p - q) (log p - log q) / 2
    apart = ((first.exp() - second.exp()) * (first - second)).sum(dim=-1) / 2
    return (apart * known).sum() / known.sum().clamp(min=1)


def of_labels(one: Tensor, other: Tensor, encoded: Tensor, targets: Targets) -> Tensor:
    """Return the mean symmetric Kullback-Leibler divergence of each label's being there, from logits `(N, K)`."""
    first, second = one.float(), other.float()
    # for two Bernoulli variables, (KL(p, q) + KL(q, p)) / 2 = (p - q) (logit p - logit q) / 2
    return ((first.sigmoid() - second.sigmoid()) * (first - second)).mean() / 2


def of_values(one: Tensor, other: Tensor, encoded: Tensor, targets: Targets) -> Tensor:
    """Return the mean squared difference of predictions `(N, D)`, in standard deviations of the targets."""
    scale = constant(tuple(targets.values["scale"]), one.device)
    return ((one.float() - other.float()) / scale).square().mean()
