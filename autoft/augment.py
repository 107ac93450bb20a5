"""Random variants of training images, each policy in as few passes over the pixels as it can be done.

torchvision's random transform classes (`transforms.v2.RandomAffine` ...) draw from torch's global generator. Loader
threads would race for it, and a trial could not be repeated; so every number here comes from the caller's generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autoft.specs import Warp

POLICIES = ("none", "light", "standard", "trivial")

_LEVELS = 31  # of strength, for each operation of `trivial`


def _evenly(first: float, last: float) -> tuple[float, ...]:
    return tuple(torch.linspace(first, last, _LEVELS).tolist())


# ITU-R 601 luma, with the digits that torchvision's `rgb_to_grayscale` uses.
_LUMA = (0.2989, 0.587, 0.114)

# The table of `torchvision.transforms.v2.TrivialAugmentWide`: for each operation the 31 strengths that it may have, which
# are float32 there, and whether they may be negative. Translations are in pixels, at any size, as they are there.
_OPERATIONS: dict[str, tuple[tuple[float, ...], bool]] = {
    "Identity": ((0.0,) * _LEVELS, False),
    **{name: (_evenly(0.0, 0.99), True) for name in ("ShearX", "ShearY")},
    **{name: (_evenly(0.0, 32.0), True) for name in ("TranslateX", "TranslateY")},
    "Rotate": (_evenly(0.0, 135.0), True),
    **{name: (_evenly(0.0, 0.99), True) for name in ("Brightness", "Color", "Contrast", "Sharpness")},
    "Posterize": (tuple(float(round(8 - level / 5)) for level in range(_LEVELS)), False),
    "Solarize": (_evenly(1.0, 0.0), False),
    "AutoContrast": ((0.0,) * _LEVELS, False),
    "Equalize": ((0.0,) * _LEVELS, False),
}


@dataclass(frozen=True)
class _Crop:
    """A box of the image in pixels: center (x, y), width and height."""

    x: float
    y: float
    width: float
    height: float


def augment(
    item: Tensor, policy: str, rng: np.random.Generator, *, size: tuple[int, int], view: tuple[float, float]
) -> Tensor:
    """Return a random variant of an image.

    - `none`: what evaluation sees, the centered `view`.
    - `light`: a crop of 70 to 100 % of the area, turned by up to 10 degrees, brightness and contrast changed by up to
      20 %. Nothing is mirrored, so it is safe for digits, text and signs.
    - `standard`: a crop of 35 to 100 % of the area (Inception's random resized crop, https://arxiv.org/abs/1409.4842),
      mirrored left to right half of the time, brightness, contrast and saturation changed by up to 30 %.
    - `trivial`: the crop and mirroring of `standard`, then one operation of TrivialAugment's wide table, such as a turn by
      up to 135 degrees or the inversion of bright pixels, with a random strength (https://arxiv.org/abs/2103.10158).

    Args:
        item: Pixels uint8 (3, h, w), with some margin around the view; not changed.
        policy: One of `POLICIES`.
        rng: Where every random number comes from.
        size: Height and width of the result.
        view: Height and width, in pixels of `item`, of the centered part that evaluation sees. It fixes the crops'
            proportions, and the extent of `none`.

    Returns:
        Pixels uint8 (3, H, W), in memory of its own.

    Raises:
        ValueError: The policy is unknown.
    """
    return vary(item, policy, rng, size=size, view=view)[0]


def vary(
    item: Tensor, policy: str, rng: np.random.Generator, *, size: tuple[int, int], view: tuple[float, float]
) -> tuple[Tensor, tuple[Warp, ...]]:
    """Return what `augment` returns, and where its places come from, for targets that lie in the image.

    There is a warp for each change, the item's first; what comes from outside of what a change was given, such as the black
    corners of a turned crop, comes from nowhere.

    Takes what `augment` takes, and raises what it raises.
    """
    if policy == "none":
        return _center(item, size, view)
    if policy == "light":
        return _light(item, rng, size, view)
    if policy == "standard":
        return _standard(item, rng, size, view)
    if policy == "trivial":
        return _trivial(item, rng, size, view)
    raise ValueError(f"augmentation must be one of {', '.join(POLICIES)}, but got {policy!r}")


def move_map(target: Tensor, warp: Warp, *, outside: int) -> Tensor:
    """Return a map over an image, such as a mask of classes, moved as the image was; each place takes the nearest value.

    Args:
        target: `(h, w)`, of any size: its places are 0..1 in height and width, as the image's are.
        warp: From `vary`.
        outside: The value of places that come from outside the image.

    Returns:
        `(h, w)` of the same type, in memory of its own.
    """
    height, width = target.shape
    across = (torch.arange(width, dtype=torch.float64) + 0.5) / width
    down = ((torch.arange(height, dtype=torch.float64) + 0.5) / height).unsqueeze(1)
    (a, b, c), (d, e, f) = warp
    columns, rows = ((a * across + b * down + c) * width).floor(), ((d * across + e * down + f) * height).floor()
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    found = target[rows.clamp(0, height - 1).long(), columns.clamp(0, width - 1).long()]
    return torch.where(inside, found, torch.full_like(found, outside))


def _center(item: Tensor, size: tuple[int, int], view: tuple[float, float]) -> tuple[Tensor, tuple[Warp, ...]]:
    height, width = round(min(view[0], item.shape[1])), round(min(view[1], item.shape[2]))
    top, left = round((item.shape[1] - height) / 2.0), round((item.shape[2] - width) / 2.0)
    box = _Crop(x=left + width / 2, y=top + height / 2, width=width, height=height)
    return _resized(item[:, top : top + height, left : left + width], size), (_warp_of(item, box),)


def _light(
    item: Tensor, rng: np.random.Generator, size: tuple[int, int], view: tuple[float, float]
) -> tuple[Tensor, tuple[Warp, ...]]:
    crop = _random_crop(item, rng, view, area=(0.7, 1.0), ratio=0.9)
    angle = math.radians(rng.uniform(-10.0, 10.0))
    brightness, contrast = rng.uniform(0.8, 1.2, size=2).tolist()
    pixels = _turned(item, crop, angle, size)
    mean = _mean_grey(pixels)
    pixels.mul_(brightness * contrast)
    pixels.add_(brightness * (1 - contrast) * mean)
    return _to_uint8(pixels), (_warp_of(item, crop, angle=angle),)


def _standard(
    item: Tensor, rng: np.random.Generator, size: tuple[int, int], view: tuple[float, float]
) -> tuple[Tensor, tuple[Warp, ...]]:
    cut, warp = _cropped_and_mirrored(item, rng, view)
    brightness, contrast, saturation = rng.uniform(0.7, 1.3, size=3).tolist()
    pixels = _resized(cut, size).to(torch.float32)
    # Brightness, contrast and saturation are linear in the colour: one 3 x 3 matrix and an offset do all three.
    luma = torch.tensor(_LUMA)
    gain = brightness * contrast
    matrix = gain * (saturation * torch.eye(3) + (1 - saturation) * luma.expand(3, 3))
    offset = torch.full((3, 1), brightness * (1 - contrast) * _mean_grey(pixels))
    return _to_uint8(torch.addmm(offset, matrix, pixels.view(3, -1)).view(3, *size)), (warp,)


def _trivial(
    item: Tensor, rng: np.random.Generator, size: tuple[int, int], view: tuple[float, float]
) -> tuple[Tensor, tuple[Warp, ...]]:
    cut, warp = _cropped_and_mirrored(item, rng, view)
    pixels = _resized(cut, size)
    operation = list(_OPERATIONS)[rng.integers(len(_OPERATIONS))]
    strengths, signed = _OPERATIONS[operation]
    strength = strengths[rng.integers(_LEVELS)]
    negative = rng.random() < 0.5
    strength = -strength if signed and negative else strength
    moved = _moved(operation, strength, size)
    return _changed(pixels, operation, strength).contiguous(), (warp,) if moved is None else (warp, moved)


def _moved(operation: str, strength: float, size: tuple[int, int]) -> Warp | None:
    """Return where an operation of TrivialAugment's takes places from; None where it changes colours alone."""
    height, width = size
    if operation == "ShearX":
        return (1.0, strength * height / width, 0.0), (0.0, 1.0, 0.0)
    if operation == "ShearY":
        return (1.0, 0.0, 0.0), (strength * width / height, 1.0, 0.0)
    if operation == "TranslateX":
        return (1.0, 0.0, -int(strength) / width), (0.0, 1.0, 0.0)
    if operation == "TranslateY":
        return (1.0, 0.0, 0.0), (0.0, 1.0, -int(strength) / height)
    if operation == "Rotate":
        cos, sin = math.cos(math.radians(strength)), math.sin(math.radians(strength))
        across, down = sin * height / width, sin * width / height
        return (cos, -across, (1 - cos + across) / 2), (down, cos, (1 - cos - down) / 2)
    return None


def _warp_of(item: Tensor, box: _Crop, *, angle: float = 0.0, mirrored: bool = False) -> Warp:
    """Return where the places of a box come from in its image, turned or mirrored about its center."""
    image_height, image_width = item.shape[1:]
    cos, sin = math.cos(angle), math.sin(angle)
    side = -1.0 if mirrored else 1.0
    a, b = side * box.width * cos / image_width, -box.height * sin / image_width
    d, e = side * box.width * sin / image_height, box.height * cos / image_height
    return (a, b, box.x / image_width - (a + b) / 2), (d, e, box.y / image_height - (d + e) / 2)


def _changed(pixels: Tensor, operation: str, strength: float) -> Tensor:
    """Return an image uint8 (3, H, W) after one operation of TrivialAugment, as torchvision does it."""
    from torchvision.transforms.v2 import functional as tvf

    def sheared(degrees: list[float]) -> Tensor:
        result: Tensor = tvf.affine_image(pixels, angle=0.0, translate=[0, 0], scale=1.0, shear=degrees, center=[0, 0])
        return result

    def moved(by: list[float]) -> Tensor:
        result: Tensor = tvf.affine_image(pixels, angle=0.0, translate=by, scale=1.0, shear=[0.0, 0.0])
        return result

    changes: dict[str, Callable[[], Tensor]] = {
        "Identity": lambda: pixels,
        "ShearX": lambda: sheared([math.degrees(math.atan(strength)), 0.0]),
        "ShearY": lambda: sheared([0.0, math.degrees(math.atan(strength))]),
        "TranslateX": lambda: moved([int(strength), 0]),
        "TranslateY": lambda: moved([0, int(strength)]),
        "Rotate": lambda: tvf.rotate_image(pixels, angle=strength),
        "Brightness": lambda: tvf.adjust_brightness_image(pixels, 1 + strength),
        "Color": lambda: tvf.adjust_saturation_image(pixels, 1 + strength),
        "Contrast": lambda: tvf.adjust_contrast_image(pixels, 1 + strength),
        "Sharpness": lambda: tvf.adjust_sharpness_image(pixels, 1 + strength),
        "Posterize": lambda: tvf.posterize_image(pixels, int(strength)),
        "Solarize": lambda: tvf.solarize_image(pixels, 255.0 * strength),
        "AutoContrast": lambda: tvf.autocontrast_image(pixels),
        "Equalize": lambda: tvf.equalize_image(pixels),
    }
    return changes[operation]()


def _cropped_and_mirrored(item: Tensor, rng: np.random.Generator, view: tuple[float, float]) -> tuple[Tensor, Warp]:
    """Return a random part of an image, before it is resized, mirrored left to right half of the time, and its warp."""
    crop = _random_crop(item, rng, view, area=(0.35, 1.0), ratio=3 / 4)
    mirrored = rng.random() < 0.5
    # Unlike `light`, this one may shrink the image much, which needs an antialiased resize; so whole pixels.
    height, width = max(1, round(crop.height)), max(1, round(crop.width))
    top = min(max(0, round(crop.y - height / 2)), item.shape[1] - height)
    left = min(max(0, round(crop.x - width / 2)), item.shape[2] - width)
    cut = item[:, top : top + height, left : left + width]
    from torchvision.transforms.v2 import functional as tvf  # over a second to import, and texts need none of it

    box = _Crop(x=left + width / 2, y=top + height / 2, width=width, height=height)
    return tvf.horizontal_flip_image(cut) if mirrored else cut, _warp_of(item, box, mirrored=mirrored)


def _random_crop(
    item: Tensor, rng: np.random.Generator, view: tuple[float, float], *, area: tuple[float, float], ratio: float
) -> _Crop:
    """Draw a box inside the image: a share of the largest box of the view's proportions, stretched by ratio to 1/ratio.

    Where a stretched box is larger than the image, it is clipped; torchvision draws again instead, up to ten times.
    """
    image_height, image_width = item.shape[1:]
    fit = min(image_height / view[0], image_width / view[1])
    scale = math.sqrt(rng.uniform(*area))
    stretch = math.exp(rng.uniform(math.log(ratio), -math.log(ratio)) / 2)
    height = min(float(image_height), view[0] * fit * scale / stretch)
    width = min(float(image_width), view[1] * fit * scale * stretch)
    y = rng.uniform(height / 2, image_height - height / 2)
    x = rng.uniform(width / 2, image_width - width / 2)
    return _Crop(x=x, y=y, width=width, height=height)


def _turned(item: Tensor, crop: _Crop, angle: float, size: tuple[int, int]) -> Tensor:
    """Return a turned crop as float32 (3, H, W), bilinear, in a single pass.

    What lies outside the image repeats its border: `tvf.affine` and `tvf.rotate` would paint the corners in one colour,
    a hint that no real image has, and need a second pass to crop.
    """
    height, width = size
    image_height, image_width = item.shape[1:]
    across = (torch.arange(width, dtype=torch.float32) * 2 + 1) / width - 1
    down = ((torch.arange(height, dtype=torch.float32) * 2 + 1) / height - 1).unsqueeze(1)
    cos, sin = math.cos(angle), math.sin(angle)
    # `F.affine_grid` gives the same grid, but three times slower than the sum of a row and a column.
    grid = torch.empty(1, height, width, 2)
    x0, y0 = 2 * crop.x / image_width - 1, 2 * crop.y / image_height - 1
    torch.add(across * (crop.width * cos / image_width) + x0, down * (-crop.height * sin / image_width), out=grid[0, ..., 0])
    torch.add(
        across * (crop.width * sin / image_height) + y0, down * (crop.height * cos / image_height), out=grid[0, ..., 1]
    )
    pixels = item.to(torch.float32).unsqueeze(0)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]


def _resized(cut: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a part of an image, antialiased to a size, in memory of its own."""
    if tuple(cut.shape[1:]) == size:
        return cut.contiguous().clone() if cut.is_contiguous() else cut.contiguous()
    # Channels last: the uint8 kernel is about twice as fast on interleaved pixels.
    interleaved = cut.unsqueeze(0).contiguous(memory_format=torch.channels_last)
    from torchvision.transforms.v2 import functional as tvf

    resized: Tensor = tvf.resize_image(interleaved, list(size), antialias=True)[0]
    return resized.contiguous()


def _mean_grey(pixels: Tensor) -> float:
    means: list[float] = pixels.mean(dim=(1, 2)).tolist()
    return sum(weight * mean for weight, mean in zip(_LUMA, means, strict=True))


def _to_uint8(pixels: Tensor) -> Tensor:
    return pixels.add_(0.5).clamp_(0, 255).to(torch.uint8)
