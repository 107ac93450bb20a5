"""An insight for the command line: its sentences, its tables, and all its numbers as JSON."""

from __future__ import annotations

from typing import Any

from autoft.insight import Insight
from autoft.insight.dependence import Dependence
from autoft.insight.sentences import Metric, counted, written

Row = tuple[str, ...]


def summary(insight: Insight) -> list[str]:
    """Return what is said above the tables: how many trials there are, the warning, the sentences."""
    warning = [f"warning: {insight.warning}"] if insight.warning else []
    return [counted(insight.evidence), *warning, *(f"- {sentence}" for sentence in insight.sentences)]


def tables(insight: Insight) -> list[list[Row]]:
    """Return a table of the importances, and one a dependence, each with its heading."""
    found = []
    if insight.importances is not None:
        rows: list[Row] = [("SETTING", "SHARE", "CHANCE", "")]
        for setting in insight.importances.settings:
            most = f"up to {100 * min(1.0, setting.chance):.0f} %"
            rows.append((setting.name, f"{100 * setting.share:.0f} %", most, "" if setting.stands_out else "may be chance"))
        found.append(rows)
    assert insight.noise is not None or not insight.dependences
    metric = Metric(insight.evidence.metric, insight.noise or 0.0)
    return [*found, *(_table(dependence, metric) for dependence in insight.dependences)]


def _table(found: Dependence, metric: Metric) -> list[Row]:
    timed = found.costs is not None
    rows: list[Row] = [(found.name.upper(), metric.name.upper(), *(["SECONDS/EPOCH"] if timed else []), "TRIALS")]
    for point in found.points:
        value = f"{metric.written(point.mean)} ± {metric.written(point.spread)}"
        seconds = [f"{point.seconds:.3g}"] if timed else []
        rows.append((written(found.name, point), value, *seconds, str(point.trials)))
    return rows


def as_json(insight: Insight) -> dict[str, Any]:
    """Return all numbers, JSON-ready."""
    evidence, shares = insight.evidence, insight.importances
    return {
        "metric": evidence.metric,
        "direction": evidence.direction,
        "epochs": evidence.epochs,
        "stages": evidence.stages,
        "left_out": evidence.left_out,
        "noise": insight.noise,
        "seed_noise": evidence.seed_noise,
        "warning": insight.warning,
        "sentences": list(insight.sentences),
        "importances": None
        if shares is None
        else {
            "best_trials": shares.best,
            "settings": [{**vars(setting), "stands_out": setting.stands_out} for setting in shares.settings],
        },
        "dependences": [
            {"name": one.name, "log": one.log, "points": [vars(point) for point in one.points]}
            for one in insight.dependences
        ],
        "trials": [{**vars(trial), "params": dict(trial.params)} for trial in evidence.trials],
    }
