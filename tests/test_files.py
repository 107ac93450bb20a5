"""A writer that fails, at any moment, leaves the old content whole and nothing behind."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from autoft import files


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
