"""Divides samples into train, validation and test, and warns of what would make their scores lie.

Splits that the data declares are used; missing ones are cut from train, stratified and seeded.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from autoft.errors import DataError
from autoft.specs import SPLITS, Sample, Split

# What people call the splits, in names of folders and files and in columns.
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}
_EXAMPLES = 3
_UNDECLARED = -1


class Indices(Sequence[int]):
    """Ascending places in a sequence, eight bytes each; equal to any sequence of the same numbers."""

    def __init__(self, values: Iterable[int]) -> None:
        self._values = np.fromiter(values, np.int64) if not isinstance(values, np.ndarray) else values.astype(np.int64)
        self._values.flags.writeable = False

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Indices: ...
    def __getitem__(self, index: int | slice) -> int | Indices:
        return Indices(self._values[index]) if isinstance(index, slice) else int(self._values[index])

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self._values), 4096):  # a list of all would take five times the memory
            yield from self._values[start : start + 4096].tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return them as numpy does with any array."""
        return np.array(self._values, dtype=dtype) if copy else self._values.astype(dtype or np.int64, copy=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and bool(np.array_equal(self._values, other))

    def __hash__(self) -> int:
        return hash(self._values.tobytes())

    def __repr__(self) -> str:
        return f"Indices({self._values.tolist()})" if len(self) <= 10 else f"Indices({len(self)} of them)"


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

    train: Indices
    validation: Indices
    test: Indices
    made: tuple[str, ...]
    warnings: tuple[str, ...]


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
    about its share, at least one sample, and at least one is left. Copies (equal `content`) and samples of one group stay
    together, in the class that most of them carry. The result depends on the samples and the seed, not on the order of the
    samples, which are read once, from the first to the last.

    Where `stratify` gives each target itself, each class must be in train, and large enough to be divided. Other strata
    only help to divide evenly: one that is too small stays in train, with a warning. Where there are groups, classes too
    small are divided together, as whole groups leave little choice.

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
    table = _read(samples, stratify)
    declared = np.where(table.splits == _UNDECLARED, 0, table.splits)
    parts = {split: np.flatnonzero(declared == code) for code, split in enumerate(SPLITS)}
    if not len(parts["train"]):
        raise DataError("there must be samples to train on, but train is empty", hint="add samples to train")
    if table.strict:
        _check_classes(table, parts)
    warnings = _warnings(samples, table, declared)
    shares: dict[Split, float] = {"validation": validation_share, "test": test_share}
    missing = {split: share for split, share in shares.items() if not len(parts[split]) and share > 0}
    if missing:
        parts |= _cut(table, parts["train"], missing, seed, warnings)
        if table.strict and table.grouped:
            _check_classes(table, parts, grouped=True)
    train, validation, test = (Indices(np.sort(table.order[parts[split]])) for split in SPLITS)
    return Splits(train, validation, test, made=tuple(missing), warnings=tuple(warnings))


# --- reading ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """What the division needs of the samples, ordered by id; a few bytes each.

    Attributes:
        order: Place of each in the sequence, `(N,)`.
        contents: Number of its content, `(N,)`.
        groups: Number of its group, -1 for none, `(N,)`.
        splits: Place of its declared split in `SPLITS`, -1 for none, `(N,)`.
        labels: Number of its target, `(N,)`; all 0 where it is not stratified.
        classes: Place of its stratum in `names`, `(N,)`.
        names: The strata.
        strict: Whether the strata are the targets, which must all be learned.
    """

    order: np.ndarray
    contents: np.ndarray
    groups: np.ndarray
    splits: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    names: list[str]
    strict: bool

    @property
    def grouped(self) -> bool:
        """Whether any sample belongs to a group."""
        return bool((self.groups >= 0).any())


def _read(samples: Sequence[Sample], stratify: Callable[[Sequence[Any]], Sequence[str]] | None) -> _Table:
    count = len(samples)
    ids: list[str] = []
    targets: list[Any] = []
    contents, groups = np.empty(count, np.uint64), np.empty(count, np.int64)
    splits = np.empty(count, np.int8)
    group_codes: dict[str, int] = {}
    for place, sample in enumerate(samples):
        ids.append(sample.id)
        if stratify is not None:
            targets.append(sample.target)
        contents[place] = _hash(sample.content)
        groups[place] = -1 if sample.group is None else group_codes.setdefault(sample.group, len(group_codes))
        splits[place] = _UNDECLARED if sample.split is None else SPLITS.index(sample.split)
    order = np.fromiter(sorted(range(count), key=ids.__getitem__), np.int64, count)
    _check_ids(ids, order)
    del ids
    classes, labels = np.zeros(count, np.int64), np.zeros(count, np.int64)
    names, strict = [""], False
    if stratify is not None:
        strata = stratify(targets)
        # hashes: targets may be the tags of many words, and only whether two differ is asked
        labels = _number(np.fromiter((_hash(str(target)) for target in targets), np.uint64, count))
        known: dict[str, int] = {}
        classes = np.fromiter((known.setdefault(str(stratum), len(known)) for stratum in strata), np.int64, count)
        names = list(known)
        strict = all(stratum is target or stratum == target for stratum, target in zip(strata, targets, strict=True))
    return _Table(
        order, _number(contents[order]), groups[order], splits[order], labels[order], classes[order], names, strict
    )


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _number(values: np.ndarray) -> np.ndarray:
    """Return the values as numbers from 0, in the order of their first places."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    numbered: np.ndarray = rank[inverse]
    return numbered


# --- cutting ----------------------------------------------------------------------------------------


def _cut(
    table: _Table, pool: np.ndarray, shares: Mapping[Split, float], seed: int, warnings: list[str]
) -> dict[Split, np.ndarray]:
    """Return train, and the splits cut from it."""
    units = _units(table.contents[pool], table.groups[pool])
    sizes = np.bincount(units)
    classes = _class_of_units(units, table.classes[pool], table.names)
    needed = 1 + len(shares)
    strata = {name: np.flatnonzero(classes == code) for code, name in enumerate(table.names)}
    present = np.bincount(table.classes[pool], minlength=len(table.names)) > 0
    small = [name for code, name in enumerate(table.names) if present[code] and len(strata[name]) < needed]
    if small and table.strict and not table.grouped:
        raise _too_few(small, strata, sizes, shares)
    kept = np.zeros(0, np.int64)  # units that stay in train
    if small and len(strata) > 1 and not table.grouped:
        kept = np.concatenate([strata.pop(name) for name in small])
        warnings.append(
            f"{len(small)} rare kinds of targets, {_list([repr(name) for name in sorted(small)])}, have too few distinct "
            f"samples for {' and '.join(shares)}, and stay in train. hint: add samples of them, or declare the splits"
        )
    elif small and table.grouped:
        strata[""] = np.sort(np.concatenate([strata.pop(name) for name in small]))
        if len(strata[""]) < needed:  # still too few: one stratum for all
            strata = {"": np.arange(len(sizes))}
    chosen: dict[Split, list[np.ndarray]] = {"train": [kept], **{split: [] for split in shares}}
    for label, members in strata.items():
        if len(members):
            _cut_stratum(label, members, sizes, shares, seed, chosen, table.grouped)
    split_of = np.zeros(len(sizes), np.int64)
    for code, split in enumerate(SPLITS):
        for found in chosen.get(split, []):
            split_of[found] = code
    result = {split: pool[split_of[units] == SPLITS.index(split)] for split in chosen}
    empty = [split for split, found in result.items() if not len(found)]
    if empty:
        raise _too_few([name for name in table.names if name in small], {}, sizes, shares)
    return result


def _cut_stratum(
    label: str,
    members: np.ndarray,
    sizes: np.ndarray,
    shares: Mapping[Split, float],
    seed: int,
    chosen: Mapping[Split, list[np.ndarray]],
    grouped: bool,
) -> None:
    """Divide the units of one class, at least one for each split, and add them to those chosen."""
    if len(members) < 1 + len(shares):
        kind = "groups" if grouped else "distinct samples"
        raise DataError(
            f"there must be at least {1 + len(shares)} {kind} to be divided into train and {' and '.join(shares)}, "
            f"but there are {len(members)}",
            hint="add samples, or declare the splits yourself",
        )
    # A generator for each class: another class more or less leaves this one's division as it is.
    digest = hashlib.blake2b(label.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest, "big")])
    left = members[rng.permutation(len(members))]
    total = int(sizes[members].sum())
    for done, (split, share) in enumerate(shares.items(), start=1):
        # One unit must be left for train, and for each split still to be made.
        at_most = len(left) - 1 - (len(shares) - done)
        taken = _take(sizes[left], wanted=max(1, round(share * total)), at_most=at_most)
        chosen[split].append(left[taken])
        left = left[~taken]
    chosen["train"].append(left)


