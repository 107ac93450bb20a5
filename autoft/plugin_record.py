"""What is known of an installed plugin, and the file that keeps the last loading's findings; loads no plugin.

The file lets `autoft plugins` show a broken plugin with its reason without importing it. It is a cache: losing it loses
nothing but that, so a damaged one is replaced and an unwritable one is left alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from autoft.files import read_json, write_checked

OWN_PACKAGE = "autoft"

Kind = Literal["family", "head", "data", "strategy", "logger"]
State = Literal["ok", "broken", "left out", "not loaded yet"]

logger = logging.getLogger("autoft")


@dataclass(frozen=True)
class Provided:
    """One thing that a plugin gave when it was last loaded.

    Attributes:
        kind: `family`, `head` or `data`.
        name: The spec's name.
        help: The spec's own line of help.
    """

    kind: Kind
    name: str
    help: str


@dataclass(frozen=True)
class PluginInfo:
    """An installed plugin: what its package's metadata says, and what its last loading found.

    Attributes:
        name: The entry point's name.
        value: The entry point's target, such as `my_package.plugin`.
        package: The package that declares it.
        version: The package's version.
        state: `ok`, `broken`, `left out` (by `--no-plugins` or an allow-list), or `not loaded yet`.
        reason: Why it is broken or left out, on one line.
        provides: What it gave; empty unless `ok`.
        traceback: The full trace behind `reason` where this process loaded it and an exception was the cause.
    """

    name: str
    value: str
    package: str
    version: str
    state: State = "not loaded yet"
    reason: str | None = None
    provides: tuple[Provided, ...] = ()
    traceback: str | None = field(default=None, compare=False, repr=False)

    @property
    def own(self) -> bool:
        """Whether it ships with autoft itself."""
        return canonical(self.package) == OWN_PACKAGE

    @property
    def status(self) -> str:
        """The state as shown to people: `ok`, `broken: reason`, ..."""
        return self.state if self.reason is None else f"{self.state}: {self.reason}"

    def __str__(self) -> str:
        return f"plugin {self.name} ({self.package} {self.version})"


def canonical(package: str) -> str:
    """Return a package's name as indexes compare it, so that `My_Plugin` and `my-plugin` are equal."""
    return re.sub(r"[-_.]+", "-", package).lower()


def one_line(text: str, limit: int = 400) -> str:
    """Return foreign text as one line of printable characters, cut at `limit`; a plugin must not garble a terminal."""
    line = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(line.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def describe(error: BaseException) -> str:
    """Return an exception as one line, `ValueError: its message`, even where its own `__str__` fails."""
    try:
        message = one_line(str(error))
    except Exception as failure:  # noqa: BLE001 - foreign code, and its failure is what is told
        message = f"(its message cannot be shown: {type(failure).__name__})"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def type_name(value: object) -> str:
    """Return what a value is, in words for an error."""
    return f"the class {value.__name__} itself" if isinstance(value, type) else type(value).__name__


def record_path() -> Path:
    """Return the record file of this environment, under `$AUTOFT_CACHE` or the user's cache folder.

    Raises:
        RuntimeError: If the user has no home folder.
    """
    environment = hashlib.sha256(sys.prefix.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return _cache_folder() / f"plugins-{environment}.json"


def with_record(plugins: Iterable[PluginInfo]) -> tuple[PluginInfo, ...]:
    """Return the plugins with what their last loading found; only those without a state of their own are looked up."""
    plugins = tuple(plugins)
    recorded = {_key(known): known for known in _read()}
    return tuple(recorded.get(_key(plugin), plugin) if plugin.state == "not loaded yet" else plugin for plugin in plugins)


def write_record(plugins: Iterable[PluginInfo]) -> None:
    """Keep what this loading found; plugins that it left out keep what an earlier one found, uninstalled ones go."""
    kept = with_record(
        replace(plugin, state="not loaded yet") if plugin.state == "left out" else plugin for plugin in plugins
    )
    entries = [_to_json(plugin) for plugin in kept if plugin.state in ("ok", "broken")]
    if entries == [_to_json(plugin) for plugin in _read()]:
        return
    try:
        path = record_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checked(path, {"environment": sys.prefix, "plugins": entries})
    except (OSError, RuntimeError) as error:
        logger.debug("what the plugins' loading found could not be recorded: %s", error)


def _cache_folder() -> Path:
    if chosen := os.environ.get("AUTOFT_CACHE"):
        return Path(chosen)
    # The XDG specification has relative paths ignored.
    if (chosen := os.environ.get("XDG_CACHE_HOME")) and Path(chosen).is_absolute():
        return Path(chosen) / "autoft"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "autoft" / "Cache"
    elif sys.platform == "darwin":  # noqa: RET505 - a chain lets mypy pass over the other platforms' branches
        return Path.home() / "Library" / "Caches" / "autoft"
    else:
        return Path.home() / ".cache" / "autoft"


def _key(plugin: PluginInfo) -> tuple[str, str, str, str]:
    return plugin.name, plugin.value, plugin.package, plugin.version


def _read() -> tuple[PluginInfo, ...]:
    try:
        return tuple(_from_json(entry) for entry in read_json(record_path())["plugins"])
    except FileNotFoundError:
        return ()
    # ValueError covers bad JSON and bad UTF-8; the rest is valid JSON of another shape, and files that cannot be opened.
    except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        logger.debug("the record of the plugins' last loading is unreadable and is not used: %s", error)
        return ()


def _to_json(plugin: PluginInfo) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "value": plugin.value,
        "package": plugin.package,
        "version": plugin.version,
        "state": plugin.state,
        "reason": plugin.reason,
        "provides": [{"kind": given.kind, "name": given.name, "help": given.help} for given in plugin.provides],
    }


def _from_json(entry: Mapping[str, Any]) -> PluginInfo:
    if entry["state"] not in ("ok", "broken") or not isinstance(entry["reason"], str | None):
        raise ValueError(f"entry {entry!r} has no known state and reason")
    provides = tuple(Provided(given["kind"], _text(given["name"]), _text(given["help"])) for given in entry["provides"])
    for given in provides:
        if given.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {get_args(Kind)}, but got {given.kind!r}")
    name, value, package, version = (_text(entry[key]) for key in ("name", "value", "package", "version"))
    return PluginInfo(name, value, package, version, entry["state"], entry["reason"], provides)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text was expected, but got {value!r}")
    return value
