"""A terminal shows a search's trials while they train, keeps the lines that tell what happened, and is left as it was."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import COMMAND, ONE_THREAD
from rich.console import Console
from test_progress import ALL, SEARCH

from autoft.events import Event
from autoft.live import LiveView, live_view
from autoft.status import WorkerStatus

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def trial(number: int, **facts: object) -> Event:
    return Event("trial", "", {"trial": number, "role": "trial", "backbone": "toy/mlp", **facts})


def epoch(number: int, at: int, value: float) -> Event:
    facts = {"trial": number, "epoch": at, "epochs": 4, "value": value, "seconds_left": 75.4}
    return Event("epoch", "", facts)


def end(number: int, state: str, value: float | None, best: bool = False) -> Event:
    return Event("trial_end", f"trial {number} {state}", {"trial": number, "state": state, "value": value, "best": best})


def rendered(*events: Event, height: int = 30, workers: tuple[WorkerStatus, ...] = ()) -> list[str]:
    """Return the lines that a terminal of 100 columns shows after some events."""
    console = Console(file=io.StringIO(), width=100, height=height)
    view = LiveView(console, lambda: workers)
    for event in events:
        view(event)
    with console.capture() as captured:
        console.print(view)
    return [line.rstrip() for line in captured.get().splitlines()]


def test_trials_that_train_come_first_and_then_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Event("search", "", {**SEARCH.data, "trials": 8})
    lines = rendered(
        search,
        trial(0, role="preset"),
        end(0, "complete", 0.5, best=True),
        trial(1),
        end(1, "pruned", 0.25),
        trial(2),
        end(2, "complete", 0.75, best=True),
        trial(3),
        end(3, "failed", None),
        trial(4),
        epoch(4, 2, 0.625),
    )
    assert re.match(r"trials +\S+ +4/8 best 0.7500 \(trial 2, preset 0.5000\), 0 s, about 1 min 15 s left$", lines[0])
    assert lines[1].split() == ["trial", "state", "accuracy", "epoch", "backbone"]
    assert [line.split()[0] for line in lines[2:]] == ["4", "2", "0", "1"], "what failed has no place"
    assert re.match(r"4 +running +0.6250 +2/4 +\S+ +toy/mlp$", lines[2])
    assert "0 (preset)" in lines[4]


def test_one_that_rests_has_not_ended() -> None:
    assert " 0/2 " in rendered(SEARCH, trial(0), epoch(0, 1, 0.5), end(0, "paused", 0.5, best=True))[0]


def test_small_terminal_gets_fewer_rows_and_what_trains_before_all() -> None:
    events = [event for number in range(5) for event in (trial(number), end(number, "complete", 0.5 + number, best=True))]
    assert len(rendered(SEARCH, *events, trial(9), epoch(9, 1, 0.1), height=8)) == 4
    assert rendered(SEARCH, *events, trial(9), epoch(9, 1, 0.1), height=8)[2].startswith("9 ")


def test_workers_are_told_with_their_memory() -> None:
    workers = (WorkerStatus(0, 11, 512_000_000, "running"), WorkerStatus(1, 12, 256_000_000, "stopped"))
    lines = rendered(SEARCH, trial(0), epoch(0, 1, 0.5), workers=workers)
    assert lines[-1] == "workers  0: 512 MB running, 1: 256 MB stopped"


def test_nothing_is_shown_before_the_trials_and_after_the_end() -> None:
    assert rendered(Event("data", "", {"path": "toys"})) in ([], [""])
    assert rendered(*ALL) in ([], [""])


def test_what_happened_stays_as_lines_and_the_table_goes() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with live_view(console) as listener:
        for event in ALL:
            listener(event)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "warning: copies [in] train" in written, "brackets are text, not markup"
    for words in ("trial 0 complete", "exporting trial 0"):
        assert words in written, words
    assert "trial 0 won" not in written, "the command prints it"


@pytest.mark.parametrize("interrupt", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_real_search_on_a_terminal(interrupt: bool, toy_images: Path, toy_env: dict[str, str], tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    environment = {**os.environ, **ONE_THREAD, **toy_env, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    arguments = ("search", toy_images, "-b", "toy/mlp", "--trials", 3, "--epochs", 3, "-o", tmp_path / "run")
    process = subprocess.Popen(
        [COMMAND, *map(str, arguments)], stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    read, stop, interrupted = b"", time.monotonic() + 110, False
    try:
        while time.monotonic() < stop:
            ready, _, _ = select.select([main], [], [], 0.2)
            if ready:
                try:
                    chunk = os.read(main, 65536)
                except OSError:  # the other end is closed: Linux says so in this way
                    break
                if not chunk:
                    break
                read += chunk
            if interrupt and not interrupted and b"running" in read:
                process.send_signal(signal.SIGINT)
                interrupted = True
        code = process.wait(timeout=20)
    finally:
        process.kill()
        process.wait()
        os.close(main)
    shown = read.decode()
    assert read.count(b"\x1b[?25l") == read.count(b"\x1b[?25h") >= 1, "the cursor that was hidden is back"
    plain = ESCAPES.sub("", shown)
    assert re.search(r"trials +\S+ +\d/3", plain)
    assert re.search(r"\d( \(\S+\))? +running", plain)
    if interrupt:
        assert code == 130
        assert "the same command goes on" in plain
    else:
        assert code == 0
        assert re.search(r"^bundle +\S", plain, re.MULTILINE)
