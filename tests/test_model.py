"""Assembly is repeatable, and frozen stages stay frozen through every call of `train()`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from toy_training import CONVNET, HEAD, KNOBS, MLP, TARGETS, assert_equal_tensors, build, state

from autoft.errors import BackboneError
from autoft.model import FineTuneModel, assemble
from autoft.specs import Stage


def pixels(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def train_a_step(model: FineTuneModel) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    model(pixels()).square().sum().backward()
    optimizer.step()


def test_model_gives_one_output_a_class() -> None:
    assert build()(pixels(5)).shape == (5, 3)


def test_equal_seeds_give_equal_models_and_other_seeds_others() -> None:
    assert_equal_tensors(state(build(seed=1)), state(build(seed=1)))
    assert not torch.equal(build(seed=1).head[1].weight, build(seed=2).head[1].weight)


def test_heads_start_does_not_depend_on_how_the_backbone_was_made() -> None:
    drawing = replace(CONVNET, build=lambda: (torch.rand(7), CONVNET.build())[1])
    assert_equal_tensors(state(build(drawing).head), state(build().head))


def test_features_that_the_head_cannot_use_are_refused() -> None:
    with pytest.raises(BackboneError, match="needs pooled features, but toy/convnet gives map"):
        assemble(replace(CONVNET, features="map"), HEAD, TARGETS, KNOBS, seed=0)


def test_stages_that_are_no_partition_are_refused() -> None:
    broken = replace(CONVNET, stages=lambda module: (Stage("stem", ("stem.conv.weight",)),))
    with pytest.raises(BackboneError, match="must partition"):
        assemble(broken, HEAD, TARGETS, KNOBS, seed=0)


@pytest.mark.parametrize("depth", range(5))
def test_frozen_stage_is_unchanged_after_a_step(depth: int) -> None:
    model = build()
    assert len(model.stages) == 4
    model.freeze(depth)
    before = state(model)
    train_a_step(model)
    after = state(model)
    frozen = tuple(f"backbone.{stage.name}." for stage in model.stages[:depth])
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not {name for name in moved if name.startswith(frozen)}
    # every other stage moves, running statistics included, and the head does
    for stage in model.stages[depth:]:
        assert f"backbone.{stage.name}.norm.running_mean" in moved
    assert "head.1.weight" in moved


def test_unfrozen_batchnorm_would_have_drifted() -> None:
    model = build()
    model.freeze(4)
    model._held_in_eval = ()
    before = state(model)
    train_a_step(model)
    assert not torch.equal(before["backbone.stem.norm.running_mean"], model.state_dict()["backbone.stem.norm.running_mean"])


def test_frozen_modules_stay_in_eval_through_train_and_eval() -> None:
    model = build()
    model.freeze(2)
    for mode in (True, False, True):
        model.train(mode)
        assert not any(
            module.training for name in ("stem", "stage1") for module in model.backbone.get_submodule(name).modules()
        )
        assert all(module.training == mode for module in model.backbone.get_submodule("stage2").modules())
        assert model.head.training == mode


def test_freezing_keeps_the_mode_the_model_is_in() -> None:
    model = build().eval()
    model.freeze(1)
    assert not any(module.training for module in model.modules())


def test_freezing_less_releases_stages_again() -> None:
    model = build()
    model.freeze(4)
    model.freeze(1)
    trainable = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.backbone.named_parameters() if not name.startswith("stem.")}
    assert model.train().backbone.get_submodule("stage1.norm").training
    model.freeze(0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_head_always_trains() -> None:
    model = build(MLP)
    model.freeze(len(model.stages))
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert all(parameter.requires_grad for parameter in model.head.parameters())


@pytest.mark.parametrize("depth", [-1, 5])
def test_impossible_depth_is_refused(depth: int) -> None:
    with pytest.raises(BackboneError, match=f"between 0 and 4, but got {depth}"):
        build().freeze(depth)


def test_outputs_are_those_of_the_head_on_the_features() -> None:
    model = build().eval()
    assert torch.equal(model(pixels()), model.head(model.backbone(pixels())))
    assert isinstance(model.head, nn.Sequential)
