"""Bundles of texts hold all that their receiver needs, and the gate stops every fault between a text and its answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from test_runtime_text import rehash
from text_bundles import KINDS, LIMITS, Made, make_trained, sources
from torch import Tensor

from autoft.errors import DataError, ExportError
from autoft.export.bundle import bootstrap_error, example_inputs, export_bundle
from autoft.export.parity import Parity, check_parity, output_scale, row_differences
from autoft.files import read_json, sha256
from autoft.ragged import Ragged, Rows
from autoft.train import Objective, predict

Bundles = Callable[[str], Made]
CPU = torch.device("cpu")


@pytest.fixture
def copied(text_bundle: Bundles, tmp_path: Path) -> Callable[[str], Made]:
    """Copies of bundles, to be damaged."""
    return lambda kind: text_bundle(kind)._replace(folder=Path(shutil.copytree(text_bundle(kind).folder, tmp_path / kind)))


def tuned(made: Made) -> Objective:
    """The objective with what was tuned at the export."""
    values = {name: tuple(found) for name, found in read_json(made.folder / "autoft.json")["values"].items()}
    objective = made.trained.objective
    return replace(objective, targets=replace(objective.targets, values=values))


def gate(made: Made, objective: Objective | None = None, outputs: Rows | None = None, **limits: float) -> Parity:
    data = made.trained.validation
    outputs = predict(made.trained.model, data, device=CPU, batch_size=64) if outputs is None else outputs
    objective = objective or tuned(made)
    return check_parity(made.folder, data.samples, outputs, data.targets, objective, **{**LIMITS, **limits})


# --- what a bundle holds ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_contract_says_what_goes_in_and_what_comes_out(kind: str, text_bundle: Bundles) -> None:
    made = text_bundle(kind)
    contract = read_json(made.folder / "autoft.json")
    head = made.trained.objective.head
    assert contract["answer"] == head.answer
    assert contract["outputs"] == (["logits"] if kind in ("value", "values") else ["logits", "probabilities"])
    assert contract["takes"] == {"pair": "pair", "entities": "words"}.get(kind, "text")
    assert contract["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    assert contract["columns"] == made.trained.facts["data"]["columns"]
    assert ("thresholds" in contract["values"]) == (kind == "labels")
    found = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}
    assert {"tokenizer.json", "tokenizer_config.json", "golden/input_ids.npy"} <= found
    assert not {"onnx/preprocess.onnx", "preprocessor_config.json"} & found
    assert contract["files"] == {name: sha256(made.folder / name) for name in found - {"autoft.json"}}
    metadata = {entry.key: entry.value for entry in onnx.load(made.folder / "onnx" / "model.onnx").metadata_props}
    assert json.loads(metadata["labels"]) == contract["labels"]
    assert json.loads(metadata.get("thresholds", "null")) == contract["values"].get("thresholds")


def test_configuration_is_what_the_hugging_face_ecosystem_reads(text_bundle: Bundles) -> None:
    problems = {"label": "single_label_classification", "labels": "multi_label_classification", "values": "regression"}
    for kind in ("label", "labels", "values", "entities"):
        config = read_json(text_bundle(kind).folder / "config.json")
        assert config.get("problem_type") == problems.get(kind)
        assert config["num_labels"] == len(config["id2label"])
    assert config["id2label"]["0"] == "O"
    tokenizer = read_json(text_bundle("label").folder / "tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_tokenizer_of_the_bundle_loads_in_transformers_and_gives_the_golden_tokens(text_bundle: Bundles) -> None:
    transformers = pytest.importorskip("transformers")
    for kind in ("label", "pair"):
        folder = text_bundle(kind).folder
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        texts = read_json(folder / "golden" / "golden.json")["inputs"]
        columns = list(zip(*texts, strict=True)) if kind == "pair" else [texts]
        encoded = tokenizer(*map(list, columns), padding=True, truncation=True, return_tensors="np")
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            np.testing.assert_array_equal(encoded[name], np.load(folder / "golden" / f"{name}.npy"))


def test_thresholds_are_tuned_and_used_for_all_that_is_told(text_bundle: Bundles) -> None:
    made = text_bundle("labels")
    head, before = made.trained.objective.head, made.trained.objective.targets
    objective = tuned(made)
    assert "thresholds" not in before.values
    assert len(set(objective.targets.values["thresholds"])) > 1
    for name, data in (("validation", made.trained.validation), ("test", made.trained.test)):
        outputs = predict(made.trained.model, data, device=CPU, batch_size=9)
        assert getattr(made.exported, name) == pytest.approx(
            head.metrics(outputs, data.targets, objective.targets), abs=1e-6
        )
        assert getattr(made.exported, name) != pytest.approx(head.metrics(outputs, data.targets, before), abs=1e-6)


WORDS = {
    "label": ["text-classification into 3 classes", "It answers one of food, music, travel for any text",
              'predict.py "a text" --json', "reads the first 48 tokens"],
    "pair": ['predict.py "a text" "the other text" --json'],
    "labels": ["any number of them at once", "### Thresholds", "and their thresholds"],
    "value": ["of 1 number (value)", "### Test split by number", "the unit of the training targets", "training mean"],
    "values": ["of 2 numbers (value_1, value_2)", "standard deviations, at batch sizes"],
    "entities": ["pipeline_tag: token-classification", "### Test split by entity type", "| PERSON |", "B-PERSON"],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_card_speaks_of_what_the_bundle_does(kind: str, text_bundle: Bundles) -> None:
    card = (text_bundle(kind).folder / "README.md").read_text()
    for words in (*WORDS[kind], "pip install onnxruntime numpy tokenizers", "from the raw texts"):
        assert words in card, words
    assert "image" not in card
    assert "pixel" not in card
    assert "nan" not in card


def test_example_for_tracing_has_two_lengths_whatever_the_texts(text_bundle: Bundles) -> None:
    trained = text_bundle("label").trained
    ids, mask, _ = example_inputs(trained.validation, trained.backbone)
    assert len(ids) == 2
    assert ids.shape[1] >= 8
    assert mask.sum(dim=1).tolist() == [ids.shape[1], ids.shape[1] // 2]


def test_error_by_bootstrap_draws_whole_texts(text_bundle: Bundles) -> None:
    for kind in ("entities", "values"):
        made = text_bundle(kind)
        data = made.trained.test
        outputs = predict(made.trained.model, data, device=CPU, batch_size=9)
        assert bootstrap_error(outputs, data.targets, tuned(made)) == pytest.approx(made.exported.test_error)
        assert made.exported.test_error > 0


# --- planted faults -----------------------------------------------------------------------------------


def contract_of(made: Made) -> dict[str, Any]:
    return read_json(made.folder / "autoft.json")


def shuffled_labels(made: Made) -> None:
    rehash(made.folder, labels=contract_of(made)["labels"][::-1])


def altered_values(made: Made) -> None:
    values = contract_of(made)["values"]
    name = "thresholds" if "thresholds" in values else next(iter(values), None)
    rehash(made.folder, values={**values, name or "thresholds": [0.9] * len(contract_of(made)["labels"])})


def longer(made: Made) -> None:
    declared = contract_of(made)["preprocessing"]
    rehash(made.folder, preprocessing={**declared, "max_length": declared["max_length"] + 1})


def shorter(made: Made) -> None:
    declared = contract_of(made)["preprocessing"]
    rehash(made.folder, preprocessing={**declared, "max_length": declared["max_length"] - 1})


def rewrite_tokenizer(made: Made, change: Callable[[dict[str, Any]], Any]) -> None:
    file = made.folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    change(tokenizer)
    file.write_text(json.dumps(tokenizer))
    rehash(made.folder)


def other_vocabulary(made: Made) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["evening"], vocabulary["before"] = vocabulary["before"], vocabulary["evening"]

    rewrite_tokenizer(made, change)


def other_case(made: Made) -> None:
    rewrite_tokenizer(made, lambda tokenizer: tokenizer["normalizer"].update(lowercase=False))


def tokens_of_the_wrong_text(made: Made) -> None:
    edit_script(made, "order = sorted(", "order = range(len(items)) or sorted(")
    edit_script(made, "rows[row] = ", "rows[row - 1] = ")


def wrong_word(made: Made) -> None:
    edit_script(made, "[items[row][:, -1] > 0]", "[np.roll(items[row][:, -1] > 0, -1)]")


def unmasked_padding(made: Made) -> None:
    edit_script(made, "mask[row, : len(item)] = 1", "mask[row] = 1")


def edit_script(made: Made, line: str, other: str) -> None:
    script = made.folder / "predict.py"
    source = script.read_text()
    assert line in source
    script.write_text(source.replace(line, other))
    rehash(made.folder)


def fixed_length(made: Made) -> None:
    file = made.folder / "onnx" / "model.onnx"
    proto = onnx.load_model(file)
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = 48
    onnx.save_model(proto, file)
    rehash(made.folder)


FAULTS: list[tuple[Callable[[Made], None], str]] = [
    (shuffled_labels, "labels must be those of the trained model, in its order"),
    (altered_values, "values must be those of the trained model"),
    (longer, "does not behave"),
    (shorter, "does not behave"),
    (other_vocabulary, "does not behave"),
    (other_case, "does not behave"),
    (tokens_of_the_wrong_text, "does not behave"),
    (unmasked_padding, "does not behave"),
    (fixed_length, "the exported model fails"),
]


@pytest.mark.parametrize("kind", ["label", "labels", "values", "entities"])
@pytest.mark.parametrize(("fault", "said"), FAULTS, ids=lambda item: getattr(item, "__name__", ""))
def test_planted_fault_is_stopped(
    fault: Callable[[Made], None], said: str, kind: str, copied: Callable[[str], Made]
) -> None:
    made = copied(kind)
    objective = tuned(made)
    assert gate(made, objective).samples > 0, "the copy is sound"
    fault(made)
    with pytest.raises(ExportError, match=said) as caught:
        gate(made, objective, max_metric_drop=10.0)  # even where the metric may do what it likes
    assert "no bundle was written" in str(caught.value.hint)


def test_answers_of_the_wrong_token_of_a_word_are_stopped(copied: Callable[[str], Made]) -> None:
    made = copied("entities")
    wrong_word(made)
    with pytest.raises(ExportError, match="does not behave"):
        gate(made, max_metric_drop=10.0)


class SeesPadding(torch.nn.Module):
    """A mean over all tokens, padding included: the texts that share a batch matter."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        found: Tensor = self.model(input_ids, torch.ones_like(attention_mask), token_type_ids)
        return found


