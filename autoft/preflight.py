"""Checks before the first trial what would otherwise fail after the last one: building, training, export, disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from autoft.deployed import Cost, excess, load_costs, measure, save_costs, wants_costs, worse
from autoft.errors import BackboneError, RunError, first_line
from autoft.events import Event, Listener
from autoft.export.bundle import example_inputs
from autoft.export.onnx import to_onnx
from autoft.layers import Trait, traits
from autoft.loading import RaggedData
from autoft.model import FineTuneModel
from autoft.prepare import Prepared, wanted_strategies
from autoft.specs import Backbone
from autoft.train import TrainConfig
from autoft.worker import Worker

KEPT_TRIALS = 4  # the preset and the best three keep their weights
MOST_RESTING = 8  # trials that rest at one rung and keep their checkpoints, at most
SPARE_BYTES = 64 << 20
MANY_TEXTS = 50_000  # from which tokenization takes so long that it is worth a line


@dataclass(frozen=True)
class Checked:
    """What the preflight found, a value for each backbone.

    Attributes:
        stages: Numbers of stages.
        parameters: Numbers of parameters.
        export_seconds: How long the slowest export took; the time limit keeps that much back.
        traits: What each backbone has that some settings need.
        costs: What each backbone costs once deployed; None where nobody asks.
    """

    stages: tuple[int, ...]
    parameters: tuple[int, ...]
    export_seconds: float
    traits: tuple[frozenset[Trait], ...]
    costs: tuple[Cost, ...] | None = None

    def of(self, places: Sequence[int]) -> Checked:
        """Return what was found of some of the backbones."""
        return Checked(
            stages=tuple(self.stages[place] for place in places),
            parameters=tuple(self.parameters[place] for place in places),
            export_seconds=self.export_seconds,
            traits=tuple(self.traits[place] for place in places),
            costs=None if self.costs is None else tuple(self.costs[place] for place in places),
        )


def preflight(prepared: Prepared, worker: Worker, run: Path, listener: Listener, *, export: bool) -> Checked:
    """Build every backbone, run a real batch through it, and export it once.

    Args:
        prepared: The study.
        worker: Will run the trials.
        run: The run folder, whose disk must hold what the search writes.
        listener: Hears of each backbone.
        export: Whether to try the export; a resumed run has done it.

    Raises:
        BackboneError: A backbone cannot be built, or not be run on the data.
        ExportError: A backbone cannot be exported.
        RunError: The disk is too small for the first trials, or no backbone meets the study's constraints.
    """
    costs = load_costs(run)
    measures = costs is None and wants_costs(prepared.config.search)
    export = export or measures
    measured: list[tuple[str, Cost]] = []
    knobs = {knob.name: knob.default for knob in prepared.objective.head.knobs}
    config = TrainConfig(learning_rate=0.0, epochs=1, batch_size=2, knobs=knobs)
    stages, parameters, found, slowest = [], [], [], 0.0
    for backbone in prepared.backbones:
        started = time.monotonic()
        model = _build(prepared, worker, backbone, config)
        validation = worker.data("validation", backbone)
        inputs = example_inputs(validation, backbone)
        try:
            with torch.no_grad():
                outputs = model(*inputs)
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            shapes = ", ".join(str(tuple(item.shape)) for item in inputs)
            raise BackboneError(
                f"{backbone.name} cannot take inputs of {shapes}: {first_line(error)}",
                "choose another `image_size`, or leave it out",
            ) from error
        wanted = (*inputs[0].shape[: 2 if backbone.features == "sequence" else 1], len(prepared.objective.targets.labels))
        given = tuple(outputs.shape)
        if (given[:2] if backbone.features == "maps" else given) != wanted:
            raise BackboneError(f"{backbone.name} must give outputs of {wanted}, but gives {given}")
        count = sum(parameter.numel() for parameter in model.parameters())
        if export:
            proto = _export(prepared, backbone, model, inputs)
            slowest = max(slowest, time.monotonic() - started)
        others = _check_strategies(prepared, worker, backbone, config, inputs, export=export)
        if measures:
            named = dict(zip(backbone.inputs, (item.numpy() for item in inputs), strict=True))
            measured.append((backbone.public_name, reduce(worse, (measure(graph, named) for graph in (proto, *others)))))
        stages.append(len(model.stages))
        found.append(traits(model.backbone))
        parameters.append(count)
        lengths = _tokenized(prepared, worker, backbone, listener)
        size = "x".join(map(str, backbone.image_size)) if backbone.image_size else _length(backbone)
        listener(
            Event(
                "preflight",
                f"{backbone.public_name}: {count / 1e6:.2f} million parameters in {len(model.stages)} stages and a head"
                + (f", input {size}" if size else "")
                + f", weights {backbone.citation or backbone.weights}; builds{', exports' if export else ''}"
                + (f"; {_said(measured[-1][1])}" if measures else ""),
                {
                    "backbone": backbone.name,
                    "weights": backbone.weights,
                    "parameters": count,
                    "stages": len(model.stages),
                    "input_size": list(backbone.image_size or ()),
                    **({"tokens": lengths} if lengths else {}),
                    **(asdict(measured[-1][1]) if measures else {}),
                    "seconds": round(time.monotonic() - started, 3),
                },
            )
        )
        _tell_cut(prepared, backbone, lengths, listener)
    if measures:
        save_costs(run, measured)
        costs = tuple(cost for _, cost in measured)
    _leave_out(prepared, costs, listener)
    _check_disk(prepared, run, max(parameters), listener)
    return Checked(tuple(stages), tuple(parameters), slowest, tuple(found), costs)


def _build(prepared: Prepared, worker: Worker, backbone: Backbone, config: TrainConfig) -> FineTuneModel:
    """Build a backbone and a head for the first time: where the backbone is broken, its plugin is named."""

    def build() -> FineTuneModel:
        try:
            return worker.build(backbone, config).eval()
        except torch.OutOfMemoryError as error:
            raise BackboneError(
                f"{backbone.name} does not fit into the memory of {prepared.device}: {first_line(error)}",
                "choose a smaller backbone",
            ) from error

    return prepared.catalog.call_backbone(backbone, "build", build)


def _export(prepared: Prepared, backbone: Backbone, model: FineTuneModel, inputs: tuple[Tensor, ...]) -> onnx.ModelProto:
    head = prepared.objective.head
    return to_onnx(
        model,
        head.activation,
        inputs,
        input_names=backbone.inputs,
        labels=prepared.objective.targets.labels,
        scores=head.scores,
        lengths=backbone.preprocessing.ragged,
    )


def _said(cost: Cost) -> str:
    return f"{cost.latency_ms:.3g} ms an answer on one thread, {cost.size_mb:.3g} MB"


def _leave_out(prepared: Prepared, costs: Sequence[Cost] | None, listener: Listener) -> None:
    """Say which backbones cost more than the study allows; refuse a study of which none is left."""
    search, told = prepared.config.search, []
    for backbone, cost in zip(prepared.backbones, costs or (), strict=False):
        if found := excess(cost, search):
            told.append(f"{backbone.public_name}: {', and '.join(found)}")
            data = {"backbone": backbone.name, "left_out": True, **asdict(cost)}
            listener(Event("preflight", f"left out: {told[-1]}", data))
    if len(told) == len(prepared.backbones):
        raise RunError(
            f"no backbone meets `search.constraints`: {'; '.join(told)}",
            "allow more, or name smaller backbones; `autoft plugins presets` lists some, the smallest as `fast`",
        )


def _check_strategies(
    prepared: Prepared, worker: Worker, backbone: Backbone, config: TrainConfig, inputs: tuple[Tensor, ...], *, export: bool
) -> list[onnx.ModelProto]:
    """Check that each strategy which the study tries can train a backbone; return what exporting each leaves."""
    graphs = []
    for strategy in wanted_strategies(prepared.config, prepared.catalog):
        why = strategy.check(backbone, backbone.build())
        if why is not None:
            raise BackboneError(
                f"{backbone.name} cannot be trained with {strategy.name}: {why}",
                f"take {strategy.name} out of `space.strategy`, or choose another backbone",
            )
        knobs = {**config.knobs, **{knob.name: knob.default for knob in strategy.knobs}}
        model = worker.build(backbone, replace(config, strategy=strategy.name, knobs=knobs), finished=True).eval()
        with torch.no_grad():
            model(*inputs)
        if export:
            graphs.append(_export(prepared, backbone, model, inputs))
    return graphs


def _tokenized(prepared: Prepared, worker: Worker, backbone: Backbone, listener: Listener) -> dict[str, dict[str, int]]:
    """Decode samples that differ in length, which every trial needs; return how long those of each split are, in tokens.

    Lengths are those that the model sees: of samples that are `cut`, what is left. Empty for samples of one size.
    """
    if not backbone.preprocessing.ragged:
        return {}
    total = sum(map(len, prepared.samples.values()))
    if total >= MANY_TEXTS:
        listener(
            Event("preflight", f"turning {total} texts into tokens for {backbone.public_name}", {"backbone": backbone.name})
        )
    found = {}
    for split in prepared.samples:
        data = worker.data(split, backbone)
        if not isinstance(data, RaggedData):
            raise TypeError(f"{backbone.name} has a ragged preprocessing, but its {split} split is of one size")
        median, most, longest = np.percentile(data.tokens.lengths, (50, 95, 100), method="higher").tolist()
        found[split] = {"median": int(median), "most": int(most), "longest": int(longest), "cut": data.cut}
    return found


def _tell_cut(prepared: Prepared, backbone: Backbone, lengths: Mapping[str, Mapping[str, int]], listener: Listener) -> None:
    """Say how many samples are too long for a backbone."""
    total = sum(map(len, prepared.samples.values()))
    cut = {split: found["cut"] for split, found in lengths.items()}
    if not any(cut.values()):
        return
    longest = backbone.preprocessing.to_dict()["max_length"]
    at_limit = longest == getattr(backbone.preprocessing, "limit", None)
    why = "it takes no more" if at_limit else "`max_length` of the backbone decides"
    listener(
        Event(
            "warning",
            f"{sum(cut.values())} of {total} texts ({sum(cut.values()) / total:.1%}) are longer than {longest} tokens for "
            f"{backbone.public_name} and are cut; {why}",
            {"about": "cut", "backbone": backbone.name, "max_length": longest, "cut": cut},
        )
    )


def _length(backbone: Backbone) -> str:
    longest = backbone.preprocessing.to_dict().get("max_length")
    return f"up to {longest} tokens" if longest is not None else ""


def _check_disk(prepared: Prepared, run: Path, parameters: int, listener: Listener) -> None:
    """Refuse a disk on which not even the first trials fit; warn of one that the whole search may fill."""
    weights, search = 4 * parameters, prepared.config.search
    free = shutil.disk_usage(run).free
    # a checkpoint holds weights and two moments and is written beside the old one; trials and the bundle keep weights
    least = weights * (2 * 3 + 2 + KEPT_TRIALS + 2 * 2) + SPARE_BYTES
    if free < least:
        raise RunError(
            f"the search needs about {least / 1e9:.2f} GB of disk, but {run} has {free / 1e9:.2f} GB free",
            "free some space, or choose a folder on another disk with -o",
        )
    resting = min(search.trials // 3, MOST_RESTING) * 4 if search.prune else 0
    confirmed = (search.confirm + 1) * search.seeds if search.seeds > 1 else 0
    most = least + weights * (resting + confirmed)
    if free < most:
        listener(
            Event(
                "warning",
                f"the search may take up to {most / 1e9:.1f} GB of disk, and {run} has {free / 1e9:.1f} GB free; when "
                "that is full it stops, and goes on once there is more",
                {"about": "disk", "bytes": most, "free": free},
            )
        )
