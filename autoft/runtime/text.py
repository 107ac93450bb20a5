"""Runs an autoft bundle for texts with onnxruntime, numpy and tokenizers alone.

autoft copies this file into every bundle as `predict.py`, and tokenizes with these same functions in training, so that a
bundle sees, token for token, what validation saw. It imports nothing of autoft or torch; Python 3.10 will do.

    python predict.py "What a film!" --json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

# a text, a pair of texts, or the words of a text
TextSource = str | tuple[str, str] | list[str]

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


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
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

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


def open_tokenizer(content: str, max_length: int | None) -> Tokenizer:
    """Make a tokenizer of the content of a `tokenizer.json`.

    It adds special tokens, cuts what is longer than `max_length` (None cuts nothing) at its end, of a pair the longer text
    first, and pads nothing: `pad` does.

    Raises:
        ValueError: The content is none of a tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library raises plain exceptions
        raise ValueError(f"the tokenizer cannot be read ({error})") from error
    tokenizer.no_padding()
    if max_length is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_length, stride=0, strategy="longest_first", direction="right")
    return tokenizer


def tokenize(
    tokenizer: Tokenizer, sources: Sequence[TextSource], preprocessing: Mapping[str, Any]
) -> tuple[list[NDArray[np.int32]], list[bool]]:
    """Turn texts into tokens.

    Args:
        tokenizer: From `open_tokenizer`.
        sources: Texts, pairs of texts as tuples, or lists of words.
        preprocessing: As `check_preprocessing` describes it.

    Returns:
        For each text `(T, C)`: the token's number; if `pairs`, which of the two texts it belongs to; if `words`, the
        number of the word that it begins, counted from 1, else 0. And for each text, whether it was cut.
    """
    encodings = tokenizer.encode_batch(list(sources), is_pretokenized=bool(preprocessing["words"]))
    items = []
    for encoding in encodings:
        columns = [encoding.ids]
        if preprocessing["pairs"]:
            columns.append(encoding.type_ids)
        if preprocessing["words"]:
            before: int | None = None
            starts = []
            for word in encoding.word_ids:
                starts.append(0 if word is None or word == before else word + 1)
                before = word
            columns.append(starts)
        item = np.array(columns, dtype=np.int32).T
        if len(item) == 0:  # an empty text under a tokenizer without special tokens: no model takes a row of nothing
            item = np.array([[preprocessing["pad_id"]] + [0] * (len(columns) - 1)], dtype=np.int32)
        items.append(item)
    return items, [bool(encoding.overflowing) for encoding in encodings]


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
