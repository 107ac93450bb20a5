"""How a trial is trained: its point of the space, the study's fixed settings, and what was measured for its backbone."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from autoft.config import TrainerConfig
from autoft.errors import ConfigError, RunError, first_line
from autoft.events import Event, Listener
from autoft.files import read_json, write_checked
from autoft.layers import Trait
from autoft.prepare import Prepared, wanted_strategies
from autoft.space import (
    Candidate,
    Space,
    build_space,
    choose_augmentation,
    shared_policies,
    suggest,
    train_config,
)
from autoft.specs import Backbone, Choice, Head, Range
from autoft.train import TrainConfig, choose_batch_size, choose_epochs
from autoft.tuning import MEASURED, Tuned, tune
from autoft.worker import Worker


@dataclass(frozen=True)
class Recipe:
    """Makes of a trial's parameters what its training needs.

    Attributes:
        space: Backbones and values.
        head: The task.
        fixed: Settings of the trainer that are not searched.
        tuned: What was measured for each backbone, by its label.
        limits: The micro-batch that fits into memory, by label, where a trial ran out of it; learned while a search goes on.
    """

    space: Space
    head: Head
    fixed: Mapping[str, Any]
    tuned: Mapping[str, Tuned] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """Of a whole trial."""
        epochs: int = self.fixed["epochs"]
        return epochs

    @property
    def warm_up(self) -> int:
        """Whole epochs in which the learning rate may still rise, in the trial where it does so longest."""
        what = self.space.parameters["warmup"]
        values = (what.high,) if isinstance(what, Range) else what.values if isinstance(what, Choice) else (what,)
        return math.floor(max(float(value) for value in values) * self.epochs)

    @property
    def seed(self) -> int:
        """Of every trial; the last round trains with those that follow as well."""
        seed: int = self.fixed["seed"]
        return seed

    def candidate(self, trial: FrozenTrial | optuna.Trial) -> Candidate:
        """Return the point of the space that a trial's parameters are."""
        return suggest(optuna.trial.FixedTrial(trial.params, trial.number), self.space)

    def backbone(self, candidate: Candidate) -> Backbone:
        """Return what a candidate fine-tunes."""
        return self.space.backbones[candidate.backbone]

    def settings(self, candidate: Candidate, *, seed: int | None = None) -> TrainConfig:
        """Return how a candidate is trained, with its own seed or another."""
        settings = train_config(candidate, self.head, self.fixed)
        label = self.space.labels[candidate.backbone]
        if label in self.tuned:
            settings = self.tuned[label].apply(settings)
        if self.limits.get(label, math.inf) < (settings.micro_batch or settings.batch_size):
            settings = replace(settings, micro_batch=self.limits[label])
        return settings if seed is None else replace(settings, seed=seed)

    def learn(self, candidate: Candidate, micro_batch: int | None) -> bool:
        """Take note of the micro-batch that a candidate was trained with; return whether it is less than is usual.

        Args:
            candidate: What was trained.
            micro_batch: Samples a pass; None for whole batches.
        """
        usual = self.settings(candidate)
        if micro_batch is None or micro_batch >= (usual.micro_batch or usual.batch_size):
            return False
        self.limits[self.space.labels[candidate.backbone]] = micro_batch
        return True


def fixed_settings(prepared: Prepared) -> dict[str, Any]:
    """Return the settings of the trainer that no trial changes."""
    trainer, samples = prepared.config.trainer, len(prepared.samples["train"])
    return {
        "epochs": choose_epochs(trainer.epochs, prepared.raw.modality, samples),
        "batch_size": choose_batch_size(trainer.batch_size, samples, prepared.raw.modality),
        "warmup": trainer.warmup,
        "gradient_clip": trainer.gradient_clip or 0.0,
        "optimizer": trainer.optimizer,
        "momentum": trainer.momentum,
        "patience": trainer.patience,
        "group_by_length": trainer.group_by_length,
        "seed": prepared.config.search.seed,
    }


