"""Checks a document against the schema and against the names that plugins offer, and says every problem in plain words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from autoft.config.document import Document, Finding, Loc, place_of, problem_at, shown
from autoft.config.schema import (
    ALL,
    NAME,
    SECTIONS,
    PluginsConfig,
    SpaceEntry,
    StudyConfig,
    entry_model,
    parse_entry,
)
from autoft.errors import ConfigError, Problem, nearest


@dataclass(frozen=True)
class Objection:
    """Why a backbone cannot be used: rule and value, and what to do next."""

    message: str
    hint: str | None = None


@dataclass(frozen=True)
class Known:
    """What the installed plugins offer, for checking the names in a study.

    Attributes:
        data_plugins: Names of the data formats.
        heads: Names of the tasks, each with the names of its metrics.
        space: Names that can stand in `space`.
        check_backbone: Returns an objection to a backbone's name with its weights, or None where it is known.
        broken: Names of plugins that failed to load, and so might have provided what is missing.
        check_space: Returns an objection to the values of an entry of `space`, or None where they are possible.
        loggers: Names of the loggers, each with the names of its options.
    """

    data_plugins: frozenset[str]
    heads: Mapping[str, frozenset[str]]
    space: frozenset[str]
    check_backbone: Callable[[str, str], Objection | None]
    broken: tuple[str, ...] = ()
    check_space: Callable[[str, SpaceEntry], Objection | None] = lambda name, entry: None
    loggers: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def hint(self, name: str, names: Iterable[str]) -> str:
        """Return the nearest of the names, or all of them, and the broken plugins that might have had the name."""
        listed = sorted(names)
        close = nearest(name, listed)
        if close:
            text = "did you mean " + " or ".join(f"`{each}`" for each in close) + "?"
        elif listed:
            text = "known: " + ", ".join(f"`{each}`" for each in listed)
        else:
            text = "none is installed; `autoft plugins` lists the plugins"
        if self.broken:
            text += f"; broken plugins that might provide it: {', '.join(self.broken)} (see `autoft plugins`)"
        return text


KnownSource = Known | Callable[[PluginsConfig], Known]
"""What the plugins offer, or a function that finds it: which plugins to ask is itself a part of the study."""

_RULES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "model_type": "must be a mapping of settings",
    "dict_type": "must be a mapping of settings",
    "tuple_type": "must be a list",
    "path_type": "must be text",
}


def _limit(limit: object) -> str:
    """Return a limit of the schema as people write it: 0 rather than 0.0."""
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _finding(error: ErrorDetails, section: type[BaseModel] | None, prefix: Loc = ()) -> Finding:
    """Return one of pydantic's errors in plain words; `section` holds the settings that may stand there."""
    loc = (*prefix, *(str(part) for part in error["loc"]))
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    got = f", but got {shown(value)}"
    if kind == "autoft":
        return Finding(loc, context["message"], context["hint"], context["instead"])
    if kind == "missing":
        return Finding(loc, "is missing")
    if kind == "extra_forbidden":
        names = list(section.model_fields) if section is not None else []
        close = nearest(loc[-1], names, 1)
        if close:
            return Finding(loc, f"is not a setting here; did you mean `{close[0]}`?")
        return Finding(loc, "is not a setting here", f"settings here: {', '.join(names)}")
    if kind == "literal_error":
        names = re.findall(r"'([^']*)'", context["expected"])
        close = nearest(value, names, 1) if isinstance(value, str) else []
        rule = "must be one of " + ", ".join(f"`{name}`" for name in names)
        return Finding(loc, rule + got, f"did you mean `{close[0]}`?" if close else None)
    # Our own schema can only break the rules above; a new kind of rule still says what pydantic says.
    rule = (
        _RULES[kind].format_map({name: _limit(limit) for name, limit in context.items()})
        if kind in _RULES
        else f"is not valid ({error['msg']})"
    )
    hint = None
    if kind == "string_type" and isinstance(value, bool | int | float):
        hint = "put it in quotes"
    elif kind in ("int_type", "float_type", "bool_type") and isinstance(value, str):
        if value == ALL:
            hint = "`all` stands for every stage, in `freeze_depth` only"
        elif re.fullmatch(r"[-+.\deE]*\d|true|false", value):
            hint = "remove the quotes"
    return Finding(loc, rule + got, hint)


def _schema_findings(error: ValidationError, section: type[BaseModel] | None = None, prefix: Loc = ()) -> list[Finding]:
    """Return all of pydantic's errors in plain words; a misspelt setting is not reported as missing as well."""
    errors = error.errors(include_url=False)

    def section_of(loc: tuple[int | str, ...]) -> type[BaseModel] | None:
        return section or (StudyConfig if len(loc) == 1 else SECTIONS.get(str(loc[0])))

    meant = {
        (*each["loc"][:-1], name)
        for each in errors
        if each["type"] == "extra_forbidden" and (owner := section_of(each["loc"])) is not None
        for name in nearest(str(each["loc"][-1]), owner.model_fields, 1)
    }
    return [
        _finding(each, section_of(each["loc"]), prefix)
        for each in errors
        if each["type"] != "missing" or each["loc"] not in meant
    ]


def _space(raw: Mapping[str, Any]) -> tuple[dict[str, SpaceEntry], list[Finding]]:
    """Return the entries of the space that are right, and findings for the others."""
    entries: dict[str, SpaceEntry] = {}
    findings: list[Finding] = []
    for name, value in raw.items():
        try:
            entries[name] = parse_entry(name, value)
        except ValidationError as error:
            findings += _schema_findings(error, entry_model(name, value), ("space", name))
        except PydanticCustomError as error:
            context = error.context or {}
            findings.append(Finding(("space", name), str(context["message"]), context["hint"]))
    return entries, findings


