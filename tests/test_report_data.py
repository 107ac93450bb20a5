"""A report's section of the data tells what the log of the search tells, and escapes what came with the data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import SMALL, run_search
from conftest import FinishedRun

from autoft.report.data import data

HOSTILE = "<script>alert(1)</script>"


def test_sizes_and_classes_are_those_of_the_log(finished: FinishedRun) -> None:
    section = data(finished.path)
    assert section is not None
    lines = [json.loads(line) for line in (finished.path / "log.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if line["event"] == "data" and "train" in line)
    for split, how in (("train", "what is left"), ("validation", "by autoft"), ("test", "by autoft")):
        assert f"<td>{split}</td><td>{logged[split]}</td><td>{how}</td>" in section.body
    assert sum(logged["counts"]) == logged["train"]
    for label, count in zip(logged["classes"], logged["counts"], strict=True):
        assert f"<td>{label}</td><td>{count}</td>" in section.body


@pytest.mark.usefixtures("toys", "fast_export")
def test_quarantined_samples_and_copies_are_told(toy_images: Path, tmp_path: Path) -> None:
    images, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(toy_images, images)
    folders = sorted(path for path in images.iterdir() if path.is_dir())
    (folders[0] / "broken.png").write_bytes(b"no image")
    whole = next(folders[0].glob("*.png"))
    shutil.copyfile(whole, folders[1] / "copy.png")
    run_search(images, run, *SMALL)
    section = data(run)
    assert section is not None
    assert f"<td>{folders[0].name}/broken.png</td>" in section.body
    assert "under more than one label" in section.body


def test_what_came_with_the_data_is_escaped_and_torn_lines_are_passed_over(tmp_path: Path) -> None:
    sizes = {"train": 3, "validation": 1, "test": 1}
    events = [
        {"event": "data", "classes": [HOSTILE, "b"], "counts": [2, 1], "made_splits": [], **sizes},
        {"event": "warning", "about": "splits", "warning": HOSTILE},
        {"event": "warning", "about": "rejected", "rejected": [{"id": HOSTILE, "reason": HOSTILE}]},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "da')
    section = data(tmp_path)
    assert section is not None
    assert "<script>" not in section.body
    assert section.body.count("&lt;script&gt;") == 4


def test_run_without_a_log_has_no_section(tmp_path: Path) -> None:
    assert data(tmp_path) is None
