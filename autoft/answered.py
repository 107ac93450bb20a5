"""What the winner answered to the validation and the test split, kept beside the result so that a report needs no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from autoft.errors import RunError, first_line
from autoft.files import folder_in_place, load_tensors, save_tensors
from autoft.loading import SplitData
from autoft.ragged import Rows
from autoft.specs import Answer, Sample
from autoft.train import Objective

ANSWERS = "answers"  # folder of a run
KEPT: tuple[Answer, ...] = ("label", "labels", "values")  # those with one row of numbers for a sample
MOST_SAMPLES = 20_000  # of a split
MOST_NUMBERS = 5_000_000  # scores of a split: 20 MB
MOST_TEXT = 400  # characters of a text
SMALLEST = 1e-38  # probability of a class: float32 knows none below
NEAREST = 1e-12  # distance of a label's probability to 0 and 1, at least


@dataclass(frozen=True)
class Answered:
    """Answers to samples of one split, and the truth.

    Attributes:
        answer: What an answer is, as the head says.
        labels: Names of the outputs, in their order.
        values: Numbers that answers need, such as `thresholds`.
        of: How many samples the split has; some of them are here where they were too many.
        scores: Probabilities, or the numbers that were predicted, `(N, K)`, float32.
        targets: The truth as the head encodes it: classes `(N,)`, or a number for each output `(N, K)`.
        ids: Names of the samples.
        files: Paths of the samples, or None where they are no files.
        texts: Texts of the samples, cut, or None where they are no texts.
    """

    answer: Answer
    labels: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]
    of: int
    scores: Tensor
    targets: Tensor
    ids: tuple[str, ...]
    files: tuple[str | None, ...]
    texts: tuple[str | None, ...]


def collect(outputs: Rows, data: SplitData, objective: Objective) -> Answered | None:
    """Return what a model answered to a split; None where an answer is not one row of numbers, as with tags and masks.

    Of a large split it has samples at even distances.

    Args:
        outputs: The model's, `(N, K)`.
        data: The split.
        objective: Head and targets.
    """
    head, targets = objective.head, objective.targets
    if head.answer not in KEPT or not isinstance(outputs, Tensor) or not isinstance(data.targets, Tensor):
        return None
    if outputs.dim() != 2 or outputs.shape[1] != len(targets.labels):
        return None
    most = max(1, min(MOST_SAMPLES, MOST_NUMBERS // outputs.shape[1], len(outputs)))
    rows = np.linspace(0, len(outputs) - 1, most).astype(int)
    samples = [data.samples[int(row)] for row in rows]
    scores = head.activation(outputs[rows]) if head.scores is not None else outputs[rows]
    return Answered(
        answer=head.answer,
        labels=targets.labels,
        values=targets.values,
        of=len(outputs),
        scores=scores.float().cpu(),
        targets=data.targets[rows].cpu(),
        ids=tuple(sample.id for sample in samples),
        files=tuple(str(sample.source) if isinstance(sample.source, Path) else None for sample in samples),
        texts=tuple(_text(sample) for sample in samples),
    )


def _text(sample: Sample) -> str | None:
    """Return a text, or a pair of them, cut to a length; None for a sample of another kind."""
    source = sample.source
    if isinstance(source, str):
        return source[:MOST_TEXT]
    if isinstance(source, tuple | list):
        return " | ".join(part[: MOST_TEXT // 2] for part in source)[:MOST_TEXT]
    return None


def outputs_of(found: Answered) -> Tensor:
    """Return the outputs `(N, K)` that give the kept scores, float64, up to what a probability does not tell.

    Probabilities of 0 and 1 become those nearest to them, as no finite output gives them.
    """
    scores = found.scores.double()
    if found.answer == "label":
        return scores.clamp_min(SMALLEST).log()  # softmax gives them back, whatever constant was lost
    return torch.logit(scores, eps=NEAREST) if found.answer == "labels" else scores


def keep(run: Path, answered: Mapping[str, Answered]) -> None:
    """Write the answers to `answers/` of a run, a file a split, in place of those of an earlier winner."""
    with folder_in_place(run / ANSWERS) as draft:
        for split, found in answered.items():
            described = {
                "answer": found.answer,
                "labels": found.labels,
                "values": {name: list(numbers) for name, numbers in found.values.items()},
                "of": found.of,
                "ids": found.ids,
                "files": found.files,
                "texts": found.texts,
            }
            tensors = {"scores": found.scores, "targets": found.targets}
            save_tensors(draft / f"{split}.safetensors", tensors, described)


def read_answers(run: Path, split: str = "test") -> Answered | None:
    """Return what a run kept of its winner's answers; None where it has none: an older run, or a task without.

    Raises:
        RunError: The file is damaged.
    """
    file = run / ANSWERS / f"{split}.safetensors"
    if not file.exists():
        return None
    try:
        tensors, known = load_tensors(file)
        return Answered(
            answer=cast(Answer, known["answer"]),
            labels=tuple(known["labels"]),
            values={name: tuple(numbers) for name, numbers in known["values"].items()},
            of=known["of"],
            scores=tensors["scores"],
            targets=tensors["targets"],
            **{name: tuple(cast(Any, known[name])) for name in ("ids", "files", "texts")},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} is damaged: {first_line(error)}", f"remove {run / ANSWERS}; a report needs none") from error
