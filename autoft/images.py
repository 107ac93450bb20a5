"""Image preprocessing as data: one declaration decodes, augments and normalizes for training and for the bundle.

The pixels come from the functions of the bundle's own script (`autoft/runtime/image_classification.py`), so that a
bundle sees what validation saw.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoft import augment as augmentation
from autoft.errors import BackboneError
from autoft.imagefiles import in_turn
from autoft.runtime import image_classification as script
from autoft.specs import Warp

# What Inception's recipe leaves around the crop (256 for 224): room for random crops, at a third more memory.
_MARGIN = 0.875


@dataclass(frozen=True)
class ImagePreprocessing:
    """Resize, center crop and normalization of images; implements `autoft.specs.Preprocessing`.

    Attributes:
        size: Height and width of the backbone's input.
        resize: The shorter side before the center crop, or an exact (height, width), which may change the proportions.
        interpolation: One of `nearest`, `bilinear`, `bicubic`, `lanczos`, `box`, `hamming`, antialiased as in Pillow.
        mean: Subtracted from red, green and blue in 0..1.
        std: What red, green and blue are divided by after that.

    Raises:
        BackboneError: A value is out of its range.
    """

    size: tuple[int, int]
    resize: int | tuple[int, int]
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        try:
            script.check_preprocessing(self.to_dict())
        except ValueError as error:
            raise BackboneError(str(error), hint="see `check_preprocessing` for what each field may hold") from error

    @property
    def policies(self) -> tuple[str, ...]:
        """Augmentation policies, weakest first."""
        return augmentation.POLICIES

    @property
    def ragged(self) -> bool:
        """Images of one backbone all have one size."""
        return False

    @property
    def runtime(self) -> Path:
        """The bundle's script for images."""
        return Path(script.__file__)

    def fit(self, sources: Sequence[script.ImageSource]) -> ImagePreprocessing:
        """Return itself: the size of the input was chosen with the backbone."""
        return self

    @property
    def margin_size(self) -> int:
        """Side of the square that `decode(augmented=True)` gives, in pixels."""
        resize = (self.resize,) if isinstance(self.resize, int) else self.resize
        return max(round(max(self.size) / _MARGIN), *resize)

    def decode(self, source: script.ImageSource, *, augmented: bool) -> Tensor:
        """Read an image.

        Args:
            source: Path, bytes, or binary file.
            augmented: Keep a margin around what evaluation sees, for `augment` to cut from.

        Returns:
            Pixels uint8 (3, H, W), or (3, M, M) with M = `margin_size` if augmented.

        Raises:
            autoft.runtime.image_classification.ImageError: It cannot be read.
        """
        declared = self.to_dict()
        if augmented:
            side = self.margin_size
            declared["size"] = [side, side]
            declared["resize"]["size"] = side if isinstance(self.resize, int) else [side, side]
        with in_turn(source):
            pixels = script.resize_and_crop(script.read_image(source), declared)
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))

    @property
    def whole(self) -> bool:
        """Whether the inputs show all of each image: it is resized to their size, and nothing is cut off."""
        return self.resize == self.size

    def augment(self, item: Tensor, policy: str, rng: np.random.Generator) -> Tensor:
        """Return a random variant uint8 (3, H, W) of `decode(augmented=True)`; see `autoft.augment.augment`."""
        return self.vary(item, policy, rng)[0]

    def vary(self, item: Tensor, policy: str, rng: np.random.Generator) -> tuple[Tensor, tuple[Warp, ...]]:
        """Return what `augment` returns, and where its places come from in the item."""
        resize = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        # `none` must show what evaluation shows, whatever the margin: this is evaluation's crop, in the item's pixels.
        height, width = (side * self.margin_size / full for side, full in zip(self.size, resize, strict=True))
        return augmentation.vary(item, policy, rng, size=self.size, view=(height, width))

    def inputs(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Normalize pixels uint8 (N, 3, H, W) to float32 on their device, bit for bit as `script.normalize`."""
        full, mean, std = _constants(self.mean, self.std, batch.device)
        return (batch.to(torch.float32).div_(full).sub_(mean).div_(std),)

    def to_dict(self) -> dict[str, Any]:
        """Return the declaration that the bundle's script follows; `check_preprocessing` describes it."""
        shortest = isinstance(self.resize, int)
        return {
            "kind": "image",
            "size": list(self.size),
            "resize": {
                "mode": "shortest" if shortest else "exact",
                "size": self.resize if isinstance(self.resize, int) else list(self.resize),
            },
            "crop": "center",
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, declared: Mapping[str, Any]) -> ImagePreprocessing:
        """Return what `to_dict` declared.

        Raises:
            BackboneError: A field is missing, unknown, or out of its range.
        """
        try:
            script.check_preprocessing(declared)
        except ValueError as error:
            raise BackboneError(str(error), hint="see `check_preprocessing` for what each field may hold") from error
        resize = declared["resize"]["size"]
        return cls(
            size=tuple(declared["size"]),
            resize=resize if isinstance(resize, int) else tuple(resize),
            interpolation=declared["interpolation"],
            mean=tuple(declared["mean"]),
            std=tuple(declared["std"]),
        )

    def files(self) -> dict[str, str]:
        """Return `preprocessor_config.json` for the Hugging Face ecosystem.

        Named `CLIPImageProcessor`, the one class that resizes the shorter side *and* crops the center in transformers 4
        and 5 and in transformers.js; version 4's `ViTImageProcessor` refuses `shortest_edge` and never crops. Its crop
        rounds down where torchvision's rounds to even, so it may lie one pixel off ours; `predict.py` does not.
        """
        if isinstance(self.resize, int):
            size = {"shortest_edge": self.resize}
        else:
            size = {"height": self.resize[0], "width": self.resize[1]}
        config = {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": size,
            "resample": int(script.INTERPOLATIONS[self.interpolation]),
            "do_center_crop": True,
            "crop_size": {"height": self.size[0], "width": self.size[1]},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        return {"preprocessor_config.json": json.dumps(config, indent=2) + "\n"}


def from_timm_config(config: Mapping[str, Any]) -> ImagePreprocessing:
    """Return the preprocessing that timm evaluates a model with.

    Matches `timm.data.create_transform(**config)` pixel for pixel.

    Args:
        config: From `timm.data.resolve_data_config`: `input_size` (3, H, W), `interpolation`, `mean`, `std`,
            `crop_pct`, `crop_mode`.

    Raises:
        BackboneError: The model needs a transform that a declaration cannot say: other than 3 channels, border mode,
            center mode on an input that is not square, random interpolation.
    """
    channels, height, width = config["input_size"]
    # 0.875 is timm's own default, for a share of None or 0.
    share = config.get("crop_pct") or 0.875
    mode = config.get("crop_mode") or "center"
    interpolation = config["interpolation"]
    hint = "choose another model, or resize the images yourself and give `image_size`"
    if channels != 3:
        raise BackboneError(f"images have 3 channels, but the model takes {channels}", hint="choose another model")
    if interpolation not in script.INTERPOLATIONS:
        known = ", ".join(script.INTERPOLATIONS)
        raise BackboneError(f"interpolation must be one of {known}, but the model asks for {interpolation!r}", hint)
    full = (math.floor(height / share), math.floor(width / share))
    resize: int | tuple[int, int]
    if mode == "squash":
        resize = full
    elif mode == "center" and full[0] == full[1]:
        resize = full[0]
    else:
        raise BackboneError(
            "only timm's crop mode `squash`, and `center` for square inputs, can be repeated in a bundle, "
            f"but the model uses {mode!r} for {height} x {width}",
            hint,
        )
    return ImagePreprocessing(
        size=(height, width),
        resize=resize,
        interpolation=interpolation,
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
    )


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


@lru_cache(maxsize=64)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return 255, mean and std as tensors on a device.

    Kept, because making them anew would copy from the host in each step; and 255 as a tensor, because dividing by a
    Python number on a GPU multiplies by its inverse, which rounds differently from the bundle's script.
    """
    per_channel = (
        torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1) for values in ((255.0,), mean, std)
    )
    full, means, stds = per_channel
    return full, means, stds
