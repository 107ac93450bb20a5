"""Runs an autoft bundle for images with onnxruntime, numpy and pillow alone.

It becomes the `predict.py` of every such bundle, and training preprocesses with these same functions, so that a bundle sees,
bit for bit, what validation saw. It imports nothing of autoft or torch; Python 3.10 will do.

    python predict.py photo.jpg other.png --json
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from autoft.runtime.shared import (
    BundleError,
    Contract,
    InputError,
    Model,
    answer_all,
    answer_of,
    check_golden,
    exit_code,
    inside,
    json_answer,
    make_parser,
    parse,
    plain_answer,
    predicted,
    print_check,
    read_bundle,
    safely,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

ImageSource = str | Path | bytes | IO[bytes]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

# Pillow only warns from this size on, and a changed `Image.MAX_IMAGE_PIXELS` would change what is readable.
MAX_PIXELS = 89_478_485
MAX_BYTES = 1 << 29  # of a file; so many pixels take less in any of the formats

# Each scan of a JPEG goes over all of its pixels again, and takes 100 bytes: 20 of them are the most that cameras and
# optimizers write.
MAX_SCANS = 1000
MAX_SCANNED = 40 * MAX_PIXELS
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")

INTERPOLATIONS: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

# EXIF tag 0x0112: how to turn the stored pixels upright. `ImageOps.exif_transpose` would also rewrite the EXIF block,
# which fails on odd ones that nobody needs here.
ORIENTATION_TAG = 0x0112
UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(InputError):
    """A file cannot be read as an image, or is too large to be one."""


# --- preprocessing ----------------------------------------------------------------------------------


def read_image(source: ImageSource) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    The EXIF orientation is applied; of an animation the first frame is taken; greys of more than 8 bits are scaled, not
    clipped; an alpha channel is dropped and the colours below it stay, as Pillow's `convert("RGB")` does: timm,
    torchvision and transformers all read images that way, so pretrained weights expect it.

    Args:
        source: A path, the bytes of a file, or a binary file.

    Raises:
        ImageError: It is no whole JPEG, PNG, WebP or BMP image, or larger than `MAX_PIXELS`, or would take long.
    """
    name = str(source) if isinstance(source, (str, Path)) else "image"
    if isinstance(source, (str, Path)):
        check_image_file(Path(source))
    try:
        raw = source if isinstance(source, bytes) else _content(source)
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(f"{name}: images may have {MAX_PIXELS} pixels, but it has {width} x {height}")
            scans = jpeg_scans(raw) if raw.startswith(b"\xff\xd8") else 1
            if scans > MAX_SCANS or scans * width * height > MAX_SCANNED:
                raise ImageError(f"{name}: {scans} scans are too many for a JPEG of {width} x {height} pixels")
            image.load()
            turn = UPRIGHT.get(image.getexif().get(ORIENTATION_TAG, 1))
            upright = image if turn is None else image.transpose(turn)
            return _to_rgb(upright)
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: is not a JPEG, PNG, WebP or BMP image") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged files
        raise ImageError(f"{name}: cannot be decoded ({error})") from error


def _content(source: str | Path | IO[bytes]) -> bytes:
    return Path(source).read_bytes() if isinstance(source, (str, Path)) else source.read()


def jpeg_scans(raw: bytes) -> int:
    """Return how many scans a JPEG has; those of thumbnails, and what follows its end, do not count."""
    place, scans = 2, 0
    while (found := _MARKER.search(raw, place)) is not None and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        place = found.end() + int.from_bytes(raw[found.end() : found.end() + 2], "big")
    return scans


