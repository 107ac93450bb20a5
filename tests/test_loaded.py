"""A bundle used from Python: typed answers and scores, the same as the command's, and safe to show in a notebook."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import command
from conftest import FinishedRun
from text_bundles import Made

import autoft
from autoft.errors import BundleError, DataError
from autoft.loaded import SHOWN, Answer, Answers, Entity, Scores

pytestmark = pytest.mark.usefixtures("toys")
Bundles = Callable[[str], Made]


@pytest.mark.parametrize("kind", ["label", "labels", "value", "values", "entities"])
def test_answers_are_those_of_the_command(
    kind: str, text_bundle: Bundles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, texts = text_bundle(kind).folder, ["a trip", "Ada, at the\nstation"]
    found = autoft.load(folder).predict(texts)
    assert [answer.input for answer in found] == texts
    printed = command(monkeypatch, capsys, "predict", folder, *texts).out.splitlines()
    assert all(line.startswith(str(answer)) for answer, line in zip(found, printed, strict=True))
    for answer, line in zip(
        found, command(monkeypatch, capsys, "predict", folder, *texts, "--json").out.splitlines(), strict=True
    ):
        wanted = json.loads(line)
        given = wanted.get(kind)
        shown: Any = getattr(answer, kind)
        if kind == "entities":
            shown = [vars(entity) for entity in shown]
        assert (list(shown) if kind == "labels" else shown) == given


def test_one_input_gives_one_answer_and_a_list_gives_as_many(text_bundle: Bundles) -> None:
    bundle = autoft.load(text_bundle("label").folder)
    alone, (listed,) = bundle.predict("a trip"), bundle.predict(["a trip"])
    assert isinstance(alone, Answer)
    assert alone == listed
    assert alone.label in bundle.labels
    assert alone.scores is not None
    assert alone.score == max(alone.scores.values())
    assert bundle.predict([]) == ()


def test_pairs_are_tuples_in_a_list(text_bundle: Bundles) -> None:
    (answer,) = autoft.load(text_bundle("pair").folder).predict([("one text", "another")])
    assert answer.error is None
    assert answer.label is not None or answer.value is not None


def test_images_are_named_by_their_paths(finished: FinishedRun, toy_images: Path, tmp_path: Path) -> None:
    bundle = autoft.load(finished.path)  # the run folder will do
    assert bundle.path == finished.path / "bundle"
    file = next(toy_images.rglob("*.png"))
    assert bundle.predict(file) == bundle.predict(str(file))
    (tmp_path / "broken.png").write_bytes(b"no image")
    good, bad = bundle.predict([file, tmp_path / "broken.png"])
    assert good.error is None
    assert bad.error is not None
    assert str(bad).startswith("error: ")
    with pytest.raises(DataError, match="broken"):
        bundle.predict(tmp_path / "broken.png")
    with pytest.raises(DataError, match="inputs must be paths of files, but got int"):
        bundle.predict([3])


def test_scores_are_those_of_the_command(
    finished: FinishedRun, toy_images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = autoft.load(finished.path)
    scores = bundle.evaluate(toy_images)
    printed = json.loads(command(monkeypatch, capsys, "evaluate", bundle.path, toy_images, "--json").out)
    assert {"split": scores.split, "samples": scores.samples, "rejected": scores.rejected, **scores} == printed
    assert scores["accuracy"] == scores.metrics["accuracy"]
    assert "36 samples" in scores._repr_html_()
    with pytest.raises(DataError, match="must be one of all"):
        bundle.evaluate(toy_images, split="tset")


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        autoft.load(tmp_path)


def test_notebook_shows_tables_in_which_nothing_is_code(finished: FinishedRun) -> None:
    evil = "<script>alert(1)</script>"
    many = Answers(Answer(evil, label=evil, score=0.5, scores={}) for _ in range(SHOWN + 3))
    bundle = autoft.load(finished.path)
    result = replace(_result(finished.path), trials={evil: 1})
    for shown in (many._repr_html_(), Scores(evil, 1, 2, {evil: 0.5})._repr_html_(), result._repr_html_()):
        assert evil not in shown
        assert "&lt;script&gt;" in shown
    assert "and 3 more" in many._repr_html_()
    assert "stripes-0" in bundle._repr_html_()
    assert repr(bundle).startswith("Bundle(")
    assert "0.7500 on validation" in result._repr_html_()
    assert "none yet" in replace(result, bundle=None, value=None)._repr_html_()


def _result(run: Path) -> autoft.SearchResult:
    return autoft.SearchResult(run, run / "bundle", "accuracy", 1, 0.75, 0.5, {"accuracy": 0.7}, 0.1, {}, False)


def test_answer_shows_what_its_task_gives() -> None:
    found: Mapping[str, Any] = {
        "input": "Ada",
        "entities": [{"label": "NAME", "text": "Ada", "start": 0, "end": 3, "score": 0.5}],
    }
    answer = Answer.of(found)
    assert answer.entities == (Entity("NAME", "Ada", 0, 3, 0.5),)
    assert str(answer) == "NAME 'Ada' 0-3 0.5000"
    assert repr(Answer("x", label="a", score=0.25)) == "Answer(input='x', label='a', score=0.25)"
