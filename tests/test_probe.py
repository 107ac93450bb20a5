"""Probes: features in order, heads trained side by side as each alone, neighbours, and what the ranking may drop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import CONVNET, CPU, MLP, SAMPLES

from autoft.builtin.heads import autoft_heads
from autoft.events import Event
from autoft.probe import (
    ProbeResult,
    features,
    keep,
    kept_by_probe,
    nearest_neighbours,
    probe,
    probe_backbones,
    rank,
)
from autoft.ragged import Ragged
from autoft.specs import Backbone, BackboneRequest, Sample
from autoft.testing import toy
from autoft.train import NonFiniteError, Objective
from autoft.worker import Worker

HEADS = {head.name: head for head in autoft_heads()}


class Setup:
    """A task with a worker over its splits; every fourth sample serves for validation."""

    def __init__(self, task: str, samples: tuple[Sample, ...], backbone: Backbone, metric: str | None = None) -> None:
        head = HEADS[task]
        self.parts = {
            name: [one for index, one in enumerate(samples) if (index % 4 == 0) == held]
            for name, held in (("train", False), ("validation", True))
        }
        targets = head.describe([one.target for one in self.parts["train"]])
        self.objective = Objective(head, targets, metric or head.default_metric(targets))
        self.encoded = {name: head.encode([one.target for one in part], targets) for name, part in self.parts.items()}
        splits: Any = {name: (part, self.encoded[name]) for name, part in self.parts.items()}
        self.worker = Worker(splits, self.objective, device=CPU, memory=1 << 28)
        self.backbone = backbone

    def features(self, split: str) -> Any:
        return features(self.worker, self.backbone, split, module=self.backbone.build(), device=CPU)[0]

    def both(self) -> tuple[Any, Any, Any, Any]:
        return self.features("train"), self.encoded["train"], self.features("validation"), self.encoded["validation"]


def images(backbone: Backbone | None = None, metric: str | None = None) -> Setup:
    return Setup("image-classification", SAMPLES, backbone or toy.resolve(BackboneRequest("mlp")), metric)


def numbers() -> Setup:
    """Images whose target is the number of their class."""
    labels = sorted({one.target for one in SAMPLES})
    samples = tuple(replace(one, target=(float(labels.index(one.target)),)) for one in SAMPLES)
    return Setup("regression", samples, toy.resolve(BackboneRequest("mlp")))


def tagged(max_length: int | None = None) -> Setup:
    samples = toy.toy_tagged(80)
    found = toy.resolve(BackboneRequest("text", features="sequence", max_length=max_length))
    return Setup("token-classification", samples, found)


def learnable() -> tuple[Objective, Any, Any, Any, Any]:
    """Features of three classes that a linear head can tell apart."""
    head = toy.autoft_heads()[0]  # its metrics are cheap
    targets = head.describe(["a", "b", "c"] * 40)
    generator = torch.Generator().manual_seed(0)
    wanted = torch.arange(120) % 3
    rows = torch.nn.functional.one_hot(wanted, 8).float() * 3 + torch.randn(120, 8, generator=generator) + 5
    return Objective(head, targets, "accuracy"), rows[:90], wanted[:90], rows[90:], wanted[90:]


def result(index: int, score: float | None, reason: str | None = None) -> ProbeResult:
    return ProbeResult(index, f"toy/{index}", None, score, None, 0.1, 10, reason, score)


# --- features ---------------------------------------------------------------------------------------


def test_features_of_images_come_in_the_splits_order_and_without_dropout() -> None:
    setup = images(CONVNET)
    module = CONVNET.build()
    found, wanted = features(setup.worker, CONVNET, "validation", module=module, device=CPU)
    assert isinstance(found, torch.Tensor)
    assert found.shape == (len(setup.parts["validation"]), 16)
    assert wanted is setup.encoded["validation"]
    item = CONVNET.preprocessing.decode(setup.parts["validation"][5].source, augmented=False)
    with torch.no_grad():
        alone = module.eval()(*CONVNET.preprocessing.inputs(item[None]))
    torch.testing.assert_close(found[5:6], alone)


def test_features_of_tagged_words_are_a_row_a_word() -> None:
    setup = tagged()
    found = setup.features("validation")
    assert isinstance(found, Ragged)
    assert found.lengths.tolist() == setup.encoded["validation"].lengths.tolist()


def test_no_more_training_samples_are_taken_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = images(MLP)
    module = MLP.build()
    every = features(setup.worker, MLP, "train", module=module, device=CPU)[0]
    monkeypatch.setattr("autoft.probe.MOST_SAMPLES", 7)
    some, wanted = features(setup.worker, MLP, "train", module=module, device=CPU)
    again = features(setup.worker, MLP, "train", module=module, device=CPU)[0]
    other = features(setup.worker, MLP, "train", module=module, device=CPU, seed=1)[0]
    assert len(some) == len(wanted) == 7 < len(every)
    assert torch.equal(some, again)
    assert not torch.equal(some, other)


def test_features_that_are_not_finite_are_refused() -> None:
    setup, module = images(MLP), MLP.build()
    next(module.parameters()).data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="must be finite"):
        features(setup.worker, MLP, "train", module=module, device=CPU)


# --- neighbours ---------------------------------------------------------------------------


def test_neighbours_answer_with_their_label_and_their_mean() -> None:
    objective, train, wanted, validation, truth = learnable()
    answers = nearest_neighbours(train - 5, wanted, validation - 5, objective)
    assert answers is not None
    assert (answers.argmax(-1) == truth).float().mean() > 0.8
    shuffled = nearest_neighbours(train - 5, wanted.roll(1), validation - 5, objective)
    assert shuffled is not None
    assert (shuffled.argmax(-1) == truth).float().mean() < 0.3
    setup = numbers()
    rows = torch.eye(3)
    mean = nearest_neighbours(rows, torch.tensor([[1.0], [2.0], [4.0]]), rows, setup.objective, neighbours=1)
    assert mean is not None
    assert mean.flatten().tolist() == [1.0, 2.0, 4.0]


def test_neighbours_do_not_answer_for_words() -> None:
    setup = tagged()
    assert nearest_neighbours(*setup.both()[:3], setup.objective) is None


# --- ranking ----------------------------------------------------------------------------------------


def test_ranking_is_best_first_and_those_not_probed_come_last() -> None:
    results = [result(0, None, "bug"), result(1, 0.5), result(2, 0.9), result(3, 0.5)]
    assert [one.index for one in rank(results, "maximize")] == [2, 1, 3, 0]
    assert [one.index for one in rank(results, "minimize")] == [1, 3, 2, 0]


def test_clearly_weaker_backbones_are_dropped_but_never_the_first_or_an_unknown_one() -> None:
    results = [result(0, 0.2), result(1, 0.9), result(2, 0.2), result(3, None, "bug"), result(4, 0.62)]
    assert keep(results, "maximize", lambda one, other: 0.1) == (0, 1, 3, 4)
    assert keep(results, "maximize", lambda one, other: 0.01) == (0, 1, 3)
    assert keep(results, "minimize", lambda one, other: 0.1) == (0, 2, 3)
    assert keep([result(0, None, "bug")], "maximize", lambda one, other: 0.1) == (0,)


def test_standard_error_of_the_difference_decides() -> None:
    objective, _, _, _, truth = learnable()
    right = torch.nn.functional.one_hot(truth, 3).float()
    few, many = right.clone(), right.roll(1, dims=1)
    few[0] = few[0].roll(1)
    made = [replace(result(number, 1.0 - wrong), outputs=outputs) for number, (wrong, outputs) in enumerate(
        [(0.0, right), (1 / 30, few), (1.0, many)]
    )]  # fmt: skip
    assert kept_by_probe(made, objective, truth) == (0, 1)


# --- all of it --------------------------------------------------------------------------------------


def test_all_backbones_are_probed_and_told() -> None:
    setup, told = images(), list[Event]()
    dead = replace(setup.backbone, name="toy/dead", build=_dead)
    results = probe_backbones([setup.backbone, CONVNET, dead], setup.objective, setup.worker, told.append, device=CPU)
    assert [one.index for one in results] == [0, 1, 2]
    assert [event.kind for event in told] == ["probe"] * 4
    assert results[0].score is not None
    assert results[0].knn is not None
    assert results[0].parameters
    assert results[2].score is None
    assert "must be finite" in str(results[2].reason)
    assert "not possible" in told[2].text
    assert told[2].data["reason"] == results[2].reason
    assert told[3].data["ranking"][-1] == 2
    assert {0, 2} <= set(told[3].data["kept"])
    assert [one.index for one in results if one.kept] == told[3].data["kept"]


def test_weak_backbone_is_left_out_by_name() -> None:
    def blind() -> torch.nn.Module:
        module = MLP.build()
        for parameter in module.parameters():
            parameter.data.zero_()
        return module

    setup, told = images(), list[Event]()
    weak = replace(setup.backbone, name="toy/blind", build=blind)
    results = probe_backbones([setup.backbone, weak], setup.objective, setup.worker, told.append, device=CPU)
    assert [one.kept for one in results] == [True, False]
    assert "left out: toy/blind" in told[-1].text
    assert all(
        one.kept for one in probe_backbones([weak, setup.backbone], setup.objective, setup.worker, told.append, device=CPU)
    )


def test_what_is_not_the_backbones_fault_is_raised() -> None:
    def lost() -> torch.nn.Module:
        raise ConnectionError("the hub does not answer")

    setup = images()
    with pytest.raises(ConnectionError):
        probe(0, replace(setup.backbone, build=lost), setup.objective, setup.worker, device=CPU)


def test_only_backbone_is_probed_without_a_ranking(tmp_path: Path) -> None:
    setup, told = images(), list[Event]()
    (found,) = probe_backbones(
        [setup.backbone], setup.objective, setup.worker, told.append, device=CPU, folder=tmp_path / "probe"
    )
    assert found.kept
    assert [event.data["head"] for event in told] == ["0.safetensors"]
    assert [file.name for file in (tmp_path / "probe").iterdir()] == ["0.safetensors"]


def _dead() -> torch.nn.Module:
    module = MLP.build()
    next(module.parameters()).data.fill_(float("nan"))
    return module
