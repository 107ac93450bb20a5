"""Which column of a table is what: as the study says, else by name, else by content; an error asks where that is unclear."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoft.errors import DataError, nearest
from autoft.splits import SPLIT_NAMES
from autoft.tables.profile import Profile

TEXTS = (
    "text", "sentence", "review", "content", "comment", "comment_text", "review_text", "review_body", "tweet", "message",
    "body", "document", "abstract", "utterance", "question", "query", "description", "headline", "title",
)  # fmt: skip
PAIRS = (
    ("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "answer"),
    ("question1", "question2"), ("query", "passage"), ("question", "sentence"), ("text1", "text2"), ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
)  # fmt: skip
LABELS = (
    "label", "labels", "class", "category", "target", "sentiment", "score", "rating", "stars", "tags", "ner_tags", "topic",
    "intent", "emotion", "similarity", "y",
)  # fmt: skip
IMAGES = ("image", "file_name", "filename", "image_path", "path", "file", "img")
WORDS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "labels", "pos_tags", "label")
SPLIT = "split"
_FEW = 100  # classes that a column found by its content may have
_ID = re.compile(r"(^|_|\b)(id|idx|index|uuid|guid|row)$|^unnamed", re.IGNORECASE)
_LABEL = re.compile(r"(^|_)(label|class|category)(_|$)")


@dataclass(frozen=True)
class Roles:
    """Which column is what.

    Attributes:
        text: Column of the texts, two of a pair; empty for images.
        image: Column of the images, or None.
        label: Columns of the targets.
        words: Whether texts are lists of words, and labels their tags.
        group: Column whose equal values stay together, or None.
        split: Column that names each row's split, or None.
        notes: What was chosen among several.
    """

    text: tuple[str, ...]
    image: str | None
    label: tuple[str, ...]
    words: bool
    group: str | None
    split: str | None
    notes: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Every column that is read."""
        others = (self.image, self.group, self.split)
        return tuple(dict.fromkeys([*self.text, *self.label, *(name for name in others if name)]))


def find_roles(profiles: Mapping[str, Profile], options: Mapping[str, Any], *, for_training: bool, declared: bool) -> Roles:
    """Decide which column is what.

    Args:
        profiles: The columns.
        options: `text`, `image`, `label`, `group`, `split` and `task` where the study says them.
        for_training: False where a finished model is scored: columns for dividing the data may then be missing.
        declared: Whether the tables' names already say their splits.

    Raises:
        DataError: A column that is not there, or it is unclear which is meant.
    """
    return _Search(profiles, options, for_training, declared).roles()


def _plain(name: str) -> str:
    return name.lower().strip().replace(" ", "_").replace("-", "_")


