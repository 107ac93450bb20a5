"""Decides whether a trial starts at what its frozen stages gave before, and proves that this changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from autoft.errors import first_line
from autoft.loading import RaggedData, SplitData
from autoft.model import FineTuneModel
from autoft.prefix import Cut, find_cut, record, replaying
from autoft.prefix_data import PrefixData, evaluating, policy_of
from autoft.prefix_store import PrefixStore
from autoft.ragged import Ragged
from autoft.specs import Backbone
from autoft.train import Objective, TrainConfig, autocast, predict

MASK = "attention_mask"
SMALLEST_GAIN = 1.2  # predicted; below it, a store is not worth its disk and its risk
# How far a store in a lower precision may move validation outputs, as a share of the largest: four roundings, as batches of
# another size may take another kernel.
STORE_TOLERANCE = {torch.bfloat16: 4 * 2.0**-8, torch.float16: 4 * 2.0**-11}
METRIC_TOLERANCE = 0.001  # and the metric; of metrics above 1, as a share
FLOAT32_SLACK = 4  # times that tolerance, for stages computed in float32 where training computes them in less


@dataclass(frozen=True)
class Reuse:
    """What a trial needs to train from stored activations.

    Attributes:
        run: Takes a batch of `train` or `validation`, and gives the model's outputs.
        train: The training split, as activations.
        validation: The validation split, as activations.
    """

    run: Callable[..., Tensor]
    train: SplitData
    validation: SplitData


class ReusePlanner:
    """Plans the trials of one study's data; what it has counted and proven once it does not count again.

    Args:
        store: Where activations are kept.
        sharing: How many trials are expected to use a store, over which the cost of making it is spread.
    """

    def __init__(self, store: PrefixStore, *, sharing: int = 1) -> None:
        self._store = store
        self._sharing = sharing
        self._fingerprints: dict[tuple[Any, ...], dict[int, str]] = {}
        self._cuts: dict[tuple[Any, ...], tuple[Cut | None, str]] = {}
        self._counted: dict[tuple[Any, ...], tuple[int, int, int]] = {}
        # what is wrong with stores in a lower precision, and with those in float32
        self._harm: dict[tuple[Any, ...], tuple[str | None, str | None]] = {}

    def plan(
        self,
        model: FineTuneModel,
        backbone: Backbone,
        config: TrainConfig,
        train: SplitData,
        validation: SplitData,
        *,
        device: torch.device,
        force: bool = False,
        objective: Objective | None = None,
    ) -> tuple[Reuse | None, str]:
        """Decide whether a trial shall start at its frozen stages' stored output.

        It shall where the predicted gain is at least `SMALLEST_GAIN`: a step's operations with the whole model, over those
        of a replayed step and of its share in making the store. All three are counted on one batch.

        What the model gives in a lower precision is stored so only where the validation split's outputs and metric are those
        of the whole model; where they are not, it is made and stored in float32.

        Args:
            model: As built, before any training; moved to `device`.
            backbone: What it was built from.
            config: How it will be trained; `micro_batch` is respected.
            train: The training split.
            validation: The validation split.
            device: Where it trains.
            force: Reuse wherever a cut holds, whatever it gains.
            objective: Task and metric, by which a store in a lower precision is judged; None to judge it by outputs alone.

        Returns:
            What to train with, or None; and what was decided, in words.
        """
        if config.freeze_depth == 0:
            return None, "declined: nothing is frozen"
        if config.changes_inputs:  # anew in each step, so that frozen stages give something else each time
            return None, "declined: mixing, erasing or perturbing changes what frozen stages are given in each step"
        if objective is not None and policy_of(train) != "none" and _draws(objective, train, config):
            return None, "declined: what is drawn again in an epoch is augmented anew, and one view of each is stored"
        if policy_of(train) != "none" and getattr(train, "move", None) is not None:
            return None, "declined: targets move with the augmented images, and only these are stored"
        model.to(device)
        if device.type == "cuda":
            model.to(memory_format=torch.channels_last)
        known = (backbone.name, backbone.weights, config.freeze_depth, config.precision, str(backbone.image_size))
        if known not in self._cuts:
            self._cuts[known] = _cut(model, backbone, config, validation, device)
        cut, why = self._cuts[known]
        if cut is None:
            return None, f"declined: {why}"
        model.freeze(config.freeze_depth)
        start = (backbone.name, backbone.weights, str(backbone.image_size), config.seed)  # the seed draws random weights
        if start not in self._fingerprints:
            self._fingerprints[start] = _fingerprints(model)
        weights = self._fingerprints[start]

        def stored(precision: str) -> dict[str, PrefixData]:
            recorded = replace(config, precision=precision)
            return {
                name: PrefixData(self._store, source, name, cut, model, recorded, weights[cut.depth], device)
                for name, source in (("train", train), ("validation", validation))
            }

        def run(*inputs: Tensor) -> Tensor:
            with replaying(model, cut):
                outputs: Tensor = model(*inputs)
            return outputs

        made = stored(config.precision)
        views = config.views or config.epochs
        views = min(views, config.epochs) if made["train"].varied else 1
        too_large = self._too_large(made["train"], views)
        if too_large is not None:
            return None, f"declined: {too_large}"
        if not force:
            batch = min(config.micro_batch or config.batch_size, len(train))
            counted = (*known, batch)
            if counted not in self._counted:
                self._counted[counted] = _measure(model, cut, train, config, batch, device)
            full, replayed, making = self._counted[counted]
            # counted also where the store exists: else the decision, and with it the last bits of a trial, would depend on
            # what ran before, and a resumed search would differ from an uninterrupted one
            gain = full / max(1, replayed + making * views / config.epochs / self._sharing)
            if gain < SMALLEST_GAIN:
                return None, f"declined: predicted gain {gain:.2f}"
            told = f"from {cut.module or 'the features'} (depth {cut.depth}), predicted gain {gain:.2f}"
        else:
            told = f"from {cut.module or 'the features'} (depth {cut.depth})"
        for (*others, depth, precision, side), (shallower, _) in self._cuts.items():
            same = (*others, precision, side) == (
                backbone.name,
                backbone.weights,
                config.precision,
                str(backbone.image_size),
            )
            if same and depth < config.freeze_depth and shallower is not None and shallower.depth < cut.depth:
                for data in made.values():
                    data.start_from(shallower, weights[shallower.depth])
        if cut.dtype not in STORE_TOLERANCE:
            return Reuse(run, made["train"], made["validation"]), told
        judged = (*known, config.seed)  # which draws the head
        exact = stored("fp32")
        if judged not in self._harm:
            judge = partial(_harm, model, cut, config, validation, run=run, device=device)
            harm = judge(made["validation"], objective=objective)
            # nothing but the rounding of the frozen stages is left then, and it is the better part that is kept
            left = None if harm is None else judge(exact["validation"], objective=None, slack=FLOAT32_SLACK)
            self._harm[judged] = harm, left
        harm, left = self._harm[judged]
        if harm is None:
            return Reuse(run, made["train"], made["validation"]), told
        left = left or self._too_large(exact["train"], views)
        if left is not None:
            return None, f"declined: {harm}; and in float32: {left}"
        return Reuse(run, exact["train"], exact["validation"]), f"{told}, stored in float32: {harm}"

    def _too_large(self, data: PrefixData, views: int) -> str | None:
        size = data.row_bytes * data.places * views
        if size <= self._store.limit:
            return None
        return f"{size / 1e9:.1f} GB of activations are more than the {self._store.limit / 1e9:.1f} GB allowed"


def _draws(objective: Objective, train: SplitData, config: TrainConfig) -> bool:
    """Return whether an epoch has some samples more often than others."""
    return objective.head.draw_weights(train.targets, objective.targets, config.knobs) is not None


def _cut(
    model: FineTuneModel, backbone: Backbone, config: TrainConfig, split: SplitData, device: torch.device
) -> tuple[Cut | None, str]:
    """Find a cut, tried on a few samples of a split."""
    if len(split) < 5:
        return None, "too few samples to prove a cut on"
    order = np.arange(len(split))
    mask = backbone.inputs.index(MASK) if MASK in backbone.inputs else None
    if isinstance(split, RaggedData):
        order = np.argsort(-split.tokens.lengths, kind="stable")
        if mask is None or split.tokens.lengths[order[0]] == split.tokens.lengths[order[-1]]:
            return None, "no texts of different length to prove a cut on"
    feed = split.batches([order[:3], order[-2:]], device=device)
    batches = [inputs for inputs, _ in feed]
    cut, failures = find_cut(model, config.freeze_depth, batches, mask=mask, precision=config.precision)
    return cut, "; ".join(failures)


def _harm(
    model: FineTuneModel,
    cut: Cut,
    config: TrainConfig,
    whole: SplitData,
    stored: SplitData,
    *,
    run: Callable[..., Tensor],
    objective: Objective | None,
    device: torch.device,
    slack: float = 1.0,
) -> str | None:
    """Return how a store changes what training in a lower precision gives on validation, or None where it does not."""
    once = partial(predict, model, device=device, batch_size=2 * config.batch_size, precision=config.precision)
    with evaluating(model):
        wanted = once(whole)
        try:
            found = once(stored, run=run)
        except (RuntimeError, TypeError) as error:  # a model that takes no other format than its own
            return f"the replay fails: {first_line(error)}"
    before, after = (rows.values if isinstance(rows, Ragged) else rows for rows in (wanted, found))
    difference = 0.0 if torch.equal(after, before) else float((after - before).abs().max() / before.abs().max())
    form = str(cut.dtype).removeprefix("torch.")
    if not difference <= slack * STORE_TOLERANCE[cut.dtype]:  # also where it is not a number
        return f"outputs differ by {difference:.2g} from those in {form}"
    if objective is None:
        return None
    scores = [objective.head.metrics(rows, whole.targets, objective.targets)[objective.metric] for rows in (wanted, found)]
    if not abs(scores[1] - scores[0]) <= METRIC_TOLERANCE * max(1.0, abs(scores[0])):
        return f"{objective.metric} is {scores[1]:.4f} instead of {scores[0]:.4f} in {form}"
    return None


def _fingerprints(model: FineTuneModel) -> dict[int, str]:
    """Return for each depth a hash of all buffers and of the parameters up to there."""
    digest = hashlib.sha256()
    for name, buffer in model.backbone.named_buffers():
        _add(digest, name, buffer)
    parameters = dict(model.backbone.named_parameters())
    found = {}
    for depth, stage in enumerate(model.stages, start=1):
        for name in stage.parameters:
            _add(digest, name, parameters[name])
        found[depth] = digest.hexdigest()
    return found


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _measure(
    model: FineTuneModel, cut: Cut, train: SplitData, config: TrainConfig, batch: int, device: torch.device
) -> tuple[int, int, int]:
    """Return the operations (of products and convolutions) of a whole step, of a replayed one, and of recording a batch.

    Counted, not timed: no time is the same twice, and a search that is bounded by trials alone is to repeat bit for bit.
    """
    inputs, _ = next(iter(train.batches([np.arange(batch)], device=device, seed=(config.seed, 1))))
    with evaluating(model), torch.no_grad(), autocast(device, config.precision):
        activation = record(model, cut, inputs)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step(*given: Tensor) -> None:
        with autocast(device, config.precision):
            outputs = model(*given)
        torch.autograd.grad(outputs.float().sum(), trained, allow_unused=True)

    def making() -> None:
        with torch.no_grad(), autocast(device, config.precision):
            record(model, cut, inputs)

    def replayed() -> None:
        with replaying(model, cut):
            step(activation.clone(), *cut.carried(inputs))

    # in evaluation mode: counting must not move the running statistics
    with evaluating(model):
        return _operations(lambda: step(*inputs)), _operations(replayed), _operations(making)


def _operations(function: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())
