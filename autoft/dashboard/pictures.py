"""Pictures and tables that are attached to a run's trials: learning curves, and the winner's worst mistakes."""

from __future__ import annotations

import csv
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoft.answered import Answered
from autoft.report.mistakes import badness, thumbnail, told

WIDTH, HEIGHT, MARGIN = 480, 220, 36  # pixels of one curve
MOST_IMAGES = 12
MOST_ROWS = 100


def learning_curves(epochs: Sequence[Mapping[str, Any]], metric: str) -> str | None:
    """Return a trial's losses and metric over its epochs as SVG, in two pictures above each other; None before two epochs.

    Args:
        epochs: Events of kind `epoch`, in order; one that was trained again counts with its last.
        metric: Name of the value.
    """
    last = {event["epoch"]: event for event in epochs}
    ordered = [last[epoch] for epoch in sorted(last)]
    if len(ordered) < 2:
        return None
    drawn = [
        _curve(ordered, "train_loss", "training loss", "#d97706", 0),
        _curve(ordered, "value", metric, "#2563eb", HEIGHT),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{2 * HEIGHT}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>\n{"".join(drawn)}</svg>\n'
    )


def _curve(events: Sequence[Mapping[str, Any]], name: str, label: str, colour: str, top: int) -> str:
    points = [(event["epoch"], event[name]) for event in events if _is_finite(event.get(name))]
    if not points:
        return ""
    low, high = min(value for _, value in points), max(value for _, value in points)
    first, final = points[0][0], points[-1][0]
    inner_width, inner_height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN

    def place(epoch: int, value: float) -> str:
        x = MARGIN + inner_width * (epoch - first) / max(1, final - first)
        y = top + MARGIN + inner_height * (1 - (value - low) / ((high - low) or 1.0))
        return f"{x:.1f},{y:.1f}"

    bottom = top + HEIGHT - MARGIN
    line = " ".join(place(*point) for point in points)
    return (
        f'<text x="{MARGIN}" y="{top + 22}" fill="{colour}">{html.escape(label)}: {low:.4g} to {high:.4g}</text>'
        f'<line x1="{MARGIN}" y1="{bottom}" x2="{WIDTH - MARGIN}" y2="{bottom}" stroke="#999"/>'
        f'<text x="{MARGIN}" y="{bottom + 18}" fill="#555">epoch {first}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{bottom + 18}" fill="#555" text-anchor="end">{final}</text>'
        f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"/>\n'
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def mistakes(found: Answered, folder: Path) -> list[Path]:
    """Write the worst mistakes on the test split, the worst first: a table, and an image of each that is one.

    Args:
        found: Answers of the winner.
        folder: Where the files are to be.
    """
    bad = badness(found)
    order = [int(row) for row in (-bad).argsort(kind="stable")[:MOST_ROWS] if bad[row] > 0]
    if not order:
        return []
    table = folder / "mistakes.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        written = csv.writer(file)
        written.writerow(("sample", "truth", "answer", "error" if found.answer == "values" else "probability"))
        written.writerows((found.ids[row], *told(found, row)) for row in order)
    files = [table]
    for place, row in enumerate(order[:MOST_IMAGES], 1):
        image = thumbnail(found, row)
        if image is not None:
            truth, answer, _ = told(found, row)
            files.append(folder / f"mistake {place:02}, {_file_name(truth)} taken for {_file_name(answer)}.webp")
            image.save(files[-1], "WEBP")
    return files


def _file_name(text: str) -> str:
    return "".join(character if character.isalnum() or character in " .-_" else "_" for character in text)[:40]
