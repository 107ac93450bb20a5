"""The page that shows several runs beside each other: scores, verdicts, and what differs between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from autoft.comparison import Comparison, contrasts_table, explained, runs_table, settings_table
from autoft.errors import RunError
from autoft.files import write_text
from autoft.insight.page import BLUE, GREY
from autoft.report.answers import plain
from autoft.report.page import document
from autoft.report.section import Section, figure, paragraph, table


def write_comparison(found: Comparison, page: Path) -> None:
    """Write a comparison as one page of HTML that needs no network.

    Raises:
        RunError: The file cannot be written.
    """
    try:
        write_text(page, render(found))
    except OSError as error:
        raise RunError(f"{page} cannot be written: {error}", "choose another place with --html FILE") from error


def render(found: Comparison) -> str:
    """Return the page's HTML."""
    sections = [_runs(found), _verdicts(found), _scores(found)]
    sections.append(_settings("studies", "What differs between the studies", found, found.settings))
    sections.append(_settings("winners", "What differs between the winners", found, found.winners))
    return document("Comparison of runs", "", [section for section in sections if section is not None])


def _runs(found: Comparison) -> Section:
    heading, *rows = runs_table(found)
    words = "After a test score stands its standard error over the test samples, after a score over seeds the standard "
    words += "deviation over them, of the winner on validation."
    for run in found.runs:
        if run.looks > 1:
            words += (
                f" {run.path} looked at the test split {run.looks} times: the best of several looks is a little optimistic."
            )
    return Section("runs", "Runs", table(heading, rows) + paragraph(words))


def _verdicts(found: Comparison) -> Section:
    heading, *rows = contrasts_table(found)
    body = table(heading, rows) + "".join(map(paragraph, explained(found)))
    return Section("verdicts", "Is the difference more than chance?", body)


def _scores(found: Comparison) -> Section | None:
    """Return the scores of the runs that can be compared with the first; None where fewer than two have a test score."""
    comparable = {each.run for each in found.contrasts if each.verdict != "not comparable"}
    runs = [run for run in found.runs if run.test is not None and (run is found.runs[0] or run.path in comparable)]
    if len(runs) < 2:
        return None
    names = [plain(str(run.path)) for run in runs]
    places = list(range(len(runs)))
    drawn = go.Figure()
    for place, run in zip(places, runs, strict=True):
        values = list(run.seeds.values())
        drawn.add_scatter(
            x=values, y=[place] * len(values), mode="markers", name="validation, a seed each",
            marker={"color": GREY, "size": 8}, showlegend=place == 0,
        )  # fmt: skip
    drawn.add_scatter(
        x=[run.test for run in runs],
        y=places,
        error_x={"type": "data", "array": [run.test_error or 0.0 for run in runs]},
        mode="markers",
        name="test",
        marker={"color": BLUE, "size": 11},
    )
    drawn.update_xaxes(title=runs[0].metric)
    drawn.update_yaxes(tickvals=places, ticktext=names, autorange="reversed")
    drawn.update_layout(height=160 + 50 * len(runs))
    about = f"{runs[0].metric} of each run: on test with one standard error, and on validation over seeds."
    return Section("scores", "Scores", figure(drawn, about))


def _settings(key: str, title: str, found: Comparison, values: Mapping[str, Sequence[Any]]) -> Section | None:
    if not values:
        return None
    heading, *rows = settings_table(found, values)
    return Section(key, title, table(heading, rows))
