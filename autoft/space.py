"""From an Optuna trial to a `TrainConfig`: a space of the table in `knobs.py` and what a study changes of it.

The space is flat: every parameter is asked in every trial, so that TPE models all of them jointly. One that has no effect
there, such as the decay of an average that is not made, gets a fixed value, so that two trials that train alike are equal.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import optuna

from autoft.config import ALL
from autoft.errors import Problem
from autoft.knobs import BY_NAME, FRESH, PROBE, SETTINGS, Level, Setting, Value
from autoft.layers import Trait
from autoft.specs import Backbone, Choice, Head, Knob, Range, Strategy
from autoft.train import TrainConfig

Searched = Range | Choice | Value  # a bare value is fixed

AS_PRESET, AS_SEARCHED = "preset", "search"  # words for any setting: leave it out of the search, or search its usual range
OFF_SHARE = 0.25  # of the scale of a setting with `or_zero` that stands for 0

NEEDS = {
    "batch_norm": "a backbone with BatchNorm",
    "stochastic_depth": "a backbone with layers for stochastic depth",
    "embeddings": "a backbone with word embeddings",
    "divergence": "a task that says how far two outputs are apart",
}


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
        when: For a setting that has not always an effect, another one, and the values of that with which it has.
        lacking: For each backbone, the settings that have no effect on it; empty for none.
        idle: Values of settings where they have no effect.
        extra: Those that are searched only because the space is the full one.
    """

    backbones: tuple[Backbone, ...]
    stages: tuple[int, ...]
    parameters: Mapping[str, Searched]
    preset: Mapping[str, Value]
    heads: tuple[str | None, ...] = ()
    when: Mapping[str, tuple[str, tuple[Value, ...]]] = field(default_factory=dict)
    lacking: tuple[frozenset[str], ...] = ()
    idle: Mapping[str, Value] = field(default_factory=dict)
    extra: frozenset[str] = frozenset()

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
        values = {
            name: place_of(what, self.preset[name])
            for name, what in self.parameters.items()
            if isinstance(what, Range | Choice)
        }
        if len(self.backbones) > 1:
            values["backbone"] = self.labels[backbone]
        return values

    def effective(self, backbone: int, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return a candidate's values with those that have no effect at their idle value."""
        lacking = self.lacking[backbone] if self.lacking else frozenset()
        found = {name: self.idle[name] if name in lacking else value for name, value in values.items()}
        for name, (other, having) in self.when.items():
            if found[other] not in having:
                found[name] = self.idle[name]
        return found

    def told(self, candidate: Candidate) -> dict[str, Value]:
        """Return what is worth telling of a candidate: what is searched and has an effect, and is no extra at its preset."""
        searched = {"freeze_depth" if name == "freeze_fraction" else name for name in self.preset_of(0)} - {"backbone"}
        return {
            name: value
            for name, value in candidate.values.items()
            if name in searched
            and (name not in self.extra or value != self.preset[name])
            and (name not in self.when or candidate.values[self.when[name][0]] in self.when[name][1])
        }

    def notable(self, candidate: Candidate) -> dict[str, Value]:
        """Return what a model card says of a candidate: of settings beyond the small space, those that are in use."""
        plain = {setting.name for setting in SETTINGS if setting.level != "small"}
        return {name: value for name, value in candidate.values.items() if name not in plain or value != self.idle.get(name)}


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


def names(head: Head, strategies: Collection[Strategy] = ()) -> frozenset[str]:
    """Return every name that `space:` of a study may hold for a head, and some strategies."""
    knobs = [*head.knobs, *(knob for strategy in strategies for knob in strategy.knobs)]
    return frozenset(setting.name for setting in SETTINGS) | {knob.name for knob in knobs}


def check_values(
    wanted: Mapping[str, Searched],
    head: Head,
    *,
    policies: Sequence[str] | None = None,
    strategies: Collection[Strategy] = (),
) -> list[Problem]:
    """Return what is wrong with the values that a study's `space` asks for; the freeze depth needs the backbones.

    Args:
        wanted: What the study says, by name.
        head: Its knobs' limits count.
        policies: Known augmentation policies, or None where they are not known yet.
        strategies: Those of plugins.
    """
    allowed: dict[str, Range | Choice] = {setting.name: setting.allowed for setting in SETTINGS if setting.allowed}
    allowed |= {knob.name: knob.allowed for knob in (*head.knobs, *knobs_of(strategies))}
    allowed["strategy"] = Choice((BY_NAME["strategy"].preset, *(strategy.name for strategy in strategies)))
    if policies is not None:
        allowed["augmentation"] = Choice(tuple(policies))
    problems = []
    for name, what in wanted.items():
        if name not in allowed or what in (AS_PRESET, AS_SEARCHED):
            continue
        limits = allowed[name]
        asked = [what.low, what.high] if isinstance(what, Range) else what.values if isinstance(what, Choice) else (what,)
        wrong = [value for value in asked if not _within(value, limits, ranged=isinstance(what, Range))]
        if wrong:
            whole = "a whole number" if isinstance(limits, Range) and limits.integer else "a number"
            rule = (
                f"{whole} from {limits.low:g} to {limits.high:g}"
                if isinstance(limits, Range)
                else f"one of {', '.join(map(str, limits.values))}"
            )
            problems.append(Problem(f"space.{name}", f"must be {rule}, but got {_shown(wrong[0])}"))
    return problems


def knobs_of(strategies: Collection[Strategy]) -> tuple[Knob, ...]:
    """Return the knobs that strategies add, each with the names of those it is for; equal knobs of several are one."""
    found: dict[str, Knob] = {}
    for strategy in strategies:
        for knob in strategy.knobs:
            having = (*(found[knob.name].when or ("", ()))[1], strategy.name) if knob.name in found else (strategy.name,)
            found[knob.name] = replace(knob, when=("strategy", having))
    return tuple(found.values())


def _within(value: Value, limits: Range | Choice, *, ranged: bool) -> bool:
    if isinstance(limits, Choice):
        return not ranged and value in limits.values
    if not isinstance(value, int | float) or isinstance(value, bool) or (limits.integer and value != int(value)):
        return False
    return limits.low <= value <= limits.high


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
    level: Level = "small",
    trainer: Mapping[str, Value] | None = None,
    fixed: Collection[str] = (),
    traits: Sequence[Collection[Trait]] | None = None,
    strategies: Collection[Strategy] = (),
    samples: int | None = None,
) -> tuple[Space, list[Problem]]:
    """Combine the table's settings with a study's `space`.

    Args:
        wanted: What the study says, by name; a bare value fixes a setting, as the word `preset` does, and `search` searches
            what the table says.
        head: Adds its knobs.
        backbones: Candidates, at least one.
        stages: Their numbers of stages.
        augmentation: The policy that `trainer.augmentation` names; `space.augmentation` wins over it.
        heads: For each backbone the file with its probe's head, or None where the probe gave none; None where the backbones
            are not probed yet: then `head_start` is fixed, and what the study says of it not judged.
        level: `small` or `full`.
        trainer: Presets of the settings that the study's `trainer` section has too.
        fixed: Those of them that it fixes.
        traits: What each backbone has that some settings need; None where that is not known, and nothing is judged by it.
        strategies: Those of plugins; the study's `space.strategy` says which are tried.
        samples: Of the training split, which no batch can exceed.

    Returns:
        The space, and what is wrong with `wanted`; the space must not be used where anything is.
    """
    scratch = all(backbone.weights == "none" for backbone in backbones)
    modality, policies = backbones[0].modality, shared_policies(backbones)
    given: Mapping[str, Value] = {**(trainer or {}), "augmentation": augmentation}
    ways = tuple(strategy.name for strategy in strategies)
    table = [_adapted(setting.of(modality), given, policies, samples, ways) for setting in SETTINGS]
    known: Sequence[Collection[Trait] | None] = traits if traits is not None else [None] * len(backbones)
    lacking = [frozenset(_why_idle(table, head, modality, own)) for own in known]
    nowhere = frozenset.intersection(*lacking)
    parameters: dict[str, Searched] = {}
    preset: dict[str, Value] = {}
    usual: dict[str, Range | Choice] = {}
    extra: set[str] = set()
    for setting in table:
        preset[setting.name] = setting.scratch if scratch and setting.scratch is not None else setting.preset
        usual[setting.name] = setting.search
        parameters[setting.name] = preset[setting.name]
        out = setting.name in nowhere or setting.name in fixed or (scratch and setting.scratch_fixed)
        asked = setting.level in ("small", level) or (setting.name == "adapter_multiplier" and bool(ways))
        if asked and not out and _is_open(setting.search):
            parameters[setting.name] = setting.search
            if setting.level == "full":
                extra.add(setting.name)
    for knob in (*head.knobs, *knobs_of(strategies)):
        preset[knob.name] = knob.default
        parameters[knob.name] = knob.default if knob.search is None else knob.search
        usual[knob.name] = knob.search or _usual(knob.allowed)
    idle = dict(preset)
    able = bool(heads) and all(heads or ())
    if not able:
        parameters["head_start"] = FRESH
    for name, what in wanted.items():
        if (not able and name == "head_start") or name not in parameters:
            continue
        parameters[name] = preset[name] if what == AS_PRESET else usual[name] if what == AS_SEARCHED else what
        extra.discard(name)
    problems = check_values(wanted, head, policies=policies, strategies=strategies)
    problems += _resolve_depth(parameters, preset, backbones, stages)
    problems += [
        Problem(f"space.{name}", f"needs {why}", hint="leave it out")
        for name, why in _why_idle(table, head, modality, frozenset().union(*traits) if traits is not None else None).items()
        if name in wanted and wanted[name] not in (AS_PRESET, idle[name])
    ]
    start = wanted.get("head_start", FRESH)
    if (
        heads is not None
        and not able
        and not problems
        and PROBE in (start.values if isinstance(start, Choice) else (start,))
    ):
        lacks = next((one.name for one, head in zip(backbones, heads, strict=True) if head is None), "any backbone")
        problems.append(
            Problem(
                "space.head_start",
                f"must be `fresh`, since no probe of {lacks} has a head to start from",
                hint="see `probe.json` in the run folder for the reason, and `search.probe`",
            )
        )
    if not problems:  # a range over words, say, would have nowhere to move its preset to
        for name, what in parameters.items():
            preset[name] = _into(what, preset[name])
    when = {setting.name: setting.when for setting in table if setting.when is not None}
    when |= {knob.name: knob.when for knob in (*head.knobs, *knobs_of(strategies)) if knob.when is not None}
    space = Space(
        tuple(backbones),
        tuple(stages),
        parameters,
        preset,
        tuple(heads or ()),
        when,
        tuple(lacking),
        idle,
        frozenset(extra),
    )
    return space, problems


