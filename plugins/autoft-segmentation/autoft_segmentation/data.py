"""The data format `image-mask-folder`: `images/` and `masks/` of the same names, optionally below `train/`, `val/`, `test/`.

What a mask's values mean is `masks.py`'s.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.errors import DataError
from autoft.files import natural_key
from autoft.imagefiles import EXTENSIONS, is_image
from autoft.quarantine import check_rejected, common_options
from autoft.specs import RawData, Rejected, Sample, Split
from autoft.splits import SPLIT_NAMES
from autoft_segmentation.masks import MOST_CLASSES, UNKNOWN, Classes, Mask, read_classes, read_values, to_classes

IMAGES, MASKS = "images", "masks"
MASK_EXTENSIONS = (".png", ".bmp")
EXAMPLES = 3
BATCH = 1024  # pairs that are queued at once; bounds memory on millions of files


def detect(path: Path) -> bool:
    """Return whether a folder, or a folder `train` in it, has `images/` and `masks/`."""
    try:
        return path.is_dir() and (_holds_pairs(path) or bool(_split_folders(path)))
    except OSError:  # an unreadable folder holds nothing that could be loaded; loading it says so if asked
        return False


def load(path: Path, options: Mapping[str, Any]) -> RawData:
    """Read a folder of images and masks, decoding each once to be sure that training will not meet a broken one.

    Args:
        path: The folder.
        options: `max_rejected`: the share of pairs of which a file may be unreadable (default 0.01). `for_training`: False
            where a finished model is scored.

    Returns:
        Samples in natural order of their names, split by split; targets are `Mask`s.

    Raises:
        DataError: There is nothing to learn from, an image has no mask or one of another size, or a mask has a value that
            means nothing.
    """
    max_rejected, for_training = common_options(options, "image-mask-folder")
    if not path.is_dir():
        raise DataError(f"the data must be a folder with {IMAGES}/ and {MASKS}/, but {path} is none", "check the spelling")
    pairs = _pairs(path, for_training)
    declared = read_classes(path)
    read: list[_Read] = []
    rejected: list[Rejected] = []
    for result in _read_all(path, pairs, declared):
        if isinstance(result, _Read):
            read.append(result)
        else:
            rejected.append(result)
    check_rejected(rejected, len(pairs), max_rejected, "pairs of image and mask", path)
    classes = declared or _found(read, path)
    # with a file of classes they were read as classes; without, as ids
    numbers = {value: number for number, value in enumerate(range(len(classes.ids)) if declared else classes.ids)}
    samples = []
    for one in read:
        target = Mask(one.mask, one.size, classes, tuple(numbers[value] for value in one.present))
        samples.append(Sample(one.id, one.image, target, one.content, one.split))
    trained = {number for sample in samples if sample.split in (None, "train") for number in sample.target.present}
    if for_training and len(trained) < 2:
        names = ", ".join(classes.labels[number] for number in sorted(trained)) or "none"
        raise DataError(f"there must be at least two classes to tell apart, but training masks have {names}", "add masks")
    missing = [label for number, label in enumerate(classes.labels) if number not in trained]
    notes = (f"no training mask has {', '.join(missing)}: the model cannot learn what it never sees",) if missing else ()
    sides = sorted(max(one.size) for one in read)
    return RawData(
        modality="image",
        task="semantic-segmentation",
        samples=tuple(samples),
        rejected=tuple(rejected),
        fingerprint=_fingerprint(read, classes),
        typical_size=sides[min(len(sides) - 1, math.ceil(0.95 * len(sides)))],
        notes=notes if for_training else (),
    )


# --- finding ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """An image's file and its mask's."""

    id: str
    image: Path
    mask: Path
    split: Split | None


def _holds_pairs(folder: Path) -> bool:
    return (folder / IMAGES).is_dir() and (folder / MASKS).is_dir()


def _split_folders(root: Path) -> dict[Split, Path]:
    """Return the folders of splits with images and masks; of several for one split, none may be left out in silence."""
    found: dict[Split, Path] = {}
    for folder in sorted(root.iterdir(), key=lambda one: natural_key(one.name)):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is not None and folder.is_dir() and _holds_pairs(folder):
            if split in found:
                raise DataError(f"a split must have one folder, but {split} has {found[split].name}/ and {folder.name}/")
            found[split] = folder
    return found


def _pairs(root: Path, for_training: bool) -> list[_Pair]:
    splits = _split_folders(root)
    if splits and _holds_pairs(root):
        raise DataError(
            f"images must lie below {IMAGES}/ or below split folders, but {root} has both",
            f"move {IMAGES}/ and {MASKS}/ into train/, or remove the split folders",
        )
    if not splits and not _holds_pairs(root):
        raise DataError(
            f"{root} must have the folders {IMAGES}/ and {MASKS}/, or train/ with them",
            "give each image a mask of the same name, such as images/cat.jpg and masks/cat.png",
        )
    if splits and "train" not in splits and for_training:
        raise DataError(f"split folders must include train, but {root} has only {', '.join(splits)}", "name one train/")
    folders: list[tuple[Split | None, Path]] = [(None, root)] if not splits else []
    folders += [(split, splits[split]) for split in ("train", "validation", "test") if split in splits]
    return [pair for split, folder in folders for pair in _pairs_of(root, folder, split)]


def _pairs_of(root: Path, folder: Path, split: Split | None) -> Iterator[_Pair]:
    images = dict(_files(folder / IMAGES, tuple(EXTENSIONS)))
    masks = dict(_files(folder / MASKS, MASK_EXTENSIONS))
    if not images:
        known = ", ".join(sorted(extension[1:] for extension in EXTENSIONS))
        raise DataError(f"{folder / IMAGES} must hold images ({known}), but holds none", "convert them to PNG")
    missing = [images[stem] for stem in images if stem not in masks]
    if missing:
        shown = ", ".join(path.relative_to(root).as_posix() for path in missing[:EXAMPLES])
        wanted = (folder / MASKS / missing[0].relative_to(folder / IMAGES)).with_suffix(".png").relative_to(root)
        lossy = next(
            (path for path in _walk(folder / MASKS) if is_image(path.name) and path.suffix not in MASK_EXTENSIONS), None
        )
        raise DataError(
            f"every image must have a mask of the same name, but {len(missing)} of {len(images)} in {folder / IMAGES} have "
            f"none, such as {shown}",
            f"masks must be PNG or BMP, as others change values: convert {lossy.name}"
            if lossy
            else f"write {wanted.as_posix()}",
        )
    for stem, image in images.items():
        yield _Pair(image.relative_to(root).as_posix(), image, masks[stem], split)


def _files(folder: Path, extensions: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Yield the files of some extensions by their name without it, relative to the folder."""
    seen: dict[str, Path] = {}
    for path in _walk(folder):
        if path.suffix.lower() in extensions:
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in seen:
                raise DataError(
                    f"files must differ in more than their extension, but there are {seen[stem].name} and {path.name}",
                    f"rename or remove one in {path.parent}",
                )
            seen[stem] = path
            yield stem, path


