"""Fixtures that many test modules share: a cache of the test's own, fake plugin packages, toy images, a finished run."""

from __future__ import annotations

import functools
import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from autoft import discovery

if TYPE_CHECKING:
    from postgres import Server
    from text_bundles import Made

pytest.register_assert_rewrite("commands")


@dataclass(frozen=True)
class FinishedRun:
    """A finished search: its folder, the command's arguments, and what it printed."""

    path: Path
    arguments: tuple[object, ...]
    out: str
    err: str


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


# --- whole searches -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def toy_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the module path in which the package `toy-plugin` names autoft's toys as a plugin."""
    site = tmp_path_factory.mktemp("toy-site")
    information = site / "toy_plugin-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[autoft]\ntoy = autoft.testing.toy\n")
    return site


@pytest.fixture(scope="session")
def toy_env(toy_site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a process of its own needs in order to find the toys and leave the user's cache alone."""
    return {"PYTHONPATH": str(toy_site), "AUTOFT_CACHE": str(tmp_path_factory.mktemp("toy-cache"))}


@pytest.fixture
def toys(toy_site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs the toys in this process."""
    monkeypatch.syspath_prepend(str(toy_site))


@pytest.fixture(scope="session")
def toy_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of twelve images each, a folder a class."""
    from autoft.testing.toy import write_toy_images

    folder = tmp_path_factory.mktemp("images") / "stripes"
    write_toy_images(folder)
    return folder


@pytest.fixture(scope="session")
def finished(toy_env: dict[str, str], toy_images: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A search that the real command did from beginning to end: not to be changed, copy it first."""
    from commands import autoft

    run = tmp_path_factory.mktemp("finished") / "run"
    arguments = ("search", toy_images, "-b", "toy/mlp", "--trials", 3, "--epochs", 2, "-o", run)
    result = autoft(*arguments, env=toy_env)
    assert result.code == 0, result.err
    return FinishedRun(run, arguments, result.out, result.err)


@pytest.fixture(scope="session")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Bundles of texts by the kind of their answers, each made when first asked for: not to be changed, copy them first."""
    from text_bundles import make

    return functools.cache(lambda kind: make(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture
def fast_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the export and the report, which cost seconds, where they are not the point."""
    from commands import fake_export

    monkeypatch.setattr("autoft.finish.export_bundle", fake_export)
    monkeypatch.setattr("autoft.preflight.to_onnx", lambda *arguments, **named: None)
    monkeypatch.setattr("autoft.driver._report", lambda run, listener: None)


# --- a database server --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server; tests that need one are skipped, with the reason, where none is installed."""
    import postgres as servers

    reason = servers.why_not()
    if reason is not None:
        pytest.skip(reason)
    with servers.running() as server:
        yield server
