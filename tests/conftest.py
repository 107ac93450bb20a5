"""Fixtures that many test modules share: a cache of the test's own, and fake plugin packages."""

from __future__ import annotations

import functools
import importlib
import sys
import textwrap
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Protocol

import pytest

from autoft import discovery


class InstallPlugin(Protocol):
    """Installs a fake plugin package whose module, package and entry point all have one name, unless told otherwise."""

    def __call__(
        self,
        name: str,
        source: str,
        *,
        package: str | None = None,
        version: str = "1.0",
        entry_points: str | None = None,
        folder: Path | None = None,
    ) -> Path: ...


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps tests out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("AUTOFT_CACHE", str(folder))
    return folder


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InstallPlugin]:
    """Installs fake plugin packages beside what is really installed."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(discovery, "_warned", set())

    def install(
        name: str,
        source: str,
        *,
        package: str | None = None,
        version: str = "1.0",
        entry_points: str | None = None,
        folder: Path | None = None,
    ) -> Path:
        folder = folder or site
        package = package or name
        module = folder / f"{name}.py"
        module.write_text(textwrap.dedent(source))
        information = folder / f"{package.replace('-', '_')}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        points = f"[autoft]\n{name} = {name}\n" if entry_points is None else textwrap.dedent(entry_points)
        (information / "entry_points.txt").write_text(points)
        importlib.invalidate_caches()
        return module

    yield install
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def only_fake_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install_plugin: InstallPlugin) -> None:
    """Hides what is really installed, autoft's own plugins included."""
    monkeypatch.setattr(metadata, "distributions", functools.partial(metadata.distributions, path=[str(tmp_path / "site")]))
