"""Trains the winner's settings once more, on the training and the validation split together, where a study asks for it.

What comes of it cannot be scored honestly but on the test split; `result.json` and the model card say so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from autoft.checkpoint import LAST
from autoft.errors import RunError
from autoft.failures import stop_if_not_its_fault
from autoft.files import load_tensors
from autoft.prepare import Prepared
from autoft.ragged import Ragged, Rows
from autoft.specs import Backbone
from autoft.splits import Subset
from autoft.train import EpochReport, TrainConfig
from autoft.worker import CHECKPOINT, Job, PauseTrial, Worker

logger = logging.getLogger("autoft")

MODEL = "model/"  # what the names of the model's tensors begin with in a checkpoint


def refit(
    prepared: Prepared,
    backbone: Backbone,
    settings: TrainConfig,
    augmentation: str,
    folder: Path,
    *,
    epochs: int,
    heads: Path,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Tensor] | None:
    """Return the weights after some epochs on both splits, or None where it was stopped; the same call goes on from there.

    The learning rate follows the schedule of the whole training, cut off where the winner was at its best: no score is
    left that could tell when to stop.

    Args:
        prepared: The study.
        backbone: What to fine-tune.
        settings: How, with the seed.
        augmentation: Policy.
        folder: For its checkpoint, and for decoded texts.
        epochs: How many.
        heads: Folder of the heads that probes found.
        should_stop: Asked before every step.

    Raises:
        RunError: The training failed.
    """
    order = [*prepared.splits.train, *prepared.splits.validation]
    both = (Subset(prepared.raw.samples, order), _joined(prepared.encoded["train"], prepared.encoded["validation"]))
    others = {split: (prepared.samples[split], prepared.encoded[split]) for split in ("validation", "test")}
    settings = replace(settings, patience=None, keep_last=True)  # no score is left that could rise or fall
    worker = Worker(
        {"train": both, **others},
        prepared.objective,
        device=prepared.device,
        memory=prepared.memory,
        cache=folder / "tokens",
        heads=heads,
        strategies=prepared.catalog.strategies,
    )

    def pause(report: EpochReport) -> None:
        if report.epoch == epochs:
            raise PauseTrial

    outcome = worker.run(Job(backbone, settings, augmentation, folder), on_epoch=pause, should_stop=should_stop)
    if outcome.redone:
        logger.warning("training on both splits began again: %s", outcome.redone)
    if outcome.failure is not None:
        stop_if_not_its_fault(outcome.failure, folder)
        raise RunError(
            f"training on both splits failed: {outcome.failure.message}",
            "`export.refit: false` exports what the search found",
        )
    if outcome.state == "interrupted":
        return None
    if outcome.state != "paused":
        raise AssertionError(f"a refit of {epochs} epochs ended as {outcome.state} after {outcome.epochs}")
    _, described = load_tensors(folder / CHECKPOINT / LAST)
    weights, _ = load_tensors(folder / CHECKPOINT / described["best"])  # the last epoch's, averaged and merged as they count
    return weights


def _joined(one: Rows, other: Rows) -> Rows:
    if isinstance(one, Ragged) and isinstance(other, Ragged):
        return Ragged.cat([one, other])
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.cat([one, other])
    raise AssertionError("targets of one task are of one kind")
