"""Runs a long search, and looks after each trial at what its processes and its folder hold: none of it may go on growing."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from commands import run_search
from kills import site
from promise import Tally
from torn_files import quick_export

from autoft.events import Event
from autoft.testing.toy import write_toy_images

SETTINGS = (
    "trainer.epochs=3",
    "search.prune=true",
    "search.seeds=2",
    "search.confirm=2",
    "search.reuse=true",
    "space.freeze_depth={low: 0, high: 2}",
)
GROWN = (".db", ".jsonl", ".json")  # what is kept of each trial, for ever
MEGABYTE = 1e6


@dataclass(frozen=True)
class Limit:
    """How much more the last third of a search may hold than the second; medians are compared.

    Attributes:
        share: Of what the second third holds.
        more: Or this much, whichever is more.
    """

    share: float
    more: float


LIMITS = {
    "memory of the driver (MB)": Limit(0.03, 16),
    "memory of workers (MB)": Limit(0.03, 24),
    "open files": Limit(0.0, 2),
    "threads": Limit(0.0, 2),
    "weights and caches (MB)": Limit(0.1, 0.05),
}
FOR_EACH_TRIAL = "kept of each trial (kB)"
KEPT_OF_EACH = 24.0  # kB: its result, its rows of the database, its lines of the log


@dataclass
class Watch:
    """Samples after each end and rest of a trial.

    Attributes:
        run: The run folder.
        samples: By name, in order.
        trials: How many trials there were at each sample.
    """

    run: Path
    samples: dict[str, list[float]] = field(default_factory=dict)
    trials: list[int] = field(default_factory=list)

    def hear(self, event: Event) -> None:
        if event.kind != "trial_end":
            return
        me = psutil.Process()
        workers = [child for child in me.children(recursive=True) if "autoft-worker" in " ".join(child.cmdline())]
        kept = {True: 0, False: 0}
        for folder, _, files in os.walk(self.run):
            for name in files:
                with contextlib.suppress(FileNotFoundError):  # a worker's unfinished file, that has got its name meanwhile
                    kept[name.endswith(GROWN)] += (Path(folder) / name).stat().st_size
        self.trials.append(1 + max(int(path.name) for path in (self.run / "trials").iterdir()))
        self.note("memory of the driver (MB)", me.memory_info().rss / MEGABYTE)
        if workers:
            self.note("memory of workers (MB)", sum(each.memory_info().rss for each in workers) / MEGABYTE)
        self.note("open files", me.num_fds() + sum(each.num_fds() for each in workers))
        self.note("threads", me.num_threads() + sum(each.num_threads() for each in workers))
        self.note("weights and caches (MB)", kept[False] / MEGABYTE)
        self.note(FOR_EACH_TRIAL, kept[True] / 1e3)

    def note(self, name: str, value: float) -> None:
        self.samples.setdefault(name, []).append(value)


def grown(name: str, samples: Sequence[float], trials: Sequence[int]) -> tuple[bool, str]:
    """Return whether something goes on growing, and in words what it did."""
    third = len(samples) // 3
    if not third:
        return True, f"{len(samples)} samples are too few"
    second, last = statistics.median(samples[third : 2 * third]), statistics.median(samples[2 * third :])
    if name == FOR_EACH_TRIAL:
        apart = statistics.median(trials[2 * third :]) - statistics.median(trials[third : 2 * third])
        each = (last - second) / max(1, apart)
        return each > KEPT_OF_EACH, f"{each:.1f} kB a trial, {samples[-1] / 1e3:.1f} MB after {trials[-1]}"
    limit = LIMITS[name]
    much = last - second > max(limit.share * second, limit.more)
    return much, f"{second:.5g} in the second third, {last:.5g} in the last, at most {max(samples):.5g}"


def judge(watch: Watch, how: str) -> Iterator[Tally]:
    """Yield what came of each thing that was watched."""
    for name, samples in watch.samples.items():
        much, told = grown(name, samples, watch.trials)
        yield Tally(f"{how}: {name}", "does not go on growing", len(samples), [told] if much else [], told)


def searched(data: Path, run: Path, *settings: str, hear: Callable[[Event], None]) -> None:
    """Search to the end."""
    with quick_export():
        found = run_search(data, run, *SETTINGS, *settings, on_event=hear)
    assert not found.interrupted


def tallies(folder: Path, *, long: bool, seed: int) -> Iterator[Tally]:
    """Yield a count for each thing that could grow, of a search in this process and of one on two workers."""
    sys.path.insert(0, str(site(folder / "site")))
    data, trials = folder / "images", 300 if long else 40
    write_toy_images(data)
    for workers in (0, 2):
        watch = Watch(folder / f"run-{workers}")
        searched(
            data,
            watch.run,
            f"search.trials={trials}",
            f"search.workers={workers}",
            f"search.seed={seed}",
            hear=watch.hear,
        )
        how = f"{trials} trials on {workers} workers" if workers else f"{trials} trials in one process"
        yield from judge(watch, how)
        left = [path for name in ("prefix", "pixels", "refit") for path in [watch.run / name] if path.exists()]
        left += [*watch.run.glob("*/*/checkpoint"), *watch.run.rglob("*.tmp")]
        weights = {path.parent.name for path in watch.run.glob("trials/*/model.safetensors")}
        note = f"{len(weights)} of {trials} trials keep weights"
        broken = [f"{path.relative_to(watch.run)} is left" for path in left]
        broken += [f"trials {', '.join(sorted(weights))} keep weights"] if len(weights) > MOST_KEPT else []
        yield Tally(f"{how}: the end", "no checkpoint, no cache, few weights are left", trials, broken, note)


MOST_KEPT = 6