def check_image_file(path: Path) -> None:
    """Check that a path is a file which an image can be in, before anything of it is read.

    Raises:
        ImageError: It is a device, a pipe or a folder, or too large.
    """
    try:
        found = path.stat()
    except (OSError, ValueError):
        return  # whoever reads it is told why it cannot be
    if not stat.S_ISREG(found.st_mode):
        raise ImageError(f"{path}: is no file, but a folder, a device or a pipe")
    if found.st_size > MAX_BYTES:
        raise ImageError(f"{path}: images may have {MAX_BYTES} bytes, but it has {found.st_size}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # These hold 16-bit greys, which `convert` would clip to white. The high byte, as Pillow takes of 16-bit RGB.
        # By rows: as a whole the numbers between would take 20 times the image's memory.
        values = np.asarray(image)
        high = np.empty(values.shape, np.uint8)
        for rows in range(0, len(values), 256):
            part = np.clip(values[rows : rows + 256].astype(np.float64), 0, 65535).astype(np.uint16)
            high[rows : rows + 256] = part >> 8
        return Image.fromarray(high).convert("RGB")
    # A transparent palette entry only makes `convert` warn: alpha is dropped in any case.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def check_preprocessing(preprocessing: Mapping[str, Any]) -> None:
    """Check a declaration of image preprocessing.

    Args:
        preprocessing: `kind` ("image"); `size` [H, W] of the result; `resize`, with `mode` "shortest" and an integer
            `size` for the shorter side, or "exact" and [H, W]; `crop` ("center"); `interpolation`, one of
            `INTERPOLATIONS`; `mean` and `std`, a number for each of red, green and blue.

    Raises:
        ValueError: Naming the rule and the value.
    """

    def check(holds: bool, rule: str, value: object) -> None:
        if not holds:
            raise ValueError(f"preprocessing: {rule}, but got {value!r}")

    def is_pair(value: object) -> bool:
        return isinstance(value, (list, tuple)) and len(value) == 2 and all(is_side(side) for side in value)

    def is_side(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value > 0

    def is_triple(value: object) -> bool:
        return (
            isinstance(value, (list, tuple))
            and len(value) == 3
            and all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)
        )

    names = ("kind", "size", "resize", "crop", "interpolation", "mean", "std")
    missing = [name for name in names if name not in preprocessing]
    check(not missing, f"{', '.join(names)} must be given", f"none for {', '.join(missing)}")
    unknown = sorted(set(preprocessing) - set(names))
    check(not unknown, f"only {', '.join(names)} are known", ", ".join(unknown))
    resize, mean, std = preprocessing["resize"], preprocessing["mean"], preprocessing["std"]
    check(preprocessing["kind"] == "image", "`kind` must be 'image'", preprocessing["kind"])
    check(is_pair(preprocessing["size"]), "`size` must be two whole numbers, [H, W]", preprocessing["size"])
    check(preprocessing["crop"] == "center", "`crop` must be 'center'", preprocessing["crop"])
    interpolation = preprocessing["interpolation"]
    known = isinstance(interpolation, str) and interpolation in INTERPOLATIONS
    check(known, f"`interpolation` must be one of {', '.join(INTERPOLATIONS)}", interpolation)
    check(is_triple(mean), "`mean` must be three numbers", mean)
    check(is_triple(std) and min(std) > 0, "`std` must be three numbers above 0", std)
    valid = isinstance(resize, Mapping) and set(resize) == {"mode", "size"}
    check(valid, "`resize` must have `mode` and `size`", resize)
    mode, size = resize["mode"], resize["size"]
    check(mode in ("shortest", "exact"), "`resize.mode` must be 'shortest' or 'exact'", mode)
    if mode == "shortest":
        check(is_side(size), "`resize.size` must be one whole number with mode 'shortest'", size)
    else:
        check(is_pair(size), "`resize.size` must be [H, W] with mode 'exact'", size)


def resize_and_crop(image: Image.Image, preprocessing: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Resize an RGB image with Pillow and cut its center out, as torchvision's `Resize` and `CenterCrop` do.

    Args:
        image: From `read_image`.
        preprocessing: As `check_preprocessing` describes it; of it, `size`, `resize` and `interpolation`.

    Returns:
        Pixels (H, W, 3). Where the resized image is smaller than that, zeros surround it.

    Raises:
        ImageError: The image is so elongated that it would be larger than `MAX_PIXELS` when resized.
    """
    width, height = _resized(image.size, preprocessing["resize"])
    if width * height > MAX_PIXELS:
        raise ImageError(f"an image of {image.width} x {image.height} is too elongated to resize to {width} x {height}")
    # Two calls, the horizontal pass first, as Pillow did until version 13 began to choose the order by the sizes. Each
    # pass rounds, so a portrait photo would give other pixels after an upgrade: up to 24 of 255 on noise.
    filtered = INTERPOLATIONS[preprocessing["interpolation"]]
    for size in ((width, image.height), (width, height)):
        if size != image.size:
            image = image.resize(size, filtered)
    return center_crop(np.asarray(image, dtype=np.uint8), tuple(preprocessing["size"]))


def _resized(size: tuple[int, int], resize: Mapping[str, Any]) -> tuple[int, int]:
    """Return the (width, height) that an image of (width, height) is resized to; torchvision's rounding."""
    if resize["mode"] == "exact":
        height, width = resize["size"]
        return int(width), int(height)
    short, long = min(size), max(size)
    new_short = int(resize["size"])
    new_long = int(new_short * long / short)
    return (new_short, new_long) if size[0] <= size[1] else (new_long, new_short)


def center_crop(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Cut the center of (H, W) out of pixels (..., C); torchvision's rounding, zeros where the image is smaller."""
    missing = [max(0, wanted - have) for wanted, have in zip(size, pixels.shape[:2], strict=True)]
    if any(missing):
        pixels = np.pad(pixels, [*((amount // 2, (amount + 1) // 2) for amount in missing), (0, 0)])
    # round() goes to the even neighbour at one half, as torchvision's does.
    top, left = (round((have - wanted) / 2.0) for wanted, have in zip(size, pixels.shape[:2], strict=True))
    return pixels[top : top + size[0], left : left + size[1]]


def normalize(batch: NDArray[np.uint8], preprocessing: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return (x / 255 - mean) / std as float32 (N, 3, H, W), from pixels (N, H, W, 3)."""
    mean = np.asarray(preprocessing["mean"], dtype=np.float32)
    std = np.asarray(preprocessing["std"], dtype=np.float32)
    scaled = (batch.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


# --- the bundle ---------------------------------------------------------------------------------------


class Bundle:
    """A loaded bundle; make it with `Bundle.load`.

    Attributes:
        folder: Where it lies.
        labels: Names of the outputs, in their order.
        preprocessing: The declaration that `resize_and_crop` and `normalize` follow.

    Example:
        >>> bundle = Bundle.load("runs/digits/bundle")  # doctest: +SKIP
        >>> bundle.predict(["seven.png"])[0]["label"]  # doctest: +SKIP
        '7'
    """

    def __init__(self, contract: Contract, model: Model) -> None:
        self.folder = contract.folder
        self.labels = contract.labels
        self.preprocessing = contract.preprocessing
        self._contract = contract
        self._model = model

    @classmethod
    def load(cls, folder: str | Path, *, threads: int = 0, variant: str = "fp32") -> Bundle:
        """Check a bundle's files against their hashes, then load its model.

        Args:
            folder: The bundle.
            threads: Threads of one inference; 0 leaves the choice to ONNX Runtime.
            variant: Which of its graphs, as autoft.json names them.

        Raises:
            BundleError: A file is missing or altered, or this is no bundle for images.
        """
        contract = read_bundle(Path(folder), ("label", "labels", "values"), check_preprocessing)
        return cls(contract, Model(contract, ("pixel_values",), threads, variant))

    def pixels(self, image: ImageSource) -> NDArray[np.uint8]:
        """Return one image as the model's pixels (H, W, 3), before normalization. Raises `ImageError`."""
        return resize_and_crop(read_image(image), self.preprocessing)

    def run(self, pixel_values: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the outputs (N, K) of normalized images (N, 3, H, W) by name: `logits`, and of what scores there are."""
        return self._model.run({"pixel_values": pixel_values})

    def vectors(self, sources: Sequence[ImageSource]) -> dict[str, NDArray[np.float32]]:
        """Return what the model sees and says of a batch of images, by name: `pixel_values`, `logits`, and the scores.

        Raises:
            ImageError: One of them cannot be read.
        """
        inputs = self._inputs(sources)
        return {**inputs, **self._model.run(inputs)}

    def outputs(self, sources: Iterable[ImageSource], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Return the logits (N, K) of images, batch by batch.

        Raises:
            ImageError: One of them cannot be read.
        """
        rest = iter(sources)
        parts = []
        while batch := list(itertools.islice(rest, batch_size)):
            parts.append(self._model.run(self._inputs(batch))["logits"])
        return np.concatenate(parts) if parts else np.zeros((0, len(self.labels)), np.float32)

    def predict(self, inputs: Iterable[ImageSource], *, batch_size: int = 32) -> list[dict[str, Any]]:
        """Answer for images.

        Returns:
            For each input, in order, `input` and: `label`, `score` and `scores`, which has every label's probability; or
            `labels`, those whose probability reaches their threshold, and `scores`; or `value`, or `values` by name.

        Raises:
            ImageError: An input cannot be read; `answers` goes on to the others.
        """
        return predicted(self.answers(inputs, batch_size=batch_size), ImageError)

    def answers(self, inputs: Iterable[ImageSource], *, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """Answer for images batch by batch; an unreadable one gives `{"input", "error"}`, in its place."""
        return answer_all(inputs, batch_size, self.pixels, self._answer, _shown)

    def _answer(self, pixels: list[NDArray[np.uint8]]) -> Iterator[dict[str, Any] | InputError]:
        for row in self.run(normalize(np.stack(pixels), self.preprocessing))[self._contract.outputs[-1]]:
            try:
                yield answer_of(self._contract, row)
            except InputError as error:
                yield error

    def _inputs(self, sources: Sequence[ImageSource]) -> dict[str, NDArray[np.float32]]:
        pixels = np.stack([self.pixels(source) for source in sources])
        return {"pixel_values": normalize(pixels, self.preprocessing)}

    def limit(self, seconds: float) -> None:
        """Let a batch take no longer than so many seconds; 600 otherwise."""
        self._model.seconds = seconds

    def check(self) -> dict[str, Any]:
        """Replay the golden inputs of the bundle through this machine's runtime.

        Returns:
            `ok`; `tolerance`; the largest absolute differences of `pixel_values` (from the image files), `logits` and
            scores (from the stored pixel values) by name; `wrong`, inputs whose answer differs end to end.

        Raises:
            BundleError: The golden files are missing or do not fit together.
        """
        return check_golden(self._contract, self._model.run, self._inputs, self.answers, _golden_image)


def _shown(source: ImageSource) -> str | None:
    return str(source) if isinstance(source, (str, Path)) else None


def _golden_image(folder: Path, name: Any) -> Path:
    if not isinstance(name, str):
        raise BundleError(f"{folder}: `inputs` in golden.json must be file names, but got {name!r}")
    return inside(folder / "inputs", name)


# --- the command line -----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer for files, or check the bundle; return the exit code (0 fine, 1 check failed, 2 bad input)."""
    parser = make_parser("Answer for images with this bundle.", __file__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="images: JPEG, PNG, WebP or BMP")
    options = parse(parser, arguments, ("files",))
    return safely(lambda: _command(options))


def _command(options: argparse.Namespace) -> int:
    bundle = Bundle.load(options.bundle, variant=options.variant)
    if options.check:
        return print_check(bundle.check())
    unreadable = 0
    width, label_width = max(map(len, options.files)), max(map(len, bundle.labels))
    for answer in bundle.answers(options.files, batch_size=options.batch_size):
        if "error" in answer:
            unreadable += 1
            print(f"error: {answer['error']}", file=sys.stderr)
        else:
            print(json_answer(answer) if options.json else f"{answer['input']:{width}}  {plain_answer(answer, label_width)}")
    return 2 if unreadable else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
