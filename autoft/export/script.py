"""Loads a runtime script (`predict.py`) from its file, as a bundle's receiver would run it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from autoft import runtime
from autoft.errors import BundleError, ExportError
from autoft.specs import Head

RUNTIMES = {"image": "image_classification.py", "text": "text.py"}  # by the kind of preprocessing


def runtime_of(contract: Mapping[str, Any], head: Head) -> Path:
    """Return autoft's own copy of the script that runs a bundle.

    Raises:
        BundleError: autoft has no script for its kind of preprocessing.
    """
    if head.runtime is not None:
        return head.runtime
    kind = contract.get("preprocessing", {}).get("kind")
    if kind not in RUNTIMES:
        raise BundleError(f"this autoft runs bundles for {' and '.join(RUNTIMES)} data, but this one is for {kind!r}")
    return Path(runtime.__file__).parent / RUNTIMES[kind]


def load_script(path: Path) -> ModuleType:
    """Import a bundle's script from its file, without leaving it in `sys.modules`."""
    spec = importlib.util.spec_from_file_location("autoft_bundle_script", path)
    if spec is None or spec.loader is None:
        raise ExportError(f"{path} is not a Python script")
    module = importlib.util.module_from_spec(spec)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a __pycache__ does not belong in a bundle
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = written
    return module
