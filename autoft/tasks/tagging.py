"""Token classification: a tag for each word of a text, scored by the entities that the tags spell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autoft.errors import DataError
from autoft.files import natural_key
from autoft.specs import Head, Targets
from autoft.tasks import imbalance
from autoft.tasks.classification import DROPOUT, check_known
from autoft.tasks.divergence import of_classes
from autoft.tasks.entities import OUTSIDE, Counts, Scheme, count, find_spans, is_prefixed, read_scheme, split_tag
from autoft.tasks.numeric import finite, linear_head

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from autoft.ragged import Ragged

KNOBS = (DROPOUT, *imbalance.KNOBS_OF_WORDS)


def head(name: str, modality: str | None, help: str) -> Head:
    """Return the tagging of words under a name."""
    return Head(
        name=name,
        modality=modality,
        features="sequence",
        describe=describe,
        encode=encode,
        build=build,
        loss=loss,
        activation=activation,
        metrics=metrics,
        directions={
            "f1": "maximize",
            "precision": "maximize",
            "recall": "maximize",
            "f1_macro": "maximize",
            "accuracy": "maximize",
        },
        default_metric=default_metric,
        report=report,
        answer="entities",
        stratify=stratify,
        divergence=of_classes,
        knobs=KNOBS,
        help=help,
    )


def describe(targets: Sequence[tuple[str, ...]]) -> Targets:
    """Read the tags from the training targets: `O` first, the others in natural order, each with its count of words.

    Where tags have letters, every letter found is taken with every type found: `I-PER` belongs to `B-PER` even if, by
    chance, no training text has it.

    Raises:
        DataError: Fewer than two tags, or targets that are no lists of tags.
    """
    _check(targets)
    counts = Counter(tag for target in targets for tag in target)
    if len(counts) < 2:
        raise DataError(
            f"token classification needs at least 2 tags, but the training data has {len(counts)}: {', '.join(counts)}",
            "check what the tags are read from",
        )
    tags = set(counts)
    if is_prefixed(list(counts)):
        pairs = [(tag, *split_tag(tag)) for tag in counts if tag != OUTSIDE and len(tag) > 1]
        tags |= {f"{letter}{tag[1:]}" for tag, _, _ in pairs for _, letter, _ in pairs}
    labels = tuple(sorted(tags, key=lambda tag: (tag != OUTSIDE, natural_key(tag))))
    return Targets(labels, tuple(counts[label] for label in labels))


def encode(targets: Sequence[tuple[str, ...]], described: Targets) -> Ragged:
    """Turn tags into their numbers, int64, a row a text.

    Raises:
        DataError: A tag that the model does not know.
    """
    import torch

    from autoft.ragged import Ragged

    _check(targets)
    index = {label: number for number, label in enumerate(described.labels)}
    check_known(sorted({tag for target in targets for tag in target}), described.labels, "tag", "tags")
    offsets = np.cumsum([0, *(len(target) for target in targets)])
    values = [index[tag] for target in targets for tag in target]
    return Ragged(torch.tensor(values, dtype=torch.int64), torch.from_numpy(offsets.astype(np.int64)))


def _check(targets: Sequence[Any]) -> None:
    for target in targets:
        if not isinstance(target, tuple) or not all(isinstance(tag, str) for tag in target):
            raise DataError(
                f"token classification needs a list with a tag for each word, but got {target!r}",
                "choose another `task`: classification for one label a text",
            )


def stratify(targets: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the rarest entity type of each text, `none` where it has none."""
    prefixed = is_prefixed(sorted({tag for target in targets for tag in target}))
    types = [
        tuple({split_tag(tag)[1] if prefixed else tag for tag in target if tag != OUTSIDE} - {OUTSIDE}) for target in targets
    ]
    return imbalance.rarest(types, "none")


def build(features: int, targets: Targets, knobs: Mapping[str, Any]) -> nn.Module:
    """Make dropout and one linear layer, `(N, T, C) -> (N, T, K)`."""
    return linear_head(features, len(targets.labels), float(knobs["dropout"]))


