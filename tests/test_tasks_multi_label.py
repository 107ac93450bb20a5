"""Several labels a sample: metrics compared with scikit-learn's, and how thresholds are set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from autoft.errors import DataError
from autoft.specs import Targets
from autoft.tasks import multi_label as task
from autoft.tasks.multi_label import best_threshold

HEAD = task.head("multi-label", None, "")
KNOBS = {"dropout": 0.0, "imbalance": "none", "focal_gamma": 2.0}
THREE = task.describe([("a", "b"), ("a",), (), ("c", "a")])


def outputs(count: int = 60, labels: int = 3, seed: int = 0, grid: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are better than chance; on a grid, so that many are equal, where asked."""
    generator = torch.Generator().manual_seed(seed)
    truth = (torch.rand(count, labels, generator=generator) < torch.tensor([0.5, 0.3, 0.1, 0.02])[:labels]).float()
    logits = torch.randn(count, labels, generator=generator) + truth * 1.5 - 0.8
    return (logits * 2).round() / 2 if grid else logits, truth


# --- targets ----------------------------------------------------------------------------------------


def test_labels_are_in_natural_order_with_counts_and_shares() -> None:
    found = task.describe([("l10", "l2"), (), ("l2", "l2")])
    assert (found.labels, found.counts) == (("l2", "l10"), (2, 1))
    assert found.values == {"shares": (2 / 3, 1 / 3)}


def test_encoded_targets_are_ones_and_zeros() -> None:
    encoded = task.encode([("c", "a"), (), ("b", "b")], THREE)
    assert encoded.dtype == torch.float32
    assert encoded.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert task.encode([()], THREE).tolist() == [[0, 0, 0]]


def test_data_without_labels_or_with_other_targets_is_refused() -> None:
    with pytest.raises(DataError, match="at least 1 label, but none of the 2 training samples has one"):
        task.describe([(), ()])
    for target in ("cat", (1.0,), None):
        with pytest.raises(DataError, match=r"a list of labels for each sample, but got .*\n.*data\.delimiter"):
            task.describe([("a",), target])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"'catz' is not among the 2 labels.*\n.*did you mean 'cats'"):
        task.encode([("catz",)], task.describe([("cats", "dogs")]))


def test_samples_are_divided_by_their_rarest_label() -> None:
    assert task.stratify([("a", "b"), ("a",), ()]) == ["b", "a", "none"]


def test_resampling_draws_by_the_rarest_label() -> None:
    encoded = task.encode([("a", "b"), ("a",), (), ("c", "a")], THREE)
    weights = task.draw_weights(encoded, THREE, {"imbalance": "resample"})
    assert weights == pytest.approx(np.array([1, 1 / 3, 1 / 3, 1]))
    assert task.draw_weights(encoded, THREE, KNOBS) is None


# --- module -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("imbalance", ["none", "weights", "focal", "resample"])
def test_head_starts_at_the_best_constant_answer(imbalance: str) -> None:
    """Where the loss of constant outputs has no slope; the focal loss starts at the same place, by its paper's advice."""
    encoded = torch.zeros(40, 3)
    encoded[:30, 0], encoded[:12, 1], encoded[:4, 2] = 1, 1, 1
    targets = Targets(("a", "b", "c"), (30, 12, 4), {"shares": (0.75, 0.3, 0.1)})
    bias = task.build(5, targets, {**KNOBS, "imbalance": imbalance})[1].bias  # type: ignore[index]
    found = bias.detach().clone().requires_grad_()
    asked = imbalance if imbalance == "weights" else "none"
    task.loss(found.expand(40, 3), encoded, targets, {**KNOBS, "imbalance": asked}).backward()
    assert found.grad == pytest.approx(torch.zeros(3), abs=1e-6)


# --- metrics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("thresholds", [None, (0.3, 0.6, 0.2)])
def test_metrics_are_scikit_learns(grid: bool, thresholds: tuple[float, ...] | None) -> None:
    logits, truth = outputs(grid=grid)
    values = {"shares": (0.5, 0.3, 0.1)} | ({"thresholds": thresholds} if thresholds else {})
    found = task.metrics(logits, truth, Targets(("a", "b", "c"), (5, 3, 1), values))
    scores, wanted = logits.double().sigmoid().numpy(), truth.numpy()
    given = (scores >= np.array(thresholds or (0.5, 0.5, 0.5))).astype(int)
    assert found == pytest.approx(
        {
            "average_precision": reference.average_precision_score(wanted, scores, average="macro"),
            "f1_micro": reference.f1_score(wanted, given, average="micro"),
            "f1_macro": reference.f1_score(wanted, given, average="macro"),
            "subset_accuracy": reference.accuracy_score(wanted, given),
            "hamming_loss": reference.hamming_loss(wanted, given),
            "auroc": reference.roc_auc_score(wanted, scores, average="macro"),
        }
    )
    assert set(found) == set(HEAD.directions)


