"""Finds the installed plugins and loads them into a catalog; knows no plugin by name, not even autoft's own.

`installed()` lists without importing; `discover()` loads. One broken plugin never takes the others down: it is left out,
kept as a record with its reason, warned about once, and named when something asked for might have come from it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from types import MappingProxyType
from typing import Any

import pluggy

from autoft import hookspecs
from autoft.catalog import NOUNS, Catalog
from autoft.errors import PluginError, nearest
from autoft.plugin_record import (
    Kind,
    PluginInfo,
    Provided,
    canonical,
    describe,
    one_line,
    type_name,
    with_record,
    write_record,
)
from autoft.plugin_version import requirement_problem, version_problem
from autoft.specs import WHOLE, BackboneFamily, DataFormat, Head, Logger, Strategy

__all__ = ["GROUP", "Catalog", "Kind", "PluginInfo", "Provided", "discover", "installed"]

GROUP = "autoft"

_Spec = BackboneFamily | Head | DataFormat | Strategy | Logger
_Specs = dict[tuple[Kind, str], _Spec]

_HOOKS: Mapping[str, tuple[Kind, type[_Spec]]] = {
    "autoft_backbones": ("family", BackboneFamily),
    "autoft_heads": ("head", Head),
    "autoft_data": ("data", DataFormat),
    "autoft_strategies": ("strategy", Strategy),
    "autoft_loggers": ("logger", Logger),
}
_SPEC_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")

logger = logging.getLogger("autoft")
_warned: set[tuple[str, str, str, str]] = set()


class _BrokenPluginError(Exception):
    """Why a plugin is left out; the exception behind it, if any, is its cause."""


def installed() -> tuple[PluginInfo, ...]:
    """List the installed plugins without importing any: autoft's own first, then by name.

    What the last loading found (`state`, `reason`, `provides`) comes from the record that `discover` keeps.
    """
    return with_record(_scan())


def discover(*, enabled: bool = True, allow: Collection[str] | None = None, strict: bool = False) -> Catalog:
    """Load the installed plugins, each by itself: autoft's own first, then by name.

    A broken plugin is logged as a warning once a process. `AUTOFT_TRACE_PLUGINS=1` adds the trace, and prints a line to
    stderr for each entry point as it is loaded: the seconds, and what it gave.

    Args:
        enabled: False loads autoft's own plugins only (`--no-plugins`).
        allow: Names of plugins, or of their packages, to load besides autoft's own; None loads all. Others are not
            imported.
        strict: Raise if any plugin is broken, for continuous integration.

    Returns:
        What the sound plugins provide, and a record of every plugin.

    Raises:
        PluginError: If `allow` names a plugin that is not installed; with `strict`, if any plugin is broken.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    specs: _Specs = {}
    plugins: list[PluginInfo] = []
    for plugin in _choose(_scan(), enabled, allow):
        if plugin.state == "not loaded yet":
            plugin = _load(plugin, manager, specs, plugins)
        if plugin.state == "broken":
            _warn_once(plugin)
        plugins.append(plugin)
    write_record(plugins)

    broken = [plugin for plugin in plugins if plugin.state == "broken"]
    if strict and broken:
        listed = "".join(f"\n  {plugin}: {plugin.reason}" for plugin in broken)
        raise PluginError(
            f"strict mode allows no broken plugin, but {len(broken)} of {len(plugins)} are broken:{listed}",
            "repair or uninstall them; AUTOFT_TRACE_PLUGINS=1 logs the traces",
        )
    return Catalog(
        families=MappingProxyType({s.name: s for s in specs.values() if isinstance(s, BackboneFamily)}),
        heads=MappingProxyType({s.name: s for s in specs.values() if isinstance(s, Head)}),
        data=MappingProxyType({s.name: s for s in specs.values() if isinstance(s, DataFormat)}),
        strategies=MappingProxyType({s.name: s for s in specs.values() if isinstance(s, Strategy)}),
        loggers=MappingProxyType({s.name: s for s in specs.values() if isinstance(s, Logger)}),
        plugins=tuple(plugins),
    )


