"""Runs an autoft bundle for texts with onnxruntime, numpy and tokenizers alone.

It becomes the `predict.py` of every such bundle, and training tokenizes with these same functions, so that a bundle sees,
token for token, what validation saw. It imports nothing of autoft or torch; Python 3.10 will do.

    python predict.py "What a film!" --json
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import itertools
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from autoft.runtime.shared import (
    ANSWERS,
    BundleError,
    Contract,
    InputError,
    Model,
    answer_all,
    answer_of,
    check_golden,
    exit_code,
    json_answer,
    make_parser,
    parse,
    plain_answer,
    predicted,
    print_check,
    read_bundle,
    safely,
    shortened,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

# a text, a pair of texts, or the words of a text
TextSource = str | tuple[str, str] | list[str]

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TAKES = {"text": "a text", "pair": "a pair of texts", "words": "a text or a list of words"}
TOKENIZER = "tokenizer.json"

# What takes the place of a word of which a tokenizer makes no token, such as a lone zero-width space.
STAND_INS = ("?", ".", "_", "a")

SORTED_BATCHES = 32  # batches that are read together, so that texts of like length can share one


class TextError(InputError):
    """An input is no text that the bundle can answer, or a file cannot be read."""


# --- preprocessing ----------------------------------------------------------------------------------


def check_preprocessing(preprocessing: Mapping[str, Any]) -> None:
    """Check a declaration of text preprocessing.

    Args:
        preprocessing: `kind` ("text"); `inputs`, some of `INPUTS` in the model's order, `input_ids` among them;
            `max_length`, the most tokens a text may have, special ones included; `pad_id`, the token that fills shorter
            rows of a batch, on the right; `pairs`, whether texts may come in pairs, told apart by `token_type_ids`;
            `words`, whether texts are words with a tag each; `tokenizer`, the SHA-256 of what it was made of.

    Raises:
        ValueError: Naming the rule and the value.
    """

    def check(holds: bool, rule: str, value: object) -> None:
        if not holds:
            raise ValueError(f"preprocessing: {rule}, but got {value!r}")

    def is_whole(value: object, least: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 31

    names = ("kind", "inputs", "max_length", "pad_id", "pairs", "words", "tokenizer")
    missing = [name for name in names if name not in preprocessing]
    check(not missing, f"{', '.join(names)} must be given", f"none for {', '.join(missing)}")
    unknown = sorted(set(preprocessing) - set(names))
    check(not unknown, f"only {', '.join(names)} are known", ", ".join(unknown))
    inputs = preprocessing["inputs"]
    check(preprocessing["kind"] == "text", "`kind` must be 'text'", preprocessing["kind"])
    known = isinstance(inputs, (list, tuple)) and "input_ids" in inputs and all(name in INPUTS for name in inputs)
    check(known and len(set(inputs)) == len(inputs), f"`inputs` must be some of {', '.join(INPUTS)}", inputs)
    check(
        is_whole(preprocessing["max_length"], 1), "`max_length` must be a whole number above 0", preprocessing["max_length"]
    )
    check(is_whole(preprocessing["pad_id"], 0), "`pad_id` must be a whole number", preprocessing["pad_id"])
    for name in ("pairs", "words"):
        check(isinstance(preprocessing[name], bool), f"`{name}` must be true or false", preprocessing[name])
    check(isinstance(preprocessing["tokenizer"], str), "`tokenizer` must be a SHA-256", preprocessing["tokenizer"])


def open_tokenizer(content: str, max_length: int | None = None) -> Tokenizer:
    """Make a tokenizer of the content of a `tokenizer.json`.

    It adds special tokens, but neither cuts nor pads: `tokenize` and `pad` do.

    Args:
        content: Of the file.
        max_length: The most tokens that a text will have, to check that there is room for some, or None.

    Raises:
        ValueError: The content is none of a tokenizer, or `max_length` has no room for a token beside the special ones.
    """
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library raises plain exceptions
        raise ValueError(f"the tokenizer cannot be read ({error})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if max_length is not None and max_length <= special:
        raise ValueError(f"`max_length` must be above {special}, the special tokens of a text, but got {max_length}")
    return tokenizer


def tokenize(
    tokenizer: Tokenizer, sources: Sequence[TextSource], preprocessing: Mapping[str, Any]
) -> tuple[list[NDArray[np.int32]], list[bool]]:
    """Turn texts into tokens, and cut what is longer than `max_length` at its end, of a pair the longer text first.

    The tokens are those that the library's own truncation (`longest_first`) leaves. That one also makes all the other parts
    of a text, of a pair each with each: gigabytes for two long texts.

    Args:
        tokenizer: From `open_tokenizer`.
        sources: Texts, pairs of texts as tuples, or lists of words.
        preprocessing: As `check_preprocessing` describes it.

    Returns:
        For each text `(T, C)`: the token's number; if `pairs`, which of the two texts it belongs to; if `words`, the
        number of the word that it begins, counted from 1, else 0. And for each text, whether it was cut. Words all have a
        token: `STAND_INS` take the place of those that the tokenizer drops.

    Raises:
        TextError: A source is not text, or the tokenizer drops a word and all that could take its place.
    """
    words = bool(preprocessing["words"])
    try:
        encodings = tokenizer.encode_batch(list(sources), is_pretokenized=words)
    except TypeError as error:  # the library says neither where nor why
        for source in sources:
            check_text(source)
        raise TextError(f"texts must be strings, pairs of them, or lists of words ({error})") from error
    if words:
        encodings = [_with_all_words(tokenizer, source, found) for source, found in zip(sources, encodings, strict=True)]
    items, cut = [], []
    for encoding in encodings:
        columns = [encoding.ids]
        if preprocessing["pairs"]:
            columns.append(encoding.type_ids)
        if words:
            before: int | None = None
            starts = []
            for word in encoding.word_ids:
                starts.append(0 if word is None or word == before else word + 1)
                before = word
            columns.append(starts)
        item = np.array(columns, dtype=np.int32).T
        if len(item) == 0:  # an empty text under a tokenizer without special tokens: no model takes a row of nothing
            item = np.array([[preprocessing["pad_id"]] + [0] * (len(columns) - 1)], dtype=np.int32)
        cut.append(len(item) > preprocessing["max_length"])
        items.append(item[_kept(encoding, preprocessing["max_length"])] if cut[-1] else item)
    return items, cut


def _kept(encoding: Encoding, most: int) -> NDArray[np.bool_]:
    """Return which tokens of a text or pair stay when it is cut: the special ones, and the first of each text `(T,)`."""
    texts = np.array([-1 if text is None else text for text in encoding.sequence_ids])
    counts = [int((texts == number).sum()) for number in (0, 1)]
    room = max(0, most - int((texts == -1).sum()))
    shorter, longer = sorted(counts)
    if shorter + longer > room:
        longer = max(shorter, room - shorter)  # the longer text loses first
        if shorter + longer > room:  # where that is not enough both get half, the one that was longer the odd token
            shorter, longer = room // 2, room - room // 2
    first = counts[0] <= counts[1]
    rest = {0: room} if counts[1] == 0 else {0: shorter if first else longer, 1: longer if first else shorter}
    kept: NDArray[np.bool_] = texts == -1
    for number, count in rest.items():
        kept[np.flatnonzero(texts == number)[:count]] = True
    return kept


def _with_all_words(tokenizer: Tokenizer, words: Any, encoding: Encoding) -> Encoding:
    """Return the encoding of words, made again with something in the place of those that have no token."""
    lost = _lost(words, encoding)
    if not lost:
        return encoding
    for stand_in in STAND_INS:
        changed = [stand_in if place in lost else word for place, word in enumerate(words)]
        encoding = tokenizer.encode(changed, is_pretokenized=True)
        if not _lost(words, encoding):
            return encoding
    raise TextError(f"the tokenizer makes no token of the word {words[min(lost)]!r}, nor of any of {' '.join(STAND_INS)}")


def _lost(words: Any, encoding: Encoding) -> set[int]:
    """Return the places of words without a token."""
    return set(range(len(words))) - set(encoding.word_ids)


def check_text(source: Any) -> None:
    """Check that a text, or each part of a pair or of a list of words, is a string of whole characters.

    Raises:
        TextError: It is not.
    """
    for part in source if isinstance(source, (tuple, list)) else (source,):
        if not isinstance(part, str):
            raise TextError(f"texts must be strings, but got {shortened(repr(part))}")
        try:
            part.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TextError(
                f"texts must be Unicode, but character {error.start} of {shortened(ascii(part))} is half of one"
            ) from error


def pad(items: Sequence[NDArray[np.int32]], preprocessing: Mapping[str, Any]) -> dict[str, NDArray[np.int64]]:
    """Return the model's inputs `(N, T)` by name for tokenized texts, filled on the right to the longest."""
    width = max(len(item) for item in items)
    ids = np.full((len(items), width), preprocessing["pad_id"], dtype=np.int64)
    mask = np.zeros((len(items), width), dtype=np.int64)
    types = np.zeros((len(items), width), dtype=np.int64)
    for row, item in enumerate(items):
        ids[row, : len(item)] = item[:, 0]
        mask[row, : len(item)] = 1
        if preprocessing["pairs"]:
            types[row, : len(item)] = item[:, 1]
    made = dict(zip(INPUTS, (ids, mask, types), strict=True))
    return {name: made[name] for name in preprocessing["inputs"]}


