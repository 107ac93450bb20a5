"""The graph answers as torch does at any batch size, tells strangers nothing, and is what old runtimes read."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from toy_training import CONVNET, HEAD, MLP, TARGETS, build

from autoft.errors import ExportError
from autoft.export import onnx as export
from autoft.export.onnx import NEWEST_IR, OPSET, check_graph, to_onnx
from autoft.specs import Backbone

NAMES = ("pixel_values",)
LABELS = ("stripes-0", "Größe 2", 'quote"d')


def example(count: int = 2) -> tuple[Tensor, ...]:
    return (torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count)),)


def exported(model: nn.Module) -> onnx.ModelProto:
    return to_onnx(model, HEAD.activation, example(), input_names=NAMES, labels=LABELS)


def run(proto: onnx.ModelProto, inputs: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(["logits", "probabilities"], {"pixel_values": inputs.numpy()})
    return found


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    return exported(build().eval())


@pytest.mark.parametrize("backbone", [CONVNET, MLP], ids=lambda backbone: backbone.name)
def test_graph_answers_as_torch_does_at_any_batch_size(backbone: Backbone) -> None:
    model = build(backbone).eval()
    graph = exported(model)
    for count in (1, 2, 7, 32):
        (inputs,) = example(count)
        logits, probabilities = run(graph, inputs)
        with torch.no_grad():
            outputs = model(inputs)
        assert logits.shape == probabilities.shape == (count, 3)
        np.testing.assert_allclose(logits, outputs.numpy(), atol=1e-5)
        np.testing.assert_allclose(probabilities, outputs.softmax(dim=1).numpy(), atol=1e-5)


def test_model_in_training_mode_is_exported_in_evaluation_and_batchnorm_stays_as_it_is() -> None:
    model = build().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = exported(model)
    (inputs,) = example(5)
    np.testing.assert_allclose(run(graph, inputs)[0], model.eval()(inputs).detach().numpy(), atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_opset_and_ir_version_are_what_old_runtimes_read(proto: onnx.ModelProto) -> None:
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]
    assert proto.ir_version <= 10
    onnx.checker.check_model(proto, full_check=True)


def test_labels_are_in_the_metadata(proto: onnx.ModelProto) -> None:
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert tuple(json.loads(metadata["labels"])) == LABELS
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert tuple(json.loads(session.get_modelmeta().custom_metadata_map["labels"])) == LABELS


def secrets() -> list[str]:
    """What the exporter would write of this machine: its folders, and where the code lies in them."""
    return [
        str(Path(torch.__file__).parent),
        str(Path(__file__).parent),
        str(Path(export.__file__).parent),
        "Traceback",
        ".py",
    ]


@pytest.mark.parametrize("fallback", [False, True])
def test_graph_tells_nothing_of_the_machine_that_made_it(
    fallback: bool, proto: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fallback:
        monkeypatch.setattr(export, "_by_dynamo", refuse)
        proto = exported(build().eval())
    content = proto.SerializeToString()
    assert not [secret for secret in secrets() if secret.encode() in content]
    assert {entry.key for entry in proto.metadata_props} == {"labels", "producer"}


def test_exporter_would_have_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_strip", lambda proto: None)
    content = exported(build().eval()).SerializeToString()
    assert [secret for secret in secrets() if secret.encode() in content]


def test_exporting_twice_gives_equal_bytes() -> None:
    first, second = (exported(build(seed=3).eval()).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_exporters_chatter_stays_off_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    level = logging.getLogger("torch.onnx").level
    exported(build().eval())
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert logging.getLogger("torch.onnx").level == level


def test_single_example_is_refused_since_its_batch_would_come_out_fixed() -> None:
    with pytest.raises(ValueError, match=r"at least 2 rows, but has \[1\]"):
        to_onnx(build(), HEAD.activation, example(1), input_names=NAMES, labels=TARGETS.labels)


# --- the fallback -----------------------------------------------------------------------------------


def refuse(*arguments: object) -> onnx.ModelProto:
    raise RuntimeError("dynamo cannot do this\nand tells it at length")


def test_torchscript_exporter_serves_where_dynamo_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(export, "_by_dynamo", refuse)
    model = build().eval()
    with caplog.at_level("INFO", logger="autoft"):
        graph = exported(model)
    assert "torch's exporter failed (dynamo cannot do this), trying TorchScript" in caplog.text
    check_graph(graph, NAMES)
    assert {entry.key for entry in graph.metadata_props} == {"labels", "producer"}
    for count in (1, 7):
        (inputs,) = example(count)
        np.testing.assert_allclose(run(graph, inputs)[0], model(inputs).detach().numpy(), atol=1e-5)


class Foreign(nn.Module):
    """Uses an operator that ONNX lacks."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.linalg.eigvals(inputs[:, 0, :2, :2]).real


