"""From a study to everything a search needs: plugins, samples in splits, task, backbones; nothing is written or trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch

from autoft.catalog import Catalog
from autoft.config import HUB, Known, Objection, PluginsConfig, StudyConfig, load_study, study_from_data
from autoft.discovery import discover
from autoft.errors import AutoftError, BackboneError, ConfigError, DataError, PluginError, Problem, first_line
from autoft.events import Event, Listener
from autoft.presets import expand, is_preset, objection, resolved
from autoft.ragged import Ragged, Rows
from autoft.space import AS_SEARCHED, Searched, check_values, names
from autoft.specs import SPLITS, WHOLE, Backbone, Choice, Head, RawData, Sample, Strategy, Targets
from autoft.splits import Splits, Subset, make_splits
from autoft.train import Objective, choose_device

# Settings of a study's `data` section that only some formats take.
DATA_OPTIONS = ("text", "image", "label", "delimiter", "group", "split", "validation", "test", "subset")
FIT_SAMPLES = 2000  # training samples that preprocessing adapts to: enough for the 99.5th percentile of texts' lengths
STUDY_SUFFIXES = (".yaml", ".yml")
# Millions of parameters of a suggested backbone: what trains in minutes on some thousand samples. Of a text backbone some
# ten to a hundred millions are the vocabulary, which costs memory but no time.
SUGGESTED_MILLIONS = {"cpu": 12.0, "mps": 30.0, "cuda": 30.0}
SUGGESTED_MILLIONS_TEXT = {"cpu": 25.0, "mps": 150.0, "cuda": 200.0}


@dataclass(frozen=True)
class Prepared:
    """A study whose data was read and whose names were resolved.

    Attributes:
        config: The study; its presets of backbones give way to the models that they hold.
        catalog: What the plugins offer.
        data_format: Name of the data format.
        raw: The samples as they were found.
        splits: Which sample serves for what.
        samples: The samples of each split.
        encoded: Their encoded targets.
        objective: Task, targets and metric.
        backbones: Candidates, at least one.
        device: Where to train; of several devices the first, where also everything but trials runs.
        devices: All devices to train on, in torch's words.
        memory: Bytes that decoded samples may take.
    """

    config: StudyConfig
    catalog: Catalog
    data_format: str
    raw: RawData
    splits: Splits
    samples: Mapping[str, Sequence[Sample]]
    encoded: Mapping[str, Rows]
    objective: Objective
    backbones: tuple[Backbone, ...]
    device: torch.device
    devices: tuple[str, ...]
    memory: int


def load_config(
    target: Path, overrides: Sequence[str] = (), *, plugins: bool = True, strict: bool = False
) -> tuple[StudyConfig, Catalog]:
    """Read a study file, or take a path of data as a study of defaults, and load the plugins that it allows.

    Args:
        target: A `.yaml` file, or data.
        overrides: Options `a.b=value` that win over the file.
        plugins: Whether third-party plugins may be loaded.
        strict: Whether a broken plugin is an error.

    Raises:
        ConfigError: Lists everything that is wrong.
        PluginError: A plugin is broken, and the study or `strict` forbids that.
    """
    found: list[Catalog] = []

    def ask(section: PluginsConfig) -> Known:
        catalog = discover(enabled=plugins, allow=section.allow, strict=strict or section.strict)
        found.append(catalog)
        return known(catalog)

    is_study = target.suffix in STUDY_SUFFIXES and not target.is_dir()
    config = load_study(target, overrides, ask) if is_study else study_from_data(target, overrides, ask)
    return config, found[-1]


def known(catalog: Catalog) -> Known:
    """Return the names that a study may use."""
    strategies = tuple(catalog.strategies.values())

    def check_backbone(name: str, weights: str) -> Objection | None:
        if is_preset(name):
            return objection(name, weights)
        # a folder may hold all there is to know of the model; a missing one is a problem of its own
        local = weights not in ("pretrained", "none") and Path(weights).is_dir()
        try:
            catalog.resolve_backbone(name, weights if local else "none")
        except AutoftError as error:
            return Objection(error.message, error.hint)
        return None

    def check_space(name: str, entry: Searched) -> Objection | None:
        found = [check_values({name: entry}, head, strategies=strategies) for head in catalog.heads.values()]
        # possible as soon as one task takes it; which task it is may only be known from the data
        return Objection(found[0][0].message, found[0][0].hint) if found and all(found) else None

    return Known(
        data_plugins=frozenset(catalog.data),
        heads={name: frozenset(head.directions) for name, head in catalog.heads.items()},
        space=frozenset().union(*(names(head, strategies) for head in catalog.heads.values())),
        check_backbone=check_backbone,
        broken=tuple(str(plugin) for plugin in catalog.plugins if plugin.state == "broken"),
        check_space=check_space,
        loggers={name: frozenset(logger.options) for name, logger in catalog.loggers.items()},
    )


def wanted_strategies(config: StudyConfig, catalog: Catalog) -> tuple[Strategy, ...]:
    """Return the strategies that a study tries, in the order of the installed ones."""
    asked, known = config.space.get("strategy", WHOLE), catalog.strategies
    names = asked.values if isinstance(asked, Choice) else tuple(known) if asked == AS_SEARCHED else (asked,)
    return tuple(strategy for name, strategy in known.items() if name in names)


def prepare(config: StudyConfig, catalog: Catalog, listener: Listener) -> Prepared:
    """Read the data, split it, and resolve task and backbones.

    Args:
        config: The study.
        catalog: From `load_config`.
        listener: Hears what was found, and warnings.

    Raises:
        AutoftError: The first thing that makes the search impossible; wrong backbones are listed together.
    """
    devices = _devices(config)
    device = torch.device(devices[0])
    listener(Event("data", f"reading {_shown_path(config.data.path)}", {"path": str(config.data.path)}))
    raw, format_name = _read(config, catalog)
    head = _head(config, catalog, raw)
    splits = make_splits(
        raw.samples,
        stratify=head.stratify,
        validation_share=config.data.validation_share,
        test_share=config.data.test_share,
        seed=config.data.split_seed,
    )
    samples: dict[str, Sequence[Sample]] = {split: Subset(raw.samples, getattr(splits, split)) for split in SPLITS}
    wanted = [sample.target for sample in raw.samples]  # in one pass: a large table reads its texts in each
    by_split = {split: [wanted[index] for index in getattr(splits, split)] for split in SPLITS}
    targets = _named(head.describe(by_split["train"]), head, raw)
    encoded: dict[str, Rows] = {split: head.encode(chosen, targets) for split, chosen in by_split.items()}
    metric = config.search.metric or head.default_metric(targets)
    _check_metric(config, head, Objective(head, targets, metric), encoded["validation"])
    _check_batch_size(config, len(samples["train"]))
    config, chosen = _backbones(config, catalog, raw, head, device, listener)
    backbones = _fitted(chosen, samples["train"], config.search.seed)
    for note in raw.notes:
        listener(Event("data", note, {"about": "data"}))
    listener(_summary(raw, format_name, splits, Objective(head, targets, metric), encoded))
    for warning in splits.warnings:
        listener(Event("warning", warning, {"about": "splits", "warning": warning}))
    if raw.rejected:
        shown = "; ".join(f"{rejected.id}: {rejected.reason}" for rejected in raw.rejected[:3])
        listener(
            Event(
                "warning",
                f"{_unreadable(len(raw.rejected))} left out: {shown}",
                {"about": "rejected", "rejected": [{"id": item.id, "reason": item.reason} for item in raw.rejected]},
            )
        )
    memory = config.trainer.memory
    return Prepared(
        config=config,
        catalog=catalog,
        data_format=format_name,
        raw=raw,
        splits=splits,
        samples=samples,
        encoded=encoded,
        objective=Objective(head, targets, metric),
        backbones=backbones,
        device=device,
        devices=devices,
        memory=psutil.virtual_memory().available // 4 if memory == "auto" else int(memory),
    )


def _shown_path(path: Path) -> str:
    """Return a path as it was typed, also one on the hub, of whose two slashes pathlib makes one."""
    return str(path).replace(HUB, f"{HUB}/", 1) if str(path).startswith(HUB) else str(path)


def _named(targets: Targets, head: Head, raw: RawData) -> Targets:
    """Name predicted numbers after the columns that they were read from."""
    columns = raw.found.get("label")
    names = (columns,) if isinstance(columns, str) else tuple(columns or ())
    if head.answer != "values" or len(names) != len(targets.labels):
        return targets
    return replace(targets, labels=names)


def _unreadable(count: int) -> str:
    return "1 unreadable sample was" if count == 1 else f"{count} unreadable samples were"


def _devices(config: StudyConfig) -> tuple[str, ...]:
    wanted = config.search.devices
    if wanted == "auto":
        return (_device(config, "trainer.device", config.trainer.device),)
    if wanted == "all":
        wanted = tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
        if not wanted:
            message = "`all` means all GPUs that CUDA has, but this machine has none"
            problem = config.problem("search.devices", message, "`autoft doctor` lists the devices; `auto` takes the best")
            raise ConfigError(config.source, [problem])
    return tuple(_device(config, "search.devices", name) for name in wanted)


def _device(config: StudyConfig, where: str, wanted: str) -> str:
    try:
        return str(choose_device(wanted))
    except (RuntimeError, AssertionError) as error:
        problem = config.problem(
            where,
            f"must be a device of this machine, but got {wanted!r}: {first_line(error)}",
            "`autoft doctor` lists the devices; `auto` takes the best",
        )
        raise ConfigError(config.source, [problem]) from error


def _read(config: StudyConfig, catalog: Catalog) -> tuple[RawData, str]:
    path = config.data.path
    format_ = catalog.data_format(config.data.plugin) if config.data.plugin else catalog.detect_data(path)
    given = {name: getattr(config.data, name) for name in DATA_OPTIONS}
    options = {name: value for name, value in given.items() if value is not None}
    strange = [
        config.problem(
            f"data.{name}", f"is not a setting of {format_.name} data", "remove it, or choose another `data.plugin`"
        )
        for name in options
        if name not in format_.options
    ]
    if strange:
        raise ConfigError(config.source, strange)
    if config.task is not None and "task" in format_.options:
        options["task"] = config.task
    return format_.load(path, {"max_rejected": config.data.max_rejected, **options}), format_.name


def _head(config: StudyConfig, catalog: Catalog, raw: RawData) -> Head:
    head = catalog.head(config.task or raw.task)
    if head.modality not in (None, raw.modality):
        raise ConfigError(
            config.source,
            [config.problem("task", f"must fit {raw.modality} data, but {head.name} is for {head.modality} data")],
        )
    unknown = sorted(set(config.space) - names(head, catalog.strategies.values()))
    if unknown:
        raise ConfigError(
            config.source,
            [config.problem(f"space.{name}", f"is not a setting of the task {head.name}") for name in unknown],
        )
    return head


def _check_metric(config: StudyConfig, head: Head, objective: Objective, validation: Rows) -> None:
    metric = objective.metric
    if metric not in head.directions:
        names = ", ".join(head.directions)
        raise ConfigError(
            config.source, [config.problem("search.metric", f"must be one of {names} for {head.name}, but got {metric!r}")]
        )
    places = (1, 1) if head.features == "maps" else ()  # answers for places of an image: one, for all of it
    flat = torch.zeros((len(validation), len(objective.targets.labels), *places))
    outputs = (
        Ragged(flat[:0].new_zeros((len(validation.values), flat.shape[1])), validation.offsets)
        if isinstance(validation, Ragged)
        else flat
    )
    if metric not in head.metrics(outputs, validation, objective.targets):
        raise DataError(
            f"the metric {metric} is not defined on the validation split: it lacks some of the classes",
            "choose another `search.metric`, or put samples of every class into the validation split",
        )


def _check_batch_size(config: StudyConfig, samples: int) -> None:
    size = config.trainer.batch_size
    if size != "auto" and size > samples:
        problem = config.problem(
            "trainer.batch_size",
            f"must be at most the number of training samples, {samples}, but got {size}",
            "`auto` chooses one that fits",
        )
        raise ConfigError(config.source, [problem])


def _backbones(
    config: StudyConfig, catalog: Catalog, raw: RawData, head: Head, device: torch.device, listener: Listener
) -> tuple[StudyConfig, tuple[Backbone, ...]]:
    """Return the backbones that a study asks for, and the study with their names in place of presets."""
    if not config.backbones:
        name = _suggested(catalog, raw, device)
        listener(Event("data", f"no backbone was named; {name} is suggested for {device.type}", {"suggested": name}))
        return config, (catalog.resolve_backbone(name, typical_size=raw.typical_size, features=head.features),)
    wanted = expand(config, catalog, raw.modality, head.name)
    for preset in dict.fromkeys(each.preset for each in wanted if each.preset is not None):
        names = [each.settings.name for each in wanted if each.preset == preset]
        listener(Event("data", f"preset {preset}: {', '.join(names)}", {"preset": preset, "backbones": names}))
    backbones: list[Backbone] = []
    problems: list[Problem] = []
    missing: dict[str, list[tuple[str, AutoftError]]] = {}  # by the place of the preset
    for each in wanted:
        asked = each.settings
        try:
            backbone = catalog.resolve_backbone(
                asked.name, asked.weights, asked.image_size, raw.typical_size, head.features, asked.max_length
            )
            if each.preset is not None:
                backbone.fetch()
        except (BackboneError, PluginError) as error:
            if each.preset is not None:
                missing.setdefault(each.where, []).append((asked.name, error))
            else:
                problems.append(config.problem(each.where, error.message, error.hint))
            continue
        if backbone.modality != raw.modality:
            message = f"must take {raw.modality} data, but {asked.name} takes {backbone.modality}"
            problems.append(config.problem(each.where, message))
        elif any(_same(backbone, other) for other in backbones):
            message = f"must be listed once, but {asked.name} is repeated with the same weights and input size"
            problems.append(config.problem(each.where, message, "change its weights or image_size, or remove it"))
        backbones.append(backbone)
    problems += [_missing(config, where, failed) for where, failed in missing.items()]
    if problems:
        raise ConfigError(config.source, problems)
    return resolved(config, wanted), tuple(backbones)


def _missing(config: StudyConfig, where: str, failed: Sequence[tuple[str, AutoftError]]) -> Problem:
    """Return one problem that names all models of a preset that cannot be had; none is left out in silence."""
    listed = "".join(f"\n    {name}: {error.message}" for name, error in failed)
    count = "1 model" if len(failed) == 1 else f"{len(failed)} models"
    entry = config.backbones[int(where.removeprefix("backbones."))]
    return config.problem(
        where,
        f"every model of the preset {entry.name} must be had, but {count} cannot:{listed}\n    ",
        "connect once, or copy the Hugging Face cache here (HF_HOME); or name in `backbones` those that you have, such as "
        "`{name: timm/resnet18, weights: FOLDER}` or `transformers/./FOLDER`",
    )


def _fitted(backbones: Sequence[Backbone], samples: Sequence[Sample], seed: int) -> tuple[Backbone, ...]:
    """Adapt the backbones' preprocessing to a random choice of training samples."""
    count = min(FIT_SAMPLES, len(samples))
    rows = sorted(np.random.default_rng(seed).choice(len(samples), count, replace=False))
    sources = [samples[int(row)].source for row in rows]
    return tuple(replace(backbone, preprocessing=backbone.preprocessing.fit(sources)) for backbone in backbones)


