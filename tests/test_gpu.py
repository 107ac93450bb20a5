"""What only a GPU can show: run with `pytest -m gpu` on a machine with CUDA; skipped elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autoft import tuning
from autoft.builtin import heads
from autoft.loading import FixedData, RaggedData
from autoft.model import FineTuneModel, assemble
from autoft.specs import Backbone, BackboneRequest
from autoft.testing import toy
from autoft.testing.toy_text import toy_texts
from autoft.train import EpochReport, Objective, TrainConfig, choose_device, choose_precision, fit, predict
from autoft.worker import Job, Worker

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
HEAD = heads.autoft_heads()[0]
KNOBS = {knob.name: knob.default for knob in HEAD.knobs}
CONFIG = TrainConfig(learning_rate=3e-3, epochs=4, batch_size=8, knobs=KNOBS)


class Setup:
    """Toy images, a toy backbone and the classification head."""

    def __init__(self) -> None:
        self.backbone: Backbone = toy.resolve(BackboneRequest("convnet", weights="none"))
        samples = toy.toy_samples(per_class=16)
        targets = HEAD.describe([sample.target for sample in samples])
        encoded = HEAD.encode([sample.target for sample in samples], targets)
        self.splits = dict.fromkeys(("train", "validation", "test"), (samples, encoded))
        self.objective = Objective(HEAD, targets, "accuracy")
        self.train = FixedData(samples, encoded, self.backbone.preprocessing, policy="light")
        self.validation = FixedData(samples, encoded, self.backbone.preprocessing)

    def model(self) -> FineTuneModel:
        return assemble(self.backbone, HEAD, self.objective.targets, KNOBS, seed=0)


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup()


def test_auto_takes_the_gpu_and_half_precision() -> None:
    assert choose_device("auto").type == "cuda"
    assert choose_precision("auto", CUDA) in ("bf16", "fp16")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_on_the_gpu_learns_and_keeps_float32_weights(setup: Setup, precision: str) -> None:
    config = replace(CONFIG, precision=precision, epochs=12)
    result = fit(setup.model(), setup.train, setup.validation, setup.objective, config, device=CUDA)
    assert result.best.value > 0.8
    assert all(value.device.type == "cpu" for value in result.weights.values())
    assert all(value.dtype != torch.float16 and value.dtype != torch.bfloat16 for value in result.weights.values())


def test_first_loss_on_the_gpu_equals_that_on_the_cpu(setup: Setup) -> None:
    config = replace(CONFIG, epochs=1, learning_rate=1e-6, knobs={**KNOBS, "dropout": 0.0})
    plain = FixedData(setup.train.samples, setup.train.targets, setup.backbone.preprocessing)
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    losses = [
        fit(setup.model(), plain, setup.validation, setup.objective, config, device=device).history[0].train_loss
        for device in (torch.device("cpu"), CUDA)
    ]
    # the backbone's own dropout draws other numbers on the GPU
    assert losses[0] == pytest.approx(losses[1], rel=5e-2)


def test_outputs_on_the_gpu_equal_those_on_the_cpu(setup: Setup) -> None:
    outputs = [
        predict(setup.model().to(device), setup.validation, device=device, batch_size=7)
        for device in (torch.device("cpu"), CUDA)
    ]
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-3, rtol=1e-3)


def test_run_continued_on_the_gpu_equals_one_that_never_stopped(setup: Setup, tmp_path: Path) -> None:
    whole = fit(setup.model(), setup.train, setup.validation, setup.objective, CONFIG, device=CUDA)

    class Cut(Exception):  # noqa: N818
        pass

    def cut(report: EpochReport) -> None:
        if report.epoch == 2:
            raise Cut

    with pytest.raises(Cut):
        fit(
            setup.model(),
            setup.train,
            setup.validation,
            setup.objective,
            CONFIG,
            device=CUDA,
            checkpoint=tmp_path,
            on_epoch=cut,
        )
    rest = fit(setup.model(), setup.train, setup.validation, setup.objective, CONFIG, device=CUDA, checkpoint=tmp_path)
    assert [report.train_loss for report in rest.history] == pytest.approx([report.train_loss for report in whole.history])


def test_training_does_not_synchronize_in_a_step(setup: Setup, **changes: Any) -> None:
    config = replace(CONFIG, epochs=1, gradient_clip=1.0, precision="bf16", **changes)
    steps: list[int] = []

    def should_stop() -> bool:
        # from the second step on, until validation begins, anything that waits for the GPU is an error
        steps.append(1)
        torch.cuda.set_sync_debug_mode("error" if 1 < len(steps) < 6 else "default")
        return False

    try:
        fit(setup.model(), setup.validation, setup.validation, setup.objective, config, device=CUDA, should_stop=should_stop)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == 6


METHODS: tuple[dict[str, Any], ...] = (
    {"sam": 0.05},
    {"r_drop": 1.0},
    {"l2_sp": 1.0},
    {"averaging": "ema"},
    {"mixup": 0.4},
    {"cutmix": 0.4},
    {"erasing": 0.5},
    {"unfreeze": 0.5},
)


@pytest.mark.parametrize("changes", METHODS, ids=lambda changes: "-".join(changes))
def test_no_method_synchronizes_in_a_step(setup: Setup, changes: dict[str, Any]) -> None:
    test_training_does_not_synchronize_in_a_step(setup, **changes)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("changes", [*METHODS, {"averaging": "swa"}, {"batch_norm": "frozen"}], ids=lambda each: str(each))
def test_every_method_learns_on_the_gpu(setup: Setup, changes: dict[str, Any], precision: str) -> None:
    config = replace(CONFIG, epochs=12, precision=precision, **changes)
    result = fit(setup.model(), setup.train, setup.validation, setup.objective, config, device=CUDA)
    assert result.history[-1].train_loss < 0.8 * result.history[0].train_loss


class HungryModule(torch.nn.Module):
    """Runs out of the GPU's memory, really, when it is given more than `most` samples at once."""

    def __init__(self, inner: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most = inner, most

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.training and len(pixel_values) > self.most:
            torch.empty(1 << 50, dtype=torch.uint8, device=pixel_values.device)
        features: torch.Tensor = self.inner(pixel_values)
        return features


def hungry(setup: Setup, most: int) -> Backbone:
    """The toy backbone, but with room for so many samples."""
    return replace(
        setup.backbone,
        build=lambda: HungryModule(setup.backbone.build(), most=most),
        stages=lambda module: tuple(
            replace(stage, parameters=tuple(f"inner.{name}" for name in stage.parameters))
            for stage in setup.backbone.stages(module.inner)
        ),
        feature_size=lambda module: setup.backbone.feature_size(module.inner),
        no_weight_decay=lambda module: frozenset(),
    )


def test_real_out_of_memory_halves_the_micro_batch_and_goes_on(setup: Setup, tmp_path: Path) -> None:
    worker = Worker(setup.splits, setup.objective, device=CUDA, memory=1 << 30)
    outcome = worker.run(Job(hungry(setup, 2), replace(CONFIG, epochs=1), "none", tmp_path / "0"))
    assert outcome.state == "complete"
    assert outcome.micro_batch == 2


# --- texts --------------------------------------------------------------------------------------------


class TextSetup(Setup):
    """Toy texts, a toy encoder and the classification head."""

    def __init__(self) -> None:
        found = toy.resolve(BackboneRequest("text", weights="none"))
        samples = toy_texts(per_class=16)
        self.backbone = replace(found, preprocessing=found.preprocessing.fit([sample.source for sample in samples]))
        targets = HEAD.describe([sample.target for sample in samples])
        encoded = HEAD.encode([sample.target for sample in samples], targets)
        self.objective = Objective(HEAD, targets, "accuracy")
        self.train = self.validation = RaggedData(samples, encoded, self.backbone.preprocessing)  # type: ignore[assignment, arg-type]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_on_texts_learns_on_the_gpu(precision: str) -> None:
    setup = TextSetup()
    config = replace(CONFIG, precision=precision, epochs=12, learning_rate=1e-2)
    assert fit(setup.model(), setup.train, setup.validation, setup.objective, config, device=CUDA).best.value > 0.8


def test_outputs_for_texts_on_the_gpu_equal_those_on_the_cpu() -> None:
    test_outputs_on_the_gpu_equal_those_on_the_cpu(TextSetup())


@pytest.mark.parametrize("adversarial", [0.0, 0.5])
def test_training_on_texts_does_not_synchronize_in_a_step(adversarial: float) -> None:
    test_training_does_not_synchronize_in_a_step(TextSetup(), adversarial=adversarial)


@pytest.mark.parametrize(("most", "wanted"), [(2, 2), (8, None)])
def test_the_largest_micro_batch_that_fits_is_found(setup: Setup, most: int, wanted: int | None) -> None:
    backbone = hungry(setup, most)

    def make() -> FineTuneModel:
        return assemble(backbone, HEAD, setup.objective.targets, KNOBS, seed=0)

    found, facts = tuning.largest_micro_batch(make, setup.train, setup.objective, CONFIG, device=CUDA)
    assert found == wanted
    assert facts["failed"] == ([8, 4] if wanted else [])


def test_choices_are_measured_on_the_gpu(setup: Setup) -> None:
    tuned = tuning.tune(setup.model, setup.train, setup.objective, CONFIG, device=CUDA)
    assert tuned.facts["precision"]["candidate"] in ("bf16", "fp16")
    assert tuned.facts["micro_batch"]["fits"] is True
    assert not tuned.compile  # a toy's trial is over before anything is compiled


def test_compiled_training_on_the_gpu_agrees(setup: Setup) -> None:
    config = replace(CONFIG, epochs=2, knobs={**KNOBS, "dropout": 0.0})
    losses = []
    for compiling in (False, True):
        settings = replace(config, compile=compiling)
        result = fit(setup.model(), setup.train, setup.validation, setup.objective, settings, device=CUDA)
        losses.append([report.train_loss for report in result.history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
