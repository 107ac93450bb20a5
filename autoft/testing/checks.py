"""The conformance kit: what a backbone must hold to be trained, frozen, repeated and exported; each rule is a check.

A check raises `CheckFailed`, or returns. Backbones should be resolved with `weights="none"`, which needs no network.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoft.errors import AutoftError, first_line
from autoft.specs import Backbone, Head

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autoft.model import FineTuneModel

FEATURE_DIMENSIONS = {"pooled": 2}
EXPORT_BATCHES = (1, 2, 7)  # traced with 2; 1 is what servers send most, 7 is neither a power of two nor the trace
TOLERANCE = 1e-3  # largest difference of any output between torch and ONNX Runtime: the gate's own default
CLASSES = ("a", "b", "c")
BATCH = 4
STEPS = 2


class CheckFailed(AutoftError):  # noqa: N818 - a verdict on a plugin, not an error of autoft
    """A backbone or head breaks a rule of the contract; the message says which, and by what."""


@dataclass(frozen=True)
class Check:
    """One rule of the contract.

    Attributes:
        id: Short name, as `run_checks` reports it.
        about: The rule, in a line.
        run: Raises `CheckFailed` where a backbone under a head breaks it.
    """

    id: str
    about: str
    run: Callable[[Backbone, Head], None]


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        id: The check's.
        passed: Whether the rule holds.
        message: Empty if it holds, otherwise what broke it.
        seconds: How long it took.
    """

    id: str
    passed: bool
    message: str
    seconds: float


def run_checks(backbone: Backbone, head: Head) -> list[CheckResult]:
    """Run every check; one that fails, or that the plugin's code makes crash, does not keep the others from running."""
    results = []
    for check in CHECKS:
        started = time.monotonic()
        try:
            check.run(backbone, head)
            message = ""
        except AutoftError as error:
            message = str(error)
        except Exception as error:  # noqa: BLE001 - the code under test is the plugin's: a crash is a finding
            place = traceback.extract_tb(error.__traceback__)[-1]
            message = f"raised {type(error).__name__}: {error} (at {place.filename}:{place.lineno})"
        results.append(CheckResult(check.id, not message, message, time.monotonic() - started))
    return results


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
    model = _with_linear(backbone, module)
    stages = model.stages
    inputs = _inputs(backbone, BATCH)
    for depth in range(len(stages) + 1):
        model.freeze(depth)
        frozen = frozen_parameters(stages, depth)
        held = frozen | _frozen_buffers(module, frozen, frozen_modules(module, frozen) if depth else ())
        before = {name: value.clone() for name, value in _state(module) if name in held}
        without = _train(model, inputs)
        if without:
            raise CheckFailed(
                f"{backbone.name}: every parameter that is not frozen must get a gradient, but at depth {depth} "
                f"{len(without)} get none, such as {without[0]}",
                "drop parameters that `forward` does not use, or list the stages from input to output",
            )
        changed = [name for name, value in _state(module) if name in before and not _identical(value, before[name])]
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
    if not torch.equal(training, evaluation):
        raise CheckFailed(
            f"{backbone.name}: with all stages frozen, training mode must give the features of evaluation, but they differ "
            f"by {float((training - evaluation).abs().max()):.3g}",
            "let dropout follow `self.training` of a module inside the stage",
        )


def check_builds_share_nothing(backbone: Backbone) -> None:
    """Check that two builds share no module and no memory, and that training one leaves the other as it was.

    Raises:
        CheckFailed: Names what they share, or what changed.
    """
    import torch

    first, second = backbone.build(), backbone.build()
    inputs = _inputs(backbone, BATCH)
    hint = "make every module and tensor inside `build`, none outside of it"
    modules = {id(module) for module in first.modules()}
    for name, module in second.named_modules():
        if id(module) in modules:
            raise CheckFailed(
                f"{backbone.name}: two builds must share nothing, but share the module {name or 'itself'}", hint
            )
    storages = {value.untyped_storage().data_ptr() for _, value in _state(first) if value.numel()}
    for name, value in _state(second):
        if value.numel() and value.untyped_storage().data_ptr() in storages:
            raise CheckFailed(f"{backbone.name}: two builds must share nothing, but share the memory of {name}", hint)
    before = {name: value.clone() for name, value in _state(second)}
    with torch.no_grad():
        features = second.eval()(*inputs)
    _train(_with_linear(backbone, first), inputs)
    changed = [name for name, value in _state(second) if not _identical(value, before[name])]
    if changed:
        raise CheckFailed(
            f"{backbone.name}: training one build must leave others as they were, but {changed[0]} moved", hint
        )
    with torch.no_grad():
        if not torch.equal(second(*inputs), features):
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
    size = backbone.feature_size(module)
    inputs = _inputs(backbone, 3)
    with torch.inference_mode():
        found = {count: module(*(item[:count] for item in inputs)) for count in (1, 3)}
    for count, features in found.items():
        if not isinstance(features, torch.Tensor):
            raise CheckFailed(f"{backbone.name}: features must be a tensor, but are a {type(features).__name__}")
        if tuple(features.shape) != (count, size):
            raise CheckFailed(
                f"{backbone.name}: {backbone.features} features of {count} samples must be {(count, size)}, but are "
                f"{tuple(features.shape)}",
                "mend `feature_size`, or pool in the module",
            )
        if not features.is_floating_point() or not bool(torch.isfinite(features).all()):
            raise CheckFailed(
                f"{backbone.name}: features must be finite floating-point numbers, but are not, as {features.dtype}"
            )
    apart = float((found[1] - found[3][:1]).abs().max())
    if apart > TOLERANCE * max(1.0, float(found[1].abs().max())):
        raise CheckFailed(
            f"{backbone.name}: a sample's features must not depend on its batch, but move by {apart:.3g} with neighbours",
            "compute nothing over the batch axis in evaluation",
        )


