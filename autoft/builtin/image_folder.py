"""The data format `image-folder`: one folder a class, optionally below `train/`, `val/` and `test/`."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autoft.errors import DataError, nearest
from autoft.files import natural_key
from autoft.hookspecs import hookimpl
from autoft.imagefiles import EXTENSIONS, holds_class_folders, is_image, verify_images
from autoft.quarantine import check_rejected, common_options
from autoft.specs import DataFormat, RawData, Rejected, Sample, Split
from autoft.splits import SPLIT_NAMES
from autoft.tables.sources import names_images

_log = logging.getLogger(__name__)
_EXAMPLES = 5


@hookimpl
def autoft_data() -> list[DataFormat]:
    """Return the format `image-folder`."""
    return [
        DataFormat(
            name="image-folder",
            modality="image",
            detect=detect,
            load=load,
            help="A folder of images for each class, optionally below train/, val/ and test/.",
        )
    ]


def detect(path: Path) -> bool:
    """Return whether a folder has a subfolder with an image in it, and no table that says what the images are."""
    return holds_class_folders(path) and not names_images(path)


def load(path: Path, options: Mapping[str, Any]) -> RawData:
    """Read a folder of images, decoding each once to be sure that training will not meet a broken one.

    A class is a folder; folders inside it belong to it. If there is a folder `train` with class folders, it and its
    neighbours `val` (or `valid`, `validation`, `dev`) and `test`, in any case, are the splits. Hidden files and files
    without an image's extension are left out.

    Args:
        path: The folder.
        options: `max_rejected`: the share of images that may be unreadable (default 0.01). One unreadable image is
            always tolerated, as 1 % of a small set would be none; but 0 tolerates none. `for_training`: False where a
            finished model is scored, which needs neither two classes nor a `train` folder (default True).

    Returns:
        Samples ordered by split, class and name; numbers inside names count as numbers.

    Raises:
        DataError: There is nothing to learn from: no images, one class, an empty class, too many unreadable files ...
    """
    max_rejected, for_training = common_options(options, "image-folder")
    if not path.exists():
        raise DataError(f"the data must be a folder, but there is no {path}", hint=_near_path(path))
    if not path.is_dir():
        raise DataError(f"the data must be a folder, but {path} is a file", hint="name the folder that holds the classes")
    classes = _find_classes(path, for_training)
    _check_found(path, classes, for_training)
    samples, rejected, sizes = _read(path, classes)
    check_rejected(rejected, len(samples) + len(rejected), max_rejected, "images", path)
    if for_training:
        _check_classes(classes, samples)
    return RawData(
        modality="image",
        task="image-classification",
        samples=tuple(samples),
        rejected=tuple(rejected),
        fingerprint=_fingerprint(samples),
        typical_size=math.ceil(np.percentile(sizes, 95)),
    )


# --- finding ------------------------------------------------------------------------------------------


@dataclass
class _Folder:
    """What lies in a folder and below: images, and how many files of which other extensions."""

    images: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Class:
    """A class's folder in one split."""

    label: str
    split: Split | None
    folder: Path
    files: _Folder


def _find_classes(root: Path, for_training: bool) -> list[_Class]:
    """Return every class folder, ordered by split and label."""
    splits = _split_folders(root, for_training)
    classes = []
    for split, folder in splits.items() if splits else [(None, root)]:
        subfolders, loose = _entries(folder)
        images = [path for path in loose if is_image(path.name)]
        if images and not subfolders:
            raise DataError(
                f"each class must have a folder, but {len(images)} images lie directly in {folder}",
                hint=f"move them into folders named by their class, such as {folder / 'cats' / images[0].name}",
            )
        if images:
            _log.warning("%d images lie directly in %s, in no class folder, and are left out", len(images), folder)
        found = [_Class(sub.name, split, sub, _walk(sub, ())) for sub in subfolders]
        classes.extend(sorted(found, key=lambda entry: natural_key(entry.label)))
    ignored = sum(sum(entry.files.others.values()) for entry in classes)
    if ignored:
        _log.info("%d files in %s are no images and are left out", ignored, root)
    return classes


