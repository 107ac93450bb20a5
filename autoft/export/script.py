"""Makes a bundle's runtime script (`predict.py`), and loads it from its file as a bundle's receiver would run it."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from autoft import runtime
from autoft.errors import BundleError, ExportError
from autoft.runtime import shared
from autoft.specs import BackboneFamily, Head

SHARED = "autoft.runtime.shared"
RUNTIMES = {"image": "image_classification.py", "text": "text.py"}  # by the kind of preprocessing


def runtime_of(contract: Mapping[str, Any], head: Head, families: Mapping[str, BackboneFamily] = {}) -> Path:
    """Return autoft's own copy of the script that runs a bundle, or that of the plugin which its backbone is from.

    Args:
        contract: The bundle's.
        head: Its task.
        families: The installed backbone families by name.

    Raises:
        BundleError: autoft has no script for its kind of preprocessing.
    """
    if head.runtime is not None:
        return head.runtime
    preprocessing = contract.get("preprocessing")
    if not isinstance(preprocessing, Mapping):
        raise BundleError(f"autoft.json must hold `preprocessing`, but got {preprocessing!r}", "get the bundle again")
    kind = preprocessing.get("kind")
    plugins = {name: path for family in families.values() for name, path in family.runtimes.items()}
    if isinstance(kind, str) and kind in plugins and kind not in RUNTIMES:
        return plugins[kind]
    if not isinstance(kind, str) or kind not in RUNTIMES:
        known = ", ".join(dict.fromkeys((*RUNTIMES, *plugins)))
        raise BundleError(
            f"the installed plugins run bundles for {known} data, but this one is for {kind!r}",
            "install the plugin that made it; `predict.py` in the bundle runs without",
        )
    return Path(runtime.__file__).parent / RUNTIMES[kind]


def script_source(path: Path) -> str:
    """Return the source of a runtime script as one file that needs nothing of autoft.

    The statement `from autoft.runtime.shared import ...` is replaced by what that module holds. A script without it is
    returned as it is.

    Raises:
        ExportError: It imports something else of autoft, which no bundle has.
    """
    source = path.read_text(encoding="utf-8")
    lines, body = source.splitlines(keepends=True), ast.parse(source).body
    place = next((node for node in body if isinstance(node, ast.ImportFrom) and node.module == SHARED), None)
    if place is not None:
        assert place.end_lineno is not None  # of a parsed source, it is known
        lines[place.lineno - 1 : place.end_lineno] = [_without_head(Path(shared.__file__).read_text(encoding="utf-8"))]
    made = "".join(lines)
    for node in ast.walk(ast.parse(made)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        if any(name.split(".")[0] == "autoft" for name in names):
            raise ExportError(f"{path} must run without autoft, but its line {node.lineno} imports {', '.join(names)}")
    return made


def _without_head(source: str) -> str:
    """Return a module without its docstring and its `from __future__` line, which the script has."""
    body = ast.parse(source).body
    first = next(
        node
        for node in body
        if not isinstance(node, ast.Expr) and not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
    )
    return "".join(source.splitlines(keepends=True)[first.lineno - 1 :])


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