def study_space(
    prepared: Prepared,
    backbones: Sequence[Backbone],
    stages: Sequence[int],
    traits: Sequence[Collection[Trait]],
    heads: Sequence[str | None] | None = None,
) -> Space:
    """Return the space that a study searches.

    Args:
        prepared: The study.
        backbones: Those of its backbones that take part.
        stages: Their numbers of stages.
        traits: What each of them has that some settings need.
        heads: For each the file with its probe's head, or None; None where they are not probed yet.

    Raises:
        ConfigError: Lists everything that is wrong with what the study asks for.
    """
    config = prepared.config
    policies = shared_policies(prepared.backbones)
    augmentation = choose_augmentation(config.trainer.augmentation, policies)
    trainer = fixed_settings(prepared)
    space, problems = build_space(
        config.space,
        prepared.objective.head,
        backbones,
        stages,
        augmentation=augmentation,
        heads=heads,
        level=config.search.space,
        trainer=trainer,
        fixed=_fixed_by(config.trainer),
        traits=traits,
        strategies=wanted_strategies(config, prepared.catalog),
        samples=len(prepared.samples["train"]),
    )
    found = [config.problem(problem.where, problem.message, problem.hint) for problem in problems]
    if augmentation not in policies:
        message = f"must be one of {', '.join(policies)}, but got {augmentation!r}"
        found.append(config.problem("trainer.augmentation", message))
    if found:
        raise ConfigError(config.source, found)
    return space


def _fixed_by(trainer: TrainerConfig) -> list[str]:
    """Return the settings of the trainer of which the study says anything but the default: these are not searched."""
    return [name for name, about in TrainerConfig.model_fields.items() if getattr(trainer, name) != about.default]


def read_tuned(file: Path) -> dict[str, Any]:
    """Return what an earlier session measured for each backbone; empty where there was none.

    Raises:
        RunError: The file is damaged.
    """
    try:
        return read_json(file) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file} is damaged: {first_line(error)}",
            "remove it: what was measured is measured again, and may come out otherwise",
        ) from error


def make_recipe(
    prepared: Prepared, space: Space, worker: Worker, file: Path, listener: Listener, *, seconds: float | None
) -> Recipe:
    """Measure what each backbone runs fastest with, or read what an earlier session measured, and return the recipe.

    Args:
        prepared: The study.
        space: Its space.
        worker: Builds models and has the data.
        file: Where what was measured is kept, so that a resumed run trains as before.
        listener: Hears of each backbone for which something was measured.
        seconds: Left of the search, or None for no limit.

    Raises:
        RunError: The file is damaged.
    """
    recipe = Recipe(space, prepared.objective.head, fixed_settings(prepared))
    stored = read_tuned(file)
    trainer, tuned = prepared.config.trainer, {}
    for index, (label, backbone) in enumerate(zip(space.labels, space.backbones, strict=True)):
        settings = recipe.settings(suggest(optuna.trial.FixedTrial(space.preset_of(index)), space))
        tuned[label] = tune(
            lambda backbone=backbone, settings=settings: worker.build(backbone, settings),  # type: ignore[misc]
            worker.data("train", backbone, str(space.preset["augmentation"])),
            prepared.objective,
            settings,
            device=prepared.device,
            precision=trainer.precision,
            compiling=trainer.compile,
            seconds=seconds,
            stored=stored.get(label),
        )
        measured = prepared.device.type == "cuda" or trainer.precision in MEASURED[1:] or trainer.compile in MEASURED[1:]
        if measured and label not in stored:
            listener(
                Event("tuned", f"{label}: {tuned[label].text}", {"backbone": label, **tuned[label].to_dict()}),
            )
    write_checked(file, {label: found.to_dict() for label, found in tuned.items()})
    return replace(recipe, tuned=tuned)
