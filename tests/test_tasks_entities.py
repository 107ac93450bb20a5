"""Entities in tags: equal to the package seqeval on random tags of every scheme, and fast."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

from autoft.tasks.entities import Counts, Scheme, Spans, count, find_spans, is_prefixed, read_scheme

TYPES = ("PER", "LOC", "a-b", "")
SCHEMES = {
    letters: ["O", *(f"{letter}-{name}" for letter in letters for name in TYPES)] for letters in ("BI", "BIES", "I", "IE")
}
ALL = ["O", "B", "I", "E", "S", *SCHEMES["BIES"]]


def flat(texts: list[list[str]], tags: list[str]) -> tuple[np.ndarray, np.ndarray]:
    index = {tag: place for place, tag in enumerate(tags)}
    offsets = np.cumsum([0, *map(len, texts)])
    return np.array([index[tag] for text in texts for tag in text], dtype=np.int64), offsets


def spans_of(texts: list[list[str]], tags: list[str]) -> tuple[Spans, Scheme]:
    scheme = read_scheme(tags)
    return find_spans(*flat(texts, tags), scheme), scheme


def score(true: list[list[str]], predicted: list[list[str]], tags: list[str]) -> Counts:
    one, scheme = spans_of(true, tags)
    return count(one, spans_of(predicted, tags)[0], len(scheme.names))


@st.composite
def tagged(draw: st.DrawFn) -> tuple[list[list[str]], list[list[str]], list[str]]:
    tags = draw(st.sampled_from([*SCHEMES.values(), ALL]))
    lengths = draw(st.lists(st.integers(0, 8), min_size=1, max_size=6))
    few = draw(st.lists(st.sampled_from(tags), min_size=1, max_size=4))  # so that runs and agreement happen

    def texts() -> list[list[str]]:
        return [draw(st.lists(st.sampled_from(few), min_size=length, max_size=length)) for length in lengths]

    return texts(), texts(), tags


@settings(max_examples=400, deadline=None)
@given(tagged())
def test_entities_are_those_of_seqeval(case: tuple[list[list[str]], list[list[str]], list[str]]) -> None:
    texts, _, tags = case
    found, scheme = spans_of(texts, tags)
    begins = np.cumsum([0, *map(len, texts)])
    wanted = [
        (name, int(begin) + start, int(begin) + end + 1)
        for text, begin in zip(texts, begins[:-1], strict=True)
        for name, start, end in get_entities(text)
    ]
    ours = zip((scheme.names[number] for number in found.types), found.starts.tolist(), found.ends.tolist(), strict=True)
    assert list(ours) == wanted


@settings(max_examples=400, deadline=None)
@given(tagged())
def test_scores_are_those_of_seqeval(case: tuple[list[list[str]], list[list[str]], list[str]]) -> None:
    true, predicted, tags = case
    found = score(true, predicted, tags)
    if not (found.true.any() or found.predicted.any()):
        assert found.micro() == (0.0, 0.0, 0.0)  # seqeval cannot average nothing
        assert found.macro_f1() == 0.0
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of divisions by zero
        *micro, support = precision_recall_fscore_support(true, predicted, average="micro")
        assert found.micro() == pytest.approx(tuple(micro))
        assert found.true.sum() == support
        assert found.macro_f1() == pytest.approx(seqeval.f1_score(true, predicted, average="macro"))
        each = seqeval.classification_report(true, predicted, output_dict=True)
    names = read_scheme(tags).names
    for name, precision, recall, f1, number in zip(names, *found.scores(), found.true, strict=True):
        wanted = each.get(name, {"precision": 0.0, "recall": 0.0, "f1-score": 0.0, "support": 0})
        assert (precision, recall, f1, number) == pytest.approx(tuple(wanted.values()))


PLAIN = ["O", "ORG", "DATE", "RATE", "Bird", "B-cell"]


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(PLAIN), max_size=8), min_size=1, max_size=5))
def test_plain_tags_are_runs_as_seqeval_counts_inside_tags(texts: list[list[str]]) -> None:
    """seqeval itself takes the first letter off any tag, so that ORG is outside, and DATE and RATE are one type."""
    found, scheme = spans_of(texts, PLAIN)
    wanted = get_entities([[tag if tag == "O" else f"I-{tag}" for tag in text] for text in texts])
    assert [scheme.names[number] for number in found.types] == [name for name, _, _ in wanted]
    lengths = [end - start + 1 for _, start, end in wanted]
    assert (found.ends - found.starts).tolist() == lengths


def test_entities_end_with_their_text() -> None:
    tags = ["O", "B-PER", "I-PER"]
    found, _ = spans_of([["B-PER"], [], ["I-PER", "I-PER"], []], tags)
    assert (found.starts.tolist(), found.ends.tolist()) == ([0, 1], [1, 3])


def test_no_words_have_no_entities() -> None:
    for texts in ([[]], [[], []]):
        assert len(spans_of(texts, ["O", "B-PER"])[0].starts) == 0


def test_bilou_is_read_as_iobes() -> None:
    def change(tag: str) -> str:
        return {"E": "L", "S": "U"}.get(tag[0], tag[0]) + tag[1:]

    rng = np.random.default_rng(0)
    tags = SCHEMES["BIES"]
    texts = [[tags[place] for place in rng.integers(0, len(tags), 50)] for _ in range(20)]
    one, _ = spans_of(texts, tags)
    other, _ = spans_of([[change(tag) for tag in text] for text in texts], [change(tag) for tag in tags])
    for field in ("starts", "ends", "types"):
        assert np.array_equal(getattr(one, field), getattr(other, field))


@pytest.mark.parametrize(
    ("tags", "prefixed"),
    [
        (["O", "B-PER"], True),
        (["O", "B", "I"], True),
        (["U-PER", "L-PER"], True),
        (["O", "B-PER", "LOC"], False),
        (["NOUN", "VERB"], False),
        (["O", "BPER"], False),
        (["O", "X-PER"], False),
        (["O"], False),
    ],
)
def test_letters_are_told_from_plain_tags(tags: list[str], prefixed: bool) -> None:
    assert is_prefixed(tags) is prefixed


def test_agreement_needs_both_ends_and_the_type() -> None:
    tags = ["O", "B-PER", "I-PER", "B-LOC"]
    true = [["B-PER", "I-PER", "O", "B-LOC"]]
    assert score(true, true, tags).hits.tolist() == [1, 1]
    assert score(true, [["B-PER", "O", "O", "B-LOC"]], tags).hits.tolist() == [0, 1]
    assert score(true, [["O", "B-PER", "O", "B-LOC"]], tags).hits.tolist() == [0, 1]
    assert score(true, [["B-PER", "I-PER", "O", "B-PER"]], tags).hits.tolist() == [1, 0]


def test_hundred_thousand_words_take_well_under_a_second() -> None:
    rng = np.random.default_rng(0)
    tags = SCHEMES["BIES"]
    scheme, offsets = read_scheme(tags), np.arange(0, 100_001, 20)
    one, other = rng.integers(0, len(tags), (2, 100_000))
    started = time.perf_counter()
    found = count(find_spans(one, offsets, scheme), find_spans(other, offsets, scheme), len(scheme.names))
    assert time.perf_counter() - started < 0.5
    assert found.true.sum() > 10_000
