"""Tests of the documentation: its links, the parts made from the code, and the files and commands that it shows.

Parts between `<!-- made: NAME -->` and `<!-- end -->` are made from the code: `python tests/test_docs.py --write` makes them
anew. A block below `<!-- file: PATH -->` is written to that file, one below `<!-- replace: PATH -->` replaces the functions
of the same names in it, and one below `<!-- run -->` is typed in; its output must be the one shown, numbers aside.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from autoft import hookspecs, specs
from autoft.augment import POLICIES
from autoft.builtin import heads, transformers
from autoft.config.schema import SECTIONS, StudyConfig
from autoft.events import Event
from autoft.knobs import SETTINGS
from autoft.prepare import SUGGESTED_MILLIONS_TEXT
from autoft.specs import Choice, Range
from autoft.starter import meanings

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
MADE = re.compile(r"<!-- made: (?P<name>[\w-]+) -->\n(?P<text>.*?)<!-- end -->", re.DOTALL)
BLOCK = re.compile(
    r"^<!-- (?P<action>file|replace|run)(?:: (?P<path>[^\s]+))? -->\n```\w*\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


# --- what is made from the code -----------------------------------------------------------------------


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def plain(value: object) -> str:
    """Return a value as a study file writes it."""
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{json.dumps(value)}`" if isinstance(value, bool | None) else f"`{value}`"


def settings() -> str:
    """Every setting of a study file but `space`, with its default and meaning."""

    def rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, ...]]:
        about = meanings(model)
        for name, field in model.model_fields.items():
            section = SECTIONS.get(name) if not prefix else None
            if section is not None:
                yield from rows(section, f"backbones[].{''}" if name == "backbones" else f"{name}.")
            elif isinstance(field.default, BaseModel):
                yield from rows(type(field.default), f"{prefix}{name}.")
            elif name != "space":
                default = "required" if field.default is PydanticUndefined else plain(field.default)
                default = "the data's name" if (prefix, name) == ("", "name") else default
                yield (f"`{prefix}{name}`", default, about[name])

    return table(("setting", "default", "meaning"), list(rows(StudyConfig, "")))


def limits(what: Range | Choice | None, otherwise: str) -> str:
    if what is None:
        return otherwise
    if isinstance(what, Choice):
        return ", ".join(f"`{value}`" for value in what.values)
    high = "all" if what.high == float("inf") else f"{what.high:g}"
    return f"{'0, or ' if what.or_zero else ''}{what.low:g} to {high}{', log' if what.log else ''}"


def space() -> str:
    """Every setting that `space` may hold: what has it, preset, range, in which space it is searched, limits and source."""

    def also_of_texts(value: str, of_texts: str) -> str:
        return value if of_texts == value else f"{value}; of texts {of_texts}"

    needs = {
        "batch_norm": "backbones with BatchNorm",
        "stochastic_depth": "backbones with residual branches",
        "embeddings": "texts",
        "divergence": "all but plugins' tasks without `divergence`",
    }
    strategy = "with `strategy` any but `full`"
    unlimited = {"freeze_depth": "0 to `all`", "augmentation": "the backbone's policies", "strategy": "those installed"}

    def effect(when: tuple[str, tuple[object, ...]] | None) -> str:
        if when == ("strategy", ()):
            return f"; {strategy}"
        return "" if when is None else f"; with `{when[0]}` {' or '.join(f'`{value}`' for value in when[1])}"

    rows = [
        (
            f"`{setting.name}`",
            needs[setting.needs] if setting.needs else f"{setting.modality}s" if setting.modality else "all",
            also_of_texts(plain(setting.preset), plain(setting.of("text").preset)),
            also_of_texts(limits(setting.search, "no"), limits(setting.of("text").search, "no")),
            setting.level if setting.level != "small" else "small, full",
            limits(setting.allowed, unlimited.get(setting.name, "any")),
            "" if setting.scratch is None else plain(setting.scratch) + (", fixed" if setting.scratch_fixed else ""),
            setting.help + effect(setting.when),
            setting.source,
        )
        for setting in SETTINGS
    ]
    offered = heads.autoft_heads()
    tasks: dict[specs.Knob, list[str]] = {}
    for head in offered:
        for knob in head.knobs:
            tasks.setdefault(knob, []).append(f"`{head.name}`")
    assert len(tasks) >= 5
    rows += [
        (
            f"`{knob.name}`",
            "all" if len(having) == len(offered) else ", ".join(having),
            plain(knob.default),
            limits(knob.search, limits(knob.allowed, "no")),
            "asked" if knob.search is None else "small, full",
            limits(knob.allowed, "any"),
            "",
            knob.help + effect(knob.when),
            "",
        )
        for knob, having in tasks.items()
    ]
    heading = ("name", "has an effect on", "preset", "range", "space", "allowed", "from scratch", "meaning", "source")
    return table(heading, rows)


def signature(function: Callable[..., Any]) -> str:
    return str(inspect.signature(function)).replace("'", "")


def hooks() -> str:
    """Every hook with its signature and meaning."""
    functions = [value for name, value in vars(hookspecs).items() if name.startswith("autoft_")]
    assert len(functions) >= 3
    return "\n".join(
        f"```python\n@autoft.hookimpl\ndef {function.__name__}{signature(function)}\n```\n\n{inspect.getdoc(function)}\n"
        for function in functions
    )


def contracts() -> str:
    """Every value that plugins and engine exchange, with its fields."""
    parts = []
    for name, value in vars(specs).items():
        if not inspect.isclass(value) or value.__module__ != specs.__name__:
            continue
        about = (inspect.getdoc(value) or "").partition("\n\n")[0]
        if dataclasses.is_dataclass(value):
            about_each = meanings(value) or dict.fromkeys(value.__dataclass_fields__, "")  # where the first line says all
            rows = []
            for field in dataclasses.fields(value):
                missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
                rows.append((f"`{field.name}`", f"`{field.type}`", "yes" if missing else "", about_each[field.name]))
            parts.append(f"### {name}\n\n{about}\n\n" + table(("field", "type", "required", "meaning"), rows))
        elif getattr(value, "_is_protocol", False):
            members = [(key, member) for key, member in vars(value).items() if not key.startswith("_")]
            rows = [
                (f"`{key}`" if isinstance(member, property) else f"`{key}{signature(member)}`", first_paragraph(member))
                for key, member in members
            ]
            parts.append(f"### {name}\n\n{about}\n\n" + table(("member", "meaning"), rows))
    assert len(parts) >= 10
    return "\n".join(parts)


def first_paragraph(member: Any) -> str:
    return " ".join((inspect.getdoc(member) or "").partition("\n\n")[0].split())


def commands() -> str:
    """Every command with its arguments and options, from the very objects that print `--help`."""
    import typer

    from autoft.cli import app

    parts: list[str] = []

    def walk(command: Any, name: str) -> None:
        inner = getattr(command, "commands", {})
        parameters = [p for p in command.params if "completion" not in p.name]
        arguments = [p for p in parameters if p.param_type_name == "argument"]
        named = {p.name: (p.metavar or p.name.upper()) for p in arguments}
        usage = " ".join([name, "[OPTIONS]", *named.values(), *(["COMMAND"] if inner else [])])
        rows = [(f"`{named[p.name]}`", one_line(p.help)) for p in arguments]
        for p in parameters:
            if p.param_type_name == "argument":
                continue
            value = "" if p.is_flag else f" {p.metavar or 'VALUE'}"
            shown = f" [default: {p.default}]" if p.default not in (None, False) and "[default" not in p.help else ""
            rows.append((", ".join(f"`{option}{value}`" for option in sorted(p.opts, key=len, reverse=True)),
                         one_line(p.help) + shown))  # fmt: skip
        about = "\n\n".join(one_line(paragraph) for paragraph in command.help.split("\n\n"))
        parts.append(f"### {name}\n\n{about}\n\n```\n{usage}\n```\n\n" + table(("", ""), rows))
        for key, child in inner.items():
            walk(child, f"{name} {key}")

    walk(typer.main.get_command(app), "autoft")
    return "\n".join(parts)


def one_line(text: str) -> str:
    return " ".join(text.split())


def torchvision() -> str:
    """Return the module of the plugin that the guide walks through."""
    return f"```python\n{(ROOT / 'plugins' / 'autoft-torchvision' / 'autoft_torchvision.py').read_text()}```\n"


MAKERS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "space": space,
    "hooks": hooks,
    "contracts": contracts,
    "torchvision": torchvision,
    "commands": commands,
}


def renewed(text: str) -> str:
    """Return a page with its made parts as they should be."""
    return MADE.sub(lambda part: f"<!-- made: {part['name']} -->\n{MAKERS[part['name']]()}<!-- end -->", text)


def stale(text: str) -> list[str]:
    """Return the names of a page's made parts that the code no longer says."""
    return [part["name"] for part in MADE.finditer(text) if part["text"] != MAKERS[part["name"]]()]


