"""Several labels a sample, or none: one yes or no for each label, with a threshold of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from autoft.errors import DataError
from autoft.files import natural_key
from autoft.specs import Head, Targets
from autoft.tasks import imbalance
from autoft.tasks.classification import DROPOUT, check_known
from autoft.tasks.divergence import of_labels
from autoft.tasks.numeric import areas, finite, linear_head, quotient

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

DEFAULT_THRESHOLD = 0.5
PRIOR_POSITIVES = 10  # with so many positives in validation, half of a label's threshold is its own
SMALLEST_SHARE = 1e-3  # where the head starts for labels that are rarer still

KNOBS = (DROPOUT, *imbalance.KNOBS)


def head(name: str, modality: str | None, help: str) -> Head:
    """Return multi-label classification under a name, for one modality or, with None, for any."""
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
            "average_precision": "maximize",
            "f1_micro": "maximize",
            "f1_macro": "maximize",
            "subset_accuracy": "maximize",
            "hamming_loss": "minimize",
            "auroc": "maximize",
        },
        default_metric=lambda targets: "average_precision",
        report=report,
        answer="labels",
        stratify=stratify,
        tune=tune,
        draw_weights=draw_weights,
        divergence=of_labels,
        knobs=KNOBS,
        help=help,
    )


def describe(targets: Sequence[tuple[str, ...]]) -> Targets:
    """Read the labels from the training targets, in natural order; `values["shares"]` says how many samples have each.

    Raises:
        DataError: No sample has a label, or targets are no lists of labels.
    """
    _check(targets)
    counts = Counter(label for target in targets for label in set(target))
    if not counts:
        raise DataError(
            f"multi-label needs at least 1 label, but none of the {len(targets)} training samples has one",
            "check what the labels are read from, and what separates them (`data.delimiter`)",
        )
    labels = tuple(sorted(counts, key=natural_key))
    shares = tuple(counts[label] / len(targets) for label in labels)
    return Targets(labels, tuple(counts[label] for label in labels), {"shares": shares})


def encode(targets: Sequence[tuple[str, ...]], described: Targets) -> Tensor:
    """Turn lists of labels into `(N, K)` float32: 1 where a sample has a label, else 0.

    Raises:
        DataError: A label that the model does not know.
    """
    import torch

    _check(targets)
    check_known([label for target in targets for label in target], described.labels, "label", "labels")
    index = {label: number for number, label in enumerate(described.labels)}
    encoded = torch.zeros((len(targets), len(index)))
    rows = [row for row, target in enumerate(targets) for _ in target]
    encoded[rows, [index[label] for target in targets for label in target]] = 1.0
    return encoded


def _check(targets: Sequence[Any]) -> None:
    for target in targets:
        if not isinstance(target, tuple) or not all(isinstance(label, str) for label in target):
            raise DataError(
                f"multi-label needs a list of labels for each sample, but got {target!r}",
                "separate them by `data.delimiter`, or choose another `task`",
            )


def stratify(targets: Sequence[tuple[str, ...]]) -> list[str]:
    """Return each sample's rarest label, `none` where it has no label."""
    return imbalance.rarest(targets, "none")


def build(features: int, targets: Targets, knobs: Mapping[str, Any]) -> nn.Module:
    """Make dropout and one linear layer, `(N, C) -> (N, K)`, whose bias starts at each label's log-odds.

    So training need not first learn that most labels are rare (arXiv:1708.02002, section 3.3). Weights move the start as
    they move the best constant answer.
    """
    import torch

    module = linear_head(features, len(targets.labels), float(knobs["dropout"]))
    shares = np.clip(targets.values["shares"], SMALLEST_SHARE, 1 - SMALLEST_SHARE)
    odds = shares / (1 - shares)
    if knobs["imbalance"] == "weights":
        odds = odds * imbalance.positive_weights(targets.values["shares"])
    with torch.no_grad():
        module[1].bias.copy_(torch.from_numpy(np.log(odds)))  # type: ignore[operator]
    return module


def loss(outputs: Tensor, encoded: Tensor, targets: Targets, knobs: Mapping[str, Any]) -> Tensor:
    """Return the mean binary cross-entropy of logits and encoded targets `(N, K)`, weighted or focal as asked."""
    return imbalance.binary_cross_entropy(outputs, encoded, targets.values["shares"], knobs)


def draw_weights(encoded: Tensor, targets: Targets, knobs: Mapping[str, Any]) -> np.ndarray | None:
    """Return each training sample's weight `(N,)` where resampling is asked for: the inverse frequency of its rarest label.

    A sample without labels counts like one of the commonest label.
    """
    if knobs["imbalance"] != "resample":
        return None
    counts = np.asarray(targets.counts, dtype=np.float64)
    own = np.where(encoded.cpu().numpy() > 0, counts, np.inf).min(axis=1)
    weights: np.ndarray = 1.0 / np.minimum(own, counts.max())
    return weights


def activation(outputs: Tensor) -> Tensor:
    """Turn logits `(N, K)` into probabilities `(N, K)`, each for itself."""
    return outputs.sigmoid()


def thresholds_of(targets: Targets) -> NDArray[np.float64]:
    """Return the probability `(K,)` from which each label is given: as tuned, else 0.5."""
    found = targets.values.get("thresholds", (DEFAULT_THRESHOLD,) * len(targets.labels))
    return np.asarray(found, dtype=np.float64)


