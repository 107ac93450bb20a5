"""Score taggers that know no language model on the same splits: a dictionary, and a regression on each word's surroundings.

python baselines.py
"""

from __future__ import annotations

import argparse
import json
import sys
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seqeval.metrics import classification_report, f1_score
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression

HERE = Path(__file__).parent
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of C, the inverse of the penalty
OUTSIDE = "O"


@dataclass(frozen=True)
class Split:
    """Words and tags of each text."""

    tokens: list[list[str]]
    tags: list[list[str]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("data", nargs="?", type=Path, default=HERE / "data" / "dates.jsonl", help="made by make_data.py")
    arguments = parser.parse_args()
    splits = read(arguments.data)
    found = dictionary(splits["train"], splits["test"].tokens)
    print(f"dictionary  test entity F1 {f1_score(splits['test'].tags, found):.4f}")
    found, setting, value = windows(splits)
    print(f"windows     test entity F1 {f1_score(splits['test'].tags, found):.4f}  (validation {value:.4f}, {setting})")
    print(classification_report(splits["test"].tags, found, digits=4))
    return 0


def read(path: Path) -> dict[str, Split]:
    """Return the splits of the data by name."""
    if not path.is_file():
        print(f"error: no data in {path}\nhint: python {HERE / 'make_data.py'}", file=sys.stderr)
        raise SystemExit(2)
    splits: dict[str, Split] = defaultdict(lambda: Split([], []))
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            splits[row["split"]].tokens.append(row["tokens"])
            splits[row["split"]].tags.append(row["tags"])
    return splits


def shape(word: str) -> str:
    """Return what kind of word it is, its length in digits included: `dddd` for 1949, `Xx` for May, `,` for a comma.

    Example:
        >>> [shape(word) for word in ("1949", "May", "mai", "5th", ",")]
        ['dddd', 'Xx', 'x', 'dx', ',']
    """
    if word.isdecimal():
        return "d" * len(word)
    kinds = []
    for character in word:
        if character.isdecimal():
            kind = "d"
        elif unicodedata.category(character)[0] in "LMN":
            kind = "X" if character.isupper() else "x"
        else:
            kind = character
        if kinds[-1:] != [kind]:
            kinds.append(kind)
    return "".join(kinds)


def dictionary(train: Split, texts: Sequence[Sequence[str]]) -> list[list[str]]:
    """Tag every word as it was tagged most often in train; a word that was not there as words of its shape were."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for words, tags in zip(train.tokens, train.tags, strict=True):
        for word, tag in zip(words, tags, strict=True):
            # numbers by their shape: that 17 was a day three times says nothing of 18
            for key in {shape(word)} if word.isdecimal() else {f"word {word.lower()}", shape(word)}:
                seen[key][tag] += 1

    def look_up(word: str) -> str:
        for key in (f"word {word.lower()}", shape(word)):
            if key in seen:
                return seen[key].most_common(1)[0][0]
        return OUTSIDE

    return [[look_up(word) for word in words] for words in texts]


def windows(splits: dict[str, Split]) -> tuple[list[list[str]], str, float]:
    """Tag with a logistic regression on each word and the three before and behind it; its C is chosen on validation.

    Returns:
        The tags of the test split, the setting, and its entity F1 on validation.
    """
    vectorizer = DictVectorizer()
    features = vectorizer.fit_transform([each for words in splits["train"].tokens for each in surroundings(words)])
    tags = [tag for row in splits["train"].tags for tag in row]
    best: tuple[float, float, LogisticRegression] | None = None
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=300)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a weak penalty converges late; if that harms, validation chooses another
            model.fit(features, tags)
        value = f1_score(splits["validation"].tags, _tag(model, vectorizer, splits["validation"].tokens))
        if best is None or value > best[0]:
            best = (value, strength, model)
    assert best is not None
    value, strength, model = best
    return _tag(model, vectorizer, splits["test"].tokens), f"C {strength:g}", value


def surroundings(words: Sequence[str]) -> list[dict[str, bool]]:
    """Return the features of each word: itself, its beginning, end and shape; the words and shapes around it."""
    found = []
    for place, word in enumerate(words):
        lower = word.lower()
        features = {f"starts {lower[:3]}": True, f"ends {lower[-3:]}": True}
        for offset in range(-3, 4):
            there = place + offset
            inside = 0 <= there < len(words)
            features[f"{offset} shape {shape(words[there]) if inside else 'none'}"] = True
            if inside and not words[there].isdecimal():
                features[f"{offset} word {words[there].lower()}"] = True
        found.append(features)
    return found


def _tag(model: LogisticRegression, vectorizer: DictVectorizer, texts: Sequence[Sequence[str]]) -> list[list[str]]:
    tags = iter(model.predict(vectorizer.transform([each for words in texts for each in surroundings(words)])).tolist())
    return [[next(tags) for _ in words] for words in texts]


if __name__ == "__main__":
    sys.exit(main())
