"""Write photographs with handwritten digits on them, and a mask for each; downloads nothing and leaves training to autoft.

The digits are scikit-learn's real scans (Alpaydin and Kaynak, 1998), the photographs its two sample images (a temple and a
flower). No scan, and no part of a photograph, is in two splits.

    python make_data.py            # data/train/images/000.jpg, data/train/masks/000.png ... data/classes.txt
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

SIDE = 96  # pixels of a picture
CELL = SIDE // 2  # each of four cells has a digit or none
COUNTS = {"train": 240, "val": 60, "test": 120}
# of the photographs' width, from left to right; so backgrounds of the splits do not overlap
PARTS = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0)}
SEED = 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent / "data", help="folder to write to")
    arguments = parser.parse_args()
    if (arguments.out / "classes.txt").exists():
        print(f"{arguments.out}: is there already; delete the folder to make it again")
        return 0

    digits, photographs = load_digits(), load_sample_images().images
    order = np.random.default_rng(SEED).permutation(len(digits.images))
    shares = np.cumsum([COUNTS[split] for split in COUNTS]) / sum(COUNTS.values())
    scans = dict(zip(COUNTS, np.split(order, (shares[:-1] * len(order)).astype(int)), strict=True))
    for place, (split, count) in enumerate(COUNTS.items()):
        for kind in ("images", "masks"):
            (arguments.out / split / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            rng = np.random.default_rng((SEED, place, number))
            picture = background(photographs[number % len(photographs)], PARTS[split], rng)
            mask = np.zeros((SIDE, SIDE), np.uint8)
            for cell in range(4):
                if rng.random() < 0.75:
                    scan = int(rng.choice(scans[split]))
                    draw(picture, mask, digits.images[scan], int(digits.target[scan]) + 1, cell, rng)
            folder = arguments.out / split
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number:03}.jpg", quality=90)
            Image.fromarray(mask).save(folder / "masks" / f"{number:03}.png")
    names = ["background", *(f"digit {digit}" for digit in range(10))]
    (arguments.out / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")  # last: it says that all is there
    print(f"{arguments.out}: {', '.join(f'{count} {split}' for split, count in COUNTS.items())}")
    return 0


def background(photograph: np.ndarray, part: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Return a random square of a part of a photograph (SIDE, SIDE, 3), float, at most twice as fine as it is shown."""
    height, width = photograph.shape[:2]
    first, last = (int(share * width) for share in part)
    side = int(rng.integers(SIDE // 2, min(2 * SIDE, last - first, height) + 1))
    top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(first, last - side + 1))
    square = Image.fromarray(photograph[top : top + side, left : left + side])
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.float64)


def draw(picture: np.ndarray, mask: np.ndarray, scan: np.ndarray, label: int, cell: int, rng: np.random.Generator) -> None:
    """Draw a scan of levels 0..16 (8, 8) into a cell, in ink that can be seen, and its pixels into the mask."""
    side = int(rng.integers(32, CELL - 3))
    ink = Image.fromarray((scan * (255 / 16)).round().astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    share = np.asarray(ink).astype(np.float64) / 255
    top, left = (CELL * place + int(rng.integers(0, CELL - side + 1)) for place in divmod(cell, 2))
    here = np.s_[top : top + side, left : left + side]
    dark = picture[here].mean() > 128
    colour = rng.uniform(0, 70, 3) if dark else rng.uniform(185, 255, 3)
    picture[here] += share[..., None] * (colour - picture[here])
    mask[here][share > 0.5] = label


if __name__ == "__main__":
    sys.exit(main())
