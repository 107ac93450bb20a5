"""The gate lets an honest bundle through, and stops every planted fault, naming the samples that tell it."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from toy_training import CONVNET, CPU, VALIDATION, config, encode, objective, run, split

from autoft.errors import DataError, ExportError
from autoft.export.bundle import Trained, export_bundle
from autoft.export.parity import BATCH_SIZES, FULL_BATCH, Parity, check_parity, check_preprocess, describe, row_differences
from autoft.files import sha256
from autoft.train import predict

OBJECTIVE = objective("accuracy")


@pytest.fixture(scope="module")
def trained() -> Trained:
    result, model = run(config(epochs=8, learning_rate=1e-2))
    model.load_state_dict(result.weights)
    facts = {
        "name": "stripes",
        "data": {"train": 36, "validation": 12, "test": 12, "rejected": 0, "made_splits": []},
        "training": {
            "trial": 0,
            "trials": 1,
            "epoch": 8,
            "device": "cpu",
            "precision": "fp32",
            "settings": {"epochs": 8},
            "test_scored": 1,
            "why_not_repeated": [],
        },
    }
    return Trained(model, CONVNET, OBJECTIVE, split(VALIDATION), split(VALIDATION), facts)


@pytest.fixture(scope="module")
def outputs(trained: Trained) -> torch.Tensor:
    return predict(trained.model, trained.validation, device=CPU, batch_size=32)


@pytest.fixture(scope="module")
def honest(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "bundle"
    export_bundle(trained, folder, max_metric_drop=0.0, max_output_difference=1e-3, golden=4)
    return folder


@pytest.fixture
def bundle(honest: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(honest, tmp_path / "bundle"))


def gate(folder: Path, outputs: torch.Tensor, max_metric_drop: float = 0.0, max_output_difference: float = 1e-3) -> Parity:
    return check_parity(
        folder,
        VALIDATION,
        outputs,
        encode(VALIDATION),
        OBJECTIVE,
        max_metric_drop=max_metric_drop,
        max_output_difference=max_output_difference,
    )


def test_honest_bundle_passes_and_is_described(honest: Path, outputs: torch.Tensor) -> None:
    parity = gate(honest, outputs)
    assert parity.samples == len(VALIDATION) == 12
    assert parity.trained == parity.exported > 0.8
    assert 0 <= parity.max_output_difference < 1e-4
    assert parity.batch_sizes == (*BATCH_SIZES, FULL_BATCH) == (1, 2, 7, 32)
    assert json.loads((honest / "autoft.json").read_text())["parity"] == describe(parity)


def test_gate_leaves_no_trace(honest: Path, outputs: torch.Tensor) -> None:
    before = {path: sha256(path) for path in honest.rglob("*") if path.is_file()}
    gate(honest, outputs)
    assert {path: sha256(path) for path in honest.rglob("*") if path.is_file()} == before
    assert "autoft_bundle_script" not in sys.modules


# --- planted faults ---------------------------------------------------------------------------------


def rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    contract = json.loads((folder / "autoft.json").read_text())
    change(contract)
    (folder / "autoft.json").write_text(json.dumps(contract))


def reweigh(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change the graph, and its hash with it, as a faulty exporter would."""
    file = folder / "onnx" / "model.onnx"
    proto = onnx.load_model(file)
    change(proto)
    onnx.save_model(proto, file)
    rewrite(folder, lambda contract: contract["files"].update({"onnx/model.onnx": sha256(file)}))


def normalize_otherwise(folder: Path) -> None:
    rewrite(folder, lambda contract: contract["preprocessing"].update(mean=[0.485, 0.456, 0.406]))


def resize_otherwise(folder: Path) -> None:
    rewrite(folder, lambda contract: contract["preprocessing"].update(resize={"mode": "shortest", "size": 19}))


def head_weight(proto: onnx.ModelProto) -> onnx.TensorProto:
    (found,) = (item for item in proto.graph.initializer if tuple(item.dims) in ((3, 16), (16, 3)))
    return found


