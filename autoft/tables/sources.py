"""Which tables lie at a path: files by suffix, folders by the splits in their files' names, saved data sets, the hub."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoft.config import HUB
from autoft.errors import DataError, first_line, nearest
from autoft.files import natural_key
from autoft.imagefiles import holds_class_folders, is_image
from autoft.specs import Split
from autoft.splits import SPLIT_NAMES

# Settings of a study's `data` section that tables take.
OPTIONS = ("task", "text", "image", "label", "delimiter", "group", "split", "validation", "test", "subset")
KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
}
COMPRESSED = ("csv", "jsonl", "json", "conll")  # kinds that may end in .gz
_SAVED = "state.json", "dataset_dict.json"  # what `datasets.save_to_disk` leaves in its folders
_ABOUT = frozenset({"dataset_info.json", "dataset_infos.json", "config.json", "package.json", *_SAVED})
_HEAD = 1 << 16
_NAMES = 2000  # of a folder, looked at
_TAG = re.compile(r"O|[BIESLU]-\S+")


@dataclass(frozen=True)
class Source:
    """One table.

    Attributes:
        name: Begins its rows' ids.
        split: The split that its name declares, or None.
        folder: What paths in it are relative to.
        file: The file, or None for a data set.
        dataset: A `datasets.Dataset`, or None for a file.
    """

    name: str
    split: Split | None
    folder: Path
    file: Path | None = None
    dataset: Any = None


def is_table(path: Path) -> bool:
    """Return whether a path is a table, a folder of them, or a data set on the hub; reads at most the head of a file."""
    if str(path).startswith(HUB):
        return True
    if path.is_file():
        return kind_of(path) is not None
    if not path.is_dir():
        return False
    if any((path / name).is_file() for name in _SAVED):
        return True
    return bool(_files(path)) and (not holds_class_folders(path) or names_images(path))


def kind_of(path: Path) -> str | None:
    """Return how a file is to be read: csv, jsonl, json, parquet, arrow or conll; None where it is no table."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        kind = KINDS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return kind if kind in COMPRESSED else None
    if suffixes[-1:] == [".txt"]:
        return "conll" if _looks_tagged(path) else None
    return KINDS.get(suffixes[-1]) if suffixes else None


def split_of(name: str) -> Split | None:
    """Return the split that a file's or data set's name speaks of, such as train of `reviews-train-00000-of-00002`."""
    words = re.split(r"[^a-z]+", name.lower())
    found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def names_images(folder: Path) -> bool:
    """Return whether a table in a folder names images there; reads the first lines of a few files."""
    for file in _files(folder)[:4]:
        kind = kind_of(file)
        if kind not in ("csv", "jsonl") or file.suffix.lower() == ".gz":
            continue
        with file.open("rb") as opened:
            head = opened.read(_HEAD).decode("utf-8-sig", "replace")
        for cell in _first_cells(head, kind):
            if is_image(cell) and (os.path.isfile(file.parent / cell) or os.path.isfile(folder / cell)):
                return True
    return False


def find_sources(path: Path, options: Mapping[str, Any]) -> tuple[list[Source], list[str]]:
    """Return the tables at a path and those of the options `validation` and `test`, and notes for people.

    Raises:
        DataError: There is none, or it is not clear which is meant.
    """
    sources, notes = _at(path, options.get("subset"))
    splits: tuple[Split, ...] = ("validation", "test")
    for split in splits:
        if options.get(split) is None:
            continue
        if any(source.split == split for source in sources):
            raise DataError(
                f"{split} must be given once, but {path} has it, and `data.{split}` is {options[split]}",
                f"leave `data.{split}` out, or name the file to learn from as `data.path`",
            )
        more, further = _at(Path(options[split]), None)
        sources.extend(replace(source, split=split) for source in more)
        notes.extend(further)
    named: list[Source] = []
    for source in sources:
        taken = any(source.name == other.name for other in named)
        named.append(replace(source, name=f"{source.split}/{source.name}") if taken else source)
    return named, notes


