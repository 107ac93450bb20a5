"""Losses for rare classes, compared with formulas written out by hand and with torch's and torchvision's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from autoft.specs import IGNORED
from autoft.tasks.imbalance import balanced_weights, binary_cross_entropy, cross_entropy, positive_weights, rarest

COUNTS = (6, 3, 1)


def knobs(imbalance: str, gamma: float = 2.0) -> dict[str, Any]:
    return {"imbalance": imbalance, "focal_gamma": gamma}


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(12, 3, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def truth() -> torch.Tensor:
    return torch.arange(12) % 3


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_focal_loss_is_the_formula(logits: torch.Tensor, truth: torch.Tensor, gamma: float, smoothing: float) -> None:
    total = 0.0
    for row, label in zip(logits.double().tolist(), truth.tolist(), strict=True):
        below = sum(math.exp(value) for value in row)
        for place, value in enumerate(row):
            share = (1 - smoothing) * (place == label) + smoothing / 3
            p = math.exp(value) / below
            total -= share * (1 - p) ** gamma * math.log(p)
    found = cross_entropy(logits, truth, COUNTS, knobs("focal", gamma), smoothing)
    assert float(found) == pytest.approx(total / 12, rel=1e-5)
    plain = F.cross_entropy(logits, truth, label_smoothing=smoothing)
    assert (float(found) == pytest.approx(float(plain), rel=1e-5)) == (gamma == 0.0)


def test_focal_loss_with_smoothing_still_punishes_certainty() -> None:
    """A factor for each sample, not each class, would let the loss fall to 0 here."""
    sure, sane = torch.tensor([[30.0, 0.0, 0.0]]), torch.tensor([[4.0, 0.0, 0.0]])
    losses = [float(cross_entropy(outputs, torch.tensor([0]), COUNTS, knobs("focal"), 0.1)) for outputs in (sure, sane)]
    assert losses[0] > losses[1]


@pytest.mark.parametrize("imbalance", ["none", "weights", "focal"])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 10.0])
def test_gradients_are_finite_for_outputs_that_are_certain(imbalance: str, gamma: float) -> None:
    outputs = torch.tensor([[200.0, 0.0, -200.0], [0.0, 0.0, 200.0]], requires_grad=True)
    for loss in (
        cross_entropy(outputs, torch.tensor([0, 1]), COUNTS, knobs(imbalance, gamma), 0.1),
        binary_cross_entropy(outputs, torch.tensor([[1, 0, 0], [0, 1, 0]]), (0.5, 0.1, 0.1), knobs(imbalance, gamma)),
    ):
        (gradient,) = torch.autograd.grad(loss, outputs)
        assert bool(loss.isfinite())
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("imbalance", ["none", "weights", "focal"])
def test_positions_without_a_target_do_not_count(logits: torch.Tensor, truth: torch.Tensor, imbalance: str) -> None:
    partly = truth.clone()
    partly[4:] = IGNORED
    found = cross_entropy(logits, partly, COUNTS, knobs(imbalance))
    assert float(found) == pytest.approx(float(cross_entropy(logits[:4], truth[:4], COUNTS, knobs(imbalance))), rel=1e-6)
    nothing = cross_entropy(logits, torch.full_like(truth, IGNORED), COUNTS, knobs(imbalance))
    assert float(nothing) == 0.0


def test_weighted_cross_entropy_is_torchs(logits: torch.Tensor, truth: torch.Tensor) -> None:
    wanted = F.cross_entropy(logits, truth, weight=torch.tensor([10 / 18, 10 / 9, 10 / 3]))
    assert float(cross_entropy(logits, truth, COUNTS, knobs("weights"))) == pytest.approx(float(wanted), rel=1e-6)


def test_class_without_samples_has_a_finite_weight() -> None:
    assert balanced_weights((6, 0, 3)) == [0.75, 1.0, 1.5]


# --- several labels ---------------------------------------------------------------------------------


def test_binary_losses_are_torchs_and_torchvisions(logits: torch.Tensor) -> None:
    truth = (torch.rand(12, 3, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    shares = (0.5, 0.25, 0.01)
    plain = float(F.binary_cross_entropy_with_logits(logits, truth))
    assert float(binary_cross_entropy(logits, truth, shares, knobs("none"))) == pytest.approx(plain, rel=1e-6)
    assert float(binary_cross_entropy(logits, truth, shares, knobs("resample"))) == pytest.approx(plain, rel=1e-6)
    assert float(binary_cross_entropy(logits, truth, shares, knobs("focal", 0.0))) == pytest.approx(plain, rel=1e-5)
    focal = sigmoid_focal_loss(logits, truth, alpha=-1, gamma=1.5, reduction="mean")
    assert float(binary_cross_entropy(logits, truth, shares, knobs("focal", 1.5))) == pytest.approx(float(focal), rel=1e-5)
    weighted = F.binary_cross_entropy_with_logits(logits, truth, pos_weight=torch.tensor([1.0, 3.0, 20.0]))
    found = float(binary_cross_entropy(logits, truth, shares, knobs("weights")))
    assert found == pytest.approx(float(weighted), rel=1e-6)
    assert found != pytest.approx(plain, rel=1e-2)


def test_positive_weights_are_capped_on_both_sides() -> None:
    assert positive_weights((0.0, 1e-6, 0.2, 0.5, 1.0)) == pytest.approx(np.array([20, 20, 4, 1, 0.05]))


def test_rarest_name_counts_samples_and_ties_go_by_name() -> None:
    assert rarest([("a", "b"), ("b",), ("c", "a"), ()], "none") == ["a", "b", "c", "none"]
    assert rarest([("a", "a", "b"), ("b",), ("a",), ("b",)], "-")[0] == "a"
