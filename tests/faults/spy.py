"""A plugin for the tests alone: writes down each epoch that begins, slows epochs down, shortens leases, moves the clock.

What it does is told by the environment: `SPY_LEDGER` (a file), `SPY_SECONDS` (an epoch), `SPY_LEASE` (seconds), `SPY_CLOCK`
(a seed), `SPY_FAIL` (a type of failure).
"""

from __future__ import annotations

import datetime
import json
import math
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna.storages._rdb.storage as optuna_storage
import torch

import autoft.processes
import autoft.train
import autoft.worker
from autoft.hookspecs import hookimpl
from autoft.specs import BackboneFamily

DAY = 86_400.0
_here = threading.local()


@hookimpl
def autoft_backbones() -> Sequence[BackboneFamily]:
    """Offer nothing: being loaded is all that is wanted."""
    return []


def _watch_epochs(ledger: str, seconds: float) -> None:
    real_fit, real_seed = autoft.worker.fit, autoft.train.seed_everything

    def fit(*arguments: Any, checkpoint: Path | None = None, **named: Any) -> Any:
        _here.folder, _here.epoch = None if checkpoint is None else str(checkpoint.parent), 0
        try:
            return real_fit(*arguments, checkpoint=checkpoint, **named)
        finally:
            _here.folder = None

    def seed_everything(seed: int, epoch: int = 0) -> None:
        real_seed(seed, epoch)
        folder = getattr(_here, "folder", None)
        _here.epoch = epoch
        if folder is not None and epoch > 0:
            line = json.dumps({"pid": os.getpid(), "training": folder, "epoch": epoch}) + "\n"
            descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, line.encode())  # one call: lines of several processes do not mix
            os.close(descriptor)
            time.sleep(seconds)

    autoft.worker.fit = fit  # type: ignore[assignment]
    autoft.train.seed_everything = seed_everything


def _move_clock(seed: int) -> None:
    """Let the time of day jump by up to ten days, to and fro, at every look; how long something took stays what it was."""
    jumps, real = random.Random(f"{seed} {os.getpid()}"), time.time

    def now() -> float:
        return real() + jumps.uniform(-10 * DAY, 10 * DAY)

    class Moved(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Moved:
            return cls.fromtimestamp(now(), tz)

    time.time = now
    optuna_storage.datetime = Moved  # type: ignore[attr-defined]


def _fail(kind: str) -> None:
    """Let trainings fail: all of them, from trial 1 on, or in the second epoch of trial 1."""
    real_fit = autoft.worker.fit

    def fit(model: Any, train: Any, validation: Any, objective: Any, *arguments: Any, **named: Any) -> Any:
        real = objective.head.loss

        def loss(outputs: torch.Tensor, *others: Any) -> torch.Tensor:
            _spoil(kind, Path(_here.folder or "none"), len(outputs))
            value: torch.Tensor = real(outputs, *others)
            return value * math.nan if kind == "nan" and _second_epoch_of_trial_1() else value

        spoiled = replace(objective, head=replace(objective.head, loss=loss))
        return real_fit(model, train, validation, spoiled, *arguments, **named)

    autoft.worker.fit = fit  # type: ignore[assignment]


def _second_epoch_of_trial_1() -> bool:
    folder = Path(_here.folder or "none")
    return (folder.parent.name, folder.name, _here.epoch) == ("trials", "1", 2)


def _spoil(kind: str, folder: Path, samples: int) -> None:
    if kind == "oom" and samples > 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if kind == "bug" and folder.parent.name == "trials" and folder.name != "0":
        raise ZeroDivisionError("a bug of the head")
    if kind == "infra" and _second_epoch_of_trial_1():
        os.kill(os.getpid(), signal.SIGKILL)


if "SPY_FAIL" in os.environ:
    _fail(os.environ["SPY_FAIL"])
if "SPY_LEDGER" in os.environ:
    _watch_epochs(os.environ["SPY_LEDGER"], float(os.environ.get("SPY_SECONDS", 0)))
if "SPY_LEASE" in os.environ:
    autoft.processes.LEASE = float(os.environ["SPY_LEASE"])
if "SPY_CLOCK" in os.environ:
    _move_clock(int(os.environ["SPY_CLOCK"]))
