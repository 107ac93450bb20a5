"""Feature pyramids of timm models: which maps, their sizes, their stages, and clear refusals."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from autoft import timm_models
from autoft.errors import BackboneError
from autoft.freezing import check_stages
from autoft.specs import Backbone, BackboneRequest, FeatureMap
from autoft.testing import checks
from autoft.testing.checks import CheckFailed
from autoft.timm_maps import choose_levels, divisible, make_pyramid, maps_of

KINDS = (
    "test_resnet",
    "test_convnext",
    "test_vit",
    "test_efficientnet",
    "swin_tiny_patch4_window7_224",
    "densenet121",
    "vgg11",
)


def resolve(model: str, weights: str = "none", image_size: int | None = None) -> Backbone:
    return timm_models.resolve(BackboneRequest(model, weights, image_size, features="maps"))


@pytest.mark.parametrize(
    ("reductions", "levels"),
    [([2, 4, 8, 16, 32], [1, 2, 3, 4]), ([1, 2, 4, 8, 16, 32], [2, 3, 4, 5]), ([2, 4, 8, 16, 16], [1, 2, 4]),
     ([16] * 12, [2, 5, 8, 11]), ([14] * 6, [1, 2, 3, 5]), ([16] * 2, [0, 1]), ([32], [0])],
)  # fmt: skip
def test_last_map_of_each_stride_is_chosen_or_four_evenly_spaced(reductions: list[int], levels: list[int]) -> None:
    found = choose_levels(reductions)
    assert found == levels
    assert found[-1] == len(reductions) - 1


@pytest.mark.parametrize("model", KINDS)
def test_maps_have_the_promised_sizes_and_every_parameter_is_used(model: str) -> None:
    backbone = resolve(model)
    module = backbone.build()
    promised = backbone.feature_size(module)
    assert isinstance(promised, tuple)
    assert len(promised) >= 3
    assert backbone.image_size is not None
    maps = module(torch.randn(2, 3, *backbone.image_size))
    height, width = backbone.image_size
    assert [tuple(one.shape) for one in maps] == [
        (2, one.channels, height // one.stride, width // one.stride) for one in promised
    ]
    torch.stack([one.mean() for one in maps]).sum().backward()
    assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []
    check_stages(module, backbone.stages(module))


def test_stages_are_those_of_the_model_itself() -> None:
    pyramid, whole = resolve("test_resnet"), timm_models.resolve(BackboneRequest("test_resnet", "none"))
    assert [stage.name for stage in pyramid.stages(pyramid.build())] == [stage.name for stage in whole.stages(whole.build())]


def test_conformance_kit_passes_and_names_a_wrong_stride() -> None:
    backbone = resolve("test_resnet", image_size=32)
    for check in (
        checks.check_stages_partition, checks.check_frozen_stages_do_not_change, checks.check_builds_share_nothing,
        checks.check_feature_shape, checks.check_batch_order,
    ):  # fmt: skip
        check(backbone)
    module = backbone.build()
    module.maps = (FeatureMap(32, 8), *maps_of(module)[1:])
    wrong = Backbone(**{**vars(backbone), "build": lambda: module})
    with pytest.raises(CheckFailed, match=r"must be \[\(1, 32, 4, 4\)"):
        checks.check_feature_shape(wrong)


def test_weights_of_a_file_are_those_of_the_maps(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = timm.create_model("test_resnet", num_classes=5)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "weights.safetensors")
    module = resolve("test_resnet", str(tmp_path / "weights.safetensors"), 64).build().eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = model.eval().forward_intermediates(images, indices=[1, 2, 3, 4], intermediates_only=True)
        found = module(images)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_whole_image_is_seen_not_its_center() -> None:
    declared = resolve("test_resnet").preprocessing.to_dict()
    assert declared["resize"] == {"mode": "exact", "size": declared["size"]}
    pooled = timm_models.resolve(BackboneRequest("test_resnet", "none")).preprocessing.to_dict()
    assert pooled["resize"]["mode"] == "shortest"


def test_size_is_made_divisible_where_the_model_takes_any_and_refused_where_it_was_asked_for() -> None:
    assert divisible((176, 224)) == (192, 224)
    assert resolve("resnet10t").image_size == (192, 192)  # its own is 176
    with pytest.raises(BackboneError, match="must be a multiple of 32 for maps of timm/test_resnet, but got 100x100"):
        resolve("test_resnet", image_size=100).build()


def test_model_without_maps_is_refused() -> None:
    model = timm.create_model("test_resnet", num_classes=0)
    del model.feature_info
    with pytest.raises(BackboneError, match="timm gives none of test_resnet"):
        make_pyramid(model, "test_resnet", (64, 64))


def test_model_that_breaks_timm_s_own_strides_says_so() -> None:
    module = resolve("pit_ti_224").build()
    with pytest.raises(ValueError, match=r"a map of stride 8 must be \(64, 28, 28\), but is \(64, 27, 27\)"):
        module(torch.zeros(1, 3, 224, 224))
