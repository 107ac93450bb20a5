"""Frees what a run folder needs to go on, and not for its result; the search itself removes what no trial can want again.

Whatever goes is made again by the same search where it is wanted, so it comes to the same result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoft.checkpoint import ADAPTER
from autoft.contest import CONFIRM
from autoft.files import remove_tree
from autoft.finish import read_result
from autoft.runfolder import PIXELS, PREFIX, REFIT, TOKENS, hold
from autoft.worker import CHECKPOINT, WEIGHTS

CACHES = (
    (PREFIX, "outputs of frozen stages"),
    (PIXELS, "decoded images"),
    (TOKENS, "texts as tokens"),
)


@dataclass(frozen=True)
class Freed:
    """Something that was removed, or would be.

    Attributes:
        what: In words.
        bytes: How large its files were.
        files: How many there were.
        afterwards: What it takes to have it again.
    """

    what: str
    bytes: int
    files: int
    afterwards: str


@dataclass(frozen=True)
class Cleaned:
    """What a run folder lost, and what it still holds.

    Attributes:
        freed: What was removed, the largest first.
        bytes: Of all that was removed.
        kept: Bytes of the files that stay.
    """

    freed: tuple[Freed, ...]
    bytes: int
    kept: int


def clean(run: Path, *, keep_weights: bool = False, everything: bool = False, dry_run: bool = False) -> Cleaned:
    """Remove what a finished or abandoned run does not need for its result.

    Without a result no trial has won yet, so all weights stay, unless everything goes.

    Args:
        run: The run folder.
        keep_weights: Whether the weights of all trials stay.
        everything: Whether also the winner's trainings lose their weights; the bundle holds them.
        dry_run: Whether to look only.

    Raises:
        RunError: It is no run folder, another process holds it, or its `result.json` is damaged; nothing was removed.
    """
    with hold(run):
        before, freed = _size(_files(run)), list[Freed]()
        for what, afterwards, paths in _plan(run, keep_weights=keep_weights, everything=everything):
            files = [file for path in paths for file in _files(path)]
            if not paths:
                continue
            freed.append(Freed(what, _size(files), len(files), afterwards))
            for path in paths if not dry_run else ():
                if path.is_dir():
                    remove_tree(path)
                else:
                    path.unlink()
    total = sum(each.bytes for each in freed)
    return Cleaned(tuple(sorted(freed, key=lambda each: -each.bytes)), total, before - total)


def _plan(run: Path, *, keep_weights: bool, everything: bool) -> Iterator[tuple[str, str, list[Path]]]:
    """Yield what is to go: in words, what it takes to have it again, and the files and folders."""
    result = read_result(run)
    resting = _there(run.glob(f"*/*/{CHECKPOINT}"))
    yield _counted(resting, "checkpoint"), "a trial that goes on begins at its first epoch", resting
    for name, what in CACHES:
        yield f"{name}/ ({what})", "made again when the search goes on", _there([run / name])
    yield f"{REFIT}/ (a training on both splits)", "begins again when the search goes on", _there([run / REFIT])
    if everything or (result is not None and not keep_weights):
        winner = None if result is None or everything else str(result["winner"]["trial"])
        # `trials/N` and `confirm/N-SEED`; of an adapter the files count as weights
        lost = [
            path
            for name in (WEIGHTS, ADAPTER)
            for path in _there([*run.glob(f"trials/*/{name}"), *run.glob(f"{CONFIRM}/*/{name}")])
            if path.parent.name.partition("-")[0] != winner
        ]
        afterwards = f"`autoft export {run} --trial N` trains a trial again, and so does the search where it wants them"
        trainings = len({path.parent for path in lost})
        yield f"weights of {trainings} training{'s' * (trainings != 1)}", afterwards, lost
    # beside these, what a killed process left while it wrote
    left = [path for folder in (run, *_folders(run)) for ending in ("tmp", "old") for path in folder.glob(f".*.{ending}")]
    yield _counted(_there(left), "unfinished file"), "of no use", _there(left)


def _folders(run: Path) -> list[Path]:
    return [*run.glob("trials/*"), *run.glob(f"{CONFIRM}/*"), run / "exports"]


def _there(paths: Iterator[Path] | Sequence[Path]) -> list[Path]:
    """Return the paths that are there and are no links: what lies behind a link may be another's."""
    return sorted(path for path in paths if path.exists() and not path.is_symlink())


def _files(path: Path) -> list[Path]:
    found = [path] if path.is_file() else path.rglob("*")
    return [file for file in found if file.is_file() and not file.is_symlink()]


def _size(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _counted(paths: Sequence[Path], what: str) -> str:
    return f"{len(paths)} {what}{'s' * (len(paths) != 1)}"
