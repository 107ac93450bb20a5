"""The timm family, on the smallest model of each of many architectures: stages, sizes, weights, and clear refusals."""

from __future__ import annotations

import json
import os
import pickle
import socket
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from packaging.version import Version
from safetensors.torch import save_file
from torch import nn
from toy_training import assert_equal_tensors

from autoft import timm_models
from autoft.builtin import timm as family
from autoft.errors import BackboneError
from autoft.freezing import check_stages
from autoft.specs import Backbone, BackboneRequest

# one small model of each architecture, and the last three without a group_matcher of their own
ARCHITECTURES = """
    beit_base_patch16_224 bat_resnext26ts cait_xxs24_224 coat_lite_tiny coatnet_nano_rw_224 convit_tiny
    convmixer_768_32 convnext_atto convnextv2_atto crossvit_tiny_240 cspresnet50 davit_tiny
    deit3_small_patch16_224 densenet121 dla34 dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0
    efficientnet_b0 efficientvit_b0 ese_vovnet19b_slim eva02_tiny_patch14_224 fastvit_t8 focalnet_tiny_srf
    gcvit_xxtiny ghostnet_050 gmlp_s16_224 hgnetv2_b0 hiera_tiny_224 hrnet_w18_small inception_next_atto
    inception_v3 lcnet_035 levit_128s mambaout_femto maxvit_nano_rw_256 mixer_s32_224 mobilenetv3_small_050
    mobilenetv4_conv_small mobilevit_xxs mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_gap nest_tiny
    nf_regnet_b0 pvt_v2_b0 regnety_002 repghostnet_050 repvit_m1 resmlp_12_224 resnet10t resnetv2_50
    rexnet_100 samvit_base_patch16 shvit_s1 skresnet18 starnet_s1 swiftformer_xs swin_tiny_patch4_window7_224
    swinv2_tiny_window8_256 tiny_vit_5m_224 tnt_s_patch16_224 twins_svt_small vgg11 visformer_tiny
    vit_base_patch16_siglip_224 vit_relpos_small_patch16_224 vit_tiny_patch16_224 xception41
    xcit_nano_12_p16_224 pit_ti_224 poolformer_s12 csatv2
""".split()  # noqa: SIM905 - a list of strings would be a page


# timm 1.0.31 mended their group_matcher (xcit: no_weight_decay); autoft runs on older ones, with timm's stages as they are
MENDED = {
    *("csatv2", "efficientvit_b0", "hgnetv2_b0", "inception_next_atto", "levit_128s", "regnety_002", "repvit_m1"),
    *("samvit_base_patch16", "xcit_nano_12_p16_224"),
}


def skip_before_mending(model: str) -> None:
    if model in MENDED and Version(timm.__version__) < Version("1.0.31"):
        pytest.skip(f"timm {timm.__version__} orders the stages of {model} wrongly; 1.0.31 mended that")


def resolve(model: str, weights: str = "none", image_size: int | None = None, typical_size: int | None = None) -> Backbone:
    return timm_models.resolve(BackboneRequest(model, weights, image_size, typical_size))


