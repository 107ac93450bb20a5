"""Takes databases away from searches, lets crowds write and read them, and has run folders held, left and aged."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import crowd
import optuna
import postgres
from kills import Search
from promise import Tally

from autoft.errors import AutoftError, StorageError
from autoft.files import read_json
from autoft.optuna_tables import stored_schema
from autoft.runfolder import FORMAT, LOCK, STUDY, open_run
from autoft.storage import VARIABLE, connect, open_study, read_study

CROWD = 16
SETTINGS = ("search.trials=8", "trainer.epochs=6", "search.seeds=1", "search.workers=0")


def essence(run: Path, url: str | None = None) -> list[Any]:
    """Return what a search decided and found, without times."""
    trials, _ = read_study(run, {VARIABLE: url} if url else {})
    return [
        (trial.number, trial.state.name, trial.params, trial.intermediate_values, trial.user_attrs.get("best_value"))
        for trial in trials
    ]


# --- a server that goes away ------------------------------------------------------------------------------------------


def disturbed(
    folder: Path,
    about: str,
    server: postgres.Server,
    wanted: list[Any],
    least: int,
    disturb: Callable[[str], int],
    pause: float,
) -> Iterator[Tally]:
    """Search again and again while something is done to the server, until it was done often enough."""
    done, sessions, broken, told, random_pause = 0, 0, list[str](), 0, random.Random(0)
    while done < least and sessions < 50:
        name = f"{about.replace(' ', '_')}{sessions}"
        url = server.database(name)
        search = Search(folder, name, SETTINGS, 0.05, {VARIABLE: url})
        process, hits = search.start(), 0
        lines = threading.Thread(target=lambda read=process: _drain(read), daemon=True)
        lines.start()
        while process.poll() is None:
            time.sleep(pause * random_pause.uniform(0.5, 1.5))
            if _has_trials(search.path):  # before, the user is there to see that it does not open
                hits += disturb(name)
        lines.join()
        if process.returncode != 0:
            broken.append(f"search {sessions} ended with {process.returncode}")
        elif essence(search.path, url) != wanted:
            broken.append(f"search {sessions} found other trials than an undisturbed one")
        told += sum(event["event"] == "warning" and event.get("about") == "storage" for event in search.log())
        done, sessions = done + hits, sessions + 1
    note = f"{sessions} searches" + (f"; {told // 2} lasted long enough to be told" if told else "")
    yield Tally(about, "the search goes on, and its trials are those of an undisturbed one", done, broken, note)


def _drain(process: subprocess.Popen[str]) -> None:
    process.communicate()


def _has_trials(run: Path) -> bool:
    log = run / "log.jsonl"
    return log.exists() and '"event": "search"' in log.read_text()


def outages(folder: Path, server: postgres.Server, *, long: bool) -> Iterator[Tally]:
    """Kill the server's connections during searches, and the server."""
    undisturbed = Search(folder, "undisturbed", SETTINGS, 0.05)
    undisturbed.whole()
    wanted = essence(undisturbed.path)

    def restart(name: str) -> int:
        server.stop("immediate")
        time.sleep(0.3)
        server.start()
        return 1

    yield from disturbed(
        folder, "connections killed", server, wanted, 500 if long else 10, server.end_connections, 0.02 if long else 0.1
    )
    yield from disturbed(folder, "server restarts", server, wanted, 40 if long else 2, restart, 1.0)


# --- crowds -----------------------------------------------------------------------------------------------------------


def writers(url: str, trials: int, kind: str) -> Tally:
    """Let a crowd write to one study."""
    began = time.monotonic()
    _, broken = crowd.found(crowd.start("write", CROWD, url, trials))
    seconds = time.monotonic() - began
    kept = optuna.load_study(study_name="crowd", storage=connect(url)).trials
    if [trial.number for trial in kept] != list(range(CROWD * trials)):
        broken.append(f"{len(kept)} trials, where {CROWD * trials} were made, or numbers given twice")
    whose = Counter(tuple(trial.user_attrs["who"]) for trial in kept if "who" in trial.user_attrs)
    broken += [f"{who} was committed {count} times" for who, count in whose.items() if count != 1]
    broken += [f"trial {trial.number} is {trial.state.name}" for trial in kept if trial.state.name != "COMPLETE"]
    about = f"{CROWD} processes that write one {kind} study"
    return Tally(about, "no lock fails, no trial is lost or twice", CROWD * trials, broken, f"{seconds:.0f} s")


def sharers(url: str, folder: Path, trials: int) -> Tally:
    """Let a crowd of runs of one name keep their trials in one database."""
    folder.mkdir()
    lists, broken = crowd.found(crowd.start("share", CROWD, url, folder, trials))
    for kept in lists:
        numbers, owners = [number for number, _ in kept], {who for _, who in kept}
        if numbers != list(range(trials)) or len(owners) != 1:
            broken.append(f"a run has the trials {numbers} of {owners}")
    if len(lists) + len(broken) < CROWD:
        broken.append(f"{CROWD - len(lists)} runs have not ended")
    return Tally(f"{CROWD} runs of one name on one server", "each has its own trials", CROWD * trials, broken)


def readers(folder: Path) -> Tally:
    """Let a crowd read a run while it is searched."""
    search, done = Search(folder, "read", SETTINGS, 0.05), folder / "read.done"
    process = search.start()
    while process.poll() is None and not (search.path / STUDY).exists():
        time.sleep(0.05)
    while process.poll() is None and not _has_trials(search.path):
        time.sleep(0.05)
    reading = crowd.start("read", CROWD, search.path, done)
    _, errors = process.communicate(timeout=600)
    done.touch()
    reads, broken = crowd.found(reading)
    if process.returncode != 0:
        broken.append(errors)
    return Tally(f"{CROWD} processes that read a search", "neither is disturbed", sum(reads), broken)


