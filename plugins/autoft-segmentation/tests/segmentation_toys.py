"""What the tests share: small pictures of red and blue discs, with a mask for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

NAMES = "background\nred\nblue\n"
COLOURS = {1: (200, 60, 60), 2: (60, 60, 200)}


def paint(number: int, height: int = 24, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture (h, w, 3) and its mask (h, w); every picture has both discs."""
    rng = np.random.default_rng(number)
    pixels, mask = rng.normal(110, 15, (height, width, 3)), np.zeros((height, width), np.uint8)
    down, across = np.mgrid[:height, :width]
    for label, colour in COLOURS.items():
        left = (label - 1) * width // 2
        y, x, radius = rng.integers(6, height - 6), left + rng.integers(5, width // 2 - 5), rng.integers(4, 6)
        disc = (down - y) ** 2 + (across - x) ** 2 < radius**2
        pixels[disc] = np.array(colour) + rng.normal(0, 15, (int(disc.sum()), 3))
        mask[disc] = label
    return pixels.clip(0, 255).astype(np.uint8), mask


def write_pairs(folder: Path, count: int = 20, *, first: int = 0, names: bool = True) -> Path:
    """Write pictures and masks below a folder, and the names of the classes; return the folder."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        pixels, mask = paint(number)
        Image.fromarray(pixels).save(folder / "images" / f"{number:03}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:03}.png")
    if names:
        (folder / "classes.txt").write_text(NAMES)
    return folder
