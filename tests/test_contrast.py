"""Scores differ by more than chance where samples, or else seeds, say so; scores of other things are not compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

from autoft.answered import Answered, keep, outputs_of
from autoft.catalog import Catalog
from autoft.contrast import Scored, contrast
from autoft.discovery import discover
from autoft.specs import Direction, Targets

SAMPLES, TASK = 400, "image-classification"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return discover(enabled=False)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes errors less exact, and tests quick."""
    monkeypatch.setattr("autoft.contrast.RESAMPLES", 40)


def answers(right: np.ndarray, *, labels: tuple[str, ...] = ("a", "b", "c"), sure: float = 0.8) -> Answered:
    """Answers with one label, of which those of some samples are right."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, len(labels), len(right))
    given = np.where(right, truth, (truth + 1) % len(labels))
    scores = np.full((len(right), len(labels)), (1 - sure) / (len(labels) - 1))
    scores[np.arange(len(right)), given] = sure
    return made("label", scores, truth, labels)


def made(answer: Any, scores: np.ndarray, truth: np.ndarray, labels: tuple[str, ...], **values: Any) -> Answered:
    names = tuple(f"test/{number}.png" for number in range(len(truth)))
    return Answered(
        answer=answer,
        labels=labels,
        values=values,
        of=len(truth),
        scores=torch.tensor(scores, dtype=torch.float32),
        targets=torch.tensor(truth),
        ids=names,
        files=(None,) * len(truth),
        texts=(None,) * len(truth),
    )


def scored(
    run: Path,
    kept: Answered | None = None,
    *,
    metric: str = "accuracy",
    direction: Direction = "maximize",
    task: str = TASK,
    seeds: tuple[float, ...] = (),
) -> Scored:
    """A run with answers, whose score is that of them."""
    run.mkdir(exist_ok=True)
    test: Mapping[str, float] = {}
    if kept is not None:
        keep(run, {"test": kept})
        head = discover(enabled=False).head(task)
        test = head.metrics(outputs_of(kept), kept.targets, Targets(kept.labels, values=kept.values))
    by_seed = {str(number): value for number, value in enumerate(seeds)}
    return Scored(run, task, metric, direction, "1234", {}, test, by_seed)


def draws(share: float, seed: int, count: int = SAMPLES) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < share


def test_difference_over_the_same_samples_has_the_error_of_the_paired_differences(tmp_path: Path, catalog: Catalog) -> None:
    one, other = draws(0.9, 1), draws(0.7, 2)
    found = contrast(scored(tmp_path / "one", answers(one)), scored(tmp_path / "other", answers(other)), catalog)
    paired = one.astype(float) - other
    assert found.basis == "samples"
    assert found.counted == "the same 400 test samples"
    assert found.difference == pytest.approx(paired.mean())
    assert found.error == pytest.approx(paired.std() / math.sqrt(SAMPLES), rel=0.25)
    assert (found.verdict, found.why) == ("better", ())
    assert found.p is not None
    assert found.p < 1e-3
    back = contrast(scored(tmp_path / "other", answers(other)), scored(tmp_path / "one", answers(one)), catalog)
    assert (back.verdict, back.difference) == ("worse", pytest.approx(-paired.mean()))


def test_pairing_sees_what_separate_samples_would_not(tmp_path: Path, catalog: Catalog) -> None:
    """Eight of 400 more are right, and none wrong instead: less than two standard errors of each score apart."""
    one = draws(0.8, 1)
    other = one.copy()
    other[np.flatnonzero(one)[:8]] = False
    found = contrast(scored(tmp_path / "one", answers(one)), scored(tmp_path / "other", answers(other)), catalog)
    assert found.difference == pytest.approx(0.02)
    assert 2 * math.sqrt(one.mean() * (1 - one.mean()) / SAMPLES) > 0.02
    assert found.verdict == "better"


def test_chance_shows_no_difference(tmp_path: Path, catalog: Catalog) -> None:
    found = contrast(
        scored(tmp_path / "one", answers(draws(0.8, 1))), scored(tmp_path / "other", answers(draws(0.8, 2))), catalog
    )
    assert found.verdict == "no difference shown"
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0 < found.high
    same = contrast(
        scored(tmp_path / "one", answers(draws(0.8, 1))), scored(tmp_path / "again", answers(draws(0.8, 1))), catalog
    )
    assert (same.verdict, same.error, same.p) == ("no difference shown", 0.0, 1.0)
    assert "all answered alike" in same.counted


def test_lower_is_better_where_the_metric_says_so(tmp_path: Path, catalog: Catalog) -> None:
    right = draws(0.95, 1)
    sure, unsure = (answers(right, sure=share) for share in (0.9, 0.4))
    found = contrast(
        scored(tmp_path / "one", sure, metric="log_loss", direction="minimize"),
        scored(tmp_path / "other", unsure, metric="log_loss", direction="minimize"),
        catalog,
    )
    assert found.difference is not None
    assert found.difference < 0
    assert found.verdict == "better"


def test_samples_are_matched_by_name(tmp_path: Path, catalog: Catalog) -> None:
    one, other = answers(draws(0.9, 1)), answers(draws(0.7, 2))
    order = np.random.default_rng(3).permutation(SAMPLES)
    mixed = replace(
        other, ids=tuple(other.ids[row] for row in order), scores=other.scores[order], targets=other.targets[order]
    )
    first = scored(tmp_path / "one", one)
    straight = contrast(first, scored(tmp_path / "straight", other), catalog)
    shuffled = contrast(first, scored(tmp_path / "shuffled", mixed), catalog)
    assert (straight.difference, straight.error) == (shuffled.difference, shuffled.error)


def test_several_comparisons_widen_the_intervals(tmp_path: Path, catalog: Catalog) -> None:
    pair = scored(tmp_path / "one", answers(draws(0.9, 1))), scored(tmp_path / "other", answers(draws(0.7, 2)))
    alone, among = (contrast(*pair, catalog, comparisons=count) for count in (1, 4))
    widths = [each.high - each.low for each in (alone, among) if each.high is not None and each.low is not None]
    quantile = NormalDist().inv_cdf
    assert widths[1] / widths[0] == pytest.approx(quantile(1 - 0.05 / 8) / quantile(1 - 0.05 / 2))


def test_thresholds_are_each_runs_own(tmp_path: Path, catalog: Catalog) -> None:
    """The same probabilities, answered by other thresholds, are other answers."""
    rng = np.random.default_rng(0)
    truth = (rng.random((SAMPLES, 2)) < 0.4).astype(np.float32)
    scores = np.clip(0.3 * truth + 0.6 * rng.random((SAMPLES, 2)), 0.01, 0.99)
    runs = [
        scored(
            tmp_path / name,
            made("labels", scores, truth, ("a", "b"), thresholds=(threshold,) * 2),
            metric="f1_micro",
            task="multi-label",
        )
        for name, threshold in (("one", 0.4), ("other", 0.85))
    ]
    found = contrast(runs[0], runs[1], catalog)
    assert (found.basis, found.verdict) == ("samples", "better")
    assert found.difference == pytest.approx(runs[0].test["f1_micro"] - runs[1].test["f1_micro"])


def test_numbers_are_compared_too(tmp_path: Path, catalog: Catalog) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(SAMPLES, 1)).astype(np.float32)
    runs = [
        scored(
            tmp_path / name,
            made("values", truth + rng.normal(0, noise, truth.shape), truth, ("price",)),
            metric="r2",
            task="regression",
        )
        for name, noise in (("one", 0.5), ("other", 1.0))
    ]
    assert contrast(runs[0], runs[1], catalog).verdict == "better"


def test_without_answers_seeds_decide(tmp_path: Path, catalog: Catalog) -> None:
    """Welch's example by hand: means 2 and 4, errors 1/3 and 4/3, 2.94 degrees of freedom."""
    one, other = scored(tmp_path / "one", seeds=(1, 2, 3)), scored(tmp_path / "other", seeds=(2, 4, 6))
    found = contrast(one, other, catalog)
    assert (found.basis, found.verdict) == ("seeds", "no difference shown")
    assert found.difference == pytest.approx(-2.0)
    assert found.error == pytest.approx(math.sqrt(5 / 3))
    assert found.low == pytest.approx(-2 - 3.2175 * math.sqrt(5 / 3), rel=1e-3)
    assert found.counted == "validation over 3 seeds each"
    assert "has no test score yet" in found.why[0]
    far = contrast(replace(one, seeds={"0": 9.0, "1": 9.1, "2": 9.2, "3": 9.1}), other, catalog)
    assert (far.verdict, far.counted) == ("better", "validation over 4 and 3 seeds")