# --- finding --------------------------------------------------------------------------------------


def _scan() -> tuple[PluginInfo, ...]:
    """Read the packages one by one: `metadata.entry_points()` lets a single damaged package hide every plugin."""
    found: list[PluginInfo] = []
    seen: set[str] = set()
    for distribution in metadata.distributions():
        package = None
        try:
            if f"[{GROUP}]" not in (distribution.read_text("entry_points.txt") or ""):
                continue
            package = distribution.metadata["Name"] or f"unnamed package in {distribution.locate_file('')}"
            if canonical(package) in seen:
                continue
            seen.add(canonical(package))
            # Python imports the first on sys.path; an older copy behind it does not count.
            first = next(iter(metadata.distributions(name=package)), distribution)
            version = first.metadata["Version"] or "of unknown version"
            points = first.entry_points.select(group=GROUP)
            found.extend(PluginInfo(point.name, point.value, package, version) for point in points)
        except Exception as error:  # noqa: BLE001 - damaged metadata fails in ways that importlib does not document
            if package is None:  # nothing says that it is a plugin
                logger.debug("a package in %s cannot be read: %s", distribution.locate_file(""), describe(error))
                continue
            reason = f"its package's metadata cannot be read: {describe(error)}"
            found.append(PluginInfo(package, "", package, "of unknown version", "broken", reason))
    return tuple(sorted(found, key=lambda plugin: (not plugin.own, plugin.name, plugin.package)))


def _choose(plugins: Iterable[PluginInfo], enabled: bool, allow: Collection[str] | None) -> list[PluginInfo]:
    """Mark plugins that are not to be imported: left out by the user, or of a name already taken."""
    plugins = list(plugins)
    if enabled and allow is not None:
        _check_allowed(allow, plugins)
    chosen: list[PluginInfo] = []
    taken: dict[str, PluginInfo] = {}
    for plugin in plugins:
        if not plugin.own and not enabled:
            plugin = replace(plugin, state="left out", reason="--no-plugins")
        elif not plugin.own and allow is not None and not _is_allowed(plugin, allow):
            plugin = replace(plugin, state="left out", reason="not among the allowed plugins")
        elif plugin.name in taken:
            plugin = replace(plugin, state="broken", reason=f"its name is already that of {taken[plugin.name]}")
        else:
            taken[plugin.name] = plugin
        chosen.append(plugin)
    return chosen


def _is_allowed(plugin: PluginInfo, allow: Collection[str]) -> bool:
    return plugin.name in allow or canonical(plugin.package) in map(canonical, allow)


def _check_allowed(allow: Collection[str], plugins: Collection[PluginInfo]) -> None:
    unknown = [name for name in allow if not any(_is_allowed(plugin, [name]) for plugin in plugins)]
    if unknown:
        known = {name for plugin in plugins for name in (plugin.name, plugin.package)}
        near = [f"`{match}`" for name in unknown for match in nearest(name, known)]
        raise PluginError(
            f"allowed plugins must be installed, but these are not: {', '.join(unknown)}",
            f"did you mean {' or '.join(near)}?" if near else "`autoft plugins` lists what is installed",
        )


# --- loading --------------------------------------------------------------------------------------


