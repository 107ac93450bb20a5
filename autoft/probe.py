"""Probes every candidate backbone from its frozen features before the first trial; what is trained then, the driver decides.

A probe is a hint, not a verdict: fine-tuning changes features, and so may change the order. See `keep` for what it may drop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoft.errors import first_line
from autoft.events import Event, Listener
from autoft.head_start import save_head
from autoft.linear_probe import ProbeSettings, as_head, default_knobs, linear_probes, values_of
from autoft.loading import SplitData, load_split
from autoft.ragged import Ragged, Rows
from autoft.resampling import RESAMPLES, paired_error
from autoft.specs import Backbone, Direction, is_better
from autoft.train import NonFiniteError, Objective, TrainConfig, predict
from autoft.worker import Worker, classify

MOST_SAMPLES = 20_000  # of the training split: more would cost minutes, and hardly change the order
NEIGHBOURS = 20
TEMPERATURE = 0.07  # of the neighbours' weights, as in DINO
STANDARD_ERRORS = 3.0


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
    values = values_of(found)
    if not bool(torch.isfinite(values).all()):
        wrong = int((~torch.isfinite(values)).sum())
        raise NonFiniteError(f"features must be finite, but {wrong} of {values.numel()} on the {split} split are not")
    # predict's tensors are made in inference mode, which training may not save for its gradients
    return (Ragged(values.clone(), found.offsets) if isinstance(found, Ragged) else values.clone()), data.targets


def choose(data: SplitData, most: int, seed: int) -> SplitData:
    """Return some samples of a split, a seeded choice, in its order."""
    chosen = np.sort(np.random.default_rng(seed).choice(len(data), most, replace=False))
    return load_split([data.samples[row] for row in chosen], data.targets[chosen], data.preprocessing)


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
        config = TrainConfig(learning_rate=0.0, epochs=1, batch_size=1, knobs=default_knobs(objective.head), seed=seed)
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
