"""Hostile and odd images, in data and as inputs of a bundle."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hostile import Case
from PIL import Image

FEW = ("--trials", 1, "--epochs", 1, "--set", "search.workers=0")


def _noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _rgb(side: int = 16) -> Image.Image:
    return Image.fromarray(_noise(side, side, 3))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, rows: bytes, *extra: bytes) -> bytes:
    """Write a PNG of greys by hand: one that says whatever it likes of its size."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + _chunk(b"IDAT", zlib.compress(rows, 9)) + _chunk(b"IEND", b"")


def _bomb() -> bytes:
    """A PNG of 50,000 x 50,000 in 2.4 MB."""
    return _png(50_000, 50_000, bytes(50_001 * 50_000 // 1000))


def _text_bomb() -> bytes:
    """A PNG whose comment unpacks to 1 GB."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1024)) + packer.flush()
    return _png(16, 16, bytes(17 * 16), _chunk(b"zTXt", b"Comment\0\0" + packed))


def _bmp(width: int, height: int) -> bytes:
    """A BMP that says whatever it likes of its size, without the pixels."""
    return (
        b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def _scans(times: int) -> bytes:
    """A JPEG whose last scan comes again and again: each costs a pass over all pixels, and 100 bytes."""
    raw = _saved(Image.new("RGB", (4000, 4000)), "JPEG", progressive=True)
    return raw[:-2] + raw[raw.rindex(b"\xff\xda") : -2] * times + b"\xff\xd9"


def _just_below(images: Path) -> None:
    """Eight images of as many pixels as are allowed, of 16 bits each: all at once they would take 12 GB."""
    packed = _saved(Image.fromarray(np.zeros((9400, 9400), np.uint16)), "PNG")
    for number in range(8):
        (images / "stripes-0" / f"large-{number}.png").write_bytes(packed)


def _animated(form: str) -> bytes:
    return _saved(_rgb(), form, save_all=True, append_images=[_rgb() for _ in range(3)])


def _oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _saved(_rgb(), "JPEG", exif=exif)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 16 16
(canary) (w) file (x) writestring
showpage
"""
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/><script>alert(1)</script></svg>'
XPM = b'/* XPM */\nstatic char *a[] = {"16 16 1 1", ". c #000000"};'


def _input(content: bytes, name: str) -> Callable[[Path], Sequence[object]]:
    """Give an image to a bundle."""

    def make(folder: Path) -> Sequence[object]:
        (folder / name).write_bytes(content)
        return "predict", "bundle", name

    return make


def _script(content: bytes, name: str) -> Callable[[Path], Sequence[object]]:
    def make(folder: Path) -> Sequence[object]:
        (folder / name).write_bytes(content)
        return "predict.py", folder / name

    return make


def _data(change: Callable[[Path], object], *arguments: object) -> Callable[[Path], Sequence[object]]:
    """Change a folder of images, and search on it."""

    def make(folder: Path) -> Sequence[object]:
        change(folder / "images")
        return "search", "images", "-b", "toy/mlp", *FEW, *arguments

    return make


def _among(content: bytes, name: str) -> Callable[[Path], Sequence[object]]:
    return _data(lambda images: (images / "stripes-0" / name).write_bytes(content))


def _sparse(images: Path) -> None:
    with (images / "stripes-0" / "000.png").open("r+b") as file:
        file.truncate(20 << 30)


REFUSED: dict[str, tuple[bytes, str, str]] = {
    "decompression bomb (PNG)": (_bomb(), "x.png", "pixels"),
    "decompression bomb (BMP)": (_bmp(60_000, 60_000), "x.bmp", "pixels"),
    "decompression bomb (a comment)": (_text_bomb(), "x.png", "x.png"),
    "JPEG of 3000 scans": (_scans(3000), "x.jpg", "scans"),
    "negative size": (_bmp(-5, 16), "x.bmp", "x.bmp"),
    "size of 2^31": (_png(2**31 - 1, 2**31 - 1, b""), "x.png", "x.png"),
    "truncated PNG": (_saved(_rgb(64), "PNG")[:2000], "x.png", "x.png"),
    "truncated JPEG": (_saved(_rgb(64), "JPEG")[:500], "x.jpg", "x.jpg"),
    "empty": (b"", "x.png", "is not a JPEG"),
    "text": (b"no image", "x.png", "is not a JPEG"),
    "EPS named PNG, which would run Ghostscript": (EPS, "x.png", "is not a JPEG"),
    "EPS": (EPS, "x.eps", "is not a JPEG"),
    "SVG": (SVG, "x.svg", "is not a JPEG"),
    "SVG named PNG": (SVG, "x.png", "is not a JPEG"),
    "XPM named PNG": (XPM, "x.png", "is not a JPEG"),
    "GIF": (_saved(_rgb().convert("P"), "GIF"), "x.gif", "is not a JPEG"),
    "TIFF": (_saved(_rgb(), "TIFF"), "x.tif", "is not a JPEG"),
    "TIFF named PNG": (_saved(_rgb(), "TIFF"), "x.png", "is not a JPEG"),
    "ICO": (_saved(_rgb(), "ICO"), "x.ico", "is not a JPEG"),
    "PDF named PNG": (_saved(_rgb(), "PDF"), "x.png", "is not a JPEG"),
    "JPEG 2000 named JPEG": (_saved(_rgb(), "JPEG2000"), "x.jpg", "is not a JPEG"),
}
HARMLESS: dict[str, tuple[bytes, str]] = {
    "JPEG named PNG": (_saved(_rgb(), "JPEG"), "x.png"),
    "CMYK JPEG": (_saved(_rgb().convert("CMYK"), "JPEG"), "x.jpg"),
    "16-bit PNG": (_saved(Image.fromarray(_noise(16, 16).astype(np.uint16) * 257), "PNG"), "x.png"),
    "bilevel PNG": (_saved(_rgb().convert("1"), "PNG"), "x.png"),
    "palette with transparency": (_saved(_rgb().convert("P"), "PNG", transparency=0), "x.png"),
    "alpha channel": (_saved(_rgb().convert("RGBA"), "PNG"), "x.png"),
    "animated PNG": (_animated("PNG"), "x.png"),
    "animated WebP": (_animated("WEBP"), "x.webp"),
    "one pixel": (_saved(_rgb(1), "PNG"), "x.png"),
    "1 x 60,000": (_saved(Image.new("RGB", (1, 60_000)), "PNG"), "x.png"),
    "60,000 x 1": (_saved(Image.new("RGB", (60_000, 1)), "PNG"), "x.png"),
    "turned by EXIF": (_oriented(6), "x.jpg"),
    "EXIF orientation that is none": (_oriented(99), "x.jpg"),
    "EXIF that is damaged": (_saved(_rgb(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), "x.jpg"),
    "ICC profile that is damaged": (_saved(_rgb(), "PNG", icc_profile=b"\xff" * 100), "x.png"),
}

CASES: tuple[Case, ...] = (
    *(Case(f"{name}: predict", _input(content, file), (words,)) for name, (content, file, words) in REFUSED.items()),
    *(Case(f"{name}: predict.py", _script(*REFUSED[name][:2]), (REFUSED[name][2],)) for name in list(REFUSED)[:3]),
    *(Case(f"{name}: predict", _input(*made), code=0) for name, made in HARMLESS.items()),
    *(
        Case(f"{name}: one of the images is left out", _among(*REFUSED[name][:2]), (REFUSED[name][1],), code=0)
        for name in ("decompression bomb (PNG)", "truncated JPEG", "EPS named PNG, which would run Ghostscript")
    ),
    Case("GIF among the images is passed over, and told", _among(*REFUSED["GIF"][:2]), code=0),
    Case("file of 20 GB, all holes", _data(_sparse), ("000.png",), code=0, seconds=120),
    Case("eight images just below the bound", _data(_just_below), code=0, seconds=120),
    Case("pipe named PNG", _data(lambda images: os.mkfifo(images / "stripes-0" / "x.png")), ("x.png",), code=0),
    Case(
        "link to the folder above",
        _data(lambda images: (images / "stripes-0" / "up").symlink_to("..")),
        ("left out", "copies"),
    ),
    Case("pipe: predict", lambda folder: (os.mkfifo(folder / "x.png"), ("predict", "bundle", "x.png"))[1], ("x.png",)),
    Case("device: predict", lambda folder: ("predict", "bundle", "/dev/zero"), ("/dev/zero",)),
    Case("folder: predict", lambda folder: ("predict", "bundle", "images"), ("images",)),
    Case(
        "link without an end",
        _data(lambda images: (images / "stripes-0" / "x.png").symlink_to("x.png")),
        ("symbolic links",),
    ),
    Case(
        "name that writes to the terminal",
        _data(lambda images: (images / "stripes-0" / "\x1b]0;owned\x07.png").write_bytes(b"no image")),
        code=0,
    ),
    Case(
        "class that writes to the terminal",
        _data(lambda images: (images / "stripes-0").rename(images / "\x1b]0;owned\x07")),
        code=0,
    ),
    Case(
        "name that is no UTF-8",
        _data(lambda images: Path(os.fsdecode(os.fsencode(images / "stripes-0") + b"/\xff.png")).write_bytes(b"no image")),
        code=0,
    ),
)
