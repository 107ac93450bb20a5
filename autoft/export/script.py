"""Loads a runtime script (`predict.py`) from its file, as a bundle's receiver would run it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from autoft.errors import ExportError


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
