"""Says how much each setting has to do with being among the best trials (PED-ANOVA), and what share chance may have."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial

from autoft.insight.evidence import Evidence

BEST_SHARE = 0.2  # the trials whose settings are compared with all others': the best fifth
FEWEST = 10  # trials below which nothing is concluded: with fewer than two in the best fifth there is nothing to compare
ENOUGH = 25  # trials from which five are in the best fifth, as Optuna's documentation of PED-ANOVA advises
SHUFFLES = 100
CHANCE = 0.95  # of the shuffles, in which no setting exceeds what chance may give


@dataclass(frozen=True)
class Importance:
    """How much one setting matters.

    Attributes:
        name: Of the setting.
        share: Of all that sets the best fifth of the trials apart from all trials; all settings' shares add up to 1.
        chance: The share that chance may give it; more than 1 where all of them together are less than that.
    """

    name: str
    share: float
    chance: float

    @property
    def stands_out(self) -> bool:
        """Whether its share is more than chance may give."""
        return self.share > self.chance


@dataclass(frozen=True)
class Importances:
    """How much the settings matter.

    Attributes:
        settings: Each one's, the most important first.
        best: How many trials are the best fifth; more where values are equal.
    """

    settings: tuple[Importance, ...]
    best: int


def importances(evidence: Evidence, seed: int = 0) -> Importances | None:
    """Compute PED-ANOVA's importances (arXiv:2304.10255) over all trials that count, stopped ones too.

    PED-ANOVA compares how a setting is distributed among the best trials with how it is among all, so that where the search
    has looked most does not count. Its shares always add up to 1, also where nothing matters; so they are compared with
    those of the same trials with their values shuffled. A setting stands out if it exceeds its mean over the shuffles by
    more of its standard deviations there than any setting does in 95 of 100 shuffles (Westfall and Young's step "max T"):
    that one stands out where nothing matters has a chance of 1 in 20, however many settings there are.

    Returns:
        None where there are fewer than `FEWEST` trials, no setting was searched, or all values are equal.
    """
    values = np.array([-evidence.better * trial.value for trial in evidence.trials])
    if len(values) < FEWEST or not evidence.parameters or np.ptp(values) == 0:
        return None
    study = _study(evidence)
    found = _evaluate(study, evidence, values)
    total = sum(found.values())
    if total == 0:
        return None
    rng = np.random.default_rng(seed)
    shuffled = [_evaluate(study, evidence, rng.permutation(values)) for _ in range(SHUFFLES)]
    drawn = np.array([[one[name] for name in found] for one in shuffled])
    mean, spread = drawn.mean(axis=0), drawn.std(axis=0) + np.finfo(float).tiny
    most = float(np.quantile(((drawn - mean) / spread).max(axis=1), CHANCE))
    chances = dict(zip(found, (mean + most * spread) / total, strict=True))
    ranked = sorted(found.items(), key=lambda item: -item[1])
    best = int(np.sum(values <= np.sort(values)[int(np.ceil(BEST_SHARE * len(values))) - 1]))
    return Importances(tuple(Importance(name, raw / total, float(chances[name])) for name, raw in ranked), best)


def _study(evidence: Evidence) -> optuna.Study:
    """Return a study in memory in which all trials are finished: PED-ANOVA looks at no others."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it tells of each study that it makes
    study = optuna.create_study(
        storage=optuna.storages.InMemoryStorage(), sampler=optuna.samplers.RandomSampler(), direction="minimize"
    )
    for trial in evidence.trials:
        params = {name: value for name, value in trial.params.items() if name in evidence.parameters}
        distributions = {name: evidence.parameters[name] for name in params}
        study.add_trial(optuna.trial.create_trial(value=0.0, params=params, distributions=distributions))
    return study


def _evaluate(study: optuna.Study, evidence: Evidence, losses: NDArray[np.float64]) -> dict[str, float]:
    def loss(trial: FrozenTrial) -> float:
        return float(losses[trial.number])

    with warnings.catch_warnings():
        # that less is better where a target is given, which it is; and of settings that few trials have
        warnings.simplefilter("ignore", UserWarning)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
        return evaluator.evaluate(study, params=list(evidence.parameters), target=loss)
