"""Where a search stands is told while it goes on, after it, and after a kill; looking changes nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from commands import autoft, command, start, wait_for

from autoft.errors import RunError
from autoft.runfolder import HELD, read_events
from autoft.status import PHASES, Fold, read_status, status_of

SEARCH = {"event": "search", "name": "toys", "metric": "accuracy", "direction": "maximize", "trials": 4, "time": 11.0}


def begun(number: int, **facts: Any) -> dict[str, Any]:
    return {"event": "trial", "trial": number, "role": "trial", "backbone": "toy/mlp", "time": 12.0 + number, **facts}


def epoch(number: int, at: int, value: float) -> dict[str, Any]:
    facts = {"trial": number, "epoch": at, "epochs": 3, "value": value, "seconds_left": 100.0, "time": 20.0 + at}
    return {"event": "epoch", **facts}


def ended(number: int, state: str, value: float | None, best: bool = False) -> dict[str, Any]:
    return {"event": "trial_end", "trial": number, "state": state, "value": value, "best": best, "time": 30.0 + number}


EVENTS = [
    {"event": "data", "path": "toys", "time": 10.0},
    {"event": "warning", "time": 10.5},
    SEARCH,
    begun(0, role="preset"),
    epoch(0, 1, 0.25),
    ended(0, "complete", 0.5, best=True),
    begun(1),
    ended(1, "complete", 0.75, best=True),
    begun(2),
    ended(2, "failed", None),
    begun(3),
    epoch(3, 2, 0.5),
]


def alive(folder: Path, pid: int | None = None) -> Path:
    """Sign a folder as this process, or another, holds it."""
    import socket

    import psutil

    process = psutil.Process()
    (folder / f"{HELD}.pid").write_text(f"{pid or process.pid}\n{socket.gethostname()}\n{process.create_time()}\n")
    return folder


def test_events_give_trials_the_best_and_the_time_that_is_left(tmp_path: Path) -> None:
    found = status_of(alive(tmp_path), EVENTS, now=42.0)
    assert (found.phase, found.alive, found.over, found.name, found.budget) == ("trials", True, False, "toys", 4)
    assert found.counts == {"complete": 2, "failed": 1, "running": 1}
    assert found.best is not None
    assert (found.best.number, found.best.value) == (1, 0.75)
    assert found.preset is not None
    assert found.preset.value == 0.5
    assert found.seconds_left == 80.0  # 100 at second 22
    assert [trial.number for trial in found.ranked()] == [1, 0, 3]
    assert (found.began, found.heard, found.warnings) == (10.0, 32.0, 1)


def test_less_is_better_where_it_is_minimized(tmp_path: Path) -> None:
    events = [{**event, "direction": "minimize"} if event is SEARCH else event for event in EVENTS]
    found = status_of(tmp_path, events, now=42.0)
    assert found.best is not None
    assert (found.best.number, [trial.number for trial in found.ranked()]) == (0, [0, 3, 1])


def test_what_an_ended_session_left_running_waits(tmp_path: Path) -> None:
    found = status_of(alive(tmp_path), [*EVENTS, {"event": "data", "path": "toys", "time": 50.0}], now=60.0)
    assert found.counts == {"complete": 2, "failed": 1, "waiting": 1}
    goes_on = [*EVENTS, {**SEARCH, "time": 51.0}, begun(3, from_epoch=2)]
    again = status_of(alive(tmp_path), goes_on, now=60.0)
    assert again.counts == {"complete": 2, "failed": 1, "running": 1}
    assert again.trials[3].epoch == 2


def test_search_whose_process_is_gone_was_killed(tmp_path: Path) -> None:
    assert status_of(alive(tmp_path, pid=2**22 + 1), EVENTS, now=42.0).killed
    done = status_of(alive(tmp_path), [*EVENTS, {"event": "done", "time": 60.0}], now=61.0)
    assert (done.phase, done.over, done.killed) == ("done", True, False)


def test_process_on_another_machine_cannot_be_seen(tmp_path: Path) -> None:
    (tmp_path / f"{HELD}.pid").write_text("12\nelsewhere.example\n1.0\n")
    found = status_of(tmp_path, EVENTS, now=42.0)
    assert (found.alive, found.over, found.workers) == (None, False, ())


def test_unknown_events_and_trials_do_no_harm() -> None:
    fold = Fold()
    for event in ({"event": "news"}, epoch(7, 1, 0.5), ended(8, "complete", 1.0)):
        fold.add(event)
    assert fold.trials == {}


def test_every_kind_of_event_has_its_phase() -> None:
    from autoft.events import Event
    from autoft.starter import meanings

    kinds = {word.strip("`,. ") for word in meanings(Event)["kind"].replace(" or ", ", ").split(", ")}
    assert kinds - {"warning"} == PHASES.keys()


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match="the run folder of a search is needed") as caught:
            read_status(folder)
        assert "runs/NAME" in caught.value.hint


@pytest.mark.slow
def test_command_shows_a_search_under_way_one_that_was_killed_and_its_end(
    toy_env: dict[str, str],
    toy_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    settings = ("search.trials=3", "trainer.epochs=4", "search.seeds=1", "search.workers=2")
    typed = ("search", toy_images, "-b", "toy/mlp", "-o", run, *(w for s in settings for w in ("--set", s)))
    process = start(*typed, env=toy_env)
    try:
        wait_for(process, "epoch 1/4")
        seen = json.loads(autoft("status", run, "--json", env=toy_env).out)
        assert (seen["alive"], seen["over"], seen["holder"]["pid"]) == (True, False, process.pid)
        assert len(seen["workers"]) == 2
        assert {trial["state"] for trial in seen["trials"]} <= {"running", "paused", "complete", "pruned"}
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    shown = command(monkeypatch, capsys, "status", run)
    assert shown.code == 0
    assert "ended without a word" in shown.out
    assert f"autoft search {run / 'study.yaml'} -o {run}" in shown.out
    assert autoft(*typed, "--quiet", env=toy_env).code == 0
    done = command(monkeypatch, capsys, "status", run, "--watch")
    assert done.code == 0
    assert f"bundle  {run / 'bundle'}" in done.out.replace("bundle    ", "bundle  ")
    assert len([line for line in done.out.splitlines() if " toy/mlp " in line]) == 3


def test_looking_changes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS) + '{"event": "tri')
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.iterdir()}
    assert read_status(run).counts["complete"] == 2
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.iterdir()} == before
    assert len(list(read_events(run))) == len(EVENTS)
    os.remove(run / "log.jsonl")
    assert list(read_events(run)) == []
