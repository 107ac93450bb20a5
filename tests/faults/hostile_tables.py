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


def _gzip_of_rows(file: Path) -> None:
    with gzip.open(file, "wb", compresslevel=9) as out:
        out.write(b"text,label\n")
        for _ in range(1100):
            out.write(b"a,1\n" * (1 << 18))


def _row_without_an_end(file: Path) -> None:
    with gzip.open(file, "wb", compresslevel=1) as out:
        out.write(b"text,label\n")
        for _ in range(100):
            out.write(b'"ab\n",' * 200_000)


def _keys(file: Path) -> None:
    with file.open("w") as out:
        for first in range(0, 300_000, 100):
            out.write(json.dumps({f"k{first + number}": 1 for number in range(100)}) + "\n")


def _repeated_value(kind: str) -> Callable[[Path], None]:
    """Write one text of 10 MB that stands in a thousand rows: a file of few KB in Parquet."""

    def write(file: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["a" * (10 << 20)]))
        table = pa.table({"text": texts, "label": ["a", "b"] * 500})
        if kind == "parquet":
            pq.write_table(table, file, compression="zstd")
        else:
            with pa.ipc.new_file(str(file), table.schema) as writer:
                writer.write_table(table)

    return write


WORDS = [f"good {number}" for number in range(40)]


def _lead_outside(raw: bytes) -> bytes:
    """Change where a text begins in Arrow data, to far outside of it."""
    import numpy as np

    place = raw.index(np.cumsum([0, *map(len, WORDS)]).astype(np.int32).tobytes()) + 40
    return raw[:place] + struct.pack("<i", 2**30) + raw[place + 4 :]


def _arrow_leading_outside() -> bytes:
    import pyarrow as pa

    table, sink = pa.table({"text": WORDS, "label": ["a", "b"] * 20}), io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return _lead_outside(sink.getvalue())


def _saved_words(change: Callable[[Path], object]) -> Callable[[Path], Sequence[object]]:
    def make(folder: Path) -> Sequence[object]:
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset.from_dict({"text": WORDS, "label": ["a", "b"] * 20}).save_to_disk(str(folder / "saved"))
        change(folder / "saved")
        return "search", "saved", "-b", "toy/text", *FEW

    return make


def _damage_saved(place: Path) -> None:
    (file,) = place.glob("*.arrow")
    file.write_bytes(_lead_outside(file.read_bytes()))


def _typed(labels: Callable[[], object], metadata: bytes = b"") -> Callable[[Path], Sequence[object]]:
    """Give a Parquet file of 40 rows."""

    def write(file: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"text": WORDS, "label": labels()})
        pq.write_table(table.replace_schema_metadata({b"huggingface": metadata} if metadata else {}), file)

    return _written(write, "t.parquet")


def _of_type(kind: str, *values: int) -> Callable[[], object]:
    def make() -> object:
        import pyarrow as pa

        return pa.array([*values] * (40 // len(values)), pa.type_for_alias(kind))

    return make


def _no_utf8() -> object:
    import pyarrow as pa

    return pa.Array.from_buffers(pa.string(), 40, pa.array([b"\xff\xfe", b"ab"] * 20).buffers())


def _names_as_lists() -> bytes:
    names = {"names": [["a"], {}], "_type": "ClassLabel"}
    return json.dumps({"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, "label": names}}}).encode()


def _plain_labels() -> object:
    return ["a", "b"] * 20


LONG_NAMES = "image,label\n" + "".join(f"{'a' * 400}{number}.png,{number % 2}\n" for number in range(20))

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
    Case("gzip bomb of short rows", _written(_gzip_of_rows, "t.csv.gz"), ("may unpack to",), seconds=120, megabytes=1500),
    Case("row that goes on over lines", _written(_row_without_an_end, "t.csv.gz"), ("a row may have",), seconds=120),
    Case("JSON lines that name 300,000 columns", _written(_keys, "t.jsonl"), ("10000 columns",), megabytes=1500),
    Case("JSON name with a NUL character", _table('{"te\\u0000xt": "a", "label": 1}\n' * 20, "t.jsonl"), ("rename",)),
    Case("JSON name with half a character", _table('{"te\\ud800xt": "a", "label": 1}\n' * 20, "t.jsonl"), ("rename",)),
    Case(
        "JSON object of 21 million lists",
        _written(_repeated(b",[]" * 1_000_000 + b"\n", 25, b'{"a": [[]', b"]}"), "t.json"),
        ("one value may have",),
        seconds=120,
    ),
    Case(
        "words and tags on one line without an end",
        _written(_repeated(b"ab " * 350_000, 100, b"a O\nb O\n\n"), "t.conll"),
        ("a line may have",),
        seconds=120,
        megabytes=1500,
    ),
    Case(
        "sentence without an end",
        _written(_repeated(b"ab O\n" * 1_000_000, 10), "t.conll"),
        ("a sentence may have",),
        seconds=120,
        megabytes=1500,
    ),
    Case(
        "Parquet with one value of 10 MB in 1000 rows", _written(_repeated_value("parquet"), "t.parquet"), ("bytes of text",)
    ),
    Case("Arrow with one value of 10 MB in 1000 rows", _written(_repeated_value("arrow"), "t.arrow"), ("bytes of text",)),
    Case("Arrow whose offsets lead outside", _table(_arrow_leading_outside(), "t.arrow"), ("out of bounds",)),
    Case("saved data set whose offsets lead outside", _saved_words(_damage_saved), ("out of bounds",)),
    Case(
        "saved data set with deep JSON",
        _saved_words(lambda place: (place / "state.json").write_text("[" * 100_000)),
        ("cannot be read",),
    ),
    Case(
        "saved data set described by a list",
        _saved_words(lambda place: (place / "dataset_info.json").write_text("[]")),
        ("cannot be read",),
    ),
    Case("Parquet with deep metadata", _typed(_plain_labels, b"[" * 5000), ("of what types",)),
    Case(
        "Parquet whose classes have lists as names",
        _typed(_of_type("int64", 0, 1), _names_as_lists()),
        ("names of classes",),
    ),
    Case("Parquet with text that is no UTF-8", _typed(_no_utf8), ("UTF8",)),
    Case("dates of the year 2,900,000", _typed(_of_type("date32", 2**30, -(2**30))), ("Python knows",)),
    Case("times of the year 30,000", _typed(_of_type("timestamp[s]", 2**40, -(2**40))), ("Python knows",)),
    Case("durations of 10^11 years", _typed(_of_type("duration[s]", 2**62, -(2**62))), ("Python knows",)),
    Case("images with names that are too long", _table(LONG_NAMES), ("relative to the table",)),
    Case("texts of a bundle that takes images", lambda folder: ("predict", "bundle", "--file", "/dev/zero"), ("error",)),
)
