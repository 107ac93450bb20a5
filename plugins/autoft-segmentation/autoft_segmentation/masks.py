"""Classes and mask files: which ids or colours there are, and what a mask's pixels mean; `data.py` finds the files.

A mask is a PNG or BMP file of the image's size. Its pixels are class ids (grey or palette), or colours that `classes.json`
or `classes.txt` names. 255 means that nobody knows, unless a class has that id.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.errors import DataError

if TYPE_CHECKING:
    import numpy as np

UNKNOWN = 255  # in masks as they are read: a pixel that takes no part in loss and metrics
MOST_CLASSES = 255  # a mask is one byte a pixel, and one value is `UNKNOWN`
FILES = ("classes.json", "classes.txt")
SHOWN = 10

Colour = tuple[int, int, int]
_HEX = re.compile(r"^(?P<name>.*\S)\s+#(?P<hex>[0-9a-fA-F]{6})$")


@dataclass(frozen=True)
class Classes:
    """The classes of some masks.

    Attributes:
        labels: Their names, in the order of the model's outputs.
        ids: The value of each in a mask of ids.
        colours: The colour of each, where the file of classes gives colours; empty otherwise.
        ignored: Further ids, or colours as `r << 16 | g << 8 | b`, of pixels that nobody knows.
    """

    labels: tuple[str, ...]
    ids: tuple[int, ...]
    colours: tuple[Colour, ...] = ()
    ignored: tuple[int, ...] = ()

    @property
    def palette(self) -> tuple[Colour, ...]:
        """A colour for each class: its own, or one of PASCAL VOC's map, in which neighbours differ."""
        return self.colours or tuple(voc_colour(index) for index in range(len(self.labels)))


@dataclass(frozen=True)
class Mask:
    """The target of one image.

    Attributes:
        source: The mask's file, or its bytes.
        size: Width and height.
        classes: What its values mean.
        present: Numbers of the classes that it has, ascending.
    """

    source: Path | bytes
    size: tuple[int, int]
    classes: Classes
    present: tuple[int, ...] = ()


def voc_colour(index: int) -> Colour:
    """Return a colour of PASCAL VOC's map: the index's bits are spread over red, green and blue, highest first.

    Example:
        >>> voc_colour(1), voc_colour(2), voc_colour(15)
        ((128, 0, 0), (0, 128, 0), (192, 128, 128))
    """
    parts = [0, 0, 0]
    for shift in range(7, -1, -1):
        for channel in range(3):
            parts[channel] |= (index >> channel & 1) << shift
        index >>= 3
    red, green, blue = parts
    return red, green, blue


# --- reading ----------------------------------------------------------------------------------------


