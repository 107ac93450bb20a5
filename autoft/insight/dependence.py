"""Says how the metric and the cost depend on one setting, whatever the others are: a random forest over all trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from sklearn.ensemble import RandomForestRegressor

from autoft.errors import RunError, nearest
from autoft.insight.evidence import CountedTrial, Evidence
from autoft.knobs import Value

TREES = 200
LEAF = 2  # trials in a leaf, at least: a single one's luck should not be a rule
POINTS = 13  # of a curve
MOST_STEPS = 32  # whole numbers that get a point each
# Share of the trees that must say the same before it is said. Tried on made searches of 60 trials, 25 of each kind: where
# nothing mattered, 32 in 100 got a "best" learning rate with 0.9, and 4 with 0.975; a weak effect was found in 96 and 68.
AGREE = 0.975

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """The metric, to be expected at one value of a setting, over what the trials had of the others.

    Attributes:
        value: Of the setting; 0 where it is off.
        off: Whether it is off there.
        mean: Of the metric, over trees.
        spread: Its standard deviation over trees.
        seconds: An epoch, to be expected; None where no seconds were measured.
        trials: How many had this value, or one nearer to this point than to any other.
    """

    value: Value
    off: bool
    mean: float
    spread: float
    seconds: float | None
    trials: int


@dataclass(frozen=True)
class Dependence:
    """How the metric depends on a setting.

    Attributes:
        name: Of the setting.
        log: Whether it is searched on a logarithmic scale.
        ordered: Whether it is a number.
        points: From `off`, if it may be, and the smallest value to the largest; or one a value.
        better: 1 where more of the metric is better, else -1.
        votes: What each tree says of each point, `(trees, points)`.
        costs: Likewise the logarithm of the seconds an epoch; None where none were measured.
    """

    name: str
    log: bool
    ordered: bool
    points: tuple[Point, ...]
    better: int
    votes: Matrix = field(repr=False, compare=False)
    costs: Matrix | None = field(repr=False, compare=False)

    def gain(self, point: int, over: int) -> float:
        """Return how much better one point is than another; below 0 where it is worse."""
        return float(self.better * (self.votes[:, point] - self.votes[:, over]).mean())

    def spread(self, point: int, over: int) -> float:
        """Return the standard deviation of that difference over trees."""
        return float((self.votes[:, point] - self.votes[:, over]).std())

    def is_better(self, point: int, over: int, noise: float) -> bool:
        """Return whether one point is better than another by more than noise, and the trees agree."""
        agree = float((self.better * (self.votes[:, point] - self.votes[:, over]) > 0).mean())
        return self.gain(point, over) > noise and agree >= AGREE

    def is_equal(self, point: int, other: int, noise: float) -> bool:
        """Return whether two points are as good as each other: no further apart than noise, and known as precisely."""
        return abs(self.gain(point, other)) <= noise and self.spread(point, other) <= noise

    def cheaper(self, point: int, than: int) -> float | None:
        """Return how many times cheaper an epoch is; None where it is not measured, or the trees do not agree."""
        if self.costs is None:
            return None
        less = self.costs[:, than] - self.costs[:, point]
        return math.exp(float(less.mean())) if float((less > 0).mean()) >= AGREE else None


class Surrogate:
    """Stands for training: says what a trial with some settings would reach, and what an epoch would cost.

    A random forest with a row a trial. How many epochs a trial trained is not among its features: the bad trials are those
    that are stopped early, so a tree that looks at epochs compares the survivors with each other, and to it nothing matters.
    Instead each trial counts with what it would have after all epochs (`evidence.weigh`).

    Args:
        evidence: Of `importance.FEWEST` trials at least.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._columns = [
            (name, choice)
            for name, what in evidence.parameters.items()
            for choice in (what.choices if isinstance(what, CategoricalDistribution) else (None,))
        ]
        self._rows = self._encode([trial.params for trial in evidence.trials])
        values = np.array([trial.value for trial in evidence.trials])
        self._forest = _forest(self._rows, values)
        self._error = float(np.sqrt(np.mean((self._forest.oob_prediction_ - values) ** 2)))
        known = [trial.seconds is not None for trial in evidence.trials]
        seconds = [math.log(trial.seconds) for trial in evidence.trials if trial.seconds is not None]
        self._cost = _forest(self._rows[known], np.array(seconds)) if len(seconds) > 2 * LEAF else None

    @property
    def noise(self) -> float:
        """How far its trees are, on average, from trials that they have not seen (root mean square)."""
        return self._error

    def dependence(self, name: str) -> Dependence:
        """Return the partial dependence on a setting (Friedman, "Greedy function approximation", 2001).

        Only where trials were: a curve ends at the smallest and the largest value that one had.
        """
        evidence, what = self._evidence, self._evidence.parameters[name]
        having = [trial for trial in evidence.trials if name in trial.params]
        grid = _grid(evidence, name, what, [trial.params[name] for trial in having])
        rows = np.concatenate([self._with(name, value) for value, _ in grid])
        votes = _votes(self._forest, rows, len(grid))
        costs = None if self._cost is None else _votes(self._cost, rows, len(grid))
        counts = _counts(evidence, name, grid, having)
        points = tuple(
            Point(
                value=0.0 if off else value,
                off=off,
                mean=float(votes[:, index].mean()),
                spread=float(votes[:, index].std()),
                seconds=None if costs is None else math.exp(float(costs[:, index].mean())),
                trials=counts[index],
            )
            for index, (value, off) in enumerate(grid)
        )
        ordered = not isinstance(what, CategoricalDistribution)
        return Dependence(name, getattr(what, "log", False), ordered, points, evidence.better, votes, costs)

    def _with(self, name: str, value: Value) -> Matrix:
        """Return all trials' rows with one setting changed."""
        rows = self._rows.copy()
        own = self._encode([{name: value}])[0]
        for column, (owner, _) in enumerate(self._columns):
            if owner == name:
                rows[:, column] = own[column]
        return rows

    def _encode(self, trials: Sequence[Mapping[str, Value]]) -> Matrix:
        """Return trials as rows: numbers on the scale that is searched, a column a choice, NaN where there is nothing."""
        rows = np.full((len(trials), len(self._columns)), np.nan)
        for row, params in zip(rows, trials, strict=True):
            for column, (name, choice) in enumerate(self._columns):
                if name in params:
                    row[column] = float(params[name] == choice) if choice is not None else self._place(name, params[name])
        return rows

    def _place(self, name: str, value: Value) -> float:
        what = self._evidence.parameters[name]
        # all that is off is the same, wherever below the threshold Optuna has sampled it
        number = what.low if self._evidence.is_off(name, value) else float(value)  # type: ignore[attr-defined]
        return math.log(number) if getattr(what, "log", False) else float(number)