def _adapted(
    setting: Setting, given: Mapping[str, Value], policies: Sequence[str], samples: int | None, ways: tuple[str, ...]
) -> Setting:
    """Return a setting with its preset from the study's `trainer` section, and its range by what there is."""
    if setting.name == "strategy":
        return replace(setting, search=Choice((setting.preset, *ways)))
    if setting.name == "adapter_multiplier":
        return replace(setting, when=("strategy", ways))
    if setting.trainer and setting.name in given:
        setting = replace(setting, preset=given[setting.name])
    if setting.name == "augmentation":
        assert isinstance(setting.search, Choice)
        return replace(setting, search=Choice(tuple(each for each in setting.search.values if each in policies)))
    if setting.name == "batch_size":
        size = int(setting.preset)
        most = min(2 * size, samples or 2 * size)
        return replace(setting, search=Range(max(1, size // 2), most, log=True, integer=True))
    return setting


def _is_open(search: Range | Choice) -> bool:
    """Return whether there is more than one value to choose from."""
    return search.low < search.high if isinstance(search, Range) else len(search.values) > 1


def _usual(allowed: Range | Choice) -> Range | Choice:
    """Return what is searched of a knob that is fixed as a rule, where a study says `search`: all that is allowed."""
    return allowed


def _why_idle(table: Sequence[Setting], head: Head, modality: str, traits: Collection[Trait] | None) -> dict[str, str]:
    """Return the settings that have no effect on a backbone, each with what it needs."""
    found = {}
    for setting in table:
        if setting.modality not in (None, modality):
            found[setting.name] = f"{setting.modality} data, but this is {modality} data"
        elif setting.name in ("mixup", "cutmix") and head.move is not None:
            found[setting.name] = f"targets that are one for a whole image, but those of {head.name} lie in it"
        elif setting.needs == "divergence":
            if head.divergence is None:
                found[setting.name] = f"{NEEDS['divergence']}, but {head.name} does not"
        elif setting.needs is not None and traits is not None and setting.needs not in traits:
            found[setting.name] = f"{NEEDS[setting.needs]}, but there is none"
    return found


def suggest(trial: optuna.Trial | optuna.trial.FixedTrial, space: Space) -> Candidate:
    """Ask Optuna for one point; the order of the questions is fixed, so that a seed repeats them.

    With a `FixedTrial` of a stored trial's parameters, it returns that trial's point again.
    """
    index = 0
    if len(space.backbones) > 1:
        index = space.labels.index(trial.suggest_categorical("backbone", list(space.labels)))
    values: dict[str, Value] = {}
    for name, what in space.parameters.items():
        if isinstance(what, Range):
            low, high = scale_of(what)
            if what.integer:
                found: Value = trial.suggest_int(name, int(low), int(high), log=what.log)
            else:
                found = trial.suggest_float(name, low, high, log=what.log)
            values[name] = 0.0 if what.or_zero and float(found) < what.low else found
        elif isinstance(what, Choice):
            values[name] = trial.suggest_categorical(name, list(what.values))  # type: ignore[assignment]
        else:
            values[name] = what
    if "freeze_fraction" in values:
        values["freeze_depth"] = round(float(values.pop("freeze_fraction")) * space.stages[index])
    elif values["freeze_depth"] == ALL:
        values["freeze_depth"] = space.stages[index]
    values = space.effective(index, values)
    return Candidate(index, values, space.heads[index] if values["head_start"] == PROBE else None)


def scale_of(what: Range) -> tuple[float, float]:
    """Return the ends of the scale that Optuna samples; with `or_zero`, a quarter of it lies below `low`, for 0."""
    if not what.or_zero:
        return what.low, what.high
    more = OFF_SHARE / (1 - OFF_SHARE)
    if what.log:
        return what.low * (what.low / what.high) ** more, what.high
    return what.low - (what.high - what.low) * more, what.high


def place_of(what: Searched, value: Value) -> Value:
    """Return where a value lies on the scale that Optuna samples; 0 is in the middle of the part that stands for it."""
    if not isinstance(what, Range) or not what.or_zero or value != 0:
        return value
    low, _ = scale_of(what)
    return math.sqrt(low * what.low) if what.log else (low + what.low) / 2


def train_config(candidate: Candidate, head: Head, base: Mapping[str, Any]) -> TrainConfig:
    """Make the trainer's configuration of a candidate; `base` has what no trial changes."""
    own = {each.name for each in fields(TrainConfig)} - {"head_start", "knobs"}
    values = {name: value for name, value in candidate.values.items() if name in own}
    others = {name: value for name, value in candidate.values.items() if name not in BY_NAME}
    return TrainConfig(**{**base, **values}, knobs=others, head_start=candidate.head)


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
        if what.or_zero and preset == 0:
            return preset
        value = min(max(float(preset), what.low), what.high)
        return round(value) if what.integer else value
    if isinstance(what, Choice):
        return preset if preset in what.values else what.values[0]
    return what


def _shown(bound: Value) -> str:
    return f"{bound:g}" if isinstance(bound, int | float) and not isinstance(bound, bool) else repr(bound)
