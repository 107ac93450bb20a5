"""Builds `onnx/preprocess.onnx`: raw pixels of any size to a model's input, inside ONNX Runtime.

The declaration is that of the bundle's own script, which is what this graph is measured against. With onnxruntime's
antialiased uint8 `Resize`, which follows Pillow's fixed-point arithmetic, fewer than 1 pixel value of 100 differs, by 1
of 255; at most 2 were seen, in single values of images blown up ninefold. OpenVINO and transformers.js ignore
`antialias`, and are off by about 10 of 255 on shrunk photos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from autoft.errors import ExportError
from autoft.runtime.image_classification import check_preprocessing

OPSET = 18
IR_VERSION = 10

# ONNX's `Resize` knows these of Pillow's filters. Its `nearest` breaks ties by float32 arithmetic, Pillow's by float64.
_MODES = {"bilinear": "linear", "bicubic": "cubic"}


def can_preprocess(preprocessing: Mapping[str, Any]) -> bool:
    """Return whether a declaration is of images whose interpolation ONNX can repeat; others go without a model."""
    return preprocessing.get("kind") == "image" and preprocessing.get("interpolation") in _MODES


def build_preprocess_model(preprocessing: Mapping[str, Any]) -> onnx.ModelProto:
    """Return a model that preprocesses a batch of images as `predict.py` does.

    Args:
        preprocessing: As `autoft.runtime.image_classification.check_preprocessing` describes it.

    Returns:
        Input `image`, uint8 (N, H, W, 3), upright RGB of any size; output `pixel_values`, float32 (N, 3, h, w).

    Raises:
        ExportError: The declaration is wrong, or its interpolation has no counterpart in ONNX.
    """
    try:
        check_preprocessing(preprocessing)
    except ValueError as error:
        raise ExportError(str(error), hint="see `check_preprocessing` for what each field may hold") from error
    interpolation = preprocessing["interpolation"]
    if interpolation not in _MODES:
        raise ExportError(
            f"ONNX can repeat Pillow's {' and '.join(_MODES)} interpolation, but the model uses {interpolation!r}",
            hint="leave onnx/preprocess.onnx out: predict.py resizes with Pillow",
        )
    graph = _Graph()
    pixels = graph.add("Transpose", ["image"], perm=[0, 3, 1, 2])
    pixels, height, width = _resize(graph, pixels, preprocessing["resize"], _MODES[interpolation])
    pixels = _center_crop(graph, pixels, height, width, preprocessing)
    mean = np.asarray(preprocessing["mean"], np.float32).reshape(1, 3, 1, 1)
    std = np.asarray(preprocessing["std"], np.float32).reshape(1, 3, 1, 1)
    scaled = graph.add("Div", [graph.add("Cast", [pixels], to=TensorProto.FLOAT), graph.constant(np.float32(255))])
    centered = graph.add("Sub", [scaled, graph.constant(mean)])
    graph.add("Div", [centered, graph.constant(std)], output="pixel_values")
    return graph.model(list(preprocessing["size"]))


def _resize(graph: _Graph, pixels: str, resize: Mapping[str, Any], mode: str) -> tuple[str, str, str]:
    """Return the resized pixels, their height, and their width, the latter two int64 (1,)."""
    shape = graph.add("Shape", [pixels])
    outer = graph.add("Slice", [shape, graph.ints(0), graph.ints(2)])
    if resize["mode"] == "exact":
        height, width = (graph.ints(side) for side in resize["size"])
    else:
        side = graph.ints(resize["size"])
        old_height = graph.add("Slice", [shape, graph.ints(2), graph.ints(3)])
        old_width = graph.add("Slice", [shape, graph.ints(3), graph.ints(4)])
        # max() because of two sides, one is the shorter and gives exactly `side`; whole numbers divide rounding down.
        height = graph.add("Max", [graph.add("Div", [graph.add("Mul", [side, old_height]), old_width]), side])
        width = graph.add("Max", [graph.add("Div", [graph.add("Mul", [side, old_width]), old_height]), side])
    # All four sizes rather than `axes`: onnxruntime 1.32's layout optimizer loses the latter next to a Transpose.
    sizes = graph.add("Concat", [outer, height, width], axis=0)
    resized = graph.add(
        "Resize",
        [pixels, "", "", sizes],
        mode=mode,
        antialias=1,
        cubic_coeff_a=-0.5,
        exclude_outside=1,
        coordinate_transformation_mode="half_pixel",
    )
    return resized, height, width


def _center_crop(graph: _Graph, pixels: str, height: str, width: str, preprocessing: Mapping[str, Any]) -> str:
    size = graph.ints(*preprocessing["size"])
    have = graph.add("Concat", [height, width], axis=0)
    resize = preprocessing["resize"]
    smallest = [resize["size"]] * 2 if resize["mode"] == "shortest" else resize["size"]
    if any(side < wanted for side, wanted in zip(smallest, preprocessing["size"], strict=True)):
        missing = graph.add("Max", [graph.add("Sub", [size, have]), graph.ints(0)])
        before = graph.add("Div", [missing, graph.ints(2)])
        pads = graph.add("Concat", [before, graph.add("Sub", [missing, before])], axis=0)
        pixels = graph.add("Pad", [pixels, pads, graph.constant(np.uint8(0)), graph.ints(2, 3)])
        have = graph.add("Max", [have, size])
    # Round goes to the even neighbour at one half, as Python's does in the script.
    extra = graph.add("Cast", [graph.add("Sub", [have, size])], to=TensorProto.FLOAT)
    half = graph.add("Round", [graph.add("Div", [extra, graph.constant(np.float32(2))])])
    start = graph.add("Cast", [half], to=TensorProto.INT64)
    return graph.add("Slice", [pixels, start, graph.add("Add", [start, size]), graph.ints(2, 3)])


class _Graph:
    """Collects nodes and constants, and names what they give."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        name = output or f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, values: Any) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.asarray(values, np.int64))

    def model(self, size: list[int]) -> onnx.ModelProto:
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3])
        pixel_values = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, *size])
        graph = helper.make_graph(self._nodes, "preprocess", [image], [pixel_values], self._constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="autoft",
            doc_string="Upright RGB pixels to model input. Matches predict.py in ONNX Runtime only.",
        )
        onnx.checker.check_model(model, full_check=True)
        return model
