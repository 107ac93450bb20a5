"""The data format `audio-folder`: a folder of clips for each class, or clips beside a `metadata.csv` that names them."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from autoft.errors import DataError, nearest
from autoft.files import natural_key
from autoft.quarantine import check_rejected, common_options
from autoft.specs import RawData, Rejected, Sample, Split
from autoft.splits import SPLIT_NAMES
from autoft_audio.script import AudioError, read_audio

EXTENSIONS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif"})
TABLE = "metadata.csv"
FILE_COLUMNS = ("file_name", "path", "file", "audio")
LABEL_COLUMNS = ("label", "class", "target")
GROUP_COLUMNS = ("speaker", "speaker_id", "group")
SPLIT_COLUMN = "split"
_NAMES = 2000  # looked at to tell what a folder holds


def detect(path: Path) -> bool:
    """Return whether a folder has clips below it, at most three levels deep."""
    return path.is_dir() and any(is_clip(name) for name in islice(_names(path, 3), _NAMES))


def is_clip(name: str) -> bool:
    """Return whether a file's name ends as those of audio do; hidden files are none."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def load(path: Path, options: Mapping[str, Any]) -> RawData:
    """Read clips, each once, so that training will not meet a broken one.

    Without a `metadata.csv`, a class is a folder; if there is a folder `train`, it and its neighbours `val` and `test` are
    the splits. With one, each of its rows names a clip (`file_name`, relative to the folder) and its `label`; a column
    `speaker` or `group` keeps clips together when the data is divided, and `split` divides it.

    Args:
        path: The folder.
        options: `max_rejected` and `for_training` as of every format. `label`, `group`: columns of `metadata.csv`.

    Raises:
        DataError: There is nothing to learn from.
    """
    max_rejected, for_training = common_options(options, "audio-folder", ("label", "group"))
    if not path.is_dir():
        raise DataError(f"the data must be a folder, but {path} is {'a file' if path.exists() else 'not there'}")
    has_table = (path / TABLE).is_file()
    if not has_table and {"label", "group"} & set(options):
        raise DataError(f"`label` and `group` name columns of {TABLE}, but {path} has none", "remove them")
    found, columns = _from_table(path, options) if has_table else (_from_folders(path), {})
    if not found:
        raise DataError(
            f"{path} must hold clips ({', '.join(sorted(EXTENSIONS))}), but it holds none",
            f"make a folder of clips for each class, or write {TABLE} with the columns file_name and label",
        )
    samples: list[Sample] = []
    rejected: list[Rejected] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="autoft-audio") as pool:
        for entry, result in zip(found, pool.map(lambda entry: _verify(entry.source), found), strict=True):
            if isinstance(result, AudioError):
                reason = str(result).removeprefix(f"{entry.source}: ")
                rejected.append(Rejected(entry.id, reason))
            else:
                samples.append(Sample(entry.id, entry.source, entry.target, result, entry.split, entry.group))
    check_rejected(rejected, len(found), max_rejected, "clips", path)
    if for_training:
        _check_classes(path, samples)
    return RawData(
        modality="audio",
        task="classification",
        samples=tuple(samples),
        rejected=tuple(rejected),
        fingerprint=_fingerprint(samples),
        found=columns,
    )


def _from_folders(root: Path) -> list[Sample]:
    splits: dict[Split | None, Path] = {}
    if (root / "train").is_dir() and any(child.is_dir() for child in (root / "train").iterdir()):
        for folder in _folders(root):
            split = SPLIT_NAMES.get(folder.name.lower())
            if split is None or split in splits:
                raise DataError(
                    f"beside train, {root} may have one folder for validation and one for test, but it has {folder.name}",
                    "move it elsewhere",
                )
            splits[split] = folder
    else:
        splits[None] = root
    found = []
    for split in sorted(splits, key=lambda split: ("train", "validation", "test", None).index(split)):
        for folder in _folders(splits[split]):
            clips = [path for path in folder.rglob("*") if is_clip(path.name) and path.is_file()]
            for path in sorted(clips, key=lambda path: natural_key(path.as_posix())):
                found.append(Sample(path.relative_to(root).as_posix(), path, folder.name, "", split))
    return found


def _folders(root: Path) -> list[Path]:
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(folders, key=lambda path: natural_key(path.name))


def _from_table(root: Path, options: Mapping[str, Any]) -> tuple[list[Sample], dict[str, str]]:
    file = root / TABLE
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            rows, names = list(reader), list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} must be a CSV file in UTF-8: {error}") from error
    path_column = _column(file, names, FILE_COLUMNS, None, "the clips' files")
    label_column = _column(file, names, LABEL_COLUMNS, options.get("label"), "the labels")
    group_column = options.get("group") or next((name for name in GROUP_COLUMNS if name in names), None)
    if group_column is not None:
        _column(file, names, (), group_column, "the groups")
    found = []
    for number, row in enumerate(rows, start=2):
        name, label, split = row[path_column], row[label_column], (row.get(SPLIT_COLUMN) or "").strip().lower()
        if not name or not label:
            raise DataError(f"{file}: line {number} must have {path_column} and {label_column}", "fill or remove it")
        if split and split not in SPLIT_NAMES:
            raise DataError(f"{file}: line {number}: `split` must be one of {', '.join(SPLIT_NAMES)}, but is {split!r}")
        source = root / name
        if not source.resolve().is_relative_to(root.resolve()):
            raise DataError(f"{file}: line {number}: clips must lie in {root}, but {name} does not")
        group = row[group_column] or None if group_column else None
        found.append(Sample(name, source, label, "", SPLIT_NAMES[split] if split else None, group))
    repeated = [name for name, count in Counter(sample.id for sample in found).items() if count > 1]
    if repeated:
        raise DataError(f"{file}: each clip must have one line, but {repeated[0]} has more", "remove the others")
    columns = {"label": label_column, **({"group": group_column} if group_column else {})}
    return found, columns


def _column(file: Path, names: list[str], usual: tuple[str, ...], given: object, what: str) -> str:
    known = (str(given),) if given is not None else usual
    for name in known:
        if name in names:
            return name
    near = nearest(known[0], names)
    raise DataError(
        f"{file} must have a column for {what} ({' or '.join(known)}), but has {', '.join(names) or 'none'}",
        f"did you mean {near[0]}?" if near else "rename one, or name it in the study's `data`",
    )


def _verify(path: Path) -> str | AudioError:
    """Decode a clip; return the hash of its file, or what is wrong with it."""
    try:
        read_audio(path)
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except AudioError as error:
        return error
    except OSError as error:
        return AudioError(str(error))


def _check_classes(root: Path, samples: list[Sample]) -> None:
    counts = Counter(sample.target for sample in samples if sample.split in (None, "train"))
    if len(counts) < 2:
        raise DataError(
            f"there must be at least two classes to tell apart, but {root} has {', '.join(counts) or 'none'}",
            "add a folder, or rows, for each further class",
        )
    few = [label for label, count in counts.items() if count < 2]
    if few:
        raise DataError(f"a class must have at least 2 readable clips to learn from, but {few[0]!r} has 1", "add some")


def _names(folder: Path, depth: int) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                yield entry.name
            elif depth > 1 and entry.is_dir() and not entry.name.startswith("."):
                yield from _names(Path(entry.path), depth - 1)


def _fingerprint(samples: list[Sample]) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    for sample in sorted(samples, key=lambda sample: sample.id):
        row = [sample.id, sample.content, sample.target, sample.split, sample.group]
        hashed.update(json.dumps(row).encode() + b"\n")
    return hashed.hexdigest()
