"""Writes a bundle's model card: what it does, how well, how to run it, and where it must not be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoft.specs import Answer, Backbone, Targets
from autoft.train import Objective

SHOWN_CLASSES = 50
PAIR = '"a text" "the other text" --json'


@dataclass(frozen=True)
class _Words:
    """How a card speaks of one modality.

    Attributes:
        one: What an input is.
        task: The first word of the task's name on the Hugging Face hub.
        packages: What running the bundle needs.
        arguments: What `predict.py` is given.
        shape: Of the graph's inputs.
        by_hand: What to know for running it without `predict.py`.
    """

    one: str
    task: str
    packages: str
    arguments: str
    shape: str
    by_hand: str


_IMAGE = _Words(
    "image",
    "image",
    "onnxruntime numpy pillow",
    "IMAGE [IMAGE ...] --json",
    "(N, 3, H, W)",
    "`preprocessor_config.json` and `autoft.json` declare the preprocessing; `predict.py` holds the very functions that "
    "training used.",
)
_TEXT = _Words(
    "text",
    "text",
    "onnxruntime numpy tokenizers",
    '"a text" --json',
    "(N, T), int64",
    "`tokenizer.json` and `tokenizer_config.json` are those of the Hugging Face ecosystem; pad on the right. `predict.py` "
    "holds the very functions that training used.",
)

_AUDIO = _Words(
    "clip",
    "audio",
    "onnxruntime numpy soundfile soxr",
    "CLIP [CLIP ...] --json",
    "(N, samples) float32 and (N,) int64",
    "`autoft.json` declares the rate and the number of samples; longer clips are cut, shorter ones filled with zeros. "
    "`predict.py` holds the very functions that training used.",
)
_WORDS = {"image": _IMAGE, "text": _TEXT, "audio": _AUDIO}


def model_card(
    backbone: Backbone,
    objective: Objective,
    measured: Mapping[str, Any],
    reports: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
    takes: str | None = None,
) -> str:
    """Return the card as Markdown, with the Hugging Face hub's metadata block.

    Args:
        backbone: What the model was made of.
        objective: Task, targets and metric.
        measured: Metrics and parity, as `exported_facts` gives them.
        reports: The head's report of the `validation` and the `test` split.
        facts: Name, data and training settings.
        takes: What an input is, for texts: `text`, `pair` or `words`.
    """
    metric, targets, answer = objective.metric, objective.targets, objective.head.answer
    data, training, parity = facts["data"], facts["training"], measured["parity"]
    declared = backbone.preprocessing.to_dict()
    words = _WORDS.get(backbone.modality, _IMAGE)
    stratified = ", stratified" if objective.head.stratify is not None else ""
    form = ".6g" if answer == "values" else ".4f"  # numbers may be of any size
    batch_sizes = ", ".join(map(str, parity["batch_sizes"]))
    licence = backbone.licence or ("your own: they were trained from scratch" if backbone.weights == "none" else "unknown")
    lines = [
        "---",
        "library_name: onnx",
        f"pipeline_tag: {_pipeline(answer, words)}",
        f"license: {backbone.licence or 'other'}",
        "tags: [autoft, onnx]",
        "---",
        "",
        f"# {facts['name']}",
        "",
        f"{objective.head.name} {_into(answer, targets)}, fine-tuned by autoft from {backbone.public_name}"
        + (f" ({backbone.citation})." if backbone.citation else ", from random weights."),
        "",
        "## How well",
        "",
        "| metric | validation | test |",
        "|---|---|---|",
        *(
            f"| {'**' + name + '**' if name == metric else name} | {measured['validation'].get(name, float('nan')):{form}} "
            f"| {value:{form}}{' ± ' + format(measured['test_error'], form) if name == metric else ''} |"
            for name, value in measured["test"].items()
        ),
        "",
        _about_validation(metric, data["validation"], refitted=bool(training.get("refitted")))
        + f" The {data['test']} test samples were scored {_times(training['test_scored'])}; ± is one standard "
        "error by bootstrap over them.",
        "",
        *_by_class(reports["test"]),
        *_thresholds(targets),
        "## Checked before it was written",
        "",
        f"All {parity['samples']} validation samples were scored again through ONNX Runtime, from the raw {words.one}s "
        f"through `predict.py`: {metric} is {parity['exported']:.6g} (trained model: {parity['trained']:.6g}), and no "
        f"{'number' if answer == 'values' else 'logit'} differs by more than {parity['max_output_difference']:.2g}"
        + (" standard deviations" if answer == "values" and "scale" in targets.values else "")
        + f", at batch sizes {batch_sizes}.",
        "",
        *_runtimes(backbone, measured.get("preprocess_parity")),
        *_variants(metric, measured),
        "## How to run",
        "",
        "```sh",
        f"pip install {words.packages}",
        f"python predict.py {words.arguments if takes != 'pair' else PAIR}",
        *(["python predict.py --check    # replays golden/ on this machine"] if facts.get("golden", True) else []),
        "```",
        "",
        f"`onnx/model.onnx` takes {', '.join(f'`{name}`' for name in backbone.inputs)} {words.shape} and gives "
        f"{_gives(objective)}; its metadata holds the names of the labels"
        + (" and their thresholds" if "thresholds" in targets.values else "")
        + f". {words.by_hand}",
        "",
        "## Data",
        "",
        f"{data['train']} training, {data['validation']} validation and {data['test']} test samples"
        + (f"; {data['rejected']} unreadable ones were left out" if data["rejected"] else "")
        + (f"; made by autoft: {', '.join(data['made_splits'])}{stratified}" if data["made_splits"] else "")
        + (
            ". `golden/` holds a few of the validation samples: if they are not yours to pass on, export again with "
            "`export.golden=0`."
            if facts.get("golden", True)
            else ". None of them are in this bundle."
        ),
        "",
        "## Limits",
        "",
        *_limits(answer, targets, words, declared),
        "- It was measured on data like the data above, and on nothing else.",
        f"- Licence of the weights it started from: {licence}.",
        "",
        "## How it was made",
        "",
        f"Trial {training['trial']} of {training['trials']}, epoch {training['epoch']}, "
        f"{training['device']} in {training['precision']}. {_repeats(training['why_not_repeated'])}",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value:.4g} |" if isinstance(value, float) else f"| {name} | {value} |"
          for name, value in training["settings"].items()),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _repeats(why_not: Sequence[str]) -> str:
    """Return whether the same search gives the same model again."""
    if not why_not:
        return "The same study, seed and packages on the same machine give the same model bit for bit."
    return f"The same study may give a slightly different model: {'; '.join(why_not)}."


def _pipeline(answer: Answer, words: _Words) -> str:
    """Return the Hugging Face hub's word for the task."""
    if answer == "mask":
        return "image-segmentation"
    return f"{'token' if answer == 'entities' else words.task}-classification"


