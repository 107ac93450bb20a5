"""Each conformance check passes the toys, and catches a toy that is broken in just the way it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoft.specs import Backbone, BackboneRequest, Head, Stage
from autoft.testing import checks, toy
from autoft.testing.checks import CHECKS, CheckFailed, run_checks

HEAD: Head = toy.autoft_heads()[0]
CONVNET: Backbone = toy.resolve(BackboneRequest("convnet", "none"))
MLP: Backbone = toy.resolve(BackboneRequest("mlp", "none"))


class Wrapped(nn.Module):
    """A toy whose forward is changed by a function of the module, its features and its input."""

    def __init__(self, module: nn.Module, change: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        for name, child in module.named_children():
            self.add_module(name, child)
        self.order = tuple(name for name, _ in module.named_children())
        self.change = change

    def forward(self, pixel_values: Tensor) -> Tensor:
        features = pixel_values
        for name in self.order:
            features = self.get_submodule(name)(features)
        return self.change(self, features, pixel_values)


def changed(backbone: Backbone, change: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Backbone:
    return replace(backbone, build=lambda: Wrapped(backbone.build(), change))


def built(backbone: Backbone, mend: Callable[[nn.Module], object]) -> Backbone:
    """A backbone whose module is altered after it was built."""

    def build() -> nn.Module:
        module = backbone.build()
        mend(module)
        return module

    return replace(backbone, build=build)


@pytest.mark.parametrize("backbone", [CONVNET, MLP], ids=lambda backbone: backbone.name)
def test_toys_pass_every_check(backbone: Backbone) -> None:
    results = run_checks(backbone, HEAD)
    assert [result.id for result in results] == [check.id for check in CHECKS]
    assert len(results) == 5
    assert [result.message for result in results if not result.passed] == []
    assert all(result.seconds > 0 for result in results)


def test_wrapped_toy_is_sound_before_it_is_broken() -> None:
    sound = changed(CONVNET, lambda module, features, pixels: features)
    assert all(result.passed for result in run_checks(sound, HEAD))


# --- stages -----------------------------------------------------------------------------------------


def stages_with(change: Callable[[tuple[Stage, ...]], tuple[Stage, ...]]) -> Backbone:
    return replace(CONVNET, stages=lambda module: change(toy.stages(module)))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (stages_with(lambda stages: stages[1:]), "3 are in no stage, such as stem.conv.weight"),
        (stages_with(lambda stages: (*stages, stages[0])), "3 are in more than one stage, such as stem.conv.weight"),
        (stages_with(lambda stages: (*stages, Stage("extra", ("extra.weight",)))), "1 are unknown to the module"),
        (stages_with(lambda stages: (Stage("empty", ()), *stages)), "but empty holds none"),
        (stages_with(lambda stages: ()), "at least one stage"),
    ],
    ids=["missing", "repeated", "unknown", "empty", "none"],
)
def test_stages_that_are_no_partition_are_caught(backbone: Backbone, message: str) -> None:
    with pytest.raises(CheckFailed, match=message) as caught:
        checks.check_stages_partition(backbone)
    assert "toy/convnet" in str(caught.value)


def test_stages_that_change_from_build_to_build_are_caught() -> None:
    calls: list[int] = []

    def stages(module: nn.Module) -> tuple[Stage, ...]:
        calls.append(1)
        return toy.stages(module)[:: -1 if len(calls) % 2 else 1]

    with pytest.raises(CheckFailed, match="two builds differ"):
        checks.check_stages_partition(replace(CONVNET, stages=stages))


# --- freezing ---------------------------------------------------------------------------------------


def drift(module: nn.Module, features: Tensor, pixels: Tensor) -> Tensor:
    mean = module.get_buffer("stem.norm.running_mean")
    mean.data = mean + 0.01
    return features


class AlwaysTraining(nn.BatchNorm2d):
    """Uses and updates the batch's statistics in any mode, as an override of `train()` may do."""

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, training=True)


