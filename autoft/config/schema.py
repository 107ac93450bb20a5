"""The settings of a study: their names, defaults and limits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from autoft.config.address import masked, objection
from autoft.config.document import Dumper, Loc, Place, problem_at, shown
from autoft.errors import Problem, nearest
from autoft.specs import Choice, Range

ALL = "all"
"""The word for every stage of a backbone in `space.freeze_depth`; `Range.high` says it as `math.inf`."""

SpaceEntry = Range | Choice | bool | int | float | str
"""What is searched (`Range`, `Choice`), or a fixed value."""


def _invalid(message: str, hint: str | None = None, instead: str | None = None) -> PydanticCustomError:
    """Return a validation error in our own words; `instead` names the sibling to blame where the value is a default."""
    # The message goes in as a value, not as the template: it may hold braces that the user wrote.
    return PydanticCustomError("autoft", "{message}", {"message": message, "hint": hint, "instead": instead})


_DURATION = re.compile(r"(?:([\d.]+)\s*d)?\s*(?:([\d.]+)\s*h)?\s*(?:([\d.]+)\s*m)?\s*(?:([\d.]+)\s*s?)?")
_SIZE = re.compile(r"([\d.]+)\s*(B|[kMGT]B|[KMGT]iB)", re.IGNORECASE)
_SIZE_UNITS = {"b": 1} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for unit, base in (("b", 1000), ("ib", 1024))
}
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,4})?")
NAME = re.compile(r"[^\W_][\w.-]{0,99}")


def _seconds(value: object) -> object:
    rule = "must be a time such as `90s`, `30m`, `2h` or `1h30m`"
    seconds: float
    if value is None:
        return None
    if isinstance(value, str) and value.strip() and (match := _DURATION.fullmatch(value.strip())):
        try:
            parts = [float(part) if part else 0.0 for part in match.groups()]
        except ValueError:  # "1.2.3s"
            raise _invalid(f"{rule}, but got {shown(value)}") from None
        seconds = sum(part * unit for part, unit in zip(parts, (86_400, 3_600, 60, 1), strict=True))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise _invalid(f"{rule}, but got {shown(value)}", "leave it out to search without a limit")
    if not 0 < seconds < math.inf:
        raise _invalid(f"must be more than 0 seconds and finite, but got {shown(value)}")
    return seconds


def _bytes(value: object) -> object:
    rule = "must be `auto` or a size such as `4GB` or `512MiB`"
    if value == "auto":
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        try:
            size = float(match[1]) * _SIZE_UNITS[match[2].lower()]
        except ValueError:  # "1.2.3GB"
            raise _invalid(f"{rule}, but got {shown(value)}") from None
        if size < math.inf:
            return int(size)
    elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise _invalid(f"{rule}, but got {shown(value)}", "0 keeps nothing in memory")


def _auto_or_whole(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    hint = "remove the quotes" if isinstance(value, str) and value.isdecimal() else None
    raise _invalid(f"must be `auto` or a whole number of at least 1, but got {shown(value)}", hint)


def _flag_or_measured(value: object) -> object:
    if isinstance(value, bool) or value in ("auto", "probe"):
        return value
    raise _invalid(f"must be `auto`, `probe`, true or false, but got {shown(value)}")


def _columns(value: object) -> object:
    if value is None or (isinstance(value, str) and value):
        return value
    named = isinstance(value, list) and value and all(isinstance(name, str) and name for name in value)
    if named and len(set(value)) == len(value):  # type: ignore[call-overload, arg-type]
        return tuple(value)  # type: ignore[arg-type]
    raise _invalid(f"must be the name of a column, or a list of different names, but got {shown(value)}")


def _one_or_two_columns(value: object) -> object:
    columns = _columns(value)
    if isinstance(columns, tuple) and len(columns) != 2:
        raise _invalid(f"must be the name of a column, or two for pairs of texts, but got {shown(value)}")
    return columns


def _device(value: object) -> object:
    if isinstance(value, str) and _DEVICE.fullmatch(value):
        return value
    raise _invalid(
        f"must be `auto`, `cpu`, `cuda`, `cuda:N` or `mps`, but got {shown(value)}",
        "`autoft doctor` lists the devices of this machine",
    )


def _workers(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise _invalid(
        f"must be `auto` or a whole number of at least 0, but got {shown(value)}",
        "0 trains in the process of the search itself",
    )


def _devices(value: object) -> object:
    names = value.split(",") if isinstance(value, str) and "," in value else value
    if names in ("auto", "all"):
        return names
    if isinstance(names, str):
        names = [names]
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        found = tuple(name.strip() for name in names)
        if len(set(found)) == len(found) and all(_DEVICE.fullmatch(name) and name != "auto" for name in found):
            return found
    raise _invalid(
        f"must be `auto`, `all`, or a list of different devices such as `[cuda:0, cuda:1]`, but got {shown(value)}",
        "`autoft doctor` lists the devices of this machine",
    )


def _variants(value: object) -> object:
    named = [value] if isinstance(value, str) else value
    if isinstance(named, list | tuple) and all(name in ("fp16", "int8") for name in named):
        return tuple(dict.fromkeys(named))
    raise _invalid(
        f"must be a list of `fp16` and `int8`, but got {shown(value)}", "`[int8]` adds an int8 graph to the bundle"
    )


def _loggers(value: object) -> object:
    """Check what `expand` has written out: a mapping from each logger to its options."""
    if isinstance(value, dict) and all(options is None or isinstance(options, dict) for options in value.values()):
        return {name: options or {} for name, options in value.items()}
    raise _invalid(
        f"must be a list of loggers, or a mapping from each to its options, but got {shown(value)}",
        "such as `logging: [tensorboard]`",
    )


def _storage(value: object) -> object:
    if value is None:
        return value
    if not isinstance(value, str):
        raise _invalid(f"must be a URL such as `postgresql://USER@HOST/DATABASE`, but got {shown(value)}")
    wrong = objection(value)
    if wrong is not None:
        raise _invalid(*wrong)
    return value


def _objectives(value: object) -> object:
    named = [value] if isinstance(value, str) else value
    if (
        isinstance(named, list | tuple)
        and "metric" in named
        and len(set(map(str, named))) == len(named)
        and all(name in OBJECTIVES for name in named)
    ):
        return tuple(named)
    raise _invalid(
        f"must be a list of `metric` and any of `latency` and `size`, but got {shown(value)}",
        "`[metric, latency]` asks for the models that are best for their latency",
    )


def _name(value: object) -> object:
    if isinstance(value, str) and not NAME.fullmatch(value):
        raise _invalid(
            "must be at most 100 letters, digits, `.`, `_` or `-`, and begin with a letter or digit, "
            f"but got {shown(value)}",
            "it names the run folder",
        )
    return value


OBJECTIVES = ("metric", "latency", "size")
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]
# NumPy and scikit-learn take seeds of 32 bits.
Seed = Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)]


class Section(BaseModel):
    """A part of a study file: cannot be changed, and takes no unknown settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Section):
    """Where the samples come from, and how they are split.

    Attributes:
        path: File or folder of the data, in a study file from its folder on, and absolute once it is loaded; or
            `hf://datasets/OWNER/NAME` on the Hugging Face hub.
        plugin: Name of the data format, or None to detect it.
        text: Of a table, the column of the texts, or two columns of text pairs; None to find it.
        image: Of a table, the column of the images' paths, relative to the table; None to find it.
        label: Of a table, the column of the labels, or a list of columns of zeros and ones, one a label; None to find it.
        delimiter: Of a table, what separates several labels in one cell; None where a cell is one label.
        group: Of a table, a column whose equal values stay in one split, such as an author; None for none.
        split: Of a table, the column that names each row's split; None to take a column named `split` where there is one.
        validation: A file of validation samples beside `path`.
        test: A file of test samples beside `path`.
        subset: Name of a data set's configuration on the hub, such as `sst2`.
        validation_share: Share of the samples to validate on, where the data declares no such split.
        test_share: Share of the samples scored once at the end, where the data declares no such split.
        max_rejected: Largest share of unreadable samples that is tolerated.
        split_seed: Decides which samples go where.
    """

    path: Path
    plugin: Text | None = None
    text: Annotated[str | tuple[str, str] | None, BeforeValidator(_one_or_two_columns)] = None
    image: Text | None = None
    label: Annotated[str | tuple[str, ...] | None, BeforeValidator(_columns)] = None
    delimiter: Text | None = None
    group: Text | None = None
    split: Text | None = None
    validation: Path | None = None
    test: Path | None = None
    subset: Text | None = None
    validation_share: Annotated[Number, Field(gt=0)] = 0.15
    test_share: Annotated[Number, Field(gt=0, validate_default=True)] = 0.15
    max_rejected: Annotated[Number, Field(ge=0, lt=1)] = 0.01
    split_seed: Seed = 0

    @field_validator("test_share")
    @classmethod
    def _leave_enough_to_train_on(cls, value: float, info: ValidationInfo) -> float:
        total = value + info.data.get("validation_share", 0.0)
        if not total < 0.9:
            raise _invalid(
                f"must leave more than a tenth to train on: validation_share and test_share together must be "
                f"less than 0.9, but are {total:g}",
                instead="validation_share",
            )
        return value


