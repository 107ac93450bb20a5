"""Writes a bundle's model card: what it does, how well, how to run it, and where it must not be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoft.specs import Backbone
from autoft.train import Objective

SHOWN_CLASSES = 50


def model_card(
    backbone: Backbone,
    objective: Objective,
    measured: Mapping[str, Any],
    reports: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> str:
    """Return the card as Markdown, with the Hugging Face hub's metadata block.

    Args:
        backbone: What the model was made of.
        objective: Task, targets and metric.
        measured: Metrics and parity, as `exported_facts` gives them.
        reports: The head's report of the `validation` and the `test` split.
        facts: Name, data and training settings.
    """
    metric, labels = objective.metric, objective.targets.labels
    data, training, parity = facts["data"], facts["training"], measured["parity"]
    batch_sizes = ", ".join(map(str, parity["batch_sizes"]))
    licence = backbone.licence or ("your own: they were trained from scratch" if backbone.weights == "none" else "unknown")
    lines = [
        "---",
        "library_name: onnx",
        f"pipeline_tag: {objective.head.name}",
        f"license: {backbone.licence or 'other'}",
        "tags: [autoft, onnx]",
        "---",
        "",
        f"# {facts['name']}",
        "",
        f"{objective.head.name} into {len(labels)} classes, fine-tuned by autoft from {backbone.name}"
        + (f" ({backbone.citation})." if backbone.citation else ", from random weights."),
        "",
        "## How well",
        "",
        "| metric | validation | test |",
        "|---|---|---|",
        *(
            f"| {'**' + name + '**' if name == metric else name} | {measured['validation'].get(name, float('nan')):.4f} "
            f"| {value:.4f}{' ± ' + format(measured['test_error'], '.4f') if name == metric else ''} |"
            for name, value in measured["test"].items()
        ),
        "",
        f"The search chose by **{metric}** on {data['validation']} validation samples; that figure is therefore a little "
        f"optimistic. The {data['test']} test samples were scored {_times(training['test_scored'])}; ± is one standard "
        "error by bootstrap over them.",
        "",
        *_by_class(reports["test"]),
        "## Checked before it was written",
        "",
        f"All {parity['samples']} validation samples were scored again through ONNX Runtime, from the raw files through "
        f"`predict.py`: {metric} is {parity['exported']:.6g} (trained model: {parity['trained']:.6g}), and no logit "
        f"differs by more than {parity['max_output_difference']:.2g}, at batch sizes {batch_sizes}.",
        "",
        "## How to run",
        "",
        "```sh",
        "pip install onnxruntime numpy pillow",
        "python predict.py IMAGE [IMAGE ...] --json",
        "python predict.py --check    # replays golden/ on this machine",
        "```",
        "",
        "`onnx/model.onnx` takes `pixel_values` (N, 3, H, W) and gives `logits` and `probabilities` (N, K); its metadata "
        "holds the label names. `preprocessor_config.json` and `autoft.json` declare the preprocessing; `predict.py` holds "
        "the very functions that training used. `onnx/preprocess.onnx` does the same from uint8 (N, H, W, 3) pixels in ONNX "
        "Runtime; runtimes that ignore `antialias` in Resize (OpenVINO, transformers.js) give other pixels when they shrink "
        "an image.",
        "",
        "## Data",
        "",
        f"{data['train']} training, {data['validation']} validation and {data['test']} test samples"
        + (f"; {data['rejected']} unreadable ones were left out" if data["rejected"] else "")
        + (f"; made by autoft: {', '.join(data['made_splits'])}, stratified" if data["made_splits"] else "")
        + ". `golden/` holds a few of the validation samples: remove it if they are not yours to pass on "
        "(and their lines in `autoft.json`).",
        "",
        "## Limits",
        "",
        f"- It answers one of {_shown(labels)} for any image, also for one that shows none of them.",
        "- Its scores are not calibrated beyond what training gave; log-loss above says how far to trust them.",
        "- It was measured on data like the data above, and on nothing else.",
        f"- Licence of the weights it started from: {licence}.",
        "",
        "## How it was made",
        "",
        f"Trial {training['trial']} of {training['trials']}, epoch {training['epoch']}, "
        f"{training['device']} in {training['precision']}.",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value:.4g} |" if isinstance(value, float) else f"| {name} | {value} |"
          for name, value in training["settings"].items()),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _by_class(report: Mapping[str, Any]) -> list[str]:
    """Return the section on the test split's classes; a head need not report any."""
    return ["### Test split by class", "", *_class_table(report["classes"]), ""] if "classes" in report else []


def _class_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = sorted(rows, key=lambda row: row["f1"])[:SHOWN_CLASSES]
    table = [
        "| class | precision | recall | F1 | samples |",
        "|---|---|---|---|---|",
        *(
            f"| {row['label']} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} | {row['support']} |"
            for row in (rows if len(rows) <= SHOWN_CLASSES else shown)
        ),
    ]
    if len(rows) > SHOWN_CLASSES:
        table.append(f"\nThe {SHOWN_CLASSES} classes with the lowest F1 of {len(rows)}.")
    return table


def _times(count: int) -> str:
    if count == 1:
        return "once, by the chosen model"
    return f"{count} times: the search was continued after its first result"


def _shown(labels: Sequence[str], most: int = 12) -> str:
    return ", ".join(labels) if len(labels) <= most else f"{', '.join(labels[:most])}, ... ({len(labels)} in all)"
