"""The catalog: looking names up, and naming the plugins that might have provided what is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoft.catalog import Catalog
from autoft.errors import BackboneError, DataError, PluginError
from autoft.plugin_record import PluginInfo, Provided
from autoft.specs import Backbone, BackboneFamily, BackboneRequest, DataFormat

OWN = PluginInfo("own", "own", "autoft", "0.1.0", "ok", provides=(Provided("family", "timm", ""),))
BROKEN = PluginInfo("foo", "foo", "foo-pkg", "1.0", "broken", "hook `autoft_heads` raised: ValueError: oops")
LEFT_OUT = PluginInfo("bar", "bar", "bar-pkg", "2.0", "left out", "--no-plugins")


def backbone(request: BackboneRequest) -> Backbone:
    unused: Any = None
    return Backbone(
        name=f"timm/{request.model}",
        modality="image",
        weights=request.weights,
        features="pooled",
        inputs=("image",),
        preprocessing=unused,
        build=unused,
        stages=unused,
        feature_size=unused,
    )


def family(resolve: Callable[[BackboneRequest], Any] = backbone, name: str = "timm") -> BackboneFamily:
    return BackboneFamily(name, "image", resolve, models=list, suggest=lambda modality, millions: [])


def form(name: str, detect: Callable[[Path], bool]) -> DataFormat:
    def load(path: Path, options: Any) -> Any:
        raise AssertionError("looking up must not load")

    return DataFormat(name, "image", detect, load, help=f"help of {name}")


def catalog(*formats: DataFormat, resolve: Callable[[BackboneRequest], Any] = backbone) -> Catalog:
    provides = (*OWN.provides, *(Provided("data", known.name, "") for known in formats))
    plugins = (replace(OWN, provides=provides), BROKEN, LEFT_OUT)
    return Catalog(families={"timm": family(resolve)}, data={known.name: known for known in formats}, plugins=plugins)


def test_known_names_are_returned() -> None:
    known = catalog(form("folder", lambda path: True))
    assert known.family("timm").name == "timm"
    assert known.data_format("folder").name == "folder"


@pytest.mark.parametrize(
    ("look_up", "noun"),
    [
        (lambda known: known.family("tim"), "backbone family"),
        (lambda known: known.head("tim"), "head"),
        (lambda known: known.data_format("tim"), "data format"),
    ],
)
def test_unknown_name_names_the_plugins_that_might_have_provided_it(look_up: Callable[[Catalog], object], noun: str) -> None:
    with pytest.raises(PluginError) as caught:
        look_up(catalog())
    assert caught.value.message == (
        f"{noun} must be one that is installed, but got 'tim'\n"
        "  plugin foo (foo-pkg 1.0) is broken: hook `autoft_heads` raised: ValueError: oops; it may have provided it\n"
        "  plugin bar (bar-pkg 2.0) was left out: --no-plugins; it may have provided it"
    )


def test_sound_plugins_are_not_suspected() -> None:
    with pytest.raises(PluginError) as caught:
        Catalog(plugins=(OWN,)).head("tags")
    assert "may have provided" not in str(caught.value)


@pytest.mark.parametrize(
    ("known", "name", "hint"),
    [
        (Catalog({"timm": family()}, plugins=(OWN,)), "tim", "did you mean `timm`?"),
        (Catalog({"timm": family()}, plugins=(OWN,)), "zzz", "installed: timm; `autoft plugins` says where each comes"),
        (Catalog(plugins=(OWN,)), "timm", "none is installed; `autoft plugins`"),
        (Catalog(), "timm", "autoft's own plugins were not found either"),
    ],
)
def test_unknown_name_comes_with_the_next_step(known: Catalog, name: str, hint: str) -> None:
    with pytest.raises(PluginError) as caught:
        known.family(name)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)


def test_origin_is_the_plugin_that_provides_a_spec() -> None:
    known = catalog(form("folder", lambda path: True))
    origin = known.origin("data", "folder")
    assert origin is not None
    assert origin.package == "autoft"
    assert known.origin("head", "folder") is None


def test_backbone_name_is_split_at_the_first_slash() -> None:
    requests = []

    def resolve(request: BackboneRequest) -> Backbone:
        requests.append(request)
        return backbone(request)

    found = catalog(resolve=resolve).resolve_backbone("timm/hub/model", weights="none", image_size=32, typical_size=28)
    assert found.name == "timm/hub/model"
    assert requests == [BackboneRequest("hub/model", "none", 32, 28)]


@pytest.mark.parametrize("name", ["resnet18", "timm/", "/resnet18", ""])
def test_backbone_name_without_family_or_model_is_an_error(name: str) -> None:
    with pytest.raises(BackboneError, match="must be named FAMILY/MODEL") as caught:
        catalog().resolve_backbone(name)
    assert caught.value.hint is not None
    assert "timm/" in caught.value.hint


def test_model_given_without_its_family_is_shown_with_it() -> None:
    with pytest.raises(BackboneError, match="timm/resnet18"):
        catalog().resolve_backbone("resnet18")


def test_family_that_fails_is_named() -> None:
    def resolve(request: BackboneRequest) -> Backbone:
        raise KeyError("surprise")

    with pytest.raises(PluginError, match=r"backbone family timm of plugin own .* `resolve` raised KeyError: 'surprise'"):
        catalog(resolve=resolve).resolve_backbone("timm/resnet18")


def test_family_that_returns_something_else_is_named() -> None:
    with pytest.raises(PluginError, match="`resolve` must return a Backbone, but returned str"):
        catalog(resolve=lambda request: "resnet18").resolve_backbone("timm/resnet18")


def test_familys_own_error_is_passed_on() -> None:
    def resolve(request: BackboneRequest) -> Backbone:
        raise BackboneError("unknown model")

    with pytest.raises(BackboneError, match="unknown model"):
        catalog(resolve=resolve).resolve_backbone("timm/resnet18")


def test_one_format_must_claim_the_data(tmp_path: Path) -> None:
    known = catalog(form("folder", Path.is_dir), form("file", Path.is_file))
    assert known.detect_data(tmp_path).name == "folder"


def test_data_of_no_format_lists_formats_and_broken_plugins(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        catalog(form("file", Path.is_file)).detect_data(tmp_path)
    assert f"no installed data format recognizes {tmp_path}" in caught.value.message
    assert "\n  file: help of file" in caught.value.message
    assert "plugin foo (foo-pkg 1.0) is broken" in caught.value.message


def test_looser_format_gives_way_to_those_that_go_before_it(tmp_path: Path) -> None:
    pairs = replace(form("pairs", Path.is_dir), before=("folder", "unknown"))
    assert catalog(form("folder", Path.is_dir), pairs).detect_data(tmp_path).name == "pairs"
    shy = replace(pairs, detect=Path.is_file)  # it must claim the path itself
    assert catalog(form("folder", Path.is_dir), shy).detect_data(tmp_path).name == "folder"
    with pytest.raises(DataError, match="looks like 2"):  # each before the other: neither wins
        catalog(replace(form("folder", Path.is_dir), before=("pairs",)), pairs).detect_data(tmp_path)


def test_data_of_several_formats_asks_which(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"looks like 2: a .plugin own .*, b") as caught:
        catalog(form("a", Path.is_dir), form("b", Path.is_dir)).detect_data(tmp_path)
    assert caught.value.hint is not None
    assert "data.plugin" in caught.value.hint


def test_data_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data must exist"):
        catalog(form("file", Path.is_file)).detect_data(tmp_path / "missing")


@pytest.mark.parametrize("others", [[], [form("folder", Path.is_dir)]])
def test_format_that_fails_to_detect_is_named(others: list[DataFormat], tmp_path: Path) -> None:
    def detect(path: Path) -> bool:
        raise IndexError("out of range")

    with pytest.raises(PluginError, match=r"data format bad of plugin own .* `detect` raised IndexError: out of range"):
        catalog(form("bad", detect), *others).detect_data(tmp_path)
