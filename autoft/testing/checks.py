"""The conformance kit: what a backbone must hold to be trained, frozen, repeated and exported; each rule is a check.

A check raises `CheckFailed`, or returns. Backbones should be resolved with `weights="none"`, which needs no network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from autoft.errors import AutoftError, BackboneError, first_line
from autoft.specs import Backbone, Head, Strategy
from autoft.testing.bound import BoundCheck, CheckResult, run_all
from autoft.testing.cut_checks import check_cuts
from autoft.testing.kit import (
    STEPS,
    TOLERANCE,
    CheckFailed,
    distance,
    feature_tensors,
    identical,
    make_inputs,
    make_longest,
    make_targets,
    real_rows,
    state_of,
    train,
    with_linear,
)
from autoft.testing.process_checks import check_augmentation, check_image_inputs, check_no_network, check_worker
from autoft.testing.strategy_checks import CHECKS as STRATEGY_CHECKS
from autoft.testing.text_checks import check_bundle_inputs, check_decoding, check_padding, check_truncation, check_words
from autoft.testing.training_checks import CHECKS as TRAINING_CHECKS

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "CHECKS",
    "STEPS",
    "Check",
    "CheckFailed",
    "CheckResult",
    "check_augmentation",
    "check_batch_order",
    "check_builds_share_nothing",
    "check_bundle_inputs",
    "check_cuts",
    "check_decoding",
    "check_export_parity",
    "check_feature_shape",
    "check_frozen_stages_do_not_change",
    "check_image_inputs",
    "check_no_network",
    "check_padding",
    "check_stages_partition",
    "check_truncation",
    "check_words",
    "check_worker",
    "kinds_to_check",
    "of_backbone",
    "run_checks",
]  # fmt: skip

FEATURE_DIMENSIONS = {"pooled": 2, "sequence": 3, "maps": 4}
EXPORT_BATCHES = (1, 2, 7)  # traced with 2; 1 is what servers send most, 7 is neither a power of two nor the trace
BATCH = 4


@dataclass(frozen=True)
class Check:
    """One rule of the contract.

    Attributes:
        id: Short name, as `run_checks` reports it.
        about: The rule, in a line.
        run: Raises `CheckFailed` where a backbone under a head breaks it.
        modality: What backbones must take for the rule to mean something, or None for any.
    """

    id: str
    about: str
    run: Callable[[Backbone, Head], None]
    modality: str | None = None


def run_checks(backbone: Backbone, head: Head, strategies: Iterable[Strategy] = ()) -> list[CheckResult]:
    """Run every check of the backbone's modality, and those of strategies that it can be trained with.

    One that fails, or that the plugin's code makes crash, does not keep the others from running.
    """
    return run_all(of_backbone(backbone, head, strategies))


def of_backbone(
    backbone: Backbone, head: Head, strategies: Iterable[Strategy] = (), subject: str | None = None
) -> list[BoundCheck]:
    """Return the checks of a backbone under a head, and of the strategies that fit it."""
    subject = subject or backbone.name
    found = [
        BoundCheck(subject, check.id, check.about, partial(check.run, backbone, head))
        for check in CHECKS
        if check.modality in (None, backbone.modality)
    ]
    for strategy in strategies:
        if strategy.check(backbone, backbone.build()) is None:
            found += [
                BoundCheck(
                    subject, f"{strategy.name}: {name}", name.replace("-", " "), partial(run, backbone, head, strategy)
                )
                for name, run in STRATEGY_CHECKS
            ]
    return found


def kinds_to_check(resolve: Callable[[str], Backbone], heads: Iterable[Head]) -> list[tuple[Backbone, Head]]:
    """Return a backbone with each kind of features that it can give and a head can use, and such a head.

    Args:
        resolve: Gives the backbone for a kind of features: `BackboneRequest.features`.
        heads: All heads that are known.

    Raises:
        BackboneError: It cannot be resolved, or no head takes it.
    """
    kinds = [resolve("pooled")]
    for features in ("sequence", "maps"):
        with contextlib.suppress(BackboneError):  # it may have no other kind; why the first fails is raised above
            kinds.append(resolve(features))
    found: dict[str, tuple[Backbone, Head]] = {}
    for backbone in kinds:
        for head in heads:
            if head.features == backbone.features and head.modality in (None, backbone.modality):
                found.setdefault(backbone.features, (backbone, head))
    if not found:
        raise BackboneError(
            f"no installed head takes {kinds[0].features} features of {kinds[0].modality} data, as {kinds[0].name} gives",
            f"the kinds of features are {', '.join(FEATURE_DIMENSIONS)}; `autoft plugins --load` lists the heads",
        )
    return list(found.values())


def check_stages_partition(backbone: Backbone) -> None:
    """Check that the stages hold every parameter of the module exactly once, and are the same for each build.

    Raises:
        CheckFailed: A parameter is missing, repeated or unknown, a stage is empty, or two builds differ.
    """
    from autoft.freezing import check_stages

    module = backbone.build()
    stages = backbone.stages(module)
    try:
        check_stages(module, stages)
    except AutoftError as error:
        raise CheckFailed(f"{backbone.name}: {error.message}", error.hint) from error
    empty = [stage.name for stage in stages if not stage.parameters]
    if empty:
        raise CheckFailed(
            f"{backbone.name}: every stage must hold a parameter, but {empty[0]} holds none",
            "leave it out: freezing it would change nothing",
        )
    if backbone.stages(backbone.build()) != stages:
        raise CheckFailed(
            f"{backbone.name}: `stages` must give the same for every build, but two builds differ",
            "derive names and order from the module's structure alone",
        )


def check_frozen_stages_do_not_change(backbone: Backbone) -> None:
    """Check, for every depth, that training changes nothing in frozen stages and reaches everything after them.

    Parameters and buffers of frozen stages must be bit-identical after optimizer steps in training mode, and every other
    parameter must get a gradient. With all stages frozen, training mode must give the features of evaluation: no dropout.

    Raises:
        CheckFailed: Names the first parameter or buffer, and the depth.
    """
    import torch

    from autoft.freezing import frozen_modules, frozen_parameters

    module = backbone.build()
    model = with_linear(backbone, module)
    stages = model.stages
    inputs = make_inputs(backbone, BATCH)
    for depth in range(len(stages) + 1):
        model.freeze(depth)
        frozen = frozen_parameters(stages, depth)
        held = frozen | _frozen_buffers(module, frozen, frozen_modules(module, frozen) if depth else ())
        before = {name: value.clone() for name, value in state_of(module) if name in held}
        without = train(model, inputs)
        if without:
            raise CheckFailed(
                f"{backbone.name}: every parameter that is not frozen must get a gradient, but at depth {depth} "
                f"{len(without)} get none, such as {without[0]}",
                "drop parameters that `forward` does not use, or list the stages from input to output",
            )
        changed = [name for name, value in state_of(module) if name in before and not identical(value, before[name])]
        if changed:
            kind = "parameter" if changed[0] in frozen else "buffer"
            raise CheckFailed(
                f"{backbone.name}: frozen stages must not change in training, but at depth {depth} the {kind} "
                f"{changed[0]} does",
                "let normalization follow `self.training`, which is False in frozen modules, and update buffers only then"
                if kind == "buffer"
                else "do not write to parameters in `forward`",
            )
    model.train()
    with torch.no_grad():
        training = module(*inputs)
        model.eval()
        evaluation = module(*inputs)
    pairs = list(zip(feature_tensors(training), feature_tensors(evaluation), strict=True))
    if not all(torch.equal(one, other) for one, other in pairs):
        raise CheckFailed(
            f"{backbone.name}: with all stages frozen, training mode must give the features of evaluation, but they differ "
            f"by {max(float((one - other).abs().max()) for one, other in pairs):.3g}",
            "let dropout follow `self.training` of a module inside the stage",
        )


def check_builds_share_nothing(backbone: Backbone) -> None:
    """Check that two builds share no module and no memory, and that training one leaves the other as it was.

    Raises:
        CheckFailed: Names what they share, or what changed.
    """
    import torch

    first, second = backbone.build(), backbone.build()
    inputs = make_inputs(backbone, BATCH)
    hint = "make every module and tensor inside `build`, none outside of it"
    modules = {id(module) for module in first.modules()}
    for name, module in second.named_modules():
        if id(module) in modules:
            raise CheckFailed(
                f"{backbone.name}: two builds must share nothing, but share the module {name or 'itself'}", hint
            )
    storages = {value.untyped_storage().data_ptr() for _, value in state_of(first) if value.numel()}
    for name, value in state_of(second):
        if value.numel() and value.untyped_storage().data_ptr() in storages:
            raise CheckFailed(f"{backbone.name}: two builds must share nothing, but share the memory of {name}", hint)
    before = {name: value.clone() for name, value in state_of(second)}
    with torch.no_grad():
        features = second.eval()(*inputs)
    train(with_linear(backbone, first), inputs)
    changed = [name for name, value in state_of(second) if not identical(value, before[name])]
    if changed:
        raise CheckFailed(
            f"{backbone.name}: training one build must leave others as they were, but {changed[0]} moved", hint
        )
    with torch.no_grad():
        again = zip(feature_tensors(second(*inputs)), feature_tensors(features), strict=True)
        if not all(torch.equal(one, other) for one, other in again):
            raise CheckFailed(f"{backbone.name}: training one build must leave others alone, but their features moved", hint)


def check_feature_shape(backbone: Backbone) -> None:
    """Check that features are as promised at batch 1 and 3, finite, and the same for a sample in any batch.

    Raises:
        CheckFailed: The kind is unknown, the shape is another, or a value is not finite or depends on its neighbours.
    """
    import torch

    wanted = FEATURE_DIMENSIONS.get(backbone.features)
    if wanted is None:
        raise CheckFailed(
            f"{backbone.name}: features must be one of {', '.join(FEATURE_DIMENSIONS)}, but are {backbone.features!r}"
        )
    module = backbone.build().eval()
    inputs = make_inputs(backbone, 3)
    with torch.inference_mode():
        found = {count: module(*(item[:count] for item in inputs)) for count in (1, 3)}
    for count, features in found.items():
        given = features if wanted == 4 and isinstance(features, tuple) else (features,)
        strange = next((item for item in given if not isinstance(item, torch.Tensor)), None)
        if strange is not None or (wanted == 4 and not isinstance(features, tuple)):
            kind, what = ("a tuple of tensors", features) if wanted == 4 else ("a tensor", strange)
            raise CheckFailed(f"{backbone.name}: features must be {kind}, but are a {type(what).__name__}")
        shapes, shown = _promised_shapes(backbone, module, count, inputs), [tuple(item.shape) for item in given]
        if shown != shapes:
            one = wanted != 4
            raise CheckFailed(
                f"{backbone.name}: {backbone.features} features of {count} samples must be {shapes[0] if one else shapes}, "
                f"but are {shown[0] if one else shown}",
                "mend `feature_size`, or pool in the module" if wanted == 2 else "mend `feature_size`, or do not pool",
            )
        for item in given:
            if not item.is_floating_point() or not bool(torch.isfinite(item).all()):
                raise CheckFailed(
                    f"{backbone.name}: features must be finite floating-point numbers, but are not, as {item.dtype}"
                )
    both = zip(feature_tensors(found[3]), feature_tensors(found[1]), strict=True)
    apart = max(distance(item[:1], alone) for item, alone in both)
    if not apart <= TOLERANCE:
        raise CheckFailed(
            f"{backbone.name}: a sample's features must not depend on its batch, but move by {apart:.3g} with neighbours",
            "compute nothing over the batch axis in evaluation",
        )


def _promised_shapes(backbone: Backbone, module: nn.Module, count: int, inputs: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    """Return the shapes of the features of so many samples, as the backbone declares them."""
    size = backbone.feature_size(module)
    if not isinstance(size, tuple):
        return [(count, size) if backbone.features == "pooled" else (count, inputs[0].shape[1], size)]
    height, width = inputs[0].shape[-2:]
    return [(count, each.channels, height // each.stride, width // each.stride) for each in size]


def check_batch_order(backbone: Backbone) -> None:
    """Check that a sample's features are the same wherever in a batch it stands.

    Raises:
        CheckFailed: They move with its place.
    """
    import torch

    module = backbone.build().eval()
    inputs = make_inputs(backbone, BATCH)
    with torch.inference_mode():
        there = feature_tensors(module(*inputs))
        back = [item.flip(0) for item in feature_tensors(module(*(item.flip(0) for item in inputs)))]
    apart = max(distance(one, other) for one, other in zip(back, there, strict=True))
    if not apart <= TOLERANCE:
        raise CheckFailed(
            f"{backbone.name}: a sample's features must not depend on its place in the batch, but move by {apart:.3g} where "
            "the order is reversed",
            "treat every row alike",
        )


def check_export_parity(backbone: Backbone, head: Head) -> None:
    """Check that the model exports to ONNX, and that ONNX Runtime gives torch's outputs at batch 1, 2 and 7.

    Texts are of other lengths than the traced ones too: from the shortest there is to the longest that is let through.

    Raises:
        CheckFailed: It cannot be exported or run, or an output differs by more than 1e-3.
    """
    import onnxruntime
    import torch

    from autoft.export.graphs import make_session
    from autoft.export.onnx import output_names, to_onnx
    from autoft.model import assemble

    targets = head.describe(make_targets(head))
    knobs = {knob.name: knob.default for knob in head.knobs}
    model = assemble(backbone, head, targets, knobs, seed=0)
    train(model, make_inputs(backbone, BATCH))  # running statistics as a trained model has them
    with torch.no_grad():
        for parameter in model.head.parameters():
            # heads start near zero, where any two graphs agree
            parameter.normal_(std=(parameter.shape[-1] if parameter.dim() else 1) ** -0.5)
    model.eval()
    is_text = backbone.modality == "text"
    batches = [(f"batch {count}", make_inputs(backbone, count)) for count in EXPORT_BATCHES]
    if is_text:
        batches.append(("the greatest length", make_longest(backbone)))
    try:
        proto = to_onnx(
            model,
            head.activation,
            batches[1][1],
            input_names=backbone.inputs,
            labels=targets.labels,
            scores=head.scores,
            lengths=is_text,
        )
    except AutoftError as error:
        raise CheckFailed(f"{backbone.name} must export to ONNX: {error.message}", error.hint) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a graph that fails is reported below, once
    session = make_session(proto, options)
    names = output_names(head.scores)
    for where, inputs in batches:
        with torch.inference_mode():
            outputs = model(*inputs)
            wanted = (outputs, head.activation(outputs))[: len(names)]
        try:
            named = {name: item.numpy() for name, item in zip(backbone.inputs, inputs, strict=True)}
            found = session.run(list(names), named)
        except Exception as error:
            raise CheckFailed(
                f"{backbone.name}: the exported graph must run at {where}, but fails: {first_line(error)}",
                "take sizes from the input's shape, never from a constant",
            ) from error
        for name, theirs, ours in zip(names, map(torch.from_numpy, found), wanted, strict=True):
            apart = distance(real_rows(theirs, backbone, inputs), real_rows(ours, backbone, inputs))
            if not apart <= TOLERANCE:  # written so that NaN fails
                raise CheckFailed(
                    f"{backbone.name}: {name} of the graph may differ from torch's by {TOLERANCE:g}, but at {where} "
                    f"differ by {apart:.3g}",
                    "avoid Python conditions on sizes or values in `forward`: a graph keeps one branch",
                )


CHECKS: tuple[Check, ...] = (
    Check(
        "stages-partition",
        "the stages hold every parameter of the module exactly once",
        lambda backbone, head: check_stages_partition(backbone),
    ),
    Check(
        "frozen-stages-do-not-change",
        "at every depth, training leaves frozen parameters and buffers as they are and reaches all others",
        lambda backbone, head: check_frozen_stages_do_not_change(backbone),
    ),
    Check(
        "builds-share-nothing",
        "training one build leaves others as they are",
        lambda backbone, head: check_builds_share_nothing(backbone),
    ),
    Check(
        "feature-shape",
        "features have the promised kind and size, whatever the batch",
        lambda backbone, head: check_feature_shape(backbone),
    ),
    Check(
        "batch-order",
        "a sample's features do not depend on its place in the batch",
        lambda backbone, head: check_batch_order(backbone),
    ),
    Check(
        "padding",
        "a text's features do not depend on the padding behind it",
        lambda backbone, head: check_padding(backbone),
        modality="text",
    ),
    Check(
        "truncation",
        "long texts are cut to a length that the model takes, end as whole ones do, and are reported",
        lambda backbone, head: check_truncation(backbone),
        modality="text",
    ),
    Check(
        "decoding",
        "texts become the same tokens one by one and together",
        lambda backbone, head: check_decoding(backbone),
        modality="text",
    ),
    Check(
        "bundle-inputs",
        "the bundle's script makes the inputs of training, from the bundle's tokenizer",
        lambda backbone, head: check_bundle_inputs(backbone),
        modality="text",
    ),
    Check(
        "words",
        "each tagged word has its tag at its first token",
        lambda backbone, head: check_words(backbone),
        modality="text",
    ),
    Check(
        "bundle-inputs",
        "the bundle's script makes the inputs of training, from the declaration of the preprocessing",
        lambda backbone, head: check_image_inputs(backbone),
        modality="image",
    ),
    Check(
        "augmentation",
        "random variants have the shape of evaluation, and depend on the given random numbers alone",
        lambda backbone, head: check_augmentation(backbone),
        modality="image",
    ),
    Check(
        "no-network",
        "a build with random weights opens no connection",
        lambda backbone, head: check_no_network(backbone),
    ),
    Check(
        "worker",
        "the preprocessing survives pickling, and another process makes the same model by its name",
        lambda backbone, head: check_worker(backbone),
    ),
    *(Check(name, about, run) for name, about, run in TRAINING_CHECKS),
    Check(
        "cuts",
        "the outputs of frozen stages can be stored and replayed with equal outputs and gradients; a warning where not",
        lambda backbone, head: check_cuts(backbone),
    ),
    Check(
        "export-parity",
        "the exported graph gives torch's outputs at batch 1, 2 and 7, and for texts at other lengths",
        check_export_parity,
    ),
)


def _frozen_buffers(module: nn.Module, frozen: frozenset[str], held: tuple[str, ...]) -> frozenset[str]:
    """Return the buffers of modules whose own parameters are all frozen, and of modules that freezing holds in eval."""
    names = set()
    for name, owner in module.named_modules():
        prefix = f"{name}." if name else ""
        own = [f"{prefix}{parameter}" for parameter, _ in owner.named_parameters(recurse=False)]
        if name in held or (own and all(parameter in frozen for parameter in own)):
            names |= {f"{prefix}{buffer}" for buffer, _ in owner.named_buffers(recurse=False)}
    return frozenset(names)
