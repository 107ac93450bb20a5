"""The conformance checks of training: a backbone under a head learns, repeats with its seed, and goes on exactly."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoft.errors import AutoftError, first_line
from autoft.specs import Backbone, Head
from autoft.testing.kit import CheckFailed, identical, make_raw, state_of

if TYPE_CHECKING:
    from autoft.loading import SplitData
    from autoft.model import FineTuneModel
    from autoft.train import EpochReport, Objective, TrainConfig

SAMPLES = 8
BATCH = 4
ENOUGH = 0.8  # of the first loss: reached within a few steps by whatever learns at all
MOST_STEPS = 60


def check_learns(backbone: Backbone, head: Head) -> None:
    """Check that the head's loss falls when a few samples are shown again and again.

    Raises:
        CheckFailed: It does not fall by a fifth, is no finite number, or none of the model's parameters takes part.
    """
    import numpy as np
    import torch

    model, data, objective = _prepared(backbone, head)
    model.freeze(0)
    model.train()
    groups = [{"params": model.backbone.parameters(), "lr": 1e-3}, {"params": model.head.parameters(), "lr": 1e-2}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    ((inputs, wanted),) = data.batches([np.arange(SAMPLES)], device=torch.device("cpu"))
    knobs = _knobs(head)
    losses: list[float] = []
    for _ in range(MOST_STEPS):
        optimizer.zero_grad(set_to_none=True)
        loss = head.loss(model(*inputs), wanted, objective.targets, knobs)
        if loss.dim() or not loss.requires_grad:
            raise CheckFailed(
                f"the loss of {head.name} must be one number with a gradient, but is of shape {tuple(loss.shape)}"
                f"{'' if loss.requires_grad else ' without a gradient'}",
                "return the mean over the batch, from the outputs",
            )
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise CheckFailed(f"the loss of {head.name} on {backbone.name} must stay finite, but becomes {losses[-1]}")
        if losses[-1] <= ENOUGH * losses[0]:
            return
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    raise CheckFailed(
        f"{backbone.name} under {head.name} must learn {SAMPLES} samples that are shown again and again, but after "
        f"{MOST_STEPS} steps the loss is {losses[-1]:.4g}, from {losses[0]:.4g}",
        "see that features and loss depend on the inputs and targets, and that nothing is detached",
    )


def check_repeats(backbone: Backbone, head: Head) -> None:
    """Check that training twice with one seed gives the same weights and scores, bit for bit.

    Raises:
        CheckFailed: Names the first that differs.
    """
    runs = [_fit(backbone, head, epochs=1) for _ in range(2)]
    _compare(
        backbone,
        head,
        runs[1],
        runs[0],
        "training twice with the same seed must give the same",
        "draw random numbers from torch's generator, which autoft seeds, and from nowhere else",
    )


def check_continues(backbone: Backbone, head: Head) -> None:
    """Check that training stopped after an epoch goes on from its checkpoint, in a new build, as if it had not stopped.

    Raises:
        CheckFailed: The checkpoint cannot be loaded, or weights or scores differ from those of one run.
    """
    whole = _fit(backbone, head, epochs=2)
    with tempfile.TemporaryDirectory(prefix="autoft-check-") as folder:
        _fit(backbone, head, epochs=2, checkpoint=Path(folder), stop_after=1)
        try:
            again = _fit(backbone, head, epochs=2, checkpoint=Path(folder))
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckFailed(
                f"{backbone.name}: a checkpoint must load into a new build, but does not: {first_line(error)}",
                "give every build the same parameters and buffers",
            ) from error
    _compare(
        backbone,
        head,
        again,
        whole,
        "training that goes on from a checkpoint must give what one run gives, the same",
        "keep what changes in training in parameters and buffers that are saved (`persistent=True`)",
    )


CHECKS: tuple[tuple[str, str, Callable[[Backbone, Head], None]], ...] = (
    ("learns", "the loss of a few samples shown again and again falls", check_learns),
    ("repeats", "training twice with one seed gives the same weights and scores", check_repeats),
    ("continues", "training goes on from a checkpoint, in a new build, as if it had not stopped", check_continues),
)

_Run = tuple["FineTuneModel", Sequence["EpochReport"]]


class _Stopped(Exception):  # noqa: N818 - a request, not an error
    pass


def _prepared(backbone: Backbone, head: Head) -> tuple[FineTuneModel, SplitData, Objective]:
    """Assemble a model, and a few generated samples with targets of the head's kind."""
    from autoft.loading import load_split
    from autoft.model import assemble
    from autoft.train import Objective

    samples = make_raw(backbone, head, SAMPLES)
    try:
        targets = head.describe([sample.target for sample in samples])
        encoded = head.encode([sample.target for sample in samples], targets)
    except AutoftError as error:
        raise CheckFailed(
            f"{head.name} must take targets of the kind of its `answer`, {head.answer}, but does not: {error.message}",
            "mend `answer`, `describe` or `encode`",
        ) from error
    model = assemble(backbone, head, targets, _knobs(head), seed=0)
    fitted = backbone.preprocessing.fit([sample.source for sample in samples])
    return model, load_split(samples, encoded, fitted), Objective(head, targets, head.default_metric(targets))


def _knobs(head: Head) -> dict[str, str | int | float | bool]:
    return {knob.name: knob.default for knob in head.knobs}


def _config(head: Head, epochs: int) -> TrainConfig:
    from autoft.train import TrainConfig

    return TrainConfig(1e-3, epochs, BATCH, weight_decay=0.01, knobs=_knobs(head), keep_last=True)


def _fit(
    backbone: Backbone, head: Head, *, epochs: int, checkpoint: Path | None = None, stop_after: int | None = None
) -> _Run:
    """Train by autoft's own loop; with `stop_after`, stop as a kill after that epoch's checkpoint does."""
    import torch

    from autoft.train import fit

    model, data, objective = _prepared(backbone, head)
    reports: list[EpochReport] = []

    def note(report: EpochReport) -> None:
        reports.append(report)
        if report.epoch == stop_after:
            raise _Stopped

    with contextlib.suppress(_Stopped):  # asked for
        fit(
            model,
            data,
            data,
            objective,
            _config(head, epochs),
            device=torch.device("cpu"),
            no_weight_decay=backbone.no_weight_decay(model.backbone),
            checkpoint=checkpoint,
            on_epoch=note,
        )
    return model, reports


def _compare(backbone: Backbone, head: Head, found: _Run, wanted: _Run, rule: str, hint: str) -> None:
    for (name, ours), (_, theirs) in zip(state_of(found[0]), state_of(wanted[0]), strict=True):
        if not identical(ours, theirs):
            raise CheckFailed(f"{backbone.name} under {head.name}: {rule} weights, but {name} differs", hint)
    scores, expected = repr(found[1][-1].metrics), repr(wanted[1][-1].metrics)  # as text, so that NaN equals NaN
    if scores != expected:
        raise CheckFailed(f"{backbone.name} under {head.name}: {rule} scores, but they are {scores} and {expected}", hint)
