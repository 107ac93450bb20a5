"""Classification: one label a sample, from pooled features of images, texts or anything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autoft.errors import DataError, nearest
from autoft.files import natural_key
from autoft.specs import Head, Knob, Range, Targets
from autoft.tasks import imbalance
from autoft.tasks.divergence import of_classes
from autoft.tasks.numeric import areas, finite, linear_head, quotient

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

IMBALANCED = 1.5  # the largest class over the smallest, from which accuracy misleads

DROPOUT = Knob("dropout", 0.1, Range(0.0, 0.4), "dropout before the output layer", Range(0.0, 0.95))
KNOBS = (
    DROPOUT,
    Knob(
        "label_smoothing",
        0.0,
        Range(0.0, 0.1),
        "share of the target spread over all classes (arXiv:1512.00567)",
        Range(0.0, 0.9),
    ),
    *imbalance.KNOBS,
)


def head(name: str, modality: str | None, help: str) -> Head:
    """Return classification under a name, for one modality or, with None, for any."""
    return Head(
        name=name,
        modality=modality,
        features="pooled",
        describe=describe,
        encode=encode,
        build=build,
        loss=loss,
        activation=activation,
        metrics=metrics,
        directions={
            "accuracy": "maximize",
            "balanced_accuracy": "maximize",
            "f1_macro": "maximize",
            "log_loss": "minimize",
            "auroc": "maximize",
        },
        default_metric=default_metric,
        report=report,
        stratify=list,
        draw_weights=draw_weights,
        divergence=of_classes,
        knobs=KNOBS,
        help=help,
    )


def describe(targets: Sequence[str]) -> Targets:
    """Read the classes from the training targets, in natural order (`2` before `10`).

    Raises:
        DataError: Fewer than two classes, or targets that are not one label each.
    """
    _check(targets)
    counts = Counter(targets)
    if len(counts) < 2:
        raise DataError(
            f"classification needs at least 2 classes, but the training data has {len(counts)}: {', '.join(counts)}",
            "add samples of another class, or check what the labels are read from",
        )
    labels = sorted(counts, key=natural_key)
    return Targets(tuple(labels), tuple(counts[label] for label in labels))


def encode(targets: Sequence[str], described: Targets) -> Tensor:
    """Turn labels into class indices `(N,)`, int64.

    Raises:
        DataError: A label that is not among the classes.
    """
    import torch

    _check(targets)
    index = {label: number for number, label in enumerate(described.labels)}
    check_known(targets, described.labels, "label", "classes")
    return torch.tensor([index[target] for target in targets], dtype=torch.int64)


def check_known(found: Sequence[str], labels: Sequence[str], noun: str, plural: str) -> None:
    """Check that every label found is one of the model's.

    Raises:
        DataError: Naming the first that is not, and the nearest that is.
    """
    unknown = sorted(set(found) - set(labels))
    if unknown:
        near = nearest(unknown[0], labels)
        raise DataError(
            f"the {noun} {unknown[0]!r} is not among the {len(labels)} {plural} of the model",
            f"did you mean {near[0]!r}?" if near else f"the {plural} are {', '.join(labels[:10])}",
        )


def _check(targets: Sequence[Any]) -> None:
    for target in targets:
        if not isinstance(target, str):
            raise DataError(
                f"classification needs one label a sample, but got {target!r}",
                "choose another `task`: multi-label for several labels, regression for numbers",
            )


def build(features: int, targets: Targets, knobs: Mapping[str, Any]) -> nn.Module:
    """Make dropout and one linear layer, `(N, C) -> (N, K)`."""
    return linear_head(features, len(targets.labels), float(knobs["dropout"]))


def loss(outputs: Tensor, encoded: Tensor, targets: Targets, knobs: Mapping[str, Any]) -> Tensor:
    """Return the mean cross-entropy of logits `(N, K)` and class indices `(N,)`, smoothed, weighted or focal as asked."""
    return imbalance.cross_entropy(outputs, encoded, targets.counts, knobs, float(knobs["label_smoothing"]))


def draw_weights(encoded: Tensor, targets: Targets, knobs: Mapping[str, Any]) -> np.ndarray | None:
    """Return each training sample's weight `(N,)`, the inverse of its class's frequency, where resampling is asked for."""
    import numpy as np

    if knobs["imbalance"] != "resample":
        return None
    weights: np.ndarray = np.asarray(imbalance.balanced_weights(targets.counts))[encoded.cpu().numpy()]
    return weights


def activation(outputs: Tensor) -> Tensor:
    """Turn logits `(N, K)` into probabilities `(N, K)`."""
    return outputs.softmax(dim=-1)


def default_metric(targets: Targets) -> str:
    """Return `f1_macro` where classes are imbalanced (largest over smallest above 1.5), else `accuracy`."""
    return "f1_macro" if targets.imbalance > IMBALANCED else "accuracy"


def metrics(outputs: Tensor, encoded: Tensor, targets: Targets) -> dict[str, float]:
    """Score logits `(N, K)` against class indices `(N,)` over a whole split, by scikit-learn's definitions.

    AUROC (one-vs-rest, macro) is left out where the split lacks a class: it is not defined there. Balanced accuracy is the
    mean recall of the classes that the split has.
    """
    import numpy as np

    finite(outputs)
    truth = encoded.cpu().numpy()
    probabilities = outputs.double().softmax(dim=-1).cpu().numpy()
    predicted = probabilities.argmax(axis=1)
    support, guessed, hits = (
        np.bincount(which, minlength=len(targets.labels)) for which in (truth, predicted, truth[truth == predicted])
    )
    present = support > 0
    least = np.finfo(np.float64).eps  # of a probability: the logarithm of 0 is no score
    values = {
        "accuracy": float((predicted == truth).mean()),
        "balanced_accuracy": float((hits[present] / support[present]).mean()),
        "f1_macro": float(quotient(2 * hits, support + guessed).mean()),
        "log_loss": float(-np.log(probabilities[np.arange(len(truth)), truth].clip(least, 1 - least)).mean()),
    }
    if present.all():
        columns = np.arange(len(present))[1 if len(present) == 2 else 0 :]  # of two classes one area is the other's
        values["auroc"] = float(areas(probabilities[:, columns], truth[:, None] == columns).mean())
    return values


def report(outputs: Tensor, encoded: Tensor, targets: Targets) -> dict[str, Any]:
    """Return precision, recall, F1 and support of each class, and the confusion matrix (rows: truth)."""
    import numpy as np
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    classes = np.arange(len(targets.labels))
    truth, predicted = encoded.cpu().numpy(), finite(outputs).argmax(axis=-1)
    columns = precision_recall_fscore_support(truth, predicted, labels=classes, zero_division=0.0)
    return {
        "classes": [
            {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
            for label, p, r, f, s in zip(targets.labels, *columns, strict=True)
        ],
        "confusion": confusion_matrix(truth, predicted, labels=classes).tolist(),
    }
