"""Keeps decoded samples of different lengths, such as tokenized texts: made once, held in memory or in a file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from autoft.errors import DataError, first_line
from autoft.files import checksum_of, read_json, write_checked
from autoft.ragged import Ragged
from autoft.specs import RaggedPreprocessing, Sample

logger = logging.getLogger("autoft")

CHUNK = 1024  # samples that are decoded together: enough for the tokenizer's threads
IN_MEMORY = 256 << 20  # bytes; more is read from the file, which the system caches without it counting as ours


@dataclass(frozen=True)
class Tokens:
    """All decoded samples of a split, `(T, C)` int32 each.

    Attributes:
        lengths: T of each sample, `(N,)` int64.
        parts: Parts (words) of each sample that targets are for, `(N,)`; 0 where there are none.
        cut: How many samples were too long.
        columns: C.
    """

    lengths: np.ndarray
    parts: np.ndarray
    cut: int
    columns: int
    _offsets: np.ndarray
    _held: Ragged | None
    _file: _Reader | None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def in_memory(self) -> bool:
        """Whether all of it is held in memory."""
        return self._held is not None

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return self._held.nbytes if self._held is not None else 0

    def take(self, rows: np.ndarray) -> Ragged:
        """Return some samples."""
        if self._held is not None:
            return self._held[rows]
        assert self._file is not None  # one of both, by construction
        size = 4 * self.columns
        read = [self._file.read(int(self._offsets[row]) * size, int(self.lengths[row]) * size) for row in rows]
        values = torch.frombuffer(bytearray(b"".join(read)), dtype=torch.int32).view(-1, self.columns)
        lengths = torch.from_numpy(self.lengths[rows])
        return Ragged(values, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))


def decode_all(
    samples: Sequence[Sample], preprocessing: RaggedPreprocessing, *, memory: int, cache: Path | None, name: str
) -> Tokens:
    """Decode all samples of a split, or find them decoded in a cache.

    Args:
        samples: Read in their order, a chunk at a time, never all at once.
        preprocessing: Decodes them.
        memory: Bytes that may be held in memory.
        cache: Folder for the decoded samples, of one study's data alone; None holds them in memory whatever their size.
        name: Of the split; with the preprocessing it names the file.

    Raises:
        DataError: A sample cannot be decoded.
    """
    if cache is None:
        parts, cut = [], 0
        for chunk, of_chunk in _decoded(samples, preprocessing):
            parts.append(chunk)
            cut += of_chunk
        held = Ragged.cat(parts)
        return _tokens(held.lengths.numpy(), preprocessing.count_parts(held), cut, held.values.shape[1], held, None)
    declared = json.dumps(preprocessing.to_dict(), sort_keys=True)
    stem = cache / f"{name}-{hashlib.sha256(declared.encode()).hexdigest()[:16]}"
    if stem.with_suffix(".json").exists():
        try:
            return _open(stem, len(samples), min(memory, IN_MEMORY))
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("the decoded samples in %s are damaged and are made again: %s", stem, first_line(error))
            stem.with_suffix(".json").unlink(missing_ok=True)
    _write(stem, samples, preprocessing)
    return _open(stem, len(samples), min(memory, IN_MEMORY))


def _decoded(samples: Sequence[Sample], preprocessing: RaggedPreprocessing) -> Iterator[tuple[Ragged, int]]:
    for start in range(0, len(samples), CHUNK):
        chunk = [samples[row] for row in range(start, min(start + CHUNK, len(samples)))]
        try:
            decoded, cut = preprocessing.decode_many([sample.source for sample in chunk])
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"a sample from {chunk[0].id} to {chunk[-1].id} cannot be decoded: {error}", "look at it in the data"
            ) from error
        yield decoded, int(cut.sum())


def _write(stem: Path, samples: Sequence[Sample], preprocessing: RaggedPreprocessing) -> None:
    """Write the values, then lengths and parts, then the description, which commits."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    lengths, parts, cut, columns = [], [], 0, 1
    # a name of its own for each process: two runs of one folder may not share a half-written file
    draft = stem.with_suffix(f".{os.getpid()}.part")
    try:
        with open(draft, "wb") as file:
            for chunk, of_chunk in _decoded(samples, preprocessing):
                file.write(chunk.values.numpy().astype("<i4").tobytes())
                lengths.append(chunk.lengths.numpy())
                parts.append(preprocessing.count_parts(chunk))
                cut, columns = cut + of_chunk, chunk.values.shape[1]
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, stem.with_suffix(".bin"))
        counts = np.stack([np.concatenate(lengths), np.concatenate(parts)])
        with open(draft, "wb") as file:
            np.save(file, counts, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, stem.with_suffix(".npy"))
    finally:
        draft.unlink(missing_ok=True)
    total = int(counts[0].sum()) * columns * 4
    described = {"samples": counts.shape[1], "columns": columns, "cut": cut, "bytes": total, "content": _content(stem)}
    write_checked(stem.with_suffix(".json"), described)


def _content(stem: Path) -> list[str]:
    return [checksum_of(stem.with_suffix(suffix)) for suffix in (".bin", ".npy")]


def _open(stem: Path, samples: int, memory: int) -> Tokens:
    described = read_json(stem.with_suffix(".json"))
    if described["content"] != _content(stem):
        raise ValueError("their content does not match their checksums")
    if described["samples"] != samples:
        raise ValueError(f"they are {described['samples']} samples")
    lengths, parts = np.load(stem.with_suffix(".npy"), allow_pickle=False)
    columns, cut, size = int(described["columns"]), int(described["cut"]), int(described["bytes"])
    file = open(stem.with_suffix(".bin"), "rb")  # noqa: SIM115 - stays open as long as the split is in use
    if size > memory:
        return _tokens(lengths, parts, cut, columns, None, _Reader(file))
    with file:
        values = torch.from_numpy(np.fromfile(file, dtype="<i4").reshape(-1, columns))
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
    return _tokens(lengths, parts, cut, columns, Ragged(values, offsets), None)


def _tokens(
    lengths: np.ndarray, parts: np.ndarray, cut: int, columns: int, held: Ragged | None, file: _Reader | None
) -> Tokens:
    return Tokens(lengths, parts, cut, columns, np.concatenate([[0], np.cumsum(lengths)]), held, file)


class _Reader:
    """Reads parts of a file from several threads.

    Reading copies from the system's cache of the file. A memory map would save the copy, but every page ever touched would
    count as this process's memory.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def read(self, start: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), count, start)
        with self._lock:  # Windows
            self._file.seek(start)
            return self._file.read(count)
