"""The gate: a bundle must answer the whole validation set as the trained model does, from raw input to score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoft.errors import DataError, ExportError
from autoft.export.contract import read_contract
from autoft.export.script import load_script
from autoft.specs import Sample
from autoft.train import Objective

BATCH_SIZES = (1, 2, 7)  # beside the full pass: a graph can be right at one batch size and wrong at another
FULL_BATCH = 32
FEW = 14  # samples that are repeated at each of these sizes


@dataclass(frozen=True)
class Parity:
    """What the gate measured.

    Attributes:
        samples: Validation samples scored, from raw input.
        metric: The task's metric.
        trained: Its value for the trained model, float32.
        exported: Its value for the bundle through ONNX Runtime.
        max_output_difference: Largest absolute difference between any two logits, over all batch sizes.
        batch_sizes: Those tried.
    """

    samples: int
    metric: str
    trained: float
    exported: float
    max_output_difference: float
    batch_sizes: tuple[int, ...]


def check_parity(
    folder: Path,
    samples: Sequence[Sample],
    trained: Tensor,
    encoded: Tensor,
    objective: Objective,
    *,
    max_metric_drop: float,
    max_output_difference: float,
) -> Parity:
    """Re-score the validation set with a bundle's own script, and compare.

    Args:
        folder: The bundle, complete; its `predict.py` is the code that runs.
        samples: The validation samples, raw.
        trained: The trained model's outputs for them `(N, K)`, float32.
        encoded: Their targets.
        objective: Whose metric must not move.
        max_metric_drop: How far the metric may move, either way.
        max_output_difference: How far any output may move.

    Raises:
        ExportError: The gate fails; names the worst samples.
        DataError: A sample cannot be read any more.
    """
    labels = read_contract(folder)["labels"]
    if labels != list(objective.targets.labels):
        raise ExportError(
            f"the bundle's labels must be those of the trained model, in its order, but are {_shown(labels)} instead of "
            f"{_shown(objective.targets.labels)}",
            "no bundle was written; report this",
        )
    bundle = load_script(folder / "predict.py").Bundle.load(folder)
    sources = [sample.source for sample in samples]
    try:
        exported = torch.from_numpy(bundle.outputs(sources, batch_size=FULL_BATCH)[0])
    except (OSError, ValueError) as error:
        raise DataError(
            f"a validation sample was readable in training, but is not any more: {error}",
            "restore the file, then type the same command again",
        ) from error
    differences = row_differences(exported, trained)
    for size in BATCH_SIZES:
        few = torch.from_numpy(bundle.outputs(sources[:FEW], batch_size=size)[0])
        differences[: len(few)] = torch.maximum(differences[: len(few)], row_differences(few, trained[: len(few)]))
    metric = objective.metric
    parity = Parity(
        samples=len(samples),
        metric=metric,
        trained=_score(trained, encoded, objective),
        exported=_score(exported, encoded, objective),
        max_output_difference=float(differences.max()),
        batch_sizes=(*BATCH_SIZES, FULL_BATCH),
    )
    moved = abs(parity.exported - parity.trained)
    # written so that NaN fails
    if not (moved <= max_metric_drop and parity.max_output_difference <= max_output_difference):
        raise ExportError(
            f"the exported model does not behave as the trained one: {metric} is {parity.exported:.6g} instead of "
            f"{parity.trained:.6g} (may move by {max_metric_drop:g}), outputs differ by up to "
            f"{parity.max_output_difference:.3g} (may differ by {max_output_difference:g}); worst samples: "
            f"{_worst(samples, differences)}",
            "no bundle was written; report the backbone, or loosen `export.max_output_difference` if this is harmless",
        )
    return parity


def row_differences(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the largest absolute difference in each row `(N,)`; NaN counts as infinite."""
    return (found.double() - wanted.double()).abs().flatten(1).amax(dim=1).nan_to_num(nan=float("inf"), posinf=float("inf"))


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


def _score(outputs: Tensor, encoded: Tensor, objective: Objective) -> float:
    """Return the task's metric, or NaN where the outputs are not finite: metrics raise on these."""
    if not bool(torch.isfinite(outputs).all()):
        return float("nan")
    return objective.head.metrics(outputs, encoded, objective.targets)[objective.metric]


def _shown(labels: Sequence[str], most: int = 5) -> str:
    return ", ".join(labels[:most]) + (", ..." if len(labels) > most else "")


def _worst(samples: Sequence[Sample], differences: Tensor, count: int = 3) -> str:
    order = differences.argsort(descending=True)[:count]
    return ", ".join(f"{samples[int(row)].id} ({float(differences[row]):.3g})" for row in order)
