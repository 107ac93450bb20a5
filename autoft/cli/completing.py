"""What a shell offers after the tabulator key: settings, and what plugins provide; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator

import pydantic


def complete_setting(incomplete: str) -> list[str]:
    """Return the settings of a study that begin so, as `section.name=`."""
    from autoft.config.schema import StudyConfig

    return [f"{name}=" for name in _names(StudyConfig, "") if name.startswith(incomplete)]


def complete_export_setting(incomplete: str) -> list[str]:
    """Return the settings of the export that begin so, as `export.name=`."""
    return [name for name in complete_setting(incomplete) if name.startswith("export.")]


def complete_logger(incomplete: str) -> list[str]:
    """Return the loggers that begin so."""
    return [name for kind, name in _provided() if kind == "logger" and name.startswith(incomplete)]


def complete_task(incomplete: str) -> list[str]:
    """Return the tasks that begin so."""
    return [name for kind, name in _provided() if kind == "head" and name.startswith(incomplete)]


def complete_provided(incomplete: str) -> list[str]:
    """Return what plugins provide that begins so, of any kind, and the plugins themselves."""
    from autoft.discovery import installed

    names = {name for _, name in _provided()} | {plugin.name for plugin in installed()}
    return sorted(name for name in names if name.startswith(incomplete))


def _provided() -> Iterator[tuple[str, str]]:
    """Yield kind and name of what plugins provide, as they did when they were last loaded."""
    from autoft.discovery import installed

    for plugin in installed():
        for given in plugin.provides:
            yield given.kind, given.name


def _names(model: type[pydantic.BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, pydantic.BaseModel):
            yield from _names(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
