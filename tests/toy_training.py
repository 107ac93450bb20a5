"""What the tests of trainer, worker and export train: a toy backbone under a head, on painted stripes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from autoft.builtin.heads import autoft_heads
from autoft.loading import FixedData
from autoft.model import FineTuneModel, assemble
from autoft.specs import Backbone, BackboneRequest, Head, Sample
from autoft.testing import toy
from autoft.train import FitResult, Objective, TrainConfig, fit

torch.set_num_threads(1)  # toys are too small to share out: with two threads, these tests take twice as long

CPU = torch.device("cpu")
CONVNET = toy.resolve(BackboneRequest("convnet", "none"))
MLP = toy.resolve(BackboneRequest("mlp", "none"))  # no BatchNorm, no dropout
HEAD: Head = autoft_heads()[0]
SAMPLES = toy.toy_samples(classes=3, per_class=16)
KNOBS = {knob.name: knob.default for knob in HEAD.knobs}


def pick(samples: Sequence[Sample], *, validation: bool) -> tuple[Sample, ...]:
    """Every fourth sample serves for validation."""
    return tuple(sample for index, sample in enumerate(samples) if (index % 4 == 0) == validation)


TRAIN, VALIDATION = pick(SAMPLES, validation=False), pick(SAMPLES, validation=True)
TARGETS = HEAD.describe([sample.target for sample in TRAIN])


def objective(metric: str = "log_loss", head: Head = HEAD) -> Objective:
    return Objective(head, TARGETS, metric)


def encode(samples: Sequence[Sample]) -> torch.Tensor:
    return HEAD.encode([sample.target for sample in samples], TARGETS)


def split(samples: Sequence[Sample], backbone: Backbone = CONVNET, policy: str = "none", memory: int = 1 << 30) -> FixedData:
    return FixedData(samples, encode(samples), backbone.preprocessing, policy=policy, memory=memory)


def config(**changes: Any) -> TrainConfig:
    fine = TrainConfig(learning_rate=3e-3, epochs=4, batch_size=8, knobs={**KNOBS, "dropout": 0.0})
    return replace(fine, **changes)


def build(
    backbone: Backbone = CONVNET, knobs: Mapping[str, Any] | None = None, seed: int = 0, head: Head = HEAD
) -> FineTuneModel:
    return assemble(backbone, head, TARGETS, knobs or {**KNOBS, "dropout": 0.0}, seed=seed)


def run(
    settings: TrainConfig, backbone: Backbone = CONVNET, policy: str = "none", metric: str = "log_loss", **arguments: Any
) -> tuple[FitResult, FineTuneModel]:
    """Train a new model; arguments beyond these are those of `fit`."""
    model = build(backbone, settings.knobs, settings.seed)
    train, validation = split(TRAIN, backbone, policy), split(VALIDATION, backbone)
    return fit(model, train, validation, objective(metric), settings, device=CPU, **arguments), model


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_equal_tensors(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Bit for bit, and name for name."""
    assert set(found) == set(wanted)
    different = [name for name, value in wanted.items() if not torch.equal(found[name], value)]
    assert not different, different
