"""The checks of training pass the toys, and catch models that do not learn, do not repeat, or cannot go on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoft.builtin.heads import autoft_heads
from autoft.specs import Backbone, BackboneRequest, Head
from autoft.tasks import tagging
from autoft.testing import toy, training_checks
from autoft.testing.kit import CheckFailed

HEAD: Head = autoft_heads()[0]
CONVNET: Backbone = toy.resolve(BackboneRequest("convnet", "none"))
SEQUENCE: Backbone = toy.resolve(BackboneRequest("text", "none", features="sequence"))


class Around(nn.Module):
    """A toy whose features are changed by a function of this module and them."""

    def __init__(self, inner: nn.Module, change: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.change(self, self.inner(*inputs))


def around(
    change: Callable[[Any, Tensor], Tensor],
    prepare: Callable[[Any], object] = lambda module: None,
    backbone: Backbone = CONVNET,
) -> Backbone:
    def build() -> nn.Module:
        module = Around(backbone.build(), change)
        prepare(module)
        return module

    def stages(module: Any) -> Any:
        return tuple(
            replace(stage, parameters=tuple(f"inner.{name}" for name in stage.parameters))
            for stage in backbone.stages(module.inner)
        )

    return replace(backbone, build=build, stages=stages)


@pytest.mark.parametrize(
    "check", [run for _, _, run in training_checks.CHECKS], ids=[name for name, _, _ in training_checks.CHECKS]
)
@pytest.mark.parametrize(
    ("backbone", "head"),
    [(CONVNET, HEAD), (SEQUENCE, tagging.head("tagging", "text", "")), (around(lambda module, features: features), HEAD)],
    ids=["image", "sequence", "wrapped"],
)
def test_toys_pass(check: Callable[[Backbone, Head], None], backbone: Backbone, head: Head) -> None:
    check(backbone, head)


# --- learns -----------------------------------------------------------------------------------------


def test_features_that_hold_nothing_are_caught() -> None:
    deaf = around(lambda module, features: features * 0 + 1e-4)
    with pytest.raises(CheckFailed, match="must learn 8 samples that are shown again and again, but after 60 steps"):
        training_checks.check_learns(deaf, HEAD)


def test_loss_that_ignores_the_outputs_is_caught() -> None:
    with pytest.raises(CheckFailed, match=r"must be one number with a gradient, but is of shape \(\) without a gradient"):
        training_checks.check_learns(CONVNET, replace(HEAD, loss=lambda outputs, *_: outputs.detach().mean()))


def test_loss_of_each_sample_is_caught() -> None:
    with pytest.raises(CheckFailed, match=r"must be one number with a gradient, but is of shape \(8,\)"):
        training_checks.check_learns(CONVNET, replace(HEAD, loss=lambda outputs, *_: outputs.sum(1)))


def test_loss_that_explodes_is_caught() -> None:
    with pytest.raises(CheckFailed, match="must stay finite, but becomes nan"):
        training_checks.check_learns(CONVNET, replace(HEAD, loss=lambda outputs, *_: outputs.mean() * float("nan")))


def test_answer_that_is_not_the_heads_kind_is_caught() -> None:
    with pytest.raises(CheckFailed, match="must take targets of the kind of its `answer`, values, but does not"):
        training_checks.check_learns(CONVNET, replace(HEAD, answer="values"))


# --- repeats ----------------------------------------------------------------------------------------


def test_randomness_that_no_seed_reaches_is_caught() -> None:
    strange = random.Random()
    noisy = around(lambda module, features: features * (1 + 0.1 * strange.random() * module.training))
    with pytest.raises(CheckFailed, match="training twice with the same seed must give the same weights, but"):
        training_checks.check_repeats(noisy, HEAD)


def test_scores_that_cannot_be_repeated_are_caught() -> None:
    strange = random.Random()

    def metrics(outputs: Any, encoded: Any, targets: Any) -> dict[str, float]:
        return {**HEAD.metrics(outputs, encoded, targets), "accuracy": strange.random()}

    with pytest.raises(CheckFailed, match="must give the same scores, but they are"):
        training_checks.check_repeats(CONVNET, replace(HEAD, metrics=metrics))


# --- continues --------------------------------------------------------------------------------------


def count(module: Any, features: Tensor) -> Tensor:
    if module.training:
        module.steps += 1
    return features * (1 + 0.1 * module.steps)


def test_state_that_is_saved_goes_on() -> None:
    counting = around(count, lambda module: module.register_buffer("steps", torch.zeros(())))
    training_checks.check_continues(counting, HEAD)


def test_state_that_is_not_saved_is_caught() -> None:
    counting = around(count, lambda module: module.register_buffer("steps", torch.zeros(()), persistent=False))
    with pytest.raises(
        CheckFailed, match="goes on from a checkpoint must give what one run gives, the same weights"
    ) as caught:
        training_checks.check_continues(counting, HEAD)
    assert "persistent=True" in str(caught.value)


def test_checkpoint_that_does_not_fit_another_build_is_caught() -> None:
    builds: list[int] = []

    def grow(module: Any) -> None:
        builds.append(1)
        module.register_buffer("size", torch.zeros(len(builds)))

    with pytest.raises(CheckFailed, match="a checkpoint must load into a new build, but does not"):
        training_checks.check_continues(around(lambda module, features: features, grow), HEAD)
