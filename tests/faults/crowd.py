"""Lets many processes do the same at the same moment: python crowd.py WORK COUNT ARGUMENT ...

One process imports what they need and forks them; each writes a line of JSON: what it found, or its error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def start(work: str, count: int, *arguments: object) -> subprocess.Popen[str]:
    """Let so many processes begin; `found` waits for them."""
    command = [sys.executable, str(Path(__file__).resolve()), work, str(count), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def found(crowd: subprocess.Popen[str]) -> tuple[list[Any], list[str]]:
    """Return what the processes found, and the errors of those that failed."""
    out, errors = crowd.communicate(timeout=900)
    lines = [json.loads(line) for line in out.splitlines()]
    failures = [line["error"] for line in lines if "error" in line]
    if crowd.returncode != 0 and not failures:
        failures = [errors]
    return [line["found"] for line in lines if "found" in line], failures


# --- what they do -----------------------------------------------------------------------------------------------------


def write(number: int, url: str, trials: str) -> int:
    """Ask for, report and tell trials of one study that all write."""
    import optuna

    from autoft.storage import connect

    study = optuna.create_study(
        storage=connect(url),
        study_name="crowd",
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(),
    )
    for step in range(int(trials)):
        trial = study.ask()
        trial.suggest_float("x", 0.0, 1.0)
        trial.set_user_attr("who", [number, step])
        trial.report(0.5, 1)
        study.tell(trial, number + step / 1000)
    return number


def share(number: int, url: str, folder: str, trials: str) -> list[Any]:
    """Search in an own run folder, whose trials are where all others are, under the same name."""
    from autoft.storage import open_study, read_study

    run = Path(folder) / str(number)
    run.mkdir()
    study = open_study(run, url, "same", "maximize")
    for step in range(int(trials)):
        study.enqueue_trial({"who": number})
        trial = study.ask()
        trial.set_user_attr("who", number)
        study.tell(trial, step)
    return [[trial.number, trial.user_attrs["who"]] for trial in read_study(run)[0]]


def read(number: int, run: str, until: str) -> int:
    """Read a run's trials again and again until a file appears."""
    from autoft.storage import read_study

    reads = 0
    while not Path(until).exists():
        read_study(Path(run))
        reads += 1
        time.sleep(0.2)  # as a person or a dashboard would, and more often
    return reads


def hold(number: int, run: str, done: str) -> str:
    """Take a run folder, and hold it until all others have tried; else return the refusal."""
    from autoft.errors import RunError
    from autoft.runfolder import open_run

    marks = Path(done)
    try:
        with open_run(Path(run), {}, {}, ""):
            time.sleep(0.02)  # its signature is there by now for whoever comes now
            (marks / f"{number}").touch()
            count = int(os.environ["CROWD"])
            deadline = time.monotonic() + 60
            while len(list(marks.iterdir())) < count and time.monotonic() < deadline:
                time.sleep(0.01)
            return f"held by {os.getpid()}"
    except RunError as error:
        (marks / f"{number}").touch()
        return str(error)


WORKS: dict[str, Callable[..., Any]] = {"write": write, "share": share, "read": read, "hold": hold}


def main() -> None:
    """Fork, let all begin at once, and wait."""
    name, count, *arguments = sys.argv[1:]
    os.environ["CROWD"] = count
    import optuna

    import autoft.storage  # noqa: F401 - once, before all are there

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    gate, opener = os.pipe()
    children = []
    for number in range(int(count)):
        child = os.fork()
        if child == 0:
            os.close(opener)
            os.read(gate, 1)  # ends when the parent opens the gate
            try:
                line = {"found": WORKS[name](number, *arguments)}
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is told
                line = {"error": f"{type(error).__name__}: {error}"}
            os.write(1, (json.dumps(line) + "\n").encode())  # short: lines of several processes do not mix
            os._exit("error" in line)
        children.append(child)
    os.close(gate)
    os.close(opener)
    codes = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(any(codes))


if __name__ == "__main__":
    main()
