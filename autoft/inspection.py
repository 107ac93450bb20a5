"""Looks at one thing that plugins provide, for people who choose among them or write their own."""

from __future__ import annotations

import math
from typing import Any

from autoft.catalog import Catalog
from autoft.errors import PluginError, nearest


def describe(catalog: Catalog, name: str) -> dict[str, Any]:
    """Return what there is to know of a backbone (`FAMILY/MODEL`), a backbone family, a head or a data format, JSON-ready.

    A backbone is built with random weights for this; nothing is downloaded.

    Raises:
        BackboneError: The backbone is unknown.
        PluginError: No plugin provides anything of that name.
    """
    if "/" in name:
        return _backbone(catalog, name)
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
    names = [*catalog.families, *catalog.heads, *catalog.data]
    near = nearest(name, names)
    raise PluginError(
        f"no plugin provides anything named {name!r}",
        f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}; a backbone is FAMILY/MODEL",
    )


def _backbone(catalog: Catalog, name: str) -> dict[str, Any]:
    backbone = catalog.resolve_backbone(name, weights="none")
    module = backbone.build()
    sizes = {parameter_name: parameter.numel() for parameter_name, parameter in module.named_parameters()}
    stages = backbone.stages(module)
    axes = "N, T" if backbone.features == "sequence" else "N"
    return {
        "kind": "backbone",
        "name": backbone.name,
        "modality": backbone.modality,
        "features": f"{backbone.features} ({axes}, {backbone.feature_size(module)})",
        "parameters": sum(sizes.values()),
        "preprocessing": backbone.preprocessing.to_dict(),
        "augmentation": list(backbone.preprocessing.policies),
        "stages": [
            {"depth": depth, "name": stage.name, "parameters": sum(sizes[parameter] for parameter in stage.parameters)}
            for depth, stage in enumerate(stages, start=1)
        ],
    }