def test_seeds_find_no_difference_where_there_is_none(tmp_path: Path, catalog: Catalog) -> None:
    rng, wrong = np.random.default_rng(0), 0
    one, other = scored(tmp_path / "one"), scored(tmp_path / "other")
    for _ in range(400):
        pair = [replace(each, seeds=dict(zip("abcd", rng.normal(size=4), strict=True))) for each in (one, other)]
        wrong += contrast(pair[0], pair[1], catalog).verdict != "no difference shown"
    assert 0 < wrong < 400 * 0.08


def test_nothing_is_said_where_nothing_tells_chance(tmp_path: Path, catalog: Catalog) -> None:
    one, other = scored(tmp_path / "one", seeds=(0.9, 0.9)), scored(tmp_path / "other", seeds=(0.8, 0.8))
    found = contrast(one, other, catalog)
    assert (found.verdict, found.basis, found.difference) == ("unknown", None, None)
    assert "nothing tells the spread" in found.why[-1]
    found = contrast(one, scored(tmp_path / "third", seeds=(0.9,)), catalog)
    assert found.verdict == "unknown"
    assert any("third was not trained over seeds" in why for why in found.why)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"metric": "f1_macro"}, "the metric is f1_macro here and accuracy there"),
        ({"task": "text-classification"}, "the task is text-classification here"),
        ({"fingerprint": "5678"}, "the data differ"),
        ({"fingerprint": None}, "one has no fingerprint"),
        ({"division": {"split_seed": 1}}, "divided otherwise: data.split_seed"),
        ({"metric": ""}, "the metric of "),
    ],
)
def test_other_things_are_not_comparable(tmp_path: Path, catalog: Catalog, change: dict[str, Any], reason: str) -> None:
    kept = answers(draws(0.9, 1)), answers(draws(0.7, 2))
    one, other = (scored(tmp_path / name, each, seeds=(1, 2, 3)) for name, each in zip(("one", "two"), kept, strict=True))
    found = contrast(replace(one, **change), other, catalog)
    assert (found.verdict, found.basis, found.difference, found.p) == ("not comparable", None, None, None)
    assert reason in "; ".join(found.why)


