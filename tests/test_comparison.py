"""Runs stand beside each other with what each has; what differs between them is told, and whether it mattered."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import autoft as typed
from commands import command
from conftest import FinishedRun

import autoft
from autoft.comparison import Comparison, differing, explained, runs_table, worked_seconds
from autoft.errors import RunError
from autoft.files import read_json, write_checked

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture(scope="session")
def second(toy_env: dict[str, str], toy_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of the same data with other settings: not to be changed, copy it first."""
    run = tmp_path_factory.mktemp("second") / "run"
    given = ("-b", "toy/mlp", "--trials", 2, "--epochs", 1, "--seed", 7, "--set", "space.dropout=0.3")
    result = typed("search", toy_images, *given, "-o", run, env=toy_env)
    assert result.code == 0, result.err
    return run


def killed(run: Path, folder: Path) -> Path:
    """A copy of a run that was killed before its first trial ended."""
    shutil.copytree(run, folder)
    log = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "log.jsonl").write_text("".join(log[: next(i for i, line in enumerate(log) if '"trial_end"' in line)]))
    (folder / "result.json").unlink()
    for made in ("bundle", "answers"):
        shutil.rmtree(folder / made)
    return folder


def of_other_data(run: Path, folder: Path) -> Path:
    """A copy of a run that has other data and another metric, by what it recorded."""
    shutil.copytree(run, folder)
    lock, result = read_json(folder / "lock.json"), read_json(folder / "result.json")
    lock["identity"]["data"]["fingerprint"] = "0" * 32
    write_checked(folder / "lock.json", lock)
    write_checked(folder / "result.json", {**result, "metric": "f1_macro"})
    return folder


def test_runs_of_the_same_data_are_compared_by_the_same_samples(finished: FinishedRun, second: Path) -> None:
    found = autoft.compare(finished.path, second)
    first, other = found.runs
    result = read_json(finished.path / "result.json")
    assert (first.state, first.metric, first.test) == ("done", "accuracy", result["test"]["accuracy"])
    assert (first.validation, first.test_error) == (result["winner"]["value"], result["test_error"])
    assert dict(first.seeds) == result["confirmed"]["values"][str(result["winner"]["trial"])]
    assert (first.ended, first.budget, other.ended, other.budget) == (3, 3, 2, 2)
    assert first.bundle_size == sum(file.stat().st_size for file in (finished.path / "bundle").rglob("*") if file.is_file())
    assert first.data == other.data
    assert first.data.startswith("stripes (")
    assert first.seconds > 0
    (contrast,) = found.contrasts
    assert (contrast.basis, contrast.run, contrast.other) == ("samples", second, finished.path)
    assert other.test is not None
    assert contrast.difference == pytest.approx(other.test - result["test"]["accuracy"])


@pytest.mark.slow
def test_settings_that_differ_are_told_and_no_others(finished: FinishedRun, second: Path) -> None:
    found = autoft.compare(finished.path, second)
    assert dict(found.settings) == {
        "search.seed": (0, 7),
        "search.trials": (3, 2),
        "trainer.epochs": (2, 1),
        "space.dropout": (None, 0.3),
    }
    assert found.winners["epochs"] == (2, 1)


@pytest.mark.slow
def test_runs_of_other_data_are_shown_and_not_compared(finished: FinishedRun, second: Path, tmp_path: Path) -> None:
    stranger = of_other_data(second, tmp_path / "stranger")
    found = autoft.compare(finished.path, second, stranger)
    assert [each.verdict for each in found.contrasts][1] == "not comparable"
    assert found.contrasts[1].difference is None
    (line,) = [line for line in explained(found) if "stranger" in line]
    assert "the metric is f1_macro here and accuracy there" in line
    assert "the data differ" in line
    assert runs_table(found)[3][3] == "f1_macro"


def test_unfinished_run_is_shown_with_what_it_has(finished: FinishedRun, tmp_path: Path) -> None:
    torn = killed(finished.path, tmp_path / "torn")
    found = autoft.compare(finished.path, torn)
    run = found.runs[1]
    assert (run.state, run.metric, run.budget, run.ended) == ("killed", "accuracy", 3, 0)
    assert (run.test, run.validation, run.bundle_size, dict(run.seeds)) == (None, None, None, {})
    assert found.contrasts[0].verdict == "unknown"
    assert any("torn has no test score yet" in line for line in explained(found))
    assert found.winners == {}


