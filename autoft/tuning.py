"""Measures, before a backbone's first trial, what its trials run fastest with: micro-batch, precision, compilation."""

from __future__ import annotations

import gc
import importlib.util
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from autoft.errors import BackboneError, first_line
from autoft.loading import Batch, RaggedData, SplitData
from autoft.model import FineTuneModel
from autoft.train import (
    Objective,
    TrainConfig,
    autocast,
    choose_precision,
    compiled,
    make_optimizer,
    seed_everything,
    to_channels_last,
)
from autoft.worker import classify

PAIRS = 5  # steps of each kind that are compared, one after the other, so that a busy machine slows both
PRECISION_PAYS = 1.1  # times as fast that steps of a lower precision must be
# largest difference of an output, relative to the largest output, and of the loss: some 16 roundings of the format
AGREEMENT = {"fp32": 1e-3, "bf16": 16 * 2.0**-8, "fp16": 16 * 2.0**-11}
COMPILE_PAYS = 1.5  # times its cost that compilation must save in a trial: a trial may be stopped early
LEAST_COMPILE_SECONDS = 10.0  # no model was seen to compile in less; what could not save that is not tried
MOST_SPEEDUP = 2.0  # of compilation, at best, for the same purpose
USUAL_COMPILE_SECONDS = 60.0  # of a small transformer, forward and backward
PROBE_SHARE = 0.05  # of the time limit that a compilation only to find out may usually take, at most

_TRIED_ON = frozenset({"cuda", "mps"})  # where memory that runs out is an error

Build = Callable[[], FineTuneModel]
MEASURED = ("auto", "probe")  # what a study says to have a choice measured
Asked = bool | Literal["auto", "probe"]