def test_model_that_sees_padding_is_stopped(tmp_path: Path) -> None:
    """Its answers depend on the batch, so no runtime could give those of validation."""
    trained = make_trained("label")
    trained = replace(trained, model=SeesPadding(trained.model))  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="does not behave"):
        export_bundle(trained, tmp_path / "bundle", max_metric_drop=10.0, max_output_difference=1e-3, golden=2)
    assert list(tmp_path.iterdir()) == []


def test_text_that_vanished_after_training_is_named(text_bundle: Bundles) -> None:
    made = text_bundle("label")
    samples = [replace(made.trained.validation.samples[0], source=b"no text"), *made.trained.validation.samples[1:]]
    outputs = predict(made.trained.model, made.trained.validation, device=CPU, batch_size=64)
    with pytest.raises(DataError, match="texts must be strings"):
        check_parity(made.folder, samples, outputs, made.trained.validation.targets, tuned(made), **LIMITS)


# --- numbers of any unit --------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [1e-2, 1e-5])
def test_numbers_may_differ_in_standard_deviations_whatever_their_unit(off: float, text_bundle: Bundles) -> None:
    made = text_bundle("values")  # one of some millions, one of some thousandths
    scale = output_scale(made.trained.objective)
    assert scale is not None
    outputs = predict(made.trained.model, made.trained.validation, device=CPU, batch_size=64)
    assert isinstance(outputs, Tensor)
    for column in (0, 1):
        moved = outputs.clone()
        moved[3, column] += off * scale[column]
        if off < 1e-3:
            assert gate(made, outputs=moved, max_metric_drop=1.0).max_output_difference == pytest.approx(off, rel=0.2)
        else:
            with pytest.raises(ExportError, match=made.trained.validation.samples[3].id):
                gate(made, outputs=moved, max_metric_drop=1.0)


