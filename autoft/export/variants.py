"""Adds variants to a bundle: makes each, lets it through the gate, measures all, and recommends one with its evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from autoft.bench import bench, fastest
from autoft.errors import ExportError
from autoft.export.parity import Parity, check_parity
from autoft.export.quantize import Batch, Variant, make_variant, method_of
from autoft.loading import SplitData
from autoft.ragged import Rows
from autoft.train import Objective

CALIBRATED = 128  # training samples by which activations are calibrated, at most
BATCH = 8
FP32 = "fp32"
NO_LIMIT = float("inf")


@dataclass(frozen=True)
class Wanted:
    """Which variants a bundle is to have.

    Attributes:
        variants: Their names.
        max_drop: How much of the task's metric each may lose on the validation split.
        calibration: Samples of the training split, not augmented.
    """

    variants: tuple[Variant, ...]
    max_drop: float
    calibration: SplitData


def add_variants(
    draft: Path,
    wanted: Wanted,
    inputs: Sequence[str],
    validation: SplitData,
    outputs: Rows,
    objective: Objective,
    parity: Parity,
    rewrite: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Add variants to a bundle's draft, and return what `autoft.json` says of them.

    A variant that loses too much, or cannot be made, is not in the bundle, and what was found is.

    Args:
        draft: The bundle, complete but for them.
        wanted: Which.
        inputs: Names of the graph's inputs.
        validation: The validation split.
        outputs: The trained model's outputs for it.
        objective: Task, targets and metric.
        parity: What the gate found of the float32 graph.
        rewrite: Writes `autoft.json` anew with what is known of the variants so far.
    """
    source, found = draft / "onnx" / "model.onnx", dict[str, dict[str, Any]]()
    sign = 1.0 if objective.direction == "maximize" else -1.0
    method = onnx.load_model(source, load_external_data=False)
    for name in wanted.variants:
        file = f"onnx/model_{name}.onnx"
        entry: dict[str, Any] = {"file": file, "shipped": True, "method": method_of(name, method)}
        try:
            make_variant(name, source, draft / file, _batches(wanted.calibration, inputs))
            rewrite({"variants": {**found, name: entry}})  # the gate runs the bundle's own script, which looks there
            seen = check_parity(
                draft,
                validation.samples,
                outputs,
                validation.targets,
                objective,
                max_metric_drop=NO_LIMIT,  # may be better, too
                max_output_difference=NO_LIMIT,
                variant=name,
            )
        except ExportError as error:
            entry |= {"shipped": False, "why": error.message}
        else:
            drop = sign * (parity.exported - seen.exported)
            entry |= {"metric": seen.exported, "drop": drop, "max_output_difference": seen.max_output_difference}
            if not drop <= wanted.max_drop:  # written so that NaN fails
                entry |= {
                    "shipped": False,
                    "why": f"{objective.metric} is {seen.exported:.6g} where float32 has {parity.exported:.6g}; it may lose "
                    f"{wanted.max_drop:g}",
                }
        if not entry["shipped"]:
            (draft / file).unlink(missing_ok=True)
        found[name] = entry
    shipped = {FP32: source, **{name: draft / entry["file"] for name, entry in found.items() if entry["shipped"]}}
    samples = next(_batches(validation, inputs))
    measured = bench(shipped, samples)
    found = {FP32: _of_fp32(parity), **found}
    for shown, cost in measured.items():
        found[shown] |= cost.to_dict()
    best = fastest(measured)
    size = min(measured[best].latency)
    told = ", ".join(f"{name} {cost.latency[size].p50:.3g} ms" for name, cost in measured.items())
    rule = f"the fastest of those that lose at most {wanted.max_drop:g} of {objective.metric}"
    why = f"{rule}: {told} (median of one sample on one thread)"
    return {"variants": found, "recommended": {"variant": best, "why": why}}


def _of_fp32(parity: Parity) -> dict[str, Any]:
    return {
        "file": "onnx/model.onnx",
        "shipped": True,
        "method": "as trained",
        "metric": parity.exported,
        "drop": 0.0,
        "max_output_difference": parity.max_output_difference,
    }


def _batches(data: SplitData, inputs: Sequence[str]) -> Iterator[Batch]:
    """Yield some samples, spread over a split, as inputs by name."""
    rows = np.unique(np.linspace(0, len(data) - 1, min(len(data), CALIBRATED)).astype(int))
    parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    for tensors, _ in data.batches(parts, device=torch.device("cpu")):
        yield {name: tensor.numpy() for name, tensor in zip(inputs, tensors, strict=True)}
