"""autoft runs a bundle by its own script or by the installed plugin's, never by the bundle's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autoft.errors import BundleError
from autoft.export.script import runtime_of
from autoft.specs import BackboneFamily
from autoft.testing import toy

(HEAD,) = toy.autoft_heads()
OURS = Path("ours.py")


def family(**runtimes: Path) -> BackboneFamily:
    return BackboneFamily("sounds", "audio", toy.resolve, lambda: (), lambda modality, millions: (), runtimes=runtimes)


def contract(kind: str) -> dict[str, object]:
    return {"preprocessing": {"kind": kind}}


def test_bundle_of_a_plugins_kind_is_run_by_the_plugins_script() -> None:
    assert runtime_of(contract("audio"), HEAD, {"sounds": family(audio=OURS)}) == OURS
    with pytest.raises(BundleError, match="run bundles for image, text data, but this one is for 'audio'"):
        runtime_of(contract("audio"), HEAD)


def test_plugin_does_not_replace_the_script_of_images() -> None:
    assert runtime_of(contract("image"), HEAD, {"sounds": family(image=OURS)}).name == "image_classification.py"


def test_script_of_the_task_goes_before_that_of_the_backbone() -> None:
    own = replace(HEAD, runtime=Path("task.py"))
    assert runtime_of(contract("audio"), own, {"sounds": family(audio=OURS)}) == Path("task.py")
