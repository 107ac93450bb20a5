"""The head `semantic-segmentation`: a class for each pixel; targets, loss, knobs; scores are `scores.py`'s.

Targets are kept as one byte a pixel on one grid for all images, about as fine as they are: masks are resized to it, as
images are resized to the backbone's input. So every image counts alike, and backbones of different input sizes are compared
on the same pixels.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.errors import DataError
from autoft.specs import Choice, FeatureMap, Head, Knob, Range, Targets
from autoft_segmentation.masks import UNKNOWN, Classes, Mask, read_mask

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

MOST = 512  # pixels of the grid's sides: at 1 byte a pixel, a thousand masks take 0.26 GB
LEAST = 4

KNOBS = (
    Knob("dropout", 0.1, Range(0.0, 0.4), "dropout of channels before the output layer", Range(0.0, 0.95)),
    Knob(
        "dice_weight",
        0.5,
        Range(0.0, 1.0),
        "share of the Dice loss, by which rare classes count as much; the rest is cross-entropy (arXiv:1606.04797)",
        Range(0.0, 1.0),
    ),
    Knob("decoder_width", 128, None, "channels of the decoder", Choice((32, 64, 128, 256))),
)


def make_head() -> Head:
    """Return the head."""
    from autoft.augment import move_map
    from autoft_segmentation import references, scores

    return Head(
        name="semantic-segmentation",
        modality="image",
        features="maps",
        describe=describe,
        encode=encode,
        build=build,
        loss=loss,
        activation=activation,
        metrics=scores.metrics,
        directions={"miou": "maximize", "pixel_accuracy": "maximize", "mean_dice": "maximize"},
        default_metric=lambda targets: "miou",
        report=scores.report,
        answer="mask",
        scores="classes",
        stratify=stratify,
        move=partial(move_map, outside=UNKNOWN),
        knobs=KNOBS,
        runtime=Path(__file__).with_name("script.py"),
        examples=examples,
        references=references.REFERENCES,
        help="a class a pixel: cross-entropy and Dice; mean IoU over the whole set, pixel accuracy, IoU of each class",
    )


# --- targets ----------------------------------------------------------------------------------------


def describe(targets: Sequence[Mask]) -> Targets:
    """Read classes, their pixels, the grid and the palette from the training masks.

    Raises:
        DataError: Targets that are no masks, of different classes, or of fewer than two classes.
    """
    import numpy as np

    classes = _common(targets)
    height, width = (_side([mask.size[axis] for mask in targets]) for axis in (1, 0))
    counts = np.zeros(len(classes.labels), np.int64)
    for one in _grid(targets, (height, width)):
        counts += np.bincount(one[one != UNKNOWN].ravel(), minlength=len(counts))
    if int((counts > 0).sum()) < 2:
        raise DataError(
            f"segmentation needs pixels of at least 2 classes, but the training masks have {int((counts > 0).sum())}",
            "add masks of another class, or check classes.json",
        )
    palette = tuple(float(part) for colour in classes.palette for part in colour)
    return Targets(
        classes.labels,
        tuple(counts.tolist()),
        {"mask_size": (float(height), float(width)), "palette": palette},
    )


def encode(targets: Sequence[Mask], described: Targets) -> Tensor:
    """Return masks `(N, h, w)`, uint8, on the grid; `UNKNOWN` where there is no class.

    Raises:
        DataError: A class that the model does not have.
    """
    import torch

    height, width = (int(side) for side in described.values["mask_size"])
    known = {label: number for number, label in enumerate(described.labels)}
    tables: dict[Classes, np.ndarray] = {}
    found = torch.empty((len(targets), height, width), dtype=torch.uint8)
    for row, (mask, values) in enumerate(zip(targets, _grid(targets, (height, width)), strict=True)):
        if mask.classes not in tables:
            tables[mask.classes] = _table(mask.classes, known, targets)
        found[row] = torch.from_numpy(tables[mask.classes][values])
    return found


def stratify(targets: Sequence[Mask]) -> list[str]:
    """Return the rarest class of each mask, so that every split gets its share of it."""
    images = Counter(number for mask in targets for number in mask.present)
    return [
        mask.classes.labels[min(mask.present, key=lambda number: (images[number], number))] if mask.present else ""
        for mask in targets
    ]


def examples() -> list[Mask]:
    """Return three small masks, for the conformance kit."""
    import numpy as np
    from PIL import Image

    classes, made = Classes(("background", "left", "right"), (0, 1, 2)), []
    for number in range(3):
        pixels = np.zeros((16, 16), np.uint8)
        pixels[4:12, 2:8], pixels[4:12, 8:14] = (number != 1), 2 * (number != 2)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        made.append(Mask(file.getvalue(), (16, 16), classes, tuple(np.unique(pixels).tolist())))
    return made


def _common(targets: Sequence[Any]) -> Classes:
    for target in targets:
        if not isinstance(target, Mask):
            raise DataError(
                f"segmentation needs a mask for each image, but got {target!r}",
                "choose another `task`, or data of the format image-mask-folder",
            )
        if target.classes != targets[0].classes:
            raise DataError("all masks must have the same classes, but some differ")
    if not targets:
        raise DataError("segmentation needs masks to learn from, but there are no training samples")
    classes: Classes = targets[0].classes
    return classes


def _side(sides: Sequence[int]) -> int:
    """Return the median of the images' sides, within limits."""
    middle = sorted(sides)[len(sides) // 2]
    return min(MOST, max(LEAST, middle))


def _grid(targets: Sequence[Mask], size: tuple[int, int]) -> list[np.ndarray]:
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda mask: _on_grid(mask, size), targets))


