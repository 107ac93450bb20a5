"""Every trial of a run in a table, the best first, and what failed for what."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from autoft.finish import read_result
from autoft.insight.evidence import Evidence, read_evidence
from autoft.report.section import Section, paragraph, table
from autoft.storage import read_study
from autoft.telling import number, short
from autoft.trials import PAUSED


def leaderboard(run: Path) -> Section | None:
    """Return all trials with their scores and settings; None where there are none."""
    trials, direction = read_study(run)
    if not trials:
        return None
    evidence = read_evidence(run)
    sign = -1.0 if direction == "maximize" else 1.0

    def order(trial: FrozenTrial) -> tuple[bool, float, int]:
        value = _value(trial)
        return value is None, 0.0 if value is None else sign * value, trial.number

    names = list(evidence.parameters)
    result = read_result(run)
    winner = None if result is None else result["winner"]["trial"]
    rows = [
        (
            place,
            f"{trial.number} (winner)" if trial.number == winner else trial.number,
            trial.user_attrs.get("role", "trial"),
            state_of(trial),
            "" if _value(trial) is None else number(_value(trial)),
            trial.user_attrs.get("best_epoch", ""),
            trial.user_attrs.get("epochs", ""),
            short(trial.user_attrs.get("seconds", "")),
            *(_written(evidence, trial, name) for name in names),
        )
        for place, trial in enumerate(sorted(trials, key=order), start=1)
    ]
    head = ("place", "trial", "role", "state", evidence.metric, "best epoch", "epochs", "seconds", *names)
    told = f"All {len(trials)} trials by their best {evidence.metric} on validation. A click on a heading sorts."
    return Section("leaderboard", "Leaderboard", paragraph(told) + table(head, rows))


def failures(run: Path) -> Section | None:
    """Return how many trials failed for what, with an example each; None where nothing failed."""
    trials, _ = read_study(run)
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    kinds = Counter(str(trial.user_attrs.get("failure", "unknown")) for trial in failed)
    survived = ((read_result(run) or {}).get("failures") or {}).get("survived") or {}
    if not kinds and not survived:
        return None
    rows: list[tuple[object, ...]] = []
    for kind, count in kinds.most_common():
        first = next(trial for trial in failed if str(trial.user_attrs.get("failure", "unknown")) == kind)
        rows.append(
            (kind, count, "the trial failed", f"trial {first.number}: {first.user_attrs.get('message', 'no message')}")
        )
    rows.extend((kind, count, "survived", "") for kind, count in survived.items())
    return Section("failures", "Failures", table(("type", "times", "what became of it", "first of them"), rows))


def state_of(trial: FrozenTrial) -> str:
    """Return what became of a trial, in words."""
    if trial.state == TrialState.FAIL:
        return f"failed: {trial.user_attrs.get('failure', 'unknown')}"
    if "duplicate_of" in trial.user_attrs:
        return f"the same as trial {trial.user_attrs['duplicate_of']}"
    if trial.user_attrs.get(PAUSED) and not trial.state.is_finished():
        return "paused"
    stopped = trial.user_attrs.get("stopped")
    return f"{trial.state.name.lower()}: {stopped}" if stopped else trial.state.name.lower()


def _value(trial: FrozenTrial) -> float | None:
    value: float | None = trial.user_attrs.get("best_value", trial.value)
    return None if trial.state == TrialState.FAIL else value


def _written(evidence: Evidence, trial: FrozenTrial, name: str) -> str:
    if name not in trial.params:
        return ""
    value = trial.params[name]
    return "off" if evidence.is_off(name, value) else short(value)
