"""Writes an insight as one HTML page that needs no network: sentences, importances, dependences with their trials."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autoft.errors import RunError
from autoft.files import write_text
from autoft.insight import Insight
from autoft.insight.dependence import Dependence, Point
from autoft.insight.evidence import CountedTrial, Evidence
from autoft.insight.sentences import counted, written

PAGE = "insight.html"
# These stand out on white and on black alike; what is written takes the page's own colour (`STYLE`).
BLUE, BAND, ORANGE, GREY, GRID = "#3987e5", "rgba(57,135,229,0.25)", "#d9730d", "#8a8a8a", "rgba(128,128,128,0.25)"
SHOWN = {"displayModeBar": False, "responsive": True}
OFF_WIDTH = 0.12  # of a plot, for the bar of "off"

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c1c1c; --faint: #5c5c5c; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e8e8e8; --faint: #a8a8a8; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
p, figcaption { color: var(--faint); }
code { font-family: ui-monospace, monospace; }
.warning { color: var(--ink); border-left: 4px solid #d9730d; padding-left: 0.8rem; }
figure { margin: 2rem 0; }
/* plotly writes colours into each element, so only an important rule is stronger */
.js-plotly-plot .plotly text:not(.nums):not(.name) { fill: var(--ink) !important; }
"""


def write_page(insight: Insight, path: Path) -> None:
    """Write the page.

    Raises:
        RunError: It cannot be written there.
    """
    try:
        write_text(path, render(insight))
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error}", "choose another place with --output FILE") from error


def render(insight: Insight) -> str:
    """Return the page's HTML, with plotly's script in it once."""
    evidence = insight.evidence
    figures = []
    if insight.importances is not None:
        figures.append(("What matters", about_importances(insight), draw_importances(insight)))
    for found in insight.dependences:
        figures.append((f"`{found.name}`", about_dependence(evidence), draw_dependence(found, evidence)))
    drawn = "\n".join(
        f"<figure>\n<h2>{marked(title)}</h2>\n"
        f"{figure.to_html(full_html=False, include_plotlyjs=not place, config=SHOWN)}\n"
        f"<figcaption>{html.escape(about)}</figcaption>\n</figure>"
        for place, (title, about, figure) in enumerate(figures)
    )
    warning = f'<p class="warning">{marked(insight.warning)}</p>\n' if insight.warning else ""
    listed = "\n".join(f"<li>{marked(sentence)}</li>" for sentence in insight.sentences)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>What the search learned</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        "<h1>What the search learned</h1>\n"
        f"<p>{html.escape(counted(evidence))}</p>\n{warning}<ul>\n{listed}\n</ul>\n{drawn}\n</body>\n</html>\n"
    )


def about_importances(insight: Insight) -> str:
    """Return what is to be said under the plot of the importances."""
    assert insight.importances is not None
    return (
        f"Share of what sets the best {insight.importances.best} of {len(insight.evidence.trials)} trials apart "
        "(PED-ANOVA). Chance alone may give as much as the line says; where a bar is grey, it may be chance."
    )


def about_dependence(evidence: Evidence) -> str:
    """Return what is to be said under the plot of a dependence."""
    return (
        f"Expected {evidence.metric} after {evidence.epochs} epochs, over what trials had of other settings, and "
        "one standard deviation over the trees of a random forest. Full dots trained all epochs; of hollow "
        "ones the rest is expected."
    )


