"""Measured choices: the micro-batch that fits, the precision that pays, the compilation that pays; and how they are kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from toy_training import CPU, HEAD, KNOBS, MLP, TRAIN, VALIDATION, build, config, objective, run, split, state

from autoft import tuning
from autoft.config.schema import TrainerConfig
from autoft.errors import BackboneError
from autoft.loading import load_split
from autoft.model import FineTuneModel, assemble
from autoft.specs import BackboneRequest
from autoft.testing import toy
from autoft.train import fit
from autoft.tuning import Tuned, interleaved, largest_micro_batch, measure_compilation, measure_precision, tune

needs_compiler = pytest.mark.skipif(tuning.compile_problem(CPU) is not None, reason="needs a C++ compiler")


class Small(nn.Module):
    """A backbone that has room for so many samples."""

    def __init__(
        self, inner: nn.Module, room: int, seen: list[int], error: type[Exception] = torch.OutOfMemoryError
    ) -> None:
        super().__init__()
        self.inner, self.room, self.seen, self.error = inner, room, seen, error

    def forward(self, *inputs: Tensor) -> Any:
        self.seen.append(len(inputs[0]))
        if len(inputs[0]) > self.room:
            raise self.error("out of memory" if self.error is torch.OutOfMemoryError else "something else")
        return self.inner(*inputs)


def small(room: int, seen: list[int], error: type[Exception] = torch.OutOfMemoryError) -> Callable[[], FineTuneModel]:
    def make() -> FineTuneModel:
        model = build(MLP)
        stages = [replace(stage, parameters=tuple(f"inner.{name}" for name in stage.parameters)) for stage in model.stages]
        return FineTuneModel(Small(model.backbone, room, seen, error), model.head, stages)

    return make


@pytest.fixture
def as_if_memory_ran_out(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The CPU, taken for a device that raises an error when its memory runs out."""
    monkeypatch.setattr(tuning, "_TRIED_ON", frozenset({"cpu"}))
    return CPU


@pytest.mark.parametrize(("room", "wanted"), [(8, None), (100, None), (7, 4), (4, 4), (3, 2), (1, 1)])
def test_the_largest_half_that_fits_is_found(as_if_memory_ran_out: torch.device, room: int, wanted: int | None) -> None:
    seen: list[int] = []
    found, facts = largest_micro_batch(
        small(room, seen), split(TRAIN, MLP), objective(), config(), device=as_if_memory_ran_out
    )
    assert found == wanted
    assert facts["fits"] is True
    assert max(size for size in seen if size <= room) == (wanted or 8)


def test_what_does_not_fit_at_all_is_told_rather_than_raised(as_if_memory_ran_out: torch.device) -> None:
    tuned = tune(small(0, []), split(TRAIN, MLP), objective(), config(), device=as_if_memory_ran_out)
    assert tuned.micro_batch == 1
    assert tuned.facts["micro_batch"]["fits"] is False
    assert "single sample" in tuned.text


def test_errors_that_are_not_of_memory_are_raised(as_if_memory_ran_out: torch.device) -> None:
    with pytest.raises(RuntimeError, match="something else"):
        largest_micro_batch(
            small(0, [], RuntimeError), split(TRAIN, MLP), objective(), config(), device=as_if_memory_ran_out
        )


def test_the_longest_texts_are_tried(as_if_memory_ran_out: torch.device) -> None:
    backbone = toy.resolve(BackboneRequest("text", "none"))
    samples = toy.toy_texts(per_class=12)
    targets = HEAD.describe([sample.target for sample in samples])
    data = load_split(samples, HEAD.encode([sample.target for sample in samples], targets), backbone.preprocessing)
    widths: list[int] = []

    def make() -> FineTuneModel:
        model = assemble(backbone, HEAD, targets, KNOBS, seed=0)
        model.backbone.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))
        return model

    aim = replace(objective(), targets=targets)
    largest_micro_batch(make, data, aim, config(), device=as_if_memory_ran_out)
    assert set(widths) == {int(data.tokens.lengths.max())}  # type: ignore[attr-defined]
    assert len(set(data.tokens.lengths)) > 1  # type: ignore[attr-defined]


def test_on_the_cpu_memory_is_not_exhausted() -> None:
    seen: list[int] = []
    found, facts = largest_micro_batch(small(1, seen), split(TRAIN, MLP), objective(), config(), device=CPU)
    assert (found, facts["fits"], seen) == (None, None, [])


