"""Writes `config.pbtxt`, by which NVIDIA's Triton serves a bundle's graph, with dynamic batching."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto

MOST = 64  # samples that Triton puts together
DELAY = 1000  # microseconds that it waits for more of them
TYPES: dict[int, str] = {
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.UINT8: "TYPE_UINT8",
}


def triton_config(proto: onnx.ModelProto) -> str:
    """Return the text of `config.pbtxt` for a graph whose first axis is the batch; other dynamic axes are -1.

    In Triton's model repository it lies at `NAME/config.pbtxt`, and what the bundle has in `onnx/` at `NAME/1/`.

    Raises:
        KeyError: An input or output has a type that no graph of autoft has.
    """
    return "\n".join(
        [
            'backend: "onnxruntime"',
            'default_model_filename: "model.onnx"',
            f"max_batch_size: {MOST}",
            *_section("input", proto.graph.input),
            *_section("output", proto.graph.output),
            "dynamic_batching {",
            f"  max_queue_delay_microseconds: {DELAY}",
            "}",
            "",
        ]
    )


def _section(kind: str, values: Sequence[onnx.ValueInfoProto]) -> list[str]:
    parts = []
    for value in values:
        tensor = value.type.tensor_type
        sizes = [-1 if axis.dim_param or not axis.dim_value else axis.dim_value for axis in tensor.shape.dim[1:]]
        dims = ", ".join(map(str, sizes))
        parts.append(f'  {{\n    name: "{value.name}"\n    data_type: {TYPES[tensor.elem_type]}\n    dims: [ {dims} ]\n  }}')
    return [f"{kind} [", ",\n".join(parts), "]"]
