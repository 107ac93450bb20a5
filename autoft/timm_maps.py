"""Feature pyramids of timm models: the maps between their stages, for heads that answer for places of an image.

The models are those that `timm.py` builds; timm's own `forward_intermediates` gives the maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autoft.errors import BackboneError, first_line
from autoft.specs import FeatureMap

if TYPE_CHECKING:
    from torch import nn

MAPS = "maps"
INNER = "model"  # name of the timm model inside a pyramid
FINEST = 4  # stride: what comes before has seen little but edges, and is the largest part of the work
COARSEST = 32
LEVELS = 4  # of a model whose maps all have one stride, such as a plain vision transformer


def choose_levels(reductions: Sequence[int]) -> list[int]:
    """Choose the maps of a pyramid among those that a model gives, by their strides, in the model's order.

    The last map of each stride from `FINEST` on. Where all have one stride, four of them, evenly spaced, the last included.

    Example:
        >>> choose_levels([2, 4, 8, 16, 32])
        [1, 2, 3, 4]
        >>> choose_levels([16] * 12)
        [2, 5, 8, 11]
    """
    last = {stride: place for place, stride in enumerate(reductions) if stride >= FINEST}
    if len(last) > 1:
        return sorted(last.values())
    count = len(reductions)
    return sorted({max(0, round((number + 1) * count / LEVELS) - 1) for number in range(LEVELS)})


def divisible(size: tuple[int, int]) -> tuple[int, int]:
    """Return the next height and width that the strides of nearly all models divide."""
    return (math.ceil(size[0] / COARSEST) * COARSEST, math.ceil(size[1] / COARSEST) * COARSEST)


def maps_of(module: nn.Module) -> tuple[FeatureMap, ...]:
    """Return the maps that a pyramid gives; none where the module is no pyramid."""
    found: tuple[FeatureMap, ...] = getattr(module, "maps", ())
    return found if isinstance(found, tuple) and all(isinstance(one, FeatureMap) for one in found) else ()


def make_pyramid(model: nn.Module, name: str, size: tuple[int, int]) -> nn.Module:
    """Return a module that gives a model's maps, finest first; layers that no map needs are removed.

    Args:
        model: Of timm, without a classifier; changed in place.
        name: After the family's.
        size: Height and width of the input.

    Raises:
        BackboneError: timm knows no maps of the model, or the size is none that their strides divide.
    """
    from torch import Tensor, nn

    known: Any = getattr(model, "feature_info", None)
    if not known or not hasattr(model, "forward_intermediates"):
        raise BackboneError(
            f"the task needs maps of an image's features, but timm gives none of {name}",
            "choose another model, such as timm/resnet18 or timm/convnext_tiny",
        )
    info = [dict(one) for one in known]
    levels = choose_levels([int(one["reduction"]) for one in info])
    maps = tuple(FeatureMap(int(info[level]["num_chs"]), int(info[level]["reduction"])) for level in levels)
    coarsest = max(one.stride for one in maps)
    if any(side % coarsest for side in size):
        raise BackboneError(
            f"image_size must be a multiple of {coarsest} for maps of timm/{name}, but got {size[0]}x{size[1]}",
            f"use {max(1, round(size[0] / coarsest)) * coarsest}",
        )
    try:
        model.prune_intermediate_layers(levels, prune_norm=True, prune_head=True)  # type: ignore[operator]
    except (AttributeError, AssertionError, TypeError, ValueError) as error:
        raise BackboneError(
            f"timm cannot take the maps out of {name}: {first_line(error)}", "choose another model"
        ) from error

    class FeaturePyramid(nn.Module):
        """A timm model that gives its maps."""

        def __init__(self) -> None:
            super().__init__()
            self.add_module(INNER, model)
            self.maps = maps

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            """Return maps `(N, C, h, w)` of images `(N, 3, H, W)`."""
            inner: Any = self.get_submodule(INNER)
            given = tuple(inner.forward_intermediates(images, indices=levels, norm=False, intermediates_only=True))
            for one, promised in zip(given, maps, strict=True):
                stride = promised.stride
                wanted = (promised.channels, images.shape[2] // stride, images.shape[3] // stride)
                if tuple(one.shape[1:]) != wanted:
                    raise ValueError(f"a map of stride {stride} must be {wanted}, but is {tuple(one.shape[1:])}")
            return given

    return FeaturePyramid()
