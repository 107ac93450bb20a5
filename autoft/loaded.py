"""Uses a bundle from Python: `autoft.load`, answers and scores as typed values; `deploy` does the work."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from autoft.deploy import OpenBundle, evaluate, open_bundle, predict
from autoft.discovery import discover
from autoft.errors import DataError
from autoft.runtime.shared import plain_answer

if TYPE_CHECKING:
    from autoft.catalog import Catalog

SHOWN = 20  # labels or answers that a notebook shows


@dataclass(frozen=True)
class Entity:
    """An entity that was found in a text.

    Attributes:
        label: Its type.
        text: Its words.
        start: Place of its first character in the text.
        end: Place behind its last character.
        score: Probability of its least sure word.
    """

    label: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Answer:
    """What a model says of one input; what its task does not give is None.

    Attributes:
        input: The path, the text, or the pair of texts.
        label: Of a task with one label: the best one.
        score: Its probability.
        scores: Probability of each label.
        labels: Of a task with several labels: those whose probability reaches their threshold.
        value: Of a task with one number: it.
        values: Of a task with several numbers: each by its name.
        entities: Of tagged words: the entities.
        shares: Of segmentation: the share of the image that each class has.
        mask: Of segmentation: the class of each pixel, `(H, W)`.
        cut: Whether the text was longer than the model takes, and was answered by its beginning.
        error: Why the input could not be read; then there is nothing else.
    """

    input: Any
    label: str | None = None
    score: float | None = None
    scores: Mapping[str, float] | None = field(default=None, repr=False)
    labels: tuple[str, ...] | None = None
    value: float | None = None
    values: Mapping[str, float] | None = None
    entities: tuple[Entity, ...] | None = None
    shares: Mapping[str, float] | None = None
    mask: Any = field(default=None, repr=False, compare=False)
    cut: bool = False
    error: str | None = None

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Answer:
        """Return the answer that a bundle's script gave."""
        known = {each.name for each in fields(cls)}
        given = {name: value for name, value in found.items() if name in known}
        if "entities" in given:
            given["entities"] = tuple(Entity(**entity) for entity in given["entities"])
        if "labels" in given:
            given["labels"] = tuple(given["labels"])
        return cls(**given)

    def __str__(self) -> str:
        """Return the answer in one line, as `autoft predict` prints it."""
        if self.error is not None:
            return f"error: {self.error}"
        given = {each.name: getattr(self, each.name) for each in fields(self) if getattr(self, each.name) is not None}
        if self.entities is not None:
            given["entities"] = [vars(entity) for entity in self.entities]
        return plain_answer(given)

    def __repr__(self) -> str:
        """Return the answer with the fields that its task gives."""
        given = ((each.name, getattr(self, each.name)) for each in fields(self) if each.repr)
        return f"Answer({', '.join(f'{name}={value!r}' for name, value in given if value not in (None, False))})"


class Answers(tuple[Answer, ...]):
    """Answers in the order of their inputs; a notebook shows them as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(str(answer.input))}</td><td>{html.escape(str(answer))}</td></tr>"
            for answer in self[:SHOWN]
        )
        rest = f"<tr><td colspan=2>and {len(self) - SHOWN} more</td></tr>" if len(self) > SHOWN else ""
        return f"<table><thead><tr><th>input</th><th>answer</th></tr></thead><tbody>{rows}{rest}</tbody></table>"


@dataclass(frozen=True)
class Scores(Mapping[str, float]):
    """Metrics by name, and of what they are.

    Attributes:
        split: `train`, `validation`, `test` or `all`.
        samples: How many were scored.
        rejected: How many could not be read.
        metrics: By name.
    """

    split: str
    samples: int
    rejected: int
    metrics: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        """Return a metric."""
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the metrics' names."""
        return iter(self.metrics)

    def __len__(self) -> int:
        """Return how many metrics there are."""
        return len(self.metrics)

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{value:.4f}</td></tr>" for name, value in self.metrics.items())
        about = html.escape(
            f"{self.split}: {self.samples} samples" + (f", {self.rejected} unreadable" if self.rejected else "")
        )
        return f"<table><caption>{about}</caption><tbody>{rows}</tbody></table>"