def _load(plugin: PluginInfo, manager: pluggy.PluginManager, specs: _Specs, before: Iterable[PluginInfo]) -> PluginInfo:
    """Add all of a plugin's specs to `specs`, or none; return its record."""
    seconds = time.perf_counter()
    try:
        # A plugin that prints must not end up in the output of `autoft ... --json`.
        with contextlib.redirect_stdout(sys.stderr), _named("loading it failed"):
            _refuse(requirement_problem(plugin))
            target = _import_target(plugin)
            _refuse(version_problem(plugin, target))
            imported = time.perf_counter()
            new = _collect(plugin, target, manager)
            _check_clashes(new, before)
    except _BrokenPluginError as error:
        if manager.has_plugin(plugin.name):
            manager.unregister(name=plugin.name)
        cause = error.__cause__
        trace = "".join(traceback.format_exception(cause)) if cause is not None else None
        broken = replace(plugin, state="broken", reason=one_line(str(error)), traceback=trace)
        _trace(broken, f"{time.perf_counter() - seconds:.3f} s, {broken.status}")
        return broken
    specs.update(new)
    provides = tuple(Provided(kind, name, one_line(str(spec.help))) for (kind, name), spec in new.items())
    given = ", ".join(f"{each.name} ({each.kind})" for each in provides) or "nothing"
    hooked = time.perf_counter() - imported
    _trace(plugin, f"imported in {imported - seconds:.3f} s, hooks called in {hooked:.3f} s, gave {given}")
    return replace(plugin, state="ok", provides=provides)


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise _BrokenPluginError(problem)


def _trace(plugin: PluginInfo, what: str) -> None:
    """Print, where `AUTOFT_TRACE_PLUGINS` asks for it, what came of an entry point: at once, whatever follows."""
    if _is_traced():
        print(f"{plugin.name} = {plugin.value} ({plugin.package} {plugin.version}): {what}", file=sys.stderr, flush=True)


def _is_traced() -> bool:
    return os.environ.get("AUTOFT_TRACE_PLUGINS", "0") not in ("", "0")


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Turn whatever foreign code raises into `_BrokenPluginError`, `SystemExit` included; Ctrl-C passes."""
    try:
        yield
    except (KeyboardInterrupt, _BrokenPluginError):
        raise
    except BaseException as error:
        # BaseException: a panic in a Rust extension is no Exception.
        raise _BrokenPluginError(f"{what}: {describe(error)}") from error


def _import_target(plugin: PluginInfo) -> object:
    """Import what the entry point names; `EntryPoint.load` would not tell a wrong name from a failing import."""
    module_name, _, attribute = (part.strip() for part in plugin.value.partition("[")[0].partition(":"))
    with _named(f"importing `{module_name}` failed"):
        try:
            target: object = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # A module that the plugin itself cannot import is another matter: there `name` is not part of the target.
            if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
                raise _BrokenPluginError(f"its entry point names module `{error.name}`, which does not exist") from error
            raise
    if attribute:
        with _named(f"reading `{attribute}` from `{module_name}` failed"):
            try:
                target = functools.reduce(getattr, attribute.split("."), target)
            except AttributeError as error:
                message = f"its entry point names `{plugin.value}`, but `{module_name}` has no `{attribute}`"
                raise _BrokenPluginError(message) from error
    return target


def _collect(plugin: PluginInfo, target: object, manager: pluggy.PluginManager) -> _Specs:
    """Register a plugin with pluggy, check its hooks, and call each."""
    if manager.is_registered(target):
        raise _BrokenPluginError(f"its target `{plugin.value}` is already loaded as plugin {manager.get_name(target)}")
    try:
        manager.register(target, name=plugin.name)
    except pluggy.PluginValidationError as error:
        raise _BrokenPluginError(_explain(error, target, manager)) from error
    implementations = [
        (caller, implementation)
        for caller in manager.get_hookcallers(target) or ()
        for implementation in caller.get_hookimpls()
        if implementation.plugin is target
    ]
    _check_hooks(target, implementations, manager)
    specs: _Specs = {}
    for caller, implementation in implementations:
        if caller.name in _HOOKS:
            # Called here and not through pluggy, so that another plugin's exception or wrapper has no part in it.
            with _named(f"hook `{caller.name}` raised"):
                result = implementation.function()
            _add(caller.name, result, specs)
    return specs


def _check_hooks(
    target: object,
    implementations: Collection[tuple[pluggy.HookCaller, pluggy.HookImpl]],
    manager: pluggy.PluginManager,
) -> None:
    for caller, implementation in implementations:
        if not caller.has_spec() and not implementation.optionalhook:
            near = nearest(caller.name, _HOOKS, count=1)
            advice = f"did you mean `{near[0]}`?" if near else f"it knows {', '.join(_HOOKS)}"
            raise _BrokenPluginError(f"hook `{caller.name}` is unknown to autoft; {advice}")
        if implementation.wrapper or implementation.hookwrapper:
            raise _BrokenPluginError(f"hook `{caller.name}` is marked as a wrapper, but autoft's hooks only collect lists")
    unmarked = [
        name
        for name in dir(target)
        if name.startswith("autoft_")
        and inspect.isroutine(function := inspect.getattr_static(target, name, None))
        and manager.parse_hookimpl_opts(target, name) is None
        and not hasattr(function, f"{hookspecs.PROJECT}_spec")  # the hook's own declaration, imported
    ]
    if not implementations:
        found = f" but has `{'`, `'.join(unmarked)}`" if unmarked else ""
        raise _BrokenPluginError(f"it implements no hook{found}; did you mark it with @autoft.hookimpl?")
    for name in unmarked:
        if name in _HOOKS:
            raise _BrokenPluginError(f"hook `{name}` would never be called; did you mark it with @autoft.hookimpl?")


def _explain(error: pluggy.PluginValidationError, target: object, manager: pluggy.PluginManager) -> str:
    """Say which hook has which wrong argument; pluggy's own message leaves the reader to compare signatures."""
    for name in dir(target):
        options = manager.parse_hookimpl_opts(target, name)
        if options is None:
            continue
        hook: pluggy.HookCaller | None = getattr(manager.hook, options.get("specname") or name, None)
        if hook is None or hook.spec is None:
            continue
        taken = pluggy.HookImpl(target, "", getattr(target, name), options).argnames
        if wrong := [argument for argument in taken if argument not in hook.spec.argnames]:
            allowed = ", ".join(f"`{argument}`" for argument in hook.spec.argnames) or "none"
            return f"hook `{hook.name}` is given no argument `{'`, `'.join(wrong)}`; its arguments are: {allowed}"
    return str(error)


