"""Pretrain a small timm backbone on rendered letters, as a stand-in for a hub: no digit and no scan is ever shown to it.

Letters of matplotlib's bundled fonts are bent, thickened and thinned, then scanned as the digits were (32x32 black and
white, counted in 4x4 blocks: 8x8 pixels of 17 levels). The weights are saved in timm's own folder layout, so that
`timm.create_model("local-dir:weights")` and autoft's `weights: weights` both read them.

    python pretrain.py                     # weights/model.safetensors and weights/config.json
    python pretrain.py weights --epochs 5 --seed 1
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import string
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

ARCHITECTURE = "test_resnet"
IMAGE_SIZE = 32

DEJAVU = tuple(
    f"DejaVu{cut}"
    for cut in (
        *("Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique"),
        *("SansMono", "SansMono-Bold", "SansMono-Oblique", "SansMono-BoldOblique"),
        *("Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic"),
    )
)
TRAINING_FONTS = (*DEJAVU, "cmr10", "cmb10", "cmss10", "cmti10", "cmmi10")
# Families of their own, no cut of which is in training: a bold of a known font would flatter the accuracy.
HELD_OUT_FONTS = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta", "cmtt10")

# Letters are scaled to one height, as the digits are, and then these capitals look like their small letters.
ALIKE = frozenset("CKOPSUVWXZ")
LABELS = tuple(sorted(set(string.ascii_letters) - ALIKE))

Transform = Callable[[Image.Image], Tensor]

CANVAS = 48  # pixels a side of a glyph before it is scanned
BITMAP = 32  # pixels a side of the black and white scan
SAMPLES_AN_EPOCH = 8192
BATCH = 128
LEARNING_RATE = 3e-3


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent / "weights", help="folder to write to")
    parser.add_argument("--epochs", type=int, default=8, help=f"passes of {SAMPLES_AN_EPOCH} freshly drawn letters")
    parser.add_argument("--seed", type=int, default=0, help="of the letters drawn and of the first weights")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error(f"--epochs must be at least 1, but got {arguments.epochs}")

    settings = {
        "architecture": ARCHITECTURE,
        "epochs": arguments.epochs,
        "seed": arguments.seed,
        "script": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
    }
    if made_with(arguments.out) == settings:
        print(f"{arguments.out}: already pretrained with these settings; delete the folder to do it again")
        return 0

    start = time.perf_counter()
    torch.set_num_threads(2)  # sums depend on the number of threads: a fixed one gives the same weights again
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(arguments.seed)
    folder = font_folder()
    glyphs, labels = draw_glyphs(folder, TRAINING_FONTS)
    unseen_glyphs, unseen_labels = draw_glyphs(folder, HELD_OUT_FONTS)
    print(
        f"{len(LABELS)} classes of letters, {len(TRAINING_FONTS)} fonts to train on, {len(HELD_OUT_FONTS)} held out",
        flush=True,
    )

    model = timm.create_model(ARCHITECTURE, num_classes=len(LABELS))
    # The architecture's own preprocessing, but for the size: random weights get it too, so that only the start differs.
    preprocessing = resolve_data_config({"input_size": (3, IMAGE_SIZE, IMAGE_SIZE)}, pretrained_cfg=model.pretrained_cfg)
    transform = create_transform(**preprocessing)
    generator = torch.Generator().manual_seed(arguments.seed)
    train(model, transform, glyphs, labels, arguments.epochs, generator)

    examination = torch.Generator().manual_seed(1_000_000 + arguments.seed)
    chosen = torch.arange(len(unseen_glyphs)).repeat(8)
    accuracy = evaluate(model, transform, unseen_glyphs[chosen], unseen_labels[chosen], examination)
    print(f"accuracy on {len(chosen)} letters of held-out fonts: {accuracy:.3f} (chance: {1 / len(LABELS):.3f})")
    write_folder(model, preprocessing, arguments.out, settings, accuracy)
    print(f"{arguments.out}: {ARCHITECTURE}, pretrained in {time.perf_counter() - start:.0f} s")
    return 0


# --- letters --------------------------------------------------------------------------------------


def font_folder() -> Path:
    """Return the folder of matplotlib's fonts; found without importing it, which would take a second."""
    found = importlib.util.find_spec("matplotlib")
    if found is None or found.origin is None:
        fail("the fonts of matplotlib are needed, but it is not installed", "pip install matplotlib")
    return Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"


