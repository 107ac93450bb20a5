"""What the loaded plugins provide, by name, with errors that say where a missing name might have come from."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar

from autoft.errors import AutoftError, BackboneError, DataError, PluginError, nearest
from autoft.plugin_record import Kind, PluginInfo, describe, type_name
from autoft.specs import Backbone, BackboneFamily, BackboneRequest, DataFormat, Head, Logger, Strategy

NOUNS: Mapping[Kind, str] = {
    "family": "backbone family",
    "head": "head",
    "data": "data format",
    "strategy": "strategy",
    "logger": "logger",
}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Catalog:
    """Everything that the loaded plugins provide, by name.

    Attributes:
        families: Backbone families.
        heads: Heads.
        data: Data formats.
        strategies: Strategies.
        loggers: Loggers.
        plugins: Every installed plugin in loading order: loaded, broken or left out.
    """

    families: Mapping[str, BackboneFamily] = field(default_factory=dict)
    heads: Mapping[str, Head] = field(default_factory=dict)
    data: Mapping[str, DataFormat] = field(default_factory=dict)
    strategies: Mapping[str, Strategy] = field(default_factory=dict)
    loggers: Mapping[str, Logger] = field(default_factory=dict)
    plugins: tuple[PluginInfo, ...] = ()

    def family(self, name: str) -> BackboneFamily:
        """Return the backbone family of that name; raises `PluginError` with the nearest names if there is none."""
        return self._get("family", self.families, name)

    def head(self, name: str) -> Head:
        """Return the head of that name; raises `PluginError` with the nearest names if there is none."""
        return self._get("head", self.heads, name)

    def data_format(self, name: str) -> DataFormat:
        """Return the data format of that name; raises `PluginError` with the nearest names if there is none."""
        return self._get("data", self.data, name)

    def logger(self, name: str) -> Logger:
        """Return the logger of that name; raises `PluginError` with the nearest names if there is none."""
        return self._get("logger", self.loggers, name)

    def origin(self, kind: Kind, name: str) -> PluginInfo | None:
        """Return the plugin that provides a spec, or None where it came from no plugin, as in tests."""
        for plugin in self.plugins:
            if plugin.state == "ok" and any((given.kind, given.name) == (kind, name) for given in plugin.provides):
                return plugin
        return None

    def resolve_backbone(
        self,
        full_name: str,
        weights: str = "pretrained",
        image_size: int | None = None,
        typical_size: int | None = None,
        features: str = "pooled",
        max_length: int | None = None,
    ) -> Backbone:
        """Resolve `FAMILY/MODEL`, split at the first slash, without building it.

        Args:
            full_name: Such as `timm/resnet18`.
            weights: `pretrained`, `none`, or a path to a local file or folder.
            image_size: Side of the square input in pixels, or None to let the family choose.
            typical_size: `RawData.typical_size` of the data, which guides that choice.
            features: The kind of features that the task needs.
            max_length: For texts, the most tokens of a sample, or None to choose by the data.

        Raises:
            BackboneError: If the name has no family or no model, or the family does not know the model.
            PluginError: If no installed plugin provides the family, or the plugin fails to resolve the model.
        """
        family_name, _, model = full_name.partition("/")
        if not family_name or not model:
            examples = ", ".join(f"{name}/{full_name.strip('/') or 'MODEL'}" for name in sorted(self.families))
            raise BackboneError(
                f"a backbone must be named FAMILY/MODEL, but got {full_name!r}",
                f"by installed family: {examples}" if examples else "no backbone family is installed",
            )
        family = self.family(family_name)
        request = BackboneRequest(model, weights, image_size, typical_size, features, max_length)
        backbone = self._call("family", family_name, "resolve", lambda: family.resolve(request))
        if not isinstance(backbone, Backbone):
            self._blame("family", family_name, f"`resolve` must return a Backbone, but returned {type_name(backbone)}")
        if not backbone.name.startswith(f"{family_name}/"):
            self._blame(
                "family", family_name, f"`resolve` must name its backbones {family_name}/MODEL, but named {backbone.name!r}"
            )
        return dataclasses.replace(backbone, request=request)

    def call_backbone(self, backbone: Backbone, what: str, call: Callable[[], _T]) -> _T:
        """Call what a backbone brings; what that raises beyond autoft's own errors, and memory, is its plugin's fault.

        Args:
            backbone: Of `resolve_backbone`.
            what: What it is, for the error.
            call: Calls it.

        Raises:
            PluginError: It is broken.
        """
        return self._call("family", backbone.name.partition("/")[0], what, call)

    def offered(self, preset: str, modality: str, task: str) -> tuple[str, ...]:
        """Return the backbones that the families offer to a preset: autoft's own first, then by the plugins' names.

        Args:
            preset: `fast`, `balanced` or `best`.
            modality: Of the data.
            task: Name of the head.

        Raises:
            PluginError: If a family fails to tell, or offers another's models.
        """
        names: dict[str, None] = {}
        for family in self.families.values():
            if family.modality not in (None, modality):
                continue
            found = self._call("family", family.name, "presets", functools.partial(family.presets, modality, preset, task))
            wrong = [name for name in found if not isinstance(name, str) or not name.startswith(f"{family.name}/")]
            if wrong:
                fault = f"`presets` must return names such as {family.name}/MODEL, but returned {wrong[0]!r} for {preset}"
                self._blame("family", family.name, fault)
            names |= dict.fromkeys(found)
        return tuple(names)

    def detect_data(self, path: Path) -> DataFormat:
        """Return the one data format that claims a path; a looser one gives way to those that go before it.

        Raises:
            DataError: If no format claims it, or several do.
            PluginError: If a format's `detect` fails.
        """
        claims = [
            name
            for name, known in sorted(self.data.items())
            if self._call("data", name, "detect", functools.partial(known.detect, path))
        ]
        giving_way = {name for claim in claims for name in self.data[claim].before}
        claims = [name for name in claims if name not in giving_way] or claims
        if len(claims) == 1:
            return self.data[claims[0]]
        if claims:
            origins = ", ".join(f"{name} ({origin})" if (origin := self.origin("data", name)) else name for name in claims)
            raise DataError(
                f"data must be of one format, but {path} looks like {len(claims)}: {origins}",
                f"choose one with `data.plugin`, such as `data.plugin={claims[0]}`",
            )
        if not os.path.exists(path):  # unlike Path.exists, False also where a parent folder may not be read
            raise DataError(f"data must exist, but nothing can be read at {path}", "check the path given as `data.path`")
        known = "".join(f"\n  {name}: {self.data[name].help}".rstrip(": ") for name in sorted(self.data))
        raise DataError(
            f"no installed data format recognizes {path}; known formats:{known or ' none'}{self._suspects()}",
            "arrange the data as one of these, or install a plugin for it; `autoft plugins` lists what is installed",
        )

    def _get(self, kind: Kind, known: Mapping[str, _T], name: str) -> _T:
        if name in known:
            return known[name]
        near = nearest(name, known)
        if near:
            hint = f"did you mean {' or '.join(f'`{match}`' for match in near)}?"
        elif known:
            hint = f"installed: {', '.join(sorted(known))}; `autoft plugins` says where each comes from"
        elif not any(plugin.own for plugin in self.plugins):
            hint = "autoft's own plugins were not found either: install autoft as a package, with pip"
        else:
            hint = "none is installed; `autoft plugins` lists all plugins"
        noun = NOUNS[kind]
        raise PluginError(f"{noun} must be one that is installed, but got {name!r}{self._suspects()}", hint)

    def _suspects(self) -> str:
        """Name the plugins that might have provided what is missing, a line each."""
        return "".join(
            f"\n  {plugin} {'is' if plugin.state == 'broken' else 'was'} {plugin.status}; it may have provided it"
            for plugin in self.plugins
            if plugin.state in ("broken", "left out")
        )

    def _call(self, kind: Kind, name: str, function: str, call: Callable[[], _T]) -> _T:
        """Call a spec's function; what it raises beyond autoft's own errors is the plugin's fault, and says so."""
        try:
            return call()
        except (AutoftError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - foreign code, and `_blame` raises
            self._blame(kind, name, f"`{function}` raised {describe(error)}", error)

    def _blame(self, kind: Kind, name: str, fault: str, cause: Exception | None = None) -> NoReturn:
        owner = self.origin(kind, name) or "an unknown plugin"
        raise PluginError(
            f"{NOUNS[kind]} {name} of {owner} is broken: {fault}",
            "report it to the plugin's author; `--no-plugins` leaves third-party plugins out",
        ) from cause
