"""A run folder: made once for one study, opened again to resume it, held by one process at a time."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from autoft.errors import RunError, first_line
from autoft.events import Event
from autoft.files import append_line, read_json, remove_unfinished, write_checked, write_text

FORMAT = 1
"""Of run folders: raised with whatever a later autoft must do to go on with a folder of this one; `_migrate` does it."""
LOCK = "lock.json"
STUDY = "study.db"
TRIALS = "trials"  # a folder for each
PLACE = "storage.json"  # in place of STUDY: which database has the trials, without its password
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
SIGNING = 1.0  # seconds that whoever takes a folder may need until its name is in it
SAME_START = 2.0  # seconds by which the start of one process may seem to move, as clocks are set


@dataclass(frozen=True)
class RunFolder:
    """A run folder that this process holds.

    Attributes:
        path: The folder.
        lock: Content of `lock.json`: what the run was made of.
        resumed: Whether the run existed before.
        storage: URL of the database that keeps the trials, with its password; None for a file in the folder.
    """

    path: Path
    lock: Mapping[str, Any]
    resumed: bool
    storage: str | None = field(default=None, repr=False)

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
        """Where Optuna keeps the trials, unless `storage` names another place: an SQLite database."""
        return self.path / STUDY

    def trial(self, number: int) -> Path:
        """Return the folder of one trial."""
        return self.path / TRIALS / str(number)

    def log(self, event: Event) -> None:
        """Append an event to `log.jsonl`."""
        append_line(self.path / "log.jsonl", {"time": round(time.time(), 3), "event": event.kind, **event.data})


@contextlib.contextmanager
def open_run(
    path: Path,
    identity: Mapping[str, Any],
    facts: Mapping[str, Any],
    study: str,
    *,
    defaults: Mapping[str, Any] | None = None,
    storage: str | None = None,
) -> Iterator[RunFolder]:
    """Make a run folder, or open the one of the same study; hold it until the block ends.

    Args:
        path: The folder; its parents are made.
        identity: What decides whether an existing folder belongs to the same study, JSON-ready.
        facts: What else `lock.json` records when the run is made: versions, hashes.
        study: The resolved study file.
        defaults: What settings are where nobody sets them, as in `identity`: what a folder of an older autoft lacks.
        storage: URL of the database that keeps the trials; None for a file in the folder.

    Raises:
        RunError: The folder holds something else, another study, is of a newer autoft, or is held by another process;
            nothing was touched.
    """
    made = _check_folder(path)
    holder = FileLock(path / HELD, timeout=0)
    try:
        holder.acquire()
    except PermissionError as error:
        raise RunError(f"the run folder {path} cannot be written to: {error}", "choose another folder with -o") from error
    except Timeout:
        told, hint = _holder(path)
        raise RunError(
            f"a run folder is used by one autoft at a time, but {path} is held by another process{told}", hint
        ) from None
    except (OSError, NotImplementedError) as error:
        raise RunError(
            f"a run folder must be on a file system with locks, but {path} cannot be locked: {first_line(error)}",
            "choose a folder on another file system with -o",
        ) from error
    try:
        _sign(path)
        # read before the cleaning block below: a lock that is not ours, or of another study, must stay as it is
        lock = read_lock(path) if (path / LOCK).exists() else None
        resumed = lock is not None and was_searched(path)
        old = resumed and lock is not None and lock["format"] < FORMAT
        if lock is None or not resumed:  # one without trials is what a kill before the search left
            lock = {"format": FORMAT, "identity": dict(identity), **facts}
        else:
            lock = _migrate(lock)
            _check_same(path, lock, identity, defaults or {})
        with _traceless(path):
            _remove_unfinished(path)
            if not resumed or old:
                write_checked(path / LOCK, lock)
            write_text(path / "study.yaml", study)
            yield RunFolder(path, lock, resumed, storage)
    finally:
        (path / f"{HELD}.pid").unlink(missing_ok=True)
        holder.release()
        if made and not (path / LOCK).exists():
            (path / HELD).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another process has taken it this moment
                for folder in made:
                    folder.rmdir()


def was_searched(path: Path) -> bool:
    """Return whether a run folder has trials, in it or elsewhere."""
    if (path / STUDY).exists():
        return True
    try:
        return (path / PLACE).exists() and bool(read_json(path / PLACE).get("made", True))
    except (OSError, ValueError):
        return True  # damaged, which whoever opens the trials says; nothing is to be removed meanwhile


@contextlib.contextmanager
def hold(path: Path) -> Iterator[dict[str, Any]]:
    """Hold an existing run folder until the block ends, whatever study it is of; gives the content of `lock.json`.

    Raises:
        RunError: There is no run folder, or it is held by another process; nothing was touched.
    """
    if not (path / LOCK).is_file():
        what = f"has no {LOCK}" if path.is_dir() else "is no folder"
        raise RunError(f"a run folder has {LOCK}, but {path} {what}", "`autoft search` makes it: runs/NAME, or -o")
    holder = FileLock(path / HELD, timeout=0)
    try:
        holder.acquire()
    except OSError as error:  # a timeout is one, too
        reason = "another process holds it" if isinstance(error, Timeout) else str(error)
        raise RunError(f"the run folder {path} must be free, but {reason}", "wait for the search, or stop it") from error
    try:
        yield read_lock(path)
    finally:
        holder.release()


@contextlib.contextmanager
def _traceless(path: Path) -> Iterator[None]:
    """Leave no trace of an attempt that fails before anything was searched."""
    try:
        yield
    except BaseException:
        if not was_searched(path):
            for folder in (path / TOKENS, path / PIXELS, path / HEADS):
                if folder.is_dir():
                    shutil.rmtree(folder)
            for name in (PLACE, "study.yaml", "log.jsonl", PROBES, TUNED, COSTS, LOCK):  # the last says whose the others are
                (path / name).unlink(missing_ok=True)
        raise


def _remove_unfinished(path: Path) -> None:
    """Remove the temporary files and folders that a killed process left: nobody else writes here now.

    But for the workers of a search that was killed this moment: they end at once, and may still finish a file before.
    """
    trainings = [training for kept in (TRIALS, "confirm", "refit") for training in path.glob(f"{kept}/*")]
    for folder in (path, *trainings, *(training / "checkpoint" for training in trainings)):
        remove_unfinished(folder)


def _check_folder(path: Path) -> list[Path]:
    """Return the folders that were made now, innermost first; refuse a folder that holds anything but a run."""
    if not path.exists():
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            path.mkdir(parents=True)
            return made
        except FileExistsError:
            pass  # by another process, this moment: it is that one's to take away again
        except OSError as error:
            raise RunError(f"the run folder {path} cannot be made: {error}", "choose another folder with -o") from error
    if not path.is_dir():
        raise RunError(f"a run folder must be a folder, but {path} is a file", "choose another folder with -o")
    # a kill may have come while the very first file was written
    ours = (HELD, f".{LOCK}.")
    others = [entry.name for entry in path.iterdir() if not entry.name.startswith(ours)]
    # looked for last: one that another process writes this moment is there before anything else
    if others and not (path / LOCK).exists():
        raise RunError(
            f"a run folder must be new, empty or of the same study, but {path} holds {_listed(sorted(others))}",
            "choose another folder with -o",
        )
    return []


def read_lock(path: Path) -> dict[str, Any]:
    """Return the content of a run folder's `lock.json`.

    Raises:
        RunError: It cannot be read, is damaged, or is of a newer autoft.
    """
    try:
        lock = read_json(path / LOCK)
    except (OSError, ValueError) as error:
        raise RunError(f"{path / LOCK} is damaged: {error}", "choose another folder with -o") from error
    if not isinstance(lock.get("identity"), dict):
        raise RunError(f"{path / LOCK} must be written by autoft, but has no `identity`", "choose another folder with -o")
    found = lock.setdefault("format", 0)  # the first folders had none
    if type(found) is not int or found < 0:
        raise RunError(f"{path / LOCK} is damaged: `format` is {found!r}", "choose another folder with -o")
    if found > FORMAT:
        raise RunError(
            f"the run folder {path} was made by autoft {_maker(lock)}, in format {found}; "
            f"this is autoft {version('autoft')}, which knows formats up to {FORMAT}",
            "pip install -U autoft, or choose another folder with -o",
        )
    return lock


def _migrate(lock: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lock of an older format in the present one.

    Format 0, of autoft 0.1.0 before run folders had formats, differs from 1 in the number alone.
    """
    return {**lock, "format": FORMAT}


