"""The toys for texts: a tiny encoder, its tokenizer made in code, and sentences that can be learned; `toy.py` offers them.

Nothing is downloaded: the vocabulary is letters, digits and a few dozen words and endings, so any text gives tokens.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import string
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from autoft.specs import Sample

if TYPE_CHECKING:
    from torch import nn

    from autoft.text import TextPreprocessing

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
WIDTH = 16  # of the features
LONGEST = 128  # tokens that the encoder has positions for
PAD, UNKNOWN, START, END = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
FILLERS = (
    "the", "a", "of", "and", "in", "to", "with", "for", "on", "it", "was", "had", "from", "there", "some", "then", "we",
    "they", "about", "again", "because", "before", "evening", "found", "little", "morning", "nothing", "people", "quite",
    "something", "table", "walking", "window", "yesterday",
)  # fmt: skip
TOPICS = (
    ("soup", "bread", "cheese", "kitchen", "salt", "dinner"),
    ("train", "station", "ticket", "travel", "harbour", "luggage"),
    ("violin", "concert", "melody", "drums", "singing", "rhythm"),
    ("garden", "roses", "spade", "seeds", "watering", "hedge"),
    ("goal", "referee", "match", "stadium", "running", "medal"),
    ("doctor", "fever", "pills", "nurse", "coughing", "bandage"),
)
LABELS = ("food", "travel", "music", "garden", "sport", "health")
NAMES = ("Ada", "Berta", "Chandra", "Dmitri", "Elena", "Farid", "Grace", "Hiro")
SURNAMES = ("Okafor", "Lindgren", "Moreau", "Silva", "Novak")
ENDINGS = ("ing", "ed", "er", "es", "en", "tion", "al", "ly")
SAME, OTHER = "same", "other"


# --- backbone ---------------------------------------------------------------------------------------


def preprocessing(max_length: int | None, *, words: bool) -> TextPreprocessing:
    """Return the declaration of the toy's tokenization.

    Args:
        max_length: The most tokens of a sample, or None to choose by the data.
        words: Whether samples are words with a tag each.
    """
    from autoft.text import TextPreprocessing

    names = {"pad_token": PAD, "unk_token": UNKNOWN, "cls_token": START, "sep_token": END}
    return TextPreprocessing(
        tokenizer=tokenizer_json(),
        config=names,
        pad_id=vocabulary().index(PAD),
        names=INPUTS,
        limit=LONGEST,
        max_length=max_length,
        words=words,
    )


@cache
def vocabulary() -> tuple[str, ...]:
    """Return the tokens, each at its number: special ones, marks, letters and digits, then words and endings."""
    characters = string.ascii_lowercase + string.digits
    pieces = (*characters, *(f"##{character}" for character in characters), *(f"##{ending}" for ending in ENDINGS))
    topics = (words[0] for words in TOPICS)  # the others are told by their pieces
    return (*SPECIAL, *".,:;!?'-", *pieces, *(word for word in FILLERS if len(word) > 1), *topics)


@cache
def tokenizer_json() -> str:
    """Return the content of a `tokenizer.json`: WordPiece over `vocabulary`, lowercase, `[CLS] A [SEP] B [SEP]`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    numbers = {token: number for number, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        pair=f"{START} $A {END} $B:1 {END}:1",
        special_tokens=[(START, numbers[START]), (END, numbers[END])],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return str(tokenizer.to_str())


def make_encoder(*, pooled: bool) -> nn.Module:
    """Make embeddings and two blocks of masked attention: tokens (N, T) to their mean (N, 16), or to all (N, T, 16)."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Embedding(len(vocabulary()), WIDTH)
            self.position = nn.Embedding(LONGEST, WIDTH)
            self.kind = nn.Embedding(2, WIDTH)
            self.norm = nn.LayerNorm(WIDTH)
            self.drop = nn.Dropout(0.05)

        def forward(self, ids: Tensor, kinds: Tensor) -> Tensor:
            positions = torch.arange(ids.shape[1], device=ids.device)
            out: Tensor = self.drop(self.norm(self.token(ids) + 0.3 * self.position(positions) + 0.3 * self.kind(kinds)))
            return out

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.Linear(WIDTH, 3 * WIDTH)
            self.mix = nn.Linear(WIDTH, WIDTH)
            self.norm1 = nn.LayerNorm(WIDTH)
            self.widen = nn.Linear(WIDTH, 2 * WIDTH)
            self.narrow = nn.Linear(2 * WIDTH, WIDTH)
            self.norm2 = nn.LayerNorm(WIDTH)
            self.drop = nn.Dropout(0.05)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            query, key, value = self.attend(x).unsqueeze(1).chunk(3, dim=-1)  # one head: (N, 1, T, C)
            seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
            x = self.norm1(x + self.drop(self.mix(seen.squeeze(1))))
            out: Tensor = self.norm2(x + self.drop(self.narrow(F.gelu(self.widen(x)))))
            return out

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = Embeddings()
            self.block1 = Block()
            self.block2 = Block()

        def get_input_embeddings(self) -> nn.Module:
            return self.embeddings.token

        def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
            mask = attention_mask.bool()
            x: Tensor = self.embeddings(input_ids, token_type_ids)
            x = self.block2(self.block1(x, mask), mask)
            if not pooled:
                return x
            weights = attention_mask[:, :, None].to(x.dtype)
            mean: Tensor = (x * weights).sum(dim=1) / weights.sum(dim=1)
            return mean

    return Encoder()


# --- data -------------------------------------------------------------------------------------------


def toy_texts(classes: int = 3, per_class: int = 12, seed: int = 0, *, pairs: bool = False) -> tuple[Sample, ...]:
    """Write a learnable data set: sentences of 2 to 40 words, one or two of which tell the topic that is the label.

    Args:
        classes: Number of topics, 2 to 6, labelled `food`, `travel` ...
        per_class: Texts of each class.
        seed: Equal seeds give equal texts.
        pairs: Make pairs of sentences instead, of two classes: `same` or `other`, by their topics.

    Returns:
        Samples class after class, no two alike.
    """
    if not 2 <= classes <= len(TOPICS):
        raise ValueError(f"`classes` must be between 2 and {len(TOPICS)}, but got {classes}")
    rng = random.Random(seed)
    samples: dict[str, Sample] = {}  # by content: short sentences would repeat
    for number, label in enumerate((SAME, OTHER) if pairs else LABELS[:classes]):
        wanted = len(samples) + per_class
        while len(samples) < wanted:
            source: str | tuple[str, str] = " ".join(write_words(number, rng))
            if pairs:
                first, second = rng.sample(range(classes), 2)
                source = (" ".join(write_words(first, rng)), " ".join(write_words(first if label == SAME else second, rng)))
            content = _digest(source)
            samples.setdefault(content, Sample(f"{label}/{len(samples) % per_class:03}", source, label, content))
    return tuple(samples.values())


def toy_tagged(count: int = 36, seed: int = 0) -> tuple[Sample, ...]:
    """Write sentences whose words are tagged: names as `B-PERSON`, `I-PERSON`, numbers as `B-NUMBER`, the rest as `O`.

    Returns:
        Samples with a list of words as their source, and a tag for each as their target; no two are alike.
    """
    samples: dict[str, Sample] = {}
    rng = random.Random(seed)
    while len(samples) < count:
        words = write_words(rng.randrange(len(TOPICS)), rng)
        tags = ["O"] * len(words)
        for kind in rng.sample(("PERSON", "PERSON", "NUMBER"), rng.randint(1, 3)):
            entity = [str(rng.randrange(1, 2000))]
            if kind == "PERSON":
                entity = [rng.choice(NAMES), rng.choice(SURNAMES)][: rng.randint(1, 2)]
            place = rng.choice([place for place, tag in enumerate([*tags, "O"]) if not tag.startswith("I-")])
            words[place:place] = entity
            tags[place:place] = [f"B-{kind}", f"I-{kind}"][: len(entity)]
        content = _digest(words)
        samples.setdefault(content, Sample(f"{len(samples):03}", words, tuple(tags), content))
    return tuple(samples.values())


def write_words(topic: int, rng: random.Random) -> list[str]:
    """Return the words of one sentence of a topic: one or two of its own among 1 to 38 fillers, mostly few."""
    words = [rng.choice(FILLERS) for _ in range(round(38 ** rng.random()))]
    for _ in range(rng.randint(1, 2)):
        words.insert(rng.randint(0, len(words)), rng.choice(TOPICS[topic]))
    return words


def write_toy_csv(
    path: Path, classes: int = 3, per_class: int = 12, seed: int = 0, *, pairs: bool = False, delimiter: str = ","
) -> Path:
    """Write `toy_texts` as a table with the columns `text` and `label`, or `sentence1`, `sentence2` and `label`."""
    samples = toy_texts(classes, per_class, seed, pairs=pairs)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerow(["sentence1", "sentence2", "label"] if pairs else ["text", "label"])
        table.writerows([*(sample.source if pairs else [sample.source]), sample.target] for sample in samples)
    return path


def write_toy_tagged(path: Path, count: int = 36, seed: int = 0) -> Path:
    """Write `toy_tagged` as JSON lines with the fields `tokens` and `tags`."""
    lines = ({"tokens": sample.source, "tags": list(sample.target)} for sample in toy_tagged(count, seed))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def _digest(source: str | Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(source).encode()).hexdigest()
