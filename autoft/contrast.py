"""Whether the scores of two runs differ by more than chance: by the answers to the same test samples, else over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from scipy import stats

from autoft.answered import Answered, outputs_of, read_answers
from autoft.catalog import Catalog
from autoft.errors import PluginError
from autoft.resampling import paired_error
from autoft.specs import Direction, Targets
from autoft.train import Objective

SURE = 0.95  # that all intervals of one comparison hold together
RESAMPLES = 100  # a standard error is right to 7 % then; a resample takes some 0.07 s where ten classes have an AUROC
CLOSE = 1e-3  # by which a metric of the kept answers may differ from the stored one: they are float32
FEWEST_SEEDS = 2

Verdict = Literal["better", "worse", "no difference shown", "unknown", "not comparable"]
Basis = Literal["samples", "seeds"]


@dataclass(frozen=True)
class Scored:
    """What is needed of a run to compare its score.

    Attributes:
        run: Its folder.
        task: Its task; empty where that is not known.
        metric: What was optimized; empty where that is not known.
        direction: Of the metric.
        fingerprint: Of the data, or None where none was recorded.
        division: The settings by which autoft made splits of the data; empty where the data declares them all.
        test: Metrics on the test split; empty before the export.
        seeds: The winner's validation metric by seed; empty where it was not trained over seeds.
    """

    run: Path
    task: str
    metric: str
    direction: Direction
    fingerprint: str | None
    division: Mapping[str, object]
    test: Mapping[str, float]
    seeds: Mapping[str, float]


@dataclass(frozen=True)
class Contrast:
    """How a run's score differs from that of another run.

    Attributes:
        run: The run.
        other: The run that it is compared with.
        verdict: `better` or `worse` where the interval leaves out 0, `no difference shown` where it does not; `unknown`
            where nothing tells chance; `not comparable` where the scores are not of the same thing.
        basis: `samples`: both answered the same test samples, and other samples would move the difference so far; `seeds`:
            both were trained over seeds, and others would; None where there is no verdict.
        difference: The run's score minus the other's, as the metric counts; None without a basis.
        error: Standard error of the difference.
        low: Lower end of the interval.
        high: Upper end of the interval.
        p: How often chance alone would give such a difference or a larger one, in this comparison alone.
        counted: What it rests on, such as `the same 1247 test samples`.
        why: Why there is no verdict, or why it does not rest on the samples; empty where nothing is to be said.
    """

    run: Path
    other: Path
    verdict: Verdict
    basis: Basis | None = None
    difference: float | None = None
    error: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    counted: str = ""
    why: tuple[str, ...] = ()


def contrast(one: Scored, other: Scored, catalog: Catalog, *, comparisons: int = 1) -> Contrast:
    """Compare two runs by the strongest evidence that both have.

    Where both kept what their exported models answered to the same test samples, the difference of the test scores has the
    standard error of a paired bootstrap over the samples, and a normal interval. Else the winners' validation scores over
    seeds are compared by Welch's t-test. The two answer different questions, so the basis is to be said with the verdict.

    Args:
        one: The run.
        other: The run that it is compared with.
        catalog: Provides the task, whose metric is computed over resamples.
        comparisons: How many are made at once: each interval is widened so that all hold together (Bonferroni).

    Raises:
        RunError: Kept answers are damaged.
    """
    why = reasons_against(one, other)
    if why:
        return Contrast(one.run, other.run, "not comparable", why=why)
    level = 1 - (1 - SURE) / comparisons
    found = _over_samples(one, other, catalog, level)
    if isinstance(found, Contrast):
        return found
    over_seeds = _over_seeds(one, other, level)
    if isinstance(over_seeds, Contrast):
        return over_seeds if not found else Contrast(**{**vars(over_seeds), "why": found})
    return Contrast(one.run, other.run, "unknown", why=(*found, *over_seeds))


def reasons_against(one: Scored, other: Scored) -> tuple[str, ...]:
    """Return why the scores of two runs are not of the same thing; nothing where they are."""
    reasons = []
    for what, mine, theirs in (("task", one.task, other.task), ("metric", one.metric, other.metric)):
        if mine and theirs and mine != theirs:
            reasons.append(f"the {what} is {mine} here and {theirs} there")
        elif not (mine and theirs):
            reasons.append(f"the {what} of {one.run if not mine else other.run} is not known yet")
    if one.fingerprint is None or other.fingerprint is None:
        reasons.append(f"{(one if one.fingerprint is None else other).run} has no fingerprint of its data")
    elif one.fingerprint != other.fingerprint:
        reasons.append("the data differ: their fingerprints are not the same")
    elif one.division != other.division:
        names = [name for name in {**one.division, **other.division} if one.division.get(name) != other.division.get(name)]
        reasons.append(f"the data were divided otherwise: {', '.join(f'data.{name}' for name in names)}")
    return tuple(reasons)


def _over_samples(one: Scored, other: Scored, catalog: Catalog, level: float) -> Contrast | tuple[str, ...]:
    """Return the contrast over test samples, or why there is none."""
    missing = tuple(f"{each.run} has no test score yet" for each in (one, other) if one.metric not in each.test)
    if missing:
        return missing
    mine, theirs = read_answers(one.run), read_answers(other.run)
    if mine is None or theirs is None:
        return (f"{(one if mine is None else other).run} kept no answers",)
    theirs = _in_order(theirs, mine)
    if theirs is None:
        return ("the kept answers are not of the same test samples",)
    try:
        head = catalog.head(one.task)
    except PluginError as missing_head:
        return (f"the metric cannot be computed: {missing_head.message}",)
    targets = [Targets(each.labels, values=each.values) for each in (mine, theirs)]
    outputs = [outputs_of(each) for each in (mine, theirs)]
    if len(mine.ids) == mine.of:  # else the kept part has another score than the whole
        for each, rows, known in zip((one, other), outputs, targets, strict=True):
            again = head.metrics(rows, mine.targets, known).get(one.metric, math.nan)
            if not abs(again - each.test[one.metric]) <= CLOSE * max(1.0, abs(again)):
                return (f"the kept answers of {each.run} give {again:.6g}, its result {each.test[one.metric]:.6g}",)
    difference = one.test[one.metric] - other.test[one.metric]
    of = f"the same {mine.of} test samples" + (f", {len(mine.ids)} of them kept" if len(mine.ids) != mine.of else "")
    if torch.equal(mine.scores, theirs.scores) and mine.values == theirs.values:
        of += ", all answered alike"
        return Contrast(one.run, other.run, "no difference shown", "samples", difference, 0.0, 0.0, 0.0, 1.0, of)
    objective = Objective(head, targets[0], one.metric)
    error = paired_error(outputs[0], outputs[1], objective, mine.targets, resamples=RESAMPLES, others=targets[1])
    error *= math.sqrt(len(mine.ids) / mine.of)  # the scores are of all samples
    if not 0.0 < error < math.inf:
        return (f"resamples of the test split do not tell how far chance moves {one.metric}",)
    normal = statistics.NormalDist()
    reach = normal.inv_cdf(0.5 + level / 2) * error
    return _judged(
        one, other, "samples", difference, error, difference - reach, difference + reach,
        2 * normal.cdf(-abs(difference) / error), of,
    )  # fmt: skip


def _in_order(theirs: Answered, mine: Answered) -> Answered | None:
    """Return answers in the order of others to the same samples; None where the samples, labels or truth differ."""
    if theirs.labels != mine.labels or sorted(theirs.ids) != sorted(mine.ids) or len(set(mine.ids)) != len(mine.ids):
        return None
    place = {name: row for row, name in enumerate(theirs.ids)}
    rows = [place[name] for name in mine.ids]
    targets = theirs.targets[rows]
    if targets.shape != mine.targets.shape or not bool((targets == mine.targets).all()):
        return None
    return Answered(**{**vars(theirs), "ids": mine.ids, "scores": theirs.scores[rows], "targets": targets})


def _over_seeds(one: Scored, other: Scored, level: float) -> Contrast | tuple[str, ...]:
    """Return the contrast over seeds, or why there is none."""
    few = tuple(f"{each.run} was not trained over seeds" for each in (one, other) if len(each.seeds) < FEWEST_SEEDS)
    if few:
        return few
    mine, theirs = list(one.seeds.values()), list(other.seeds.values())
    error = math.sqrt(sum(statistics.variance(each) / len(each) for each in (mine, theirs)))
    if error == 0.0:
        return ("every seed gave the same score, so nothing tells the spread over seeds",)
    found = stats.ttest_ind(mine, theirs, equal_var=False)
    interval = found.confidence_interval(level)
    return _judged(
        one, other, "seeds", statistics.fmean(mine) - statistics.fmean(theirs), error,
        float(interval.low), float(interval.high), float(found.pvalue),
        f"validation over {_seeds(mine, theirs)}",
    )  # fmt: skip


def _seeds(mine: Sequence[float], theirs: Sequence[float]) -> str:
    return f"{len(mine)} seeds each" if len(mine) == len(theirs) else f"{len(mine)} and {len(theirs)} seeds"


def _judged(
    one: Scored,
    other: Scored,
    basis: Basis,
    difference: float,
    error: float,
    low: float,
    high: float,
    p: float,
    counted: str,
) -> Contrast:
    sign = 1.0 if one.direction == "maximize" else -1.0
    verdict: Verdict = "no difference shown"
    if low > 0 or high < 0:
        verdict = "better" if sign * difference > 0 else "worse"
    return Contrast(one.run, other.run, verdict, basis, difference, error, low, high, p, counted)
