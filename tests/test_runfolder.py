"""A run folder belongs to one study and one process at a time; nothing that lies there is overwritten or lost."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import files_in, json_lines
from filelock import FileLock

from autoft.errors import RunError
from autoft.events import Event
from autoft.files import read_json
from autoft.identity import defaults
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
        assert read_json(path / LOCK) == {"format": FORMAT, "identity": IDENTITY, **FACTS}
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
    assert read_json(path / LOCK)["identity"] == other


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


def sign(path: Path, pid: int, host: str, started: float) -> None:
    """Say that somebody else holds a folder."""
    (path / ".held.pid").write_text(f"{pid}\n{host}\n{started}\n")


def refusal(path: Path) -> RunError:
    with pytest.raises(RunError, match="held by another process") as caught:
        try_to_open(path)
    return caught.value


def ended_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_lock_whose_process_has_ended_is_explained(tmp_path: Path) -> None:
    """A process that it forked may still have the file open: then the kernel's lock lives on."""
    with open_run(tmp_path / "run", IDENTITY, FACTS, "") as run:
        sign(run.path, ended_process(), socket.gethostname(), 0.0)
        refused = refusal(run.path)
        assert "has ended: a process that it started must still have the folder open" in refused.message
        assert f"fuser {run.path / '.held'}" in str(refused.hint)


def test_lock_whose_pid_another_program_has_by_now_is_not_taken_for_that_program(tmp_path: Path) -> None:
    me = psutil.Process()
    with open_run(tmp_path / "run", IDENTITY, FACTS, "") as run:
        assert f"(pid {me.pid})" in refusal(run.path).message
        sign(run.path, me.pid, socket.gethostname(), me.create_time() - 3600)
        assert f"(pid {me.pid} held it, but has ended" in refusal(run.path).message


def test_holder_that_signs_a_moment_later_is_named(tmp_path: Path) -> None:
    """What is there until then is of one that was killed."""
    me = psutil.Process()
    with open_run(tmp_path / "run", IDENTITY, FACTS, "") as run:
        for left in ("", f"{ended_process()}\n{socket.gethostname()}\n0.0\n"):
            (run.path / ".held.pid").write_text(left)
            late = threading.Timer(0.2, sign, (run.path, me.pid, socket.gethostname(), me.create_time()))
            late.start()
            assert refusal(run.path).message.endswith(f"(pid {me.pid})")
            late.join()


