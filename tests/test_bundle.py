"""A bundle holds all that its receiver needs, true to the model; one that fails leaves the old one as it was."""

from __future__ import annotations

import errno
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from commands import files_in
from torch import Tensor
from toy_training import CONVNET, CPU, HEAD, MLP, TARGETS, VALIDATION, build, config, encode, objective, run, split

from autoft.errors import ExportError
from autoft.export import bundle as bundle_module
from autoft.export.bundle import Exported, Trained, bootstrap_error, example_inputs, export_bundle
from autoft.files import load_tensors, read_json, sha256
from autoft.runtime.image_classification import Bundle, read_image
from autoft.specs import Sample, Targets
from autoft.train import predict

LIMITS: dict[str, Any] = {"max_metric_drop": 0.0, "max_output_difference": 1e-3}
TEST = VALIDATION[:6]


@pytest.fixture(scope="module")
def trained() -> Trained:
    result, model = run(config(epochs=2))
    model.load_state_dict(result.weights)
    settings = {"learning_rate": 0.003, "epochs": 2}
    facts = {
        "name": "stripes",
        "data": {"train": 36, "validation": 12, "test": 6, "rejected": 2, "made_splits": ["test"]},
        "training": {
            "trial": 3, "trials": 9, "epoch": 2, "device": "cpu", "precision": "fp32", "settings": settings,
            "test_scored": 1,
            "why_not_repeated": [],
        },
    }  # fmt: skip
    return Trained(model, CONVNET, objective("accuracy"), split(VALIDATION), split(TEST), facts)


@pytest.fixture(scope="module")
def made(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Exported, Path]:
    folder = tmp_path_factory.mktemp("export") / "bundle"
    return export_bundle(trained, folder, **LIMITS, golden=5), folder


def test_every_file_is_hashed_and_none_tells_of_this_machine(made: tuple[Exported, Path]) -> None:
    _, folder = made
    contract = read_json(folder / "autoft.json")
    found = {name for name in files_in(folder) if name != "autoft.json"}
    assert set(contract["files"]) == found
    assert contract["files"] == {name: sha256(folder / name) for name in found}
    assert contract["outputs"] == ["logits", "probabilities"]
    assert contract["inputs"] == ["pixel_values"]
    assert contract["versions"]["torch"] == torch.__version__.partition("+")[0]
    for name, content in files_in(folder).items():
        assert str(Path(torch.__file__).parents[1]).encode() not in content, name


def test_metrics_are_those_of_the_trained_model(made: tuple[Exported, Path], trained: Trained) -> None:
    exported, folder = made
    for name, data in (("validation", trained.validation), ("test", trained.test)):
        outputs = predict(trained.model, data, device=CPU, batch_size=5)
        wanted = HEAD.metrics(outputs, data.targets, TARGETS)
        assert getattr(exported, name) == pytest.approx(wanted, abs=1e-6)
        assert read_json(folder / "autoft.json")[name] == getattr(exported, name)
    assert exported.parity.samples == len(VALIDATION)
    assert 0 <= exported.parity.max_output_difference < 1e-4


def test_weights_can_be_trained_on(made: tuple[Exported, Path], trained: Trained) -> None:
    weights, described = load_tensors(made[1] / "model.safetensors")
    assert described == {"backbone": "toy/convnet"}
    again = build(seed=5)
    again.load_state_dict(weights)
    wanted = predict(trained.model, trained.validation, device=CPU, batch_size=8)
    assert torch.equal(predict(again, trained.validation, device=CPU, batch_size=8), wanted)


def test_graph_gives_logits_and_probabilities_and_knows_its_labels(made: tuple[Exported, Path]) -> None:
    graph = onnx.load(made[1] / "onnx" / "model.onnx")
    onnx.checker.check_model(graph)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 18)]
    assert graph.ir_version <= 10
    assert json.loads({entry.key: entry.value for entry in graph.metadata_props}["labels"]) == list(TARGETS.labels)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    for size in (1, 3, 17):
        logits, probabilities = session.run(None, {"pixel_values": np.zeros((size, 3, 16, 16), np.float32)})
        assert logits.shape == probabilities.shape == (size, 3)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_preprocessing_graph_sees_what_the_script_sees(made: tuple[Exported, Path]) -> None:
    folder = made[1]
    session = onnxruntime.InferenceSession(folder / "onnx" / "preprocess.onnx")
    (entry,) = session.get_inputs()
    golden = np.load(folder / "golden" / "pixel_values.npy")
    for row, name in enumerate(read_json(folder / "golden" / "golden.json")["inputs"]):
        pixels = np.asarray(read_image(folder / "golden" / "inputs" / name))
        (found,) = session.run(None, {entry.name: pixels[None]})
        np.testing.assert_allclose(found[0], golden[row], atol=1e-6)


def test_golden_samples_are_of_all_classes_and_replay(made: tuple[Exported, Path]) -> None:
    golden = read_json(made[1] / "golden" / "golden.json")
    assert len(golden["inputs"]) == len(golden["answers"]) == 5
    assert set(golden["answers"]) <= set(TARGETS.labels)
    checked = Bundle.load(made[1]).check()
    assert checked["ok"]
    assert checked["logits"] == 0.0


def test_samples_are_chosen_from_each_class_in_turn() -> None:
    samples = [Sample(str(number), b"", target, "") for number, target in enumerate("aaaabbc")]
    assert [sample.target for sample in bundle_module._spread(samples, 5)] == ["a", "b", "c", "a", "b"]
    assert len(bundle_module._spread(samples, 99)) == 7
    assert bundle_module._spread(samples, 0) == []