def _walk(folder: Path) -> list[Path]:
    """Return the files in a folder and below, hidden ones left out, in natural order."""
    found = [
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=_unreadable)
        for name in names
        if not name.startswith(".") and not any(part.startswith(".") for part in Path(parent).relative_to(folder).parts)
    ]
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def _unreadable(error: OSError) -> None:
    raise DataError(f"every folder must be readable, but {error.filename} is not: {error.strerror}") from error


# --- reading ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    """A pair that can be used: its files' hashes, width and height, and which classes (or ids) its mask has."""

    id: str
    image: Path
    mask: Path
    split: Split | None
    content: str
    mask_content: str
    size: tuple[int, int]
    present: tuple[int, ...]


def _read_all(root: Path, pairs: Sequence[_Pair], classes: Classes | None) -> Iterator[_Read | Rejected]:
    # threads: Pillow decodes without holding the interpreter's lock
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(pairs), BATCH):
            yield from pool.map(lambda pair: _read(root, pair, classes), pairs[start : start + BATCH])


def _read(root: Path, pair: _Pair, classes: Classes | None) -> _Read | Rejected:
    import numpy as np

    from autoft.runtime.image_classification import ImageError, check_image_file, read_image

    name = pair.mask.relative_to(root).as_posix()
    try:
        for file in (pair.image, pair.mask):  # before it is read: a pipe would never end
            check_image_file(file)
        raw, raw_mask = pair.image.read_bytes(), pair.mask.read_bytes()
        size = read_image(raw).size
    except OSError as error:
        return Rejected(pair.id, f"cannot be read ({error.strerror})")
    except ImageError as error:
        return Rejected(pair.id, str(error).removeprefix("image: "))
    try:
        values = read_values(raw_mask)
    except ValueError as error:
        return Rejected(pair.id, f"{name}: {error}")
    if values.shape != (size[1], size[0]):
        raise DataError(
            f"a mask must have the size of its image, but {name} is {values.shape[1]} x {values.shape[0]} and {pair.id}, "
            f"upright, is {size[0]} x {size[1]}",
            "resize the mask with nearest-neighbour interpolation, which makes no new values",
        )
    if classes is None and (values < 0).any():
        to_classes(values, Classes((), ()), name)  # raises: colours need a file that names them
    found = values if classes is None else to_classes(values, classes, name)
    present = tuple(value for value in np.unique(found).tolist() if value != UNKNOWN)
    content, mask_content = (hashlib.blake2b(each, digest_size=16).hexdigest() for each in (raw, raw_mask))
    return _Read(pair.id, pair.image, pair.mask, pair.split, content, mask_content, size, present)


def _found(read: Sequence[_Read], root: Path) -> Classes:
    """Return the classes that masks without a file of classes have: their ids, by which they are named too."""
    ids = sorted({id_ for one in read for id_ in one.present})
    if len(ids) > MOST_CLASSES or (ids and ids[-1] > UNKNOWN):
        raise DataError(
            f"class ids must be 0 to {UNKNOWN - 1}, but the masks in {root} have {len(ids)} values up to {ids[-1]}",
            "are they classes? name them in classes.json",
        )
    return Classes(tuple(str(id_) for id_ in ids), tuple(ids))


def _fingerprint(read: Sequence[_Read], classes: Classes) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    hashed.update(repr(classes).encode() + b"\n")
    for one in sorted(read, key=lambda one: one.id):
        hashed.update(json.dumps([one.id, one.content, one.mask_content, one.split]).encode() + b"\n")
    return hashed.hexdigest()
