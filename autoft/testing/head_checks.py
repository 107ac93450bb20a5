"""The conformance checks of heads: targets, loss, metrics against a reference, report and knobs, on a toy backbone."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autoft.errors import BackboneError, DataError
from autoft.specs import Backbone, BackboneRequest, Choice, Head, Range, Targets
from autoft.testing.kit import CheckFailed, CheckWarning, make_raw
from autoft.testing.references import REFERENCES, Reference

if TYPE_CHECKING:
    from autoft.specs import Sample


SAMPLES = 24
CLOSE = 1e-5  # relative: metrics may be summed in another order
_STRANGER = {"label": "no such label", "labels": ("no such label",), "entities": ("no such tag",)}


def toy_for(head: Head) -> Backbone:
    """Return the toy backbone that gives what a head needs.

    Raises:
        CheckFailed: None does.
    """
    from autoft.testing import toy

    for model in toy.MODELS:
        try:
            backbone = toy.resolve(BackboneRequest(model, "none", features=head.features))
        except BackboneError:
            continue  # it has no features of that kind
        if backbone.features == head.features and head.modality in (None, backbone.modality):
            return backbone
    raise CheckFailed(
        f"{head.name} needs {head.features} features of {head.modality or 'any'} data, which no toy of the kit gives",
        "name one: `checks_for(head, backbone=...)`",
    )


def check_targets(backbone: Backbone, head: Head) -> None:
    """Check that targets are described whatever their order, encoded to a row each, and that unknown ones are refused.

    Raises:
        CheckFailed: Labels depend on the order, rows are missing, the description cannot travel, or a stranger is taken.
    """
    raw = [sample.target for sample in make_raw(backbone, head, SAMPLES)]
    targets = head.describe(raw)
    if not isinstance(targets, Targets):
        raise CheckFailed(f"{head.name}: `describe` must return Targets, but returns a {type(targets).__name__}")
    if head.describe(raw[::-1]).labels != targets.labels:
        raise CheckFailed(
            f"{head.name}: labels must not depend on the order of the samples, but do", "sort them, as by `sorted(set(...))`"
        )
    if pickle.loads(pickle.dumps(targets)) != targets:
        raise CheckFailed(f"{head.name}: the targets must survive pickling, as they travel to workers, but do not")
    encoded = head.encode(raw, targets)
    if len(encoded) != len(raw):
        raise CheckFailed(f"{head.name}: `encode` must give a row for each of {len(raw)} targets, but gives {len(encoded)}")
    pickle.dumps(encoded)
    stranger = _STRANGER.get(head.answer)
    if stranger is None:
        return
    try:
        head.encode([stranger], targets)
    except DataError:
        return
    raise CheckFailed(
        f"{head.name}: `encode` must refuse a target that training did not have, but takes {stranger!r}",
        "raise `DataError` with the label and the nearest that are known",
    )


def check_loss(backbone: Backbone, head: Head) -> None:
    """Check that the loss is a mean over the batch whose gradient reaches every parameter of the head.

    Raises:
        CheckFailed: The loss of a batch shown twice over is another, or a parameter gets no gradient.
    """
    import torch

    from autoft.loading import load_split

    samples = make_raw(backbone, head, 6)
    model, targets, knobs = _model(backbone, head, samples)
    losses = []
    for shown in (samples, [*samples, *samples]):
        encoded = head.encode([sample.target for sample in shown], targets)
        fitted = backbone.preprocessing.fit([sample.source for sample in shown])
        data = load_split(shown, encoded, fitted)
        import numpy as np

        ((inputs, wanted),) = data.batches([np.arange(len(shown))], device=torch.device("cpu"))
        loss = head.loss(model(*inputs), wanted, targets, knobs)
        if loss.dim():
            raise CheckFailed(f"{head.name}: the loss must be one number, but is of shape {tuple(loss.shape)}")
        losses.append(loss)
    once, twice = (loss.item() for loss in losses)
    if not math.isclose(once, twice, rel_tol=1e-4, abs_tol=1e-6):
        raise CheckFailed(
            f"{head.name}: the loss must be a mean over the batch, but is {once:.6g} for 6 samples and {twice:.6g} for the "
            "same twice over",
            "divide by the number of samples, or of words",
        )
    losses[0].backward()  # type: ignore[no-untyped-call]
    without = [name for name, value in model.head.named_parameters() if value.grad is None]
    if without:
        raise CheckFailed(
            f"{head.name}: every parameter of the output module must get a gradient, but {len(without)} get none, such as "
            f"{without[0]}",
            "drop what the outputs do not use",
        )


def check_metrics(backbone: Backbone, head: Head, references: Mapping[str, Reference] | None = None) -> None:
    """Check that metrics are finite, known, independent of the samples' order, and those of a reference.

    Args:
        backbone: Gives the features.
        head: Whose metrics.
        references: A function for each further metric that computes it plainly, beside those that the head brings and
            those of autoft's own heads (`references.py`).

    Raises:
        CheckFailed: Names the metric.
        CheckWarning: A metric has no reference.
    """
    samples = make_raw(backbone, head, SAMPLES)
    scores, outputs, encoded, targets = _scored(backbone, head, samples)
    wrong = [name for name, value in scores.items() if not isinstance(value, float) or not math.isfinite(value)]
    if wrong:
        raise CheckFailed(
            f"{head.name}: a metric must be a finite float, but {wrong[0]} is {scores[wrong[0]]!r}",
            "leave out a metric that a split does not define",
        )
    unknown = sorted(set(scores) - set(head.directions))
    if unknown:
        raise CheckFailed(f"{head.name}: `directions` must name every metric, but lacks {unknown[0]}")
    default = head.default_metric(targets)
    if default not in scores:
        raise CheckFailed(f"{head.name}: the default metric must be one that `metrics` gives, but {default!r} is none")
    for name, value in _scored(backbone, head, samples[::-1])[0].items():
        if not math.isclose(value, scores[name], rel_tol=1e-4, abs_tol=1e-6):
            raise CheckFailed(
                f"{head.name}: a metric must not depend on the order of the samples, but {name} is {scores[name]:.6g} and, "
                f"in reverse, {value:.6g}",
                "compute it over the whole split, never by batch",
            )
    known = {**(REFERENCES.get(head.answer) or {}), **head.references, **(references or {})}
    for name in sorted(set(known) & set(scores)):
        wanted = float(known[name](outputs, encoded, targets))
        if not math.isclose(scores[name], wanted, rel_tol=CLOSE, abs_tol=CLOSE):
            raise CheckFailed(
                f"{head.name}: {name} must be {wanted:.6g}, as the reference has it, but is {scores[name]:.6g}",
                "mend the metric, or give it a name of its own",
            )
    without = sorted(set(scores) - set(known))
    if without:
        raise CheckWarning(
            f"{head.name}: no reference is known for {', '.join(without)}",
            "give one: `Head(references={'NAME': function of outputs, encoded targets and targets})`",
        )


def check_report(backbone: Backbone, head: Head) -> None:
    """Check that the account of a split is JSON without NaN.

    Raises:
        CheckFailed: It is not.
    """
    _, outputs, encoded, targets = _scored(backbone, head, make_raw(backbone, head, SAMPLES))
    found = head.report(outputs, encoded, targets)
    try:
        same = json.loads(json.dumps(found, allow_nan=False)) == found
    except (TypeError, ValueError) as error:
        raise CheckFailed(
            f"{head.name}: `report` must be JSON, but is not: {error}", "turn numbers of numpy into float"
        ) from error
    if not same:
        raise CheckFailed(f"{head.name}: `report` must be the same after a way through JSON", "use lists and texts as keys")


def check_knobs(backbone: Backbone, head: Head) -> None:
    """Check that each knob is a word of its own, with a default and a search inside of what is allowed.

    Raises:
        CheckFailed: Names the knob.
    """
    from autoft.knobs import BY_NAME

    names = [knob.name for knob in head.knobs]
    for knob in head.knobs:
        if names.count(knob.name) > 1 or knob.name in BY_NAME or not knob.name.isidentifier():
            raise CheckFailed(
                f"{head.name}: a knob must have a name of its own, such as `focal_gamma`, but got {knob.name!r}",
                "letters, digits and `_`; no word that `space:` of a study knows already",
            )
        for what, value in (("default", knob.default), *(("search", value) for value in _ends(knob.search))):
            if not _allows(knob.allowed, value):
                raise CheckFailed(
                    f"{head.name}: the {what} of {knob.name} must be among what is allowed, {knob.allowed}, but is {value!r}"
                )


CHECKS: tuple[tuple[str, str, Callable[[Backbone, Head], None]], ...] = (
    ("targets", "targets are described in any order, encoded to a row each, and strangers refused", check_targets),
    ("loss", "the loss is a mean over the batch, and reaches every parameter of the output module", check_loss),
    ("metrics", "metrics are known, finite, independent of order, and agree with a reference", check_metrics),
    ("report", "the account of a split is JSON", check_report),
    ("knobs", "knobs have names of their own, with default and search inside of what is allowed", check_knobs),
)


# --- parts ------------------------------------------------------------------------------------------


def _model(backbone: Backbone, head: Head, samples: Sequence[Sample]) -> tuple[Any, Targets, dict[str, Any]]:
    """Assemble a model whose head does not start near zero, where all samples get the same answer."""
    import torch

    from autoft.model import assemble

    targets = head.describe([sample.target for sample in samples])
    knobs = {knob.name: knob.default for knob in head.knobs}
    model = assemble(backbone, head, targets, knobs, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model, targets, knobs


def _scored(backbone: Backbone, head: Head, samples: Sequence[Sample]) -> tuple[dict[str, float], Any, Any, Targets]:
    """Score a model of random weights on samples, as validation does."""
    import torch

    from autoft.loading import load_split
    from autoft.train import predict

    ordered = sorted(samples, key=lambda sample: int(sample.id))
    model, targets, _ = _model(backbone, head, ordered)
    encoded = head.encode([sample.target for sample in samples], targets)
    fitted = backbone.preprocessing.fit([sample.source for sample in ordered])
    data = load_split(samples, encoded, fitted)
    outputs = predict(model, data, device=torch.device("cpu"), batch_size=8, precision="fp32")
    return head.metrics(outputs, data.targets, targets), outputs, data.targets, targets


def _ends(search: Range | Choice | None) -> list[Any]:
    if search is None:
        return []
    return list(search.values) if isinstance(search, Choice) else [search.low, search.high]


def _allows(allowed: Range | Choice, value: Any) -> bool:
    if isinstance(allowed, Choice):
        return value in allowed.values
    return (isinstance(value, int | float) and allowed.low <= value <= allowed.high) or (allowed.or_zero and value == 0)
