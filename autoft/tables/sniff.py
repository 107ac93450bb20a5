"""How a text file of a table is written: its encoding, what separates its cells, and how they are quoted."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from autoft.errors import DataError

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
LARGEST_CELL = 1 << 26  # characters; beyond it a quote was surely left open
_HEAD = 1 << 18
LARGEST_ROW = LARGEST_CELL + (1 << 24)  # of a CSV row, which quotes may spread over many lines
MOST_COLUMNS = 10_000
UNPACKED = 1 << 30  # bytes that gzip may unpack to in any case; beyond them ...
RATIO = 200  # ... so many times the file's own; tables of one value over and over reach 100, a bomb 1000
_NO_TEXT = {
    b"PK\x03\x04": "an Excel workbook or another ZIP archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "compressed by gzip",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF document",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
}
_BLOCK = 1 << 23
_ROWS = 200
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
UNDECODED = re.compile("[\udc80-\udcff]")  # how `surrogateescape` keeps bytes that are not of the encoding


@dataclass(frozen=True)
class Dialect:
    """How the cells of a CSV file are set apart.

    Attributes:
        delimiter: The character between cells.
        quoted: Whether cells may be in double quotes; otherwise quotes are like any character.
        escaped: Whether a backslash makes the next character plain, rather than a quote doubling itself.
    """

    delimiter: str
    quoted: bool = True
    escaped: bool = False

    def reader(self, lines: Iterable[str]) -> csv._reader:  # type: ignore[name-defined]
        """Return a reader of rows."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
            escapechar="\\" if self.escaped else None,
            doublequote=not self.escaped,
            strict=True,
        )


def open_bytes(path: Path) -> BinaryIO:
    """Open a file, decompressed where its name ends in .gz."""
    return cast(BinaryIO, _Unpacked(path) if path.suffix.lower() == ".gz" else path.open("rb"))


class _Unpacked(gzip.GzipFile):
    """A gzip file that stops where it unpacks to far more than a table would: its rows would fill the disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path
        self._most = max(UNPACKED, RATIO * path.stat().st_size)

    def read(self, size: int | None = -1) -> bytes:
        return self._checked(super().read(size))

    def read1(self, size: int = -1) -> bytes:
        return self._checked(super().read1(size))

    def _checked(self, content: bytes) -> bytes:
        if self.tell() > self._most:
            raise DataError(
                f"a compressed table may unpack to {UNPACKED} bytes or {RATIO} times its size, but {self._path} has more",
                "unpack it yourself if you trust it",
            )
        return content


def open_text(path: Path, encoding: str) -> TextIO:
    """Open a file as text, its line ends as they are; bytes that are not of the encoding become lone surrogates."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors="surrogateescape", newline="")


class Lines(Iterator[str]):
    """A file's lines; one without an end must not fill memory, nor must what little compressed data unpacks to.

    Raises:
        DataError: A line is longer than `LARGEST_CELL`, or the lines of a row together are than `LARGEST_ROW`.
    """

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._number = self._row = 0

    def __next__(self) -> str:
        line = self._file.readline(LARGEST_CELL)
        if not line:
            raise StopIteration
        self._number += 1
        self._row += len(line)
        if len(line) == LARGEST_CELL and line[-1] not in "\r\n":
            raise DataError(
                f"a line may have {LARGEST_CELL} characters, but line {self._number} of {self._path} has more",
                "look at the file: its lines must end in line feeds",
            )
        if self._row > LARGEST_ROW:
            raise DataError(
                f"a row may have {LARGEST_ROW} characters, but the one that ends on line {self._number} of {self._path} or "
                "later has more",
                "look at the file: a quote may have been left open",
            )
        return line

    def end_row(self) -> None:
        """Note that the next line begins a row."""
        self._row = 0


def find_encoding(path: Path) -> str:
    """Return a file's encoding: by its first bytes; else UTF-8 if it is; else cp1252, or latin-1 where that is none either.

    A file of UTF-8 in which only few bytes are wrong is UTF-8, and the rows with them are damaged.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with open_bytes(path) as file:
            head = file.read(4096)
            for mark, name in _MARKS:
                if head.startswith(mark):
                    return name
            for mark, what in _NO_TEXT.items():
                if head.startswith(mark):
                    raise DataError(
                        f"{path} must be text, but is {what}",
                        "name it by what it holds (such as .csv.gz or .parquet), or export it as CSV",
                    )
            if head.count(0) > len(head) / 5:  # UTF-16 without a mark: every other byte of Latin text is zero
                return "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
            decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
            wrong = others = 0
            block = head
            possible = ["cp1252"]
            while block:
                text = decoder.decode(block)
                if not text.isascii():
                    wrong += len(UNDECODED.findall(text))
                    others += len(re.findall(r"[^\x00-\x7f\udc80-\udcff]", text))
                    if possible and any(byte in block for byte in b"\x81\x8d\x8f\x90\x9d"):
                        possible = []  # not in cp1252
                block = file.read(_BLOCK)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"a table must be readable, but {path} is not: {error}", "look at the file") from error
    if wrong * 20 <= others:
        return "utf-8"
    return possible[0] if possible else "latin-1"


def find_dialect(path: Path, encoding: str) -> Dialect:
    """Return how a CSV file is written: the way in which most of its first rows have as many cells as the first.

    Raises:
        DataError: The file is empty.
    """
    with open_text(path, encoding) as file:
        head = file.read(_HEAD)
    if not head.strip():
        raise DataError(f"a table must have a first line that names its columns, but {path} is empty", "look at the file")
    suffix = path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    delimiters = "\t" if suffix in (".tsv", ".tab") and "\t" in head else DELIMITERS
    dialects = [Dialect(delimiter) for delimiter in delimiters]
    dialects += [Dialect(delimiter, escaped=True) for delimiter in delimiters if '\\"' in head]
    dialects += [Dialect(delimiter, quoted=False) for delimiter in delimiters if '"' in head]
    scores = {dialect: _score(head, dialect, whole=len(head) < _HEAD) for dialect in dialects}
    best = max(dialects, key=lambda dialect: (scores[dialect], dialect.quoted, not dialect.escaped))
    return best if scores[best] > (0.0, 0) else Dialect(",")


def _score(head: str, dialect: Dialect, *, whole: bool) -> tuple[float, int]:
    """Return the share of the first rows that have as many cells as the first, and how many those are; more is better."""
    rows = []
    reader = dialect.reader(io.StringIO(head, newline=""))
    try:
        rows = list(islice(reader, _ROWS))
    except csv.Error:  # a quote where none may be: count what came before, and the row as wrong
        rows = [*rows, []]
        reader = dialect.reader(io.StringIO(head, newline=""))
        for _ in range(_ROWS):
            try:
                rows.append(next(reader))
            except csv.Error:
                rows.append([])
            except StopIteration:
                break
    else:
        rows = [row for row in rows if row]
        if not whole and len(rows) < _ROWS:
            rows = rows[:-1]  # cut off by the head's end
    width = len(next((row for row in rows if row), []))
    if width < 2:
        return 0.0, 0
    share = sum(len(row) == width for row in rows) / len(rows)
    return round(share, 1), width