def test_folder_that_another_process_makes_this_moment_is_not_taken_for_foreign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, make = tmp_path / "run", Path.mkdir

    def late(self: Path, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        if self == path:
            make(self, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", late)
    assert not try_to_open(path).resumed


def test_lock_of_another_machine_is_named_with_it(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", IDENTITY, FACTS, "") as run:
        sign(run.path, 1, "far-away", 0.0)
        refused = refusal(run.path)
        assert "(pid 1 on far-away)" in refused.message
        assert "nobody can see whether far-away still runs" in str(refused.hint)


@pytest.mark.parametrize("content", ["", "12", "x\ny\nz\n", "1\nhost\n"])
def test_lock_without_a_readable_name_is_still_a_lock(content: str, tmp_path: Path) -> None:
    with open_run(tmp_path / "run", IDENTITY, FACTS, "") as run:
        (run.path / ".held.pid").write_text(content)
        assert refusal(run.path).message.endswith("held by another process")


@pytest.mark.parametrize("left", [ended_process, lambda: psutil.Process().ppid()])
def test_signature_that_a_kill_left_holds_nothing(left: Callable[[], int], tmp_path: Path) -> None:
    """Whatever became of its pid: the kernel's lock went with the process."""
    run = make_run(tmp_path / "run")
    sign(run, left(), socket.gethostname(), 0.0)
    assert try_to_open(run).resumed
    sign(run, left(), "far-away", 0.0)
    assert try_to_open(run).resumed


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_file_system_without_locks_is_refused(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: FileLock) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "_acquire", fail)
    with pytest.raises(RunError, match="must be on a file system with locks") as caught:
        try_to_open(tmp_path / "run")
    assert "another file system" in str(caught.value.hint)


# --- formats ----------------------------------------------------------------------------------------------------------


def rewrite(run: Path, **changes: Any) -> None:
    lock = {**read_json(run / LOCK), **changes}
    (run / LOCK).write_text(json.dumps({name: value for name, value in lock.items() if value is not None}))


def test_folder_from_before_formats_is_brought_to_the_present_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rewrite(run, format=None)
    opened = try_to_open(run)
    assert opened.resumed
    assert opened.lock["format"] == read_json(run / LOCK)["format"] == FORMAT


def test_folder_of_a_newer_format_is_refused_by_who_made_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rewrite(run, format=FORMAT + 1, versions={"autoft": "99.1"})
    before = files_in(run)
    with pytest.raises(RunError, match=rf"was made by autoft 99\.1, in format {FORMAT + 1}; this is autoft") as caught:
        try_to_open(run)
    assert "pip install -U autoft" in str(caught.value.hint)
    assert files_in(run) == before


@pytest.mark.parametrize("number", [-1, "1", 1.0, True, []])
def test_format_that_is_no_number_is_damage(number: object, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rewrite(run, format=number)
    with pytest.raises(RunError, match=r"lock\.json is damaged: `format` is"):
        try_to_open(run)


def test_setting_that_came_after_the_folder_is_no_difference_where_it_is_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    defaults = {"search": {"novel": 3, "seed": 0}, "export": {"golden": 8}}

    def resume(**search: Any) -> bool:
        identity = {**changed(search=search), "export": {"golden": 8}}
        with open_run(run, identity, FACTS, "", defaults=defaults) as opened:
            return opened.resumed

    assert resume(novel=3)
    with pytest.raises(RunError, match=r"search\.novel is None there and 4 here"):
        resume(novel=4)
    with pytest.raises(RunError, match=r"search\.seed is 0 there and 5 here"):
        resume(seed=5)


def test_setting_that_is_gone_is_a_difference_and_the_maker_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", changed(search={"bygone": 1}))
    rewrite(run, versions={"autoft": "0.0.9"})
    with pytest.raises(RunError, match=r"search\.bygone is 1 there and None here \(it was made by autoft 0\.0\.9; this is"):
        try_to_open(run)


def test_every_setting_of_a_study_has_a_default_in_the_identity() -> None:
    usual = defaults()
    assert {"search", "trainer", "export", "data"} <= set(usual)
    assert usual["search"]["seeds"] == 3
    assert "storage" not in usual["search"]
    assert "path" not in usual["data"]


def test_folder_that_the_present_format_made_still_opens(tmp_path: Path) -> None:
    """Of format 1, as it was when that was new; where this fails, raise FORMAT, and let `_migrate` mend such folders."""
    run = make_run(tmp_path / "run", {"name": "photos", "data": {"fingerprint": "abc"}, **FORMAT_1})
    rewrite(run, format=1)
    here = defaults()
    here["data"]["fingerprint"] = "abc"
    with open_run(run, {**here, "name": "photos"}, FACTS, "", defaults=defaults()) as opened:
        assert (opened.resumed, opened.lock["format"]) == (True, FORMAT)


# Settings with their defaults when run folders got their first format; those that come later must not be added.
FORMAT_1: dict[str, Any] = {
    "task": None,
    "backbones": [],
    "plugins": {"allow": None, "strict": False},
    "search": {
        "metric": None,
        "objectives": ["metric"],
        "constraints": {"latency_ms": None, "size_mb": None},
        "space": "small",
        "seed": 0,
        "prune": True,
        "probe": True,
        "reuse": True,
        "seeds": 3,
        "confirm": 3,
        "soup": True,
    },
    "trainer": {
        "epochs": "auto",
        "batch_size": "auto",
        "precision": "auto",
        "optimizer": "adamw",
        "momentum": 0.9,
        "augmentation": "auto",
        "patience": None,
        "warmup": 0.1,
        "gradient_clip": 1.0,
        "device": "auto",
        "memory": "auto",
        "group_by_length": True,
        "compile": "auto",
    },
    "export": {
        "max_metric_drop": 0.001,
        "max_output_difference": 0.001,
        "refit": False,
        "quantize": [],
        "max_quantized_drop": 0.005,
        "golden": 8,
    },
    "space": {},
}


def test_folder_that_this_process_holds_is_refused_too(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", IDENTITY, FACTS, ""), pytest.raises(RunError, match="held by another process"):
        try_to_open(tmp_path / "run")