@dataclass(frozen=True)
class Tuned:
    """What a backbone's trials run with.

    Attributes:
        precision: As in `TrainConfig`.
        compile: As in `TrainConfig`.
        micro_batch: As in `TrainConfig`: None where a whole batch fits.
        facts: What was measured and why it was decided so, JSON-ready; by `micro_batch`, `precision` and `compile`.
    """

    precision: str
    compile: bool
    micro_batch: int | None
    facts: dict[str, Any] = field(default_factory=dict)

    def apply(self, config: TrainConfig) -> TrainConfig:
        """Return a trial's configuration with these choices."""
        return replace(config, precision=self.precision, compile=self.compile, micro_batch=self.micro_batch)

    def to_dict(self) -> dict[str, Any]:
        """Return all as plain values, to be kept in the run folder: what was measured is never the same twice."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Tuned:
        """Return what `to_dict` gave.

        Raises:
            KeyError: Something is missing.
        """
        return cls(str(stored["precision"]), bool(stored["compile"]), stored["micro_batch"], dict(stored["facts"]))

    @property
    def text(self) -> str:
        """The choices in one line."""
        size = "a whole batch a pass" if self.micro_batch is None else f"{self.micro_batch} samples a pass"
        how = {"micro_batch": size, "precision": self.precision, "compile": "compiled" if self.compile else "not compiled"}
        return "; ".join(f"{said} ({self.facts[name]['why']})" if name in self.facts else said for name, said in how.items())


def tune(
    build: Build,
    train: SplitData,
    objective: Objective,
    config: TrainConfig,
    *,
    device: torch.device,
    precision: str = "auto",
    compiling: Asked = "auto",
    seconds: float | None = None,
    stored: Mapping[str, Any] | None = None,
) -> Tuned:
    """Decide what a backbone's trials run with, by measurements on the real model and real batches.

    Everything is measured with no stage frozen, which takes most memory and time. On the CPU, `auto` measures nothing, and
    is float32 without compilation: what is measured differs from run to run, and there a search is to repeat bit for bit.

    Args:
        build: Makes the model, as trials start with it; called for each measurement, as that trains what it is given.
        train: The training split.
        objective: Loss and metric.
        config: Of a trial; its precision, compilation and micro-batch are not looked at.
        device: Where trials run.
        precision: As asked: a format; `auto`, to measure on CUDA; `probe`, to measure on any device.
        compiling: As asked: true or false; `auto`, to measure on CUDA; `probe`, to measure on any device.
        seconds: Left of the search, or None for no limit.
        stored: What an earlier session of the same run decided (`Tuned.to_dict`): nothing is measured again.

    Raises:
        BackboneError: Compilation was asked for, and cannot be had.
    """
    if stored is not None:
        return _from_earlier(Tuned.from_dict(stored), device)
    start = "fp32" if precision in MEASURED else precision
    config = replace(config, precision=start, compile=False, micro_batch=None)
    facts: dict[str, Any] = {"device": device.type}
    micro, facts["micro_batch"] = largest_micro_batch(build, train, objective, config, device=device)
    if facts["micro_batch"]["fits"] is False:
        return Tuned(start, False, micro, facts)  # nothing can be measured
    config = replace(config, micro_batch=micro)
    chosen, facts["precision"] = measure_precision(build, train, objective, config, device=device, asked=precision)
    config = replace(config, precision=chosen)
    if chosen != start and micro is not None:  # a lower precision takes less memory
        micro, facts["micro_batch"] = largest_micro_batch(build, train, objective, config, device=device)
        config = replace(config, micro_batch=micro)
    use, facts["compile"] = measure_compilation(
        build, train, objective, config, device=device, asked=compiling, seconds=seconds
    )
    _free(device)
    return Tuned(chosen, use, micro, facts)


def largest_micro_batch(
    build: Build, train: SplitData, objective: Objective, config: TrainConfig, *, device: torch.device
) -> tuple[int | None, dict[str, Any]]:
    """Find how many samples can go through the model together, by steps of training on the longest samples there are.

    From the whole batch on, the number is halved while memory runs out. The effective batch stays as it is: gradients
    accumulate. On the CPU nothing is tried: there, memory that runs out ends the process, or slows the machine to a crawl,
    before any error is raised.

    Returns:
        The micro-batch, or None where a whole batch fits; and the facts. Where even one sample does not fit it is 1, and
        `fits` is false: the trials will say so.
    """
    if device.type not in _TRIED_ON:
        return None, {"why": f"not tried on {device.type}", "fits": None}
    micro: int | None = None
    failed: list[int] = []
    while True:
        try:
            _dry_run(build, train, objective, replace(config, micro_batch=micro), device)
            fits = True
        except (RuntimeError, MemoryError) as error:
            if classify(error) != "oom" and "out of memory" not in str(error):  # MPS raises a plain RuntimeError
                raise
            fits = False
        # outside the handler: the traceback no longer holds the tensors that filled the memory
        _free(device)
        current = micro or config.batch_size
        if fits:
            why = f"memory ran out with {failed[-1]}" if failed else "it fits"
            return micro, {"why": why, "fits": True, "failed": failed}
        failed.append(current)
        if current == 1:
            return 1, {"why": "memory ran out with a single sample", "fits": False, "failed": failed}
        micro = (current + 1) // 2


def measure_precision(
    build: Build, train: SplitData, objective: Objective, config: TrainConfig, *, device: torch.device, asked: str = "auto"
) -> tuple[str, dict[str, Any]]:
    """Choose between float32 and the lower precision that the device has: bf16, or fp16 on GPUs too old for that.

    The lower one is taken where its steps are at least `PRECISION_PAYS` times as fast, and the outputs and the loss of the
    untrained model agree with those of float32 within `AGREEMENT`.

    Returns:
        The precision, and the facts.
    """
    if asked not in MEASURED:
        return asked, {"why": "as asked"}
    if asked == "auto" and device.type != "cuda":
        return "fp32", {"why": "measured on CUDA alone"}
    lower = choose_precision("auto", device) if device.type == "cuda" else "bf16"
    bench = _Bench(build, train, objective, replace(config, precision=lower), device)
    try:
        differs = bench.difference(lower)
    except (RuntimeError, TypeError) as error:
        return "fp32", {"why": f"{lower} cannot be had on {device.type}: {first_line(error)}", "candidate": lower}
    facts: dict[str, Any] = {"difference": differs if math.isfinite(differs) else None, "candidate": lower}
    if not differs <= AGREEMENT[lower]:  # also where it is not a number
        return "fp32", {"why": f"{lower} gives other outputs: they differ by {differs:.2g}", **facts}
    before, after = interleaved(
        [lambda: bench.step("fp32"), lambda: bench.step(lower)], pairs=PAIRS, synchronize=lambda: _synchronize(device)
    )
    facts |= {"fp32_seconds": before, "lower_seconds": after, "speedup": before / after}
    pays = before / after >= PRECISION_PAYS
    why = f"{lower} steps are {before / after:.2f} times as fast, {'at least' if pays else 'less than'} {PRECISION_PAYS}"
    return lower if pays else "fp32", {"why": why, **facts}


def measure_compilation(
    build: Build,
    train: SplitData,
    objective: Objective,
    config: TrainConfig,
    *,
    device: torch.device,
    asked: Asked = "auto",
    seconds: float | None = None,
) -> tuple[bool, dict[str, Any]]:
    """Choose whether training steps are compiled: where a trial's steps save `COMPILE_PAYS` times what that costs.

    The cost counts in every trial, as each has its own frozen stages, and code is compiled for what is frozen. Where not
    even `MOST_SPEEDUP` could save what the quickest compilation takes, or a usual one is too much of the time limit, nothing
    is compiled to find out. Trials that start from stored outputs of frozen stages are never compiled (`fit`).

    Returns:
        Whether to compile, and the facts.

    Raises:
        BackboneError: `asked` is true, and the model cannot be compiled here.
    """
    if asked is False:
        return False, {"why": "as asked"}
    if asked == "auto" and device.type != "cuda":
        return False, {"why": "measured on CUDA alone"}
    problem = compile_problem(device)
    if problem is not None:
        return _not_compiled(asked, problem)
    steps = math.ceil(len(train) / config.batch_size) * config.epochs
    facts: dict[str, Any] = {"steps": steps}
    bench = _Bench(build, train, objective, config, device)
    if asked is not True:
        (before,) = interleaved([lambda: bench.step(config.precision)], pairs=3, synchronize=lambda: _synchronize(device))
        facts["plain_seconds"] = before
        most = steps * before * (1 - 1 / MOST_SPEEDUP)
        if most < COMPILE_PAYS * LEAST_COMPILE_SECONDS:
            return False, {"why": f"a trial could save {most:.1f} s at best, less than compilation takes", **facts}
        if seconds is not None and PROBE_SHARE * seconds < USUAL_COMPILE_SECONDS:
            return False, {"why": "the time limit leaves none to try it", **facts}
    try:
        started = time.perf_counter()
        bench.compile()
        for place in range(len(bench.batches)):  # a batch of another size is compiled anew
            bench.step(config.precision, fast=True, places=(place,))
        _synchronize(device)
        first = time.perf_counter() - started
        if asked is True:
            return True, {"why": "as asked", "first_seconds": first}
        plain, fast = interleaved(
            [lambda: bench.step(config.precision), lambda: bench.step(config.precision, fast=True)],
            pairs=PAIRS,
            synchronize=lambda: _synchronize(device),
        )
        differs = bench.difference(config.precision, fast=True)
    except Exception as error:  # noqa: BLE001 - a compiler fails in ways of its own, and the plain model is always there
        return _not_compiled(asked, first_line(error), error)
    finally:
        torch.compiler.reset()
    cost = max(0.0, first - len(bench.batches) * fast)
    saved = steps * (plain - fast)
    facts |= {"plain_seconds": plain, "compiled_seconds": fast, "cost_seconds": cost}
    facts["difference"] = differs if math.isfinite(differs) else None
    if not differs <= AGREEMENT[config.precision]:
        return False, {"why": f"compiled code gives other outputs: they differ by {differs:.2g}", **facts}
    pays = saved > COMPILE_PAYS * cost
    return pays, {"why": f"it costs {cost:.1f} s in each trial, and saves {saved:.1f} s in {steps} steps", **facts}


def compile_problem(device: torch.device) -> str | None:
    """Return why nothing can be compiled for a device, or None where it may work."""
    if device.type == "cpu":
        wanted = os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))
        return None if shutil.which(wanted) else f"there is no C++ compiler {wanted}"
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is not installed"
    return f"torch.compile is not made for {device.type}"


def interleaved(
    functions: Sequence[Callable[[], object]], *, pairs: int, synchronize: Callable[[], object] = lambda: None
) -> tuple[float, ...]:
    """Return the median seconds of each function, called in turns after one call of each that is not counted."""
    for function in functions:
        function()
    taken: list[list[float]] = [[] for _ in functions]
    for _ in range(pairs):
        for seconds, function in zip(taken, functions, strict=True):
            synchronize()
            started = time.perf_counter()
            function()
            synchronize()
            seconds.append(time.perf_counter() - started)
    return tuple(statistics.median(seconds) for seconds in taken)


class _Bench:
    """A model with an optimizer that does all its work at a learning rate of 0, so that every step finds the same weights.

    Attributes:
        batches: Of the training split, on the device: a typical one, and one of another size where there is one.
    """

    def __init__(
        self,
        build: Build,
        train: SplitData,
        objective: Objective,
        config: TrainConfig,
        device: torch.device,
        parts: Sequence[np.ndarray] | None = None,
    ) -> None:
        seed_everything(config.seed)
        self._objective, self._config, self._device = objective, config, device
        self.model = build()
        self.model.freeze(0)
        self.model.to(device)
        if device.type == "cuda":
            self.model.to(memory_format=torch.channels_last)
        self._trained = list(self.model.parameters())
        self._optimizer = make_optimizer(self.model, replace(config, learning_rate=0.0), frozenset(), device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.batches = _batches(train, parts or _typical(train, config, device), config.seed, device)
        self._dynamic = train.preprocessing.ragged
        self._compiled: Callable[..., Tensor] | None = None

    def compile(self) -> None:
        self.model.train()
        self._compiled = compiled(self.model, dynamic=self._dynamic)

    def step(self, precision: str, *, fast: bool = False, places: Sequence[int] = (0,)) -> None:
        """Train on some of the batches, accumulating gradients; through the compiled code where `fast`."""
        self.model.train()
        for place in places:
            inputs, wanted = self.batches[place]
            with autocast(self._device, precision):
                outputs = self._forward(fast)(*inputs)
            loss = self._objective.head.loss(outputs, wanted, self._objective.targets, self._config.knobs)
            self._scaler.scale(loss / len(places)).backward()  # type: ignore[no-untyped-call]
        if self._config.gradient_clip:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._trained, self._config.gradient_clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)

    def difference(self, precision: str, *, fast: bool = False) -> float:
        """Return how far outputs and loss are from those of the plain model in the same mode, relative to their size.

        Of compiled code in training mode, with the same random numbers, and compared in the same precision; else against
        float32 in evaluation mode, where chance has no part.
        """
        inputs, wanted = self.batches[0]
        found = []
        for form, through in ((precision if fast else "fp32", False), (precision, fast)):
            seed_everything(self._config.seed)
            self.model.train(fast)
            with torch.set_grad_enabled(fast), autocast(self._device, form):
                outputs = self._forward(through)(*inputs)
            with torch.no_grad():
                loss = self._objective.head.loss(outputs, wanted, self._objective.targets, self._config.knobs)
            found.append((outputs.detach().float(), loss.float()))
        return max(_relative(lower, plain) for plain, lower in zip(*found, strict=True))

    def _forward(self, fast: bool) -> Callable[..., Tensor]:
        if not fast:
            return self.model
        assert self._compiled is not None  # `compile` comes first
        return self._compiled


def _relative(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference, as a share of the largest value; not a number where there is one."""
    largest = float(wanted.abs().max())
    difference = float((found - wanted).abs().max())
    return difference / largest if difference else 0.0