def check_export_parity(backbone: Backbone, head: Head) -> None:
    """Check that the model exports to ONNX, and that ONNX Runtime gives torch's outputs at batch 1, 2 and 7.

    Raises:
        CheckFailed: It cannot be exported or run, or an output differs by more than 1e-3.
    """
    import numpy as np
    import onnxruntime
    import torch

    from autoft.export.onnx import OUTPUTS, to_onnx
    from autoft.model import assemble

    targets = head.describe(CLASSES)
    knobs = {knob.name: knob.default for knob in head.knobs}
    model = assemble(backbone, head, targets, knobs, seed=0)
    _train(model, _inputs(backbone, BATCH))  # running statistics as a trained model has them
    with torch.no_grad():
        for parameter in model.head.parameters():
            # heads start near zero, where any two graphs agree
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    model.eval()
    inputs = _inputs(backbone, max(EXPORT_BATCHES))
    try:
        example = tuple(item[:2] for item in inputs)
        proto = to_onnx(model, head.activation, example, input_names=backbone.inputs, labels=targets.labels)
    except AutoftError as error:
        raise CheckFailed(f"{backbone.name} must export to ONNX: {error.message}", error.hint) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a graph that fails is reported below, once
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for count in EXPORT_BATCHES:
        few = tuple(item[:count] for item in inputs)
        with torch.inference_mode():
            outputs = model(*few)
            wanted = {"logits": outputs.numpy(), "probabilities": head.activation(outputs).numpy()}
        try:
            named = {name: item.numpy() for name, item in zip(backbone.inputs, few, strict=True)}
            found = dict(zip(OUTPUTS, session.run(list(OUTPUTS), named), strict=True))
        except Exception as error:
            raise CheckFailed(
                f"{backbone.name}: the exported graph must run at batch {count}, but fails: {first_line(error)}",
                "take the batch size from the input's shape, never from a constant",
            ) from error
        for name in OUTPUTS:
            same_shape = found[name].shape == wanted[name].shape
            apart = float(np.abs(found[name] - wanted[name]).max()) if same_shape else float("inf")
            if not apart <= TOLERANCE:  # written so that NaN fails
                raise CheckFailed(
                    f"{backbone.name}: {name} of the graph may differ from torch's by {TOLERANCE:g}, but at batch {count} "
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
        "export-parity",
        "the exported graph gives torch's outputs at batch 1, 2 and 7",
        check_export_parity,
    ),
)


def _inputs(backbone: Backbone, count: int) -> tuple[Tensor, ...]:
    """Make the backbone's inputs for `count` generated samples, through its own preprocessing."""
    import torch

    from autoft.testing.toy import paint_png

    if backbone.modality != "image":
        raise CheckFailed(f"the kit can make samples for image backbones, but {backbone.name} takes {backbone.modality}")
    size = max(backbone.image_size or (32, 32)) + 3  # not the input's own size: decoding must resize
    sources = [paint_png(number % 3, 3, seed=(number,), size=size) for number in range(count)]
    decoded = torch.stack([backbone.preprocessing.decode(source, augmented=False) for source in sources])
    inputs = backbone.preprocessing.inputs(decoded)
    if len(inputs) != len(backbone.inputs):
        raise CheckFailed(f"{backbone.name} names {len(backbone.inputs)} inputs, but its preprocessing gives {len(inputs)}")
    return inputs


def _with_linear(backbone: Backbone, module: nn.Module) -> FineTuneModel:
    from torch import nn

    from autoft.model import FineTuneModel

    return FineTuneModel(module, nn.Linear(backbone.feature_size(module), len(CLASSES)), backbone.stages(module))


def _train(model: FineTuneModel, inputs: tuple[Tensor, ...]) -> list[str]:
    """Take a few optimizer steps in training mode; return the backbone's trainable parameters that got no gradient."""
    import torch
    from torch.nn import functional as F

    wanted = torch.arange(len(inputs[0])) % len(CLASSES)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(*inputs), wanted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    without = [name for name, p in model.backbone.named_parameters() if p.requires_grad and p.grad is None]
    optimizer.zero_grad(set_to_none=True)
    return without


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers, also buffers that are not saved: they change the outputs all the same."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        yield name, parameter.detach()
    yield from module.named_buffers(remove_duplicate=False)


def _frozen_buffers(module: nn.Module, frozen: frozenset[str], held: tuple[str, ...]) -> frozenset[str]:
    """Return the buffers of modules whose own parameters are all frozen, and of modules that freezing holds in eval."""
    names = set()
    for name, owner in module.named_modules():
        prefix = f"{name}." if name else ""
        own = [f"{prefix}{parameter}" for parameter, _ in owner.named_parameters(recurse=False)]
        if name in held or (own and all(parameter in frozen for parameter in own)):
            names |= {f"{prefix}{buffer}" for buffer, _ in owner.named_buffers(recurse=False)}
    return frozenset(names)


def _identical(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors hold the same bits; equal NaNs count as equal, 0.0 and -0.0 do not."""
    import torch

    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    flat = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*flat)
