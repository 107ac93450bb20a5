"""The short form of what is promised about repeating a search."""

from __future__ import annotations

from pathlib import Path

import pytest
from promise import must_hold
from repeats import tallies


@pytest.mark.slow
def test_search_repeats_bit_for_bit_or_says_why_not(tmp_path: Path) -> None:
    found = list(tallies(tmp_path, long=False, seed=0))
    for tally in found:
        must_hold(tally)
    assert len(found) == 2
