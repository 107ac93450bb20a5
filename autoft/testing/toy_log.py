"""A logger for tests: the plainest that there is, and one that can be told to wait, and to fail."""

from __future__ import annotations

import json
import time

from autoft.events import Event
from autoft.hookspecs import hookimpl
from autoft.specs import LoggedSearch, Logger


@hookimpl
def autoft_loggers() -> list[Logger]:
    """Offer the plainest logger: a line of JSON for each event."""
    return [
        Logger(
            name="toy-log",
            check=lambda options: None if options.get("usable", True) else "it was told so; set `usable: true`",
            open=ToyLog,
            options={
                "usable": "whether it can be used",
                "fail": "kind of event on which it raises",
                "wait": "seconds that it waits at each event",
            },
            help="for tests: lines of JSON in the run folder",
        )
    ]


class ToyLog:
    """Writes what it hears to `toy-log.jsonl` in the run folder, and counts its sessions in its state.

    Args:
        search: The search.
    """

    def __init__(self, search: LoggedSearch) -> None:
        search.state["sessions"] = search.state.get("sessions", 0) + 1
        self._options = search.options
        self._file = (search.run / "toy-log.jsonl").open("a", encoding="utf-8")

    def hear(self, event: Event) -> None:
        """Write an event, after it has waited, or failed, as its options say."""
        time.sleep(float(self._options.get("wait", 0.0)))
        if self._options.get("fail") == event.kind:
            raise ConnectionError(f"the toy's server is away at {event.kind}")
        self._file.write(json.dumps({"event": event.kind, **event.data}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
