"""Scores of masks over a whole split, from one matrix of counted pixels; never averaged over batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoft.specs import Targets
from autoft_segmentation.decoder import upsample
from autoft_segmentation.masks import UNKNOWN

ROWS = 16  # that are upsampled at once: all of a split would not fit into memory


def confusion(outputs: Tensor, encoded: Tensor, classes: int) -> np.ndarray:
    """Count pixels `(K, K)`, truth in rows; those that nobody knows are left out.

    Args:
        outputs: Logits `(N, K, h, w)`; brought to the masks' size, bilinear, as the exported graph does it.
        encoded: Masks `(N, H, W)`.
        classes: K.

    Raises:
        ValueError: Some outputs are not finite.
    """
    counts = torch.zeros(classes * classes, dtype=torch.int64)
    for start in range(0, len(encoded), ROWS):
        logits, truth = outputs[start : start + ROWS].float().cpu(), encoded[start : start + ROWS].cpu().long()
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("outputs must be finite numbers to be scored")
        given = upsample(logits, truth.shape[-2:]).argmax(dim=1)
        known = truth != UNKNOWN
        counts += torch.bincount(truth[known] * classes + given[known], minlength=classes * classes)
    found: np.ndarray = counts.view(classes, classes).numpy()
    return found


def metrics(outputs: Tensor, encoded: Tensor, targets: Targets) -> dict[str, float]:
    """Score logits `(N, K, h, w)` against masks `(N, H, W)`.

    `miou` and `mean_dice` are means over the classes that occur in truth or answers, as scikit-learn's `jaccard_score` with
    `average="macro"` has it. All are left out where no pixel is known.
    """
    counts = confusion(outputs, encoded, len(targets.labels))
    if not counts.sum():
        return {}
    both, either = _overlaps(counts)
    seen = either > 0
    union = either - both
    return {
        "miou": float((both[seen] / union[seen]).mean()),
        "pixel_accuracy": float(both.sum() / counts.sum()),
        "mean_dice": float((2 * both[seen] / either[seen]).mean()),
    }


def report(outputs: Tensor, encoded: Tensor, targets: Targets) -> dict[str, Any]:
    """Return IoU, precision, recall and the share of the known pixels of each class, and the matrix (rows: truth)."""
    counts = confusion(outputs, encoded, len(targets.labels))
    both, either = _overlaps(counts)
    truth, given = counts.sum(axis=1), counts.sum(axis=0)
    return {
        "areas": [
            {
                "label": label,
                "iou": _share(both[number], either[number] - both[number]),
                "precision": _share(both[number], given[number]),
                "recall": _share(both[number], truth[number]),
                "share": _share(truth[number], counts.sum()),
            }
            for number, label in enumerate(targets.labels)
        ],
        "confusion": counts.tolist(),
    }


def _overlaps(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each class the pixels that are it in truth and answer, and the sum of those in truth and in answer."""
    return np.diag(counts), counts.sum(axis=0) + counts.sum(axis=1)


def _share(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None
