"""Reads a bundle's `autoft.json`: what the bundle promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoft.errors import BundleError
from autoft.files import read_json

FORMAT = "autoft-bundle"
FORMAT_VERSION = 1


def read_contract(folder: Path) -> dict[str, Any]:
    """Return the content of a bundle's `autoft.json`.

    Raises:
        BundleError: The folder is not a bundle, or one of a newer autoft.
    """
    file = folder / "autoft.json"
    if not file.is_file():
        raise BundleError(
            f"a bundle is a folder with autoft.json, but {folder} {'has none' if folder.is_dir() else 'is no folder'}",
            "`autoft search` writes it to RUN_DIR/bundle",
        )
    try:
        contract = read_json(file)
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} is damaged: {error}", "get the bundle again, or export it again") from error
    if contract.get("format") != FORMAT or not isinstance(contract.get("task"), str):
        raise BundleError(f"{file} must be of the format {FORMAT!r}, but is {contract.get('format')!r}")
    if contract.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"this autoft reads bundles of format version {FORMAT_VERSION}, but {folder} has "
            f"{contract.get('format_version')!r}",
            "upgrade autoft; the bundle's own predict.py works without it",
        )
    return contract
