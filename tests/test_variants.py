"""Variants of a graph: made, let through the gate or left out with the reason, measured, recommended, and run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from commands import autoft
from test_parity import trained  # noqa: F401 - a fixture
from torch import nn
from toy_training import TRAIN, split

from autoft import bench
from autoft.bench import Latency, Measured, fastest, golden_inputs, graphs_of, report
from autoft.errors import BundleError, ExportError
from autoft.export import variants as variants_module
from autoft.export.bundle import Trained, export_bundle
from autoft.export.onnx import to_onnx
from autoft.export.quantize import Batch, is_convolutional, make_variant, method_of
from autoft.export.script import load_script
from autoft.export.variants import Wanted


class Dense(nn.Module):
    """Two matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(pixels)
        return found


class Convolutional(nn.Module):
    """Two convolutions, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU())
        self.head = nn.Linear(64, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.body(pixels).mean((2, 3)))
        return found


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def exported(model: nn.Module, folder: Path) -> Path:
    torch.manual_seed(0)
    proto = to_onnx(
        model.eval(),
        lambda outputs: outputs.softmax(-1),
        (images(2),),
        input_names=("pixel_values",),
        labels=("a", "b", "c"),
        metadata={"answer": "label"},
    )
    onnx.save_model(proto, folder / "model.onnx")
    return folder / "model.onnx"


def calibration() -> Iterator[Batch]:
    for seed in range(4):
        yield {"pixel_values": images(8, seed).numpy()}


def run(file: Path, pixels: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["logits"], {"pixel_values": pixels.numpy()})[0]
    return found


@pytest.mark.parametrize("model", [Dense, Convolutional])
@pytest.mark.parametrize("variant", ["int8", "fp16"])
def test_variant_answers_nearly_alike_is_smaller_and_keeps_every_promise(
    model: type[nn.Module], variant: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    source, target = exported(model(), tmp_path), tmp_path / "variant.onnx"
    make_variant(variant, source, target, calibration())
    for count in (1, 7):
        wanted, found = run(source, images(count, 9)), run(target, images(count, 9))
        assert 0 < np.abs(found - wanted).max() < 0.1 * max(1.0, np.abs(wanted).max())
    assert target.stat().st_size < 0.7 * source.stat().st_size
    proto, plain = onnx.load(target), onnx.load(source)
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": 18}
    assert proto.ir_version <= 10
    assert {entry.key: entry.value for entry in proto.metadata_props} == {
        entry.key: entry.value for entry in plain.metadata_props
    }
    assert [value.name for value in proto.graph.output] == [value.name for value in plain.graph.output]


def test_method_follows_where_the_weights_are(tmp_path: Path) -> None:
    dense, convolutional = (onnx.load(exported(model(), tmp_path)) for model in (Dense, Convolutional))
    assert (is_convolutional(dense), is_convolutional(convolutional)) == (False, True)
    assert "found in each run" in method_of("int8", dense)
    assert "calibrated" in method_of("int8", convolutional)


def test_scales_come_from_the_calibration(tmp_path: Path) -> None:
    source = exported(Convolutional(), tmp_path)
    make_variant("int8", source, tmp_path / "fine.onnx", calibration())
    narrow = ({name: array / 100 for name, array in batch.items()} for batch in calibration())
    make_variant("int8", source, tmp_path / "narrow.onnx", narrow)
    wanted = run(source, images(16, 9))
    apart = [np.abs(run(tmp_path / f"{name}.onnx", images(16, 9)) - wanted).max() for name in ("fine", "narrow")]
    assert apart[1] > 5 * apart[0]


@pytest.mark.parametrize("model", [Dense, Convolutional])
def test_int8_weights_leave_a_bit_to_cpus_without_vnni(model: type[nn.Module], tmp_path: Path) -> None:
    """These add two products of 8 bits in 16: at most 255 * 64 * 2, so that nothing saturates anywhere."""
    make_variant("int8", exported(model(), tmp_path), tmp_path / "int8.onnx", calibration())
    kept = [onnx.numpy_helper.to_array(each) for each in onnx.load_model(tmp_path / "int8.onnx").graph.initializer]
    weights = [values for values in kept if values.dtype == np.int8 and values.ndim > 1]
    assert len(weights) >= 2
    assert all(32 <= np.abs(values.astype(int)).max() <= 64 for values in weights)


def test_graph_that_cannot_be_quantized_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = exported(Dense(), tmp_path)

    def breaks(*arguments: object, **named: object) -> None:
        raise RuntimeError("odd node")

    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", breaks)
    with pytest.raises(ExportError, match=r"int8 cannot be made of this graph: .*odd node"):
        make_variant("int8", source, tmp_path / "variant.onnx", calibration())
    monkeypatch.setattr("autoft.export.quantize.MOST_BYTES", 10)
    with pytest.raises(ExportError, match="over 2 GB"):
        make_variant("fp16", source, tmp_path / "variant.onnx", calibration())


# --- in bundles -----------------------------------------------------------------------------------------------------


def wanted(max_drop: float = 1.0) -> Wanted:
    return Wanted(("int8", "fp16"), max_drop, split(TRAIN))


def export(trained: Trained, folder: Path, max_drop: float = 1.0) -> dict[str, Any]:  # noqa: F811
    export_bundle(
        replace(trained, variants=wanted(max_drop)), folder, max_metric_drop=0.0, max_output_difference=1e-3, golden=4
    )
    found: dict[str, Any] = json.loads((folder / "autoft.json").read_text())
    return found


@pytest.fixture(scope="module")
def bundle(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("variants") / "bundle"
    export(trained, folder)
    return folder


def test_bundle_has_each_variant_with_what_was_measured(bundle: Path) -> None:
    contract = json.loads((bundle / "autoft.json").read_text())
    assert list(contract["variants"]) == ["fp32", "int8", "fp16"] == list(graphs_of(bundle))
    for entry in contract["variants"].values():
        assert entry["file"] in contract["files"]
        assert entry["latency_ms"]["1"]["p50"] <= entry["latency_ms"]["1"]["p95"]
        assert entry["latency_ms"]["8"]["runs"] >= bench.LEAST
        assert entry["size_mb"] > 0
    best = contract["recommended"]
    medians = {name: entry["latency_ms"]["1"]["p50"] for name, entry in contract["variants"].items()}
    assert medians[best["variant"]] == min(medians.values())
    assert f"{medians['int8']:.3g} ms" in best["why"]
    card = (bundle / "README.md").read_text()
    assert f"Recommended: **{best['variant']}**" in card
    assert "`onnx/model_int8.onnx`" in card


def test_script_runs_the_variant_that_is_asked_for(bundle: Path) -> None:
    script = load_script(bundle / "predict.py")
    files = sorted((bundle / "golden" / "inputs").iterdir())
    plain, int8 = (script.Bundle.load(bundle, variant=name).outputs(files) for name in ("fp32", "int8"))
    assert 0 < np.abs(plain - int8).max() < 1.0
    assert np.array_equal(plain, script.Bundle.load(bundle).outputs(files))
    with pytest.raises(script.BundleError, match="has the variants fp32, int8, fp16, but 'int4' was asked for"):
        script.Bundle.load(bundle, variant="int4")


def test_variant_that_loses_too_much_is_left_out_and_the_bundle_says_so(
    trained: Trained,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def damaged(variant: str, source: Path, target: Path, batches: object) -> None:
        """Make int8 answer always the same."""
        proto = onnx.load(source)
        if variant == "int8":
            for tensor in proto.graph.initializer:
                if tensor.data_type == onnx.TensorProto.FLOAT:
                    values = np.zeros_like(onnx.numpy_helper.to_array(tensor))
                    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(proto, target)

    monkeypatch.setattr(variants_module, "make_variant", damaged)
    contract = export(trained, tmp_path / "bundle", max_drop=0.005)
    assert not (tmp_path / "bundle" / "onnx" / "model_int8.onnx").exists()
    assert "onnx/model_int8.onnx" not in contract["files"]
    entry = contract["variants"]["int8"]
    assert entry["shipped"] is False
    assert entry["drop"] > 0.005
    assert "it may lose 0.005" in entry["why"]
    assert contract["variants"]["fp16"]["shipped"] is True
    assert f"int8 was left out: {entry['why']}" in (tmp_path / "bundle" / "README.md").read_text()
    script = load_script(tmp_path / "bundle" / "predict.py")
    with pytest.raises(script.BundleError, match="has the variants fp32, fp16"):
        script.Bundle.load(tmp_path / "bundle", variant="int8")
    assert script.Bundle.load(tmp_path / "bundle").check()["ok"]


def test_fastest_is_that_of_one_sample() -> None:
    slow = Measured({1: Latency(2.0, 3.0, 5), 8: Latency(4.0, 5.0, 5)}, 1.0, None)
    quick = Measured({1: Latency(1.0, 3.0, 5), 8: Latency(9.0, 9.0, 5)}, 2.0, 10.0)
    assert fastest({"fp32": slow, "int8": quick}) == "int8"


def test_bundle_is_measured_again_on_any_machine(bundle: Path, tmp_path: Path) -> None:
    found = report(bundle, batch_sizes=(2,))
    assert list(found) == ["fp32", "int8", "fp16"]
    assert list(found["int8"].latency) == [2]
    peak = found["fp32"].peak_mb
    assert peak is None or 20 < peak < 1000  # of a small process, not of this one
    assert golden_inputs(bundle)["pixel_values"].shape[1:] == (3, 16, 16)
    with pytest.raises(BundleError, match="a bundle is a folder with"):
        report(tmp_path)


def test_command_prints_a_line_for_each_variant(bundle: Path, toy_env: dict[str, str]) -> None:
    done = autoft("bench", bundle, "--batch-size", 1, env=toy_env)
    assert done.code == 0, done.err
    assert [line.split()[0] for line in done.out.splitlines()] == ["VARIANT", "fp32", "int8", "fp16"]
    machine = json.loads(autoft("bench", bundle, "--json", env=toy_env).out)
    assert machine["fastest"] in machine["variants"]
    refused = autoft("bench", bundle.parent, env=toy_env)
    assert refused.code == 2


def test_commands_answer_with_the_variant_that_is_asked_for(bundle: Path, toy_env: dict[str, str]) -> None:
    image = min((bundle / "golden" / "inputs").iterdir())
    scores = {}
    for name in ("fp32", "int8"):
        done = autoft("predict", bundle, image, "--variant", name, "--json", env=toy_env)
        assert done.code == 0, done.err
        scores[name] = json.loads(done.out)["score"]
    assert 0 < abs(scores["fp32"] - scores["int8"]) < 0.5
    refused = autoft("predict", bundle, image, "--variant", "int4", env=toy_env)
    assert refused.code == 2
    assert "has the variants fp32, int8, fp16" in refused.err
