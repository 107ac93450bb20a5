"""Any bytes as a study file, table, image or contract give a result or an error of autoft's own: never another exception.

Half of the inputs are valid files in which a few bytes were changed. `AUTOFT_FUZZ` says how many are tried.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from autoft.config import load_study
from autoft.errors import AutoftError
from autoft.export.contract import read_contract
from autoft.runtime.image_classification import ImageError, read_image
from autoft.tables.load import load_table

EXAMPLES = int(os.environ.get("AUTOFT_FUZZ", "150"))

STUDY = b"""name: digits
data: {path: data, plugin: image-folder}
backbones: [timm/resnet18, {name: toy/mlp, weights: none}]
space: {learning_rate: {low: 1.0e-5, high: 1.0e-2, log: true}, freeze_depth: {low: 0, high: all}}
search: {trials: 40, time_limit: 30m, seed: 0}
"""
CSV = "text,label\n" + "".join(f'"a, b {n}",{n % 2}\n' for n in range(8))
JSONL = "".join(json.dumps({"text": f"a {n}", "label": n % 2}) + "\n" for n in range(8))
CONTRACT = json.dumps({"format": 1, "task": "classification", "labels": ["a", "b"], "files": {"onnx/model.onnx": "0" * 64}})


@st.composite
def altered(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid file in which pieces were replaced, doubled or cut out."""
    content = valid
    for _ in range(draw(st.integers(1, 4))):
        place, length = draw(st.integers(0, len(content))), draw(st.integers(0, 12))
        middle = draw(
            st.one_of(st.binary(max_size=6), st.just(content[place : place + length] * 2), st.sampled_from(PIECES))
        )
        content = content[:place] + middle + content[place + length :]
    return content


# fmt: off
PIECES = (
    b"", b"\0", b"\xff", b'"', b"'", b"{", b"[[[[", b"}", b": ", b"- ", b"&a", b"*a", b"!!str", b"\n", b"\t",
    b"\xef\xbb\xbf", b"1e999", b"\\u0000",
)
# fmt: on


def any_bytes(valid: str | bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(altered(valid.encode() if isinstance(valid, str) else valid), st.binary(max_size=300))


def gives_a_result_or_says_why(content: bytes, name: str, read: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        said = "a result"
        try:
            read(Path(folder))
        except AutoftError as error:
            said = str(error)
        assert said.strip()


usual = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(any_bytes(STUDY))
@example(b"")
@example(b"data: &a [*a]")
@example(b"? [a]\n: b")
@example(b"\xff\xfe")
@usual
def test_study_file(content: bytes) -> None:
    gives_a_result_or_says_why(content, "study.yaml", lambda folder: load_study(folder / "study.yaml", ()))


TABLES = {"t.csv": CSV, "t.tsv": CSV.replace(",", "\t"), "t.jsonl": JSONL, "t.json": "[]"}


@pytest.mark.parametrize(("name", "valid"), TABLES.items())
def test_table(name: str, valid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))

    @given(any_bytes(valid))
    @example(b"")
    @example(b'[{"a": [[[[')
    @example(b'text,label\n"')
    @usual
    def run(content: bytes) -> None:
        gives_a_result_or_says_why(content, name, lambda folder: load_table(folder / name, {}))

    run()


@given(any_bytes(CONTRACT))
@example(b"[" * 100_000)
@example(b'{"format": 1e999}')
@usual
def test_contract(content: bytes) -> None:
    gives_a_result_or_says_why(content, "autoft.json", read_contract)


# --- files of bytes: damage in them reaches code in C, which may end the process -------------------------


def packed_tables() -> dict[str, bytes]:
    """Return a small table in every format of bytes, with the columns that are read in different ways."""
    codes = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 10, pa.int8()), pa.array(["x", "y"]))
    columns = {"text": [f"good {number}" for number in range(20)], "label": codes, "words": [["a", "b"]] * 20}
    table, made = pa.table(columns), dict[str, bytes]()
    for name, compression in (("t.arrow", None), ("t.feather", "zstd")):
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            writer.write_table(table)
        made[name] = sink.getvalue()
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return {**made, "t.parquet": sink.getvalue(), "t.csv.gz": gzip.compress(CSV.encode(), mtime=0)}


PACKED = packed_tables()


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid file with a few bytes set, numbers made huge, pieces doubled or cut out; its length stays mostly."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 6))):
        place, how = draw(st.integers(0, len(content))), draw(st.integers(0, 9))
        if how < 4:
            content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif how < 8:
            new = draw(st.sampled_from((b"\xff" * 4, b"\0\0\0\x40", b"\xff" * 8, bytes(8), (1 << 40).to_bytes(8, "little"))))
            content[place : place + len(new)] = new
        elif how == 8:
            del content[place : place + draw(st.integers(1, 20))]
        else:
            content[place:place] = content[place : place + draw(st.integers(1, 40))]
    return bytes(content)


@pytest.mark.parametrize("name", sorted(PACKED))
def test_table_of_bytes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))

    @given(damaged(PACKED[name]))
    @example(b"")
    @example(PACKED[name])
    @usual
    def run(content: bytes) -> None:
        gives_a_result_or_says_why(content, name, lambda folder: load_table(folder / name, {}))

    run()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
def test_image(form: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(buffer, form)

    @given(damaged(buffer.getvalue()))
    @example(b"")
    @example(buffer.getvalue())
    @usual
    def run(content: bytes) -> None:
        said = "image: read"
        try:
            assert read_image(content).mode == "RGB"
        except ImageError as error:
            said = str(error)
        assert said.startswith("image: ")

    run()


@pytest.mark.parametrize("value", [7, 255])
def test_saved_data_set_of_which_one_byte_is_changed(value: int, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    datasets.Dataset(pa.table({"text": ["a", "b"], "label": pa.array([0, 1], pa.int64())})).save_to_disk(str(saved))
    (file,) = saved.glob("*.arrow")
    valid = file.read_bytes()
    for place in range(len(valid)):  # most of it is the schema: widths of numbers, places of names
        file.write_bytes(valid[:place] + bytes([value]) + valid[place + 1 :])
        said = "a result"
        try:
            load_table(saved, {})
        except AutoftError as error:
            said = str(error)
        assert said.strip()