def draw_glyphs(folder: Path, fonts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Return every letter of the fonts, (N, CANVAS, CANVAS) in 0..1, and their classes (N,); filling three quarters."""
    glyphs, labels = [], []
    for name in fonts:
        path = folder / f"{name}.ttf"
        if not path.is_file():
            fail(f"the font {path} is missing", "pip install --upgrade matplotlib")
        font = ImageFont.truetype(path, 96)
        for letter in string.ascii_letters:
            left, top, right, bottom = (round(edge) for edge in font.getbbox(letter))
            image = Image.new("L", (right - left, bottom - top))
            ImageDraw.Draw(image).text((-left, -top), letter, fill=255, font=font)
            scale = 0.75 * CANVAS / max(image.size)
            image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BOX)
            canvas = Image.new("L", (CANVAS, CANVAS))
            canvas.paste(image, ((CANVAS - image.width) // 2, (CANVAS - image.height) // 2))
            glyphs.append(torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255))
            labels.append(LABELS.index(letter.lower() if letter in ALIKE else letter))
    return torch.stack(glyphs), torch.tensor(labels)


def scan(glyphs: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random scan (N, 8, 8) of whole levels 0..16 for every glyph (N, CANVAS, CANVAS)."""
    return count_blocks(bend(change_stroke(glyphs[:, None], generator), generator), generator)[:, 0]


def change_stroke(glyphs: Tensor, generator: torch.Generator) -> Tensor:
    """Make strokes thicker or thinner: blur, then cut at a random level. Takes and gives (N, 1, H, W)."""
    blurred = F.avg_pool2d(F.avg_pool2d(glyphs, 5, 1, 2), 5, 1, 2)
    # A hairline's peak is low after the blur; a level above it would leave nothing of the letter.
    level = uniform(len(glyphs), 0.1, 0.5, generator) * blurred.amax((1, 2, 3)).clamp(max=0.9)
    return torch.sigmoid((blurred - level[:, None, None, None]) * 25)


def bend(glyphs: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, slant and wobble as a hand does; takes and gives (N, 1, H, W)."""
    count = len(glyphs)
    angle, slant = uniform(count, -0.2, 0.2, generator), uniform(count, -0.4, 0.4, generator)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros(count)
    matrix = torch.stack(
        [torch.stack([cosine, slant - sine, zero], 1), torch.stack([sine, cosine, zero], 1)],
        dim=1,
    )
    where = F.affine_grid(matrix, list(glyphs.shape), align_corners=False)
    coarse = torch.randn(count, 2, 5, 5, generator=generator) * uniform(count, 0.0, 0.11, generator)[:, None, None, None]
    wobble = F.interpolate(coarse, glyphs.shape[-2:], mode="bicubic", align_corners=True)
    return F.grid_sample(glyphs, where + wobble.permute(0, 2, 3, 1), align_corners=False)


def count_blocks(glyphs: Tensor, generator: torch.Generator) -> Tensor:
    """Fit each letter to the bitmap's height, then count the black pixels of 4x4 blocks: (N, 1, 8, 8) in 0..16."""
    count, half = len(glyphs), CANVAS / 2
    ink = glyphs[:, 0] > 0.5
    top, bottom = edges(ink.any(2))
    left, right = edges(ink.any(1))
    height = (bottom - top) / CANVAS * uniform(count, 1.0, 1.1, generator)
    # A letter wider than the bitmap is squeezed into it; others keep about their proportions.
    width = torch.maximum(height * uniform(count, 0.9, 1.8, generator), (right - left) / CANVAS)
    shift = (width - (right - left) / CANVAS) * uniform(count, -0.5, 0.5, generator)
    middle_x, middle_y = (left + right) / 2 / half - 1 + shift, (top + bottom) / 2 / half - 1
    zero = torch.zeros(count)
    matrix = torch.stack(
        [torch.stack([width, zero, middle_x], 1), torch.stack([zero, height, middle_y], 1)],
        dim=1,
    )
    where = F.affine_grid(matrix, [count, 1, BITMAP, BITMAP], align_corners=False)
    bitmap = (F.grid_sample(glyphs, where, align_corners=False) > 0.5).float()
    return (F.avg_pool2d(bitmap, 4) * 16).round()


def edges(filled: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and one past the last filled place of each row (N, L); the whole row where none is filled."""
    length = filled.shape[1]
    first = filled.float().argmax(1)
    last = length - filled.flip(1).float().argmax(1)
    return first.float(), last.float()


def uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Return `count` random numbers between low and high."""
    return torch.rand(count, generator=generator) * (high - low) + low


def to_inputs(levels: Tensor, transform: Transform) -> Tensor:
    """Return the model's input (N, 3, S, S) for levels (N, 8, 8), through pixels of 0..255, as the digits go."""
    pixels = (levels * (255 / 16)).round().to(torch.uint8).numpy()
    return torch.stack([transform(Image.fromarray(one).convert("RGB")) for one in pixels])


# --- training -------------------------------------------------------------------------------------


def train(
    model: nn.Module, transform: Transform, glyphs: Tensor, labels: Tensor, epochs: int, generator: torch.Generator
) -> None:
    """Train the model in place on freshly drawn scans, with one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    steps = epochs * (SAMPLES_AN_EPOCH // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.15)
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for _ in range(SAMPLES_AN_EPOCH // BATCH):
            chosen = torch.randint(len(glyphs), (BATCH,), generator=generator)
            outputs = model(to_inputs(scan(glyphs[chosen], generator), transform))
            loss = F.cross_entropy(outputs, labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}: loss {total / (SAMPLES_AN_EPOCH // BATCH):.3f}", flush=True)


@torch.inference_mode()
def evaluate(model: nn.Module, transform: Transform, glyphs: Tensor, labels: Tensor, generator: torch.Generator) -> float:
    """Return the share of scans that the model names rightly."""
    model.eval()
    right = 0
    for some, expected in zip(glyphs.split(512), labels.split(512), strict=True):
        right += int((model(to_inputs(scan(some, generator), transform)).argmax(1) == expected).sum())
    return right / len(labels)


# --- the folder -----------------------------------------------------------------------------------


def made_with(out: Path) -> dict[str, Any] | None:
    """Return the settings that a finished folder was made with, or None where there is none; refuses others' folders."""
    if not out.exists():
        return None
    try:
        if all(path.suffix == ".partial" for path in out.iterdir()):
            return None
        record = json.loads((out / "config.json").read_text(encoding="utf-8"))["pretraining"]
        digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    except (OSError, ValueError, LookupError, TypeError) as error:
        fail(f"{out} holds files that are not of this script ({error!r})", "choose another folder, or delete this one")
    return record["settings"] if record["sha256"] == digest else None


def write_folder(
    model: nn.Module, preprocessing: dict[str, Any], out: Path, settings: dict[str, Any], accuracy: float
) -> None:
    """Write the weights, then the configuration beside them, in timm's layout for the Hugging Face Hub."""
    out.mkdir(parents=True, exist_ok=True)
    weights = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    cfg = model.pretrained_cfg
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(LABELS),
        "num_features": model.num_features,
        "label_names": list(LABELS),
        "pretrained_cfg": {
            "tag": "letters",
            **preprocessing,
            "fixed_input_size": False,
            "num_classes": len(LABELS),
            "pool_size": None,
            "first_conv": cfg["first_conv"],
            "classifier": cfg["classifier"],
            "license": "apache-2.0",
        },
        "pretraining": {
            "settings": settings,
            "held_out_font_accuracy": round(accuracy, 4),
            "sha256": hashlib.sha256(weights).hexdigest(),
        },
    }
    for name, content in (("model.safetensors", weights), ("config.json", (json.dumps(config, indent=2) + "\n").encode())):
        # Under another name until it is whole: a run killed here must not leave half a file behind.
        partial = out / f"{name}.partial"
        partial.write_bytes(content)
        partial.replace(out / name)


def fail(message: str, hint: str) -> NoReturn:
    print(f"error: {message}\nhint: {hint}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    sys.exit(main())
