"""Graphs beyond protobuf's limit keep their weights in a file beside them: hashed, checked, and loaded by runtimes."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from test_parity import trained  # noqa: F401 - a fixture
from toy_training import CONVNET, HEAD, build

from autoft.errors import ExportError
from autoft.export import graphs
from autoft.export.bundle import Trained, export_bundle
from autoft.export.graphs import DATA, graph_bytes, make_session, save_graph, weight_bytes
from autoft.export.onnx import to_onnx
from autoft.export.script import load_script

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every model were too large for one file."""
    monkeypatch.setattr(graphs, "MOST_BYTES", 1000)


def exported() -> onnx.ModelProto:
    model = build(CONVNET).eval()
    return to_onnx(model, HEAD.activation, (IMAGES,), input_names=CONVNET.inputs, labels=("a", "b", "c"))


def test_small_graph_is_one_file(tmp_path: Path) -> None:
    proto = exported()
    save_graph(proto, tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert graph_bytes(proto) == (tmp_path / "model.onnx").stat().st_size > weight_bytes(proto) > 1000


@pytest.mark.usefixtures("small_limit")
def test_large_graph_has_its_weights_beside_it_and_answers_the_same(tmp_path: Path) -> None:
    proto = exported()
    wanted = make_session(proto, onnxruntime.SessionOptions()).run(None, {"pixel_values": IMAGES.numpy()})
    assert weight_bytes(proto) > 1000, "a session leaves the graph its weights"
    save_graph(proto, tmp_path / "model.onnx")
    graph, data = tmp_path / "model.onnx", tmp_path / f"model.onnx{DATA}"
    assert sorted(tmp_path.iterdir()) == [graph, data]
    assert stat.S_IMODE(data.stat().st_mode) == stat.S_IMODE(graph.stat().st_mode)
    found = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(
        None, {"pixel_values": IMAGES.numpy()}
    )
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("small_limit")
def test_bundle_of_a_large_model_passes_the_gate_and_notices_a_changed_weight(
    trained: Trained,  # noqa: F811
    tmp_path: Path,
) -> None:
    folder = tmp_path / "bundle"
    export_bundle(trained, folder, max_metric_drop=0.0, max_output_difference=1e-3, golden=2)
    data = folder / "onnx" / f"model.onnx{DATA}"
    assert json.loads((folder / "autoft.json").read_text())["files"].keys() >= {"onnx/model.onnx", f"onnx/model.onnx{DATA}"}
    script = load_script(folder / "predict.py")
    assert script.Bundle.load(folder).check()["ok"]
    with data.open("r+b") as file:
        file.seek(8)
        file.write(b"\0\0\0\0")
    with pytest.raises(script.BundleError, match=f"model.onnx{DATA}"):
        script.Bundle.load(folder)


@pytest.mark.usefixtures("small_limit")
def test_disk_that_is_full_leaves_no_bundle_of_a_large_model(
    trained: Trained,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save_model", full)
    with pytest.raises((OSError, ExportError)):
        export_bundle(trained, tmp_path / "bundle", max_metric_drop=0.0, max_output_difference=1e-3, golden=2)
    assert list(tmp_path.iterdir()) == []
