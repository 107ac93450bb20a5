"""Faults that the field knows from production, each planted in an exported bundle: the gate stops every one and names it.

Faults that need less than a whole bundle, or are of one module, are in the tests of these: parity, text, preprocess.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from test_runtime_text import rehash
from text_bundles import LIMITS, Made
from toy_training import CONVNET, HEAD, build, config, pick, split

from autoft.errors import ExportError
from autoft.export.bundle import Trained, export_bundle
from autoft.export.onnx import check_graph
from autoft.export.parity import check_parity
from autoft.files import read_json
from autoft.testing.toy import toy_samples
from autoft.train import Objective, fit, predict

CPU = torch.device("cpu")
SAMPLES = toy_samples(classes=3, per_class=16, size=41)  # larger than the model's 16, so that they are resized
MODEL = "onnx/model.onnx"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle for images, of a trained model."""
    train, validation = (pick(SAMPLES, validation=part) for part in (False, True))
    targets = HEAD.describe([sample.target for sample in train])
    objective = Objective(HEAD, targets, "accuracy")
    settings = config(epochs=8, learning_rate=1e-2)
    model = build(CONVNET, settings.knobs)
    data = [split(part) for part in (train, validation)]
    model.load_state_dict(fit(model, *data, objective, settings, device=CPU).weights)
    facts = {
        "name": "stripes",
        "data": {"train": 36, "validation": 12, "test": 12, "rejected": 0, "made_splits": []},
        "training": {
            "trial": 0,
            "trials": 1,
            "epoch": 8,
            "device": "cpu",
            "precision": "fp32",
            "settings": {},
            "test_scored": 1,
            "why_not_repeated": [],
        },
    }
    trained = Trained(model, CONVNET, objective, data[1], data[1], facts)
    folder = tmp_path_factory.mktemp("images") / "bundle"
    return Made(trained, export_bundle(trained, folder, max_metric_drop=0.0, max_output_difference=1e-3, golden=3), folder)


@pytest.fixture
def texts(text_bundle: Callable[[str], Made]) -> Made:
    return text_bundle("label")


def copy(made: Made, folder: Path) -> Made:
    """Copy a bundle, to be damaged."""
    return made._replace(folder=Path(shutil.copytree(made.folder, folder / "bundle")))


def gate(made: Made, **limits: float) -> Any:
    trained = made.trained
    data = trained.validation
    outputs: Any = predict(trained.model, data, device=CPU, batch_size=64)
    return check_parity(made.folder, data.samples, outputs, data.targets, trained.objective, **{**LIMITS, **limits})


def declare(made: Made, **changes: Any) -> None:
    """Change how the contract declares the preprocessing."""
    rehash(made.folder, preprocessing={**read_json(made.folder / "autoft.json")["preprocessing"], **changes})


def edit_script(made: Made, line: str, other: str) -> None:
    script = made.folder / "predict.py"
    source = script.read_text()
    assert source.count(line) == 1
    script.write_text(source.replace(line, other))
    rehash(made.folder)


def edit_graph(made: Made, change: Callable[[onnx.GraphProto], object]) -> onnx.ModelProto:
    proto = onnx.load_model(made.folder / MODEL)
    change(proto.graph)
    onnx.save_model(proto, made.folder / MODEL)
    rehash(made.folder)
    return proto


# --- images -----------------------------------------------------------------------------------------


def swapped_normalization(made: Made) -> None:
    declared = read_json(made.folder / "autoft.json")["preprocessing"]
    declare(made, mean=declared["std"], std=declared["mean"])


def pixels_not_scaled(made: Made) -> None:
    edit_script(made, "batch.astype(np.float32) / np.float32(255)", "batch.astype(np.float32)")


def blue_first_in_the_script(made: Made) -> None:
    edit_script(made, "scaled.transpose(0, 3, 1, 2)", "scaled.transpose(0, 3, 1, 2)[:, ::-1]")


def blue_first_in_the_graph(made: Made) -> None:
    def change(graph: onnx.GraphProto) -> None:
        first = next(item for item in graph.initializer if len(item.dims) == 4 and item.dims[1] == 3)
        values = np.ascontiguousarray(numpy_helper.to_array(first)[:, ::-1])
        first.CopyFrom(numpy_helper.from_array(values, first.name))

    edit_graph(made, change)


def rows_and_columns_exchanged(made: Made) -> None:
    edit_script(made, "scaled.transpose(0, 3, 1, 2)", "scaled.transpose(0, 3, 2, 1)")


def other_filter(made: Made) -> None:
    declare(made, interpolation="bicubic")


def filter_without_antialias(made: Made) -> None:
    """Resize as OpenCV and a plain `interpolate` do."""
    matrix = "(image.width / size[0], 0, 0, 0, image.height / size[1], 0)"
    affine = f"image.transform(size, Image.Transform.AFFINE, {matrix}, Image.Resampling.BILINEAR)"
    edit_script(made, "image = image.resize(size, filtered)", f"image = {affine}")


def shifted_crop(made: Made) -> None:
    edit_script(made, "pixels[top : top + size[0], left : left + size[1]]", "np.roll(pixels, 1, axis=1)")


