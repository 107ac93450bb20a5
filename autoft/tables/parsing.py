"""Files to rows: every cell of a text file is text, a list is JSON, and a row that cannot be read says why.

Types are found later, from all rows: one that guesses from the first ones makes 1 of the label 001, and nothing of "NA".
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from autoft.errors import DataError, first_line
from autoft.tables.sniff import (
    LARGEST_CELL,
    MOST_COLUMNS,
    UNDECODED,
    Dialect,
    Lines,
    find_dialect,
    find_encoding,
    open_text,
)
from autoft.tables.typed import ROWS, read_typed

LINE, FAULT = "__autoft_line__", "__autoft_fault__"  # further columns of text files
TOKENS, TAGS = "tokens", "tags"  # the columns of tagged words
_CHARACTERS = 1 << 22  # of a batch, about
LARGEST_JSON = 1 << 26  # characters of one value: 3 of them may be a list, which takes 64 bytes of memory
MOST_WORDS = 1 << 20  # of a sentence
_BROKEN = re.compile("[\x00\ud800-\udfff]")


@dataclass
class _Rows:
    """Gathers rows into Arrow tables of text columns."""

    names: Sequence[str]
    cells: list[Sequence[str | None]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    faults: list[str | None] = field(default_factory=list)
    size: int = 0

    def add(self, cells: Sequence[str | None], line: int) -> None:
        """Add a row; one with characters that text cannot have becomes a fault."""
        text = "".join([cell for cell in cells if cell])
        broken = _BROKEN.search(text)
        if broken is not None:
            self.fault(_broken(broken.group()), line)
            return
        self.cells.append(cells)
        self.lines.append(line)
        self.faults.append(None)
        self.size += len(text)

    def fault(self, reason: str, line: int) -> None:
        """Add a row that cannot be read."""
        self.cells.append([None] * len(self.names))
        self.lines.append(line)
        self.faults.append(f"line {line}: {reason}")

    @property
    def full(self) -> bool:
        """Whether it is time to write."""
        return len(self.cells) >= ROWS or self.size > _CHARACTERS

    def table(self) -> pa.Table:
        """Return the rows gathered, and begin anew."""
        columns = list(zip(*self.cells, strict=True)) if self.cells else [()] * len(self.names)
        arrays = [pa.array(column, pa.string()) for column in columns]
        arrays += [pa.array(self.lines, pa.int64()), pa.array(self.faults, pa.string())]
        self.cells, self.lines, self.faults, self.size = [], [], [], 0
        return pa.Table.from_arrays(arrays, names=[*self.names, LINE, FAULT])


def _broken(character: str) -> str:
    if character == "\x00":
        return "it has a NUL character, which no text has"
    if UNDECODED.match(character):
        return f"it has a byte, 0x{ord(character) - 0xDC00:02x}, that is not of the file's encoding"
    return "it has half a character (a lone surrogate)"


# --- CSV --------------------------------------------------------------------------------------------


@contextmanager
def _large_cells() -> Iterator[None]:
    before = csv.field_size_limit(LARGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


@dataclass(frozen=True)
class TextFormat:
    """How a text file is written.

    Attributes:
        kind: csv, jsonl, json or conll.
        encoding: Such as `utf-8`.
        columns: The names of its columns.
        dialect: Of CSV.
    """

    kind: str
    encoding: str
    columns: tuple[str, ...]
    dialect: Dialect | None = None


def examine(path: Path, kind: str) -> TextFormat:
    """Find out how a text file is written.

    Raises:
        DataError: It is empty, or its first line does not name columns.
    """
    encoding = find_encoding(path)
    if kind == "csv":
        with _large_cells():
            dialect = find_dialect(path, encoding)
            return TextFormat(kind, encoding, _header(path, encoding, dialect), dialect)
    if kind == "conll":
        return TextFormat(kind, encoding, (TOKENS, TAGS))
    kind = _json_kind(path, encoding, kind)
    names: dict[str, None] = {}
    reason = ""
    with open_text(path, encoding) as file:
        for row, line, fault in _objects(file, kind, path):
            if row is not None:
                names.update(dict.fromkeys(row))
                _check_keys(names, row, path, line)
            reason = reason or (f": {'line' if kind == 'jsonl' else 'row'} {line}: {fault}" if fault else "")
    if not names:
        raise DataError(f"a table must have rows with named values, but {path} has none{reason}", "look at the file")
    return TextFormat(kind, encoding, tuple(names))


def _check_keys(names: Mapping[str, None], row: Mapping[str, Any], path: Path, line: int) -> None:
    """Check the columns that rows of JSON name: each row that brings others would widen all."""
    if len(names) > MOST_COLUMNS:
        raise DataError(f"a table may have {MOST_COLUMNS} columns, but the rows of {path} name more", "leave some out")
    broken = next((match for name in row if (match := _BROKEN.search(name))), None)
    if broken is not None:
        raise DataError(
            f"names must be text, but in line {line} of {path} there is {broken.string[:60]!r}: {_broken(broken.group())}",
            "rename it",
        )


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    """Yield lines that are a row each."""
    lines = Lines(file, path)
    for line in lines:
        lines.end_row()
        yield line


def _json_kind(path: Path, encoding: str, kind: str) -> str:
    """Return how a JSON file is written, whatever its name says: as one value, or an object on each line."""
    with open_text(path, encoding) as file:
        head = file.read(1 << 12)
        if head.lstrip().startswith("["):
            return "json"
        file.seek(0)
        lines = _lines(file, path)
        first = next((line for line in lines if line.strip()), "") if kind == "json" else ""
        more = any(line.strip() for line in lines)
    try:
        return "jsonl" if kind == "json" and more and isinstance(_parse(first), dict) else kind
    except (ValueError, RecursionError):  # an object over several lines, or no JSON: reading it says which
        return kind


def _header(path: Path, encoding: str, dialect: Dialect) -> tuple[str, ...]:
    with open_text(path, encoding) as file:
        try:
            first: list[str] = next((row for row in dialect.reader(Lines(file, path)) if row), [])
        except csv.Error as error:
            raise DataError(
                f"the first line of {path} must name the columns, but cannot be read: {error}", "look at it"
            ) from error
    if len(first) > MOST_COLUMNS:
        raise DataError(
            f"a table may have {MOST_COLUMNS} columns, but {path} has {len(first)}", "leave out what is not needed"
        )
    names = [name.strip() for name in first]
    hint = "put a line before the first that names the columns, such as `text,label`"
    while len(names) > 1 and not names[-1]:
        names.pop()  # a delimiter at the line's end
    if names and not names[0]:
        names[0] = "row"  # pandas writes its row numbers so
    if not any(names) or names == ["row"]:
        raise DataError(f"the first line of {path} must name the columns, but it names none", hint)
    strange = next((name for name in names if not name or len(name) > 100 or "\n" in name or _is_number(name)), None)
    if strange is not None:
        raise DataError(f"the first line of {path} must name the columns, but one of them is {strange[:60]!r}", hint)
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"the columns of {path} must have different names, but {twice!r} occurs twice", "rename one")
    return tuple(names)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?", text) is not None


def _csv(path: Path, found: TextFormat) -> Iterator[pa.Table]:
    assert found.dialect is not None
    width = len(found.columns)
    rows = _Rows(found.columns)
    with _large_cells(), open_text(path, found.encoding) as file:
        lines = Lines(file, path)
        reader = found.dialect.reader(lines)
        begun = False
        while True:
            line = reader.line_num + 1
            lines.end_row()
            try:
                row = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                # one fault for each line that the row swallowed: a quote left open may hide many
                for lost in range(line, max(line, reader.line_num) + 1):
                    rows.fault(f"a quote is open from line {line} to {reader.line_num} ({error})", lost)
                    if rows.full:
                        yield rows.table()
                continue
            if not row:
                continue
            if not begun:  # the header
                begun = True
                continue
            if len(row) > width and not any(row[width:]):
                row = row[:width]
            if len(row) == width:
                rows.add(row, line)
            else:
                rows.fault(f"it has {_cells(len(row))}, but the first line names {width} columns", line)
            if rows.full:
                yield rows.table()
    yield rows.table()


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


# --- JSON -------------------------------------------------------------------------------------------


def _json(path: Path, found: TextFormat) -> Iterator[pa.Table]:
    rows = _Rows(found.columns)
    with open_text(path, found.encoding) as file:
        for row, line, fault in _objects(file, found.kind, path):
            if row is None:
                rows.fault(fault, line)
            else:
                rows.add([as_cell(row.get(name)) for name in found.columns], line)
            if rows.full:
                yield rows.table()
    yield rows.table()


def _parse(text: str) -> Any:
    # numbers stay as they are written; NaN is no value
    return json.loads(text, parse_int=str, parse_float=str, parse_constant=lambda name: None)


def _objects(file: TextIO, kind: str, path: Path) -> Iterator[tuple[dict[str, Any] | None, int, str]]:
    """Yield each row, its line (its number where the file is one JSON value), and why it cannot be read."""
    if kind == "json":
        for number, row in enumerate(_values(file, path), start=1):
            yield (row, number, "") if isinstance(row, dict) else (None, number, f"it is no object but {str(row)[:60]!r}")
        return
    for line, text in enumerate(_lines(file, path), start=1):
        if not text.strip():
            continue
        try:
            row = _parse(text)
        except (ValueError, RecursionError) as error:
            yield None, line, f"it is not JSON: {first_line(error)}"
            continue
        yield (row, line, "") if isinstance(row, dict) else (None, line, f"it is no object but {str(row)[:60]!r}")


def _values(file: TextIO, path: Path) -> Iterable[Any]:
    """Return the rows of a JSON file: an array of objects, or an object that holds one as `data`, or one of columns."""
    start = file.read(1 << 16)
    if start.lstrip().startswith("["):
        return _array(file, start, path)
    try:
        rest = file.read(LARGEST_JSON)
        if len(rest) == LARGEST_JSON:
            raise ValueError(f"one value may have {LARGEST_JSON} characters, and it has more")
        whole = _parse(start + rest)
    except (ValueError, RecursionError) as error:
        raise _not_json(path, error) from error
    if isinstance(whole, dict):
        lists = {name: value for name, value in whole.items() if isinstance(value, list)}
        rows = [value for value in lists.values() if value and all(isinstance(row, dict) for row in value)]
        if len(rows) == 1:
            return list(rows[0])
        # columns: lists, or objects by row as pandas writes them
        columns = {name: list(value.values()) if isinstance(value, dict) else value for name, value in whole.items()}
        if columns and all(isinstance(value, list) for value in columns.values()):
            if len({len(value) for value in columns.values()}) == 1:
                return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            sizes = ", ".join(f"{name} {len(value)}" for name, value in columns.items())
            raise DataError(f"the columns of {path} must be of one length, but have: {sizes}", "look at the file")
    raise DataError(
        f"a JSON table must be an array of objects, or an object of columns or of such an array, but {path} is none",
        "convert it to JSON lines: one object a line, in a file that ends in .jsonl",
    )


def _array(file: TextIO, text: str, path: Path) -> Iterator[Any]:
    """Yield the values of a JSON array as they are read, so that a large file never is in memory as a whole."""
    decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=lambda name: None)
    place = text.index("[") + 1
    while True:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        if place < len(text) and text[place] == "]":
            return
        try:
            value, end = decoder.raw_decode(text, place)
            if end == len(text):
                raise ValueError("a number may go on")
        except RecursionError as error:
            raise _not_json(path, error) from error
        except ValueError as error:
            more = file.read(max(1 << 20, len(text))) if len(text) < LARGEST_JSON else ""
            if not more:
                raise _not_json(path, error) from error
            text, place = text[place:] + more, 0
            continue
        yield value
        place = end


def _not_json(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} must be JSON, but is not: {first_line(error)}",
        "mend it",
    )


def as_cell(value: Any) -> str | None:
    """Return a JSON value as the text of a cell: texts and numbers as they are, lists and objects as JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False)