def on_meta(model: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(model, num_classes=0).eval()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no proxy, and an empty cache, wherever the tests run."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *arguments, **options: None)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


# --- every architecture, without a weight in memory -------------------------------------------------


def test_architectures_are_many_and_known() -> None:
    assert len(set(ARCHITECTURES)) > 60
    assert set(ARCHITECTURES) <= set(timm.list_models())


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_stages_partition_the_parameters_in_the_order_of_the_computation(model: str) -> None:
    skip_before_mending(model)
    module = on_meta(model)
    stages = timm_models.stages(module)
    check_stages(module, stages)
    assert len(stages) > 2
    assert all(stage.name for stage in stages)

    order: dict[str, int] = {}

    def note(name: str) -> None:
        order.setdefault(name, len(order))

    for name, submodule in module.named_modules():
        submodule.register_forward_pre_hook(lambda module, inputs, name=name: note(name))
    size = timm.get_pretrained_cfg(model).input_size
    with torch.no_grad(), torch.device("meta"):
        features = module(torch.empty(2, *size))
    assert tuple(features.shape) == (2, timm_models.feature_size(module))
    first = [min(order[owner] for owner in owners(stage.parameters) if owner in order) for stage in stages]
    assert first == sorted(first)


def owners(parameters: tuple[str, ...]) -> list[str]:
    """The modules that hold the parameters, but for the model itself."""
    return [name.rpartition(".")[0] for name in parameters if "." in name]


def test_stages_in_another_order_would_be_seen() -> None:
    module = on_meta("resnet10t")
    names = [stage.name for stage in timm_models.stages(module)]
    assert names == ["conv1.0", "layer1.0", "layer2.0", "layer3.0", "layer4.0"]


@pytest.mark.parametrize(
    ("model", "exempt"),
    [
        ("vit_tiny_patch16_224", {"pos_embed", "cls_token"}),
        ("xcit_nano_12_p16_224", {"cls_token", "pos_embed.token_projection.weight", "pos_embed.token_projection.bias"}),
        ("resnet10t", set()),
        ("convnext_atto", set()),
    ],
)
def test_what_the_authors_do_not_decay_is_exempt(model: str, exempt: set[str]) -> None:
    skip_before_mending(model)
    assert timm_models.no_weight_decay(on_meta(model)) == exempt


# --- real forwards ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "size"), [("test_resnet", 32), ("test_vit", 64), ("test_convnext", 64), ("mobilenetv3_small_050", 32)]
)
def test_built_module_gives_pooled_features_of_the_promised_size(model: str, size: int) -> None:
    backbone = resolve(model, image_size=size)
    assert backbone.image_size == (size, size)
    assert backbone.preprocessing.to_dict()["size"] == [size, size]
    module = backbone.build().eval()
    with torch.inference_mode():
        features = module(torch.randn(3, 3, size, size))
    assert tuple(features.shape) == (3, backbone.feature_size(module))
    assert bool(torch.isfinite(features).all())
    check_stages(module, backbone.stages(module))


def test_two_builds_share_nothing() -> None:
    backbone = resolve("test_resnet")
    first, second = backbone.build(), backbone.build()
    pointers = {parameter.data_ptr() for parameter in first.parameters()}
    assert not pointers & {parameter.data_ptr() for parameter in second.parameters()}


def test_resolving_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", None)
    assert resolve("vit_huge_patch14_224").name == "timm/vit_huge_patch14_224"


# --- the size of the input --------------------------------------------------------------------------

FREE: dict[str, Any] = {"input_size": (3, 224, 224)}
FIXED: dict[str, Any] = {**FREE, "fixed_input_size": True}


@pytest.mark.parametrize(
    ("config", "image_size", "typical_size", "size"),
    [
        (FREE, None, None, 224),
        (FREE, 96, None, 96),
        (FREE, 96, 8, 96),
        (FREE, None, 8, 32),
        (FREE, None, 9, 64),
        (FREE, None, 28, 128),
        (FREE, None, 48, 192),
        (FREE, None, 50, 224),
        (FREE, None, 4000, 224),
        (FIXED, None, 8, 224),
        (FIXED, 96, 8, 96),
        ({**FREE, "min_input_size": (3, 128, 128)}, None, 8, 224),
        ({**FREE, "min_input_size": (3, 32, 32)}, None, 8, 32),
        ({}, None, None, 224),
    ],
)
def test_size_is_the_models_unless_images_are_much_smaller(
    config: dict[str, Any], image_size: int | None, typical_size: int | None, size: int
) -> None:
    request = BackboneRequest("any", "none", image_size, typical_size)
    assert timm_models.choose_size(config, request) == (size, size)


def test_model_of_fixed_size_is_built_for_another() -> None:
    with torch.device("meta"):
        module = resolve("vit_tiny_patch16_224", image_size=64).build().eval()
        assert module(torch.empty(2, 3, 64, 64)).shape == (2, 192)
        with pytest.raises(AssertionError):
            module(torch.empty(2, 3, 224, 224))


def test_fixed_size_that_cannot_be_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, **arguments: object) -> nn.Module:
        raise TypeError("__init__() got an unexpected keyword argument 'img_size'")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(BackboneError, match="takes only images of 224x224, but image_size is 64"):
        resolve("vit_tiny_patch16_224", image_size=64).build()


# --- local weights ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """With a classifier of 10 classes, as checkpoints have."""
    torch.manual_seed(5)
    return timm.create_model("test_resnet", num_classes=10)