class BackboneConfig(Section):
    """A pretrained model to try.

    Attributes:
        name: Full name, `FAMILY/MODEL`.
        weights: `pretrained` (hub or cache), `none` (random), or the path of a local file or folder.
        image_size: Side of the square input in pixels, or None to choose by the model and the data.
        max_length: For texts, the most tokens of a sample, or None to choose by the model and the data.
    """

    name: Text
    weights: Text = "pretrained"
    image_size: Annotated[Whole, Field(ge=8)] | None = None
    max_length: Annotated[Whole, Field(ge=4)] | None = None


class PluginsConfig(Section):
    """Which plugins may take part.

    Attributes:
        allow: Names of the only plugins to load, or None for all that are installed.
        strict: Whether a broken plugin is an error rather than a warning.
    """

    allow: tuple[Text, ...] | None = None
    strict: Flag = False


class ConstraintsConfig(Section):
    """What a model may cost once deployed; measured before training, on one thread of this machine's CPU.

    Attributes:
        latency_ms: Milliseconds for one answer of the exported model, at most; None for any.
        size_mb: Megabytes of the exported model, at most; None for any.
    """

    latency_ms: Annotated[Number, Field(gt=0)] | None = None
    size_mb: Annotated[Number, Field(gt=0)] | None = None


class SearchConfig(Section):
    """How long to search, and for what.

    Attributes:
        trials: Trials at most.
        time_limit: Seconds at most, over all sessions of the run; None for no limit.
        metric: The metric to optimize, or None for the task's own choice.
        objectives: What counts beside the metric, of `latency` and `size`: then each backbone is searched by itself, and the
            result has the front of those that are best for their cost.
        constraints: Backbones that cost more are left out before they are trained.
        space: What is searched of all that `space` does not name: `small` for what matters in most cases, or `full` for
            every well-founded method that fits.
        seed: Decides the sampler and the training of every trial.
        prune: Whether trials that fall behind are stopped early.
        probe: Whether linear and nearest-neighbour probes of the candidate backbones come first.
        reuse: Whether outputs of frozen stages are computed once and kept, where that changes nothing.
        seeds: Seeds over which the best trials and the preset are confirmed; 1 for no confirmation.
        confirm: How many of the best trials are confirmed, beside the preset.
        soup: Whether averages of trained weights are tried where they fit together; one is taken only if it scores better.
        workers: Processes that train at the same time; 0 for none beside the search itself. `auto` is one for each core of a
            CPU (8 at most, and as memory allows), and one for each of several devices.
        devices: Where they train: `auto` is `trainer.device`, `all` is every GPU, or a list such as `[cuda:0, cuda:1]`.
        storage: URL of a database that keeps the trials, of PostgreSQL or SQLite; None for a file in the run folder.
    """

    trials: Annotated[Whole, Field(ge=1)] = 20
    time_limit: Annotated[float | None, BeforeValidator(_seconds)] = None
    metric: Text | None = None
    objectives: Annotated[tuple[Literal["metric", "latency", "size"], ...], BeforeValidator(_objectives)] = ("metric",)
    constraints: ConstraintsConfig = ConstraintsConfig()
    space: Literal["small", "full"] = "small"
    seed: Seed = 0
    prune: Flag = True
    probe: Flag = True
    reuse: Flag = True
    seeds: Annotated[Whole, Field(ge=1)] = 3
    confirm: Annotated[Whole, Field(ge=1)] = 3
    soup: Flag = True
    workers: Annotated[int | Literal["auto"], BeforeValidator(_workers)] = "auto"
    devices: Annotated[tuple[str, ...] | Literal["auto", "all"], BeforeValidator(_devices)] = "auto"
    storage: Annotated[str | None, BeforeValidator(_storage), Field(repr=False)] = None


