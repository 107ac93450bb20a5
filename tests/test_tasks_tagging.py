"""Token classification: tags, loss over the words, and scores that equal seqeval's on the same predictions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from seqeval import metrics as seqeval
from torch.nn import functional as F

from autoft.errors import DataError
from autoft.ragged import Ragged
from autoft.specs import IGNORED, Targets
from autoft.tasks import tagging as task

TEXTS = [("B-PER", "I-PER", "O"), ("O", "O"), ("B-LOC", "O", "B-PER", "O")] * 5
TARGETS = task.describe(TEXTS)
KNOBS = {"dropout": 0.0, "imbalance": "none", "focal_gamma": 2.0}


def predictions(seed: int = 0, texts: Any = TEXTS, targets: Targets = TARGETS) -> tuple[Ragged, Ragged]:
    """Logits of words that are better than chance, and the truth."""
    truth = task.encode(texts, targets)
    values = torch.randn(len(truth.values), len(targets.labels), generator=torch.Generator().manual_seed(seed))
    values[torch.arange(len(values)), truth.values] += 1.5
    return Ragged(values, truth.offsets), truth


def as_tags(rows: Ragged, targets: Targets = TARGETS) -> list[list[str]]:
    return [[targets.labels[number] for number in rows.row(place).tolist()] for place in range(len(rows))]


# --- targets ----------------------------------------------------------------------------------------


def test_outside_comes_first_and_every_letter_with_every_type() -> None:
    assert TARGETS.labels == ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
    assert TARGETS.counts == (25, 5, 10, 0, 5)
    assert task.describe([("B-t10", "B-t2")]).labels == ("B-t2", "B-t10")
    assert task.describe([("NOUN", "O", "A-x")]).labels == ("O", "A-x", "NOUN")
    assert task.describe([("I", "B", "O")]).labels == ("O", "B", "I")


def test_tags_are_encoded_as_rows_of_numbers() -> None:
    encoded = task.encode([("I-PER", "O"), (), ("B-LOC",)], TARGETS)
    assert encoded.values.dtype == torch.int64
    assert encoded.values.tolist() == [4, 0, 1]
    assert encoded.offsets.tolist() == [0, 2, 2, 3]


def test_tags_that_cannot_be_learned_are_refused() -> None:
    with pytest.raises(DataError, match="at least 2 tags, but the training data has 1: O"):
        task.describe([("O", "O"), ()])
    with pytest.raises(DataError, match=r"a list with a tag for each word, but got 'O'"):
        task.describe(["O"])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"the tag 'B-PERS' is not among the 5 tags.*\n.*did you mean 'B-PER'"):
        task.encode([("B-PERS",)], TARGETS)


def test_texts_are_divided_by_their_rarest_type() -> None:
    assert task.stratify(TEXTS[:3]) == ["PER", "none", "LOC"]
    assert task.stratify([("A", "O"), ("A", "B"), ("O",)]) == ["A", "B", "none"]
    assert task.stratify([(), ("O",)]) == ["none", "none"]


# --- module and loss --------------------------------------------------------------------------------


def test_head_gives_an_output_for_every_token() -> None:
    assert task.build(7, TARGETS, KNOBS)(torch.randn(2, 6, 7)).shape == (2, 6, 5)
    assert torch.allclose(task.activation(torch.randn(2, 6, 5)).sum(-1), torch.ones(2, 6))


def test_loss_is_the_mean_over_positions_with_a_tag() -> None:
    outputs = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    encoded = torch.tensor([[IGNORED, 2, IGNORED, 4], [0, IGNORED, IGNORED, IGNORED]])
    kept = encoded != IGNORED
    wanted = F.cross_entropy(outputs[kept], encoded[kept])
    assert float(task.loss(outputs, encoded, TARGETS, KNOBS)) == pytest.approx(float(wanted), rel=1e-6)
    weights = torch.tensor([45 / (4 * count) if count else 1.0 for count in TARGETS.counts])
    weighted = F.cross_entropy(outputs[kept], encoded[kept], weight=weights)
    found = task.loss(outputs, encoded, TARGETS, {**KNOBS, "imbalance": "weights"})
    assert float(found) == pytest.approx(float(weighted), rel=1e-6)


# --- metrics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_seqevals_on_the_same_predictions(seed: int) -> None:
    outputs, truth = predictions(seed)
    true, found = as_tags(truth), as_tags(Ragged(outputs.values.argmax(-1), outputs.offsets))
    assert task.metrics(outputs, truth, TARGETS) == pytest.approx(
        {
            "precision": seqeval.precision_score(true, found),
            "recall": seqeval.recall_score(true, found),
            "f1": seqeval.f1_score(true, found),
            "f1_macro": seqeval.f1_score(true, found, average="macro"),
            "accuracy": seqeval.accuracy_score(true, found),
        }
    )


def test_words_that_were_cut_off_count_as_outside() -> None:
    outputs, truth = predictions()
    short = Ragged.of([outputs.row(place)[:1] for place in range(len(outputs))])
    found = as_tags(Ragged(short.values.argmax(-1), short.offsets))
    filled = [row + ["O"] * (len(wanted) - 1) for row, wanted in zip(found, TEXTS, strict=True)]
    true = as_tags(truth)
    scores = task.metrics(short, truth, TARGETS)
    assert scores["f1"] == pytest.approx(seqeval.f1_score(true, filled))
    assert scores["accuracy"] == pytest.approx(seqeval.accuracy_score(true, filled))
    report = task.report(short, truth, TARGETS)
    assert report["cut"] == len(truth.values) - 15
    assert report["words"] == scores["accuracy"]


def test_words_that_were_cut_off_have_the_commonest_tag_where_there_is_no_outside() -> None:
    texts = [("NOUN", "VERB", "NOUN"), ("VERB", "NOUN")]
    targets = task.describe(texts)
    outputs, truth = predictions(0, texts, targets)
    nothing = Ragged(outputs.values[:0], torch.zeros(3, dtype=torch.int64))
    assert task.metrics(nothing, truth, targets)["accuracy"] == pytest.approx(3 / 5)


def test_other_rows_than_the_truths_are_refused() -> None:
    outputs, truth = predictions()
    with pytest.raises(ValueError, match="a row for each text"):
        task.metrics(outputs[:3], truth, TARGETS)
    longer = Ragged.of([outputs.values[:9], *(outputs.row(place) for place in range(1, len(outputs)))])
    with pytest.raises(ValueError, match="at most one output"):
        task.metrics(longer, truth, TARGETS)


def test_entity_scores_are_left_out_where_there_is_no_entity() -> None:
    outputs, truth = predictions(0, [("O", "O"), ("O",)])
    assert set(task.metrics(outputs, truth, TARGETS)) == {"accuracy"}


def test_default_metric_is_words_accuracy_only_for_plain_tags_without_outside() -> None:
    for texts, metric in [
        (TEXTS, "f1"),
        ([("NOUN", "VERB")], "accuracy"),
        ([("DATE", "O")], "f1"),
        ([("B-A", "I-A")], "f1"),
    ]:
        assert task.default_metric(task.describe(texts)) == metric  # type: ignore[arg-type]


def test_report_has_every_entity_type() -> None:
    outputs, truth = predictions()
    true, found = as_tags(truth), as_tags(Ragged(outputs.values.argmax(-1), outputs.offsets))
    wanted = seqeval.classification_report(true, found, output_dict=True)
    entries = task.report(outputs, truth, TARGETS)["entities"]
    assert [entry["label"] for entry in entries] == ["LOC", "PER"]
    for entry in entries:
        other = wanted[entry.pop("label")]
        assert list(entry.values()) == pytest.approx(list(other.values()))
