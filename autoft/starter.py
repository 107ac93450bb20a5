"""Writes the study file that a study of some data begins with: what was found, and every setting, explained."""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from autoft.config import HUB, StudyConfig
from autoft.config.document import Dumper
from autoft.config.schema import SECTIONS, Section, plain_entry
from autoft.errors import AutoftError, printable
from autoft.events import Event
from autoft.files import write_text
from autoft.knobs import SETTINGS
from autoft.prepare import DATA_OPTIONS, Prepared
from autoft.specs import Choice, Range

WIDTH = 100
# set in the file even at their default: what people change first
FIRST = frozenset({"search.trials", "search.metric", "search.seed", "trainer.epochs", "trainer.device", "export.quantize"})
AT_DEFAULT = "#"  # before a setting, without a space; before a sentence there is one


def starter(prepared: Prepared, heard: Sequence[Event], folder: Path) -> str:
    """Return a study file for data: what was found is set, everything else is there as a comment, at its default.

    Args:
        prepared: The data, read.
        heard: What `prepare` told of it.
        folder: Where the file is to be, from which its relative paths start.

    Returns:
        YAML that `load_study` reads into the study that was prepared, with the names that autoft found.
    """
    return "".join(f"{line}\n" for line in _lines(prepared, heard, folder))


def write_starter(file: Path, text: str, *, force: bool = False) -> None:
    """Write a study file, not over another one.

    Raises:
        AutoftError: There is one, and no `force`.
    """
    if file.is_dir() or (file.exists() and not force):
        raise AutoftError(
            printable(f"a new study file must not replace another, but {file} exists"),
            "choose another name with --output" + ("" if file.is_dir() else ", or replace it with --force"),
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def meanings(owner: type) -> dict[str, str]:
    """Return what a class's docstring says of each attribute, on one line each."""
    section = (inspect.getdoc(owner) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif line.startswith("        ") and name:
            found[name] += " " + line.strip()
    return found


def _lines(prepared: Prepared, heard: Sequence[Event], folder: Path) -> Iterator[str]:
    config, raw = prepared.config, prepared.raw
    yield from _said(f"A study of {config.name}, begun by `autoft init`. What autoft found of the data:")
    for event in heard:
        if event.kind in ("data", "warning") and "path" not in event.data:
            yield from _said(f"- {event.text}", hanging="  ")
    labels = prepared.objective.targets.labels
    if labels:
        yield from _said(f"- {_noun(prepared)}: {_some(labels)}", hanging="  ")
    yield from _said(
        "What is set below was found or asked for, or is often changed. A line that begins with `#` and a name is a "
        "setting at its default: remove the `#` to change it. `null` is the same as leaving a setting out."
    )
    about = meanings(StudyConfig)
    yield ""
    yield from _set("name", config.name, about["name"])
    yield ""
    options = prepared.catalog.data_format(prepared.data_format).options
    yield from _section("data", config.data, _data(prepared, folder), set(DATA_OPTIONS) - set(options))
    yield ""
    yield from _set("task", prepared.objective.head.name, about["task"])
    yield ""
    yield from _said(about["backbones"])
    yield "backbones:"
    for backbone in config.backbones or [None]:
        entry = {"name": prepared.backbones[0].public_name, "weights": "pretrained"}
        if backbone is not None:
            entry = backbone.model_dump(mode="json")
        other = "max_length" if raw.modality != "text" else "image_size"
        yield from _entry(SECTIONS["backbones"], entry, {other})
    yield ""
    yield from _space(prepared, config.space)
    for name in ("search", "trainer", "export", "plugins"):
        yield ""
        given = {"metric": prepared.objective.metric} if name == "search" else {}
        yield from _section(name, getattr(config, name), given)
    if raw.rejected:
        yield ""
        yield from _said(f"{len(raw.rejected)} samples could not be read; `autoft search` lists them.")


def _data(prepared: Prepared, folder: Path) -> dict[str, Any]:
    """Return what is known of the data beyond the defaults: where it is from the file's folder, its format and columns."""
    data, raw = prepared.config.data, prepared.raw
    found = {name: value for name, value in raw.found.items() if name in DATA_OPTIONS and value is not None}
    paths = {
        name: _from(folder, getattr(data, name))
        for name in ("path", "validation", "test")
        if getattr(data, name) is not None
    }
    return {"plugin": prepared.data_format, **found, **paths}


def _from(folder: Path, path: Path) -> str:
    shown = str(path)
    if shown.startswith(HUB):
        return shown.replace(HUB, f"{HUB}/", 1)
    inside = os.path.relpath(shown, folder.resolve())
    return shown if inside.startswith(os.pardir) else inside


def _section(name: str, section: Section, given: Mapping[str, Any], without: Collection[str] = ()) -> Iterator[str]:
    """Write a section: a setting that differs from its default, or is `given`, or is changed often, as one that is set."""
    lines, any_set = [], False
    about = meanings(type(section))
    plain = section.model_dump(mode="json")
    for setting, field in type(section).model_fields.items():
        if setting in without:
            continue
        value = given.get(setting, plain[setting])
        default = field.default if field.default is not PydanticUndefined else None
        is_set = setting in given or value != _plain(default) or f"{name}.{setting}" in FIRST
        any_set = any_set or is_set
        lines += [*_said(about.get(setting) or _parts(field.default), indent="  "), _line(setting, value, is_set)]
    # with nothing set below it a heading would be a setting without a value
    yield f"{'' if any_set else AT_DEFAULT}{name}:"
    yield from lines


def _parts(part: Any) -> str:
    """Return what a section within a section is for."""
    return (inspect.getdoc(type(part)) or "").partition("\n")[0]


def _plain(default: Any) -> Any:
    if isinstance(default, BaseModel):
        return default.model_dump(mode="json")
    return list(default) if isinstance(default, tuple) else default


def _entry(section: type[Section], entry: Mapping[str, Any], without: Collection[str]) -> Iterator[str]:
    about, begin = meanings(section), "  - "
    for name in section.model_fields:
        is_set = entry.get(name) is not None
        if name in without and not is_set:
            continue
        yield from _said(about[name], indent="    ") if name != "name" else ()
        yield f"{begin}{name}: {_written(entry[name])}" if is_set else f"    {AT_DEFAULT}{name}: null"
        begin = "    "


def _space(prepared: Prepared, wanted: Mapping[str, Any]) -> Iterator[str]:
    """Write what is searched by default, and what the study says of it."""
    modality, head = prepared.raw.modality, prepared.objective.head
    table = [setting.of(modality) for setting in SETTINGS]
    rows = [
        (setting.name, setting.search, f"{setting.help} ({setting.source})" if setting.source else setting.help)
        for setting in table
        if setting.level == "small" and not setting.trainer and setting.modality in (None, modality)
    ]
    rows += [(knob.name, knob.search, knob.help) for knob in head.knobs if knob.search is not None]
    yield from _said(
        "What is searched: `{low: .., high: .., log: ..}` or `{choices: [..]}`; a plain value is fixed. The table of all "
        "that can stand here, with its limits, is in the user guide."
    )
    yield f"{'' if wanted else AT_DEFAULT}space:"
    for name, search, help_ in rows:
        yield from _said(help_[0].upper() + help_[1:] + ".", indent="  ")
        shown = wanted.get(name, search)
        yield _line(name, plain_entry(shown) if isinstance(shown, Range | Choice) else shown, name in wanted)
    for name in wanted.keys() - {name for name, _, _ in rows}:
        yield _line(name, plain_entry(wanted[name]), True)


def _set(name: str, value: Any, about: str) -> Iterator[str]:
    yield from _said(about)
    yield f"{name}: {_written(value)}"


def _line(name: str, value: Any, is_set: bool) -> str:
    return f"  {'' if is_set else AT_DEFAULT}{name}: {_written(value)}"


def _said(text: str, *, indent: str = "", hanging: str = "") -> list[str]:
    """Return a sentence as comments; what the docstrings call None a study file calls null."""
    words = printable(re.sub(r"\bNone\b", "null", text))
    return textwrap.wrap(
        words,
        WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# {hanging}",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _written(value: Any) -> str:
    """Return a value as YAML in one line."""
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()


def _noun(prepared: Prepared) -> str:
    return {"label": "classes", "labels": "labels", "values": "numbers", "entities": "tags", "mask": "classes"}[
        prepared.objective.head.answer
    ]


def _some(labels: Sequence[str], most: int = 20) -> str:
    listed = ", ".join(labels[:most])
    return listed if len(labels) <= most else f"{listed} and {len(labels) - most} more"