def draw_importances(insight: Insight) -> go.Figure:
    """Return the settings' shares as bars, with what chance may give; the insight must have importances."""
    found = insight.importances
    assert found is not None
    settings = found.settings[::-1]  # plotly draws the first at the bottom
    figure = go.Figure(
        go.Bar(
            x=[setting.share for setting in settings],
            y=[setting.name for setting in settings],
            orientation="h",
            marker_color=[BLUE if setting.stands_out else GREY for setting in settings],
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
    )
    # where nothing matters, what chance may give is far beyond all shares
    within = [setting for setting in settings if setting.chance <= 1]
    figure.add_scatter(
        x=[setting.chance for setting in within],
        y=[setting.name for setting in within],
        mode="markers",
        marker={"symbol": "line-ns", "size": 16, "line": {"width": 3, "color": ORANGE}},
        hovertemplate="chance alone may give %{x:.1%}<extra></extra>",
    )
    figure.update_xaxes(tickformat=".0%", rangemode="tozero")
    return _styled(figure, height=120 + 26 * len(settings))


def draw_dependence(found: Dependence, evidence: Evidence) -> go.Figure:
    """Return how the metric depends on a setting as a curve, or as a bar a value, with every trial as a dot."""
    off = [point for point in found.points if point.off]
    on = [point for point in found.points if not point.off]
    having = [trial for trial in evidence.trials if found.name in trial.params]
    trials_off = [trial for trial in having if evidence.is_off(found.name, trial.params[found.name])]
    trials_on = [trial for trial in having if trial not in trials_off]
    figure = make_subplots(
        rows=1, cols=2 if off else 1, shared_yaxes=True, column_widths=[OFF_WIDTH, 1 - OFF_WIDTH] if off else None,
        horizontal_spacing=0.03,
    )  # fmt: skip
    last = 2 if off else 1
    if off:
        _draw_bars(figure, off, ["off"], 1)
        _draw_trials(figure, trials_off, ["off"] * len(trials_off), evidence, 1)
    places = [trial.params[found.name] for trial in trials_on]
    if found.ordered:
        _draw_curve(figure, on, last)
        _draw_trials(figure, trials_on, places, evidence, last)
        figure.update_xaxes(title_text=found.name, type="log" if found.log else "linear", exponentformat="power", col=last)
    else:
        _draw_bars(figure, on, [written(found.name, point) for point in on], last)
        _draw_trials(figure, trials_on, [str(place) for place in places], evidence, last)
        figure.update_xaxes(title_text=found.name, type="category", col=last)
    figure.update_yaxes(title_text=evidence.metric, col=1)
    return _styled(figure, height=420)


def _draw_curve(figure: go.Figure, points: Sequence[Point], column: int) -> None:
    x = [point.value for point in points]
    upper, lower = [point.mean + point.spread for point in points], [point.mean - point.spread for point in points]
    band = go.Scatter(
        x=[*x, *x[::-1]], y=[*upper, *lower[::-1]], fill="toself", fillcolor=BAND, line_width=0, mode="lines",
        hoverinfo="skip",
    )  # fmt: skip
    middle = go.Scatter(
        x=x, y=[point.mean for point in points], mode="lines+markers", line_color=BLUE, marker_size=4, marker_color=BLUE,
        customdata=[point.spread for point in points],
        hovertemplate="%{x:.3g}: %{y:.4g} ± %{customdata:.2g}<extra></extra>",
    )  # fmt: skip
    figure.add_trace(band, row=1, col=column)
    figure.add_trace(middle, row=1, col=column)


def _draw_bars(figure: go.Figure, points: Sequence[Point], names: Sequence[str], column: int) -> None:
    """Draw a bar over the spread of each value, with a line at its mean."""
    bars = go.Bar(
        x=names, y=[2 * point.spread for point in points], base=[point.mean - point.spread for point in points],
        marker_color=BAND, marker_line_width=0, hoverinfo="skip",
    )  # fmt: skip
    means = go.Scatter(
        x=names, y=[point.mean for point in points], mode="markers",
        marker={"symbol": "line-ew", "size": 28, "line": {"width": 3, "color": BLUE}},
        customdata=[point.spread for point in points], hovertemplate="%{x}: %{y:.4g} ± %{customdata:.2g}<extra></extra>",
    )  # fmt: skip
    figure.add_trace(bars, row=1, col=column)
    figure.add_trace(means, row=1, col=column)


def _draw_trials(
    figure: go.Figure, trials: Sequence[CountedTrial], places: Sequence[object], evidence: Evidence, column: int
) -> None:
    symbols = ["circle" if trial.epochs == evidence.epochs else "circle-open" for trial in trials]
    texts = [f"trial {trial.number}: {trial.measured:.4g} after {trial.epochs} epochs" for trial in trials]
    dots = go.Scatter(
        x=places, y=[trial.value for trial in trials], mode="markers", text=texts, hovertemplate="%{text}<extra></extra>",
        marker={"symbol": symbols, "size": 8, "color": ORANGE},
    )  # fmt: skip
    figure.add_trace(dots, row=1, col=column)


def _styled(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        template="none", height=height, showlegend=False, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 20, "r": 20, "t": 20, "b": 20},
    )  # fmt: skip
    figure.update_xaxes(gridcolor=GRID, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True)
    return figure


def marked(text: str) -> str:
    """Return a sentence as HTML: what is between backticks is code."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))
