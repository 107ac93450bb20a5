"""Reads the trials of a run, and says what each of them counts with; draws no conclusions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from autoft.errors import RunError
from autoft.finish import read_result
from autoft.knobs import BY_NAME, Value
from autoft.runfolder import read_events
from autoft.seals import check
from autoft.space import AS_SEARCHED
from autoft.specs import Direction, Range
from autoft.storage import read_study

DEPTHS = ("freeze_depth", "freeze_fraction")  # the second where backbones differ in how many stages they have


@dataclass(frozen=True)
class CountedTrial:
    """A trial that trained for an epoch at least.

    Attributes:
        number: Of the trial.
        params: What Optuna gave it, by name.
        epochs: How many it trained.
        measured: Its best value in these epochs: a trial keeps the weights of its best epoch.
        value: What it counts with: `measured`, and the gain that is to be expected of the epochs that it did not train.
        seconds: An epoch, measured; None where that is not known.
    """

    number: int
    params: Mapping[str, Value]
    epochs: int
    measured: float
    value: float
    seconds: float | None


@dataclass(frozen=True)
class Evidence:
    """What a run knows.

    Attributes:
        metric: What was optimized.
        direction: Of the metric.
        trials: Those that count, in order.
        left_out: How many do not: they failed, repeat another, or have not trained an epoch.
        epochs: The most that any trained; all are compared there.
        parameters: What was searched, by name.
        off_below: For each parameter that may be off, the value below which it is.
        stages: Number of stages of the backbone; None where that is not known, or backbones differ.
        seed_noise: How far two trainings are apart that differ in the seed alone: the standard deviation over the seeds of
            the confirmed trials, times the root of 2. None where none was confirmed.
    """

    metric: str
    direction: Direction
    trials: tuple[CountedTrial, ...]
    left_out: int
    epochs: int
    parameters: Mapping[str, BaseDistribution]
    off_below: Mapping[str, float]
    stages: int | None = None
    seed_noise: float | None = None

    @property
    def better(self) -> int:
        """1 where more of the metric is better, else -1."""
        return 1 if self.direction == "maximize" else -1

    def is_off(self, name: str, value: Value) -> bool:
        """Return whether a parameter's value turns it off."""
        return name in self.off_below and float(value) < self.off_below[name]


def read_run(run: Path) -> Evidence:
    """Read what a finished or interrupted run knows; nothing in its folder is changed.

    Raises:
        RunError: There is no run, it cannot be read, or no trial of it has trained an epoch.
    """
    evidence = read_evidence(run)
    if not evidence.trials:
        raise RunError(
            f"insight needs a trial that has trained an epoch, but of the {evidence.left_out} in {run} none has",
            f"`autoft search {run / 'study.yaml'} -o {run}` goes on with the search",
        )
    return evidence


def read_evidence(run: Path) -> Evidence:
    """Read what a run knows, which may be no trial at all; nothing in its folder is changed.

    Raises:
        RunError: There is no run, or it cannot be read.
    """
    trials, direction = read_study(run)
    check(trials, f"the database of {run}")
    result = read_result(run) or {}
    events = list(read_events(run))
    searches = [event for event in events if event["event"] == "search"]
    counts = {event["backbone"]: event["stages"] for event in events if event["event"] == "preflight" and "stages" in event}
    space = _stored_space(run / "study.yaml")
    return weigh(
        trials,
        direction,
        metric=result.get("metric") or next((event["metric"] for event in reversed(searches) if "metric" in event), "score"),
        off_below=off_thresholds(space),
        seed_noise=seed_noise(result.get("confirmed", {}).get("values", {}).values()),
        stages=next(iter(counts.values())) if len(counts) == 1 else None,
    )


