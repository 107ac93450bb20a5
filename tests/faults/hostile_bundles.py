"""Hostile bundles: what a download from a stranger may hold."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hostile import Case, Payload, payload
from onnx import TensorProto, helper

from autoft.files import sha256

MODEL = "onnx/model.onnx"


def _contract(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "bundle" / "autoft.json"
    contract = json.loads(file.read_text())
    change(contract)
    file.write_text(json.dumps(contract))


def _rehash(folder: Path) -> None:
    """List the files as they are: whoever made the bundle can."""
    bundle = folder / "bundle"
    files = sorted(path for path in bundle.rglob("*") if path.is_file() and path.name != "autoft.json")
    named = {path.relative_to(bundle).as_posix(): sha256(path) for path in files}
    _contract(folder, lambda contract: contract.update(files=named))


def _case(name: str, damage: Callable[[Path], object], *words: str, **rest: Any) -> list[Case]:
    """Return a case for each door of a bundle: checking it, answering with it, and its own script."""

    def through(*arguments: object) -> Callable[[Path], Sequence[object]]:
        def make(folder: Path) -> Sequence[object]:
            damage(folder)
            return arguments

        return make

    image = "images/stripes-0/000.png"
    doors = {"verify": ("verify", "bundle"), "predict": ("predict", "bundle", image)}
    return [Case(f"{name}: {door}", through(*arguments), words, **rest) for door, arguments in doors.items()]


def _script(name: str, damage: Callable[[Path], object], *words: str, **rest: Any) -> Case:
    def make(folder: Path) -> Sequence[object]:
        damage(folder)
        return "predict.py", folder / "images/stripes-0/000.png"

    return Case(f"{name}: predict.py", make, words, **rest)


# --- files ----------------------------------------------------------------------------------------------------------


def _named_outside(name: str) -> Callable[[Path], None]:
    return lambda folder: _contract(folder, lambda contract: contract["files"].update({name: "0" * 64}))


def _link(target: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        shutil.move(folder / "bundle" / target, folder / "moved")
        (folder / "bundle" / target).symlink_to(folder / "moved")

    return damage


def _hard_link(folder: Path) -> None:
    os.link(folder.parent / "secret.txt", folder / "bundle" / "notes.txt")


def _altered(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "bundle" / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    return damage


def _pickle_instead(folder: Path) -> None:
    (folder / "bundle" / "model.safetensors").write_bytes(pickle.dumps(Payload(folder.parent)))
    _rehash(folder)


def _pickle_beside(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "bundle" / name).write_bytes(pickle.dumps(Payload(folder.parent)))
        _rehash(folder)

    return damage


def _pickled_array(folder: Path) -> None:
    array = np.empty(1, dtype=object)
    array[0] = Payload(folder.parent)
    np.save(folder / "bundle" / "golden" / "logits.npy", array, allow_pickle=True)
    _rehash(folder)


def _sparse(folder: Path) -> None:
    with (folder / "bundle" / MODEL).open("r+b") as file:
        file.truncate(40 << 30)


# --- the contract ---------------------------------------------------------------------------------------------------


def _text(content: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "bundle" / "autoft.json").write_text(content)

    return damage


def _deep(folder: Path) -> None:
    (folder / "bundle" / "autoft.json").write_text("[" * 200_000)


def _millions_of_files(folder: Path) -> None:
    _contract(folder, lambda contract: contract["files"].update({f"x/{number}": "0" * 64 for number in range(1_000_000)}))


def _controls_in_labels(folder: Path) -> None:
    _contract(folder, lambda contract: contract.update(labels=["\x1b]0;owned\x07"] * len(contract["labels"])))


def _huge_size(folder: Path) -> None:
    _contract(folder, lambda contract: contract["preprocessing"].update(size=[10**9, 10**9], resize=10**9))


# --- configurations and graphs --------------------------------------------------------------------------------------


def _remote_code(folder: Path) -> None:
    bundle = folder / "bundle"
    config = json.loads((bundle / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageClassification": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}
    (bundle / "config.json").write_text(json.dumps(config))
    (bundle / "modeling_evil.py").write_text(payload(folder.parent))
    _rehash(folder)


def _own_script(folder: Path) -> None:
    (folder / "bundle" / "predict.py").write_text(payload(folder.parent))
    _rehash(folder)


def _program(folder: Path) -> None:
    (folder / "bundle" / "install.sh").write_text("#!/bin/sh\n")
    _rehash(folder)


def _other_task(folder: Path) -> None:
    _contract(folder, lambda contract: contract.update(task="os.system"))


def _external(location: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        proto = onnx.load_model(folder / "bundle" / MODEL, load_external_data=False)
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        (folder / "bundle" / MODEL).write_bytes(proto.SerializeToString())
        _rehash(folder)

    return damage


def _endless_graph(folder: Path) -> None:
    """A loop that counts to the largest number there is."""
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Constant", [], ["step"], value=one),
            helper.make_node("Add", ["sum", "step"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, []),
        ],
    )
    proto = onnx.load_model(folder / "bundle" / MODEL)
    graph = proto.graph
    graph.initializer.extend(
        [
            helper.make_tensor("often", TensorProto.INT64, [], [2**63 - 1]),
            helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
            helper.make_tensor("nothing", TensorProto.FLOAT, [], [0.0]),
        ]
    )
    last = next(node for node in graph.node if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "before"
    graph.node.extend(
        [
            helper.make_node("Loop", ["often", "yes", "nothing"], ["count"], body=body),
            helper.make_node("Add", ["before", "count"], ["logits"]),
        ]
    )
    (folder / "bundle" / MODEL).write_bytes(proto.SerializeToString())
    _rehash(folder)


def _huge_constant(folder: Path) -> None:
    """A shape that asks for 400 GB."""
    proto = onnx.load_model(folder / "bundle" / MODEL)
    graph = proto.graph
    graph.initializer.append(helper.make_tensor("huge", TensorProto.INT64, [1], [100_000_000_000]))
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0])
    last = next(node for node in graph.node if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "before"
    graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["huge"], ["ones"], value=value),
            helper.make_node("ReduceSum", ["ones"], ["sum"], keepdims=0),
            helper.make_node("Add", ["before", "sum"], ["logits"]),
        ]
    )
    (folder / "bundle" / MODEL).write_bytes(proto.SerializeToString())
    _rehash(folder)


CASES: tuple[Case, ...] = (
    *_case("path above the folder", _named_outside("../../secret.txt"), "must lie inside the bundle"),
    *_case("absolute path", _named_outside("/etc/passwd"), "must lie inside the bundle"),
    *_case("path with a drive", _named_outside("C:\\Windows\\win.ini"), "must lie inside the bundle"),
    *_case("path with a NUL byte", _named_outside("README.md\0.txt"), "must lie inside the bundle"),
    _script("path above the folder", _named_outside("../../secret.txt"), "must lie inside the bundle"),
    *_case("symbolic link of a file", _link("config.json"), "link"),
    *_case("symbolic link of a folder", _link("golden"), "link"),
    *_case("the bundle's graph is a link", _link(MODEL), "link"),
    Case("hard link: verify", lambda folder: (_hard_link(folder), ("verify", "bundle"))[1], ("notes.txt is not listed",)),
    *_case("altered graph", _altered(MODEL), "model.onnx was altered"),
    *_case("altered weights", _altered("model.safetensors"), "model.safetensors was altered"),
    *_case("altered configuration", _altered("config.json"), "config.json was altered"),
    _script("altered graph", _altered(MODEL), "model.onnx was altered"),
    Case("pickle for weights: verify", lambda folder: (_pickle_instead(folder), ("verify", "bundle"))[1], ("pickle",)),
    *(
        Case(
            f"pickle {name}: verify",
            lambda folder, name=name: (_pickle_beside(name)(folder), ("verify", "bundle"))[1],
            ("pickle",),
        )
        for name in ("pytorch_model.bin", "optimizer.pt", "scaler.pkl", "model.joblib", "data.npy")
    ),
    Case("pickled golden vectors: verify", lambda folder: (_pickled_array(folder), ("verify", "bundle"))[1], ("pickle",)),
    Case(
        "pickled golden vectors: predict.py --check",
        lambda folder: (_pickled_array(folder), ("predict.py", "--check"))[1],
        ("error",),
    ),
    *_case("graph of 40 GB, all holes", _sparse, "model.onnx", seconds=300),
    *_case("no JSON", _text("{"), "whole JSON"),
    *_case("JSON that nests 200,000 deep", _deep, "whole JSON"),
    *_case("a list instead of an object", _text("[]"), "object"),
    *_case("the same key twice", _text('{"files": {}, "files": {}}')),
    *_case("a number that is none", _text('{"files": NaN}')),
    *_case("a million files that are not there", _millions_of_files, "is missing"),
    *_case("labels that write to the terminal", _controls_in_labels),
    *_case("inputs of 10^18 pixels", _huge_size),
    *_case("a task that is no task", _other_task, "os.system"),
    Case(
        "program beside the script: verify",
        lambda folder: (_program(folder), ("verify", "bundle"))[1],
        ("install.sh is a program",),
    ),
    Case("remote code: verify", lambda folder: (_remote_code(folder), ("verify", "bundle"))[1], ("auto_map",)),
    Case(
        "remote code: predict does not look at it",
        lambda folder: (_remote_code(folder), ("predict", "bundle", "images/stripes-0/000.png"))[1],
        code=0,
    ),
    Case(
        "own script: predict runs autoft's",
        lambda folder: (_own_script(folder), ("predict", "bundle", "images/stripes-0/000.png"))[1],
        code=0,
    ),
    *_case("weights from above", _external("../../secret.txt")),
    *_case("weights from the root", _external("/etc/passwd")),
    *_case("weights from a link", lambda folder: (_external("weights.data")(folder), _linked_data(folder))[1]),
    Case(
        "a loop without end: verify",
        lambda folder: (_endless_graph(folder), ("verify", "bundle"))[1],
        ("longer than 60 s",),
        seconds=120,
    ),
    Case(
        "a constant of 400 GB: predict",
        lambda folder: (_huge_constant(folder), ("predict", "bundle", "images/stripes-0/000.png"))[1],
        ("model.onnx",),
    ),
)


def _linked_data(folder: Path) -> None:
    (folder / "bundle" / "onnx" / "weights.data").symlink_to(folder.parent / "secret.txt")
    _rehash(folder)
