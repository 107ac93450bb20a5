"""Every check of `autoft verify` passes on an honest bundle, and fails on the fault that it is there for, and names it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import command
from onnx import TensorProto, helper
from text_bundles import make

from autoft.discovery import discover
from autoft.errors import BundleError
from autoft.files import sha256
from autoft.verify import Check, passed, tensors_of, verify

MODEL = "onnx/model.onnx"
FILE_CHECKS = ["contract", "links", "files", "extra files", "pickles", "formats", "code", "external data", "graphs", "gate"]
CHECKS = [*FILE_CHECKS, "signature", "golden vectors"]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("label", tmp_path_factory.mktemp("verify")).folder


@pytest.fixture
def bundle(honest: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(honest, tmp_path / "bundle"))


def run(folder: Path) -> dict[str, Check]:
    return {check.name: check for check in verify(folder, discover(enabled=False))}


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    contract = json.loads((folder / "autoft.json").read_text())
    change(contract)
    (folder / "autoft.json").write_text(json.dumps(contract))


def rehash(folder: Path) -> None:
    """List the files as they are now, as someone would who can change any of them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "autoft.json")
    rewrite(folder, lambda contract: contract.update(files={p.relative_to(folder).as_posix(): sha256(p) for p in files}))


def change_graph(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    proto = onnx.load_model(folder / MODEL, load_external_data=False)
    change(proto)
    (folder / MODEL).write_bytes(proto.SerializeToString())
    rehash(folder)


def outside(location: str, **where: str) -> Callable[[onnx.ModelProto], object]:
    """Move the first tensor's data to a file beside the graph, or elsewhere."""

    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **where}.items():
            tensor.external_data.add(key=key, value=value)

    return change


def test_honest_bundle_passes_every_check(honest: Path) -> None:
    before = {path: sha256(path) for path in honest.rglob("*") if path.is_file()}
    checks = run(honest)
    assert list(checks) == CHECKS
    assert {name: check.outcome for name, check in checks.items()} == {
        **dict.fromkeys(CHECKS, "ok"),
        "signature": "not checked",
    }
    assert passed(tuple(checks.values()))
    assert {path: sha256(path) for path in honest.rglob("*") if path.is_file()} == before


def test_bundle_for_images_passes(finished: Any) -> None:
    checks = run(finished.path / "bundle")
    assert "pixel_values" in checks["golden vectors"].message
    assert passed(tuple(checks.values()))


# --- faults -----------------------------------------------------------------------------------------


def alter(folder: Path) -> None:
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" ")


def remove(folder: Path) -> None:
    (folder / "README.md").unlink()


def list_another(folder: Path) -> None:
    rewrite(folder, lambda contract: contract["files"].update({"../other": "0" * 64}))


def add(folder: Path) -> None:
    (folder / "onnx" / "extra.py").write_text("print('hello')")


def link(folder: Path) -> None:
    (folder / "README.md").rename(folder.parent / "README.md")
    (folder / "README.md").symlink_to(folder.parent / "README.md")


def link_folder(folder: Path) -> None:
    (folder / "golden").rename(folder.parent / "golden")
    (folder / "golden").symlink_to(folder.parent / "golden")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def pickled(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(pickle.dumps([1, 2]))
    rehash(folder)


def pickled_by_torch(folder: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(2)}, folder / "weights.bin")
    rehash(folder)


def program(folder: Path) -> None:
    (folder / "install.sh").write_text("true")
    rehash(folder)


def remote_code(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": {"AutoModel": "evil.Evil"}}))
    rehash(folder)


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    rehash(folder)


def no_python(folder: Path) -> None:
    (folder / "predict.py").write_text("def")
    rehash(folder)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(100))
    rehash(folder)