def _on_grid(mask: Mask, size: tuple[int, int]) -> np.ndarray:
    """Return a mask's classes on the grid: each place has that of the pixel in which its center lies."""
    import numpy as np

    values = read_mask(mask)
    rows, columns = (
        ((np.arange(wanted) + 0.5) * have / wanted).astype(np.int64) for wanted, have in zip(size, values.shape, strict=True)
    )
    found: np.ndarray = values[rows[:, None], columns[None, :]]
    return found


def _table(classes: Classes, known: Mapping[str, int], targets: Sequence[Mask]) -> np.ndarray:
    """Return the model's number for each of the masks' classes; only those that occur must be known."""
    import numpy as np

    table = np.full(256, UNKNOWN, np.uint8)
    present = {number for mask in targets if mask.classes == classes for number in mask.present}
    for number, label in enumerate(classes.labels):
        if label in known:
            table[number] = known[label]
        elif number in present:
            raise DataError(
                f"the class {label!r} is not among the {len(known)} classes of the model: {', '.join(list(known)[:10])}",
                "name the classes as in training, in classes.json",
            )
    return table


# --- module and loss --------------------------------------------------------------------------------


def build(features: tuple[FeatureMap, ...], targets: Targets, knobs: Mapping[str, Any]) -> nn.Module:
    """Make the decoder: maps to logits `(N, K, H / 4, W / 4)`."""
    from autoft_segmentation.decoder import PyramidDecoder

    return PyramidDecoder(features, len(targets.labels), width=int(knobs["decoder_width"]), dropout=float(knobs["dropout"]))


def loss(outputs: Tensor, encoded: Tensor, targets: Targets, knobs: Mapping[str, Any]) -> Tensor:
    """Return cross-entropy and Dice loss of logits `(N, K, h, w)` and masks `(N, H, W)`, on the masks' grid.

    Dice is that of each class over all of the batch's pixels, averaged over the classes that the batch has. A batch without
    any known pixel has the loss 0.
    """
    import torch
    from torch.nn import functional as F

    from autoft_segmentation.decoder import upsample

    logits = upsample(outputs.float(), encoded.shape[-2:])
    wanted = encoded.long()
    known = wanted != UNKNOWN
    weight, count = float(knobs["dice_weight"]), known.sum().clamp(min=1)
    entropy = F.cross_entropy(logits, wanted, ignore_index=UNKNOWN, reduction="sum") / count
    if not weight:
        return entropy
    shares = logits.softmax(dim=1) * known.unsqueeze(1)
    truth = torch.zeros_like(shares).scatter_(1, torch.where(known, wanted, 0).unsqueeze(1), known.unsqueeze(1).float())
    both, sums = (shares * truth).sum(dim=(0, 2, 3)), (shares + truth).sum(dim=(0, 2, 3))
    present = truth.sum(dim=(0, 2, 3)) > 0
    dice = 1 - (2 * both + 1) / (sums + 1)  # 1: a class of few pixels must not make steps of any size
    return (1 - weight) * entropy + weight * (dice * present).sum() / present.sum().clamp(min=1)


def activation(outputs: Tensor) -> Tensor:
    """Turn logits `(N, K, H / 4, W / 4)` into the class of each pixel of the input, `(N, H, W)`, uint8."""
    import torch
    from torch.nn import functional as F

    from autoft_segmentation.decoder import STRIDE

    whole = F.interpolate(outputs, scale_factor=float(STRIDE), mode="bilinear", align_corners=False)
    return whole.argmax(dim=1).to(torch.uint8)