def test_made_parts_are_what_the_code_says():
    found = [(page.name, part["name"]) for page in PAGES for part in MADE.finditer(page.read_text())]
    assert sorted(name for _, name in found) == sorted(MAKERS)
    outdated = {page.name: names for page in PAGES if (names := stale(page.read_text()))}
    assert not outdated, "refresh with `python tests/test_docs.py --write`"


@pytest.mark.parametrize(
    ("page", "now", "before"),
    [
        ("user-guide.md", "| `trainer.epochs` | `auto` |", "| `trainer.epochs` | `12` |"),
        ("user-guide.md", "| `weight_decay` | all | `0.01` |", "| `weight_decay` | all | `0.02` |"),
        ("plugin-authors.md", "autoft_data() -> list[DataFormat]\n", "autoft_data(path) -> list[DataFormat]\n"),
        ("plugin-authors.md", "| `fingerprint` |", "| `hash` |"),
        ("reference.md", "`--time-limit VALUE`", "`--timeout VALUE`"),
    ],
)
def test_outdated_part_is_found(page, now, before):
    text = (DOCS / page).read_text()
    assert now in text
    assert stale(text.replace(now, before))
    assert renewed(text.replace(now, before)) == text


# --- links --------------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """Return a heading's anchor as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


def broken_links(text: str, folder: Path) -> list[str]:
    """Return the links of a page to files or headings that are not there; the web is not asked."""
    bare = FENCE.sub("", text)
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", bare):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = folder / name if name else None
        if file is not None and not file.exists():
            wrong.append(target)
        elif anchor:
            page = FENCE.sub("", file.read_text()) if file is not None else bare
            if anchor not in {slug(heading) for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE)}:
                wrong.append(target)
    return wrong


