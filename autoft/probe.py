"""Probes every candidate backbone from its frozen features before the first trial; what is trained then, the driver decides.

A probe is a hint, not a verdict: fine-tuning changes features, and so may change the order. See `keep` for what it may drop.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from autoft.batching import draw_order
from autoft.errors import first_line
from autoft.events import Event, Listener
from autoft.head_start import save_head, without_standardization
from autoft.loading import SplitData, load_split
from autoft.ragged import Ragged, Rows
from autoft.resampling import RESAMPLES, paired_error
from autoft.schedule import rate_at
from autoft.specs import IGNORED, Backbone, Choice, Direction, Head, Range, is_better
from autoft.train import NonFiniteError, Objective, TrainConfig, predict, seed_everything
from autoft.worker import Worker, classify

MOST_SAMPLES = 20_000  # of the training split: more would cost minutes, and hardly change the order
NEIGHBOURS = 20
TEMPERATURE = 0.07  # of the neighbours' weights, as in DINO
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
WEIGHT_DECAYS = (0.0, 0.1, 1.0)
STEPS = 300
WARMUP = 0.1
BATCH = 256
TEXTS = 32  # of a batch where every word has a target
STANDARD_ERRORS = 3.0
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


@dataclass(frozen=True)
class ProbeResult:
    """What the frozen features of one backbone are worth.

    Attributes:
        index: Of the backbone in the study's list, from 0.
        backbone: Its name.
        knn: The metric of the nearest neighbours' answers, or None where the task has no such answer.
        linear: The metric of the best linear head, or None where the probe failed.
        settings: How that head was trained, or None.
        seconds: What the probe took.
        parameters: Of the backbone, or None where it could not be built.
        reason: Why the backbone could not be probed, or None.
        score: The better one of `knn` and `linear`, or None.
        outputs: For the validation split, those that `score` was measured on.
        head: Name of the file with the best linear head, for trainings to start from, or None.
        declined: Why there is no such file, or None.
        kept: Whether the backbone is worth trials by the rule of `keep`; set by `probe_backbones`.
    """

    index: int
    backbone: str
    knn: float | None
    linear: float | None
    settings: ProbeSettings | None
    seconds: float
    parameters: int | None
    reason: str | None = None
    score: float | None = None
    outputs: Rows | None = field(default=None, repr=False, compare=False)
    head: str | None = None
    declined: str | None = None
    kept: bool = True


# --- features -------------------------------------------------------------------------------------


def features(
    worker: Worker, backbone: Backbone, split: str, *, module: nn.Module, device: torch.device, seed: int = 0
) -> tuple[Rows, Rows]:
    """Return what a backbone makes of a split without augmentation, everything frozen, and the split's encoded targets.

    Of the training split at most 20,000 samples are taken, a seeded choice, in the split's order.

    Args:
        worker: Has the decoded splits.
        backbone: Whose preprocessing is used.
        split: `train`, `validation` or `test`.
        module: The backbone's module, as `FineTuneModel.backbone`; moved to `device`.
        device: Where to compute.
        seed: Of the choice.

    Returns:
        `(N, C)` float32 on the CPU; for `sequence` features a row `(C,)` for each word that was not cut off, as `Ragged`.

    Raises:
        NonFiniteError: Some features are NaN or infinite.
    """
    data = worker.data(split, backbone)
    if split == "train" and len(data) > MOST_SAMPLES:
        data = choose(data, MOST_SAMPLES, seed)
    found = predict(module.to(device), data, device=device, batch_size=64)
    values = _values(found)
    if not bool(torch.isfinite(values).all()):
        wrong = int((~torch.isfinite(values)).sum())
        raise NonFiniteError(f"features must be finite, but {wrong} of {values.numel()} on the {split} split are not")
    # predict's tensors are made in inference mode, which training may not save for its gradients
    return (Ragged(values.clone(), found.offsets) if isinstance(found, Ragged) else values.clone()), data.targets


def choose(data: SplitData, most: int, seed: int) -> SplitData:
    """Return some samples of a split, a seeded choice, in its order."""
    chosen = np.sort(np.random.default_rng(seed).choice(len(data), most, replace=False))
    return load_split([data.samples[row] for row in chosen], data.targets[chosen], data.preprocessing)


def _values(rows: Rows) -> Tensor:
    return rows.values if isinstance(rows, Ragged) else rows


# --- nearest neighbours ---------------------------------------------------------------------------


def nearest_neighbours(
    train: Rows, train_targets: Rows, validation: Rows, objective: Objective, *, neighbours: int = NEIGHBOURS
) -> Tensor | None:
    """Answer for each validation sample by its nearest training samples, weighted by similarity (DINO, arXiv:2104.14294).

    Similarity is the cosine, weights are `exp(similarity / 0.07)`.

    Args:
        train: Features `(N, C)`.
        train_targets: Encoded, `(N,)` for a label, `(N, D)` for values.
        validation: Features `(M, C)`.
        objective: The task.
        neighbours: How many, at most.

    Returns:
        Outputs as `Head.metrics` takes them: logarithms of the classes' shares `(M, K)` for one label, the weighted mean
        `(M, D)` for values; None for other answers, and for words.
    """
    if isinstance(train, Ragged) or isinstance(validation, Ragged) or isinstance(train_targets, Ragged):
        return None
    if objective.head.answer == "label":
        known = nn.functional.one_hot(train_targets.long(), len(objective.targets.labels)).float()
    elif objective.head.answer == "values":
        known = train_targets.float()
    else:
        return None
    directions = nn.functional.normalize(train, dim=-1)
    answers = []
    for rows in torch.arange(len(validation)).tensor_split(math.ceil(len(validation) / 1024)):
        # in parts: all similarities may not fit into memory
        part = nn.functional.normalize(validation[rows], dim=-1)
        similarity, where = (part @ directions.T).topk(min(neighbours, len(train)), dim=-1)
        weights = (similarity / TEMPERATURE).softmax(dim=-1)
        answers.append((weights[..., None] * known[where]).sum(dim=1))
    found = torch.cat(answers)
    # a class without neighbours gets a small share, so that its logarithm is finite
    return found.clamp(min=1e-4).log() if objective.head.answer == "label" else found


# --- linear heads ---------------------------------------------------------------------------------


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
    values = _values(train)
    mean, scale = values.mean(dim=0), values.std(dim=0, unbiased=False)
    scale = torch.where(scale > 1e-6 * values.abs().max(), scale, torch.ones_like(scale))
    train, validation = _standardized(train, mean, scale, device), _standardized(validation, mean, scale, device)
    best: LinearProbe | None = None
    chosen = list(grid(head) if settings is None else settings)
    # heads of one dropout are one stack: it is part of the module, while rates and decays are the optimizer's
    for dropout in sorted({one.dropout for one in chosen}, key=lambda value: value or 0.0):
        group = [one for one in chosen if one.dropout == dropout]
        knobs = _knobs(head, dropout)
        template, states = train_stack(train, train_targets, objective, group, knobs, device=device, seed=seed, steps=steps)
        for one, state in zip(group, states, strict=True):
            outputs = _outputs(template, state, validation)
            if not bool(torch.isfinite(_values(outputs)).all()):
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
        modules.append(head.build(_values(train).shape[-1], targets, knobs).to(device))
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
    module = head.build(len(best.mean), targets, _knobs(head, best.settings.dropout))
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
    values = ((_values(rows) - mean) / scale).to(device)
    return Ragged(values, rows.offsets) if isinstance(rows, Ragged) else values


def _knobs(head: Head, dropout: float | None = None) -> dict[str, Any]:
    """Return the knobs' defaults, with a dropout where one is given."""
    knobs: dict[str, Any] = {knob.name: knob.default for knob in head.knobs}
    return knobs if dropout is None else knobs | {"dropout": dropout}


