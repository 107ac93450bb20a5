"""Ctrl-C and SIGTERM: a clean stop at the next step while trials run, an immediate one otherwise, and soon in any case."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoft.events import Event

SIGNALLED = 128  # plus the signal's number: the exit code, as shells have it
STOP_WITHIN = 25.0  # seconds from the first signal to the end of the process; schedulers kill after 30
STDERR = 2


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a clean stop while trials run, and into an immediate one otherwise.

    Attributes:
        asked: The signal that asked for a stop, or None.
        at_once: Whether it had to interrupt what was going on.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.at_once = False
        self._in_trials = False
        self._last_resort: threading.Timer | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Let the signals come here while the block runs."""
        before = {number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._last_resort is not None:
                self._last_resort.cancel()

    def follow(self, event: Event) -> None:
        """Note whether trials run: between them there is a checkpoint to reach, elsewhere nothing to lose."""
        if event.kind == "search":
            self._in_trials = True
        elif event.kind == "export":
            self._in_trials = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Ask for a stop; a second signal stops at once."""
        again = self.asked is not None
        self.asked = number
        self.at_once = again or not self._in_trials
        if self._last_resort is None:
            self._last_resort = threading.Timer(STOP_WITHIN, _end_now, (number,))
            self._last_resort.daemon = True
            self._last_resort.start()
        if self.at_once:
            raise KeyboardInterrupt
        # not print: the signal may have come in the middle of one, and Python refuses to enter it twice
        os.write(STDERR, b"stopping after this step; once more stops at once\n")


def _end_now(number: int) -> None:
    """End the process as a kill would, which loses no more than the epoch under way; its workers end by themselves."""
    os.write(STDERR, f"stopped: no step ended within {STOP_WITHIN:g} s, so the epoch under way is lost\n".encode())
    os._exit(SIGNALLED + number)