def test_answers_that_do_not_fit_are_not_used(tmp_path: Path, catalog: Catalog) -> None:
    one, other = answers(draws(0.9, 1)), answers(draws(0.7, 2))
    first = scored(tmp_path / "one", one, seeds=(0.9, 0.91, 0.92))
    seeds = (0.7, 0.71, 0.72)
    strangers = replace(other, ids=tuple(f"other/{name}" for name in other.ids))
    relabelled = replace(other, targets=1 - other.targets.clamp(max=1))
    stale = replace(scored(tmp_path / "stale", other, seeds=seeds), test={"accuracy": 0.5})
    unknown = replace(first, task="of-a-plugin")
    for pair, reason in (
        ((first, scored(tmp_path / "strangers", strangers, seeds=seeds)), "not of the same test samples"),
        ((first, scored(tmp_path / "relabelled", relabelled, seeds=seeds)), "not of the same test samples"),
        ((first, stale), "its result 0.5"),
        ((unknown, replace(scored(tmp_path / "x", other, seeds=seeds), task="of-a-plugin")), "metric cannot be computed"),
    ):
        found = contrast(*pair, catalog)
        assert (found.basis, found.verdict) == ("seeds", "better")
        assert reason in found.why[0]


def test_outputs_give_the_kept_scores_back(catalog: Catalog) -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros(SAMPLES, dtype=np.int64)
    shares = rng.dirichlet(np.full(3, 0.1), SAMPLES)
    shares[0] = (1, 0, 0)
    of_one = made("label", shares, truth, ("a", "b", "c"))
    of_several = made("labels", np.vstack([rng.random((SAMPLES - 1, 3)), [[0, 1, 0.5]]]), truth, ("a", "b", "c"))
    for kept, task in ((of_one, TASK), (of_several, "multi-label")):
        outputs = outputs_of(kept)
        assert bool(outputs.isfinite().all())
        torch.testing.assert_close(catalog.head(task).activation(outputs).float(), kept.scores, rtol=1e-5, atol=1e-7)
