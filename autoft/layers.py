"""Finds layers of a backbone by what they do: BatchNorm, stochastic depth, word embeddings; sets how often branches drop.

Nothing here knows an architecture: layers are known by their class, whichever library it is from.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from autoft.errors import BackboneError

Trait = Literal["batch_norm", "stochastic_depth", "embeddings"]

# The attribute that holds the probability: timm's and transformers' `...DropPath` have the first, torchvision's
# `StochasticDepth` the second.
_DROPPED = ("drop_prob", "p")
_SHARE = "_autoft_share"  # of the largest probability, as the backbone was built


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Return the BatchNorm layers of a module that keep running statistics, subclasses such as timm's included."""
    kinds = (nn.modules.batchnorm._BatchNorm,)  # torch has no public name for what all of them are
    return [layer for layer in module.modules() if isinstance(layer, kinds) and layer.track_running_stats]


def drop_path_layers(module: nn.Module) -> list[nn.Module]:
    """Return the layers that leave out whole residual branches in training (stochastic depth, arXiv:1603.09382)."""
    return [
        layer
        for layer in module.modules()
        if type(layer).__name__.endswith(("DropPath", "StochasticDepth")) and _attribute(layer) is not None
    ]


def set_stochastic_depth(module: nn.Module, rate: float) -> None:
    """Set how often residual branches are left out: the last one at `rate`, the others in the proportions of the build.

    Most models are built with probabilities that rise linearly from the input to the output (arXiv:1603.09382, section 3).

    Args:
        module: A backbone that was built with a rate above 0, so that it has the layers.
        rate: From 0 to below 1; 0 leaves out nothing.

    Raises:
        BackboneError: A rate above 0 for a backbone without such layers.
    """
    layers = drop_path_layers(module)
    fresh = [layer for layer in layers if not hasattr(layer, _SHARE)]
    most = max((float(_value(layer)) for layer in fresh), default=0.0)
    for layer in fresh:
        setattr(layer, _SHARE, float(_value(layer)) / most if most else 0.0)
    if rate and not any(getattr(layer, _SHARE) for layer in layers):
        raise BackboneError(
            f"`stochastic_depth` must be 0 for a backbone without layers for it, but got {rate:g}", "leave it out of `space`"
        )
    for layer in layers:
        name = _attribute(layer)
        assert name is not None
        setattr(layer, name, rate * getattr(layer, _SHARE))


def word_embeddings(module: nn.Module) -> nn.Module | None:
    """Return the layer that turns tokens into vectors `(N, T, C)`, which a backbone names by `get_input_embeddings()`."""
    ask = getattr(module, "get_input_embeddings", None)
    found = ask() if callable(ask) else None
    return found if isinstance(found, nn.Module) and isinstance(getattr(found, "weight", None), torch.Tensor) else None


def traits(module: nn.Module) -> frozenset[Trait]:
    """Return what a backbone has that some settings need."""
    found: dict[Trait, bool] = {
        "batch_norm": bool(batch_norms(module)),
        "stochastic_depth": any(_value(layer) > 0 or getattr(layer, _SHARE, 0.0) for layer in drop_path_layers(module)),
        "embeddings": word_embeddings(module) is not None,
    }
    return frozenset(name for name, has in found.items() if has)


def _attribute(layer: nn.Module) -> str | None:
    return next((name for name in _DROPPED if isinstance(getattr(layer, name, None), float | int)), None)


def _value(layer: nn.Module) -> float:
    name = _attribute(layer)
    return 0.0 if name is None else float(getattr(layer, name) or 0.0)
