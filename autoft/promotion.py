"""Decides what a search trains next: a new trial, or one that rests at a rung; leaves training and storage to the driver.

Asynchronous successive halving (Li et al., https://arxiv.org/abs/1810.05934) says which trials may go on. Among those, and a
new one, goes first what promises the largest gain a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from autoft.errors import AutoftError
from autoft.specs import Direction

REDUCTIONS = 3  # from a whole trial down to the first rung: beyond eta**3, an epoch is still warm-up and tells nothing
ENOUGH = 4  # trials at the first rung before their spread says anything; until then plain halving decides
HUGE = 1e100  # what squares without overflow; a trial that gained more had diverged before
PRIOR_WEIGHT = 1.0  # for how many observed gains the spread of the first rung counts, when theirs is estimated

# A new trial goes first only if it promises so many times what a resting one does: the resting one's score is measured, the
# new one's a guess. Without it, replayed searches began too many trials (studies/benchmarks/replay.py).
MARGIN = 2.0


@dataclass(frozen=True)
class Progress:
    """One trial as the policy sees it.

    Attributes:
        number: Of the trial.
        values: The metric after each epoch so far.
        seconds: Measured mean seconds an epoch; 0.0 where not known.
        state: Whether it trains now, rests with its checkpoint, or has ended for good.
        full: Whether it is never to rest, as a preset.
        group: Only trials of one group are compared before their end: one that starts from a trained head is far ahead of
            one that does not after an epoch, and need not be in the end.
        model: What its score is to improve on: the best of the trials of this model. All compete where it is the same.
    """

    number: int
    values: tuple[float, ...]
    seconds: float
    state: Literal["running", "paused", "ended"]
    full: bool = False
    group: str = ""
    model: str = ""


@dataclass(frozen=True)
class Start:
    """Begin a new trial, and train it to the first rung."""


@dataclass(frozen=True)
class Promote:
    """Continue a trial that rests.

    Attributes:
        number: Of the trial.
        until: The epoch to train it to.
    """

    number: int
    until: int


@dataclass(frozen=True)
class Done:
    """Nothing is worth doing now; for good, unless a trial still runs: ask again once it rests."""


def rungs(epochs: int, *, eta: int = 3, first: int | None = None) -> tuple[int, ...]:
    """Return the epochs at which a trial rests; the last is `epochs`, where it ends.

    Counted down from the end, each the `eta`th part of the one above: so the costly last step, which anneals the learning
    rate, always has the whole factor, and rounding falls on the cheap ones.

    Args:
        epochs: Of a whole trial.
        eta: One in how many goes on.
        first: The least epochs before the first rest; by default, the whole trial is cut down three times at most.

    Raises:
        AutoftError: A number is out of range.

    Example:
        >>> rungs(10), rungs(4), rungs(1), rungs(100)
        ((1, 3, 10), (1, 4), (1,), (4, 11, 33, 100))
    """
    if epochs < 1:
        raise AutoftError(f"`epochs` must be at least 1, but got {epochs}", "train for one epoch or more")
    if eta < 2:
        raise AutoftError(f"`eta` must be at least 2, but got {eta}", "3 lets one trial in three go on")
    if first is not None and not 1 <= first <= epochs:
        raise AutoftError(f"`first` must be between 1 and {epochs}, but got {first}", "give an epoch of the trial")
    least = first or 1
    found = {epochs}
    step = 1
    while (first is not None or step <= REDUCTIONS) and (epoch := math.floor(epochs / eta**step + 0.5)) >= least:
        found.add(epoch)
        step += 1
    return tuple(sorted(found))


def next_action(
    trials: Sequence[Progress],
    *,
    epochs: int,
    direction: Direction,
    may_start: bool,
    eta: int = 3,
    first: int | None = None,
    group: str = "",
    model: str = "",
) -> Start | Promote | Done:
    """Return what to train next; the same trials always give the same answer.

    A trial that rests may go on when it is in the best `1/eta` of its group's that reached its rung. Of these and a new
    trial, the one with the largest expected improvement a second comes first; with too few trials to tell, the one at the
    highest rung. Once no more may start and none may go on, the leader of each model is trained to the end if it rests: the
    winner is to be annealed.

    Args:
        trials: All that have begun, in any order; without those that failed.
        epochs: Of a whole trial.
        direction: Of the metric.
        may_start: Whether the budget has a new trial left.
        eta: One in how many goes on.
        first: As of `rungs`.
        group: Of a new trial.
        model: Of a new trial.

    Raises:
        AutoftError: `epochs` or `eta` is out of range.
    """
    steps = rungs(epochs, eta=eta, first=first)
    known = [_Known(trial, steps, direction) for trial in sorted(trials, key=lambda trial: trial.number)]
    resting = [trial for trial in known if trial.state == "paused" and trial.rung < len(steps)]
    for trial in resting:
        if trial.full:  # a preset whose process was killed
            return Promote(trial.number, epochs)
    promotable = [trial for trial in resting if _may_go_on(trial, known, eta)]
    promotable.sort(key=lambda trial: (-trial.rung, -trial.best, trial.number))  # plain halving: the highest rung first
    if promotable and (may_start or len(promotable) > 1):
        asked = {trial.group: trial.model for trial in promotable} | ({group: model} if may_start else {})
        forecasts = {
            name: _forecast([trial for trial in known if trial.group == name], steps, _best(known, of))
            for name, of in asked.items()
        }
        enough = {name: forecast for name, forecast in forecasts.items() if forecast is not None}
        if len(enough) == len(asked):
            chosen = _most_gain_a_second(promotable, enough, steps, start=group if may_start else None)
            return Start() if chosen is None else Promote(chosen.number, steps[chosen.rung])
    if promotable:
        return Promote(promotable[0].number, steps[promotable[0].rung])
    if may_start:
        return Start()
    for of in sorted({trial.model for trial in known}):
        leader = min((each for each in known if each.model == of), key=lambda trial: (-trial.best, trial.number))
        if leader in resting:
            return Promote(leader.number, epochs)
    return Done()


def _best(known: Sequence[_Known], model: str) -> float:
    """Return the best score of a model's trials so far."""
    return max((trial.best for trial in known if trial.model == model and math.isfinite(trial.best)), default=-math.inf)


