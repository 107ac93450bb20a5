"""What commands print: pairs and tables on stdout, notes, errors and the log on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence

from autoft.errors import AutoftError, ConfigError, printable


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Print a name and a value a line, the values below each other."""
    listed = list(pairs)
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        print(f"{name:{width}}  {value}")


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows as columns that are as wide as they must be; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def megabytes(size: int) -> str:
    """Return bytes as people say them."""
    return f"{size / 1e6:.1f} MB"


def print_note(note: str) -> None:
    """Print what a person should know to stderr, where no program reads it as a result."""
    print(note, file=sys.stderr)


def print_error(error: AutoftError) -> None:
    """Print what went wrong, and the hint that it carries."""
    message = error.message if isinstance(error, ConfigError) else str(error)
    print(f"error: {printable(message)}", file=sys.stderr)


def log_to_stderr() -> None:
    """Show autoft's own log: warnings by default, such as those of broken plugins."""
    logger = logging.getLogger("autoft")
    for handler in list(logger.handlers):  # of an earlier call in this process, whose stderr may be closed
        logger.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter())
    logger.addHandler(handler)


class _PlainFormatter(logging.Formatter):
    """Writes `warning: text`, as the command's own messages look."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"