class TrainerConfig(Section):
    """How a trial trains; what is searched stands in `space`.

    Attributes:
        epochs: Passes over the training split, at most; `auto` is 4 for texts and 10 for images, up to 40 for few of them.
        batch_size: Samples an optimizer step, or `auto`.
        precision: Number format of the forward pass; `auto` measures on CUDA if a lower one pays, `probe` on any device.
        optimizer: `adamw` or `sgd`.
        momentum: Momentum of `sgd`; `adamw` ignores it.
        augmentation: Name of one of the backbone's augmentation policies; `auto` is `light` where there is one.
        patience: Epochs without a better score after which a trial stops, or None to train them all.
        warmup: Share of the steps over which the learning rate rises.
        gradient_clip: Largest gradient norm, or None for no limit.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        memory: Bytes of decoded data held in memory at most, or `auto`.
        group_by_length: Whether texts of similar length share a step; `false` for steps drawn by chance alone.
        compile: Whether training steps are compiled; `auto` measures on CUDA whether that pays, `probe` on every device.
    """

    epochs: Annotated[int | Literal["auto"], BeforeValidator(_auto_or_whole)] = "auto"
    batch_size: Annotated[int | Literal["auto"], BeforeValidator(_auto_or_whole)] = "auto"
    precision: Literal["auto", "probe", "fp32", "bf16", "fp16"] = "auto"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    augmentation: Text = "auto"
    patience: Annotated[Whole, Field(ge=1)] | None = None
    warmup: Annotated[Number, Field(ge=0, le=0.5)] = 0.1
    gradient_clip: Annotated[Number, Field(gt=0)] | None = 1.0
    device: Annotated[str, BeforeValidator(_device)] = "auto"
    memory: Annotated[int | Literal["auto"], BeforeValidator(_bytes)] = "auto"
    group_by_length: Flag = True
    compile: Annotated[bool | Literal["auto", "probe"], BeforeValidator(_flag_or_measured)] = "auto"


