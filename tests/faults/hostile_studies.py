"""Hostile study files and options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hostile import Case, payload

GOOD = "data: images\nbackbones: [toy/mlp]\nsearch: {trials: 1}\ntrainer: {epochs: 1}\n"


def _study(content: str | bytes) -> Callable[[Path], Sequence[object]]:
    def make(folder: Path) -> Sequence[object]:
        raw = content if isinstance(content, bytes) else content.replace("PAYLOAD", payload(folder.parent)).encode()
        (folder / "study.yaml").write_bytes(raw)
        return "search", "study.yaml"

    return make


def _options(*settings: str) -> Callable[[Path], Sequence[object]]:
    return lambda folder: ("search", "images", *(word for setting in settings for word in ("--set", setting)))


_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12)
)

CASES: tuple[Case, ...] = (
    Case("billion laughs", _study(_LAUGHS + GOOD), ("must not use YAML a",)),
    Case(
        "tag that runs code",
        _study(GOOD + 'name: !!python/object/apply:builtins.exec ["PAYLOAD"]\n'),
        ("must not use YAML tags",),
    ),
    Case("tag of a module", _study(GOOD + "name: !!python/module:os\n"), ("must not use YAML tags",)),
    Case("lists 100,000 deep", _study("data: " + "[" * 100_000), ("levels deep",)),
    Case("mappings 5,000 deep", _study("".join(" " * n + "a:\n" for n in range(5000))), ("study.yaml",)),
    Case("the same key twice", _study(GOOD + "name: a\nname: b\n"), ("name",)),
    Case("merge key", _study("<<: {name: a}\n" + GOOD), ("<<",)),
    Case("100 MB of comments", _study(GOOD + "# x\n" * 25_000_000), ("at most", "bytes")),
    Case("NUL bytes", _study(GOOD.encode() + b"name: a\0b\n"), ("control character",)),
    Case("no UTF-8", _study(GOOD.encode() + b"name: \xff\xfe\n"), ("UTF-8",)),
    Case("a number of 100,000 digits", _study("data: images\nsearch: {seed: " + "9" * 100_000 + "}\n"), ("search.seed",)),
    Case("infinite learning rate", _study("data: images\nspace: {learning_rate: .inf}\n"), ("space.learning_rate",)),
    Case("name that leaves the folder", _study("data: images\nname: ../../evil\n"), ("name",)),
    Case("name that writes to the terminal", _study(b'data: images\nname: "a\\e]0;owned\\a"\n'), ("name",)),
    Case("empty file", _study(""), ("data",)),
    Case(
        "a folder named study.yaml",
        lambda folder: ((folder / "study.yaml").mkdir(), ("search", "study.yaml"))[1],
        ("error",),
    ),
    Case("many mistakes at once", _study("".join(f"x{n}: 1\n" for n in range(20_000))), ("problem",)),
    Case("option with a tag", _options("name=!!python/object/apply:os.getcwd []"), ("tags",)),
    Case("option that is no YAML", _options("search.trials=[1"), ("search.trials",)),
    Case("option of a name that is none", _options("__class__.x=1"), ("__class__",)),
)
