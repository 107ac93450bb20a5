"""The study of conformance: there is a broken thing for every check of the kit, and the check catches it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoft.testing import data_checks, head_checks, strategy_checks
from autoft.testing.checks import CHECKS

FOLDER = Path(__file__).resolve().parents[1] / "studies" / "conformance"


@pytest.fixture(scope="module")
def study() -> Iterator[Any]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("run")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("run", "broken"):
            sys.modules.pop(name, None)


def test_every_check_has_a_broken_thing_that_it_catches(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    found = study.all_broken(tmp_path)
    known = {
        "backbone": {check.id for check in CHECKS},
        "head": {name for name, *_ in head_checks.CHECKS},
        "data format": {name for name, *_ in data_checks.DATA_CHECKS},
        "family": {name for name, *_ in data_checks.FAMILY_CHECKS},
        "strategy": {f"toy-scale: {name}" for name, _ in strategy_checks.CHECKS},
        "plugin": {"loads", "imports-fast"},
    }
    assert {(each.of, each.check) for each in found} == {(of, check) for of, checks in known.items() for check in checks}
    results = {(each.of, each.check): study.caught(each) for each in found}
    wrong = {key: result for key, result in results.items() if result.outcome != "failed"}
    assert {key: result.outcome for key, result in wrong.items()} == dict.fromkeys(
        [("backbone", "cuts"), ("plugin", "imports-fast")], "warned"
    )
    readme = (FOLDER / "README.md").read_text()
    for each in found:
        assert f"| {each.of} | `{each.check}` | {each.how} |" in readme


def test_message_becomes_one_cell_without_folders(study: Any) -> None:
    told = study.flat("a | b: at /some/where/file.py:3\nhint: mend it")
    assert study.flat("timm/a/b of https://c.d/e/f") == "timm/a/b of https://c.d/e/f"
    assert told == "a \\| b: at file.py:3 *hint:* mend it"


def test_table_is_replaced_and_the_rest_is_kept(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- broken: begin -->\nold\n<!-- broken: end -->\nafter\n")
    monkeypatch.setattr(study, "README", page)
    study.renew("broken", ["| a |", "|---|", "| 1\\d |"])
    assert page.read_text() == "before\n<!-- broken: begin -->\n\n| a |\n|---|\n| 1\\d |\n\n<!-- broken: end -->\nafter\n"