def _add(hook: str, result: object, specs: _Specs) -> None:
    """Check what a hook returned and add it to the plugin's specs."""
    kind, spec_type = _HOOKS[hook]
    if not isinstance(result, list):
        raise _BrokenPluginError(
            f"hook `{hook}` must return a list of {spec_type.__name__}, but returned {type_name(result)}"
        )
    for index, spec in enumerate(result):
        if not isinstance(spec, spec_type):
            raise _BrokenPluginError(
                f"hook `{hook}` must return a list of {spec_type.__name__}, but [{index}] is {type_name(spec)}"
            )
        name: Any = spec.name
        if not isinstance(name, str) or not _SPEC_NAME.fullmatch(name):
            rule = "a name is lowercase letters, digits, '.', '_' and '-', and starts with a letter or digit"
            raise _BrokenPluginError(f"hook `{hook}` returned [{index}] with the name {name!r}, but {rule}")
        if (kind, name) == ("strategy", WHOLE):
            raise _BrokenPluginError(
                f"hook `{hook}` returned [{index}] with the name `{name}`, which means no strategy at all"
            )
        if (kind, name) in specs:
            raise _BrokenPluginError(f"hook `{hook}` returned [{index}] with the name `{name}` a second time")
        specs[kind, name] = spec


def _check_clashes(new: _Specs, before: Iterable[PluginInfo]) -> None:
    """Compare with the plugins loaded before, which keep their names."""
    for plugin in before:
        for given in plugin.provides:
            if (given.kind, given.name) in new:
                raise _BrokenPluginError(f"its {NOUNS[given.kind]} `{given.name}` is already provided by {plugin}")


def _warn_once(plugin: PluginInfo) -> None:
    # By identity, not by reason: a reason may hold an address that differs each time.
    identity = (plugin.name, plugin.value, plugin.package, plugin.version)
    if identity in _warned:
        return
    _warned.add(identity)
    line = f"{plugin} is broken and was left out: {plugin.reason}"
    if plugin.traceback and _is_traced():
        line = f"{line}\n{plugin.traceback}"
    logger.warning("%s", line)