# --- words and entities -----------------------------------------------------------------------------


def split_words(text: str) -> list[tuple[int, int]]:
    """Return the words of a text as `(start, end)`, `text[start:end]` being the word.

    White space and control characters separate words. Letters and digits that follow each other are one word; every other
    character is a word of its own. Combining marks and format characters (accents, joiners) belong to what precedes them.

    Example:
        >>> [text[a:b] for text in ["Bonn, 1949!"] for a, b in split_words(text)]
        ['Bonn', ',', '1949', '!']
    """
    words: list[tuple[int, int]] = []
    joins = False  # whether a letter or digit here would continue the last word
    adjoins = False  # whether the last word ends right before this character
    for place, character in enumerate(text):
        category = unicodedata.category(character)
        if character.isspace() or category == "Cc":
            joins = adjoins = False
            continue
        alphanumeric = category[0] in "LN"
        if (adjoins and (category[0] == "M" or category == "Cf")) or (joins and alphanumeric):
            words[-1] = (words[-1][0], place + 1)
        else:
            words.append((place, place + 1))
            joins = alphanumeric
        adjoins = True
    return words


def is_prefixed(tags: Iterable[str]) -> bool:
    """Return whether every tag but `O` has a letter for its place in an entity, as `B-PER` has."""
    others = [tag for tag in tags if tag != "O"]
    return bool(others) and all(re.fullmatch(r"[BIESLU](-.*)?", tag, re.DOTALL) for tag in others)