def weigh(
    trials: Sequence[FrozenTrial],
    direction: Direction,
    *,
    metric: str,
    off_below: Mapping[str, float] | None = None,
    seed_noise: float | None = None,
    stages: int | None = None,
) -> Evidence:
    """Say what each trial counts with.

    Most trials rest or are stopped before their last epoch, each after another number of them, so what they reached cannot
    be compared. A trial counts with its best value so far and the gain that is to be expected of the epochs that it lacks:
    the median gain, from that epoch on, of the trials that went on to the end. Those that started their heads alike are
    asked first (`head_start`), since starting from a probe's head begins high and gains little. To leave stopped trials out
    would be worse: the bad ones are stopped first, and what is bad could not be told from what is good.

    Args:
        trials: Of an Optuna study, in whatever state.
        direction: Of the metric.
        metric: Its name.
        off_below: For each parameter that may be off, the value below which it is; others are ignored.
        seed_noise: As `Evidence` says.
        stages: Likewise.
    """
    curves = {trial.number: curve for trial in trials if _counts(trial) and (curve := _curve(trial, direction))}
    full = max(map(len, curves.values()), default=0)
    kept = [trial for trial in trials if trial.number in curves]
    whole = [(trial.params.get("head_start"), curves[trial.number]) for trial in kept if len(curves[trial.number]) == full]
    counted = []
    for trial in kept:
        curve = curves[trial.number]
        alike = [other for start, other in whole if start == trial.params.get("head_start")]
        gains = [other[-1] - other[len(curve) - 1] for other in alike or [other for _, other in whole]]
        # what a trial in flight has trained since it rested last is not in its seconds yet
        seconds, timed = trial.user_attrs.get("seconds"), trial.user_attrs.get("epochs", len(curve))
        counted.append(
            CountedTrial(
                number=trial.number,
                params=trial.params,
                epochs=len(curve),
                measured=curve[-1],
                value=curve[-1] + statistics.median(gains),
                seconds=seconds / timed if seconds and timed else None,
            )
        )
    parameters: dict[str, BaseDistribution] = {}
    for trial in kept:
        parameters |= {name: what for name, what in trial.distributions.items() if not what.single()}
    known = {name: low for name, low in (off_below or {}).items() if low > _lowest(parameters.get(name))}
    return Evidence(metric, direction, tuple(counted), len(trials) - len(kept), full, parameters, known, stages, seed_noise)


def off_thresholds(space: Mapping[str, Any]) -> dict[str, float]:
    """Return for each setting that a study may turn off the value below which it is, by a study's `space`.

    Of knobs of plugins, only those are known that the study names.
    """
    usual = {name: setting.search for name, setting in BY_NAME.items()}
    found = {name: what.low for name, what in usual.items() if isinstance(what, Range) and what.or_zero}
    for name, what in space.items():
        if what == AS_SEARCHED:
            continue
        found.pop(name, None)
        if isinstance(what, Mapping) and what.get("or_zero"):
            found[name] = float(what["low"])
    return found


def seed_noise(values: Iterable[Mapping[str, float]]) -> float | None:
    """Return how far two trainings are apart that differ in the seed alone; None where nothing tells it.

    Args:
        values: For each confirmed trial the metric of each seed.
    """
    groups = [list(seeds.values()) for seeds in values if len(seeds) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in groups)
    return math.sqrt(2 * squares / freedom) if squares > 0 else None


def _counts(trial: FrozenTrial) -> bool:
    return trial.state != TrialState.FAIL and "duplicate_of" not in trial.user_attrs


def _curve(trial: FrozenTrial, direction: Direction) -> list[float]:
    """Return a trial's best value up to each epoch; empty where it has no finite one."""
    best = max if direction == "maximize" else min
    curve: list[float] = []
    for _, value in sorted(trial.intermediate_values.items()):
        if not math.isfinite(value):
            break
        curve.append(best(curve[-1], value) if curve else value)
    return curve


def _lowest(what: BaseDistribution | None) -> float:
    return what.low if isinstance(what, FloatDistribution | IntDistribution) else math.inf


def _stored_space(study: Path) -> Mapping[str, Any]:
    if not study.exists():
        return {}
    content = yaml.safe_load(study.read_text(encoding="utf-8"))
    space = content.get("space") if isinstance(content, dict) else None
    return space if isinstance(space, dict) else {}
