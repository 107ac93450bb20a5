"""Layers are found in models of timm, torchvision and transformers, and stochastic depth is set as timm sets it."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn
from toy_training import CONVNET, MLP

from autoft import timm_models
from autoft.errors import BackboneError
from autoft.layers import batch_norms, drop_path_layers, set_stochastic_depth, traits, word_embeddings
from autoft.specs import BackboneRequest
from autoft.testing import toy


def rates(module: nn.Module) -> list[float]:
    return [float(getattr(layer, "drop_prob", 0.0) or 0.0) for layer in drop_path_layers(module)]


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "test_byobnet"])
def test_rates_are_those_that_timm_gives_a_model(name: str) -> None:
    wanted = rates(timm.create_model(name, drop_path_rate=0.3))
    module = timm_models.resolve(BackboneRequest(name, "none")).build()
    assert "stochastic_depth" in traits(module)
    set_stochastic_depth(module, 0.3)
    found = rates(module)
    assert max(found) == pytest.approx(0.3)
    assert [rate for rate in found if rate] == pytest.approx([rate for rate in wanted if rate])


def test_outputs_in_training_are_those_of_timms_own_model() -> None:
    torch.manual_seed(0)
    reference = timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.5, num_classes=0).train()
    module = timm_models.resolve(BackboneRequest("vit_tiny_patch16_224", "none")).build().train()
    module.load_state_dict(reference.state_dict())
    set_stochastic_depth(module, 0.5)
    images = torch.randn(2, 3, 224, 224)
    outputs = []
    for model in (reference, module):
        torch.manual_seed(1)
        with torch.no_grad():
            outputs.append(model(images))
    torch.testing.assert_close(*outputs)
    torch.manual_seed(1)
    set_stochastic_depth(module, 0.0)
    with torch.no_grad():
        assert not torch.allclose(module(images), outputs[0])


def test_rate_can_be_set_again_from_zero() -> None:
    module = timm_models.resolve(BackboneRequest("resnet18", "none")).build()
    set_stochastic_depth(module, 0.0)
    assert set(rates(module)) == {0.0}
    assert "stochastic_depth" in traits(module)
    set_stochastic_depth(module, 0.2)
    assert max(rates(module)) == pytest.approx(0.2)


def test_layers_of_torchvision_are_found() -> None:
    model = torchvision.models.convnext_tiny(stochastic_depth_prob=0.1)
    set_stochastic_depth(model, 0.4)
    found = [layer.p for layer in drop_path_layers(model)]
    assert len(found) == 18
    assert max(found) == pytest.approx(0.4)


def test_model_without_branches_refuses_stochastic_depth() -> None:
    module = timm_models.resolve(BackboneRequest("vgg11", "none")).build()
    assert "stochastic_depth" not in traits(module)
    set_stochastic_depth(module, 0.0)
    with pytest.raises(BackboneError, match="must be 0 for a backbone without layers for it, but got 0"):
        set_stochastic_depth(module, 0.1)


def test_batch_norms_of_all_kinds_are_found() -> None:
    model = timm.create_model("resnet18")
    assert len(batch_norms(model)) == sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) == 20
    assert len(batch_norms(timm.create_model("test_efficientnet"))) > 5  # timm's own subclass
    assert batch_norms(MLP.build()) == []
    assert batch_norms(nn.BatchNorm1d(3, track_running_stats=False)) == []


def test_traits_tell_toys_apart() -> None:
    assert traits(CONVNET.build()) == {"batch_norm"}
    assert traits(MLP.build()) == frozenset()
    text = toy.resolve(BackboneRequest("text", "none")).build()
    assert traits(text) == {"embeddings"}
    found = word_embeddings(text)
    assert isinstance(found, nn.Embedding)
    assert word_embeddings(MLP.build()) is None
