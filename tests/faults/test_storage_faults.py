"""The short form of what is promised about where trials are."""

from __future__ import annotations

from pathlib import Path

import pytest
import storage
from postgres import Server, why_not
from promise import must_hold
from storage import disturbed, formats, sharers, tallies, writers

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
def test_trials_survive_crowds_outages_and_age(tmp_path: Path) -> None:
    found = list(tallies(tmp_path, long=False, seed=0))
    for tally in found:
        must_hold(tally)
    wanted = {"run folders of other formats", "locks of killed processes", "16 processes that write one SQLite study"}
    if why_not() is None:
        wanted |= {"connections killed", "server restarts", "16 processes that write one PostgreSQL study"}
    assert {tally.about for tally in found} >= wanted


def test_writers_break_where_trials_are_more_or_fewer_than_were_made(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'crowd.db'}"
    assert writers(url, 1, "SQLite").kept
    again = writers(url, 1, "SQLite")
    assert not again.kept
    assert "32 trials, where 16 were made" in again.broken[0]


def test_sharers_break_where_a_run_cannot_be_opened(tmp_path: Path) -> None:
    tally = sharers(f"sqlite:///{tmp_path / 'no' / 'folder.db'}", tmp_path / "runs", 1)
    assert len(tally.broken) == storage.CROWD
    assert "cannot be opened" in tally.broken[0]


def test_formats_break_where_a_newer_one_is_not_told_from_an_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.runfolder.FORMAT", 1000)
    folders, _ = formats(tmp_path)
    assert not folders.kept
    assert folders.broken == ["0 folders were refused, where 2 are newer"]


@pytest.mark.timeout(300)
def test_outages_break_where_the_trials_are_other_ones(tmp_path: Path, postgres: Server) -> None:
    (tally,) = disturbed(tmp_path, "nothing", postgres, [], 1, lambda name: 1, 1.0)
    assert tally.broken == ["search 0 found other trials than an undisturbed one"]
