"""A new plugin is whole: it is linted, installs without a network, loads, and passes its own tests as it is."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from commands import command

from autoft import __version__
from autoft.errors import PluginError
from autoft.hookspecs import HOOKS_VERSION
from autoft.template import KINDS, make_plugin


def run(*words: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_whole_and_clean(kind: str, tmp_path: Path) -> None:
    folder = make_plugin("night-sky", kind, tmp_path)
    assert folder == tmp_path / "autoft-night-sky"
    files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    expected = {
        ".github/workflows/tests.yml", ".gitignore", "README.md", "autoft_night_sky.py", "pyproject.toml",
        "tests/test_autoft_night_sky.py", *(["tests/example.night-sky"] if kind == "data" else []),
    }  # fmt: skip
    assert set(files) == expected
    for path, text in files.items():
        for word in ("@name@", "@package@", "@module@", "@kind@", "@hooks@", "@about@", "@use@", "@autoft@", "@options@"):
            assert word not in text, path
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["name"] == "autoft-night-sky"
    assert project["entry-points"]["autoft"] == {"night-sky": "autoft_night_sky"}
    assert project["dependencies"] == [f"autoft>={__version__}"]
    assert f"AUTOFT_HOOKS = {HOOKS_VERSION}\n".partition("\n")[0] in files["autoft_night_sky.py"]
    steps = yaml.safe_load(files[".github/workflows/tests.yml"])["jobs"]["tests"]["steps"]
    assert steps[-1] == {"run": "pytest"}
    run("-m", "ruff", "check", "--isolated", "--line-length", 125, "--select", "E,F,W,B,UP,SIM", ".", cwd=folder)
    run("-m", "ruff", "format", "--isolated", "--line-length", 125, "--check", ".", cwd=folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_new_plugin_installs_without_a_network_and_passes_its_own_tests(kind: str, tmp_path: Path) -> None:
    folder = make_plugin("night-sky", kind, tmp_path)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--target")
    run("-m", "pip", "install", *options, tmp_path / "site", folder, cwd=tmp_path)
    environment = {"PYTHONPATH": str(tmp_path / "site"), "AUTOFT_CACHE": str(tmp_path / "cache")}
    told = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=folder, **environment)
    passed = {"backbone": 18, "head": 12, "data": 9}[kind]  # a plugin's, a family's, a backbone's; a head's; a format's
    assert f"{passed} passed" in told


def test_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    folder = make_plugin("flowers", "head", tmp_path)
    (folder / "autoft_flowers.py").write_text("# mine\n")
    with pytest.raises(PluginError, match=r"a new plugin needs a new folder, but .*autoft-flowers is there"):
        make_plugin("flowers", "backbone", tmp_path)
    assert (folder / "autoft_flowers.py").read_text() == "# mine\n"
    (tmp_path / "autoft-trees").symlink_to(tmp_path / "nowhere")
    with pytest.raises(PluginError, match="is there"):
        make_plugin("trees", "head", tmp_path)


@pytest.mark.parametrize(
    "name", ["Flowers", "my_flowers", "autoft-flowers", "autoft", "3d", "-x", "x-", "a b", "../up", "", "é"]
)
def test_name_that_no_package_should_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"a plugin's name must be lowercase words .*, but got "):
        make_plugin(name, "head", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_kind_that_is_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="kind must be backbone, head, data, but got 'strategy'"):
        make_plugin("flowers", "strategy", tmp_path)


def test_command_names_the_files_and_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = command(monkeypatch, capsys, "plugins", "new", "flowers", "--kind", "data", "--into", tmp_path)
    assert made.code == 0
    assert str(tmp_path / "autoft-flowers" / "autoft_flowers.py") in made.out.splitlines()
    assert "pip install -e" in made.err
    again = command(monkeypatch, capsys, "plugins", "new", "flowers", "--kind", "data", "--into", tmp_path)
    assert (again.code, again.out) == (2, "")
