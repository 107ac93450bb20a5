"""Errors that stop a search for what is no trial's fault: a full disk, data that is gone, trials that all fail."""

from __future__ import annotations

from pathlib import Path

from autoft.errors import DataError, RunError
from autoft.worker import Failure


def full_disk(path: Path, message: str) -> RunError:
    """Return the error of a run folder whose disk is full."""
    return RunError(
        f"the disk of {path} is full: {message}",
        "free some space, then type the same command again: nothing that was finished is lost",
    )


def stop_if_not_its_fault(failure: Failure, path: Path) -> None:
    """Raise where a training failed for what every other would fail for, too.

    Args:
        failure: Of a training, which can go on from its checkpoint.
        path: The run folder.

    Raises:
        RunError: The disk is full.
        DataError: The data cannot be read any more.
    """
    if failure.kind == "disk":
        raise full_disk(path, failure.message)
    if failure.kind == "data":
        raise DataError(failure.message.partition(": ")[2], "restore the data, then type the same command again")
