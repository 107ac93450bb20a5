"""Makes a bundle's runtime script (`predict.py`), and loads it from its file as a bundle's receiver would run it."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from autoft import runtime
from autoft.errors import BundleError, ExportError
from autoft.runtime import image_classification, shared
from autoft.specs import BackboneFamily, Head

SHARED, IMAGES = "autoft.runtime.shared", "autoft.runtime.image_classification"
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

    The statement `from autoft.runtime.shared import ...` is replaced by what that module holds. So is one that imports from
    `autoft.runtime.image_classification`, by what it names of it and what that needs; it takes one from `shared` too.
    A script without either is returned as it is.

    Raises:
        ExportError: It imports something else of autoft, which no bundle has.
    """
    source = path.read_text(encoding="utf-8")
    lines, body = source.splitlines(keepends=True), ast.parse(source).body
    places = [node for node in body if isinstance(node, ast.ImportFrom) and node.module in (SHARED, IMAGES)]
    texts = []
    for place in sorted(places, key=lambda node: node.module != SHARED):  # of which the others are made
        if place.module == SHARED:
            texts.append(_without_head(Path(shared.__file__).read_text(encoding="utf-8")))
        else:
            texts.append(_only(Path(image_classification.__file__), [alias.name for alias in place.names]))
    for place in reversed(places):  # from the end, so that the numbers of the lines before stay right
        lines[place.lineno - 1 : place.end_lineno] = texts if place is places[0] else []
    made = "".join(lines)
    for node in ast.walk(ast.parse(made)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        if any(name.split(".")[0] == "autoft" for name in names):
            raise ExportError(f"{path} must run without autoft, but its line {node.lineno} imports {', '.join(names)}")
    return made


def _only(path: Path, names: Sequence[str]) -> str:
    """Return what of a module defines some names, with what that needs of it, and with what it imports beside autoft's own.

    Raises:
        ExportError: It does not define one of them.
    """
    source = path.read_text(encoding="utf-8")
    lines, body = source.splitlines(keepends=True), ast.parse(source).body
    owners = {name: node for node in body for name in _defined(node)}
    unknown = [name for name in names if name not in owners]
    if unknown:
        raise ExportError(f"{path.name} must define what a runtime script imports of it, but has no {', '.join(unknown)}")
    needed, waiting = set[ast.stmt](), list(names)
    while waiting:
        node = owners[waiting.pop()]
        if node not in needed:
            needed.add(node)
            waiting += [one.id for one in ast.walk(node) if isinstance(one, ast.Name) and one.id in owners]
    kept = [node for node in body if node in needed or _imports(node)]
    return "\n".join("".join(lines[_start(node) - 1 : node.end_lineno]) for node in kept)


def _defined(node: ast.stmt) -> list[str]:
    """Return the names that a statement of a module binds, imports aside."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _imports(node: ast.stmt) -> bool:
    """Return whether a statement imports something that is not autoft's, for use or for types."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    if isinstance(node, ast.ImportFrom):
        return node.module not in ("__future__", SHARED)
    return isinstance(node, ast.Import)


def _start(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


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
