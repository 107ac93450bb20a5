"""Tools for plugin authors and for the tests: toy plugins and the conformance kit."""

from __future__ import annotations

from autoft.testing.suite import checks_for

__all__ = ["checks_for"]
