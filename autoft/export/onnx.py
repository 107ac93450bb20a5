"""Turns a trained model into an ONNX graph with scores and label names inside."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

import onnx
import torch
from torch import Tensor, nn

from autoft.errors import ExportError, first_line

OPSET = 18
NEWEST_IR = 10  # what onnxruntime 1.22 and OpenVINO 2025 read; onnx itself would write a newer one
OUTPUTS = ("logits", "probabilities")

logger = logging.getLogger("autoft")


class WithScores(nn.Module):
    """A model that returns its outputs and the scores made of them.

    Args:
        model: Gives outputs `(N, K)`.
        activation: Makes scores of them, of the same shape.
    """

    def __init__(self, model: nn.Module, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.activation = activation

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs and scores, both `(N, K)`."""
        outputs = self.model(*inputs)
        return outputs, self.activation(outputs)


def to_onnx(
    model: nn.Module,
    activation: Callable[[Tensor], Tensor],
    example: Sequence[Tensor],
    *,
    input_names: Sequence[str],
    labels: Sequence[str],
) -> onnx.ModelProto:
    """Export a model at opset 18 with a dynamic batch.

    torch's exporter is tried first, its older TorchScript exporter where that fails; the log says so.

    Args:
        model: On the CPU, float32.
        activation: Turns outputs into scores inside the graph.
        example: Inputs with at least 2 rows: traced with one, the batch would come out fixed.
        input_names: Names of the inputs.
        labels: Class names; stored in the model's metadata as JSON under `labels`.

    Raises:
        ExportError: Neither exporter can translate the model, or the graph is not what was asked for.
    """
    if any(len(item) < 2 for item in example):
        raise ValueError(f"the example must have at least 2 rows, but has {[len(item) for item in example]}")
    wrapped = WithScores(model, activation).eval()
    try:
        proto = _by_dynamo(wrapped, tuple(example), input_names)
    except Exception as error:  # noqa: BLE001 - the exporter raises its own and torch's internal errors alike
        logger.info("torch's exporter failed (%s), trying TorchScript", first_line(error))
        try:
            proto = _by_torchscript(wrapped, tuple(example), input_names)
        except Exception as second:
            raise ExportError(
                f"the model cannot be exported to ONNX: {first_line(error)}; and with TorchScript: {first_line(second)}",
                "choose another backbone; `autoft plugins` lists the families",
            ) from second
    _strip(proto)
    _set_metadata(proto, {"labels": json.dumps(list(labels)), "producer": "autoft"})
    proto.ir_version = min(proto.ir_version, NEWEST_IR)
    check_graph(proto, input_names)
    return proto


def check_graph(proto: onnx.ModelProto, input_names: Sequence[str]) -> None:
    """Check what every runtime depends on: opset, IR version, names, and a dynamic batch.

    Raises:
        ExportError: One of them is not as promised.
    """
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    inputs = [value.name for value in proto.graph.input]
    outputs = [value.name for value in proto.graph.output]
    if opsets.get("", 0) != OPSET or set(opsets) - {""}:
        raise ExportError(f"the graph must use opset {OPSET} alone, but uses {opsets}")
    if proto.ir_version > NEWEST_IR:
        raise ExportError(f"the graph's IR version must be at most {NEWEST_IR}, but is {proto.ir_version}")
    if inputs != list(input_names) or outputs != list(OUTPUTS):
        raise ExportError(f"the graph must map {list(input_names)} to {list(OUTPUTS)}, but maps {inputs} to {outputs}")
    for value in [*proto.graph.input, *proto.graph.output]:
        first = value.type.tensor_type.shape.dim[0]
        if not first.dim_param:
            raise ExportError(f"the batch axis of {value.name} must be dynamic, but is fixed to {first.dim_value}")


def _by_dynamo(wrapped: nn.Module, example: tuple[Tensor, ...], input_names: Sequence[str]) -> onnx.ModelProto:
    batch = torch.export.Dim("batch")
    with torch.no_grad(), _quiet():  # some families (beit, maxvit) cannot be exported with gradients on
        program = torch.onnx.export(
            wrapped,
            example,
            input_names=list(input_names),
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=(tuple({0: batch} for _ in example),),  # one entry for *inputs
            verbose=False,
        )
    if program is None:
        raise ExportError("torch's exporter gave no program")
    proto: onnx.ModelProto = program.model_proto
    return proto


def _by_torchscript(wrapped: nn.Module, example: tuple[Tensor, ...], input_names: Sequence[str]) -> onnx.ModelProto:
    buffer = io.BytesIO()
    with torch.no_grad(), _quiet(), _silent_descriptors():
        torch.onnx.export(
            wrapped,
            example,
            buffer,  # type: ignore[arg-type]
            input_names=list(input_names),
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            dynamo=False,
            dynamic_axes={name: {0: "batch"} for name in (*input_names, *OUTPUTS)},
        )
    return onnx.load_model_from_string(buffer.getvalue())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' chatter off the user's terminal; what matters is raised."""
    chatty = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [chatterer.level for chatterer in chatty]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for chatterer in chatty:
            chatterer.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for chatterer, level in zip(chatty, levels, strict=True):
                chatterer.setLevel(level)


@contextlib.contextmanager
def _silent_descriptors() -> Iterator[None]:
    """Drop what TorchScript's C++ prints past Python's streams: it writes whole graphs to stdout, where results go."""
    libc = ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt
    with open(os.devnull, "wb") as nowhere:
        sys.stdout.flush()
        sys.stderr.flush()
        libc.fflush(None)
        kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
        try:
            for descriptor in kept:
                os.dup2(nowhere.fileno(), descriptor)
            yield
        finally:
            libc.fflush(None)
            for descriptor, copy in kept.items():
                os.dup2(copy, descriptor)
                os.close(copy)


def _strip(proto: onnx.ModelProto) -> None:
    """Remove stack traces and module paths: they tell strangers about the machine, and swell the file."""
    del proto.metadata_props[:]
    proto.doc_string = ""
    graph = proto.graph
    graph.doc_string = ""
    for item in [*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        item.doc_string = ""
        del item.metadata_props[:]
    del graph.metadata_props[:]


def _set_metadata(proto: onnx.ModelProto, entries: dict[str, str]) -> None:
    for key, value in entries.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
