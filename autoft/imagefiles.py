"""Image files before training: which files are images, and whether each can be read, so that none breaks a training."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path

from PIL import Image

from autoft.runtime.image_classification import FORMATS, ImageError, ImageSource, check_image_file, read_image

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})

# Looking for images stops after this many names in all and in a folder, so that asking costs little on any path.
_NAMES = 5000
_NAMES_IN_FOLDER = 200
# Files that are read and decoded before the next ones are queued; bounds memory on millions of files.
_BATCH = 4096
# A decoded image takes 8 bytes a pixel: of those above these bounds, one at a time is read.
_LARGE_PIXELS = 1 << 24
_LARGE_BYTES = 1 << 26
_one_large = threading.Lock()


def is_image(name: str) -> bool:
    """Return whether a file's name ends like an image's."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def holds_class_folders(path: Path) -> bool:
    """Return whether a folder has a subfolder with an image in it; looks at no more than a few thousand names."""
    if not path.is_dir():
        return False
    left = _NAMES
    waiting = [(path, 0)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            entries = os.scandir(folder)
        except OSError:  # an unreadable folder holds nothing that could be loaded; loading it says so if asked
            continue
        with entries:
            for entry in islice(entries, _NAMES_IN_FOLDER):
                left -= 1
                if left < 0:
                    return False
                if entry.name.startswith("."):
                    continue
                if depth > 0 and is_image(entry.name):
                    return True
                if depth < 3 and entry.is_dir():
                    waiting.append((Path(entry.path), depth + 1))
    return False


def verify_images(sources: Sequence[Path | bytes]) -> Iterator[tuple[str, int] | str]:
    """Decode images; yield for each its content's hash and its longer side in pixels, or why it cannot be read."""
    # Threads: Pillow decodes without holding the interpreter's lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(sources), _BATCH):
            yield from pool.map(_verify, sources[start : start + _BATCH])


def _verify(source: Path | bytes) -> tuple[str, int] | str:
    try:
        if isinstance(source, Path):
            check_image_file(source)
        with in_turn(source):
            raw = source.read_bytes() if isinstance(source, Path) else source
            size = max(read_image(raw).size)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ImageError as error:
        return str(error).removeprefix(f"{source}: " if isinstance(source, Path) else "").removeprefix("image: ")
    return hashlib.blake2b(raw, digest_size=16).hexdigest(), size


def in_turn(source: ImageSource) -> AbstractContextManager[object]:
    """Return what to decode an image in: a lock where that takes much memory, by what its header says; else nothing."""
    if not isinstance(source, (str, Path, bytes)):
        return nullcontext()  # a file that is open is read once
    try:
        large = (len(source) if isinstance(source, bytes) else os.path.getsize(source)) > _LARGE_BYTES
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            large = large or image.width * image.height > _LARGE_PIXELS
    except Exception:  # noqa: BLE001 - Pillow raises nearly every type on damaged files; reading it says what is wrong
        large = False
    return _one_large if large else nullcontext()
