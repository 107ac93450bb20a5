"""The space asks the preset first, stays within what the study allows, and resolves depths to whole stages."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace

import optuna
import pytest

from autoft.builtin.heads import autoft_heads
from autoft.knobs import BY_NAME, SETTINGS
from autoft.space import (
    ALL,
    Candidate,
    Searched,
    Space,
    build_space,
    check_values,
    knobs_of,
    names,
    place_of,
    scale_of,
    suggest,
    train_config,
)
from autoft.specs import Backbone, BackboneRequest, Choice, Head, Knob, Range, Strategy
from autoft.testing import toy
from autoft.train import TrainConfig

HEAD: Head = autoft_heads()[0]
CONVNET: Backbone = toy.resolve(BackboneRequest("convnet", "pretrained"))
MLP: Backbone = toy.resolve(BackboneRequest("mlp", "pretrained"))


def space_of(
    wanted: Mapping[str, Searched] | None = None, backbones: tuple[Backbone, ...] = (CONVNET,), **changes: object
) -> Space:
    stages = tuple({"toy/convnet": 4, "toy/mlp": 3}[backbone.name] for backbone in backbones)
    space, problems = build_space(wanted or {}, HEAD, backbones, stages, **{"augmentation": "light", **changes})  # type: ignore[arg-type]
    assert problems == []
    return space


def problems_of(wanted: Mapping[str, Searched], backbones: tuple[Backbone, ...] = (CONVNET,)) -> list[str]:
    stages = tuple({"toy/convnet": 4, "toy/mlp": 3}[backbone.name] for backbone in backbones)
    return [str(problem) for problem in build_space(wanted, HEAD, backbones, stages, augmentation="light")[1]]


def ask(space: Space, count: int, seed: int = 0, enqueue: bool = False) -> list[Candidate]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    if enqueue:
        study.enqueue_trial(space.preset_of(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna only warns of an enqueued value outside its range
        return [suggest(study.ask(), space) for _ in range(count)]


# --- the preset -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbones", [(CONVNET,), (CONVNET, MLP)])
def test_first_trial_is_the_preset(backbones: tuple[Backbone, ...]) -> None:
    (first,) = ask(space_of(backbones=backbones), 1, enqueue=True)
    assert first.backbone == 0
    presets = {setting.name: setting.preset for setting in SETTINGS} | {knob.name: knob.default for knob in HEAD.knobs}
    assert first.values == {**presets, "augmentation": "light"}
    assert set(first.values) == names(HEAD)


def test_preset_can_be_asked_of_any_backbone() -> None:
    space = space_of(backbones=(CONVNET, MLP))
    assert space.preset_of(0)["backbone"] == "toy/convnet"
    assert space.preset_of(1)["backbone"] == "toy/mlp"
    assert "backbone" not in space_of().preset_of(0)


@pytest.mark.parametrize(
    ("wanted", "name", "value"),
    [
        (Range(1e-3, 1e-2, log=True), "learning_rate", 1e-3),
        (Range(1e-6, 1e-4, log=True), "learning_rate", 1e-4),
        (Range(1e-4, 1e-2, log=True), "learning_rate", 3e-4),
        (Range(2, 4), "freeze_depth", 2),
        (Range(0, 3), "freeze_depth", 0),
        (Choice((0.3, 0.2)), "dropout", 0.3),
        (Choice((0.3, 0.1)), "dropout", 0.1),
        (Choice(("standard", "none")), "augmentation", "standard"),
        (0.25, "dropout", 0.25),
        ("standard", "augmentation", "standard"),
    ],
)
def test_preset_moves_into_what_the_study_searches(wanted: Searched, name: str, value: object) -> None:
    (first,) = ask(space_of({name: wanted}), 1, enqueue=True)
    assert first.values[name] == value


def test_from_random_weights_the_preset_trains_everything_evenly() -> None:
    space = space_of(backbones=(replace(CONVNET, weights="none"),))
    fixed = {name: what for name, what in space.parameters.items() if not isinstance(what, Range | Choice)}
    assert {name: fixed[name] for name in ("freeze_depth", "layer_decay", "head_multiplier")} == {
        "freeze_depth": 0,
        "layer_decay": 1.0,
        "head_multiplier": 1.0,
    }
    assert space.preset["learning_rate"] == 1e-3
    assert isinstance(space.parameters["learning_rate"], Range)


def test_one_pretrained_backbone_among_random_ones_keeps_the_usual_space() -> None:
    space = space_of(backbones=(replace(CONVNET, weights="none"), MLP))
    assert isinstance(space.parameters["layer_decay"], Range)
    assert space.preset["learning_rate"] == 3e-4


def test_study_may_still_search_what_random_weights_fix() -> None:
    space = space_of({"layer_decay": Range(0.5, 0.7)}, (replace(CONVNET, weights="none"),))
    assert space.parameters["layer_decay"] == Range(0.5, 0.7)
    assert space.preset["layer_decay"] == 0.7


# --- suggestions ------------------------------------------------------------------------------------


def test_suggestions_stay_within_the_space_and_repeat_with_the_seed() -> None:
    space = space_of({"learning_rate": Range(1e-4, 1e-3, log=True), "freeze_depth": Range(1, 3), "dropout": 0.2})
    found = ask(space, 60)
    assert ask(space, 60) == found
    assert {candidate.values["freeze_depth"] for candidate in found} == {1, 2, 3}
    assert all(1e-4 <= candidate.values["learning_rate"] <= 1e-3 for candidate in found)  # type: ignore[operator]
    assert {candidate.values["dropout"] for candidate in found} == {0.2}
    assert len({candidate.values["learning_rate"] for candidate in found}) == 60


def test_depth_of_one_backbone_covers_every_stage() -> None:
    found = {candidate.values["freeze_depth"] for candidate in ask(space_of(), 80)}
    assert found == {0, 1, 2, 3, 4}
    assert all(type(depth) is int for depth in found)


def test_depth_is_a_fraction_for_backbones_of_different_length() -> None:
    space = space_of(backbones=(CONVNET, MLP))
    assert space.parameters["freeze_fraction"] == Range(0.0, 1.0)
    assert "freeze_depth" not in space.parameters
    found = ask(space, 200)
    for backbone, stages in ((0, 4), (1, 3)):
        depths = {candidate.values["freeze_depth"] for candidate in found if candidate.backbone == backbone}
        assert depths == set(range(stages + 1))
    assert not any("freeze_fraction" in candidate.values for candidate in found)


def test_depth_is_whole_stages_for_backbones_of_equal_length() -> None:
    space = space_of(backbones=(CONVNET, replace(CONVNET, name="toy/convnet", weights="none")))
    assert space.parameters["freeze_depth"] == Range(0, 4, integer=True)


@pytest.mark.parametrize(("backbone", "depth"), [(CONVNET, 4), (MLP, 3)])
@pytest.mark.parametrize("wanted", [ALL, Choice((ALL,))])
def test_all_means_every_stage(backbone: Backbone, depth: int, wanted: Searched) -> None:
    (found,) = ask(space_of({"freeze_depth": wanted}, (backbone,)), 1)
    assert found.values["freeze_depth"] == depth


def test_all_means_every_stage_of_whichever_backbone_is_chosen() -> None:
    found = ask(space_of({"freeze_depth": ALL}, (CONVNET, MLP)), 20)
    assert {(candidate.backbone, candidate.values["freeze_depth"]) for candidate in found} == {(0, 4), (1, 3)}


def test_range_up_to_all_starts_where_the_study_says() -> None:
    found = ask(space_of({"freeze_depth": Range(2, math.inf, integer=True)}), 60)
    assert {candidate.values["freeze_depth"] for candidate in found} == {2, 3, 4}


def test_fixed_space_asks_nothing() -> None:
    space = space_of(space_of().preset)
    assert space.preset_of(0) == {}
    assert ask(space, 2)[0] == ask(space, 2, seed=1)[1]


# --- what is wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (5, "space.freeze_depth: must be a whole number between 0 and 4 for toy/convnet, or `all`, but got 5"),
        (-1, "but got -1"),
        (1.5, "but got 1.5"),
        (True, "but got True"),
        ("most", "but got 'most'"),
        (Range(0, 9), "but got 9"),
        (Choice((0, 7)), "but got 7"),
    ],
)
def test_impossible_depth_is_refused_with_rule_and_value(wanted: Searched, message: str) -> None:
    (problem,) = problems_of({"freeze_depth": wanted})
    assert message in problem
    assert "hint: `autoft plugins show toy/convnet` lists its stages" in problem


def test_depth_must_fit_the_shortest_backbone() -> None:
    (problem,) = problems_of({"freeze_depth": 4}, (CONVNET, MLP))
    assert "between 0 and 3 for toy/mlp" in problem


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        ("learning_rate", Range(-1.0, 1e-2), "must be a number from 1e-08 to 10, but got -1"),
        ("learning_rate", 11, "but got 11"),
        ("learning_rate", "fast", "but got 'fast'"),
        ("learning_rate", True, "but got True"),
        ("weight_decay", math.nan, "but got nan"),
        ("dropout", Range(0.0, 1.0), "must be a number from 0 to 0.95, but got 1"),
        ("dropout", Choice((0.1, 2.0)), "but got 2"),
        ("imbalance", "heavy", "must be one of none, weights, focal, resample, but got 'heavy'"),
        ("imbalance", Range(0, 1), "must be one of none, weights, focal, resample"),
        ("augmentation", "wild", "must be one of none, light, standard, trivial, but got 'wild'"),
        ("augmentation", Choice(("none", "wild")), "but got 'wild'"),
    ],
)
def test_value_out_of_bounds_is_refused_with_rule_and_value(name: str, wanted: Searched, message: str) -> None:
    (problem,) = problems_of({name: wanted})
    assert problem.startswith(f"space.{name}: ")
    assert message in problem


def test_all_problems_are_reported_together() -> None:
    found = problems_of({"learning_rate": 11, "dropout": 1, "freeze_depth": 9})
    assert len(found) == 3


def test_values_can_be_checked_before_the_backbones_are_known() -> None:
    assert check_values({"augmentation": "wild", "freeze_depth": 99}, HEAD) == []
    assert len(check_values({"augmentation": "wild"}, HEAD, policies=("none",))) == 1


def test_defaults_lie_within_their_own_limits() -> None:
    assert len(SETTINGS) >= 5
    defaults: dict[str, Searched] = {item.name: item.search for item in SETTINGS if item.search is not None}
    defaults |= {f"{item.name}": item.preset for item in SETTINGS if item.search is None}
    assert check_values(defaults, HEAD) == []
    assert check_values({setting.name: setting.preset for setting in SETTINGS}, HEAD) == []


# --- to the trainer ---------------------------------------------------------------------------------


def test_candidate_becomes_a_training_configuration() -> None:
    (first,) = ask(space_of({"learning_rate": 1e-3, "dropout": 0.3}), 1, enqueue=True)
    config = train_config(first, HEAD, {"epochs": 5, "seed": 3})
    assert config == TrainConfig(
        learning_rate=1e-3,
        epochs=5,
        batch_size=32,
        seed=3,
        freeze_depth=0,
        head_multiplier=10.0,
        layer_decay=0.9,
        weight_decay=1e-2,
        knobs={"dropout": 0.3, "label_smoothing": 0.0, "imbalance": "none", "focal_gamma": 2.0},
    )


# --- where the head starts --------------------------------------------------------------------------


def test_head_start_is_searched_only_where_every_backbone_has_a_head() -> None:
    both = (CONVNET, MLP)
    assert space_of(backbones=both, heads=["0.safetensors", "2.safetensors"]).parameters["head_start"] == Choice(
        ("fresh", "probe")
    )
    for heads in (None, [], ["0.safetensors", None]):
        space = space_of(backbones=both, heads=heads)
        assert space.parameters["head_start"] == "fresh"
        assert "head_start" not in space.preset_of(0)


def test_head_start_names_the_backbones_own_file() -> None:
    space = space_of(backbones=(CONVNET, MLP), heads=["0.safetensors", "2.safetensors"])
    preset = space.preset_of(1)
    assert preset["head_start"] == "fresh"
    for start, file in (("fresh", None), ("probe", "2.safetensors")):
        candidate = suggest(optuna.trial.FixedTrial(preset | {"head_start": start}), space)
        assert candidate.head == file
        assert train_config(candidate, HEAD, {"epochs": 1, "batch_size": 1}).head_start == file


def test_study_may_fix_where_the_head_starts() -> None:
    fixed = space_of({"head_start": "probe"}, heads=["0.safetensors"])
    assert ask(fixed, 1, enqueue=True)[0].head == "0.safetensors"
    off = space_of({"head_start": "fresh"}, heads=["0.safetensors"])
    assert {one.head for one in ask(off, 5)} == {None}
    scratch = toy.resolve(BackboneRequest("convnet", "none"))
    assert space_of(backbones=(scratch,), heads=["0.safetensors"]).parameters["head_start"] == "fresh"
    asked = space_of({"head_start": "probe"}, backbones=(scratch,), heads=["0.safetensors"])
    assert ask(asked, 1, enqueue=True)[0].head == "0.safetensors"


@pytest.mark.parametrize("wanted", ["probe", Choice(("fresh", "probe"))])
def test_probes_head_that_is_not_there_cannot_be_asked_for(wanted: Searched) -> None:
    _, (problem,) = build_space({"head_start": wanted}, HEAD, (CONVNET,), (4,), augmentation="light", heads=[None])
    assert str(problem).startswith("space.head_start: must be `fresh`, since no probe of toy/convnet has a head")
    assert "probe.json" in str(problem.hint)
    assert problems_of({"head_start": wanted}) == []  # not probed yet
    assert build_space({"head_start": "fresh"}, HEAD, (CONVNET,), (4,), augmentation="light", heads=[None])[1] == []


def test_unknown_start_is_refused() -> None:
    (problem,) = problems_of({"head_start": "best"})
    assert "must be one of fresh, probe, but got 'best'" in problem


# --- small and full, zero, settings without effect ---------------------------------------------------


def test_full_space_searches_more_than_the_small_one_and_says_what() -> None:
    small, full = space_of(), space_of(level="full")
    more = set(full.preset_of(0)) - set(small.preset_of(0))
    assert more == full.extra
    assert {"l2_sp", "averaging", "mixup", "batch_size", "augmentation"} <= more
    assert small.extra == frozenset()
    assert not more & {"sam", "r_drop", "optimizer", "ema_decay"}  # only where asked
    (first,) = ask(full, 1, enqueue=True)
    assert first.values == ask(small, 1, enqueue=True)[0].values


def test_zero_has_a_quarter_of_the_scale_and_the_rest_is_searched_as_ever() -> None:
    for wanted in (Range(0.1, 10.0, log=True, or_zero=True), Range(0.5, 2.0, or_zero=True)):
        found = [float(candidate.values["l2_sp"]) for candidate in ask(space_of({"l2_sp": wanted}), 400)]
        off = [value for value in found if value == 0]
        assert 60 < len(off) < 140
        assert all(wanted.low <= value <= wanted.high for value in found if value)
    found = [float(candidate.values["l2_sp"]) for candidate in ask(space_of({"l2_sp": Range(0.5, 2.0)}), 50)]
    assert 0.0 not in found


@pytest.mark.parametrize("what", [Range(1e-3, 10.0, log=True, or_zero=True), Range(0.5, 2.0, or_zero=True)])
def test_zero_of_a_preset_is_zero_again_when_it_is_asked(what: Range) -> None:
    low, high = scale_of(what)
    assert low < float(place_of(what, 0.0)) < what.low
    assert high == what.high
    assert place_of(what, 0.7) == 0.7
    (first,) = ask(space_of({"l2_sp": what}), 1, enqueue=True)
    assert first.values["l2_sp"] == 0.0


def test_words_leave_a_setting_out_or_take_it_in() -> None:
    space = space_of({"layer_decay": "preset", "sam": "search", "imbalance": "search"})
    assert space.parameters["layer_decay"] == 0.9
    assert space.parameters["sam"] == BY_NAME["sam"].search
    assert space.parameters["imbalance"] == Choice(("none", "weights", "focal", "resample"))
    full = space_of({"mixup": "preset", "cutmix": Range(0.2, 0.3)}, level="full")
    assert full.parameters["mixup"] == 0.0
    assert full.parameters["cutmix"] == Range(0.2, 0.3)
    assert not full.extra & {"mixup", "cutmix"}


def test_targets_that_lie_in_the_image_have_no_mixup_and_no_cutmix() -> None:
    places = replace(HEAD, move=lambda target, warp: target)
    space, problems = build_space({}, places, (CONVNET,), (4,), augmentation="light", level="full")
    assert problems == []
    assert not {"mixup", "cutmix"} & space.extra
    assert "erasing" in space.extra
    _, problems = build_space({"mixup": 0.4}, places, (CONVNET,), (4,), augmentation="light")
    assert [problem.message for problem in problems] == [
        f"needs targets that are one for a whole image, but those of {HEAD.name} lie in it"
    ]
    assert build_space({"mixup": 0.4}, HEAD, (CONVNET,), (4,), augmentation="light")[1] == []


def test_setting_without_effect_has_its_idle_value_so_that_equal_trainings_are_equal() -> None:
    space = space_of({"averaging": "search", "ema_decay": "search", "optimizer": "search", "momentum": "search"})
    found = [candidate.values for candidate in ask(space, 120)]
    assert {values["averaging"] for values in found} == {"none", "ema", "swa"}
    assert len({values["ema_decay"] for values in found if values["averaging"] == "ema"}) > 20
    assert {values["ema_decay"] for values in found if values["averaging"] != "ema"} == {0.99}
    assert {values["momentum"] for values in found if values["optimizer"] == "adamw"} == {0.9}


def test_setting_that_no_backbone_can_use_is_not_searched() -> None:
    plain = space_of(backbones=(MLP,), level="full", traits=[frozenset()])
    able = space_of(level="full", traits=[frozenset({"batch_norm", "stochastic_depth"})])
    assert {"batch_norm", "stochastic_depth"} <= set(able.preset_of(0))
    assert not {"batch_norm", "stochastic_depth"} & set(plain.preset_of(0))
    assert isinstance(plain.parameters["l2_sp"], Range)


def test_setting_that_one_backbone_lacks_has_no_effect_there() -> None:
    space = space_of(backbones=(CONVNET, MLP), level="full", traits=[frozenset({"batch_norm"}), frozenset()])
    found = ask(space, 80)
    assert {candidate.values["batch_norm"] for candidate in found if candidate.backbone == 0} == {"train", "frozen"}
    assert {candidate.values["batch_norm"] for candidate in found if candidate.backbone == 1} == {"train"}


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (
            {"stochastic_depth": 0.1},
            "space.stochastic_depth: needs a backbone with layers for stochastic depth, but there is none",
        ),
        ({"batch_norm": "frozen"}, "space.batch_norm: needs a backbone with BatchNorm, but there is none"),
        ({"adversarial": 0.1}, "space.adversarial: needs text data, but this is image data"),
        ({"schedule": "staircase"}, "space.schedule: must be one of cosine, linear, constant, wsd, but got 'staircase'"),
        ({"batch_size": 7.5}, "space.batch_size: must be a whole number from 1 to 1e+06, but got 7.5"),
        ({"strategy": "lora"}, "space.strategy: must be one of full, but got 'lora'"),
    ],
)
def test_setting_that_cannot_have_an_effect_is_refused(wanted: Mapping[str, Searched], told: str) -> None:
    _, (problem,) = build_space(wanted, HEAD, (CONVNET,), (4,), augmentation="light", traits=[frozenset()])
    assert told in str(problem)


def test_setting_that_has_no_effect_may_still_be_off() -> None:
    wanted = {"stochastic_depth": 0.0, "batch_norm": "preset"}
    assert build_space(wanted, HEAD, (CONVNET,), (4,), augmentation="light", traits=[frozenset()])[1] == []


def test_batch_size_is_searched_around_the_chosen_one_within_the_samples() -> None:
    space = space_of(level="full", trainer={"batch_size": 16}, samples=24)
    assert space.parameters["batch_size"] == Range(8, 24, log=True, integer=True)
    assert space.preset["batch_size"] == 16
    sizes = {candidate.values["batch_size"] for candidate in ask(space, 100)}
    assert all(type(size) is int for size in sizes)
    assert len(sizes) > 8


def test_what_the_trainer_section_says_is_not_searched() -> None:
    space = space_of(level="full", trainer={"batch_size": 16, "warmup": 0.05}, fixed=["warmup"])
    assert space.parameters["warmup"] == 0.05
    assert isinstance(space.parameters["batch_size"], Range)
    both = space_of({"warmup": Range(0.1, 0.2)}, level="full", trainer={"warmup": 0.05}, fixed=["warmup"])
    assert both.parameters["warmup"] == Range(0.1, 0.2)


def test_knobs_of_strategies_have_an_effect_only_with_them() -> None:
    rank, alpha = (Knob(name, 8, Range(1, 64, log=True, integer=True), name, Range(1, 512)) for name in ("rank", "alpha"))

    def strategy(name: str, *knobs: Knob) -> Strategy:
        return Strategy(name, check=None, apply=None, merge=None, files=None, knobs=knobs)  # type: ignore[arg-type]

    several = (strategy("lora", rank, alpha), strategy("dora", rank))
    assert [knob.when for knob in knobs_of(several)] == [("strategy", ("lora", "dora")), ("strategy", ("lora",))]
    space = space_of({"strategy": Choice(("full", "lora", "dora"))}, strategies=several)
    found = [candidate.values for candidate in ask(space, 100)]
    assert {values["rank"] for values in found if values["strategy"] == "full"} == {8}
    assert len({values["rank"] for values in found if values["strategy"] == "dora"}) > 10
    assert {values["alpha"] for values in found if values["strategy"] == "dora"} == {8}
    config = train_config(next(each for each in ask(space, 100) if each.values["strategy"] == "lora"), HEAD, {"epochs": 1})
    assert config.strategy == "lora"
    assert set(config.knobs) == {knob.name for knob in HEAD.knobs} | {"rank", "alpha"}


def test_told_of_a_candidate_are_extra_settings_only_where_unlike_the_preset() -> None:
    space = space_of(level="full")
    (first,) = ask(space, 1, enqueue=True)
    assert set(space.told(first)) == set(space_of().preset_of(0))
    told = space.told(replace(first, values={**first.values, "mixup": 0.4}))
    assert told["mixup"] == 0.4
