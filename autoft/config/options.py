"""Lays options over a study's values, writes short forms out, and makes paths absolute."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml

from autoft.config.address import masked
from autoft.config.document import (
    MAX_DIGITS,
    Document,
    Finding,
    Loc,
    Place,
    UnreadableError,
    compose,
    is_unicode,
    place_of,
    plain_value,
    shown,
)
from autoft.config.schema import SECTIONS
from autoft.errors import nearest


def expand(document: Document) -> None:
    """Write short forms out: `data: PATH`, `backbones: NAME`, a backbone or logger that is only a name, an empty section."""
    values, places = document.values, document.places

    def put(loc: Loc) -> None:
        if loc[:-1] in places:
            places[loc] = places[loc[:-1]]

    for section in (*SECTIONS, "space"):
        if section in values and values[section] is None:
            values[section] = [] if section == "backbones" else {}
    if isinstance(values.get("data"), str):
        values["data"] = {"path": values["data"]}
        put(("data", "path"))
    if "logging" in values:
        named = values["logging"]
        listed = [named] if isinstance(named, str) else [] if named is None else named
        if isinstance(listed, list) and all(isinstance(name, str) for name in listed):
            values["logging"] = {name: {} for name in listed}
    if isinstance(values.get("backbones"), str | dict):
        entry = values["backbones"]
        # What is known of the mapping's settings moves one level down together with it.
        for loc in [loc for loc in places if loc[:1] == ("backbones",) and len(loc) > 1]:
            places[("backbones", "0", *loc[1:])] = places.pop(loc)
        document.findings = [
            replace(each, loc=("backbones", "0", *each.loc[1:]))
            if each.loc[:1] == ("backbones",) and len(each.loc) > 1
            else each
            for each in document.findings
        ]
        values["backbones"] = [entry]
        put(("backbones", "0"))
    if isinstance(values.get("backbones"), list):
        for position, entry in enumerate(values["backbones"]):
            if isinstance(entry, str):
                values["backbones"][position] = {"name": entry}
                put(("backbones", str(position), "name"))


_MARK = re.compile(r"[^\w\s'\"\[\]{}~]+")


def _mark(text: str) -> yaml.Node:
    """Return marks such as `|` as the text they are: YAML would read the beginning of a block, a list or a comment."""
    return yaml.ScalarNode("tag:yaml.org,2002:str", text)


def override(document: Document, option: str, number: int) -> None:
    """Lay one option, `a.b=value`, over the values."""
    key, equals, text = option.partition("=")
    loc = tuple(part.strip() for part in key.split("."))
    # no password of a storage may be shown, however wrong its URL is
    written = f"{key}=..." if key.strip() == "search.storage" else masked(option)
    place = Place((1, number, 0), option=written if written.isprintable() else ascii(written)[1:-1])

    def refuse(message: str, hint: str | None = None) -> None:
        document.findings.append(Finding(loc, message, hint, place=place))

    if not equals or not all(loc) or not is_unicode(key):
        return refuse("must be written as `setting=value`", "such as `search.trials=5`")
    try:
        node, refused = (_mark(text), {}) if _MARK.fullmatch(text) else compose(text)
    except UnreadableError as error:
        return refuse(error.message, error.hint)
    parent: Any = document.values
    for depth, part in enumerate(loc):
        if isinstance(parent, list):
            if not part.isdecimal() or int(part[:MAX_DIGITS]) >= len(parent):
                return refuse(f"must name an item from 0 to {len(parent) - 1}, but got {shown(part)}")
        elif not isinstance(parent, dict):
            return refuse(f"cannot be set, because `{'.'.join(loc[:depth])}` is not a mapping")
        if depth == len(loc) - 1:
            break
        if isinstance(parent, dict) and parent.get(part) is None:
            parent[part] = {}
            document.places[loc[: depth + 1]] = place
        parent = parent[int(part)] if isinstance(parent, list) else parent[part]
    for old in [old for old in document.places if old[: len(loc)] == loc]:
        del document.places[old]
    # What was wrong with the replaced value no longer matters.
    document.findings = [old for old in document.findings if old.loc[: len(loc)] != loc or not old.hides]
    document.places[loc] = place
    value = None if node is None else plain_value(node, loc, document, refused, place)
    parent[int(loc[-1]) if isinstance(parent, list) else loc[-1]] = value
    expand(document)
    return None


LOCAL_MODEL = re.compile(r"(?P<family>[^/]+)/(?P<path>(?:~|/|\.{1,2}(?:/|$)).*)")  # `FAMILY/./PATH`, and so on
HUB = "hf:/"  # data on the Hugging Face hub, `hf://datasets/OWNER/NAME`; pathlib makes one slash of two


def resolve_paths(document: Document) -> None:
    """Make paths absolute: those of a study file from its folder, those of options from the current folder.

    The same for a backbone's name whose model is a path, such as `transformers/./minilm` or `transformers/~/models/minilm`.
    """
    data, backbones = document.values.get("data"), document.values.get("backbones")

    def base_of(loc: Loc) -> str:
        place = place_of(document.places, loc)
        return os.getcwd() if place is not None and place.option is not None else document.folder

    def absolute(written: str, loc: Loc) -> str:
        return os.path.abspath(os.path.join(base_of(loc), os.path.expanduser(written)))

    def resolve(settings: dict[str, Any], key: str, loc: Loc, rule: str, near: Sequence[str] = ()) -> None:
        written: str = settings[key]
        base = base_of(loc)
        settings[key] = absolute(written, loc)
        if not is_unicode(written):
            document.findings.append(Finding(loc, f"must be valid Unicode, but got {shown(written)}", hides=True))
        elif not written or not os.path.exists(settings[key]):
            close = nearest(written, near)
            hint = f"did you mean `{close[0]}`?" if close else "a relative path starts from the folder of the study file"
            if not close and (base != document.folder or document.source == "options"):
                hint = "a relative path in an option starts from the current folder"
            got = f"there is nothing at {settings[key]!r}" if written else "got ''"
            document.findings.append(Finding(loc, f"{rule}, but {got}", hint))

    for key in ("path", "validation", "test"):
        if isinstance(data, dict) and isinstance(data.get(key), str) and not data[key].startswith(HUB):
            resolve(data, key, ("data", key), "must be an existing file or folder")
    for position, entry in enumerate(backbones if isinstance(backbones, list) else []):
        local = (
            LOCAL_MODEL.fullmatch(entry["name"]) if isinstance(entry, dict) and isinstance(entry.get("name"), str) else None
        )
        if local is not None:
            # whether there is such a model is for its family to say
            entry["name"] = f"{local['family']}/{absolute(local['path'], ('backbones', str(position), 'name'))}"
        weights = entry.get("weights") if isinstance(entry, dict) else None
        if isinstance(weights, str) and weights not in ("pretrained", "none"):
            rule = "must be `pretrained`, `none`, or an existing file or folder"
            resolve(entry, "weights", ("backbones", str(position), "weights"), rule, ("pretrained", "none"))