def require_parameter(evidence: Evidence, name: str) -> str:
    """Return the name of a setting that was searched.

    Raises:
        RunError: It was not.
    """
    if name in evidence.parameters:
        return name
    near = nearest(name, evidence.parameters)
    searched = ", ".join(evidence.parameters) or "nothing"
    raise RunError(
        f"a parameter must be one that was searched, but got {name!r}",
        f"did you mean {' or '.join(near)}?" if near else f"searched were: {searched}",
    )


def _forest(rows: Matrix, values: Matrix) -> RandomForestRegressor:
    forest = RandomForestRegressor(TREES, min_samples_leaf=LEAF, oob_score=True, random_state=0, n_jobs=1)
    return forest.fit(rows, values)


def _votes(forest: RandomForestRegressor, rows: Matrix, points: int) -> Matrix:
    """Return what each tree says of each point, on average over the trials: `(trees, points)`."""
    ready = rows.astype(np.float32)
    return np.stack([tree.predict(ready).reshape(points, -1).mean(axis=1) for tree in forest.estimators_])


def _grid(evidence: Evidence, name: str, what: BaseDistribution, seen: Sequence[Value]) -> list[tuple[Value, bool]]:
    """Return the values to look at, and whether each is off."""
    if isinstance(what, CategoricalDistribution):
        return [(choice, False) for choice in what.choices if choice in seen]  # type: ignore[misc]
    assert isinstance(what, FloatDistribution | IntDistribution)
    off: list[tuple[Value, bool]] = [(what.low, True)] if any(evidence.is_off(name, value) for value in seen) else []
    on = sorted(float(value) for value in seen if not evidence.is_off(name, value))
    if not on:
        return off
    if isinstance(what, IntDistribution) and on[-1] - on[0] < MOST_STEPS:
        return off + [(value, False) for value in range(int(on[0]), int(on[-1]) + 1, what.step)]
    if on[0] == on[-1]:
        return [*off, (on[0], False)]
    curve = np.geomspace(on[0], on[-1], POINTS) if what.log else np.linspace(on[0], on[-1], POINTS)
    whole = isinstance(what, IntDistribution)
    values = dict.fromkeys(round(float(value)) if whole else float(value) for value in curve)
    return off + [(value, False) for value in values]


def _counts(evidence: Evidence, name: str, grid: Sequence[tuple[Value, bool]], trials: Sequence[CountedTrial]) -> list[int]:
    """Return for each point how many trials are nearest to it."""
    what = evidence.parameters[name]
    scale = math.log if getattr(what, "log", False) else float
    counts = [0] * len(grid)
    for trial in trials:
        value = trial.params[name]
        off = evidence.is_off(name, value)

        def distance(index: int, value: Value = value, off: bool = off) -> float:
            other, other_off = grid[index]
            if off != other_off:
                return math.inf
            if off or isinstance(what, CategoricalDistribution):
                return 0.0 if off or value == other else math.inf
            return abs(scale(float(value)) - scale(float(other)))

        counts[min(range(len(grid)), key=distance)] += 1
    return counts