def _take(sizes: np.ndarray, *, wanted: int, at_most: int) -> np.ndarray:
    """Return which units are taken `(N,)`: the first that fit into the wanted number, the smallest where none does."""
    taken = np.zeros(len(sizes), bool)
    count = number = 0
    for place, size in enumerate(sizes.tolist()):
        if number >= at_most or count >= wanted:
            break
        if count + size <= wanted:
            taken[place] = True
            count, number = count + size, number + 1
    if not number:
        taken[int(np.argmin(sizes))] = True
    return taken


def _units(contents: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the unit of each sample: samples of equal content or equal group, also by way of others, are one."""
    contents = _number(contents)
    held = np.flatnonzero(groups >= 0)
    if not len(held):
        return contents
    parents = list(range(int(contents.max()) + 1))

    def root(unit: int) -> int:
        while parents[unit] != unit:
            parents[unit] = parents[parents[unit]]  # halving the way keeps it short
            unit = parents[unit]
        return unit

    first: dict[int, int] = {}
    for content, group in zip(contents[held].tolist(), groups[held].tolist(), strict=True):
        one, other = root(first.setdefault(group, content)), root(content)
        parents[max(one, other)] = min(one, other)
    roots = np.fromiter((root(unit) for unit in range(len(parents))), np.int64, len(parents))
    return _number(roots[contents])


def _class_of_units(units: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the commonest class of each unit; of equals, the first by name."""
    pairs, counts = np.unique(units * len(names) + classes, return_counts=True)
    unit, code = np.divmod(pairs, len(names))
    rank = np.empty(len(names), np.int64)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    best = np.lexsort((rank[code], -counts, unit))
    _, first = np.unique(unit[best], return_index=True)
    chosen: np.ndarray = code[best][first]
    return chosen


# --- checks -----------------------------------------------------------------------------------------


def _check_shares(validation_share: float, test_share: float) -> None:
    if not (0 < validation_share < 1 and 0 <= test_share < 1 and validation_share + test_share < 1):
        raise DataError(
            "the validation share must be above 0, the test share at least 0, and both together below 1, "
            f"but got {validation_share} and {test_share}",
            hint="0.15 for each is a good start",
        )


def _check_ids(ids: Sequence[str], order: np.ndarray) -> None:
    before = None
    for place in order:
        if ids[place] == before:
            raise DataError(f"sample ids must differ, but {before!r} occurs twice", hint="name each once")
        before = ids[place]


def _check_classes(table: _Table, parts: Mapping[Split, np.ndarray], *, grouped: bool = False) -> None:
    known = set(np.unique(table.classes[parts["train"]]).tolist())
    for split in SPLITS[1:]:
        counts = Counter(table.classes[parts[split]].tolist())
        strange = {table.names[code]: count for code, count in counts.items() if code not in known}
        if strange:
            listed = _list([f"{label!r} ({count})" for label, count in sorted(strange.items())])
            if grouped:
                raise DataError(
                    f"every class must be in train, but all groups with samples of {listed} fell into {split}",
                    hint="choose another `data.split_seed`, declare the splits yourself, or divide without `data.group`",
                )
            raise DataError(
                f"every class in {split} must also be in train, but train has no samples of {listed}",
                hint=f"add samples of it to train, or remove it from {split}; check the spelling of class names",
            )


def _too_few(
    small: Sequence[str], strata: Mapping[str, np.ndarray], sizes: np.ndarray, shares: Mapping[Split, float]
) -> DataError:
    few = [
        f"{name!r} ({len(units)} distinct of {int(sizes[units].sum())})"
        if len(units)
        else f"{name!r} (all of its samples are copies of other classes')"
        for name in sorted(small)
        for units in [strata.get(name, np.zeros(0, np.int64))]
    ]
    if not strata:
        return DataError(
            f"there must be samples enough alike to be divided into train and {' and '.join(shares)}, "
            f"but {len(sizes)} distinct samples have too different targets",
            hint="add samples, or declare the splits yourself",
        )
    return DataError(
        f"a class needs at least {1 + len(shares)} distinct samples to be divided into train and {' and '.join(shares)}, "
        f"but too few are in {_list(few)}",
        hint="add samples of it, remove the class, or declare the splits yourself",
    )


# --- warnings ---------------------------------------------------------------------------------------


def _warnings(samples: Sequence[Sample], table: _Table, declared: np.ndarray) -> list[str]:
    warnings = []
    across, examples = _clashes(samples, table, table.contents, declared)
    if across:
        warnings.append(
            f"{_count(across, 'content')} in more than one split, which makes scores too good: {_list(examples, across)}. "
            "hint: remove the copies from train"
        )
    held = np.flatnonzero(table.groups >= 0)
    across, examples = _clashes(samples, table, table.groups[held], declared[held], held)
    if across:
        warnings.append(
            f"{_count(across, 'group')} in more than one of the declared splits, which makes scores too good: "
            f"{_list(examples, across)}. hint: put each group into one split, or let autoft divide"
        )
    clashing, examples = _clashes(samples, table, table.contents, table.labels)
    if clashing:
        warnings.append(
            f"{_count(clashing, 'content')} under more than one label: {_list(examples, clashing)}. "
            "hint: keep the right label, remove the rest"
        )
    return warnings


def _clashes(
    samples: Sequence[Sample], table: _Table, keys: np.ndarray, values: np.ndarray, rows: np.ndarray | None = None
) -> tuple[int, list[str]]:
    """Return how many keys have more than one value, and of a few the ids of the first sample of each value."""
    if not len(keys):
        return 0, []
    keys = _number(keys)
    width = int(values.max()) + 1
    pairs, first = np.unique(keys * width + values, return_index=True)
    counts = np.bincount(pairs // width)
    clashing = np.flatnonzero(counts > 1)
    examples = []
    for key in clashing[:_EXAMPLES]:
        places = np.sort(first[pairs // width == key])
        examples.append(" = ".join(samples[int(table.order[place if rows is None else rows[place]])].id for place in places))
    return len(clashing), examples


def _count(count: int, noun: str) -> str:
    return f"1 {noun} is" if count == 1 else f"{count} {noun}s are"


def _list(entries: Sequence[str], total: int | None = None) -> str:
    more = (len(entries) if total is None else total) - _EXAMPLES
    return ", ".join(entries[:_EXAMPLES]) + (f" and {more} more" if more > 0 else "")
