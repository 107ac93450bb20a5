"""A run folder: made once for one study, opened again to resume it, held by one process at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from autoft.errors import RunError
from autoft.events import Event
from autoft.files import append_line, read_json, write_json, write_text

LOCK = "lock.json"
STUDY = "study.db"
TOKENS = "tokens"  # texts as tokens, made before anything is searched
PIXELS = "pixels"  # decoded images, shared by workers
REFIT = "refit"  # the training on both splits, until it is exported
PREFIX = "prefix"  # what frozen stages give, shared by trials
PROBES = "probe.json"
HEADS = "probe"  # linear heads that trainings may start from
TUNED = "tuned.json"  # what was measured for each backbone: precision, compilation, micro-batch
COSTS = "costs.json"  # what the backbones cost once deployed: measured once, for it is never quite the same again
HELD = ".held"
SHOWN_DIFFERENCES = 5


@dataclass(frozen=True)
class RunFolder:
    """A run folder that this process holds.

    Attributes:
        path: The folder.
        lock: Content of `lock.json`: what the run was made of.
        resumed: Whether the run existed before.
    """

    path: Path
    lock: Mapping[str, Any]
    resumed: bool

    @property
    def bundle(self) -> Path:
        """Where the exported model is, once there is one."""
        return self.path / "bundle"

    @property
    def tokens(self) -> Path:
        """Where texts are kept as tokens."""
        return self.path / TOKENS

    @property
    def pixels(self) -> Path:
        """Where decoded images are, for all workers, while the search goes on."""
        return self.path / PIXELS

    @property
    def heads(self) -> Path:
        """Where the heads are that probes found."""
        return self.path / HEADS

    @property
    def refit(self) -> Path:
        """Where the winner is trained on both splits."""
        return self.path / REFIT

    @property
    def prefix(self) -> Path:
        """Where the outputs of frozen stages are kept while the search goes on."""
        return self.path / PREFIX

    @property
    def study(self) -> Path:
        """Where Optuna keeps the trials: an SQLite database."""
        return self.path / STUDY

    def trial(self, number: int) -> Path:
        """Return the folder of one trial."""
        return self.path / "trials" / str(number)

    def log(self, event: Event) -> None:
        """Append an event to `log.jsonl`."""
        append_line(self.path / "log.jsonl", {"time": round(time.time(), 3), "event": event.kind, **event.data})


@contextlib.contextmanager
def open_run(path: Path, identity: Mapping[str, Any], facts: Mapping[str, Any], study: str) -> Iterator[RunFolder]:
    """Make a run folder, or open the one of the same study; hold it until the block ends.

    Args:
        path: The folder; its parents are made.
        identity: What decides whether an existing folder belongs to the same study, JSON-ready.
        facts: What else `lock.json` records when the run is made: versions, hashes.
        study: The resolved study file.

    Raises:
        RunError: The folder holds something else, another study, or is held by another process; nothing was touched.
    """
    made = _check_folder(path)
    holder = FileLock(path / HELD, timeout=0)
    try:
        holder.acquire()
    except PermissionError as error:
        raise RunError(f"the run folder {path} cannot be written to: {error}", "choose another folder with -o") from error
    except Timeout:
        raise RunError(
            f"a run folder is used by one autoft at a time, but {path} is held by another process{_holder(path)}",
            "wait for it, or choose another folder with -o",
        ) from None
    try:
        (path / f"{HELD}.pid").write_text(str(os.getpid()), encoding="utf-8")
        # read before the cleaning block below: a lock that is not ours, or of another study, must stay as it is
        lock = _read_lock(path) if (path / LOCK).exists() else None
        resumed = lock is not None and (path / STUDY).exists()
        if lock is None or not resumed:  # one without trials is what a kill before the search left
            lock = {"identity": dict(identity), **facts}
        else:
            _check_same(path, lock["identity"], identity)
        with _traceless(path):
            _remove_unfinished(path)
            if not resumed:
                write_json(path / LOCK, lock)
            write_text(path / "study.yaml", study)
            yield RunFolder(path, lock, resumed)
    finally:
        (path / f"{HELD}.pid").unlink(missing_ok=True)
        holder.release()
        if made and not (path / LOCK).exists():
            (path / HELD).unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def _traceless(path: Path) -> Iterator[None]:
    """Leave no trace of an attempt that fails before anything was searched."""
    try:
        yield
    except BaseException:
        if not (path / STUDY).exists():
            for name in (LOCK, "study.yaml", "log.jsonl", PROBES, TUNED, COSTS):
                (path / name).unlink(missing_ok=True)
            for folder in (path / TOKENS, path / PIXELS, path / HEADS):
                if folder.is_dir():
                    shutil.rmtree(folder)
        raise


def _remove_unfinished(path: Path) -> None:
    """Remove the temporary files and folders that a killed process left: nobody else writes here now.

    But for the workers of a search that was killed this moment: they end at once, and may still finish a file before.
    """
    trainings = ("trials/*", "confirm/*", "refit/*")
    for folder in (".", *trainings, *(f"{training}/checkpoint" for training in trainings)):
        for left in path.glob(f"{folder}/.*.tmp"):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)


def _check_folder(path: Path) -> list[Path]:
    """Return the folders that were made now, innermost first; refuse a folder that holds anything but a run."""
    if not path.exists():
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise RunError(f"the run folder {path} cannot be made: {error}", "choose another folder with -o") from error
        return made
    if not path.is_dir():
        raise RunError(f"a run folder must be a folder, but {path} is a file", "choose another folder with -o")
    # a kill may have come while the very first file was written
    ours = (HELD, f".{LOCK}.")
    others = [entry.name for entry in path.iterdir() if not entry.name.startswith(ours)]
    if others and LOCK not in others:
        raise RunError(
            f"a run folder must be new, empty or of the same study, but {path} holds {_listed(sorted(others))}",
            "choose another folder with -o",
        )
    return []


def _read_lock(path: Path) -> dict[str, Any]:
    try:
        lock = read_json(path / LOCK)
    except (OSError, ValueError) as error:
        raise RunError(f"{path / LOCK} is damaged: {error}", "choose another folder with -o") from error
    if not isinstance(lock.get("identity"), dict):
        raise RunError(f"{path / LOCK} must be written by autoft, but has no `identity`", "choose another folder with -o")
    return lock


def _check_same(path: Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    different = differences(stored, identity)
    if different:
        shown = "; ".join(
            f"{name} is {there!r} there and {here!r} here" for name, there, here in different[:SHOWN_DIFFERENCES]
        )
        more = f"; and {len(different) - SHOWN_DIFFERENCES} more" if len(different) > SHOWN_DIFFERENCES else ""
        raise RunError(
            f"the run folder {path} belongs to another study: {shown}{more}",
            "choose another folder with -o, or make the study the same again; only `search.trials` and "
            "`search.time_limit` may change",
        )


def differences(stored: Mapping[str, Any], here: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return what differs between what `lock.json` says and how it is now.

    Args:
        stored: From `lock.json`.
        here: The same, as it would be written now.

    Returns:
        For each difference the dotted name, the stored value, and the one here; None where there is none.
    """
    found, wanted = _flat(stored), _flat(here)
    return [(name, found.get(name), wanted.get(name)) for name in {**found, **wanted} if found.get(name) != wanted.get(name)]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings, and lists of them, as dotted names and plain values."""
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        items = enumerate(value)
    else:
        return {prefix: _as_json(value)}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(_flat(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _as_json(value: Any) -> Any:
    """Return a value as it comes back from JSON, which knows no tuples."""
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value


def _holder(path: Path) -> str:
    try:
        return f" (pid {int((path / f'{HELD}.pid').read_text(encoding='utf-8'))})"
    except (OSError, ValueError):
        return ""  # the other process has not written it yet; the refusal stands without it


def _listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
