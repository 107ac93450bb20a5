"""Small numeric pieces that the tasks' metrics share."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn


def linear_head(features: int, outputs: int, dropout: float) -> nn.Sequential:
    """Make dropout and one linear layer, `(..., C) -> (..., K)`, with timm's initialization of classifiers."""
    from torch import nn

    linear = nn.Linear(features, outputs)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Dropout(dropout), linear)


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers as float32 on a device; kept, because making them anew would make each step wait for the copy."""
    import torch

    return torch.tensor(values, dtype=torch.float32, device=device)


def finite(outputs: Tensor) -> NDArray[np.float64]:
    """Return outputs as float64 on the CPU.

    Raises:
        ValueError: Some are NaN or infinite: a metric must not rank them as if they were numbers.
    """
    values: NDArray[np.float64] = outputs.detach().double().cpu().numpy()
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise ValueError(f"outputs must be finite to be scored, but {wrong} of {values.size} are not")
    return values


def quotient(above: Any, below: Any) -> NDArray[np.float64]:
    """Divide, with 0 where there is nothing to divide by (scikit-learn's `zero_division=0`)."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    result: NDArray[np.float64] = np.divide(above, below, out=np.zeros_like(above), where=below != 0)
    return result


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks `(N,)` from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared: NDArray[np.float64] = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return shared


def areas(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return each column's area under the ROC curve `(K,)` by ranks (Mann and Whitney), NaN where all samples are equal.

    Args:
        scores: `(N, K)`, such as probabilities.
        truth: Which samples have the label, `(N, K)`.
    """
    found = np.full(scores.shape[1], np.nan)
    positives = truth.sum(axis=0)
    for label in np.flatnonzero((positives > 0) & (positives < len(truth))):
        count = int(positives[label])
        above = ranks(scores[:, label])[truth[:, label]].sum() - count * (count + 1) / 2
        found[label] = above / (count * (len(truth) - count))
    return found


def pearson(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the correlation of two series `(N,)`; 0 where one of them is constant."""
    # divided by the largest first: squares of large numbers would overflow, of small ones vanish
    one, other = (_unit(values - values.mean()) for values in (one, other))
    below = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float(np.clip((one * other).sum() / below, -1.0, 1.0)) if below > 0 else 0.0


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the correlation of the ranks of two series `(N,)`; 0 where one of them is constant."""
    return pearson(ranks(one), ranks(other))


def is_constant(values: NDArray[np.float64]) -> bool:
    """Return whether all are equal, or there are none."""
    return len(values) == 0 or bool((values == values[0]).all())


def _unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = np.abs(values).max(initial=0.0)
    return values / largest if largest > 0 else values
