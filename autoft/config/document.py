"""Reads YAML into plain values that remember their lines, and refuses what a study file has no use for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from autoft.errors import ConfigError, Problem

MAX_BYTES = 1_000_000
"""A study file is written by a person; anything larger is another kind of file."""
MAX_DEPTH = 20
"""Deepest nesting read; the schema needs 4, and PyYAML recurses once a level."""
MAX_DIGITS = 100
"""Longer numbers stay text: Python itself refuses to convert very long ones."""

Loc = tuple[str, ...]
"""Where a value stands, as the names and positions that lead to it: `("backbones", "0", "weights")`."""
Refused = Mapping[int, tuple[str, str]]
"""Message and hint for each node that a study file must not hold, by the node's id."""


def shown(value: object) -> str:
    """Return a value as an error message shows it: as the user wrote it, on one line, and short."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-1]}"


@dataclass(frozen=True)
class Place:
    """Where a value was written: a line of the file, or an option; `order` sorts by file, then by options."""

    order: tuple[int, int, int]
    line: int | None = None
    option: str | None = None


@dataclass(frozen=True)
class Finding:
    """A problem before its line is looked up.

    `hides` keeps problems of what is there or below quiet: they would only repeat this one.
    """

    loc: Loc
    message: str
    hint: str | None = None
    instead: str | None = None
    place: Place | None = None
    hides: bool = False


@dataclass
class Document:
    """A study file while options are laid over it: plain values, and the place of each."""

    source: str
    folder: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Loc, Place] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def place_of(places: Mapping[Loc, Place], loc: Loc) -> Place | None:
    """Return the place of a value, or of the nearest thing around it that was written."""
    return next((places[loc[:end]] for end in range(len(loc), -1, -1) if loc[:end] in places), None)


def problem_at(places: Mapping[Loc, Place], loc: Loc, message: str, hint: str | None, place: Place | None = None) -> Problem:
    """Return a problem with its line, or with the option that gave the value."""
    place = place or place_of(places, loc)
    where = ".".join(part if part.isprintable() else ascii(part)[1:-1] for part in loc)
    if place is not None and place.option is not None:
        message += f" (option `{place.option}`)"
    return Problem(where, message, place.line if place is not None else None, hint)


class UnreadableError(Exception):
    """Text that is not YAML."""

    def __init__(self, message: str, line: int | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.hint = hint


_RESOLVERS = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
)


def _short_tag(tag: str) -> str:
    """Return a tag as it is written: `!!str` for YAML's own."""
    return tag.replace("tag:yaml.org,2002:", "!!", 1)


class _Loader(yaml.SafeLoader):
    """Composes nodes; notes what a study file must not hold.

    Plain words mean what people expect: `1e-5` is a number, while `1:30`, `010` and `2024-01-01` are text.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML fills it in place

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.refused: dict[int, tuple[str, str]] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        refused: tuple[str, str] | None = None
        if isinstance(event, yaml.AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]
            node: yaml.Node | None = yaml.ScalarNode("tag:yaml.org,2002:null", "", mark, mark)
            refused = (f"must not use YAML aliases, but got `*{event.anchor}`", "write the value out again")
        else:
            if getattr(event, "anchor", None) is not None:
                refused = (f"must not use YAML anchors, but got `&{event.anchor}`", "remove it")
                event.anchor = None
            if getattr(event, "tag", None) is not None:
                refused = (f"must not use YAML tags, but got `{_short_tag(event.tag)}`", "write a plain value")
                # Without the tag, the value is an ordinary one, and the rest of the file can still be checked.
                event.tag = None
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise yaml.composer.ComposerError(None, None, f"more than {MAX_DEPTH} levels deep", mark)
            node = super().compose_node(parent, index)
            self.depth -= 1
        if refused is not None:
            self.refused[id(node)] = refused
        return node


class Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: text that would look like a number is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: what this writes holds no anchors, which could not be read again."""
        return True


def _write_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    # In any other style, PyYAML changes some line breaks, such as U+0085.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


Dumper.add_representer(str, _write_text)
for _kind, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})\\Z"), [c if c != "\0" else "" for c in _first]
        )