def test_golden_samples_may_be_left_out(trained: Trained, tmp_path: Path) -> None:
    export_bundle(trained, tmp_path / "bundle", **LIMITS, golden=0)
    assert not (tmp_path / "bundle" / "golden").exists()
    assert Bundle.load(tmp_path / "bundle").labels == TARGETS.labels


def test_configuration_names_the_labels_for_other_tools(made: tuple[Exported, Path]) -> None:
    found = read_json(made[1] / "config.json")
    assert found["num_labels"] == 3
    assert found["id2label"] == {str(index): label for index, label in enumerate(TARGETS.labels)}
    assert {label: int(index) for index, label in found["id2label"].items()} == found["label2id"]
    assert read_json(made[1] / "preprocessor_config.json")["crop_size"] == {"height": 16, "width": 16}


def test_triton_is_told_of_inputs_outputs_and_batching(made: tuple[Exported, Path]) -> None:
    # that Triton's own schema reads it, tests/loaders shows
    text = (made[1] / "config.pbtxt").read_text()
    assert 'name: "pixel_values"\n    data_type: TYPE_FP32\n    dims: [ 3, 16, 16 ]' in text
    assert text.count('    name: "') == 3
    assert "dynamic_batching {" in text


def test_card_tells_how_well_how_to_run_and_where_not_to_trust(made: tuple[Exported, Path]) -> None:
    exported, folder = made
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: onnx\npipeline_tag: image-classification\n")
    accuracy = f"{exported.validation['accuracy']:.4f} | {exported.test['accuracy']:.4f} ± {exported.test_error:.4f}"
    for words in (
        "# stripes",
        f"| **accuracy** | {accuracy} |",
        "pip install onnxruntime numpy pillow",
        "2 unreadable ones were left out",
        "made by autoft: test",
        "Trial 3 of 9, epoch 2, cpu in fp32.",
        "| learning_rate | 0.003 |",
        "It answers one of stripes-0, stripes-60, stripes-120",
        "All 12 validation samples were scored again through ONNX Runtime",
    ):
        assert words in card, words
    assert "nan" not in card


def test_full_disk_leaves_the_old_bundle_and_no_draft(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "autoft.json").write_text("the old one")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle_module, "save_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        export_bundle(trained, folder, **LIMITS, golden=5)
    assert files_in(tmp_path) == {"bundle/autoft.json": b"the old one"}


def test_new_bundle_replaces_the_old_one_whole(trained: Trained, made: tuple[Exported, Path], tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "left over").write_text("of an older format")
    export_bundle(trained, folder, **LIMITS, golden=5)
    assert files_in(folder).keys() == files_in(made[1]).keys()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_bundle_that_does_not_reproduce_its_own_golden_vectors_is_not_handed_out(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = np.save

    def wrong(file: Path, array: np.ndarray, **named: Any) -> None:
        save(file, array + np.float32(0.01) if "logits" in str(file) else array, **named)

    monkeypatch.setattr(bundle_module.np, "save", wrong)
    with pytest.raises(ExportError, match="does not reproduce its own golden vectors"):
        export_bundle(trained, tmp_path / "bundle", **LIMITS, golden=5)
    assert list(tmp_path.iterdir()) == []


def test_example_has_two_rows_even_of_one_sample() -> None:
    (pixels,) = example_inputs(split(VALIDATION[:1]), CONVNET)
    assert pixels.shape == (2, 3, 16, 16)
    with pytest.raises(ExportError, match="names 2 inputs, but its preprocessing gives 1"):
        example_inputs(split(VALIDATION), replace(MLP, inputs=("pixel_values", "mask")))


def test_bootstrap_of_masks_draws_fewer_rows_where_each_has_many_pixels() -> None:
    drawn = []

    def metrics(outputs: Tensor, encoded: Tensor, targets: Targets) -> dict[str, float]:
        drawn.append(len(encoded))
        return {"accuracy": float((outputs.argmax(dim=1) == encoded).double().mean())}

    head = replace(objective("accuracy").head, metrics=metrics)
    encoded = torch.zeros(400, 300, 300, dtype=torch.uint8)
    encoded[:100] = 1
    outputs = torch.tensor([1.0, 0.0])[:, None, None].expand(400, 2, 1, 1)
    found = bootstrap_error(outputs, encoded, replace(objective("accuracy"), head=head))
    assert set(drawn) == {22}  # two million pixels
    assert found == pytest.approx(math.sqrt(0.25 * 0.75 / 400), rel=0.25)


def test_standard_error_by_bootstrap_is_that_of_a_proportion() -> None:
    encoded = torch.zeros(400, dtype=torch.int64)
    outputs = torch.tensor([[2.0, 0.0, 1.0]]).repeat(400, 1)
    outputs[:100, 0] = -5.0  # a quarter is wrong
    found = bootstrap_error(outputs, encoded, objective("accuracy"))
    assert found == pytest.approx(math.sqrt(0.25 * 0.75 / 400), rel=0.15)
    assert found == bootstrap_error(outputs, encoded, objective("accuracy"))
    assert bootstrap_error(outputs, encoded, objective("auroc")) == 0.0, "not defined with one class"
    many = len(encoded) * 50  # of which only some are drawn at a time
    large = bootstrap_error(outputs.repeat(50, 1), encoded.repeat(50), objective("accuracy"))
    assert large == pytest.approx(math.sqrt(0.25 * 0.75 / many), rel=0.2)
    perfect = torch.nn.functional.one_hot(encode(VALIDATION), 3).float()
    assert bootstrap_error(perfect, encode(VALIDATION), objective("accuracy")) == 0.0
