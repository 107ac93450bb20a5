"""What a search begins with: whether to probe, what that gave in an earlier session, and which trials start from it.

How a backbone is probed is in `probe.py`; all else that trials try, Optuna proposes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from autoft.config import ALL
from autoft.errors import RunError
from autoft.events import Listener
from autoft.files import read_json, write_checked
from autoft.knobs import PROBE
from autoft.probe import MOST_SAMPLES, ProbeResult, choose, probe_backbones
from autoft.space import Space
from autoft.specs import Backbone, Choice, Direction, Range
from autoft.train import Objective, TrainConfig, predict
from autoft.worker import Worker

SHARE = 0.05  # of what a search costs: more is not spent to probe its only backbone
BACKWARD = 3  # a step costs about three times the forward pass: two more, for the gradients of inputs and weights
TIME_SHARE = 0.1  # of a time limit: what starts from the probe's head gives the first good model
HEADS_SECONDS = 2.0  # that training the linear heads takes, roughly, whatever the backbone
TIMED = 32  # samples from which the seconds of a probe are predicted
SETTLED = 1.0  # `head_multiplier` of a head that has learned: a higher rate would soon undo that


@dataclass(frozen=True)
class Probed:
    """What a run remembers of one backbone's probe; see `ProbeResult`.

    Attributes:
        backbone: Its label in the space.
        knn: Metric of the nearest neighbours.
        linear: Metric of the best linear head.
        score: The better one.
        reason: Why it could not be probed, or None.
        head: File with the best linear head, in the folder of heads, or None.
        declined: Why there is none, or None.
        kept: Whether it is worth trials.
    """

    backbone: str
    knn: float | None
    linear: float | None
    score: float | None
    reason: str | None
    head: str | None
    declined: str | None
    kept: bool


def worth_probing(*, train: int, validation: int, trials: int, epochs: int) -> bool:
    """Return whether a search of one backbone shall probe it: where that takes at most a twentieth of what the trials may.

    Both are counted in samples that go forward through the model, and not in seconds, which are never the same twice.

    Args:
        train: Samples of the training split.
        validation: Of the validation split.
        trials: Of the search, at most.
        epochs: Of a trial.
    """
    features = min(train, MOST_SAMPLES) + validation
    return features <= SHARE * trials * epochs * (BACKWARD * train + validation)


def predict_seconds(worker: Worker, backbone: Backbone, objective: Objective, *, device: torch.device) -> float:
    """Return what the probe of a backbone will take, from the time that a few samples take; for searches of limited time.

    Args:
        worker: Has the decoded splits.
        backbone: It.
        objective: The task.
        device: Where to compute.
    """
    knobs = {knob.name: knob.default for knob in objective.head.knobs}
    config = TrainConfig(learning_rate=0.0, epochs=1, batch_size=1, knobs=knobs)
    module = worker.build(backbone, config).backbone.to(device)
    validation = worker.data("validation", backbone)
    some = choose(validation, min(TIMED, len(validation)), 0) if len(validation) > TIMED else validation
    predict(module, some, device=device, batch_size=TIMED)  # the first time, memory is allocated and kernels are chosen
    started = time.monotonic()
    predict(module, some, device=device, batch_size=TIMED)
    each = (time.monotonic() - started) / len(some)
    features = min(len(worker.data("train", backbone)), MOST_SAMPLES) + len(validation)
    return features * each + HEADS_SECONDS


def probe_once(
    file: Path,
    folder: Path,
    labels: Sequence[str],
    backbones: Sequence[Backbone],
    objective: Objective,
    worker: Worker,
    listener: Listener,
    *,
    device: torch.device,
    seed: int,
    keep_all: bool = False,
) -> list[Probed]:
    """Probe backbones, or return what an earlier session of the run found, so that a resumed run searches the same.

    Args:
        file: Where the results are kept; written last.
        folder: Where the heads are kept.
        labels: What the space calls the backbones.
        backbones: The study's.
        objective: Task, targets and metric.
        worker: Has the decoded splits.
        listener: Hears of each probe.
        device: Where to compute.
        seed: Of everything random.
        keep_all: Whether weak ones stay in.

    Raises:
        RunError: The file is damaged, or of other backbones.
    """
    if not file.exists():
        results = probe_backbones(
            backbones, objective, worker, listener, device=device, seed=seed, folder=folder, keep_all=keep_all
        )
        found = [asdict(_remembered(label, each)) for label, each in zip(labels, results, strict=True)]
        write_checked(file, {"probes": found})
    again = f"remove {file}, to probe again"
    try:
        probes = [Probed(**{"score": None, "head": None, "declined": None, **each}) for each in read_json(file)["probes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} is damaged: {error}", again) from error
    if [each.backbone for each in probes] != list(labels):
        raise RunError(
            f"{file} must be of {', '.join(labels)}, but is of {', '.join(each.backbone for each in probes)}", again
        )
    return probes


def _remembered(label: str, result: ProbeResult) -> Probed:
    return Probed(
        label,
        result.knn,
        result.linear,
        result.score,
        result.reason,
        result.head,
        result.declined,
        result.kept,
    )


# --- the first trials -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Opening:
    """A trial that is queued behind the presets.

    Attributes:
        role: `probe`: the linear probe as a trial, all stages frozen; `lp-ft`: all of the model, from the probe's head.
        params: Of the trial, as `Space.preset_of` gives them.
    """

    role: str
    params: dict[str, Any]


def openings(space: Space, scores: Sequence[float | None], direction: Direction) -> list[Opening]:
    """Return what to try first behind the presets; the backbone with the best probe first.

    For each backbone: fine-tuning from the probe's head (LP-FT, Kumar et al., arXiv:2202.10054), as the preset but with no
    higher rate for the head. For the best one also the probe itself, trained on with everything frozen; that of another one
    is known to be worse. Then the preset with each strategy that the study tries. What the study has ruled out is left out.

    Args:
        space: That of the trials, with `heads`.
        scores: The probe's score of each of the space's backbones, or None.
        direction: Of the metric.
    """
    ways = space.parameters["strategy"]
    others = [value for value in ways.values if value != space.preset["strategy"]] if isinstance(ways, Choice) else []
    tried = [Opening("trial", space.preset_of(0) | {"strategy": value}) for value in others]
    if not _offers(space, "head_start", PROBE):
        return tried
    sign = -1.0 if direction == "maximize" else 1.0
    order = sorted(
        range(len(space.backbones)), key=lambda place: (scores[place] is None, sign * (scores[place] or 0.0), place)
    )
    found = []
    for place in order:
        tuned = space.preset_of(place) | {"head_start": PROBE}
        multiplier = space.parameters["head_multiplier"]
        if isinstance(multiplier, Range):
            tuned["head_multiplier"] = min(max(SETTLED, multiplier.low), multiplier.high)
        elif _offers(space, "head_multiplier", SETTLED):
            tuned["head_multiplier"] = SETTLED
        found.append(Opening("lp-ft", tuned))
        depths = (("freeze_fraction", 1.0), ("freeze_depth", ALL), ("freeze_depth", space.stages[place]))
        frozen = next((each for each in depths if each[0] in space.parameters and _offers(space, *each)), None)
        if place == order[0] and frozen is not None:
            found.append(Opening("probe", tuned | dict([frozen])))
    return found + tried


def _offers(space: Space, name: str, value: str | float) -> bool:
    """Return whether trials may choose a value."""
    what = space.parameters[name]
    if isinstance(what, Range):
        return not isinstance(value, str) and what.low <= value <= what.high
    return isinstance(what, Choice) and value in what.values
