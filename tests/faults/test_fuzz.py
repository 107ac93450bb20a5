"""Any bytes as a study file, a table or a contract give a result or an error of autoft's own: never another exception.

Half of the inputs are valid files in which a few bytes were changed. `AUTOFT_FUZZ` says how many are tried.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autoft.config import load_study
from autoft.errors import AutoftError
from autoft.export.contract import read_contract
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
