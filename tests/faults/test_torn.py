"""The short form of what is promised about torn and altered files."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from conftest import FinishedRun
from promise import Tally, summary
from torn_files import Case, bundle_tallies, cuts, flips, must_fail, tallies, tally, try_all

from autoft.errors import AutoftError


@pytest.mark.usefixtures("toys")
def test_files_of_a_run_are_recovered_or_told_however_they_are_damaged(tmp_path: Path) -> None:
    found = list(tallies(tmp_path, long=False, seed=0))
    broken = [each for each in found if not each.kept]
    assert not broken, summary(broken)
    assert len(found) > 20


@pytest.mark.usefixtures("toys")
def test_damaged_files_of_a_bundle_are_told(finished: FinishedRun, toy_images: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(finished.path / "bundle", bundle)
    found = list(bundle_tallies(bundle, toy_images, long=False, seed=0))
    broken = [each for each in found if not each.kept]
    assert not broken, summary(broken)
    assert len(found) > 20


def reads(file: Path, raised: type[Exception] = AutoftError, **arguments: object) -> Tally:
    def read() -> str:
        if file.read_bytes() != b"whole":
            raise raised("is damaged", "restore it") if raised is AutoftError else raised("is damaged")
        return file.read_text()

    case = Case("a file", file, read, **arguments)  # type: ignore[arg-type]
    return tally(case, try_all(case, long=True, rng=random.Random(0)))


def test_each_way_to_break_the_promise_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("whole")
    assert reads(file).kept
    assert file.read_text() == "whole"
    assert reads(file, KeyError).broken[0] == "a file, cut to 0 of 5 bytes: KeyError: 'is damaged'"
    assert reads(file, KeyError, told=(KeyError,)).kept
    case = Case("a file", file, lambda: file.read_bytes()[:1])
    broken = try_all(case, long=True, rng=random.Random(0)).broken
    assert "a file, cut to 0 of 5 bytes: gives something else" in broken
    assert not any("cut to 4" in line for line in broken)
    silent = Case("a file", file, lambda: must_fail(file.read_bytes(), b"whole"))
    assert not try_all(silent, long=True, rng=random.Random(0)).broken

    def unhelpful() -> str:
        if file.read_bytes() != b"whole":
            raise AutoftError("is damaged")
        return "whole"

    assert "no hint" in try_all(Case("a file", file, unhelpful), long=True, rng=random.Random(0)).broken[0]


def test_small_files_are_cut_everywhere_and_large_ones_at_their_ends_and_between() -> None:
    rng = random.Random(0)
    assert cuts(100, long=True, rng=rng) == list(range(100))
    large = cuts(100_000, long=True, rng=rng)
    assert {0, 4095, 95_904, 99_999} <= set(large)
    assert 400 < sum(4096 <= place < 95_904 for place in large) <= 500
    assert {0, 1, 50, 99} <= set(cuts(100, long=False, rng=rng))
    assert all(place < 100 and bit.bit_count() == 1 for place, bit in flips(100, long=True, rng=rng))
