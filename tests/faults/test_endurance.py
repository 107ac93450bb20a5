"""The short form of what is promised about long searches."""

from __future__ import annotations

from pathlib import Path

import pytest
from endurance import FOR_EACH_TRIAL, LIMITS, Watch, grown, judge, tallies
from promise import summary


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_long_search_holds_no_more_at_its_end_than_in_the_middle(tmp_path: Path) -> None:
    found = list(tallies(tmp_path, long=False, seed=0))
    broken = [tally for tally in found if not tally.kept]
    assert not broken, summary(broken)
    assert len(found) == 2 * len(LIMITS) + 3


def test_what_goes_on_growing_is_told(tmp_path: Path) -> None:
    trials = list(range(1, 91))
    for name, limit in LIMITS.items():
        level = [100.0] * 90
        assert not grown(name, level, trials)[0]
        assert not grown(name, [1.0] * 30 + level[30:], trials)[0]  # the beginning is not compared
        step = 1.5 * max(limit.more, 100.0 * limit.share)
        assert grown(name, [100.0 + step * trial / 30 for trial in trials], trials)[0]
    assert not grown(FOR_EACH_TRIAL, [20.0 * trial for trial in trials], trials)[0]
    assert grown(FOR_EACH_TRIAL, [30.0 * trial for trial in trials], trials)[0]
    assert grown("threads", [1.0], [1])[0]
    watch = Watch(tmp_path, {"threads": [4.0 + trial for trial in trials]}, trials)
    (tally,) = judge(watch, "90 trials")
    assert not tally.kept
