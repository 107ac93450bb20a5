"""Uses a bundle from autoft: answers for files, and metrics on labelled data, always through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.catalog import Catalog
from autoft.errors import BundleError, DataError
from autoft.export.contract import read_contract
from autoft.export.script import load_script, runtime_of
from autoft.specs import SPLITS, Head, Sample, Targets


@dataclass(frozen=True)
class OpenBundle:
    """A bundle whose files were checked against their hashes.

    Attributes:
        folder: Where it is.
        contract: Content of its `autoft.json`.
        head: Its task.
        runner: The runtime script's `Bundle`; the script is autoft's own copy, never the one in the folder, which could
            hold anything.
    """

    folder: Path
    contract: Mapping[str, Any]
    head: Head
    runner: Any


def open_bundle(folder: Path, catalog: Catalog) -> OpenBundle:
    """Check a bundle and load its model.

    Raises:
        BundleError: It is not a bundle, or was altered.
        PluginError: No installed plugin provides its task.
    """
    contract = read_contract(folder)
    head = catalog.head(contract["task"])
    script = load_script(runtime_of(contract, head))
    try:
        runner = script.Bundle.load(folder)
    except script.BundleError as error:
        raise BundleError(str(error), "get the bundle again, or export it again") from error
    return OpenBundle(folder, contract, head, runner)


def predict(bundle: OpenBundle, files: Sequence[Path], *, batch_size: int = 32) -> Iterator[dict[str, Any]]:
    """Yield one answer a file, in order: `input`, `label`, `score`, `scores`; or `input` and `error` where unreadable."""
    yield from bundle.runner.answers(files, batch_size=batch_size)


def evaluate(
    bundle: OpenBundle, data: Path, catalog: Catalog, *, split: str | None = None, batch_size: int = 32
) -> dict[str, Any]:
    """Score a bundle on labelled data, from the raw files.

    Args:
        bundle: What to score.
        data: Labelled data in a format that autoft knows; its labels must be among the bundle's.
        catalog: Provides the format.
        split: `train`, `validation`, `test` or `all`; None takes the test split where the data declares one, else all.
        batch_size: Samples at once.

    Returns:
        `split`, `samples`, `rejected` and the head's metrics by name.

    Raises:
        DataError: The data cannot be read, lacks the split, or has labels that the model does not know.
    """
    import torch

    if split not in (None, "all", *SPLITS):
        raise DataError(f"`--split` must be one of all, {', '.join(SPLITS)}, but got {split!r}")
    raw = catalog.detect_data(data).load(data, {"max_rejected": 0.01, "for_training": False})
    declared = {sample.split for sample in raw.samples}
    chosen = split or ("test" if "test" in declared else "all")
    samples: list[Sample] = [sample for sample in raw.samples if chosen == "all" or sample.split == chosen]
    if not samples:
        names = ", ".join(sorted(name for name in declared if name)) or "none"
        raise DataError(f"the data has no {chosen} split; it declares {names}", "use `--split all`")
    labels = tuple(bundle.contract["labels"])
    targets = Targets(labels, tuple(max(1, sum(sample.target == label for sample in samples)) for label in labels))
    encoded = bundle.head.encode([sample.target for sample in samples], targets)
    try:
        outputs, _ = bundle.runner.outputs([sample.source for sample in samples], batch_size=batch_size)
    except (OSError, ValueError) as error:  # the script's own error is a ValueError; autoft cannot import its class
        raise DataError(f"the data was readable a moment ago, but is not any more: {error}", "try again") from error
    metrics = bundle.head.metrics(torch.from_numpy(outputs), encoded, targets)
    return {"split": chosen, "samples": len(samples), "rejected": len(raw.rejected), **metrics}
