"""Divides samples into train, validation and test, and warns of what would make their scores lie.

Splits that the data declares are used; missing ones are cut from train, stratified and seeded.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, overload

import numpy as np

from autoft.errors import DataError
from autoft.specs import SPLITS, Sample, Split

_EXAMPLES = 3


@dataclass(frozen=True)
class Splits:
    """Which samples serve for what, as indices into the sequence that was divided.

    Attributes:
        train: To learn from.
        validation: To choose by.
        test: To score once, at the end; empty where none was declared or asked for.
        made: Splits that autoft cut from train; the others were declared by the data.
        warnings: What may make the scores lie, for people.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    made: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Group:
    """Samples of equal content; they stay together."""

    label: str
    members: tuple[int, ...]


class Subset(Sequence[Sample]):
    """Some samples of a sequence, made only when they are asked for.

    Args:
        samples: All.
        indices: Which of them, in their order.
    """

    def __init__(self, samples: Sequence[Sample], indices: Sequence[int]) -> None:
        self._samples = samples
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Subset: ...
    def __getitem__(self, index: int | slice) -> Sample | Subset:
        if isinstance(index, slice):
            return Subset(self._samples, self._indices[index])
        return self._samples[self._indices[index]]


def make_splits(
    samples: Sequence[Sample],
    *,
    validation_share: float,
    test_share: float,
    seed: int,
    stratify: Callable[[Sequence[Any]], Sequence[str]] | None = list,
) -> Splits:
    """Divide samples into train, validation and test.

    Declared splits are kept; undeclared samples count as train. Each missing split is cut from train: of every class
    about its share, at least one sample, and at least one is left. Copies (equal `content`) stay together, in the class
    that most of them carry. The result depends on the samples and the seed, not on the order of the samples.

    Args:
        samples: All samples; their ids must differ.
        validation_share: Share of train for a validation split, if none is declared; above 0.
        test_share: Share of train for a test split, if none is declared; 0 makes none.
        seed: Chooses which samples; not how many.
        stratify: Gives each target its class; None divides without regard to targets.

    Raises:
        DataError: A class has too few distinct samples to be divided, or is in validation or test but not in train; ids
            repeat; the shares leave nothing to train on.
    """
    _check_shares(validation_share, test_share)
    order = sorted(range(len(samples)), key=lambda index: samples[index].id)
    _check_ids(samples, order)
    parts: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for index in order:
        parts[samples[index].split or "train"].append(index)
    _check_classes(samples, parts)
    warnings = _warnings(samples, order, parts)
    shares: dict[Split, float] = {"validation": validation_share, "test": test_share}
    missing = {split: share for split, share in shares.items() if not parts[split] and share > 0}
    if missing:
        parts |= _cut(samples, parts["train"], missing, seed)
    train, validation, test = (tuple(sorted(parts[split])) for split in SPLITS)
    return Splits(train, validation, test, made=tuple(missing), warnings=warnings)