def _into(answer: Answer, targets: Targets) -> str:
    """Return what the model makes of an input, after the name of its task."""
    count = len(targets.labels)
    if answer == "labels":
        return f"with {count} labels, any number of them at once"
    if answer == "values":
        return f"of {count} number{'s' * (count != 1)} ({_shown(targets.labels)})"
    if answer == "entities":
        return f"with {count} tags ({_shown(targets.labels)})"
    if answer == "mask":
        return f"with {count} classes ({_shown(targets.labels)})"
    return f"into {count} classes"


def _gives(objective: Objective) -> str:
    """Return what the graph gives."""
    head = objective.head
    if head.answer == "mask":
        return f"`logits` (N, K, h, w), and `{head.scores}` (N, H, W), uint8: the class of each pixel of the input"
    shape = "(N, T, K), a row a token, of which the first of each word counts" if head.answer == "entities" else "(N, K)"
    if head.scores is None:
        return f"`logits` {shape}: the numbers themselves, in the unit of the training targets"
    return f"`logits` and `{head.scores}` {shape}"


def _limits(answer: Answer, targets: Targets, words: _Words, declared: Mapping[str, Any]) -> list[str]:
    """Return where the model's answers must not be trusted."""
    lines = {
        "label": f"- It answers one of {_shown(targets.labels)} for any {words.one}, also for one of none of them.",
        "labels": f"- It knows no labels but {_shown(targets.labels)}.",
        "values": f"- It answers a number for any {words.one}, also for one like none that it was trained on.",
        "entities": f"- It knows no tags but {_shown(targets.labels)}, of words split as the training data's were; of raw "
        "text, `predict.py` takes runs of letters and digits, and every other character, as words.",
        "mask": f"- It answers one of {_shown(targets.labels)} for every pixel, also for one of none of them.",
    }
    found = [lines[answer]]
    if answer == "values" and {"mean", "scale"} <= set(targets.values):
        found.append(
            "- A model that always answered the training mean would be off by one standard deviation (root mean square): "
            + ", ".join(
                f"{label} {mean:.6g} ± {scale:.6g}"
                for label, mean, scale in zip(targets.labels, targets.values["mean"], targets.values["scale"], strict=True)
            )
            + "."
        )
    elif answer not in ("values", "mask"):
        trust = "; log-loss above says how far to trust them" if answer == "label" else ""
        found.append(f"- Its scores are not calibrated beyond what training gave{trust}.")
    if "max_length" in declared:
        found.append(
            f"- It reads the first {declared['max_length']} tokens of a text and ignores the rest; answers for such texts "
            "are marked with `cut`."
        )
    return found


def _thresholds(targets: Targets) -> list[str]:
    """Return the section on thresholds, where there are any."""
    if "thresholds" not in targets.values:
        return []
    rows = list(zip(targets.labels, targets.values["thresholds"], strict=True))
    return [
        "### Thresholds",
        "",
        "A label is given where its probability reaches its threshold; they were chosen on the validation samples.",
        "",
        "| label | threshold |",
        "|---|---|",
        *(f"| {label} | {threshold:.4f} |" for label, threshold in rows[:SHOWN_CLASSES]),
        *([f"\nThe first {SHOWN_CLASSES} of {len(rows)}; `autoft.json` has all."] if len(rows) > SHOWN_CLASSES else []),
        "",
    ]