class ExportConfig(Section):
    """What is exported, and how far it may be from the trained model.

    Attributes:
        max_metric_drop: Largest loss of the metric over the validation split.
        max_output_difference: Largest difference of any output.
        refit: Whether the winner is trained once more, on the training and the validation split together.
        quantize: Smaller or faster graphs that the bundle is to have too, of `fp16` and `int8`; one that loses too much is
            left out, and the bundle says so.
        max_quantized_drop: How much of the metric such a graph may lose on the validation split.
        golden: Validation samples that go into the bundle, to check any runtime with; 0 where they are not to be passed on.
    """

    max_metric_drop: Annotated[Number, Field(ge=0)] = 0.001
    max_output_difference: Annotated[Number, Field(gt=0)] = 0.001
    refit: Flag = False
    quantize: Annotated[tuple[Literal["fp16", "int8"], ...], BeforeValidator(_variants)] = ()
    max_quantized_drop: Annotated[Number, Field(ge=0)] = 0.005
    golden: Annotated[Whole, Field(ge=0, le=1000)] = 8


LoggingOptions = dict[str, dict[Text, bool | int | float | str]]


class StudyConfig(Section):
    """A whole study, validated; made by `load_study` or `study_from_data`.

    Two are equal if all their settings are, wherever they were read from.

    Attributes:
        name: Names the run folder; the data folder's name where the study gives none.
        data: Where the samples come from.
        task: Name of the head, or None to take the one that the data suggests.
        backbones: Models to try; if empty, the families suggest one.
        plugins: Which plugins may take part.
        space: What is searched or fixed, by name. A plain value is fixed. In a `Range`, `integer` is set for
            `freeze_depth` alone, because only the owner of another setting knows whether it takes whole numbers, and
            `high` is `math.inf` for `all`. A fixed `freeze_depth` and its choices say it as `"all"`.
        search: How long to search, and for what.
        trainer: How a trial trains.
        export: How far the exported model may be from the trained one.
        logging: Loggers that follow the search, such as `[tensorboard, mlflow]`; or by name, with options of each.
    """

    name: Annotated[str, BeforeValidator(_name)]
    data: DataConfig
    task: Text | None = None
    backbones: tuple[BackboneConfig, ...] = ()
    plugins: PluginsConfig = PluginsConfig()
    space: dict[str, SpaceEntry] = Field(default_factory=dict)
    search: SearchConfig = SearchConfig()
    trainer: TrainerConfig = TrainerConfig()
    export: ExportConfig = ExportConfig()
    logging: Annotated[LoggingOptions, BeforeValidator(_loggers)] = Field(default_factory=dict)

    _source: str = PrivateAttr("options")
    _places: dict[Loc, Place] = PrivateAttr(default_factory=dict)

    # Source and lines are private attributes, which pydantic would compare as well.
    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if isinstance(other, StudyConfig) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # `space` is a dictionary

    @property
    def source(self) -> str:
        """The study file that this was read from, or `options` where there was none."""
        return self._source

    def problem(self, where: str, message: str, hint: str | None = None) -> Problem:
        """Return a problem found after loading, with the line of the value in the study file.

        Args:
            where: Dotted path of the value, such as `backbones.0.weights`.
            message: Rule, then value.
            hint: What to do next.
        """
        return problem_at(self._places, tuple(where.split(".")), message, hint)

    def to_yaml(self) -> str:
        """Return the resolved study as a study file: absolute paths, every default, no password of a storage."""
        return "# The resolved study, as autoft understood it.\n" + yaml.dump(
            self.plain(), Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=10_000
        )

    def with_storage(self, url: str | None) -> StudyConfig:
        """Return the study with its trials elsewhere: at a URL, or in the run folder for None."""
        return self.model_copy(update={"search": self.search.model_copy(update={"storage": url})})

    def identity(self) -> dict[str, Any]:
        """Return what decides whether a run folder belongs to this study, JSON-ready.

        Budget, workers, storage and loggers are not part of it: a run may be continued with more trials, more time, on more
        devices, with its trials at another place, or followed by others.
        """
        plain = self.plain()
        for other in ("trials", "time_limit", "workers", "devices", "storage"):
            del plain["search"][other]
        del plain["logging"]
        return plain

    def plain(self) -> dict[str, Any]:
        """Return all settings as a study file writes them, but for the password of a storage."""
        plain = self.model_dump(mode="json", exclude={"space"})
        if self.search.storage is not None:
            plain["search"]["storage"] = masked(self.search.storage)
        plain["space"] = {name: plain_entry(entry) for name, entry in self.space.items()}
        return plain


