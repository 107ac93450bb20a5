"""The trainer on texts: the same loop as on images, so only what differs: length, order, words, and their weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_training import CPU, assert_equal_tensors, state

from autoft.builtin.heads import autoft_heads
from autoft.loading import RaggedData
from autoft.model import FineTuneModel, assemble
from autoft.ragged import Ragged
from autoft.specs import IGNORED, Backbone, BackboneRequest, Head, Sample
from autoft.testing import toy
from autoft.testing.toy_text import toy_tagged, toy_texts
from autoft.train import FitResult, Objective, TrainConfig, fit, predict

HEADS = {head.name: head for head in autoft_heads()}
TEXTS = toy_texts(classes=3, per_class=16)
TAGGED = toy_tagged(120)


class Setup:
    """A task on texts: head, targets, backbone, and both splits."""

    def __init__(self, task: str, samples: tuple[Sample, ...], max_length: int | None = None) -> None:
        self.head: Head = HEADS[task]
        request = BackboneRequest("text", "pretrained", features=self.head.features, max_length=max_length)
        found: Backbone = toy.resolve(request)
        self.backbone = replace(found, preprocessing=found.preprocessing.fit([sample.source for sample in samples]))
        self.knobs = {knob.name: knob.default for knob in self.head.knobs} | {"dropout": 0.0}
        self.train, self.validation = (
            [sample for index, sample in enumerate(samples) if (index % 4 == 0) == held] for held in (False, True)
        )
        self.targets = self.head.describe([sample.target for sample in self.train])
        self.objective = Objective(self.head, self.targets, self.head.default_metric(self.targets))

    def split(self, samples: list[Sample]) -> RaggedData:
        encoded = self.head.encode([sample.target for sample in samples], self.targets)
        return RaggedData(samples, encoded, self.backbone.preprocessing)  # type: ignore[arg-type]

    def model(self) -> FineTuneModel:
        return assemble(self.backbone, self.head, self.targets, self.knobs, seed=0)

    def fit(self, model: FineTuneModel, **changes: object) -> FitResult:
        config = replace(TrainConfig(learning_rate=1e-2, epochs=6, batch_size=8, knobs=self.knobs), **changes)  # type: ignore[arg-type]
        return fit(model, self.split(self.train), self.split(self.validation), self.objective, config, device=CPU)


@pytest.mark.parametrize(("task", "reached"), [("text-classification", 0.6), ("token-classification", 0.4)])
def test_learns_from_texts(task: str, reached: float) -> None:
    setup = Setup(task, TAGGED if task == "token-classification" else TEXTS)
    result = setup.fit(setup.model(), epochs=16)
    assert result.history[-1].train_loss < 0.5 * result.history[0].train_loss
    assert result.best.value > reached


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_outputs_come_in_the_order_of_the_split_whatever_the_batches(task: str) -> None:
    setup = Setup(task, TAGGED if task == "token-classification" else TEXTS)
    data, model = setup.split(setup.validation), setup.model()
    together = predict(model, data, device=CPU, batch_size=8)
    assert len(together) == len(data)
    model.eval()
    for row in range(len(data)):
        ((inputs, wanted),) = data.batches([np.array([row])], device=CPU)
        with torch.inference_mode():
            alone = model(*inputs)
        if isinstance(together, Ragged):
            torch.testing.assert_close(together.row(row), alone[wanted != IGNORED])
            assert len(together.row(row)) == len(data.samples[row].source)
        else:
            torch.testing.assert_close(together[row], alone[0])


def test_words_that_were_cut_off_have_no_outputs_and_count_as_wrong() -> None:
    whole, cut = Setup("token-classification", TAGGED), Setup("token-classification", TAGGED, max_length=12)
    data = cut.split(cut.validation)
    outputs = predict(cut.model(), data, device=CPU, batch_size=8)
    assert isinstance(outputs, Ragged)
    assert (outputs.lengths.numpy() == data.units(np.arange(len(data)))).all()
    assert outputs.lengths.sum() < whole.split(whole.validation).units(np.arange(len(data))).sum()
    perfect = torch.nn.functional.one_hot(data.targets.values, len(cut.targets.labels)).float()  # type: ignore[union-attr]
    of_all = Ragged(perfect, data.targets.offsets)  # type: ignore[union-attr]
    assert cut.head.metrics(of_all, data.targets, cut.targets)["f1"] == 1.0
    kept = Ragged.of([of_all.row(row)[: int(outputs.lengths[row])] for row in range(len(data))])
    assert cut.head.metrics(kept, data.targets, cut.targets)["f1"] < 1.0


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(task: str) -> None:
    setup = Setup(task, TAGGED if task == "token-classification" else TEXTS)
    models = [setup.model() for _ in range(2)]
    for model in models:
        for module in model.modules():  # the only other thing that depends on how samples are put together
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    whole = setup.fit(models[0], epochs=1, batch_size=16, optimizer="sgd")
    parts = setup.fit(models[1], epochs=1, batch_size=16, optimizer="sgd", micro_batch=3)
    assert whole.history[0].train_loss == pytest.approx(parts.history[0].train_loss, rel=1e-5)
    for name, value in whole.weights.items():
        torch.testing.assert_close(parts.weights[name], value, rtol=1e-3, atol=1e-5)


def test_same_seed_repeats_training_on_texts_bit_for_bit() -> None:
    setup = Setup("text-classification", TEXTS)
    models = [setup.model() for _ in range(2)]
    results = [setup.fit(model, epochs=2) for model in models]
    assert_equal_tensors(state(models[0]), state(models[1]))
    assert results[0].history[-1].metrics == results[1].history[-1].metrics


def test_resampling_gives_rare_classes_their_share() -> None:
    rare = [sample for index, sample in enumerate(TEXTS) if sample.target != "food" or index % 8 == 0]
    setup = Setup("text-classification", tuple(rare))
    knobs = {**setup.knobs, "imbalance": "resample"}
    data = setup.split(setup.train)
    weights = setup.head.draw_weights(data.targets, setup.targets, knobs)
    assert weights is not None
    counts = np.bincount(data.targets.numpy())  # type: ignore[union-attr]
    assert counts[0] < counts[1]
    assert np.allclose([weights[data.targets.numpy() == label].sum() for label in range(3)], weights.sum() / 3)  # type: ignore[union-attr]
    result = setup.fit(setup.model(), knobs=knobs, epochs=2)
    assert result.history[-1].train_loss < result.history[0].train_loss
