"""The parts that a report is put together from: sections, tables and figures, as HTML that is safe to show."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

SHOWN = {"displayModeBar": False, "responsive": True}


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
    """Return a figure of plotly as HTML, with a sentence under it; plotly's script is the page's."""
    drawing = drawn.to_html(full_html=False, include_plotlyjs=False, config=SHOWN)
    return f"<figure>\n{drawing}\n<figcaption>{html.escape(about)}</figcaption>\n</figure>\n"
