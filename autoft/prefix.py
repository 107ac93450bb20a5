"""Cuts a model behind its frozen stages, proves the cut exact, and replays what follows; it stores nothing.

Nothing here knows an architecture. The model's own forward runs: frozen modules before the cut answer with placeholders, the
cut with its stored activation, and everything behind it computes as ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autoft.freezing import frozen_parameters
from autoft.model import FineTuneModel
from autoft.train import autocast

Inputs = tuple[Tensor, ...]
WHOLE = ""  # the backbone itself, as its own cut: nothing of it is trained
GRADIENT_TOLERANCE = 1e-6  # relative to a parameter's largest gradient: sums may be taken in another order


@dataclass(frozen=True)
class _Axis:
    """How long an axis is: `size` itself, or so many for each row of the batch or each place along its length."""

    size: int
    per: Literal["batch", "row", "place"]


@dataclass(frozen=True)
class _Shape:
    """Shape and dtype of a tensor, for batches of any size and length."""

    axes: tuple[_Axis, ...]
    dtype: torch.dtype

    def sizes(self, rows: int, length: int) -> tuple[int, ...]:
        return tuple(axis.size * {"batch": 1, "row": rows, "place": length}[axis.per] for axis in self.axes)


@dataclass(frozen=True)
class _Call:
    """One call of a frozen module: its name, and its output with a `_Shape` in the place of each tensor."""

    module: str
    output: Any


@dataclass(frozen=True)
class Cut:
    """Where a model is cut, and what stands in for the modules before.

    Attributes:
        module: Name of the module in the backbone whose output is stored; empty for the backbone itself.
        depth: Stages that lie before the cut; may be fewer than are frozen.
        ragged: Whether the activation is `(N, T, ...)` with T the inputs' length, so that padding need not be stored.
        takes_inputs: Whether the replay is given the original inputs too, as for texts, whose masks are made from them.
        mask: Which input is 0 at padding, or None.
    """

    module: str
    depth: int
    ragged: bool
    takes_inputs: bool
    mask: int | None
    _calls: tuple[_Call, ...]
    _inputs: tuple[_Shape, ...]
    _kept: frozenset[str] = frozenset()  # frozen modules that run all the same: what they give is used behind the cut
    _solid: bool = False  # whether placeholders own their memory, for models that write into them

    @property
    def row_bytes(self) -> int:
        """Bytes of the activation of a row, or where it is ragged of one place of it."""
        (shape,) = _shapes(self._calls[-1].output)
        sizes = shape.sizes(1, 1)[2 if self.ragged else 1 :]
        return math.prod(sizes) * shape.dtype.itemsize

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the activation, as the model gives it in the precision that the cut was found in."""
        (shape,) = _shapes(self._calls[-1].output)
        return shape.dtype

    def carried(self, inputs: Inputs) -> Inputs:
        """Return those of the original inputs that a replay is given besides the activation."""
        return inputs if self.takes_inputs else ()


class _Unfit(Exception):  # noqa: N818 - an answer, not an error
    """Says why a place cannot be a cut."""


class _Reached(Exception):  # noqa: N818 - a way out of a forward pass, not an error
    """Leaves a forward pass at the cut."""


def find_cut(
    model: FineTuneModel,
    depth: int,
    batches: Sequence[Inputs],
    *,
    mask: int | None = None,
    precision: str = "fp32",
) -> tuple[Cut | None, tuple[str, ...]]:
    """Find the deepest cut within the first `depth` stages that is proven exact.

    Proven means, for both batches: in evaluation the outputs are equal bit for bit, and in training, from the same random
    state, outputs and the gradients of all trained parameters are equal. Where a cut fails, the next shallower one is tried.

    Args:
        model: On its device; left frozen at `depth`, its weights, running statistics and mode unchanged.
        depth: Stages frozen, counted from the input.
        batches: Two batches of inputs, of at least two rows, that differ in their numbers of rows and in their lengths.
        mask: Which of the inputs is 0 at padding, for inputs `(N, T)`; None where rows have no length.
        precision: Of the training, as in `TrainConfig`.

    Returns:
        The cut, or None; and for each place that was tried and failed, why.
    """
    if len(batches) != 2 or len({len(batch[0]) for batch in batches}) != 2 or min(len(batch[0]) for batch in batches) < 2:
        raise ValueError("`batches` must be two batches of different size, each of at least 2 rows")
    if mask is not None and len({batch[mask].shape[1] for batch in batches}) != 2:
        raise ValueError("`batches` must be of different length")
    model.freeze(depth)
    failures: list[str] = []
    with _unchanged(model):
        for shallower in range(depth, 0, -1):
            try:
                candidates = _candidates(model, shallower, batches, mask, precision)
            except _Unfit as reason:
                failures.append(f"depth {shallower}: {reason}")
                continue
            why = ""
            for candidate in candidates:
                try:
                    _verify(model, candidate, batches, precision)
                except _Unfit as reason:
                    why = why or str(reason)  # the first is about the plainest replay, so the most telling
                else:
                    return candidate, tuple(failures)
            failures.append(f"depth {shallower}: {why}")
    return None, tuple(failures)


