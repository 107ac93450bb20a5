"""Looks at one thing that plugins provide, for people who choose among them or write their own."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from autoft.catalog import Catalog
from autoft.errors import BackboneError, PluginError, nearest
from autoft.testing.cut_checks import cuts as find_cuts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autoft.specs import Backbone

COST_BATCH = 8
COST_TURNS = 3  # the middle one counts: other programs disturb single ones
OPTIMIZER_COPIES = 4  # of each trained weight: itself, its gradient, and AdamW's two moments


def describe(catalog: Catalog, name: str, *, cuts: bool = False, cost: bool = False) -> dict[str, Any]:
    """Return what there is to know of a backbone (`FAMILY/MODEL`), or of anything else by its name, JSON-ready.

    A backbone is built with random weights for this; nothing is downloaded.

    Args:
        catalog: What the plugins offer.
        name: What to look at.
        cuts: Whether to try at which stages of a backbone it can be cut, so that the output of the frozen ones is stored and
            training starts there (`prefix.py`). That depends on the architecture alone, not on the weights.
        cost: Whether to measure a backbone's time and memory on this machine's processor.

    Raises:
        BackboneError: The backbone is unknown.
        PluginError: No plugin provides anything of that name, or cuts are asked of something else than a backbone.
        CheckFailed: The backbone cannot be run on generated samples.
    """
    if "/" in name:
        return _backbone(catalog, name, cuts, cost)
    if cuts or cost:
        what = "cuts are" if cuts else "cost is"
        raise PluginError(f"{what} shown of a backbone, FAMILY/MODEL, but got {name!r}", f"leave out --{what.split()[0]}")
    if name in catalog.heads:
        head = catalog.heads[name]
        return {
            "kind": "head",
            "name": name,
            "help": head.help,
            "modality": head.modality,
            "features": head.features,
            "metrics": dict(head.directions),
            "knobs": {knob.name: {"default": knob.default, "help": knob.help} for knob in head.knobs},
        }
    if name in catalog.data:
        known = catalog.data[name]
        return {
            "kind": "data format",
            "name": name,
            "help": known.help,
            "modality": known.modality,
            "options": list(known.options),
        }
    if name in catalog.families:
        family = catalog.families[name]
        return {
            "kind": "backbone family",
            "name": name,
            "help": family.help,
            "modality": family.modality,
            "models": len(set(family.models())),
            "suggested": list(family.suggest(family.modality or "text", math.inf)),
        }
    if name in catalog.strategies:
        strategy = catalog.strategies[name]
        return {
            "kind": "strategy",
            "name": name,
            "help": strategy.help,
            "knobs": {knob.name: {"default": knob.default, "help": knob.help} for knob in strategy.knobs},
        }
    if name in catalog.loggers:
        logger = catalog.loggers[name]
        usable = logger.check({}) or "yes"
        return {"kind": "logger", "name": name, "help": logger.help, "usable": usable, "options": dict(logger.options)}
    names = [*catalog.families, *catalog.heads, *catalog.data, *catalog.strategies, *catalog.loggers]
    near = nearest(name, names)
    raise PluginError(
        f"no plugin provides anything named {name!r}",
        f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}; a backbone is FAMILY/MODEL",
    )


def _backbone(catalog: Catalog, name: str, cuts: bool, cost: bool) -> dict[str, Any]:
    backbone = catalog.resolve_backbone(name, weights="none")
    module = backbone.build()
    sizes = {parameter_name: parameter.numel() for parameter_name, parameter in module.named_parameters()}
    stages = backbone.stages(module)
    held = find_cuts(backbone, module) if cuts else ()
    axes, size = "N, T" if backbone.features == "sequence" else "N", backbone.feature_size(module)
    each = [f"({axes}, {size})"] if not isinstance(size, tuple) else [f"(N, {one.channels}, H/{one.stride})" for one in size]
    return {
        "kind": "backbone",
        "name": backbone.name,
        "modality": backbone.modality,
        "features": f"{backbone.features} {', '.join(each)}",
        "inputs": list(backbone.inputs),
        "parameters": sum(sizes.values()),
        **_licence(catalog, name),
        "preprocessing": backbone.preprocessing.to_dict(),
        "augmentation": list(backbone.preprocessing.policies),
        **({"cost": _cost(backbone, module)} if cost else {}),
        "stages": [
            {
                "depth": depth,
                "name": stage.name,
                "parameters": sum(sizes[parameter] for parameter in stage.parameters),
                **({"cut": held[depth - 1]} if cuts else {}),
            }
            for depth, stage in enumerate(stages, start=1)
        ],
    }


def _licence(catalog: Catalog, name: str) -> dict[str, str | None]:
    """Return licence and origin of the pretrained weights; what a hub that cannot be reached would tell is unknown."""
    try:
        pretrained = catalog.resolve_backbone(name)
    except BackboneError as error:
        return {"licence": None, "weights": f"unknown: {error.message}"}
    return {"licence": pretrained.licence, "weights": pretrained.citation}


def _cost(backbone: Backbone, module: nn.Module) -> dict[str, float | int]:
    """Measure a batch forward, and forward and backward, and count what training all of it holds in memory.

    The memory is an estimate: what autograd keeps of the batch, and four copies of the weights; no work space.
    """
    import torch

    from autoft.testing.kit import make_inputs

    inputs = make_inputs(backbone, COST_BATCH)
    weights = sum(value.nbytes for value in module.state_dict().values())
    parameters = {value.untyped_storage().data_ptr(): value.nbytes for value in module.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def train() -> None:
        features = module(*inputs)
        total = sum(each.sum() for each in (features if isinstance(features, tuple) else (features,)))
        total.backward()
        module.zero_grad(set_to_none=True)

    def infer() -> None:
        with torch.inference_mode():
            module(*inputs)

    module.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = module(*inputs)  # kept until it is counted, so that no two tensors have one address
    activations = sum(kept.values())
    del outputs
    training = _milliseconds(train)
    module.eval()
    return {
        "batch": COST_BATCH,
        "threads": torch.get_num_threads(),
        "weights_mb": round(weights / 1e6, 2),
        "activations_mb_a_sample": round(activations / COST_BATCH / 1e6, 2),
        "training_mb": round((OPTIMIZER_COPIES * sum(parameters.values()) + activations) / 1e6, 1),
        "inference_ms_a_sample": round(_milliseconds(infer) / COST_BATCH, 3),
        "training_ms_a_sample": round(training / COST_BATCH, 3),
    }


def _milliseconds(run: Callable[[], None]) -> float:
    run()  # the first makes buffers and chooses kernels
    seconds = []
    for _ in range(COST_TURNS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e3
