"""Bundles of texts answer through the command, and are scored on labelled data read as their own data was."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import Result, command, json_lines
from test_runtime_text import rehash
from text_bundles import KINDS, LONG, Made

from autoft import deploy
from autoft.discovery import discover
from autoft.errors import BundleError, DataError
from autoft.specs import DataFormat, RawData, Sample

pytestmark = pytest.mark.usefixtures("toys")
Bundles = Callable[[str], Made]
Command = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process."""
    return lambda *arguments: command(monkeypatch, capsys, *arguments)


# --- predict --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("label", {"label", "score"}),
        ("labels", {"labels", "scores"}),
        ("value", {"value"}),
        ("values", {"values"}),
        ("entities", {"entities"}),
    ],
)
def test_every_kind_of_bundle_answers_as_its_own_script(
    kind: str, keys: set[str], run: Command, text_bundle: Bundles
) -> None:
    folder = text_bundle(kind).folder
    result = run("predict", folder, "a trip", "Ada, at the\nstation", "--json")
    assert (result.code, result.err) == (0, "")
    answers = json_lines(result.out)
    assert [set(answer) for answer in answers] == [{"input"} | keys] * 2
    own = deploy.open_bundle(folder, discover()).runner.predict(["a trip", "Ada, at the\nstation"])
    for answer, whole in zip(answers, own, strict=True):
        scores = answer.pop("scores", {})
        assert answer == {name: value for name, value in whole.items() if name != "scores"}
        assert scores == {label: whole["scores"][label] for label in whole.get("labels", ())}
    plain = run("predict", folder, "a trip", "Ada, at the\nstation")
    assert plain.out.splitlines()[0].endswith("  a trip")
    assert plain.out.splitlines()[1].endswith("Ada, at the station"), "one line a text"