def test_links_lead_somewhere():
    assert sum(text.count("](") for text in map(Path.read_text, PAGES)) > 10
    assert {page.name: wrong for page in PAGES if (wrong := broken_links(page.read_text(), DOCS))} == {}


def test_dead_links_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# A `page`\n")
    text = "# Here\n[1](other.md#a-page) [2](#here) [3](gone.md) [4](#there) [5](other.md#b) [6](https://x.y)\n"
    assert broken_links(text, tmp_path) == ["gone.md", "#there", "other.md#b"]


# --- words that must be explained ---------------------------------------------------------------------


def unmentioned(page: str, words: list[str]) -> list[str]:
    """Return the words that a page does not show as code."""
    return [word for word in words if f"`{word}`" not in page]


def event_kinds() -> list[str]:
    return re.findall(r"`(\w+)`", meanings(Event)["kind"])


def test_events_and_policies_are_explained():
    assert len(event_kinds()) >= 10
    assert unmentioned((DOCS / "reference.md").read_text(), event_kinds()) == []
    assert unmentioned((DOCS / "user-guide.md").read_text(), list(POLICIES)) == []


def test_suggested_backbones_of_texts_are_named():
    suggested = [transformers.suggest("text", millions)[0] for millions in SUGGESTED_MILLIONS_TEXT.values()]
    assert len(suggested) >= 3
    assert unmentioned((DOCS / "user-guide.md").read_text(), suggested) == []


def test_every_module_is_on_the_map():
    entries = [
        path for path in (ROOT / "autoft").iterdir() if not path.name.startswith(("_", ".")) and path.suffix != ".typed"
    ]
    assert len(entries) > 20
    names = [f"{path.name}/" if path.is_dir() else path.name for path in entries]
    assert unmentioned((DOCS / "internals.md").read_text(), names) == []


def test_word_left_out_is_found():
    assert unmentioned("`one` and two", ["one", "two"]) == ["two"]


def test_example_study_says_every_default(tmp_path):
    text = (DOCS / "user-guide.md").read_text()
    example = yaml.safe_load(re.search(r"<!-- study -->\n```yaml\n(.*?)```", text, re.DOTALL)[1])
    example["data"]["path"] = str(tmp_path)
    for backbone in example["backbones"]:
        backbone["weights"] = "none"
    study = StudyConfig.model_validate({**example, "space": {}, "search": {**example["search"], "time_limit": "30m"}})
    assert study.trainer == StudyConfig.model_fields["trainer"].default
    assert study.export == StudyConfig.model_fields["export"].default
    for name, section in SECTIONS.items():
        written = example[name][0] if name == "backbones" else example[name]
        assert set(written) == set(section.model_fields), name