def _split_folders(root: Path, for_training: bool) -> dict[Split, Path]:
    """Return the folders of the declared splits; none where the folders of the root are classes."""
    subfolders, _ = _entries(root)
    named: dict[Split, list[Path]] = {}
    for folder in subfolders:
        if split := SPLIT_NAMES.get(folder.name.lower()):
            named.setdefault(split, []).append(folder)
    others = [folder for folder in subfolders if folder.name.lower() not in SPLIT_NAMES]
    if "train" not in named:
        if not named or others:
            return {}
        if for_training:
            raise DataError(
                f"split folders must include train, but {root} has only {_names(subfolders)}",
                hint="name the folder to learn from `train`; val and test can be left out",
            )
    # `train` may be a class, next to `bus` and `car`: then it holds images rather than classes.
    if others and not any(_entries(folder)[0] for folder in named["train"]):
        return {}
    for split, folders in named.items():
        if len(folders) > 1:
            raise DataError(f"a split must have one folder, but {split} has {_names(folders)}", hint="merge them into one")
    with_images = [folder for folder in others if _walk(folder, ()).images]
    if with_images:
        raise DataError(
            f"next to train, images may lie in val and test only, but there are some in {_names(with_images)}",
            hint=f"move the folder out of {root}, or remove the split folders so that every folder is a class",
        )
    return {split: named[split][0] for split in ("train", "validation", "test") if split in named}


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the subfolders and the files of a folder in natural order, hidden ones left out."""
    try:
        with os.scandir(folder) as scanned:
            visible = [(entry.is_dir(), Path(entry.path)) for entry in scanned if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"every folder must be readable, but {folder} is not: {error.strerror}",
            hint="change its permissions, or move it elsewhere",
        ) from error
    visible.sort(key=lambda entry: natural_key(entry[1].name))
    return [path for is_folder, path in visible if is_folder], [path for is_folder, path in visible if not is_folder]


def _walk(folder: Path, above: Sequence[tuple[int, int]]) -> _Folder:
    """Return the images in a folder and below it; links are followed, but not in circles."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    result = _Folder()
    if here in above:
        _log.warning("%s links to a folder that it lies in, and is left out", folder)
        return result
    subfolders, files = _entries(folder)
    for path in files:
        if is_image(path.name):
            result.images.append(path)
        else:
            result.others[path.suffix.lower() or "no extension"] += 1
    for subfolder in subfolders:
        below = _walk(subfolder, (*above, here))
        result.images.extend(below.images)
        result.others.update(below.others)
    return result


# --- reading ------------------------------------------------------------------------------------------


def _read(root: Path, classes: Sequence[_Class]) -> tuple[list[Sample], list[Rejected], list[int]]:
    """Decode and hash every image; return samples, rejected ones, and the samples' longer sides in pixels."""
    samples: list[Sample] = []
    rejected: list[Rejected] = []
    sizes: list[int] = []
    files = [(entry, path) for entry in classes for path in entry.files.images]
    for (entry, path), result in zip(files, verify_images([path for _, path in files]), strict=True):
        name = path.relative_to(root).as_posix()
        if isinstance(result, str):
            rejected.append(Rejected(name, result))
        else:
            content, size = result
            samples.append(Sample(name, source=path, target=entry.label, content=content, split=entry.split))
            sizes.append(size)
    return samples, rejected, sizes


def _fingerprint(samples: Sequence[Sample]) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    for sample in sorted(samples, key=lambda sample: sample.id):
        hashed.update(json.dumps([sample.id, sample.content, sample.target, sample.split]).encode() + b"\n")
    return hashed.hexdigest()


# --- checks -------------------------------------------------------------------------------------------


def _check_found(root: Path, classes: Sequence[_Class], for_training: bool) -> None:
    if not any(entry.files.images for entry in classes):
        others = sum((entry.files.others for entry in classes), Counter(_loose_extensions(root)))
        listed = ", ".join(f"{count} x {extension}" for extension, count in others.most_common(_EXAMPLES))
        known = ", ".join(sorted(extension[1:] for extension in EXTENSIONS))
        raise DataError(
            f"{root} must hold images ({known}), but it holds {listed or 'no files'}",
            hint="name a folder with one folder of images for each class, or convert the images to PNG",
        )
    for entry in classes:
        if not entry.files.images:
            raise DataError(
                f"every class must have images, but {entry.folder} has none",
                hint="put images there, or delete the folder",
            )
    training = [entry for entry in classes if entry.split in (None, "train")]
    if for_training and len(training) < 2:
        found = f"only {training[0].label!r}" if training else "none"
        raise DataError(
            f"there must be at least two classes to tell apart, but {root} has {found}",
            hint="add a folder for each further class",
        )


def _loose_extensions(root: Path) -> Counter[str]:
    return Counter(path.suffix.lower() or "no extension" for path in _entries(root)[1])


def _check_classes(classes: Sequence[_Class], samples: Sequence[Sample]) -> None:
    counts = Counter(sample.target for sample in samples if sample.split in (None, "train"))
    for entry in classes:
        if entry.split in (None, "train") and counts[entry.label] < 2:
            raise DataError(
                f"a class must have at least 2 readable images to learn from, but {entry.label!r} has "
                f"{counts[entry.label]} in {entry.folder}",
                hint="add images, or delete the folder",
            )


def _names(folders: Sequence[Path]) -> str:
    return ", ".join(f"{folder.name}/" for folder in folders)


def _near_path(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, siblings)
    return f"did you mean {path.parent / near[0]}?" if near else "check the spelling, and the folder you are in"
