"""Says which runs lie in a folder, and what became of each; what one of them holds, its report says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autoft.errors import AutoftError, RunError
from autoft.finish import read_result
from autoft.runfolder import was_searched
from autoft.status import read_status


@dataclass(frozen=True)
class Run:
    """A run, in one line.

    Attributes:
        path: Its folder.
        name: Of its study.
        state: `done`, `stopped`, `killed`, `running`, or `damaged`.
        metric: What is optimized; empty where that is not known.
        value: The best value on the validation split so far, or None.
        test: The exported model's on the test split, or None.
        backbone: The best trial's; empty before there is one.
        ended: How many trials have ended.
        budget: How many there may be, or None where that is not known.
        heard: When it was last heard of, in seconds since 1970.
        size: Bytes of all its files.
        problem: Why it cannot be read, or None.
    """

    path: Path
    name: str
    state: str
    metric: str
    value: float | None
    test: float | None
    backbone: str
    ended: int
    budget: int | None
    heard: float
    size: int
    problem: str | None = None


def runs_in(folder: Path) -> tuple[Run, ...]:
    """Return the runs of a folder and its subfolders' runs, the latest first; nothing is changed.

    Args:
        folder: Such as `runs`; a run folder itself is the only one in it.

    Raises:
        RunError: There is no such folder.
    """
    if not folder.is_dir():
        raise RunError(
            f"runs are listed from a folder, but {folder} is none", "name the folder that holds them; by default it is runs"
        )
    found = [_look(path) for path in _candidates(folder)]
    return tuple(sorted(found, key=lambda run: (-run.heard, str(run.path))))


def _candidates(folder: Path) -> Iterator[Path]:
    if was_searched(folder):
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and was_searched(path):
            yield path


def _look(path: Path) -> Run:
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    try:
        status, result = read_status(path), read_result(path) or {}
    except (AutoftError, OSError, ValueError, LookupError, TypeError) as error:
        return Run(path, path.name, "damaged", "", None, None, "", 0, None, 0.0, size, f"{type(error).__name__}: {error}")
    best, metric = status.best, result.get("metric", status.metric)
    winner = result.get("winner", {})
    return Run(
        path=path,
        name=status.name or path.name,
        state=status.state,
        metric=metric,
        value=winner.get("value", best.value if best is not None else None),
        test=result.get("test", {}).get(metric),
        backbone=winner.get("settings", {}).get("backbone", best.backbone if best is not None else ""),
        ended=status.ended,
        budget=status.budget,
        heard=status.heard,
        size=size,
    )
