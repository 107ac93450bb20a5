"""How far chance alone moves the difference of two models' scores: a paired bootstrap over the samples they answered."""

from __future__ import annotations

import math

import numpy as np

from autoft.ragged import Rows
from autoft.specs import Targets
from autoft.train import Objective

RESAMPLES = 50
RESAMPLED = 2_000  # samples of a resample, at most: metrics of more take long


def paired_error(
    one: Rows,
    other: Rows,
    objective: Objective,
    encoded: Rows,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    others: Targets | None = None,
) -> float:
    """Return the standard error of the difference of two models' scores.

    A resample has at most 2,000 samples; the error over all of them is smaller by the root of the numbers' ratio.

    Args:
        one: A model's outputs, a row a sample.
        other: Another one's, of the same samples.
        objective: The task and its metric.
        encoded: Targets of the samples.
        seed: Of the bootstrap.
        resamples: How many.
        others: The targets by which the other one is scored, where it answers by thresholds of its own.

    Returns:
        The error; infinite where fewer than two have the metric.
    """
    head, targets, rng, differences = objective.head, objective.targets, np.random.default_rng(seed), []
    size = min(len(encoded), RESAMPLED)
    for _ in range(resamples):
        rows = rng.integers(0, len(encoded), size)
        pair = [
            head.metrics(each[rows], encoded[rows], known) for each, known in ((one, targets), (other, others or targets))
        ]
        if all(objective.metric in metrics for metrics in pair):
            differences.append(pair[0][objective.metric] - pair[1][objective.metric])
    if len(differences) < 2:
        return math.inf
    return float(np.std(differences, ddof=1)) * math.sqrt(size / len(encoded))
