"""The parts that a report is put together from: sections, tables and figures, as HTML that is safe to show."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

# visible on white and on black alike; what is written takes the page's own colour
GRID, NOWHERE = "rgba(128,128,128,0.25)", "rgba(0,0,0,0)"
MARGIN = {"l": 20, "r": 20, "t": 20, "b": 20}


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes:
        key: Its anchor on the page, such as `leaderboard`.
        title: Its heading, as plain text.
        body: Its HTML; whatever came from outside is escaped in it.
    """

    key: str
    title: str
    body: str


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table as HTML; everything in it is escaped. A click on a heading sorts it, by the script of the page."""
    head = "".join(f"<th>{html.escape(header)}</th>" for header in headers)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>\n" for row in rows)
    sortable = f'<table class="sortable">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>'
    return f'<div class="wide">{sortable}</div>\n'


def figure(drawn: go.Figure, about: str) -> str:
    """Return a figure of plotly as HTML, with a sentence under it; the page's script draws it.

    Its background is the page's, so that it suits light and dark; a title of its own is left out.
    """
    drawn = go.Figure(drawn)
    drawn.update_layout(template="none", title=None, paper_bgcolor=NOWHERE, plot_bgcolor=NOWHERE, margin=MARGIN)
    drawn.update_xaxes(gridcolor=GRID, zeroline=False, automargin=True)
    drawn.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True)
    height = drawn.layout.height or 420
    content = drawn.to_json().replace("<", "\\u003c")  # nothing in it can end the script
    data = f'<script type="application/json">{content}</script>'
    plot = f'<div class="plot" style="min-height: {height:g}px">{data}</div>'
    return f"<figure>\n{plot}\n<figcaption>{html.escape(about)}</figcaption>\n</figure>\n"


def paragraph(text: str) -> str:
    """Return a sentence or more as HTML, escaped."""
    return f"<p>{html.escape(text)}</p>\n"


def commands(*lines: str) -> str:
    """Return what is to be typed, a line a command, as HTML, escaped."""
    return f"<pre><code>{html.escape(chr(10).join(lines))}</code></pre>\n"