def test_exporters_print_nothing_not_even_below_python() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from test_export_onnx import Foreign, exported\n"
        "from autoft.errors import ExportError\n"
        "try:\n    exported(Foreign())\n"
        "except ExportError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True)
    assert done.stdout == "refused\n", "C++ would print the whole graph, at the latest when the process ends"
    assert done.returncode == 0


def test_model_that_neither_exporter_takes_is_refused_with_both_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_too(*arguments: object) -> onnx.ModelProto:
        raise ValueError("nor TorchScript this")

    monkeypatch.setattr(export, "_by_dynamo", refuse)
    monkeypatch.setattr(export, "_by_torchscript", refuse_too)
    with pytest.raises(ExportError, match="dynamo cannot do this; and with TorchScript: nor TorchScript this"):
        exported(build())


def test_batch_baked_into_the_graph_is_refused() -> None:
    class Baked(nn.Module):
        def forward(self, pixel_values: Tensor) -> Tensor:
            zeros = np.zeros((int(pixel_values.shape[0]), 3), np.float32)  # tracing sees the example's batch size
            return pixel_values.mean(dim=(2, 3)) + torch.from_numpy(zeros)

    with pytest.raises(ExportError, match="the batch axis of pixel_values must be dynamic, but is fixed to 2"):
        exported(Baked())


# --- check_graph ------------------------------------------------------------------------------------


def graph_of(
    *,
    opset: int = OPSET,
    domain: str | None = None,
    ir_version: int = NEWEST_IR,
    inputs: tuple[str, ...] = NAMES,
    outputs: tuple[str, ...] = ("logits", "probabilities"),
    batch: tuple[str | int | None, str | int | None] = ("batch", "batch"),
) -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", [inputs[0]], [output]) for output in outputs]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch[0], 3]) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch[1], 3]) for name in outputs],
    )
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def test_graph_as_promised_passes() -> None:
    check_graph(graph_of(), NAMES)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (graph_of(opset=20), "must use opset 18 alone, but uses {'': 20}"),
        (graph_of(opset=17), "must use opset 18 alone"),
        (graph_of(domain="com.microsoft"), "must use opset 18 alone, but uses .*com.microsoft"),
        (graph_of(ir_version=11), "IR version must be at most 10, but is 11"),
        (graph_of(inputs=("x",)), r"must map \['pixel_values'\] to .*, but maps \['x'\]"),
        (graph_of(inputs=("pixel_values", "mask")), r"but maps \['pixel_values', 'mask'\]"),
        (graph_of(outputs=("logits",)), r"to \['logits'\]"),
        (graph_of(outputs=("probabilities", "logits")), r"to \['probabilities', 'logits'\]"),
        (graph_of(batch=(2, "batch")), "batch axis of pixel_values must be dynamic, but is fixed to 2"),
        (graph_of(batch=("batch", 2)), "batch axis of logits must be dynamic, but is fixed to 2"),
    ],
)
def test_graph_that_breaks_a_promise_is_refused(graph: onnx.ModelProto, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_graph(graph, NAMES)
