"""Numbers a sample: regression, and similarity, whose numbers stay within the training range."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from autoft.errors import DataError
from autoft.specs import Choice, Head, Knob, Targets
from autoft.tasks.classification import DROPOUT
from autoft.tasks.divergence import of_values
from autoft.tasks.numeric import constant, finite, is_constant, linear_head, pearson, spearman

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

BINS = 10
SMALLEST_BIN = 10  # samples; fewer cannot be divided fairly
RESOLUTION = 1e-5  # smallest standard deviation over the largest value: float32 tells apart 1e-7
LIMITS = (1e-30, 1e30)  # of the standard deviation and of the values, so that float32 holds their quotients

KNOBS = (
    DROPOUT,
    Knob(
        "regression_loss",
        "smooth_l1",
        None,
        "of errors in standard deviations: `smooth_l1` is squared up to 1 and linear beyond",
        Choice(("smooth_l1", "mse", "mae")),
    ),
)


def head(name: str, modality: str | None, help: str, *, bounded: bool = False) -> Head:
    """Return regression under a name, for one modality or, with None, for any.

    Args:
        name: The task.
        modality: What it is for.
        help: One line.
        bounded: Whether answers stay within the range of the training targets (similarity).
    """
    return Head(
        name=name,
        modality=modality,
        features="pooled",
        describe=describe,
        encode=encode,
        build=partial(build, bounded=bounded),
        loss=loss,
        activation=activation,
        metrics=similarity_metrics if bounded else regression_metrics,
        directions={"spearman": "maximize", "pearson": "maximize", "mae": "minimize", "rmse": "minimize"}
        if bounded
        else {"r2": "maximize", "mae": "minimize", "rmse": "minimize", "spearman": "maximize"},
        # r2 counts errors in the targets' own spread: a limit on it means the same for every data set
        default_metric=(lambda targets: "spearman") if bounded else (lambda targets: "r2"),
        report=report,
        answer="values",
        scores=None,
        stratify=stratify,
        divergence=of_values,
        knobs=KNOBS,
        help=help,
    )


def describe(targets: Sequence[tuple[float, ...]]) -> Targets:
    """Read mean, spread and range of the training targets.

    `values["scale"]` is the standard deviation. It is not robust, but it is never zero where the numbers differ (a range
    between quartiles often is), and the default loss is the one that outliers cannot rule.

    Raises:
        DataError: Targets that are not finite numbers, of different count, constant, or too alike for float32.
    """
    values = _checked(targets)
    if not len(values):
        raise DataError("regression needs numbers to learn from, but there are no training samples")
    count = values.shape[1]
    labels = ("value",) if count == 1 else tuple(f"value_{number}" for number in range(1, count + 1))
    mean, scale = values.mean(axis=0), values.std(axis=0)
    for place, label in enumerate(labels):
        column = values[:, place]
        if is_constant(column):
            raise DataError(
                f"regression needs numbers that differ, but all {len(column)} training targets of {label!r} are "
                f"{column[0]:g}",
                "check what the numbers are read from",
            )
        largest = np.abs(column).max()
        if scale[place] < max(LIMITS[0], RESOLUTION * largest) or largest > LIMITS[1]:
            raise DataError(
                f"the targets' standard deviation must be at least {RESOLUTION:g} of their largest value, as float32 cannot "
                f"tell them apart otherwise, and they must lie between {LIMITS[0]:g} and {LIMITS[1]:g}; but {label!r} has "
                f"the standard deviation {scale[place]:g} and the largest value {largest:g}",
                "subtract a constant from the targets, or change their unit",
            )
    return Targets(
        labels,
        values={
            "mean": tuple(mean.tolist()),
            "scale": tuple(scale.tolist()),
            "low": tuple(values.min(axis=0).tolist()),
            "high": tuple(values.max(axis=0).tolist()),
        },
    )


def encode(targets: Sequence[tuple[float, ...]], described: Targets) -> Tensor:
    """Return the numbers as `(N, D)` float32, in their own unit.

    Raises:
        DataError: Targets that are not finite numbers, or more or fewer of them than the model gives.
    """
    import torch

    return torch.from_numpy(_checked(targets, len(described.labels)).astype(np.float32))


def _checked(targets: Sequence[Any], count: int | None = None) -> NDArray[np.float64]:
    """Return targets as `(N, D)`; `count` is D where it is known, else the first target decides."""
    for number, target in enumerate(targets):
        numbers = isinstance(target, tuple) and all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in target
        )
        if not numbers or not target:
            raise DataError(
                f"regression needs numbers as targets, but got {target!r}",
                "choose another `task`: classification for labels",
            )
        if not all(abs(value) <= LIMITS[1] for value in target):  # NaN is not
            raise DataError(
                f"regression needs finite targets of at most {LIMITS[1]:g}, but sample {number + 1} has {target!r}",
                "remove such samples, or mend their numbers",
            )
        count = len(target) if count is None else count
        if len(target) != count:
            raise DataError(
                f"every sample must have {count} numbers, but sample {number + 1} has {len(target)}: {target!r}",
                "remove such samples, or mend their numbers",
            )
    return np.array(targets, dtype=np.float64).reshape(len(targets), count or 0)


def stratify(targets: Sequence[tuple[float, ...]]) -> list[str]:
    """Return the bin of each sample's first number: up to 10 of about equal size, equal numbers in one bin."""
    values = _checked(targets)[:, 0]
    unique, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    size = len(values) / min(BINS, max(1, len(values) // SMALLEST_BIN))
    bins = np.zeros(len(unique), dtype=np.int64)
    number = filled = 0
    left = len(values)
    for place, count in enumerate(counts.tolist()):
        if filled >= size and left >= SMALLEST_BIN:  # else the last bin would be too small
            number, filled = number + 1, 0
        bins[place] = number
        filled += count
        left -= count
    return [f"bin {number}" for number in bins[inverse].tolist()]


# --- module and loss --------------------------------------------------------------------------------


def build(features: int, targets: Targets, knobs: Mapping[str, Any], *, bounded: bool = False) -> nn.Module:
    """Make dropout, a linear layer and the way back to the targets' unit, `(N, C) -> (N, D)`.

    The layer works on numbers of mean 0 and standard deviation 1; the mean and scale that undo this are part of the module,
    and so of the exported graph. With the layer's weights at zero the answer is the training mean.

    Args:
        features: C.
        targets: From `describe`.
        knobs: `dropout`.
        bounded: Whether a sigmoid keeps answers within the range of the training targets.
    """
    import torch
    from torch import nn

    from autoft.tasks.rescale import Rescale

    module = linear_head(features, len(targets.labels), float(knobs["dropout"]))
    if not bounded:
        return nn.Sequential(*module, Rescale(targets.values["mean"], targets.values["scale"]))
    low, high = np.asarray(targets.values["low"]), np.asarray(targets.values["high"])
    share = (np.asarray(targets.values["mean"]) - low) / (high - low)
    with torch.no_grad():
        # the mean lies inside the range, which is not a single point; but rounding may put it on its end
        share = np.clip(share, 1e-4, 1 - 1e-4)
        module[1].bias.copy_(torch.from_numpy(np.log(share / (1 - share))))  # type: ignore[operator]
    return nn.Sequential(*module, nn.Sigmoid(), Rescale(low.tolist(), (high - low).tolist()))


def loss(outputs: Tensor, encoded: Tensor, targets: Targets, knobs: Mapping[str, Any]) -> Tensor:
    """Return the mean loss of predictions and targets `(N, D)`, both divided by the targets' standard deviation."""
    from torch.nn import functional as F

    scale = constant(tuple(targets.values["scale"]), outputs.device)
    errors = (outputs.float() - encoded.float()) / scale
    kinds: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "smooth_l1": F.smooth_l1_loss,
        "mse": F.mse_loss,
        "mae": F.l1_loss,
    }
    return kinds[knobs["regression_loss"]](errors, errors.new_zeros(errors.shape))


def activation(outputs: Tensor) -> Tensor:
    """Return predictions as they are."""
    return outputs


# --- metrics ----------------------------------------------------------------------------------------


def regression_metrics(outputs: Tensor, encoded: Tensor, targets: Targets) -> dict[str, float]:
    """Score predictions `(N, D)` over a whole split: R2, MAE, RMSE and Spearman's correlation, each averaged over outputs.

    R2 and the correlation are left out where a target is constant over the split: they are not defined there. Constant
    predictions have the correlation 0.
    """
    predicted, truth = finite(outputs), encoded.double().cpu().numpy()
    values = _errors(predicted, truth)
    if not any(is_constant(column) for column in truth.T):
        spread = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
        values["r2"] = float((1 - ((predicted - truth) ** 2).sum(axis=0) / spread).mean())
        values["spearman"] = _averaged(spearman, predicted, truth)
    return values


def similarity_metrics(outputs: Tensor, encoded: Tensor, targets: Targets) -> dict[str, float]:
    """Score predictions `(N, D)` over a whole split: Spearman's and Pearson's correlation, MAE and RMSE.

    The correlations are left out where a target is constant over the split. Constant predictions have the correlation 0.
    """
    predicted, truth = finite(outputs), encoded.double().cpu().numpy()
    values = _errors(predicted, truth)
    if not any(is_constant(column) for column in truth.T):
        values["spearman"] = _averaged(spearman, predicted, truth)
        values["pearson"] = _averaged(pearson, predicted, truth)
    return values


def _errors(predicted: NDArray[np.float64], truth: NDArray[np.float64]) -> dict[str, float]:
    errors = predicted - truth
    return {"mae": float(np.abs(errors).mean()), "rmse": float(np.sqrt((errors**2).mean(axis=0)).mean())}


def _averaged(measure: Callable[..., float], predicted: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    return float(np.mean([measure(one, other) for one, other in zip(predicted.T, truth.T, strict=True)]))


def report(outputs: Tensor, encoded: Tensor, targets: Targets) -> dict[str, Any]:
    """Return each output's errors, and what always answering the training mean would score.

    `r2` and `spearman` are None where the target is constant over the split.
    """
    import torch

    mean = torch.tensor(targets.values["mean"], dtype=torch.float64).expand(len(encoded), -1)
    values = []
    for place, label in enumerate(targets.labels):
        column = slice(place, place + 1)
        found = regression_metrics(outputs[:, column], encoded[:, column], targets)
        names = ("mae", "rmse", "r2", "spearman")
        values.append({"label": label, **{name: found.get(name) for name in names}})
    return {"values": values, "baseline": regression_metrics(mean, encoded, targets)}
