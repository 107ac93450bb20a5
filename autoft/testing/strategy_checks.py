"""The conformance checks of strategies: what they may train, where they stop, and what is left when they are merged."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autoft.specs import Backbone, Head, Strategy
from autoft.testing.kit import (
    TOLERANCE,
    CheckFailed,
    distance,
    identical,
    make_inputs,
    make_targets,
    real_rows,
    state_of,
    train,
)

if TYPE_CHECKING:
    from autoft.model import FineTuneModel

BATCH = 4
MERGED = 1e-4  # largest difference of any output between the trained module and the merged one


def check_trains_what_it_says(backbone: Backbone, head: Head, strategy: Strategy) -> None:
    """Check at every depth that training changes some of what may train, and nothing else; frozen stages are left alone.

    Raises:
        CheckFailed: Something else changes, nothing does, or something was added to a frozen stage.
    """
    plain = _model(backbone, head, None, 0)
    for depth in range(len(plain.stages) + 1):
        model = _model(backbone, head, strategy, depth)
        assert model.trained is not None
        unknown = model.trained - {name for name, _ in model.backbone.named_parameters()}
        if unknown:
            raise CheckFailed(
                f"`trained` must name parameters of the module, but {sorted(unknown)[0]} is none", "mend `apply`"
            )
        model.freeze(depth)
        frozen = {name for stage in model.stages[:depth] for name in stage.parameters}
        inside = frozen & model.trained
        if inside:
            raise CheckFailed(
                f"with `freeze_depth` {depth} nothing in the first stages may be trained, but {sorted(inside)[0]} may",
                "adapt stages from `depth` on alone",
            )
        before = {name: value.clone() for name, value in state_of(model.backbone)}
        train(model, make_inputs(backbone, BATCH))
        parameters = {name for name, _ in model.backbone.named_parameters()}
        changed = {name for name, value in state_of(model.backbone) if not identical(value, before[name])} & parameters
        if changed - (model.trained - frozen):
            wrong = sorted(changed - (model.trained - frozen))[0]
            raise CheckFailed(f"with `freeze_depth` {depth} training must not change {wrong}", "leave it out of `trained`")
        if model.trained - frozen and not changed:
            raise CheckFailed(f"with `freeze_depth` {depth} training must change what `trained` names, but changes nothing")


def check_merged_equals_trained(backbone: Backbone, head: Head, strategy: Strategy) -> None:
    """Check that the merged module answers as the trained one, loads into a finished build, and leaves files.

    Raises:
        CheckFailed: An output differs by more than 1e-4, or the weights do not fit.
    """
    import torch

    model = _trained(backbone, head, strategy)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if name in (model.trained or ()):  # a few steps move too little for a merge that forgets some of it to be seen
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    if not strategy.files(model.backbone):
        raise CheckFailed("`files` must give the adapter as files, but gives none", "write its weights and settings")
    finished = _model(backbone, head, strategy, 0, finished=True)
    state = model.finished_state()
    try:
        finished.load_state_dict(state)
    except RuntimeError as error:
        raise CheckFailed(
            f"what `merge` gives after training must have the parameters that it gives before: {error}", "mend `merge`"
        ) from error
    inputs = make_inputs(backbone, BATCH)
    with torch.inference_mode():
        wanted, found = model.eval()(*inputs), finished.eval()(*inputs)
    apart = distance(real_rows(found, backbone, inputs), real_rows(wanted, backbone, inputs))
    if not apart <= MERGED:  # written so that NaN fails
        raise CheckFailed(f"the merged module may differ from the trained one by {MERGED:g}, but differs by {apart:.3g}")


def check_merged_exports(backbone: Backbone, head: Head, strategy: Strategy) -> None:
    """Check that the merged module exports to ONNX, and answers there as in torch.

    Raises:
        CheckFailed: It does not.
    """
    import onnxruntime
    import torch

    from autoft.export.graphs import make_session
    from autoft.export.onnx import output_names, to_onnx

    finished = _model(backbone, head, strategy, 0, finished=True)
    finished.load_state_dict(_trained(backbone, head, strategy).finished_state())
    finished.eval()
    inputs = make_inputs(backbone, 2)
    labels = head.describe(make_targets(head)).labels
    lengths = backbone.modality == "text"
    proto = to_onnx(
        finished, head.activation, inputs, input_names=backbone.inputs, labels=labels, scores=head.scores, lengths=lengths
    )
    session = make_session(proto, onnxruntime.SessionOptions())
    for count in (1, 7):
        given = make_inputs(backbone, count)
        named = {name: item.numpy() for name, item in zip(backbone.inputs, given, strict=True)}
        (found,) = session.run(list(output_names(head.scores))[:1], named)
        with torch.inference_mode():
            wanted = finished(*given)
        apart = distance(real_rows(torch.from_numpy(found), backbone, given), real_rows(wanted, backbone, given))
        if not apart <= TOLERANCE:
            raise CheckFailed(f"the graph's outputs may differ from torch's by {TOLERANCE:g}, but differ by {apart:.3g}")


def check_goes_on_from_a_state(backbone: Backbone, head: Head, strategy: Strategy) -> None:
    """Check that a trained model's state loads into another build, as a resumed trial does, and answers alike.

    Raises:
        CheckFailed: It does not load, or answers otherwise.
    """
    import torch

    model, again = _trained(backbone, head, strategy), _model(backbone, head, strategy, 0)
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    inputs = make_inputs(backbone, BATCH)
    with torch.inference_mode():
        if not torch.equal(model.eval()(*inputs), again.eval()(*inputs)):
            raise CheckFailed("a build that was given a trained model's state must answer as that, but answers otherwise")


CHECKS = (
    ("trains-what-it-says", check_trains_what_it_says),
    ("merged-equals-trained", check_merged_equals_trained),
    ("merged-exports", check_merged_exports),
    ("goes-on-from-a-state", check_goes_on_from_a_state),
)


def _model(
    backbone: Backbone, head: Head, strategy: Strategy | None, depth: int, *, finished: bool = False
) -> FineTuneModel:
    from autoft.model import assemble

    targets = head.describe(make_targets(head))
    knobs: Mapping[str, Any] = {knob.name: knob.default for knob in (*head.knobs, *(strategy.knobs if strategy else ()))}
    return assemble(backbone, head, targets, knobs, seed=0, strategy=strategy, depth=depth, finished=finished)


def _trained(backbone: Backbone, head: Head, strategy: Strategy) -> FineTuneModel:
    model = _model(backbone, head, strategy, 0)
    model.freeze(0)
    train(model, make_inputs(backbone, BATCH))
    return model
