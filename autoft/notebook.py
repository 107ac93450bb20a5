"""Shows a search in a notebook, while it runs: one output that changes in place, so that little stays of a long search."""

from __future__ import annotations

import html
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from autoft.errors import printable
from autoft.events import Event, Listener, duration
from autoft.progress import plain_line

LINES = 6  # the last ones that stay in sight
EVERY = 0.5  # seconds between two changes by epochs, which may be many

Shown = Mapping[str, str]  # what is displayed, by MIME type
Update = Callable[[Shown], None]
Display = Callable[[Shown], Update]


def show_progress() -> Listener:
    """Return a listener for `autoft.search`: in a notebook one output that changes in place, else a line an event on stderr.

    Example:
        >>> autoft.search("photos", on_event=autoft.show_progress())  # doctest: +SKIP
    """
    display = notebook_display()
    return plain_line if display is None else NotebookView(display)


def notebook_display() -> Display | None:
    """Return what shows an output in the cell that runs, and gives what changes it; None outside of notebooks."""
    ipython: Any = sys.modules.get("IPython")  # not imported where nobody has: autoft does not need it
    if ipython is None or getattr(ipython.get_ipython(), "kernel", None) is None:  # a terminal of IPython has none
        return None

    def show(content: Shown) -> Update:
        handle = ipython.display.display(dict(content), raw=True, display_id=True)

        def change(content: Shown) -> None:
            handle.update(dict(content), raw=True)

        return change

    return show


class NotebookView:
    """A listener that shows the trials' progress, those that train, and the last lines, in one output.

    Args:
        display: Shows it first, and gives what changes it.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self._update: Update | None = None
        self._changed = 0.0
        self._total, self._ended = 0, 0
        self._best = self._left = ""
        self._training: dict[int, str] = {}
        self._lines: deque[str] = deque(maxlen=LINES)

    def __call__(self, event: Event) -> None:
        """Take an event."""
        self._note(event)
        now = time.monotonic()
        if event.kind == "epoch" and now - self._changed < EVERY:
            return
        self._changed = now
        content = {"text/html": self._html(), "text/plain": self._lines[-1] if self._lines else ""}
        if self._update is None:
            self._update = self._display(content)
        else:
            self._update(content)

    def _note(self, event: Event) -> None:
        data: Mapping[str, Any] = event.data
        if event.kind == "search":
            self._total, self._ended = data["trials"], data["done"]
        elif event.kind == "epoch":
            self._training[data["trial"]] = f"epoch {data['epoch']} of {data['epochs']}, {data['value']:.4f}"
            self._left = f", about {duration(data['seconds_left'])} left"
            return
        elif event.kind == "trial":
            self._training[data["trial"]] = "begins"
        elif event.kind == "trial_end":
            self._training.pop(data["trial"], None)
            self._ended += data.get("state") != "paused"
            if data["best"]:
                self._best = f", best {data['value']:.4f} (trial {data['trial']})"
        elif event.kind in ("confirm", "export", "done", "stopped"):
            self._left = ""
            self._training.clear()
        warns = "warning: " if event.kind == "warning" else ""
        self._lines.append(warns + printable(event.text))

    def _html(self) -> str:
        bar = ""
        if self._total:
            told = f"{self._ended} of {self._total} trials{self._best}{self._left}"
            bar = f'<div><progress value="{self._ended}" max="{self._total}"></progress> {html.escape(told)}</div>'
        trials = "".join(
            f"<div>trial {number}: {html.escape(told)}</div>" for number, told in sorted(self._training.items())
        )
        lines = html.escape("\n".join(self._lines))
        return f'{bar}{trials}<pre style="white-space: pre-wrap">{lines}</pre>'
