"""The short form of what is promised about failures: each type injected once, by the real command."""

from __future__ import annotations

from pathlib import Path

import pytest
from failures import check, says, tallies
from promise import must_hold


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_type_of_failure_has_its_remedy_its_message_and_its_count(tmp_path: Path) -> None:
    found = list(tallies(tmp_path, long=False, seed=0))
    for tally in found:
        must_hold(tally)
    assert {tally.about for tally in found} >= {"oom", "nan", "bug", "infra", "data"}


def test_what_is_not_as_wanted_is_named() -> None:
    assert check((0, 0, "exit code")) == []
    assert check((1, 0, "exit code")) == ["exit code: 1 instead of 0"]
    assert says("is full\nhint: free", "is full") == []
    assert len(says("Traceback (most recent call last)", "is full")) == 2
