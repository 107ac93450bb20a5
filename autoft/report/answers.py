"""How good the winner's answers are: confusions, scores of each class, calibration, curves, and the errors of numbers.

Of the test split, which no decision of the search saw. Sections are None where they mean nothing for the task.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from sklearn.metrics import (
    auc,
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_curve,
)

from autoft.answered import Answered, read_answers
from autoft.finish import read_result
from autoft.report.section import Section, figure, table

MOST_CLASSES = 40  # of a matrix: more cannot be read
MOST_CONFUSIONS = 15
MOST_CURVES = 8
MOST_POINTS = 200  # of a curve
MOST_DOTS = 2000
MOST_NUMBERS = 4
MOST_ROWS = 500
BINS = 10


def confusion(run: Path) -> Section | None:
    """Return which classes are taken for which others; None where an answer is not one label."""
    found = read_answers(run)
    if found is None or found.answer != "label":
        return None
    truth, given = found.targets.numpy(), found.scores.numpy().argmax(axis=1)
    counts = confusion_matrix(truth, given, labels=np.arange(len(found.labels)))
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = [(int(row), int(column)) for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    support = counts.sum(axis=1)
    rows = [
        (found.labels[row], found.labels[column], wrong[row, column], f"{wrong[row, column] / support[row]:.1%}")
        for row, column in pairs
        if wrong[row, column]
    ]
    shown = np.arange(len(found.labels))
    if len(shown) > MOST_CLASSES:
        confused = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")
        shown = np.sort(confused[:MOST_CLASSES])
    names = [plain(found.labels[place]) for place in shown]
    places = np.arange(len(shown))
    drawn = go.Figure(
        go.Heatmap(
            z=counts[np.ix_(shown, shown)].tolist(),
            x=places.tolist(),
            y=places.tolist(),
            customdata=[[f"{one} answered as {other}" for other in names] for one in names],
            colorscale="Blues",
            hovertemplate="%{customdata}: %{z}<extra></extra>",
        )
    )
    # numbers as places: two labels may look the same once cut, and labels such as 1 and 10 would be taken for numbers
    drawn.update_xaxes(title="answer", tickvals=places.tolist(), ticktext=names)
    drawn.update_yaxes(title="truth", tickvals=places.tolist(), ticktext=names, autorange="reversed")
    drawn.update_layout(height=max(360, 180 + 18 * len(shown)))
    some = "" if len(shown) == len(found.labels) else f", for the {len(shown)} classes that are confused most"
    body = figure(drawn, f"Samples by truth and answer{some}. {_basis(found)}")
    if not rows:
        return Section("confusion", "Confusions", body + "<p>No sample was answered wrongly.</p>\n")
    return Section("confusion", "Confusions", body + table(("truth", "answered as", "samples", "of that truth"), rows))


def per_class(run: Path) -> Section | None:
    """Return precision, recall, F1 and support of each class, label or entity type; None for other tasks.

    Those of all samples, as the task's own account in `result.json` has them; where it has none, of the kept answers.
    """
    account = ((read_result(run) or {}).get("reports") or {}).get("test") or {}
    listed = account.get("classes", account.get("entities"))
    columns = ("label", "precision", "recall", "f1", "support")
    if isinstance(listed, list) and listed and all(set(columns) <= set(each) for each in listed):
        rows = [tuple(each[name] for name in columns) for each in listed]
        noun, basis = ("class" if "classes" in account else "entity type"), "Of the test split."
    else:
        found = read_answers(run)
        if found is None or found.answer != "label":
            return None
        truth, given = found.targets.numpy(), found.scores.numpy().argmax(axis=1)
        scores = precision_recall_fscore_support(truth, given, labels=np.arange(len(found.labels)), zero_division=0.0)
        rows = list(zip(found.labels, *scores, strict=True))
        noun, basis = "class", _basis(found)
    rows.sort(key=lambda row: row[3])
    more = f" The worst {MOST_ROWS} of {len(rows)}." if len(rows) > MOST_ROWS else ""
    cells = [(label, f"{p:.3f}", f"{r:.3f}", f"{f:.3f}", support) for label, p, r, f, support in rows[:MOST_ROWS]]
    body = f"<p>{basis}{more}</p>\n" + table((noun, "precision", "recall", "F1", "samples"), cells)
    return Section("per-class", "Every class", body)


def calibration(run: Path) -> Section | None:
    """Return whether answers are right as often as their probabilities say; None where an answer is not one label."""
    found = read_answers(run)
    if found is None or found.answer != "label":
        return None
    scores = found.scores.double().numpy()
    sure, right = scores.max(axis=1), scores.argmax(axis=1) == found.targets.numpy()
    counts, confidence, accuracy = reliability(sure, right)
    some = counts > 0
    drawn = go.Figure(go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot"}, name="as sure as right"))
    drawn.add_scatter(
        x=confidence[some].tolist(),
        y=accuracy[some].tolist(),
        customdata=counts[some].tolist(),
        mode="lines+markers",
        name="answers",
        hovertemplate="sure: %{x:.1%}, right: %{y:.1%}, %{customdata} samples<extra></extra>",
    )
    drawn.update_xaxes(title="probability of the answer", range=[0, 1])
    drawn.update_yaxes(title="share that is right", range=[0, 1])
    error = calibration_error(counts, confidence, accuracy)
    about = (
        f"Expected calibration error {error:.4f}: how far apart probability and share of right answers are, over {BINS} "
        f"equal ranges of probability, weighted by samples. {_basis(found)}"
    )
    return Section("calibration", "Calibration", figure(drawn, about))


def reliability(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[NDArray[np.float64], ...]:
    """Return samples, mean probability and share of right answers `(BINS,)` of equal ranges; zeros where one is empty.

    Args:
        sure: Probability of each answer, `(N,)`.
        right: Whether it is right, `(N,)`.
    """
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS).astype(np.float64)
    sums, hits = (np.bincount(bins, each, BINS) for each in (sure, right.astype(np.float64)))
    filled = np.maximum(counts, 1)
    return counts, sums / filled, hits / filled


def calibration_error(counts: NDArray[np.float64], confidence: NDArray[np.float64], accuracy: NDArray[np.float64]) -> float:
    """Return the expected calibration error (Naeini et al., 2015) of what `reliability` gives."""
    return float((counts * np.abs(confidence - accuracy)).sum() / counts.sum())


def curves(run: Path) -> Section | None:
    """Return ROC and precision-recall of each class against all others, or of each label; None for other tasks."""
    found = read_answers(run)
    if found is None or found.answer not in ("label", "labels"):
        return None
    scores, truth = found.scores.numpy(), found.targets.numpy()
    truth = truth[:, None] == np.arange(len(found.labels)) if found.answer == "label" else truth > 0
    support = truth.sum(axis=0)
    both = [int(place) for place in np.argsort(-support, kind="stable") if 0 < support[place] < len(truth)]
    if not both:
        return None
    roc, recalls, rows = go.Figure(), go.Figure(), []
    for place in both:
        label, single, hits = found.labels[place], scores[:, place], truth[:, place]
        false, true, _ = roc_curve(hits, single)
        average = average_precision_score(hits, single)
        rows.append((label, f"{auc(false, true):.4f}", f"{average:.4f}", support[place]))
        if len(rows) <= MOST_CURVES:
            precision, recall, _ = precision_recall_curve(hits, single)
            for drawn, x, y in ((roc, false, true), (recalls, recall, precision)):
                few = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).astype(int))
                drawn.add_scatter(x=x[few].tolist(), y=y[few].tolist(), mode="lines", name=plain(label))
    roc.update_layout(xaxis_title="false positive rate", yaxis_title="true positive rate", showlegend=True)
    recalls.update_layout(xaxis_title="recall", yaxis_title="precision", showlegend=True)
    shown = "" if len(both) <= MOST_CURVES else f" The {MOST_CURVES} with most samples."
    body = (
        figure(roc, f"ROC: each class against all others.{shown} {_basis(found)}")
        + figure(recalls, f"Precision and recall at every threshold.{shown}")
        + table(("class", "area under ROC", "average precision", "samples"), rows[:MOST_ROWS])
    )
    return Section("curves", "Thresholds", body)


def errors(run: Path) -> Section | None:
    """Return predicted numbers against true ones, and what they are off by; None where answers are no numbers."""
    found = read_answers(run)
    if found is None or found.answer != "values":
        return None
    scores, truth = found.scores.double().numpy(), found.targets.double().numpy()
    dots = np.linspace(0, len(scores) - 1, min(len(scores), MOST_DOTS)).astype(int)
    body = ""
    for place, label in enumerate(found.labels[:MOST_NUMBERS]):
        name, true, given = plain(label), truth[:, place], scores[:, place]
        drawn = go.Figure(go.Scatter(x=true[dots].tolist(), y=given[dots].tolist(), mode="markers", name="samples"))
        ends = [float(true.min()), float(true.max())]
        drawn.add_scatter(x=ends, y=ends, mode="lines", line={"dash": "dot"}, name="no error")
        drawn.update_layout(xaxis_title=f"{name}, true", yaxis_title=f"{name}, predicted")
        off = given - true
        heights, edges = np.histogram(off, bins=30)
        middles = (edges[:-1] + edges[1:]) / 2
        spread = go.Figure(go.Bar(x=middles.tolist(), y=heights.tolist()))
        spread.update_layout(xaxis_title=f"{name}, predicted minus true", yaxis_title="samples", bargap=0)
        body += figure(drawn, f"{label}: predicted and true. {_basis(found)}")
        body += figure(spread, f"{label}: off by {off.mean():.4g} on average, with a standard deviation of {off.std():.4g}.")
    more = f"<p>The first {MOST_NUMBERS} of {len(found.labels)} numbers.</p>\n" if len(found.labels) > MOST_NUMBERS else ""
    return Section("errors", "Errors", body + more)


def plain(label: str) -> str:
    """Return a label as plotly shows it as it is: it would take `<b>` for its own, and long names would fill the figure."""
    cut = label if len(label) <= 24 else f"{label[:23]}…"
    return cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _basis(found: Answered) -> str:
    count = len(found.ids)
    return f"{count} test samples." if count == found.of else f"{count} of {found.of} test samples, at even distances."