def test_what_differs_is_that_which_is_not_the_same_in_all() -> None:
    assert differing([{"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}]) == {"b": (2, 3), "c": (None, 4)}
    assert differing([{"a": 1}, None]) == {}


def test_seconds_are_those_of_all_sessions_without_the_time_between() -> None:
    events: list[dict[str, Any]] = [
        {"event": "data", "path": "d", "time": 10.0},
        {"event": "search", "time": 14.0},
        {"event": "data", "path": "d", "time": 1000.0},
        {"event": "data", "train": 5, "time": 1001.0},
        {"event": "done", "time": 1003.0},
    ]
    assert worked_seconds(events) == 7.0
    assert worked_seconds([]) == 0.0


def test_two_different_runs_are_needed(finished: FinishedRun, tmp_path: Path) -> None:
    for runs in ((), (finished.path,), (finished.path, finished.path / ".." / finished.path.name)):
        with pytest.raises(RunError, match="two runs or more"):
            autoft.compare(*runs)
    with pytest.raises(RunError, match="is no folder"):
        autoft.compare(finished.path, tmp_path / "nowhere")
    torn = tmp_path / "torn"
    shutil.copytree(finished.path, torn)
    (torn / "result.json").write_text("{")
    with pytest.raises(RunError, match=r"result\.json is damaged"):
        autoft.compare(finished.path, torn)


@pytest.mark.slow
def test_command_prints_the_comparison(
    finished: FinishedRun,
    second: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stranger, page = of_other_data(second, tmp_path / "stranger"), tmp_path / "page.html"
    shown = command(monkeypatch, capsys, "compare", finished.path, second, stranger, "--html", page)
    assert shown.code == 0
    assert f"page: {page}" in shown.err
    rows = [re.split(r"  +", line) for line in shown.out.splitlines()]
    assert [row[1] for row in rows if row[0] in map(str, (finished.path, second, stranger))][:3] == ["done"] * 3
    assert [str(stranger), "not comparable"] in rows
    assert ["search.seed", "0", "7", "7"] in rows
    plain = json.loads(command(monkeypatch, capsys, "compare", finished.path, second, "--json").out)
    assert plain["page"] is None
    assert plain["settings"]["space.dropout"] == [None, 0.3]
    assert plain["contrasts"][0]["basis"] == "samples"
    assert plain["runs"][0]["over_seeds"]["mean"] == pytest.approx(
        read_json(finished.path / "result.json")["confirmed"]["mean"]
    )
    assert command(monkeypatch, capsys, "compare", finished.path).code == 2


@pytest.mark.slow
def test_page_shows_the_runs_and_escapes_their_names(
    finished: FinishedRun, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile, page = tmp_path / "<img src=x>", tmp_path / "page.html"
    shutil.copytree(second, hostile)
    assert command(monkeypatch, capsys, "compare", finished.path, hostile, "--html", page).code == 0
    text = page.read_text()
    assert "<img src=x>" not in text
    assert "&lt;img src=x&gt;" in text
    for key in ("runs", "verdicts", "scores", "studies", "winners"):
        assert f'<section id="{key}">' in text
    assert 'class="plot"' in text
    assert 'id="plotly"' in text
    shown = autoft.compare(finished.path, hostile)
    assert isinstance(shown, Comparison)
    assert "<img" not in shown._repr_html_()
    assert "search.seed" in shown._repr_html_()


@pytest.mark.slow
def test_page_has_no_plot_where_no_scores_can_be_compared(
    finished: FinishedRun, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger, page = of_other_data(second, tmp_path / "stranger"), tmp_path / "page.html"
    assert command(monkeypatch, capsys, "compare", finished.path, stranger, "--html", page).code == 0
    assert 'class="plot"' not in page.read_text()
    nowhere = command(monkeypatch, capsys, "compare", finished.path, stranger, "--html", tmp_path)
    assert nowhere.code == 2
    assert "choose another place with --html" in nowhere.err
