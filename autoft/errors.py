"""The errors autoft raises on purpose; each says the rule, the value, and what to do next.

Anything else that escapes is a bug in autoft (exit code 1, with a trace).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class AutoftError(Exception):
    """A problem that the user can mend; the command line prints it and exits with 2.

    Args:
        message: The rule and the value that broke it.
        hint: What to do next: a command, an option, a nearest name.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class DataError(AutoftError):
    """The data cannot be read, or cannot be learned from."""


class BackboneError(AutoftError):
    """A backbone is unknown, or cannot be built with what was asked."""


class PluginError(AutoftError):
    """A plugin is broken, missing, or clashes with another."""


class RunError(AutoftError):
    """A run folder is locked, full, or belongs to another study; or no trial gave a model."""


class StorageError(RunError):
    """The trials of a run cannot be reached, or not any more; nothing that was finished is lost."""


class ExportError(AutoftError):
    """The exported model does not behave as the trained one; nothing was handed out."""


class BundleError(AutoftError):
    """A bundle folder is incomplete, altered, or not a bundle."""


class RepeatedBugError(RuntimeError):
    """Unexpected exceptions ended every trial, or the same one several: a bug in autoft or a plugin; carries the trace."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a study file.

    Attributes:
        where: Dotted path of the value, such as `search.trials`.
        message: Rule, then value.
        line: 1-based line in the study file, or None for a value given on the command line.
        hint: What to do next.
    """

    where: str
    message: str
    line: int | None = None
    hint: str | None = None

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line is not None else ""
        hint = f" (hint: {self.hint})" if self.hint else ""
        return f"{place}{self.where}: {self.message}{hint}"


class ConfigError(AutoftError):
    """A study file or option is wrong; carries every problem found, not the first.

    Args:
        source: The study file, or `options` for values from the command line.
        problems: All problems, in file order.
    """

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = len(self.problems)
        listed = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{source} has {count} problem{'s' if count != 1 else ''}:\n{listed}")


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Return the known names most like `name`, best first, for an error's hint.

    Example:
        >>> nearest("timm/resnet81", ["timm/resnet18", "timm/vit_tiny"])
        ['timm/resnet18']
    """
    return difflib.get_close_matches(name, list(names), n=count, cutoff=0.6)


def printable(text: str) -> str:
    """Return a text with all that moves a terminal's cursor escaped, but line ends: names of files can hold anything."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type where it has none, to be put into another message."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