def loss(outputs: Tensor, encoded: Tensor, targets: Targets, knobs: Mapping[str, Any]) -> Tensor:
    """Return the mean cross-entropy of logits `(N, T, K)` over the positions of `(N, T)` that have a tag."""
    return imbalance.cross_entropy(outputs.flatten(0, 1), encoded.flatten(), targets.counts, knobs)


def activation(outputs: Tensor) -> Tensor:
    """Turn logits `(N, T, K)` into probabilities `(N, T, K)`."""
    return outputs.softmax(dim=-1)


def default_metric(targets: Targets) -> str:
    """Return `f1` of entities; `accuracy` where no word is outside and tags have no letters, as for parts of speech."""
    return "f1" if OUTSIDE in targets.labels or is_prefixed(targets.labels) else "accuracy"


def metrics(outputs: Ragged, encoded: Ragged, targets: Targets) -> dict[str, float]:
    """Score words' logits against their tags over a whole split: entities by seqeval's rules, and words' accuracy.

    Words that were cut off count as tagged `O`, or as the commonest tag where there is no `O`. `precision`, `recall` and
    `f1` are of all entities together, `f1_macro` is the mean over types that occur in truth or prediction. They are left
    out where the split has no entity.

    Args:
        outputs: `(K,)` logits for each word, a row a text; a row may lack its last words.
        encoded: Tags' numbers, a row a text.
        targets: From `describe`.
    """
    truth, predicted = encoded.values.cpu().numpy(), predicted_tags(outputs, encoded, targets)
    values = {"accuracy": float((truth == predicted).mean())} if len(truth) else {}
    counts = _counts(truth, predicted, encoded, read_scheme(targets.labels))
    if counts.true.any():
        precision, recall, f1 = counts.micro()
        values |= {"precision": precision, "recall": recall, "f1": f1, "f1_macro": counts.macro_f1()}
    return values


def report(outputs: Ragged, encoded: Ragged, targets: Targets) -> dict[str, Any]:
    """Return precision, recall, F1 and support of each entity type, words' accuracy, and how many words were cut off."""
    scheme = read_scheme(targets.labels)
    truth, predicted = encoded.values.cpu().numpy(), predicted_tags(outputs, encoded, targets)
    counts = _counts(truth, predicted, encoded, scheme)
    return {
        "entities": [
            {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(support)}
            for label, p, r, f, support in zip(scheme.names, *counts.scores(), counts.true, strict=True)
        ],
        "words": float((truth == predicted).mean()) if len(truth) else None,
        "cut": len(truth) - len(outputs.values),
    }


def predicted_tags(outputs: Ragged, encoded: Ragged, targets: Targets) -> NDArray[np.int64]:
    """Return the best tag's number for each word of the truth `(M,)`; see `metrics` for words that were cut off.

    Raises:
        ValueError: There are other texts, or more words, than in the truth.
    """
    missing = encoded.lengths - outputs.lengths if len(outputs) == len(encoded) else None
    if missing is None or bool((missing < 0).any()):
        raise ValueError("outputs must have a row for each text, with at most one output for each of its words")
    fill = targets.labels.index(OUTSIDE) if OUTSIDE in targets.labels else int(np.argmax(targets.counts))
    predicted = np.full(len(encoded.values), fill, dtype=np.int64)
    # each row's outputs are for its first words
    before = (encoded.offsets - outputs.offsets)[:-1].numpy()
    places = np.arange(len(outputs.values)) + np.repeat(before, outputs.lengths.numpy())
    predicted[places] = finite(outputs.values).argmax(axis=-1)
    return predicted


def _counts(truth: NDArray[np.int64], predicted: NDArray[np.int64], encoded: Ragged, scheme: Scheme) -> Counts:
    offsets = encoded.offsets.numpy()
    return count(find_spans(truth, offsets, scheme), find_spans(predicted, offsets, scheme), len(scheme.names))
