"""autoft's heads pass the checks of heads, and a head that breaks one rule is caught by it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoft.builtin.heads import autoft_heads
from autoft.errors import PluginError
from autoft.specs import Choice, Head, Knob, Range, Targets
from autoft.testing import checks_for, head_checks
from autoft.testing.kit import CheckFailed, CheckWarning
from autoft.testing.references import entities_of

HEADS = {head.name: head for head in autoft_heads()}
HEAD = HEADS["image-classification"]
TOY = head_checks.toy_for(HEAD)
TAGS = HEADS["token-classification"]


@pytest.mark.parametrize("head", HEADS.values(), ids=list(HEADS))
def test_heads_of_autoft_pass(head: Head) -> None:
    results = [check.run() for check in checks_for(head)]
    assert len(results) == 9
    assert [result.message for result in results if not result.passed] == []
    assert {result.id for result in results if result.outcome == "warned"} <= {"metrics"}


def broken(**changes: Any) -> Head:
    return replace(HEAD, **changes)


def test_head_that_no_toy_fits_is_told_so() -> None:
    with pytest.raises(CheckFailed, match="needs cloud features of image data, which no toy of the kit gives"):
        head_checks.toy_for(broken(features="cloud"))


# --- targets ----------------------------------------------------------------------------------------


def by_appearance(targets: Sequence[str]) -> Targets:
    return Targets(tuple(dict.fromkeys(targets)))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (broken(describe=by_appearance), "labels must not depend on the order of the samples, but do"),
        (broken(describe=lambda targets: set(targets)), "`describe` must return Targets, but returns a set"),
        (broken(encode=lambda targets, known: torch.zeros(3)), "must give a row for each of 24 targets, but gives 3"),
        (broken(encode=lambda targets, known: torch.zeros(len(targets))), "must refuse a target that training did not have"),
        (
            broken(
                describe=lambda targets: Targets(("a",), values={"draw": (random.random(),)}).__class__(
                    ("a",), values={"x": Odd()}
                )
            ),
            "the targets must survive pickling",
        ),
    ],
    ids=["order", "type", "rows", "stranger", "pickle"],
)
def test_targets_that_break_a_rule_are_caught(head: Head, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        head_checks.check_targets(TOY, head)


class Odd(tuple[float, ...]):
    """Comes back from pickling as another."""

    def __reduce__(self) -> Any:
        return tuple, ((random.random(),),)


# --- loss -------------------------------------------------------------------------------------------


def summed(outputs: Tensor, encoded: Tensor, targets: Targets, knobs: Any) -> Tensor:
    return HEAD.loss(outputs, encoded, targets, knobs) * len(outputs)


class Unused(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.spare = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            broken(loss=summed),
            "the loss must be a mean over the batch, but is .* for 6 samples and .* for the same twice over",
        ),
        (broken(loss=lambda outputs, *_: outputs.sum(1)), r"the loss must be one number, but is of shape \(6,\)"),
        (
            broken(build=lambda features, targets, knobs: Unused(features, len(targets.labels))),
            "every parameter of the output module must get a gradient, but 1 get none, such as spare",
        ),
    ],
    ids=["sum", "shape", "unused"],
)
def test_loss_that_breaks_a_rule_is_caught(head: Head, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        head_checks.check_loss(TOY, head)


# --- metrics ----------------------------------------------------------------------------------------


def scoring(**changes: Any) -> Head:
    """Classification whose metrics have other values, functions of outputs, encoded targets and targets."""

    def metrics(outputs: Tensor, encoded: Tensor, targets: Targets) -> dict[str, Any]:
        return {**HEAD.metrics(outputs, encoded, targets), **{n: f(outputs, encoded, targets) for n, f in changes.items()}}

    return broken(metrics=metrics)


def by_batch(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    return float(torch.stack([part.max() for part in outputs.split(7)]).mean())


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (scoring(accuracy=lambda *_: float("nan")), "a metric must be a finite float, but accuracy is nan"),
        (scoring(accuracy=lambda *_: torch.tensor(0.5)), "must be a finite float, but accuracy is tensor"),
        (scoring(novel=lambda *_: 0.5), "`directions` must name every metric, but lacks novel"),
        (broken(default_metric=lambda targets: "bleu"), "the default metric must be one that `metrics` gives, but 'bleu'"),
        (scoring(auroc=by_batch), "must not depend on the order of the samples, but auroc is"),
        (scoring(accuracy=lambda *_: 0.9), r"accuracy must be 0\.\d+, as the reference has it, but is 0\.9"),
        (
            scoring(f1_macro=lambda outputs, encoded, targets: HEAD.metrics(outputs, encoded, targets)["f1_macro"] * 0.99),
            "f1_macro must be .*, as the reference has it",
        ),
    ],
    ids=["nan", "tensor", "unknown", "default", "batches", "constant", "a little off"],
)
def test_metric_that_breaks_a_rule_is_caught(head: Head, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        head_checks.check_metrics(TOY, head)


def test_metric_without_a_reference_is_a_warning_and_one_can_be_given() -> None:
    head = replace(
        scoring(sure=lambda outputs, *_: float(outputs.max())), directions={**HEAD.directions, "sure": "maximize"}
    )
    with pytest.raises(CheckWarning, match="no reference is known for sure\n"):
        head_checks.check_metrics(TOY, head)
    head_checks.check_metrics(TOY, head, {"sure": lambda outputs, *_: float(outputs.numpy().max())})
    with pytest.raises(CheckFailed, match=r"sure must be 0\.25, as the reference has it"):
        head_checks.check_metrics(TOY, head, {"sure": lambda *_: 0.25})
    head_checks.check_metrics(TOY, replace(head, references={"sure": lambda outputs, *_: float(outputs.numpy().max())}))
    with pytest.raises(CheckFailed, match=r"sure must be 0\.25, as the reference has it"):
        head_checks.check_metrics(TOY, replace(head, references={"sure": lambda *_: 0.25}))


@pytest.mark.parametrize("name", sorted(HEADS))
def test_metrics_of_autofts_heads_agree_with_their_references(name: str) -> None:
    head_checks.check_metrics(head_checks.toy_for(HEADS[name]), HEADS[name])


@pytest.mark.parametrize(
    "tags",
    ["O B-PER I-PER O", "B-PER B-PER", "I-LOC I-LOC O I-PER", "B-LOC I-PER E-PER", "S-PER S-PER", "E-LOC E-LOC B-LOC", "O"],
)
def test_reference_reads_entities_as_seqeval_does(tags: str) -> None:
    seqeval = pytest.importorskip("seqeval.metrics.sequence_labeling")
    found = {(kind, start, end + 1) for kind, start, end in seqeval.get_entities(tags.split())}
    assert {(kind, start, end) for start, end, kind in entities_of(tags.split())} == found


# --- report and knobs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"f1": float("nan")}, "`report` must be JSON, but is not"),
        ({"f1": torch.zeros(1)}, "`report` must be JSON, but is not"),
        ({1: "one"}, "must be the same after a way through JSON"),
    ],
    ids=["nan", "tensor", "keys"],
)
def test_report_that_is_no_json_is_caught(content: Any, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        head_checks.check_report(TOY, broken(report=lambda *_: content))


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        (
            Knob("learning_rate", 0.1, None, "", Range(0.0, 1.0)),
            "a knob must have a name of its own, .* but got 'learning_rate'",
        ),
        (Knob("focal gamma", 0.1, None, "", Range(0.0, 1.0)), "but got 'focal gamma'"),
        (
            Knob("gamma", 2.0, None, "", Range(0.0, 1.0)),
            "the default of gamma must be among what is allowed, .*, but is 2.0",
        ),
        (
            Knob("gamma", 0.5, Range(0.0, 3.0), "", Range(0.0, 1.0)),
            "the search of gamma must be among what is allowed, .* 3.0",
        ),
        (Knob("kind", "a", Choice(("a", "c")), "", Choice(("a", "b"))), "the search of kind must be among .*, but is 'c'"),
    ],
    ids=["taken", "no word", "default", "search", "choice"],
)
def test_knob_that_breaks_a_rule_is_caught(knob: Knob, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        head_checks.check_knobs(TOY, broken(knobs=(knob,)))


def test_knob_twice_is_caught() -> None:
    with pytest.raises(CheckFailed, match=r"a knob must have a name of its own, .* but got 'dropout'"):
        head_checks.check_knobs(TOY, broken(knobs=(*HEAD.knobs, HEAD.knobs[0])))


def test_waiver_of_a_head_is_for_a_check_that_there_is() -> None:
    with pytest.raises(
        PluginError, match=r"a waiver must name a check, but 'metric' is none of 9\nhint: did you mean metrics"
    ):
        checks_for(HEAD, waive={"metric": "later"})
