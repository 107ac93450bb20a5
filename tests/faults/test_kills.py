"""The short form of what is promised about kills, stops and clocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from kills import Chaos, Search, judge, tallies
from promise import Tally, must_hold, summary

pytestmark = pytest.mark.slow


@pytest.mark.timeout(600)
def test_search_whose_processes_die_at_random_moments_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    found = list(tallies(tmp_path, long=False, seed=0))
    for tally in found:
        must_hold(tally)
    assert {tally.about.partition(" (")[0] for tally in found} >= {"kills", "kills at a write", "the clock"}


@pytest.mark.timeout(300)
def test_each_promise_breaks_where_it_should(tmp_path: Path) -> None:
    settings = ("search.trials=2", "trainer.epochs=2", "search.seeds=1", "search.workers=0", "search.prune=false")
    search = Search(tmp_path, "run", settings)
    search.whole()
    other = Search(tmp_path, "other", (*settings, "search.seed=1"))
    other.whole()
    chaos = Chaos(lost=["trial 0 was, and is not"], snapshots=1, bad_stops=["exit 1"], lasting=["worker 7"])
    chaos.done.update({"driver terminated": 1, "worker stopped": 1})
    line = search.ledger.read_text().splitlines()[0]
    search.ledger.write_text("\n".join([line] * 3))
    log = search.path / "log.jsonl"
    log.write_text(log.read_text() * 2)
    kept = {tally.promise: tally.kept for tally in judge(search, other, chaos, trials=3)}
    assert kept == {
        "a search goes on after each and comes to its end": True,
        "no completed result is lost or changed": False,
        "no trial is stuck": True,
        "no trial is committed twice": False,
        "the budget of trials is met exactly": False,
        "at most the epoch in flight is trained again": False,
        "the table of trials is that of an uninterrupted search": False,
        "exit 143 within 30 s": False,
        "a worker that is silent beyond its lease loses its task": False,
    }


def test_promise_that_was_never_tried_is_broken() -> None:
    tally = Tally("kills", "nothing is lost", 0)
    assert not tally.kept
    assert replace(tally, tried=3).kept
    broken = replace(tally, tried=3, broken=("this was",))
    assert not broken.kept
    assert "BROKEN" in summary([broken])
    assert "2/3" in summary([broken])
    assert "this was" in summary([broken])
    with pytest.raises(AssertionError, match="nothing is lost"):
        must_hold(tally)
