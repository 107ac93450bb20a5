"""Divergences against torch's own Kullback-Leibler divergences, in both directions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence

from autoft.builtin.heads import autoft_heads
from autoft.specs import IGNORED, Targets
from autoft.tasks.divergence import of_classes, of_labels, of_values

TARGETS = Targets(("a", "b", "c"), values={"scale": (2.0, 0.5, 1.0)})
ONE = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
KNOWN = torch.tensor([0, 1, 2, 0, 1, 2])


def symmetric(one: torch.distributions.Distribution, other: torch.distributions.Distribution) -> torch.Tensor:
    return (kl_divergence(one, other) + kl_divergence(other, one)) / 2


def test_classes_are_compared_as_torch_does() -> None:
    wanted = symmetric(Categorical(logits=ONE), Categorical(logits=OTHER)).mean()
    torch.testing.assert_close(of_classes(ONE, OTHER, KNOWN, TARGETS), wanted)


def test_positions_without_a_target_do_not_count() -> None:
    some = torch.tensor([0, IGNORED, 2, 0, IGNORED, 2])
    wanted = of_classes(ONE[some >= 0], OTHER[some >= 0], KNOWN[some >= 0], TARGETS)
    torch.testing.assert_close(of_classes(ONE, OTHER, some, TARGETS), wanted)
    assert of_classes(ONE, OTHER, torch.full((6,), IGNORED), TARGETS) == 0


def test_labels_are_compared_as_torch_does() -> None:
    wanted = symmetric(Bernoulli(logits=ONE), Bernoulli(logits=OTHER)).mean()
    torch.testing.assert_close(of_labels(ONE, OTHER, KNOWN, TARGETS), wanted)


def test_values_are_compared_in_their_deviations() -> None:
    wanted = (((ONE - OTHER) / torch.tensor([2.0, 0.5, 1.0])) ** 2).mean()
    torch.testing.assert_close(of_values(ONE, OTHER, KNOWN, TARGETS), wanted)


@pytest.mark.parametrize("divergence", [of_classes, of_labels, of_values])
def test_equal_outputs_are_not_apart_and_others_are(divergence: object) -> None:
    assert callable(divergence)
    assert divergence(ONE, ONE, KNOWN, TARGETS) == 0
    assert divergence(ONE, OTHER, KNOWN, TARGETS) == divergence(OTHER, ONE, KNOWN, TARGETS) > 0


def test_every_built_in_head_has_a_divergence() -> None:
    assert len(autoft_heads()) >= 5
    assert all(head.divergence is not None for head in autoft_heads())
