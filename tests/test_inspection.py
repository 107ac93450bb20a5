"""Whatever plugins provide can be looked at by its name, and what they do not is answered with the nearest."""

from __future__ import annotations

import json

import pytest

from autoft.discovery import discover
from autoft.errors import BackboneError, PluginError
from autoft.inspection import describe

pytestmark = pytest.mark.usefixtures("toys")


@pytest.mark.parametrize(
    ("name", "kind", "keys"),
    [
        ("toy/mlp", "backbone", {"modality", "features", "parameters", "preprocessing", "augmentation", "stages"}),
        ("timm/resnet10t", "backbone", {"modality", "features", "parameters", "preprocessing", "augmentation", "stages"}),
        ("timm", "backbone family", {"help", "modality", "models", "suggested"}),
        ("image-classification", "head", {"help", "modality", "features", "metrics", "knobs"}),
        ("image-folder", "data format", {"help", "modality"}),
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
