import os
import shutil

import numpy as np
import pytest
from PIL import Image

from autoft import imagefiles
from autoft.builtin import image_folder
from autoft.builtin.image_folder import autoft_data, detect, load
from autoft.errors import DataError
from autoft.files import natural_key


def draw(path, seed=None, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = abs(hash(str(path))) if seed is None else seed
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes of four images."""
    root = tmp_path / "data"
    for label in ("cat", "dog"):
        for i in range(4):
            draw(root / label / f"{i}.png")
    return root


def declared(root, **counts):
    for split, count in counts.items():
        for label in ("cat", "dog"):
            for i in range(count):
                draw(root / split / label / f"{i}.png")
    return root


def test_hook_gives_the_format():
    (found,) = autoft_data()
    assert (found.name, found.modality) == ("image-folder", "image")
    assert found.load is load
    assert found.detect is detect


def test_each_folder_is_a_class(folder):
    data = load(folder, {})
    assert (data.modality, data.task) == ("image", "image-classification")
    assert [sample.id for sample in data.samples][:2] == ["cat/0.png", "cat/1.png"]
    assert [sample.target for sample in data.samples] == ["cat"] * 4 + ["dog"] * 4
    assert {sample.split for sample in data.samples} == {None}
    assert data.samples[0].source == folder / "cat" / "0.png"
    assert data.rejected == ()


def test_extensions_count_in_any_case_and_nested_folders_belong_to_the_class(folder):
    names = ["a.JPG", "b.jpeg", "c.WebP", "d.bmp", "deeper/still/e.png"]
    for name in names:
        draw(folder / "cat" / name)
    assert {f"cat/{name}" for name in names} <= {sample.id for sample in load(folder, {}).samples}


def test_hidden_files_and_folders_and_other_files_are_left_out(folder, caplog):
    draw(folder / "cat" / ".hidden.png")
    draw(folder / ".cache" / "x.png")
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / "README.md").write_text("no image")
    caplog.set_level("INFO")
    assert len(load(folder, {}).samples) == 8
    assert "1 files" in caplog.text


def test_images_next_to_the_class_folders_are_left_out_with_a_warning(folder, caplog):
    draw(folder / "preview.png")
    assert len(load(folder, {}).samples) == 8
    assert "1 images lie directly in" in caplog.text


def test_labels_are_in_natural_order(tmp_path):
    for label in ("10", "9", "1", "b2", "b10"):
        draw(tmp_path / label / "x.png")
        draw(tmp_path / label / "y.png")
    labels = list(dict.fromkeys(sample.target for sample in load(tmp_path, {}).samples))
    assert labels == ["1", "9", "10", "b2", "b10"]


def test_natural_order_is_total_for_odd_names():
    names = ["01", "1", "a", "A", "²", "10", "a1b", ""]
    assert sorted(sorted(names), key=natural_key) == sorted(sorted(names, reverse=True), key=natural_key)


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev", "VAL"])
def test_declared_splits_are_recognized(tmp_path, validation):
    root = declared(tmp_path, Train=3, TEST=1, **{validation: 2})
    data = load(root, {})
    counts = {split: sum(sample.split == split for sample in data.samples) for split in ("train", "validation", "test")}
    assert counts == {"train": 6, "validation": 4, "test": 2}
    assert {sample.target for sample in data.samples} == {"cat", "dog"}


def test_train_may_be_a_class(tmp_path):
    for label in ("bus", "train"):
        draw(tmp_path / label / "0.png")
        draw(tmp_path / label / "1.png")
    assert {sample.target for sample in load(tmp_path, {}).samples} == {"bus", "train"}


def test_typical_size_is_the_95th_percentile_of_the_longer_side(tmp_path):
    for label in "ab":
        for i in range(50):
            draw(tmp_path / label / f"{i}.png", size=(4, 10))
    draw(tmp_path / "a" / "huge.png", size=(300, 200))
    assert load(tmp_path, {}).typical_size == 10


def test_linked_folders_are_followed_but_not_in_circles(folder):
    (folder / "cat" / "again").symlink_to(folder / "cat", target_is_directory=True)
    elsewhere = folder.parent / "elsewhere"
    draw(elsewhere / "z.png")
    (folder / "dog" / "more").symlink_to(elsewhere, target_is_directory=True)
    names = [sample.id for sample in load(folder, {}).samples]
    assert len(names) == 9
    assert "dog/more/z.png" in names


# --- content and fingerprint ---


def test_equal_files_have_equal_content(folder):
    shutil.copy(folder / "cat" / "0.png", folder / "dog" / "copy.png")
    content = {sample.id: sample.content for sample in load(folder, {}).samples}
    assert content["cat/0.png"] == content["dog/copy.png"]
    assert len(set(content.values())) == 8


def test_fingerprint_is_that_of_the_content_and_not_of_the_place(folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert load(folder, {}).fingerprint == load(moved, {}).fingerprint


@pytest.mark.parametrize("change", ["content", "name", "label", "removed"])
def test_fingerprint_changes_with(folder, change):
    before = load(folder, {}).fingerprint
    path = folder / "cat" / "0.png"
    if change == "content":
        draw(path, seed=123)
    elif change == "name":
        path.rename(folder / "cat" / "new.png")
    elif change == "label":
        path.rename(folder / "dog" / "9.png")
    else:
        path.unlink()
    assert load(folder, {}).fingerprint != before


# --- unreadable files ---


def broken(path):
    path.write_bytes(b"\x89PNG\r\n\x1a\n and nothing")


def test_one_broken_image_is_put_aside_with_a_reason(folder):
    broken(folder / "cat" / "bad.png")
    data = load(folder, {})
    assert len(data.samples) == 8
    assert [entry.id for entry in data.rejected] == ["cat/bad.png"]
    assert "is not a JPEG" in data.rejected[0].reason


def test_cut_off_image_is_put_aside(folder):
    raw = draw(folder / "cat" / "cut.png", size=(80, 80)).read_bytes()
    (folder / "cat" / "cut.png").write_bytes(raw[: len(raw) // 2])
    assert [entry.id for entry in load(folder, {}).rejected] == ["cat/cut.png"]


def test_link_to_nowhere_is_put_aside(folder):
    (folder / "cat" / "link.png").symlink_to(folder / "gone.png")
    assert load(folder, {}).rejected[0].reason == "cannot be read (No such file or directory)"


def test_more_than_the_share_is_an_error_that_lists_the_first(folder):
    for i in range(7):
        broken(folder / "cat" / f"bad{i}.png")
    with pytest.raises(DataError, match=r"at most 1 of 15 images may be unreadable, but 7") as caught:
        load(folder, {})
    assert "cat/bad0.png: is not a JPEG" in caught.value.message
    assert "and 2 more" in caught.value.message


def test_share_can_be_raised_or_set_to_none(folder):
    for i in range(2):
        broken(folder / "cat" / f"bad{i}.png")
    assert len(load(folder, {"max_rejected": 0.2}).rejected) == 2
    (folder / "cat" / "bad0.png").unlink()
    assert len(load(folder, {}).rejected) == 1
    with pytest.raises(DataError, match="at most 0 of 9"):
        load(folder, {"max_rejected": 0})


def test_all_broken_is_an_error_at_any_share(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        broken(tmp_path / label / "x.png")
    with pytest.raises(DataError, match="2 in"):
        load(tmp_path, {"max_rejected": 1.0})


# --- bad input ---


def test_missing_path_names_the_nearest(folder):
    with pytest.raises(DataError, match="there is no") as caught:
        load(folder.parent / "dta", {})
    assert "data" in (caught.value.hint or "")


def test_file_is_no_folder(folder):
    with pytest.raises(DataError, match="is a file"):
        load(folder / "cat" / "0.png", {})


def test_no_images_says_what_was_found(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("x.gif", "y.gif", "z.txt"):
        (tmp_path / "a" / name).write_text("")
    with pytest.raises(DataError, match=r"must hold images \(bmp, jpeg, jpg, png, webp\).*2 x \.gif, 1 x \.txt"):
        load(tmp_path, {})


def test_empty_folder_says_so(tmp_path):
    with pytest.raises(DataError, match="no files"):
        load(tmp_path, {})


@pytest.mark.parametrize("place", ["", "train"])
def test_images_without_class_folders_are_an_error(tmp_path, place):
    draw(tmp_path / place / "a.png")
    draw(tmp_path / place / "b.png")
    with pytest.raises(DataError, match="each class must have a folder, but 2 images lie directly in"):
        load(tmp_path, {})


def test_one_class_is_an_error(folder):
    shutil.rmtree(folder / "dog")
    with pytest.raises(DataError, match=r"at least two classes to tell apart, but .* has only 'cat'"):
        load(folder, {})


def test_empty_class_is_named(folder):
    (folder / "owl").mkdir()
    with pytest.raises(DataError, match=r"every class must have images, but .*owl has none"):
        load(folder, {})


def test_class_with_one_image_is_named(folder):
    draw(folder / "owl" / "x.png")
    with pytest.raises(DataError, match=r"at least 2 readable images .* 'owl' has 1"):
        load(folder, {})


def test_class_left_with_one_readable_image_is_named(folder):
    for i in range(3):
        (folder / "cat" / f"{i}.png").unlink()
    broken(folder / "cat" / "bad.png")
    with pytest.raises(DataError, match="'cat' has 1"):
        load(folder, {})


def test_one_image_of_a_class_is_enough_in_a_declared_test_split(tmp_path):
    assert len(load(declared(tmp_path, train=2, test=1), {}).samples) == 6


def test_splits_without_train_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"must include train, but .* has only test/, val/"):
        load(declared(tmp_path, val=2, test=2), {})


def test_scoring_a_finished_model_needs_neither_train_nor_two_classes(tmp_path):
    root = declared(tmp_path, test=1)
    shutil.rmtree(root / "test" / "dog")
    (sample,) = load(root, {"for_training": False}).samples
    assert (sample.target, sample.split) == ("cat", "test")
    with pytest.raises(DataError, match="must include train"):
        load(root, {"for_training": True})


def test_scoring_a_finished_model_still_needs_images(tmp_path):
    with pytest.raises(DataError, match="must hold images"):
        load(tmp_path, {"for_training": False})


def test_wrong_for_training_is_an_error(folder):
    with pytest.raises(DataError, match="`for_training` must be true or false, but got 'no'"):
        load(folder, {"for_training": "no"})


def test_two_folders_for_one_split_are_an_error(tmp_path):
    with pytest.raises(DataError, match="validation has dev/, val/"):
        load(declared(tmp_path, train=2, val=2, dev=2), {})


def test_images_in_a_folder_next_to_the_splits_are_an_error(tmp_path):
    root = declared(tmp_path, train=2, val=2)
    draw(root / "extra" / "x.png")
    with pytest.raises(DataError, match=r"next to train, .* extra/"):
        load(root, {})


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_folder_is_named(folder):
    (folder / "cat").chmod(0)
    try:
        with pytest.raises(DataError, match=r"every folder must be readable, but .*cat"):
            load(folder, {})
    finally:
        (folder / "cat").chmod(0o755)


def test_folder_that_the_system_refuses_to_list_is_named(folder, monkeypatch):
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(image_folder.os, "scandir", refuse)
    with pytest.raises(DataError, match=r"dog is not: Permission denied"):
        load(folder, {})


@pytest.mark.parametrize("share", [-0.1, 1.5, "a", True, None])
def test_wrong_share_is_an_error(folder, share):
    with pytest.raises(DataError, match="`max_rejected` must be a share"):
        load(folder, {"max_rejected": share})


def test_unknown_option_shows_the_nearest(folder):
    with pytest.raises(DataError, match="'max_rejcted'") as caught:
        load(folder, {"max_rejcted": 0.1})
    assert caught.value.hint == "did you mean max_rejected?"


# --- detect ---


def test_detects_classes_and_splits(folder, tmp_path):
    assert detect(folder)
    assert detect(declared(tmp_path / "splits", train=1))


def test_does_not_detect_files_missing_paths_or_folders_without_class_folders(folder, tmp_path):
    flat = tmp_path / "flat"
    draw(flat / "a.png")
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a" / "x.txt").write_text("")
    for path in (flat, tmp_path / "texts", tmp_path / "gone", folder / "cat" / "0.png"):
        assert not detect(path)


def test_detects_among_more_classes_than_it_looks_at(tmp_path):
    for i in range(400):
        (tmp_path / f"class{i}").mkdir()
        (tmp_path / f"class{i}" / "x.png").write_bytes(b"")
    assert detect(tmp_path)


def test_detect_gives_up_after_a_bounded_number_of_names(tmp_path, monkeypatch):
    monkeypatch.setattr(imagefiles, "_NAMES", 20)
    for i in range(30):
        (tmp_path / f"class{i}").mkdir()
    assert not detect(tmp_path)


def test_detect_reads_no_image(folder, monkeypatch):
    monkeypatch.setattr(imagefiles, "read_image", lambda raw: pytest.fail("read an image"))
    assert detect(folder)
