"""What is done where some classes are rare: weights in the loss, the focal loss, or drawing rare samples more often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autoft.specs import IGNORED, Choice, Knob, Range
from autoft.tasks.numeric import constant

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

MAX_POSITIVE_WEIGHT = 20.0  # of a label's positives: a label rarer than about 1 in 21 would make steps jump
TINY = 1e-12  # keeps the slope of a power below 1 finite where its base is 0

_MEANING = (
    "what is done about rare classes: loss weighted by inverse frequency, focal loss, or rare samples drawn more often"
)
_MEANING_WORDS = "what is done about rare tags: loss weighted by inverse frequency, or focal loss"
GAMMA = Knob(
    "focal_gamma",
    2.0,
    None,
    "with `imbalance: focal`, how much less well-learned samples count (arXiv:1708.02002); 0 is none",
    Range(0.0, 10.0),
    when=("imbalance", ("focal",)),
)
KNOBS = (Knob("imbalance", "none", None, _MEANING, Choice(("none", "weights", "focal", "resample"))), GAMMA)
# a text is drawn as a whole, and nearly every text has common tags: drawing some more often would hardly change the shares
KNOBS_OF_WORDS = (Knob("imbalance", "none", None, _MEANING_WORDS, Choice(("none", "weights", "focal"))), GAMMA)


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Return a weight for each class, as scikit-learn's `class_weight="balanced"`: N / (K * count).

    A class without samples has the weight 1 and is not counted in K.

    Example:
        >>> balanced_weights([6, 3, 0])
        [0.75, 1.5, 1.0]
    """
    total, classes = sum(counts), sum(count > 0 for count in counts)
    return [total / (classes * count) if count else 1.0 for count in counts]


def positive_weights(shares: Sequence[float]) -> NDArray[np.float64]:
    """Return the weight of each label's positives, `(1 - share) / share`, kept between 1 / 20 and 20."""
    share = np.clip(np.asarray(shares, dtype=np.float64), TINY, 1.0)
    return np.clip((1.0 - share) / share, 1 / MAX_POSITIVE_WEIGHT, MAX_POSITIVE_WEIGHT)


def cross_entropy(
    outputs: Tensor, encoded: Tensor, counts: Sequence[int], knobs: Mapping[str, Any], smoothing: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy as the knob `imbalance` asks; 0 where no position has a target.

    Args:
        outputs: Logits `(M, K)`.
        encoded: Class indices `(M,)`; `IGNORED` where there is no target.
        counts: Training samples of each class.
        knobs: `imbalance`, and `focal_gamma` where that is `focal`.
        smoothing: Share of the target that is spread over all classes (arXiv:1512.00567).
    """
    from torch.nn import functional as F

    outputs = outputs.float()
    if knobs["imbalance"] == "focal":
        return _focal(outputs, encoded, float(knobs["focal_gamma"]), smoothing)
    weight = None
    if knobs["imbalance"] == "weights":
        weight = constant(tuple(balanced_weights(counts)), outputs.device)
    total = F.cross_entropy(
        outputs, encoded, weight=weight, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
    )
    known = encoded != IGNORED
    # as torch's own mean: over the weights of the targets. But torch's is NaN where there are none.
    below = (weight[encoded.clamp(min=0)] * known).sum() if weight is not None else known.sum()
    return total / below.clamp(min=TINY)


def _focal(outputs: Tensor, encoded: Tensor, gamma: float, smoothing: float) -> Tensor:
    """Return the mean focal loss (arXiv:1708.02002) for softmax: -sum_k q_k (1 - p_k)^gamma log p_k.

    q is the smoothed target. Each class has its own factor, not each sample that of its true class: with the latter the
    loss would vanish as p of the true class goes to 1, and the smoothing with it.
    """
    import torch

    classes = outputs.shape[-1]
    logs = outputs.log_softmax(dim=-1)
    known = encoded != IGNORED
    terms = (-torch.expm1(logs)).clamp(min=TINY) ** gamma * -logs
    own = terms.gather(-1, encoded.clamp(min=0)[:, None])[:, 0]
    each = (1 - smoothing) * own + smoothing / classes * terms.sum(dim=-1)
    return (each * known).sum() / known.sum().clamp(min=1)


def binary_cross_entropy(outputs: Tensor, encoded: Tensor, shares: Sequence[float], knobs: Mapping[str, Any]) -> Tensor:
    """Return the mean binary cross-entropy over all samples and labels as the knob `imbalance` asks.

    Args:
        outputs: Logits `(N, K)`.
        encoded: 0 or 1, `(N, K)`.
        shares: Share of the training samples that have each label.
        knobs: `imbalance`, and `focal_gamma` where that is `focal`.
    """
    import torch
    from torch.nn import functional as F

    outputs, encoded = outputs.float(), encoded.float()
    if knobs["imbalance"] == "focal":
        plain = F.binary_cross_entropy_with_logits(outputs, encoded, reduction="none")
        return ((-torch.expm1(-plain)).clamp(min=TINY) ** float(knobs["focal_gamma"]) * plain).mean()
    weight = None
    if knobs["imbalance"] == "weights":
        weight = constant(tuple(positive_weights(shares)), outputs.device)
    return F.binary_cross_entropy_with_logits(outputs, encoded, pos_weight=weight)


def rarest(members: Sequence[Sequence[str]], otherwise: str) -> list[str]:
    """Return the rarest name of each sample's names, of equally rare ones the first by name; `otherwise` where it has none.

    Example:
        >>> rarest([("a", "b"), ("a",), ()], "none")
        ['b', 'a', 'none']
    """
    counts: dict[str, int] = {}
    for names in members:
        for name in set(names):
            counts[name] = counts.get(name, 0) + 1
    return [min(set(names), key=lambda name: (counts[name], name)) if names else otherwise for names in members]