def no_array(folder: Path) -> None:
    header = b"{'descr': (" + b" " * 106 + b"\n"  # numpy raises an error of the tokenizer for it
    (folder / "golden" / "logits.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + header)
    rehash(folder)


def entries_of_another_kind(folder: Path) -> None:
    (folder / "golden" / "golden.json").write_text(json.dumps({"inputs": [None], "answers": [None], "tolerance": 1e-3}))
    rehash(folder)


def without_labels(folder: Path) -> None:
    rewrite(folder, lambda contract: contract.pop("labels"))


def with_wrong_kinds(folder: Path) -> None:
    rewrite(folder, lambda contract: contract.update(inputs=3, files={MODEL: "no hash"}))


def without_gate(folder: Path) -> None:
    rewrite(folder, lambda contract: contract["parity"].update(samples=0))


def without_graph(folder: Path) -> None:
    (folder / MODEL).unlink()
    rehash(folder)


def no_graph(folder: Path) -> None:
    (folder / MODEL).write_bytes(b"\xff\xff no graph")
    rehash(folder)


def newer_opset(folder: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.opset_import[0].version = 23

    change_graph(folder, change)


def newer_ir(folder: Path) -> None:
    change_graph(folder, lambda proto: setattr(proto, "ir_version", 12))


def fixed_batch(folder: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4

    change_graph(folder, change)


def other_input(folder: Path) -> None:
    rewrite(folder, lambda contract: contract.update(inputs=["pixel_values"]))


def data_above(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(bytes(1 << 16))
    change_graph(folder, outside("../../secret"))


def data_at_root(folder: Path) -> None:
    change_graph(folder, outside("/etc/hostname"))


def data_not_listed(folder: Path) -> None:
    change_graph(folder, outside("weights.data"))


def data_too_short(folder: Path) -> None:
    (folder / "onnx" / "weights.data").write_bytes(bytes(8))
    change_graph(folder, outside("weights.data", offset="4", length="8"))


def data_at_no_number(folder: Path) -> None:
    (folder / "onnx" / "weights.data").write_bytes(bytes(8))
    change_graph(folder, outside("weights.data", offset="far"))


def other_logits(folder: Path) -> None:
    file = folder / "golden" / "logits.npy"
    np.save(file, np.load(file) + np.float32(0.01))
    rehash(folder)


def other_answer(folder: Path) -> None:
    file = folder / "golden" / "golden.json"
    golden = json.loads(file.read_text())
    golden["answers"][0] = next(answer for answer in golden["answers"] if answer != golden["answers"][0])
    file.write_text(json.dumps(golden))
    rehash(folder)


@pytest.mark.parametrize(
    ("fault", "check", "words"),
    [
        (without_labels, "contract", "labels: Field required"),
        (with_wrong_kinds, "contract", "files.onnx/model.onnx: "),
        (link, "links", "README.md must be a file of the bundle, but is a link to "),
        (link_folder, "links", "golden must be a file of the bundle, but is a link to "),
        (pipe, "links", "pipe must be a file, but is a device, a pipe or a socket"),
        (alter, "files", "tokenizer.json was altered: its SHA-256 is not the one in autoft.json"),
        (remove, "files", "README.md is missing"),
        (list_another, "files", "files must lie inside the bundle, but one is named '../other'"),
        (link, "files", "README.md must be a file of the bundle, but is or lies behind a link"),
        (add, "extra files", "onnx/extra.py is not listed in autoft.json"),
        (pickled, "pickles", "weights.bin is a pickle"),
        (pickled_by_torch, "pickles", "weights.bin is a pickle"),
        (program, "code", "install.sh is a program"),
        (remote_code, "code", "config.json asks for code by `auto_map`"),
        (no_json, "formats", "config.json is no .json file"),
        (no_python, "formats", "predict.py is no .py file"),
        (no_weights, "formats", "model.safetensors is no .safetensors file"),
        (no_array, "formats", "golden/logits.npy is no .npy file"),
        (data_above, "external data", "files must lie inside the bundle, but one is named '../../secret'"),
        (data_at_root, "external data", "files must lie inside the bundle, but one is named '/etc/hostname'"),
        (data_not_listed, "external data", "must be in a file listed in autoft.json, but is in 'onnx/weights.data'"),
        (data_too_short, "external data", "must lie within the 8 bytes of onnx/weights.data, but is 8 bytes at 4"),
        (data_at_no_number, "external data", "offset and length of its data must be whole numbers"),
        (without_graph, "graphs", "onnx/model.onnx is missing"),
        (no_graph, "graphs", "model.onnx is no ONNX graph"),
        (newer_opset, "graphs", "onnx/model.onnx: the opset must be at most 18, but is"),
        (newer_ir, "graphs", "onnx/model.onnx: the IR version must be at most 10, but is 12"),
        (fixed_batch, "graphs", "the batch axis of input_ids must be dynamic, but is fixed to 4"),
        (other_input, "graphs", "the graph must map ['pixel_values'] to"),
        (without_gate, "gate", "must be of at least 1 sample"),
        (entries_of_another_kind, "golden vectors", "cannot be replayed (texts must be strings, but got None)"),
        (other_logits, "golden vectors", "must be met within 0.001, but differ here by"),
        (other_answer, "golden vectors", "wrong answers: 1"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_each_fault_fails_its_check(fault: Callable[[Path], None], check: str, words: str, bundle: Path) -> None:
    fault(bundle)
    found = run(bundle)
    assert found[check].outcome == "failed"
    assert words in found[check].message
    assert not passed(tuple(found.values()))
    if check != "golden vectors":
        assert found["golden vectors"].outcome == "not checked"  # what is not trusted is not run


def test_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"a bundle is a folder with autoft\.json"):
        run(tmp_path)


def test_names_cannot_write_to_the_terminal(bundle: Path, monkeypatch: Any, capsys: Any) -> None:
    (bundle / "a\x1b[1A\rok").write_text("")
    (bundle / os.fsdecode(b"b\xff")).write_text("")
    assert run(bundle)["extra files"].message.startswith("a\\x1b[1A\\rok is not listed in autoft.json; b\\udcff is not")
    assert command(monkeypatch, capsys, "verify", bundle, "--no-plugins").code == 2


def test_folder_that_cannot_be_read_is_not_passed_over(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "golden":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(BundleError, match=r"cannot be read as a whole: .*golden"):
        run(bundle)


def test_bundle_without_golden_vectors_still_loads(bundle: Path) -> None:
    shutil.rmtree(bundle / "golden")
    rehash(bundle)
    found = run(bundle)
    assert found["golden vectors"] == Check("golden vectors", "ok", "none in this bundle; it loads in ONNX Runtime")


def test_model_with_its_data_beside_it_passes(bundle: Path) -> None:
    proto = onnx.load_model(bundle / MODEL)
    onnx.save_model(proto, bundle / MODEL, save_as_external_data=True, location="model.onnx_data", size_threshold=100)
    rehash(bundle)
    found = run(bundle)
    assert "all in files of the bundle" in found["external data"].message
    assert found["golden vectors"].outcome == "ok", found["golden vectors"].message


def test_tensors_inside_of_branches_are_seen() -> None:
    def branch(name: str) -> onnx.GraphProto:
        tensor = helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0])
        constant = helper.make_node("Constant", [], [f"{name}_out"], value=tensor)
        return helper.make_graph([constant], name, [], [helper.make_tensor_value_info(f"{name}_out", 1, [1])])

    node = helper.make_node("If", ["condition"], ["out"], then_branch=branch("yes"), else_branch=branch("no"))
    first = helper.make_tensor("first", TensorProto.FLOAT, [1], [1.0])
    graph = helper.make_graph([node], "whole", [], [], initializer=[first])
    assert sorted(tensor.name for tensor in tensors_of(graph)) == ["first", "no", "yes"]


# --- the command ------------------------------------------------------------------------------------


def test_command_prints_each_check(bundle: Path, monkeypatch: Any, capsys: Any) -> None:
    result = command(monkeypatch, capsys, "verify", bundle, "--no-plugins")
    assert result.code == 0
    assert [line[:4].strip() for line in result.out.splitlines()] == [*["ok"] * len(FILE_CHECKS), "--", "ok"]
    alter(bundle)
    result = command(monkeypatch, capsys, "verify", bundle, "--no-plugins")
    assert result.code == 2
    assert "FAIL  files           tokenizer.json was altered" in result.out


def test_command_prints_json(bundle: Path, monkeypatch: Any, capsys: Any) -> None:
    add(bundle)
    result = command(monkeypatch, capsys, "verify", bundle, "--json", "--no-plugins")
    assert result.code == 2
    found = json.loads(result.out)
    assert found["ok"] is False
    assert [check["name"] for check in found["checks"] if check["outcome"] == "failed"] == ["extra files", "code"]
