"""From an Optuna trial to a `TrainConfig`: the default search space, the preset, and what a study changes of them.

The space is flat: no parameter depends on another's value, so that TPE models all of them jointly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna

from autoft.config import ALL
from autoft.errors import Problem
from autoft.specs import Backbone, Choice, Head, Range
from autoft.train import TrainConfig

Value = str | int | float | bool
Searched = Range | Choice | Value  # a bare value is fixed

FRESH, PROBE = "fresh", "probe"  # values of `head_start`


@dataclass(frozen=True)
class Setting:
    """A setting that every training has, whatever its head.

    Attributes:
        name: The word in `space:` of a study file.
        preset: The value that trial 0 uses.
        search: What is searched when the study says nothing; None keeps the preset.
        help: One line for the documentation.
        allowed: What a study may ask for: the limits of a number; None where only the backbone can tell.
        scratch: The preset when every backbone starts from random weights; None changes nothing.
        scratch_fixed: Whether it is fixed then: freezing random features, say, would keep noise.
        text: For texts, the preset and what is searched instead; None for the same.
    """

    name: str
    preset: Value
    search: Range | Choice | None
    help: str
    allowed: Range | Choice | None
    scratch: Value | None = None
    scratch_fixed: bool = False
    text: tuple[Value, Range] | None = None

    def of(self, modality: str) -> Setting:
        """Return the setting as it is for a modality."""
        if modality != "text" or self.text is None:
            return self
        return replace(self, preset=self.text[0], search=self.text[1])


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "learning_rate",
        3e-4,
        Range(1e-5, 1e-2, log=True),
        "peak learning rate of the backbone",
        Range(1e-8, 10.0),
        1e-3,
        # BERT's own advice is 2e-5 to 5e-5 for all layers; here the layers below the last get less, by `layer_decay`
        text=(1e-4, Range(5e-6, 5e-4, log=True)),
    ),
    Setting(
        "head_multiplier",
        10.0,
        Range(1.0, 30.0, log=True),
        "the head's learning rate over the backbone's",
        Range(1e-3, 1e4),
        1.0,
        scratch_fixed=True,
    ),
    Setting(
        "freeze_depth",
        0,
        Range(0, math.inf, integer=True),
        "stages frozen, counted from the input",
        None,
        0,
        scratch_fixed=True,
    ),
    Setting(
        "layer_decay",
        0.9,
        Range(0.6, 1.0),
        "factor on the learning rate from each stage to the one before it",
        Range(0.0, 1.0),
        1.0,
        scratch_fixed=True,
    ),
    Setting(
        "weight_decay", 1e-2, Range(1e-5, 1e-1, log=True), "decoupled weight decay, not on norms and biases", Range(0.0, 1.0)
    ),
    Setting(
        "head_start",
        FRESH,
        Choice((FRESH, PROBE)),
        "what the head starts from: random weights, or those of the linear probe; `fresh` where there is no probe",
        Choice((FRESH, PROBE)),
        FRESH,
        scratch_fixed=True,
    ),
)


@dataclass(frozen=True)
class Space:
    """All that a trial decides.

    Attributes:
        backbones: Candidates; searched when there are several.
        stages: Number of stages of each.
        parameters: Every setting and knob by name: searched (`Range`, `Choice`) or fixed (a value). The freeze depth is
            searched as `freeze_fraction` of the stages when the backbones differ in how many they have.
        preset: The preset's values by name.
        heads: For each backbone the name of the file with its probe's head, or None; empty where nothing was probed.
    """

    backbones: tuple[Backbone, ...]
    stages: tuple[int, ...]
    parameters: Mapping[str, Searched]
    preset: Mapping[str, Value]
    heads: tuple[str | None, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The backbones' names, with their weights and input sizes where these tell them apart."""
        forms = [
            (
                backbone.name,
                f"{backbone.name} [{backbone.weights}]",
                f"{backbone.name} [{backbone.weights} {'x'.join(map(str, backbone.image_size or ()))}]",
            )
            for backbone in self.backbones
        ]
        # the shortest form that no other backbone has
        unique = [[form for form, *others in zip(own, *forms, strict=True) if others.count(form) == 1] for own in forms]
        return tuple(found[0] if found else own[-1] for found, own in zip(unique, forms, strict=True))

    def preset_of(self, backbone: int) -> dict[str, Value]:
        """Return the preset as values for Optuna, for one of the backbones; only what is searched."""
        values = {name: self.preset[name] for name, what in self.parameters.items() if isinstance(what, Range | Choice)}
        if len(self.backbones) > 1:
            values["backbone"] = self.labels[backbone]
        return values


@dataclass(frozen=True)
class Candidate:
    """One point of the space.

    Attributes:
        backbone: Its place in the space.
        values: Of every setting and knob.
        head: The file that the head starts from, or None for random weights.
    """

    backbone: int
    values: Mapping[str, Value]
    head: str | None = None


def names(head: Head) -> frozenset[str]:
    """Return every name that `space:` of a study may hold for a head."""
    return frozenset(setting.name for setting in SETTINGS) | {knob.name for knob in head.knobs} | {"augmentation"}


