"""Errors say rule, value and next step; a study's problems are all listed."""

from __future__ import annotations

import pytest

from autoft.errors import AutoftError, ConfigError, Problem, first_line, nearest


def test_hint_stands_on_a_line_of_its_own() -> None:
    assert str(AutoftError("must be 1, but got 2", "use 1")) == "must be 1, but got 2\nhint: use 1"
    assert str(AutoftError("must be 1, but got 2")) == "must be 1, but got 2"


def test_every_problem_of_a_study_is_listed_with_its_line() -> None:
    problems = [Problem("search.trials", "must be at least 1, but got 0", 3), Problem("name", "is empty", hint="name it")]
    assert str(ConfigError("study.yaml", problems)) == (
        "study.yaml has 2 problems:\n"
        "  line 3: search.trials: must be at least 1, but got 0\n"
        "  name: is empty (hint: name it)"
    )
    assert "has 1 problem:" in str(ConfigError("study.yaml", problems[:1]))


def test_nearest_names_come_first_and_unlike_ones_not_at_all() -> None:
    assert nearest("resnet81", ["vit", "resnet18", "resnet50"])[0] == "resnet18"
    assert nearest("resnet", ["vit"]) == []


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("one\ntwo"), "one"), (AssertionError(), "AssertionError"), (ValueError("\n \n"), "ValueError")],
)
def test_first_line_is_never_empty(error: Exception, line: str) -> None:
    assert first_line(error) == line
    assert len(first_line(ValueError("x" * 1000))) == 300
