"""Which samples the winner gets most wrong: with their images or texts, the truth and the answer."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image

from autoft.answered import Answered, read_answers
from autoft.report.section import Section
from autoft.runtime.image_classification import ImageError, read_image

MOST = 24
SIDE = 160  # pixels of the longer side: 24 images are some 150 KB
QUALITY = 70
MOST_LABELS = 10  # of one answer with several


def mistakes(run: Path) -> Section | None:
    """Return the worst mistakes on the test split, the worst first; None where the run kept no answers.

    Of one label those of which the model was surest; of several the labels of which it was most wrongly sure; of numbers the
    largest errors, in standard deviations of the truth.
    """
    found = read_answers(run)
    if found is None:
        return None
    bad = badness(found)
    order = [int(row) for row in np.argsort(-bad, kind="stable")[:MOST] if bad[row] > 0]
    if not order:
        return Section("mistakes", "Worst mistakes", "<p>There are none on the test split.</p>\n")
    rows = []
    for row in order:
        truth, answer, sure = told(found, row)
        cells = (found.ids[row], truth, answer, sure)
        rows.append(f"<tr><td>{_shown(found, row)}</td>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>\n")
    last = "error" if found.answer == "values" else "probability"
    heads = "".join(f"<th>{name}</th>" for name in ("sample", "name", "truth", "answer", last))
    body = f'<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{"".join(rows)}</tbody></table></div>\n'
    counted = "" if found.answer == "values" else f" {int((bad > 0).sum())} of {len(bad)} test samples are wrong."
    return Section("mistakes", "Worst mistakes", f"<p>The {len(order)} worst, the worst first.{counted}</p>\n{body}")


def badness(found: Answered) -> np.ndarray:
    """Return how bad the answer to each sample is, `(N,)`; 0 where it is right."""
    scores, truth = found.scores.double().numpy(), found.targets.numpy()
    if found.answer == "label":
        return np.where(scores.argmax(axis=1) != truth, scores.max(axis=1), 0.0)
    if found.answer == "labels":
        wrong = (scores >= _thresholds(found)) != (truth > 0)
        apart = np.where(wrong, np.abs(scores - (truth > 0)), 0.0)
    else:
        spread = truth.std(axis=0)
        apart = np.abs(scores - truth) / np.where(spread > 0, spread, 1.0)
    worst: np.ndarray = apart.max(axis=1)
    return worst


def _thresholds(found: Answered) -> np.ndarray:
    return np.asarray(found.values.get("thresholds", [0.5] * len(found.labels)))


def told(found: Answered, row: int) -> tuple[str, str, str]:
    """Return the truth, the answer, and how sure it was or how far it is off."""
    scores, truth = found.scores[row].double().numpy(), found.targets[row].numpy()
    if found.answer == "label":
        given = int(scores.argmax())
        return found.labels[int(truth)], found.labels[given], f"{scores[given]:.1%}"
    if found.answer == "labels":
        positive, thresholds = truth > 0, _thresholds(found)
        wrong = np.flatnonzero((scores >= thresholds) != positive)[:MOST_LABELS]
        sure = ", ".join(f"{found.labels[place]} {scores[place]:.1%}" for place in wrong)
        return _listed(found, positive), _listed(found, scores >= thresholds), sure
    numbers = [", ".join(f"{number:.4g}" for number in each[:MOST_LABELS]) for each in (truth, scores, scores - truth)]
    return numbers[0], numbers[1], numbers[2]


def _listed(found: Answered, which: np.ndarray) -> str:
    places = np.flatnonzero(which)
    more = f" and {len(places) - MOST_LABELS} more" if len(places) > MOST_LABELS else ""
    return ", ".join(found.labels[place] for place in places[:MOST_LABELS]) + more or "none"


def _shown(found: Answered, row: int) -> str:
    """Return a sample as HTML: a small image, or the beginning of a text."""
    text = found.texts[row]
    if text is not None:
        return html.escape(text)
    if found.files[row] is None:
        return "<em>not kept as a file</em>"
    image = thumbnail(found, row)
    if image is None:
        return "<em>cannot be read as an image any more</em>"
    content = io.BytesIO()
    image.save(content, "WEBP", quality=QUALITY)
    encoded = base64.b64encode(content.getvalue()).decode("ascii")
    return f'<img src="data:image/webp;base64,{encoded}" width="{image.width}" height="{image.height}" alt="">'


def thumbnail(found: Answered, row: int) -> Image.Image | None:
    """Return a sample's image, at most `SIDE` pixels wide and high; None where it is none, or has moved since."""
    file = found.files[row]
    if file is None:
        return None
    try:
        image = read_image(Path(file))
    except (OSError, ImageError):  # moved since, or no image: its row says so, and the rest stands
        return None
    image.thumbnail((SIDE, SIDE))
    return image
