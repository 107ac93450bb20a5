"""What a search tells those who watch: one value for people, programs and the log alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

AT_THE_END = ("done", "stopped")  # kinds whose summary the command prints itself, once it is over


@dataclass(frozen=True)
class Event:
    """Something that happened in a search.

    Attributes:
        kind: `data`, `warning`, `preflight`, `probe`, `tuned`, `search`, `trial`, `epoch`, `trial_end`, `confirm`, `export`,
            `done` or `stopped`.
        text: One line for people.
        data: The same for programs, JSON-ready.
    """

    kind: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], None]


def trained_again(what: str, why: str, number: int) -> Event:
    """Say that a training began again, as what was kept of it is damaged."""
    return Event("warning", f"{what} began again: {why}", {"about": "damaged", "trial": number})


def weights_lost(number: int, why: str) -> Event:
    """Say that a trial which rests has lost its checkpoint, and so its weights."""
    text = f"trial {number} keeps its score, but its weights are lost: {why}"
    return Event("warning", text, {"about": "damaged", "trial": number})


def duration(seconds: float) -> str:
    """Return seconds as people say them.

    Example:
        >>> duration(75)
        '1 min 15 s'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
