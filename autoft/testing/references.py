"""Metrics of autoft's own heads computed plainly, one sample or class after another, to hold a head's own against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from autoft.specs import Targets

if TYPE_CHECKING:
    from torch import Tensor

    from autoft.ragged import Ragged

Reference = Callable[[Any, Any, Targets], float]


def _accuracy(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    return float((outputs.argmax(1) == encoded).double().mean())


def _balanced_accuracy(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    right = outputs.argmax(1) == encoded
    recalls = [float(right[encoded == each].double().mean()) for each in encoded.unique()]  # type: ignore[no-untyped-call]
    return sum(recalls) / len(recalls)


def _f1_macro(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    found = outputs.argmax(1)
    scores = []
    for each in range(len(targets.labels)):
        both = int(((found == each) & (encoded == each)).sum())
        either = int((found == each).sum()) + int((encoded == each).sum())
        scores.append(2 * both / either if either else 0.0)
    return sum(scores) / len(scores)


def _log_loss(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    return float(-outputs.double().log_softmax(1).gather(1, encoded[:, None]).mean())


def _mae(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    return float((outputs.double() - encoded.double()).abs().mean())


def _rmse(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    return float((outputs.double() - encoded.double()).square().mean(0).sqrt().mean())


def _r2(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    wanted = encoded.double()
    left = (outputs.double() - wanted).square().sum(0)
    return float((1 - left / (wanted - wanted.mean(0)).square().sum(0)).mean())


def _auroc(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    """Return how often a sample of a class scores above one of another, ties half, as the mean over the classes."""
    scores = outputs.double().softmax(1)
    areas = []
    for each in range(len(targets.labels)):
        apart = scores[encoded == each, each][:, None] - scores[encoded != each, each]
        areas.append(float((apart > 0).double().mean() + (apart == 0).double().mean() / 2))
    return sum(areas) / len(areas)


def _pearson(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    ours, theirs = (side.double() - side.double().mean(0) for side in (outputs, encoded))
    return float(((ours * theirs).sum(0) / (ours.square().sum(0) * theirs.square().sum(0)).sqrt()).mean())


def _spearman(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    import torch

    def ranks(column: Tensor) -> Tensor:
        return ((column[:, None] > column).double().sum(1) * 2 + (column[:, None] == column).double().sum(1)) / 2

    ours, theirs = (torch.stack([ranks(column) for column in side.T], dim=1) for side in (outputs, encoded))
    return _pearson(ours, theirs, targets)


# --- several labels -------------------------------------------------------------------------------------


def _given(outputs: Tensor, targets: Targets) -> Tensor:
    """Return which labels are answered, `(N, K)`: those whose probability reaches their threshold."""
    import torch

    thresholds = targets.values.get("thresholds", (0.5,) * len(targets.labels))
    return outputs.double().sigmoid() >= torch.tensor(thresholds, dtype=torch.float64)


def _f1_micro_of_labels(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    given, truth = _given(outputs, targets), encoded > 0
    return _f1(int((given & truth).sum()), int(given.sum()), int(truth.sum()))


def _f1_macro_of_labels(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    given, truth = _given(outputs, targets), encoded > 0
    scores = [
        _f1(int((given & truth)[:, each].sum()), int(given[:, each].sum()), int(truth[:, each].sum()))
        for each in range(len(targets.labels))
    ]
    return sum(scores) / len(scores)


def _f1(both: int, given: int, true: int) -> float:
    return 2 * both / (given + true) if given + true else 0.0


def _subset_accuracy(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    return float((_given(outputs, targets) == (encoded > 0)).all(1).double().mean())


def _hamming_loss(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    return float((_given(outputs, targets) != (encoded > 0)).double().mean())


def _average_precision(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    """Return scikit-learn's, as the mean over the labels that occur."""
    from sklearn.metrics import average_precision_score

    scores, truth = outputs.double().sigmoid().numpy(), (encoded > 0).numpy()
    occurring = [each for each in range(truth.shape[1]) if truth[:, each].any()]
    return sum(float(average_precision_score(truth[:, each], scores[:, each])) for each in occurring) / len(occurring)


