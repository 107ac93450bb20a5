"""The doctor tells what is there, and what to mend."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import pytest
from conftest import InstallPlugin
from packaging.requirements import Requirement

from autoft import doctor
from autoft.discovery import discover
from autoft.doctor import Finding, examine


def by_name(folder: Path) -> dict[str, Finding]:
    return {finding.about: finding for finding in examine(discover(), folder)}


def test_every_dependency_is_listed_with_its_version(tmp_path: Path) -> None:
    found = by_name(tmp_path)
    required = [Requirement(text) for text in metadata.requires("autoft") or () if "extra ==" not in text]
    assert len(required) > 10
    for requirement in required:
        assert found[requirement.name] == Finding(requirement.name, metadata.version(requirement.name))
    assert "python" in found
    assert "threads" in found["cpu"].value
    assert "GB free" in found["disk"].value


def test_package_that_is_missing_or_too_old_is_named_with_the_command() -> None:
    missing = doctor._package(Requirement("no-such-package>=2"))
    assert (missing.value, missing.problem) == ("not installed", "pip install 'no-such-package>=2'")
    old = doctor._package(Requirement("numpy>=999"))
    assert old.value == metadata.version("numpy")
    assert old.problem == "autoft needs numpy>=999: pip install 'numpy>=999'"


def test_broken_plugin_is_a_problem_and_a_sound_one_is_not(tmp_path: Path, install_plugin: InstallPlugin) -> None:
    install_plugin("torn", "import nothing_of_this_name\n", package="torn-package")
    plugins = [finding for finding in examine(discover(), tmp_path) if finding.about == "plugin"]
    (torn,) = [finding for finding in plugins if "torn" in finding.value]
    assert torn.value == "torn (torn-package 1.0): broken"
    assert "nothing_of_this_name" in str(torn.problem)
    assert str(torn.problem).endswith("mend or uninstall torn-package")
    assert [finding.problem for finding in plugins if finding is not torn] == [None] * (len(plugins) - 1)
    assert len(plugins) >= 4


def test_low_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("autoft.doctor.shutil.disk_usage", lambda folder: usage._replace(free=1_500_000_000))
    disk = by_name(tmp_path)["disk"]
    assert disk.value == f"1.5 GB free at {tmp_path}"
    assert "less than 2 GB are free" in str(disk.problem)
    monkeypatch.setattr("autoft.doctor.shutil.disk_usage", lambda folder: usage._replace(free=50_000_000_000))
    assert by_name(tmp_path)["disk"].problem is None
