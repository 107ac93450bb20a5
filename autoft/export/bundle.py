"""Writes a bundle: the folder that a deployer gets, complete, hashed, and only after the gate has passed."""

from __future__ import annotations

import json
import math
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from autoft.answered import Answered, collect
from autoft.errors import ExportError
from autoft.export.card import model_card
from autoft.export.contract import FORMAT, FORMAT_VERSION
from autoft.export.graphs import save_graph
from autoft.export.onnx import output_names, to_onnx
from autoft.export.parity import Parity, PreprocessParity, check_parity, check_preprocess, describe
from autoft.export.preprocess import build_preprocess_model, can_preprocess
from autoft.export.sbom import bill_of_materials
from autoft.export.script import load_script, script_source
from autoft.export.triton import triton_config
from autoft.export.variants import Wanted, add_variants
from autoft.files import folder_in_place, save_tensors, sha256, write_bytes, write_json, write_text
from autoft.loading import RaggedData, SplitData
from autoft.model import FineTuneModel
from autoft.ragged import Ragged, Rows
from autoft.runtime.shared import essence
from autoft.specs import Answer, Backbone, Sample
from autoft.train import Objective, predict

GOLDEN_TOLERANCE = 1e-3
BOOTSTRAP_ROUNDS = 100  # gives the standard error to about 7 %
BOOTSTRAP_PLACES, BOOTSTRAP_MASKS = 2_000_000, 20  # pixels, and rows at least: some tenths of a second a round
BOOTSTRAP_ROWS = 5000  # a head computes all of its metrics, and AUROC sorts the rows for every class
RECORDED_PACKAGES = (
    "autoft",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "tokenizers",
    "optuna",
    "onnx",
    "onnxruntime",
    "numpy",
    "pillow",
    "scikit-learn",
)


CANDIDATES = 64  # samples among which an example for tracing is chosen
EXAMPLE_TOKENS = 8  # at least: two lengths, neither of which tracing takes for a constant

PROBLEMS: Mapping[Answer, str] = {  # `problem_type` of the Hugging Face ecosystem; tagging has none
    "label": "single_label_classification",
    "labels": "multi_label_classification",
    "values": "regression",
}


@dataclass(frozen=True)
class Trained:
    """A trained model and what is known about it, ready for export.

    Attributes:
        model: On the CPU, float32, with the best weights.
        backbone: What it was built from.
        objective: Task, targets and metric.
        validation: Validation split, not augmented.
        test: Test split, not augmented; scored once, here.
        facts: What the model card and `autoft.json` tell beside: name, data, trial, settings.
        adapter: Folder of the adapter alone, which goes into the bundle beside the merged weights; None where there is none.
        variants: Which smaller or faster graphs the bundle is to have too; None for none.
    """

    model: FineTuneModel
    backbone: Backbone
    objective: Objective
    validation: SplitData
    test: SplitData
    facts: Mapping[str, Any]
    adapter: Path | None = None
    variants: Wanted | None = None


@dataclass(frozen=True)
class Exported:
    """What an export gave.

    Attributes:
        parity: The gate's measurements.
        validation: Metrics of the trained model, float32, on the validation split.
        test: Metrics on the test split.
        test_error: Standard error of the task's metric on the test split, by bootstrap.
        reports: The head's finer account of the `validation` and the `test` split, such as one entry a class.
        preprocess: How far `onnx/preprocess.onnx` is from the script; None where the bundle has none.
        variants: What `autoft.json` says of other graphs than the float32 one, and which is recommended; empty for none.
        answered: What the trained model answered to both splits, by split; empty where an answer is no row of numbers.
    """

    parity: Parity
    validation: dict[str, float]
    test: dict[str, float]
    test_error: float
    reports: dict[str, dict[str, Any]]
    preprocess: PreprocessParity | None = None
    variants: Mapping[str, Any] = field(default_factory=dict)
    answered: Mapping[str, Answered] = field(default_factory=dict)


