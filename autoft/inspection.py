"""Looks at one thing that plugins provide, for people who choose among them or write their own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from autoft.catalog import Catalog
from autoft.errors import PluginError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autoft.specs import Backbone

MASK = "attention_mask"  # what backbones of texts call the input that is 0 at padding


def describe(catalog: Catalog, name: str, *, cuts: bool = False) -> dict[str, Any]:
    """Return what there is to know of a backbone (`FAMILY/MODEL`), family, head, data format or strategy, JSON-ready.

    A backbone is built with random weights for this; nothing is downloaded.

    Args:
        catalog: What the plugins offer.
        name: What to look at.
        cuts: Whether to try at which stages of a backbone it can be cut, so that the output of the frozen ones is stored and
            training starts there (`prefix.py`). That depends on the architecture alone, not on the weights.

    Raises:
        BackboneError: The backbone is unknown.
        PluginError: No plugin provides anything of that name, or cuts are asked of something else than a backbone.
        CheckFailed: The backbone cannot be run on generated samples.
    """
    if "/" in name:
        return _backbone(catalog, name, cuts)
    if cuts:
        raise PluginError(f"cuts are shown of a backbone, FAMILY/MODEL, but got {name!r}", "leave out --cuts")
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
        return {"kind": "data format", "name": name, "help": known.help, "modality": known.modality}
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
    names = [*catalog.families, *catalog.heads, *catalog.data, *catalog.strategies]
    near = nearest(name, names)
    raise PluginError(
        f"no plugin provides anything named {name!r}",
        f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}; a backbone is FAMILY/MODEL",
    )


def _backbone(catalog: Catalog, name: str, cuts: bool) -> dict[str, Any]:
    backbone = catalog.resolve_backbone(name, weights="none")
    module = backbone.build()
    sizes = {parameter_name: parameter.numel() for parameter_name, parameter in module.named_parameters()}
    stages = backbone.stages(module)
    held = _cuts(backbone, module) if cuts else ()
    axes, size = "N, T" if backbone.features == "sequence" else "N", backbone.feature_size(module)
    each = [f"({axes}, {size})"] if not isinstance(size, tuple) else [f"(N, {one.channels}, H/{one.stride})" for one in size]
    return {
        "kind": "backbone",
        "name": backbone.name,
        "modality": backbone.modality,
        "features": f"{backbone.features} {', '.join(each)}",
        "parameters": sum(sizes.values()),
        "preprocessing": backbone.preprocessing.to_dict(),
        "augmentation": list(backbone.preprocessing.policies),
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


def _cuts(backbone: Backbone, module: nn.Module) -> tuple[str, ...]:
    """Return for each number of frozen stages `exact`, or why the output behind them cannot be stored."""
    from autoft.prefix import find_cut
    from autoft.testing.kit import with_linear

    model = with_linear(backbone, module)
    batches, mask = _two_batches(backbone)
    found = []
    for depth in range(1, len(model.stages) + 1):
        cut, failures = find_cut(model, depth, batches, mask=mask)
        exact = cut is not None and cut.depth == depth
        found.append("exact" if exact else "refused: " + failures[0].removeprefix(f"depth {depth}: "))
    return tuple(found)


def _two_batches(backbone: Backbone) -> tuple[list[tuple[Tensor, ...]], int | None]:
    """Return batches of different sizes, and where there are texts of different lengths, and which input is their mask."""
    from autoft.testing.kit import WORDS, make_inputs

    if MASK not in backbone.inputs:
        return [make_inputs(backbone, 3), make_inputs(backbone, 2)], None
    mask = backbone.inputs.index(MASK)
    inputs = make_inputs(backbone, len(WORDS))
    order = inputs[mask].sum(dim=1).argsort(stable=True)
    batches = []
    for rows in (order[-3:], order[:2]):
        used = inputs[mask][rows].bool().any(dim=0)  # without the padding that only longer texts need
        batches.append(tuple(item[rows][:, used] for item in inputs))
    return batches, mask
