"""Keeps what frozen stages give for each sample: in memory, or in files that processes share."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from autoft.errors import first_line
from autoft.files import checksum_of, read_json, write_checked

logger = logging.getLogger("autoft")

_ZEROS = 1 << 24  # bytes written at once
DISK = 20 << 30  # bytes of a folder of stores; what was used least recently goes first


@dataclass(frozen=True)
class Kept:
    """One view's activations: a row of bytes a sample, or a place of a text.

    Attributes:
        values: `(places, bytes)` uint8, perhaps mapped from a file.
        dtype: Of what the bytes are.
        shape: Of a row of them.
    """

    values: np.ndarray
    dtype: torch.dtype
    shape: tuple[int, ...]

    def take(self, places: np.ndarray) -> Tensor:
        """Return some rows, as they were recorded."""
        return torch.from_numpy(self.values[places]).view(self.dtype).view(len(places), *self.shape)


class PrefixStore:
    """Keeps activations of one study's data by name.

    Args:
        folder: For stores, of one study's data alone, shared by its processes; None keeps them in memory.
        memory: Bytes of activations that may be held in memory; larger stores are read from their files.
        disk: Bytes that the folder may take.
    """

    def __init__(self, folder: Path | None, *, memory: int, disk: int = DISK) -> None:
        self._folder = folder
        self._memory = memory
        self._disk = disk
        self._held: dict[str, Kept] = {}
        self._compared: set[str] = set()  # by this process, which opens mapped files again and again

    @property
    def nbytes(self) -> int:
        """Bytes of activations held in memory."""
        return sum(kept.values.nbytes for kept in self._held.values())

    @property
    def limit(self) -> int:
        """Bytes that one store may have."""
        return self._memory if self._folder is None else self._disk

    def exists(self, key: str) -> bool:
        """Return whether a store is complete."""
        return key in self._held or (self._folder is not None and (self._folder / f"{key}.json").exists())

    def get(self, key: str, places: int, make: Callable[[], Iterator[tuple[np.ndarray, Tensor]]]) -> Kept:
        """Return a store, made where there is none.

        Args:
            key: Its name.
            places: Rows of it.
            make: Yields the numbers of some rows, and the rows.
        """
        if key in self._held:
            self._held[key] = self._held.pop(key)  # the order is that of the last use
            return self._held[key]
        if self._folder is None:
            kept = _filled(places, make(), None)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            stem = self._folder / key
            with FileLock(stem.with_suffix(".lock")):
                opened = self._open(stem, places)
                if opened is None:
                    _write(stem, places, make())
                    self._make_room(stem)
                    opened = _open(stem, places, self._memory, compare=False)
                kept = opened
                os.utime(stem.with_suffix(".json"))
        if isinstance(kept.values, np.memmap):
            return kept  # not held: a file that is removed to make room would stay on the disk as long
        self._held[key] = kept
        for stale in list(self._held)[:-1]:
            if self.nbytes <= self._memory:
                break
            del self._held[stale]
        return kept

    def _open(self, stem: Path, places: int) -> Kept | None:
        """Return a store of the folder; None where there is none, or it is damaged and so has to be made again."""
        if not stem.with_suffix(".json").exists():
            return None
        try:
            kept = _open(stem, places, self._memory, compare=stem.name not in self._compared)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("the outputs of frozen stages in %s are damaged and are made again: %s", stem, first_line(error))
            stem.with_suffix(".json").unlink()
            return None
        self._compared.add(stem.name)
        return kept

    def _make_room(self, latest: Path) -> None:
        """Remove the stores that were used least recently; a process that reads one keeps its open file."""
        assert self._folder is not None
        with FileLock(self._folder / "room.lock"):  # one process at a time
            files = sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
            sizes = {file: file.with_suffix(".bin").stat().st_size for file in files}
            for file in files:
                if sum(sizes.values()) <= self._disk:
                    return
                if file.stem == latest.name:
                    continue
                try:
                    with FileLock(file.with_suffix(".lock"), timeout=0):
                        file.unlink()  # first: without it, the rest is no store
                        file.with_suffix(".bin").unlink()
                except Timeout:
                    continue  # being opened, so not the one to remove
                del sizes[file]


# --- files: the values, then the description, which commits ------------------------------------------------------------


def _filled(places: int, parts: Iterator[tuple[np.ndarray, Tensor]], file: Path | None) -> Kept:
    kept: Kept | None = None
    for numbers, rows in parts:
        flat = rows.contiguous().reshape(len(rows), -1).view(torch.uint8).numpy()
        if kept is None:
            shape = (places, flat.shape[1])
            if file is not None:
                _reserve(file, shape[0] * shape[1])
            values = np.empty(shape, np.uint8) if file is None else np.memmap(file, np.uint8, "r+", shape=shape)
            kept = Kept(values, rows.dtype, tuple(rows.shape[1:]))
        kept.values[numbers] = flat
    assert kept is not None  # a split has samples
    return kept


def _reserve(file: Path, size: int) -> None:
    """Make a file of a size whose disk is ours: a map that finds the disk full would end the process by a signal."""
    with open(file, "wb") as new:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(new.fileno(), 0, size)
            return
        for start in range(0, size, _ZEROS):
            new.write(bytes(min(_ZEROS, size - start)))


def _write(stem: Path, places: int, parts: Iterator[tuple[np.ndarray, Tensor]]) -> None:
    draft = stem.with_suffix(".part")
    try:
        kept = _filled(places, parts, draft)
        assert isinstance(kept.values, np.memmap)
        kept.values.flush()
        content = checksum_of(draft)
        described = {
            "places": places, "bytes": kept.values.nbytes, "dtype": str(kept.dtype).removeprefix("torch."),
            "shape": list(kept.shape), "content": content,
        }  # fmt: skip
        del kept  # closes the file, which Windows wants before it is renamed
        os.replace(draft, stem.with_suffix(".bin"))
    finally:
        draft.unlink(missing_ok=True)
    write_checked(stem.with_suffix(".json"), described)


def _open(stem: Path, places: int, memory: int, *, compare: bool) -> Kept:
    """Open a store, and with `compare` hold it against its checksum; what it raises says that it is damaged."""
    described = read_json(stem.with_suffix(".json"))
    file = stem.with_suffix(".bin")
    size = file.stat().st_size
    if described["places"] != places or described["bytes"] != size:
        raise ValueError(f"it holds {described['places']} rows in {size} bytes")
    if compare and described["content"] != checksum_of(file):
        raise ValueError("its content does not match its checksum")
    shape = (places, size // places)
    small = size <= memory
    values = np.fromfile(file, np.uint8).reshape(shape) if small else np.memmap(file, np.uint8, "r", shape=shape)
    return Kept(values, getattr(torch, described["dtype"]), tuple(described["shape"]))