def find_entities(tags: Sequence[str], prefixed: bool) -> list[tuple[int, int, str]]:
    """Return the entities that the tags of a text spell: first word, the one behind the last, and type.

    The rules are those of conlleval and of seqeval's default mode: an entity ends after E (or L) and S (or U), before B, S
    and O, and where the type changes; any other tag than O begins one where none is open, also an `I` without a `B`. Where
    tags have no letters, each run of equal tags is an entity.

    Args:
        tags: One for each word.
        prefixed: Whether tags have letters, as `is_prefixed` says of all that the model knows.
    """
    found: list[tuple[int, int, str]] = []
    start: int | None = None
    before, before_type = "O", ""
    for place, tag in enumerate([*tags, "O"]):
        letter, kind = ("O", "") if tag == "O" else (tag[0], tag[2:] or "_") if prefixed else ("I", tag)
        letter = {"L": "E", "U": "S"}.get(letter, letter)
        begins = letter != "O" and (before in "OES" or letter in "BS" or kind != before_type)
        if start is not None and (begins or letter == "O"):
            found.append((start, place, before_type))
            start = None
        if begins:
            start = place
        before, before_type = letter, kind
    return found


# --- the bundle ---------------------------------------------------------------------------------------


class _Read(NamedTuple):
    """An input that can be answered.

    Attributes:
        source: What is tokenized.
        text: The raw text, or the words joined by single spaces, which offsets of entities count in.
        words: Where its words lie.
    """

    source: TextSource
    text: str
    words: list[tuple[int, int]]