def _maker(lock: Mapping[str, Any]) -> str:
    versions = lock.get("versions")
    return str(versions.get("autoft", "(unknown)")) if isinstance(versions, Mapping) else "(unknown)"


def _check_same(path: Path, lock: Mapping[str, Any], identity: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    stored = lock["identity"]
    usual, known = flat(defaults), flat(stored)
    # a setting that came after the folder, and that this study leaves alone, is no difference
    different = [
        (name, there, here)
        for name, there, here in differences(stored, identity)
        if name in known or name not in usual or here != usual[name]
    ]
    if different:
        shown = "; ".join(
            f"{name} is {there!r} there and {here!r} here" for name, there, here in different[:SHOWN_DIFFERENCES]
        )
        more = f"; and {len(different) - SHOWN_DIFFERENCES} more" if len(different) > SHOWN_DIFFERENCES else ""
        here, maker = version("autoft"), _maker(lock)
        aged = "" if maker in (here, "(unknown)") else f" (it was made by autoft {maker}; this is {here})"
        raise RunError(
            f"the run folder {path} belongs to another study: {shown}{more}{aged}",
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
    found, wanted = flat(stored), flat(here)
    return [(name, found.get(name), wanted.get(name)) for name in {**found, **wanted} if found.get(name) != wanted.get(name)]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings, and lists of them, as dotted names and plain values, as JSON has them."""
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        items = enumerate(value)
    else:
        return {prefix: _as_json(value)}
    found: dict[str, Any] = {}
    for key, item in items:
        found.update(flat(item, f"{prefix}.{key}" if prefix else str(key)))
    return found


def _as_json(value: Any) -> Any:
    """Return a value as it comes back from JSON, which knows no tuples."""
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a run's log, of all its sessions, in order; none where there is no log."""
    log = path / "log.jsonl"
    if not log.exists():
        return
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a kill tears the last line, a damaged disk any: of one that cannot be read, nothing is told
        if isinstance(event, dict) and "event" in event:
            yield event


@dataclass(frozen=True)
class Holder:
    """The process that holds a run folder, or held it last.

    Attributes:
        pid: Of the process.
        host: Its machine.
        alive: Whether it is still there; None where it is on another machine, which nobody can see from here.
    """

    pid: int
    host: str
    alive: bool | None


def holder(path: Path) -> Holder | None:
    """Return who holds a run folder, or held it last; None where nobody ever signed. The lock is not touched."""
    known = _signature(path)
    if known is None:
        return None
    return Holder(known.pid, known.host, _lives(known) if known.host == socket.gethostname() else None)


@dataclass(frozen=True)
class _Signature:
    """Who holds a folder.

    Attributes:
        pid: Of the process.
        host: Its machine.
        started: When it began, by the clock of its machine: another program may have its pid by now.
    """

    pid: int
    host: str
    started: float


def _sign(path: Path) -> None:
    """Write who holds a folder, for whoever is refused."""
    me = psutil.Process()
    (path / f"{HELD}.pid").write_text(f"{me.pid}\n{socket.gethostname()}\n{me.create_time()}\n", encoding="utf-8")


def _signature(path: Path) -> _Signature | None:
    try:
        pid, host, started = (path / f"{HELD}.pid").read_text(encoding="utf-8").splitlines()
        return _Signature(int(pid), host, float(started))
    except (OSError, ValueError):
        return None  # the other process has not written it yet; the refusal stands without it


def _lives(known: _Signature) -> bool:
    """Return whether the process that signed on this machine is still there."""
    try:
        return abs(psutil.Process(known.pid).create_time() - known.started) < SAME_START
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True  # another user's: it is there, and that is all that can be known


def _holder(path: Path) -> tuple[str, str]:
    """Return who holds a folder, in words, and what to do.

    The lock itself is the kernel's, which drops it when its last holder ends, however it ends: a lock that is held is held
    by something that lives. What was written about the holder may be old.
    """
    wait = "wait for it, or choose another folder with -o"
    deadline = time.monotonic() + SIGNING
    # one that took the folder this moment has not signed yet, and what is there may be of one that was killed before
    while (known := _signature(path)) is None or (known.host == socket.gethostname() and not _lives(known)):
        if time.monotonic() > deadline:
            break
        time.sleep(SIGNING / 20)
    if known is None:
        return "", wait
    if known.host != socket.gethostname():
        return (
            f" (pid {known.pid} on {known.host})",
            f"wait for it, or choose another folder with -o; from here nobody can see whether {known.host} still runs: "
            "if it is gone, the file server drops its lock after a while",
        )
    if _lives(known):
        return f" (pid {known.pid})", wait
    return (
        f" (pid {known.pid} held it, but has ended: a process that it started must still have the folder open)",
        f"`fuser {path / HELD}` names that process; end it, or choose another folder with -o",
    )


def _listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
