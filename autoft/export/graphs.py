"""Writes and runs graphs of any size: beyond protobuf's 2 GB, the weights go into a file beside the graph."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import onnx

# Of one file, as protobuf can write no message of 2 GiB; some room is left for the graph itself.
MOST_BYTES = (2 << 30) - (64 << 20)
DATA = "_data"  # what the file with the weights is called beyond the graph's name, as transformers.js looks for it


def weight_bytes(proto: onnx.ModelProto) -> int:
    """Return how many bytes a graph's weights take."""
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer)


def graph_bytes(proto: onnx.ModelProto) -> int:
    """Return how many bytes a graph takes with its weights, in whatever files."""
    weights = weight_bytes(proto)
    return int(proto.ByteSize()) if weights <= MOST_BYTES else weights  # beside so much, the rest is nothing


def save_graph(proto: onnx.ModelProto, file: Path) -> None:
    """Write a graph as one file, or where it is too large for that, as `NAME` and `NAME_data` beside it.

    A graph that is too large is left without its weights: they would be in memory twice else.
    """
    if weight_bytes(proto) <= MOST_BYTES:
        onnx.save_model(proto, file)
        return
    onnx.save_model(
        proto, file, save_as_external_data=True, all_tensors_to_one_file=True, location=file.name + DATA, size_threshold=1024
    )
    os.chmod(file.with_name(file.name + DATA), file.stat().st_mode)  # onnx makes it readable for its owner alone


def make_session(proto: onnx.ModelProto, options: Any) -> Any:
    """Return a session of ONNX Runtime on the CPU for a graph that is in no file.

    Args:
        proto: The graph; one that is too large for one message goes through a temporary folder.
        options: `onnxruntime.SessionOptions`.
    """
    import onnxruntime

    if weight_bytes(proto) <= MOST_BYTES:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory(prefix="autoft-graph-") as folder:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        save_graph(copy, Path(folder) / "model.onnx")
        return onnxruntime.InferenceSession(Path(folder) / "model.onnx", options, providers=["CPUExecutionProvider"])