def as_names(value: Any) -> tuple[str, ...]:
    """Return an option's column or columns."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


class _Search:
    """The columns not yet given a part, and what was said about them."""

    def __init__(
        self, profiles: Mapping[str, Profile], options: Mapping[str, Any], for_training: bool, declared: bool
    ) -> None:
        self.profiles = profiles
        self.options = options
        self.for_training = for_training
        self.declared = declared
        self.by_name = {_plain(name): name for name in reversed(list(profiles))}
        self.notes: list[str] = []
        self.taken: set[str] = set()

    def roles(self) -> Roles:
        options = self.options
        text, label = as_names(options.get("text")), as_names(options.get("label"))
        image = options.get("image")
        group = self._for_dividing("group")
        split = self._for_dividing("split")
        self._check({"text": text, "image": as_names(image), "label": label})
        if len(text) > 2:
            raise DataError(
                f"`data.text` must be one column, or two of a pair, but got {', '.join(text)}", self._hint("text")
            )
        if text and image:
            raise DataError(
                f"samples are texts or images, but got `data.text` {text[0]!r} and `data.image` {image!r}", "leave one out"
            )
        if split is None and not self.declared:
            split = self._split()
        self.taken.update(name for name in (*text, *label, image, group, split) if name)
        if not text and image is None:
            image = self._image()
        words = False
        if image is None:
            text = text or self._words() or self._text()
            words = len(text) == 1 and self.profiles[text[0]].kind == "list" and self._is_words(text[0], label)
        self.taken.update(text)
        if image is not None:
            self.taken.add(image)
        label = label or (self._tags() if words else ()) or self._label()
        return Roles(tuple(text), image, label, words, group, split, tuple(self.notes))

    # --- named ---

    def _check(self, named: Mapping[str, Sequence[str]]) -> None:
        for option, names in named.items():
            for name in names:
                if name not in self.profiles:
                    near = nearest(name, self.profiles)
                    raise DataError(
                        f"`data.{option}` must be a column of the table, but there is no {name!r}; it has {self._columns()}",
                        f"did you mean {near[0]!r}?" if near else self._hint(option),
                    )
        twice = [name for option, names in named.items() for name in names]
        for name in twice:
            if twice.count(name) > 1:
                raise DataError(f"a column must have one part, but {name!r} is named twice", self._hint("label"))

    def _for_dividing(self, option: str) -> str | None:
        name = self.options.get(option)
        if name is None or (name not in self.profiles and not self.for_training):
            return None
        self._check({option: (name,)})
        return str(name)

    # --- found ---

    def _there(self) -> list[Profile]:
        return [
            seen for name, seen in self.profiles.items() if name not in self.taken and seen.kind not in ("empty", "other")
        ]

    def _free(self) -> list[Profile]:
        return [seen for seen in self._there() if not _is_id(seen)]

    def _named(self, names: Sequence[str], kinds: Sequence[str]) -> str | None:
        for known in names:
            name = self.by_name.get(known)
            if name is not None and name not in self.taken and self.profiles[name].kind in kinds:
                return name
        return None

    def _split(self) -> str | None:
        name = self.by_name.get(SPLIT)
        if name is None or name in self.taken:
            return None
        values = self.profiles[name].values or set()
        strange = sorted(value for value in values if value.strip().lower() not in SPLIT_NAMES)
        if strange:
            self.notes.append(f"{name!r} is not read as splits: {strange[0][:40]!r} in it is no name of one")
        return name if values and not strange else None

    def _image(self) -> str | None:
        found = [seen.name for seen in self._free() if seen.kind == "image"]
        if len(found) > 1:
            named = self._named(IMAGES, ("image",))
            if named is None:
                raise DataError(f"it is not clear which column has the images: {', '.join(found)}", self._hint("image"))
            return named
        return found[0] if found else None

    def _words(self) -> tuple[str, ...]:
        name = self._named(WORDS, ("list",))
        return (name,) if name is not None else ()

    def _is_words(self, text: str, label: Sequence[str]) -> bool:
        """Return whether lists are words with a tag each, rather than pairs."""
        task = self.options.get("task")
        if task is not None:
            return bool(task == "token-classification")
        return ((label[0] if label else self._named(TAGS, ("list",))) is not None and text.lower() in WORDS) or (
            bool(label) and self.profiles[label[0]].kind == "list" and any(len(cell) != 2 for cell in self._lists(text))
        )

    def _lists(self, name: str) -> list[list[str]]:
        from autoft.tables.cells import as_list

        return [found for cell in self.profiles[name].examples if (found := as_list(cell)) is not None]

    def _tags(self) -> tuple[str, ...]:
        name = self._named(TAGS, ("list",))
        return (name,) if name is not None else ()

    def _text(self) -> tuple[str, ...]:
        kinds = ("text", "number")
        for one, other in PAIRS:
            pair = self.by_name.get(one), self.by_name.get(other)
            if all(name is not None and name not in self.taken and self.profiles[name].kind in kinds for name in pair):
                first, second = pair
                assert first is not None
                assert second is not None
                return first, second
        name = self._named(TEXTS, ("text", "list"))
        if name is not None:
            return (name,)
        texts = [seen for seen in self._free() if seen.kind == "text" and seen.distinct > 1]
        texts = [seen for seen in texts if seen.name.lower() not in LABELS]
        texts.sort(key=lambda seen: -seen.length)
        if not texts:
            name = self._named(TEXTS, ("number",))
            if name is not None:
                return (name,)
            raise DataError(
                f"a table must have a column of texts or of images, but {self._none(TEXTS)}; it has {self._columns()}",
                self._hint("text") + "; or `--set data.image=NAME`, where paths are relative to the table",
            )
        if texts[0].shows_paths:
            raise DataError(
                f"paths of images must be relative to the table, but there is no {texts[0].examples[0]!r} beside it "
                f"(in the column {texts[0].name!r})",
                f"move the table or mend the paths; `--text {texts[0].name}` takes them as texts",
            )
        close = [seen for seen in texts[1:] if seen.length * 2 > texts[0].length and seen.distinct * 2 > texts[0].distinct]
        if close:
            listed = ", ".join(repr(seen.name) for seen in [texts[0], *close])
            raise DataError(
                f"it is not clear which column has the texts: {listed}; the table has {self._columns()}", self._hint("text")
            )
        return (texts[0].name,)

    def _label(self) -> tuple[str, ...]:
        task = self.options.get("task")
        name = self._named(LABELS, ("text", "number", "list"))
        if name is None:
            named = [seen.name for seen in self._free() if _LABEL.search(_plain(seen.name))]
            # the number of a class is an id, but of no row
            named = named or [seen.name for seen in self._there() if _LABEL.search(_plain(seen.name)) and not _counts(seen)]
            name = named[0] if len(named) == 1 else None
        if name is not None:
            return (name,)
        free = self._free()
        flags = [seen.name for seen in free if seen.binary]
        if len(flags) > 1 and task in (None, "multi-label"):
            return tuple(flags)
        few = [seen for seen in free if seen.kind == "text" and 1 < seen.distinct <= min(_FEW, max(2, seen.rows // 2))]
        few += [seen for seen in free if seen.kind == "number"]
        few += [seen for seen in free if seen.kind == "list"]
        if task in ("regression", "similarity"):
            few = [seen for seen in few if seen.kind == "number"]
        if not few:
            raise DataError(
                f"a table must have a column of labels, but {self._none(LABELS)}; it has {self._columns()}",
                self._hint("label"),
            )
        order = list(self.profiles)
        few.sort(key=lambda seen: order.index(seen.name))
        if len(few) > 1:
            others = ", ".join(repr(seen.name) for seen in few[:-1])
            self.notes.append(
                f"the last of several columns that could be the label is taken, {few[-1].name!r}; others are {others}"
            )
        return (few[-1].name,)

    # --- messages ---

    def _none(self, names: Sequence[str]) -> str:
        """Say that no column was found, or which one would have been if anything were in it."""
        name = self._named(names, ("empty",))
        return "none was found" if name is None else f"nothing is in {name!r}"

    def _columns(self) -> str:
        listed = [repr(name) for name in self.profiles]
        return ", ".join(listed[:30]) + (f" and {len(listed) - 30} more" if len(listed) > 30 else "")

    def _hint(self, option: str) -> str:
        flags = {
            "text": "say which: `--text NAME --label NAME`; name `--text` twice for pairs",
            "label": "say which: `--text NAME --label NAME`",
            "group": "say which: `--group NAME`",
        }
        return flags.get(option, f"say which: `--set data.{option}=NAME`")


def _is_id(seen: Profile) -> bool:
    """Return whether a column numbers or names the rows."""
    return _ID.search(seen.name) is not None or _counts(seen)


def _counts(seen: Profile) -> bool:
    """Return whether a column counts the rows."""
    return seen.kind == "number" and seen.whole and seen.rising and seen.rows > 3 and seen.name.lower() not in LABELS
