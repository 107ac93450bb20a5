"""A signal ends a search cleanly where it can, and within a stated time in any case."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from autoft.events import Event
from autoft.stopping import StopRequest

# a step that never ends, as one that waits for a dead disk; SIGTERM comes when it says so
SCRIPT = """
import sys, time
from autoft import stopping
from autoft.events import Event
stopping.STOP_WITHIN = 0.5
stop = stopping.StopRequest()
with stop.listening():
    stop.follow(Event("search", ""))
    print("in a step", flush=True)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_process_whose_step_does_not_end_is_ended_with_the_signals_code(number: int, code: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in a step\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "stopping after this step" in err
    assert "no step ended within 0.5 s" in err


def test_stop_is_clean_while_trials_run_and_immediate_otherwise() -> None:
    stop = StopRequest()
    with stop.listening():
        stop.follow(Event("search", ""))
        signal.raise_signal(signal.SIGTERM)
        assert (stop.asked, stop.at_once) == (signal.SIGTERM, False)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.at_once
    stop = StopRequest()
    with stop.listening():
        stop.follow(Event("search", ""))
        stop.follow(Event("export", ""))
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_what_was_listened_to_before_is_listened_to_again() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    with stop.listening():
        assert signal.getsignal(signal.SIGTERM) == stop.receive
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert stop._last_resort is not None
    stop._last_resort.join(5)
    assert not stop._last_resort.is_alive(), "this process would end later"