def test_frozen_batchnorm_that_drifts_is_caught() -> None:
    def mend(module: nn.Module) -> None:
        module.get_submodule("stem").norm = AlwaysTraining(8)

    with pytest.raises(CheckFailed, match=r"at depth 1 the buffer stem\.norm\.running_mean does"):
        checks.check_frozen_stages_do_not_change(built(CONVNET, mend))


def test_buffer_written_in_forward_whatever_the_mode_is_caught() -> None:
    with pytest.raises(CheckFailed, match=r"at depth 1 the buffer stem\.norm\.running_mean does"):
        checks.check_frozen_stages_do_not_change(changed(CONVNET, drift))


def test_buffer_that_is_not_saved_is_watched_too() -> None:
    def mend(module: nn.Module) -> None:
        module.get_submodule("stem.norm").register_buffer("calls", torch.zeros(()), persistent=False)

    def count(module: nn.Module, features: Tensor, pixels: Tensor) -> Tensor:
        module.get_submodule("stem.norm").calls.add_(1)  # type: ignore[operator, union-attr]
        return features

    with pytest.raises(CheckFailed, match=r"stem\.norm\.calls"):
        checks.check_frozen_stages_do_not_change(changed(built(CONVNET, mend), count))


def test_frozen_parameter_written_in_forward_is_caught() -> None:
    def write(module: nn.Module, features: Tensor, pixels: Tensor) -> Tensor:
        module.get_parameter("stem.conv.weight").data.mul_(0.99)
        return features

    with pytest.raises(CheckFailed, match=r"at depth 1 the parameter stem\.conv\.weight does"):
        checks.check_frozen_stages_do_not_change(changed(CONVNET, write))


def test_parameter_without_a_gradient_is_caught() -> None:
    def mend(module: nn.Module) -> None:
        module.get_submodule("stage1").unused = nn.Linear(2, 2)
        module.get_submodule("stage1").forward = lambda x: F.avg_pool2d(x, 2).repeat(1, 2, 1, 1)[:, :12]  # type: ignore[assignment]

    with pytest.raises(CheckFailed, match=r"at depth 0 5 get none, such as stage1\.conv\.weight"):
        checks.check_frozen_stages_do_not_change(built(CONVNET, mend))


def test_dropout_that_fires_in_frozen_stages_is_caught() -> None:
    fires = changed(CONVNET, lambda module, features, pixels: F.dropout(features, 0.5, training=True))
    with pytest.raises(CheckFailed, match="must give the features of evaluation"):
        checks.check_frozen_stages_do_not_change(fires)


# --- builds -----------------------------------------------------------------------------------------


def test_one_module_for_every_build_is_caught() -> None:
    module = CONVNET.build()
    with pytest.raises(CheckFailed, match="share the module itself"):
        checks.check_builds_share_nothing(replace(CONVNET, build=lambda: module))


def test_shared_submodule_is_caught() -> None:
    shared = CONVNET.build().get_submodule("stage2")
    with pytest.raises(CheckFailed, match="share the module stage2"):
        checks.check_builds_share_nothing(built(CONVNET, lambda module: module.add_module("stage2", shared)))


def test_shared_memory_is_caught() -> None:
    weight = torch.randn(8, 3, 3, 3)

    def mend(module: nn.Module) -> None:
        module.get_parameter("stem.conv.weight").data = weight[:]

    with pytest.raises(CheckFailed, match=r"share the memory of stem\.conv\.weight"):
        checks.check_builds_share_nothing(built(CONVNET, mend))


def test_state_outside_the_module_is_caught() -> None:
    seen = [0.0]

    def remember(module: nn.Module, features: Tensor, pixels: Tensor) -> Tensor:
        seen[0] += float(module.training)
        return features + seen[0]

    with pytest.raises(CheckFailed, match="their features moved"):
        checks.check_builds_share_nothing(changed(CONVNET, remember))


