"""Imports run downward only, and light modules stay light; read from the source, so that a late import counts too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import autoft

ROOT = Path(autoft.__file__).parent

# Bottom to top. A module may import from lower layers and from its own, never in a circle. A package's name stands for all
# of its modules. `runtime` is copied into bundles and imports nothing else of autoft; `builtin` enters by entry points only.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("runtime",),
    ("errors", "specs", "files", "events", "ragged", "stopping"),
    ("hookspecs", "config", "plugin_record", "plugin_version", "catalog"),
    (
        "imagefiles",
        "quarantine",
        "splits",
        "tables",
        "images",
        "augment",
        "text",
        "batching",
        "decoded",
        "presets",
        "freezing",
        "weights",
        "head_start",
        "layers",
        "tasks",
        "hub",
        "hf_files",
        "hf_models",
        "timm_maps",
        "timm_models",
    ),
    ("confirm", "soup", "model", "mixing", "regularize", "averaging", "schedule", "gradients", "tokens", "loading"),
    ("train", "checkpoint", "knobs", "space", "prefix", "prefix_store", "prefix_data", "reuse", "resampling"),
    ("worker",),
    ("probe", "linear_probe", "tuning", "mix"),
    (
        "driver",
        "openings",
        "telling",
        "crew",
        "recipe",
        "refit",
        "failures",
        "identity",
        "engine",
        "processes",
        "worker_process",
        "trials",
        "storage",
        "optuna_tables",
        "outage",
        "seals",
        "promotion",
        "answered",
        "finish",
        "loggers",
        "contest",
        "session",
        "deployed",
        "determinism",
        "prepare",
        "preflight",
        "starter",
        "runfolder",
        "status",
        "listing",
        "contrast",
        "comparison",
        "export",
        "report",
        "dashboard",
        "discovery",
        "template",
        "deploy",
        "loaded",
        "signing",
        "verify",
        "inspection",
        "insight",
        "reproduce",
        "reexport",
        "push",
        "clean",
        "bench",
        "doctor",
        "testing",
    ),
    ("progress", "live", "notebook", "cli"),
    ("__main__",),
)
SEARCH_LAYER = next(level for level, names in enumerate(LAYERS) if "driver" in names)
LIGHT = ("autoft", "autoft.cli", "autoft.discovery", "autoft.specs", "autoft.config", "autoft.errors", "autoft.hookspecs")
HEAVY = frozenset({"torch", "datasets", "torchvision", "timm", "transformers", "sklearn", "optuna", "onnx", "onnxruntime"})


def module_name(path: Path, root: Path) -> str:
    """`export/onnx.py` -> `export.onnx`, `export/__init__.py` -> `export`, `__init__.py` -> ``."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, module: str, is_package: bool, modules: Iterable[str]) -> set[tuple[str, int]]:
    """Modules of autoft that a source imports, anywhere in it, with the line; `` is the package `autoft` itself."""
    known = set(modules)
    found: set[tuple[str, int]] = set()

    def add(name: str, line: int) -> None:
        if name == "autoft" or name.startswith("autoft."):
            found.add((name.removeprefix("autoft").removeprefix("."), line))

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            package = ["autoft", *module.split(".")] if module else ["autoft"]
            if not is_package:
                package.pop()
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            start = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                whole = f"{start}.{alias.name}"
                if whole.removeprefix("autoft.") in known:
                    add(whole, node.lineno)
                elif whole != "autoft.__version__":  # a constant that anyone may read
                    add(start, node.lineno)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                add(node.args[0].value, node.lineno)
    return found


def level_of(module: str) -> int | None:
    """Layer of a module, 0 at the bottom; None where the table does not know it."""
    if module == "":  # the public names gather from everywhere
        return len(LAYERS)
    top = module.split(".")[0]
    if top == "builtin":
        return SEARCH_LAYER
    return next((level for level, names in enumerate(LAYERS) if top in names), None)


def fault(importer: str, imported: str) -> str | None:
    """Why one module must not import another, or None where it may."""
    for module in (importer, imported):
        if level_of(module) is None:
            return f"{module} is in no layer: place it in LAYERS of tests/test_layering.py"
    lower, upper = level_of(imported), level_of(importer)
    assert lower is not None
    assert upper is not None
    importing, being_imported = importer.split(".")[0], imported.split(".")[0]
    if importing == "runtime" and imported != "runtime.shared":  # which the export puts into the script
        return "runtime is copied into bundles and must import nothing of autoft"
    if being_imported == "builtin":
        return "built-ins come in through entry points; nothing imports them"
    if importing == "builtin":
        # As a third party's plugin does: `import autoft` for the marker, and the contracts and tools below the search.
        return (
            None if imported == "" or lower < SEARCH_LAYER else f"a built-in must not import {imported}, which is above it"
        )
    return f"{imported} is above {importer}" if lower > upper else None


