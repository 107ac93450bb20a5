"""A writer that fails, at any moment, leaves the old content whole and nothing behind."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from autoft import files
from autoft.errors import RunError


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_content_replaces_the_old(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    files.write_text(file, "old")
    files.write_text(file, "new\n")
    assert file.read_bytes() == b"new\n"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_old_content_stays_when_the_writer_raises(tmp_path: Path, error: BaseException) -> None:
    file = tmp_path / "file.txt"
    file.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise error

    with pytest.raises(type(error)):
        files.replace_atomically(file, write)
    assert file.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_old_content_stays_when_the_process_is_killed_while_writing(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("old")
    script = f"""
        import os, signal
        from pathlib import Path
        from autoft.files import replace_atomically

        def write(temporary):
            temporary.write_text("half of the n")
            os.kill(os.getpid(), signal.SIGKILL)

        replace_atomically(Path({str(file)!r}), write)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=60, check=False)
    assert run.returncode == -9
    assert file.read_text() == "old"


def test_readers_never_see_the_file_half_written(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("old")
    seen = []
    files.replace_atomically(file, lambda temporary: (temporary.write_text("new"), seen.append(file.read_text()))[0])
    assert seen == ["old"]
    assert file.read_text() == "new"


def test_file_follows_the_umask(tmp_path: Path, umask: int) -> None:
    files.write_text(tmp_path / "file.txt", "content")
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o666 & ~umask
    assert os.umask(umask) == umask, "the umask itself must stay"


def test_copy_appears_whole(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    files.copy_atomically(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"
    with pytest.raises(FileNotFoundError):
        files.copy_atomically(tmp_path / "nothing", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"
    assert names(tmp_path) == ["copy", "source"]


def test_json_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    content = {"ä": [1, 2.5, None, True], "nested": {"1": "x"}}
    files.write_json(tmp_path / "file.json", content)
    assert files.read_json(tmp_path / "file.json") == content


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_numbers_that_other_readers_refuse(tmp_path: Path, value: float) -> None:
    files.write_json(tmp_path / "file.json", {"value": 1})
    with pytest.raises(ValueError, match="Out of range"):
        files.write_json(tmp_path / "file.json", {"value": value})
    assert files.read_json(tmp_path / "file.json") == {"value": 1}


@pytest.mark.parametrize("content", ["[1, 2]", '{"a": ', ""])
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(ValueError, match=r"file\.json (must hold a JSON object, but holds a list|is not whole JSON)"):
        files.read_json(tmp_path / "file.json")


def test_lines_are_appended(tmp_path: Path) -> None:
    for number in range(3):
        files.append_line(tmp_path / "log.jsonl", {"number": number})
    assert (tmp_path / "log.jsonl").read_text().splitlines() == ['{"number": 0}', '{"number": 1}', '{"number": 2}']


def test_tensors_are_read_back_bit_for_bit_with_their_description(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "whole": shared,
        "view": shared[0],
        "turned": shared.t(),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "gradient": torch.nn.Parameter(torch.tensor([-0.0, float("nan")])),
    }
    files.save_tensors(tmp_path / "file.safetensors", tensors, {"epoch": 3})
    found, described = files.load_tensors(tmp_path / "file.safetensors")
    assert described == {"epoch": 3}
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].numpy(force=True).tobytes() == tensor.numpy(force=True).tobytes() if name != "half" else True
        assert not found[name].requires_grad
    assert found["half"].item() == 1.5


def test_file_without_description_reads_as_an_empty_one(tmp_path: Path) -> None:
    files.save_tensors(tmp_path / "file.safetensors", {"a": torch.zeros(1)})
    assert files.load_tensors(tmp_path / "file.safetensors")[1] == {}


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_torn_tensors_are_refused_by_name(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "file.safetensors"
    files.save_tensors(file, {"a": torch.zeros(100)})
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"file\.safetensors is not a whole safetensors file"):
        files.load_tensors(file)


def test_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert files.sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- folders ----------------------------------------------------------------------------------------


def test_folder_appears_when_the_block_ends(tmp_path: Path, umask: int) -> None:
    with files.folder_in_place(tmp_path / "bundle") as draft:
        (draft / "file").write_text("content")
        assert not (tmp_path / "bundle").exists()
    assert names(tmp_path) == ["bundle"]
    assert (tmp_path / "bundle" / "file").read_text() == "content"
    assert stat.S_IMODE((tmp_path / "bundle").stat().st_mode) == 0o777 & ~umask


def test_new_folder_replaces_the_old_one_with_none_of_its_files(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with files.folder_in_place(tmp_path / "bundle") as draft:
            (draft / name).write_text(name)
    assert names(tmp_path) == ["bundle"]
    assert names(tmp_path / "bundle") == ["second"]


def test_old_folder_stays_when_the_block_fails(tmp_path: Path) -> None:
    with files.folder_in_place(tmp_path / "bundle") as draft:
        (draft / "file").write_text("old")

    def fail() -> None:
        with files.folder_in_place(tmp_path / "bundle") as draft:
            (draft / "file").write_text("new")
            raise RuntimeError("the gate")

    with pytest.raises(RuntimeError, match="the gate"):
        fail()
    assert names(tmp_path) == ["bundle"]
    assert (tmp_path / "bundle" / "file").read_text() == "old"


def test_remains_of_a_kill_between_the_two_renames_do_no_harm(tmp_path: Path) -> None:
    old = tmp_path / ".bundle.old"
    old.mkdir()
    (old / "file").write_text("old")
    with pytest.raises(RuntimeError, match="the gate"), files.folder_in_place(tmp_path / "bundle"):
        raise RuntimeError("the gate")
    assert (old / "file").read_text() == "old", "the only copy must outlive a failure"
    with files.folder_in_place(tmp_path / "bundle") as draft:
        (draft / "file").write_text("new")
    assert names(tmp_path) == ["bundle"]
    assert (tmp_path / "bundle" / "file").read_text() == "new"


# --- other file systems -------------------------------------------------------------------------------


@pytest.fixture(params=["memory://", "beside://"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system: one whose objects appear whole, and one on which they have to be moved."""
    folder = files.as_path(f"memory://{tmp_path.name}/run")
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "beside://":
            patch.setattr(files, "WHOLE_OBJECTS", frozenset())
        yield folder
    files.remove_tree(folder)
    assert not folder.exists()


def test_remains_of_killed_writers_are_removed_and_nothing_else(remote: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "here", remote / "there"):
        files.remove_unfinished(folder)  # not there yet
        folder.mkdir(parents=True)
        for name in (".a.json.x1.tmp", "b.tmp", ".c.json", "d.json"):
            (folder / name).write_text("{}")
        (folder / ".bundle.y2.tmp").mkdir()
        (folder / ".bundle.y2.tmp" / "model.onnx").write_text("torn")
        files.remove_unfinished(folder)
        assert sorted(path.name for path in folder.iterdir()) == [".c.json", "b.tmp", "d.json"]


def test_text_names_a_local_path_or_one_of_fsspec(tmp_path: Path) -> None:
    assert files.as_path(str(tmp_path)) == tmp_path
    assert files.as_path(f"file://{tmp_path}") == tmp_path == files.as_path(f"local://{tmp_path}")
    assert files.is_local(tmp_path)
    remote = files.as_path("memory://bucket/run")
    assert not files.is_local(remote)
    assert str(remote / "trials" / "1") == "memory://bucket/run/trials/1"


@pytest.mark.parametrize(("text", "reason"), [("nosuch://a/b", "nosuch"), ("gdrive://a/b", "[\\s\\S]*install the package")])
def test_path_that_cannot_be_used_here_is_refused(text: str, reason: str) -> None:
    with pytest.raises(RunError, match=f"must be local or of a protocol that fsspec can use here, but got .*{reason}"):
        files.as_path(text)


def test_json_text_tensors_and_copies_go_anywhere(remote: Path) -> None:
    for value in (1, 2):
        files.write_json(remote / "a.json", {"value": value})
        assert files.read_json(remote / "a.json") == {"value": value}
    tensors = {"a": torch.randn(3, 4), "b": torch.ones(0), "c": torch.tensor(2.0, dtype=torch.bfloat16)}
    files.save_tensors(remote / "b.safetensors", tensors, {"epoch": 3})
    files.copy_atomically(remote / "b.safetensors", remote / "c.safetensors")
    found, described = files.load_tensors(remote / "c.safetensors")
    assert described == {"epoch": 3}
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)
    assert names(remote) == ["a.json", "b.safetensors", "c.safetensors"]


def test_copies_go_between_file_systems(remote: Path, tmp_path: Path) -> None:
    files.write_text(tmp_path / "here.txt", "content")
    files.copy_atomically(tmp_path / "here.txt", remote / "there.txt")
    files.copy_atomically(remote / "there.txt", tmp_path / "back.txt")
    assert (tmp_path / "back.txt").read_text() == "content"


def test_old_object_stays_when_writing_or_uploading_fails(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_text(remote / "a.txt", "old")

    def fail(*arguments: Any, **named: Any) -> None:
        raise OSError("the line is cut")

    with pytest.raises(OSError, match="cut"):
        files.replace_atomically(remote / "a.txt", fail)
    monkeypatch.setattr(type(cast(Any, remote).fs), "put_file" if files.WHOLE_OBJECTS else "mv", fail)
    with pytest.raises(OSError, match="cut"):
        files.write_text(remote / "a.txt", "new")
    monkeypatch.undo()
    assert (remote / "a.txt").read_text() == "old"
    assert names(remote) == ["a.txt"]


def test_damaged_object_is_told(remote: Path) -> None:
    files.save_tensors(remote / "a.safetensors", {"a": torch.zeros(4)})
    content = (remote / "a.safetensors").read_bytes()
    (remote / "a.safetensors").write_bytes(content[:-3])
    with pytest.raises(ValueError, match=r"a\.safetensors is not a whole safetensors file"):
        files.load_tensors(remote / "a.safetensors")


def test_large_files_are_mapped_and_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, tensors = tmp_path / "file.safetensors", {"a": torch.randn(5, 3), "b": torch.zeros(2, dtype=torch.int64)}
    files.save_tensors(file, tensors, {"epoch": 1})
    read: list[Path] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or real(path))
    small, described = files.load_tensors(file)
    assert read == [file]
    monkeypatch.setattr(files, "IN_ONE_READ", 10)
    large, also = files.load_tensors(file)
    assert read == [file]
    assert described == also == {"epoch": 1}
    assert all(torch.equal(small[name], large[name]) for name in tensors)


def test_removed_tree_is_gone_and_one_that_is_not_there_is_fine(remote: Path, tmp_path: Path) -> None:
    for folder in (remote / "trial", tmp_path / "trial"):
        (folder / "checkpoint").mkdir(parents=True)
        (folder / "checkpoint" / "a").write_text("a")
        files.remove_tree(folder)
        assert not folder.exists()
        files.remove_tree(folder)


# --- checksums ----------------------------------------------------------------------------------------------------------


def altered(content: bytes) -> Iterator[bytes]:
    """Give a content with one bit of each byte altered."""
    for place, byte in enumerate(content):
        yield content[:place] + bytes([byte ^ (1 << place % 8)]) + content[place + 1 :]


def test_altered_json_is_told_or_says_the_same(tmp_path: Path) -> None:
    file, content = tmp_path / "file.json", {"name": "a", "values": (1.5, None, True), "more": {"2": {}}}
    files.write_checked(file, content)
    wanted = {"name": "a", "values": [1.5, None, True], "more": {"2": {}}}
    assert files.read_json(file) == wanted
    whole, told = file.read_bytes(), 0
    for damaged in altered(whole):
        file.write_bytes(damaged)
        try:
            assert files.read_json(file) == wanted
        except ValueError:
            told += 1
    assert told > 0.8 * len(whole)
    for size in range(len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is not whole JSON"):
            files.read_json(file)


def test_json_without_a_checksum_is_read_as_it_is(tmp_path: Path) -> None:
    files.write_json(tmp_path / "file.json", {"a": 1})
    assert files.read_json(tmp_path / "file.json") == {"a": 1}


def test_checked_json_is_written_again_with_a_new_checksum(tmp_path: Path) -> None:
    files.write_checked(tmp_path / "a.json", {"a": 1})
    files.write_checked(tmp_path / "b.json", {**files.read_json(tmp_path / "a.json"), "a": 2})
    assert files.read_json(tmp_path / "b.json") == {"a": 2}


@pytest.mark.parametrize("in_one_read", [0, 1 << 20], ids=["mapped", "read"])
def test_altered_tensors_are_told_or_are_the_same(in_one_read: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "IN_ONE_READ", in_one_read)
    file = tmp_path / "file.safetensors"
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(True), "c": torch.zeros(0), "d": torch.ones(2).half()}
    files.save_tensors(file, tensors, {"epoch": 3})
    whole, told = file.read_bytes(), 0
    for damaged in altered(whole):
        file.write_bytes(damaged)
        try:
            found, described = files.load_tensors(file)
            assert described == {"epoch": 3}
            assert set(found) == set(tensors)
            assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
        except ValueError:
            told += 1
    assert told > 0.8 * len(whole)


def test_equal_tensors_are_written_as_equal_bytes(tmp_path: Path) -> None:
    written = set()
    for _ in range(5):
        files.save_tensors(tmp_path / "file.safetensors", {"b": torch.ones(2), "a": torch.zeros(3)}, {"y": 1, "x": [2]})
        written.add((tmp_path / "file.safetensors").read_bytes())
    assert len(written) == 1


def test_line_after_a_torn_one_begins_anew(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    files.append_line(log, {"a": 1})
    log.write_bytes(log.read_bytes() + b'{"b": ')
    files.append_line(log, {"c": 3})
    files.append_line(log, {"d": 4})
    assert log.read_text() == '{"a": 1}\n{"b": \n{"c": 3}\n{"d": 4}\n'
