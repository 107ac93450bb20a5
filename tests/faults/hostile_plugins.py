"""Plugin packages that break their promises: installing one is trusting it, but a broken one must not break the others."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from hostile import Case

FEW = ("--trials", 1, "--epochs", 1, "--set", "search.workers=0")
LIST = ("plugins", "--load")
SEARCH = ("search", "images", "-b", "toy/mlp", *FEW)


def _plugin(
    source: str, arguments: Sequence[object], *, entry_points: str = "[autoft]\nevil = evil\n", metadata: bytes = b""
) -> Callable[[Path], Sequence[object]]:
    def make(folder: Path) -> Sequence[object]:
        place = folder / "site"
        information = place / "evil-1.0.dist-info"
        information.mkdir(parents=True)
        (place / "evil.py").write_text(textwrap.dedent(source))
        (information / "METADATA").write_bytes(metadata or b"Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(entry_points)
        sys.path.insert(0, str(place))
        return arguments

    return make


BACKBONE = """
from dataclasses import replace
from autoft.hookspecs import hookimpl
from autoft.specs import BackboneFamily
from autoft.testing import toy

def resolve(request):
    backbone = replace(toy.resolve(replace(request, model="mlp")), name="evil/one")
    CHANGE

@hookimpl
def autoft_backbones():
    return [BackboneFamily(name="evil", modality="image", resolve=resolve, models=lambda: ("one",),
                           suggest=lambda modality, most: (), help="")]
"""


def _backbone(change: str) -> Callable[[Path], Sequence[object]]:
    source = BACKBONE.replace("CHANGE", textwrap.indent(textwrap.dedent(change), "    ").strip())
    return _plugin(source, ("search", "images", "-b", "evil/one", *FEW))


CASES: tuple[Case, ...] = (
    Case("raises at import: the others work", _plugin("raise RuntimeError('no')", SEARCH), ("evil",), code=0),
    Case("raises at import: it is listed", _plugin("raise RuntimeError('no')", LIST), ("RuntimeError: no",), code=0),
    Case("leaves the process at import", _plugin("import sys; sys.exit(3)", SEARCH), ("evil",), code=0),
    Case("interrupts at import, as Ctrl-C does", _plugin("raise KeyboardInterrupt", LIST), code=130),
    Case("wants what is not installed", _plugin("import no_such_module", LIST), ("no_such_module",), code=0),
    Case("is no Python", _plugin("def", LIST), ("SyntaxError",), code=0),
    Case("prints at import: JSON stays JSON", _plugin("print('not json')", ("plugins", "--json", "--load")), code=0),
    Case(
        "module that is not there", _plugin("", LIST, entry_points="[autoft]\nevil = nowhere.at.all\n"), ("nowhere",), code=0
    ),
    Case("object that is not there", _plugin("", LIST, entry_points="[autoft]\nevil = evil:nothing\n"), ("evil",), code=0),
    Case("entry points that are none", _plugin("", LIST, entry_points="[autoft\n=\n\0"), code=0),
    Case("metadata that is no UTF-8", _plugin("", LIST, metadata=b"Name: \xff\xfe\nVersion: 1.0\n"), code=0),
    Case(
        "hook without a specification",
        _plugin("from autoft.hookspecs import hookimpl\n@hookimpl\ndef autoft_backbone(): return []", LIST),
        ("autoft_backbone",),
        code=0,
    ),
    Case(
        "hook that returns no list",
        _plugin("from autoft.hookspecs import hookimpl\n@hookimpl\ndef autoft_heads(): return 7", LIST),
        ("autoft_heads",),
        code=0,
    ),
    Case(
        "hook that raises",
        _plugin("from autoft.hookspecs import hookimpl\n@hookimpl\ndef autoft_data(): raise ValueError('no')", LIST),
        ("ValueError: no",),
        code=0,
    ),
    Case(
        "takes the name of a built-in",
        _plugin(BACKBONE.replace('"evil"', '"timm"').replace("CHANGE", "return backbone"), LIST),
        ("timm",),
        code=0,
    ),
    Case(
        "--no-plugins does not import it",
        _plugin(
            "import pathlib; pathlib.Path('../canary').write_text('run')",
            ("search", "images", "-b", "timm/test_resnet", "--weights", "none", "--no-plugins", *FEW),
        ),
        code=0,
    ),
    Case(
        "listing does not import it",
        _plugin("import pathlib; pathlib.Path('../canary').write_text('run')", ("plugins",)),
        code=0,
    ),
    Case(
        "a study that does not allow it does not import it",
        _plugin("import pathlib; pathlib.Path('../canary').write_text('run')", (*SEARCH, "--set", "plugins.allow=[toy]")),
        code=0,
    ),
    Case(
        "--strict-plugins refuses a broken one",
        _plugin("raise RuntimeError('no')", (*SEARCH, "--strict-plugins")),
        ("evil",),
    ),
    Case(
        "claims features of another size",
        _backbone("return replace(backbone, feature_size=lambda module: 999)"),
        ("evil/one",),
    ),
    Case("builds something else", _backbone("return replace(backbone, build=lambda: 7)"), ("evil",)),
    Case("has no stages", _backbone("return replace(backbone, stages=lambda module: ())"), ("evil/one",)),
    Case(
        "has one parameter in two stages",
        _backbone("real = backbone.stages\nreturn replace(backbone, stages=lambda module: (*real(module), *real(module)))"),
        ("evil/one",),
    ),
    Case(
        "raises when it builds",
        _backbone("def build(): raise RuntimeError('no weights')\nreturn replace(backbone, build=build)"),
        ("no weights",),
    ),
    Case("names its backbone as another's", _backbone("return replace(backbone, name='timm/resnet18')"), ("evil",)),
    Case("raises when it is resolved", _backbone("raise RuntimeError('not today')"), ("not today",)),
)