def export_bundle(
    trained: Trained, folder: Path, *, max_metric_drop: float, max_output_difference: float, golden: int
) -> Exported:
    """Export a model, let it through the gate, and put the bundle in place.

    Args:
        trained: What to export.
        folder: Where the bundle is to be. One already there is replaced only after the gate has passed.
        max_metric_drop: How far the task's metric may move.
        max_output_difference: How far any output may move.
        golden: How many validation samples travel with the bundle, to check any runtime against.

    Raises:
        ExportError: The model cannot be exported, or the gate fails; `folder` is untouched.
    """
    backbone, head = trained.backbone, trained.objective.head
    cpu = torch.device("cpu")
    model = trained.model.to(cpu).to(memory_format=torch.contiguous_format)
    validation = predict(model, trained.validation, device=cpu, batch_size=64)
    if head.tune is not None:
        tuned = head.tune(validation, trained.validation.targets, trained.objective.targets)
        trained = replace(trained, objective=replace(trained.objective, targets=tuned))
    objective, targets = trained.objective, trained.objective.targets
    test = predict(model, trained.test, device=cpu, batch_size=64)
    thresholds = targets.values.get("thresholds")
    proto = to_onnx(
        model,
        head.activation,
        example_inputs(trained.validation, backbone),
        input_names=backbone.inputs,
        labels=targets.labels,
        scores=head.scores,
        lengths=backbone.preprocessing.ragged,
        metadata={"answer": head.answer, **({"thresholds": json.dumps(list(thresholds))} if thresholds else {})},
    )
    with folder_in_place(folder) as draft:
        _write_files(draft, trained, proto)
        _write_contract(draft, trained, {})  # the gate runs the bundle's own script, which wants a whole bundle
        parity = check_parity(
            draft,
            trained.validation.samples,
            validation,
            trained.validation.targets,
            objective,
            max_metric_drop=max_metric_drop,
            max_output_difference=max_output_difference,
        )
        variants: dict[str, Any] = {}
        if trained.variants is not None and trained.variants.variants:
            variants = add_variants(
                draft,
                trained.variants,
                backbone.inputs,
                trained.validation,
                validation,
                objective,
                parity,
                lambda known: _write_contract(draft, trained, known),
            )
        _write_contract(draft, trained, variants)
        exported = Exported(
            parity=parity,
            validation=head.metrics(validation, trained.validation.targets, targets),
            test=head.metrics(test, trained.test.targets, targets),
            test_error=bootstrap_error(test, trained.test.targets, objective),
            reports={
                "validation": head.report(validation, trained.validation.targets, targets),
                "test": head.report(test, trained.test.targets, targets),
            },
            preprocess=check_preprocess(draft, trained.validation.samples),
            variants=variants,
            answered=_answered(trained, validation, test),
        )
        _write_golden(draft, trained.validation.samples, golden)
        measured = exported_facts(exported)
        takes = _takes(trained.validation.samples[0])
        write_text(draft / "README.md", model_card(backbone, objective, measured, exported.reports, trained.facts, takes))
        _write_contract(draft, trained, measured)
        if golden:
            _replay_golden(draft)
    return exported


def _answered(trained: Trained, validation: Rows, test: Rows) -> dict[str, Answered]:
    found = {
        "validation": collect(validation, trained.validation, trained.objective),
        "test": collect(test, trained.test, trained.objective),
    }
    return {split: answers for split, answers in found.items() if answers is not None}


def exported_facts(exported: Exported) -> dict[str, Any]:
    """Return an export's measurements, JSON-ready."""
    return {
        "parity": describe(exported.parity),
        **({"preprocess_parity": asdict(exported.preprocess)} if exported.preprocess is not None else {}),
        "validation": exported.validation,
        "test": exported.test,
        "test_error": exported.test_error,
        **exported.variants,
    }


