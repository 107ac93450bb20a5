"""Frozen stages' outputs can be stored for the toys, and a backbone for which they cannot is named with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoft.specs import Backbone, BackboneRequest
from autoft.testing import cut_checks, toy
from autoft.testing.kit import CheckWarning

CONVNET: Backbone = toy.resolve(BackboneRequest("convnet", "none"))
TEXT: Backbone = toy.resolve(BackboneRequest("text", "none"))
SEQUENCE: Backbone = toy.resolve(BackboneRequest("text", "none", features="sequence"))


@pytest.mark.parametrize("backbone", [CONVNET, TEXT, SEQUENCE], ids=["image", "text", "sequence"])
def test_toys_can_be_cut(backbone: Backbone) -> None:
    cut_checks.check_cuts(backbone)


def test_stages_from_output_to_input_are_a_warning_with_the_reason() -> None:
    backwards = replace(CONVNET, stages=lambda module: CONVNET.stages(module)[::-1])
    with pytest.raises(CheckWarning, match="cannot at 3 of the 4 depths tried; at 1 of 4 stages it is refused: ") as caught:
        cut_checks.check_cuts(backwards)
    assert "hint: list the stages from input to output" in str(caught.value)


def test_some_depths_of_many_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def note(backbone: Backbone, module: object, depths: list[int]) -> tuple[str, ...]:
        tried.extend(depths)
        return (cut_checks.EXACT,) * len(depths)

    monkeypatch.setattr(cut_checks, "cuts", note)
    cut_checks.check_cuts(CONVNET)
    cut_checks.check_cuts(replace(CONVNET, stages=lambda module: CONVNET.stages(module) * 5))
    cut_checks.check_cuts(replace(CONVNET, stages=lambda module: CONVNET.stages(module)[:1]))
    assert tried == [1, 2, 3, 4, 5, 10, 15, 20, 1]
