"""Hostile tables and archives."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from hostile import Case, payload

FEW = ("--trials", 1, "--epochs", 1, "--set", "search.workers=0")
ROWS = [f"{'good fine nice' if number % 2 else 'bad poor sad'} {number},{number % 2}" for number in range(40)]
PLAIN = "text,label\n" + "\n".join(ROWS) + "\n"


def _table(content: str | bytes, name: str = "t.csv") -> Callable[[Path], Sequence[object]]:
    def make(folder: Path) -> Sequence[object]:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return "search", name, "-b", "toy/text", *FEW

    return make


def _written(write: Callable[[Path], object], name: str = "t.csv") -> Callable[[Path], Sequence[object]]:
    def make(folder: Path) -> Sequence[object]:
        write(folder / name)
        return "search", name, "-b", "toy/text", *FEW

    return make


def _repeated(piece: bytes, times: int, before: bytes = b"", after: bytes = b"") -> Callable[[Path], None]:
    """Write a piece so often; little memory is taken for it."""

    def write(file: Path) -> None:
        with file.open("wb") as out:
            out.write(before)
            for _ in range(times):
                out.write(piece)
            out.write(after)

    return write


def _gzip_bomb(file: Path) -> None:
    with gzip.open(file, "wb", compresslevel=9) as out:
        out.write(b"text,label\n")
        for _ in range(2048):
            out.write(b"a" * (1 << 20))


def _zip_slip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../canary", "code was run")
        archive.writestr("t.csv", PLAIN)


def _zip_bomb(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("t.csv", "w", force_zip64=True) as out:
        for _ in range(1024):
            out.write(bytes(1 << 20))


def _parquet(change: Callable[[bytes], bytes]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row.rsplit(",", 1) for row in ROWS]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [row[0] for row in rows], "label": [row[1] for row in rows]}), buffer)
    return change(buffer.getvalue())


def _lie(raw: bytes) -> bytes:
    return raw[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1"


def _blank(raw: bytes) -> bytes:
    return raw[:40] + bytes(200) + raw[240:]


def _pickled_arrow() -> bytes:
    """A Feather file whose type is an extension that would be unpickled."""
    import pyarrow as pa

    storage = pa.array(["a", "b"])
    field = pa.field(
        "text",
        pa.string(),
        metadata={b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": b"cos\nsystem\n."},
    )
    table = pa.Table.from_arrays([storage, storage], schema=pa.schema([field, pa.field("label", pa.string())]))
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _formulas(folder: Path) -> Sequence[object]:
    rows = [f"=cmd|'/c calc'!A{number},{number % 2}" for number in range(40)]
    (folder / "t.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return "search", "t.csv", "-b", "toy/text", *FEW


def _images_elsewhere(folder: Path) -> Sequence[object]:
    rows = [f"{'../secret.txt' if number % 2 else '/etc/passwd'},{number % 2}" for number in range(20)]
    (folder / "t.csv").write_text("image,label\n" + "\n".join(rows) + "\n")
    return "search", "t.csv", "-b", "toy/mlp", *FEW


def _saved_data_set(folder: Path) -> Sequence[object]:
    place = folder / "saved"
    place.mkdir()
    (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../secret.txt"}], "_split": None}))
    (place / "dataset_info.json").write_text("{}")
    return "search", "saved", "-b", "toy/text", *FEW


def _script_data_set(folder: Path) -> Sequence[object]:
    place = folder / "scripted"
    place.mkdir()
    (place / "scripted.py").write_text(payload(folder.parent))
    (place / "t.csv").write_text(PLAIN)
    return "search", "scripted", "-b", "toy/text", *FEW


CASES: tuple[Case, ...] = (
    Case("100 million columns", _written(_repeated(b"a," * 500_000, 200)), ("t.csv",), seconds=120),
    Case("a million columns", _written(_repeated(b"a,", 1_000_000, after=b"\n1,2\n")), ("error",)),
    Case("100,000 columns of their own names", _table(",".join(f"c{n}" for n in range(100_000)) + "\n1,2\n"), ("error",)),
    Case("NUL bytes", _table(PLAIN.encode() + b"a\0b,1\n" * 30), ("t.csv",)),
    Case("nothing but NUL bytes", _table(bytes(100_000)), ("t.csv",)),
    Case("a cell of 200 MB", _written(_repeated(b"a" * (1 << 20), 200, b"text,label\n", b",1\n")), ("error",), seconds=120),
    Case("a line without an end", _written(_repeated(b"word " * 200_000, 200, b"text,label\n")), ("error",), seconds=120),
    Case("a quote that is never closed", _table(PLAIN + '"' + "a,1\n" * 1000), ("t.csv",)),
    Case("formulas are text", _formulas, code=0),
    Case("bytes of several encodings", _table(PLAIN.encode() + "caf\u00e9,1\n".encode("latin-1") * 40), ("cp1252",), code=0),
    Case("UTF-16 without its mark", _table(PLAIN.encode("utf-16-le")), code=0),
    Case("UTF-16", _table(PLAIN.encode("utf-16")), code=0),
    Case("UTF-8 with a mark", _table(PLAIN.encode("utf-8-sig")), code=0),
    Case("surrogates", _table(PLAIN.encode() + b"\xed\xa0\x80,1\n" * 40), ("cp1252",), code=0),
    Case("labels that write to the terminal", _table(PLAIN.replace(",1\n", ",\x1b]0;owned\x07\n")), code=0),
    Case("header that writes to the terminal", _table("text,\x1b]0;owned\x07\n" + "\n".join(ROWS)), code=0),
    Case("numbers without measure", _table("text,label\n" + "\n".join(f"a{n},1e999999" for n in range(40))), ("error",)),
    Case("JSON lines 100,000 deep", _table('{"text": ' + "[" * 100_000 + "\n" + PLAIN, "t.jsonl"), ("error",)),
    Case("JSON 100,000 deep", _table("[" * 100_000, "t.json"), ("error",)),
    Case(
        "JSON with a number of a million digits",
        _table('[{"text": "a", "label": ' + "9" * 1_000_000 + "}]", "t.json"),
        ("error",),
    ),
    Case("JSON that says a key twice", _table('{"text": "a", "text": "b", "label": 1}\n' * 40, "t.jsonl"), ("error",)),
    Case("gzip bomb", _written(_gzip_bomb, "t.csv.gz"), ("error",), seconds=120),
    Case("gzip that is cut off", _table(gzip.compress(PLAIN.encode() * 100)[:300], "t.csv.gz"), ("error",)),
    Case("gzip that is none", _table(b"\x1f\x8b" + os.urandom(1000), "t.csv.gz"), ("error",)),
    Case("ZIP with a path above", _written(_zip_slip, "t.zip"), ("error",)),
    Case("ZIP named CSV", _written(_zip_slip, "t.csv"), ("ZIP archive",)),
    Case("ZIP bomb", _written(_zip_bomb, "t.zip"), ("error",)),
    Case("Parquet that is cut off", _table(_parquet(lambda raw: raw[:-20]), "t.parquet"), ("error",)),
    Case(
        "Parquet whose footer lies",
        _table(_parquet(lambda raw: raw[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1"), "t.parquet"),
        ("error",),
    ),
    Case(
        "Parquet with damaged pages",
        _table(_parquet(lambda raw: raw[:40] + bytes(200) + raw[240:]), "t.parquet"),
        ("error",),
    ),
    Case("Parquet that is none", _table(b"PAR1" + os.urandom(500) + b"PAR1", "t.parquet"), ("error",)),
    Case("Arrow extension that would be unpickled", _table(_pickled_arrow(), "t.arrow"), ("error",)),
    Case("Arrow that is none", _table(b"ARROW1\0\0" + os.urandom(500), "t.arrow"), ("error",)),
    Case("saved data set whose files lie outside", _saved_data_set, ("error",)),
    Case("data set with a script does not run it", _script_data_set, code=0),
    Case("table whose images lie elsewhere", _images_elsewhere, ("error",)),
    Case("table that is a pipe", lambda folder: (os.mkfifo(folder / "t.csv"), ("search", "t.csv"))[1], ("error",)),
    Case("table that is a device", lambda folder: ("search", "/dev/zero"), ("error",)),
    Case("texts of a bundle that takes images", lambda folder: ("predict", "bundle", "--file", "/dev/zero"), ("error",)),
)
