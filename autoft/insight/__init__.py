"""What a search tells about how to fine-tune: importances, dependences, and sentences made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoft.insight.dependence import Dependence, Surrogate, require_parameter
from autoft.insight.evidence import DEPTHS, Evidence, read_run
from autoft.insight.importance import FEWEST, Importances, importances
from autoft.insight.sentences import tell, too_few

SHOWN = (*DEPTHS, "learning_rate")  # dependences that are always looked at


@dataclass(frozen=True)
class Insight:
    """What a run tells.

    Attributes:
        evidence: Its trials.
        warning: What is to be said of too few trials, or None.
        importances: How much each setting matters; None where nothing tells it.
        dependences: How the metric depends on depth, learning rate, what stands out, and what was asked for.
        noise: Of the metric; None where too few trials tell it.
        sentences: What there is to say, in plain words.
    """

    evidence: Evidence
    warning: str | None
    importances: Importances | None
    dependences: tuple[Dependence, ...]
    noise: float | None
    sentences: tuple[str, ...]


def look_into(run: Path, parameters: Sequence[str] = ()) -> Insight:
    """Return what a finished or interrupted run tells; nothing in its folder is changed.

    Args:
        run: The run folder.
        parameters: Settings whose dependences are wanted too.

    Raises:
        RunError: There is no run, no trial of it has trained an epoch, or a parameter was not searched.
    """
    return consider(read_run(run), parameters)


def consider(evidence: Evidence, parameters: Sequence[str] = ()) -> Insight:
    """Return what trials tell.

    Args:
        evidence: The trials.
        parameters: Settings whose dependences are wanted too.

    Raises:
        RunError: A parameter was not searched.
    """
    asked = [require_parameter(evidence, name) for name in parameters]
    warning = too_few(evidence)
    if len(evidence.trials) < FEWEST:
        return Insight(evidence, warning, None, (), None, ())
    found = importances(evidence)
    usual = [name for name in SHOWN if name in evidence.parameters]
    standing = [setting.name for setting in found.settings if setting.stands_out] if found else []
    surrogate = Surrogate(evidence)
    dependences = tuple(surrogate.dependence(name) for name in dict.fromkeys([*usual, *asked, *standing]))
    noise, noise_of = evidence.seed_noise, "two trainings of one trial with different seeds are as far apart"
    if noise is None:
        noise = surrogate.noise
        noise_of = "no trial was trained with several seeds, and trials are that far from what others with like settings had"
    return Insight(evidence, warning, found, dependences, noise, tuple(tell(evidence, found, dependences, noise, noise_of)))