def _same(one: Backbone, other: Backbone) -> bool:
    return (one.name, one.weights, one.image_size) == (other.name, other.weights, other.image_size)


def _suggested(catalog: Catalog, raw: RawData, device: torch.device) -> str:
    millions = SUGGESTED_MILLIONS_TEXT if raw.modality == "text" else SUGGESTED_MILLIONS
    for family in catalog.families.values():
        if family.modality in (None, raw.modality):
            for name in family.suggest(raw.modality, millions[device.type]):
                return name
    raise PluginError(
        f"no installed backbone family takes {raw.modality} data",
        "install a plugin for it; `autoft plugins` lists what is there",
    )


def _class_counts(encoded: Mapping[str, Rows], targets: Targets) -> dict[str, list[int]]:
    """Count the classes of each split, by how a head encodes them: numbers of classes, or a column a class.

    Empty where there are no classes, or where counting the training split so does not give what the head counted.
    """
    counts = {split: _counted(rows.values if isinstance(rows, Ragged) else rows, targets) for split, rows in encoded.items()}
    return counts if targets.counts and counts["train"] == list(targets.counts) else {}


def _counted(values: torch.Tensor, targets: Targets) -> list[int]:
    classes = len(targets.labels)
    if values.dim() == 2 and values.shape[1] == classes:
        return [int(count) for count in values.sum(dim=0)]
    if values.dim() == 1 and not values.is_floating_point() and (not len(values) or int(values.min()) >= 0):
        return torch.bincount(values, minlength=classes).tolist()
    return []


