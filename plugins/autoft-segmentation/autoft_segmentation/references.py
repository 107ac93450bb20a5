"""The scores as scikit-learn has them over all pixels at once, which the conformance kit holds `scores.py` against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from autoft.specs import Targets
from autoft_segmentation.masks import UNKNOWN


def _pixels(outputs: Tensor, encoded: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the class of each known pixel, in truth and as answered."""
    from torch.nn import functional as F

    given = F.interpolate(outputs.float(), encoded.shape[-2:], mode="bilinear", align_corners=False).argmax(dim=1)
    truth = encoded.numpy().ravel()
    known = truth != UNKNOWN
    return truth[known], given.numpy().ravel()[known]


def _miou(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    from sklearn.metrics import jaccard_score

    return float(jaccard_score(*_pixels(outputs, encoded), average="macro"))


def _pixel_accuracy(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(*_pixels(outputs, encoded)))


def _mean_dice(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    from sklearn.metrics import f1_score  # of pixels, it is Dice

    return float(f1_score(*_pixels(outputs, encoded), average="macro"))


REFERENCES: Mapping[str, Callable[[Any, Any, Targets], float]] = {
    "miou": _miou,
    "pixel_accuracy": _pixel_accuracy,
    "mean_dice": _mean_dice,
}
