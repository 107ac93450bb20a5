"""A report's sections tell what the kept answers say, by scikit-learn's numbers, and show nothing that is not escaped."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import FinishedRun
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support, roc_auc_score

from autoft.answered import Answered, collect, keep, read_answers
from autoft.errors import RunError
from autoft.files import write_checked
from autoft.report.answers import calibration, calibration_error, confusion, curves, errors, per_class, reliability
from autoft.report.mistakes import MOST, mistakes
from autoft.report.section import Section
from autoft.specs import Answer, Sample, Targets
from autoft.tasks.classification import head
from autoft.train import Objective

HOSTILE = "<script>alert('x')</script>&<b>"
SECTIONS = (confusion, per_class, calibration, curves, errors, mistakes)
APPLY: dict[Answer, set[str]] = {
    "label": {"confusion", "per-class", "calibration", "curves", "mistakes"},
    "labels": {"curves", "mistakes"},
    "values": {"errors", "mistakes"},
}


def made(answer: Answer, count: int = 300, labels: tuple[str, ...] = ("cat", HOSTILE, "7")) -> Answered:
    """Answers that are mostly right."""
    rng = np.random.default_rng(0)
    size = len(labels)
    if answer == "values":
        targets = rng.normal(size=(count, size))
        scores = targets + rng.normal(0, 0.3, (count, size))
    elif answer == "labels":
        targets = (rng.random((count, size)) < 0.4).astype(float)
        scores = np.clip(0.6 * targets + 0.4 * rng.random((count, size)) + rng.normal(0, 0.1, (count, size)), 0, 1)
    else:
        targets = rng.integers(0, size, count)
        logits = rng.normal(size=(count, size)) + 1.5 * np.eye(size)[targets]
        scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Answered(
        answer=answer,
        labels=labels,
        values={"thresholds": (0.5,) * size} if answer == "labels" else {},
        of=count,
        scores=torch.tensor(scores, dtype=torch.float32),
        targets=torch.tensor(targets),
        ids=tuple(f"{HOSTILE}-{number}" for number in range(count)),
        files=(None,) * count,
        texts=(HOSTILE,) * count,
    )


def kept(run: Path, answered: Answered) -> Answered:
    keep(run, {"test": answered})
    return answered


def shown(section: Section | None) -> str:
    assert section is not None
    return section.body


def cells(body: str) -> list[list[str]]:
    return [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(<td>.*?)</tr>", body)]


@pytest.mark.parametrize("answer", APPLY)
def test_every_kind_of_answer_has_the_sections_that_apply(answer: Answer, tmp_path: Path) -> None:
    kept(tmp_path, made(answer))
    sections = [section for section in (make(tmp_path) for make in SECTIONS) if section is not None]
    assert {section.key for section in sections} == APPLY[answer]
    page = "".join(f"<h2>{section.title}</h2>{section.body}" for section in sections)
    assert "<script>alert" not in page
    assert "</script>&" not in page
    assert "alert" in page  # it is shown


def test_run_without_answers_has_no_section(tmp_path: Path) -> None:
    assert [make(tmp_path) for make in SECTIONS] == [None] * len(SECTIONS)


def test_answers_come_back_and_damage_is_told(tmp_path: Path) -> None:
    wanted = kept(tmp_path, made("label"))
    found = read_answers(tmp_path)
    assert found is not None
    assert torch.equal(found.scores, wanted.scores)
    assert torch.equal(found.targets, wanted.targets)
    assert (found.ids, found.texts, found.files, found.labels) == (wanted.ids, wanted.texts, wanted.files, wanted.labels)
    file = tmp_path / "answers" / "test.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match="damaged"):
        read_answers(tmp_path)


def test_confusions_are_those_of_scikit_learn(tmp_path: Path) -> None:
    found = kept(tmp_path, made("label"))
    wanted = confusion_matrix(found.targets, found.scores.argmax(1))
    body = shown(confusion(tmp_path))
    assert json.dumps(wanted.tolist(), separators=(",", ":")) in body
    np.fill_diagonal(wanted, 0)
    assert int(cells(body)[0][2]) == wanted.max()


def test_scores_of_classes_are_those_of_scikit_learn_worst_first(tmp_path: Path) -> None:
    found = kept(tmp_path, made("label", labels=("a", "b", "c")))
    wanted = zip("abc", *precision_recall_fscore_support(found.targets, found.scores.argmax(1)), strict=True)
    by_f1 = sorted(wanted, key=lambda row: row[3])
    rows = cells(shown(per_class(tmp_path)))
    assert rows == [[label, f"{p:.3f}", f"{r:.3f}", f"{f:.3f}", str(n)] for label, p, r, f, n in by_f1]


def test_entity_types_are_those_of_the_result(tmp_path: Path) -> None:
    entity = {"label": HOSTILE, "precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 8}
    write_checked(tmp_path / "result.json", {"reports": {"test": {"entities": [entity]}}})
    body = shown(per_class(tmp_path))
    assert "entity type" in body
    assert cells(body)[0][1:] == ["0.500", "0.250", "0.333", "8"]
    assert "<script>" not in body


def test_calibration_is_that_of_scikit_learn() -> None:
    found = made("label")
    scores = found.scores.double().numpy()
    sure, right = scores.max(axis=1), scores.argmax(axis=1) == found.targets.numpy()
    counts, confidence, accuracy = reliability(sure, right)
    share, mean = calibration_curve(right, sure, n_bins=10, strategy="uniform")
    np.testing.assert_allclose(accuracy[counts > 0], share)
    np.testing.assert_allclose(confidence[counts > 0], mean)
    np.testing.assert_allclose(
        calibration_error(counts, confidence, accuracy), (counts[counts > 0] / len(sure) * abs(share - mean)).sum()
    )


@pytest.mark.parametrize("answer", ["label", "labels"])
def test_areas_are_those_of_scikit_learn(answer: Answer, tmp_path: Path) -> None:
    found = kept(tmp_path, made(answer, labels=("a", "b", "c")))
    truth = found.targets.numpy()
    truth = truth[:, None] == np.arange(3) if answer == "label" else truth > 0
    rows = {row[0]: row[1:] for row in cells(shown(curves(tmp_path)))}
    for place, label in enumerate("abc"):
        scores = found.scores[:, place].numpy()
        areas = roc_auc_score(truth[:, place], scores), average_precision_score(truth[:, place], scores)
        assert rows[label] == [f"{areas[0]:.4f}", f"{areas[1]:.4f}", str(truth[:, place].sum())]


def test_mistakes_begin_with_the_surest_wrong_answer(tmp_path: Path) -> None:
    found = kept(tmp_path, made("label", labels=("a", "b", "c")))
    scores = found.scores.numpy()
    wrong = np.flatnonzero(scores.argmax(1) != found.targets.numpy())
    worst = wrong[scores[wrong].max(axis=1).argmax()]
    rows = cells(shown(mistakes(tmp_path)))
    assert len(rows) == min(MOST, len(wrong))
    assert rows[0][1].endswith(f"-{worst}")
    assert rows[0][2:4] == ["abc"[int(found.targets[worst])], "abc"[scores[worst].argmax()]]


def test_images_of_mistakes_are_small_and_one_that_is_gone_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (640, 320), "red").save(tmp_path / "red.png")
    files = tuple(str(tmp_path / name) for name in ("red.png", "gone.png")) * 150
    kept(tmp_path, replace(made("label"), files=files, texts=(None,) * 300))
    body = shown(mistakes(tmp_path))
    encoded = re.findall(r'src="data:image/webp;base64,([^"]+)"', body)
    assert Image.open(io.BytesIO(base64.b64decode(encoded[0]))).size == (160, 80)
    assert len(encoded) + body.count("cannot be read as an image any more") == MOST > len(encoded)


def test_many_classes_and_samples_stay_small(tmp_path: Path) -> None:
    kept(tmp_path, made("label", 3000, tuple(f"class {number}" for number in range(300))))
    sizes = {make.__name__: len(section.body) for make in SECTIONS if (section := make(tmp_path)) is not None}
    assert sum(sizes.values()) < 1_000_000, sizes


def test_large_split_is_kept_in_part_and_long_texts_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.answered.MOST_SAMPLES", 5)
    samples = [Sample(str(number), "word " * 1000, "a", str(number)) for number in range(41)]
    data = cast(Any, SimpleNamespace(samples=samples, targets=torch.arange(41) % 2))
    found = collect(torch.randn(41, 2), data, Objective(head("toy", None, ""), Targets(("a", "b"), (2, 2)), "accuracy"))
    assert found is not None
    assert (found.of, found.ids, found.targets.tolist()) == (41, ("0", "10", "20", "30", "40"), [0] * 5)
    assert {len(text or "") for text in found.texts} == {400}
    torch.testing.assert_close(found.scores.sum(dim=1), torch.ones(5))


def test_finished_search_kept_what_its_report_needs(finished: FinishedRun) -> None:
    result = json.loads((finished.path / "result.json").read_text())
    for split in ("validation", "test"):
        found = read_answers(finished.path, split)
        assert found is not None
        right = found.scores.argmax(1) == found.targets
        assert float(right.double().mean()) == pytest.approx(result[split]["accuracy"])
        assert all(file is not None and Path(file).is_file() for file in found.files)
    body = shown(confusion(finished.path))
    assert json.dumps(result["reports"]["test"]["confusion"], separators=(",", ":")) in body