def _cut(samples: Sequence[Sample], pool: Sequence[int], shares: Mapping[Split, float], seed: int) -> dict[Split, list[int]]:
    """Return train, and the splits cut from it."""
    by_class: dict[str, list[_Group]] = defaultdict(list)
    for group in _groups(samples, pool):
        by_class[group.label].append(group)
    _check_enough({str(samples[index].target) for index in pool}, by_class, shares)
    parts: dict[Split, list[int]] = {"train": [], **{split: [] for split in shares}}
    for label, groups in by_class.items():
        # A generator for each class: another class more or less leaves this one's division as it is.
        digest = hashlib.blake2b(label.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        rng = np.random.default_rng([seed, int.from_bytes(digest, "big")])
        left = [groups[place] for place in rng.permutation(len(groups))]
        total = sum(len(group.members) for group in groups)
        for done, (split, share) in enumerate(shares.items(), start=1):
            # One group must be left for train, and for each split still to be made.
            at_most = len(left) - 1 - (len(shares) - done)
            taken, left = _take(left, wanted=max(1, round(share * total)), at_most=at_most)
            parts[split].extend(index for group in taken for index in group.members)
        parts["train"].extend(index for group in left for index in group.members)
    return parts


def _take(groups: Sequence[_Group], *, wanted: int, at_most: int) -> tuple[list[_Group], list[_Group]]:
    """Return the first groups that fit into the wanted number of samples, the smallest where none fits; and the rest."""
    taken: list[_Group] = []
    left: list[_Group] = []
    count = 0
    for group in groups:
        if len(taken) < at_most and count + len(group.members) <= wanted:
            taken.append(group)
            count += len(group.members)
        else:
            left.append(group)
    if not taken:
        smallest = min(range(len(left)), key=lambda place: len(left[place].members))
        taken.append(left.pop(smallest))
    return taken, left


def _groups(samples: Sequence[Sample], indices: Iterable[int]) -> list[_Group]:
    """Return the groups of equal content, in the order of their first samples."""
    by_content: dict[str, list[int]] = defaultdict(list)
    for index in indices:
        by_content[samples[index].content].append(index)
    groups = []
    for members in by_content.values():
        counts = Counter(str(samples[index].target) for index in members)
        # The commonest label; of equals, the first by name.
        label = min(counts, key=lambda name: (-counts[name], name))
        groups.append(_Group(label, tuple(members)))
    return groups


# --- checks -----------------------------------------------------------------------------------------


def _check_shares(validation_share: float, test_share: float) -> None:
    if not (0 < validation_share < 1 and 0 <= test_share < 1 and validation_share + test_share < 1):
        raise DataError(
            "the validation share must be above 0, the test share at least 0, and both together below 1, "
            f"but got {validation_share} and {test_share}",
            hint="0.15 for each is a good start",
        )


def _check_ids(samples: Sequence[Sample], order: Sequence[int]) -> None:
    for first, second in pairwise(order):
        if samples[first].id == samples[second].id:
            raise DataError(f"sample ids must differ, but {samples[first].id!r} occurs twice", hint="name each once")


def _check_classes(samples: Sequence[Sample], parts: Mapping[Split, Sequence[int]]) -> None:
    known = {str(samples[index].target) for index in parts["train"]}
    if not known:
        raise DataError("there must be samples to train on, but train is empty", hint="add images to train")
    for split in SPLITS[1:]:
        strange = Counter(label for index in parts[split] if (label := str(samples[index].target)) not in known)
        if strange:
            listed = _list([f"{label!r} ({count})" for label, count in sorted(strange.items())])
            raise DataError(
                f"every class in {split} must also be in train, but train has no samples of {listed}",
                hint=f"add samples of it to train, or remove it from {split}; check the spelling of class names",
            )


def _check_enough(labels: set[str], by_class: Mapping[str, Sequence[_Group]], shares: Mapping[Split, float]) -> None:
    needed = 1 + len(shares)
    few = []
    for label in sorted(labels):
        groups = by_class.get(label, ())
        if len(groups) < needed:
            few.append(f"{label!r} ({len(groups)} distinct of {sum(len(group.members) for group in groups)})")
    if few:
        raise DataError(
            f"a class needs at least {needed} distinct samples to be divided into train and {' and '.join(shares)}, "
            f"but too few are in {_list(few)}",
            hint="add samples of it, remove the class, or declare the splits yourself (train/, val/ and test/ folders)",
        )


# --- warnings ---------------------------------------------------------------------------------------


def _warnings(samples: Sequence[Sample], order: Sequence[int], parts: Mapping[Split, Sequence[int]]) -> tuple[str, ...]:
    split_of = {index: split for split, indices in parts.items() for index in indices}
    by_content: dict[str, list[int]] = defaultdict(list)
    for index in order:
        by_content[samples[index].content].append(index)

    def differing(value: Callable[[int], str]) -> list[str]:
        found = []
        for members in by_content.values():
            # The first sample of each value, so that the example shows the clash.
            firsts = {value(index): index for index in reversed(members)}
            if len(firsts) > 1:
                found.append(
                    " = ".join(samples[index].id for index in sorted(firsts.values(), key=lambda index: samples[index].id))
                )
        return found

    warnings = []
    across = differing(lambda index: split_of[index])
    if across:
        warnings.append(
            f"{_count(across)} in more than one split, which makes scores too good: {_list(across)}. "
            "hint: remove the copies from train"
        )
    clashing = differing(lambda index: str(samples[index].target))
    if clashing:
        warnings.append(
            f"{_count(clashing)} under more than one label: {_list(clashing)}. hint: keep the right label, remove the rest"
        )
    return tuple(warnings)


def _count(contents: Sequence[str]) -> str:
    return "1 content is" if len(contents) == 1 else f"{len(contents)} contents are"


def _list(entries: Sequence[str]) -> str:
    more = len(entries) - _EXAMPLES
    return ", ".join(entries[:_EXAMPLES]) + (f" and {more} more" if more > 0 else "")