# --- files and commands -------------------------------------------------------------------------------


def masked(line: str) -> str:
    """Return a line without what differs from run to run: numbers and the width of columns."""
    return " ".join(re.sub(r"\d+(?:\.\d+)?(?:e-?\d+)?", "#", line).split())


def missing_line(shown: list[str], printed: str) -> str | None:
    """Return the first of the shown lines that was not printed after those before it; `...` stands for anything."""
    lines = iter([masked(line) for line in printed.splitlines()])
    for line in shown:
        wanted = masked(line)
        if wanted in ("", "..."):
            continue
        start = wanted.removesuffix(" ...")
        if not any(found == wanted or (start != wanted and found.startswith(start)) for found in lines):
            return line
    return None


def test_other_output_is_found():
    printed = "warning: x\nfound 3 files\nbest    trial 1: accuracy 0.9720 on validation\n"
    assert missing_line(["found 4 files", "...", "best trial 0: accuracy 0.5 ..."], printed) is None
    assert missing_line(["found 4 folders"], printed) == "found 4 folders"
    assert missing_line(["best trial 0: ...", "found 3 files"], printed) == "found 3 files"  # in another order


def replace_functions(file: Path, block: str) -> None:
    """Replace a module's functions by those of the same names in a block; new ones go below the one before them."""
    source, previous = file.read_text(), ""
    for node in ast.parse(block).body:
        new = ast.get_source_segment(block, node)
        old = {
            known.name: ast.get_source_segment(source, known) for known in ast.parse(source).body if hasattr(known, "name")
        }
        assert node.name in old or previous, f"{file} has no {node.name}"
        source = (
            source.replace(old[node.name], new) if node.name in old else source.replace(previous, f"{previous}\n\n\n{new}")
        )
        previous = new
    file.write_text(source)


class Reader:
    """Does what a page says, in a folder: writes its files, types its commands, compares the output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / "site"
        paths = [*(folder / "autoft-hello", self.site), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONUNBUFFERED": "1",  # keeps stdout and stderr in order
            "PYTHONDONTWRITEBYTECODE": "1",
            "AUTOFT_CACHE": str(folder / "cache"),
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "100",
        }
        self.typed: list[str] = []

    def follow(self, page: str) -> None:
        for block in BLOCK.finditer(page):
            file = self.folder / (block["path"] or "")
            if block["action"] == "file":
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block["text"])
            elif block["action"] == "replace":
                replace_functions(file, block["text"])
            else:
                self.type_in(block["text"])

    def type_in(self, block: str) -> None:
        parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
        assert parts, f"no command in {block!r}"
        for part in parts:
            command, *shown = part.replace("\\\n", "").splitlines()
            started = time.monotonic()
            done = subprocess.run(
                self.translate(command), shell=True, cwd=self.folder, env=self.environment, capture_output=False,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
            printed = done.stdout.replace(str(self.folder), "/home/you")
            self.typed.append(f"{time.monotonic() - started:5.1f} s  {command}")
            fails = any(line.startswith(("error:", "FAIL")) for line in shown)
            assert done.returncode == (2 if fails else 0), f"{command}\n{printed}"
            lacking = missing_line(shown, printed)
            assert lacking is None, f"`{command}` no longer prints {lacking!r}, but\n{printed}"

    def translate(self, command: str) -> str:
        """Keep pip from the network and from this environment: it installs into a folder of the test."""
        if command.startswith("pip install -e "):
            folder = shlex.quote(command.removeprefix("pip install -e "))
            options = "--quiet --no-deps --no-build-isolation --no-index --disable-pip-version-check"
            return f"python -m pip install {options} --upgrade --target site {folder}"
        return command


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """The plugin author's guide, followed to its end."""
    reader = Reader(tmp_path_factory.mktemp("guide"))
    reader.follow((DOCS / "plugin-authors.md").read_text())
    return reader


@pytest.mark.slow
def test_ten_minutes_are_enough(tmp_path):
    reader = Reader(tmp_path)
    reader.follow((DOCS / "ten-minutes.md").read_text())
    assert [command.split("s  ")[-1].split()[0] for command in reader.typed].count("autoft") == 6


@pytest.mark.slow
def test_plugin_guide_can_be_followed(guide):
    assert any("autoft search" in command for command in guide.typed)
    assert any("plugins check" in command for command in guide.typed)


