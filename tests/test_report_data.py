"""A report's section of the data tells what the log of the search tells, and escapes what came with the data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import SMALL, run_search
from conftest import FinishedRun

from autoft.prepare import _class_counts
from autoft.ragged import Ragged, Rows
from autoft.report.data import data
from autoft.specs import SPLITS, Targets

HOSTILE = "<script>alert(1)</script>"


def test_sizes_and_classes_are_those_of_the_log(finished: FinishedRun) -> None:
    section = data(finished.path)
    assert section is not None
    lines = [json.loads(line) for line in (finished.path / "log.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if line["event"] == "data" and "train" in line)
    for split, how in (("train", "what is left"), ("validation", "by autoft"), ("test", "by autoft")):
        assert f"<td>{split}</td><td>{logged[split]}</td><td>{how}</td>" in section.body
    assert sum(logged["counts"]) == logged["train"]
    by_split = logged["class_counts"]
    assert {split: sum(column) for split, column in by_split.items()} == {split: logged[split] for split in SPLITS}
    for place, label in enumerate(logged["classes"]):
        cells = "".join(f"<td>{by_split[split][place]}</td>" for split in SPLITS)
        assert f"<td>{label}</td><td>{logged['counts'][place] / logged['train']:.1%}</td>{cells}" in section.body
    assert "The longer side of 95 % of the images has at most 16 pixels" in section.body
    assert "What backbones take: toy/mlp 16x16." in section.body


def test_lengths_of_texts_are_told_for_each_backbone(tmp_path: Path) -> None:
    tokens = {split: {"median": 7, "most": 12 + len(split), "longest": 128, "cut": 3} for split in SPLITS}
    events = [
        {"event": "data", "classes": [], "counts": [], "made_splits": [], "train": 3, "validation": 1, "test": 1},
        {"event": "preflight", "backbone": "toy/text", "stages": 4, "input_size": [], "tokens": tokens},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    section = data(tmp_path)
    assert section is not None
    for split, found in tokens.items():
        cells = "".join(f"<td>{each}</td>" for each in ("toy/text", split, *found.values()))
        assert cells in section.body
    assert "pixels" not in section.body


@pytest.mark.parametrize(
    ("encoded", "found"),
    [
        (torch.tensor([0, 1, 1]), [1, 2, 0]),
        (torch.tensor([[1.0, 0, 1], [0, 0, 1]]), [1, 0, 2]),
        (Ragged(torch.tensor([2, 2, 0]), torch.tensor([0, 1, 3])), [1, 0, 2]),
    ],
)
def test_classes_are_counted_as_heads_encode_them(encoded: Rows, found: list[int]) -> None:
    targets = Targets(("a", "b", "c"), counts=tuple(found))
    assert _class_counts({"train": encoded, "test": encoded}, targets) == {"train": found, "test": found}


@pytest.mark.parametrize(
    "encoded", [torch.tensor([-1, 1]), torch.tensor([0.0, 1.0]), torch.zeros(2, 4, 4), torch.tensor([0, 0])]
)
def test_classes_of_an_unknown_encoding_are_not_counted(encoded: Rows) -> None:
    assert _class_counts({"train": encoded}, Targets(("a", "b", "c"), counts=(1, 1, 0))) == {}


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