def compose(text: str) -> tuple[yaml.Node | None, Refused]:
    """Return the root node of a YAML text, None if there is none, and what is refused, by the id of its node."""
    try:
        loader = _Loader(text)
        return loader.get_single_node(), loader.refused
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UnreadableError(
            f"must be plain text, but holds the control character {chr(error.character)!r}", line
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        details = " ".join(part for part in (error.context, error.problem) if part)
        raise UnreadableError(
            f"must be valid YAML, but this is not: {details}",
            mark.line + 1 if mark is not None else None,
            "indent with spaces, not with tabs" if "'\\t'" in details else None,
        ) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets some of Python's own errors through, such as that of "\UFFFFFFFF", which is no character.
        raise UnreadableError(f"must be valid YAML, but this is not: {error}") from error


def plain_value(node: yaml.Node, loc: Loc, document: Document, refused: Refused, option: Place | None) -> Any:
    """Return a node's plain value; notes places (of the option, where there is one) and findings in the document."""

    def written_at(each: yaml.Node) -> Place:
        mark = cast(yaml.Mark, each.start_mark)
        return option or Place((0, mark.line, mark.column), line=mark.line + 1)

    def note(where: Loc, message: str, hint: str | None, place: Place, hides: bool = True) -> None:
        document.findings.append(Finding(where, message, hint, place=place, hides=hides))

    document.places.setdefault(loc, written_at(node))
    if id(node) in refused:
        note(loc, *refused[id(node)], document.places[loc])
    if isinstance(node, yaml.SequenceNode):
        return [plain_value(item, (*loc, str(i)), document, refused, option) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = written_at(key_node)
            if id(key_node) in refused:
                note((*loc, _text_of(key_node)), *refused[id(key_node)], place)
                continue
            if not isinstance(key_node, yaml.ScalarNode) or not is_unicode(key_node.value):
                note((*loc, _text_of(key_node)), "must be a plain word", "a setting is written `name: value`", place)
                continue
            key = key_node.value  # as written: `on:` is the word, not true
            if key in values:
                first = document.places[(*loc, key)].line
                again = f"must be set once, but line {first} sets it already" if first else "must be set once"
                note((*loc, key), again, "keep one of them", place, hides=False)
                continue
            document.places[(*loc, key)] = place
            values[key] = plain_value(value_node, (*loc, key), document, refused, option)
        return values
    if not is_unicode(node.value):
        note(loc, f"must be valid Unicode, but got {shown(node.value)}", None, document.places[loc])
        return None
    return scalar_value(node)


def scalar_value(node: yaml.Node) -> bool | int | float | str | None:
    """Return a scalar node's value."""
    text: str = node.value
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("yes", "true", "on")
    if kind == "int" and len(text) <= MAX_DIGITS:
        return int(text.replace("_", ""))
    if kind == "float" and len(text) <= MAX_DIGITS:
        return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()).replace("_", ""))
    return text


def is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogates, which can be neither printed nor stored."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _text_of(node: yaml.Node) -> str:
    """Return a name for a key that is not a plain word."""
    return ascii(node.value)[1:-1] if isinstance(node, yaml.ScalarNode) else "?"


def read_file(path: Path) -> Document:
    """Return the values of a study file; raises `ConfigError` where nothing in it can be checked."""

    def refuse(message: str, line: int | None = None, hint: str | None = None) -> ConfigError:
        return ConfigError(str(path), [Problem("study file", message, line, hint)])

    smallest = "the smallest study is one line: `data: PATH_OF_THE_DATA`"
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise refuse("must exist, but there is no such file") from None
    except IsADirectoryError:
        raise refuse("must be a file, but is a folder", hint=f"`autoft search {path}` takes a folder as data") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise refuse(f"must be readable, but: {error}") from error
    if len(content) > MAX_BYTES:
        raise refuse(f"must be at most {MAX_BYTES} bytes, but is larger", hint="is this really a study file?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise refuse(
            f"must be UTF-8 text, but byte 0x{content[error.start]:02x} is not", line, "is this really a study file?"
        ) from error
    try:
        node, refused = compose(text)
    except UnreadableError as error:
        raise refuse(error.message, error.line, error.hint) from error
    if node is None:
        raise refuse("must hold settings, but is empty", hint=smallest)
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else shown(scalar_value(node))
        raise refuse(f"must be a mapping of settings, but is {kind}", node.start_mark.line + 1, smallest)
    document = Document(str(path), os.path.dirname(os.path.abspath(path)))
    document.values = plain_value(node, (), document, refused, None)
    return document
