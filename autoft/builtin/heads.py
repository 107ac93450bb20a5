"""The heads that ship with autoft: classification from pooled features."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autoft.errors import DataError, nearest
from autoft.files import natural_key
from autoft.hookspecs import hookimpl
from autoft.specs import Choice, Head, Knob, Range, Targets

if TYPE_CHECKING:
    from torch import Tensor, nn

IMBALANCED = 1.5  # the largest class over the smallest, from which accuracy misleads

KNOBS = (
    Knob("dropout", 0.1, Range(0.0, 0.4), "dropout before the output layer", Range(0.0, 0.95)),
    Knob(
        "label_smoothing",
        0.0,
        Range(0.0, 0.1),
        "share of the target spread over all classes (arXiv:1512.00567)",
        Range(0.0, 0.9),
    ),
    Knob(
        "class_weights",
        "none",
        None,
        "`balanced` weighs each class by the inverse of its frequency",
        Choice(("none", "balanced")),
    ),
)


@hookimpl
def autoft_heads() -> list[Head]:
    """Offer image classification."""
    return [
        Head(
            name="image-classification",
            modality="image",
            features="pooled",
            describe=describe,
            encode=encode,
            build=build,
            loss=loss,
            activation=activation,
            metrics=metrics,
            directions={"accuracy": "maximize", "f1_macro": "maximize", "log_loss": "minimize", "auroc": "maximize"},
            default_metric=default_metric,
            report=report,
            stratify=list,
            knobs=KNOBS,
            help="one label an image: cross-entropy; accuracy, macro F1, log-loss, AUROC",
        )
    ]


def describe(targets: Sequence[str]) -> Targets:
    """Read the classes from the training targets, in natural order (`2` before `10`).

    Raises:
        DataError: Fewer than two classes.
    """
    counts = Counter(targets)
    if len(counts) < 2:
        raise DataError(
            f"classification needs at least 2 classes, but the training data has {len(counts)}: {', '.join(counts)}",
            "put the images of each class into a folder of its own",
        )
    labels = sorted(counts, key=natural_key)
    return Targets(tuple(labels), tuple(counts[label] for label in labels))


def encode(targets: Sequence[str], described: Targets) -> Tensor:
    """Turn labels into class indices `(N,)`, int64.

    Raises:
        DataError: A label that is not among the classes.
    """
    import torch

    index = {label: number for number, label in enumerate(described.labels)}
    unknown = sorted(set(targets) - set(index))
    if unknown:
        near = nearest(unknown[0], described.labels)
        raise DataError(
            f"the label {unknown[0]!r} is not among the {len(index)} classes of the model",
            f"did you mean {near[0]!r}?" if near else f"the classes are {', '.join(described.labels[:10])}",
        )
    return torch.tensor([index[target] for target in targets], dtype=torch.int64)


def build(features: int, targets: Targets, knobs: Mapping[str, Any]) -> nn.Module:
    """Make dropout and one linear layer, `(N, C) -> (N, K)`, with timm's initialization of classifiers."""
    from torch import nn

    linear = nn.Linear(features, len(targets.labels))
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Dropout(float(knobs["dropout"])), linear)


def loss(outputs: Tensor, encoded: Tensor, targets: Targets, knobs: Mapping[str, Any]) -> Tensor:
    """Return the mean cross-entropy of logits `(N, K)` and class indices `(N,)`, smoothed and weighted as asked."""
    import torch
    from torch.nn import functional as F

    weight = None
    if knobs["class_weights"] == "balanced":
        # as scikit-learn's class_weight="balanced": N / (K * count)
        total, classes = sum(targets.counts), len(targets.counts)
        weights = [total / (classes * count) for count in targets.counts]
        weight = torch.tensor(weights, dtype=torch.float32, device=outputs.device)
    return F.cross_entropy(outputs.float(), encoded, weight=weight, label_smoothing=float(knobs["label_smoothing"]))


def activation(outputs: Tensor) -> Tensor:
    """Turn logits `(N, K)` into probabilities `(N, K)`."""
    return outputs.softmax(dim=-1)


def default_metric(targets: Targets) -> str:
    """Return `f1_macro` where classes are imbalanced (largest over smallest above 1.5), else `accuracy`."""
    return "f1_macro" if targets.imbalance > IMBALANCED else "accuracy"


def metrics(outputs: Tensor, encoded: Tensor, targets: Targets) -> dict[str, float]:
    """Score logits `(N, K)` against class indices `(N,)` over a whole split, by scikit-learn's definitions.

    AUROC (one-vs-rest, macro) is left out where the split lacks a class: it is not defined there.
    """
    import numpy as np
    from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

    classes = np.arange(len(targets.labels))
    truth = encoded.cpu().numpy()
    probabilities = outputs.double().softmax(dim=-1).cpu().numpy()
    predicted = probabilities.argmax(axis=1)
    values = {
        "accuracy": float(accuracy_score(truth, predicted)),
        "f1_macro": float(f1_score(truth, predicted, labels=classes, average="macro", zero_division=0.0)),
        "log_loss": float(log_loss(truth, probabilities, labels=classes)),
    }
    if len(np.unique(truth)) == len(classes):
        scores = probabilities[:, 1] if len(classes) == 2 else probabilities
        values["auroc"] = float(roc_auc_score(truth, scores, multi_class="ovr", average="macro", labels=classes))
    return {name: value for name, value in values.items() if math.isfinite(value)}


def report(outputs: Tensor, encoded: Tensor, targets: Targets) -> dict[str, Any]:
    """Return precision, recall, F1 and support of each class, and the confusion matrix (rows: truth)."""
    import numpy as np
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    classes = np.arange(len(targets.labels))
    truth, predicted = encoded.cpu().numpy(), outputs.argmax(dim=-1).cpu().numpy()
    columns = precision_recall_fscore_support(truth, predicted, labels=classes, zero_division=0.0)
    return {
        "classes": [
            {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
            for label, p, r, f, s in zip(targets.labels, *columns, strict=True)
        ],
        "confusion": confusion_matrix(truth, predicted, labels=classes).tolist(),
    }
