"""A study becomes samples in splits, a task and backbones, or a clear error; nothing is written or trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import Heard
from PIL import Image

from autoft.errors import AutoftError, ConfigError, DataError
from autoft.prepare import Prepared, load_config, prepare
from autoft.space import Space
from autoft.testing.toy import write_toy_images

pytestmark = pytest.mark.usefixtures("toys")


def prepared(target: Path, *overrides: str, heard: Heard | None = None) -> Prepared:
    config, catalog = load_config(target, ["backbones=[toy/mlp]", *overrides])
    return prepare(config, catalog, heard or Heard())


def test_folder_of_images_becomes_samples_in_splits_with_a_task_and_a_backbone(toy_images: Path) -> None:
    heard = Heard()
    found = prepared(toy_images, heard=heard)
    assert {split: len(samples) for split, samples in found.samples.items()} == {"train": 24, "validation": 6, "test": 6}
    assert {split: len(rows) for split, rows in found.encoded.items()} == {"train": 24, "validation": 6, "test": 6}
    assert found.data_format == "image-folder"
    assert found.objective.head.name == "image-classification"
    assert found.objective.metric == "accuracy"
    assert found.objective.targets.labels == ("stripes-0", "stripes-60", "stripes-120")
    assert [backbone.name for backbone in found.backbones] == ["toy/mlp"]
    assert found.memory > 0
    assert heard.of("data")[-1]["made_splits"] == ["validation", "test"]
    ids = [sample.id for samples in found.samples.values() for sample in samples]
    assert len(ids) == len(set(ids)) == 36


def test_imbalanced_classes_choose_macro_f1(tmp_path: Path) -> None:
    files = write_toy_images(tmp_path / "data", per_class=20)
    for file in files[:10]:
        file.unlink()
    assert prepared(tmp_path / "data").objective.metric == "f1_macro"


def test_declared_splits_are_kept(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val", "test")):
        write_toy_images(tmp_path / "data" / split, per_class=4, seed=seed)
    heard = Heard()
    found = prepared(tmp_path / "data", heard=heard)
    assert {split: {sample.split for sample in samples} for split, samples in found.samples.items()} == {
        "train": {"train"}, "validation": {"validation"}, "test": {"test"},
    }  # fmt: skip
    assert heard.of("data")[-1]["made_splits"] == []
    assert not heard.of("warning")


def test_copies_across_splits_are_warned_about(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_toy_images(tmp_path / "data" / split, per_class=4)
    heard = Heard()
    prepared(tmp_path / "data", heard=heard)
    (warning,) = [event for event in heard.events if event.kind == "warning"]
    assert "in more than one split, which makes scores too good" in warning.text
    assert warning.data == {"about": "splits", "warning": warning.text}


def test_unreadable_samples_are_listed(tmp_path: Path) -> None:
    files = write_toy_images(tmp_path / "data")
    files[3].write_bytes(files[3].read_bytes()[:60])
    heard = Heard()
    found = prepared(tmp_path / "data", heard=heard)
    assert len(found.raw.rejected) == 1
    (warning,) = heard.of("warning")
    assert warning["rejected"][0]["id"] == "stripes-0/003.png"


def test_metric_that_the_validation_split_does_not_define_is_refused(tmp_path: Path) -> None:
    write_toy_images(tmp_path / "data" / "train")
    write_toy_images(tmp_path / "data" / "val", seed=1)
    for file in (tmp_path / "data" / "val" / "stripes-0").iterdir():
        file.rename(file.parents[1] / "stripes-60" / f"moved-{file.name}")
    (tmp_path / "data" / "val" / "stripes-0").rmdir()
    assert prepared(tmp_path / "data").objective.metric == "accuracy"
    with pytest.raises(DataError, match="auroc is not defined on the validation split: it lacks some of the classes"):
        prepared(tmp_path / "data", "search.metric=auroc")


def test_batch_may_be_as_large_as_the_training_split_and_no_larger(toy_images: Path) -> None:
    assert prepared(toy_images, "trainer.batch_size=24").config.trainer.batch_size == 24
    with pytest.raises(ConfigError, match=r"at most the number of training samples, 24, but got 25"):
        prepared(toy_images, "trainer.batch_size=25")


def test_wrong_backbones_are_reported_together(toy_images: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        f"name: mine\ndata: {toy_images}\nbackbones:\n- toy/mlp\n- {{name: toy/convnet, image_size: 16}}\n"
        "- toy/convnet\n- {name: timm/resnet10t, weights: none}\n- {name: timm/vit_tiny_patch16_224, weights: none}\n"
        "- {name: toy/mlp, image_size: 16}\n"
    )
    config, catalog = load_config(study)
    with pytest.raises(ConfigError) as caught:
        prepare(config, catalog, Heard())
    assert [problem.where for problem in caught.value.problems] == ["backbones.2", "backbones.5"]
    assert [problem.line for problem in caught.value.problems] == [6, 9]


def test_one_backbone_may_be_tried_at_two_sizes(toy_images: Path) -> None:
    found = prepared(toy_images, "backbones=[toy/mlp, {name: toy/mlp, image_size: 8}]")
    assert [backbone.image_size for backbone in found.backbones] == [(16, 16), (8, 8)]
    space = Space(found.backbones, (3, 3), {}, {})
    assert space.labels == ("toy/mlp [pretrained 16x16]", "toy/mlp [pretrained 8x8]")


def test_setting_of_another_task_is_refused(toy_images: Path) -> None:
    with pytest.raises(ConfigError, match=r"space\.label_smoothing: is not a setting of the task toy-classification"):
        prepared(toy_images, "task=toy-classification", "space.label_smoothing=0.1")


def test_metric_of_another_task_is_refused(toy_images: Path) -> None:
    with pytest.raises(ConfigError, match=r"search\.metric: .*f1_macro"):
        prepared(toy_images, "task=toy-classification", "search.metric=f1_macro")


def test_study_may_name_its_plugins(toy_images: Path) -> None:
    with pytest.raises(AutoftError, match=r"was left out"):
        prepared(toy_images, "plugins.allow=[timm]")
    assert prepared(toy_images, "plugins.allow=[timm, toy]").backbones


def test_study_without_a_backbone_gets_a_suggested_one_that_fits_the_device(toy_images: Path) -> None:
    config, catalog = load_config(toy_images, ["trainer.device=cpu"])
    heard = Heard()
    found = prepare(config, catalog, heard)
    assert [data["suggested"] for data in heard.of("data") if "suggested" in data] == [found.backbones[0].name]
    assert re.fullmatch(r"(timm|toy)/.+", found.backbones[0].name)


def test_any_picture_becomes_the_same_kind_of_input(tmp_path: Path) -> None:
    """Grey, RGBA, palette and 16-bit images, of several sizes and formats, in one set."""
    modes = ["L", "RGBA", "P", "1", "I;16", "RGB"]
    for label in ("cats", "dogs"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index, mode in enumerate(modes):
            image = Image.new(mode, (20 + index, 30), 100 + index + 20 * (label == "dogs"))
            image.save(tmp_path / "data" / label / f"{index}.{'png' if mode != 'RGB' else 'jpg'}")
    found = prepared(tmp_path / "data", "data.validation_share=0.2", "data.test_share=0.2")
    preprocessing = found.backbones[0].preprocessing
    for sample in (sample for samples in found.samples.values() for sample in samples):
        assert preprocessing.decode(sample.source, augmented=False).shape == (3, 16, 16)


def test_setting_of_tables_is_refused_for_a_folder_of_images(toy_images: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.text: is not a setting of image-folder data .*\(hint: remove it"):
        prepared(toy_images, "data.text=review")
