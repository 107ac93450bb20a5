"""Regression and similarity: units, losses and metrics, compared with scikit-learn's and scipy's."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference
from torch.nn import functional as F

from autoft.errors import DataError
from autoft.tasks import regression as task

REGRESSION = task.head("regression", None, "")
SIMILARITY = task.head("similarity", "text", "", bounded=True)
KNOBS = {"dropout": 0.0, "regression_loss": "smooth_l1"}
PRICES = [(float(1000 + 100 * number), float(number % 3)) for number in range(30)]
TARGETS = task.describe(PRICES)


def guesses(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    truth = task.encode(PRICES, TARGETS)
    noise = torch.randn(30, 2, generator=torch.Generator().manual_seed(seed)) * torch.tensor([300.0, 0.5])
    return truth + noise, truth


# --- targets ----------------------------------------------------------------------------------------


def test_mean_spread_and_range_are_described_and_outputs_named() -> None:
    first, second = np.array(PRICES).T
    assert TARGETS.labels == ("value_1", "value_2")
    assert task.describe([(1.0,), (2.0,)]).labels == ("value",)
    assert TARGETS.counts == ()
    assert TARGETS.values["mean"] == pytest.approx((first.mean(), second.mean()))
    assert TARGETS.values["scale"] == pytest.approx((first.std(), second.std()))
    assert (TARGETS.values["low"], TARGETS.values["high"]) == ((1000.0, 0.0), (3900.0, 2.0))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "no training samples"),
        ([(1.0,), (math.nan,)], r"finite targets of at most 1e\+30, but sample 2 has \(nan,\)"),
        ([(math.inf,)], "finite targets"),
        ([(10**400,)], "finite targets"),
        ([(3.0,), (3.0,)], "numbers that differ, but all 2 training targets of 'value' are 3"),
        ([(1.0, 3.0), (2.0, 3.0)], "targets of 'value_2' are 3"),
        ([(1.0,), (1.0, 2.0)], "must have 1 numbers, but sample 2 has 2"),
        (["12"], "numbers as targets, but got '12'"),
        ([("12",)], "numbers as targets"),
        ([(True,)], "numbers as targets"),
        ([()], "numbers as targets"),
        ([(1e9,), (1e9 + 1,)], "at least 1e-05 of their largest value"),
        ([(1e-33,), (2e-33,)], "standard deviation 5e-34"),
    ],
)
def test_targets_that_cannot_be_learned_are_refused(targets: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        task.describe(targets)
    assert caught.value.hint or not targets


def test_encoding_keeps_the_unit_and_refuses_other_counts() -> None:
    encoded = task.encode([(1500.0, 2)], TARGETS)
    assert encoded.dtype == torch.float32
    assert encoded.tolist() == [[1500.0, 2.0]]
    with pytest.raises(DataError, match="must have 2 numbers, but sample 1 has 1"):
        task.encode([(1.0,)], TARGETS)
    with pytest.raises(DataError, match="finite"):
        task.encode([(1.0, math.nan)], TARGETS)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=300))
def test_bins_are_ordered_neither_small_nor_many_and_keep_equal_numbers_together(values: list[float]) -> None:
    bins = [int(name.removeprefix("bin ")) for name in task.stratify([(value,) for value in values])]
    sizes = Counter(bins)
    assert len(sizes) <= 10
    assert min(sizes.values()) >= min(task.SMALLEST_BIN, len(values))
    ordered = [number for _, number in sorted(zip(values, bins, strict=True))]
    assert ordered == sorted(ordered)
    assert len({(value, number) for value, number in zip(values, bins, strict=True)}) == len(set(values))


def test_bins_of_different_numbers_are_of_equal_size() -> None:
    assert set(Counter(task.stratify([(float(n),) for n in range(200)])).values()) == {20}
    assert len(Counter(task.stratify([(float(n % 2),) for n in range(200)]))) == 2


# --- module and loss --------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [REGRESSION, SIMILARITY], ids=["regression", "similarity"])
def test_head_predicts_the_training_mean_where_its_weights_are_zero(head: Any) -> None:
    module = head.build(5, TARGETS, KNOBS)
    with torch.no_grad():
        module[1].weight.zero_()
    wanted = torch.tensor(TARGETS.values["mean"])
    assert torch.allclose(module(torch.randn(4, 5)), wanted.float().expand(4, 2), rtol=1e-5)


def test_unit_is_restored_by_buffers_that_are_saved() -> None:
    module = REGRESSION.build(5, TARGETS, KNOBS)
    assert dict(module.named_parameters()).keys() == {"1.weight", "1.bias"}
    assert {"2.offset", "2.scale"} <= set(module.state_dict())
    features = torch.randn(4, 5)
    scaled = module[1](features)  # type: ignore[index, operator]
    mean, scale = (torch.tensor(TARGETS.values[name], dtype=torch.float32) for name in ("mean", "scale"))
    assert torch.allclose(module(features), scaled * scale + mean)


def test_unit_is_restored_in_float32_under_autocast() -> None:
    targets = task.describe([(1000.0,), (1001.0,)])
    module = REGRESSION.build(5, targets, KNOBS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = module(torch.randn(64, 5) * 10)
    assert outputs.dtype == torch.float32
    assert len(outputs.unique()) > 32, "bfloat16 has one number between 1000 and 1004"


def test_similarity_stays_within_the_training_range() -> None:
    outputs = SIMILARITY.build(5, TARGETS, KNOBS)(torch.randn(200, 5) * 1e5)
    low, high = torch.tensor(TARGETS.values["low"]), torch.tensor(TARGETS.values["high"])
    assert bool(((outputs >= low) & (outputs <= high)).all())
    assert torch.allclose(outputs.amax(0), high.float())
    assert torch.allclose(outputs.amin(0), low.float())
    outside = REGRESSION.build(5, TARGETS, KNOBS)(torch.randn(200, 5) * 1e5)
    assert not bool(((outside >= low) & (outside <= high)).all())


@pytest.mark.parametrize(("name", "wanted"), [("smooth_l1", F.smooth_l1_loss), ("mse", F.mse_loss), ("mae", F.l1_loss)])
def test_losses_are_torchs_in_standard_deviations(name: str, wanted: Any) -> None:
    outputs, truth = guesses()
    found = task.loss(outputs, truth, TARGETS, {"regression_loss": name})
    scale = torch.tensor(TARGETS.values["scale"], dtype=torch.float32)
    assert float(found) == pytest.approx(float(wanted(outputs / scale, truth / scale)), rel=1e-4)


def test_mean_square_of_the_mean_is_one() -> None:
    _, truth = guesses()
    mean = torch.tensor(TARGETS.values["mean"]).expand(30, 2)
    assert float(task.loss(mean, truth, TARGETS, {"regression_loss": "mse"})) == pytest.approx(1.0, rel=1e-5)


# --- metrics ----------------------------------------------------------------------------------------


def test_metrics_are_scikit_learns_and_scipys() -> None:
    outputs, truth = guesses()
    one, other = outputs.double().numpy(), truth.double().numpy()
    ranked = np.mean([stats.spearmanr(one[:, place], other[:, place]).statistic for place in range(2)])
    straight = np.mean([stats.pearsonr(one[:, place], other[:, place]).statistic for place in range(2)])
    errors = {
        "mae": reference.mean_absolute_error(other, one),
        "rmse": reference.root_mean_squared_error(other, one),
    }
    found = REGRESSION.metrics(outputs, truth, TARGETS)
    assert found == pytest.approx({**errors, "r2": reference.r2_score(other, one), "spearman": ranked})
    assert set(found) == set(REGRESSION.directions)
    found = SIMILARITY.metrics(outputs, truth, TARGETS)
    assert found == pytest.approx({**errors, "spearman": ranked, "pearson": straight})
    assert set(found) == set(SIMILARITY.directions)


def test_what_equal_targets_do_not_define_is_left_out() -> None:
    outputs, truth = guesses()
    truth[:, 1] = 2.0
    assert set(REGRESSION.metrics(outputs, truth, TARGETS)) == {"mae", "rmse"}
    assert set(SIMILARITY.metrics(outputs, truth, TARGETS)) == {"mae", "rmse"}
    assert set(REGRESSION.metrics(outputs[:1], truth[:1], TARGETS)) == {"mae", "rmse"}


def test_equal_predictions_have_no_correlation() -> None:
    outputs, truth = guesses()
    assert SIMILARITY.metrics(outputs * 0, truth, TARGETS)["spearman"] == 0.0


def test_report_compares_with_the_training_mean() -> None:
    outputs, truth = guesses()
    report = REGRESSION.report(outputs, truth, TARGETS)
    assert [entry["label"] for entry in report["values"]] == ["value_1", "value_2"]
    first = reference.r2_score(truth[:, 0].double().numpy(), outputs[:, 0].double().numpy())
    assert report["values"][0]["r2"] == pytest.approx(first)
    assert report["baseline"]["r2"] == pytest.approx(0.0, abs=1e-6)
    assert report["baseline"]["mae"] > REGRESSION.metrics(outputs, truth, TARGETS)["mae"]
    truth[:, 1] = 2.0
    assert REGRESSION.report(outputs, truth, TARGETS)["values"][1]["r2"] is None


def test_answers_are_the_outputs_themselves() -> None:
    outputs, _ = guesses()
    for head in (REGRESSION, SIMILARITY):
        assert head.scores is None
        assert torch.equal(head.activation(outputs), outputs)
    assert REGRESSION.default_metric(TARGETS) == "r2"
    assert SIMILARITY.default_metric(TARGETS) == "spearman"