def backbone_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.state_dict().items() if not name.startswith("fc.")}


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "bin"])
def test_weights_come_from_a_local_file(suffix: str, tmp_path: Path, trained: nn.Module) -> None:
    file = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(trained.state_dict(), file)
    else:
        torch.save(trained.state_dict(), file)
    backbone = resolve("test_resnet", str(file))
    assert backbone.weights == str(file.resolve())
    assert_equal_tensors(backbone.build().state_dict(), backbone_of(trained))


def test_weights_without_a_classifier_will_do(tmp_path: Path, trained: nn.Module) -> None:
    save_file(backbone_of(trained), tmp_path / "weights.safetensors")
    module = resolve("test_resnet", str(tmp_path / "weights.safetensors")).build()
    assert_equal_tensors(module.state_dict(), backbone_of(trained))


def test_weights_of_half_precision_are_trained_in_float32(tmp_path: Path, trained: nn.Module) -> None:
    save_file(
        {name: v.half() if v.is_floating_point() else v for name, v in trained.state_dict().items()},
        tmp_path / "w.safetensors",
    )
    assert {p.dtype for p in resolve("test_resnet", str(tmp_path / "w.safetensors")).build().parameters()} == {torch.float32}


def folder_of(path: Path, module: nn.Module, config: object) -> Path:
    save_file(module.state_dict(), path / "model.safetensors")
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def test_folders_config_decides_the_preprocessing(tmp_path: Path, trained: nn.Module) -> None:
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 48, 48], "license": "cc-by-4.0"}
    folder = folder_of(tmp_path, trained, {"architecture": "test_resnet", "pretrained_cfg": own})
    backbone = resolve("test_resnet", str(folder))
    declared = backbone.preprocessing.to_dict()
    assert (declared["mean"], declared["std"], declared["size"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [48, 48])
    assert backbone.licence == "cc-by-4.0"
    assert_equal_tensors(backbone.build().state_dict(), backbone_of(trained))


def test_position_embeddings_are_resampled_to_the_wanted_size(tmp_path: Path) -> None:
    module = timm.create_model("test_vit", num_classes=10)
    folder = folder_of(tmp_path, module, {"architecture": "test_vit"})
    built = resolve("test_vit", str(folder), image_size=96).build().eval()
    assert built.pos_embed.shape[1] < module.pos_embed.shape[1]
    assert torch.equal(built.blocks[0].attn.qkv.weight, module.blocks[0].attn.qkv.weight)
    with torch.inference_mode():
        assert bool(torch.isfinite(built(torch.randn(2, 3, 96, 96))).all())


def test_folder_of_another_architecture_is_refused(tmp_path: Path, trained: nn.Module) -> None:
    folder = folder_of(tmp_path, trained, {"architecture": "resnet50"})
    with pytest.raises(
        BackboneError, match=r"are of timm/resnet50, but the study asks for timm/test_resnet\n.*timm/resnet50"
    ):
        resolve("test_resnet", str(folder))


def test_folder_with_a_torn_config_is_refused(tmp_path: Path, trained: nn.Module) -> None:
    with pytest.raises(BackboneError, match=r"config\.json is not readable JSON"):
        resolve("test_resnet", str(folder_of(tmp_path, trained, '{"archi')))


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"has none of model\.safetensors, pytorch_model\.bin"):
        resolve("test_resnet", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"), [("nothing.safetensors", "do not exist"), ("weights.h5", "must be a .safetensors")]
)
def test_path_that_cannot_be_weights_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(BackboneError, match=message):
        resolve("test_resnet", str(tmp_path / name))