def test_errors_in_a_unit_may_move_in_standard_deviations(text_bundle: Bundles) -> None:
    made = text_bundle("value")
    objective = replace(tuned(made), metric="mae")
    outputs = predict(made.trained.model, made.trained.validation, device=CPU, batch_size=64)
    assert gate(made, objective, outputs, max_metric_drop=1e-6).trained > 1e6, "whose float32 has steps of 4"
    with pytest.raises(ExportError, match=r"may move by 0\.001 standard deviations"):
        gate(made, objective, outputs * 1.01, max_metric_drop=1e-3, max_output_difference=10.0)


def test_differences_of_words_are_the_largest_of_each_text() -> None:
    one = Ragged.of([torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(0, 2), torch.tensor([[5.0, 6.0]])])
    other = Ragged(one.values + torch.tensor([[0.5, 0.0], [0.0, 2.0], [0.25, 0.0]]), one.offsets)
    assert row_differences(one, other).tolist() == [2.0, 0.0, 0.25]
    cut = Ragged.of([one.row(0)[:1], one.row(1), one.row(2)])
    assert row_differences(cut, one).tolist() == [float("inf"), 0.0, 0.0]
    nan = Ragged(one.values * torch.tensor([[1.0], [1.0], [float("nan")]]), one.offsets)
    assert row_differences(nan, one).tolist() == [0.0, 0.0, float("inf")]


@pytest.mark.parametrize("kind", ["label", "entities"])
def test_golden_texts_are_of_many_targets(kind: str, text_bundle: Bundles) -> None:
    made = text_bundle(kind)
    chosen = read_json(made.folder / "golden" / "golden.json")["inputs"]
    targets = {str(sample.target) for sample in made.trained.validation.samples if sample.source in chosen}
    assert len(targets) == min(5, len({str(sample.target) for sample in made.trained.validation.samples}))
    assert all(one in sources(made.trained.validation.samples) for one in chosen)