class _Known:
    """A trial with scores, larger is better, at each rung that it reached.

    Attributes:
        rung: How many rungs it has reached.
        scores: Its best score up to each of them.
        best: Its best score so far.
    """

    def __init__(self, trial: Progress, steps: Sequence[int], direction: Direction) -> None:
        self.number, self.state, self.full, self.seconds = trial.number, trial.state, trial.full, trial.seconds
        self.group, self.model = trial.group, trial.model
        sign = 1.0 if direction == "maximize" else -1.0
        scores = [-math.inf if math.isnan(value) else sign * value for value in trial.values]
        self.scores = tuple(max(scores[:step]) for step in steps if step <= len(scores))
        self.best = max(scores, default=-math.inf)
        self.rung = len(self.scores)


def _may_go_on(trial: _Known, known: Sequence[_Known], eta: int) -> bool:
    """Tell whether a trial is in the best `1/eta` of its group at its rung; among equals, the earlier is."""
    if trial.rung == 0:  # cut off before its first rung: what it began is still owed
        return True
    at = trial.rung - 1
    reached = [other for other in known if other.rung > at and other.group == trial.group]
    before = sum((-other.scores[at], other.number) < (-trial.scores[at], trial.number) for other in reached)
    return before < len(reached) // eta


@dataclass(frozen=True)
class _Forecast:
    """What the trials of a group have shown so far.

    Attributes:
        best: The best score of the model, of whatever group.
        first: The scores at the first rung; a new trial is expected to repeat one of them.
        gains: Mean and variance of what a trial gains from each rung to the next.
        seconds: Mean seconds an epoch.
    """

    best: float
    first: tuple[float, ...]
    gains: tuple[tuple[float, float], ...]
    seconds: float


def _forecast(known: Sequence[_Known], steps: Sequence[int], best: float) -> _Forecast | None:
    """Return what is to be expected of a group; None where too little was seen, or where all trials did the same."""
    finite = [trial for trial in known if trial.rung and all(math.isfinite(score) for score in trial.scores)]
    first = np.array([trial.scores[0] for trial in finite])
    if len(first) < ENOUGH:
        return None
    with np.errstate(over="ignore"):
        spread = float(first.var()) ** 0.5
    if not 0.0 < spread < HUGE:
        return None
    gains = []
    for rung in range(1, len(steps)):
        seen = np.array([min(HUGE, trial.scores[rung] - trial.scores[rung - 1]) for trial in finite if trial.rung > rung])
        mean = float(seen.mean()) if len(seen) else 0.0
        squares = float(((seen - mean) ** 2).sum()) + PRIOR_WEIGHT * spread**2
        gains.append((mean, squares / (len(seen) + PRIOR_WEIGHT)))
    costs = [trial.seconds for trial in known if trial.seconds > 0.0]
    # without a clock, an epoch is the unit
    seconds = math.fsum(costs) / len(costs) if costs else 1.0
    return _Forecast(best, tuple(map(float, first)), tuple(gains), seconds)


def _most_gain_a_second(
    promotable: Sequence[_Known], forecasts: Mapping[str, _Forecast], steps: Sequence[int], *, start: str | None
) -> _Known | None:
    """Return the trial to continue, or None for a new one; among equals, the first in the order given, then a new one.

    The improvement and the seconds are those of the whole trial, not of the next rung: only the last step anneals, and a new
    trial's first rung alone, cheap and varied, would always look like a bargain.
    """
    chosen: _Known | None = None
    highest = -math.inf
    for trial in promotable:
        forecast = forecasts[trial.group]
        behind = steps[trial.rung - 1] if trial.rung else 0
        seconds = (steps[-1] - behind) * (trial.seconds or forecast.seconds)
        rate = _gain(trial.best, max(1, trial.rung), forecast) / seconds
        if rate > highest:
            chosen, highest = trial, rate
    if start is not None:
        forecast = forecasts[start]
        gain = math.fsum(_gain(score, 1, forecast) for score in forecast.first) / len(forecast.first)
        if gain / (steps[-1] * forecast.seconds) > MARGIN * highest:
            return None
    return chosen


def _gain(score: float, rung: int, forecast: _Forecast) -> float:
    """Return how much a trial with a score at a rung is expected to improve on the best, once trained to the end."""
    gains = forecast.gains[rung - 1 :]
    mean = score + math.fsum(gain for gain, _ in gains)
    deviation = math.sqrt(math.fsum(variance for _, variance in gains))
    return _expected_improvement(mean, deviation, forecast.best)


def _expected_improvement(mean: float, deviation: float, best: float) -> float:
    """Return by how much a normal variable is expected to exceed the best, counting nothing where it does not.

    Jones et al., Efficient Global Optimization of Expensive Black-Box Functions (1998), equation 15.
    """
    if deviation == 0.0 or not math.isfinite(mean - best):
        return max(0.0, mean - best) if math.isfinite(mean - best) else 0.0
    z = (mean - best) / deviation
    density = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    return max(0.0, (mean - best) * 0.5 * math.erfc(-z / math.sqrt(2.0)) + deviation * density)
