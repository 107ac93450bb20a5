"""Uses a bundle from autoft: answers for inputs, and metrics on labelled data, always through ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.catalog import Catalog
from autoft.errors import BundleError, DataError
from autoft.export.contract import read_contract
from autoft.export.script import load_script, runtime_of
from autoft.runtime.shared import json_answer, plain_answer
from autoft.specs import SPLITS, DataFormat, Head, RawData, Sample, Targets

if TYPE_CHECKING:
    from autoft.ragged import Rows

OF_OTHER_DATA = ("group", "validation", "test")  # options that say how the training data was divided
CHUNK = 2048  # samples whose raw content is held at once


@dataclass(frozen=True)
class OpenBundle:
    """A bundle whose files were checked against their hashes.

    Attributes:
        folder: Where it is.
        contract: Content of its `autoft.json`.
        head: Its task.
        script: The runtime script: autoft's own copy, never the one in the folder, which could hold anything.
        runner: The script's `Bundle`.
    """

    folder: Path
    contract: Mapping[str, Any]
    head: Head
    script: Any
    runner: Any

    @property
    def takes_texts(self) -> bool:
        """Whether its inputs are texts rather than files."""
        return "takes" in self.contract


def open_bundle(folder: Path, catalog: Catalog, *, variant: str = "fp32") -> OpenBundle:
    """Check a bundle and load its model.

    Args:
        folder: The bundle.
        catalog: Provides its task.
        variant: Which of its graphs.

    Raises:
        BundleError: It is not a bundle, was altered, or has no such graph.
        PluginError: No installed plugin provides its task.
    """
    contract = read_contract(folder)
    head = catalog.head(contract["task"])
    script = load_script(runtime_of(contract, head, catalog.families))
    try:
        # scripts of plugins' tasks need not know of variants
        runner = script.Bundle.load(folder, **({} if variant == "fp32" else {"variant": variant}))
    except script.BundleError as error:
        raise BundleError(str(error), "get the bundle again, or export it again") from error
    return OpenBundle(folder, contract, head, script, runner)


def inputs_of(bundle: OpenBundle, arguments: Sequence[str], file: Path | None = None) -> Iterable[Any]:
    """Return the inputs that a command's arguments give: files, or texts as the bundle's own script reads them.

    Args:
        bundle: What is to answer.
        arguments: Files of images; or texts, two for each pair, or `-` for a text a line of stdin.
        file: A file of texts.

    Raises:
        DataError: There are none, or not of the kind that the bundle takes.
    """
    if bool(arguments) == (file is not None):
        raise DataError("give inputs or `--file`, one of both")
    if not bundle.takes_texts:
        if file is not None:
            raise DataError("`--file` is for texts, but this bundle takes files", "name them as arguments")
        return [Path(argument) for argument in arguments]
    if file is not None:
        return _read(bundle, file)
    try:
        texts: Iterable[Any] = bundle.script.from_arguments(arguments, bundle.runner.takes)
    except bundle.script.InputError as error:
        raise DataError(str(error)) from error
    return texts


def _read(bundle: OpenBundle, file: Path) -> Iterator[Any]:
    try:
        yield from bundle.script.read_file(file, bundle.runner.takes, bundle.runner.columns)
    except bundle.script.InputError as error:
        raise DataError(str(error)) from error


def predict(bundle: OpenBundle, inputs: Iterable[Any], *, batch_size: int = 32) -> Iterator[dict[str, Any]]:
    """Yield one answer an input, in order, as the bundle's script gives it; or `input` and `error` where unreadable.

    Raises:
        BundleError: The model cannot run.
    """
    try:
        yield from bundle.runner.answers(inputs, batch_size=batch_size)
    except bundle.script.BundleError as error:
        raise BundleError(str(error), "get the bundle again, or export it again") from error


def line(bundle: OpenBundle, answer: Mapping[str, Any], *, as_json: bool) -> str:
    """Return an answer in one line: for people, or as JSON without the scores of all labels."""
    if not bundle.takes_texts:
        shown = str(answer["input"])
        if "error" in answer:
            return f"error: {answer['error']}"  # which names the file
        return json_answer(answer) if as_json else f"{shown}  {plain_answer(answer)}"
    shown = bundle.script.plain_input(answer["input"])
    if "error" in answer:
        return f"error: {shown}: {answer['error']}"
    return json_answer(answer) if as_json else f"{plain_answer(answer)}  {shown}"


def evaluate(
    bundle: OpenBundle,
    data: Path,
    catalog: Catalog,
    *,
    split: str | None = None,
    batch_size: int = 32,
    columns: Mapping[str, Any] | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Score a bundle on labelled data, from the raw inputs.

    The data is read with the options of the data that the bundle was made of, such as the names of columns.

    Args:
        bundle: What to score.
        data: Labelled data in a format that autoft knows; its labels must be among the bundle's.
        catalog: Provides the format.
        split: `train`, `validation`, `test` or `all`; None takes the test split where the data declares one, else all.
        batch_size: Samples at once.
        columns: Options of the data that differ from those of the bundle's, such as `{"text": "review"}`.
        on_note: Hears what people should know of the data, such as rows that were left out.

    Returns:
        `split`, `samples`, `rejected` and the head's metrics by name.

    Raises:
        DataError: The data cannot be read, lacks the split, or has labels that the model does not know.
        BundleError: The model cannot run.
    """
    if split not in (None, "all", *SPLITS):
        raise DataError(f"`--split` must be one of all, {', '.join(SPLITS)}, but got {split!r}")
    raw = _load(bundle, data, catalog.detect_data(data), columns or {})
    for note in raw.notes:
        on_note(note)
    declared = {sample.split for sample in raw.samples}
    chosen = split or ("test" if "test" in declared else "all")

    def picked() -> Iterator[Sample]:
        return (sample for sample in raw.samples if chosen == "all" or sample.split == chosen)

    wanted = [sample.target for sample in picked()]
    if not wanted:
        names = ", ".join(sorted(name for name in declared if name)) or "none"
        raise DataError(f"the data has no {chosen} split; it declares {names}", "use `--split all`")
    targets = _targets(bundle, wanted)
    encoded = bundle.head.encode(wanted, targets)
    try:
        outputs = _outputs(bundle, picked(), batch_size)
    except bundle.script.BundleError as error:
        raise BundleError(str(error), "get the bundle again, or export it again") from error
    except (OSError, ValueError) as error:  # the script's own error is a ValueError; a head's script may have any
        raise DataError(f"the data was readable a moment ago, but is not any more: {error}", "try again") from error
    metrics = bundle.head.metrics(outputs, encoded, targets)
    return {"split": chosen, "samples": len(wanted), "rejected": len(raw.rejected), **metrics}