# --- ranking --------------------------------------------------------------------------------------


def rank(results: Sequence[ProbeResult], direction: Direction) -> list[ProbeResult]:
    """Return the results best first; ties in the study's order, backbones that could not be probed last."""
    sign = -1.0 if direction == "maximize" else 1.0
    return sorted(results, key=lambda one: (one.score is None, sign * (one.score or 0.0), one.index))


def standard_error(
    one: ProbeResult, other: ProbeResult, objective: Objective, encoded: Rows, *, seed: int = 0, resamples: int = RESAMPLES
) -> float:
    """Return the standard error of the difference of two probes' scores, by a paired bootstrap over validation samples.

    A resample has at most 2,000 samples; the error over all of them is smaller by the root of the numbers' ratio.

    Args:
        one: A result with outputs.
        other: Another one.
        objective: The task and its metric.
        encoded: Targets of the validation split.
        seed: Of the bootstrap.
        resamples: How many.

    Returns:
        The error; infinite where fewer than two have the metric.
    """
    if one.outputs is None or other.outputs is None:
        return math.inf
    return paired_error(one.outputs, other.outputs, objective, encoded, seed=seed, resamples=resamples)


def keep(
    results: Sequence[ProbeResult], direction: Direction, spread: Callable[[ProbeResult, ProbeResult], float]
) -> tuple[int, ...]:
    """Return the indices of the backbones that are worth trials, ascending.

    The rule: a backbone is dropped when its score (the better one of nearest neighbours and linear head) is worse than the
    leader's by more than 3 standard errors of that difference on the validation split. Never dropped are the leader, the
    study's first backbone (its preset is trial 0), and one that could not be probed: nothing is known against it.

    Args:
        results: One a backbone.
        direction: Of the metric.
        spread: The standard error of the difference of two results' scores; see `standard_error`.
    """
    leader = next(iter(rank(results, direction)), None)
    kept = []
    for one in results:
        if leader is None or leader.score is None or one.score is None or one.index in (0, leader.index):
            kept.append(one.index)
            continue
        behind = leader.score - one.score if direction == "maximize" else one.score - leader.score
        if not behind > STANDARD_ERRORS * spread(leader, one):
            kept.append(one.index)
    return tuple(sorted(kept))


