"""Samples of a table that are made as they are asked for; only a few bytes of each are held in memory."""

from __future__ import annotations

import copy
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from autoft.specs import SPLITS, Sample
from autoft.splits import Subset
from autoft.tables.cells import as_list, is_missing, read_cells
from autoft.tables.columns import Roles
from autoft.tables.store import Store
from autoft.tables.targets import TargetColumn

_BATCHES = 8  # batches whose texts are kept: some threads may read at different places


@dataclass(frozen=True)
class Kept:
    """What is held of each sample.

    Attributes:
        rows: Its row, counted over all tables, ascending, `(N,)`.
        contents: Hash of its content, `(N,)` uint64.
        splits: Place of its split in `SPLITS`, -1 for none, `(N,)`.
        groups: Place of its group in `group_names`, -1 for none, `(N,)`.
        group_names: The groups.
        targets: The targets.
    """

    rows: np.ndarray
    contents: np.ndarray
    splits: np.ndarray
    groups: np.ndarray
    group_names: Sequence[str]
    targets: TargetColumn


def sources_of(store: Store, batch: Any, roles: Roles) -> list[Any]:
    """Return what the preprocessing decodes of each row of a batch, or None where it is missing.

    A text is a string, a pair a tuple of two, words are a list; an image is a path or bytes.
    """
    names = [roles.image] if roles.image is not None else list(roles.text)
    columns = [read_cells(batch.column(name), store.features[name]) for name in names]
    if roles.image is not None:
        return [_image(cell, store.source.folder) for cell in columns[0]]
    if roles.words:
        return [as_list(cell) or None for cell in columns[0]]
    if len(columns) == 2:
        return [
            None if is_missing(one) or is_missing(other) else (_text(one), _text(other))
            for one, other in zip(*columns, strict=True)
        ]
    return [None if is_missing(cell) else _text_or_pair(cell) for cell in columns[0]]


def _image(cell: Any, folder: Path) -> Path | bytes | None:
    if isinstance(cell, bytes) or is_missing(cell):
        return cell or None
    return folder / str(cell).strip()


def _text(cell: Any) -> str:
    return cell if isinstance(cell, str) else str(cell)


def _text_or_pair(cell: Any) -> Any:
    """Return a text, or a pair where a cell is a list of two."""
    pair = as_list(cell) if isinstance(cell, list) or cell[:1] == "[" else None
    if pair is None or len(pair) != 2:
        return _text(cell) if not isinstance(cell, list) else " ".join(map(str, cell))
    return None if any(is_missing(part) for part in pair) else (pair[0], pair[1])


class TableSamples(Sequence[Sample]):
    """The samples of some tables, each read when it is asked for.

    Args:
        stores: The tables.
        roles: Which column is what.
        kept: What is held of each sample.
    """

    def __init__(self, stores: Sequence[Store], roles: Roles, kept: Kept) -> None:
        self._set(stores, roles, kept)

    def _set(self, stores: Sequence[Store], roles: Roles, kept: Kept) -> None:
        self._stores = stores
        self._roles = roles
        self._kept = kept
        self._starts = [0, *np.cumsum([len(store) for store in stores]).tolist()]
        self._cache: OrderedDict[tuple[int, int], list[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Subset: ...
    def __getitem__(self, index: int | slice) -> Sample | Subset:
        if isinstance(index, slice):
            return Subset(self, range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} samples, but number {index} was asked for")
        index = index + len(self) if index < 0 else index
        row = int(self._kept.rows[index])
        place = bisect_right(self._starts, row) - 1
        return self._sample(index, place, row - self._starts[place])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def _sample(self, index: int, place: int, row: int) -> Sample:
        kept, store = self._kept, self._stores[place]
        split, group = int(kept.splits[index]), int(kept.groups[index])
        return Sample(
            id=row_name(store, row),
            source=self._source(place, row),
            target=kept.targets[index],
            content=f"{int(kept.contents[index]):016x}",
            split=None if split < 0 else SPLITS[split],
            group=None if group < 0 else kept.group_names[group],
        )

    def _source(self, place: int, row: int) -> Any:
        store = self._stores[place]
        number = store.number_of(row)
        with self._lock:
            found = self._cache.get((place, number))
            if found is None:
                found = sources_of(store, store.batch(number), self._roles)
                self._cache[place, number] = found
                if len(self._cache) > _BATCHES:
                    self._cache.popitem(last=False)
            else:
                self._cache.move_to_end((place, number))
        return found[row - store.starts[number]]

    def __getstate__(self) -> Mapping[str, Any]:
        """Give another process what finds the rows on the disk; it makes a cache and a lock of its own."""
        return {"stores": [_without_dataset(store) for store in self._stores], "roles": self._roles, "kept": self._kept}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._set(state["stores"], state["roles"], state["kept"])


def _without_dataset(store: Store) -> Store:
    """Return a store without the data set that it was opened from: rows are read from its files."""
    light = copy.copy(store)
    light.source = replace(store.source, dataset=None)
    return light


def row_name(store: Store, row: int) -> str:
    """Return a row's id: its table and its number, the first below the header being 1."""
    return f"{store.source.name}:{row + 1}"