def test_labels_that_the_split_lacks_do_not_count_where_they_are_not_defined() -> None:
    logits, truth = outputs()
    truth[:, 2] = 0
    found = task.metrics(logits, truth, THREE)
    two = task.metrics(logits[:, :2], truth[:, :2], Targets(("a", "b"), (1, 1), {"shares": (0.5, 0.5)}))
    assert found["average_precision"] == pytest.approx(two["average_precision"])
    assert found["auroc"] == pytest.approx(two["auroc"])
    assert found["f1_macro"] == pytest.approx(two["f1_macro"] * 2 / 3)
    assert {"average_precision", "auroc"} & set(task.metrics(logits, truth * 0, THREE)) == set()


def test_report_has_every_label_with_its_threshold() -> None:
    logits, truth = outputs()
    truth[:, 1] = 0
    targets = Targets(THREE.labels, THREE.counts, {**THREE.values, "thresholds": (0.3, 0.5, 0.2)})
    entries = task.report(logits, truth, targets)["classes"]
    given = logits.double().sigmoid().numpy() >= np.array([0.3, 0.5, 0.2])
    columns = reference.precision_recall_fscore_support(truth.numpy(), given, zero_division=0.0)
    for index, entry in enumerate(entries):
        found = [entry[name] for name in ("precision", "recall", "f1", "support")]
        assert found == pytest.approx([column[index] for column in columns])
    assert [entry["threshold"] for entry in entries] == [0.3, 0.5, 0.2]
    assert entries[1]["average_precision"] is None
    wanted = reference.average_precision_score(truth[:, 0].numpy(), logits[:, 0].sigmoid().numpy())
    assert entries[0]["average_precision"] == pytest.approx(wanted)


# --- thresholds -------------------------------------------------------------------------------------

scored = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]) | st.floats(0, 1), st.booleans()), min_size=1
)


@settings(deadline=None)  # scikit-learn is slow on a busy machine
@given(scored.filter(lambda pairs: any(wanted for _, wanted in pairs)))
def test_best_threshold_is_not_beaten_by_any_other(pairs: list[tuple[float, bool]]) -> None:
    scores, truth = np.array([score for score, _ in pairs]), np.array([wanted for _, wanted in pairs])

    def f1(threshold: float) -> float:
        return float(reference.f1_score(truth, scores >= threshold, zero_division=0.0))

    found = best_threshold(scores, truth)
    assert f1(found) == pytest.approx(max(f1(threshold) for threshold in (0.0, 0.5, *scores)))
    if f1(0.5) == f1(found):
        assert found == 0.5


def test_threshold_lies_in_the_middle_of_two_scores() -> None:
    assert best_threshold(np.array([0.1, 0.2, 0.4]), np.array([False, False, True])) == pytest.approx(0.3)
    neighbours = np.array([0.2, np.nextafter(0.2, 1)])
    assert best_threshold(neighbours, np.array([False, True])) == neighbours[1]


def test_tuning_never_loses_f1_of_any_label_on_the_split_and_is_deterministic() -> None:
    changed = 0
    for seed in range(20):
        logits, truth = outputs(80, 4, seed)
        targets = Targets(("a", "b", "c", "d"), (1,) * 4, {"shares": (0.5, 0.3, 0.1, 0.02)})
        tuned = task.tune(logits, truth, targets)
        assert tuned == task.tune(logits, truth, targets)
        assert (tuned.labels, tuned.counts, tuned.values["shares"]) == (
            targets.labels,
            targets.counts,
            targets.values["shares"],
        )
        before, after = (task.report(logits, truth, described)["classes"] for described in (targets, tuned))
        for one, other in zip(before, after, strict=True):
            assert other["f1"] >= one["f1"]
            assert other["threshold"] == 0.5 or other["f1"] > one["f1"]
            changed += other["threshold"] != 0.5
            assert one["support"] or other["threshold"] == 0.5, "a label without positives keeps 0.5"
    assert changed > 20


def test_threshold_of_few_positives_stays_near_the_common_one() -> None:
    """A single lucky positive must not set its label's threshold; hundreds must."""
    rng = np.random.default_rng(0)
    scores = np.column_stack([rng.uniform(0.01, 0.3, 1000), rng.uniform(0.01, 0.3, 1000)])
    truth = np.zeros((1000, 2))
    truth[:, 0] = scores[:, 0] > 0.15
    truth[0, 1], scores[0, 1] = 1, 0.45
    logits = torch.from_numpy(np.log(scores / (1 - scores)))
    targets = Targets(("common", "rare"), (1, 1), {"shares": (0.5, 0.5)})
    common, rare = task.tune(logits, torch.from_numpy(truth), targets).values["thresholds"]
    assert common == pytest.approx(0.15, abs=0.01)
    assert rare < 0.3, "its own best is above all other scores, 0.37"


def test_nothing_to_tune_on_keeps_all_thresholds() -> None:
    logits, truth = outputs()
    assert task.tune(logits, truth * 0, THREE).values["thresholds"] == (0.5, 0.5, 0.5)