# --- run folders ------------------------------------------------------------------------------------------------------


def holders(folder: Path, rounds: int) -> Tally:
    """Let a crowd open one run folder at once."""
    tried, broken = 0, list[str]()
    for number in range(rounds):
        done = folder / f"tried{number}"
        done.mkdir()
        answers, failed = crowd.found(crowd.start("hold", CROWD, folder / f"held{number}", done))
        broken += failed
        held = [answer for answer in answers if answer.startswith("held by")]
        if len(held) != 1:
            broken.append(f"{len(held)} hold the folder at once")
            continue
        pid = held[0].removeprefix("held by ")
        refused = [answer for answer in answers if answer not in held]
        broken += [answer for answer in refused if "is held by another process" not in answer]
        # whoever comes in the moment between the lock and the name sees no name
        if not any(f"(pid {pid})" in answer for answer in refused):
            broken.append(f"nobody was told {pid}")
        tried += len(answers)
    return Tally("drivers on one run folder", "one goes on, the others are refused with its pid", tried, broken)


HOLD = """
import sys
from pathlib import Path
from autoft.runfolder import open_run
for run in sys.argv[1:]:
    with open_run(Path(run), {}, {}, ""):
        print("held", flush=True)
        sys.stdin.readline()
"""


def stale(folder: Path, times: int) -> Tally:
    """Kill processes that hold a run folder; who comes next must get it, whoever has the pid by then."""
    broken = list[str]()
    for number in range(times):
        run = folder / f"stale{number % 3}"
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None
        if holder.stdout.readline() != "held\n":
            broken.append(f"a kill kept the next from {run.name}")
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
        left = run / ".held.pid"
        if number % 3 == 1:  # its pid is another program's now
            left.write_text(left.read_text().replace(str(holder.pid), str(os.getpid()), 1))
        elif number % 3 == 2:
            left.write_text(f"{holder.pid}\nanother-machine\n0.0\n")
        try:
            with open_run(run, {}, {}, ""):
                pass
        except AutoftError as error:
            broken.append(str(error))
    return Tally("locks of killed processes", "hold nothing", times, broken)


def formats(folder: Path) -> Iterator[Tally]:
    """Age run folders and their tables."""
    accepted, refused, broken = 0, 0, list[str]()
    for number, change in enumerate((None, 0, 1, FORMAT, FORMAT + 1, FORMAT + 100)):
        run = folder / f"format{number}"
        with open_run(run, {"name": "x"}, {}, ""):
            open_study(run, None, "x", "maximize").enqueue_trial({"x": number})
        lock = read_json(run / LOCK)
        lock = {name: value for name, value in {**lock, "format": change}.items() if value is not None}
        (run / LOCK).write_text(json.dumps(lock))
        newer = change is not None and change > FORMAT
        try:
            with open_run(run, {"name": "x"}, {}, "") as opened:
                if len(open_study(run, None, "x", "maximize").trials) != 1 or not opened.resumed:
                    broken.append(f"format {change} lost its trials")
                accepted += 1
        except AutoftError as error:
            refused += 1
            if not newer or "was made by autoft" not in str(error):
                broken.append(f"format {change}: {error}")
    if refused != 2:
        broken.append(f"{refused} folders were refused, where 2 are newer")
    yield Tally("run folders of other formats", "older ones open, newer ones are refused", accepted + refused, broken)
    tried, broken = 0, []
    for schema in ("v3.0.0.d", "v99.0.0.a"):
        run = folder / f"schema-{schema}"
        run.mkdir()
        open_study(run, None, "x", "maximize").enqueue_trial({"x": 1})
        with closing(sqlite3.connect(run / STUDY)) as file:
            file.execute("UPDATE alembic_version SET version_num = ?", (schema,))
            file.commit()
        before, tried = (run / STUDY).read_bytes(), tried + 1
        try:
            kept = open_study(run, None, "x", "maximize").trials
            if schema == "v99.0.0.a" or len(kept) != 1 or stored_schema(run / STUDY) == schema:
                broken.append(f"{schema} was taken as it is")
            if (run / f"{STUDY}.schema-{schema}").read_bytes() != before:
                broken.append(f"{schema} was not kept as it was")
        except StorageError as error:
            if schema == "v3.0.0.d" or (run / STUDY).read_bytes() != before:
                broken.append(f"{schema}: {error}")
    yield Tally("tables of other versions of Optuna", "older ones are upgraded, newer ones refused", tried, broken)


def tallies(folder: Path, *, long: bool, seed: int) -> Iterator[Tally]:
    """Put all promises of where trials are to the test.

    Args:
        folder: For what is made.
        long: Whether the long form runs.
        seed: Of what is random; nothing that counts is.
    """
    yield from formats(folder)
    yield stale(folder, 30 if long else 3)
    yield holders(folder, 10 if long else 2)
    yield writers(f"sqlite:///{folder / 'crowd.db'}", 40 if long else 5, "SQLite")
    yield readers(folder)
    if (reason := postgres.why_not()) is not None:
        print(f"no PostgreSQL: {reason}", flush=True)
        return
    with postgres.running() as server:
        yield writers(server.database("crowd"), 40 if long else 5, "PostgreSQL")
        yield sharers(server.database("shared"), folder / "shared", 40 if long else 5)
        yield from outages(folder, server, long=long)
