"""Shows a search while it runs: a live view on a terminal, plain lines elsewhere, JSON lines for programs, or nothing.

How a notebook shows it, `notebook.py` says.

What a person watches goes to stderr; what a program reads goes to stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Literal

from autoft.errors import printable
from autoft.events import AT_THE_END, Event, Listener, duration

Mode = Literal["live", "plain", "json", "quiet"]

KERNEL = "JPY_PARENT_PID"  # Jupyter sets it for kernels, and so for what they start


def choose_mode(*, quiet: bool, json_lines: bool) -> Mode:
    """Return how to show progress: `--json` and `--quiet` win, a terminal gets the live view."""
    if json_lines:
        return "json"
    if quiet:
        return "quiet"
    # `!autoft` in a notebook writes to a terminal that nobody looks at: what moves its cursor would be shown as it is
    return "live" if sys.stderr.isatty() and KERNEL not in os.environ else "plain"


@contextlib.contextmanager
def show(mode: Mode) -> Iterator[Listener]:
    """Give a listener that shows events until the block ends."""
    if mode == "live":
        from autoft.live import live_view

        with live_view() as listener:
            yield listener
    else:
        yield {"json": _json_line, "plain": plain_line, "quiet": _quiet_line}[mode]


def _json_line(event: Event) -> None:
    print(json.dumps({"event": event.kind, "text": event.text, **event.data}), flush=True)


def plain_line(event: Event) -> None:
    """Print an event to stderr, in a line."""
    if event.kind in AT_THE_END:
        return
    left = event.data.get("seconds_left")
    ending = f", about {duration(left)} left" if left else ""
    print(f"{'warning: ' if event.kind == 'warning' else ''}{printable(event.text)}{ending}", file=sys.stderr, flush=True)


def _quiet_line(event: Event) -> None:
    if event.kind == "warning":
        print(f"warning: {printable(event.text)}", file=sys.stderr, flush=True)