class Bundle:
    """A loaded bundle; make it with `Bundle.load`.

    Attributes:
        folder: Where it lies.
        labels: Names of the outputs, in their order.
        preprocessing: The declaration that `tokenize` and `pad` follow.
        takes: What an input is: a `text`, a `pair` of texts, or `words`.
        columns: The options that describe the data it was made of; `text` names columns.

    Example:
        >>> bundle = Bundle.load("runs/films/bundle")  # doctest: +SKIP
        >>> bundle.predict(["What a film!"])[0]["label"]  # doctest: +SKIP
        'praise'
    """

    def __init__(self, contract: Contract, model: Model, tokenizer: Tokenizer) -> None:
        self.folder = contract.folder
        self.labels = contract.labels
        self.preprocessing = contract.preprocessing
        self.takes: str = contract.fields["takes"]
        self.columns: Mapping[str, Any] = contract.fields.get("columns", {})
        self._contract = contract
        self._model = model
        self._tokenizer = tokenizer
        self._prefixed = is_prefixed(contract.labels)

    @classmethod
    def load(cls, folder: str | Path, *, threads: int = 0, variant: str = "fp32") -> Bundle:
        """Check a bundle's files against their hashes, then load its model and tokenizer.

        Args:
            folder: The bundle.
            threads: Threads of one inference; 0 leaves the choice to ONNX Runtime.
            variant: Which of its graphs, as autoft.json names them.

        Raises:
            BundleError: A file is missing or altered, or this is no bundle for texts.
        """
        contract = read_bundle(Path(folder), ANSWERS, check_preprocessing)
        if TOKENIZER not in contract.fields["files"]:
            raise BundleError(f"{folder}: autoft.json must list {TOKENIZER} in `files`")
        takes, words = contract.fields.get("takes"), contract.preprocessing["words"]
        if (
            not isinstance(takes, str)
            or takes not in TAKES
            or (takes == "words") != words
            or (contract.answer == "entities") != words
        ):
            raise BundleError(
                f"{folder}: `takes` in autoft.json must be one of {', '.join(TAKES)}, and words where `answer` is entities "
                f"and preprocessing has `words`, only; but they are {shortened(repr(takes))}, {contract.answer!r}, {words}"
            )
        columns = contract.fields.get("columns", {})
        if not isinstance(columns, dict) or not all(isinstance(name, str) for name in _text_columns(columns)):
            raise BundleError(f"{folder}: `columns` in autoft.json must name columns, but got {shortened(repr(columns))}")
        try:
            content = (contract.folder / TOKENIZER).read_text(encoding="utf-8")
            tokenizer = open_tokenizer(content, contract.preprocessing["max_length"])
        except (OSError, ValueError, OverflowError) as error:
            raise BundleError(f"{contract.folder / TOKENIZER}: {error}") from error
        return cls(contract, Model(contract, contract.preprocessing["inputs"], threads, variant), tokenizer)

    def vectors(self, sources: Sequence[TextSource]) -> dict[str, NDArray[Any]]:
        """Return what the model sees and says of a batch of inputs, by name: `input_ids` and so on, `logits`, the scores.

        Raises:
            TextError: One of them is not what the bundle takes.
        """
        inputs = self._inputs(sources)
        return {**inputs, **self._model.run(inputs)}

    def outputs(
        self, sources: Iterable[TextSource], *, batch_size: int = 32
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Return the logits of inputs, in their order.

        Returns:
            `(N, K)`; of a bundle that tags words, `(W, K)` for each input: one row for each of its words that was not cut.

        Raises:
            TextError: One of the inputs is not what the bundle takes.
        """
        rest = iter(sources)
        rows: list[NDArray[np.float32]] = []
        while chunk := list(itertools.islice(rest, SORTED_BATCHES * batch_size)):
            rows += self._rows([self._read(source) for source in chunk], batch_size, "logits")[0]
        if self._contract.answer == "entities":
            return rows
        return np.stack(rows) if rows else np.zeros((0, len(self.labels)), np.float32)

    def predict(self, inputs: Iterable[TextSource], *, batch_size: int = 32) -> list[dict[str, Any]]:
        """Answer for inputs, each what `takes` says: a string, a tuple of two, or a string or list of words.

        Returns:
            For each input, in order, `input` and: `label`, `score` and `scores`, which has every label's probability; or
            `labels`, those whose probability reaches their threshold, and `scores`; or `value`, or `values` by name; or
            `entities`, each with `label`, `text`, `start`, `end` (character offsets into the text, or into the words joined
            by single spaces; `end` is behind the last) and `score`, the mean probability of its words' tags. An input that
            was longer than the model takes has `cut`: true, and was answered by its beginning.

        Raises:
            TextError: An input is not what the bundle takes, or is empty; `answers` goes on to the others.
        """
        return predicted(self.answers(inputs, batch_size=batch_size), TextError)

    def answers(self, inputs: Iterable[TextSource], *, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """Answer for inputs some batches at a time; one without an answer gives `{"input", "error"}`, in its place."""
        answer = functools.partial(self._answer, batch_size=batch_size)
        return answer_all(inputs, SORTED_BATCHES * batch_size, self._read_filled, answer, _shown)

    def limit(self, seconds: float) -> None:
        """Let a batch take no longer than so many seconds; 600 otherwise."""
        self._model.seconds = seconds

    def check(self) -> dict[str, Any]:
        """Replay the golden inputs of the bundle through this machine's runtime.

        Returns:
            `ok`; `tolerance`; the largest absolute differences of the tokens (from the texts), `logits` and scores (from the
            stored tokens) by name; `wrong`, inputs whose answer differs end to end.

        Raises:
            BundleError: The golden files are missing or do not fit together.
        """
        return check_golden(self._contract, self._model.run, self._inputs, self.answers, lambda folder, entry: entry)

    def _read(self, source: Any) -> _Read:
        """Check one input. Raises `TextError`."""
        parts = isinstance(source, (tuple, list))
        fits = len(source) == 2 if self.takes == "pair" and parts else parts == (self.takes != "text")
        if self.takes == "words" and isinstance(source, str):
            fits = True
        if not fits:
            raise TextError(f"this bundle takes {TAKES[self.takes]}, but got {shortened(repr(source))}")
        check_text(source)
        if self.takes == "text":
            return _Read(source, source, [])
        if self.takes == "pair":
            return _Read((source[0], source[1]), "", [])
        if isinstance(source, str):
            places = split_words(source)
            return _Read([source[start:end] for start, end in places], source, places)
        ends = list(itertools.accumulate(len(word) + 1 for word in source))
        places = [(end - len(word) - 1, end - 1) for word, end in zip(source, ends, strict=True)]
        return _Read(list(source), " ".join(source), places)

    def _read_filled(self, source: Any) -> _Read:
        read = self._read(source)
        if not any(part.strip() for part in ([read.source] if isinstance(read.source, str) else read.source)):
            raise TextError("the input is empty")
        return read

    def _inputs(self, sources: Sequence[TextSource]) -> dict[str, NDArray[np.int64]]:
        items, _ = tokenize(self._tokenizer, [self._read(source).source for source in sources], self.preprocessing)
        return pad(items, self.preprocessing)

    def _rows(self, read: Sequence[_Read], batch_size: int, name: str) -> tuple[list[NDArray[np.float32]], list[bool]]:
        """Return one output of the model for each input, `(K,)` or `(W, K)`, and whether it was cut."""
        items, cut = tokenize(self._tokenizer, [item.source for item in read], self.preprocessing)
        order = sorted(range(len(items)), key=lambda row: -len(items[row]))
        rows: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(items)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            found = self._model.run(pad([items[row] for row in batch], self.preprocessing))[name]
            for row, output in zip(batch, found, strict=True):
                words = self._contract.answer == "entities"
                # a word's answer is that of its first token
                rows[row] = output[: len(items[row])][items[row][:, -1] > 0] if words else output
        return rows, cut

    def _answer(self, read: Sequence[_Read], batch_size: int) -> Iterator[dict[str, Any] | InputError]:
        rows, cut = self._rows(read, batch_size, self._contract.outputs[-1])
        for item, row, was_cut in zip(read, rows, cut, strict=True):
            try:
                made = self._entities(item, row) if self._contract.answer == "entities" else answer_of(self._contract, row)
            except InputError as error:
                yield error
                continue
            yield {**made, "cut": True} if was_cut else made

    def _entities(self, read: _Read, scores: NDArray[np.float32]) -> dict[str, Any]:
        if not np.isfinite(scores).all():
            raise TextError("the model's answer is not a finite number")
        best = scores.argmax(axis=1)
        entities = []
        for first, behind, kind in find_entities([self.labels[tag] for tag in best], self._prefixed):
            start, end = read.words[first][0], read.words[behind - 1][1]
            score = float(scores[first:behind].max(axis=1).mean())
            entities.append({"label": kind, "text": read.text[start:end], "start": start, "end": end, "score": score})
        return {"entities": entities}


def _shown(source: Any) -> Any:
    return list(source) if isinstance(source, tuple) else source


# --- the command line -----------------------------------------------------------------------------------


def read_file(path: Path, takes: str, columns: Mapping[str, Any]) -> Iterator[TextSource]:
    """Read inputs from a file, one after another.

    Args:
        path: `.txt`, a text a line; `.csv` or `.tsv` with a line of names; or `.jsonl`, an object (or a text, or a list) a
            line. In UTF-8, or in UTF-16 with its mark.
        takes: `text`, `pair` or `words`.
        columns: Names in `text` the column, or the two of a pair; without it, it is the only one or that named `text`.

    Raises:
        TextError: The file cannot be read, or has no such column.
    """
    kind = path.suffix.lower()
    if kind not in FILES:
        raise TextError(f"{path}: must be one of {', '.join(FILES)}")
    if kind == ".txt" and takes == "pair":
        raise TextError(f"{path}: pairs are read from .csv, .tsv and .jsonl, with a column for each text")
    try:
        with path.open("rb") as file:
            wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
        with path.open(encoding="utf-16" if wide else "utf-8-sig", newline=None if kind == ".txt" else "") as lines:
            if kind == ".txt":
                yield from (line.rstrip("\n") for line in lines)
            elif kind == ".jsonl":
                yield from _read_json_lines(path, lines, takes, columns)
            else:
                yield from _read_table(path, lines, "\t" if kind == ".tsv" else None, takes, columns)
    except UnicodeDecodeError as error:
        raise TextError(f"{path}: must be UTF-8, but is not ({error})") from error
    except (OSError, csv.Error) as error:
        raise TextError(f"{path}: cannot be read ({error})") from error


FILES = (".txt", ".csv", ".tsv", ".jsonl")


def _read_table(
    path: Path, lines: Any, delimiter: str | None, takes: str, columns: Mapping[str, Any]
) -> Iterator[TextSource]:
    csv.field_size_limit((1 << 31) - 1)
    if delimiter is None:
        beginning = lines.read(1 << 16)
        lines.seek(0)
        delimiter = _delimiter(beginning, _text_columns(columns))
    table = csv.reader(lines, delimiter=delimiter)
    header = _header(table)
    chosen = _choose(path, header, takes, columns)
    places = [header.index(name) for name in chosen]
    for row in table:
        if not row:
            continue  # an empty line
        if len(row) <= max(places):
            raise TextError(f"{path}: line {table.line_num} must have {len(header)} columns, but has {len(row)}")
        yield (row[places[0]], row[places[1]]) if takes == "pair" else row[places[0]]


def _delimiter(beginning: str, wanted: Sequence[str]) -> str:
    """Return what sets a table's cells apart: that by which its first line names the wanted columns, or else the most."""
    headers = {mark: _header(csv.reader(io.StringIO(beginning, newline=""), delimiter=mark)) for mark in ",;\t|"}
    return max(headers, key=lambda mark: (set(wanted) <= set(headers[mark]), len(headers[mark])))


def _header(table: Iterator[list[str]]) -> list[str]:
    return [name.strip() for name in next((row for row in table if row), [])]


def _read_json_lines(path: Path, lines: Any, takes: str, columns: Mapping[str, Any]) -> Iterator[TextSource]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TextError(f"{path}: line {number} must be JSON, but is not ({error})") from error
        if isinstance(value, dict):
            chosen = _choose(f"{path}: line {number}", list(value), takes, columns)
            yield (value[chosen[0]], value[chosen[1]]) if takes == "pair" else value[chosen[0]]
        else:
            yield value


def _text_columns(columns: Mapping[str, Any]) -> list[Any]:
    named = columns.get("text") or []
    return list(named) if isinstance(named, (list, tuple)) else [named]


def _choose(where: object, header: Sequence[str], takes: str, columns: Mapping[str, Any]) -> list[str]:
    """Return the names of the columns with the text. Raises `TextError`."""
    wanted, count = _text_columns(columns), 2 if takes == "pair" else 1
    if len(wanted) != count:
        wanted = [header[0]] if count == 1 and len(header) == 1 else ["text"] if count == 1 else ["the first", "the second"]
    if not set(wanted) <= set(header):
        raise TextError(f"{where}: must have the column{'s' * (count - 1)} {', '.join(wanted)}, but has {', '.join(header)}")
    return wanted


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer for texts, or check the bundle; return the exit code (0 fine, 1 check failed, 2 bad input)."""
    parser = make_parser("Answer for texts with this bundle.", __file__)
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="a text; of a bundle for pairs, two texts each; - reads a text a line"
    )
    parser.add_argument("--file", type=Path, help="a file of texts: .txt (a text a line), .csv, .tsv or .jsonl")
    options = parse(parser, arguments, ("texts", "file"))
    if options.texts and options.file:
        parser.error("give texts or --file, not both")
    return safely(lambda: _command(options))


def _command(options: argparse.Namespace) -> int:
    bundle = Bundle.load(options.bundle, variant=options.variant)
    if options.check:
        return print_check(bundle.check())
    takes, columns = bundle.takes, bundle.columns
    sources = read_file(options.file, takes, columns) if options.file else from_arguments(options.texts, takes)
    unanswered = cut = 0
    width = max(map(len, bundle.labels))
    for answer in bundle.answers(sources, batch_size=options.batch_size):
        cut += "cut" in answer
        if "error" in answer:
            unanswered += 1
            print(f"error: {plain_input(answer['input'])}: {answer['error']}", file=sys.stderr)
        else:
            plain = f"{plain_answer(answer, width)}  {plain_input(answer['input'])}"
            print(json_answer(answer) if options.json else plain)
    if cut:
        most = bundle.preprocessing["max_length"]
        print(f"{cut} longer than {most} tokens: answered by their beginning", file=sys.stderr)
    return 2 if unanswered else 0


def from_arguments(texts: Sequence[str], takes: str) -> Iterable[TextSource]:
    """Return the inputs that arguments of a command give: each a text, or two of them; `-` reads lines of stdin.

    Raises:
        TextError: They do not make pairs, or name a file.
    """
    if list(texts) == ["-"] and takes != "pair":
        return (line.rstrip("\n") for line in sys.stdin)
    for text in texts:
        if text == "-":
            raise TextError("- must be the only argument, and pairs are not read from lines")
        if Path(text[:1000]).suffix.lower() in FILES and len(text) < 1000 and os.path.isfile(text):
            raise TextError(f"arguments are texts, but {text} is a file: use --file {text}")
    if takes != "pair":
        return texts
    if len(texts) % 2:
        raise TextError(f"this bundle takes pairs, so an even number of texts, but got {len(texts)}")
    return list(zip(texts[::2], texts[1::2], strict=True))


def plain_input(source: Any, most: int = 100) -> str:
    """Return an input in one line for people."""
    if not source:
        return repr(source)
    joined = (
        " | ".join(source) if isinstance(source, list) and all(isinstance(part, str) for part in source) else str(source)
    )
    return shortened(" ".join(joined.split()), most)


if __name__ == "__main__":
    sys.exit(exit_code(main))