def test_texts_come_from_files_pairs_and_stdin(
    run: Command, text_bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pairs = text_bundle("label").folder, text_bundle("pair").folder
    (tmp_path / "reviews.csv").write_text("id,review\n1,a trip\n2,\n3,the station\n")
    result = run("predict", folder, "--file", tmp_path / "reviews.csv", "--json")
    assert result.code == 2
    assert [answer["input"] for answer in json_lines(result.out)] == ["a trip", "the station"]
    assert result.err == "error: '': the input is empty\n"
    assert "1 longer than the model takes" in run("predict", folder, LONG, "a trip").err
    (tmp_path / "pairs.jsonl").write_text('{"second": "x", "first": "y"}\n')
    assert json_lines(run("predict", pairs, "--file", tmp_path / "pairs.jsonl", "--json").out)[0]["input"] == ["y", "x"]
    assert json_lines(run("predict", pairs, "a", "b", "--json").out)[0]["input"] == ["a", "b"]
    monkeypatch.setattr("sys.stdin", iter(["a trip\n"]))
    assert json_lines(run("predict", folder, "-", "--json").out)[0]["input"] == "a trip"


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("label", (), "give inputs or `--file`"),
        ("label", ("a", "--file", "b.txt"), "give inputs or `--file`"),
        ("label", ("--file", "missing.csv"), r"missing\.csv: cannot be read"),
        ("label", ("--file", "other.csv"), "must have the column review, but has id, body"),
        ("label", ("other.csv",), "is a file: use --file"),
        ("pair", ("a", "b", "c"), "an even number of texts, but got 3"),
    ],
)
def test_wrong_inputs_are_told(
    kind: str, arguments: tuple[str, ...], said: str, run: Command, text_bundle: Bundles, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("id,body\n1,x\n")
    result = run("predict", text_bundle(kind).folder, *arguments)
    assert (result.code, result.out) == (2, "")
    assert re.search(f"error: .*{said}", result.err), result.err


def test_texts_are_refused_by_a_bundle_for_images(tmp_path: Path) -> None:
    images: Any = SimpleNamespace(takes_texts=False)
    assert deploy.inputs_of(images, ["a.png"]) == [Path("a.png")]
    with pytest.raises(DataError, match="this bundle takes files"):
        deploy.inputs_of(images, (), tmp_path / "a.txt")


def test_model_that_cannot_run_is_a_clear_error(run: Command, text_bundle: Bundles, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(text_bundle("label").folder, tmp_path / "bundle"))
    declared = json.loads((folder / "autoft.json").read_text())["preprocessing"]
    rehash(folder, preprocessing={**declared, "max_length": 4000})
    result = run("predict", folder, LONG * 20)
    assert result.code == 2
    assert re.match(r"error: .*cannot run", result.err), result.err


# --- evaluate -------------------------------------------------------------------------------------------


def catalog_of(samples: list[Sample], task: str, seen: dict[str, Any], options: tuple[str, ...]) -> Any:
    """A catalog with one format, which gives the samples and keeps the options that it was asked for."""

    def load(path: Path, given: Mapping[str, Any]) -> RawData:
        seen.update(given)
        return RawData("text", task, samples, (), "fingerprint")

    return SimpleNamespace(detect_data=lambda path: DataFormat("mine", "text", lambda path: True, load, options))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_export(kind: str, text_bundle: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "CHUNK", 7)
    made = text_bundle(kind)
    opened = deploy.open_bundle(made.folder, discover())
    samples, seen = list(made.trained.validation.samples), {}
    catalog = catalog_of(samples, opened.head.name, seen, ("text", "task"))
    found = deploy.evaluate(opened, Path("data"), catalog, batch_size=5)
    assert (found.pop("split"), found.pop("samples"), found.pop("rejected")) == ("all", len(samples), 0)
    assert found == pytest.approx(made.exported.validation, rel=1e-5)
    columns = made.trained.facts["data"]["columns"]
    assert seen == {"text": columns["text"], "task": opened.head.name, "max_rejected": 0.01, "for_training": False}


def test_splits_are_chosen_and_options_that_the_format_lacks_are_not_given(text_bundle: Bundles) -> None:
    made = text_bundle("labels")
    opened = deploy.open_bundle(made.folder, discover())
    columns = {"text": "review", "test": "other.csv", "group": "author"}
    opened = replace(opened, contract={**opened.contract, "columns": columns})
    samples = [replace(sample, split="test" if number < 4 else "train")
               for number, sample in enumerate(made.trained.validation.samples)]  # fmt: skip
    seen: dict[str, Any] = {}
    catalog = catalog_of(samples, "multi-label", seen, ("delimiter", "test", "group"))
    assert deploy.evaluate(opened, Path("data"), catalog)["samples"] == 4
    assert set(seen) == {"max_rejected", "for_training"}
    assert deploy.evaluate(opened, Path("data"), catalog, split="train")["samples"] == len(samples) - 4
    with pytest.raises(DataError, match="has no validation split; it declares test, train"):
        deploy.evaluate(opened, Path("data"), catalog, split="validation")


def test_source_of_another_kind_and_a_label_that_is_not_known_are_told(text_bundle: Bundles) -> None:
    made = text_bundle("label")
    opened = deploy.open_bundle(made.folder, discover())
    first = made.trained.validation.samples[0]
    for changed, said in [({"target": "foood"}, "foood"), ({"source": ("a", "b")}, "takes a text, but got")]:
        catalog = catalog_of([replace(first, **changed)], "text-classification", {}, ())
        with pytest.raises(DataError, match=said):
            deploy.evaluate(opened, Path("data"), catalog)


def test_bundle_of_another_kind_of_preprocessing_is_refused(text_bundle: Bundles, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(text_bundle("label").folder, tmp_path / "bundle"))
    for preprocessing, said in [({"kind": "sound"}, "this one is for 'sound'"), ({"kind": []}, "this one is for"),
                                ([], "must hold `preprocessing`")]:  # fmt: skip
        rehash(folder, preprocessing=preprocessing)
        with pytest.raises(BundleError, match=said):
            deploy.open_bundle(folder, discover())
