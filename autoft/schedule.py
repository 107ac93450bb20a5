"""The learning rate over a training: warm-up, then one of a few shapes; and how deep a gradual unfreezing has come."""

from __future__ import annotations

import math

SMALLEST_RATE = 0.01  # where a shape ends, as a share of the peak: a last epoch at zero would train nothing
SCHEDULES = ("cosine", "linear", "constant", "wsd")
COOLDOWN = 0.2  # share of the steps after warm-up in which `wsd` falls (arXiv:2405.18392 finds 10 to 20 % enough)


def rate_at(step: int, total: int, warmup: float, schedule: str = "cosine", hold_from: int | None = None) -> float:
    """Return the learning rate's factor at a step: linear warm-up, then the schedule's shape down to 1 %.

    - `cosine`: half a cosine (arXiv:1608.03983).
    - `linear`: a straight line, as BERT was fine-tuned (arXiv:1810.04805).
    - `constant`: the peak to the end.
    - `wsd`: the peak, then a straight line over the last fifth (warm-up, stable, decay; arXiv:2404.06395).

    Args:
        step: Counted from 0.
        total: Steps of the whole training.
        warmup: Share of `total` spent rising.
        schedule: One of `SCHEDULES`.
        hold_from: A step from which the rate stays what it is there, for stochastic weight averaging; None for none.

    Raises:
        ValueError: The schedule is unknown.
    """
    if hold_from is not None:
        step = min(step, hold_from)
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    progress = (step - rising) / max(1, total - rising)
    if schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    elif schedule == "linear":
        left = 1 - progress
    elif schedule == "constant":
        left = 1.0
    elif schedule == "wsd":
        left = min(1.0, (1 - progress) / COOLDOWN)
    else:
        raise ValueError(f"the schedule must be one of {', '.join(SCHEDULES)}, but got {schedule!r}")
    return SMALLEST_RATE + (1 - SMALLEST_RATE) * left


def depth_at(epoch: int, epochs: int, stages: int, depth: int, share: float) -> int:
    """Return how many stages are frozen in an epoch of gradual unfreezing (ULMFiT, arXiv:1801.06146).

    The first epoch trains the head alone; then stages are unfrozen from the output to the input, evenly over the first
    `share` of the epochs. There each epoch unfroze one layer; the share does the same for models of any depth.

    Args:
        epoch: Counted from 1.
        epochs: Of the whole training.
        stages: Of the backbone.
        depth: Stages that stay frozen to the end.
        share: Of the epochs in which stages are unfrozen; 0 for none.

    Example:
        >>> [depth_at(epoch, 8, 12, 0, 0.5) for epoch in range(1, 9)]
        [12, 9, 6, 3, 0, 0, 0, 0]
    """
    unfreezing = round(share * epochs)
    if share and not unfreezing:
        unfreezing = 1
    if epoch > unfreezing:
        return depth
    return stages - round((stages - depth) * (epoch - 1) / unfreezing)
