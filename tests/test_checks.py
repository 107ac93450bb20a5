"""Each conformance check passes the toys, and catches a toy that is broken in just the way it is about."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoft.errors import BackboneError
from autoft.ragged import Ragged
from autoft.runtime import image_classification
from autoft.specs import Backbone, BackboneRequest, FeatureMap, Head, Stage
from autoft.tasks import multi_label, regression, tagging
from autoft.testing import checks, toy
from autoft.testing.checks import CHECKS, CheckFailed, kinds_to_check, run_checks
from autoft.testing.kit import make_sources
from autoft.text import TextPreprocessing

HEAD: Head = toy.autoft_heads()[0]
CONVNET: Backbone = toy.resolve(BackboneRequest("convnet", "none"))
MLP: Backbone = toy.resolve(BackboneRequest("mlp", "none"))
TEXT: Backbone = toy.resolve(BackboneRequest("text", "none"))
SEQUENCE: Backbone = toy.resolve(BackboneRequest("text", "none", features="sequence"))
MAPS: Backbone = toy.resolve(BackboneRequest("convnet", "none", features="maps"))
TAGGING = tagging.head("tagging", "text", "")


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


class Finest(nn.Module):
    """Classes of the places of the finest map, by one layer."""

    def __init__(self, maps: tuple[FeatureMap, ...], labels: int) -> None:
        super().__init__()
        self.classes = nn.Conv2d(maps[0].channels, labels, 1)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        outputs: Tensor = self.classes(maps[0])
        return outputs


# for the kit; nothing is trained with it
PLACES = replace(
    HEAD,
    name="places",
    features="maps",
    build=lambda maps, targets, knobs: Finest(maps, len(targets.labels)),
    activation=lambda outputs: outputs.argmax(dim=1).to(torch.uint8),
    answer="mask",
    scores="classes",
    examples=lambda: ["a", "b", "c"],
    loss=lambda outputs, encoded, targets, knobs: HEAD.loss(outputs.mean((2, 3)), encoded, targets, knobs),
    metrics=lambda outputs, encoded, targets: HEAD.metrics(outputs.mean((2, 3)), encoded, targets),
)


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        (CONVNET, HEAD),
        (MLP, multi_label.head("labels", None, "")),
        (TEXT, HEAD),
        (TEXT, regression.head("numbers", None, "")),
        (SEQUENCE, TAGGING),
        (MAPS, PLACES),
    ],
    ids=lambda given: given.name,
)
def test_toys_pass_every_check(backbone: Backbone, head: Head) -> None:
    results = run_checks(backbone, head)
    assert [result.id for result in results] == checks_for(backbone)
    assert len(results) == {"image": 14, "text": 17}[backbone.modality]
    assert [result.message for result in results if not result.passed] == []
    assert all(result.seconds > 0 for result in results)


def checks_for(backbone: Backbone) -> list[str]:
    return [check.id for check in CHECKS if check.modality in (None, backbone.modality)]


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
        (replace(CONVNET, features="cloud"), "must be one of pooled, sequence, maps, but are 'cloud'"),
        (changed(CONVNET, lambda module, features, pixels: features[..., None]), r"but are \(1, 16, 1\)"),
        (changed(CONVNET, lambda module, features, pixels: features.squeeze(0)), r"must be \(1, 16\), but are \(16,\)"),
        (changed(CONVNET, lambda module, features, pixels: features / 0), "must be finite"),
        (changed(CONVNET, lambda module, features, pixels: features.long()), "as torch.int64"),
        (changed(CONVNET, lambda module, features, pixels: features - features.mean(dim=0)), "must not depend on its batch"),
        (changed(CONVNET, lambda module, features, pixels: (features,)), "are a tuple"),  # type: ignore[arg-type, return-value]
        (replace(CONVNET, inputs=("pixel_values", "mask")), "names 2 inputs, but its preprocessing gives 1"),
        (replace(CONVNET, modality="audio"), "for image and text backbones, but toy/convnet takes audio"),
        (replace(CONVNET, modality="text"), "the preprocessing of texts must be ragged, but is not"),
        (replace(SEQUENCE, build=TEXT.build), r"sequence features of 1 samples must be \(1, \d+, 16\), but are \(1, 16\)"),
        (replace(TEXT, build=SEQUENCE.build), r"pooled features of 1 samples must be \(1, 16\), but are \(1, \d+, 16\)"),
        (
            replace(MAPS, feature_size=lambda module: (FeatureMap(12, 2), FeatureMap(16, 8))),
            r"must be \[\(1, 12, 8, 8\), \(1, 16, 2",
        ),
        (replace(MAPS, build=CONVNET.build), "must be a tuple of tensors, but are a Tensor"),
    ],
    ids=[
        "size",
        "kind",
        "unpooled",
        "squeezed",
        "infinite",
        "whole",
        "batch",
        "tuple",
        "inputs",
        "modality",
        "not ragged",
        "not a sequence",
        "not pooled",
        "stride",
        "no tuple",
    ],
)
def test_features_that_break_their_promise_are_caught(backbone: Backbone, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        checks.check_feature_shape(backbone)


def test_map_that_depends_on_its_batch_is_caught() -> None:
    def mend(module: nn.Module) -> None:
        own = module.forward
        module.forward = lambda images: tuple(one - one.mean(dim=0) for one in own(images))  # type: ignore[method-assign, assignment]

    with pytest.raises(CheckFailed, match="must not depend on its batch"):
        checks.check_feature_shape(built(MAPS, mend))


def test_head_whose_targets_nobody_can_guess_must_give_examples() -> None:
    with pytest.raises(CheckFailed, match=r"cannot make targets of places, whose answer is mask\nhint: give .*`examples`"):
        checks.check_export_parity(MAPS, replace(PLACES, examples=None))


def test_classes_of_the_graph_that_differ_are_caught() -> None:
    calls: list[int] = []

    def activation(outputs: Tensor) -> Tensor:
        calls.append(1)  # the graph is traced first; what torch gives afterwards is another class
        return outputs.argmax(dim=1).to(torch.uint8) + len(calls) // 4

    checks.check_export_parity(MAPS, PLACES)
    with pytest.raises(CheckFailed, match="classes of the graph may differ from torch's"):
        checks.check_export_parity(MAPS, replace(PLACES, activation=activation))


def test_features_that_depend_on_the_place_in_the_batch_are_caught() -> None:
    placed = changed(CONVNET, lambda module, features, pixels: features + torch.arange(len(features))[:, None])
    checks.check_feature_shape(placed)  # the first row stays first
    with pytest.raises(CheckFailed, match="must not depend on its place in the batch, but move by"):
        checks.check_batch_order(placed)


# --- texts ------------------------------------------------------------------------------------------

Forward = Callable[..., Tensor]


def forwarding(change: Callable[[Forward, Tensor, Tensor, Tensor], Tensor], backbone: Backbone = TEXT) -> Backbone:
    """A text toy whose forward is changed by a function of the real one and its inputs."""

    def mend(module: nn.Module) -> None:
        real = module.forward
        module.forward = lambda ids, mask, kinds: change(real, ids, mask, kinds)  # type: ignore[method-assign, assignment]

    return built(backbone, mend)


def reading(kind: type[TextPreprocessing], backbone: Backbone = TEXT) -> Backbone:
    """A text toy that reads texts by a kind of preprocessing."""
    given = {field.name: getattr(backbone.preprocessing, field.name) for field in fields(TextPreprocessing)}
    return replace(backbone, preprocessing=kind(**given))


def blind(real: Forward, ids: Tensor, mask: Tensor, kinds: Tensor) -> Tensor:
    return real(ids, torch.ones_like(mask), kinds)


@pytest.mark.parametrize(
    "backbone",
    [
        forwarding(blind),
        forwarding(blind, SEQUENCE),
        forwarding(lambda real, ids, mask, kinds: real(ids, mask, kinds) * mask.float().mean(dim=1)[:, None]),
        forwarding(lambda real, *inputs: real(*inputs) + 0.1 * real(*inputs).mean(dim=1, keepdim=True), SEQUENCE),
    ],
    ids=["attention", "attention of a sequence", "pooling", "mixing"],
)
def test_padding_that_leaks_into_features_is_caught(backbone: Backbone) -> None:
    checks.check_batch_order(backbone)
    with pytest.raises(CheckFailed, match=r"padding must not change a text's features, but those of \d+ tokens move by"):
        checks.check_padding(backbone)


class Cutting(TextPreprocessing):
    """Cuts tokens itself, at the slice that a subclass names."""

    kept: Callable[[int], slice]

    def decode_many(self, sources: Sequence[Any]) -> tuple[Ragged, np.ndarray]:
        whole, _ = replace_limit(self).decode_many(sources)
        assert self.max_length is not None
        rows = [whole.row(number)[type(self).kept(self.max_length)] for number in range(len(whole))]
        return Ragged.of(rows), (whole.lengths > self.max_length).numpy()


def replace_limit(preprocessing: TextPreprocessing) -> TextPreprocessing:
    given = {field.name: getattr(preprocessing, field.name) for field in fields(TextPreprocessing)}
    return TextPreprocessing(**{**given, "limit": None, "max_length": 100_000})


class LosingTheEnd(Cutting):
    kept = staticmethod(lambda length: slice(length))


class LosingTheBeginning(Cutting):
    kept = staticmethod(lambda length: slice(-length, None))


class CountingNoSpecialTokens(Cutting):
    kept = staticmethod(lambda length: slice(length + 2))


class Silent(TextPreprocessing):
    def decode_many(self, sources: Sequence[Any]) -> tuple[Ragged, np.ndarray]:
        return super().decode_many(sources)[0], np.zeros(len(sources), bool)


def without_limit(backbone: Backbone) -> Backbone:
    assert isinstance(backbone.preprocessing, TextPreprocessing)
    return replace(backbone, preprocessing=replace(backbone.preprocessing, limit=None))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (reading(Silent), r"must report which texts were cut, but says \[False, .*False\] of 5 texts of a word"),
        (reading(CountingNoSpecialTokens), r"must have at most `max_length` = (\d+) tokens, but \d+ are left of a long one"),
        (reading(LosingTheBeginning), "two texts that differ only 1500 words in have other tokens"),
        (reading(LosingTheEnd), r"must end as whole ones do, with \[3\], but one ends with"),
        (reading(LosingTheEnd, SEQUENCE), r"must end as whole ones do, with \[3\], but one ends with"),
        (without_limit(TEXT), r"as many tokens as its preprocessing lets through, 512, but fails: index out of range"),
        (
            forwarding(lambda real, *inputs: real(*inputs) / (inputs[0].shape[1] < 100)),
            "features of a text of 128 tokens must be finite",
        ),
    ],
    ids=["unreported", "too many", "beginning", "end", "words' end", "model's limit", "infinite"],
)
def test_wrong_truncation_is_caught(backbone: Backbone, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        checks.check_truncation(backbone)


class DecodingAlone(TextPreprocessing):
    def decode(self, source: Any, *, augmented: bool) -> Tensor:
        return super().decode_many([source])[0].values[:-1]


class Wide(TextPreprocessing):
    def decode_many(self, sources: Sequence[Any]) -> tuple[Ragged, np.ndarray]:
        rows, cut = super().decode_many(sources)
        return Ragged(rows.values.long(), rows.offsets), cut


class LosingEmptyTexts(TextPreprocessing):
    def decode_many(self, sources: Sequence[Any]) -> tuple[Ragged, np.ndarray]:
        return super().decode_many([source for source in sources if source])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (DecodingAlone, r"`decode` must give what `decode_many` gives, but does not for '\w+'"),
        (Wide, r"must be \(T, C\) int32 with T of at least 1, but '\w+' is \(\d+, 2\) torch.int64"),
        (LosingEmptyTexts, r"a row and a flag for each of (\d+) texts, but gives \d+ rows and flags \(\d+,\)"),
    ],
)
def test_wrong_decoding_is_caught(kind: type[TextPreprocessing], message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        checks.check_decoding(reading(kind))


class PaddingOtherwise(TextPreprocessing):
    def inputs(self, batch: Ragged) -> tuple[Tensor, ...]:
        ids, mask, kinds = super().inputs(batch)
        return ids.masked_fill(mask == 0, 1), mask, kinds


class WritingAnotherTokenizer(TextPreprocessing):
    def files(self) -> dict[str, str]:
        files = super().files()
        files["tokenizer.json"] = json.dumps({**json.loads(files["tokenizer.json"]), "normalizer": None})
        return files


class DeclaringTuples(TextPreprocessing):
    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "inputs": self.names}


class RunByAnotherScript(TextPreprocessing):
    @property
    def runtime(self) -> Path:
        return Path(image_classification.__file__)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (reading(PaddingOtherwise), "must make the same input_ids, but differ"),
        (reading(WritingAnotherTokenizer), "must make the same input_ids, but differ"),
        (reading(DeclaringTuples), "`to_dict` must be the same after a way through JSON"),
        (reading(RunByAnotherScript), "its script .* but lacks open_tokenizer, tokenize, pad"),
        (replace(TEXT, inputs=TEXT.inputs[::-1]), r"must make the inputs \['token_type_ids', .*but makes \['input_ids', "),
    ],
    ids=["padding", "tokenizer", "JSON", "script", "order"],
)
def test_bundle_that_would_make_other_inputs_is_caught(backbone: Backbone, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        checks.check_bundle_inputs(backbone)


class CountingTokens(TextPreprocessing):
    def count_parts(self, batch: Ragged) -> np.ndarray:
        return batch.lengths.numpy()


class AligningToEveryToken(TextPreprocessing):
    def align(self, batch: Ragged, targets: Ragged) -> Tensor:
        return super().align(batch, targets).clamp(min=0)


class AligningWordsAlone(TextPreprocessing):
    def align(self, batch: Ragged, targets: Ragged) -> Tensor:
        return targets.padded(-100)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (CountingTokens, r"must count the words that were not cut off, but finds \d+ of 1"),
        (AligningToEveryToken, r"must place one target a word, in their order, but 1 words have \[0, 0"),
        (AligningWordsAlone, r"aligned targets must be \(11, \d+\), but are \(11, 40\)"),
    ],
)
def test_wrong_words_are_caught(kind: type[TextPreprocessing], message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        checks.check_words(reading(kind, SEQUENCE))


def test_sequence_without_words_is_caught() -> None:
    assert isinstance(SEQUENCE.preprocessing, TextPreprocessing)
    plain = replace(SEQUENCE, preprocessing=replace(SEQUENCE.preprocessing, words=False))
    results = {result.id: result for result in run_checks(plain, TAGGING)}
    assert not results["words"].passed


def test_text_that_ignores_an_input_is_caught() -> None:
    def mend(module: nn.Module) -> None:
        module.get_submodule("embeddings.kind").forward = lambda kinds: torch.zeros(*kinds.shape, 16)  # type: ignore[method-assign, assignment]

    with pytest.raises(CheckFailed, match=r"at depth 0 1 get none, such as embeddings\.kind\.weight"):
        checks.check_frozen_stages_do_not_change(built(TEXT, mend))


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
    with pytest.raises(CheckFailed, match=r"must export to ONNX: .* must be \(1, 3\), but is \(2, 3\)"):
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


def test_python_branch_on_the_length_is_caught() -> None:
    def branch(real: Forward, ids: Tensor, mask: Tensor, kinds: Tensor) -> Tensor:
        return real(ids, mask, kinds) * (2 if ids.shape[1] > 120 else 1)

    with pytest.raises(CheckFailed, match="at the greatest length differ by"):
        checks.check_export_parity(forwarding(branch), HEAD)


def test_length_baked_into_forward_is_caught() -> None:
    def count(real: Forward, ids: Tensor, mask: Tensor, kinds: Tensor) -> Tensor:
        return real(ids, mask, kinds) * torch.from_numpy(np.ones(int(ids.shape[1]), np.float32)).mean() * int(ids.shape[1])

    with pytest.raises(CheckFailed, match="must export to ONNX"):
        checks.check_export_parity(forwarding(count), HEAD)


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
    assert [result.id for result in results] == checks_for(CONVNET)
    failed = [result for result in results if not result.passed]
    assert {result.id for result in results} - {result.id for result in failed} == {
        "bundle-inputs",
        "augmentation",
        "worker",
    }
    assert all("raised KeyError: 'weights' (at " in result.message for result in failed)


def test_ids_are_unique_and_described() -> None:
    ids = [(check.id, modality) for check in CHECKS for modality in ("image", "text") if check.modality in (None, modality)]
    assert len(set(ids)) == len(ids)
    assert all(check.about for check in CHECKS)


def test_each_kind_of_features_is_checked_with_a_head_that_can_use_it() -> None:
    def resolve(features: str) -> Backbone:
        return toy.resolve(BackboneRequest("text", "none", features=features))

    images = replace(HEAD, name="images", modality="image")
    found = kinds_to_check(resolve, [images, HEAD, TAGGING])
    assert [(backbone.features, head.name) for backbone, head in found] == [
        ("pooled", "toy-classification"),
        ("sequence", "tagging"),
    ]
    assert len(kinds_to_check(resolve, [HEAD])) == 1
    assert [head.name for _, head in kinds_to_check(lambda features: CONVNET, [images, TAGGING])] == ["images"]


def test_one_kind_of_features_is_enough_but_a_head_must_take_it() -> None:
    def resolve(features: str) -> Backbone:
        if features == "sequence":
            raise BackboneError("toy/text has no tokens to give")
        return TEXT

    assert [backbone for backbone, _ in kinds_to_check(resolve, [HEAD, TAGGING])] == [TEXT]
    with pytest.raises(BackboneError, match="no installed head takes pooled features of text data, as toy/text gives"):
        kinds_to_check(resolve, [TAGGING])


def test_samples_of_another_modality_are_the_backbones_own_examples() -> None:
    sounds = replace(CONVNET, modality="audio")
    with pytest.raises(CheckFailed, match="takes audio") as caught:
        make_sources(sounds, 2)
    assert caught.value.hint == "give the backbone `examples`"
    assert make_sources(replace(sounds, examples=lambda count: list(range(count))), 2) == [0, 1]
