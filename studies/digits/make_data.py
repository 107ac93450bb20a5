"""Write scikit-learn's digits as PNG files, one folder a class; downloads nothing and leaves training to autoft.

The digits are 1,797 real scans of 8x8 pixels in 17 grey levels (Alpaydin and Kaynak, 1998; the test part of
https://archive.ics.uci.edu/dataset/80). Few are given to training, because the study asks what to do with few labels.

    python make_data.py                        # data/train/0 ... data/test/9
    python make_data.py /tmp/digits-50 --train-per-class 50
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SPLITS = ("train", "val", "test")
VALIDATION_PER_CLASS = 50
SEED = 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent / "data", help="folder to write to")
    parser.add_argument("--train-per-class", type=int, default=5, help="labelled scans of each digit for training")
    arguments = parser.parse_args()

    digits = load_digits()
    smallest = int(np.bincount(digits.target).min())
    most = smallest - VALIDATION_PER_CLASS - 1
    if not 1 <= arguments.train_per_class <= most:
        parser.error(f"--train-per-class must be between 1 and {most}, but got {arguments.train_per_class}")

    files = encode(digits.images, digits.target, arguments.train_per_class)
    stray = strangers(arguments.out, files)
    if stray:
        print(
            f"error: {arguments.out} holds {len(stray)} file(s) that are not of this data, such as {stray[0]}",
            file=sys.stderr,
        )
        print("hint: made with another --train-per-class? choose another folder, or delete this one", file=sys.stderr)
        return 2
    written = write(arguments.out, files)
    counts = ", ".join(f"{sum(name.startswith(f'{split}/') for name in files)} {split}" for split in SPLITS)
    print(f"{arguments.out}: {counts}; wrote {written}, {len(files) - written} were there already")
    return 0


def encode(images: np.ndarray, targets: np.ndarray, train_per_class: int) -> dict[str, bytes]:
    """Return the PNG bytes by relative path; the same for every run: each class is dealt out from its own shuffle."""
    files: dict[str, bytes] = {}
    for digit in range(10):
        order = np.random.default_rng([SEED, digit]).permutation(np.flatnonzero(targets == digit))
        # Training takes from the far end: asking for more scans leaves validation, and the earlier ones, as they were.
        validation, test = order[:VALIDATION_PER_CLASS], order[VALIDATION_PER_CLASS:]
        parts = {"train": test[-train_per_class:], "val": validation, "test": test[:-train_per_class]}
        for split, indices in parts.items():
            for index in indices:
                files[f"{split}/{digit}/{index:04d}.png"] = encode_png(images[index])
    return files


def encode_png(scan: np.ndarray) -> bytes:
    """Return one (8, 8) scan of levels 0..16 as a grey PNG of levels 0..255."""
    pixels = np.round(scan * (255 / 16)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def strangers(out: Path, files: dict[str, bytes]) -> list[Path]:
    """Return files under the split folders that this run would not write: they would be trained on unnoticed."""
    found = (path for split in SPLITS for path in (out / split).rglob("*") if path.is_file())
    return sorted(path for path in found if path.relative_to(out).as_posix() not in files)


def write(out: Path, files: dict[str, bytes]) -> int:
    """Write what is missing or different, and return how many files that was."""
    written = 0
    for name, content in files.items():
        path = out / name
        if path.is_file() and path.read_bytes() == content:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written += 1
    return written


if __name__ == "__main__":
    sys.exit(main())
