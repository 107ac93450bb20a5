"""Each way of showing a search shows what it should, where it should."""

from __future__ import annotations

import io
import json
import sys

import pytest

from autoft import progress
from autoft.events import Event, duration
from autoft.progress import choose_mode, show

SEARCH = Event(
    "search",
    "searching",
    {"name": "toys", "trials": 2, "done": 0, "epochs": 3, "metric": "accuracy", "direction": "maximize"},
)
TRIAL = Event("trial", "trial 0 (preset): learning_rate 0.1", {"trial": 0, "role": "preset", "backbone": "toy/mlp"})
EPOCH = Event("epoch", "trial 0 epoch 1/3", {"trial": 0, "epoch": 1, "epochs": 3, "value": 0.5, "seconds_left": 75.4})
END = Event("trial_end", "trial 0 complete: accuracy 0.5000", {"trial": 0, "state": "complete", "value": 0.5, "best": True})
WARNING = Event("warning", "copies [in] train", {"about": "splits"})
EXPORT = Event("export", "exporting trial 0", {"trial": 0})
DONE = Event("done", "trial 0 won", {"metric": "accuracy"})
ALL = (WARNING, SEARCH, TRIAL, EPOCH, END, EXPORT, DONE)


@pytest.mark.parametrize(
    ("quiet", "json_lines", "terminal", "mode"),
    [
        (False, False, True, "live"),
        (False, False, False, "plain"),
        (True, False, True, "quiet"),
        (False, True, True, "json"),
        (True, True, False, "json"),
    ],
)
def test_terminal_gets_the_live_view_unless_told_otherwise(
    quiet: bool, json_lines: bool, terminal: bool, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    assert choose_mode(quiet=quiet, json_lines=json_lines) == mode


def test_terminal_of_a_notebooks_command_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """`!autoft` in a cell has a terminal, but whatever moves its cursor is shown as it is."""
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert choose_mode(quiet=False, json_lines=False) == "plain"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s"), (3599.7, "1 h 0 min"), (9000, "2 h 30 min")],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def shown(mode: progress.Mode, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    with show(mode) as listener:
        for event in ALL:
            listener(event)
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_plain_lines_go_to_stderr_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = shown("plain", capsys)
    assert out == ""
    assert err.splitlines() == [
        "warning: copies [in] train",
        "searching",
        "trial 0 (preset): learning_rate 0.1",
        "trial 0 epoch 1/3, about 1 min 15 s left",
        "trial 0 complete: accuracy 0.5000",
        "exporting trial 0",
    ]


def test_json_lines_go_to_stdout_whole(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = shown("json", capsys)
    assert err == ""
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["event"] for line in lines] == [event.kind for event in ALL]
    assert lines[3] == {"event": "epoch", "text": EPOCH.text, **EPOCH.data}


def test_quiet_shows_warnings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("quiet", capsys) == ("", "warning: copies [in] train\n")


@pytest.mark.parametrize("mode", ["live", "plain", "json", "quiet"])
def test_events_in_any_order_do_no_harm(mode: progress.Mode) -> None:
    with show(mode) as listener:
        for event in (EPOCH, END, EXPORT, TRIAL, *ALL, Event("stopped", "stopped", {}), Event("data", "data")):
            listener(event)
