"""How a search went: its best score over time and over trials, and the learning curve of each trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import plot_intermediate_values, plot_optimization_history

from autoft.insight.evidence import Evidence, read_evidence
from autoft.insight.page import BLUE, ORANGE
from autoft.report.section import Section, figure
from autoft.runfolder import read_events
from autoft.storage import read_study

LEGEND = 12  # curves that are told apart by a legend; more fill a phone


def course(run: Path) -> Section | None:
    """Return the best score by seconds and by trial; None where no trial has trained an epoch."""
    evidence = read_evidence(run)
    if not evidence.trials:
        return None
    study = as_study(run, evidence)
    by_trial = plot_optimization_history(study, target_name=evidence.metric)
    by_trial.update_layout(showlegend=False, height=360)
    body = figure(
        by_trial, f"Best epoch of each trial in the order in which they began, and the best {evidence.metric} so far."
    )
    points = by_seconds(list(read_events(run)))
    if points:
        body = figure(_over_time(points, evidence), _about_time(evidence)) + body
    return Section("history", "How the search went", body)


def curves(run: Path) -> Section | None:
    """Return each trial's score after each epoch; None where no trial has trained an epoch."""
    evidence = read_evidence(run)
    if not evidence.trials:
        return None
    drawn = plot_intermediate_values(as_study(run, evidence))
    drawn.update_layout(showlegend=len(evidence.trials) <= LEGEND, height=420)
    drawn.update_xaxes(title="epoch")
    drawn.update_yaxes(title=evidence.metric)
    return Section(
        "curves", "Learning curves", figure(drawn, f"{evidence.metric} on validation after each epoch, by trial.")
    )


def as_study(run: Path, evidence: Evidence) -> optuna.Study:
    """Return a run's trials as a study in memory, for Optuna's plots.

    A trial that trained an epoch counts as complete with its best epoch: Optuna plots no others. The numbers are the run's.
    """
    trials, direction = read_study(run)
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction=direction)
    best = {trial.number: trial.measured for trial in evidence.trials}
    for trial in trials:
        study.add_trial(_complete(trial, best[trial.number]) if trial.number in best else _failed(trial))
    return study


def by_seconds(events: list[dict[str, Any]]) -> list[tuple[float, int, float]]:
    """Return each epoch's end in seconds since the first trial began, its trial, and its score.

    Time between the sessions of a search that was stopped is left out.
    """
    points: list[tuple[float, int, float]] = []
    began, before, last = math.nan, 0.0, 0.0
    for event in events:
        if event["event"] == "search":
            began, before = event["time"], last
        elif not math.isnan(began):
            last = before + event["time"] - began
            if event["event"] == "epoch" and _is_number(event, "value"):
                points.append((last, event["trial"], event["value"]))
    return points


def _over_time(points: list[tuple[float, int, float]], evidence: Evidence) -> go.Figure:
    best: list[float] = []
    for _, _, value in points:
        better = max if evidence.direction == "maximize" else min
        best.append(better(best[-1], value) if best else value)
    seconds = [second for second, _, _ in points]
    drawn = go.Figure()
    drawn.add_scatter(
        x=seconds, y=[value for _, _, value in points], mode="markers", marker={"color": ORANGE, "size": 5},
        text=[f"trial {trial}" for _, trial, _ in points], hovertemplate="%{text}: %{y:.4g} after %{x:.0f} s<extra></extra>",
    )  # fmt: skip
    drawn.add_scatter(
        x=seconds, y=best, mode="lines", line={"color": BLUE, "shape": "hv"},
        hovertemplate="best after %{x:.0f} s: %{y:.4g}<extra></extra>",
    )  # fmt: skip
    drawn.update_xaxes(title="seconds")
    drawn.update_yaxes(title=evidence.metric)
    drawn.update_layout(showlegend=False, height=360)
    return drawn


def _about_time(evidence: Evidence) -> str:
    return (
        f"{evidence.metric} on validation after each epoch of any trial, and the best so far, by seconds since the "
        "first trial began; pauses between sessions are left out."
    )


def _is_number(event: Mapping[str, Any], name: str) -> bool:
    return isinstance(event.get(name), int | float) and math.isfinite(event[name])


def _complete(trial: FrozenTrial, value: float) -> FrozenTrial:
    finite = {epoch: score for epoch, score in trial.intermediate_values.items() if math.isfinite(score)}
    return optuna.trial.create_trial(
        value=value, params=trial.params, distributions=trial.distributions, intermediate_values=finite
    )


def _failed(trial: FrozenTrial) -> FrozenTrial:
    return optuna.trial.create_trial(state=TrialState.FAIL, params=trial.params, distributions=trial.distributions)
