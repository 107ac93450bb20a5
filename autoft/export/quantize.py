"""Makes smaller and faster variants of an exported graph: float16, and int8 with or without calibration.

Each is an ordinary ONNX graph of the same inputs and outputs. Whether it is still good enough, the gate decides.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from autoft.errors import ExportError, first_line
from autoft.export.graphs import MOST_BYTES, save_graph, weight_bytes
from autoft.export.onnx import NEWEST_IR, OPSET

Variant = Literal["fp16", "int8"]
VARIANTS: tuple[Variant, ...] = ("fp16", "int8")
# of the weights: below, convolutions are an image's patches or depthwise, and the work is in matrix products
CONVOLUTIONAL = 0.5

Batch = Mapping[str, np.ndarray]


def is_convolutional(proto: onnx.ModelProto) -> bool:
    """Return whether most of a graph's weights are those of convolutions."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in proto.graph.initializer}
    counted = {"Conv": 0, "MatMul": 0, "Gemm": 0}
    for node in proto.graph.node:
        if node.op_type in counted:
            counted[node.op_type] += sum(sizes.get(name, 0) for name in node.input)
    return counted["Conv"] > CONVOLUTIONAL * sum(counted.values())


def method_of(variant: Variant, proto: onnx.ModelProto) -> str:
    """Return in words how a variant is made of a graph."""
    if variant == "fp16":
        return "float16 weights and activations, float32 inputs and outputs"
    if is_convolutional(proto):
        return "int8 weights and activations (QDQ), scales calibrated on training samples"
    return "int8 weights of MatMul and Gemm, scales of activations found in each run"


def make_variant(variant: Variant, source: Path, target: Path, calibration: Iterable[Batch]) -> None:
    """Write a variant of a graph.

    Args:
        variant: Which.
        source: The float32 graph.
        target: Where the variant is to be.
        calibration: Inputs by name, batch by batch, of training samples; read only where activations are calibrated.

    Raises:
        ExportError: The graph cannot be made so.
    """
    proto = onnx.load_model(source)
    if weight_bytes(proto) > MOST_BYTES:
        raise ExportError(f"{variant}: graphs over 2 GB cannot be quantized here", "take it out of `export.quantize`")
    # shapes of the float32 graph: wrong for what quantization puts in, and onnxruntime's quantizer fails over them
    del proto.graph.value_info[:]
    entries = [(entry.key, entry.value) for entry in proto.metadata_props]
    with tempfile.TemporaryDirectory(prefix="autoft-quantize-") as folder, _quiet():
        plain = Path(folder) / "plain.onnx"
        onnx.save_model(proto, plain)
        try:
            made = _fp16(proto) if variant == "fp16" else _int8(proto, plain, Path(folder), calibration)
        except Exception as error:  # onnxruntime's tools raise whatever they stumble over
            raise ExportError(f"{variant} cannot be made of this graph: {first_line(error)}") from error
    _as_promised(made, entries)
    save_graph(made, target)


def _fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    made: onnx.ModelProto = convert_float_to_float16(proto, keep_io_types=True)
    return made


def _int8(proto: onnx.ModelProto, plain: Path, folder: Path, calibration: Iterable[Batch]) -> onnx.ModelProto:
    """Quantize to int8; weights use seven of the bits, channel by channel.

    Without VNNI, x86 adds two products of 8 bits in 16 (`vpmaddubsw`), which saturates: 255 * 127 * 2 is too much, and
    255 * 64 * 2 is not. So a graph proven on one machine gives the same on each.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    made = folder / "int8.onnx"
    if not is_convolutional(proto):
        quantize_dynamic(
            plain,
            made,
            op_types_to_quantize=["MatMul", "Gemm"],  # with Conv it is three times slower than float32
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        return onnx.load_model(made)
    prepared = folder / "prepared.onnx"
    quant_pre_process(plain, prepared, skip_symbolic_shape=True)  # folds BatchNorm into convolutions
    quantize_static(
        prepared,
        made,
        _reader(calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,  # two to three times as fast as signed ones on x86 with VNNI
        weight_type=QuantType.QInt8,
        reduce_range=True,
    )
    return onnx.load_model(made)


def _reader(calibration: Iterable[Batch]) -> object:
    """Return a reader of batches as onnxruntime wants it; its base class is not typed, and not known before it is used."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Gives one batch after the other, then None."""

        def __init__(self) -> None:
            self._rest = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            """Return the next batch."""
            batch = next(self._rest, None)
            return None if batch is None else dict(batch)

    return Reader()


def _as_promised(proto: onnx.ModelProto, entries: Iterable[tuple[str, str]]) -> None:
    """Give a rewritten graph its metadata back, and check opset and IR version, which rewriting tools change."""
    del proto.metadata_props[:]
    for key, value in entries:
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    used = {node.domain for node in proto.graph.node}
    kept = [entry for entry in proto.opset_import if entry.domain in used | {""}]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    proto.ir_version = min(proto.ir_version, NEWEST_IR)
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if opsets != {"": OPSET}:
        raise ExportError(f"a variant must use opset {OPSET} alone, but uses {opsets}", "take it out of `export.quantize`")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tools' advice off the user's terminal: it is written to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
