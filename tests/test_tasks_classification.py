"""Classification: labels, loss and metrics, compared with formulas written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from autoft.errors import DataError
from autoft.specs import Targets
from autoft.tasks import classification as task

HEAD = task.head("classification", None, "")
THREE = Targets(("a", "b", "c"), (6, 3, 1))
KNOBS = {"dropout": 0.0, "label_smoothing": 0.0, "imbalance": "none", "focal_gamma": 2.0}


def logits(count: int = 40, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs that are better than chance, and every class at least once."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.cat([torch.arange(classes), torch.randint(classes, (count - classes,), generator=generator)])
    outputs = torch.randn(count, classes, generator=generator) * 2
    outputs[torch.arange(count), truth] += 1
    return outputs, truth


# --- labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["10", "2", "1"], ("1", "2", "10")),
        (["img12", "img2", "dog"], ("dog", "img2", "img12")),
        (["b", "a", "10"], ("10", "a", "b")),
        (["5²", "m²", "²"], ("5²", "m²", "²")),
        (["1", "01", "001"], ("001", "01", "1")),
        (["٣", "2", "4"], ("2", "٣", "4")),
        (["", "a"], ("", "a")),
    ],
)
def test_labels_are_in_natural_order_whatever_the_samples_order(labels: list[str], order: tuple[str, ...]) -> None:
    assert task.describe(labels).labels == order
    assert task.describe(labels[::-1]).labels == order


@given(st.lists(st.text(max_size=5), min_size=2, max_size=20, unique=True))
def test_any_labels_can_be_ordered_and_are_encoded_back(labels: list[str]) -> None:
    targets = task.describe([*labels, *labels[:1]])
    assert sorted(targets.labels) == sorted(labels)
    assert [targets.labels[index] for index in task.encode(labels, targets)] == labels
    assert sum(targets.counts) == len(labels) + 1


def test_counts_follow_the_labels() -> None:
    targets = task.describe(["b", "a", "b", "b"])
    assert (targets.labels, targets.counts, targets.imbalance) == (("a", "b"), (1, 3), 3.0)


@pytest.mark.parametrize("labels", [[], ["only", "only"]])
def test_fewer_than_two_classes_are_refused(labels: list[str]) -> None:
    with pytest.raises(DataError, match=f"at least 2 classes, but the training data has {len(set(labels))}"):
        task.describe(labels)


def test_unknown_label_is_refused_with_the_nearest() -> None:
    targets = task.describe(["cat", "dog"])
    with pytest.raises(DataError, match=r"'cats' is not among the 2 classes.*\n.*did you mean 'cat'"):
        task.encode(["dog", "cats"], targets)
    with pytest.raises(DataError, match="the classes are cat, dog"):
        task.encode(["zebra"], targets)


@pytest.mark.parametrize("target", [("a", "b"), 3, (0.5,), None])
def test_targets_that_are_not_one_label_are_refused(target: object) -> None:
    with pytest.raises(DataError, match=r"one label a sample, but got .*\n.*choose another `task`"):
        task.describe(["a", target, "b"])  # type: ignore[list-item]
    with pytest.raises(DataError, match="one label a sample"):
        task.encode([target], THREE)  # type: ignore[list-item]


def test_resampling_draws_every_class_equally_often() -> None:
    encoded = torch.tensor([0] * 6 + [1] * 3 + [2])
    weights = task.draw_weights(encoded, THREE, {"imbalance": "resample"})
    assert weights is not None
    assert [weights[encoded.numpy() == label].sum() for label in range(3)] == pytest.approx([10 / 3] * 3)
    for other in ("none", "weights", "focal"):
        assert task.draw_weights(encoded, THREE, {"imbalance": other}) is None


def test_encoded_labels_are_class_indices() -> None:
    encoded = task.encode(["c", "a"], THREE)
    assert encoded.dtype == torch.int64
    assert encoded.tolist() == [2, 0]


# --- module and loss --------------------------------------------------------------------------------


def test_head_maps_features_to_one_output_a_class() -> None:
    module = task.build(7, THREE, {**KNOBS, "dropout": 0.3})
    assert module(torch.randn(5, 7)).shape == (5, 3)
    assert module[0].p == 0.3  # type: ignore[index, union-attr]
    assert not module[1].bias.any()  # type: ignore[index, union-attr]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("weights", ["none", "resample", "weights"])
def test_loss_is_the_smoothed_and_weighted_cross_entropy(smoothing: float, weights: str) -> None:
    outputs, truth = logits()
    found = task.loss(outputs, truth, THREE, {"label_smoothing": smoothing, "imbalance": weights})
    # N / (K * count), as scikit-learn's class_weight="balanced"
    weight = [10 / (3 * count) for count in THREE.counts] if weights == "weights" else [1.0, 1.0, 1.0]
    above = below = 0.0
    for row, wanted in zip(outputs.double().numpy(), truth.tolist(), strict=True):
        logs = row - math.log(np.exp(row).sum())
        above -= weight[wanted] * (1 - smoothing) * logs[wanted]
        above -= smoothing / 3 * sum(w * value for w, value in zip(weight, logs, strict=True))
        below += weight[wanted]
    assert float(found) == pytest.approx(above / below, rel=1e-6)


def test_balanced_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    truth = np.repeat([0, 1, 2], THREE.counts)
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=truth)
    for index, weight in enumerate(wanted):
        # two samples, the second with a loss of zero: the weighted mean shows the weight
        outputs = torch.tensor([[0.0, 0.0, 0.0], [90.0, 0.0, 0.0]])
        found = task.loss(outputs, torch.tensor([index, 0]), THREE, {"label_smoothing": 0.0, "imbalance": "weights"})
        assert float(found) == pytest.approx(math.log(3) * weight / (weight + wanted[0]), rel=1e-6)


def test_loss_is_computed_in_float32_from_half_precision() -> None:
    outputs, truth = logits()
    assert task.loss(outputs.bfloat16(), truth, THREE, KNOBS).dtype == torch.float32


def test_activation_gives_probabilities() -> None:
    outputs, _ = logits()
    assert torch.allclose(task.activation(outputs).sum(dim=1), torch.ones(len(outputs)))


# --- metrics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_metrics_agree_with_their_definitions(classes: int) -> None:
    outputs, truth = logits(60, classes)
    targets = Targets(tuple(map(str, range(classes))), (1,) * classes)
    found = task.metrics(outputs, truth, targets)
    probabilities = torch.softmax(outputs.double(), dim=1).numpy()
    guess, wanted = probabilities.argmax(axis=1), truth.numpy()
    scores, areas = [], []
    for index in range(classes):
        hits = int(((guess == index) & (wanted == index)).sum())
        scores.append(2 * hits / ((guess == index).sum() + (wanted == index).sum()))
        positive, negative = probabilities[wanted == index, index], probabilities[wanted != index, index]
        areas.append((positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean())
    assert set(found) == {"accuracy", "balanced_accuracy", "f1_macro", "log_loss", "auroc"} == set(HEAD.directions)
    assert found["accuracy"] == pytest.approx((guess == wanted).mean())
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(wanted, guess))
    assert found["f1_macro"] == pytest.approx(np.mean(scores))
    assert found["log_loss"] == pytest.approx(-np.log(probabilities[np.arange(len(wanted)), wanted]).mean())
    assert found["auroc"] == pytest.approx(np.mean(areas))
    assert 0 < found["accuracy"] < 1
    if classes == 2:
        assert found["auroc"] == pytest.approx(roc_auc_score(wanted, probabilities[:, 1]))


@given(
    seed=st.integers(0, 2**31),
    classes=st.integers(2, 12),
    samples=st.integers(2, 60),
    scale=st.sampled_from([0.01, 1.0, 40.0, 900.0]),
    whole=st.booleans(),
)
def test_metrics_are_those_of_scikit_learn(seed: int, classes: int, samples: int, scale: float, whole: bool) -> None:
    """With ties, probabilities of 0 and 1, classes that the split lacks, and classes that are never answered."""
    draws = np.random.default_rng(seed)
    outputs = torch.from_numpy(draws.normal(size=(samples, classes)) * scale)
    outputs = outputs.round() if whole else outputs
    truth = torch.from_numpy(draws.integers(0, classes, samples))
    found = task.metrics(outputs, truth, Targets(tuple(map(str, range(classes))), (1,) * classes))
    probabilities, wanted = outputs.softmax(dim=1).numpy(), truth.numpy()
    guess, names = probabilities.argmax(axis=1), np.arange(classes)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(wanted, guess))
    recall = reference.recall_score(wanted, guess, labels=np.unique(wanted), average="macro")
    assert found["balanced_accuracy"] == pytest.approx(recall)
    f1 = reference.f1_score(wanted, guess, labels=names, average="macro", zero_division=0.0)
    assert found["f1_macro"] == pytest.approx(f1)
    assert found["log_loss"] == pytest.approx(reference.log_loss(wanted, probabilities, labels=names), rel=1e-9)
    assert ("auroc" in found) == (len(np.unique(wanted)) == classes)
    if "auroc" in found:
        scores = probabilities[:, 1] if classes == 2 else probabilities
        area = reference.roc_auc_score(wanted, scores, multi_class="ovr", average="macro", labels=names)
        assert found["auroc"] == pytest.approx(area)


def test_auroc_is_left_out_where_a_class_is_missing() -> None:
    outputs, truth = logits()
    keep = truth != 2
    found = task.metrics(outputs[keep], truth[keep], THREE)
    assert set(found) == {"accuracy", "balanced_accuracy", "f1_macro", "log_loss"}


def test_balanced_accuracy_is_of_the_classes_that_the_split_has() -> None:
    outputs = torch.eye(3)[[0, 0, 2, 1]] * 9
    assert task.metrics(outputs, torch.tensor([0, 0, 0, 1]), THREE)["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite_are_refused(value: float) -> None:
    outputs, truth = logits()
    outputs[3, 1] = value
    for score in (task.metrics, task.report):
        with pytest.raises(ValueError, match="outputs must be finite to be scored, but 1 of 120 are not"):
            score(outputs, truth, THREE)


def test_missing_class_counts_as_zero_in_macro_f1() -> None:
    outputs = torch.eye(3)[:2] * 9
    assert task.metrics(outputs, torch.tensor([0, 1]), THREE)["f1_macro"] == pytest.approx(2 / 3)


def test_metrics_do_not_depend_on_batches() -> None:
    outputs, truth = logits(50)
    halves = [task.metrics(outputs[rows], truth[rows], THREE)["f1_macro"] for rows in (slice(25), slice(25, None))]
    assert task.metrics(outputs, truth, THREE)["f1_macro"] != pytest.approx(np.mean(halves))


def test_confident_and_wrong_outputs_have_a_finite_log_loss() -> None:
    found = task.metrics(torch.tensor([[1000.0, 0.0, 0.0]] * 3), torch.tensor([0, 1, 2]), THREE)
    assert math.isfinite(found["log_loss"])


@pytest.mark.parametrize(("counts", "metric"), [((10, 10), "accuracy"), ((15, 10), "accuracy"), ((16, 10), "f1_macro")])
def test_default_metric_is_macro_f1_only_when_imbalanced(counts: tuple[int, ...], metric: str) -> None:
    assert task.default_metric(Targets(("a", "b"), counts)) == metric


def test_report_has_an_entry_for_each_class() -> None:
    outputs, truth = logits(30)
    report = task.report(outputs, truth, THREE)
    assert [entry["label"] for entry in report["classes"]] == ["a", "b", "c"]
    assert sum(entry["support"] for entry in report["classes"]) == 30
    confusion = np.array(report["confusion"])
    assert confusion.sum(axis=1).tolist() == [entry["support"] for entry in report["classes"]]
    assert report["classes"][1]["recall"] == pytest.approx(confusion[1, 1] / confusion[1].sum())
    assert report["classes"][1]["precision"] == pytest.approx(confusion[1, 1] / confusion[:, 1].sum())
    assert np.mean([entry["f1"] for entry in report["classes"]]) == pytest.approx(
        task.metrics(outputs, truth, THREE)["f1_macro"]
    )


def test_knobs_defaults_are_allowed_and_inside_what_is_searched() -> None:
    assert [knob.name for knob in HEAD.knobs] == ["dropout", "label_smoothing", "imbalance", "focal_gamma"]
    for knob in HEAD.knobs:
        if hasattr(knob.allowed, "values"):
            assert knob.default in knob.allowed.values
            continue
        if knob.search is None:
            assert knob.allowed.low <= knob.default <= knob.allowed.high
            continue
        assert knob.search.low <= knob.default <= knob.search.high  # type: ignore[union-attr, operator]
        assert knob.allowed.low <= knob.search.low <= knob.search.high <= knob.allowed.high  # type: ignore[union-attr]