def metrics(outputs: Tensor, encoded: Tensor, targets: Targets) -> dict[str, float]:
    """Score logits against encoded targets `(N, K)` over a whole split, by scikit-learn's definitions.

    A label is given where its probability reaches its threshold. Average precision is the mean over labels that occur in
    the split, AUROC over those that some samples have and some have not; each is left out where there is none.
    """
    probabilities, truth = _probabilities(outputs), encoded.cpu().numpy() > 0
    given = probabilities >= thresholds_of(targets)
    hits, sizes = (given & truth).sum(axis=0), given.sum(axis=0) + truth.sum(axis=0)
    precisions, under = _average_precisions(probabilities, truth), areas(probabilities, truth)
    values = {
        "average_precision": _mean(precisions),
        "f1_micro": float(quotient(2 * hits.sum(), sizes.sum())),
        "f1_macro": float(quotient(2 * hits, sizes).mean()),
        "subset_accuracy": float((given == truth).all(axis=1).mean()),
        "hamming_loss": float((given != truth).mean()),
        "auroc": _mean(under),
    }
    return {name: value for name, value in values.items() if value is not None}


def report(outputs: Tensor, encoded: Tensor, targets: Targets) -> dict[str, Any]:
    """Return precision, recall, F1, support, threshold and average precision of each label.

    Average precision is None for a label that the split lacks.
    """
    probabilities, truth = _probabilities(outputs), encoded.cpu().numpy() > 0
    thresholds = thresholds_of(targets)
    given = probabilities >= thresholds
    hits, guessed, support = (given & truth).sum(axis=0), given.sum(axis=0), truth.sum(axis=0)
    precision, recall, f1 = quotient(hits, guessed), quotient(hits, support), quotient(2 * hits, guessed + support)
    precisions = _average_precisions(probabilities, truth)
    return {
        "classes": [
            {
                "label": label,
                "precision": float(precision[k]),
                "recall": float(recall[k]),
                "f1": float(f1[k]),
                "support": int(support[k]),
                "threshold": float(thresholds[k]),
                "average_precision": None if np.isnan(precisions[k]) else float(precisions[k]),
            }
            for k, label in enumerate(targets.labels)
        ]
    }


# --- thresholds -------------------------------------------------------------------------------------


def tune(outputs: Tensor, encoded: Tensor, targets: Targets) -> Targets:
    """Set each label's threshold from logits and encoded targets `(N, K)` of the validation split.

    The threshold with the best F1 on few positives is mostly chance. So each label's own best threshold is moved toward the
    one that is best for all labels together (micro F1): with n positives it counts n / (n + 10), on the scale of log-odds.
    A label keeps 0.5 where that is no worse on the split, and where the split has no positives of it.
    """
    probabilities, truth = _probabilities(outputs), encoded.cpu().numpy() > 0
    thresholds = np.full(truth.shape[1], DEFAULT_THRESHOLD)
    if truth.any():
        together = _log_odds(best_threshold(probabilities.ravel(), truth.ravel()))
        for label in np.flatnonzero(truth.any(axis=0)):
            scores, wanted = probabilities[:, label], truth[:, label]
            trust = wanted.sum() / (wanted.sum() + PRIOR_POSITIVES)
            mixed = trust * _log_odds(best_threshold(scores, wanted)) + (1 - trust) * together
            threshold = float(1 / (1 + np.exp(-mixed)))
            if _f1(scores >= threshold, wanted) > _f1(scores >= DEFAULT_THRESHOLD, wanted):
                thresholds[label] = threshold
    return replace(targets, values={**targets.values, "thresholds": tuple(thresholds.tolist())})


def best_threshold(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Return the threshold with the best F1 of scores `(N,)`, of equally good ones that nearest to 0.5.

    It lies in the middle between two scores, or is 0.5 where that lies between them: a score that changes a little, as in
    another runtime, still falls on the same side.
    """
    order = np.argsort(-scores, kind="stable")
    scores, truth = scores[order], truth[order]
    last = np.append(scores[1:] != scores[:-1], True)  # equal scores fall on one side together
    upper, lower = scores[last], np.append(scores[1:][last[:-1]], 0.0)
    hits, given = truth.cumsum()[last], np.flatnonzero(last) + 1
    f1 = quotient(2 * hits, given + truth.sum())
    middle = (lower + upper) / 2
    middle = np.where(middle > lower, middle, upper)  # between neighbouring floats there is none
    between = np.where((lower < DEFAULT_THRESHOLD) & (upper >= DEFAULT_THRESHOLD), DEFAULT_THRESHOLD, middle)
    best = np.flatnonzero(f1 == f1.max())
    return float(between[best[np.abs(between[best] - DEFAULT_THRESHOLD).argmin()]])


def _log_odds(threshold: float) -> float:
    inside = min(max(threshold, 1e-6), 1 - 1e-6)
    return float(np.log(inside / (1 - inside)))


def _f1(given: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float(quotient(2 * (given & truth).sum(), given.sum() + truth.sum()))


# --- pieces of the metrics --------------------------------------------------------------------------


def _probabilities(outputs: Tensor) -> NDArray[np.float64]:
    finite(outputs)
    probabilities: NDArray[np.float64] = outputs.double().sigmoid().cpu().numpy()
    return probabilities


def _mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean of what is defined (not NaN), or None."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _average_precisions(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return each label's average precision `(K,)`, NaN without positives: sum of precision times the step in recall."""
    found = np.full(scores.shape[1], np.nan)
    for label in np.flatnonzero(truth.any(axis=0)):
        order = np.argsort(-scores[:, label], kind="stable")
        ordered, wanted = scores[order, label], truth[order, label]
        last = np.append(ordered[1:] != ordered[:-1], True)
        hits, given = wanted.cumsum()[last], np.flatnonzero(last) + 1
        found[label] = (hits / given * np.diff(hits, prepend=0)).sum() / hits[-1]
    return found
