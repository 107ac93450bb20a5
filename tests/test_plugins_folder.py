"""The packages under `plugins/` are whole, and the run of all tests installs each of them against the core as it is."""

from __future__ import annotations

import itertools
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = sorted(path for path in (ROOT / "plugins").iterdir() if (path / "pyproject.toml").is_file())


def installed_by(script: str, root: Path) -> list[str]:
    """Return what the line of a script that calls pip installs, as the shell expands it."""
    (line,) = [line for line in script.splitlines() if "pip install" in line]
    options = line.partition("pip install")[2]
    shown = subprocess.run(["sh", "-c", f"printf '%s\\n' {options}"], cwd=root, capture_output=True, text=True, check=True)
    words = shown.stdout.split("\n")
    return [after.split("[")[0] for word, after in itertools.pairwise(words) if word == "-e"]


def test_there_are_some() -> None:
    assert {"autoft-peft", "autoft-torchvision"} <= {folder.name for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_package_is_whole(folder: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == folder.name
    assert any(re.match(r"autoft\b(?!-)", requirement) for requirement in project["dependencies"])
    assert project["entry-points"]["autoft"]
    assert (folder / project["readme"]).read_text().startswith(f"# {folder.name}\n")
    assert list((folder / "tests").glob("test_*.py"))


def test_run_of_all_tests_installs_every_package() -> None:
    found = installed_by((ROOT / "tests" / "run.sh").read_text(), ROOT)
    assert found == [".", *(f"plugins/{folder.name}" for folder in FOLDERS)]


def test_package_that_is_not_installed_is_found(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "plugins" / name).mkdir(parents=True)
    assert installed_by("pip install -e '.[test]' -e plugins/one\n", tmp_path) == [".", "plugins/one"]
