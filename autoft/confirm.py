"""Decides whether a trial beats the preset by more than noise, and which trainings over seeds to pay for; trains nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from autoft.specs import Direction

ENOUGH_SEEDS = 3  # values on both sides from which each side's own spread is used; with fewer it says too little
PRESET_FIRST = "the preset wins unless it is beaten by more than noise"


@dataclass(frozen=True)
class Contender:
    """A trial that may win.

    Attributes:
        number: Of the trial.
        preset: Whether it is the preset, which wins where the others cannot show that they are better.
        values: The validation metric of each seed that it was trained with.
    """

    number: int
    preset: bool
    values: tuple[float, ...]


@dataclass(frozen=True)
class Verdict:
    """Which contender won, and by what measure.

    Attributes:
        winner: Number of the trial.
        mean: Mean of the winner's values.
        spread: Standard deviation of the winner's values; 0.0 for a single one.
        seeds: How many values the winner has.
        preset_mean: Mean of the preset's values, or None where it is not among the contenders.
        preset_spread: Standard deviation of the preset's values, or None where it is not among the contenders.
        gain: How much better than the preset's mean the winner's is, or that of the best of the others where the preset
            won; below 0 where it is worse, 0.0 where there was nothing to compare.
        noise: Standard error of that difference; 0.0 where there was nothing to estimate it from, as `reason` says.
        reason: Why it won, in words that go on a sentence such as "trial 3 is the winner: ...".
    """

    winner: int
    mean: float
    spread: float
    seeds: int
    preset_mean: float | None
    preset_spread: float | None
    gain: float
    noise: float
    reason: str


def judge(contenders: Sequence[Contender], direction: Direction) -> Verdict:
    """Choose the winner: the best mean that beats the preset's by more than noise, and otherwise the preset.

    A trial beats the preset if its mean is better by more than one standard error of the difference of the two means:
    `sqrt(s1**2 / n1 + s2**2 / n2)`, with the standard deviations s over the seeds of each side. It is the one-standard-error
    rule (Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984; Hastie, Tibshirani and Friedman,
    "The Elements of Statistical Learning", section 7.10) with the preset as the simplest choice. Where a side has fewer
    than three values, both take the standard deviation pooled over all contenders that have at least two.

    Where no contender has two values, nothing tells the noise: a strictly better value wins, and the reason says that it is
    not confirmed. Without a preset the best mean wins. Equal means go to the earlier trial.

    How strict that is, with three seeds and normal values: one trial just as good as the preset replaces it in 20 % of the
    cases, one that is worse by a standard deviation over seeds in 2 %, one that is better by as much in 61 %. A value by
    which a trial was chosen among many flatters it, so values of seeds that the search did not see are the better evidence.

    Args:
        contenders: With different numbers, at least one value each, and at most one preset.
        direction: Of the metric.

    Raises:
        ValueError: A rule for `contenders` is broken.

    Example:
        >>> verdict = judge([Contender(0, True, (0.80, 0.82, 0.81)), Contender(4, False, (0.90, 0.91, 0.89))], "maximize")
        >>> verdict.winner, round(verdict.gain, 3), round(verdict.noise, 3)
        (4, 0.09, 0.008)
    """
    _check(contenders)
    sign = 1.0 if direction == "maximize" else -1.0
    means = {each.number: statistics.fmean(each.values) for each in contenders}
    ranked = sorted(contenders, key=lambda each: (-sign * means[each.number], each.number))
    preset = next((each for each in contenders if each.preset), None)
    if preset is None:
        return _verdict(ranked[0], None, 0.0, 0.0, f"it has the best {_mean_of(ranked[0])}; there is no preset to beat")
    others = [each for each in ranked if not each.preset]
    if not others:
        return _verdict(preset, preset, 0.0, 0.0, "nothing else is there to compare with the preset")
    measured = [
        (each, sign * (means[each.number] - means[preset.number]), _noise(each, preset, contenders)) for each in others
    ]
    # not the best mean alone: it may rest on one lucky seed, where the next has shown itself over several
    for other, gain, noise in measured:
        if noise is None:
            if gain > 0:
                reason = f"its value is {gain:.4g} better than the preset's, not confirmed over seeds"
                return _verdict(other, preset, gain, 0.0, reason)
        elif gain > noise:
            reason = f"its {_mean_of(other)} is {gain:.4g} better than the preset's, more than the noise of {noise:.4g}"
            return _verdict(other, preset, gain, noise, reason)
    other, gain, noise = measured[0]
    if gain <= 0:
        reason = (
            "no other has a better mean" if noise is not None else "no other has a better value, not confirmed over seeds"
        )
    else:
        reason = f"trial {other.number} is {gain:.4g} better, within the noise of {noise:.4g}; {PRESET_FIRST}"
    return _verdict(preset, preset, gain, noise or 0.0, reason)


def plan(
    numbers: Sequence[int],
    *,
    preset: int | None,
    seeds: int,
    seconds: Mapping[int, float],
    seconds_left: float | None,
    done: Collection[tuple[int, int]] = (),
    workers: int = 1,
) -> list[tuple[int, int]]:
    """Return the trainings to pay for, as (trial, index of the seed), in the order in which to start them.

    They go seed by seed, so that stopping early leaves as many values of one trial as of another, and within a seed the
    preset comes first, then the trials from the best on: the comparison that decides is the first that is complete. What
    would end too late is left out, with all later seeds of the same trial; cheaper trials go on.

    Args:
        numbers: The contenders, best first; the preset among them, anywhere.
        preset: Number of the preset, or None where there is none.
        seeds: How many values are wanted of each.
        seconds: What one training of each takes, as measured.
        seconds_left: Time for all of them, or None for no limit.
        done: Trainings that are there already.
        workers: How many trainings run at a time; each worker takes the next as soon as it is free.

    Raises:
        ValueError: There is no worker, no seed, a preset that is no contender, or a time that is not a number from 0 on.

    Example:
        >>> plan([4, 7], preset=0, seeds=2, seconds={0: 9, 4: 5, 7: 9}, seconds_left=25, done={(4, 0)})
        Traceback (most recent call last):
        ...
        ValueError: the preset must be one of the contenders [4, 7], but is 0
        >>> plan([4, 7, 0], preset=0, seeds=2, seconds={0: 9, 4: 5, 7: 9}, seconds_left=25, done={(4, 0)})
        [(0, 0), (7, 0), (4, 1)]
    """
    if seeds < 1 or workers < 1:
        raise ValueError(f"seeds and workers must be at least 1, but are {seeds} and {workers}")
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"the contenders must be different, but are {list(numbers)}")
    if preset is not None and preset not in numbers:
        raise ValueError(f"the preset must be one of the contenders {list(numbers)}, but is {preset}")
    for number in numbers:
        if not 0 <= seconds[number] < math.inf:
            raise ValueError(f"the seconds of trial {number} must be a finite number from 0 on, but are {seconds[number]}")
    order = [number for number in numbers if number == preset] + [number for number in numbers if number != preset]
    limit = math.inf if seconds_left is None else seconds_left
    free_at = [0.0] * workers  # when each worker has done what is planned for it so far
    wanted = []
    for index in range(seeds):
        for number in order:
            if (number, index) in done:
                continue
            worker = free_at.index(min(free_at))
            ends_at = free_at[worker] + seconds[number]
            if ends_at <= limit:  # else never again either: workers only get free later
                free_at[worker] = ends_at
                wanted.append((number, index))
    return wanted


def makespan(wanted: Sequence[tuple[int, int]], seconds: Mapping[int, float], workers: int = 1) -> float:
    """Return how long trainings take that are started in order, each by the worker that is free first.

    Args:
        wanted: What `plan` gave.
        seconds: What one training of each trial takes.
        workers: How many train at a time.

    Example:
        >>> makespan([(0, 0), (7, 0), (4, 1)], {0: 9, 4: 5, 7: 9}, workers=2)
        14.0
    """
    free_at = [0.0] * workers
    for number, _ in wanted:
        free_at[free_at.index(min(free_at))] += seconds[number]
    return max(free_at)


def _check(contenders: Sequence[Contender]) -> None:
    numbers = [each.number for each in contenders]
    if not numbers or len(set(numbers)) != len(numbers):
        raise ValueError(f"there must be contenders, all with different numbers, but got {numbers}")
    if sum(each.preset for each in contenders) > 1:
        raise ValueError(f"one contender at most may be the preset, but got {[c.number for c in contenders if c.preset]}")
    for each in contenders:
        if not each.values or not all(map(math.isfinite, each.values)):
            raise ValueError(f"trial {each.number} must have finite values, one or more, but has {each.values}")


def _noise(one: Contender, other: Contender, contenders: Sequence[Contender]) -> float | None:
    """Return the standard error of the difference of two means, or None where no contender tells the spread over seeds."""
    if min(len(one.values), len(other.values)) >= ENOUGH_SEEDS:
        return math.sqrt(sum(statistics.variance(side.values) / len(side.values) for side in (one, other)))
    repeated = [each.values for each in contenders if len(each.values) > 1]
    if not repeated:
        return None
    squares = math.fsum(statistics.variance(values) * (len(values) - 1) for values in repeated)
    pooled = squares / sum(len(values) - 1 for values in repeated)
    return math.sqrt(pooled * (1 / len(one.values) + 1 / len(other.values)))


def _verdict(winner: Contender, preset: Contender | None, gain: float, noise: float, reason: str) -> Verdict:
    return Verdict(
        winner=winner.number,
        mean=statistics.fmean(winner.values),
        spread=_spread(winner),
        seeds=len(winner.values),
        preset_mean=None if preset is None else statistics.fmean(preset.values),
        preset_spread=None if preset is None else _spread(preset),
        gain=gain,
        noise=noise,
        reason=reason,
    )


def _spread(contender: Contender) -> float:
    return statistics.stdev(contender.values) if len(contender.values) > 1 else 0.0


def _mean_of(contender: Contender) -> str:
    count = len(contender.values)
    return f"mean over {count} seeds" if count > 1 else "value of its one seed"
