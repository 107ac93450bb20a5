"""Kills, stops and ends the processes of real searches at random moments, and compares what comes of them."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import psutil
from commands import COMMAND, ONE_THREAD, assert_same_search, study_of, table
from promise import Tally

from autoft.stopping import STOP_WITHIN
from autoft.testing.toy import write_toy_images

HERE = Path(__file__).resolve().parent
LEASE = 4.0  # seconds
WORKERS = 2
ENDED = ("complete", "pruned", "failed")
# what is done to whom, and how often among all
ACTIONS = {"worker killed": 9, "driver killed": 6, "driver terminated": 2, "worker terminated": 1, "worker stopped": 2}


def site(folder: Path) -> Path:
    """Return a folder for the module path in which the toys and the spy are plugins."""
    folder.mkdir(parents=True, exist_ok=True)
    for package, module in (("toy-plugin", "autoft.testing.toy"), ("spy-plugin", "spy")):
        information = folder / f"{package.replace('-', '_')}-1.0.dist-info"
        information.mkdir(exist_ok=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[autoft]\n{package.partition('-')[0]} = {module}\n")
    shutil.copyfile(HERE / "spy.py", folder / "spy.py")
    return folder


@dataclass
class Search:
    """A search by the real command, that is typed again whenever it has ended before its end.

    Attributes:
        folder: For the data, the plugins, the run and the ledger.
        run: The run folder's name.
        settings: As for `--set`.
        seconds: That an epoch takes longer.
        environment: More of it.
    """

    folder: Path
    run: str
    settings: tuple[str, ...]
    seconds: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / self.run

    @property
    def ledger(self) -> Path:
        return self.folder / f"{self.run}.ledger"

    @property
    def errors(self) -> Path:
        """What commands that nobody reads wrote to stderr."""
        return self.folder / f"{self.run}.errors"

    def start(self, *, read: bool = True) -> subprocess.Popen[str]:
        """Type the command; a pipe that nobody reads would fill up, and the search wait."""
        data = self.folder / "images"
        if not data.exists():
            write_toy_images(data)
        named = {
            "PYTHONPATH": str(site(self.folder / "site")),
            "AUTOFT_CACHE": str(self.folder / "cache"),
            "SPY_LEDGER": str(self.ledger),
            "SPY_SECONDS": str(self.seconds),
            "SPY_LEASE": str(LEASE),
        }
        settings = [word for setting in self.settings for word in ("--set", setting)]
        with nullcontext(subprocess.PIPE) if read else open(self.errors, "a") as errors:
            return subprocess.Popen(
                [str(COMMAND), "search", str(data), "-b", "toy/mlp", "-o", str(self.path), *settings, "--json"],
                stdout=subprocess.PIPE if read else subprocess.DEVNULL,
                stderr=errors,
                text=True,
                env={**os.environ, **ONE_THREAD, **named, **self.environment},
            )

    def whole(self) -> None:
        """Let it run to its end."""
        process = self.start()
        _, errors = process.communicate(timeout=1200)
        assert process.returncode == 0, errors

    def epochs(self) -> Counter[tuple[str, int]]:
        """Return how often each epoch of each training was begun."""
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        begun = [json.loads(line) for line in lines]
        return Counter((str(Path(each["training"]).relative_to(self.path)), each["epoch"]) for each in begun)

    def epochs_of(self, pid: int) -> int:
        """Return how many epochs a process has begun."""
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        return sum(json.loads(line)["pid"] == pid for line in lines)

    def log(self) -> list[dict[str, Any]]:
        """Return the events of all sessions; a torn line can only be one at which a process was killed."""
        events = []
        for line in (self.path / "log.jsonl").read_text().splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
        return events


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the workers of a driver that are there now."""
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "autoft-worker" in child.cmdline()]
    except psutil.NoSuchProcess:
        return []


def finished_trials(run: Path, scratch: Path) -> dict[int, Any]:
    """Return the trials that have ended for good, from a copy: who looks must not repair what a kill has left.

    Nobody may write meanwhile.
    """
    if not (run / "study.db").exists():
        return {}
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for file in run.glob("study.db*"):
        shutil.copyfile(file, scratch / file.name)
    try:
        if not optuna.get_all_study_names(f"sqlite:///{scratch}/study.db"):
            return {}  # stopped between its tables and the study
        trials = study_of(scratch).trials
    except KeyError:  # stopped while the study was being made
        return {}
    return {
        trial.number: (trial.state.name, trial.values, trial.params, trial.intermediate_values)
        for trial in trials
        if trial.state.is_finished()
    }


