"""What is in each column, from one pass over all rows: texts, numbers or lists, how many differ, how many are missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from autoft.imagefiles import is_image
from autoft.tables.cells import MISSING, as_list, read_cells
from autoft.tables.parsing import FAULT, LINE
from autoft.tables.store import Store

KEPT = 5000  # different values of a column that are kept; beyond it there are "many"
_LOOKED_AT = 40  # cells of a column that are looked at one by one
_BINARY = frozenset({"0", "1", "0.0", "1.0", "true", "false"})


@dataclass
class Profile:
    """One column.

    Attributes:
        name: Its name.
        rows: Cells seen.
        missing: Cells with nothing in them.
        characters: Of all texts.
        kind: `text`, `number`, `list`, `image`, `empty`, or `other` for what autoft has no use for.
        values: Its different values, as text; None where there are more than `KEPT`.
        whole: Of numbers: all are whole.
        low: Of numbers: the smallest.
        high: Of numbers: the largest.
        rising: Of numbers: each is larger than the one before, as row numbers are.
        examples: A few cells.
    """

    name: str
    rows: int = 0
    missing: int = 0
    characters: int = 0
    kind: str = "empty"
    values: set[str] | None = field(default_factory=set)
    whole: bool = True
    low: float = np.inf
    high: float = -np.inf
    rising: bool = True
    examples: list[Any] = field(default_factory=list)

    @property
    def length(self) -> float:
        """Mean length of its texts in characters."""
        return self.characters / max(1, self.rows - self.missing)

    @property
    def distinct(self) -> int:
        """How many values differ; one more than `KEPT` where there are more than that."""
        if self.values is None:
            return KEPT + 1
        return len(self.values - MISSING) if self.kind == "number" else len(self.values)

    @property
    def shows_paths(self) -> bool:
        """Whether its cells look like paths of images."""
        return sum(map(is_image, self.examples)) > len(self.examples) / 2

    @property
    def binary(self) -> bool:
        """Whether it holds nothing but zeros and ones, or true and false."""
        return self.values is not None and bool(self.values) and {value.lower() for value in self.values} <= _BINARY


def profile(stores: Sequence[Store]) -> dict[str, Profile]:
    """Return what is in each column of some tables together, by name, in the order of the first table's columns."""
    found: dict[str, Profile] = {}
    for store in stores:
        for _, batch in store.batches():
            for name in store.columns:
                if name not in (LINE, FAULT):
                    _add(
                        found.setdefault(name, Profile(name)), batch.column(name), store.features[name], store.source.folder
                    )
        for name in store.columns:  # of a table without rows
            if name not in (LINE, FAULT):
                found.setdefault(name, Profile(name))
    return found


def _add(seen: Profile, column: pa.Array, feature: Any, folder: Path) -> None:
    seen.rows += len(column)
    if len(seen.examples) < _LOOKED_AT:
        there = column.drop_null()
        if _is_text(there):
            there = there.filter(pc.not_equal(pc.utf8_trim_whitespace(there), ""))
        seen.examples.extend(read_cells(there.slice(0, _LOOKED_AT - len(seen.examples)), feature))
        seen.kind = _kind(column, feature, seen.examples, folder) if seen.kind == "empty" else seen.kind
    if seen.kind in ("image", "list", "other") or not len(column):
        seen.missing += column.null_count
        if seen.kind == "list" and pa.types.is_string(column.type):
            seen.missing += _count(pc.equal(column, ""))
        return
    if _is_text(column):
        column = pc.utf8_trim_whitespace(column)
        seen.characters += _count(pc.utf8_length(column))
        seen.missing += column.null_count + _count(pc.equal(column, ""))
        numbers = _numbers(column) if seen.kind == "number" else None
        if numbers is None and seen.kind == "number":
            seen.kind = "text"
    else:
        seen.missing += column.null_count
        numbers = _numbers(column) if seen.kind == "number" else None
    if numbers is not None and len(numbers):
        seen.whole = seen.whole and bool((numbers == np.floor(numbers)).all())
        seen.rising = seen.rising and bool((np.diff(numbers) > 0).all()) and numbers[0] > seen.high
        seen.low, seen.high = min(seen.low, float(numbers.min())), max(seen.high, float(numbers.max()))
    if seen.values is not None:
        seen.values.update(cell for cell in read_cells(pc.unique(column), feature) if cell not in (None, ""))
        if len(seen.values) > KEPT:
            seen.values = None


def _kind(column: pa.Array, feature: Any, examples: Sequence[Any], folder: Path) -> str:
    kind = column.type
    if type(feature).__name__ == "Image" or (pa.types.is_struct(kind) and {item.name for item in kind} == {"bytes", "path"}):
        return "image"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return "list"
    if not examples:
        return "empty"
    if _is_text(column):
        named = [example for example in examples if is_image(example)]
        if len(named) > len(examples) / 2 and any(os.path.isfile(folder / example) for example in named):
            return "image"
        if all(as_list(example) is not None for example in examples):
            return "list"
        return "number"  # until a cell shows that it is none
    if getattr(feature, "names", None) is not None or pa.types.is_boolean(kind):
        return "text"
    return "number" if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) else "other"


def _numbers(column: pa.Array) -> np.ndarray | None:
    """Return the finite numbers of a column, or None where a cell is neither a number nor missing."""
    if _is_text(column):
        column = pc.if_else(pc.is_in(column, pa.array(MISSING, column.type)), pa.scalar(None, column.type), column)
    try:
        numbers = pc.cast(column.drop_null(), pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return None
    finite: np.ndarray = numbers[np.isfinite(numbers)]
    return finite


def _is_text(column: pa.Array) -> bool:
    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _count(values: pa.Array) -> int:
    return int(pc.sum(values).as_py() or 0)
