"""Injects each type of failure into searches by the real command: what becomes of them, what they say and count."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from commands import assert_same_search, table
from kills import Search
from promise import Tally

from autoft.files import read_json
from autoft.testing.toy import write_toy_images

SETTINGS = ("search.trials=4", "trainer.epochs=3", "search.seeds=1", "search.prune=false", "search.probe=false")
HERE_ALONE, WORKERS = (*SETTINGS, "search.workers=0"), (*SETTINGS, "search.workers=2")


def ended(search: Search) -> tuple[int, str]:
    """Run a search; return its exit code and what it wrote to stderr."""
    process = search.start()
    _, errors = process.communicate(timeout=600)
    return process.returncode, errors


def failures(search: Search) -> dict[str, Any]:
    """Return what the result says of failures."""
    counted: dict[str, Any] = read_json(search.path / "result.json")["failures"]
    return counted


def check(*pairs: tuple[object, object, str]) -> list[str]:
    """Return what is not as it should be: what was found, what was wanted, and of what."""
    return [f"{what}: {found!r} instead of {wanted!r}" for found, wanted, what in pairs if found != wanted]


def says(errors: str, *words: str) -> list[str]:
    """Return which words an error lacks, and whether it has a trace."""
    lacking = [f"its message lacks {word!r}: {errors[-500:]}" for word in words if word not in errors]
    return lacking + (["it printed a trace"] if "Traceback" in errors else [])


def events(search: Search, kind: str, about: str | None = None) -> list[dict[str, Any]]:
    """Return the events of a kind."""
    return [each for each in search.log() if each["event"] == kind and (about is None or each.get("about") == about)]


# --- types ----------------------------------------------------------------------------------------------------------


def oom(folder: Path) -> Tally:
    """Memory that runs out at more than three samples, by the class that CUDA raises."""
    settings = (*WORKERS, "trainer.batch_size=8")
    search = Search(folder, "run", settings, environment={"SPY_FAIL": "oom"})
    code, errors = ended(search)
    told = events(search, "warning", "memory")
    broken = check(
        (code, 0, "exit code"),
        ({row["state"] for row in table(search.path)}, {"COMPLETE"}, "trials"),
        ({row["attributes"].get("micro_batch") for row in table(search.path)}, {2}, "samples a pass"),
        (failures(search)["failed"], {}, "failed"),
        (failures(search)["survived"].get("oom"), len(told), "counted"),
        (bool(told) and {each["batch_size"] for each in told}, {8}, "samples a step"),
        (len(told) <= 2, True, "each of two workers learned it once, and later trials knew it"),
    )
    promise = "half the micro-batch at the same effective batch, learned for later trials"
    return Tally("oom", promise, 4, broken + says(errors), f"{len(told)} of 4 trials ran out of memory")


def nan(folder: Path) -> Tally:
    """A loss that is not a number in one epoch of one trial."""
    search = Search(folder, "run", HERE_ALONE, environment={"SPY_FAIL": "nan"})
    code, errors = ended(search)
    states = [row["state"] for row in table(search.path)]
    (told,) = [each for each in events(search, "trial_end") if each["state"] == "failed"]
    broken = check(
        (code, 0, "exit code"),
        (states, ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"], "trials"),
        (failures(search), {"failed": {"nan": 1}, "survived": {}}, "counted"),
        ("the training loss became nan in epoch 2" in told["why"], True, told["why"]),
    )
    return Tally("nan", "the trial fails once, the search goes on", 1, broken + says(errors))


def bug(folder: Path) -> Tally:
    """The same exception in every trial but the first."""
    search = Search(folder, "run", HERE_ALONE, environment={"SPY_FAIL": "bug"})
    code, errors = ended(search)
    broken = check((code, 1, "exit code"), ([row["state"] for row in table(search.path)][1:], ["FAIL"] * 3, "trials"))
    broken += [
        f"lacks {words!r}" for words in ("3 trials failed in the same way", "a bug of the head") if words not in errors
    ]
    return Tally("bug", "three equal ones stop the search with the trace, exit 1", 3, broken)


def infra(folder: Path) -> Tally:
    """A worker that dies each time it comes to the same epoch of the same trial."""
    search = Search(folder, "run", WORKERS, environment={"SPY_FAIL": "infra"})
    code, errors = ended(search)
    states = [row["state"] for row in table(search.path)]
    deaths = events(search, "warning", "worker")
    broken = check(
        (code, 0, "exit code"),
        (states, ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"], "trials"),
        (failures(search)["failed"], {"infra": 1}, "failed"),
        (failures(search)["survived"], {"infra": 4}, "survived"),
        (len(deaths), 4, "deaths that were told"),
        (max(count for (name, _), count in search.epochs().items() if name == "trials/1"), 4, "tries of the epoch"),
    )
    return Tally("infra", "a trial whose worker dies is tried three times more, then fails", 4, broken + says(errors))


def data(folder: Path) -> Iterator[Tally]:
    """Images that cannot be read: few, and too many."""
    search = Search(folder, "few", HERE_ALONE)
    images = folder / "images"
    files = write_toy_images(images, per_class=60)
    files[7].write_bytes(files[7].read_bytes()[:60])
    code, errors = ended(search)
    (told,) = events(search, "warning", "rejected")
    broken = check(
        (code, 0, "exit code"),
        (len(told["rejected"]), 1, "quarantined"),
        (told["rejected"][0]["id"] in str(files[7]), True, "its name"),
    )
    yield Tally("data", "a bad sample goes to the quarantine list, which the run keeps", 1, broken + says(errors))
    for file in files[10:20]:
        file.write_bytes(file.read_bytes()[:60])
    many = Search(folder, "many", HERE_ALONE)
    code, errors = ended(many)
    broken = check((code, 2, "exit code"), (many.path.exists(), False, "a run folder"))
    yield Tally(
        "data",
        "more than 1 % are refused before the search",
        1,
        broken + says(errors, "at most 1 of 180", "but 11", "hint:"),
    )


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Give a folder that is a file system of its own, so large; only root can make one."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        # lazily: whoever looked at the study's database in this process still has it open
        subprocess.run(["umount", "--lazy", folder], check=True)


def disk(folder: Path, moments: int) -> Tally:
    """A disk that is full after so many epochs, at several moments; room is made, and the command typed again."""
    reference = Search(folder / "whole", "run", HERE_ALONE)
    reference.folder.mkdir(parents=True)
    reference.whole()
    broken = []
    for moment in range(moments):
        with small_disk(folder / f"disk-{moment}", 160) as mounted:
            search = Search(mounted, "run", HERE_ALONE)
            process = search.start()
            _read_epochs(process, 1 + moment)
            _fill(mounted / "ballast")
            _, errors = process.communicate(timeout=600)
            broken += check((process.returncode, 2, f"exit code at moment {moment}"))
            broken += says(errors, "is full", "hint:", "free some space", "nothing that was finished is lost")
            (mounted / "ballast").unlink()
            code, errors = ended(search)
            broken += check((code, 0, f"exit code of the next session at moment {moment}: {errors[-300:]}"))
            if code == 0:
                try:
                    assert_same_search(search.path, reference.path)
                except AssertionError as error:
                    broken.append(f"moment {moment}: {error}")
    return Tally("disk", "a full one stops the search with what to free; the next session loses nothing", moments, broken)


def _fill(file: Path) -> None:
    """Write until there is no space left."""
    for size in (1 << 20, 1 << 12, 1):
        with contextlib.suppress(OSError), file.open("ab", buffering=0) as ballast:
            while ballast.write(b"x" * size):
                pass


def _read_epochs(process: subprocess.Popen[str], epochs: int) -> None:
    """Read events until so many epochs have ended."""
    assert process.stdout is not None
    for line in process.stdout:
        epochs -= json.loads(line)["event"] == "epoch"
        if epochs <= 0:
            return
    raise AssertionError("the search ended before")


def tallies(folder: Path, *, long: bool, seed: int) -> Iterator[Tally]:
    """Inject every type of failure."""
    parts: tuple[Callable[[Path], Tally], ...] = (oom, nan, bug, infra)
    for part in parts:
        own = folder / part.__name__
        own.mkdir(parents=True)
        yield part(own)
    (folder / "data").mkdir()
    yield from data(folder / "data")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        yield disk(folder / "disk", 8 if long else 1)
    else:
        print("not tried: a full disk, since only root may make a small one", file=sys.stderr)