def _repeated_backbones(values: Mapping[str, Any]) -> list[Finding]:
    """Return findings for backbones listed twice: they would split the search's evidence between equals."""
    written = values.get("backbones")
    first_of: dict[str, int] = {}
    findings = []
    for position, entry in enumerate(written if isinstance(written, list) else []):
        if not isinstance(entry, dict):
            continue
        key = repr([entry.get("name"), entry.get("weights", "pretrained"), entry.get("image_size")])
        first = first_of.setdefault(key, position)
        if first != position:
            message = f"must differ from the other backbones, but repeats backbones.{first}"
            findings.append(Finding(("backbones", str(position)), message, "change its weights or image_size"))
    return findings


def _unknown_names(values: Mapping[str, Any], known: Known) -> list[Finding]:
    """Return findings for names that no plugin offers, from whatever parts of the values are well-formed."""
    findings = []

    def check(loc: Loc, what: str, names: Iterable[str]) -> None:
        name: Any = values
        for part in loc:
            name = name.get(part) if isinstance(name, Mapping) else None
        if isinstance(name, str) and name not in set(names):
            findings.append(Finding(loc, f"must be {what}, but got {shown(name)}", known.hint(name, names)))

    task, space, backbones = values.get("task"), values.get("space"), values.get("backbones")
    check(("data", "plugin"), "an installed data plugin", known.data_plugins)
    check(("task",), "an installed task", known.heads)
    if isinstance(task, str) and task in known.heads:
        check(("search", "metric"), f"a metric of {task}", known.heads[task])
    else:
        check(("search", "metric"), "a metric of an installed task", frozenset().union(*known.heads.values()))
    for name in space if isinstance(space, Mapping) else ():
        if name not in known.space:
            findings.append(Finding(("space", name), "is not a searchable setting", known.hint(name, known.space)))
    logging = values.get("logging")
    for name, options in logging.items() if isinstance(logging, Mapping) else ():
        if name not in known.loggers:
            findings.append(Finding(("logging", name), "is not an installed logger", known.hint(name, known.loggers)))
        elif isinstance(options, Mapping):
            own = known.loggers[name]
            unknown = [option for option in options if option not in own]
            findings += [
                Finding(("logging", name, option), f"is not an option of {name}", known.hint(option, own))
                for option in unknown
            ]
    for position, entry in enumerate(backbones if isinstance(backbones, list) else []):
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not name:
            continue
        weights = entry.get("weights")
        objection = known.check_backbone(name, weights if isinstance(weights, str) else "pretrained")
        if objection is not None:
            loc = ("backbones", str(position), "name")
            findings.append(Finding(loc, objection.message, objection.hint))
    return findings


def _default_name(path: object) -> str:
    """Return a study's name from its data: the folder's name, or the file's without its ending."""
    if not isinstance(path, str):
        return "study"
    stem = os.path.basename(path) if os.path.isdir(path) else os.path.splitext(os.path.basename(path))[0]
    name = re.sub(r"[^\w.-]+", "-", stem).strip("-._")[:100]
    return name if NAME.fullmatch(name) else "study"


def check(document: Document, known: KnownSource | None) -> StudyConfig:
    """Return the config of a document; raises `ConfigError` with every problem in it."""
    values = document.values
    if values.get("name") is None:
        data = values.get("data")
        values["name"] = _default_name(data.get("path") if isinstance(data, dict) else None)
    own = [*document.findings, *_repeated_backbones(values)]
    found: list[Finding] = []
    space: Any = values.get("space", {})
    if isinstance(space, dict):
        space, found = _space(space)
    config: StudyConfig | None = None
    try:
        config = StudyConfig.model_validate({**values, "space": space})
    except ValidationError as error:
        found += _schema_findings(error)
    if callable(known):
        try:
            known = known(PluginsConfig.model_validate(values.get("plugins", {})))
        except ValidationError:
            known = None  # already among the problems; without the section no plugin may be loaded to ask
    unknown = _unknown_names(values, known) if known is not None else []
    if known is not None and isinstance(space, dict):
        objections = ((name, known.check_space(name, entry)) for name, entry in space.items())
        unknown += [Finding(("space", name), each.message, each.hint) for name, each in objections if each is not None]

    def visible(findings: Iterable[Finding], hiding: set[Loc]) -> list[Finding]:
        return [each for each in findings if not any(each.loc[:end] in hiding for end in range(1, len(each.loc) + 1))]

    hiding = {each.loc for each in own if each.hides}
    found = visible(found, hiding)
    unknown = visible(unknown, hiding | {each.loc for each in found})
    placed: list[tuple[tuple[int, int, int], Problem]] = []
    for each in (*own, *found, *unknown):
        at = each.loc
        if each.instead is not None and at not in document.places and (*at[:-1], each.instead) in document.places:
            at = (*at[:-1], each.instead)
        place = each.place or place_of(document.places, at)
        problem = problem_at(document.places, at, each.message, each.hint, place)
        placed.append((place.order if place is not None else (-1, 0, 0), problem))
    if placed or config is None:
        raise ConfigError(document.source, [problem for _, problem in sorted(placed, key=lambda pair: pair[0])])
    config._source = document.source
    config._places = document.places
    return config
