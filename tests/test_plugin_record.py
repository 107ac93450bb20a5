"""The record of the last loading: where it lies, what it survives, and what it forgets."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from autoft import plugin_record
from autoft.plugin_record import PluginInfo, Provided, canonical, describe, one_line, record_path, with_record, write_record

FOUND = PluginInfo("foo", "foo.plugin", "foo-pkg", "1.0")
LOADED = replace(FOUND, state="ok", provides=(Provided("head", "tags", "Tags for images"),))


def test_what_was_written_is_read_again() -> None:
    broken = PluginInfo("bar", "bar", "bar-pkg", "2.0", "broken", "reason \ud800 with half a character")
    write_record([LOADED, broken])
    assert with_record([FOUND, replace(broken, state="not loaded yet", reason=None)]) == (LOADED, broken)


@pytest.mark.parametrize("change", [{"version": "1.1"}, {"value": "foo.other"}, {"package": "other"}, {"name": "fob"}])
def test_another_version_package_or_target_is_not_loaded_yet(change: dict[str, str]) -> None:
    write_record([LOADED])
    other = replace(FOUND, **change)
    assert with_record([other]) == (other,)


def test_another_environment_has_a_record_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    write_record([LOADED])
    monkeypatch.setattr("sys.prefix", "/another/environment")
    assert with_record([FOUND]) == (FOUND,)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"{}",
        b'{"plugins": 3}',
        b'{"plugins": [3]}',
        b'{"plugins": [{"name": "foo"}]}',
        b"[" * 100_000,
        json.dumps({"plugins": [{**plugin_record._to_json(LOADED), "state": "great"}]}).encode(),
        json.dumps({"plugins": [{**plugin_record._to_json(LOADED), "version": 1}]}).encode(),
        json.dumps({"plugins": [{**plugin_record._to_json(LOADED), "provides": [{"kind": "x"}]}]}).encode(),
        json.dumps(
            {"plugins": [{**plugin_record._to_json(LOADED), "provides": [{"kind": "x", "name": "", "help": ""}]}]}
        ).encode(),
    ],
    ids=[
        "empty",
        "torn",
        "not UTF-8",
        "a list",
        "no plugins",
        "plugins no list",
        "entry no object",
        "entry without keys",
        "nested too deep",
        "unknown state",
        "version no text",
        "provided without name",
        "provided of unknown kind",
    ],
)
def test_damaged_record_is_told_and_replaced(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "autoft")
    record_path().write_bytes(content)
    assert with_record([FOUND]) == (FOUND,)
    assert "unreadable" in caplog.text
    write_record([LOADED])
    assert with_record([FOUND]) == (LOADED,)


def test_unwritable_record_is_told_and_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "autoft")
    file = tmp_path / "file"
    file.write_text("in the way")
    monkeypatch.setenv("AUTOFT_CACHE", str(file / "cache"))
    write_record([LOADED])
    assert "could not be recorded" in caplog.text
    assert with_record([FOUND]) == (FOUND,)


def test_user_without_a_home_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("could not determine home directory")

    for variable in ("AUTOFT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    write_record([LOADED])
    assert with_record([FOUND]) == (FOUND,)


def test_equal_findings_are_not_written_again() -> None:
    write_record([LOADED])
    before = record_path().stat()
    write_record([LOADED])
    assert record_path().stat().st_ino == before.st_ino
    assert record_path().stat().st_mtime_ns == before.st_mtime_ns


def test_uninstalled_plugins_are_forgotten() -> None:
    write_record([LOADED])
    write_record([PluginInfo("bar", "bar", "bar", "1", "ok")])
    assert with_record([FOUND]) == (FOUND,)


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({"AUTOFT_CACHE": "/chosen", "XDG_CACHE_HOME": "/xdg"}, "linux", "/chosen"),
        ({"AUTOFT_CACHE": "", "XDG_CACHE_HOME": "/xdg"}, "linux", "/xdg/autoft"),
        ({"XDG_CACHE_HOME": "relative"}, "linux", "/home/me/.cache/autoft"),
        ({}, "linux", "/home/me/.cache/autoft"),
        ({}, "darwin", "/home/me/Library/Caches/autoft"),
        ({"LOCALAPPDATA": "/local"}, "win32", "/local/autoft/Cache"),
        ({}, "win32", "/home/me/AppData/Local/autoft/Cache"),
    ],
)
def test_record_lies_where_the_platform_keeps_caches(
    environment: dict[str, str], platform: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AUTOFT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    assert record_path().parent == Path(expected)


def test_package_names_are_compared_as_indexes_do() -> None:
    assert canonical("My_Plugin.x") == canonical("my-plugin--X") == "my-plugin-x"


def test_foreign_text_becomes_one_printable_line() -> None:
    assert one_line("a\n  b\x1b[31m\tc") == "a b [31m c"
    assert len(one_line("x" * 1000)) == 400
    assert describe(ValueError()) == "ValueError"
