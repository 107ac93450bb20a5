"""From an Optuna trial to a `TrainConfig`: the default search space, the preset, and what a study changes of them.

The space is flat: no parameter depends on another's value, so that TPE models all of them jointly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from autoft.errors import Problem
from autoft.specs import Backbone, Choice, Head, Range
from autoft.train import TrainConfig

Value = str | int | float | bool
Searched = Range | Choice | Value  # a bare value is fixed

ALL = "all"  # freeze depth: every stage


@dataclass(frozen=True)
class Setting:
    """A setting that every training has, whatever its head.

    Attributes:
        name: The word in `space:` of a study file.
        preset: The value that trial 0 uses.
        search: What is searched when the study says nothing; None keeps the preset.
        scratch: The value, fixed, when every backbone starts from random weights; None changes nothing.
        help: One line for the documentation.
    """

    name: str
    preset: Value
    search: Range | Choice | None
    help: str
    scratch: Value | None = None


SETTINGS: tuple[Setting, ...] = (
    Setting("learning_rate", 3e-4, Range(1e-5, 1e-2, log=True), "peak learning rate of the backbone"),
    Setting("head_multiplier", 10.0, Range(1.0, 30.0, log=True), "the head's learning rate over the backbone's", 1.0),
    Setting("freeze_depth", 0, Range(0, math.inf, integer=True), "stages frozen, counted from the input", 0),
    Setting("layer_decay", 0.9, Range(0.6, 1.0), "factor on the learning rate from each stage to the one before it", 1.0),
    Setting("weight_decay", 1e-2, Range(1e-5, 1e-1, log=True), "decoupled weight decay, not on norms and biases"),
    Setting("augmentation", "light", None, "augmentation policy of the training images"),
)
SCRATCH_LEARNING_RATE = 1e-3  # random weights need larger steps than pretrained ones


@dataclass(frozen=True)
class Space:
    """All that a trial decides.

    Attributes:
        backbones: Candidates; searched when there are several.
        stages: Number of stages of each.
        parameters: Every setting and knob by name: searched (`Range`, `Choice`) or fixed (a value). The freeze depth is
            searched as `freeze_fraction` of the stages when the backbones differ in how many they have.
        preset: The preset's values by name.
    """

    backbones: tuple[Backbone, ...]
    stages: tuple[int, ...]
    parameters: Mapping[str, Searched]
    preset: Mapping[str, Value]

    def preset_of(self, backbone: int) -> dict[str, Value]:
        """Return the preset as values for Optuna, for one of the backbones; only what is searched."""
        values = {name: self.preset[name] for name, what in self.parameters.items() if isinstance(what, Range | Choice)}
        if len(self.backbones) > 1:
            values["backbone"] = self.backbones[backbone].name
        return values


@dataclass(frozen=True)
class Candidate:
    """One point of the space: a backbone, and a value for every setting and knob."""

    backbone: int
    values: Mapping[str, Value]


def names(head: Head) -> frozenset[str]:
    """Return every name that `space:` of a study may hold for a head."""
    return frozenset(setting.name for setting in SETTINGS) | {knob.name for knob in head.knobs}


def build_space(
    wanted: Mapping[str, Searched], head: Head, backbones: Sequence[Backbone], stages: Sequence[int]
) -> tuple[Space, list[Problem]]:
    """Combine the defaults with a study's `space`.

    Args:
        wanted: What the study says, by name; a bare value fixes a setting.
        head: Adds its knobs.
        backbones: Candidates, at least one.
        stages: Their numbers of stages.

    Returns:
        The space, and what is wrong with `wanted`; the space must not be used where anything is.
    """
    scratch = all(backbone.weights == "none" for backbone in backbones)
    parameters: dict[str, Searched] = {}
    preset: dict[str, Value] = {}
    for setting in SETTINGS:
        fixed = setting.scratch if scratch else None
        parameters[setting.name] = fixed if fixed is not None else (setting.search or setting.preset)
        preset[setting.name] = fixed if fixed is not None else setting.preset
    if scratch:
        preset["learning_rate"] = SCRATCH_LEARNING_RATE
    for knob in head.knobs:
        parameters[knob.name] = knob.search or knob.default
        preset[knob.name] = knob.default
    parameters.update(wanted)
    problems = _resolve_depth(parameters, preset, backbones, stages)
    for name, what in parameters.items():
        preset[name] = _into(what, preset[name])
    return Space(tuple(backbones), tuple(stages), parameters, preset), problems


def suggest(trial: optuna.Trial, space: Space) -> Candidate:
    """Ask Optuna for one point; the order of the questions is fixed, so that a seed repeats them."""
    index = 0
    if len(space.backbones) > 1:
        chosen = trial.suggest_categorical("backbone", [backbone.name for backbone in space.backbones])
        index = [backbone.name for backbone in space.backbones].index(chosen)
    values: dict[str, Value] = {}
    for name, what in space.parameters.items():
        if isinstance(what, Range) and what.integer:
            values[name] = trial.suggest_int(name, int(what.low), int(what.high), log=what.log)
        elif isinstance(what, Range):
            values[name] = trial.suggest_float(name, what.low, what.high, log=what.log)
        elif isinstance(what, Choice):
            values[name] = trial.suggest_categorical(name, list(what.values))  # type: ignore[assignment]
        else:
            values[name] = what
    if "freeze_fraction" in values:
        values["freeze_depth"] = round(float(values.pop("freeze_fraction")) * space.stages[index])
    elif values["freeze_depth"] == ALL:
        values["freeze_depth"] = space.stages[index]
    return Candidate(index, values)


def train_config(candidate: Candidate, head: Head, base: Mapping[str, Any]) -> TrainConfig:
    """Make the trainer's configuration of a candidate and the study's fixed `trainer` settings."""
    own = {setting.name for setting in SETTINGS} - {"augmentation"}
    values = {name: value for name, value in candidate.values.items() if name in own}
    knobs = {knob.name: candidate.values[knob.name] for knob in head.knobs}
    return TrainConfig(**values, **base, knobs=knobs)  # type: ignore[arg-type]


def _resolve_depth(
    parameters: dict[str, Searched], preset: dict[str, Value], backbones: Sequence[Backbone], stages: Sequence[int]
) -> list[Problem]:
    """Turn the freeze depth into whole stages of one backbone, or a fraction of several backbones' stages."""
    what = parameters["freeze_depth"]
    least = min(stages)
    shortest = backbones[list(stages).index(least)].name
    bounds = [what.low, what.high] if isinstance(what, Range) else list(what.values) if isinstance(what, Choice) else [what]
    problems = [
        Problem(
            "space.freeze_depth",
            f"must be a whole number between 0 and {least} for {shortest}, or `all`, but got {_shown(bound)}",
            hint=f"`autoft plugins show {shortest}` lists its stages",
        )
        for bound in bounds
        if bound not in (ALL, math.inf) and (isinstance(bound, bool | str) or bound != int(bound) or not 0 <= bound <= least)
    ]
    if problems or not isinstance(what, Range):
        return problems
    if what.high != math.inf:
        parameters["freeze_depth"] = Range(what.low, what.high, integer=True)
    elif len(set(stages)) == 1:
        parameters["freeze_depth"] = Range(what.low, least, integer=True)
    else:
        del parameters["freeze_depth"]
        parameters["freeze_fraction"] = Range(what.low / least, 1.0)
        preset["freeze_fraction"] = 0.0
    return []


def _into(what: Searched, preset: Value) -> Value:
    """Move a preset's value into what the study searches."""
    if isinstance(what, Range):
        value = min(max(float(preset), what.low), what.high)  # type: ignore[arg-type]
        return round(value) if what.integer else value
    if isinstance(what, Choice):
        return preset if preset in what.values else what.values[0]
    return what


def _shown(bound: Value) -> str:
    return f"{bound:g}" if isinstance(bound, int | float) and not isinstance(bound, bool) else repr(bound)
