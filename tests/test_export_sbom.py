"""The bill of materials names what autoft and its plugins are made of, all of it and nothing else, as CycloneDX 1.6."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from conftest import InstallPlugin

from autoft.export.sbom import bill_of_materials, closure, describe


class Package(metadata.Distribution):
    """An installed package that is only told of."""

    def __init__(self, name: str, requires: Sequence[str] = (), version: str = "1.0", **fields: Sequence[str]) -> None:
        lines = [f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}"]
        lines += [f"Requires-Dist: {line}" for line in requires]
        lines += [f"{field.replace('_', '-')}: {line}" for field, found in fields.items() for line in found]
        self.text = "\n".join(lines)

    def read_text(self, filename: str) -> str | None:
        return self.text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Path:
        return Path(path)


def names(packages: Sequence[Package], *roots: str) -> Mapping[str, list[str]]:
    """Return what the closure holds, with what each package requires."""
    known = {package.name: package for package in packages}

    def find(name: str) -> metadata.Distribution:
        if name not in known:
            raise metadata.PackageNotFoundError(name)
        return known[name]

    return {name: sorted(required) for name, (_, required) in closure(roots, find).items()}


def test_requirements_are_followed_all_the_way_down() -> None:
    packages = [
        Package("root", ["Lib_A>=2", "lib-b ; python_version >= '3'", "absent"]),
        Package("lib-a", ["lib-c", "root"]),  # a circle
        Package("lib-b"),
        Package("lib-c"),
        Package("bystander"),
    ]
    found = names(packages, "root")
    assert found == {"lib-a": ["lib-c", "root"], "lib-b": [], "lib-c": [], "root": ["lib-a", "lib-b"]}


def test_markers_and_extras_decide_what_is_required() -> None:
    packages = [
        Package("root", ["lib[fast]", "other ; sys_platform == 'none'", "tests ; extra == 'test'"]),
        Package("lib", ["engine ; extra == 'fast'", "docs ; extra == 'docs'"]),
        *map(Package, ("engine", "docs", "other", "tests")),
    ]
    assert names(packages, "root") == {"engine": [], "lib": ["engine"], "root": ["lib"]}


def test_requirement_that_is_none_says_nothing() -> None:
    assert names([Package("root", ["not a requirement !!", "lib"]), Package("lib")], "root") == {"lib": [], "root": ["lib"]}


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License_Expression": ["MIT"], "License": ["other"]}, {"expression": "MIT"}),
        ({"License": ["BSD"]}, {"license": {"name": "BSD"}}),
        ({"Classifier": ["License :: OSI Approved :: MIT License"]}, {"license": {"name": "MIT License"}}),
        ({"License": ["Copyright\n        All rights"], "Classifier": []}, None),
        ({}, None),
    ],
)
def test_licence_is_told_as_the_package_tells_it(fields: dict[str, list[str]], licence: Any) -> None:
    document = describe("model", {"lib": (Package("lib", **fields), frozenset())})
    assert document["components"][1].get("licenses") == ([licence] if licence else None)


def test_version_with_a_plus_is_escaped_in_the_packages_url() -> None:
    document = describe("model", {"torch": (Package("torch", version="2.0+cpu"), frozenset())})
    assert document["components"][1]["purl"] == "pkg:pypi/torch@2.0%2Bcpu"
    assert document["components"][1]["version"] == "2.0+cpu"


def check_references(document: Mapping[str, Any]) -> None:
    """Check what a schema cannot: each reference is of a component, and each component has its dependencies told."""
    components = [document["metadata"]["component"], *document["components"]]
    references = [component["bom-ref"] for component in components]
    assert len(set(references)) == len(references)
    told = [entry["ref"] for entry in document["dependencies"]]
    assert len(set(told)) == len(told)
    assert {*told, "python"} == set(references)
    assert all(set(entry["dependsOn"]) < set(references) for entry in document["dependencies"])


def test_this_environment_is_listed_and_equal_each_time() -> None:
    document = bill_of_materials("digits")
    assert document == bill_of_materials("digits")
    check_references(document)
    found = {component["name"]: component["version"] for component in document["components"]}
    for name in ("autoft", "torch", "onnxruntime", "optuna"):
        assert found[name] == metadata.version(name)
    assert "pytest" not in found  # installed, but nothing that made a model needs it
    assert document["metadata"]["component"] == {"type": "machine-learning-model", "bom-ref": "model", "name": "digits"}


def test_references_that_lead_nowhere_are_caught() -> None:
    document = bill_of_materials("digits")
    document["dependencies"][0]["dependsOn"].append("pkg:pypi/nothing@1")
    with pytest.raises(AssertionError):
        check_references(document)


def test_packages_of_plugins_are_listed(install_plugin: InstallPlugin) -> None:
    install_plugin("autoft_extra", "", package="autoft-extra", version="3.1")
    found = {component["name"]: component["version"] for component in bill_of_materials("digits")["components"]}
    assert found["autoft-extra"] == "3.1"


def test_document_is_of_the_schema() -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    validator = validation.JsonStrictValidator(SchemaVersion.V1_6)
    document = bill_of_materials("digits")
    assert validator.validate_str(json.dumps(document)) is None
    document["components"][0]["type"] = "snake"
    assert validator.validate_str(json.dumps(document)) is not None


def test_bundle_names_what_made_it(text_bundle: Any) -> None:
    made = text_bundle("label")
    document = json.loads((made.folder / "sbom.json").read_text())
    here = bill_of_materials(made.trained.facts["name"])  # where other tests may have installed plugins since
    assert document["metadata"]["component"] == here["metadata"]["component"]
    named = {component["name"]: component for component in document["components"]}
    assert {"CPython", "autoft", "torch", "onnx", "numpy"} <= named.keys()
    common = [component for component in here["components"] if component["name"] in named]
    assert len(common) > 20
    assert all(named[component["name"]] == component for component in common)
    assert "sbom.json" in json.loads((made.folder / "autoft.json").read_text())["files"]
