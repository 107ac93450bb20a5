"""Cells of a table as plain values: texts, lists of texts, images; numbers as they are written; None for what is missing."""

from __future__ import annotations

import ast
import json
import math
from typing import Any

import pyarrow as pa

from autoft.errors import DataError, first_line

# What people write where a number is missing; in a column of texts these are texts.
MISSING = frozenset({"", "NA", "N/A", "n/a", "na", "nan", "NaN", "NAN", "null", "NULL", "None", "<NA>", "-", "?"})

LARGEST_LITERAL = 1 << 20  # characters of a list as Python writes it: reading one takes hundreds of times its size


def read_cells(column: pa.Array, feature: Any) -> list[Any]:
    """Return a column's cells: `str`, `list[str]`, `bytes`, or None where nothing is there.

    Args:
        column: A part of the column.
        feature: Its type, as `datasets` has it; names of classes are taken from it.

    Raises:
        DataError: A value is outside of what Python can hold, such as a date in the year 100,000.
    """
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return list(column.to_pylist())
    names = names_of(feature)
    try:
        values = column.to_pylist()
    except (ValueError, OverflowError, ArithmeticError, pa.ArrowException) as error:
        raise DataError(
            f"every value must be one that Python knows, but one of the type {column.type} is not: {first_line(error)}",
            "leave out that column, or write it as text",
        ) from error
    return [_cell(value, names) for value in values]


def names_of(feature: Any) -> list[str] | None:
    """Return the names of a column's classes, also of those in lists."""
    if isinstance(feature, list) and feature:
        feature = feature[0]
    inner = getattr(feature, "feature", None)
    if inner is not None:
        return names_of(inner)
    names = getattr(feature, "names", None)
    return list(names) if names is not None else None


def _cell(value: Any, names: list[str] | None) -> Any:
    if value is None or isinstance(value, (str, bytes)):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if names is None:
            return str(value)
        return names[value] if 0 <= value < len(names) else None  # -1 is how a missing class is written
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, list):
        return [_cell(item, names) for item in value]
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:  # an image
        return value["bytes"] if value["bytes"] is not None else value["path"]
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict) else str(value)


def as_list(cell: Any) -> list[str] | None:
    """Return a cell's list: its own, or the one written in it as JSON or Python writes lists; None where it has none."""
    if isinstance(cell, list):
        return [str(item) if item is not None else "" for item in cell]
    if not isinstance(cell, str):
        return None
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        if len(text) > LARGEST_LITERAL:
            return None
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    if not isinstance(found, list) or any(isinstance(item, (list, dict)) for item in found):
        return None
    return ["" if item is None else _truth(item) for item in found]


def _truth(item: Any) -> str:
    return ("true" if item else "false") if isinstance(item, bool) else str(item)


def as_number(cell: Any) -> float | None:
    """Return a cell's number, or None where it has none, or none that is finite."""
    if not isinstance(cell, str):
        return None
    try:
        number = float(cell)
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(cell.strip().lower())
    return number if math.isfinite(number) else None


def is_missing(cell: Any) -> bool:
    """Return whether a cell holds nothing."""
    return cell is None or (isinstance(cell, str) and not cell.strip())
