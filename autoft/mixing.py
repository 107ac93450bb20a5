"""Mixes images of a batch with each other, and erases parts of them, on the device; variants of one are `augment.py`'s."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_ATTEMPTS = 10  # timm's and the paper's loop, drawn at once


@dataclass(frozen=True)
class Mixed:
    """A batch, perhaps mixed with itself in another order.

    Attributes:
        inputs: Of the model.
        partner: For each row `(N,)`, the row that it was mixed with; None where nothing was mixed.
        share: How much of each row is its own, 0 to 1.
    """

    inputs: tuple[Tensor, ...]
    partner: Tensor | None = None
    share: float = 1.0


def mix(inputs: tuple[Tensor, ...], *, mixup: float = 0.0, cutmix: float = 0.0, erasing: float = 0.0) -> Mixed:
    """Return a batch mixed and erased as asked; where nothing is asked, as it is.

    All numbers that decide come from torch's generator on the CPU, which the trainer seeds each epoch, so no device waits.

    Args:
        inputs: Images `(N, C, H, W)`, normalized; the only inputs where anything is asked.
        mixup: Alpha of mixup (arXiv:1710.09412); 0 for none.
        cutmix: Alpha of cutmix (arXiv:1905.04899); 0 for none. With both, a fair coin chooses for each batch.
        erasing: How often a part of an image is erased (arXiv:1708.04896).
    """
    if not (mixup or cutmix or erasing):
        return Mixed(inputs)
    (images,) = inputs
    mixed = Mixed(inputs)
    if len(images) > 1 and (mixup or cutmix):
        cutting = bool(cutmix) and (not mixup or bool(torch.rand(()) < 0.5))
        mixed = _cutmix(images, cutmix) if cutting else _mixup(images, mixup)
    if erasing:
        mixed = Mixed((erase(mixed.inputs[0], erasing),), mixed.partner, mixed.share)
    return mixed


def mixed_loss(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, wanted: Tensor, mixed: Mixed) -> Tensor:
    """Return the loss of a batch: for a mixed one, that of both parts' targets, by their shares.

    For cross-entropy this equals the loss of the mixed targets, as its targets enter it linearly.
    """
    if mixed.partner is None:
        return loss(outputs, wanted)
    return mixed.share * loss(outputs, wanted) + (1 - mixed.share) * loss(outputs, wanted[mixed.partner])


def erase(images: Tensor, probability: float) -> Tensor:
    """Return images with one rectangle of some of them replaced by normal noise.

    As timm's `RandomErasing(mode="pixel")`: of 2 to 33 % of the area, with an aspect ratio of 0.3 to 3.3; where none of ten
    boxes is smaller than the image, it is left alone.

    Args:
        images: `(N, C, H, W)`, normalized; not changed.
        probability: For each image.
    """
    count, _, height, width = images.shape
    chosen, y, x = torch.rand(3, count)
    area, ratio = torch.rand(2, _ATTEMPTS, count)
    area = (0.02 + area * (1 / 3 - 0.02)) * height * width
    ratio = torch.exp((2 * ratio - 1) * math.log(1 / 0.3))
    tall, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (tall < height) & (wide < width)
    rows = ((chosen < probability) & fits.any(dim=0)).nonzero()[:, 0]
    if not len(rows):
        return images
    first = fits.int().argmax(dim=0, keepdim=True)
    tall, wide = tall.gather(0, first)[0], wide.gather(0, first)[0]
    top, left = ((height - tall + 1) * y).floor(), ((width - wide + 1) * x).floor()
    # the numbers go to the device, and the boxes are made there: they are as large as the images
    bounds = torch.stack([top, top + tall, left, left + wide])[:, rows, None].to(images.device, non_blocking=True)
    rows = rows.to(images.device, non_blocking=True)
    down, across = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside = ((down >= bounds[0]) & (down < bounds[1]))[:, None, :, None]
    inside = inside & ((across >= bounds[2]) & (across < bounds[3]))[:, None, None, :]
    picked = images[rows]
    erased = images.clone()
    erased[rows] = torch.where(inside, torch.randn_like(picked), picked)
    return erased


def _mixup(images: Tensor, alpha: float) -> Mixed:
    share = _beta(alpha)
    partner = torch.randperm(len(images)).to(images.device, non_blocking=True)
    return Mixed((torch.lerp(images[partner], images, share),), partner, share)


def _cutmix(images: Tensor, alpha: float) -> Mixed:
    """Put a box of another image into each; its sides are the root of the share, its center anywhere, as in the paper."""
    height, width = images.shape[-2:]
    cut = math.sqrt(1 - _beta(alpha))
    x, y = int(torch.randint(width, ())), int(torch.randint(height, ()))
    tall, wide = int(height * cut) // 2, int(width * cut) // 2
    top, bottom = max(0, y - tall), min(height, y + tall)
    left, right = max(0, x - wide), min(width, x + wide)
    partner = torch.randperm(len(images)).to(images.device, non_blocking=True)
    pasted = images.clone()
    pasted[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    # of the box as it is, not as it was drawn: a part of it may lie outside
    return Mixed((pasted,), partner, 1 - (bottom - top) * (right - left) / (height * width))


def _beta(alpha: float) -> float:
    """Draw from the beta distribution with both parameters `alpha`, on the CPU."""
    return float(torch.distributions.Beta(alpha, alpha).sample())