def check_values(wanted: Mapping[str, Searched], head: Head, *, policies: Sequence[str] | None = None) -> list[Problem]:
    """Return what is wrong with the values that a study's `space` asks for; the freeze depth needs the backbones.

    Args:
        wanted: What the study says, by name.
        head: Its knobs' limits count.
        policies: Known augmentation policies, or None where they are not known yet.
    """
    allowed: dict[str, Range | Choice] = {setting.name: setting.allowed for setting in SETTINGS if setting.allowed}
    allowed |= {knob.name: knob.allowed for knob in head.knobs}
    if policies is not None:
        allowed["augmentation"] = Choice(tuple(policies))
    problems = []
    for name, what in wanted.items():
        if name not in allowed:
            continue
        limits = allowed[name]
        asked = [what.low, what.high] if isinstance(what, Range) else what.values if isinstance(what, Choice) else (what,)
        wrong = [value for value in asked if not _within(value, limits, ranged=isinstance(what, Range))]
        if wrong:
            rule = (
                f"a number from {limits.low:g} to {limits.high:g}"
                if isinstance(limits, Range)
                else f"one of {', '.join(map(str, limits.values))}"
            )
            problems.append(Problem(f"space.{name}", f"must be {rule}, but got {_shown(wrong[0])}"))
    return problems


def _within(value: Value, limits: Range | Choice, *, ranged: bool) -> bool:
    if isinstance(limits, Choice):
        return not ranged and value in limits.values
    return isinstance(value, int | float) and not isinstance(value, bool) and limits.low <= value <= limits.high


def shared_policies(backbones: Sequence[Backbone]) -> tuple[str, ...]:
    """Return the augmentation policies that every backbone's preprocessing has, weakest first."""
    return tuple(
        policy
        for policy in backbones[0].preprocessing.policies
        if all(policy in backbone.preprocessing.policies for backbone in backbones)
    )


def choose_augmentation(wanted: str, policies: Sequence[str]) -> str:
    """Return the policy for `auto`: `light` where the backbones have it, else none."""
    if wanted != "auto":
        return wanted
    return "light" if "light" in policies else "none"


def build_space(
    wanted: Mapping[str, Searched],
    head: Head,
    backbones: Sequence[Backbone],
    stages: Sequence[int],
    *,
    augmentation: str,
    heads: Sequence[str | None] | None = None,
) -> tuple[Space, list[Problem]]:
    """Combine the defaults with a study's `space`.

    Args:
        wanted: What the study says, by name; a bare value fixes a setting.
        head: Adds its knobs.
        backbones: Candidates, at least one.
        stages: Their numbers of stages.
        augmentation: The policy that `trainer.augmentation` names; `space.augmentation` wins over it.
        heads: For each backbone the file with its probe's head, or None where the probe gave none; None where the backbones
            are not probed yet: then `head_start` is fixed, and what the study says of it not judged.

    Returns:
        The space, and what is wrong with `wanted`; the space must not be used where anything is.
    """
    scratch = all(backbone.weights == "none" for backbone in backbones)
    parameters: dict[str, Searched] = {}
    preset: dict[str, Value] = {}
    for setting in (setting.of(backbones[0].modality) for setting in SETTINGS):
        preset[setting.name] = setting.scratch if scratch and setting.scratch is not None else setting.preset
        fixed = setting.search is None or (scratch and setting.scratch_fixed)
        parameters[setting.name] = preset[setting.name] if fixed or setting.search is None else setting.search
    for knob in head.knobs:
        preset[knob.name] = knob.default
        parameters[knob.name] = knob.default if knob.search is None else knob.search
    preset["augmentation"] = parameters["augmentation"] = augmentation
    able = bool(heads) and all(heads or ())
    if not able:
        parameters["head_start"] = FRESH
    parameters.update({name: what for name, what in wanted.items() if able or name != "head_start"})
    problems = check_values(wanted, head, policies=shared_policies(backbones))
    problems += _resolve_depth(parameters, preset, backbones, stages)
    asked = wanted.get("head_start", FRESH)
    if (
        heads is not None
        and not able
        and not problems
        and PROBE in (asked.values if isinstance(asked, Choice) else (asked,))
    ):
        lacking = next((one.name for one, head in zip(backbones, heads, strict=True) if head is None), "any backbone")
        problems.append(
            Problem(
                "space.head_start",
                f"must be `fresh`, since no probe of {lacking} has a head to start from",
                hint="see `probe.json` in the run folder for the reason, and `search.probe`",
            )
        )
    if not problems:  # a range over words, say, would have nowhere to move its preset to
        for name, what in parameters.items():
            preset[name] = _into(what, preset[name])
    return Space(tuple(backbones), tuple(stages), parameters, preset, tuple(heads or ())), problems


def suggest(trial: optuna.Trial | optuna.trial.FixedTrial, space: Space) -> Candidate:
    """Ask Optuna for one point; the order of the questions is fixed, so that a seed repeats them.

    With a `FixedTrial` of a stored trial's parameters, it returns that trial's point again.
    """
    index = 0
    if len(space.backbones) > 1:
        index = space.labels.index(trial.suggest_categorical("backbone", list(space.labels)))
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
    return Candidate(index, values, space.heads[index] if values["head_start"] == PROBE else None)


def train_config(candidate: Candidate, head: Head, base: Mapping[str, Any]) -> TrainConfig:
    """Make the trainer's configuration of a candidate and the study's fixed `trainer` settings."""
    own = {setting.name for setting in SETTINGS} - {"head_start"}
    values = {name: value for name, value in candidate.values.items() if name in own}
    knobs = {knob.name: candidate.values[knob.name] for knob in head.knobs}
    return TrainConfig(**values, **base, knobs=knobs, head_start=candidate.head)  # type: ignore[arg-type]


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
        value = min(max(float(preset), what.low), what.high)
        return round(value) if what.integer else value
    if isinstance(what, Choice):
        return preset if preset in what.values else what.values[0]
    return what


def _shown(bound: Value) -> str:
    return f"{bound:g}" if isinstance(bound, int | float) and not isinstance(bound, bool) else repr(bound)