def test_micro_batches_train_as_whole_batches_do() -> None:
    whole, _ = run(config(), MLP)
    parts, _ = run(config(micro_batch=3), MLP)
    assert parts.best.metrics["log_loss"] == pytest.approx(whole.best.metrics["log_loss"], abs=1e-4)


# --- precision ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "wanted"), [((1.2, 1.0), "bf16"), ((1.05, 1.0), "fp32"), ((1.0, 2.0), "fp32")])
def test_a_lower_precision_is_taken_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], wanted: str
) -> None:
    monkeypatch.setattr(tuning, "interleaved", lambda *_, **__: seconds)
    found, facts = measure_precision(lambda: build(MLP), split(TRAIN, MLP), objective(), config(), device=CPU, asked="probe")
    assert found == wanted
    assert facts["speedup"] == pytest.approx(seconds[0] / seconds[1])


@pytest.mark.parametrize("damage", [1.5, math.nan])
def test_a_precision_that_gives_other_outputs_is_not_taken(monkeypatch: pytest.MonkeyPatch, damage: float) -> None:
    class Damaged(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, features: Tensor) -> Tensor:
            outputs: Tensor = self.inner(features)
            return outputs * damage if torch.is_autocast_enabled("cpu") else outputs

    def make() -> FineTuneModel:
        model = build(MLP)
        model.head = Damaged(model.head)
        return model

    monkeypatch.setattr(tuning, "interleaved", lambda *_, **__: (2.0, 1.0))
    found, facts = measure_precision(make, split(TRAIN, MLP), objective(), config(), device=CPU, asked="probe")
    assert found == "fp32"
    assert "other outputs" in facts["why"]
    json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize(("asked", "wanted"), [("auto", "fp32"), ("bf16", "bf16"), ("fp32", "fp32")])
def test_nothing_is_measured_where_none_was_asked_for(asked: str, wanted: str) -> None:
    def never() -> FineTuneModel:
        raise AssertionError

    assert tune(never, split(TRAIN, MLP), objective(), config(), device=CPU, precision=asked).precision == wanted


def test_steps_are_taken_in_turns_and_the_first_does_not_count() -> None:
    calls: list[str] = []
    found = interleaved([lambda: calls.append("a"), lambda: calls.append("b")], pairs=2)
    assert "".join(calls) == "ababab"
    assert all(0 <= seconds < 1 for seconds in found)


def test_measuring_finds_the_same_weights_at_every_step() -> None:
    bench = tuning._Bench(lambda: build(MLP), split(TRAIN, MLP), objective(), config(weight_decay=0.1), CPU)
    before = state(bench.model)
    bench.step("fp32")
    assert all(torch.equal(value, before[name]) for name, value in state(bench.model).items())


# --- compilation --------------------------------------------------------------------------------------------------------


def never_compiles(*_: object, **__: object) -> Any:
    raise RuntimeError("the compiler broke")


def measured(asked: tuning.Asked, epochs: int = 10**6, **arguments: Any) -> tuple[bool, dict[str, Any]]:
    data, settings = split(TRAIN, MLP), config(epochs=epochs)
    return measure_compilation(lambda: build(MLP), data, objective(), settings, device=CPU, asked=asked, **arguments)


def test_compilation_is_not_tried_where_it_could_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "compiled", never_compiles)
    use, facts = measured("probe", epochs=2)
    assert not use
    assert "at best" in facts["why"]


def test_compilation_is_not_tried_where_time_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "compiled", never_compiles)
    use, facts = measured("probe", seconds=600.0)
    assert not use
    assert "time limit" in facts["why"]


@pytest.mark.parametrize("asked", ["probe", True])
def test_without_a_compiler_auto_goes_on_and_true_is_an_error(monkeypatch: pytest.MonkeyPatch, asked: tuning.Asked) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    if asked is True:
        with pytest.raises(BackboneError, match="no C\\+\\+ compiler no-such-compiler"):
            measured(asked)
        return
    use, facts = measured(asked)
    assert not use
    assert "no C++ compiler no-such-compiler" in facts["why"]


@pytest.mark.parametrize("asked", ["probe", True])
def test_a_model_that_cannot_be_compiled_is_trained_plainly_or_is_an_error(
    monkeypatch: pytest.MonkeyPatch, asked: tuning.Asked
) -> None:
    monkeypatch.setattr(tuning, "compile_problem", lambda device: None)
    monkeypatch.setattr(tuning, "compiled", never_compiles)
    if asked is True:
        with pytest.raises(BackboneError, match="the compiler broke"):
            measured(asked)
        return
    use, facts = measured(asked)
    assert not use
    assert "the compiler broke" in facts["why"]


