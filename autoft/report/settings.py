"""What settings have to do with the score: importances, dependences, and all trials as lines through their settings."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
from optuna.visualization import plot_parallel_coordinate

from autoft.insight import consider
from autoft.insight.evidence import Evidence, read_evidence
from autoft.insight.page import BLUE, GREY, about_dependence, about_importances, draw_dependence, draw_importances, marked
from autoft.report.course import as_study
from autoft.report.section import Section, figure

MOST_AXES = 8  # of parallel coordinates: more cannot be read on a screen
FIRST = ("learning_rate", "freeze_depth", "freeze_fraction")  # what is asked most


def settings(run: Path) -> Section | None:
    """Return what the search learned of its settings; None where no trial has trained an epoch."""
    evidence = read_evidence(run)
    if not evidence.trials:
        return None
    found = consider(evidence)
    warning = f'<p class="warning">{marked(found.warning)}</p>\n' if found.warning else ""
    listed = "\n".join(f"<li>{marked(sentence)}</li>" for sentence in found.sentences)
    body = warning + (f"<ul>\n{listed}\n</ul>\n" if listed else "")
    if found.importances is not None:
        body += figure(draw_importances(found), about_importances(found))
    for one in found.dependences:
        body += f"<h3>{marked(f'`{one.name}`')}</h3>\n" + figure(draw_dependence(one, evidence), about_dependence(evidence))
    return Section("settings", "What the search learned", body)


def parallel(run: Path) -> Section | None:
    """Return each trial as a line through its settings; None where there are fewer than two to compare."""
    evidence = read_evidence(run)
    names = _shown(evidence) if len(evidence.trials) > 1 else []
    having = sum(all(name in trial.params for name in names) for trial in evidence.trials)
    if not names or having < 2:
        return None
    drawn = plot_parallel_coordinate(as_study(run, evidence), params=names, target_name=evidence.metric)
    _recolour(drawn)
    drawn.update_layout(height=460)
    about = f"Each trial as a line from its best {evidence.metric} through its settings; drag along an axis to choose some."
    if len(names) < len(evidence.parameters):
        about += f" Shown are {len(names)} of {len(evidence.parameters)} settings."
    body = figure(drawn, about)
    # drawn on less than this, names and values lie on each other
    return Section(
        "parallel", "All trials at once", body.replace('style="', f'style="min-width: {90 * (len(names) + 1)}px; ', 1)
    )


def _recolour(drawn: go.Figure) -> None:
    """Draw the best trials in blue, the worst in grey: Optuna's pale blues are lost on white paper, its dark ones on black.

    Its lines are of the scale `Blues`, whose red goes from 247 to 8.
    """
    ends = [[int(colour[place : place + 2], 16) for place in (1, 3, 5)] for colour in (GREY, BLUE)]
    for trace in drawn.data:
        if trace.type == "parcoords":
            trace.line.colorscale = [[0, GREY], [1, BLUE]]
            continue
        colour = str(trace.line.color or "")
        if colour.startswith("rgb("):
            share = (247 - float(colour[4:].split(",")[0])) / (247 - 8)
            mixed = [round(worst + share * (best - worst)) for worst, best in zip(*ends, strict=True)]
            trace.line.color = f"rgb({mixed[0]},{mixed[1]},{mixed[2]})"
        if trace.marker.colorscale is not None:
            trace.marker.colorscale = [[0, GREY], [1, BLUE]]


def _shown(evidence: Evidence) -> list[str]:
    """Return the settings that get an axis: those that every trial has, as others break its line."""
    names = [name for name in dict.fromkeys([*FIRST, *evidence.parameters]) if name in evidence.parameters]
    return [name for name in names if all(name in trial.params for trial in evidence.trials)][:MOST_AXES]