def check(root: Path) -> list[str]:
    """Every breach of the layers in a package folder, as `file:line: reason`, circles included."""
    files = {module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    faults = []
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        if level_of(module) is None:
            faults.append(
                f"{path.relative_to(root)}:1: {module} is in no layer: place it in LAYERS of tests/test_layering.py"
            )
            continue
        found = imports_of(path.read_text(encoding="utf-8"), module, path.name == "__init__.py", files)
        graph[module] = {imported for imported, _ in found} - {module, ""}
        for imported, line in sorted(found):
            if imported != module and (reason := fault(module, imported)):
                faults.append(f"{path.relative_to(root)}:{line}: {module} imports {imported or 'autoft'}: {reason}")
    return faults + [f"circle: {' -> '.join(circle)}" for circle in circles(graph)]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for imported in sorted(graph.get(module, ())):
                visit(imported, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    return found


def write_package(root: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


def test_imports_run_downward_only() -> None:
    modules = [module_name(path, ROOT) for path in ROOT.rglob("*.py")]
    assert {"errors", "specs", "discovery"} <= set(modules), "the check must find modules"
    found = check(ROOT)
    assert not found, "\n".join(["imports must run downward only:", *found])


def test_checker_sees_the_real_imports() -> None:
    path = ROOT / "discovery.py"
    found = {name for name, _ in imports_of(path.read_text(), "discovery", False, ["hookspecs", "specs", "errors"])}
    assert {"hookspecs", "specs", "errors"} <= found


@pytest.mark.parametrize(
    "source",
    [
        "from autoft.driver import search",
        "import autoft.driver",
        "from autoft import driver",
        "from . import driver",
        "from .driver import search",
        "def late():\n    from autoft.driver import search",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import autoft.driver",
        "import importlib\nimportlib.import_module('autoft.driver')",
    ],
)
def test_upward_import_is_caught(tmp_path: Path, source: str) -> None:
    root = write_package(tmp_path, {"__init__.py": "", "driver.py": "", "train.py": source})
    (found,) = check(root)
    assert found.startswith("train.py:")
    assert "driver is above train" in found


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"runtime/image.py": "from autoft import errors", "errors.py": ""}, "must import nothing of autoft"),
        ({"driver.py": "import autoft.builtin.timm", "builtin/timm.py": ""}, "nothing imports them"),
        ({"builtin/heads.py": "from autoft.builtin import timm", "builtin/timm.py": ""}, "nothing imports them"),
        ({"builtin/timm.py": "from ..driver import search", "driver.py": ""}, "a built-in must not import driver"),
        ({"export/onnx.py": "from ..cli import main", "cli.py": ""}, "cli is above export.onnx"),
        ({"train.py": "import autoft\nautoft.search('data')"}, "autoft: "),
        ({"specs.py": "import autoft.errors", "errors.py": "import autoft.specs"}, "circle: "),
        ({"mystery.py": ""}, "place it in LAYERS"),
    ],
)
def test_each_rule_has_a_case_that_it_catches(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    found = check(write_package(tmp_path, {"__init__.py": "", **files}))
    assert len(found) == 1
    assert reason in found[0]


def test_allowed_imports_pass(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from autoft.cli import main",
        "errors.py": "import json",
        "train.py": "from autoft import __version__\nfrom autoft.errors import AutoftError",
        "export/__init__.py": "from . import onnx",
        "export/onnx.py": "from ..errors import AutoftError\nimport autoft.export.parity",
        "export/parity.py": "",
        "builtin/timm.py": "import autoft\nfrom autoft.train import fit",
        "cli.py": "def run():\n    from autoft.export import onnx",
    }
    assert check(write_package(tmp_path, files)) == []


def loaded_by(module: str, watched: Iterable[str], then: str = "pass") -> set[str]:
    """Which of the watched packages are loaded after importing a module in a fresh interpreter, and doing something."""
    code = f"import sys, {module}; {then}; print(*sorted(set(sys.modules) & set({sorted(watched)!r})))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_light_module_imports_nothing_heavy(module: str) -> None:
    assert loaded_by(module, HEAVY) == set()


def test_listing_the_real_plugins_imports_none() -> None:
    listing = "plugins = autoft.discovery.installed(); assert any(plugin.own for plugin in plugins), plugins"
    assert loaded_by("autoft.discovery", HEAVY | {"autoft.builtin"}, listing) == set()


def test_heavy_import_is_caught() -> None:
    assert loaded_by("json.tool", {"argparse", "torch"}) == {"argparse"}