@pytest.mark.slow
def test_plugin_guide_starts_again_from_a_bundle(guide, monkeypatch):
    import torch
    from safetensors.torch import load_file

    from autoft.errors import BackboneError
    from autoft.specs import BackboneRequest

    hello = load(guide, "autoft_hello", monkeypatch)
    file = guide.folder / "runs" / "poly" / "bundle" / "model.safetensors"
    built = hello.resolve(BackboneRequest("tiny", weights=str(file))).build().state_dict()
    for name, value in load_file(file).items():
        if name.startswith("backbone."):
            assert torch.equal(built[name.removeprefix("backbone.")], value)
    with pytest.raises(BackboneError, match="do not fit hello/small"):
        hello.resolve(BackboneRequest("small", weights=str(file))).build()


@pytest.mark.slow
def test_plugin_guide_poly_loss_without_epsilon_is_cross_entropy(guide, monkeypatch):
    import torch
    from torch.nn import functional as F

    poly = load(guide, "autoft_poly", monkeypatch)
    outputs, encoded = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 3
    assert torch.isclose(poly.loss(outputs, encoded, None, {"epsilon": 0.0}), F.cross_entropy(outputs, encoded))
    assert poly.loss(outputs, encoded, None, {"epsilon": 2.0}) > F.cross_entropy(outputs, encoded)


def load(guide: Reader, name: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(guide.folder / "autoft-hello"))
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    return module


@pytest.mark.slow
def test_files_and_events_of_a_run_are_explained(guide):
    run = guide.folder / "runs" / "poly"
    reference, deployers = (DOCS / "reference.md").read_text(), (DOCS / "deployers.md").read_text()
    assert unmentioned(reference, [path.name for path in run.iterdir() if path.is_file()]) == []
    contract = json.loads((run / "bundle" / "autoft.json").read_text())
    assert unmentioned(deployers, list(contract)) == []
    files = {re.sub(r"inputs/.*", "inputs/", name) for name in contract["files"]}
    assert len(files) >= 10
    assert unmentioned(deployers, sorted(files)) == []
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {event["event"] for event in events} >= {"data", "preflight", "search", "trial", "epoch", "trial_end", "done"}
    for event in events:
        (row,) = re.findall(rf"^\| `{event['event']}` \| (.*)$", reference, re.MULTILINE)
        assert unmentioned(row, [key for key in event if key not in ("event", "time")]) == [], event["event"]


@pytest.mark.slow
def test_deployers_commands_run_and_agree_with_predict(guide, tmp_path):
    shutil.copytree(guide.folder / "runs" / "poly" / "bundle", tmp_path / "bundle")
    reader = Reader(tmp_path)
    reader.follow((DOCS / "deployers.md").read_text())
    assert {"by_hand.py", "difference.py"} <= {path.name for path in tmp_path.iterdir()}

    def answer(command: str) -> list[str]:
        return subprocess.check_output(
            shlex.split(command), cwd=tmp_path, env=reader.environment, text=True
        ).split()  # fmt: skip

    for image in sorted((tmp_path / "bundle" / "golden" / "inputs").iterdir())[:3]:
        label, score = answer(f"python by_hand.py {image}")
        assert answer(f"python bundle/predict.py {image}")[1:] == [label, score]


def test_user_guide_shows_real_mistakes(tmp_path):
    (tmp_path / "digits" / "0").mkdir(parents=True)
    reader = Reader(tmp_path)
    reader.follow((DOCS / "user-guide.md").read_text())
    assert len(reader.typed) >= 3


def test_page_that_is_wrong_is_found(tmp_path):
    page = "<!-- run -->\n```console\n$ echo one\ntwo\n```\n"
    with pytest.raises(AssertionError, match="no longer prints 'two'"):
        Reader(tmp_path).follow(page)
    with pytest.raises(AssertionError, match="exit 3"):
        Reader(tmp_path).follow("<!-- run -->\n```console\n$ exit 3\n```\n")
    (tmp_path / "a.py").write_text("def one():\n    return 1\n")
    Reader(tmp_path).follow("<!-- replace: a.py -->\n```python\ndef one():\n    return 2\n```\n")
    assert (tmp_path / "a.py").read_text() == "def one():\n    return 2\n"
    with pytest.raises(AssertionError, match="has no two"):
        Reader(tmp_path).follow("<!-- replace: a.py -->\n```python\ndef two():\n    return 2\n```\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_docs.py --write")
    for page in PAGES:
        page.write_text(renewed(page.read_text()))
