"""Whole searches on tables, one for each task: the bundle's contract, its parity, its answers and its score."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from commands import Result, command, json_lines

import autoft
from autoft.testing.toy import toy_samples
from autoft.testing.toy_text import toy_tagged, toy_texts

pytestmark = pytest.mark.usefixtures("toys")
Row = dict[str, Any]
Command = Callable[..., Result]
SPLITS = ("train", "train", "train", "train", "validation", "test")


def pairs() -> list[Row]:
    samples = toy_texts(3, 18, pairs=True)
    return [{"premise": s.source[0], "hypothesis": s.source[1], "label": s.target} for s in samples]


def similar() -> list[Row]:
    rows = pairs()
    return [{**row, "label": 0.25 + index % 7 / 7 + 3 * (row["label"] == "same")} for index, row in enumerate(rows)]


def labelled() -> list[Row]:
    return [{"text": s.source, "labels": [s.target, *["long"] * (len(s.source) > 60)]} for s in toy_texts(3, 18)]


def measured() -> list[Row]:
    return [{"text": s.source, "length": len(s.source) / 2, "words": s.source.count(" ") + 0.5} for s in toy_texts(3, 18)]


def tagged() -> list[Row]:
    return [{"tokens": s.source, "tags": list(s.target)} for s in toy_tagged(36)]


def pictures(folder: Path, target: Callable[[str, int], Row]) -> list[Row]:
    rows = []
    for index, sample in enumerate(toy_samples(3, 12)):
        (folder / f"{index}.png").write_bytes(sample.source)
        rows.append({"image": f"{index}.png", **target(sample.target, index)})
    return rows


def tints(folder: Path) -> list[Row]:
    return pictures(folder, lambda label, index: {"labels": [label, *["even"] * (index % 2 == 0)]})


def angles(folder: Path) -> list[Row]:
    return pictures(folder, lambda label, index: {"angle": float(label.split("-")[1]) + index / 7})


# what the rows are; the task, the answer, what is asked with how many inputs an answer, and the options
CASES: dict[str, tuple[Callable[..., list[Row]], str, str, int, Sequence[str]]] = {
    "pairs": (pairs, "text-classification", "label", 2, ()),
    "similarity": (similar, "similarity", "value", 2, ()),
    "multi-label": (labelled, "multi-label", "labels", 1, ()),
    "regression": (measured, "regression", "values", 1, ("data.label=[length, words]",)),
    "tagging": (tagged, "token-classification", "entities", 1, ()),
    "multi-label images": (tints, "multi-label", "labels", 1, ()),
    "regression of images": (angles, "regression", "value", 1, ()),
}


@pytest.fixture(autouse=True)
def _copies(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of tables go to a folder of the tests' own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process, with one export a search: that of the preflight costs seconds."""
    monkeypatch.setattr("autoft.preflight.to_onnx", lambda *arguments, **named: None)
    return lambda *arguments: command(monkeypatch, capsys, *arguments)


def write(path: Path, rows: Sequence[Row], **changed: str) -> Path:
    """Write rows as JSON lines with a column of splits; `changed` gives columns other names."""
    lines = ({**row, "split": SPLITS[index % len(SPLITS)]} for index, row in enumerate(rows))
    renamed = ({changed.get(name, name): value for name, value in line.items()} for line in lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in renamed))
    return path


def search(data: Path, folder: Path, *overrides: str, backbone: str = "toy/text") -> Path:
    settings = [f"backbones=[{backbone}]", "search.trials=1", "trainer.epochs=2", "trainer.device=cpu", *overrides]
    result = autoft.search(data, output=folder, overrides=settings)
    assert result.bundle is not None
    return result.bundle


@pytest.mark.parametrize("name", CASES)
def test_table_becomes_a_bundle_that_answers_and_scores_as_in_the_search(name: str, run: Command, tmp_path: Path) -> None:
    rows_of, task, answer, inputs, overrides = CASES[name]
    images = rows_of in (tints, angles)
    rows = rows_of(tmp_path) if images else rows_of()
    data = write(tmp_path / "data.jsonl", rows)
    bundle = search(data, tmp_path / "run", *overrides, backbone="toy/mlp" if images else "toy/text")

    contract = json.loads((bundle / "autoft.json").read_text())
    kind = {"value": "values"}.get(answer, answer)
    assert (contract["task"], contract["answer"]) == (task, kind)
    assert contract["columns"].get("split") == "split"
    assert name != "regression" or contract["labels"] == ["length", "words"], "numbers are named after their columns"
    counts = {split: sum(SPLITS[index % 6] == split for index in range(len(rows))) for split in set(SPLITS)}
    assert {split: contract["data"][split] for split in counts} == counts
    parity = contract["parity"]
    assert parity["samples"] == counts["validation"]
    assert parity["exported"] == pytest.approx(parity["trained"], abs=1e-6)

    asked = [str(tmp_path / "0.png"), str(tmp_path / "1.png")] if images else ["we had soup", "Ada Silva took the train"]
    predicted = run("predict", bundle, *asked, "--json")
    assert (predicted.code, predicted.err) == (0, "")
    answers = json_lines(predicted.out)
    assert len(answers) == len(asked) // inputs
    assert all(answer in given for given in answers)

    scored = run("evaluate", bundle, data, "--json")
    (scores,) = json_lines(scored.out)
    assert (scores.pop("split"), scores.pop("samples"), scores.pop("rejected")) == ("test", counts["test"], 0)
    assert scores == pytest.approx(contract["test"], rel=1e-4, abs=1e-6)


def test_bundle_is_scored_on_a_table_with_other_columns(run: Command, tmp_path: Path) -> None:
    """Of a table whose columns have other names, the names can be said; what was left out is told."""
    rows = [{"text": s.source, "label": s.target} for s in toy_texts(3, 18)]
    bundle = search(write(tmp_path / "a.jsonl", rows), tmp_path / "run")
    contract = json.loads((bundle / "autoft.json").read_text())
    other = write(tmp_path / "b.jsonl", [*rows, {"text": "nobody knows", "label": ""}], text="body", label="kind")
    refused = run("evaluate", bundle, other)
    assert refused.code == 2
    assert "there is no 'text'; it has 'body', 'kind', 'split'" in refused.err
    scored = run("evaluate", bundle, other, "--text", "body", "--label", "kind", "--json")
    assert "1 row was left out: nothing is in 'kind'" in scored.err
    (scores,) = json_lines(scored.out)
    assert scores["accuracy"] == pytest.approx(contract["test"]["accuracy"])
    (tmp_path / "images" / "one").mkdir(parents=True)
    (tmp_path / "images" / "two").mkdir(parents=True)
    for index, sample in enumerate(toy_samples(2, 1)):
        (tmp_path / "images" / ("one", "two")[index] / "0.png").write_bytes(sample.source)
    assert "`--text` is for tables" in run("evaluate", bundle, tmp_path / "images", "--text", "body").err


def test_refused_space_is_told_and_leaves_no_folder(run: Command, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", [{"text": s.source, "label": s.target} for s in toy_texts(3, 18)])
    space = "space={imbalance: {choices: [none, weird]}}"
    refused = run("search", data, "-b", "toy/text", "--set", space, "--trials", 1, "-o", tmp_path / "run")
    assert refused.code == 2
    assert "must be one of none, weights, focal, resample, but got 'weird'" in refused.err
    assert not (tmp_path / "run").exists()
