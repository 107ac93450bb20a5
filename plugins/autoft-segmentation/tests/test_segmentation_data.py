"""The data format `image-mask-folder`: what is found, what masks mean, and errors that name the file."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoft_segmentation import autoft_data, data
from autoft_segmentation.masks import Classes, Mask, read_classes, read_mask, read_values, voc_colour
from PIL import Image
from segmentation_toys import paint, write_pairs

from autoft.discovery import discover
from autoft.errors import DataError
from autoft.runtime import image_classification
from autoft.specs import RawData

OPTIONS = {"max_rejected": 0.01, "for_training": True}


def load(folder: Path, **options: Any) -> RawData:
    return data.load(folder, {**OPTIONS, **options})


def masks_of(raw: RawData) -> list[np.ndarray]:
    return [read_mask(sample.target) for sample in raw.samples]


def test_folder_is_recognized_before_looser_formats(tmp_path: Path) -> None:
    write_pairs(tmp_path / "flat", 2)
    write_pairs(tmp_path / "split" / "train", 2)
    (tmp_path / "classes" / "images").mkdir(parents=True)
    Image.fromarray(paint(0)[0]).save(tmp_path / "classes" / "images" / "0.png")
    catalog = discover()
    assert catalog.detect_data(tmp_path / "flat").name == "image-mask-folder"
    assert catalog.detect_data(tmp_path / "split").name == "image-mask-folder"
    assert catalog.detect_data(tmp_path / "classes").name == "image-folder"
    assert not data.detect(tmp_path / "missing")
    assert [format_.name for format_ in autoft_data()] == ["image-mask-folder"]


def test_pairs_are_read_in_order_with_their_classes(tmp_path: Path) -> None:
    raw = load(write_pairs(tmp_path, 3))
    assert [sample.id for sample in raw.samples] == ["images/000.png", "images/001.png", "images/002.png"]
    assert raw.task == "semantic-segmentation"
    assert raw.samples[0].target.classes.labels == ("background", "red", "blue")
    assert raw.samples[0].target.present == (0, 1, 2)
    assert raw.typical_size == 32
    for number, mask in enumerate(masks_of(raw)):
        assert np.array_equal(mask, paint(number)[1])
    assert pickle.loads(pickle.dumps(raw.samples[0])) == raw.samples[0]


def test_splits_are_those_of_the_folders(tmp_path: Path) -> None:
    for place, split in enumerate(("train", "val", "test")):
        write_pairs(tmp_path / split, 2, first=2 * place, names=False)
    (tmp_path / "classes.txt").write_text("background\nred\nblue\n")
    raw = load(tmp_path)
    assert [sample.split for sample in raw.samples] == ["train", "train", "validation", "validation", "test", "test"]


def test_without_names_the_ids_that_occur_are_the_classes(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path, 2, names=False)
    for file in (folder / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(file)) * 7).save(file)
    raw = load(folder)
    assert raw.samples[0].target.classes == Classes(("0", "7", "14"), (0, 7, 14))
    assert np.array_equal(masks_of(raw)[0], paint(0)[1])
    assert raw.samples[0].target.present == (0, 1, 2)


@pytest.mark.parametrize("mode", ["palette", "colours", "alpha", "bilevel"])
def test_masks_of_any_exact_kind_mean_the_same(tmp_path: Path, mode: str) -> None:
    folder = write_pairs(tmp_path, 2)
    for number, file in enumerate(sorted((folder / "masks").iterdir())):
        mask = paint(number)[1]
        if mode == "bilevel":
            Image.fromarray(mask > 0).save(file)
            continue
        image = Image.fromarray(mask)
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
        (image if mode == "palette" else image.convert("RGB" if mode == "colours" else "RGBA")).save(file)
    if mode in ("colours", "alpha"):
        (folder / "classes.txt").write_text("background #000000\nred #ff0000\ndeep blue #0000FF\n")
    raw = load(folder)
    wanted = paint(0)[1]
    assert np.array_equal(masks_of(raw)[0], wanted > 0 if mode == "bilevel" else wanted)
    if mode in ("colours", "alpha"):
        assert raw.samples[0].target.classes.palette[2] == (0, 0, 255)
        assert raw.samples[0].target.classes.labels[2] == "deep blue"


def test_255_and_classes_named_null_are_unknown(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path, 2)
    mask = paint(0)[1]
    mask[:4], mask[4:8] = 255, 9
    Image.fromarray(mask).save(folder / "masks" / "000.png")
    (folder / "classes.txt").unlink()
    (folder / "classes.json").write_text(json.dumps({"0": "background", "1": "red", "2": "blue", "9": None}))
    found = masks_of(load(folder))[0]
    assert bool((found[:8] == 255).all())
    assert np.array_equal(found[8:], paint(0)[1][8:])


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (["sky", "road"], Classes(("sky", "road"), (0, 1))),
        ({"3": "sky", "5": "road"}, Classes(("sky", "road"), (3, 5))),
        ([{"name": "sky", "id": 4}, {"name": "road", "id": 2}], Classes(("sky", "road"), (4, 2))),
        (
            [{"name": "sky", "color": [1, 2, 3]}, {"name": None, "color": [0, 0, 1]}, {"name": "road", "color": [4, 5, 6]}],
            Classes(("sky", "road"), (0, 2), ((1, 2, 3), (4, 5, 6)), (1,)),
        ),
    ],
)
def test_forms_of_classes_json(tmp_path: Path, content: Any, wanted: Classes) -> None:
    assert read_classes(tmp_path) is None
    (tmp_path / "classes.json").write_text(json.dumps(content))
    assert read_classes(tmp_path) == wanted


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "is no file of classes"),
        ("3", "must be a list or an object, but is int"),
        ('["sky"]', "must be 2 to 255 classes, but .* names 1"),
        ('["sky", "sky"]', "names of classes must differ, but .* has 'sky' twice"),
        ('["sky", 3]', "a class's name must be a text or null, but is 3"),
        ('{"a": "sky", "1": "road"}', "is no file of classes: invalid literal"),
        ('{"-1": "sky", "1": "road"}', "must not be negative, but .* has -1"),
        ('[{"name": "a", "color": [0, 0, 256]}, "b"]', "`color` must be .* but is .0, 0, 256."),
        ('[{"name": "a", "color": [0, 0, 1]}, "b"]', "must have a colour or none, but in .* 1 of 2 have one"),
        ('[{"name": "a", "color": [0, 0, 1]}, {"name": "b", "color": [0, 0, 1]}]', "colours of classes must differ"),
        ('[{"id": 1}, "b"]', "entry 0 has no `name`"),
    ],
)
def test_wrong_classes_json_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(DataError, match=said):
        read_classes(tmp_path)


def test_two_files_of_classes_and_an_empty_line_are_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("sky\n\nroad\n")
    with pytest.raises(DataError, match="line 2 is empty"):
        read_classes(tmp_path)
    (tmp_path / "classes.json").write_text("[]")
    with pytest.raises(DataError, match="must have one file of classes"):
        read_classes(tmp_path)


# --- what is wrong with the files ---------------------------------------------------------------------


def test_missing_mask_is_named_with_the_file_that_is_wanted(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path, 3)
    (folder / "masks" / "001.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 in .* have none, such as images/001.png\nhint: write masks/001.png"):
        load(folder)
    Image.fromarray(paint(1)[1]).save(folder / "masks" / "001.jpg")
    with pytest.raises(DataError, match=r"must be PNG or BMP, as others change values: convert 001\.jpg"):
        load(folder)


def test_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path, 2)
    Image.fromarray(paint(1)[1][:20]).save(folder / "masks" / "001.png")
    with pytest.raises(DataError, match=r"masks/001.png is 32 x 20 and images/001.png, upright, is 32 x 24"):
        load(folder)


def test_value_that_means_nothing_is_named_with_those_that_do(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path, 2)
    mask = paint(1)[1]
    mask[0, :5] = 17
    Image.fromarray(mask).save(folder / "masks" / "001.png")
    with pytest.raises(DataError, match=r"classes \(0, 1, 2\) or 255, but masks/001.png has the class id 17 in 5 pixels"):
        load(folder)


@pytest.mark.parametrize("names", [True, False])
def test_colours_without_names_are_refused(tmp_path: Path, names: bool) -> None:
    folder = write_pairs(tmp_path, 2, names=names)
    image = Image.open(folder / "masks" / "001.png").convert("RGB")
    image.save(folder / "masks" / "001.png")
    with pytest.raises(DataError, match=r"masks/001\.png is an RGB image without a file of classes"):
        load(folder)


def test_colour_of_no_class_is_named(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path, 2)
    (folder / "classes.txt").write_text("background #000000\nred #ff0000\nblue #0000ff\n")
    for file in sorted((folder / "masks").iterdir()):
        Image.new("RGB", (32, 24), (255, 0, 1)).save(file)
    with pytest.raises(DataError, match="has the colour #ff0001 in 768 pixels"):
        load(folder)


def test_unreadable_files_are_left_out_within_the_limit(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path, 4)
    (folder / "images" / "001.png").write_bytes(b"no image")
    raw = load(folder)
    assert [item.id for item in raw.rejected] == ["images/001.png"]
    assert len(raw.samples) == 3
    (folder / "masks" / "002.png").write_bytes(b"no mask")
    with pytest.raises(DataError, match="pairs of image and mask"):
        load(folder)
    found = load(folder, max_rejected=0.5).rejected
    assert [item.reason for item in found][1] == "masks/002.png: masks must be PNG or BMP files: others change values"


def test_masks_that_are_pipes_or_far_too_large_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pairs(tmp_path, 4)
    (folder / "masks" / "001.png").unlink()
    os.mkfifo(folder / "masks" / "001.png")
    (rejected,) = load(folder).rejected
    assert rejected.id == "images/001.png"
    assert "is no file" in rejected.reason
    monkeypatch.setattr(image_classification, "MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="masks may have 100 pixels, but it has 32 x 24"):
        read_values(folder / "masks" / "000.png")


def test_folders_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "both", 2)
    write_pairs(folder / "train", 2)
    with pytest.raises(DataError, match="has both"):
        load(folder)
    write_pairs(tmp_path / "test-only" / "test", 2)
    with pytest.raises(DataError, match=r"must include train, but .* has only test"):
        load(tmp_path / "test-only")
    assert len(load(tmp_path / "test-only", for_training=False).samples) == 2
    with pytest.raises(DataError, match="must have the folders images/ and masks/"):
        load(tmp_path)
    twins = write_pairs(tmp_path / "twins", 2)
    Image.fromarray(paint(0)[0]).save(twins / "images" / "000.jpg")
    with pytest.raises(DataError, match=r"there are 000.(jpg|png) and 000.(jpg|png)"):
        load(twins)


def test_folder_that_cannot_be_read_is_told_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pairs(tmp_path, 2)
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("masks"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"every folder must be readable, but .*masks is not: Permission denied"):
        load(folder)


def test_one_class_is_nothing_to_learn_and_a_class_without_pixels_is_told(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path, 2)
    (folder / "classes.txt").write_text("background\nred\nblue\ngreen\n")
    assert load(folder).notes == ("no training mask has green: the model cannot learn what it never sees",)
    for file in (folder / "masks").iterdir():
        Image.new("L", (32, 24)).save(file)
    with pytest.raises(DataError, match="at least two classes to tell apart, but training masks have background"):
        load(folder)


def test_fingerprint_follows_masks_and_classes(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path, 2)
    before = load(folder).fingerprint
    assert load(folder).fingerprint == before
    mask = paint(0)[1]
    mask[0, 0] = 2
    Image.fromarray(mask).save(folder / "masks" / "000.png")
    changed = load(folder).fingerprint
    assert changed != before
    (folder / "classes.txt").write_text("ground\nred\nblue\n")
    assert load(folder).fingerprint not in (before, changed)


def test_mask_that_changed_since_is_told(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path, 2)
    target: Mask = load(folder).samples[0].target
    Image.new("L", (8, 8)).save(folder / "masks" / "000.png")
    with pytest.raises(DataError, match="was 32 x 24 when the search began, but is 8 x 8"):
        read_mask(target)
    (folder / "masks" / "000.png").unlink()
    with pytest.raises(DataError, match="but is not any more"):
        read_mask(target)


def test_palette_is_pascal_vocs() -> None:
    wanted = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128)]
    assert [voc_colour(number) for number in range(8)] == wanted
    assert len({voc_colour(number) for number in range(256)}) == 256


def test_values_of_sixteen_bits_are_not_cut(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(tmp_path / "mask.png")
    assert read_values(tmp_path / "mask.png").tolist() == [[0, 300]]
