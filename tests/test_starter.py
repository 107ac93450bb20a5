"""A study file that `autoft init` writes is the study of the data alone, with everything that was found written out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import command

from autoft.config import load_study
from autoft.config.schema import SECTIONS
from autoft.errors import AutoftError
from autoft.events import Event
from autoft.prepare import load_config, prepare
from autoft.starter import meanings, starter, write_starter
from autoft.testing.toy import toy_texts, write_toy_images

pytestmark = pytest.mark.usefixtures("toys")


def written(data: Path, *overrides: str) -> str:
    heard: list[Event] = []
    config, catalog = load_config(data, overrides)
    return starter(prepare(config, catalog, heard.append), heard, data.parent)


def uncommented(text: str) -> str:
    """Return a study file with every setting that is there as a comment."""
    return re.sub(r"^( *)#(?=[a-z])", r"\1", text, flags=re.MULTILINE)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "messages.csv"
    rows = [f'"{sample.source}",{sample.target}' for sample in toy_texts(classes=2, per_class=20)]
    file.write_text("what: is said?,kind\n" + "\n".join(rows) + "\n")
    return file


def test_images_give_a_study_that_loads_as_the_data_alone(tmp_path: Path) -> None:
    write_toy_images(tmp_path / "images")
    text = written(tmp_path / "images", "backbones=[{name: toy/mlp, weights: none}]")
    (tmp_path / "study.yaml").write_text(text)
    found = load_study(tmp_path / "study.yaml")
    alone, _ = load_config(tmp_path / "images", ["backbones=[{name: toy/mlp, weights: none}]"])
    assert found.trainer == alone.trainer
    assert found.export == alone.export
    assert found.search.model_copy(update={"metric": None}) == alone.search
    assert found.data.model_copy(update={"plugin": None}) == alone.data
    assert (found.task, found.search.metric, found.backbones) == ("image-classification", "accuracy", alone.backbones)
    assert "36 samples in 3 classes" in text
    assert "stripes-120" in text
    assert "column" not in text  # that is for tables


def test_every_setting_is_there_and_loads_where_its_comment_is_removed(table: Path) -> None:
    text = written(table, "backbones=[{name: toy/text, weights: none}]")
    file = table.parent / "study.yaml"
    file.write_text(text)
    plain = load_study(file)
    file.write_text(uncommented(text))
    whole = load_study(file)
    assert whole.model_copy(update={"space": {}}) == plain
    assert {"learning_rate", "freeze_depth", "dropout"} <= whole.space.keys()
    for name, section in SECTIONS.items():
        for setting in section.model_fields:
            if (name, setting) != ("backbones", "image_size"):
                assert re.search(rf"^ +(- )?{setting}:", uncommented(text), re.MULTILINE), f"{name}.{setting}"


def test_columns_that_were_found_are_named(table: Path) -> None:
    text = written(table, "backbones=[{name: toy/text, weights: none}]")
    assert "  text: 'what: is said?'\n" in text
    assert "  label: kind\n" in text
    assert "  path: messages.csv\n" in text


def test_what_was_asked_for_is_set(table: Path) -> None:
    text = written(
        table,
        "backbones=[{name: toy/text, weights: none, max_length: 16}]",
        "trainer.batch_size=8",
        "plugins.strict=true",
        "space.dropout=0.25",
        "space.freeze_depth={low: 0, high: 2}",
    )
    file = table.parent / "study.yaml"
    file.write_text(text)
    found = load_study(file)
    assert found.trainer.batch_size == 8
    assert found.plugins.strict
    assert found.backbones[0].max_length == 16
    assert found.space["dropout"] == 0.25
    assert set(found.space) == {"dropout", "freeze_depth"}


def test_data_elsewhere_is_named_by_its_whole_path(table: Path) -> None:
    config, catalog = load_config(table, ["backbones=[{name: toy/text, weights: none}]"])
    text = starter(prepare(config, catalog, lambda event: None), [], table.parent / "studies")
    assert f"  path: {table}\n" in text


def test_words_of_the_data_stay_within_their_comment(tmp_path: Path) -> None:
    file = tmp_path / "odd.csv"
    labels = ["yes\n#name: other", "no\x1b[31m"]
    rows = [f'"the {word} text",""' for word in ("first", "second")]
    rows = [f'"text {number} of it","{labels[number % 2]}"' for number in range(40)]
    file.write_text("text,label\n" + "\n".join(rows) + "\n")
    text = written(file, "backbones=[{name: toy/text, weights: none}]")
    (tmp_path / "study.yaml").write_text(text)
    assert load_study(tmp_path / "study.yaml").name == "odd"
    assert "\x1b" not in text
    assert "\n#name: other" not in text


def test_a_study_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    file = tmp_path / "new" / "study.yaml"
    write_starter(file, "name: one\n")
    with pytest.raises(AutoftError, match="must not replace another") as caught:
        write_starter(file, "name: two\n")
    assert "--force" in caught.value.hint
    assert file.read_text() == "name: one\n"
    write_starter(file, "name: two\n", force=True)
    assert file.read_text() == "name: two\n"
    with pytest.raises(AutoftError, match="must not replace another"):
        write_starter(tmp_path / "new", "", force=True)


def test_command_writes_what_search_then_reads(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(table.parent)
    asked = ("init", "messages.csv", "-b", "toy/text", "--weights", "none")
    made = command(monkeypatch, capsys, *asked)
    assert (made.code, made.err) == (0, "")
    assert made.out.splitlines()[-1].split() == ["next", "autoft", "search", "study.yaml"]
    printed = command(monkeypatch, capsys, *asked, "-o", "-")
    assert (printed.code, printed.out) == (0, (table.parent / "study.yaml").read_text())
    again = command(monkeypatch, capsys, *asked)
    assert again.code == 2
    assert "--force" in again.err
    nowhere = command(monkeypatch, capsys, "init", "nowhere.csv")
    assert nowhere.code == 2
    assert "nowhere.csv" in nowhere.err


def test_meanings_are_one_line_each() -> None:
    class Documented:
        """A thing.

        Attributes:
            one: What it is,
                over two lines.
            two: Another.

        More words.
        """

    assert meanings(Documented) == {"one": "What it is, over two lines.", "two": "Another."}
    assert meanings(int) == {}
