"""A run folder belongs to one study and one process at a time; nothing that lies there is overwritten or lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import files_in, json_lines

from autoft.errors import RunError
from autoft.events import Event
from autoft.runfolder import FORMAT, LOCK, STUDY, RunFolder, open_run

IDENTITY: dict[str, Any] = {
    "name": "digits",
    "data": {"fingerprint": "abc", "validation_share": 0.15},
    "backbones": [{"name": "timm/resnet18", "weights": "pretrained"}],
    "space": {},
    "search": {"seed": 0, "metric": None},
}
FACTS = {"versions": {"python": "3.11"}}


def changed(**sections: Any) -> dict[str, Any]:
    return {
        **IDENTITY,
        **{name: {**IDENTITY[name], **new} if isinstance(new, dict) else new for name, new in sections.items()},
    }


def make_run(path: Path, identity: dict[str, Any] = IDENTITY) -> Path:
    """A run in which something was searched."""
    with open_run(path, identity, FACTS, "name: digits\n") as run:
        run.study.write_bytes(b"trials")
    return path


def try_to_open(path: Path, identity: dict[str, Any] = IDENTITY) -> RunFolder:
    with open_run(path, identity, FACTS, "name: other\n") as run:
        return run


def fail_inside(path: Path, error: BaseException) -> None:
    with open_run(path, IDENTITY, FACTS, "") as run:
        run.log(Event("data", "read"))
        raise error


def test_new_folder_is_made_with_its_parents_and_records_what_it_is_made_of(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "digits"
    with open_run(path, IDENTITY, FACTS, "name: digits\n") as run:
        assert not run.resumed
        assert (path / "study.yaml").read_text() == "name: digits\n"
        assert json.loads((path / LOCK).read_text()) == {"format": FORMAT, "identity": IDENTITY, **FACTS}
        run.log(Event("trial", "trial 0", {"trial": 0}))
        run.study.write_bytes(b"")
        assert run.study == path / STUDY
        assert run.trial(7) == path / "trials" / "7"
        assert run.bundle == path / "bundle"
    (line,) = json_lines((path / "log.jsonl").read_text())
    assert (line["event"], line["trial"]) == ("trial", 0)
    assert not (path / ".held.pid").exists()


def test_same_study_resumes_and_keeps_the_first_record(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with open_run(run, IDENTITY, {"versions": {"python": "9"}}, "name: digits\nmore: trials\n") as resumed:
        assert resumed.resumed
        assert resumed.lock["versions"] == {"python": "3.11"}
    assert (run / "study.yaml").read_text() == "name: digits\nmore: trials\n"
    assert (run / STUDY).read_bytes() == b"trials"


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        (changed(search={"seed": 1}), "search.seed is 0 there and 1 here"),
        (changed(data={"fingerprint": "xyz"}), "data.fingerprint is 'abc' there and 'xyz' here"),
        (changed(space={"dropout": 0.1}), "space.dropout is None there and 0.1 here"),
        (
            changed(backbones=[{"name": "timm/resnet18", "weights": "none"}]),
            "backbones.0.weights is 'pretrained' there and 'none' here",
        ),
        (
            changed(backbones=[*IDENTITY["backbones"], {"name": "timm/vit", "weights": "none"}]),
            "backbones.1.name is None there and 'timm/vit' here",
        ),
        (changed(name="letters"), "name is 'digits' there and 'letters' here"),
    ],
)
def test_folder_of_another_study_is_refused_by_what_differs(identity: dict[str, Any], said: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = files_in(run)
    with pytest.raises(RunError, match="belongs to another study") as caught:
        try_to_open(run, identity)
    assert said in caught.value.message
    assert "dropout" in said or "None there" in said or caught.value.message.count(" there and ") == 1
    assert "only `search.trials` and `search.time_limit` may change" in str(caught.value.hint)
    assert files_in(run) == before


def test_many_differences_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(RunError, match="; and 3 more"):
        try_to_open(run, changed(space={f"setting{number}": number for number in range(8)}))


def test_tuples_and_lists_are_the_same_after_a_journey_through_json(tmp_path: Path) -> None:
    sizes = changed(data={"sizes": ((1, 2), [3])})
    run = make_run(tmp_path / "run", sizes)
    assert try_to_open(run, changed(data={"sizes": [[1, 2], [3]]})).resumed


@pytest.mark.parametrize("names", [["photo.jpg"], ["study.yaml"], ["study.db", "log.jsonl"], ["a", "b", "c", "d"]])
def test_folder_with_anything_else_is_refused_and_named(names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    for name in names:
        (path / name).write_text("mine")
    before = files_in(path)
    with pytest.raises(RunError, match=r"must be new, empty or of the same study, but .* holds") as caught:
        try_to_open(path)
    assert names[0] in caught.value.message
    assert (" and 1 more" in caught.value.message) == (len(names) == 4)
    assert files_in(path) == before


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("mine")
    with pytest.raises(RunError, match=r"must be a folder, but .* is a file"):
        try_to_open(path)
    with pytest.raises(RunError, match="cannot be made"):
        try_to_open(path / "below")
    assert path.read_text() == "mine"


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "{}", '{"identity": 3}', '{"lockfileVersion": 3}'])
@pytest.mark.parametrize("searched", [True, False])
def test_lock_file_that_is_damaged_or_not_ours_stays_as_it_is(content: str, searched: bool, tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / LOCK).write_text(content)
    (path / "study.yaml").write_text("mine")
    (path / "log.jsonl").write_text("mine")
    if searched:
        (path / STUDY).write_bytes(b"mine")
    before = files_in(path)
    with pytest.raises(RunError, match=r"lock\.json (is damaged|must be written by autoft)") as caught:
        try_to_open(path)
    assert "-o" in str(caught.value.hint)
    assert {name: content for name, content in files_in(path).items() if name != ".held"} == before


def test_failure_before_anything_was_searched_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "deep" / "run"
    for error in (RunError("too small"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail_inside(path, error)
        assert not (tmp_path / "runs").exists()
    path.mkdir(parents=True)
    with pytest.raises(RunError):
        fail_inside(path, RunError("too small"))
    assert path.is_dir(), "a folder that was there before stays"
    assert set(files_in(path)) <= {".held"}


def test_failure_in_the_preflight_leaves_no_tokens_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(RunError, match="too small"), open_run(path, IDENTITY, FACTS, "") as run:  # noqa: PT012
        run.tokens.mkdir()
        (run.tokens / "train.bin").write_bytes(b"1")
        raise RunError("too small")
    assert not path.exists()


def test_failure_later_keeps_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = files_in(run)
    with pytest.raises(RunError):
        fail_inside(run, RunError("full"))
    after = files_in(run)
    assert json_lines(after.pop("log.jsonl").decode())[0]["event"] == "data"
    assert {**after, "study.yaml": b""} == {**before, "study.yaml": b""}


def test_kill_before_the_search_leaves_a_folder_that_any_study_may_take(tmp_path: Path) -> None:
    """A process that was killed in the preflight left its record, but nothing that could be lost."""
    path = tmp_path / "run"
    with open_run(path, IDENTITY, FACTS, "") as run:
        kept = files_in(run.path)
    path.mkdir(exist_ok=True)
    for name, content in kept.items():
        (path / name).write_bytes(content)
    other = changed(search={"seed": 5})
    with open_run(path, other, FACTS, "") as run:
        assert not run.resumed
        assert run.lock["identity"] == other
        run.study.write_bytes(b"")
    assert json.loads((path / LOCK).read_text())["identity"] == other


def test_temporary_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / ".lock.json.abc.tmp").write_text("torn")  # killed while it wrote its very first file
    make_run(path)
    (path / ".bundle.abc.tmp" / "onnx").mkdir(parents=True)
    (path / ".result.json.abc.tmp").write_text("torn")
    (path / "trials" / "3").mkdir(parents=True)
    (path / "trials" / "3" / ".model.safetensors.abc.tmp").write_text("torn")
    make_run(path)
    assert set(files_in(path)) == {".held", LOCK, STUDY, "study.yaml"}
    assert not (path / ".bundle.abc.tmp").exists()


HOLD = """
import sys
from pathlib import Path
from autoft.runfolder import open_run
with open_run(Path(sys.argv[1]), {}, {}, "") as run:
    print("held", flush=True)
    sys.stdin.read()
"""


def test_folder_that_another_process_holds_is_refused_by_its_pid(tmp_path: Path) -> None:
    path = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    before = files_in(path)
    with pytest.raises(RunError, match=rf"held by another process \(pid {holder.pid}\)"):
        try_to_open(path, {})
    assert files_in(path) == before
    holder.kill()
    holder.communicate()
    assert (path / ".held.pid").exists(), "a kill cleans nothing up"
    with open_run(path, {}, {}, ""):
        pass  # and holds nothing either


def test_folder_that_this_process_holds_is_refused_too(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", IDENTITY, FACTS, ""), pytest.raises(RunError, match="held by another process"):
        try_to_open(tmp_path / "run")