@dataclass
class Chaos:
    """What was done to a search, and what was seen meanwhile."""

    done: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0  # trainings that a kill may have thrown back by an epoch
    snapshots: int = 0
    lost: list[str] = field(default_factory=list)
    slowest_stop: float = 0.0
    bad_stops: list[str] = field(default_factory=list)
    lasting: list[str] = field(default_factory=list)
    known: dict[int, Any] = field(default_factory=dict)
    young: set[str] = field(
        default_factory=set
    )  # workers, by number, whose last process was struck before it had trained an epoch

    def look(self, search: Search) -> None:
        """Compare the trials that had ended with those that have."""
        now = finished_trials(search.path, search.folder / "scratch")
        for number, before in self.known.items():
            self.snapshots += 1
            if now.get(number) != before:
                self.lost.append(f"trial {number} was {before}, and is {now.get(number)}")
        self.known = now


def torment(search: Search, kills: int, rng: random.Random) -> Chaos:
    """Run a search to its end, doing something to one of its processes ever again, so often at most.

    The last third of it waits until a trial has ended, which might be lost.
    """
    chaos, process = Chaos(), search.start(read=False)
    try:
        while True:
            try:
                process.wait(rng.uniform(0.0, 6.0))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGSTOP)
                chaos.look(search)
                process.send_signal(signal.SIGCONT)
                if chaos.done.total() < (kills if chaos.known else 2 * kills // 3):
                    _strike(chaos, search, process, rng)
            if process.poll() is not None:
                chaos.look(search)
                if process.returncode == 0:
                    return chaos
                if process.returncode not in (-signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM):
                    raise AssertionError(f"the search ended with {process.returncode}:\n{search.errors.read_text()}")
                process = search.start(read=False)
    finally:
        process.kill()


def _strike(chaos: Chaos, search: Search, process: subprocess.Popen[str], rng: random.Random) -> None:
    """Do something to the driver or to a worker.

    A worker that has just begun is struck once in a row: a trial whose workers die four times without an epoch between
    fails, as it is to.
    """
    (action,) = rng.choices(list(ACTIONS), list(ACTIONS.values()))
    workers = workers_of(process)
    if action.startswith("driver"):
        chaos.in_flight += WORKERS
        if action == "driver killed":
            process.kill()
        else:
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.wait()
            seconds = time.monotonic() - began
            chaos.slowest_stop = max(chaos.slowest_stop, seconds)
            # before Python itself has set its handlers the signal ends it, which is the same to whoever sent it
            if process.returncode not in (143, -signal.SIGTERM, 0) or seconds > STOP_WITHIN + 5:
                chaos.bad_stops.append(f"exit {process.returncode} after {seconds:.1f} s")
        process.wait()
    elif workers:
        victim = rng.choice(workers)
        number = (victim.cmdline() or [""])[-1]  # one that has ended has none
        trained = search.epochs_of(victim.pid) > 1
        if not trained and number in chaos.young:
            return
        (chaos.young.discard if trained else chaos.young.add)(number)
        chaos.in_flight += 1
        if action == "worker stopped":
            victim.suspend()
            try:
                process.wait(3 * LEASE)
            except subprocess.TimeoutExpired:
                if victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE:
                    chaos.lasting.append(f"worker {victim.pid} still has its task after three leases")
            if victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE:
                victim.resume()
        else:
            victim.send_signal(signal.SIGKILL if action == "worker killed" else signal.SIGTERM)
    else:
        return
    chaos.done[action] += 1


def judge(search: Search, reference: Search, chaos: Chaos, trials: int) -> Iterator[Tally]:
    """Say which promises the search has kept."""
    done = chaos.done.total()
    counts = ", ".join(f"{count} {action}" for action, count in sorted(chaos.done.items()))
    yield Tally("kills", "a search goes on after each and comes to its end", done, note=counts)
    yield Tally("kills", "no completed result is lost or changed", chaos.snapshots, tuple(chaos.lost))
    rows = table(search.path)
    stuck = [f"trial {row['number']} is {row['state']}" for row in rows if row["state"] in ("RUNNING", "WAITING")]
    yield Tally("kills", "no trial is stuck", len(rows), stuck)
    ends = Counter(event["trial"] for event in search.log() if event["event"] == "trial_end" and event["state"] in ENDED)
    twice = [f"trial {number} ended {count} times" for number, count in ends.items() if count > 1]
    yield Tally("kills", "no trial is committed twice", len(rows), twice)
    numbers = [row["number"] for row in rows]
    budget = [] if numbers == list(range(trials)) else [f"{trials} trials were asked for, and there are {numbers}"]
    yield Tally("kills", "the budget of trials is met exactly", len(rows), budget)
    again = sum(count - 1 for count in search.epochs().values())
    redone = [] if again <= chaos.in_flight else [f"{again} epochs were begun again after {done} kills"]
    note = f"{again} begun again, of {search.epochs().total()}; {chaos.in_flight} trainings may have been in flight"
    yield Tally("kills", "at most the epoch in flight is trained again", done, redone, note)
    yield Tally("kills", "the table of trials is that of an uninterrupted search", len(rows), differences(search, reference))
    terms = chaos.done["driver terminated"]
    if terms:
        note = f"the slowest took {chaos.slowest_stop:.1f} s"
        yield Tally("SIGTERM", f"exit 143 within {STOP_WITHIN + 5:.0f} s", terms, chaos.bad_stops, note)
    stops = chaos.done["worker stopped"]
    if stops:
        yield Tally("SIGSTOP", "a worker that is silent beyond its lease loses its task", stops, chaos.lasting)


def differences(search: Search, reference: Search) -> list[str]:
    found, wanted = table(search.path), table(reference.path)
    different = [
        f"trial {one['number']}: {one} instead of {other}" for one, other in zip(found, wanted, strict=False) if one != other
    ]
    if not different:
        try:
            assert_same_search(search.path, reference.path)
        except AssertionError as error:
            different.append(str(error))
    return different


def at_writes(folder: Path, kills: int, *settings: str) -> Tally:
    """Kill searches (SIGKILL) around writes to the disk: before and after each fsync, and so before each rename."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "images"
    write_toy_images(data)
    environment = {"PYTHONPATH": str(site(folder / "site")), "AUTOFT_CACHE": str(folder / "cache")}
    script = HERE.parent / "killed_search.py"
    ran = subprocess.run(
        [sys.executable, script, data, folder, str(kills), *settings],
        capture_output=True,
        text=True,
        timeout=3600,
        env={**os.environ, **ONE_THREAD, **environment},
    )
    about = "kills at a write" + (f" ({settings[0]})" if settings else "")
    promise = "between temporary file and rename, or anywhere near: the same table and weights, bit for bit"
    if ran.returncode:
        return Tally(about, promise, kills, [ran.stderr.strip().splitlines()[-1]])
    broken = []
    runs = sorted(folder.glob("run-*"))
    for run in runs:
        try:
            assert_same_search(run, folder / "whole")
        except AssertionError as error:
            broken.append(f"{run.name}: {error}")
    return Tally(
        about, promise, len(runs), broken, f"of {json.loads(ran.stdout.splitlines()[-1])['writes']} moments in a run"
    )


def clock(folder: Path) -> Tally:
    """Search while the time of day jumps to and fro by days."""
    settings = ("search.trials=6", "trainer.epochs=4", f"search.workers={WORKERS}", "search.seeds=2")
    still = Search(folder, "still", settings)
    moved = Search(folder, "moved", settings, environment={"SPY_CLOCK": "1"})
    still.whole()
    moved.whole()
    times = [event["time"] for event in moved.log()]
    jumps = sum(later < earlier for earlier, later in itertools.pairwise(times))
    broken = differences(moved, still)
    return Tally("the clock", "jumps of days change no trial", jumps, broken, "jumps back in the log")


def tallies(folder: Path, *, long: bool, seed: int) -> Iterator[Tally]:
    """Put every promise about kills to the test."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rng = random.Random(seed)
    # many epochs that are slow enough to be killed in; some trials are paused and promoted
    trials, epochs, kills, seconds = (60, 27, 120, 0.25) if long else (6, 9, 8, 0.3)
    settings = (f"search.trials={trials}", f"trainer.epochs={epochs}", f"search.workers={WORKERS}", "search.seeds=2")
    reference = Search(folder / "chaos", "whole", settings)
    reference.folder.mkdir(parents=True)
    reference.whole()
    search = Search(folder / "chaos", "killed", settings, seconds=seconds)
    yield from judge(search, reference, torment(search, kills, rng), trials)
    yield at_writes(folder / "writes", 100 if long else 4)
    yield at_writes(folder / "writes-2", 20 if long else 2, "search.workers=2")
    yield clock(folder / "clock")