def _dry_run(build: Build, train: SplitData, objective: Objective, config: TrainConfig, device: torch.device) -> None:
    """Take two optimizer steps on the longest samples: in the second, the optimizer's state takes its memory too."""
    lengths = train.tokens.lengths if isinstance(train, RaggedData) else np.zeros(len(train))
    longest = np.argsort(-lengths, kind="stable")[: config.batch_size]
    rng = np.random.default_rng(config.seed)
    (parts,) = train.steps(longest, config.batch_size, config.micro_batch, rng=rng, device=device, group_by_length=False)
    bench = _Bench(build, train, objective, config, device, parts=parts[:2])  # the second finds the first's gradients
    for _ in range(2):
        bench.step(config.precision, places=range(len(bench.batches)))


def _typical(train: SplitData, config: TrainConfig, device: torch.device) -> list[np.ndarray]:
    """Return the rows of a pass of middling size, and of one of another size where there is one."""
    rng = np.random.default_rng((config.seed, 1))
    order = rng.permutation(len(train))
    steps = train.steps(
        order, config.batch_size, config.micro_batch, rng=rng, device=device, group_by_length=config.group_by_length
    )
    lengths = train.tokens.lengths if isinstance(train, RaggedData) else np.ones(len(train), np.int64)
    parts = sorted((part for step in steps for part in step), key=lambda part: len(part) * int(lengths[part].max()))
    middle = parts[len(parts) // 2]
    others = [part for part in parts if (len(part), lengths[part].max()) != (len(middle), lengths[middle].max())]
    return [middle, *others[:1]]


def _batches(train: SplitData, parts: Sequence[np.ndarray], seed: int, device: torch.device) -> list[Batch]:
    batches = list(train.batches(parts, device=device, seed=(seed, 1)))
    if device.type != "cuda":
        return batches
    return [(tuple(to_channels_last(item) for item in inputs), wanted) for inputs, wanted in batches]


def _from_earlier(tuned: Tuned, device: torch.device) -> Tuned:
    """Return an earlier session's choices, less a compiler that this machine lacks."""
    problem = compile_problem(device) if tuned.compile else None
    if problem is None:
        return tuned
    return replace(tuned, compile=False, facts={**tuned.facts, "compile": {"why": f"not any more: {problem}"}})


def _not_compiled(asked: Asked, problem: str, error: Exception | None = None) -> tuple[bool, dict[str, Any]]:
    if asked is True:
        raise BackboneError(
            f"`trainer.compile: true` needs a model that can be compiled, but here it cannot: {problem}",
            "set `trainer.compile` to `auto` or false",
        ) from error
    return False, {"why": f"cannot be compiled here: {problem}"}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _free(device: torch.device) -> None:
    """Give back the device memory that no live tensor uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
