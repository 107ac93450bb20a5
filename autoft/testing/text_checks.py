"""The rules of the conformance kit that only texts have: padding, truncation, tokens, and tagged words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from autoft.specs import IGNORED, Backbone
from autoft.testing.kit import (
    LONG,
    TOLERANCE,
    WORDS,
    CheckFailed,
    distance,
    fit_ragged,
    make_longest,
    make_sources,
    write_text,
)

PADDING_TOLERANCE = TOLERANCE / 10  # random weights attend weakly: what leaks from padding is little
STRANGE = ("", " \t\n", "naïve façade, 漢字かな交じり文", "🙂🙃 x\u200by", "a" * 300, "<b>[CLS] </s> &amp;</b>")


def check_padding(backbone: Backbone) -> None:
    """Check that a text alone has the features that it has beside a longer one, `sequence` features where it has tokens.

    Raises:
        CheckFailed: Names how far they move.
    """
    import torch

    sources = make_sources(backbone, len(WORDS))
    fitted = fit_ragged(backbone, sources)
    rows, _ = fitted.decode_many(sources)
    module = backbone.build().eval()
    with torch.inference_mode():
        together = module(*fitted.inputs(rows))
        for number, length in enumerate(rows.lengths.tolist()):
            alone = module(*fitted.inputs(rows[[number]]))[0]
            padded = together[number][:length] if backbone.features == "sequence" else together[number]
            apart = distance(padded, alone)
            if not apart <= PADDING_TOLERANCE:
                raise CheckFailed(
                    f"{backbone.name}: padding must not change a text's features, but those of {length} tokens move by "
                    f"{apart:.3g} beside a text of {int(rows.lengths.max())}",
                    "mask the padding in attention, mixing and pooling: `attention_mask` is 0 there",
                )


def check_truncation(backbone: Backbone) -> None:
    """Check that a text that is too long is cut to what the model takes, loses only its end, and is reported.

    Raises:
        CheckFailed: Too many tokens are left, special tokens are lost, the cut-off end matters, `decode_many` reports it
            wrongly, or the model cannot take the longest that is let through.
    """
    import torch

    name = backbone.name
    sources = make_sources(backbone, len(WORDS))
    fitted = fit_ragged(backbone, sources)
    limit = fitted.to_dict().get("max_length")
    whole = [_as_source(backbone, text) for text in ("cab", "dusk", "gym", "seven", "42")]
    long = [_as_source(backbone, write_text(count, seed=0)) for count in (LONG, LONG + 100)]
    if backbone.features == "pooled":
        long.append((write_text(200, seed=0), write_text(200, seed=1)))
    rows, cut = fitted.decode_many([*whole, *long])
    tokens = [rows.row(number)[:, 0].tolist() for number in range(len(rows))]
    lengths = [len(row) for row in tokens]
    if list(cut) != [False] * len(whole) + [True] * len(long):
        raise CheckFailed(
            f"{name}: `decode_many` must report which texts were cut, but says {list(map(bool, cut))} of {len(whole)} texts "
            f"of a word and {len(long)} far too long, which have {lengths} tokens",
            "its second value has a True for each text that lost something",
        )
    if isinstance(limit, int) and max(lengths) > limit:
        raise CheckFailed(
            f"{name}: a text must have at most `max_length` = {limit} tokens, but {max(lengths)} are left of a long one",
            "count the special tokens too",
        )
    first, second = tokens[len(whole) : len(whole) + 2]
    if first != second:
        raise CheckFailed(
            f"{name}: what is cut off must not matter, but two texts that differ only {LONG} words in have other tokens",
            "cut at the end of a text",
        )
    for what, step in (("begin", 1), ("end", -1)):
        special = _common_start([row[::step] for row in tokens[: len(whole)]])
        for row in tokens[len(whole) :]:
            if row[::step][: len(special)] != special:
                raise CheckFailed(
                    f"{name}: texts that are cut must {what} as whole ones do, with {special[::step]}, but one {what}s with "
                    f"{row[::step][: len(special)][::step]}",
                    "cut the text before the special tokens are added",
                )
    inputs = make_longest(backbone)
    with torch.inference_mode():
        try:
            finite = bool(torch.isfinite(backbone.build().eval()(*inputs)).all())
        except Exception as error:
            raise CheckFailed(
                f"{name}: the model must take as many tokens as its preprocessing lets through, {inputs[0].shape[1]}, but "
                f"fails: {error}",
                "lower the preprocessing's `limit`",
            ) from error
    if not finite:
        raise CheckFailed(f"{name}: features of a text of {inputs[0].shape[1]} tokens must be finite, but are not")


def check_decoding(backbone: Backbone) -> None:
    """Check that `decode` gives what `decode_many` gives, whatever the texts: int32 rows `(T, C)` of at least one token.

    Raises:
        CheckFailed: Names the text.
    """
    import torch

    sources = _with_strange(backbone)
    fitted = fit_ragged(backbone, sources)
    rows, cut = fitted.decode_many(sources)
    if len(rows) != len(sources) or cut.shape != (len(sources),):
        raise CheckFailed(
            f"{backbone.name}: `decode_many` must give a row and a flag for each of {len(sources)} texts, but gives "
            f"{len(rows)} rows and flags {cut.shape}"
        )
    for number, source in enumerate(sources):
        row = rows.row(number)
        if row.dtype != torch.int32 or row.dim() != 2 or not len(row):
            raise CheckFailed(
                f"{backbone.name}: a decoded text must be (T, C) int32 with T of at least 1, but {source!r} is "
                f"{tuple(row.shape)} {row.dtype}"
            )
        if not torch.equal(fitted.decode(source, augmented=False), row):
            raise CheckFailed(
                f"{backbone.name}: `decode` must give what `decode_many` gives, but does not for {source!r}",
                "let one call the other",
            )


def check_bundle_inputs(backbone: Backbone) -> None:
    """Check that the bundle's script, given the bundle's tokenizer, makes the inputs that training made.

    A script without `open_tokenizer`, `tokenize` and `pad`, as `autoft/runtime/text.py` has them, fails: only whole models
    could be compared, as the gate at the end of a search does.

    Raises:
        CheckFailed: Names the input that differs.
    """
    import numpy as np

    from autoft.export.script import load_script

    sources = _with_strange(backbone)
    fitted = fit_ragged(backbone, sources)
    declared = fitted.to_dict()
    if json.loads(json.dumps(declared)) != declared:
        raise CheckFailed(f"{backbone.name}: `to_dict` must be the same after a way through JSON, but is not: {declared}")
    script = load_script(fitted.runtime)
    missing = [name for name in ("open_tokenizer", "tokenize", "pad") if not hasattr(script, name)]
    files = fitted.files()
    if missing or "tokenizer.json" not in files:
        raise CheckFailed(
            f"{backbone.name}: the bundle of a text model must hold `tokenizer.json`, and its script `open_tokenizer`, "
            f"`tokenize` and `pad`, but lacks {', '.join(missing) or 'the file'}",
            "declare an `autoft.text.TextPreprocessing`",
        )
    tokenizer = script.open_tokenizer(files["tokenizer.json"], declared["max_length"])
    items, _ = script.tokenize(tokenizer, sources, declared)
    wanted = script.pad(items, declared)
    if tuple(wanted) != backbone.inputs:
        raise CheckFailed(
            f"{backbone.name}: the bundle's script must make the inputs {list(backbone.inputs)}, but makes {list(wanted)}",
            "`Backbone.inputs` and the preprocessing's `names` must be the same",
        )
    made = fitted.inputs(fitted.decode_many(sources)[0])
    for name, ours in zip(backbone.inputs, made, strict=True):
        if not np.array_equal(ours.numpy(), wanted[name]):
            raise CheckFailed(
                f"{backbone.name}: training and bundle must make the same {name}, but differ, as {tuple(ours.shape)} and "
                f"{wanted[name].shape}",
                "give one tokenizer to both, in `files` and in `decode_many`",
            )


def check_words(backbone: Backbone) -> None:
    """Check, for `sequence` features, that words are counted and that each word's target is at its first token.

    Raises:
        CheckFailed: Words are miscounted, or the targets of a text are not its words', in their order.
    """
    import torch

    from autoft.ragged import Ragged

    if backbone.features != "sequence":
        return
    sources = make_sources(backbone, len(WORDS))
    fitted = fit_ragged(backbone, sources)
    rows, cut = fitted.decode_many(sources)
    counts = fitted.count_parts(rows).tolist()
    targets = Ragged.of([torch.arange(len(words)) % 5 for words in sources])
    aligned = fitted.align(rows, targets)
    shape = (len(rows), int(rows.lengths.max()))
    if tuple(aligned.shape) != shape:
        raise CheckFailed(f"{backbone.name}: aligned targets must be {shape}, but are {tuple(aligned.shape)}")
    for number, words in enumerate(sources):
        if counts[number] > len(words) or (counts[number] < len(words) and not cut[number]):
            raise CheckFailed(
                f"{backbone.name}: `count_parts` must count the words that were not cut off, but finds {counts[number]} of "
                f"{len(words)}",
                "set `words=True` in the preprocessing of `sequence` features",
            )
        found = aligned[number][aligned[number] != IGNORED].tolist()
        if found != targets.row(number)[: counts[number]].tolist():
            raise CheckFailed(
                f"{backbone.name}: `align` must place one target a word, in their order, but {len(words)} words have "
                f"{found}",
                "place it at a word's first token, and `IGNORED` elsewhere",
            )


def _as_source(backbone: Backbone, text: str) -> Any:
    return text.split() if backbone.features == "sequence" else text


def _with_strange(backbone: Backbone) -> list[Any]:
    """Return generated texts, texts that trip tokenizers, and one that is too long."""
    strange = [_as_source(backbone, text) for text in (*STRANGE, write_text(LONG, seed=0))]
    return [*make_sources(backbone, len(WORDS)), *(source for source in strange if source != [])]


def _common_start(rows: Sequence[list[int]]) -> list[int]:
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))]