# --- all of it ------------------------------------------------------------------------------------


def probe(
    index: int,
    backbone: Backbone,
    objective: Objective,
    worker: Worker,
    *,
    device: torch.device,
    seed: int = 0,
    folder: Path | None = None,
) -> ProbeResult:
    """Probe one backbone; what makes it impossible is told in the result.

    Args:
        index: Of the backbone in the study's list.
        backbone: It.
        objective: Task, targets and metric.
        worker: Has the decoded splits.
        device: Where to compute.
        seed: Of everything random.
        folder: Where `INDEX.safetensors` is written: the best linear head, with which a model that is otherwise frozen has
            the result's `linear` as its metric. None writes nothing.

    Raises:
        Exception: What is not the backbone's fault: unreadable data, a full disk, a lost connection.
    """
    started = time.monotonic()
    parameters, file, declined = None, None, None
    try:
        config = TrainConfig(learning_rate=0.0, epochs=1, batch_size=1, knobs=_knobs(objective.head), seed=seed)
        module = worker.build(backbone, config).backbone
        parameters = sum(parameter.numel() for parameter in module.parameters())
        train, train_targets = features(worker, backbone, "train", module=module, device=device, seed=seed)
        validation, wanted = features(worker, backbone, "validation", module=module, device=device, seed=seed)
        answers = nearest_neighbours(train, train_targets, validation, objective)
        knn = None
        if answers is not None:
            knn = objective.head.metrics(answers, wanted, objective.targets).get(objective.metric)
        knn = None if knn is not None and not math.isfinite(knn) else knn
        linear = linear_probes(train, train_targets, validation, wanted, objective, device=device, seed=seed)
        if folder is not None:
            start = as_head(linear, validation, wanted, objective)
            if start is None:
                declined = f"the head of {objective.head.name} does not begin with a linear layer of the features"
            else:
                linear, file = start, f"{index}.safetensors"
                facts = {"backbone": backbone.public_name, "metric": objective.metric, "value": linear.score}
                save_head(folder / file, linear.weights, facts | {"settings": asdict(linear.settings)})
    except Exception as error:
        if classify(error) in ("data", "disk", "infra"):
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        return ProbeResult(index, backbone.name, None, None, None, time.monotonic() - started, parameters, reason)
    finally:
        worker.free()
    score, outputs = linear.score, linear.outputs
    if knn is not None and answers is not None and is_better(objective.direction, knn, score):
        score, outputs = knn, answers
    return ProbeResult(
        index,
        backbone.name,
        knn,
        linear.score,
        linear.settings,
        time.monotonic() - started,
        parameters,
        score=score,
        outputs=outputs,
        head=file,
        declined=declined,
    )