def _about_validation(metric: str, samples: int, *, refitted: bool) -> str:
    if refitted:
        return (
            f"The search chose settings by **{metric}** on {samples} validation samples, and the model was then trained on "
            "these as well: their figures say nothing about new data."
        )
    return f"The search chose by **{metric}** on {samples} validation samples; that figure is therefore a little optimistic."


def _by_class(report: Mapping[str, Any]) -> list[str]:
    """Return the section on the test split's classes, entity types or numbers; a head need not report any."""
    for key, what in (("classes", "class"), ("entities", "entity type"), ("values", "number"), ("areas", "class")):
        if report.get(key):
            plain = key in ("values", "areas")
            table = _value_table(report[key], what) if plain else _class_table(report[key], key, what)
            return [f"### Test split by {what}", "", *table, ""]
    return []


def _value_table(rows: Sequence[Mapping[str, Any]], what: str) -> list[str]:
    names = [name for name in rows[0] if name != "label"]
    return [
        f"| {what} | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *(f"| {row['label']} | {' | '.join(_number(row.get(name)) for name in names)} |" for row in rows),
    ]


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, int | float) else "-"


def _class_table(rows: Sequence[Mapping[str, Any]], plural: str, what: str) -> list[str]:
    shown = sorted(rows, key=lambda row: row["f1"])[:SHOWN_CLASSES] if len(rows) > SHOWN_CLASSES else rows
    table = [
        f"| {what} | precision | recall | F1 | {'samples' if plural == 'classes' else plural} |",
        "|---|---|---|---|---|",
        *(
            f"| {row['label']} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} | {row['support']} |"
            for row in shown
        ),
    ]
    if len(rows) > SHOWN_CLASSES:
        table.append(f"\nThe {SHOWN_CLASSES} with the lowest F1 of {len(rows)}.")
    return table


def _runtimes(backbone: Backbone, preprocess: Mapping[str, Any] | None) -> list[str]:
    """Say from what input which runtime gives the same: tensors everywhere, raw input only where it is made alike."""
    lines = ["## Where it gives the same", ""]
    if backbone.modality == "text":
        return [
            *lines,
            "`predict.py` was measured, above. Any library that reads `tokenizer.json` cuts texts into the same tokens "
            "(tokenizers, transformers, transformers.js), at most "
            f"{backbone.preprocessing.to_dict()['max_length']} of them; `golden/` has some, with the outputs for them.",
            "",
        ]
    if backbone.modality == "audio":
        return [*lines, "`predict.py` was measured, above. Other libraries resample otherwise; `golden/` has tensors.", ""]
    lines += ["| from | in | same as in training |", "|---|---|---|"]
    lines.append("| image files | `predict.py` (Pillow) | yes: measured above |")
    if preprocess is not None:
        lines.append(
            "| uint8 pixels (N, H, W, 3) | `onnx/preprocess.onnx` in ONNX Runtime | but for rounding: "
            f"{preprocess['samples']} validation images differ by at most {preprocess['largest_step']:.0f} of 255, in "
            f"{preprocess['differing']:.2%} of their values; {preprocess['same_answers']:.0%} of the answers are the same |"
        )
    lines += [
        "| image files | transformers' own image processor | nearly: other libraries resize, and round, otherwise |",
        "| image files | transformers.js, OpenVINO's Resize | **no**, where they shrink an image: they ignore `antialias`, "
        "and pixels are off by about 10 of 255. Resize as `autoft.json` says, then use `onnx/model.onnx` |",
        "",
    ]
    return lines


def _variants(metric: str, measured: Mapping[str, Any]) -> list[str]:
    """Say what other graphs there are, with what was measured of each, and which were left out."""
    if "variants" not in measured:
        return []
    lines = [
        "## Variants",
        "",
        f"| graph | {metric} on validation | p50 / p95 ms, 1 sample | 8 samples | MB | peak MB | made |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    left_out = []
    for name, entry in measured["variants"].items():
        if not entry["shipped"]:
            left_out.append(f"{name} was left out: {entry['why']}.")
            continue
        cells = [f"{each['p50']:.3g} / {each['p95']:.3g}" for each in entry["latency_ms"].values()]
        peak = "unknown" if entry["peak_mb"] is None else f"{entry['peak_mb']:.0f}"
        made = f"{entry['size_mb']:.3g} | {peak} | {entry['method']} |"
        lines.append(f"| `{entry['file']}` | {entry['metric']:.6g} | {' | '.join(cells)} | {made}")
    best = measured["recommended"]
    lines += ["", f"Recommended: **{best['variant']}**, {best['why']}. `autoft bench` measures on your machine."]
    return [*lines, *([""] if left_out else []), *left_out, ""]


def _times(count: int) -> str:
    if count == 1:
        return "once, by the chosen model"
    return f"{count} times: the search was continued after its first result, or other trials were exported"


def _shown(labels: Sequence[str], most: int = 12) -> str:
    return ", ".join(labels) if len(labels) <= most else f"{', '.join(labels[:most])}, ... ({len(labels)} in all)"
