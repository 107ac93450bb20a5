"""A bundle of texts answers every text, whatever its length and characters, as training saw it; and nothing it cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import json_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from text_bundles import KINDS, LONG, Made, sources
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from autoft.files import sha256
from autoft.ragged import Ragged
from autoft.runtime import text as runtime
from autoft.runtime.text import BundleError, TextError, find_entities, is_prefixed, read_file, split_words, tokenize
from autoft.tasks.entities import find_spans, read_scheme
from autoft.train import predict

Bundles = Callable[[str], Made]


def rehash(folder: Path, **changes: Any) -> None:
    """Write the contract again, with the hashes that the files now have."""
    contract = json.loads((folder / "autoft.json").read_text())
    contract["files"] = {name: sha256(folder / name) for name in contract["files"]}
    (folder / "autoft.json").write_text(json.dumps({**contract, **changes}))


@pytest.fixture
def copied(text_bundle: Bundles, tmp_path: Path) -> Callable[[str], Path]:
    """Copies of bundles, to be changed."""
    return lambda kind: Path(shutil.copytree(text_bundle(kind).folder, tmp_path / kind))


# --- words and tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Bonn, 1949!", ["Bonn", ",", "1949", "!"]),
        ("naïve nai\u0308ve", ["naïve", "nai\u0308ve"]),
        ("don't e-mail", ["don", "'", "t", "e", "-", "mail"]),
        ("👩\u200d💻 ok👍🏽", ["👩\u200d", "💻", "ok", "👍", "🏽"]),
        ("\u200bx", ["\u200b", "x"]),
        ("हिन्दी", ["हिन्दी"]),
        ("a\0b\tc\u00a0d", ["a", "b", "c", "d"]),
        ("", []),
        (" \n", []),
    ],
)
def test_words_are_letters_and_digits_or_single_characters(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in split_words(text)] == words


@given(st.text(max_size=40))
def test_words_cover_a_text_but_for_white_space_in_order(text: str) -> None:
    words = split_words(text)
    end = 0
    for start, behind in [*words, (len(text), len(text))]:
        assert all(one.isspace() or unicodedata.category(one) == "Cc" for one in text[end:start])
        assert start < behind or start == len(text)
        end = behind


TAGS = ("O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B", "L-B", "U-B", "I", "B-")


@settings(max_examples=200)
@given(
    st.lists(st.lists(st.sampled_from(TAGS), max_size=8), min_size=1, max_size=3), st.sampled_from([TAGS, ("O", "X", "Y")])
)
def test_entities_are_those_that_the_metrics_count(texts: list[list[str]], known: tuple[str, ...]) -> None:
    texts = [[known[TAGS.index(tag) % len(known)] for tag in tags] for tags in texts]
    offsets = np.cumsum([0, *map(len, texts)])
    scheme = read_scheme(known)
    spans = find_spans(np.array([known.index(tag) for tags in texts for tag in tags], dtype=np.int64), offsets, scheme)
    wanted = [(int(a), int(b), scheme.names[kind]) for a, b, kind in zip(spans.starts, spans.ends, spans.types, strict=True)]
    found = [
        (start + a, start + b, kind)
        for start, tags in zip(offsets, texts, strict=False)
        for a, b, kind in find_entities(tags, is_prefixed(known))
    ]
    assert found == wanted


def test_every_word_has_a_token_even_where_the_tokenizer_drops_it() -> None:
    """Else the tags of all words behind it would be those of their neighbours."""
    numbers = {"[UNK]": 0, "a": 1, "b": 2, "?": 3}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    declared = {"kind": "text", "inputs": ["input_ids"], "max_length": 4, "pad_id": 0, "pairs": False, "words": True,
                "tokenizer": ""}  # fmt: skip
    tokenizer = runtime.open_tokenizer(tokenizer.to_str(), 4)
    items, cut = tokenize(tokenizer, [["a", "\u200b", "", "b"], ["a"] * 6, [], ["\0"]], declared)
    assert [item.tolist() for item in items] == [
        [[1, 1], [3, 2], [3, 3], [2, 4]], [[1, 1], [1, 2], [1, 3], [1, 4]], [[0, 0]], [[3, 1]],
    ]  # fmt: skip
    assert cut == [False, True, False, False]


def test_tokenizer_that_drops_everything_is_an_error() -> None:
    tokenizer = Tokenizer(models.BPE({"x": 0}, []))
    with pytest.raises(TextError, match=r"makes no token of the word 'q', nor of any of \? \. _ a"):
        tokenize(tokenizer, [["q"]], {"pairs": False, "words": True, "pad_id": 0, "max_length": 9})


# --- outputs and answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_outputs_are_those_of_the_trained_model_at_any_batch_size(kind: str, batch_size: int, text_bundle: Bundles) -> None:
    import torch

    made = text_bundle(kind)
    wanted = predict(made.trained.model, made.trained.validation, device=torch.device("cpu"), batch_size=8)
    found = runtime.Bundle.load(made.folder).outputs(iter(sources(made.trained.validation.samples)), batch_size=batch_size)
    if isinstance(wanted, Ragged):
        assert isinstance(found, list)
        assert [len(one) for one in found] == wanted.lengths.tolist()
        np.testing.assert_allclose(np.concatenate(found), wanted.values.numpy(), atol=1e-4)
    else:
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4, rtol=1e-5)


def test_answers_of_each_kind_agree_with_their_outputs(text_bundle: Bundles) -> None:
    for kind in KINDS:
        made = text_bundle(kind)
        bundle = runtime.Bundle.load(made.folder)
        texts = sources(made.trained.validation.samples)
        answers, outputs = bundle.predict(texts, batch_size=3), bundle.outputs(texts)
        assert [bool(answer.get("cut")) for answer in answers] == [False] * (len(texts) - 1) + [True]
        for text, answer, row in zip(texts, answers, outputs, strict=True):
            assert answer["input"] == (list(text) if isinstance(text, tuple) else text)
            if kind in ("label", "pair"):
                assert answer["label"] == bundle.labels[row.argmax()]
                assert answer["score"] == max(answer["scores"].values()) == pytest.approx(1 / np.exp(row - row.max()).sum())
            elif kind == "labels":
                thresholds = json.loads((made.folder / "autoft.json").read_text())["values"]["thresholds"]
                reached = 1 / (1 + np.exp(-row)) >= thresholds
                assert answer["labels"] == [label for label, yes in zip(bundle.labels, reached, strict=True) if yes]
            elif kind == "value":
                assert answer["value"] == pytest.approx(float(row[0]))
            elif kind == "values":
                assert list(answer["values"].values()) == pytest.approx(row.tolist(), rel=1e-4)
            else:
                joined = " ".join(text)
                tags = [bundle.labels[tag] for tag in row.argmax(axis=1)]
                assert len(answer["entities"]) == len(find_entities(tags, prefixed=True))
                assert all(joined[one["start"] : one["end"]] == one["text"] for one in answer["entities"])
                assert all(0 < one["score"] <= 1 for one in answer["entities"])


@pytest.mark.parametrize(
    "text", ["Ada  Okafor,\tborn 1815🙂!", "e\u0301 Nai\u0308ve \u200b x", "漢字かな 7", "O'Neill\n\nfarid"]
)
def test_offsets_of_entities_point_into_the_raw_text(text: str, text_bundle: Bundles) -> None:
    bundle = runtime.Bundle.load(text_bundle("entities").folder)
    (answer,) = bundle.predict([text])
    assert answer["entities"], "the model tags nearly everything"
    for entity in answer["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"] != ""
    words = [text[start:end] for start, end in split_words(text)]
    (other,) = bundle.predict([words])
    assert [one["label"] for one in other["entities"]] == [one["label"] for one in answer["entities"]]


STRANGE = ["\0", "\ufeff", "🙂" * 50, "a" * 100_000, "x " * 50_000, "[CLS] [PAD] [UNK]", "\u202eabc", "\r\n.", "é" * 300]


@pytest.mark.parametrize("kind", ["label", "entities"])
def test_strange_texts_are_answered_alone_as_among_others(kind: str, text_bundle: Bundles) -> None:
    bundle = runtime.Bundle.load(text_bundle(kind).folder)
    together = list(bundle.answers([*STRANGE, "it was", LONG], batch_size=4))
    for text, answer in zip(STRANGE, together, strict=False):
        (alone,) = bundle.answers([text])
        if text == "\0" and kind == "entities":
            assert answer["error"] == "the input is empty", "a control character is no word"
            continue
        assert "error" not in answer
        if kind == "label":
            assert alone["scores"] == pytest.approx(answer["scores"], abs=1e-5)
        else:
            assert [one["label"] for one in alone["entities"]] == [one["label"] for one in answer["entities"]]


@pytest.mark.parametrize(
    ("kind", "wrong", "said"),
    [
        ("label", "", "empty"),
        ("label", " \n", "empty"),
        ("label", "half \ud800", r"character 5 of 'half \\ud800' is half of one"),
        ("label", ("a", "b"), "takes a text, but got"),
        ("label", b"bytes", "texts must be strings"),
        ("label", None, "texts must be strings"),
        ("pair", "a", "takes a pair of texts, but got 'a'"),
        ("pair", ("a", "b", "c"), "takes a pair"),
        ("pair", ("a", None), "texts must be strings"),
        ("pair", ("", " "), "empty"),
        ("entities", [], "empty"),
        ("entities", ["a", 3], "texts must be strings"),
        ("entities", ["a", "\udfff"], "half of one"),
        ("entities", 7, "takes a text or a list of words, but got 7"),
    ],
)
def test_what_is_no_text_gives_an_error_in_its_place(kind: str, wrong: Any, said: str, text_bundle: Bundles) -> None:
    bundle = runtime.Bundle.load(text_bundle(kind).folder)
    good = ("a trip", "a walk") if kind == "pair" else "a trip"
    answers = list(bundle.answers([good, wrong, good]))
    assert ["error" in answer for answer in answers] == [False, True, False]
    with pytest.raises(TextError, match=said):
        bundle.predict([good, wrong])
    if said != "empty":  # outputs are for what was trained on, and that may be empty
        with pytest.raises(TextError, match=said):
            bundle.outputs([good, wrong])


# --- bundles that are not what they should be --------------------------------------------------------------


def break_contract(folder: Path, **changes: Any) -> None:
    rehash(folder, **changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"takes": None}, "`takes` in autoft.json must be one of text, pair, words"),
        ({"takes": "words"}, "but they are 'words', 'label', False"),
        ({"takes": ["text"]}, "`takes` in autoft.json must be one of"),
        ({"columns": {"text": [3]}}, "`columns` in autoft.json must name columns"),
        ({"columns": []}, "`columns` in autoft.json must name columns"),
        ({"max_length": 0}, "`max_length` must be a whole number above 0"),
        ({"max_length": 2}, "`max_length` must be above 2, the special tokens of a text, but got 2"),
        ({"max_length": 1 << 40}, "`max_length` must be a whole number above 0"),
        ({"pad_id": -1}, "`pad_id` must be"),
        ({"inputs": ["input_ids"]}, "must take input_ids and give"),
        ({"inputs": ["input_ids", "secrets"]}, "`inputs` must be some of"),
        ({"words": True}, "but they are 'text', 'label', True"),
        ({"labels": ["a", "b"]}, "has 3 outputs, but autoft.json has 2 labels"),
        ({"outputs": ["logits", "odds"]}, "give logits and odds, but it is"),
    ],
)
def test_contract_that_the_bundle_does_not_keep_is_refused(
    change: dict[str, Any], said: str, copied: Callable[[str], Path]
) -> None:
    folder = copied("label")
    contract = json.loads((folder / "autoft.json").read_text())
    inner = {name: value for name, value in change.items() if name in contract["preprocessing"]}
    outer = {name: value for name, value in change.items() if name not in inner}
    rehash(folder, **outer, preprocessing={**contract["preprocessing"], **inner})
    with pytest.raises(BundleError, match=said):
        runtime.Bundle.load(folder)


def test_tokenizer_that_was_altered_or_is_none_is_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("label")
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("[UNK]", "[XXX]"))
    with pytest.raises(BundleError, match=r"tokenizer\.json was altered"):
        runtime.Bundle.load(folder)
    for content in (b"{}", b"\xff\xfe\x00", b"[" * 100_000):
        file.write_bytes(content)
        rehash(folder)
        with pytest.raises(BundleError, match=r"tokenizer\.json"):
            runtime.Bundle.load(folder)


def test_number_of_a_token_that_the_model_lacks_is_an_error_not_a_crash(copied: Callable[[str], Path]) -> None:
    folder = copied("label")
    contract = json.loads((folder / "autoft.json").read_text())
    rehash(folder, preprocessing={**contract["preprocessing"], "pad_id": 10_000_000})
    bundle = runtime.Bundle.load(folder)
    assert bundle.predict(["a trip"])
    with pytest.raises(BundleError, match="cannot run"):
        bundle.predict(["a trip", "a longer trip to the station"])


# --- golden vectors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_golden_texts_replay(kind: str, text_bundle: Bundles) -> None:
    folder = text_bundle(kind).folder
    golden = json.loads((folder / "golden" / "golden.json").read_text())
    assert len(golden["inputs"]) == len(golden["answers"]) == 5
    assert not (folder / "golden" / "inputs").exists(), "texts are in golden.json"
    checked = runtime.Bundle.load(folder).check()
    assert checked["ok"]
    assert checked["input_ids"] == checked["logits"] == 0.0


@pytest.mark.parametrize("kind", ["label", "labels", "value", "values", "entities"])
@pytest.mark.parametrize("what", ["logits", "input_ids", "answers", "other tokens"])
def test_golden_texts_that_differ_fail(kind: str, what: str, copied: Callable[[str], Path]) -> None:
    folder = copied(kind)
    golden = folder / "golden"
    if what == "answers":
        stored = json.loads((golden / "golden.json").read_text())
        other = {"label": "?", "labels": ["?"], "value": 0.0, "values": {"value_1": 0.0, "value_2": 0.0}, "entities": []}
        stored["answers"][1] = other[kind]
        (golden / "golden.json").write_text(json.dumps(stored))
    elif what == "other tokens":
        contract = json.loads((folder / "autoft.json").read_text())
        rehash(folder, preprocessing={**contract["preprocessing"], "max_length": 5})
    else:
        array = np.load(golden / f"{what}.npy")
        scale = json.loads((folder / "autoft.json").read_text())["values"].get("scale", [1.0])
        array[(0,) * array.ndim] += 1 if what == "input_ids" else 0.01 * scale[0]
        np.save(golden / f"{what}.npy", array)
    rehash(folder)
    checked = runtime.Bundle.load(folder).check()
    assert not checked["ok"]
    assert bool(checked["wrong"]) == (what in ("answers", "other tokens"))


# --- files and the command line -----------------------------------------------------------------------------


def lines_of(kind: str, folder: Path) -> list[tuple[str, str, dict[str, Any], list[Any]]]:
    """File name, content, columns, and what is to be read."""
    texts = ["a trip", 'he said "no", twice', "naïve 🙂"]
    quoted = ["a trip", '"he said ""no"", twice"', "naïve 🙂"]
    return {
        "text": [
            ("a.txt", "\n".join(texts) + "\n", {}, texts),
            ("b.csv", "text\n" + "\n".join(quoted), {}, texts),
            ("c.csv", "id;body\n" + "\n".join(f"{n};{one}" for n, one in enumerate(quoted)), {"text": "body"}, texts),
            ("d.tsv", "id\ttext\n1\ta trip\n", {}, ["a trip"]),
            ("e.jsonl", '{"text": "a\\ntrip", "id": 1}\n\n"alone"\n', {}, ["a\ntrip", "alone"]),
            ("f.CSV", 'text,id\n"two\nlines",1\n', {"text": ["text"]}, ["two\nlines"]),
            ("g.csv", "body\n", {}, []),
        ],
        "pair": [("a.csv", "q,label,p\nx,1,y\n", {"text": ["p", "q"]}, [("y", "x")]),
                 ("b.jsonl", '{"p": "x", "q": "y"}\n["x", "z"]', {"text": ["p", "q"]}, [("x", "y"), ["x", "z"]])],
        "words": [("a.jsonl", '{"tokens": ["a", "b"]}\n', {"text": "tokens"}, [["a", "b"]]), ("b.txt", "a b", {}, ["a b"])],
    }[kind]  # fmt: skip


@pytest.mark.parametrize("takes", ["text", "pair", "words"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_every_kind_are_read(takes: str, encoding: str, tmp_path: Path) -> None:
    for name, content, columns, wanted in lines_of(takes, tmp_path):
        (tmp_path / name).write_text(content, encoding=encoding)
        assert list(read_file(tmp_path / name, takes, columns)) == wanted, name


@pytest.mark.parametrize(
    ("name", "content", "takes", "columns", "said"),
    [
        ("a.csv", b"id,body\n1,x\n", "text", {}, "must have the column text, but has id, body"),
        ("a.csv", b"id,text\n1,x\n", "text", {"text": "review"}, "must have the column review, but has id, text"),
        ("a.csv", b"a,b\n1,x\n", "pair", {"text": ["a", "c"]}, "must have the columns a, c, but has a, b"),
        ("a.csv", b"a,b\n1,x\n", "pair", {}, "must have the columns"),
        ("a.csv", b"", "text", {}, "must have the column"),
        ("a.csv", b"id,text\n1,x\n2\n", "text", {}, "line 3 must have 2 columns, but has 1"),
        ("a.jsonl", b'{"text": "x"}\n{', "text", {}, "line 2 must be JSON"),
        ("a.jsonl", b'{"a": "x", "b": "y"}', "text", {}, "line 1: must have the column text, but has a, b"),
        ("a.txt", "größe".encode("latin-1"), "text", {}, "must be UTF-8"),
        ("a.txt", b"x", "pair", {}, "pairs are read from"),
        ("a.parquet", b"x", "text", {}, r"must be one of \.txt, \.csv"),
        ("missing.txt", None, "text", {}, "cannot be read"),
    ],
)
def test_file_that_cannot_be_read_is_told(
    name: str, content: bytes | None, takes: str, columns: dict[str, Any], said: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=said):
        list(read_file(tmp_path / name, takes, columns))


@pytest.mark.parametrize(
    ("content", "columns", "wanted"),
    [
        (" id ; text \n1;one, two, three\n2;four, five\n", {"text": "text"}, ["one, two, three", "four, five"]),
        ("text,note;more\none;two,x\nthree;four;five,y\n", {"text": "text"}, ["one;two", "three;four;five"]),
        ("\ntext\none; two\nthree; four\n", {}, ["one; two", "three; four"]),
        ('a|"text"\n1|x;y\n', {}, ["x;y"]),
    ],
)
def test_cells_are_set_apart_as_the_first_line_says_whatever_the_texts_hold(
    content: str, columns: dict[str, str], wanted: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(content)
    assert list(read_file(tmp_path / "a.csv", "text", columns)) == wanted


def test_large_file_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a trip\n" * 3)
    endless = read_file(tmp_path / "a.txt", "text", {})
    assert next(endless) == "a trip", "read before the end is known"


def script(folder: Path, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", folder / "predict.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, cwd=folder.parent)


def test_script_in_the_bundle_runs_by_itself_and_leaves_nothing(text_bundle: Bundles, tmp_path: Path) -> None:
    folder = text_bundle("label").folder
    before = sorted(folder.rglob("*"))
    done = script(folder, "a trip", "the 🙂 station", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answers = json_lines(done.stdout)
    assert [list(answer) for answer in answers] == [["input", "label", "score"]] * 2
    assert [answer["input"] for answer in answers] == ["a trip", "the 🙂 station"]
    (tmp_path / "texts.csv").write_text("id,review\n1,a trip\n2,the 🙂 station\n3,\n")
    filed = script(folder, "--file", tmp_path / "texts.csv", "--json", "--batch-size", 1)
    assert [answer["label"] for answer in json_lines(filed.stdout)] == [answer["label"] for answer in answers]
    assert (filed.returncode, filed.stderr) == (2, "error: '': the input is empty\n")
    piped = script(folder, "-", stdin="a trip\nthe 🙂 station\n")
    assert [line.split()[0] for line in piped.stdout.splitlines()] == [answer["label"] for answer in answers]
    assert piped.stdout.splitlines()[0].endswith("  a trip")
    assert sorted(folder.rglob("*")) == before


def test_long_texts_are_told(text_bundle: Bundles) -> None:
    done = script(text_bundle("label").folder, LONG, "a trip", "--json")
    assert [answer.get("cut") for answer in json_lines(done.stdout)] == [True, None]
    assert "1 longer than 48 tokens: answered by their beginning" in done.stderr


def main(bundle: Path, *arguments: object) -> int:
    return runtime.main(["--bundle", str(bundle), *map(str, arguments)])


def test_pairs_are_given_two_by_two(text_bundle: Bundles, capsys: pytest.CaptureFixture[str]) -> None:
    folder = text_bundle("pair").folder
    assert main(folder, "a", "b", "c", "d", "--json") == 0
    assert [answer["input"] for answer in json_lines(capsys.readouterr().out)] == [["a", "b"], ["c", "d"]]
    for arguments in (("a", "b", "c"), ("-",)):
        assert main(folder, *arguments) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_check_prints_and_fails(copied: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied("entities")
    assert main(folder, "--check") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "ok: the tolerance is 0.001"
    golden = json.loads((folder / "golden" / "golden.json").read_text())
    golden["answers"][0] = []
    (folder / "golden" / "golden.json").write_text(json.dumps(golden))
    rehash(folder)
    assert main(folder, "--check") == 1
    assert f"wrong answer: {json.dumps(golden['inputs'][0])}" in capsys.readouterr().out


def test_argument_that_is_a_file_is_not_taken_for_a_text(
    text_bundle: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("a trip")
    assert main(text_bundle("label").folder, tmp_path / "texts.txt") == 2
    assert f"is a file: use --file {tmp_path / 'texts.txt'}" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["a", "--file", "b.txt"], ["a", "--check"], ["--file", "b.txt", "--check"]])
def test_wrong_arguments_exit_with_2(arguments: list[str], text_bundle: Bundles) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(text_bundle("label").folder, *arguments)
    assert stopped.value.code == 2
