"""The gate: a bundle must answer the whole validation set as the trained model does, from raw input to score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoft.errors import DataError, ExportError
from autoft.export.contract import read_contract
from autoft.export.script import load_script
from autoft.ragged import Ragged, Rows
from autoft.specs import Sample
from autoft.train import Objective

BATCH_SIZES = (1, 2, 7)  # beside the full pass: a graph can be right at one batch size and wrong at another
FULL_BATCH = 32
FEW = 14  # samples that are repeated at each of these sizes, beside the shortest and the longest text
CHUNK = 2048  # samples whose raw content is held at once
PREPROCESSED = 64  # samples that `onnx/preprocess.onnx` is measured on
# In 255ths: rounding explains two, seen in images that are blown up ninefold. What is wrong (a filter, a channel, a
# normalization) gives ten and more.
MOST_STEPS = 3.0
MOST_OTHER_CLASSES = 1e-3  # of a mask's pixels: where two classes are as likely, rounding decides


@dataclass(frozen=True)
class Parity:
    """What the gate measured.

    Attributes:
        samples: Validation samples scored, from raw input.
        metric: The task's metric.
        trained: Its value for the trained model, float32.
        exported: Its value for the bundle through ONNX Runtime.
        max_output_difference: Largest absolute difference between any two logits, over all batch sizes; of numbers that are
            predicted, in standard deviations of the training targets.
        batch_sizes: Those tried.
    """

    samples: int
    metric: str
    trained: float
    exported: float
    max_output_difference: float
    batch_sizes: tuple[int, ...]


@dataclass(frozen=True)
class PreprocessParity:
    """How `onnx/preprocess.onnx` differs from `predict.py`, measured on raw validation images.

    Attributes:
        samples: How many images.
        largest_step: Largest difference of a pixel before normalization, in 255ths.
        differing: Share of the pixel values that differ by half a 255th or more.
        max_output_difference: Largest difference of any output of the model.
        same_answers: Share of the images whose largest output stays the same.
    """

    samples: int
    largest_step: float
    differing: float
    max_output_difference: float
    same_answers: float


def check_preprocess(folder: Path, samples: Sequence[Sample]) -> PreprocessParity | None:
    """Measure a bundle's `onnx/preprocess.onnx` in ONNX Runtime against its script; None where the bundle has none.

    Args:
        folder: The bundle.
        samples: Validation samples, raw.

    Raises:
        ExportError: It gives other pixels than rounding explains.
    """
    import onnxruntime

    graph = folder / "onnx" / "preprocess.onnx"
    if not graph.exists():
        return None
    script = load_script(folder / "predict.py")
    bundle = script.Bundle.load(folder)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    std = np.asarray(bundle.preprocessing["std"], np.float32).reshape(1, 3, 1, 1)
    spread = np.linspace(0, len(samples) - 1, min(len(samples), PREPROCESSED)).astype(int)
    steps, apart, same = [], [], []
    for row in spread:
        image = script.read_image(samples[int(row)].source)
        wanted = script.normalize(script.resize_and_crop(image, bundle.preprocessing)[None], bundle.preprocessing)
        (found,) = session.run(None, {"image": np.asarray(image, np.uint8)[None]})
        if found.shape != wanted.shape:
            raise ExportError(f"onnx/preprocess.onnx must give {wanted.shape}, but gives {found.shape}", "report this")
        steps.append(np.abs(found - wanted) * std * 255)
        theirs, ours = (bundle.run(pixels)["logits"] for pixels in (found, wanted))
        apart.append(float(np.abs(theirs - ours).max()))
        same.append(bool((theirs.argmax(1) == ours.argmax(1)).all()))
    measured = PreprocessParity(
        samples=len(spread),
        largest_step=round(max(float(step.max()) for step in steps), 3),
        differing=float(np.mean([np.mean(step >= 0.5) for step in steps])),
        max_output_difference=max(apart),
        same_answers=float(np.mean(same)),
    )
    if not measured.largest_step <= MOST_STEPS:  # written so that NaN fails
        raise ExportError(
            f"onnx/preprocess.onnx must give the pixels of predict.py but for rounding, {MOST_STEPS:g} of 255, but differs "
            f"by {measured.largest_step:g}",
            "no bundle was written; report the preprocessing",
        )
    return measured


def check_parity(
    folder: Path,
    samples: Sequence[Sample],
    trained: Rows,
    encoded: Rows,
    objective: Objective,
    *,
    max_metric_drop: float,
    max_output_difference: float,
    variant: str = "fp32",
) -> Parity:
    """Re-score the validation set with a bundle's own script, and compare.

    Where numbers are predicted, in whatever unit, outputs and the metrics that are errors in that unit (those to be
    minimized) may differ in standard deviations of the training targets, if these are known as `scale`.

    Args:
        folder: The bundle, complete; its `predict.py` is the code that runs.
        samples: The validation samples, raw.
        trained: The trained model's outputs for them, float32: `(N, K)`, or a row `(K,)` for each word.
        encoded: Their targets.
        objective: Whose metric must not move.
        max_metric_drop: How far the metric may move, either way.
        max_output_difference: How far any output may move.
        variant: Which of the bundle's graphs.

    Raises:
        ExportError: The gate fails; names the worst samples.
        DataError: A sample cannot be read any more.
    """
    _check_promises(read_contract(folder), objective)
    script = load_script(folder / "predict.py")
    bundle = script.Bundle.load(folder, variant=variant)
    scale = output_scale(objective)
    few: dict[int, Any] = {}
    try:
        parts: list[Any] = []
        for numbers, sources in _chunks(samples):
            parts.append(_rows(bundle.outputs(sources, batch_size=FULL_BATCH)))
            few = _chosen([*few.items(), *zip(numbers, sources, strict=True)])
        exported: Rows = Ragged.cat(parts) if isinstance(parts[0], Ragged) else torch.cat(parts)
        differences = row_differences(exported, trained, scale)
        places = torch.tensor(list(few))
        for size in BATCH_SIZES:
            again = _rows(bundle.outputs(list(few.values()), batch_size=size))
            differences[places] = torch.maximum(differences[places], row_differences(again, trained[places], scale))
        classes = _classes_apart(bundle, list(few.values()), trained, places, objective)
    except getattr(script, "BundleError", ()) as error:
        raise ExportError(f"the exported model fails: {error}", "no bundle was written; report the backbone") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"a validation sample was readable in training, but is not any more: {error}",
            "restore the file, then type the same command again",
        ) from error
    metric = objective.metric
    parity = Parity(
        samples=len(samples),
        metric=metric,
        trained=_score(trained, encoded, objective),
        exported=_score(exported, encoded, objective),
        max_output_difference=float(differences.max()),
        batch_sizes=(*BATCH_SIZES, FULL_BATCH),
    )
    if not (classes <= MOST_OTHER_CLASSES or max_output_difference == float("inf")):
        raise ExportError(
            f"the exported model must give the classes that its outputs mean, but {objective.head.scores} differ in "
            f"{classes:.2%} of the places",
            "no bundle was written; report the task's `activation`",
        )
    in_units = scale is not None and objective.direction == "minimize"
    moved = abs(parity.exported - parity.trained) / (float(scale.mean()) if scale is not None and in_units else 1.0)
    unit = " standard deviations" if in_units else ""
    # written so that NaN fails
    if not (moved <= max_metric_drop and parity.max_output_difference <= max_output_difference):
        raise ExportError(
            f"the exported model does not behave as the trained one: {metric} is {parity.exported:.6g} instead of "
            f"{parity.trained:.6g} (may move by {max_metric_drop:g}{unit}), outputs differ by up to "
            f"{parity.max_output_difference:.3g} (may differ by {max_output_difference:g}); worst samples: "
            f"{_worst(samples, differences)}",
            "no bundle was written; report the backbone, or loosen `export.max_output_difference` if this is harmless",
        )
    return parity


def _classes_apart(bundle: Any, sources: list[Any], trained: Rows, places: Tensor, objective: Objective) -> float:
    """Return the share of the places of a mask to which the graph gives another class than the trained model; else 0.

    Other scores than classes follow from the outputs by one function that no size changes; masks are made larger on the way.
    """
    head = objective.head
    if head.answer != "mask" or head.scores is None or isinstance(trained, Ragged):
        return 0.0
    wanted = head.activation(trained[places])
    found = torch.from_numpy(bundle.vectors(sources)[head.scores])
    return float((found != wanted).double().mean()) if found.shape == wanted.shape else 1.0


def output_scale(objective: Objective) -> Tensor | None:
    """Return the unit of each output `(K,)`, float64: a standard deviation of its targets; None where logits have none."""
    scale = objective.targets.values.get("scale") if objective.head.answer == "values" else None
    return None if scale is None else torch.tensor(scale, dtype=torch.float64).clamp(min=torch.finfo(torch.float64).tiny)


def row_differences(found: Rows, wanted: Rows, scale: Tensor | None = None) -> Tensor:
    """Return the largest absolute difference in each row `(N,)`, float64; NaN, and another length, count as infinite.

    Args:
        found: `(N, K)`, or a row `(K,)` for each part of a sample.
        wanted: As many rows.
        scale: What a difference of each output is divided by, `(K,)`.
    """
    if isinstance(found, Ragged) and isinstance(wanted, Ragged):
        same = found.lengths == wanted.lengths
        differences = torch.where(same, 0.0, float("inf")).double()
        apart = _apart(found[same].values, wanted[same].values, scale)
        within = torch.repeat_interleave(torch.arange(len(found))[same], found.lengths[same])
        return differences.scatter_reduce(0, within, apart, "amax")
    assert isinstance(found, Tensor)  # what the script gives has the kind of what the model gave
    assert isinstance(wanted, Tensor)
    return _apart(found, wanted, scale)


def _apart(found: Tensor, wanted: Tensor, scale: Tensor | None) -> Tensor:
    apart = (found.double() - wanted.double()).abs()
    if scale is not None:
        apart = apart / scale
    return apart.flatten(1).amax(dim=1).nan_to_num(nan=float("inf"), posinf=float("inf"))


def describe(parity: Parity) -> dict[str, Any]:
    """Return the result as the bundle's `autoft.json` records it."""
    return {
        "samples": parity.samples,
        "metric": parity.metric,
        "trained": parity.trained,
        "exported": parity.exported,
        "max_output_difference": parity.max_output_difference,
        "batch_sizes": list(parity.batch_sizes),
        "runtime": "onnxruntime CPUExecutionProvider, from raw input through predict.py",
    }


