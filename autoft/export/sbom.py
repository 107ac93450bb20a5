"""Lists the packages that made a bundle, as a CycloneDX bill of materials; nothing of it is needed to run the bundle.

https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

SPEC_VERSION = "1.6"
ROOT = "autoft"
ENTRY_POINTS = "autoft"  # the group of plugins, whose packages count too
MODEL, PYTHON = "model", "python"  # references of what is no package
OSI_CLASSIFIER = "License :: OSI Approved :: "

Find = Callable[[str], metadata.Distribution]


def bill_of_materials(name: str) -> dict[str, Any]:
    """Return the packages of this environment that autoft and its plugins are made of, as a CycloneDX 1.6 document.

    Packages that none of them requires are not named: they took no part, and may be nobody's business. There is neither a
    time nor a serial number in it, so that equal environments give equal files.

    Args:
        name: Of the model that they made.
    """
    plugins = {point.dist.name for point in metadata.entry_points(group=ENTRY_POINTS) if point.dist is not None}
    return describe(name, closure([ROOT, *sorted(plugins)]))


def closure(
    roots: Iterable[str], find: Find = metadata.distribution
) -> dict[str, tuple[metadata.Distribution, frozenset[str]]]:
    """Return installed packages and what they require, all the way down, by canonical name in alphabetical order.

    Args:
        roots: Names of packages.
        find: Gives an installed package by name. Raises `PackageNotFoundError`.

    Returns:
        Each package with the names of those that it requires here, by its markers and the extras that are asked of it. What
        is required but not installed is left out: it took no part.
    """
    found: dict[str, metadata.Distribution] = {}
    required: dict[str, set[str]] = {}
    done: set[tuple[str, str]] = set()
    waiting = deque((canonicalize_name(root), "") for root in roots)
    while waiting:
        name, extra = waiting.popleft()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        try:
            found[name] = find(name)
        except metadata.PackageNotFoundError:
            continue
        required.setdefault(name, set())
        for requirement in _requirements(found[name]):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                other = canonicalize_name(requirement.name)
                required[name].add(other)
                waiting.extend((other, wanted) for wanted in ("", *sorted(requirement.extras)))
    return {name: (found[name], frozenset(required[name] & found.keys() - {name})) for name in sorted(found)}


def describe(name: str, packages: Mapping[str, tuple[metadata.Distribution, frozenset[str]]]) -> dict[str, Any]:
    """Return packages, and Python, as a CycloneDX document of a model that they made."""
    references = {key: _reference(package) for key, (package, _) in packages.items()}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {
            "component": {"type": "machine-learning-model", "bom-ref": MODEL, "name": name},
            "lifecycles": [{"phase": "build"}],
        },
        "components": [
            {
                "type": "platform",
                "bom-ref": PYTHON,
                "name": platform.python_implementation(),
                "version": platform.python_version(),
            },
            *(_component(package) for package, _ in packages.values()),
        ],
        "dependencies": [
            {"ref": MODEL, "dependsOn": [PYTHON, *references.values()]},
            *(
                {"ref": references[key], "dependsOn": sorted(references[other] for other in required)}
                for key, (_, required) in packages.items()
            ),
        ],
    }


def _component(package: metadata.Distribution) -> dict[str, Any]:
    reference = _reference(package)
    found = _licence(package)
    return {
        "type": "library",
        "bom-ref": reference,
        "name": package.name,
        "version": package.version,
        "purl": reference,
        **({"licenses": [found]} if found else {}),
    }


def _reference(package: metadata.Distribution) -> str:
    """Return a package's URL (purl), which also names it within the document."""
    return f"pkg:pypi/{canonicalize_name(package.name)}@{package.version.replace('+', '%2B')}"


def _licence(package: metadata.Distribution) -> dict[str, Any] | None:
    """Return what a package says of its licence: an SPDX expression, or else a name; None where it says nothing."""
    told: Any = package.metadata
    if expression := told.get("License-Expression"):
        return {"expression": expression}
    classifiers = [line.removeprefix(OSI_CLASSIFIER) for line in told.get_all("Classifier", []) if OSI_CLASSIFIER in line]
    text = (told.get("License") or "").strip()
    # the old field often holds a whole licence's text
    name = text if text and "\n" not in text else ", ".join(classifiers)
    return {"license": {"name": name}} if name else None


def _requirements(package: metadata.Distribution) -> list[Requirement]:
    """Return what a package requires; what an old package wrote against the rules says nothing that could be followed."""
    found = []
    for line in package.requires or ():
        try:
            found.append(Requirement(line))
        except InvalidRequirement:
            continue
    return found