class Bundle:
    """A bundle that answers and scores, through ONNX Runtime; its files were checked against their hashes.

    Example:
        >>> bundle = autoft.load("runs/digits/bundle")  # doctest: +SKIP
        >>> bundle.predict("scan.png").label  # doctest: +SKIP
        '7'
    """

    def __init__(self, opened: OpenBundle, catalog: Catalog, variant: str) -> None:
        self._opened, self._catalog = opened, catalog
        self.variant = variant

    @property
    def path(self) -> Path:
        """The bundle's folder."""
        return self._opened.folder

    @property
    def task(self) -> str:
        """Name of its task, such as `image-classification`."""
        return str(self._opened.contract["task"])

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of what it can answer: classes, labels, tags, or numbers."""
        return tuple(self._opened.contract["labels"])

    @property
    def metric(self) -> str | None:
        """The metric that it was searched for; None where the bundle does not say."""
        found = self._opened.contract.get("metric")
        return None if found is None else str(found)

    @property
    def test(self) -> Mapping[str, float]:
        """Its metrics on the test split of the data that it was made of, scored once."""
        return dict(self._opened.contract.get("test", {}))

    @overload
    def predict(self, inputs: str | Path, *, batch_size: int = ...) -> Answer: ...

    @overload
    def predict(self, inputs: Sequence[Any], *, batch_size: int = ...) -> Answers: ...

    def predict(self, inputs: Any, *, batch_size: int = 32) -> Answer | Answers:
        """Answer for one input, or for a list of them.

        Args:
            inputs: The path of an image, or a text; or a list of those. Pairs of texts are tuples in a list.
            batch_size: Inputs at once.

        Returns:
            One `Answer`, or `Answers` in the inputs' order; in a list an input that cannot be read has an `error`.

        Raises:
            DataError: The one input cannot be read, or inputs are not of the kind that the model takes.
            BundleError: The model cannot run.
        """
        alone = isinstance(inputs, str | Path)
        listed = [inputs] if alone else list(inputs)
        if self._opened.takes_texts:
            wrong = next((each for each in listed if not isinstance(each, str | tuple | list)), None)
        else:
            wrong = next((each for each in listed if not isinstance(each, str | Path)), None)
            listed = [Path(each) if isinstance(each, str) else each for each in listed]
        if wrong is not None:
            kind = "texts" if self._opened.takes_texts else "paths of files"
            raise DataError(f"inputs must be {kind}, but got {type(wrong).__name__}", f"this bundle is for {self.task}")
        found = Answers(Answer.of(answer) for answer in predict(self._opened, listed, batch_size=batch_size))
        if not alone:
            return found
        if found[0].error is not None:
            raise DataError(found[0].error)
        return found[0]

    def evaluate(self, data: str | Path, *, split: str | None = None, batch_size: int = 32, **columns: Any) -> Scores:
        """Score the bundle on labelled data, from the raw inputs.

        Args:
            data: Labelled data in a format that autoft knows; its labels must be among the bundle's.
            split: `train`, `validation`, `test` or `all`; None takes the test split where the data declares one, else all.
            batch_size: Samples at once.
            columns: Options of the data that differ from those of the bundle's, such as `text="review"`.

        Raises:
            DataError: The data cannot be read, lacks the split, or has labels that the model does not know.
            BundleError: The model cannot run.
        """
        found = evaluate(self._opened, Path(data), self._catalog, split=split, batch_size=batch_size, columns=columns)
        about = {name: found.pop(name) for name in ("split", "samples", "rejected")}
        return Scores(**about, metrics=found)

    def __repr__(self) -> str:
        """Return what it is, in one line."""
        return f"Bundle({str(self.path)!r}, task={self.task!r}, {len(self.labels)} labels, variant={self.variant!r})"

    def _repr_html_(self) -> str:
        shown = ", ".join(self.labels[:SHOWN]) + (
            f" and {len(self.labels) - SHOWN} more" if len(self.labels) > SHOWN else ""
        )
        rows = [("bundle", str(self.path)), ("task", self.task), ("labels", shown)]
        rows += [(f"test {name}", f"{value:.4f}") for name, value in self.test.items()]
        listed = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
        return f"<table><tbody>{listed}</tbody></table>"


def load(bundle: str | Path, *, variant: str = "fp32", plugins: bool = True) -> Bundle:
    """Open a bundle: check its files against their hashes, and load its model into ONNX Runtime.

    Args:
        bundle: The bundle's folder, or the run folder that has it.
        variant: Which of its graphs, such as `int8`.
        plugins: Whether third-party plugins may be loaded, which its task may need.

    Raises:
        BundleError: It is not a bundle, was altered, or has no such graph.
        PluginError: No installed plugin provides its task.
    """
    folder = Path(bundle)
    if not (folder / "autoft.json").is_file() and (folder / "bundle" / "autoft.json").is_file():
        folder = folder / "bundle"
    catalog = discover(enabled=plugins)
    return Bundle(open_bundle(folder, catalog, variant=variant), catalog, variant)