def _load(bundle: OpenBundle, data: Path, format: DataFormat, columns: Mapping[str, Any]) -> RawData:
    """Read data with those of the bundle's options that its format takes, and those given."""
    for name in columns:
        if name not in format.options:
            raise DataError(f"`--{name}` is for tables, but {data} is read as {format.name}", "leave it out")
    recorded = {**bundle.contract.get("columns", {}), "task": bundle.contract["task"]}
    options = {name: value for name, value in recorded.items() if name in format.options and name not in OF_OTHER_DATA}
    return format.load(data, {"max_rejected": 0.01, "for_training": False, **options, **columns})


def _targets(bundle: OpenBundle, wanted: Sequence[Any]) -> Targets:
    """Return the bundle's targets, with counts of this data where they are of classes."""
    labels = tuple(bundle.contract["labels"])
    values = {name: tuple(numbers) for name, numbers in bundle.contract.get("values", {}).items()}
    if bundle.contract.get("answer", "label") in ("values", "mask"):
        return Targets(labels, values=values)
    counts = Counter(label for target in wanted for label in ([target] if isinstance(target, str) else target))
    return Targets(labels, tuple(max(1, counts[label]) for label in labels), values)


def _outputs(bundle: OpenBundle, samples: Iterator[Sample], batch_size: int) -> Rows:
    """Return the logits of all samples, whose raw content is held some at a time."""
    import torch

    from autoft.ragged import Ragged

    rows: list[Any] = []
    while sources := [sample.source for sample in islice(samples, CHUNK)]:
        found = bundle.runner.outputs(sources, batch_size=batch_size)
        rows += [torch.from_numpy(row) for row in found] if isinstance(found, list) else [torch.from_numpy(found)]
        words = isinstance(found, list)
    return Ragged.of(rows) if words else torch.cat(rows)
