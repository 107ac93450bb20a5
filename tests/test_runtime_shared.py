"""What all scripts share: one self-contained file, a contract that is checked, and answers that are never made up."""

from __future__ import annotations

import ast
import inspect
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from autoft.errors import ExportError
from autoft.export.script import load_script, script_source
from autoft.runtime import image_classification, shared, text
from autoft.runtime.shared import (
    BundleError,
    Contract,
    InputError,
    answer_of,
    essence,
    json_answer,
    plain_answer,
    read_bundle,
)

SCRIPTS = [image_classification, text]
PACKAGES = {image_classification: {"numpy", "PIL", "onnxruntime"}, text: {"numpy", "tokenizers", "onnxruntime"}}


def imported(source: str) -> set[str]:
    tree = ast.parse(source)
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)


def definitions(source: str) -> dict[str, str]:
    tree = ast.parse(source)
    return {node.name: ast.unparse(node) for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("module", SCRIPTS, ids=lambda module: module.__name__)
def test_script_needs_only_its_packages_and_holds_every_function_as_it_is(module: ModuleType, tmp_path: Path) -> None:
    source = script_source(Path(str(module.__file__)))
    assert imported(source) == PACKAGES[module]
    own, common = (definitions(inspect.getsource(one)) for one in (module, shared))
    assert len(own) > 5
    assert len(common) > 15
    assert not set(own) & set(common), "one would hide the other"
    assert definitions(source) == own | common
    (tmp_path / "predict.py").write_text(source)
    assert load_script(tmp_path / "predict.py").Bundle.__doc__ == module.Bundle.__doc__


@pytest.mark.parametrize("module", [*SCRIPTS, shared], ids=lambda module: module.__name__)
def test_script_is_python_3_10(module: ModuleType) -> None:
    ast.parse(inspect.getsource(module), feature_version=(3, 10))


def test_script_of_a_third_party_is_copied_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text('"""Mine."""\nimport json\n\n\nclass Bundle: ...\n')
    assert script_source(file) == file.read_text()
    file.write_text("def main():\n    from autoft import errors\n")
    with pytest.raises(ExportError, match="must run without autoft, but its line 2 imports autoft"):
        script_source(file)


MASKS = """\"\"\"Mine.\"\"\"

from __future__ import annotations

from autoft.runtime.image_classification import ImageSource, read_image, resize_and_crop
from autoft.runtime.shared import InputError


class Bundle: ...


def size(source: ImageSource) -> tuple[int, int]:
    return read_image(source).size
"""


def test_script_takes_what_it_names_of_image_preprocessing_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(MASKS)
    source = script_source(file)
    assert imported(source) == {"numpy", "PIL"} | {"onnxruntime"}
    held = definitions(source)
    assert {"read_image", "resize_and_crop", "_to_rgb", "ImageError", "center_crop", "InputError", "size"} <= set(held)
    assert not {"normalize", "check_preprocessing"} & set(held)
    assert ast.unparse(ast.parse(source)).count("class Bundle:") == 1
    (tmp_path / "predict.py").write_text(source)
    script = load_script(tmp_path / "predict.py")
    with pytest.raises(script.ImageError, match="no such file"):
        script.size(tmp_path / "missing.png")


def test_script_that_names_what_image_preprocessing_lacks_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(MASKS.replace("resize_and_crop", "resize_and_drop"))
    with pytest.raises(ExportError, match=r"image_classification.py must define .* has no resize_and_drop"):
        script_source(file)


# --- the contract -----------------------------------------------------------------------------------


def contract(answer: str, labels: tuple[str, ...] = ("a", "b"), **values: tuple[float, ...]) -> Contract:
    return Contract(Path("bundle"), labels, answer, values, ("logits", "probabilities"), {}, {})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": "poem"}, "`answer` in autoft.json must be one of label"),
        ({"answer": ["label"]}, "`answer` in autoft.json must be one of label"),
        ({"answer": "entities"}, "this script gives label or labels"),
        ({"labels": ["a", "a"]}, "`labels` in autoft.json must differ"),
        ({"labels": ["a", 1]}, "`labels` in autoft.json must be a list of names"),
        ({"outputs": ["probabilities"]}, "must be logits, and of scores at most one"),
        ({"outputs": [["logits"]]}, "must be logits"),
        ({"outputs": "logits"}, "must be logits"),
        ({"outputs": ["logits"]}, "must name the scores of label"),
        ({"values": [0.5]}, "must be lists of numbers by name"),
        ({"values": {"thresholds": [0.5]}}, "`values.thresholds` in autoft.json must have a number for each label"),
        ({"values": {"thresholds": [0.5, math.nan]}}, "must be a list of finite numbers"),
        ({"values": {"thresholds": [0.5, True]}}, "must be a list of finite numbers"),
        ({"answer": "labels"}, "must hold `thresholds`"),
        ({"preprocessing": []}, "must hold `preprocessing`"),
        ({"preprocessing": {"kind": "odd"}}, "odd"),
        ({"files": ["onnx/model.onnx"]}, r"must list onnx/model\.onnx"),
        ({"files": {"onnx/model.onnx": 3}}, "was altered"),
        ({"files": {"onnx/model.onnx": "x", "a\0b": "x"}}, "was altered|must lie inside"),
    ],
)
def test_absurd_contract_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    import hashlib

    def check(preprocessing: Any) -> None:
        if preprocessing:
            raise ValueError(str(preprocessing))

    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"x")
    files = {"onnx/model.onnx": hashlib.sha256(b"x").hexdigest()}
    fields = {"files": files, "labels": ["a", "b"], "preprocessing": {}}
    (tmp_path / "autoft.json").write_text(json.dumps(fields))
    assert read_bundle(tmp_path, ("label", "labels"), check).answer == "label"
    (tmp_path / "autoft.json").write_text(json.dumps({**fields, **change}))
    with pytest.raises(BundleError, match=said):
        read_bundle(tmp_path, ("label", "labels"), check)


