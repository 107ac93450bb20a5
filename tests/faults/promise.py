"""What autoft promises of death, damage and hostile input, as counts: how often each was tried, and what broke it.

Each module of this folder makes such counts; its tests run a short form, `long.py` the long one.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH = 120


@dataclass(frozen=True)
class Tally:
    """How often a promise was put to the test.

    Attributes:
        about: What was done, such as `kills`.
        promise: What must hold, in words.
        tried: How often it was put to the test; a promise that was never tried is broken.
        broken: How it failed, a line each.
        note: What else was measured.
    """

    about: str
    promise: str
    tried: int
    broken: Sequence[str] = ()
    note: str = ""

    @property
    def kept(self) -> bool:
        """Whether it was tried and held."""
        return self.tried > 0 and not self.broken

    def __str__(self) -> str:
        word = "ok    " if self.kept else "BROKEN"
        counts = f"{self.tried - len(self.broken)}/{self.tried}"
        line = f"{word} {counts:>13}  {self.about}: {self.promise}" + (f" ({self.note})" if self.note else "")
        return "\n".join(textwrap.wrap(line, WIDTH, subsequent_indent=" " * 22))


def summary(tallies: Iterable[Tally]) -> str:
    """Return the table of all promises, with what broke them."""
    lines: list[str] = []
    for tally in tallies:
        lines.append(str(tally))
        lines += [textwrap.indent(reason, " " * 22) for reason in tally.broken[:10]]
    return "\n".join(lines)


def must_hold(tally: Tally) -> None:
    """Fail with all that broke a promise, or where it was never tried."""
    assert tally.kept, summary([tally])