def _summary(raw: RawData, format_name: str, splits: Splits, objective: Objective, encoded: Mapping[str, Rows]) -> Event:
    head, targets, metric = objective.head, objective.targets, objective.metric
    counts: dict[str, int] = {split: len(getattr(splits, split)) for split in SPLITS}
    how = ", stratified" if head.stratify is not None else ""
    made = f" (autoft made {' and '.join(splits.made)}{how})" if splits.made else ""
    nouns = {"label": "classes", "labels": "labels", "values": "numbers", "entities": "tags", "mask": "classes"}
    count = len(targets.labels)
    noun = nouns[head.answer] if count != 1 else nouns[head.answer].removesuffix("s")
    what = f"{'in' if head.answer == 'label' else 'with'} {count} {noun}"
    return Event(
        "data",
        f"{format_name}: {len(raw.samples)} samples {what}: {counts['train']} train, "
        f"{counts['validation']} validation, {counts['test']} test{made}; task {head.name}, metric {metric}",
        {
            "format": format_name,
            "classes": list(targets.labels),
            "counts": list(targets.counts),
            "class_counts": _class_counts(encoded, targets),
            "typical_size": raw.typical_size,
            **counts,
            "made_splits": list(splits.made),
            "rejected": len(raw.rejected),
            "task": head.name,
            "metric": metric,
        },
    )
