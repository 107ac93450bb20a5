"""Decoded samples of one shape, such as images: in this process's memory, or in a file that a search's processes map."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from autoft.files import checksum_of, read_json, write_checked

logger = logging.getLogger("autoft")

DISK_SHARE = 0.25  # of what is free on the disk, that one split may take


@dataclass(frozen=True)
class Shared:
    """Where processes share a split.

    Attributes:
        folder: Of one study's data alone.
        name: Of the split.
        described: What the decoded samples depend on, JSON-ready; with the name it tells the file.
    """

    folder: Path
    name: str
    described: Any

    @property
    def stem(self) -> Path:
        """The file, without its ending."""
        declared = json.dumps(self.described, sort_keys=True)
        return self.folder / f"{self.name}-{hashlib.sha256(declared.encode()).hexdigest()[:16]}"


def hold(first: Tensor, count: int, items: Callable[[], Iterable[Tensor]], *, memory: int) -> Tensor | None:
    """Return all samples in memory `(count, *shape)`, or None where they are too many.

    Args:
        first: The first sample, whose shape and type all have.
        count: How many there are.
        items: Decodes them, in order.
        memory: Bytes that they may take.
    """
    if first.numel() * first.element_size() * count > memory:
        return None
    held = torch.empty((count, *first.shape), dtype=first.dtype)
    for row, item in enumerate(items()):
        held[row] = item
    return held


def share(first: Tensor, count: int, items: Callable[[], Iterable[Tensor]], where: Shared) -> Tensor | None:
    """Return all samples `(count, *shape)` as a view of a file, or None where the disk is too small for them.

    What is there already is compared with its checksum, once a process, and made again where it is damaged.
    Whoever comes first writes the file; others wait for it. Its pages are in memory once, however many processes map them.
    """
    size = first.numel() * first.element_size() * count
    where.folder.mkdir(parents=True, exist_ok=True)
    file = where.stem.with_suffix(".bin")
    with FileLock(where.stem.with_suffix(".lock")):
        if not _whole(file, size):
            if size > DISK_SHARE * shutil.disk_usage(where.folder).free:
                return None
            _write(file, items())
    # copy on write: torch wants a writable array, and nobody's writing may reach the others
    mapped = np.memmap(file, np.uint8, "c", shape=(size,))
    return torch.from_numpy(mapped).view(first.dtype).view(count, *first.shape)


def _whole(file: Path, size: int) -> bool:
    """Return whether a file is there and what was written; one that is not is told, and removed."""
    described = file.with_suffix(".json")
    if not described.exists():
        return False
    try:
        if read_json(described) == {"bytes": size, "content": checksum_of(file)}:
            return True
        why = "its content does not match its checksum"
    except (OSError, ValueError) as error:
        why = str(error)
    logger.warning("the decoded samples in %s are damaged and are made again: %s", file, why)
    described.unlink()
    return False


def _write(file: Path, items: Iterable[Tensor]) -> None:
    draft = file.with_suffix(".part")
    try:
        with open(draft, "wb") as out:  # written, not mapped: a full disk is then an error, and no signal
            for item in items:
                out.write(item.contiguous().view(torch.uint8).numpy().tobytes())
        content = checksum_of(draft)
        os.replace(draft, file)  # a cache: after a loss of power its checksum shows what is missing, so it is not synced
    finally:
        draft.unlink(missing_ok=True)
    write_checked(file.with_suffix(".json"), {"bytes": file.stat().st_size, "content": content})
