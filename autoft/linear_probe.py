"""Trains many linear heads on frozen features side by side, and gives the best; whose features they are, the probe says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from autoft.batching import draw_order
from autoft.head_start import without_standardization
from autoft.ragged import Ragged, Rows
from autoft.schedule import rate_at
from autoft.specs import IGNORED, Choice, Head, Range, is_better
from autoft.train import NonFiniteError, Objective, seed_everything

LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
WEIGHT_DECAYS = (0.0, 0.1, 1.0)
STEPS = 300
WARMUP = 0.1
BATCH = 256
TEXTS = 32  # of a batch where every word has a target
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of AdamW


@dataclass(frozen=True)
class ProbeSettings:
    """How one linear head is trained.

    Attributes:
        learning_rate: Peak rate of AdamW, for features of mean 0 and standard deviation 1.
        weight_decay: Decoupled, not for biases.
        dropout: The head's knob, or None where it has no such knob.
    """

    learning_rate: float
    weight_decay: float
    dropout: float | None


@dataclass(frozen=True)
class LinearProbe:
    """The best of many linear heads.

    Attributes:
        score: The objective's metric on the validation split.
        settings: How it was trained.
        weights: The head module's state; it takes `(features - mean) / scale`.
        mean: Of the training features, `(C,)`.
        scale: Their standard deviations, `(C,)`; 1 where a feature is constant.
        outputs: For the validation split, as `Head.metrics` takes them.
    """

    score: float
    settings: ProbeSettings
    weights: dict[str, Tensor]
    mean: Tensor
    scale: Tensor
    outputs: Rows


def grid(head: Head) -> list[ProbeSettings]:
    """Return the settings that are tried: learning rates x weight decays x dropouts, where the head has such a knob.

    Dropouts are the lowest searched value and the middle of the range; the default alone where nothing is searched.
    """
    dropouts: tuple[float | None, ...] = (None,)
    for knob in head.knobs:
        if knob.name == "dropout":
            if isinstance(knob.search, Range):
                dropouts = (knob.search.low, (knob.search.low + knob.search.high) / 2)
            elif isinstance(knob.search, Choice):
                dropouts = tuple(float(value) for value in knob.search.values)
            else:
                dropouts = (float(knob.default),)
    return [ProbeSettings(*values) for values in itertools.product(LEARNING_RATES, WEIGHT_DECAYS, dropouts)]


def linear_probes(
    train: Rows,
    train_targets: Rows,
    validation: Rows,
    validation_targets: Rows,
    objective: Objective,
    *,
    device: torch.device,
    seed: int = 0,
    settings: Sequence[ProbeSettings] | None = None,
    steps: int = STEPS,
) -> LinearProbe:
    """Train many heads on frozen features at once, and return the one with the best validation metric.

    Args:
        train: Features `(N, C)`, or `(C,)` for each word.
        train_targets: Encoded.
        validation: Features.
        validation_targets: Encoded.
        objective: Task, targets and metric.
        device: Where to train.
        seed: Of the heads' start, the order and dropout.
        settings: What to try; None for `grid`.
        steps: Optimizer steps.

    Raises:
        NonFiniteError: No head has finite outputs, or none has the objective's metric.
    """
    head, targets = objective.head, objective.targets
    values = values_of(train)
    mean, scale = values.mean(dim=0), values.std(dim=0, unbiased=False)
    scale = torch.where(scale > 1e-6 * values.abs().max(), scale, torch.ones_like(scale))
    train, validation = _standardized(train, mean, scale, device), _standardized(validation, mean, scale, device)
    best: LinearProbe | None = None
    chosen = list(grid(head) if settings is None else settings)
    # heads of one dropout are one stack: it is part of the module, while rates and decays are the optimizer's
    for dropout in sorted({one.dropout for one in chosen}, key=lambda value: value or 0.0):
        group = [one for one in chosen if one.dropout == dropout]
        knobs = default_knobs(head, dropout)
        template, states = train_stack(train, train_targets, objective, group, knobs, device=device, seed=seed, steps=steps)
        for one, state in zip(group, states, strict=True):
            outputs = _outputs(template, state, validation)
            if not bool(torch.isfinite(values_of(outputs)).all()):
                continue  # this rate is too high for these features; another one may do
            score = head.metrics(outputs, validation_targets, targets).get(objective.metric)
            if (
                score is not None
                and math.isfinite(score)
                and is_better(objective.direction, score, best.score if best else None)
            ):
                weights = {name: value.cpu() for name, value in state.items()}
                best = LinearProbe(score, one, weights, mean, scale, outputs)
    if best is None:
        raise NonFiniteError(f"none of {len(chosen)} linear heads has finite outputs and a value of {objective.metric}")
    return best


def train_stack(
    train: Rows,
    encoded: Rows,
    objective: Objective,
    settings: Sequence[ProbeSettings],
    knobs: Mapping[str, Any],
    *,
    device: torch.device,
    seed: int,
    steps: int,
) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """Train heads that differ in learning rate and weight decay, side by side, on the same batches from the same start.

    Their parameters are stacked, so that the linear layers of all are one batched product; the optimizer is AdamW
    (arXiv:1711.05101) with a rate and a decay for each, the rate following `rate_at`.

    Args:
        train: Standardized features on the device.
        encoded: Their targets.
        objective: Task and targets.
        settings: For each head its rate and decay.
        knobs: Of all heads.
        device: Where the features are.
        seed: Of start, order and dropout.
        steps: Optimizer steps.

    Returns:
        A module of their kind, and the state of each.
    """
    head, targets = objective.head, objective.targets
    modules = []
    for _ in settings:
        seed_everything(seed)  # all begin alike, so that only their settings tell them apart
        modules.append(head.build(values_of(train).shape[-1], targets, knobs).to(device))
    parameters, buffers = stack_module_state(modules)
    template = modules[0].train()

    def loss_of(own: dict[str, Tensor], fixed: dict[str, Tensor], inputs: Tensor, wanted: Tensor) -> Tensor:
        return head.loss(functional_call(template, (own, fixed), (inputs,)), wanted, targets, knobs)

    # one dropout mask for all heads: they stay comparable, and features are not copied for each
    losses = torch.vmap(loss_of, in_dims=(0, 0, None, None), randomness="same")
    rates = torch.tensor([one.learning_rate for one in settings], device=device)
    decays = torch.tensor([one.weight_decay for one in settings], device=device)
    first = {name: torch.zeros_like(value) for name, value in parameters.items()}
    second = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for step, rows in enumerate(_batches(train, encoded, objective, knobs, seed, steps)):
        inputs, wanted = _batch(train, encoded, rows)
        loss = losses(parameters, buffers, inputs, wanted.to(device)).sum()  # of the sum each head's gradient is its own
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        now = rates * rate_at(step, steps, WARMUP)
        with torch.no_grad():
            for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
                shape = (-1, *(1 for _ in value.shape[1:]))
                first[name].lerp_(gradient, 1 - BETAS[0])
                second[name].lerp_(gradient**2, 1 - BETAS[1])
                below = (second[name] / (1 - BETAS[1] ** (step + 1))).sqrt() + EPSILON
                if value.ndim > 2:  # a matrix a head: biases and norms are not decayed, as in training
                    value.mul_(1 - (now * decays).view(shape))
                value.sub_(now.view(shape) * (first[name] / (1 - BETAS[0] ** (step + 1))) / below)
    stacked = {**parameters, **buffers}
    return template, [{name: value[row].detach().clone() for name, value in stacked.items()} for row in range(len(settings))]


def _batches(
    train: Rows, encoded: Rows, objective: Objective, knobs: Mapping[str, Any], seed: int, steps: int
) -> list[np.ndarray]:
    """Return the samples' numbers for each step, epoch after epoch, drawn as training draws them."""
    rng = np.random.default_rng(seed)
    weights = objective.head.draw_weights(encoded, objective.targets, knobs)
    size = min(len(train), TEXTS if isinstance(train, Ragged) else BATCH)
    batches: list[np.ndarray] = []
    while len(batches) < steps:
        order = draw_order(len(train), rng, weights)
        batches += [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
    return batches[:steps]


def _batch(train: Rows, encoded: Rows, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    if not isinstance(train, Ragged):
        return train[rows], cast(Tensor, encoded)[rows]
    part, known = train[rows], cast(Ragged, encoded)[rows]
    # targets of words that were cut off have no features
    place = torch.arange(len(known.values)) - torch.repeat_interleave(known.offsets[:-1], known.lengths)
    kept = place < torch.repeat_interleave(part.lengths, known.lengths)
    return part.padded(0.0), Ragged(known.values[kept], part.offsets).padded(IGNORED)


@torch.no_grad()
def _outputs(template: nn.Module, state: Mapping[str, Tensor], rows: Rows) -> Rows:
    """Return one head's outputs over a split, float32 on the CPU."""
    template.eval()
    collected = []
    size = TEXTS if isinstance(rows, Ragged) else 4096
    for numbers in torch.arange(len(rows)).tensor_split(math.ceil(len(rows) / size)):
        part = rows[numbers]
        inputs = part.padded(0.0) if isinstance(part, Ragged) else part
        outputs = functional_call(template, dict(state), (inputs,))
        collected.append((outputs[part.mask()] if isinstance(part, Ragged) else outputs).float())
    together = torch.cat(collected).cpu()
    return Ragged(together, rows.offsets) if isinstance(rows, Ragged) else together


def as_head(best: LinearProbe, validation: Rows, validation_targets: Rows, objective: Objective) -> LinearProbe | None:
    """Return the same head for features as they are, in place of standardized ones; its score is measured anew.

    Rounding may turn a tie, so that this score, not the other's, is what a model with this head has.

    Args:
        best: From `linear_probes`.
        validation: Features that are not standardized.
        validation_targets: Encoded.
        objective: Task, targets and metric.

    Returns:
        The head with a mean of 0 and a scale of 1; None where the task's head has no such weights, or where rounding leaves
        it without the metric.
    """
    head, targets = objective.head, objective.targets
    module = head.build(len(best.mean), targets, default_knobs(head, best.settings.dropout))
    weights = without_standardization(module, best.weights, best.mean, best.scale)
    if weights is None:
        return None
    outputs = _outputs(module, weights, validation)
    score = head.metrics(outputs, validation_targets, targets).get(objective.metric)
    if score is None or not math.isfinite(score):
        return None
    mean, scale = torch.zeros_like(best.mean), torch.ones_like(best.scale)
    return LinearProbe(score, best.settings, weights, mean, scale, outputs)


def _standardized(rows: Rows, mean: Tensor, scale: Tensor, device: torch.device) -> Rows:
    values = ((values_of(rows) - mean) / scale).to(device)
    return Ragged(values, rows.offsets) if isinstance(rows, Ragged) else values


def default_knobs(head: Head, dropout: float | None = None) -> dict[str, Any]:
    """Return the knobs' defaults, with a dropout where one is given."""
    knobs: dict[str, Any] = {knob.name: knob.default for knob in head.knobs}
    return knobs if dropout is None else knobs | {"dropout": dropout}


def values_of(rows: Rows) -> Tensor:
    """Return all rows' values in one tensor, those of each word where the rows are ragged."""
    return rows.values if isinstance(rows, Ragged) else rows
