"""The heads that ship with autoft: which there are, and what every one of them must keep to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from autoft.builtin.heads import autoft_heads
from autoft.ragged import Ragged
from autoft.specs import Choice, Head, Range

HEADS = autoft_heads()
TARGETS: dict[str, list[Any]] = {
    "label": ["b", "a", "a"] * 10,
    "labels": [("b", "a"), ("a",), ()] * 10,
    "values": [(1.0,), (2.5,), (4.0,)] * 10,
    "entities": [("O", "B-PER", "I-PER"), ("O",), ("B-LOC", "O")] * 10,
}
each_head = pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)


def outputs_of(head: Head, seed: int = 0) -> tuple[Any, Any, Any]:
    """Random outputs for every head's targets, by its own module; then the encoded targets and what describes them."""
    torch.manual_seed(seed)
    targets = head.describe(TARGETS[head.answer])
    encoded = head.encode(TARGETS[head.answer], targets)
    module = head.build(5, targets, {knob.name: knob.default for knob in head.knobs}).eval()
    if isinstance(encoded, Ragged):
        return Ragged(module(torch.randn(len(encoded.values), 5)).detach(), encoded.offsets), encoded, targets
    return module(torch.randn(len(encoded), 5)).detach(), encoded, targets


def test_every_task_is_offered_once_and_for_its_data() -> None:
    assert {head.name: (head.modality, head.features, head.answer) for head in HEADS} == {
        "image-classification": ("image", "pooled", "label"),
        "text-classification": ("text", "pooled", "label"),
        "classification": (None, "pooled", "label"),
        "multi-label": (None, "pooled", "labels"),
        "regression": (None, "pooled", "values"),
        "similarity": ("text", "pooled", "values"),
        "token-classification": ("text", "sequence", "entities"),
    }
    assert len(HEADS) == 7


@each_head
def test_knobs_defaults_are_allowed_and_so_is_what_is_searched(head: Head) -> None:
    assert head.knobs[0].name == "dropout"
    assert len({knob.name for knob in head.knobs}) == len(head.knobs)
    for knob in head.knobs:
        for value in (knob.default, *(getattr(knob.search, side) for side in ("low", "high") if knob.search)):
            if isinstance(knob.allowed, Choice):
                assert value in knob.allowed.values
            else:
                assert knob.allowed.low <= value <= knob.allowed.high  # type: ignore[operator]
        assert knob.search is None or (
            isinstance(knob.search, Range) and knob.search.low <= knob.default <= knob.search.high
        )  # type: ignore[operator]


@each_head
def test_metrics_are_finite_named_and_have_the_default_one(head: Head) -> None:
    outputs, encoded, targets = outputs_of(head)
    found = head.metrics(outputs, encoded, targets)
    assert set(found) == set(head.directions)
    assert head.default_metric(targets) in found
    assert all(type(value) is float and math.isfinite(value) for value in found.values())


@each_head
def test_default_metric_is_defined_for_outputs_of_zero(head: Head) -> None:
    """As the preparation asks, before there is a model."""
    outputs, encoded, targets = outputs_of(head)
    zero = Ragged(torch.zeros_like(outputs.values), outputs.offsets) if isinstance(outputs, Ragged) else outputs * 0
    assert head.default_metric(targets) in head.metrics(zero, encoded, targets)


@each_head
def test_report_is_ready_for_json(head: Head) -> None:
    import json

    outputs, encoded, targets = outputs_of(head)
    json.dumps(head.report(outputs, encoded, targets), allow_nan=False)


@each_head
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_refused_by_every_head(head: Head, value: float) -> None:
    outputs, encoded, targets = outputs_of(head)
    (outputs.values if isinstance(outputs, Ragged) else outputs)[0, 0] = value
    for score in (head.metrics, head.report, *([head.tune] if head.tune else [])):
        with pytest.raises(ValueError, match="outputs must be finite"):
            score(outputs, encoded, targets)


@each_head
def test_every_target_has_a_class_for_the_splits(head: Head) -> None:
    assert head.stratify is not None
    found = head.stratify(TARGETS[head.answer])
    assert len(found) == 30
    assert all(isinstance(name, str) for name in found)


@each_head
def test_losses_pull_the_outputs_toward_the_targets(head: Head) -> None:
    """A few steps of plain descent on the outputs alone make the loss smaller, whatever the knobs say."""
    outputs, encoded, targets = outputs_of(head)
    if isinstance(encoded, Ragged):
        outputs, encoded = outputs.padded(0.0), encoded.padded(-100)
    choices = {knob.name: knob.allowed.values for knob in head.knobs if isinstance(knob.allowed, Choice)}
    assert len(choices) == 1
    for name, values in choices.items():
        for value in values:
            knobs = {knob.name: knob.default for knob in head.knobs} | {name: value}
            free = outputs.clone().requires_grad_()
            losses = []
            for _ in range(20):
                loss = head.loss(free, encoded, targets, knobs)
                assert loss.shape == ()
                losses.append(loss.item())
                (step,) = torch.autograd.grad(loss, free)
                free = (free - step).detach().requires_grad_()
            assert losses[-1] < losses[0]


@each_head
def test_drawing_weights_are_given_only_where_resampling_is_asked_for(head: Head) -> None:
    _, encoded, targets = outputs_of(head)
    knobs = {knob.name: knob.default for knob in head.knobs}
    assert head.draw_weights(encoded, targets, knobs) is None
    offered = next((knob.allowed.values for knob in head.knobs if knob.name == "imbalance"), ())  # type: ignore[union-attr]
    if "resample" in offered:
        weights = head.draw_weights(encoded, targets, {**knobs, "imbalance": "resample"})
        assert weights is not None
        assert weights.shape == (30,)
        assert np.all(weights > 0)