IMAGE_FAULTS = [
    swapped_normalization,
    pixels_not_scaled,
    blue_first_in_the_script,
    blue_first_in_the_graph,
    rows_and_columns_exchanged,
    other_filter,
    filter_without_antialias,
    shifted_crop,
]


def test_sound_bundle_for_images_passes(images: Made) -> None:
    assert gate(images).trained > 0.8


@pytest.mark.parametrize("fault", IMAGE_FAULTS, ids=lambda fault: fault.__name__)
def test_fault_on_the_way_of_an_image_is_stopped(fault: Callable[[Made], None], images: Made, tmp_path: Path) -> None:
    made = copy(images, tmp_path)
    fault(made)
    # even where the metric may do what it likes
    with pytest.raises(ExportError, match=r"outputs differ by up to .*; worst samples: stripes-") as caught:
        gate(made, max_metric_drop=1.0)
    assert sum(sample.id in caught.value.message for sample in images.trained.validation.samples) == 3


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_shuffled_labels_are_stopped_and_listed(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    made = copy(request.getfixturevalue(kind), tmp_path)
    labels = read_json(made.folder / "autoft.json")["labels"]
    rehash(made.folder, labels=[labels[1], labels[0], *labels[2:]])
    with pytest.raises(ExportError, match=f"the bundle's labels .* are {labels[1]}, {labels[0]}, .* instead of {labels[0]}"):
        gate(made)


# --- texts ------------------------------------------------------------------------------------------


def one_token_less(made: Made) -> None:
    declared = read_json(made.folder / "autoft.json")["preprocessing"]
    declare(made, max_length=declared["max_length"] - 1)


def end_cut_off(made: Made) -> None:
    """Cut the tokens as a plain slice would, which loses the token that ends a text."""
    edit_script(made, "mask[row, : len(item)] = 1", "mask[row, : min(len(item), 47)] = 1")


@pytest.mark.parametrize("fault", [one_token_less, end_cut_off], ids=lambda fault: fault.__name__)
def test_truncation_that_is_off_by_one_is_stopped_naming_the_long_text(
    fault: Callable[[Made], None], texts: Made, tmp_path: Path
) -> None:
    made = copy(texts, tmp_path)
    assert gate(made).samples > 1
    fault(made)
    with pytest.raises(ExportError, match=r"worst samples: long \(") as caught:  # the only one that is longer than that
        gate(made, max_metric_drop=1.0)
    assert "accuracy" in caught.value.message or "f1" in caught.value.message


# --- graphs -----------------------------------------------------------------------------------------


def quantize(made: Made) -> None:
    """Put a dynamically quantized graph in the place of the model."""
    whole, small = made.folder / MODEL, made.folder / "small.onnx"
    quantize_dynamic(whole, small, weight_type=QuantType.QInt8, reduce_range=True)
    small.replace(whole)
    rehash(made.folder)


def scales(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = [item for item in graph.initializer if item.name.endswith("_scale") and item.data_type == TensorProto.FLOAT]
    assert found
    return found


@pytest.mark.parametrize("factor", [2.0, 0.0, float("nan")])
def test_damaged_scale_of_an_int8_graph_is_stopped(factor: float, texts: Made, tmp_path: Path) -> None:
    made = copy(texts, tmp_path)
    quantize(made)
    limits = {"max_output_difference": 0.5, "max_metric_drop": 0.1}
    honest = gate(made, **limits)
    assert 1e-6 < honest.max_output_difference < 0.25, "quantized, and sound"

    def change(graph: onnx.GraphProto) -> None:
        damaged = scales(graph)[-1]
        values = numpy_helper.to_array(damaged) * np.float32(factor)
        damaged.CopyFrom(numpy_helper.from_array(values.astype(np.float32), damaged.name))

    edit_graph(made, change)
    with pytest.raises(ExportError, match="outputs differ by up to"):
        gate(made, **limits)


def test_batch_fixed_in_the_graphs_input_is_named(images: Made, tmp_path: Path) -> None:
    made = copy(images, tmp_path)

    def change(graph: onnx.GraphProto) -> None:
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2

    proto = edit_graph(made, change)
    with pytest.raises(ExportError, match=r"the exported model fails: .*pixel_values"):
        gate(made)
    with pytest.raises(ExportError, match="the batch axis of pixel_values must be dynamic, but is fixed to 2"):
        check_graph(proto, ["pixel_values"])


def test_batch_fixed_inside_of_the_graph_is_stopped(images: Made, tmp_path: Path) -> None:
    """A dynamic axis outside and a constant inside is what tracing leaves."""
    made = copy(images, tmp_path)

    def change(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if "logits" in node.output)
        node.output[:] = ["traced" if name == "logits" else name for name in node.output]
        for other in graph.node:
            other.input[:] = ["traced" if name == "logits" else name for name in other.input]
        graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.int64), "traced_shape"))
        graph.node.append(helper.make_node("Reshape", ["traced", "traced_shape"], ["logits"]))

    check_graph(edit_graph(made, change), ["pixel_values"])  # it looks as it should
    with pytest.raises(ExportError, match=r"the exported model fails: .*cannot run"):
        gate(made)