def _at(path: Path, subset: str | None) -> tuple[list[Source], list[str]]:
    if str(path).startswith(HUB):
        return _from_hub(path, subset)
    if subset is not None:
        raise DataError(f"`data.subset` is for data on the hub, but the data is {path}", "remove it")
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, siblings)
        hint = f"did you mean {path.parent / near[0]}?" if near else "check the spelling, and the folder you are in"
        raise DataError(f"a table must be a file or a folder, but there is no {path}", hint)
    if path.is_dir():
        return _in_folder(path)
    if kind_of(path) is None:
        known = ", ".join(suffix[1:] for suffix in KINDS)
        raise DataError(
            f"a table must be a file of a known kind ({known}; or txt with a word and its tag a line), but got {path.name}",
            "rename it by what it holds, or convert it to CSV or JSON lines",
        )
    return [Source(path.name, None, path.parent, path)], []


# --- folders ----------------------------------------------------------------------------------------


def _in_folder(folder: Path) -> tuple[list[Source], list[str]]:
    if any((folder / name).is_file() for name in _SAVED):
        return _saved(folder)
    files = _files(folder)
    if not files:
        known = ", ".join(suffix[1:] for suffix in KINDS)
        raise DataError(f"{folder} must hold tables ({known}), but it holds none", "name the file or folder of the tables")
    splits = {file: _split_in(folder, file) for file in files}
    named = [file for file in files if splits[file]]
    others = [file for file in files if not splits[file]]
    notes: list[str] = []
    if any(splits[file] == "train" for file in named):
        if others:
            notes.append(f"{_listed(folder, others)} in {folder} are named after no split, and were left out")
        others = []
    elif len(others) > 1 and not _are_shards(others):
        raise DataError(
            f"the tables of a folder must be named by split (train, validation, test) or be parts of one, but {folder} has "
            f"{_listed(folder, files)}",
            f"name the one to learn from, such as {folder / others[0].name}; `data.validation` and `data.test` name others",
        )
    chosen = [*named, *others]
    for split in dict.fromkeys(splits[file] for file in chosen):
        of_split = [file for file in chosen if splits[file] == split]
        if len({kind_of(file) for file in of_split}) > 1:
            raise DataError(
                f"the tables of a split must be of one format, but {split or folder.name} has {_listed(folder, of_split)}",
                "keep one of them, or name the file to learn from",
            )
    return [Source(file.relative_to(folder).as_posix(), splits[file], file.parent, file) for file in chosen], notes


def _files(folder: Path) -> list[Path]:
    """Return the tables in a folder, in its `data`, and in folders named after splits, in natural order."""
    found: list[Path] = []
    below = [folder / "data", *(entry for entry in _entries(folder) if entry.is_dir() and entry.name.lower() in SPLIT_NAMES)]
    for place in (folder, *below):
        if place.is_dir():
            files = [entry for entry in _entries(place) if entry.name not in _ABOUT and entry.is_file()]
            found.extend(entry for entry in files if kind_of(entry) and (entry.suffix != ".txt" or split_of(entry.stem)))
    return sorted(found, key=lambda file: natural_key(file.relative_to(folder).as_posix()))


def _entries(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry, _ in zip(entries, range(_NAMES), strict=False)]
    except OSError as error:
        raise DataError(
            f"every folder must be readable, but {folder} is not: {error.strerror}", "change its permissions"
        ) from error
    return [folder / name for name in names if not name.startswith(".")]


def _split_in(root: Path, file: Path) -> Split | None:
    if file.parent != root and file.parent.name.lower() in SPLIT_NAMES:
        return SPLIT_NAMES[file.parent.name.lower()]
    return split_of(file.name.split(".")[0])


def _are_shards(files: Sequence[Path]) -> bool:
    return len({re.sub(r"\d+", "#", file.name) for file in files}) == 1


