"""Runs an autoft image-classification bundle with onnxruntime, numpy and pillow alone.

autoft copies this file into every bundle as `predict.py`, and preprocesses with these same functions in training, so
that a bundle sees, bit for bit, what validation saw. It imports nothing of autoft or torch; Python 3.10 will do.

    python predict.py photo.jpg other.png --json
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ImageSource = str | Path | bytes | IO[bytes]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

# Pillow only warns from this size on, and a changed `Image.MAX_IMAGE_PIXELS` would change what is readable.
MAX_PIXELS = 89_478_485

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


class ImageError(ValueError):
    """A file cannot be read as an image, or is too large to be one."""


class BundleError(ValueError):
    """A bundle is incomplete, altered, or not for images."""


# --- preprocessing ----------------------------------------------------------------------------------


def read_image(source: ImageSource) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    The EXIF orientation is applied; of an animation the first frame is taken; greys of more than 8 bits are scaled, not
    clipped; an alpha channel is dropped and the colours below it stay, as Pillow's `convert("RGB")` does: timm,
    torchvision and transformers all read images that way, so pretrained weights expect it.

    Args:
        source: A path, the bytes of a file, or a binary file.

    Raises:
        ImageError: It is no whole JPEG, PNG, WebP or BMP image, or larger than `MAX_PIXELS`.
    """
    name = str(source) if isinstance(source, (str, Path)) else "image"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(f"{name}: images may have {MAX_PIXELS} pixels, but it has {width} x {height}")
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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # These hold 16-bit greys, which `convert` would clip to white. The high byte, as Pillow takes of 16-bit RGB.
        values = np.clip(np.asarray(image).astype(np.float64), 0, 65535).astype(np.uint16)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
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
    check(interpolation in INTERPOLATIONS, f"`interpolation` must be one of {', '.join(INTERPOLATIONS)}", interpolation)
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
        labels: Class names in the order of the outputs.
        preprocessing: The declaration that `resize_and_crop` and `normalize` follow.

    Example:
        >>> bundle = Bundle.load("runs/digits/bundle")  # doctest: +SKIP
        >>> bundle.predict(["seven.png"])[0]["label"]  # doctest: +SKIP
        '7'
    """

    def __init__(self, folder: Path, labels: Sequence[str], preprocessing: Mapping[str, Any], session: Any) -> None:
        self.folder = folder
        self.labels = tuple(labels)
        self.preprocessing = preprocessing
        self._session = session

    @classmethod
    def load(cls, folder: str | Path, *, threads: int = 0) -> Bundle:
        """Check a bundle's files against their hashes, then load its model.

        Args:
            folder: The bundle.
            threads: Threads of one inference; 0 leaves the choice to ONNX Runtime.

        Raises:
            BundleError: A file is missing or altered, or this is no bundle for images.
        """
        folder = Path(folder)
        contract = _read_json(folder / "autoft.json")
        files, labels = contract.get("files"), contract.get("labels")
        if not isinstance(files, dict) or not {"onnx/model.onnx"} <= set(files):
            raise BundleError(f"{folder}: autoft.json must list onnx/model.onnx in `files`")
        for name, digest in files.items():
            _check_file(folder, name, digest)
        if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
            raise BundleError(f"{folder}: `labels` in autoft.json must be a list of names, but got {labels!r}")
        preprocessing = contract.get("preprocessing")
        if not isinstance(preprocessing, dict):
            raise BundleError(f"{folder}: autoft.json must hold `preprocessing`")
        try:
            check_preprocessing(preprocessing)
        except ValueError as error:
            raise BundleError(f"{folder}: {error}") from error
        session = _load_model(folder / "onnx" / "model.onnx", len(labels), threads)
        return cls(folder, labels, preprocessing, session)

    def pixels(self, image: ImageSource) -> NDArray[np.uint8]:
        """Return one image as the model's pixels (H, W, 3), before normalization. Raises `ImageError`."""
        return resize_and_crop(read_image(image), self.preprocessing)

    def run(self, pixel_values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits and probabilities (N, K) of normalized images (N, 3, H, W)."""
        logits, probabilities = self._session.run(["logits", "probabilities"], {"pixel_values": pixel_values})
        return logits, probabilities

    def vectors(self, sources: Sequence[ImageSource]) -> dict[str, NDArray[np.float32]]:
        """Return what the model sees and says of a batch of images, by name: `pixel_values`, `logits`, `probabilities`.

        Raises:
            ImageError: One of them cannot be read.
        """
        pixel_values = normalize(np.stack([self.pixels(source) for source in sources]), self.preprocessing)
        logits, probabilities = self.run(pixel_values)
        return {"pixel_values": pixel_values, "logits": logits, "probabilities": probabilities}

    def outputs(
        self, sources: Sequence[ImageSource], *, batch_size: int = 32
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits and probabilities (N, K) of images, batch by batch.

        Raises:
            ImageError: One of them cannot be read.
        """
        parts = [self.vectors(sources[start : start + batch_size]) for start in range(0, len(sources), batch_size)]
        logits, probabilities = (np.concatenate([part[name] for part in parts]) for name in ("logits", "probabilities"))
        return logits, probabilities

    def predict(self, inputs: Sequence[ImageSource], *, batch_size: int = 32) -> list[dict[str, Any]]:
        """Classify images.

        Returns:
            One `{"input", "label", "score", "scores"}` an input, in order; `scores` maps every label to its probability.

        Raises:
            ImageError: An input cannot be read; `answers` goes on to the others.
        """
        answers = []
        for answer in self.answers(inputs, batch_size=batch_size):
            if "error" in answer:
                raise ImageError(answer["error"])
            answers.append(answer)
        return answers

    def answers(self, inputs: Sequence[ImageSource], *, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """Classify images batch by batch; an unreadable one gives `{"input", "error"}`, in its place."""
        for start in range(0, len(inputs), batch_size):
            chunk = [(source, self._try_pixels(source)) for source in inputs[start : start + batch_size]]
            readable = [pixels for _, pixels in chunk if isinstance(pixels, np.ndarray)]
            rows = iter(self.run(normalize(np.stack(readable), self.preprocessing))[1]) if readable else iter(())
            for source, pixels in chunk:
                name = str(source) if isinstance(source, (str, Path)) else None
                if isinstance(pixels, ImageError):
                    yield {"input": name, "error": str(pixels)}
                    continue
                row = next(rows)
                best = int(row.argmax())
                scores = {label: float(score) for label, score in zip(self.labels, row, strict=True)}
                yield {"input": name, "label": self.labels[best], "score": float(row[best]), "scores": scores}

    def _try_pixels(self, source: ImageSource) -> NDArray[np.uint8] | ImageError:
        try:
            return self.pixels(source)
        except ImageError as error:
            return error

    def check(self) -> dict[str, Any]:
        """Replay the golden inputs of the bundle through this machine's runtime.

        Returns:
            `ok`; `tolerance`; the largest absolute differences of `pixel_values` (from the image files), `logits` and
            `probabilities` (from the stored pixel values); `wrong_labels`, inputs whose label differs end to end.

        Raises:
            BundleError: The golden files are missing or do not fit together.
        """
        folder = self.folder / "golden"
        golden = _read_json(folder / "golden.json")
        names, labels, tolerance = golden.get("inputs"), golden.get("labels"), golden.get("tolerance")
        if not isinstance(names, list) or not isinstance(labels, list) or not len(names) == len(labels) > 0:
            raise BundleError(f"{folder}: golden.json must name as many `labels` as `inputs`, at least one")
        if not all(isinstance(name, str) for name in names):
            raise BundleError(f"{folder}: `inputs` in golden.json must be file names, but got {names!r}")
        if not isinstance(tolerance, (int, float)):
            raise BundleError(f"{folder}: golden.json must hold `tolerance`, but got {tolerance!r}")
        try:
            stored = {
                name: np.load(folder / f"{name}.npy", allow_pickle=False)
                for name in ("pixel_values", "logits", "probabilities")
            }
            images = [_inside(folder / "inputs", name) for name in names]
            pixel_values = normalize(np.stack([self.pixels(image) for image in images]), self.preprocessing)
        except (OSError, ValueError) as error:
            raise BundleError(f"{folder}: cannot be replayed ({error})") from error
        answers = self.run(pixel_values)[1].argmax(axis=1)
        shapes = {"pixel_values": pixel_values.shape, "logits": (len(names), len(self.labels))}
        for name, values in stored.items():
            shape = shapes.get(name, shapes["logits"])
            if values.shape != shape or values.dtype != np.float32:
                raise BundleError(f"{folder}: {name}.npy must be float32 {shape}, but is {values.dtype} {values.shape}")
        logits, probabilities = self.run(stored["pixel_values"])
        found = {"pixel_values": pixel_values, "logits": logits, "probabilities": probabilities}
        differences = {name: float(np.abs(values - stored[name]).max()) for name, values in found.items()}
        wrong = [name for name, label, best in zip(names, labels, answers, strict=True) if self.labels[best] != label]
        # `<=` is false for NaN, which must fail too.
        ok = not wrong and all(difference <= tolerance for difference in differences.values())
        return {"ok": ok, "tolerance": tolerance, **differences, "wrong_labels": wrong}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: is missing or no JSON ({error})") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path}: must hold a JSON object")
    return value


def _inside(folder: Path, name: str) -> Path:
    """Return a file of a folder; refuse names that lead out of it, and links, which may."""
    path = PurePosixPath(name)
    # Windows would read a backslash or a drive in a name that looks plain here.
    plain = path.parts and not path.is_absolute() and ".." not in path.parts and not PureWindowsPath(name).drive
    if not plain or "\\" in name:
        raise BundleError(f"{folder}: files must lie inside the bundle, but one is named {name!r}")
    here = folder
    for part in path.parts:
        here = here / part
        if here.is_symlink():
            raise BundleError(f"{folder}: {name} must be a file of the bundle, but is or lies behind a link")
    return here


def _check_file(folder: Path, name: str, digest: object) -> None:
    path = _inside(folder, name)
    if not path.is_file():
        raise BundleError(f"{folder}: {name} is missing")
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    if hashed.hexdigest() != digest:
        raise BundleError(f"{folder}: {name} was altered: its SHA-256 is not the one in autoft.json")


def _load_model(path: Path, classes: int, threads: int) -> Any:
    import onnxruntime  # here: training shares this module and must not need a runtime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = [value.name for value in session.get_inputs()]
    outputs = {value.name: value.shape for value in session.get_outputs()}
    if inputs != ["pixel_values"] or not {"logits", "probabilities"} <= set(outputs):
        found = f"{', '.join(inputs)} -> {', '.join(outputs)}"
        raise BundleError(f"{path}: must take pixel_values and give logits and probabilities, but it is {found}")
    width = outputs["logits"][-1]
    if isinstance(width, int) and width != classes:
        raise BundleError(f"{path}: has {width} outputs, but autoft.json has {classes} labels")
    return session


# --- the command line -----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Classify files, or check the bundle; return the exit code (0 fine, 1 check failed, 2 bad input)."""
    parser = argparse.ArgumentParser(description="Classify images with this bundle.")
    parser.add_argument("files", nargs="*", metavar="FILE", help="images: JPEG, PNG, WebP or BMP")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line: input, label, score")
    parser.add_argument(
        "--bundle", type=Path, default=Path(__file__).resolve().parent, help="bundle folder (default: the script's)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images at once (default: 32)")
    parser.add_argument("--check", action="store_true", help="replay golden/ and print the largest differences")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, but got {options.batch_size}")
    if not options.files and not options.check:
        parser.error("name at least one FILE, or use --check")
    if options.check and options.files:
        parser.error("--check replays the bundle's own images and takes no FILE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text that the terminal can show
    try:
        bundle = Bundle.load(options.bundle)
        return _check(bundle) if options.check else _predict(bundle, options)
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _check(bundle: Bundle) -> int:
    result = bundle.check()
    for name in ("pixel_values", "logits", "probabilities"):
        print(f"{name:13}  largest difference {result[name]:.3g}")
    for name in result["wrong_labels"]:
        print(f"wrong label: {name}")
    print(f"{'ok' if result['ok'] else 'FAILED'}: the tolerance is {result['tolerance']:g}")
    return 0 if result["ok"] else 1


def _predict(bundle: Bundle, options: argparse.Namespace) -> int:
    unreadable = 0
    name_width = max(len(name) for name in options.files)
    label_width = max(len(label) for label in bundle.labels)
    for answer in bundle.answers(options.files, batch_size=options.batch_size):
        if "error" in answer:
            unreadable += 1
            print(f"error: {answer['error']}", file=sys.stderr)
        elif options.json:
            print(json.dumps({key: answer[key] for key in ("input", "label", "score")}))
        else:
            print(f"{answer['input']:{name_width}}  {answer['label']:{label_width}}  {answer['score']:.4f}")
    return 2 if unreadable else 0


def _run() -> int:
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader of a pipe, such as `head`, has seen enough; what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


if __name__ == "__main__":
    sys.exit(_run())
