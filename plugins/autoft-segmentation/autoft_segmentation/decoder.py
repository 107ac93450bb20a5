"""The decoder: maps of a backbone to the classes of places, a semantic feature pyramid network in plain torch.

Its output has a quarter of the input's height and width, whatever the backbone's strides; `upsample` brings it to any size.
segmentation-models-pytorch has such decoders too, but they want the strides 2, 4, 8, 16, 32, which plain vision transformers
lack, and would be a dependency for these lines.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoft.specs import FeatureMap

STRIDE = 4  # of the outputs
GROUPS = 8  # of GroupNorm, which unlike BatchNorm does not depend on the size of a batch


class PyramidDecoder(nn.Module):
    """Adds each coarse map to the next finer one (FPN, arXiv:1612.03144), then sums all at the finest (arXiv:1901.02446).

    Args:
        maps: What the backbone gives, finest first.
        classes: How many.
        width: Channels inside.
        dropout: How often a channel is left out before the last layer.
    """

    def __init__(self, maps: Sequence[FeatureMap], classes: int, *, width: int, dropout: float) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(each.channels, width, 1) for each in maps)
        self.smooth = nn.ModuleList(_block(width) for _ in maps)
        self.merge = _block(width)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, classes, 1)
        self._scale = maps[0].stride / STRIDE
        nn.init.normal_(self.classify.weight, std=0.01)  # so that all classes are about as likely at first
        assert self.classify.bias is not None
        nn.init.zeros_(self.classify.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits `(N, K, H / 4, W / 4)` for maps `(N, C, h, w)` of inputs `(N, 3, H, W)`."""
        levels = [layer(one) for layer, one in zip(self.lateral, maps, strict=True)]
        for place in range(len(levels) - 2, -1, -1):
            levels[place] = levels[place] + upsample(levels[place + 1], levels[place].shape[-2:])
        finest = levels[0].shape[-2:]
        merged = torch.stack([upsample(layer(one), finest) for layer, one in zip(self.smooth, levels, strict=True)]).sum(
            dim=0
        )
        if self._scale != 1:
            height, width = (round(side * self._scale) for side in finest)
            merged = upsample(merged, (height, width))
        logits: Tensor = self.classify(self.dropout(self.merge(merged)))
        return logits


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps `(N, C, h, w)` at another size, bilinear; as they are where they have it."""
    height, width = size
    if tuple(maps.shape[-2:]) == (height, width):
        return maps
    return F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, width), nn.ReLU(inplace=True)
    )
