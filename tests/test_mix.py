"""Of the winner's trainings, what scores best is taken: one, the mean of several, or a blend with the pretrained weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from commands import Heard, run_search
from torch import Tensor
from toy_training import HEAD, SAMPLES, TARGETS, encode

from autoft import mix as module
from autoft.files import read_json
from autoft.mix import Mixture, mix
from autoft.train import Objective

LABELS = encode(SAMPLES)
ACCURACY = Objective(HEAD, TARGETS, "accuracy")


def weights(backbone: float, head: float = 1.0) -> dict[str, Tensor]:
    return {"backbone.weight": torch.tensor([backbone]), "head.weight": torch.tensor([head])}


def right_up_to(share: float) -> Tensor:
    """Outputs that are right for a share of the samples, from the first on."""
    outputs = torch.nn.functional.one_hot(LABELS, 3).float()
    wrong = torch.arange(len(LABELS)) >= share * len(LABELS)
    outputs[wrong] = outputs[wrong].roll(1, dims=1)
    return outputs


def near(optimum: float, steepness: float = 1.0) -> module.Answer:
    """Answers that are the better the nearer the backbone's weight is to an optimum."""

    def answer(state: Mapping[str, Tensor]) -> Tensor:
        return right_up_to(max(0.0, 1.0 - steepness * abs(float(state["backbone.weight"]) - optimum)))

    return answer


def test_mean_is_taken_where_it_is_better_than_the_best_training() -> None:
    trainings = [(7, weights(1.2)), (8, weights(0.7))]
    mixed = mix(trainings, None, near(1.0), ACCURACY, LABELS)
    assert mixed.mixture == Mixture((7, 8))
    assert float(mixed.weights["backbone.weight"]) == pytest.approx(0.95)
    assert mixed.value == pytest.approx(0.95, abs=0.03)


def test_best_training_stays_where_no_mixture_is_better() -> None:
    mixed = mix([(7, weights(1.0)), (8, weights(1.4))], weights(0.0), near(1.0), ACCURACY, LABELS)
    assert mixed.mixture == Mixture((7,))
    assert mixed.weights == weights(1.0)


def test_blend_with_the_pretrained_backbone_keeps_the_trained_head() -> None:
    mixed = mix([(7, weights(2.0, head=5.0))], weights(0.0, head=-1.0), near(1.0), ACCURACY, LABELS)
    assert mixed.mixture == Mixture((7,), 0.5)
    assert mixed.weights == weights(1.0, head=5.0)
    assert mixed.value == 1.0


def test_blend_that_may_be_better_by_luck_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    little = near(1.0, steepness=0.03)  # the best blend is right on a sample more
    assert mix([(7, weights(2.0))], weights(0.0), little, ACCURACY, LABELS).mixture == Mixture((7,))
    monkeypatch.setattr(module, "paired_error", lambda *arguments: 0.0)
    assert mix([(7, weights(2.0))], weights(0.0), little, ACCURACY, LABELS).mixture == Mixture((7,), 0.25)


@pytest.mark.parametrize(
    ("mixture", "text"),
    [
        (Mixture((3,)), "the training with seed 3"),
        (Mixture((3, 5)), "the mean of the weights of seeds 3, 5"),
        (Mixture((3, 5), 0.75), "the mean of the weights of seeds 3, 5, 75% of it and the rest pretrained"),
        (
            Mixture((3,), refitted=True, epochs=9),
            "a training with seed 3 on the training and validation splits, for 9 epochs",
        ),
    ],
)
def test_mixture_says_in_words_what_it_is_and_survives_json(mixture: Mixture, text: str) -> None:
    assert mixture.text == text
    assert Mixture.from_dict(mixture.to_dict()) == mixture


@pytest.mark.usefixtures("toys", "fast_export")
def test_search_exports_a_blend_where_it_is_clearly_better_and_says_so(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "paired_error", lambda *arguments: -1.0)
    monkeypatch.setattr(module, "is_better", lambda direction, found, best: True)  # the last alpha wins
    heard = Heard()
    settings = ("search.trials=2", "search.seeds=2", "search.metric=log_loss")
    run_search(toy_images, tmp_path / "run", *settings, on_event=heard)
    winner = read_json(tmp_path / "run" / "result.json")["winner"]
    assert winner["made_of"]["alpha"] == 0.75
    assert "75% of it" in winner["weights"]
    assert [data["alpha"] for data in heard.of("confirm") if data["stage"] == "mix"] == [0.75]
