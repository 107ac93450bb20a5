"""Entities in tagged words, by the rules of conlleval and of seqeval's default mode; plain numpy, a whole split at once.

A tag is `O` (outside), or a letter and a type, such as `B-PER`: `B` begins an entity, `I` is inside, `E` ends one, `S` is
one alone; this reads IOB1, IOB2, IOE and IOBES alike. An entity ends after E or S, before B, S or O, and where the type
changes; any other tag than O begins one where none is open. `L` and `U` of BILOU are read as E and S. Where tags have no
such letters (`DATE`, `NOUN`), each run of equal tags is an entity, as if each were `I-DATE`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autoft.tasks.numeric import quotient

if TYPE_CHECKING:
    from numpy.typing import NDArray

OUTSIDE = "O"
NAMELESS = "_"  # seqeval's type of a bare `B` or `I-`
_LETTERS = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}
_PREFIXED = re.compile(r"[BIESLU](-.*)?", re.DOTALL)
_O, _B, _I, _E, _S = range(5)
_CODES = {"B": _B, "I": _I, "E": _E, "S": _S}


@dataclass(frozen=True)
class Scheme:
    """How a set of tags is read.

    Attributes:
        letters: Of each tag: 0 outside, 1 begin, 2 inside, 3 end, 4 single, `(K,)`.
        types: Of each tag, the place of its type in `names`, -1 for outside, `(K,)`.
        names: The entity types, in order of their first tags.
        prefixed: Whether tags have letters; else each tag but `O` is a type.
    """

    letters: NDArray[np.int64]
    types: NDArray[np.int64]
    names: tuple[str, ...]
    prefixed: bool


@dataclass(frozen=True)
class Spans:
    """Entities of a split, ascending.

    Attributes:
        starts: First word, counted over all texts, `(E,)`.
        ends: Behind the last word, `(E,)`.
        types: The type's place in the scheme's names, `(E,)`.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    types: NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """Entities of each type.

    Attributes:
        true: In the truth, `(Y,)`.
        predicted: In the prediction, `(Y,)`.
        hits: In both, with the same words and type, `(Y,)`.
    """

    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    hits: NDArray[np.int64]

    def scores(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return precision, recall and F1 of each type, 0 where there is nothing to divide by."""
        return (
            quotient(self.hits, self.predicted),
            quotient(self.hits, self.true),
            quotient(2 * self.hits, self.true + self.predicted),
        )

    def micro(self) -> tuple[float, float, float]:
        """Return precision, recall and F1 of all entities together."""
        hits, predicted, true = self.hits.sum(), self.predicted.sum(), self.true.sum()
        return float(quotient(hits, predicted)), float(quotient(hits, true)), float(quotient(2 * hits, true + predicted))

    def macro_f1(self) -> float:
        """Return the mean F1 of the types that occur in truth or prediction, 0 where there are none (as seqeval)."""
        occurring = (self.true > 0) | (self.predicted > 0)
        return float(self.scores()[2][occurring].mean()) if occurring.any() else 0.0


def is_prefixed(tags: Sequence[str]) -> bool:
    """Return whether every tag but `O` has a letter for its place in an entity.

    Example:
        >>> is_prefixed(["O", "B-PER", "I-PER"]), is_prefixed(["NOUN", "S-BAR"])
        (True, False)
    """
    others = [tag for tag in tags if tag != OUTSIDE]
    return bool(others) and all(_PREFIXED.fullmatch(tag) for tag in others)


def split_tag(tag: str) -> tuple[str, str]:
    """Return letter and type of a tag that has a letter.

    Example:
        >>> split_tag("B-PER"), split_tag("I")
        (('B', 'PER'), ('I', '_'))
    """
    return tag[0], tag[2:] or NAMELESS


def read_scheme(tags: Sequence[str]) -> Scheme:
    """Find out how to read tags; all of them must be given, as one without a letter decides for all."""
    prefixed = is_prefixed(tags)
    names: dict[str, int] = {}
    letters, types = [], []
    for tag in tags:
        if tag == OUTSIDE:
            letters.append(_O)
            types.append(-1)
            continue
        letter, name = split_tag(tag) if prefixed else ("I", tag)
        letters.append(_CODES[_LETTERS[letter]])
        types.append(names.setdefault(name, len(names)))
    return Scheme(np.array(letters, dtype=np.int64), np.array(types, dtype=np.int64), tuple(names), prefixed)


def find_spans(tags: NDArray[np.int64], offsets: NDArray[np.int64], scheme: Scheme) -> Spans:
    """Find the entities of texts that lie one after another.

    Args:
        tags: Each word's tag, as its place in the scheme's tags, `(M,)`.
        offsets: Where each text begins, and the last ends, `(N + 1,)`.
        scheme: How the tags are read.
    """
    if not len(tags):
        none = np.zeros(0, dtype=np.int64)
        return Spans(none, none, none)
    letters, types = scheme.letters[tags], scheme.types[tags]
    # the word before each one: outside where a text begins
    before, before_type = np.roll(letters, 1), np.roll(types, 1)
    first = offsets[:-1][np.diff(offsets) > 0]
    before[first] = _O
    closed = (before == _O) | (before == _E) | (before == _S)
    starts = (letters != _O) & (closed | (letters == _B) | (letters == _S) | (before_type != types))
    # an open entity goes on as long as no other starts, nothing is outside, and the text has not ended
    breaks = starts | (letters == _O)
    breaks[first] = True
    places = np.flatnonzero(breaks)
    ends = np.append(places[1:], len(letters))
    begins = starts[places]
    return Spans(places[begins], ends[begins], types[places[begins]])


def count(true: Spans, predicted: Spans, types: int) -> Counts:
    """Count entities and those that agree in both ends and in type, for each of so many types."""
    _, one, other = np.intersect1d(true.starts, predicted.starts, assume_unique=True, return_indices=True)
    same = (true.ends[one] == predicted.ends[other]) & (true.types[one] == predicted.types[other])

    def by_type(found: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(found, minlength=types).astype(np.int64)

    return Counts(by_type(true.types), by_type(predicted.types), by_type(true.types[one][same]))