def example_inputs(data: SplitData, backbone: Backbone) -> tuple[Tensor, ...]:
    """Return the inputs of two samples, for tracing; of texts, one half as long as the other, and neither short."""
    if isinstance(data, RaggedData):
        longest = int(data.tokens.lengths[:CANDIDATES].argmax())
        row = data.tokens.take(np.array([longest])).row(0)
        row = row[torch.arange(max(EXAMPLE_TOKENS, len(row))) % len(row)]
        inputs = data.preprocessing.inputs(Ragged.of([row, row[: len(row) // 2]]))
    else:
        inputs, _ = next(iter(data.batches([np.arange(2) % len(data)], device=torch.device("cpu"))))
    if len(inputs) != len(backbone.inputs):
        raise ExportError(f"{backbone.name} names {len(backbone.inputs)} inputs, but its preprocessing gives {len(inputs)}")
    return inputs


def bootstrap_error(outputs: Rows, encoded: Rows, objective: Objective) -> float:
    """Return the standard error of the task's metric by resampling the split's samples (Efron, 1979).

    Of a large split, fewer rows are drawn than it has, and the error is scaled to all of them (m out of n bootstrap).
    Resamples in which the metric is not defined are left out.
    """
    rng = np.random.default_rng(0)
    drawn = min(len(encoded), BOOTSTRAP_ROWS)
    if isinstance(encoded, Tensor) and encoded.dim() > 2:  # masks, of which each row has many
        drawn = min(drawn, max(BOOTSTRAP_MASKS, BOOTSTRAP_PLACES // encoded[0].numel()))
    values = []
    for _ in range(BOOTSTRAP_ROUNDS):
        rows = rng.integers(0, len(encoded), drawn)
        found = objective.head.metrics(outputs[rows], encoded[rows], objective.targets)
        if objective.metric in found:
            values.append(found[objective.metric])
    return float(np.std(values)) * math.sqrt(drawn / len(encoded)) if values else 0.0


def _write_files(folder: Path, trained: Trained, proto: onnx.ModelProto) -> None:
    backbone, head, targets = trained.backbone, trained.objective.head, trained.objective.targets
    (folder / "onnx").mkdir()
    write_text(folder / "config.pbtxt", triton_config(proto))
    save_graph(proto, folder / "onnx" / "model.onnx")
    declared = backbone.preprocessing.to_dict()
    if can_preprocess(declared):
        save_graph(build_preprocess_model(declared), folder / "onnx" / "preprocess.onnx")
    save_tensors(folder / "model.safetensors", trained.model.state_dict(), {"backbone": backbone.public_name})
    write_text(folder / "predict.py", script_source(head.runtime or backbone.preprocessing.runtime))
    for file in sorted(trained.adapter.iterdir()) if trained.adapter is not None else ():
        write_bytes(folder / "adapter" / file.name, file.read_bytes())
    write_json(folder / "sbom.json", bill_of_materials(trained.facts["name"]))
    for name, content in backbone.preprocessing.files().items():
        write_text(folder / name, content)
    write_json(
        folder / "config.json",
        {
            **backbone.config,
            "num_labels": len(targets.labels),
            "id2label": {str(index): label for index, label in enumerate(targets.labels)},
            "label2id": {label: index for index, label in enumerate(targets.labels)},
            **({"problem_type": PROBLEMS[head.answer]} if head.answer in PROBLEMS else {}),
        },
    )


def _write_contract(folder: Path, trained: Trained, measured: Mapping[str, Any]) -> None:
    """Write `autoft.json` last: it holds the hash of every other file."""
    backbone, objective, targets = trained.backbone, trained.objective, trained.objective.targets
    takes = _takes(trained.validation.samples[0])
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "autoft.json")
    write_json(
        folder / "autoft.json",
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": trained.facts["name"],
            "task": objective.head.name,
            "answer": objective.head.answer,
            "labels": list(targets.labels),
            "values": {name: list(numbers) for name, numbers in targets.values.items()},
            "metric": objective.metric,
            **({"takes": takes} if takes else {}),
            "columns": trained.facts["data"].get("columns", {}),
            "inputs": list(backbone.inputs),
            "outputs": list(output_names(objective.head.scores)),
            "preprocessing": backbone.preprocessing.to_dict(),
            "backbone": {
                "name": backbone.public_name,
                "weights": backbone.citation,
                "licence": backbone.licence,
            },
            **measured,
            "training": trained.facts["training"],
            "data": trained.facts["data"],
            "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED_PACKAGES}},
            "files": {path.relative_to(folder).as_posix(): sha256(path) for path in files},
        },
    )


def _takes(sample: Sample) -> str | None:
    """Return what an input of a bundle for texts is; None for others, whose inputs are files."""
    kinds = ((str, "text"), (tuple, "pair"), (list, "words"))
    return next((name for kind, name in kinds if isinstance(sample.source, kind)), None)


def _write_golden(folder: Path, samples: Sequence[Sample], count: int) -> None:
    """Store raw validation samples of as many targets as possible, with what the bundle makes of them."""
    chosen = _spread(samples, count)
    if not chosen:
        return
    golden = folder / "golden"
    golden.mkdir()
    entries, sources = [], []
    for number, sample in enumerate(chosen):
        if _takes(sample):
            entry = source = sample.source  # texts are JSON already
        else:
            entry = f"{number}{sample.source.suffix.lower()}" if isinstance(sample.source, Path) else f"{number}.bin"
            source = golden / "inputs" / entry
            source.parent.mkdir(exist_ok=True)
            if isinstance(sample.source, Path):
                shutil.copyfile(sample.source, source)
            else:
                source.write_bytes(sample.source)
        entries.append(entry)
        sources.append(source)
    bundle = load_script(folder / "predict.py").Bundle.load(folder)
    for name, array in bundle.vectors(sources).items():
        np.save(golden / f"{name}.npy", array, allow_pickle=False)
    answers = [essence(answer) for answer in bundle.answers(sources)]
    write_json(golden / "golden.json", {"inputs": entries, "answers": answers, "tolerance": GOLDEN_TOLERANCE})


def _replay_golden(folder: Path) -> None:
    """Check the finished bundle as its receiver will: hashes first, then the golden vectors."""
    checked = load_script(folder / "predict.py").Bundle.load(folder).check()
    if not checked["ok"]:
        raise ExportError(f"the finished bundle does not reproduce its own golden vectors: {json.dumps(checked)}")


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Choose samples, one of each target in turn, in one pass that holds few of them."""
    queues: dict[Any, list[Sample]] = {}
    for sample in samples if count else ():
        if sample.target in queues or len(queues) < count:
            queue = queues.setdefault(sample.target, [])
            if len(queue) < count:
                queue.append(sample)
    chosen: list[Sample] = []
    while len(chosen) < count and any(queues.values()):
        for queue in queues.values():
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen
