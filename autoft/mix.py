"""What is exported of the winner's trainings: one of them, the mean of several, or a blend with the pretrained weights.

Chosen on the validation split alone; how weights are mixed is in `soup.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from autoft.ragged import Rows
from autoft.resampling import paired_error
from autoft.soup import ALPHAS, Weights, greedy_soup, interpolate
from autoft.specs import is_better
from autoft.train import Objective

STANDARD_ERRORS = 2.0  # one would be exceeded by a single sample more that is right

Answer = Callable[[Mapping[str, Tensor]], Rows]


@dataclass(frozen=True)
class Mixture:
    """How exported weights came about, for people and for whoever makes them again.

    Attributes:
        seeds: Of the trainings whose mean they are, in the order of mixing; one seed for a single training.
        alpha: Share of the trained backbone; the rest is of the pretrained one.
        refitted: Whether they were trained anew, on training and validation split together, for `epochs`.
        epochs: Of that training; 0 where there was none.
    """

    seeds: tuple[int, ...]
    alpha: float = 1.0
    refitted: bool = False
    epochs: int = 0

    @property
    def text(self) -> str:
        """In words."""
        seeds = ", ".join(map(str, self.seeds))
        if self.refitted:
            return f"a training with seed {seeds} on the training and validation splits, for {self.epochs} epochs"
        made = f"the mean of the weights of seeds {seeds}" if len(self.seeds) > 1 else f"the training with seed {seeds}"
        return made if self.alpha == 1.0 else f"{made}, {self.alpha:.0%} of it and the rest pretrained"

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return {**asdict(self), "seeds": list(self.seeds)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Mixture:
        """Return what `to_dict` gave.

        Raises:
            KeyError: Something is missing.
        """
        return cls(tuple(stored["seeds"]), float(stored["alpha"]), bool(stored["refitted"]), int(stored["epochs"]))


@dataclass(frozen=True)
class Mixed:
    """Weights, their score on the validation split, and how they came about."""

    weights: Weights
    value: float
    mixture: Mixture


def mix(
    trainings: Sequence[tuple[int, Mapping[str, Tensor]]],
    pretrained: Mapping[str, Tensor] | None,
    answer: Answer,
    objective: Objective,
    encoded: Rows,
) -> Mixed:
    """Return the best of the single trainings, their greedy soup, and its blends with the pretrained weights (WiSE-FT).

    The soup replaces the best single training where it scores strictly better. A blend replaces that where it is better
    by more than two standard errors of the difference on the validation split: of three blends one is often better by luck.

    Args:
        trainings: Seed and weights of each, best first.
        pretrained: The model's state before training, or None where there is nothing to blend with.
        answer: Gives the outputs for the validation split with some weights.
        objective: The task and its metric.
        encoded: Targets of the validation split.
    """
    direction = objective.direction

    def score(weights: Mapping[str, Tensor]) -> float:
        value: float = objective.head.metrics(answer(weights), encoded, objective.targets)[objective.metric]
        return value

    weights, members = greedy_soup([weights for _, weights in trainings], score, direction)
    outputs = answer(weights)
    value: float = objective.head.metrics(outputs, encoded, objective.targets)[objective.metric]
    mixed = Mixed(weights, value, Mixture(tuple(trainings[member][0] for member in members)))
    if pretrained is None:
        return mixed
    for alpha in ALPHAS:
        blended = interpolate(pretrained, weights, alpha)
        answers = answer(blended)
        found: float = objective.head.metrics(answers, encoded, objective.targets)[objective.metric]
        if not is_better(direction, found, mixed.value):
            continue
        if abs(found - value) > STANDARD_ERRORS * paired_error(answers, outputs, objective, encoded):
            mixed = Mixed(blended, found, Mixture(mixed.mixture.seeds, alpha))
    return mixed
