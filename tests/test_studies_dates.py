"""The dates of `studies/dates`: tags that fit their words, and splits that share no language."""

from __future__ import annotations

import datetime
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from autoft.runtime.text import split_words

babel = pytest.importorskip("babel", reason="studies/dates/requirements.txt is not installed")
STUDY = Path(__file__).parent.parent / "studies" / "dates"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"dates_{name}", STUDY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make_data = load("make_data")
MOMENT = datetime.datetime(2024, 5, 3, 14, 30, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("code", "pattern", "tagged"),
    [
        ("en", "EEEE, MMMM d, y", "Friday/B-WEEKDAY ,/O May/B-MONTH 3/B-DAY ,/O 2024/B-YEAR"),
        ("de", "d. MMM y G", "3/B-DAY ./O Mai/B-MONTH 2024/B-YEAR n/B-ERA ./I-ERA Chr/I-ERA ./I-ERA"),
        ("vi", "d MMMM", "3/B-DAY tháng/B-MONTH 5/I-MONTH"),
        ("hi", "d MMMM", "3/B-DAY मई/B-MONTH"),
        ("en", "d.M.yy HH:mm", "3/B-DAY ./O 5/B-MONTH ./O 24/B-YEAR 14/O :/O 30/O"),
    ],
)
def test_every_word_carries_the_tag_of_its_field(code: str, pattern: str, tagged: str) -> None:
    made = make_data.tag(make_data.fields(pattern, MOMENT, make_data.open_locale(code)))
    assert made is not None
    assert " ".join(f"{word}/{name}" for word, name in zip(*made, strict=True)) == tagged


def test_a_text_whose_words_hold_two_fields_is_left_out() -> None:
    pieces = make_data.fields("y年M月d日", MOMENT, make_data.open_locale("zh"))
    assert "".join(text for text, _ in pieces) == "2024年5月3日"
    assert make_data.tag(pieces) is None


def test_fields_that_touch_begin_anew() -> None:
    assert make_data.tag([("5", "DAY"), (" ", None), ("6", "DAY")]) == (("5", "6"), ("B-DAY", "B-DAY"))


def test_items_are_joined_as_the_language_joins_them() -> None:
    items = [[("a", None)], [("b", "DAY")], [("c", None)]]
    joined = make_data.join(items, make_data.open_locale("en"))
    assert "".join(text for text, _ in joined) == "a, b, and c"
    assert ("b", "DAY") in joined


def test_a_languages_names_do_not_depend_on_which_was_asked_before() -> None:
    def tuesday(code: str) -> str:
        return str(make_data.get_day_names("abbreviated", "stand-alone", make_data.open_locale(code))[1])

    before = tuesday("ca")
    tuesday("bem")
    assert tuesday("ca") == before


def test_languages_with_mostly_the_same_months_share_a_split_and_all_splits_get_some() -> None:
    names = make_data.month_names()
    assert len(names) > 200
    split_of = make_data.divide(names)
    assert set(split_of.values()) == set(make_data.SPLITS)
    assert split_of["nb"] == split_of["nn"] == split_of["no"]
    assert split_of["en"] == "train"
    shared = [
        (one, other)
        for one in names
        for other in names
        if len(names[one] & names[other]) > 6 and split_of[one] != split_of[other]
    ]
    assert shared == []


def test_samples_repeat_exactly_and_no_text_or_language_is_in_two_splits() -> None:
    split_of = {"en": "train", "de": "train", "ja": "validation", "fi": "test", "ar": "test"}
    samples = make_data.make(split_of, 20)
    assert samples == make_data.make(dict(reversed(split_of.items())), 20)
    assert len(samples) == 100
    assert len({each.tokens for each in samples}) == 100
    for each in samples:
        assert each.split == split_of[each.language]
        assert len(each.tokens) == len(each.tags)
        assert all(len(split_words(word)) == 1 for word in each.tokens)
        for before, name in zip(("O", *each.tags), each.tags, strict=False):
            assert not name.startswith("I-") or before[1:] == name[1:], each
    assert {name[2:] for each in samples for name in each.tags} >= {"DAY", "MONTH", "YEAR", "WEEKDAY"}