# --- the search space -----------------------------------------------------------------------------


def _depth(value: object) -> object:
    if value == ALL or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise _invalid(f"must be a whole number of stages or `all`, but got {shown(value)}")


def _depth_or_infinity(value: object) -> object:
    return math.inf if _depth(value) == ALL else value


def _scalar(value: object) -> object:
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise _invalid(f"must be text, a finite number, or true or false, but got {shown(value)}")


def _choices(value: object) -> object:
    if not isinstance(value, list) or not value:
        got = "an empty one" if value == [] else shown(value)
        raise _invalid(f"must be a list of values, but got {got}", "such as `choices: [0.0, 0.1]`")
    seen = set()
    for item in value:
        if _scalar(item) in seen:
            raise _invalid(f"must all be different, but {shown(item)} is listed twice")
        seen.add(item)
    return value


class RangeEntry(Section):
    """A number to search, as a study file writes it."""

    low: Number
    high: Number
    log: Flag = False
    or_zero: Flag = False

    @field_validator("high")
    @classmethod
    def _exceed_low(cls, high: float, info: ValidationInfo) -> float:
        low = info.data.get("low")
        if low is not None and not low < high:
            raise _invalid(f"must be more than `low`, which is {low:g}, but got {high:g}")
        return high

    @field_validator("log")
    @classmethod
    def _need_positive_low(cls, log: bool, info: ValidationInfo) -> bool:
        low = info.data.get("low")
        if log and low is not None and low <= 0:
            raise _invalid(f"needs a `low` of more than 0, but `low` is {low:g}")
        return log