def _check_promises(contract: dict[str, Any], objective: Objective) -> None:
    """Check that a contract names the labels, and the numbers beside them, that the model was trained with."""
    head, targets = objective.head, objective.targets
    wanted: dict[str, Any] = {"labels": list(targets.labels), "answer": head.answer}
    wanted["values"] = {name: list(numbers) for name, numbers in targets.values.items()}
    for name, value in wanted.items():
        if contract.get(name) != value:
            order = ", in its order," if name == "labels" else ""
            raise ExportError(
                f"the bundle's {name} must be those of the trained model{order} but are {_shown(contract.get(name))} "
                f"instead of {_shown(value)}",
                "no bundle was written; report this",
            )


def _chunks(samples: Sequence[Sample]) -> Iterator[tuple[range, list[Any]]]:
    """Yield the raw content of samples and their numbers, some at a time: all of them may be larger than memory."""
    rest, start = iter(samples), 0
    while sources := [sample.source for sample in islice(rest, CHUNK)]:
        yield range(start, start + len(sources)), sources
        start += len(sources)


def _chosen(numbered: Sequence[tuple[int, Any]]) -> dict[int, Any]:
    """Return the first samples, and of texts the shortest and the longest."""
    chosen = dict(numbered[:FEW])
    texts = [item for item in numbered if isinstance(item[1], str | tuple | list)]
    if texts:
        by_length = sorted(texts, key=lambda item: len(item[1]) if isinstance(item[1], str) else sum(map(len, item[1])))
        chosen |= dict((by_length[0], by_length[-1]))
    return chosen


def _rows(outputs: Any) -> Rows:
    """Return a script's outputs as the trainer's `predict` gives them."""
    return Ragged.of([torch.from_numpy(row) for row in outputs]) if isinstance(outputs, list) else torch.from_numpy(outputs)


def _score(outputs: Rows, encoded: Rows, objective: Objective) -> float:
    """Return the task's metric, or NaN where the outputs are not finite or too many: metrics raise on these."""
    values = outputs.values if isinstance(outputs, Ragged) else outputs
    if isinstance(outputs, Ragged) and isinstance(encoded, Ragged) and bool((outputs.lengths > encoded.lengths).any()):
        return float("nan")
    if not bool(torch.isfinite(values).all()):
        return float("nan")
    return objective.head.metrics(outputs, encoded, objective.targets)[objective.metric]


def _shown(value: Any, most: int = 5) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value[:most])) + (", ..." if len(value) > most else "")
    return f"{value}"[:200]


def _worst(samples: Sequence[Sample], differences: Tensor, count: int = 3) -> str:
    order = differences.argsort(descending=True)[:count]
    return ", ".join(f"{samples[int(row)].id} ({float(differences[row]):.3g})" for row in order)
