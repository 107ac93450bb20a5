"""Files to Arrow on disk, once: `datasets` keeps the copy in its cache for as long as the file stays as it is."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from filelock import FileLock

from autoft.errors import DataError, first_line
from autoft.files import checksum_of, read_json, remove_tree, write_checked
from autoft.tables.parsing import FAULT, LINE, examine, read_tables
from autoft.tables.sources import kind_of
from autoft.tables.typed import features_of

READER = 3  # of the files' reading; a new number makes every copy anew
COPIES = "autoft-table"  # their folder in the cache of `datasets`
CHECKSUMS = "checksums.json"
_TYPED = ("parquet", "arrow")


logger = logging.getLogger("autoft")


@dataclass
class _Config(datasets.BuilderConfig):  # type: ignore[misc]
    """Which file is converted."""

    file: str = ""
    kind: str = ""


class _Builder(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    """Converts one file with `autoft.tables.parsing`; `datasets` writes, locks and finds the copy."""

    BUILDER_CONFIG_CLASS = _Config

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo()

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        path, kind = Path(self.config.file), self.config.kind
        if kind in _TYPED:
            found = None
            self.info.features = features_of(path, kind)
        else:
            found = examine(path, kind)
            text = datasets.Value("string")
            columns = {**dict.fromkeys(found.columns, text), LINE: datasets.Value("int64"), FAULT: text}
            self.info.features = datasets.Features(columns)
            self.info.description = json.dumps(asdict(found))  # found again with the copy
        return [datasets.SplitGenerator(name="train", gen_kwargs={"path": path, "kind": kind, "found": found})]

    def _generate_tables(self, path: Path, kind: str, found: Any) -> Iterator[tuple[Any, pa.Table]]:
        for number, table in enumerate(read_tables(path, kind, found)):
            yield _key(number), table


def _key(number: int) -> Any:
    # what names a part of the copy differs between versions of `datasets`
    key = getattr(datasets.builder, "Key", None)
    return number if key is None else key(0, number)


def convert(path: Path) -> tuple[datasets.Dataset, dict[str, Any]]:
    """Return a file as a data set on disk, and how the file is written (empty for files with types of their own).

    The copy is named by the file's path, size and time of change, so that an edited file is read again.

    Raises:
        DataError: The file cannot be read as a table, or the disk is full.
    """
    kind = kind_of(path)
    assert kind is not None
    status = path.stat()
    identity = [str(path.resolve()), kind, status.st_size, status.st_mtime_ns, READER]
    name = hashlib.blake2b(json.dumps(identity).encode(), digest_size=8).hexdigest()
    folder = Path(datasets.config.HF_DATASETS_CACHE) / COPIES / name
    with _quiet(), _alone(folder, path):
        _remove_damaged(folder)
        builder = _Builder(dataset_name=COPIES, config_id=name, file=str(path), kind=kind)
        try:
            builder.download_and_prepare()
            _seal(Path(builder.cache_dir))
            if not builder.info.splits["train"].num_examples:
                raise DataError(f"a table must have rows, but {path} has none", "look at the file")
            dataset = builder.as_dataset(split="train")
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, DataError):
                raise error.__cause__ from error
            raise _unreadable(path, error.__cause__ or error) from error
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from error
        except (ValueError, NotImplementedError) as error:  # types that `datasets` has no counterpart of
            raise _unreadable(path, error) from error
    return dataset, json.loads(builder.info.description) if builder.info.description else {}


def _seal(copy: Path) -> None:
    """Note the checksums of a copy that was made now."""
    if not (copy / CHECKSUMS).exists():
        write_checked(copy / CHECKSUMS, {file.name: checksum_of(file) for file in sorted(copy.iterdir())})


@contextmanager
def _alone(folder: Path, path: Path) -> Iterator[None]:
    """Let one process at a time make a copy, or find that it is damaged."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "autoft.lock")
        lock.acquire()
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _remove_damaged(folder: Path) -> None:
    """Remove a copy that is not what was written, so that it is made again."""
    for copy in (path for path in folder.glob("*") if path.is_dir() and path.suffix != ".incomplete"):
        try:
            noted = read_json(copy / CHECKSUMS)
            if noted == {name: checksum_of(copy / name) for name in noted}:
                continue
            why = "its content does not match its checksum"
        except (OSError, ValueError) as error:  # also where a kill came before its checksums
            why = first_line(error)
        logger.warning("the copy of a table in %s is damaged and is made again: %s", copy, why)
        remove_tree(copy)


def _unreadable(path: Path, error: BaseException) -> DataError:
    return DataError(
        f"{path} cannot be read as a table: {first_line(error)}",
        f"look at the file; its copy is made in {datasets.config.HF_DATASETS_CACHE} (HF_DATASETS_CACHE), which needs room",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide `datasets`' progress bars, which know neither --quiet nor --json."""
    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()
