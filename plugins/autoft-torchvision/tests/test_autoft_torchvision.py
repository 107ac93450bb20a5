"""torchvision's models hold the contract: every check on one of each kind, stages of all, features as torchvision's."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import autoft_torchvision as family
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import get_model, get_model_weights

from autoft.builtin.heads import autoft_heads
from autoft.errors import BackboneError
from autoft.freezing import check_stages
from autoft.specs import Backbone, BackboneRequest
from autoft.testing import checks_for, toy
from autoft.testing.bound import BoundCheck
from autoft.testing.checks import run_checks

HEAD = autoft_heads()[0]
SMALL = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "regnet_y_400mf", "mnasnet0_5", "efficientnet_b0")
LARGE = ("convnext_tiny", "vgg11_bn", "swin_t", "vit_b_32", "maxvit_t")
NEED_VALUES = ("regnet_", "swin_")  # torchvision computes widths or indices with tensors, which have none on `meta`


def backbone(model: str, weights: str = "none", size: int | None = None) -> Backbone:
    return family.resolve(BackboneRequest(model, weights, image_size=size))


def described(model: str) -> tuple[torch.nn.Module, Backbone]:
    """Build a model without its weights' memory."""
    found = backbone(model)
    with torch.device("meta"):
        return found.build(), found


@pytest.mark.parametrize("check", [check for model in SMALL[:2] for check in checks_for(backbone(model, size=64))], ids=str)
def test_conformance(check: BoundCheck) -> None:
    check()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "model",
    [
        *(pytest.param(model, marks=pytest.mark.slow) for model in (*SMALL[2:], "densenet121")),
        *(pytest.param(model, marks=pytest.mark.large) for model in LARGE),
    ],
)
def test_conformance_kit_passes_for_other_architectures(model: str) -> None:
    found = backbone(model)
    if not model.startswith(("vit", "swin", "maxvit")):
        found = backbone(model, size=64)
    assert [result.message for result in run_checks(found, HEAD) if not result.passed] == []


def test_stages_of_every_model_partition_its_parameters() -> None:
    models = [model for model in family.models() if not model.startswith(NEED_VALUES)]
    assert len(models) > 50
    for model in models:
        module, found = described(model)
        check_stages(module, found.stages(module))
        assert len(found.stages(module)) >= 5, model


def test_stages_follow_the_tree_of_modules() -> None:
    module, found = described("resnet18")
    names = [stage.name for stage in found.stages(module)]
    assert names == ["conv1", *(f"layer{layer}.{block}" for layer in range(1, 5) for block in range(2))]
    assert found.stages(module)[0].parameters == ("conv1.weight", "bn1.weight", "bn1.bias")
    module, found = described("vit_b_16")
    first, *_, last = found.stages(module)
    assert first.name == "conv_proj"
    assert {"class_token", "encoder.pos_embedding"} <= set(first.parameters)
    assert last.name == "encoder.layers.encoder_layer_11"
    assert "encoder.ln.weight" in last.parameters


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v3_small"])
def test_features_are_what_the_last_layer_of_torchvision_is_given(model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = get_model(model).eval()
    save_file(theirs.state_dict(), tmp_path / "all.safetensors")
    ours = backbone(model, str(tmp_path / "all.safetensors"))
    module = ours.build().eval()
    last = [layer for layer in theirs.modules() if isinstance(layer, torch.nn.Linear)][-1]
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        features = module(pixels)
        assert features.shape == (2, ours.feature_size(module))
        assert torch.equal(last(features), theirs(pixels))


def test_preprocessing_is_that_of_the_weights() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (301, 333, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for model in ("resnet18", "efficientnet_b0", "efficientnet_b3"):
        found = backbone(model)
        ours = found.preprocessing.inputs(found.preprocessing.decode(png(image), augmented=False)[None])[0]
        theirs = get_model_weights(model).DEFAULT.transforms()(image)[None]
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max()) < 1e-5


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


def test_another_size_keeps_the_share_of_the_image_that_is_seen() -> None:
    declared = backbone("resnet18", size=112).preprocessing.to_dict()
    assert declared["size"] == [112, 112]
    assert declared["resize"]["size"] == 128


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        ("resnet19", None, r"there is no torchvision/resnet19\nhint: the nearest: resnet18"),
        ("googlenet", None, "there is no torchvision/googlenet"),
        ("vit_b_16", 112, "image_size must be between 224 and 224 for torchvision/vit_b_16, but got 112"),
        ("vit_b_16", 448, "but got 448"),
        ("convnext_tiny", 16, "image_size must be between 32 and inf"),
    ],
)
def test_what_cannot_be_had_is_refused(model: str, size: int | None, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        backbone(model, size=size)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file(get_model("shufflenet_v2_x0_5").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(BackboneError, match=r"are not of torchvision/resnet18: they lack \d+ parameters, such as "):
        backbone("resnet18", str(tmp_path / "other.safetensors")).build()


def test_pretrained_weights_need_a_network_only_when_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = backbone("resnet18", "pretrained")
    assert found.citation == "ResNet18_Weights.IMAGENET1K_V1"
    with pytest.raises(BackboneError, match="the pretrained weights of torchvision/resnet18 are not in the local cache"):
        found.build()


def test_pretrained_weights_come_from_the_cache_of_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    theirs = get_model("shufflenet_v2_x0_5")
    cached = tmp_path / "hub" / "checkpoints" / Path(get_model_weights("shufflenet_v2_x0_5").DEFAULT.url).name
    cached.parent.mkdir(parents=True)
    torch.save(theirs.state_dict(), cached)
    module = backbone("shufflenet_v2_x0_5", "pretrained").build()
    for name, value in module.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])


def test_licence_of_weights_that_may_not_be_sold_is_shown() -> None:
    assert "SWAG" in (backbone("vit_h_14", "pretrained").licence or "")
    assert backbone("vit_h_14").licence is None


def test_suggestions_are_models_and_fit_the_limit() -> None:
    (offered,) = family.autoft_backbones()
    assert {f"torchvision/{model}" for model in offered.models()} >= set(family.SUGGESTED)
    assert offered.suggest("image", 12.0)[0] == "torchvision/resnet18"
    for name, millions in family.SUGGESTED.items():
        module, _ = described(name.removeprefix("torchvision/"))
        assert sum(value.numel() for value in module.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.slow
def test_search_ends_in_a_bundle_that_answers(tmp_path: Path) -> None:
    toy.write_toy_images(tmp_path / "stripes", per_class=12)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "AUTOFT_CACHE": str(tmp_path / "cache")}

    def run(*words: object) -> str:
        return subprocess.run(
            [sys.executable, *map(str, words)], check=True, capture_output=True, text=True, env=environment, cwd=tmp_path
        ).stdout

    run(
        "-m", "autoft", "search", "stripes", "-b", "torchvision/shufflenet_v2_x0_5", "--weights", "none", "--trials", 1,
        "--epochs", 1, "--set", "backbones.0.image_size=32", "-o", "run",
    )  # fmt: skip
    contract = json.loads((tmp_path / "run" / "bundle" / "autoft.json").read_text())
    assert contract["preprocessing"]["size"] == [32, 32]
    image = next((tmp_path / "stripes").rglob("*.png"))
    assert run("run/bundle/predict.py", image).split()[1] in {folder.name for folder in (tmp_path / "stripes").iterdir()}


def test_module_is_as_short_as_the_guide_says() -> None:
    assert len(Path(family.__file__).read_text().splitlines()) < 80
