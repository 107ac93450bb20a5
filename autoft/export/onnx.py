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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn

from autoft.errors import ExportError, first_line
from autoft.export.graphs import make_session

OPSET = 18
NEWEST_IR = 10  # what onnxruntime 1.22 and OpenVINO 2025 read; onnx itself would write a newer one
OUTPUTS = ("logits", "probabilities")  # of a graph that classifies; other tasks name other scores, or none
SHORTEST_EXAMPLE = 4  # tokens: tracing takes axes of 0 or 1 for constants, and half of it is tried
TOLERANCE = 1e-3

logger = logging.getLogger("autoft")


class WithScores(nn.Module):
    """A model that returns its outputs, and the scores made of them where there are any.

    Args:
        model: Gives outputs `(N, ..., K)`.
        activation: Makes scores of them, of the same shape; None where the outputs are the answer.
    """

    def __init__(self, model: nn.Module, activation: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.model = model
        self.activation = activation

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return outputs, and scores of the same shape."""
        outputs = self.model(*inputs)
        return (outputs,) if self.activation is None else (outputs, self.activation(outputs))


def output_names(scores: str | None) -> tuple[str, ...]:
    """Return the names of a graph's outputs, given the name of its scores or None where it has none."""
    return ("logits",) if scores is None else ("logits", scores)


def to_onnx(
    model: nn.Module,
    activation: Callable[[Tensor], Tensor],
    example: Sequence[Tensor],
    *,
    input_names: Sequence[str],
    labels: Sequence[str],
    scores: str | None = "probabilities",
    lengths: bool = False,
    metadata: Mapping[str, str] = {},
) -> onnx.ModelProto:
    """Export a model at opset 18 with a dynamic batch.

    torch's exporter is tried first, its older TorchScript exporter where that fails or fixes an axis; the log says so.

    Args:
        model: On the CPU, float32.
        activation: Turns outputs into scores inside the graph.
        example: Inputs with at least 2 rows: traced with one, the batch would come out fixed. With `lengths`, of at least 4
            tokens, one row shorter than the other, so that no mask is all ones.
        input_names: Names of the inputs.
        labels: Names of the outputs' columns; stored in the model's metadata as JSON under `labels`.
        scores: Name of the second output, or None for a graph that gives `logits` alone.
        lengths: Whether rows differ in length from batch to batch: axis 1 of all inputs is then dynamic too, and so is that
            of outputs `(N, T, K)`. The graph is run at two other shapes and compared with the model.
        metadata: What else to store in the model's metadata.

    Raises:
        ExportError: Neither exporter can translate the model, or the graph is not what was asked for.
    """
    if any(len(item) < 2 for item in example):
        raise ValueError(f"the example must have at least 2 rows, but has {[len(item) for item in example]}")
    if lengths and any(item.shape[1] < SHORTEST_EXAMPLE for item in example):
        found = [item.shape[1] for item in example]
        raise ValueError(f"the example must have at least {SHORTEST_EXAMPLE} tokens, but has {found}")
    wrapped = WithScores(model, None if scores is None else activation).eval()
    names = _Names(tuple(input_names), output_names(scores), lengths)
    entries = {"labels": json.dumps(list(labels)), "producer": "autoft", **metadata}
    try:
        proto = _finished(_by_dynamo(wrapped, tuple(example), names), names, entries)
        if lengths:
            _check_shapes(proto, wrapped, example, names)
        return proto
    except Exception as error:  # noqa: BLE001 - the exporter raises its own and torch's internal errors alike
        logger.info("torch's exporter failed (%s), trying TorchScript", first_line(error))
        try:
            proto = _finished(_by_torchscript(wrapped, tuple(example), names), names, entries)
            _check_shapes(proto, wrapped, example, names)  # it calls any axis dynamic that it was told is
            return proto
        except Exception as second:
            raise ExportError(
                f"the model cannot be exported to ONNX: {first_line(error)}; and with TorchScript: {first_line(second)}",
                "choose another backbone; `autoft plugins` lists the families",
            ) from second


def check_graph(
    proto: onnx.ModelProto, input_names: Sequence[str], outputs: Sequence[str] = OUTPUTS, *, lengths: bool = False
) -> None:
    """Check what every runtime depends on: opset, IR version, names, and dynamic axes.

    Args:
        proto: The graph.
        input_names: The inputs that it must have, in this order.
        outputs: The outputs that it must have, in this order.
        lengths: Whether axis 1 of inputs, and of outputs of 3 axes, must be dynamic as the batch is.

    Raises:
        ExportError: One of them is not as promised.
    """
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    found_inputs = [value.name for value in proto.graph.input]
    found_outputs = [value.name for value in proto.graph.output]
    if opsets.get("", 0) != OPSET or set(opsets) - {""}:
        raise ExportError(f"the graph must use opset {OPSET} alone, but uses {opsets}")
    if proto.ir_version > NEWEST_IR:
        raise ExportError(f"the graph's IR version must be at most {NEWEST_IR}, but is {proto.ir_version}")
    if found_inputs != list(input_names) or found_outputs != list(outputs):
        raise ExportError(
            f"the graph must map {list(input_names)} to {list(outputs)}, but maps {found_inputs} to {found_outputs}"
        )
    for value in [*proto.graph.input, *proto.graph.output]:
        sizes = value.type.tensor_type.shape.dim
        long = lengths and (value.name in found_inputs or len(sizes) > 2)
        for axis, what in ((0, "batch"), *(((1, "length"),) if long else ())):
            if not sizes[axis].dim_param:
                raise ExportError(
                    f"the {what} axis of {value.name} must be dynamic, but is fixed to {sizes[axis].dim_value}"
                )


@dataclass(frozen=True)
class _Names:
    """What the graph's inputs and outputs are called, and whether their length is dynamic."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    lengths: bool


def _by_dynamo(wrapped: nn.Module, example: tuple[Tensor, ...], names: _Names) -> onnx.ModelProto:
    axes = {0: torch.export.Dim("batch")}
    if names.lengths:
        axes[1] = torch.export.Dim("length")  # named, so that a length that comes out fixed is an error
    with torch.no_grad(), _quiet():  # some families (beit, maxvit) cannot be exported with gradients on
        program = torch.onnx.export(
            wrapped,
            example,
            input_names=list(names.inputs),
            output_names=list(names.outputs),
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=(tuple(dict(axes) for _ in example),),  # one entry for *inputs
            verbose=False,
        )
    if program is None:
        raise ExportError("torch's exporter gave no program")
    proto: onnx.ModelProto = program.model_proto
    return proto


def _by_torchscript(wrapped: nn.Module, example: tuple[Tensor, ...], names: _Names) -> onnx.ModelProto:
    buffer = io.BytesIO()
    with torch.no_grad(), _quiet(), _silent_descriptors():
        tokens = names.lengths and wrapped(*example)[0].dim() > 2
        batch, both = {0: "batch"}, {0: "batch", 1: "length"}
        torch.onnx.export(
            wrapped,
            example,
            buffer,  # type: ignore[arg-type]
            input_names=list(names.inputs),
            output_names=list(names.outputs),
            opset_version=OPSET,
            dynamo=False,
            dynamic_axes={
                **dict.fromkeys(names.inputs, both if names.lengths else batch),
                **dict.fromkeys(names.outputs, both if tokens else batch),
            },
        )
    return onnx.load_model_from_string(buffer.getvalue())


def _finished(proto: onnx.ModelProto, names: _Names, entries: Mapping[str, str]) -> onnx.ModelProto:
    """Return a graph without traces of this machine and with its metadata, once it is seen to be as promised."""
    _strip(proto)
    _set_metadata(proto, entries)
    proto.ir_version = min(proto.ir_version, NEWEST_IR)
    check_graph(proto, names.inputs, names.outputs, lengths=names.lengths)
    return proto


def _check_shapes(proto: onnx.ModelProto, wrapped: nn.Module, example: Sequence[Tensor], names: _Names) -> None:
    """Compare a graph with its model at other shapes than the one it was traced with: fewer and more rows and tokens.

    Tracing may keep the example's size in a mask, or one branch of a condition on it, behind axes that look dynamic.
    """
    import onnxruntime  # here: images traced by dynamo are not run before the gate

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised below
    session = make_session(proto, options)
    length = example[0].shape[1]
    for rows, tokens in ((1, length // 2), (3, length + 3)):
        inputs = _resized(example, rows, tokens if names.lengths else None)
        try:
            with torch.no_grad():
                wanted = wrapped(*inputs)
        except (IndexError, RuntimeError, ValueError):
            if not names.lengths or tokens < length:
                raise
            inputs = _resized(example, rows, length - 1)  # the example is as long as the model allows
            with torch.no_grad():
                wanted = wrapped(*inputs)
        found = session.run(
            list(names.outputs), {name: item.numpy() for name, item in zip(names.inputs, inputs, strict=True)}
        )
        shape = tuple(inputs[0].shape)
        for name, theirs, ours in zip(names.outputs, map(torch.from_numpy, found), wanted, strict=True):
            if theirs.shape != ours.shape:
                raise ExportError(f"{name} of a graph for {shape} must be {tuple(ours.shape)}, but is {tuple(theirs.shape)}")
            if ours.dim() > 2 and "attention_mask" in names.inputs:
                kept = inputs[names.inputs.index("attention_mask")].bool()  # what lies behind a text's end is nobody's
                theirs, ours = theirs[kept], ours[kept]
            apart = float((theirs - ours).abs().max())
            if not apart <= TOLERANCE * max(1.0, float(ours.abs().max())):  # written so that NaN fails
                raise ExportError(
                    f"{name} of the graph must be the model's for inputs of {shape}, but differ by {apart:.3g}"
                )


def _resized(example: Sequence[Tensor], rows: int, tokens: int | None) -> tuple[Tensor, ...]:
    """Return inputs of another shape: rows repeated, and each stretched to so many tokens, so that masks keep their form."""
    chosen = [item[torch.arange(rows) % len(item)] for item in example]
    if tokens is None:
        return tuple(chosen)
    return tuple(item[:, torch.arange(tokens) * item.shape[1] // tokens] for item in chosen)


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


def _set_metadata(proto: onnx.ModelProto, entries: Mapping[str, str]) -> None:
    for key, value in entries.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