def perturb_weights(folder: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        tensor = head_weight(proto)
        values = numpy_helper.to_array(tensor) + np.random.default_rng(0).normal(0, 0.05, tuple(tensor.dims)).astype(
            np.float32
        )
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))

    reweigh(folder, change)


def swap_classes(folder: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        tensor = head_weight(proto)
        values = numpy_helper.to_array(tensor)
        axis = tuple(tensor.dims).index(3)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(np.roll(values, 1, axis)), tensor.name))

    reweigh(folder, change)


def answer_nan(folder: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        tensor = head_weight(proto)
        values = np.full(tuple(tensor.dims), math.nan, np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    reweigh(folder, change)


def shuffle_answers(folder: Path) -> None:
    script = folder / "predict.py"
    source = script.read_text().replace("return np.concatenate(parts) if", "return np.concatenate(parts)[::-1].copy() if")
    assert source != script.read_text()
    script.write_text(source)
    rewrite(folder, lambda contract: contract["files"].update({"predict.py": sha256(script)}))


def wrong_at_batch_seven(folder: Path) -> None:
    script = folder / "predict.py"
    line = 'parts.append(self._model.run(self._inputs(batch))["logits"])'
    source = script.read_text().replace(line, f"{line[:-1]} + (len(batch) == 7))")
    assert source != script.read_text()
    script.write_text(source)
    rewrite(folder, lambda contract: contract["files"].update({"predict.py": sha256(script)}))


FAULTS = [
    normalize_otherwise,
    resize_otherwise,
    perturb_weights,
    swap_classes,
    answer_nan,
    shuffle_answers,
    wrong_at_batch_seven,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_planted_fault_is_stopped_naming_the_worst_samples(
    fault: Callable[[Path], None], bundle: Path, outputs: torch.Tensor
) -> None:
    fault(bundle)
    # even where the metric may do what it likes
    with pytest.raises(ExportError, match="does not behave as the trained one") as caught:
        gate(bundle, outputs, max_metric_drop=1.0)
    named = [sample.id for sample in VALIDATION if sample.id in caught.value.message]
    assert len(named) == 3
    assert "no bundle was written" in str(caught.value.hint)


def test_one_wrong_sample_is_named_first(honest: Path, outputs: torch.Tensor) -> None:
    wrong = outputs.clone()
    wrong[5, 0] += 2
    with pytest.raises(ExportError, match=rf"worst samples: {VALIDATION[5].id} \(2\)"):
        gate(honest, wrong, max_metric_drop=1.0)


def test_moved_metric_is_stopped_even_where_outputs_may_differ(bundle: Path, outputs: torch.Tensor) -> None:
    swap_classes(bundle)
    with pytest.raises(ExportError, match=r"accuracy is 0[.\d]* instead of"):
        gate(bundle, outputs, max_metric_drop=0.05, max_output_difference=1e9)
    gate(bundle, outputs, max_metric_drop=1.0, max_output_difference=1e9)


def test_nan_is_stopped_whatever_may_differ(bundle: Path, outputs: torch.Tensor) -> None:
    answer_nan(bundle)
    with pytest.raises(ExportError, match="accuracy is nan instead of"):
        gate(bundle, outputs, max_metric_drop=1e9, max_output_difference=1e9)


def test_trained_models_own_nan_is_stopped_too(honest: Path, outputs: torch.Tensor) -> None:
    broken = outputs.clone()
    broken[3] = math.nan
    with pytest.raises(ExportError, match="does not behave"):
        gate(honest, broken, max_metric_drop=1e9, max_output_difference=1e9)


def test_shuffled_labels_are_stopped(bundle: Path, outputs: torch.Tensor) -> None:
    rewrite(bundle, lambda contract: contract["labels"].reverse())
    with pytest.raises(ExportError, match="labels must be those of the trained model, in its order, but are stripes-120"):
        gate(bundle, outputs)


def test_sample_that_vanished_after_training_is_named(honest: Path, outputs: torch.Tensor, tmp_path: Path) -> None:
    gone = (replace(VALIDATION[0], source=tmp_path / "gone.png"), *VALIDATION[1:])
    with pytest.raises(DataError, match=r"gone\.png") as caught:
        check_parity(honest, gone, outputs, encode(VALIDATION), OBJECTIVE, max_metric_drop=0.0, max_output_difference=1e-3)
    assert "restore the file" in str(caught.value)


# --- preprocess.onnx ------------------------------------------------------------------------------------------------


def test_preprocessing_graph_is_measured_and_told(honest: Path) -> None:
    measured = check_preprocess(honest, VALIDATION)
    assert measured is not None
    assert (measured.samples, measured.same_answers) == (len(VALIDATION), 1.0)
    assert 0 <= measured.largest_step <= 1
    assert json.loads((honest / "autoft.json").read_text())["preprocess_parity"]["samples"] == len(VALIDATION)
    card = (honest / "README.md").read_text()
    assert f"{len(VALIDATION)} validation images differ by at most {measured.largest_step:.0f} of 255" in card
    assert "transformers.js, OpenVINO's Resize | **no**" in card


def preprocess_otherwise(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change `preprocess.onnx` and its hash."""
    file = folder / "onnx" / "preprocess.onnx"
    proto = onnx.load(file)
    change(proto)
    onnx.save(proto, file)
    rewrite(folder, lambda contract: contract["files"].update({"onnx/preprocess.onnx": sha256(file)}))


def swap_channels(proto: onnx.ModelProto) -> None:
    """Give blue, green, red, by way of a node before the output."""
    last = next(node for node in proto.graph.node if "pixel_values" in node.output)
    last.output[0] = "rgb"
    order = onnx.helper.make_tensor("order", onnx.TensorProto.INT64, [3], [2, 1, 0])
    proto.graph.initializer.append(order)
    proto.graph.node.append(onnx.helper.make_node("Gather", ["rgb", "order"], ["pixel_values"], axis=1))


def filter_otherwise(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Resize" and attribute.name in ("antialias", "exclude_outside"):
                attribute.i = 0


def shift_mean(proto: onnx.ModelProto) -> None:
    """Subtract more than the mean."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        tensor = constants.get(node.input[-1])
        if node.op_type == "Sub" and tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.1), tensor.name))


@pytest.mark.parametrize("fault", [swap_channels, filter_otherwise, shift_mean])
def test_preprocessing_graph_that_gives_other_pixels_is_stopped(
    fault: Callable[[onnx.ModelProto], None], bundle: Path, tmp_path: Path
) -> None:
    rng, photos = np.random.default_rng(0), []
    for number in range(3):  # to be shrunk: small images would not show a filter
        file = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(file)
        photos.append(replace(VALIDATION[0], source=file))
    assert check_preprocess(bundle, photos) is not None
    preprocess_otherwise(bundle, fault)
    with pytest.raises(ExportError, match=r"must give the pixels of predict\.py but for rounding"):
        check_preprocess(bundle, photos)


def test_failed_gate_leaves_the_old_bundle(trained: Trained, bundle: Path) -> None:
    before = {path: sha256(path) for path in bundle.rglob("*") if path.is_file()}
    with pytest.raises(ExportError):
        export_bundle(trained, bundle, max_metric_drop=0.0, max_output_difference=-1.0, golden=4)
    assert {path: sha256(path) for path in bundle.rglob("*") if path.is_file()} == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


# --- differences ------------------------------------------------------------------------------------


def test_differences_are_the_largest_of_each_row() -> None:
    found = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert row_differences(found, torch.tensor([[1.0, 2.5], [3.25, 4.0]])).tolist() == [0.5, 0.25]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_differs_infinitely(value: float) -> None:
    fine, broken = torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [0.0, value]])
    assert row_differences(broken, fine).tolist() == [0.0, math.inf]
    assert row_differences(fine, broken).tolist() == [0.0, math.inf]
    assert row_differences(broken, broken).tolist() == [0.0, math.inf]
