"""From the columns of labels to a task and targets, held as compact numbers."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoft.errors import DataError
from autoft.tables.cells import MISSING, as_list, as_number, is_missing
from autoft.tables.columns import Roles
from autoft.tables.profile import KEPT, Profile

MANY_NUMBERS = 20  # different whole numbers that may still be classes
MANY_SHARE = 0.1  # of the rows; more different whole numbers are quantities
SCALES = ("score", "similarity", "rating", "price", "target", "y")  # names of quantities, which need not differ so often
SIMILARITY = (-1.0, 10.0)  # the numbers of a pair within these are taken as similarity
REGRESSION, SIMILAR = "regression", "similarity"
MULTI_LABEL, TAGGING = "multi-label", "token-classification"


@dataclass(frozen=True)
class Plan:
    """What the labels are.

    Attributes:
        task: Name of the head that fits.
        kind: `label`, `labels`, `values` or `tags`.
        read: Turns a row's cells of labels into its target, None where missing. Raises `ValueError` for what cannot be.
        reason: Why, for people.
    """

    task: str
    kind: str
    read: Callable[[Sequence[Any]], Any]
    reason: str


def plan_targets(roles: Roles, profiles: Mapping[str, Profile], options: Mapping[str, Any]) -> Plan:
    """Decide what the labels are, from the columns' content and what the study says.

    Raises:
        DataError: They do not fit the task that was asked for.
    """
    task, delimiter = options.get("task"), options.get("delimiter")
    columns = [profiles[name] for name in roles.label]
    plain = "image-classification" if roles.image is not None else "text-classification"
    if roles.words:
        return Plan(TAGGING, "tags", _tags, "a tag for each word")
    if len(columns) > 1:
        return _several(columns, task)
    (column,) = columns
    if delimiter is not None:
        return Plan(MULTI_LABEL, "labels", _separated(delimiter), f"labels separated by {delimiter!r}")
    if column.kind == "list":
        if task in (REGRESSION, SIMILAR):
            return Plan(task, "values", _list_of_numbers, "a list of numbers in each row")
        return Plan(MULTI_LABEL, "labels", _list_of_labels, "a list of labels in each row")
    if task == MULTI_LABEL:
        raise DataError(
            f"multi-label needs lists of labels, but a cell of {column.name!r} is one label, such as {column.examples[:1]}",
            "say what separates them: --set 'data.delimiter=;'; or name several columns of zeros and ones by --label",
        )
    if task in (REGRESSION, SIMILAR):
        if all(as_number(example) is None for example in column.examples):
            raise DataError(
                f"{task} needs numbers, such as 3.5, but {column.name!r} holds {column.examples[:3]}",
                "name the column of the numbers by --label",
            )
        return Plan(task, "values", _number(column), "as asked for")
    if column.kind != "number":
        _check_labels(column, task)
        return Plan(plain, "label", _label, f"{_count(column)} different labels")
    if task is None and (not column.whole or _is_quantity(column)):
        similar = len(roles.text) == 2 and SIMILARITY[0] <= column.low and column.high <= SIMILARITY[1]
        kind = "numbers" if column.whole else "decimal numbers"
        reason = f"{_count(column)} different {kind} from {column.low:g} to {column.high:g}"
        return Plan(SIMILAR if similar else REGRESSION, "values", _number(column), reason)
    if not column.whole:
        raise DataError(
            f"classes must be texts or whole numbers for {task}, but {column.name!r} has {column.examples[:3]}",
            "set `task: regression`, or name another column by --label",
        )
    return Plan(plain, "label", _whole, f"{_count(column)} different whole numbers")


def _is_quantity(column: Profile) -> bool:
    if column.distinct <= MANY_NUMBERS:
        return False
    many = column.distinct > KEPT or column.distinct > MANY_SHARE * (column.rows - column.missing)
    return many or column.name.lower() in SCALES


def _several(columns: Sequence[Profile], task: str | None) -> Plan:
    names = tuple(column.name for column in columns)
    if task in (None, MULTI_LABEL) and all(column.binary for column in columns):
        return Plan(MULTI_LABEL, "labels", _flags(names), "a column of zeros and ones for each label")
    if task in (None, REGRESSION) and all(column.kind == "number" for column in columns):
        return Plan(REGRESSION, "values", _numbers, f"{len(names)} columns of numbers")
    wrong = next((column for column in columns if not column.binary), columns[0])
    raise DataError(
        f"several columns of labels must all hold zeros and ones, or numbers, but {wrong.name!r} holds {wrong.examples[:3]}"
        + (f" and the task is {task}" if task else ""),
        "name one column by --label",
    )


def _check_labels(column: Profile, task: str | None) -> None:
    if task is None and column.distinct > max(20, (column.rows - column.missing) // 2):
        raise DataError(
            f"labels must repeat, but {column.name!r} has {_count(column)} different ones in {column.rows} rows, such as "
            f"{str(column.examples[:1])[:80]}",
            "name the column of the labels by --label",
        )


def _count(column: Profile) -> str:
    return str(column.distinct) if column.distinct <= KEPT else f"more than {KEPT}"


# --- a row's target -----------------------------------------------------------------------------------


def _label(cells: Sequence[Any]) -> str | None:
    return None if is_missing(cells[0]) else str(cells[0]).strip()


def _whole(cells: Sequence[Any]) -> str | None:
    """Return a whole number as it is written, but 3.0 as 3."""
    cell = cells[0]
    if cell is None or cell.strip() in MISSING:
        return None
    text = cell.strip()
    if text.lstrip("+-").isdigit():
        return str(text)
    number = as_number(text)
    return None if number is None else str(int(number))


def _number(column: Profile) -> Callable[[Sequence[Any]], tuple[float, ...] | None]:
    def read(cells: Sequence[Any]) -> tuple[float, ...] | None:
        if cells[0] is None or str(cells[0]).strip() in MISSING:
            return None
        number = as_number(cells[0])
        if number is None:
            raise ValueError(f"{column.name!r} must be a finite number, but is {str(cells[0])[:40]!r}")
        return (number,)

    return read


def _numbers(cells: Sequence[Any]) -> tuple[float, ...] | None:
    found = [as_number(cell) for cell in cells]
    return None if None in found else tuple(number for number in found if number is not None)


def _list_of_numbers(cells: Sequence[Any]) -> tuple[float, ...] | None:
    found = as_list(cells[0])
    if found is None:
        return None
    numbers = [as_number(cell) for cell in found]
    if None in numbers or not numbers:
        raise ValueError(f"targets must be finite numbers, but are {str(cells[0])[:40]}")
    return tuple(number for number in numbers if number is not None)


def _list_of_labels(cells: Sequence[Any]) -> tuple[str, ...] | None:
    if is_missing(cells[0]):
        return None
    found = as_list(cells[0])
    if found is None:
        raise ValueError(f"labels must be a list, but are {str(cells[0])[:40]!r}")
    return tuple(dict.fromkeys(label.strip() for label in found if label.strip()))


def _separated(delimiter: str) -> Callable[[Sequence[Any]], tuple[str, ...] | None]:
    def read(cells: Sequence[Any]) -> tuple[str, ...] | None:
        cell = cells[0]
        if cell is None:
            return None
        # an empty cell has no label, which is an answer too
        parts = cell if isinstance(cell, list) else str(cell).split(delimiter)
        return tuple(dict.fromkeys(part.strip() for part in parts if part is not None and part.strip()))

    return read


def _flags(names: Sequence[str]) -> Callable[[Sequence[Any]], tuple[str, ...] | None]:
    def read(cells: Sequence[Any]) -> tuple[str, ...] | None:
        found = [as_number(cell) for cell in cells]
        if None in found:
            return None
        return tuple(name for name, flag in zip(names, found, strict=True) if flag)

    return read


def _tags(cells: Sequence[Any]) -> tuple[str, ...] | None:
    if is_missing(cells[0]):
        return None
    found = as_list(cells[0])
    if found is None:
        raise ValueError(f"tags must be a list, but are {str(cells[0])[:40]!r}")
    if not all(found):
        raise ValueError("a word has no tag")
    return tuple(found)


# --- all rows' targets --------------------------------------------------------------------------------


class TargetColumn:
    """Targets of many rows, a few bytes each.

    Args:
        kind: As in `Plan`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._numbers = array("d" if kind == "values" else "i")
        self._ends = array("q", [0])
        self._codes: dict[Any, int] = {}
        self._names: list[Any] = []

    def __len__(self) -> int:
        return len(self._ends) - 1 if self.kind in ("values", "tags") else len(self._numbers)

    def append(self, target: Any) -> None:
        """Add a row's target."""
        if self.kind == "values":
            self._numbers.extend(target)
        elif self.kind == "tags":
            self._numbers.extend(self._code(tag) for tag in target)
        else:
            self._numbers.append(self._code(target))
            return
        self._ends.append(len(self._numbers))

    def _code(self, name: Any) -> int:
        code = self._codes.setdefault(name, len(self._codes))
        if code == len(self._names):
            self._names.append(name)
        return code

    def __getitem__(self, row: int) -> Any:
        """Return a row's target, as samples have it."""
        if self.kind == "values":
            return tuple(self._numbers[self._ends[row] : self._ends[row + 1]])
        if self.kind == "tags":
            return tuple(self._names[code] for code in self._numbers[self._ends[row] : self._ends[row + 1]])
        return self._names[self._numbers[row]]

    @property
    def names(self) -> list[Any]:
        """The different labels, combinations of labels, or tags."""
        return self._names

    @property
    def codes(self) -> np.ndarray:
        """Of labels, the place of each row's in `names`, `(N,)`."""
        return np.asarray(self._numbers)

    @property
    def widths(self) -> np.ndarray:
        """Of values, how many each row has, `(N,)`."""
        return np.diff(np.asarray(self._ends))

    def parts(self) -> list[bytes]:
        """Return what makes these targets different from others, to be hashed."""
        return [self._numbers.tobytes(), self._ends.tobytes(), repr(self._names).encode("utf-8", "surrogatepass")]
