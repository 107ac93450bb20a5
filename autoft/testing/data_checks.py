"""The conformance checks of data formats and of backbone families: on an example that the format can read, and by name."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autoft.errors import BackboneError, DataError, first_line
from autoft.specs import SPLITS, BackboneFamily, BackboneRequest, DataFormat, RawData, Sample
from autoft.testing.kit import CheckFailed

OPTIONS = {"max_rejected": 0.01, "for_training": True}


def check_detect(format: DataFormat, example: Path) -> None:
    """Check that a format claims its example, and neither an empty folder, a text file, nor what is not there.

    Raises:
        CheckFailed: It does not claim the one, claims another, or raises.
    """
    if format.detect(example) is not True:
        raise CheckFailed(
            f"{format.name}: `detect` must return True for the example {example}, but does not",
            "return a bool; or name another example",
        )
    with tempfile.TemporaryDirectory(prefix="autoft-check-") as folder:
        empty, notes = Path(folder) / "empty", Path(folder) / "notes.txt"
        empty.mkdir()
        notes.write_text("no labelled samples here\n", encoding="utf-8")
        for path, what in (
            (empty, "an empty folder"),
            (notes, "a file of notes"),
            (empty / "gone", "a path that is not there"),
        ):
            try:
                claimed = format.detect(path)
            except Exception as error:
                raise CheckFailed(
                    f"{format.name}: `detect` must answer for any path, but fails for {what}: {first_line(error)}",
                    "return False for what is not of the format",
                ) from error
            if claimed:
                raise CheckFailed(
                    f"{format.name}: `detect` must claim its own kind alone, but claims {what}",
                    "look for what only this format has, such as the names of columns",
                )


def check_samples(format: DataFormat, example: Path) -> None:
    """Check that what `load` gives is whole: samples with ids, contents, known splits; the same in each pass.

    Raises:
        CheckFailed: Names the first sample that is not.
    """
    raw = _load(format, example)
    samples = list(raw.samples)
    if not samples or len(samples) != len(raw.samples):
        raise CheckFailed(
            f"{format.name}: `samples` must be a sequence of at least one sample, but has {len(raw.samples)} by `len` and "
            f"{len(samples)} in a pass"
        )
    if samples != [raw.samples[place] for place in range(len(samples))]:
        raise CheckFailed(f"{format.name}: samples must be the same in a pass and by their place, but are not")
    ids: set[str] = set()
    for place, sample in enumerate(samples):
        problem = _problem(sample, ids)
        if problem:
            raise CheckFailed(f"{format.name}: {problem}, but sample {place} is {_shown(sample)}")
        ids.add(sample.id)
    for name in ("modality", "task", "fingerprint"):
        if not isinstance(getattr(raw, name), str) or not getattr(raw, name):
            raise CheckFailed(f"{format.name}: `{name}` must be a word, but is {getattr(raw, name)!r}")
    if format.modality not in (None, raw.modality):
        raise CheckFailed(
            f"{format.name}: the data must be of the format's modality, {format.modality}, but is {raw.modality}"
        )


def check_loads_again(format: DataFormat, example: Path) -> None:
    """Check that loading twice gives the same, and that scoring's options are taken.

    Raises:
        CheckFailed: What differs.
    """
    first, second = _load(format, example), _load(format, example)
    for name in ("fingerprint", "modality", "task", "rejected", "found", "notes"):
        if getattr(first, name) != getattr(second, name):
            raise CheckFailed(
                f"{format.name}: loading twice must give the same, but `{name}` differs: {getattr(first, name)!r:.100} and "
                f"{getattr(second, name)!r:.100}",
                "sort what a folder lists, and draw no random numbers",
            )
    if list(first.samples) != list(second.samples):
        raise CheckFailed(
            f"{format.name}: loading twice must give the same samples in the same order, but does not",
            "sort what a folder lists, and draw no random numbers",
        )
    _load(format, example, for_training=False)


def check_travels(format: DataFormat, example: Path) -> None:
    """Check that samples survive pickling: they travel to workers.

    Raises:
        CheckFailed: They do not, or come back as others.
    """
    samples = _load(format, example).samples
    try:
        again = pickle.loads(pickle.dumps(samples, pickle.HIGHEST_PROTOCOL))
    except Exception as error:
        raise CheckFailed(
            f"{format.name}: samples must survive pickling, as they travel to workers, but do not: {first_line(error)}",
            "keep open files and functions out of `source`",
        ) from error
    if list(again) != list(samples):
        raise CheckFailed(f"{format.name}: samples must come back from pickling as they were, but are others")


def check_bad_data(format: DataFormat, example: Path) -> None:
    """Check that what cannot be read is refused by a `DataError`, not by whatever a library raises.

    Raises:
        CheckFailed: It is taken, or another exception is raised.
    """
    with tempfile.TemporaryDirectory(prefix="autoft-check-") as folder:
        bad = Path(folder) / example.name
        bad.mkdir() if example.is_dir() else bad.write_bytes(b"")
        try:
            format.load(bad, dict(OPTIONS))
        except DataError:
            return
        except Exception as error:
            raise CheckFailed(
                f"{format.name}: data that is empty must be refused by a DataError, but {type(error).__name__} is raised: "
                f"{first_line(error)}",
                "say the rule, the path and the next step",
            ) from error
    raise CheckFailed(f"{format.name}: data that is empty must be refused by a DataError, but is taken")


DATA_CHECKS: tuple[tuple[str, str, Callable[[DataFormat, Path], None]], ...] = (
    ("detect", "the format claims its example, and nothing that is empty, strange or missing", check_detect),
    ("samples", "samples have ids, contents and known splits, and are the same in each pass", check_samples),
    ("loads-again", "loading twice gives the same; the options of scoring are taken", check_loads_again),
    ("travels", "samples survive pickling", check_travels),
    ("bad-data", "what is empty is refused by a `DataError`", check_bad_data),
)


# --- families ---------------------------------------------------------------------------------------


def check_names(family: BackboneFamily) -> None:
    """Check that a family tells its models, and suggests such as it can resolve, within the limit.

    Raises:
        CheckFailed: Names what it does not know itself.
    """
    models = list(family.models())
    wrong = [model for model in models if not isinstance(model, str) or not model]
    if wrong:
        raise CheckFailed(f"{family.name}: `models` must give names, but gives {wrong[0]!r}")
    for modality in _modalities(family):
        if family.suggest(modality, 0.0):
            raise CheckFailed(
                f"{family.name}: `suggest` must keep to the limit, but suggests {family.suggest(modality, 0.0)[0]} where at "
                "most 0 million parameters are allowed"
            )
        for name in family.suggest(modality, float("inf")):
            if not name.startswith(f"{family.name}/"):
                raise CheckFailed(f"{family.name}: suggestions must be named {family.name}/MODEL, but one is {name!r}")
            model = name.partition("/")[2]
            if models and model.partition(".")[0] not in {known.partition(".")[0] for known in models}:
                raise CheckFailed(f"{family.name}: suggestions must be among `models`, but {model} is not")


def check_unknown_model(family: BackboneFamily) -> None:
    """Check that a model that is not there is refused by a `BackboneError` with a next step.

    Raises:
        CheckFailed: It is resolved, or another exception is raised.
    """
    try:
        family.resolve(BackboneRequest("no-such-model-5d1f", weights="none"))
    except BackboneError as error:
        if not error.hint:
            raise CheckFailed(
                f"{family.name}: the refusal of an unknown model must have a hint, but has none: {error.message}",
                "name the nearest models, by `autoft.errors.nearest`",
            ) from error
        return
    except Exception as error:
        raise CheckFailed(
            f"{family.name}: an unknown model must be refused by a BackboneError, but {type(error).__name__} is raised: "
            f"{first_line(error)}"
        ) from error
    raise CheckFailed(f"{family.name}: an unknown model must be refused by a BackboneError, but is resolved")


FAMILY_CHECKS: tuple[tuple[str, str, Callable[[BackboneFamily], None]], ...] = (
    ("names", "models and suggestions are names that the family knows, within the limit", check_names),
    ("unknown-model", "a model that is not there is refused with a next step", check_unknown_model),
)


def smallest(family: BackboneFamily) -> list[str]:
    """Return the full name of the least of the suggested models, for each modality."""
    suggested = [family.suggest(modality, float("inf")) for modality in _modalities(family)]
    return [names[-1] for names in suggested if names]


def _modalities(family: BackboneFamily) -> Sequence[str]:
    return ("image", "text") if family.modality is None else (family.modality,)


def _load(format: DataFormat, example: Path, **changes: Any) -> RawData:
    try:
        raw = format.load(example, {**OPTIONS, **changes})
    except DataError as error:
        raise CheckFailed(
            f"{format.name}: the example must be readable, but is refused: {error.message}", error.hint
        ) from error
    if not isinstance(raw, RawData):
        raise CheckFailed(f"{format.name}: `load` must return RawData, but returns a {type(raw).__name__}")
    return raw


def _shown(sample: Any) -> str:
    """Return a sample without its source, which may be a whole file."""
    if not isinstance(sample, Sample):
        return f"{sample!r:.100}"
    return f"Sample(id={sample.id!r}, content={sample.content!r:.20}, split={sample.split!r})"


def _problem(sample: Any, ids: set[str]) -> str:
    if not isinstance(sample, Sample):
        return "every sample must be an `autoft.specs.Sample`"
    if not isinstance(sample.id, str) or not sample.id or sample.id in ids:
        return "every sample must have an id of its own"
    if not isinstance(sample.content, str) or not sample.content:
        return "every sample must have a hash of its content"
    if sample.split is not None and sample.split not in SPLITS:
        return f"a split must be one of {', '.join(SPLITS)} or None"
    return ""
