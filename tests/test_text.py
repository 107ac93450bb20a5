import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from letters import NAMES, PLAIN, tokenizer
from tokenizers import Tokenizer

from autoft.errors import BackboneError
from autoft.ragged import Ragged
from autoft.runtime import text as script
from autoft.specs import IGNORED
from autoft.text import TextPreprocessing


def ids(preprocessing: TextPreprocessing, sources: Sequence[object]) -> list[list[int]]:
    decoded, _ = preprocessing.decode_many(sources)  # type: ignore[arg-type]
    return preprocessing.inputs(decoded)[0].tolist()


def test_shorter_texts_are_filled_on_the_right_and_masked() -> None:
    decoded, cut = PLAIN.decode_many(["ab", "a"])
    assert [item.tolist() for item in PLAIN.inputs(decoded)] == [
        [[2, 4, 15, 3], [2, 4, 3, 0]],
        [[1, 1, 1, 1], [1, 1, 1, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
    ]
    assert cut.tolist() == [False, False]


texts = st.text("abcdefghij XY\n", max_size=40)


@settings(deadline=None)
@given(st.lists(texts | st.tuples(texts, texts), min_size=1, max_size=6), st.integers(4, 30), st.booleans())
def test_training_and_the_bundle_see_the_same_inputs(sources: list[str | tuple[str, str]], length: int, pairs: bool) -> None:
    preprocessing = dataclasses.replace(PLAIN, max_length=length, pairs=pairs)
    decoded, cut = preprocessing.decode_many(sources)
    files = preprocessing.files()
    items, cut_too = script.tokenize(
        script.open_tokenizer(files["tokenizer.json"], length), sources, preprocessing.to_dict()
    )
    wanted = script.pad(items, preprocessing.to_dict())
    for name, found in zip(NAMES, preprocessing.inputs(decoded), strict=True):
        assert np.array_equal(found.numpy(), wanted[name])
    assert cut.tolist() == cut_too
    for number, source in enumerate(sources):
        assert torch.equal(preprocessing.decode(source, augmented=False), decoded.row(number))
        assert len(decoded.row(number)) <= length


def test_long_texts_are_cut_at_their_end_and_counted() -> None:
    preprocessing = dataclasses.replace(PLAIN, max_length=4)
    decoded, cut = preprocessing.decode_many(["a b", "a b c", "a b j"])
    assert cut.tolist() == [False, True, True]
    assert decoded.row(1).tolist() == decoded.row(2).tolist() == [[2], [4], [5], [3]]


def test_pairs_have_segments_and_lose_the_longer_text_first() -> None:
    preprocessing = dataclasses.replace(PLAIN, max_length=7, pairs=True)
    decoded, cut = preprocessing.decode_many([("a", "b c d e")])
    assert decoded.values[:, 0].tolist() == [2, 4, 3, 5, 6, 7, 3]
    assert decoded.values[:, 1].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert cut.tolist() == [True]


@settings(deadline=None)
@given(st.lists(texts | st.tuples(texts, texts), min_size=1, max_size=6), st.integers(4, 24))
def test_cutting_leaves_the_tokens_that_the_library_leaves(sources: list[str | tuple[str, str]], length: int) -> None:
    preprocessing = dataclasses.replace(PLAIN, max_length=length, pairs=True)
    decoded, cut = preprocessing.decode_many(sources)
    library = Tokenizer.from_str(PLAIN.tokenizer)
    library.enable_truncation(length)
    wanted = library.encode_batch(sources)
    assert [decoded.row(row)[:, 0].tolist() for row in range(len(sources))] == [each.ids for each in wanted]
    assert [decoded.row(row)[:, 1].tolist() for row in range(len(sources))] == [each.type_ids for each in wanted]
    assert cut.tolist() == [bool(each.overflowing) for each in wanted]


def test_a_pair_of_very_long_texts_is_cut_without_making_all_its_parts() -> None:
    long = "a b c " * 5000  # as many parts as there are pairs of them would be hundreds of millions of tokens
    preprocessing = dataclasses.replace(PLAIN, max_length=16, pairs=True)
    assert preprocessing.decode_many([(long, long)])[0].lengths.tolist() == [16]


def test_an_empty_text_without_special_tokens_still_has_a_row() -> None:
    preprocessing = TextPreprocessing(tokenizer(special=False), {}, 0, NAMES[:2])
    decoded, _ = preprocessing.decode_many(["", "a"])
    assert decoded.lengths.tolist() == [1, 1]
    assert preprocessing.inputs(decoded)[1].tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("lengths", "limit", "chosen"),
    [([3] * 100, 512, 128), ([140] * 100, 512, 144), ([40] * 100, 44, 44), ([300] * 100, None, 304), ([900] * 9, None, 512)],
    ids=["at least 128", "a multiple of 8", "the model's limit", "no limit", "at most 512"],
)
def test_length_is_chosen_by_the_data_and_the_model(lengths: list[int], limit: int | None, chosen: int) -> None:
    sources = [" ".join("a" * length) for length in lengths]
    assert dataclasses.replace(PLAIN, limit=limit).fit(sources).max_length == chosen


def test_a_few_very_long_texts_do_not_set_the_length() -> None:
    sources = ["a " * 200] * 999 + ["a " * 400]
    fitted = dataclasses.replace(PLAIN, limit=None).fit(sources)
    assert fitted.max_length == 208
    assert fitted.decode_many(sources)[1].sum() == 1


def test_a_length_that_was_asked_for_is_kept() -> None:
    assert dataclasses.replace(PLAIN, max_length=9).fit(["a " * 30]).max_length == 9


def test_fit_sees_pairs_where_the_model_can_tell_them_apart() -> None:
    assert PLAIN.fit([("a", "b")]).pairs
    assert not PLAIN.fit(["a"]).pairs
    assert not dataclasses.replace(PLAIN, names=NAMES[:2]).fit([("a", "b")]).pairs


def test_a_length_beyond_the_models_limit_is_refused() -> None:
    with pytest.raises(BackboneError, match="`max_length` must be at most 64 for this backbone, but got 65"):
        dataclasses.replace(PLAIN, max_length=65)


def test_content_that_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(BackboneError, match="the tokenizer cannot be read"):
        TextPreprocessing("{}", {}, 0, NAMES)


WORDS = dataclasses.replace(PLAIN, words=True, max_length=7)


def test_tags_stand_at_the_first_token_of_their_word() -> None:
    decoded, cut = WORDS.decode_many([["ab", "c"], ["d"], ["a", "bcdef", "g"]])
    targets = Ragged.of([torch.tensor([7, 8]), torch.tensor([9]), torch.tensor([1, 2, 3])])
    assert WORDS.align(decoded, targets).tolist() == [
        [IGNORED, 7, IGNORED, 8, IGNORED, IGNORED, IGNORED],
        [IGNORED, 9, IGNORED, IGNORED, IGNORED, IGNORED, IGNORED],
        [IGNORED, 1, 2, IGNORED, IGNORED, IGNORED, IGNORED],
    ]
    assert WORDS.count_parts(decoded).tolist() == [2, 1, 2]
    assert cut.tolist() == [False, False, True]


@settings(deadline=None)
@given(st.lists(st.lists(st.text("abcj", min_size=1, max_size=4), min_size=1, max_size=6), min_size=1, max_size=5))
def test_alignment_keeps_the_order_of_the_words_that_were_not_cut(sentences: list[list[str]]) -> None:
    decoded, _ = WORDS.decode_many(sentences)
    targets = Ragged.of([torch.arange(len(words)) + 100 * number for number, words in enumerate(sentences)])
    aligned = WORDS.align(decoded, targets)
    parts = WORDS.count_parts(decoded)
    for number in range(len(sentences)):
        kept = aligned[number][aligned[number] != IGNORED]
        assert kept.tolist() == targets.row(number)[: parts[number]].tolist()


def test_bundle_files_are_those_that_older_loaders_know() -> None:
    files = dataclasses.replace(PLAIN, max_length=12).files()
    config = json.loads(files["tokenizer_config.json"])
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (config["model_max_length"], config["padding_side"], config["pad_token"]) == (12, "right", "[PAD]")
    assert Tokenizer.from_str(files["tokenizer.json"]).truncation["max_length"] == 12
