"""Makes a new plugin's folder from templates: one module, its tests, and what packages it; `templates/` holds the texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from autoft import __version__
from autoft.errors import PluginError
from autoft.files import folder_in_place
from autoft.hookspecs import HOOKS_VERSION

Kind = Literal["backbone", "head", "data"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TEMPLATES = Path(__file__).parent / "templates"
_ABOUT: Mapping[Kind, str] = {
    "backbone": "The backbone family `@name@`: small convolutional networks, to be replaced by yours.",
    "head": "The head `@name@`: classification by the Poly-1 loss, to be replaced by your task.",
    "data": "The data format `@name@`: lines of label, tab and text, to be replaced by your format.",
}
_USE: Mapping[Kind, str] = {
    "backbone": "Use it: `autoft search FOLDER_OF_IMAGES -b @name@/tiny --weights none`.",
    "head": "Use it: `autoft search FOLDER_OF_IMAGES --task @name@`.",
    "data": "Use it: `autoft search SOME_FILE.@name@`.",
}


def make_plugin(name: str, kind: str, into: Path) -> Path:
    """Write the folder of a new plugin that passes its own tests as it is.

    Args:
        name: Of the plugin and of what it provides, such as `flowers`; the package becomes `autoft-flowers`.
        kind: What it provides: `backbone`, `head` or `data`.
        into: Folder in which the package's folder is made.

    Returns:
        The new folder.

    Raises:
        PluginError: The name or kind is not possible, or the folder is there already.
    """
    chosen = next((each for each in KINDS if each == kind), None)
    if chosen is None:
        raise PluginError(f"a plugin's kind must be {', '.join(KINDS)}, but got {kind!r}", "see `autoft plugins new --help`")
    if not _NAME.fullmatch(name) or name.split("-")[0] == "autoft":
        raise PluginError(
            f"a plugin's name must be lowercase words of letters and digits, joined by `-`, but got {name!r}",
            "such as `flowers`: the package becomes `autoft-flowers`, the module `autoft_flowers`",
        )
    package, module = f"autoft-{name}", f"autoft_{name.replace('-', '_')}"
    folder = into / package
    if folder.exists() or folder.is_symlink():
        raise PluginError(
            f"a new plugin needs a new folder, but {folder} is there", "choose another name, or another --into"
        )
    files = {
        "pyproject.toml": "common/pyproject.toml",
        "README.md": "common/README.md",
        ".gitignore": "common/gitignore",
        ".github/workflows/tests.yml": "common/tests.yml",
        f"{module}.py": f"{kind}/module.py",
        f"tests/test_{module}.py": f"{kind}/test.py",
    }
    if chosen == "data":
        files[f"tests/example.{name}"] = "data/example"
    words = {
        "about": _ABOUT[chosen],
        "use": _USE[chosen],
        "options": f" --example tests/example.{name}" if chosen == "data" else "",
        "name": name,
        "package": package,
        "module": module,
        "kind": kind,
        "autoft": __version__,
        "hooks": str(HOOKS_VERSION),
    }
    with folder_in_place(folder) as draft:
        for path, template in files.items():
            text = (_TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")
            for word, value in words.items():
                text = text.replace(f"@{word}@", value)
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            (draft / path).write_text(text, encoding="utf-8")
    return folder
