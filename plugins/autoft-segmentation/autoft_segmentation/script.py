"""Runs a bundle for semantic segmentation: writes a mask for each image, of the image's size, or checks the bundle.

    pip install onnxruntime numpy pillow
    python predict.py photo.jpg                     # masks/photo.png, a palette image whose values are class numbers
    python predict.py --out elsewhere --json *.jpg
    python predict.py --check                       # replays golden/ on this machine

It imports nothing of autoft or torch; Python 3.10 will do.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from autoft.runtime.image_classification import (
    ImageError,
    ImageSource,
    check_preprocessing,
    normalize,
    read_image,
    resize_and_crop,
)
from autoft.runtime.shared import (
    BundleError,
    Contract,
    InputError,
    Model,
    answer_all,
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


class Bundle:
    """A loaded bundle; make it with `Bundle.load`.

    Attributes:
        folder: Where it lies.
        labels: Names of the classes; a mask's values are their places.
        palette: A colour for each class `(K, 3)`, uint8.
        preprocessing: How images become inputs.
    """

    def __init__(self, contract: Contract, model: Model) -> None:
        palette = contract.values.get("palette", ())
        if len(palette) != 3 * len(contract.labels):
            raise BundleError(f"{contract.folder}: `values.palette` in autoft.json must have 3 numbers for each label")
        self.folder = contract.folder
        self.labels = contract.labels
        self.palette = np.asarray(palette).reshape(-1, 3).clip(0, 255).astype(np.uint8)
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
            BundleError: A file is missing or altered, or this is no bundle for segmentation.
        """
        contract = read_bundle(Path(folder), ("mask",), check_preprocessing)
        return cls(contract, Model(contract, ("pixel_values",), threads, variant))

    def run(self, pixel_values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Return `logits` (N, K, h, w) and `classes` (N, H, W) of normalized images (N, 3, H, W)."""
        return self._model.run({"pixel_values": pixel_values})

    def vectors(self, sources: Sequence[ImageSource]) -> dict[str, NDArray[Any]]:
        """Return what the model sees and says of a batch of images, by name. Raises `ImageError`."""
        inputs = self._inputs(sources)
        return {**inputs, **self._model.run(inputs)}

    def outputs(self, sources: Iterable[ImageSource], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Return the logits (N, K, h, w) of images, batch by batch. Raises `ImageError`."""
        rest = iter(sources)
        parts = []
        while batch := list(itertools.islice(rest, batch_size)):
            parts.append(self._model.run(self._inputs(batch))["logits"])
        return np.concatenate(parts)

    def predict(self, inputs: Iterable[ImageSource], *, batch_size: int = 8) -> list[dict[str, Any]]:
        """Answer for images; see `answers`. Raises `ImageError` for the first that cannot be read."""
        return predicted(self.answers(inputs, batch_size=batch_size), ImageError)

    def answers(self, inputs: Iterable[ImageSource], *, batch_size: int = 8) -> Iterator[dict[str, Any]]:
        """Answer for images batch by batch.

        Yields:
            `input`, `mask`, which is the class of each pixel of the upright image (h, w), uint8, and `shares`: how much of
            the image each class has. An unreadable one gives `{"input", "error"}`, in its place.
        """
        return answer_all(inputs, batch_size, self._read, self._answer, _shown)

    def _read(self, source: ImageSource) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        image = read_image(source)
        return resize_and_crop(image, self.preprocessing), image.size

    def _answer(self, items: list[tuple[NDArray[np.uint8], tuple[int, int]]]) -> Iterator[dict[str, Any] | InputError]:
        found = self.run(normalize(np.stack([pixels for pixels, _ in items]), self.preprocessing))
        for logits, classes, (_, size) in zip(found["logits"], found["classes"], items, strict=True):
            if not np.isfinite(logits).all():
                yield InputError("the model's answer is not a finite number")
                continue
            mask = np.asarray(Image.fromarray(classes).resize(size, Image.Resampling.NEAREST))
            # of the classes as the model gave them: the same for any size of the image
            counts = np.bincount(classes.ravel(), minlength=len(self.labels)) / classes.size
            yield {"mask": mask, "shares": dict(zip(self.labels, counts.tolist(), strict=True))}

    def _inputs(self, sources: Sequence[ImageSource]) -> Mapping[str, NDArray[np.float32]]:
        pixels = np.stack([self._read(source)[0] for source in sources])
        return {"pixel_values": normalize(pixels, self.preprocessing)}

    def limit(self, seconds: float) -> None:
        """Let a batch take no longer than so many seconds; 600 otherwise."""
        self._model.seconds = seconds

    def check(self) -> dict[str, Any]:
        """Replay the golden inputs of the bundle through this machine's runtime.

        Returns:
            `ok`; `tolerance`; the largest absolute differences of `pixel_values` (from the image files) and `logits` (from
            the stored pixel values); the share of pixels whose class differs, as `classes`; `wrong`, inputs whose shares do.

        Raises:
            BundleError: The golden files are missing or do not fit together.
        """
        return check_golden(self._contract, self._model.run, self._inputs, self.answers, _golden_image)

    def picture(self, mask: NDArray[np.uint8]) -> Image.Image:
        """Return a mask as a palette image: its values stay the classes' numbers, and viewers show their colours."""
        image = Image.fromarray(mask)
        image.putpalette(self.palette.tobytes())
        return image


def _shown(source: ImageSource) -> str | None:
    return str(source) if isinstance(source, (str, Path)) else None


def _golden_image(folder: Path, name: Any) -> Path:
    if not isinstance(name, str):
        raise BundleError(f"{folder}: `inputs` in golden.json must be file names, but got {name!r}")
    return inside(folder / "inputs", name)


# --- the command line -------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Write masks of files, or check the bundle; return the exit code (0 fine, 1 check failed, 2 bad input)."""
    parser = make_parser("Write a mask for each image with this bundle.", __file__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="images: JPEG, PNG, WebP or BMP")
    parser.add_argument("--out", type=Path, default=Path("masks"), help="folder to write masks to (default: masks)")
    options = parse(parser, arguments, ("files",))
    return safely(lambda: _command(options))


def _command(options: argparse.Namespace) -> int:
    bundle = Bundle.load(options.bundle, variant=options.variant)
    if options.check:
        return print_check(bundle.check())
    targets = _targets(options.files, options.out)
    unreadable = 0
    for answer in bundle.answers(options.files, batch_size=min(options.batch_size, 8)):
        if "error" in answer:
            unreadable += 1
            print(f"error: {answer['error']}", file=sys.stderr)
            continue
        target = targets[answer["input"]]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            bundle.picture(answer["mask"]).save(target, "PNG")
        except OSError as error:
            raise InputError(f"{target}: cannot be written ({error.strerror or error})") from error
        written = {**answer, "written": str(target)}
        print(json_answer(written) if options.json else f"{answer['input']}  {target}  {plain_answer(answer)}")
    return 2 if unreadable else 0


def _targets(files: Sequence[str], out: Path) -> dict[str, Path]:
    """Return where the mask of each file goes. Raises `InputError` where two would be one, or one an input."""
    targets = {name: out / f"{Path(name).stem}.png" for name in files}
    seen: dict[Path, str] = {}
    for name, target in targets.items():
        if target in seen:
            raise InputError(f"masks are named after their images, but {seen[target]} and {name} would both be {target}")
        seen[target] = name
        if any(target.resolve() == Path(other).resolve() for other in files):
            raise InputError(f"{target}: is one of the inputs, which a mask must not replace; give another --out")
    return targets


if __name__ == "__main__":
    sys.exit(exit_code(main))
