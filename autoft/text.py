"""Text preprocessing as data: one declaration tokenizes and pads for training and for the bundle.

The tokens come from the functions of the bundle's own script (`autoft/runtime/text.py`), so that a bundle sees what
validation saw. Everything is padded on the right: encoders mask it, and in decoders no token sees what comes after it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from autoft.errors import BackboneError
from autoft.ragged import Ragged
from autoft.runtime import text as script
from autoft.specs import IGNORED

LONGEST = 512  # tokens, unless a study asks for more: the cost of attention grows with the square
COVERED = 0.995  # share of the samples that a chosen length leaves uncut
SHORTEST = (
    128  # costs nothing where texts are shorter, as batches are only as long as their texts; and later ones may be longer
)


@dataclass(frozen=True)
class TextPreprocessing:
    """Tokenization and padding of texts; implements `autoft.specs.RaggedPreprocessing`.

    Attributes:
        tokenizer: Content of a `tokenizer.json`.
        config: Content of `tokenizer_config.json`, beside what is set here: names of the special tokens.
        pad_id: The token that fills shorter rows of a batch.
        names: The backbone's inputs in its order: some of `input_ids`, `attention_mask`, `token_type_ids`.
        limit: The most tokens that the backbone takes, or None where there is no limit.
        max_length: The most tokens of a sample, special ones included; None until `fit` chooses.
        pairs: Whether samples may be pairs, told apart by `token_type_ids`; `fit` finds out.
        words: Whether samples are words with a tag each.

    Raises:
        BackboneError: A value is out of its range, or the tokenizer cannot be read.
    """

    tokenizer: str = field(repr=False)
    config: Mapping[str, Any]
    pad_id: int
    names: tuple[str, ...]
    limit: int | None = None
    max_length: int | None = None
    pairs: bool = False
    words: bool = False

    def __post_init__(self) -> None:
        if self.max_length is not None and self.limit is not None and self.max_length > self.limit:
            raise BackboneError(
                f"`max_length` must be at most {self.limit} for this backbone, but got {self.max_length}",
                "leave it out to choose by the data",
            )
        try:
            script.check_preprocessing(self.to_dict())
            script.open_tokenizer(self.tokenizer, self.max_length)
        except ValueError as error:
            raise BackboneError(str(error)) from error

    @property
    def policies(self) -> tuple[str, ...]:
        """Augmentation policies: none but `none`."""
        return ("none",)

    @property
    def ragged(self) -> bool:
        """Texts differ in length."""
        return True

    @property
    def runtime(self) -> Path:
        """The bundle's script for texts."""
        return Path(script.__file__)

    def fit(self, sources: Sequence[script.TextSource]) -> TextPreprocessing:
        """Choose `max_length` by the length of some training samples, unless it is set, and see whether there are pairs.

        The length leaves 99.5 % of them whole, is a multiple of 8 and at least 128, and at most 512 or what the model takes.
        """
        pairs = any(isinstance(source, tuple) for source in sources) and "token_type_ids" in self.names
        if self.max_length is not None or not sources:
            return replace(self, pairs=pairs, max_length=self.max_length or min(LONGEST, self.limit or LONGEST))
        encodings = _open(self.tokenizer).encode_batch(list(sources), is_pretokenized=self.words)
        lengths = sorted(len(encoding.ids) for encoding in encodings)
        covering = lengths[math.ceil(COVERED * len(lengths)) - 1]
        wanted = max(SHORTEST, math.ceil(covering / 8) * 8)
        return replace(self, pairs=pairs, max_length=min(wanted, LONGEST, self.limit or LONGEST))

    def decode(self, source: script.TextSource, *, augmented: bool) -> Tensor:
        """Tokenize one sample: `(T, C)` int32, with the columns of `autoft.runtime.text.tokenize`."""
        return self.decode_many([source])[0].values

    def decode_many(self, sources: Sequence[script.TextSource]) -> tuple[Ragged, np.ndarray]:
        """Tokenize samples, on all of the tokenizer's threads; also return which of them were cut, `(N,)` bool."""
        items, cut = script.tokenize(_open(self.tokenizer), sources, self.to_dict())
        return Ragged.of([torch.from_numpy(item) for item in items]), np.array(cut, dtype=bool)

    def augment(self, item: Tensor, policy: str, rng: np.random.Generator) -> Tensor:
        """Return the sample as it is: texts have no policy but `none`."""
        return item

    def inputs(self, batch: Ragged) -> tuple[Tensor, ...]:
        """Return the inputs `(N, T)` int64 of decoded samples, on their device; equal to `autoft.runtime.text.pad`."""
        padded = batch.padded(0).long()
        mask = batch.mask()
        made = {
            "input_ids": padded[..., 0].masked_fill(~mask, self.pad_id),
            "attention_mask": mask.long(),
            "token_type_ids": padded[..., 1] if self.pairs else torch.zeros_like(padded[..., 0]),
        }
        return tuple(made[name] for name in self.names)

    def count_parts(self, batch: Ragged) -> np.ndarray:
        """Return how many words of each sample were not cut off, `(N,)`; zeros where samples are whole texts."""
        if not self.words:
            return np.zeros(len(batch), dtype=np.int64)
        begun = torch.cat([torch.zeros(1, dtype=torch.int64), (batch.values[:, -1] > 0).long().cumsum(0)])
        return begun[batch.offsets].diff().numpy()

    def align(self, batch: Ragged, targets: Ragged) -> Tensor:
        """Return the words' targets at the first sub-token of each word, `(N, T)` int64, `IGNORED` elsewhere.

        Args:
            batch: Decoded samples, with `words`.
            targets: For each sample, a number for each of its words; words that were cut off have no place.
        """
        words = batch.values[:, -1].long()
        begins = words > 0
        firsts = torch.repeat_interleave(targets.offsets[:-1], batch.lengths)  # of the sample that a token belongs to
        where = (firsts.to(words.device) + words - 1).clamp(min=0)
        aligned = torch.where(begins, targets.values[where], torch.full_like(words, IGNORED))
        return Ragged(aligned, batch.offsets).padded(IGNORED)

    def to_dict(self) -> dict[str, Any]:
        """Return the declaration that the bundle's script follows; `check_preprocessing` describes it."""
        return {
            "kind": "text",
            "inputs": list(self.names),
            "max_length": self.max_length or self.limit or LONGEST,
            "pad_id": self.pad_id,
            "pairs": self.pairs,
            "words": self.words,
            "tokenizer": _digest(self.tokenizer),
        }

    def files(self) -> dict[str, str]:
        """Return `tokenizer.json`, which cuts at `max_length`, and `tokenizer_config.json`, for any fast tokenizer's loader.

        transformers 5 writes the class `TokenizersBackend`, which older loaders and transformers.js do not know.
        """
        declared = self.to_dict()
        config = {
            **self.config,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": declared["max_length"],
            "model_input_names": declared["inputs"],
            "padding_side": "right",
            "truncation_side": "right",
        }
        tokenizer = Tokenizer.from_str(self.tokenizer)
        tokenizer.no_padding()
        tokenizer.enable_truncation(declared["max_length"], stride=0, strategy="longest_first", direction="right")
        return {
            "tokenizer.json": tokenizer.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        }


@lru_cache(maxsize=16)
def _open(content: str) -> Tokenizer:
    return script.open_tokenizer(content)


@lru_cache(maxsize=16)
def _digest(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8")).hexdigest()
