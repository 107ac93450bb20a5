"""The presets of backbones: what they hold, how a study names them, and what is said where they cannot be had."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from commands import autoft

from autoft.builtin import timm as timm_family
from autoft.builtin import transformers as transformers_family
from autoft.catalog import Catalog
from autoft.config import StudyConfig
from autoft.discovery import discover
from autoft.errors import ConfigError, PluginError
from autoft.events import Event
from autoft.prepare import Prepared, load_config, prepare
from autoft.presets import NAMES, PRESETS, Member, listed, members_of, objection

ROOT = Path(__file__).resolve().parents[1]
MEMBERS: tuple[Member, ...] = (
    *timm_family.PRESETS,
    *transformers_family.TEXT_PRESETS,
    *transformers_family.TAG_PRESETS,
)


@pytest.fixture
def only_toys(toys: None) -> Catalog:
    catalog = discover()
    return replace(catalog, families=MappingProxyType({"toy": catalog.families["toy"]}))


def read(target: Path, *overrides: str) -> StudyConfig:
    return load_config(target, overrides)[0]


def prepared(target: Path, catalog: Catalog, *overrides: str) -> tuple[Prepared, list[Event]]:
    told: list[Event] = []
    return prepare(read(target, *overrides), catalog, told.append), told


# --- what they hold ---------------------------------------------------------------------------------


def test_every_preset_holds_backbones_for_every_kind_of_data_and_none_twice() -> None:
    found = listed(discover(enabled=False))
    assert {each.preset for each in found} == set(NAMES)
    for each in found:
        assert each.backbones, each
        assert len(set(each.backbones)) == len(each.backbones), each


def test_models_of_timm_are_in_its_registry_with_pretrained_weights_and_as_large_as_told() -> None:
    import timm

    known = set(timm.list_pretrained())
    for member in timm_family.PRESETS:
        name = member.name.removeprefix("timm/")
        assert name in known, name
        model = timm.create_model(name, num_classes=0, pretrained=False)
        assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(member.millions, abs=0.06)


def test_licences_allow_commercial_use() -> None:
    assert {member.licence for member in MEMBERS} <= {"apache-2.0", "mit"}


def test_the_guide_lists_every_member_as_it_is() -> None:
    guide = (ROOT / "docs" / "user-guide.md").read_text(encoding="utf-8")
    for member in MEMBERS:
        line = f"| `{member.name}` | {member.millions:g} | {member.licence} | {', '.join(member.presets)} | {member.why} |"
        assert line in guide, line
    for preset in PRESETS:
        assert f"| `{preset.name}` | {preset.trials} | {preset.help} |" in guide


def test_fast_is_smaller_than_best() -> None:
    def mean(members: tuple[Member, ...], preset: str) -> float:
        sizes = [member.millions for member in members if preset in member.presets]
        return sum(sizes) / len(sizes)

    for members in (timm_family.PRESETS, transformers_family.TEXT_PRESETS, transformers_family.TAG_PRESETS):
        assert mean(members, "fast") < mean(members, "balanced") < mean(members, "best")
        assert members_of(members, "other") == []


# --- in a study -------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["backbones=best", "backbones=[best]", "backbones=[{name: best}]"])
def test_preset_gives_way_to_its_models_and_brings_its_number_of_trials(
    toy_images: Path, only_toys: Catalog, written: str
) -> None:
    found, told = prepared(toy_images, only_toys, written)
    assert [backbone.name for backbone in found.backbones] == ["toy/convnet", "toy/mlp"]
    assert [entry.name for entry in found.config.backbones] == ["toy/convnet", "toy/mlp"]
    assert found.config.search.trials == 40
    assert [event.data["backbones"] for event in told if "preset" in event.data] == [["toy/convnet", "toy/mlp"]]


def test_study_wins_over_the_preset(toy_images: Path, only_toys: Catalog) -> None:
    found, _ = prepared(toy_images, only_toys, "backbones=[{name: best, image_size: 24}, toy/mlp]", "search.trials=3")
    assert found.config.search.trials == 3
    assert [(entry.name, entry.image_size) for entry in found.config.backbones] == [
        ("toy/convnet", 24),
        ("toy/mlp", 24),
        ("toy/mlp", None),
    ]


def test_model_that_is_named_beside_its_preset_is_searched_once(toy_images: Path, only_toys: Catalog) -> None:
    found, _ = prepared(toy_images, only_toys, "backbones=[best, toy/mlp]")
    assert [backbone.name for backbone in found.backbones] == ["toy/convnet", "toy/mlp"]


def test_resolved_study_names_the_models(toy_images: Path, only_toys: Catalog) -> None:
    found, _ = prepared(toy_images, only_toys, "backbones=fast")
    text = found.config.to_yaml()
    assert "toy/convnet" in text
    assert "fast" not in text.replace("fast_", "")


def test_all_models_that_cannot_be_had_are_named_together(
    toy_images: Path, only_toys: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoft.errors import BackboneError

    family = only_toys.families["toy"]

    def resolve(request: Any) -> Any:
        def fetch() -> None:
            raise BackboneError(f"the weights of {request.model} are nowhere")

        return replace(family.resolve(request), fetch=fetch)

    broken = replace(only_toys, families=MappingProxyType({"toy": replace(family, resolve=resolve)}))
    with pytest.raises(ConfigError) as raised:
        prepared(toy_images, broken, "backbones=best")
    message = str(raised.value)
    assert "2 models cannot" in message
    assert "the weights of convnet are nowhere" in message
    assert "the weights of mlp are nowhere" in message
    assert "HF_HOME" in message


@pytest.mark.parametrize(
    ("offers", "message"),
    [
        (lambda *asked: ["other/model"], "must return names such as toy/MODEL"),
        (lambda *asked: 1 / 0, "`presets` raised ZeroDivisionError"),
    ],
)
def test_plugin_that_offers_nonsense_is_named(only_toys: Catalog, offers: Callable[..., Any], message: str) -> None:
    family = replace(only_toys.families["toy"], presets=offers)
    catalog = replace(only_toys, families=MappingProxyType({"toy": family}))
    with pytest.raises(PluginError, match=message):
        catalog.offered("fast", "image", "image-classification")


def test_preset_to_which_nobody_offers_anything_is_refused(toy_images: Path, only_toys: Catalog) -> None:
    family = replace(only_toys.families["toy"], presets=lambda *asked: ())
    catalog = replace(only_toys, families=MappingProxyType({"toy": family}))
    with pytest.raises(ConfigError, match="no plugin offers one for image data to the preset fast"):
        prepared(toy_images, catalog, "backbones=fast")


def test_unknown_preset_is_refused_with_the_nearest_name() -> None:
    found = objection("balancd")
    assert found is not None
    assert found.hint == "did you mean `balanced`?"
    assert objection("fast") is None
    local = objection("fast", "weights.safetensors")
    assert local is not None
    assert "must be `pretrained` or `none`" in local.message


# --- the command ------------------------------------------------------------------------------------


def test_command_names_what_cannot_be_had_and_leaves_nothing(
    toy_images: Path, toy_env: dict[str, str], tmp_path: Path
) -> None:
    env = {**toy_env, "HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1"}
    found = autoft("search", toy_images, "--preset", "fast", "-o", tmp_path / "run", env=env)
    assert found.code == 2
    assert "2 models cannot" in found.err
    assert "timm/resnet18.a1_in1k" in found.err
    assert not (tmp_path / "run").exists()


def test_preset_and_backbone_exclude_each_other(toy_images: Path, toy_env: dict[str, str]) -> None:
    found = autoft("search", toy_images, "--preset", "fast", "-b", "toy/mlp", env=toy_env)
    assert found.code == 2
    assert "`--preset` names backbones itself" in found.err


def test_command_lists_what_presets_hold(toy_env: dict[str, str]) -> None:
    found = autoft("plugins", "presets", env=toy_env)
    assert found.code == 0
    assert re.search(r"^fast +images +timm/resnet18\.a1_in1k$", found.out, re.MULTILINE)
    assert re.search(r"^fast +images +toy/convnet$", found.out, re.MULTILINE)
    assert re.search(r"^best +strong models", found.out, re.MULTILINE)