def _auroc_of_labels(outputs: Tensor, encoded: Tensor, targets: Targets) -> float:
    """Return scikit-learn's, as the mean over the labels that some samples have and some have not."""
    from sklearn.metrics import roc_auc_score

    scores, truth = outputs.double().sigmoid().numpy(), (encoded > 0).numpy()
    mixed = [each for each in range(truth.shape[1]) if truth[:, each].any() and not truth[:, each].all()]
    return sum(float(roc_auc_score(truth[:, each], scores[:, each])) for each in mixed) / len(mixed)


# --- tagged words ---------------------------------------------------------------------------------------


def _tags(outputs: Ragged, encoded: Ragged, targets: Targets) -> Iterator[tuple[list[str], list[str]]]:
    """Yield each text's tags: the truth, and what is answered, which is `O` for words that were cut off."""
    labels = targets.labels
    for number in range(len(encoded)):
        logits, truth = outputs.row(number), encoded.row(number)
        true = [labels[int(each)] for each in truth]
        found = [labels[int(each)] for each in logits.argmax(1)] if len(logits) else []
        yield true, found + ["O"] * (len(true) - len(found))


def entities_of(tags: list[str]) -> set[tuple[int, int, str]]:
    """Return the entities of a text as start, end and type, by the rules of conlleval."""
    found: set[tuple[int, int, str]] = set()
    start, open_type = 0, ""
    for at, tag in enumerate([*tags, "O"]):
        letter, _, kind = tag.partition("-")
        if open_type and (letter in "OBS" or kind != open_type):
            found.add((start, at, open_type))
            open_type = ""
        if letter != "O" and not open_type:
            start, open_type = at, kind
        if open_type and letter in "ES":
            found.add((start, at + 1, open_type))
            open_type = ""
    return found


def _counted(outputs: Ragged, encoded: Ragged, targets: Targets, of: str | None = None) -> tuple[int, int, int]:
    """Return the numbers of entities that are found and true, found, and true; of one type, or of all."""
    both = given = true = 0
    for wanted, answered in _tags(outputs, encoded, targets):
        truth, found = (
            {entity for entity in entities_of(tags) if of is None or entity[2] == of} for tags in (wanted, answered)
        )
        both, given, true = both + len(truth & found), given + len(found), true + len(truth)
    return both, given, true


def _word_accuracy(outputs: Ragged, encoded: Ragged, targets: Targets) -> float:
    pairs = [pair for wanted, found in _tags(outputs, encoded, targets) for pair in zip(wanted, found, strict=True)]
    return sum(wanted == found for wanted, found in pairs) / len(pairs)


def _precision(outputs: Ragged, encoded: Ragged, targets: Targets) -> float:
    both, given, _ = _counted(outputs, encoded, targets)
    return both / given if given else 0.0


def _recall(outputs: Ragged, encoded: Ragged, targets: Targets) -> float:
    both, _, true = _counted(outputs, encoded, targets)
    return both / true if true else 0.0


def _f1_of_entities(outputs: Ragged, encoded: Ragged, targets: Targets) -> float:
    return _f1(*_counted(outputs, encoded, targets))


def _f1_macro_of_entities(outputs: Ragged, encoded: Ragged, targets: Targets) -> float:
    kinds = {label.partition("-")[2] for label in targets.labels} - {""}
    counts = [_counted(outputs, encoded, targets, kind) for kind in kinds]
    scores = [_f1(*count) for count in counts if count[1] + count[2]]
    return sum(scores) / len(scores)


REFERENCES: Mapping[str, Mapping[str, Reference]] = {
    "label": {
        "accuracy": _accuracy,
        "balanced_accuracy": _balanced_accuracy,
        "f1_macro": _f1_macro,
        "log_loss": _log_loss,
        "auroc": _auroc,
    },
    "labels": {
        "f1_micro": _f1_micro_of_labels,
        "f1_macro": _f1_macro_of_labels,
        "subset_accuracy": _subset_accuracy,
        "hamming_loss": _hamming_loss,
        "average_precision": _average_precision,
        "auroc": _auroc_of_labels,
    },
    "entities": {
        "accuracy": _word_accuracy,
        "precision": _precision,
        "recall": _recall,
        "f1": _f1_of_entities,
        "f1_macro": _f1_macro_of_entities,
    },
    "values": {"mae": _mae, "rmse": _rmse, "r2": _r2, "pearson": _pearson, "spearman": _spearman},
}