def probe_backbones(
    backbones: Sequence[Backbone],
    objective: Objective,
    worker: Worker,
    listener: Listener,
    *,
    device: torch.device,
    seed: int = 0,
    folder: Path | None = None,
    keep_all: bool = False,
) -> list[ProbeResult]:
    """Probe all backbones and tell each result as an event of kind `probe`; of several also the ranking, and who is kept.

    Args:
        backbones: The study's list.
        objective: Task, targets and metric.
        worker: Has the decoded splits.
        listener: Is told.
        device: Where to compute.
        seed: Of everything random.
        folder: Where the heads are written that trainings may start from; see `probe`.
        keep_all: Whether weak ones stay in.

    Returns:
        One result a backbone, in the study's order, with `kept` set.
    """
    results = []
    for index, backbone in enumerate(backbones):
        results.append(probe(index, backbone, objective, worker, device=device, seed=seed, folder=folder))
        listener(Event("probe", _describe(results[-1], objective.metric), _data(results[-1])))
    if len(results) == 1:
        return results  # the only one there is stays
    ranking = rank(results, objective.direction)
    kept: tuple[int, ...] = tuple(range(len(results)))
    if not keep_all:
        kept = kept_by_probe(results, objective, worker.data("validation", backbones[0]).targets, seed=seed)
    dropped = [one.backbone for one in ranking if one.index not in kept]
    text = f"probes, best first: {', '.join(one.backbone for one in ranking)}"
    text += f"; left out: {', '.join(dropped)}" if dropped else "; all go on"
    listener(Event("probe", text, {"ranking": [one.index for one in ranking], "kept": list(kept)}))
    return [replace(one, kept=one.index in kept) for one in results]


def kept_by_probe(results: Sequence[ProbeResult], objective: Objective, encoded: Rows, *, seed: int = 0) -> tuple[int, ...]:
    """Return what `keep` keeps, with `standard_error` over the validation split's encoded targets."""
    return keep(results, objective.direction, lambda one, other: standard_error(one, other, objective, encoded, seed=seed))


def _describe(result: ProbeResult, metric: str) -> str:
    if result.reason is not None:
        return f"probe of {result.backbone}: not possible, so it stays: {result.reason}"
    neighbours = "" if result.knn is None else f", nearest neighbours {result.knn:.4f}"
    return f"probe of {result.backbone}: {metric} {result.linear:.4f} (linear{neighbours}), {result.seconds:.1f} s"


def _data(result: ProbeResult) -> dict[str, Any]:
    settings = result.settings
    return {
        "backbone": result.backbone,
        "index": result.index,
        "knn": result.knn,
        "linear": result.linear,
        "score": result.score,
        "learning_rate": settings and settings.learning_rate,
        "weight_decay": settings and settings.weight_decay,
        "dropout": settings and settings.dropout,
        "seconds": result.seconds,
        "parameters": result.parameters,
        "reason": result.reason,
        "head": result.head,
        "declined": result.declined,
    }
