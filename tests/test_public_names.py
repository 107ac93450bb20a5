"""Plugins import public names alone: those of the plugin author's guide, which all exist and are explained."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs" / "plugin-authors.md").read_text(encoding="utf-8")
EVERYTHING = ("autoft.specs", "autoft.runtime.shared", "autoft.runtime.image_classification")
CODE = re.compile(r"`([\w.]+)`")
SOURCES = sorted(
    path
    for path in (ROOT / "plugins").rglob("*.py")
    if not {"tests", "study", "build"} & set(path.relative_to(ROOT).parts) and "-" not in path.stem
)


def public() -> dict[str, set[str]]:
    """The guide's table: names by module."""
    section = GUIDE.partition("## Public names\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {module: set(CODE.findall(names)) for modules, names, _ in rows for module in CODE.findall(modules)}


def private_imports(source: str, known: Mapping[str, set[str]]) -> list[str]:
    """What a source imports of autoft beyond the public names, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            # `import autoft` shows no name
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] == "autoft"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "autoft":
            module = node.module or ""
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                all_of_it = module in EVERYTHING and not alias.name.startswith("_")
                if not (all_of_it or alias.name in known.get(module, ()) or whole in known):
                    found.append(whole)
    return found


def private_uses(source: str, known: Mapping[str, set[str]]) -> list[str]:
    """What a source takes of modules of autoft that it imports whole, beyond their public names."""
    tree = ast.parse(source)
    modules = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if f"{node.module}.{alias.name}" in known
    }
    return [
        f"{modules[node.value.id]}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
        if modules[node.value.id] not in EVERYTHING and node.attr not in known[modules[node.value.id]]
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT / "plugins").as_posix())
def test_plugin_imports_public_names_alone(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert private_imports(source, public()) + private_uses(source, public()) == []


def test_every_plugin_is_read() -> None:
    owners = {path.relative_to(ROOT / "plugins").parts[0] for path in SOURCES}
    assert owners == {folder.name for folder in (ROOT / "plugins").iterdir() if (folder / "pyproject.toml").is_file()}


def test_guides_own_examples_import_public_names_alone() -> None:
    blocks = [
        block for block in re.findall(r"^```python\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE) if "import " in block
    ]
    assert len(blocks) > 5
    assert [name for block in blocks for name in private_imports(block, public())] == []


@pytest.mark.parametrize("module", [module for module in public() if module not in EVERYTHING])
def test_public_name_is_there_and_explained(module: str) -> None:
    loaded = importlib.import_module(module)
    assert public()[module]
    for name in public()[module]:
        thing = getattr(loaded, name, None) or importlib.import_module(f"{module}.{name}")
        assert not (inspect.isroutine(thing) or inspect.isclass(thing)) or inspect.getdoc(thing), name


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from autoft.errors import BackboneError", []),
        ("from autoft.builtin.timm import resolve", ["autoft.builtin.timm.resolve"]),
        ("def late():\n    from autoft.train import fit", ["autoft.train.fit"]),
        ("from autoft.runtime.shared import _hidden", ["autoft.runtime.shared._hidden"]),
        ("import autoft.train", ["autoft.train"]),
        ("from autoft import hf_models\nhf_models.settle", []),
        ("from autoft import hf_models as theirs\ntheirs._load", ["autoft.hf_models._load"]),
    ],
)
def test_private_name_is_found(source: str, found: list[str]) -> None:
    assert private_imports(source, public()) + private_uses(source, public()) == found