def read_values(source: Path | bytes) -> np.ndarray:
    """Return a mask's raw values `(h, w)`, int32: ids of a grey or palette image, or colours.

    Colours are given as `-1 - (r << 16 | g << 8 | b)`, so that no colour is taken for an id.

    Raises:
        ValueError: It is no image that holds classes exactly; the message says why.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    from autoft.runtime.image_classification import MAX_PIXELS

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=("PNG", "BMP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"masks may have {MAX_PIXELS} pixels, but it has {image.width} x {image.height}")
            image.load()
            if image.mode in ("L", "P", "1") or image.mode.startswith("I"):
                return np.asarray(image).astype(np.int32)
            if image.mode in ("RGB", "RGBA"):
                parts = np.asarray(image.convert("RGB")).astype(np.int32)
                return -1 - (parts[..., 0] << 16 | parts[..., 1] << 8 | parts[..., 2])
            raise ValueError(f"masks must be grey, palette or RGB images, but it has the mode {image.mode}")
    except UnidentifiedImageError as error:
        raise ValueError("masks must be PNG or BMP files: others change values") from error
    except ValueError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged files
        raise ValueError(f"it cannot be decoded ({error})") from error


def to_classes(values: np.ndarray, classes: Classes, name: str) -> np.ndarray:
    """Return the class of each pixel `(h, w)`, uint8, `UNKNOWN` where there is none.

    Args:
        values: From `read_values`.
        classes: What they mean.
        name: Of the mask, for the message.

    Raises:
        DataError: A value means nothing.
    """
    import numpy as np

    found, places = np.unique(values, return_inverse=True)
    coloured = bool((found < 0).any())
    if coloured and not classes.colours:
        raise DataError(
            f"masks of colours need to say which class each colour is, but {name} is an RGB image without a file of classes",
            f"write {FILES[1]} with a line such as `road #804080` for each class, or save masks as grey PNG of ids",
        )
    known = {-1 - _packed(colour): index for index, colour in enumerate(classes.colours)} if coloured else {}
    known |= {} if coloured else {id_: index for index, id_ in enumerate(classes.ids)}
    ignored = {-1 - value for value in classes.ignored} if coloured else {UNKNOWN, *classes.ignored}
    table = np.full(len(found), UNKNOWN, np.uint8)
    for place, value in enumerate(found.tolist()):
        if value in known:
            table[place] = known[value]
        elif value not in ignored:
            raise _strange(value, classes, name, int((values == value).sum()))
    result: np.ndarray = table[places.reshape(values.shape)]
    return result


def read_mask(mask: Mask) -> np.ndarray:
    """Return the class of each pixel `(h, w)` of a target, uint8.

    Raises:
        DataError: It is not as it was when the data was read.
    """
    name = str(mask.source) if isinstance(mask.source, Path) else "a mask"
    try:
        values = read_values(mask.source)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the mask {name} was readable when the search began, but is not any more: {error}", "restore the file"
        ) from error
    if values.shape != (mask.size[1], mask.size[0]):
        shape = f"{values.shape[1]} x {values.shape[0]}"
        raise DataError(
            f"{name} was {mask.size[0]} x {mask.size[1]} when the search began, but is {shape}", "restore the file"
        )
    return to_classes(values, mask.classes, name)


def _packed(colour: Colour) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _strange(value: int, classes: Classes, name: str, pixels: int) -> DataError:
    known = [f"#{_packed(colour):06x}" for colour in classes.colours] if value < 0 else [str(id_) for id_ in classes.ids]
    shown = f"the colour #{-1 - value:06x}" if value < 0 else f"the class id {value}"
    listed = ", ".join(known[:SHOWN]) + (f", ... ({len(known)} in all)" if len(known) > SHOWN else "")
    return DataError(
        f"a mask's values must be those of classes ({listed}) or {UNKNOWN}, but {name} has {shown} in {pixels} pixels",
        f"add the class to {' or '.join(FILES)}, or correct the mask; a class named null is left out of loss and metrics",
    )


# --- the file of classes ----------------------------------------------------------------------------


def read_classes(folder: Path) -> Classes | None:
    """Return the classes that a data folder's `classes.json` or `classes.txt` names; None where it has neither.

    `classes.txt` has a name a line, its number from 0 being the id; `name #rrggbb` gives a colour. `classes.json` is a list
    of names; an object of names by id; or a list of objects with `name`, and `id` or `color` (`[r, g, b]`), or both. A class
    whose name is null is ignored.

    Raises:
        DataError: There are both, or the file is not as described.
    """
    files = [folder / name for name in FILES if (folder / name).is_file()]
    if len(files) > 1:
        raise DataError(f"{folder} must have one file of classes, but has {FILES[0]} and {FILES[1]}", "remove one of them")
    if not files:
        return None
    file = files[0]
    try:
        text = file.read_text(encoding="utf-8-sig")
        entries = _from_text(text) if file.suffix == ".txt" else _from_json(json.loads(text))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{file} is no file of classes: {error}", "see the README of autoft-segmentation for its forms"
        ) from error
    return _checked(entries, file)


_Entry = tuple[str | None, int, Colour | None]  # name, id, colour


def _from_text(text: str) -> list[_Entry]:
    entries: list[_Entry] = []
    for number, line in enumerate(text.rstrip().splitlines()):
        found = _HEX.match(line.strip())
        name, colour = (found["name"], _unpacked(int(found["hex"], 16))) if found else (line.strip(), None)
        if not name:
            raise ValueError(f"line {number + 1} is empty, but every line names the class of its number")
        entries.append((name, number, colour))
    return entries


def _from_json(content: Any) -> list[_Entry]:
    if isinstance(content, dict):
        return [(_name(name), int(id_), None) for id_, name in content.items()]
    if not isinstance(content, list):
        raise ValueError(f"it must be a list or an object, but is {type(content).__name__}")
    entries: list[_Entry] = []
    for number, entry in enumerate(content):
        if isinstance(entry, dict):
            if "name" not in entry:
                raise ValueError(f"entry {number} has no `name`")
            colour = entry.get("color")
            entries.append((_name(entry["name"]), int(entry.get("id", number)), None if colour is None else _colour(colour)))
        else:
            entries.append((_name(entry), number, None))
    return entries


def _name(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise ValueError(f"a class's name must be a text or null, but is {value!r}")
    return value


def _colour(value: Any) -> Colour:
    right = isinstance(value, list) and len(value) == 3 and all(isinstance(part, int) and 0 <= part <= 255 for part in value)
    if not right:
        raise ValueError(f"`color` must be [red, green, blue] in 0..255, but is {value!r}")
    red, green, blue = value
    return red, green, blue


def _unpacked(value: int) -> Colour:
    return value >> 16, value >> 8 & 255, value & 255


def _checked(entries: Sequence[_Entry], file: Path) -> Classes:
    named = [(name, id_, colour) for name, id_, colour in entries if name is not None]
    coloured = [colour for _, _, colour in entries if colour is not None]
    for what, values in (
        ("names", [name for name, _, _ in named]),
        ("ids", [id_ for _, id_, _ in entries]),
        ("colours", coloured),
    ):
        twice = next((value for place, value in enumerate(values) if value in values[:place]), None)
        if twice is not None:
            raise DataError(f"{what} of classes must differ, but {file} has {twice!r} twice", "correct the file")
    if not 2 <= len(named) <= MOST_CLASSES:
        raise DataError(f"there must be 2 to {MOST_CLASSES} classes, but {file} names {len(named)}", "correct the file")
    if coloured and len(coloured) != len(entries):
        raise DataError(f"all classes must have a colour or none, but in {file} {len(coloured)} of {len(entries)} have one")
    if any(id_ < 0 for _, id_, _ in entries):
        raise DataError(f"ids of classes must not be negative, but {file} has {min(id_ for _, id_, _ in entries)}")
    nameless = [(id_, colour) for name, id_, colour in entries if name is None]
    return Classes(
        tuple(name for name, _, _ in named),
        tuple(id_ for _, id_, _ in named),
        tuple(colour for _, _, colour in named if colour is not None),
        tuple(id_ if colour is None else _packed(colour) for id_, colour in nameless),
    )