@pytest.mark.parametrize(("seconds", "wanted"), [((0.2, 0.1), True), ((0.1, 0.1), False)])
def test_compilation_is_used_where_its_steps_save_more_than_it_costs(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], wanted: bool
) -> None:
    monkeypatch.setattr(tuning, "compile_problem", lambda device: None)
    monkeypatch.setattr(tuning, "compiled", lambda model, dynamic: model.forward)
    monkeypatch.setattr(tuning, "interleaved", lambda functions, **_: seconds if len(functions) == 2 else seconds[:1])
    use, facts = measured("probe")
    assert use == wanted
    assert facts["steps"] == 5 * 10**6


def test_compiled_code_that_gives_other_outputs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "compile_problem", lambda device: None)
    monkeypatch.setattr(tuning, "compiled", lambda model, dynamic: lambda *inputs: model(*inputs) * 1.01)
    monkeypatch.setattr(tuning, "interleaved", lambda functions, **_: (0.2, 0.1)[: len(functions)])
    use, facts = measured("probe")
    assert not use
    assert "other outputs" in facts["why"]


@pytest.mark.slow
@needs_compiler
def test_compiled_training_agrees_and_names_its_weights_alike(tmp_path: Any) -> None:
    settings = config(epochs=2, freeze_depth=1, knobs={**KNOBS, "dropout": 0.3})
    plain, model = run(settings, MLP)
    fast, other = run(replace(settings, compile=True), MLP, checkpoint=tmp_path)
    assert list(fast.weights) == list(plain.weights)
    assert state(other).keys() == state(model).keys()
    for wanted, found in zip(plain.history, fast.history, strict=True):
        assert found.train_loss == pytest.approx(wanted.train_loss, rel=1e-4)
        assert found.metrics["log_loss"] == pytest.approx(wanted.metrics["log_loss"], rel=1e-4)


def test_a_run_of_stored_outputs_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.train.compiled", never_compiles)
    model = build(MLP)
    data = split(TRAIN, MLP), split(VALIDATION, MLP)
    fit(model, *data, objective(), config(epochs=1, compile=True), device=CPU, run=lambda *inputs: model(*inputs))
    with pytest.raises(RuntimeError, match="the compiler broke"):
        fit(model, *data, objective(), config(epochs=1, compile=True), device=CPU)


# --- keeping ------------------------------------------------------------------------------------------------------------


def test_a_stored_choice_is_taken_and_nothing_is_measured() -> None:
    def never() -> FineTuneModel:
        raise AssertionError

    tuned = Tuned("bf16", False, 4, {"precision": {"why": "bf16 steps are 1.44 times as fast"}})
    stored = json.loads(json.dumps(tuned.to_dict()))
    assert tune(never, split(TRAIN, MLP), objective(), config(), device=CPU, precision="probe", stored=stored) == tuned
    applied = tuned.apply(config())
    assert (applied.precision, applied.compile, applied.micro_batch) == ("bf16", False, 4)
    assert replace(applied, precision="fp32", micro_batch=None) == config()


def test_a_stored_compilation_is_dropped_where_the_compiler_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    stored = Tuned("fp32", True, None).to_dict()
    found = tune(lambda: build(MLP), split(TRAIN, MLP), objective(), config(), device=CPU, stored=stored)
    assert not found.compile
    assert "no-such-compiler" in found.text


def test_facts_are_ready_for_json() -> None:
    tuned = tune(
        lambda: build(MLP), split(TRAIN, MLP), objective(), config(), device=CPU, precision="probe", compiling="probe"
    )
    assert Tuned.from_dict(json.loads(json.dumps(tuned.to_dict()))) == tuned
    assert tuned.facts.keys() == {"device", "micro_batch", "precision", "compile"}


@pytest.mark.parametrize("value", ["auto", "probe", True, False])
def test_a_study_says_whether_to_compile(value: tuning.Asked) -> None:
    assert TrainerConfig.model_validate({"compile": value}).compile == value


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_other_words_about_compilation_are_refused(value: object) -> None:
    with pytest.raises(ValidationError, match="must be `auto`, `probe`, true or false"):
        TrainerConfig.model_validate({"compile": value})
