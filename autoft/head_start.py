"""Lets a head start from a linear probe: takes the standardization into its weights, and writes and reads them.

How the probe's heads are trained and which of them is the best, `probe.py` knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoft.errors import DataError, first_line
from autoft.files import load_tensors, save_tensors
from autoft.weights import with_versions


def without_standardization(
    module: nn.Module, weights: Mapping[str, Tensor], mean: Tensor, scale: Tensor
) -> dict[str, Tensor] | None:
    """Return the state with which a head takes features as they are, and answers as it does for standardized ones.

    Args:
        module: A head of the kind that was trained.
        weights: Its state; it takes `(features - mean) / scale`.
        mean: `(C,)`.
        scale: `(C,)`.

    Returns:
        The state, or None where the head does not begin with a linear layer that has a bias, behind dropout at most: then
        no weights of it do the same.
    """
    name = _first_linear(module, "")
    dot = "." if name else ""
    if name is None or weights[f"{name}{dot}weight"].shape[1] != len(mean):
        return None
    weight, bias = weights[f"{name}{dot}weight"].double(), weights[f"{name}{dot}bias"].double()
    own = weight / scale.double()  # in float64: bias and product may be far larger than their difference
    return {**weights, f"{name}{dot}weight": own.float(), f"{name}{dot}bias": (bias - own @ mean.double()).float()}


def _first_linear(module: nn.Module, name: str) -> str | None:
    """Return the name of the linear layer that a head's features come to first, or None where something else does."""
    if isinstance(module, nn.Linear):
        return name if module.bias is not None else None
    if not isinstance(module, nn.Sequential):
        return None  # only of a sequence is it known in which order its modules are called
    for own, child in module.named_children():
        if not isinstance(child, nn.Dropout | nn.Identity):
            return _first_linear(child, f"{name}.{own}" if name else own)
    return None


def save_head(file: Path, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a head's state and what is known of it, such as the metric that it has with everything else frozen."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(file, weights, facts)


def load_head(module: nn.Module, file: Path) -> None:
    """Give a head the weights that `save_head` wrote.

    Raises:
        DataError: The file is gone or damaged, or holds a head of another kind or size.
    """
    again = (
        "without `probe.json` in the run folder, the same command makes it again"  # in the line that a trial's failure tells
    )
    try:
        weights, _ = load_tensors(file)
    except (OSError, ValueError) as error:
        raise DataError(f"the probe's head must be readable, but is not: {first_line(error)}; {again}") from error
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != wanted:
        raise DataError(f"the head in {file} must hold {_shown(wanted)}, but holds {_shown(found)}; {again}")
    wrong = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if wrong:
        raise DataError(f"the head in {file} must be finite, but {wrong[0]} is not; {again}")
    module.load_state_dict(with_versions(module, weights))


def _shown(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return (
        ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in sorted(shapes.items())) or "nothing"
    )
