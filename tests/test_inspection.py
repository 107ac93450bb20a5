"""Whatever plugins provide can be looked at by its name, and what they do not is answered with the nearest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from commands import command
from tiny_transformers import write_tiny
from toy_training import CONVNET

from autoft.catalog import Catalog
from autoft.discovery import discover
from autoft.errors import BackboneError, PluginError
from autoft.inspection import describe

pytestmark = pytest.mark.usefixtures("toys")


OF_BACKBONES = {
    "modality", "features", "inputs", "parameters", "licence", "weights", "preprocessing", "augmentation", "stages",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind", "keys"),
    [
        ("toy/mlp", "backbone", OF_BACKBONES),
        ("timm/resnet10t", "backbone", OF_BACKBONES),
        ("timm", "backbone family", {"help", "modality", "models", "suggested"}),
        ("image-classification", "head", {"help", "modality", "features", "metrics", "knobs"}),
        ("image-folder", "data format", {"help", "modality", "options"}),
    ],
)
def test_everything_can_be_looked_at(name: str, kind: str, keys: set[str]) -> None:
    found = describe(discover(), name)
    assert (found["kind"], found["name"]) == (kind, name)
    assert set(found) == {"kind", "name", *keys}
    assert json.loads(json.dumps(found, allow_nan=False)) == found, "it is JSON"


def test_stages_are_counted_as_the_freeze_depth_counts_them() -> None:
    found = describe(discover(), "toy/convnet")
    assert [(stage["depth"], stage["name"]) for stage in found["stages"]] == [
        (1, "stem"), (2, "stage1"), (3, "stage2"), (4, "stage3"),
    ]  # fmt: skip
    assert sum(stage["parameters"] for stage in found["stages"]) == found["parameters"]
    assert found["features"] == "pooled (N, 16)"


def test_licence_and_origin_of_the_pretrained_weights_are_shown() -> None:
    found = describe(discover(), "timm/resnet18.a1_in1k")
    assert (found["licence"], found["weights"]) == ("apache-2.0", "timm/resnet18.a1_in1k")


def test_licence_that_cannot_be_known_here_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, weights: str = "pretrained", **options: object) -> object:
        if weights == "pretrained":
            raise BackboneError("the hub cannot be reached")
        return CONVNET

    monkeypatch.setattr(Catalog, "resolve_backbone", refuse)
    found = describe(discover(), "toy/convnet")
    assert (found["licence"], found["weights"]) == (None, "unknown: the hub cannot be reached")


@pytest.mark.parametrize("name", ["toy/convnet", "toy/text"])
def test_cost_counts_weights_and_what_training_keeps(name: str) -> None:
    found = describe(discover(), name, cost=True)
    cost, bytes_of_weights = found["cost"], 4 * found["parameters"]
    assert set(cost) == {
        "batch", "threads", "weights_mb", "activations_mb_a_sample", "training_mb", "inference_ms_a_sample",
        "training_ms_a_sample",
    }  # fmt: skip
    assert cost["weights_mb"] == pytest.approx(bytes_of_weights / 1e6, abs=0.011)
    assert cost["activations_mb_a_sample"] > 0
    wanted = 4 * bytes_of_weights / 1e6 + 8 * cost["activations_mb_a_sample"]
    assert cost["training_mb"] == pytest.approx(wanted, abs=0.1)
    assert cost["inference_ms_a_sample"] > 0
    assert cost["training_ms_a_sample"] > 0


def test_cost_is_of_a_backbone_alone() -> None:
    with pytest.raises(PluginError, match="cost is shown of a backbone, FAMILY/MODEL, but got 'image-classification'"):
        describe(discover(), "image-classification", cost=True)


def test_cuts_of_an_image_backbone_hold_at_every_depth() -> None:
    found = describe(discover(), "toy/convnet", cuts=True)
    assert [stage["cut"] for stage in found["stages"]] == ["exact"] * 4


def test_cuts_of_a_text_backbone_are_tried_on_texts_of_different_length(tmp_path: Path) -> None:
    found = describe(discover(), f"transformers/{write_tiny(tmp_path / 'bert', 'bert', weights=False)}", cuts=True)
    assert [stage["cut"] for stage in found["stages"]] == ["exact"] * len(found["stages"])
    assert len(found["stages"]) > 3


def test_cut_that_does_not_hold_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    # the last stage counts as the first: what freezes it depends on all that is trained
    backwards = replace(CONVNET, stages=lambda module: list(CONVNET.stages(module))[::-1])
    monkeypatch.setattr(Catalog, "resolve_backbone", lambda *arguments, **named: backwards)
    *refused, whole = describe(discover(), "toy/backwards", cuts=True)["stages"]
    assert len(refused) == 3
    assert all(stage["cut"].startswith("refused: ") and len(stage["cut"]) > 20 for stage in refused), refused
    assert whole["cut"] == "exact", "with all frozen, it is the features that are stored"


def test_cuts_are_of_backbones_alone() -> None:
    with pytest.raises(PluginError, match="cuts are shown of a backbone, FAMILY/MODEL, but got 'image-folder'"):
        describe(discover(), "image-folder", cuts=True)


def test_command_shows_cuts_when_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "CUT" not in command(monkeypatch, capsys, "plugins", "show", "toy/mlp").out
    shown = command(monkeypatch, capsys, "plugins", "show", "toy/mlp", "--cuts").out.splitlines()
    assert shown[-4].split() == ["FREEZE_DEPTH", "STAGE", "PARAMETERS", "CUT"]
    assert [line.split()[-1] for line in shown[-3:]] == ["exact"] * 3


@pytest.mark.parametrize(
    ("asked", "name", "error", "hint"),
    [
        ("imagefolder", "imagefolder", PluginError, "did you mean image-folder"),
        ("tim", "tim", PluginError, "did you mean timm"),
        ("zzzzzz", "zzzzzz", PluginError, "there are: .*timm.*image-classification.*image-folder.*FAMILY/MODEL"),
        ("timm/resnet81", "resnet81", BackboneError, "did you mean timm/resnet18"),
        ("tmm/resnet18", "tmm", PluginError, "did you mean `timm`"),
    ],
)
def test_unknown_name_is_answered_with_the_nearest(asked: str, name: str, error: type[Exception], hint: str) -> None:
    with pytest.raises(error, match=rf"(?s){name}.*hint: {hint}") as caught:
        describe(discover(), asked)
    assert "Traceback" not in str(caught.value)