# --- features ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (replace(CONVNET, feature_size=lambda module: 24), r"1 samples must be \(1, 24\), but are \(1, 16\)"),
        (replace(CONVNET, features="cloud"), "must be one of pooled, but are 'cloud'"),
        (changed(CONVNET, lambda module, features, pixels: features[..., None]), r"but are \(1, 16, 1\)"),
        (changed(CONVNET, lambda module, features, pixels: features.squeeze(0)), r"must be \(1, 16\), but are \(16,\)"),
        (changed(CONVNET, lambda module, features, pixels: features / 0), "must be finite"),
        (changed(CONVNET, lambda module, features, pixels: features.long()), "as torch.int64"),
        (changed(CONVNET, lambda module, features, pixels: features - features.mean(dim=0)), "must not depend on its batch"),
        (changed(CONVNET, lambda module, features, pixels: (features,)), "are a tuple"),  # type: ignore[arg-type, return-value]
        (replace(CONVNET, inputs=("pixel_values", "mask")), "names 2 inputs, but its preprocessing gives 1"),
        (replace(CONVNET, modality="text"), "for image backbones, but toy/convnet takes text"),
    ],
    ids=["size", "kind", "unpooled", "squeezed", "infinite", "whole", "batch", "tuple", "inputs", "modality"],
)
def test_features_that_break_their_promise_are_caught(backbone: Backbone, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        checks.check_feature_shape(backbone)


# --- export -----------------------------------------------------------------------------------------


def bake(module: nn.Module, features: Tensor, pixels: Tensor) -> Tensor:
    zeros = np.zeros((int(pixels.shape[0]), 16), np.float32)  # tracing sees a constant of the example's batch size
    return features + torch.from_numpy(zeros)


def test_batch_size_baked_into_forward_is_caught() -> None:
    with pytest.raises(CheckFailed, match="the batch axis of pixel_values must be dynamic, but is fixed to 2"):
        checks.check_export_parity(changed(CONVNET, bake), HEAD)


def test_batch_size_baked_by_torchscript_is_caught_though_the_axes_say_dynamic(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise RuntimeError("no dynamo today")

    monkeypatch.setattr("autoft.export.onnx._by_dynamo", refuse)
    with pytest.raises(CheckFailed, match="at batch 1"):
        checks.check_export_parity(changed(CONVNET, bake), HEAD)


def test_python_branch_on_the_batch_is_caught() -> None:
    def branch(module: nn.Module, features: Tensor, pixels: Tensor) -> Tensor:
        return features * 2 if pixels.shape[0] > 4 else features

    with pytest.raises(CheckFailed, match="at batch 7"):
        checks.check_export_parity(changed(CONVNET, branch), HEAD)


def test_randomness_in_evaluation_is_caught() -> None:
    noisy = changed(CONVNET, lambda module, features, pixels: features + torch.randn_like(features))
    with pytest.raises(CheckFailed, match="but at batch 1 differ by"):
        checks.check_export_parity(noisy, HEAD)


def test_model_that_cannot_be_exported_is_caught() -> None:
    def foreign(module: nn.Module, features: Tensor, pixels: Tensor) -> Tensor:
        return torch.linalg.eigvals(features[:, :1, None]).real.repeat(1, 16) + features

    with pytest.raises(CheckFailed, match="must export to ONNX"):
        checks.check_export_parity(changed(CONVNET, foreign), HEAD)


# --- run_checks -------------------------------------------------------------------------------------


def test_failure_names_check_and_reason_and_the_rest_still_run() -> None:
    results = {result.id: result for result in run_checks(replace(CONVNET, feature_size=lambda module: 16.5), HEAD)}  # type: ignore[arg-type, return-value]
    assert results["stages-partition"].passed
    assert not results["feature-shape"].passed
    assert "hint: mend `feature_size`" in results["feature-shape"].message


def test_crash_in_the_plugin_is_a_finding_with_its_place() -> None:
    def crash() -> nn.Module:
        raise KeyError("weights")

    results = run_checks(replace(CONVNET, build=crash), HEAD)
    assert len(results) == len(CHECKS)
    assert not any(result.passed for result in results)
    assert all("raised KeyError: 'weights' (at " in result.message for result in results)


def test_ids_are_unique_and_described() -> None:
    ids = [check.id for check in CHECKS]
    assert len(set(ids)) == len(ids)
    assert all(check.about for check in CHECKS)