class _DepthRangeEntry(RangeEntry):
    low: Annotated[int, Field(strict=True, ge=0)]
    high: Annotated[float, BeforeValidator(_depth_or_infinity)]


class ChoiceEntry(Section):
    """Values to search, as a study file writes them."""

    choices: Annotated[tuple[bool | int | float | str, ...], BeforeValidator(_choices)]


class _DepthChoiceEntry(ChoiceEntry):
    @field_validator("choices")
    @classmethod
    def _be_depths(cls, choices: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(_depth(choice) for choice in choices)


def entry_model(name: str, raw: object) -> type[RangeEntry] | type[ChoiceEntry] | None:
    """Return the form of a mapping in `space`, judged by its keys, misspelt ones too; None if it looks like neither."""
    if not isinstance(raw, Mapping):
        return None
    is_depth = name == "freeze_depth"
    names = list(RangeEntry.model_fields)
    is_range = any(key in names for key in raw)
    if not is_range and any(nearest(key, ["choices"]) for key in raw):
        return _DepthChoiceEntry if is_depth else ChoiceEntry
    if is_range or any(nearest(key, names) for key in raw):
        return _DepthRangeEntry if is_depth else RangeEntry
    return None


def parse_entry(name: str, raw: object) -> SpaceEntry:
    """Return one entry of `space`; raises `ValidationError` or `PydanticCustomError`."""
    model = entry_model(name, raw)
    if model is not None:
        entry = model.model_validate(raw)
        if isinstance(entry, ChoiceEntry):
            return Choice(entry.choices)
        is_depth = isinstance(entry, _DepthRangeEntry)
        high = int(entry.high) if is_depth and entry.high < math.inf else entry.high
        return Range(entry.low, high, log=entry.log, integer=is_depth, or_zero=entry.or_zero)
    if raw is None or isinstance(raw, Mapping | list):
        raise _invalid(
            f"must be a value, `{{low: .., high: ..}}` or `{{choices: [..]}}`, but got {shown(raw)}",
            "values to choose from are written `{choices: [..]}`" if isinstance(raw, list) else None,
        )
    value: Any = _depth(raw) if name == "freeze_depth" else _scalar(raw)
    scalar: SpaceEntry = value
    return scalar


def plain_entry(entry: SpaceEntry) -> object:
    """Return an entry of the space as a study file writes it; the inverse of `parse_entry`."""
    if isinstance(entry, Range):
        plain = {"low": entry.low, "high": ALL if entry.high == math.inf else entry.high, "log": entry.log}
        return {**plain, "or_zero": True} if entry.or_zero else plain
    return {"choices": list(entry.values)} if isinstance(entry, Choice) else entry


SECTIONS: dict[str, type[Section]] = {
    "data": DataConfig,
    "backbones": BackboneConfig,
    "plugins": PluginsConfig,
    "search": SearchConfig,
    "trainer": TrainerConfig,
    "export": ExportConfig,
}
