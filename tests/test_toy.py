"""The toys are real plugins: found by the ordinary hooks, learnable, and repeatable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pluggy
import pytest
import torch
from PIL import Image

from autoft import hookspecs
from autoft.errors import BackboneError, DataError
from autoft.files import save_tensors
from autoft.specs import Backbone, BackboneRequest
from autoft.testing import toy


def backbone(model: str = "convnet", weights: str = "none", image_size: int | None = None) -> Backbone:
    return toy.resolve(BackboneRequest(model, weights, image_size))


def test_importing_the_toys_imports_nothing_heavy() -> None:
    code = "import sys, autoft.testing.toy; print(*({'torch', 'timm', 'numpy', 'PIL', 'sklearn'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split() == []


def test_toys_come_in_by_the_ordinary_hooks() -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(toy)
    manager.check_pending()
    assert [family.name for families in manager.hook.autoft_backbones() for family in families] == ["toy"]
    assert [head.name for heads in manager.hook.autoft_heads() for head in heads] == ["toy-classification"]
    assert [data.name for formats in manager.hook.autoft_data() for data in formats] == ["toy-stripes"]


@pytest.mark.parametrize("model", toy.MODELS)
def test_toy_backbone_is_tiny(model: str) -> None:
    count = sum(parameter.numel() for parameter in backbone(model).build().parameters())
    assert 4_000 < count < 6_000


def test_convnet_has_batchnorm_and_dropout_and_mlp_has_neither() -> None:
    kinds = {model: {type(module).__name__ for module in backbone(model).build().modules()} for model in toy.MODELS}
    assert {"BatchNorm2d", "Dropout"} <= kinds["convnet"]
    assert not {"BatchNorm2d", "Dropout"} & kinds["mlp"]


def test_pretrained_weights_are_equal_each_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = backbone(weights="pretrained").build().state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(2)
    second = backbone(weights="pretrained").build().state_dict()
    torch.manual_seed(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(drawn, torch.rand(1))


def test_random_weights_follow_torchs_generator() -> None:
    torch.manual_seed(1)
    first = backbone().build().state_dict()
    other = backbone().build().state_dict()
    torch.manual_seed(1)
    again = backbone().build().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.conv.weight"], other["stem.conv.weight"])


def test_weights_come_from_a_local_file(tmp_path: Path) -> None:
    module = backbone().build()
    save_tensors(tmp_path / "weights.safetensors", module.state_dict())
    loaded = backbone(weights=str(tmp_path / "weights.safetensors")).build().state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in module.state_dict().items())


def test_weights_of_another_toy_are_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "weights.safetensors", backbone("mlp").build().state_dict())
    with pytest.raises(BackboneError, match="cannot be built"):
        backbone("convnet", str(tmp_path / "weights.safetensors")).build()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (BackboneRequest("convnext", "none"), "did you mean toy/convnet"),
        (BackboneRequest("convnet", "nowhere.safetensors"), "do not exist: nowhere.safetensors"),
        (BackboneRequest("mlp", "none", image_size=4), "must be at least 8 for toy/mlp, but got 4"),
    ],
)
def test_impossible_request_is_refused(request_: BackboneRequest, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        toy.resolve(request_)


def test_images_are_written_into_a_folder_for_each_class(tmp_path: Path) -> None:
    files = toy.write_toy_images(tmp_path, classes=4, per_class=3, size=20)
    assert len(files) == 12
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["stripes-0", "stripes-135", "stripes-45", "stripes-90"]
    with Image.open(files[0]) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (20, 20))


def test_images_depend_on_the_seed_alone_and_never_repeat() -> None:
    first, again, other = (toy.toy_samples(seed=seed) for seed in (0, 0, 1))
    assert first == again
    contents = [sample.content for sample in (*first, *other)]
    assert len(set(contents)) == len(contents) == 72


def test_stripes_file_is_detected_and_loaded(tmp_path: Path) -> None:
    (format_,) = toy.autoft_data()
    file = tmp_path / "small.stripes.json"
    file.write_text(json.dumps({"classes": 2, "per_class": 5, "seed": 3, "size": 12}))
    assert format_.detect(file)
    assert not format_.detect(tmp_path)
    raw = format_.load(file, {})
    assert raw.samples == toy.toy_samples(2, 5, 3, 12)
    assert raw.typical_size == 12
    file.write_text(json.dumps({"classes": 2, "per_class": 5, "seed": 4, "size": 12}))
    assert format_.load(file, {}).fingerprint != raw.fingerprint


@pytest.mark.parametrize("content", ["no JSON", '{"colours": 3}', "[1, 2]"])
def test_wrong_stripes_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "wrong.stripes.json"
    file.write_text(content)
    with pytest.raises(DataError, match=r"wrong\.stripes\.json must hold"):
        toy.load_stripes(file, {})


def test_toy_head_needs_two_classes_and_knows_its_labels() -> None:
    (head,) = toy.autoft_heads()
    targets = head.describe(["b", "a", "b"])
    assert (targets.labels, targets.counts) == (("a", "b"), (1, 2))
    assert head.encode(["b", "a"], targets).tolist() == [1, 0]
    with pytest.raises(DataError, match="at least 2 classes"):
        head.describe(["a", "a"])
    with pytest.raises(DataError, match="'c' is not among"):
        head.encode(["c"], targets)