def test_deeply_nested_contract_is_refused(tmp_path: Path) -> None:
    (tmp_path / "autoft.json").write_text("[" * 200_000)
    with pytest.raises(BundleError, match="no JSON"):
        read_bundle(tmp_path, ("label",), lambda preprocessing: None)


# --- answers ----------------------------------------------------------------------------------------


def row(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_each_kind_of_answer() -> None:
    scores = {"a": 0.25, "b": 0.75}
    assert answer_of(contract("label"), row(0.25, 0.75)) == {"label": "b", "score": 0.75, "scores": scores}
    some = contract("labels", thresholds=(0.25, 0.76))
    assert answer_of(some, row(0.25, 0.75)) == {"labels": ["a"], "scores": scores}, "reaching the threshold is enough"
    assert answer_of(contract("values"), row(0.25, 0.75)) == {"values": scores}
    assert answer_of(contract("values", ("a",)), row(0.25)) == {"value": 0.25}


@pytest.mark.parametrize("answer", ["label", "labels", "values"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_no_finite_number_is_no_answer(answer: str, wrong: float) -> None:
    with pytest.raises(InputError, match="not a finite number"):
        answer_of(contract(answer, thresholds=(0.5, 0.5)), row(0.25, wrong))


@pytest.mark.parametrize(
    ("answer", "plain", "kept"),
    [
        ({"label": "a", "score": 0.5, "scores": {"a": 0.5}}, "a    0.5000", "a"),
        ({"labels": ["a"], "scores": {"a": 0.5}}, "a 0.5000", ["a"]),
        ({"labels": [], "scores": {"a": 0.5}}, "(none)", []),
        ({"value": 1234567.0}, "1.23457e+06", 1234567.0),
        ({"values": {"x": 1.0, "y": 0.001}}, "x 1, y 0.001", {"x": 1.0, "y": 0.001}),
        (
            {"entities": [{"label": "P", "text": "Ada", "start": 3, "end": 6, "score": 0.5}]},
            "P 'Ada' 3-6 0.5000",
            [["P", 3, 6]],
        ),
        ({"entities": []}, "(none)", []),
    ],
)
def test_answer_in_one_line_and_what_of_it_must_be_the_same_everywhere(
    answer: dict[str, Any], plain: str, kept: Any
) -> None:
    assert plain_answer(answer, 3) == plain
    assert essence(answer) == kept


def test_answer_of_a_mask_is_told_by_its_shares() -> None:
    answer = {"input": "a.png", "mask": np.zeros((2, 2), np.uint8), "shares": {"cat": 0.25, "dog": 0.0, "sky": 0.75}}
    assert plain_answer(answer) == "cat 25.0%, sky 75.0%"
    assert json.loads(json_answer(answer)) == {"input": "a.png", "shares": answer["shares"]}
    assert essence(answer) == answer["shares"]
