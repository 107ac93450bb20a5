"""Strategies train little, stop at frozen stages, and leave ordinary weights; the kit finds those that do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_training import (
    CONVNET,
    CPU,
    HEAD,
    KNOBS,
    MLP,
    SAMPLES,
    TARGETS,
    TRAIN,
    VALIDATION,
    config,
    encode,
    objective,
    split,
)

from autoft.errors import BackboneError
from autoft.files import load_tensors
from autoft.freezing import stages_of_adapted
from autoft.model import FineTuneModel, assemble
from autoft.specs import Adapted, Backbone, Stage, Strategy
from autoft.testing import toy
from autoft.testing.checks import run_checks
from autoft.testing.strategy_checks import CHECKS
from autoft.train import fit, predict
from autoft.worker import Job, Worker

(SCALE,) = toy.autoft_strategies()
OWN = {**KNOBS, "dropout": 0.0, "toy_start": 1.0}


def model(backbone: Backbone = CONVNET, depth: int = 0, *, finished: bool = False) -> FineTuneModel:
    return assemble(backbone, HEAD, TARGETS, OWN, seed=0, strategy=SCALE, depth=depth, finished=finished)


def worker(folder: Path, **changes: Any) -> Worker:
    splits = {"train": (TRAIN, encode(TRAIN)), "validation": (VALIDATION, encode(VALIDATION))}
    return Worker(splits, objective(), device=CPU, memory=1 << 30, strategies={"toy-scale": SCALE}, **changes)


def scaled(**changes: Any) -> Any:
    return config(strategy="toy-scale", knobs=OWN, **changes)


def test_only_what_the_strategy_names_and_the_head_are_trained() -> None:
    adapted = model()
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    fit(adapted, split(TRAIN), split(VALIDATION), objective(), scaled(batch_norm="frozen"), device=CPU)
    changed = {name for name, value in adapted.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith(".scale") or name.startswith("head.")}


def test_finished_weights_are_ordinary_ones_that_answer_alike(tmp_path: Path) -> None:
    outcome = worker(tmp_path).run(Job(CONVNET, scaled(), "none", tmp_path / "trial"))
    assert outcome.state == "complete", outcome.failure
    weights, _ = load_tensors(tmp_path / "trial" / "model.safetensors")
    plain = assemble(CONVNET, HEAD, TARGETS, {**KNOBS, "dropout": 0.0}, seed=0)
    plain.load_state_dict(weights)
    outputs = predict(plain, split(VALIDATION), device=CPU, batch_size=64)
    loss = float(torch.nn.functional.cross_entropy(outputs, encode(VALIDATION)))
    assert outcome.best is not None
    assert outcome.best.value == pytest.approx(loss, rel=1e-4)
    assert sorted(file.name for file in (tmp_path / "trial" / "adapter").iterdir()) == [
        "adapter.json",
        "adapter.safetensors",
    ]


def test_adapter_files_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    outcome = worker(tmp_path).run(Job(MLP, scaled(epochs=6, learning_rate=0.05), "none", tmp_path / "trial"))
    assert outcome.best is not None
    adapter, _ = load_tensors(tmp_path / "trial" / "adapter" / "adapter.safetensors")
    weights, _ = load_tensors(tmp_path / "trial" / "model.safetensors")
    pretrained = assemble(MLP, HEAD, TARGETS, KNOBS, seed=0).state_dict()
    name = "embed.0"
    expected = pretrained[f"backbone.{name}.weight"] * adapter[f"{name}.scale"][:, None]
    torch.testing.assert_close(weights[f"backbone.{name}.weight"], expected)
    assert not torch.allclose(adapter[f"{name}.scale"], torch.ones(24))


def test_stopped_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def stop(report: Any) -> None:
        if report.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker(tmp_path).run(Job(CONVNET, scaled(averaging="ema"), "none", tmp_path / "a"), on_epoch=stop)
    again = worker(tmp_path).run(Job(CONVNET, scaled(averaging="ema"), "none", tmp_path / "a"))
    whole = worker(tmp_path).run(Job(CONVNET, scaled(averaging="ema"), "none", tmp_path / "b"))
    assert [each.value for each in again.history] == [each.value for each in whole.history]
    for file in ("model.safetensors", "adapter/adapter.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_frozen_stages_are_reused_beside_a_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.reuse._measure", lambda *_: (100, 10, 10))
    values = []
    for reuse in (True, False):
        used = worker(tmp_path, prefix=tmp_path / "prefix", reuse=reuse)
        outcome = used.run(Job(CONVNET, scaled(freeze_depth=2), "none", tmp_path / str(reuse)))
        assert outcome.reuse.startswith("from stage1") is reuse
        values.append([each.value for each in outcome.history])
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_stages_follow_the_layers_that_were_changed() -> None:
    adapted = model(depth=2)
    assert [stage.name for stage in adapted.stages] == [stage.name for stage in model().stages]
    names = {stage.name: stage.parameters for stage in adapted.stages}
    assert not any(name.endswith(".scale") for name in (*names["stem"], *names["stage1"]))
    assert {name for name in names["stage2"] if name.endswith(".scale")} == {"stage2.conv.scale"}


def test_parameter_outside_of_every_stage_is_refused() -> None:
    module = CONVNET.build()
    stages = CONVNET.stages(module)
    module.register_parameter("stray", nn.Parameter(torch.zeros(1)))
    with pytest.raises(BackboneError, match="the parameter stray must belong to a layer that the stages know"):
        stages_of_adapted(module, stages)


# --- the kit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [CONVNET, MLP], ids=["convnet", "mlp"])
def test_toy_strategy_passes_every_check(backbone: Backbone) -> None:
    found = [result for result in run_checks(backbone, HEAD, [SCALE]) if result.id.startswith("toy-scale: ")]
    assert [result.message for result in found] == [""] * len(CHECKS)


def test_strategy_that_does_not_fit_is_not_checked() -> None:
    unfit = replace(SCALE, check=lambda backbone, module: "no")
    assert not [result for result in run_checks(MLP, HEAD, [unfit]) if "toy-scale" in result.id]


def _everything(module: nn.Module, stages: tuple[Stage, ...], depth: int, knobs: Any) -> Adapted:
    return SCALE.apply(module, stages, 0, knobs)


def _unnamed(module: nn.Module, stages: tuple[Stage, ...], depth: int, knobs: Any) -> Adapted:
    found = SCALE.apply(module, stages, depth, knobs)
    return replace(found, trained=found.trained | {"nothing.of.it"})


def _drifting(module: nn.Module, stages: tuple[Stage, ...], depth: int, knobs: Any) -> Adapted:
    found = SCALE.apply(module, stages, depth, knobs)

    def drift(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if layer.training:
            with torch.no_grad():
                next(parameter for name, parameter in layer.named_parameters() if name.endswith("layer.weight")).add_(1.0)

    found.module.register_forward_pre_hook(drift)
    return found


def _not_merged(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(".scale"):
                parameter.fill_(1.0)
    return SCALE.merge(module)


BROKEN: tuple[tuple[str, dict[str, Callable[..., Any]], str], ...] = (
    ("trains-what-it-says", {"apply": _everything}, "nothing in the first stages may be trained, but"),
    ("trains-what-it-says", {"apply": _unnamed}, "must name parameters of the module, but nothing.of.it is none"),
    ("trains-what-it-says", {"apply": _drifting}, "training must not change"),
    ("merged-equals-trained", {"merge": _not_merged}, "may differ from the trained one by 0.0001, but differs by"),
    ("merged-equals-trained", {"files": lambda module: {}}, "must give the adapter as files, but gives none"),
)


@pytest.mark.parametrize(("check", "changes", "message"), BROKEN, ids=lambda value: value if isinstance(value, str) else "")
def test_broken_strategy_is_caught(check: str, changes: dict[str, Callable[..., Any]], message: str) -> None:
    broken: Strategy = replace(SCALE, **changes)  # type: ignore[arg-type]
    found = {result.id: result.message for result in run_checks(MLP, HEAD, [broken])}
    assert message in found[f"toy-scale: {check}"]
    assert SAMPLES
