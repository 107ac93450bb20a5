"""Runs are listed with what became of them; one that cannot be read is told, and hides no other."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from commands import command
from conftest import FinishedRun

from autoft.errors import RunError
from autoft.listing import runs_in


@pytest.fixture
def runs(finished: FinishedRun, tmp_path: Path) -> Path:
    """A finished run, one whose result is damaged, one that was killed, and what is no run."""
    folder = tmp_path / "runs"
    for name in ("good", "torn", "killed"):
        shutil.copytree(finished.path, folder / name)
    (folder / "torn" / "result.json").write_text("{")
    log = (folder / "killed" / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "killed" / "log.jsonl").write_text(
        "".join(log[: next(i for i, line in enumerate(log) if '"trial_end"' in line)])
    )
    (folder / "killed" / "result.json").unlink()
    (folder / "notes").mkdir()
    (folder / "notes.txt").write_text("none")
    os.symlink(folder / "good", folder / "link")
    return folder


def test_each_run_is_a_line_and_a_damaged_one_says_why(runs: Path, finished: FinishedRun) -> None:
    found = {run.path.name: run for run in runs_in(runs)}
    assert found.keys() == {"good", "torn", "killed"}
    result = json.loads((finished.path / "result.json").read_text())
    good = found["good"]
    assert (good.state, good.metric, good.value) == ("done", "accuracy", result["winner"]["value"])
    assert good.test == result["test"]["accuracy"]
    assert (good.ended, good.budget, good.backbone) == (3, 3, "toy/mlp")
    assert good.size == sum(file.stat().st_size for file in (runs / "good").rglob("*") if file.is_file())
    assert found["torn"].state == "damaged"
    assert found["torn"].problem is not None
    assert "result.json is damaged" in found["torn"].problem
    assert (found["killed"].state, found["killed"].test) == ("killed", None)
    heard = [run.heard for run in runs_in(runs)]
    assert heard == sorted(heard, reverse=True)


def test_a_run_folder_is_the_only_one_in_it(runs: Path) -> None:
    assert [run.path for run in runs_in(runs / "good")] == [runs / "good"]


def test_folder_must_be_there(tmp_path: Path) -> None:
    assert runs_in(tmp_path) == ()
    with pytest.raises(RunError, match="is none"):
        runs_in(tmp_path / "nowhere")


def test_command_lists_runs(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = command(monkeypatch, capsys, "list")
    assert shown.code == 0
    assert {line.split()[0]: line.split()[1] for line in shown.out.splitlines()[1:]} == {
        "runs/good": "done",
        "runs/torn": "damaged",
        "runs/killed": "killed",
    }
    assert "runs/torn is damaged: " in shown.err
    listed = json.loads(command(monkeypatch, capsys, "list", runs, "--json").out)
    assert {run["state"] for run in listed} == {"done", "damaged", "killed"}
    empty = command(monkeypatch, capsys, "list", tmp_path / "runs" / "notes")
    assert (empty.code, empty.out) == (0, "")
    assert command(monkeypatch, capsys, "list", "nowhere").code == 2