def _listed(root: Path, files: Sequence[Path]) -> str:
    names = [file.relative_to(root).as_posix() for file in files]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _looks_tagged(path: Path) -> bool:
    """Return whether the head of a text file has a word and its tag on each line."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD // 16).decode("utf-8", "replace")
    except OSError:  # what cannot be read is no table; loading it by another name says why
        return False
    lines = [line.split() for line in head.splitlines()[: -1 if len(head) > 1000 else None] if line.strip()]
    lines = [fields for fields in lines if fields[0] not in ("-DOCSTART-", "#")]
    return (
        len(lines) > 1
        and len({len(fields) for fields in lines}) == 1
        and len(lines[0]) > 1
        and all(_TAG.fullmatch(fields[-1]) for fields in lines)
    )


def _first_cells(head: str, kind: str) -> list[str]:
    lines = head.splitlines()[:6]
    if kind == "csv":
        separators = [mark for mark in ",\t;|" if mark in (lines or [""])[0]] or [","]
        return [cell for row in csv.reader(io.StringIO("\n".join(lines)), delimiter=separators[0]) for cell in row]
    cells: list[str] = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # a line cut off by the head's end, or none of JSON: loading names it
            continue
        cells.extend(value for value in row.values() if isinstance(value, str)) if isinstance(row, dict) else None
    return cells


# --- data sets --------------------------------------------------------------------------------------


def _saved(folder: Path) -> tuple[list[Source], list[str]]:
    import datasets
    import pyarrow as pa

    # whatever its JSON and its schema hold
    wrong = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, pa.ArrowException)
    try:
        return _of_dataset(datasets.load_from_disk(str(folder)), folder, folder.name)
    except wrong as error:
        raise DataError(
            f"{folder} looks like a saved data set, but cannot be read: {first_line(error)}", "save it again"
        ) from error


def _from_hub(path: Path, subset: str | None) -> tuple[list[Source], list[str]]:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    name = str(path).removeprefix(HUB).lstrip("/").removeprefix("datasets/").strip("/")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise DataError(
            f"data on the hub must be named `hf://datasets/OWNER/NAME`, but got {path}",
            "such as hf://datasets/cornell-movie-review-data/rotten_tomatoes",
        )
    try:
        loaded = datasets.load_dataset(name, subset)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"the data set {name} cannot be found on the hub: {first_line(error)}",
            "check its name; a private one needs `hf auth login`",
        ) from error
    except ValueError as error:
        text = str(error)
        if "config" in text.lower():
            raise DataError(
                f"{name} has several configurations: {' '.join(text.split())[:600]}", "choose one: --set data.subset=NAME"
            ) from error
        raise DataError(
            f"the data set {name} cannot be read: {first_line(error)}", "load it with `datasets` to see why"
        ) from error
    except (OSError, HfHubHTTPError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"the data set {name} cannot be fetched from the hub, and is not in the cache: {first_line(error)}",
            "check the network, or save it elsewhere with `datasets` (`save_to_disk`) and name that folder",
        ) from error
    return _of_dataset(loaded, Path(), name)


def _of_dataset(loaded: Any, folder: Path, name: str) -> tuple[list[Source], list[str]]:
    if not isinstance(loaded, Mapping):
        return [Source(name, None, folder, dataset=loaded)], []
    splits = {key: split_of(key) for key in loaded}
    if len(splits) == 1:
        splits = dict.fromkeys(splits)
    strange = [key for key, split in splits.items() if split is None and len(splits) > 1]
    sources = [Source(key, splits[key], folder, dataset=loaded[key]) for key in splits if key not in strange]
    if not sources:
        raise DataError(
            f"the splits of a data set must be named train, validation or test, but {name} has {', '.join(splits)}"
        )
    notes = [f"the parts {', '.join(strange)} of {name} are named after no split, and were left out"] if strange else []
    return sources, notes