def test_weights_of_another_model_are_refused_naming_a_parameter(tmp_path: Path) -> None:
    save_file(timm.create_model("test_convnext", num_classes=10).state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(BackboneError, match=r"lack \d+ parameters of timm/test_resnet, such as conv1\.0\.weight"):
        resolve("test_resnet", str(tmp_path / "weights.safetensors")).build()


def test_weights_of_another_shape_are_refused(tmp_path: Path, trained: nn.Module) -> None:
    weights = {**trained.state_dict(), "conv1.0.weight": torch.zeros(99, 3, 3, 3)}
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(BackboneError, match="timm/test_resnet cannot be built with the weights"):
        resolve("test_resnet", str(tmp_path / "weights.safetensors")).build()


def test_half_of_the_weights_are_refused(tmp_path: Path, trained: nn.Module) -> None:
    half = {name: value for name, value in trained.state_dict().items() if not name.startswith("layer4")}
    save_file(half, tmp_path / "weights.safetensors")
    with pytest.raises(BackboneError, match=r"such as layer4\.0"):
        resolve("test_resnet", str(tmp_path / "weights.safetensors")).build()


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_pickled_code_is_refused_and_not_run(how: str, tmp_path: Path, trained: nn.Module) -> None:
    file, trap = tmp_path / "weights.pth", tmp_path / "trap"
    content = {**trained.state_dict(), "evil": Evil(str(trap))}
    if how == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(BackboneError, match="cannot be built with the weights"):
        resolve("test_resnet", str(file)).build()
    assert not trap.exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", "half"])
def test_torn_weights_are_refused(suffix: str, content: bytes | str, tmp_path: Path, trained: nn.Module) -> None:
    file = tmp_path / f"weights.{suffix}"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        save_file(trained.state_dict(), file) if suffix == "safetensors" else torch.save(trained.state_dict(), file)
        file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(BackboneError, match="cannot be built with the weights"):
        resolve("test_resnet", str(file)).build()


# --- names and the network --------------------------------------------------------------------------


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(BackboneError, match=r"timm has no model 'resnet81'\nhint: did you mean .*timm/resnet18"):
        resolve("resnet81")


def test_unknown_tag_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"no weights 'resnet18\.nobody_in1k'\nhint: .*timm/resnet18\.a1_in1k"):
        resolve("resnet18.nobody_in1k")
    assert resolve("vit_huge_patch14_224.untrained", "none").image_size == (224, 224)


def test_model_without_pretrained_weights_is_refused() -> None:
    name = next(n for n in timm.list_models() if not timm_models._has_pretrained(timm.get_pretrained_cfg(n).to_dict()))
    with pytest.raises(BackboneError, match=f"timm/{name} has no pretrained weights"):
        resolve(name, "pretrained")
    assert resolve(name, "none").weights == "none"


def test_random_weights_have_neither_origin_nor_licence() -> None:
    backbone = resolve("resnet18", "none")
    assert (backbone.citation, backbone.licence) == (None, None)
    pretrained = resolve("resnet18", "pretrained")
    assert pretrained.citation is not None
    assert pretrained.licence


@pytest.mark.usefixtures("offline")
def test_without_network_and_cache_the_error_comes_at_once_and_says_what_to_do() -> None:
    backbone = resolve("resnet18", "pretrained")
    started = time.monotonic()
    with pytest.raises(BackboneError, match=r"are not in the local cache, and .* cannot be reached") as caught:
        backbone.build()
    assert time.monotonic() - started < 1
    assert caught.value.hint is not None
    assert all(word in caught.value.hint for word in ("HF_HOME", "weights: PATH", "weights: none"))


@pytest.mark.usefixtures("offline")
def test_hubs_offline_switch_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match="HF_HUB_OFFLINE is set"):
        resolve("resnet18", "pretrained").build()


@pytest.mark.usefixtures("offline")
def test_cached_weights_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = timm.create_model("resnet10t", num_classes=1000)
    save_file(module.state_dict(), tmp_path / "model.safetensors")

    def cached(repository: str, name: str, **options: object) -> str | None:
        return str(tmp_path / name) if name == "model.safetensors" else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    loaded = resolve("resnet10t", "pretrained").build().state_dict()
    assert_equal_tensors(loaded, backbone_of(module))


def test_suggestions_are_real_pretrained_models_within_the_limit() -> None:
    assert family.suggest(0.1) == []
    assert list(family.suggest(3)) == [name for name, millions in family.SUGGESTIONS if millions <= 3]
    for name, millions in family.SUGGESTIONS:
        model = name.removeprefix("timm/")
        assert resolve(model, "pretrained").licence
        count = sum(parameter.numel() for parameter in on_meta(model).parameters()) / 1e6
        assert count == pytest.approx(millions, abs=0.1)


def test_family_enters_by_its_hook() -> None:
    (found,) = family.autoft_backbones()
    assert (found.name, found.modality) == ("timm", "image")
    names = found.models()
    assert len(names) > 1000
    assert {"resnet18", "resnet18.a1_in1k"} <= set(names)
