"""A rule of the conformance kit bound to what it is to hold for: called in a test, or run for a result; knows no rule."""

from __future__ import annotations

import time
import traceback
import unittest
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autoft.errors import AutoftError
from autoft.testing.kit import CheckFailed, CheckWarning

Outcome = Literal["passed", "warned", "failed", "waived"]


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        id: The check's.
        outcome: `passed`; `warned`, where no rule is broken; `failed`; or `waived`, where a failure was declared.
        message: Empty if it passed, otherwise what broke it, or why it was waived.
        seconds: How long it took.
        subject: What was checked.
    """

    id: str
    outcome: Outcome
    message: str
    seconds: float
    subject: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing is to be mended."""
        return self.outcome != "failed"


@dataclass(frozen=True)
class BoundCheck:
    """One rule and what it is to hold for; call it in a test.

    Attributes:
        subject: Name of what is checked.
        id: Short name of the rule.
        about: The rule, in a line.
        check: Raises `CheckFailed` where it is broken.
        waiver: Why it is known to fail, or None.
    """

    subject: str
    id: str
    about: str
    check: Callable[[], None]
    waiver: str | None = None

    def __str__(self) -> str:
        return f"{self.subject}: {self.id}"

    def __call__(self) -> None:
        """Run it as a test: a waived failure is skipped with its reason, a warning is a Python warning.

        Raises:
            CheckFailed: The rule is broken; or it holds, though it is waived.
            unittest.SkipTest: It is broken and waived.
        """
        try:
            self.check()
        except CheckWarning as warning:
            warnings.warn(str(warning), stacklevel=2)
        except CheckFailed as error:
            if self.waiver is not None:
                raise unittest.SkipTest(f"waived: {self.waiver}") from error
            raise
        else:
            if self.waiver is not None:
                raise CheckFailed(f"{self}: the rule holds, but is waived: {self.waiver}", "remove the waiver")

    def run(self) -> CheckResult:
        """Run it, and tell what it found; what the plugin's code raises is a finding too."""
        started = time.monotonic()
        outcome, message = self._outcome()
        return CheckResult(self.id, outcome, message, time.monotonic() - started, self.subject)

    def _outcome(self) -> tuple[Outcome, str]:
        try:
            self.check()
        except CheckWarning as warning:
            return "warned", str(warning)
        except AutoftError as error:
            message = str(error)
        except Exception as error:  # noqa: BLE001 - the code under test is the plugin's: a crash is a finding
            frames = traceback.extract_tb(error.__traceback__)
            outside = [
                frame for frame in frames if "torch" not in Path(frame.filename).parts
            ]  # its own code is not to blame
            place = (outside or frames)[-1]
            message = f"raised {type(error).__name__}: {error} (at {place.filename}:{place.lineno})"
        else:
            if self.waiver is None:
                return "passed", ""
            return "failed", f"the rule holds, but is waived: {self.waiver}\nhint: remove the waiver"
        if self.waiver is not None:
            return "waived", f"{self.waiver}; {message.splitlines()[0]}"
        return "failed", message


def run_all(checks: Sequence[BoundCheck]) -> list[CheckResult]:
    """Run checks, one after another; one that fails does not keep the others from running."""
    return [check.run() for check in checks]