@contextmanager
def replaying(model: FineTuneModel, cut: Cut) -> Iterator[FineTuneModel]:
    """Let a model start at a cut: within the context it takes `(activation, *cut.carried(inputs))`.

    Its parameters, their names and its mode stay its own, so it is trained, saved and evaluated as before.
    """
    backbone = model.backbone
    run = backbone.forward
    # shared by the functions below
    current: dict[str, Any] = {"call": 0}

    def begin(activation: Tensor, *inputs: Tensor) -> Any:
        if cut.module == WHOLE:
            return activation
        rows = len(activation)
        if not cut.takes_inputs:
            inputs = tuple(_placeholder(cut, shape, rows, 1, activation.device) for shape in cut._inputs)
        length = inputs[cut.mask].shape[1] if cut.mask is not None else 1
        current.update(call=0, activation=activation, rows=rows, length=length)
        outputs = run(*inputs)
        if current["call"] != len(cut._calls):
            raise RuntimeError(f"the model took another way than when it was cut: it never reached {cut.module}")
        return outputs

    def answer(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def answered(*arguments: Any, **named: Any) -> Any:
            number = current["call"]
            if number >= len(cut._calls):
                return forward(*arguments, **named)  # behind the cut all runs
            if cut._calls[number].module != name:
                raise RuntimeError(f"the model took another way than when it was cut: {name} was not expected")
            current["call"] += 1
            if number == len(cut._calls) - 1:
                return _fill(cut._calls[number].output, lambda shape: current["activation"])
            if name in cut._kept:
                return forward(*arguments, **named)
            device = current["activation"].device
            return _fill(
                cut._calls[number].output,
                lambda shape: _placeholder(cut, shape, current["rows"], current["length"], device),
            )

        return answered

    replaced: dict[nn.Module, Callable[..., Any]] = {backbone: begin}
    for name in {call.module for call in cut._calls} - {WHOLE}:
        module = backbone.get_submodule(name)
        replaced[module] = answer(name, module.forward)
    with _patched(replaced):
        yield model


def record(model: FineTuneModel, cut: Cut, inputs: Inputs) -> Tensor:
    """Return the activation at a cut for a batch, computed no further than the cut.

    Works in a `replaying` context of a shallower cut as well: the inputs are then what that takes.

    Args:
        model: In evaluation mode, under the autocast of the training.
        cut: Where.
        inputs: Of the model.

    Returns:
        `(N, ...)`; rows of a text are 0 at padding.
    """
    module = model.backbone.get_submodule(cut.module)
    run = module.forward
    last = sum(call.module == cut.module for call in cut._calls)
    found: list[Tensor] = []
    calls = 0

    def watched(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        output = run(*arguments, **named)
        if calls == last:
            found.append(_tensors(output)[0])
            raise _Reached
        return output

    with torch.no_grad(), _patched({module: watched}), suppress(_Reached):
        model.backbone(*inputs)
    if not found:
        raise RuntimeError(f"the model took another way than when it was cut: it never reached {cut.module}")
    activation = found[0].detach()
    if not cut.ragged:
        return activation
    assert cut.mask is not None  # only rows with a length are ragged
    mask = inputs[cut.mask - len(cut._inputs)].bool()  # from the end: a replay's inputs begin with an activation
    return activation.masked_fill(~mask.view(*mask.shape, *(1 for _ in activation.shape[2:])), 0)


# --- finding ----------------------------------------------------------------------------------------------------------


def _candidates(
    model: FineTuneModel, depth: int, batches: Sequence[Inputs], mask: int | None, precision: str
) -> tuple[Cut, ...]:
    """Return ways to replay the last frozen module, the cheapest first.

    Raises:
        _Unfit: There is no frozen module, or what it gives cannot be stored.
    """
    frozen = frozen_parameters(model.stages, depth)
    held = {id(parameter) for name, parameter in model.backbone.named_parameters() if name in frozen}
    wholly = {
        name: module
        for name, module in model.backbone.named_modules()
        if any(True for _ in module.parameters()) and all(id(parameter) in held for parameter in module.parameters())
    }
    traces = [_trace(model, wholly, batch, precision) for batch in batches]
    names = [tuple(name for name, _ in trace) for trace in traces]
    if not names[0]:
        raise _Unfit("no module is frozen as a whole")
    if names[0] != names[1]:
        raise _Unfit("which modules run depends on the batch")
    rows = tuple(len(batch[0]) for batch in batches)
    lengths = tuple(1 if mask is None else batch[mask].shape[1] for batch in batches)
    outputs = zip(*([output for _, output in trace] for trace in traces), strict=True)
    calls = tuple(_Call(name, _describe(both, rows, lengths)) for name, both in zip(names[0], outputs, strict=True))
    # the last call that can be stored: some models end their frozen part with, say, a norm of their position embeddings
    reasons = [_unstorable(call) for call in calls]
    if None not in reasons:
        raise _Unfit(str(reasons[-1]))
    calls = calls[: len(reasons) - reasons[::-1].index(None)]
    name = calls[-1].module
    ragged = _is_ragged(_shapes(calls[-1].output)[0])
    inputs = tuple(_describe(both, rows, lengths) for both in zip(*batches, strict=True))
    plain = Cut(name, depth, ragged, mask is not None, mask, calls, inputs)
    if name == WHOLE:
        return (plain,)
    beside = frozenset(call.module for call in calls if _parent(call.module) != _parent(name))
    ways = [plain, replace(plain, _solid=True)]
    if beside and plain.takes_inputs:
        ways.append(replace(plain, _kept=beside))
    return tuple(ways)


def _unstorable(call: _Call) -> str | None:
    """Return why a call's output cannot be stored row by row, or None where it can."""
    name, shapes = call.module or "the backbone", _shapes(call.output)
    if len(shapes) != 1 or (call.module == WHOLE and not isinstance(call.output, _Shape)):
        return f"{name} gives {len(shapes)} tensors"
    axes = shapes[0].axes
    if not axes or axes[0] != _Axis(1, "row"):
        return f"what {name} gives does not begin with the batch's rows"
    if any(axis.per != "batch" for axis in axes[2 if _is_ragged(shapes[0]) else 1 :]):
        return f"what {name} gives for a row depends on the batch"
    return None


def _is_ragged(shape: _Shape) -> bool:
    return len(shape.axes) > 1 and shape.axes[1] == _Axis(1, "place")


def _trace(model: FineTuneModel, wholly: Mapping[str, nn.Module], inputs: Inputs, precision: str) -> list[tuple[str, Any]]:
    """Run the backbone, and return the calls of wholly frozen modules that no other such module made."""
    calls: list[tuple[str, Any]] = []
    inside = 0

    def watch(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            nonlocal inside
            inside += 1
            try:
                output = run(*arguments, **named)
            finally:
                inside -= 1
            if not inside:
                calls.append((name, output))
            return output

        return watched

    model.eval()
    patches = {module: watch(name, module.forward) for name, module in wholly.items()}
    with torch.no_grad(), autocast(inputs[0].device, precision), _patched(patches):
        model.backbone(*inputs)
    return calls


def _describe(both: tuple[Any, Any], rows: tuple[int, ...], lengths: tuple[int, ...]) -> Any:
    """Return an output of two batches with a `_Shape` in the place of each tensor."""
    first, second = both
    if isinstance(first, Tensor):
        if first.ndim != second.ndim:
            raise _Unfit("a frozen module gives tensors of different rank")
        axes = [_axis(sizes, rows, lengths) for sizes in zip(first.shape, second.shape, strict=True)]
        return _Shape(tuple(axes), first.dtype)
    if type(first) in (tuple, list) and len(first) == len(second):
        return type(first)(_describe(pair, rows, lengths) for pair in zip(first, second, strict=True))
    if type(first) is dict and first.keys() == second.keys():
        return {key: _describe((value, second[key]), rows, lengths) for key, value in first.items()}
    if first is None or isinstance(first, bool | int | float | str):
        return first
    raise _Unfit(f"a frozen module gives a {type(first).__name__}")


def _axis(sizes: tuple[int, int], rows: tuple[int, ...], lengths: tuple[int, ...]) -> _Axis:
    if sizes[0] == sizes[1]:
        return _Axis(sizes[0], "batch")
    for per, counts in (("row", rows), ("place", lengths)):
        each = sizes[0] // counts[0]
        if (each * counts[0], each * counts[1]) == sizes:
            return _Axis(each, per)  # type: ignore[arg-type]
    raise _Unfit(f"an axis of {sizes[0]} and {sizes[1]} follows neither the batch's rows nor its length")


# --- proving ----------------------------------------------------------------------------------------------------------


def _verify(model: FineTuneModel, cut: Cut, batches: Sequence[Inputs], precision: str) -> None:
    """Check a cut.

    Raises:
        _Unfit: A replay differs, or fails.
    """
    for inputs in batches:
        device = inputs[0].device
        model.eval()
        with torch.no_grad(), autocast(device, precision):
            wanted = model(*inputs)
            activation = record(model, cut, inputs)
        again = (activation, *cut.carried(inputs))
        try:
            with torch.no_grad(), autocast(device, precision), replaying(model, cut):
                found = model(activation.clone(), *again[1:])
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise _Unfit(f"the replay from {cut.module} fails: {str(error).splitlines()[0]}") from error
        valid = _valid(wanted, inputs, cut)
        if found.shape != wanted.shape or found.dtype != wanted.dtype or not torch.equal(found[valid], wanted[valid]):
            raise _Unfit(f"the replay from {cut.module or 'the features'} gives other outputs")
        wanted, expected = _gradients(model, inputs, inputs, cut, precision)
        with replaying(model, cut):
            found, gradients = _gradients(model, (activation.clone(), *again[1:]), inputs, cut, precision)
        same = _close(found[valid], wanted[valid])
        if not same or any(not _close(*pair) for pair in zip(gradients, expected, strict=True)):
            raise _Unfit(f"the replay from {cut.module or 'the features'} trains otherwise")


def _gradients(
    model: FineTuneModel, given: Inputs, inputs: Inputs, cut: Cut, precision: str
) -> tuple[Tensor, list[Tensor | None]]:
    """Return outputs in training mode, and the gradients of the trained parameters for a fixed sum of them."""
    device = inputs[0].device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        model.train()
        with autocast(device, precision):
            outputs = model(*given)
        chosen = outputs[_valid(outputs, inputs, cut)].float()
        weights = torch.linspace(-1, 1, chosen.numel(), device=device).view_as(chosen)
        if not trained:
            return outputs.detach(), []
        gradients = torch.autograd.grad((chosen * weights).sum(), trained, allow_unused=True)
    return outputs.detach(), list(gradients)


def _valid(outputs: Tensor, inputs: Inputs, cut: Cut) -> Tensor:
    """Return which outputs count: all, or for outputs `(N, T, ...)` of texts those that are not padding's."""
    if cut.mask is not None and outputs.shape[:2] == inputs[cut.mask].shape:
        return inputs[cut.mask].bool()
    return torch.ones(len(outputs), dtype=torch.bool, device=outputs.device)


def _close(found: Tensor | None, wanted: Tensor | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    largest = float(wanted.abs().max()) if wanted.numel() else 0.0
    return torch.allclose(found, wanted, rtol=GRADIENT_TOLERANCE, atol=GRADIENT_TOLERANCE * largest)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put mode and buffers back, such as the running statistics that a pass in training mode changes."""
    training = model.training
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        model.train(training)


# --- small things -----------------------------------------------------------------------------------------------------


@contextmanager
def _patched(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward of some modules, on the instances alone."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            if own is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = own


def _placeholder(cut: Cut, shape: _Shape, rows: int, length: int, device: torch.device) -> Tensor:
    sizes = shape.sizes(rows, length)
    if cut._solid:
        return torch.zeros(sizes, dtype=shape.dtype, device=device)
    return torch.zeros((), dtype=shape.dtype, device=device).expand(sizes)


def _fill(output: Any, make: Callable[[_Shape], Tensor]) -> Any:
    """Return a described output with a tensor in the place of each `_Shape`."""
    if isinstance(output, _Shape):
        return make(output)
    if isinstance(output, tuple | list):
        return type(output)(_fill(item, make) for item in output)
    if isinstance(output, dict):
        return {key: _fill(value, make) for key, value in output.items()}
    return output


def _shapes(output: Any) -> list[_Shape]:
    found: list[_Shape] = []

    def note(shape: _Shape) -> Tensor:
        found.append(shape)
        return torch.empty(0)

    _fill(output, note)
    return found


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        return [tensor for value in output.values() for tensor in _tensors(value)]
    return [tensor for item in output for tensor in _tensors(item)] if isinstance(output, tuple | list) else []


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
