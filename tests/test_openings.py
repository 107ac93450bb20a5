"""What a search begins with: probes that are worth it, kept for the next session, and the trials that start from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from test_probe import HEADS, Setup, images
from toy_training import CONVNET, CPU

from autoft.errors import RunError
from autoft.events import Event
from autoft.files import read_json, write_json
from autoft.openings import HEADS_SECONDS, Probed, openings, predict_seconds, probe_once, worth_probing
from autoft.space import Space, build_space, suggest
from autoft.specs import BackboneRequest, Choice, Range
from autoft.testing import toy

# --- whether and once -------------------------------------------------------------------------------


def test_probe_of_an_only_backbone_is_worth_a_twentieth_of_the_search() -> None:
    assert worth_probing(train=50, validation=500, trials=8, epochs=30)
    assert worth_probing(train=1600, validation=600, trials=4, epochs=4)
    assert not worth_probing(train=1600, validation=600, trials=1, epochs=4)
    assert not worth_probing(train=1600, validation=600, trials=4, epochs=1)
    # of many samples only 20,000 are taken
    assert worth_probing(train=2_000_000, validation=1000, trials=1, epochs=1)


def test_seconds_are_predicted_from_a_few_samples() -> None:
    setup = images()
    assert predict_seconds(setup.worker, setup.backbone, setup.objective, device=CPU) > HEADS_SECONDS


def once(setup: Setup, folder: Path, labels: tuple[str, ...] = ("toy/mlp",)) -> tuple[list[Probed], list[Event]]:
    told = list[Event]()
    backbones = [setup.backbone, CONVNET][: len(labels)]
    found = probe_once(
        folder / "probe.json",
        folder / "probe",
        labels,
        backbones,
        setup.objective,
        setup.worker,
        told.append,
        device=CPU,
        seed=0,
    )
    return found, told


def test_run_probes_once_and_remembers(tmp_path: Path) -> None:
    setup = images()
    found, told = once(setup, tmp_path)
    assert [each.head for each in found] == ["0.safetensors"]
    assert len(told) == 1
    assert once(setup, tmp_path) == (found, [])


def test_probes_of_a_run_made_before_heads_were_kept_have_none(tmp_path: Path) -> None:
    old = {"backbone": "toy/mlp", "knn": 0.5, "linear": 0.6, "reason": None, "kept": True}
    write_json(tmp_path / "probe.json", {"probes": [old]})
    (found,), _ = once(images(), tmp_path)
    assert (found.kept, found.head) == (True, None)


def test_damaged_or_foreign_probes_are_a_clear_error(tmp_path: Path) -> None:
    setup = images()
    once(setup, tmp_path)
    with pytest.raises(RunError, match=r"must be of toy/other, but is of toy/mlp"):
        once(setup, tmp_path, ("toy/other",))
    content = read_json(tmp_path / "probe.json")
    del content["probes"][0]["kept"]
    write_json(tmp_path / "probe.json", content)
    with pytest.raises(RunError, match=r"probe\.json is damaged: .*kept"):
        once(setup, tmp_path)


# --- the first trials -------------------------------------------------------------------------------


def offered(
    wanted: dict[str, Any] | None = None, backbones: int = 1, stages: tuple[int, ...] = (3, 4), **given: Any
) -> Space:
    pretrained = [toy.resolve(BackboneRequest(name, "pretrained")) for name in ("mlp", "convnet")][:backbones]
    heads = [f"{number}.safetensors" for number in range(backbones)]
    space, problems = build_space(
        wanted or {},
        HEADS["image-classification"],
        pretrained,
        stages[:backbones],
        augmentation="none",
        **{"heads": heads, **given},
    )
    assert problems == []
    return space


def test_trials_behind_the_presets_start_from_the_probes_head() -> None:
    space = offered()
    tuned, linear = openings(space, [0.5], "maximize")
    assert (tuned.role, linear.role) == ("lp-ft", "probe")
    assert tuned.params == space.preset_of(0) | {"head_start": "probe", "head_multiplier": 1.0}
    assert linear.params == tuned.params | {"freeze_depth": 3}
    for opening in (tuned, linear):
        candidate = suggest(optuna.trial.FixedTrial(opening.params), space)
        assert candidate.head == "0.safetensors"
    assert candidate.values["freeze_depth"] == 3


def test_best_probe_opens_and_depth_may_be_a_fraction() -> None:
    space = offered(backbones=2)
    found = openings(space, [0.5, 0.9], "maximize")
    assert [one.params["backbone"] for one in found] == ["toy/convnet"] * 2 + ["toy/mlp"]
    assert [one.role for one in found] == ["lp-ft", "probe", "lp-ft"]
    assert openings(space, [0.5, 0.9], "minimize")[0].params["backbone"] == "toy/mlp"
    assert openings(space, [None, 0.1], "minimize")[0].params["backbone"] == "toy/convnet"
    depths = [suggest(optuna.trial.FixedTrial(one.params), space).values["freeze_depth"] for one in found]
    assert depths == [0, 4, 0]


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        (Range(0.1, 30.0), 1.0),
        (Range(2.0, 30.0), 2.0),
        (Range(0.1, 0.5), 0.5),
        (Choice((1.0, 10.0)), 1.0),
        (Choice((10.0, 5.0)), 10.0),
    ],
)
def test_head_that_has_learned_gets_no_higher_rate_where_the_study_allows_it(wanted: Any, value: float) -> None:
    (tuned, _) = openings(offered({"head_multiplier": wanted}), [0.5], "maximize")
    assert tuned.params["head_multiplier"] == value


def test_what_the_study_rules_out_opens_nothing() -> None:
    assert openings(offered(heads=[None]), [0.5], "maximize") == []
    assert openings(offered({"head_start": "fresh"}), [0.5], "maximize") == []
    (fixed, _) = openings(offered({"head_multiplier": 5.0}), [0.5], "maximize")
    assert "head_multiplier" not in fixed.params
    assert [one.role for one in openings(offered({"freeze_depth": 0}), [0.5], "maximize")] == ["lp-ft"]
    assert [one.role for one in openings(offered({"freeze_depth": Range(0, 2)}), [0.5], "maximize")] == ["lp-ft"]
    (_, linear) = openings(offered({"freeze_depth": Choice((0, "all"))}), [0.5], "maximize")
    assert linear.params["freeze_depth"] == "all"
