"""autoft's formats and families pass their checks, and one that breaks a rule is caught by it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoft.builtin import image_folder, table, timm
from autoft.errors import BackboneError, DataError, PluginError
from autoft.specs import Backbone, BackboneFamily, BackboneRequest, DataFormat, RawData, Sample
from autoft.testing import checks_for, data_checks, toy
from autoft.testing.kit import CheckFailed

FOLDER = image_folder.autoft_data()[0]
TABLE = table.autoft_data()[0]
FAMILY = toy.autoft_backbones()[0]


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("messages") / "messages.csv"
    toy.write_toy_csv(path)
    return path


def test_folders_of_images_pass(toy_images: Path) -> None:
    assert [result.message for check in checks_for(FOLDER, example=toy_images) if not (result := check.run()).passed] == []


def test_tables_pass(messages: Path) -> None:
    results = [check.run() for check in checks_for(TABLE, example=messages)]
    assert [result.id for result in results] == ["detect", "samples", "loads-again", "travels", "bad-data"]
    assert [result.message for result in results if not result.passed] == []


def test_format_without_an_example_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"image-folder got none\nhint: name some: .*--example PATH"):
        checks_for(FOLDER)
    with pytest.raises(PluginError, match=r"image-folder got .*gone"):
        checks_for(FOLDER, example=tmp_path / "gone")


# --- formats ----------------------------------------------------------------------------------------


def explode(path: Path) -> bool:
    raise UnicodeDecodeError("utf-8", b"", 0, 1, "no text")


@pytest.mark.parametrize(
    ("detect", "message"),
    [
        (lambda path: False, "`detect` must return True for the example"),
        (lambda path: path.is_dir(), "must claim its own kind alone, but claims an empty folder"),
        (lambda path: path.is_file() or "stripes" in path.name, "but claims a file of notes"),
        (lambda path: FOLDER.detect(path) or not path.exists(), "but claims a path that is not there"),
        (
            lambda path: FOLDER.detect(path) or explode(path),
            "`detect` must answer for any path, but fails for an empty folder",
        ),
    ],
    ids=["never", "empty", "notes", "missing", "crash"],
)
def test_detect_that_breaks_a_rule_is_caught(detect: Any, message: str, toy_images: Path) -> None:
    with pytest.raises(CheckFailed, match=message):
        data_checks.check_detect(replace(FOLDER, detect=detect), toy_images)


def loading(change: Any) -> DataFormat:
    """Folders of images whose data is changed by a function."""
    return replace(FOLDER, load=lambda path, options: change(FOLDER.load(path, options)))


def first(raw: RawData, **changes: Any) -> RawData:
    return replace(raw, samples=(replace(raw.samples[0], **changes), *raw.samples[1:]))


class Shrinking(tuple[Sample, ...]):
    def __len__(self) -> int:
        return 3


class Shuffled(tuple[Sample, ...]):
    def __getitem__(self, place: Any) -> Any:
        return super().__getitem__(-1 - place)


@pytest.mark.parametrize(
    ("format", "message"),
    [
        (loading(lambda raw: None), "`load` must return RawData, but returns a NoneType"),
        (loading(lambda raw: replace(raw, samples=())), "a sequence of at least one sample, but has 0"),
        (loading(lambda raw: replace(raw, samples=Shrinking(raw.samples))), "has 3 by `len` and 36 in a pass"),
        (loading(lambda raw: replace(raw, samples=Shuffled(raw.samples))), "must be the same in a pass and by their place"),
        (loading(lambda raw: first(raw, id=raw.samples[1].id)), "every sample must have an id of its own, but sample 1 is"),
        (loading(lambda raw: first(raw, content="")), "must have a hash of its content, but sample 0 is"),
        (loading(lambda raw: first(raw, split="dev")), "a split must be one of train, validation, test or None"),
        (loading(lambda raw: replace(raw, samples=("a.png",))), "must be an `autoft.specs.Sample`, but sample 0 is 'a.png'"),
        (loading(lambda raw: replace(raw, fingerprint="")), "`fingerprint` must be a word, but is ''"),
        (loading(lambda raw: replace(raw, modality="text")), "must be of the format's modality, image, but is text"),
    ],
    ids=["type", "empty", "length", "places", "ids", "content", "split", "sample", "fingerprint", "modality"],
)
def test_samples_that_break_a_rule_are_caught(format: DataFormat, message: str, toy_images: Path) -> None:
    with pytest.raises(CheckFailed, match=message):
        data_checks.check_samples(format, toy_images)


def shuffled(raw: RawData) -> RawData:
    return replace(raw, samples=tuple(random.Random().sample(list(raw.samples), len(raw.samples))))


def picky(path: Path, options: Mapping[str, Any]) -> RawData:
    if options["for_training"] is False:
        raise DataError("only for training")
    return FOLDER.load(path, options)


@pytest.mark.parametrize(
    ("format", "message"),
    [
        (loading(lambda raw: replace(raw, fingerprint=str(random.random()))), "but `fingerprint` differs"),
        (loading(shuffled), "must give the same samples in the same order, but does not"),
        (replace(FOLDER, load=picky), "the example must be readable, but is refused: only for training"),
    ],
    ids=["fingerprint", "order", "options"],
)
def test_loading_that_does_not_repeat_is_caught(format: DataFormat, message: str, toy_images: Path) -> None:
    with pytest.raises(CheckFailed, match=message):
        data_checks.check_loads_again(format, toy_images)


def test_samples_that_cannot_travel_are_caught(toy_images: Path) -> None:
    data_checks.check_travels(FOLDER, toy_images)
    with pytest.raises(CheckFailed, match="samples must survive pickling, as they travel to workers, but do not"):
        data_checks.check_travels(loading(lambda raw: first(raw, source=lambda: None)), toy_images)


class Lost(str):
    def __reduce__(self) -> Any:
        return str, ("lost",)


def test_samples_that_come_back_as_others_are_caught(toy_images: Path) -> None:
    with pytest.raises(CheckFailed, match="must come back from pickling as they were, but are others"):
        data_checks.check_travels(loading(lambda raw: first(raw, target=Lost("a"))), toy_images)


def careless(path: Path, options: Mapping[str, Any]) -> RawData:
    return replace(FOLDER.load(next(path.iterdir()).parent, options))


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (careless, "refused by a DataError, but StopIteration is raised"),
        (lambda path, options: RawData("image", "x", (), (), "f"), "must be refused by a DataError, but is taken"),
    ],
    ids=["crash", "taken"],
)
def test_empty_data_that_is_not_refused_well_is_caught(load: Any, message: str, toy_images: Path) -> None:
    data_checks.check_bad_data(FOLDER, toy_images)
    with pytest.raises(CheckFailed, match=message):
        data_checks.check_bad_data(replace(FOLDER, load=load), toy_images)


# --- families ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [FAMILY, timm.autoft_backbones()[0]], ids=lambda family: family.name)
def test_families_pass(family: BackboneFamily) -> None:
    results = [check.run() for check in checks_for(replace(family, modality="image"))]
    assert [result.id for result in results] == ["names", "unknown-model"]
    assert [(result.id, result.message) for result in results if not result.passed and result.id != "names"] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": lambda: ("convnet", "")}, "`models` must give names, but gives ''"),
        ({"suggest": lambda modality, limit: ("toy/mlp",)}, "must keep to the limit, but suggests toy/mlp where at most 0"),
        ({"suggest": lambda modality, limit: ("mlp",) if limit else ()}, "must be named toy/MODEL, but one is 'mlp'"),
        ({"suggest": lambda modality, limit: ("toy/big",) if limit else ()}, "must be among `models`, but big is not"),
    ],
    ids=["names", "limit", "prefix", "unknown"],
)
def test_names_that_break_a_rule_are_caught(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        data_checks.check_names(replace(FAMILY, **changes))


def curt(request: BackboneRequest) -> Backbone:
    raise BackboneError("no")


def lookup(request: BackboneRequest) -> Backbone:
    raise KeyError(request.model)


@pytest.mark.parametrize(
    ("resolve", "message"),
    [
        (curt, "the refusal of an unknown model must have a hint, but has none: no"),
        (lookup, "must be refused by a BackboneError, but KeyError is raised: 'no-such-model"),
        (lambda request: toy.resolve(BackboneRequest("mlp", "none")), "must be refused by a BackboneError, but is resolved"),
    ],
    ids=["curt", "crash", "resolved"],
)
def test_unknown_model_that_is_not_refused_well_is_caught(resolve: Any, message: str) -> None:
    data_checks.check_unknown_model(FAMILY)
    with pytest.raises(CheckFailed, match=message):
        data_checks.check_unknown_model(replace(FAMILY, resolve=resolve))