# --- tagged words -----------------------------------------------------------------------------------


def _conll(path: Path, found: TextFormat) -> Iterator[pa.Table]:
    rows = _Rows(found.columns)
    words: list[str] = []
    tags: list[str] = []
    begin, width, fault = 0, 0, ""

    def close() -> None:
        nonlocal words, tags, fault
        if fault:
            rows.fault(fault, begin)
        elif words:
            rows.add([json.dumps(words, ensure_ascii=False), json.dumps(tags, ensure_ascii=False)], begin)
        words, tags, fault = [], [], ""

    with open_text(path, found.encoding) as file:
        for line, text in enumerate(_lines(file, path), start=1):
            fields = text.rstrip("\r\n").split("\t") if "\t" in text else text.split()
            if not text.strip() or fields[0] == "-DOCSTART-":
                close()
                if rows.full:
                    yield rows.table()
                continue
            if text.startswith("# ") and len(fields) != (width or 2):
                continue  # a comment
            begin = begin if words or fault else line
            width = width or len(fields)
            if len(fields) != width or width < 2 or not fields[0].strip() or not fields[-1].strip():
                seen = "is 1 column" if len(fields) == 1 else f"are {len(fields)} columns"
                fault = fault or f"on line {line} there {seen} rather than {max(2, width)}: {text.strip()[:60]!r}"
            if len(words) == MOST_WORDS:
                raise DataError(
                    f"a sentence may have {MOST_WORDS} words, but the one on line {begin} of {path} has more",
                    "put an empty line behind every sentence",
                )
            words.append(fields[0].strip())
            tags.append(fields[-1].strip())
    close()
    yield rows.table()


# --- all files --------------------------------------------------------------------------------------


def read_tables(path: Path, kind: str, found: TextFormat | None) -> Iterator[pa.Table]:
    """Yield a file's rows as Arrow tables of at most a thousand."""
    if found is None:
        return read_typed(path, kind)
    return {"csv": _csv, "jsonl": _json, "json": _json, "conll": _conll}[kind](path, found)
