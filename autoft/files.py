"""Writes files so that a kill at any moment leaves either the old or the new content, never a torn one.

Tensors, and JSON that a run depends on, are written with a checksum (CRC-32), which reading compares: a disk, a copy or a
loss of power may damage what was whole once. It tells accidents, and nothing of intent.

What a worker leaves behind (JSON, tensors, copies) may also lie on another file system that `fsspec` knows, such as
`s3://BUCKET/FOLDER`: paths of `as_path` are given to the same functions. Folders made in place are local ones alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from autoft.errors import RunError, first_line

if TYPE_CHECKING:
    from torch import Tensor

# Protocols whose objects appear whole or not at all, whatever happens to their upload.
WHOLE_OBJECTS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"})
CHECKSUM = "checksum"  # its name in JSON, and in the metadata of tensors
_LAST = re.compile("crc32:[0-9a-f]{8}")  # the last field, whatever damage made of its name
_PIECE = 16 << 20  # bytes of a file read at once for its checksum
IN_ONE_READ = 64 << 20  # bytes of a tensors' file up to which it is read as a whole; larger ones are mapped


def as_path(text: str) -> Path:
    """Return the path that a text names: a local one, or one on a file system of `fsspec`, written `PROTOCOL://...`.

    The latter is a `upath.UPath`, which does all that is done with paths of results and checkpoints; `file://` is local.

    Raises:
        RunError: The protocol is unknown, or the package for it is not installed.
    """
    if "://" not in text:
        return Path(text)
    from upath import UPath

    try:
        path = UPath(text)
        path.fs  # noqa: B018 - imports the protocol's package
    except (ValueError, ImportError) as error:
        raise RunError(
            f"a path must be local or of a protocol that fsspec can use here, but got {text}: {first_line(error)}",
            "install the package that it names, such as s3fs for s3://",
        ) from error
    if path.protocol in ("file", "local"):
        return Path(path.path)
    return cast(Path, path)  # not one for Python, since the methods of local files alone are missing


def is_local(path: Path) -> bool:
    """Return whether a path of `as_path` is on this machine's own file system."""
    return isinstance(path, Path)


def remove_tree(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a folder and all in it, if it is there.

    Args:
        path: The folder.
        ignore_errors: Whether what cannot be removed stays without a word.
    """
    if is_local(path):
        if path.exists():
            shutil.rmtree(path, ignore_errors=ignore_errors)
        return
    remote = cast(Any, path)
    with contextlib.suppress(*((OSError,) if ignore_errors else ())):
        if remote.exists():
            remote.fs.rm(remote.path, recursive=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files and folders that killed writers left in a folder, where nobody else may write now."""
    if not folder.exists():
        return
    for left in folder.glob(".*.tmp"):
        if left.is_dir():
            remove_tree(left)
        else:
            left.unlink(missing_ok=True)


def replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place: fsync, rename, fsync of the folder.

    For another file system the temporary file is a local one. It is uploaded to its place where an object appears whole or
    not at all, else beside it, and moved.

    Args:
        path: The file to create or replace.
        write: Writes the whole content to the local path it is given.
    """
    if not is_local(path):
        _upload(path, write)
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; a run folder's files follow the user's umask like any other
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _upload(path: Path, write: Callable[[Path], None]) -> None:
    remote = cast(Any, path)
    with tempfile.TemporaryDirectory(prefix="autoft-upload-") as folder:
        draft = Path(folder) / "draft"
        draft.touch()
        write(draft)
        if remote.protocol in WHOLE_OBJECTS:
            remote.fs.put_file(str(draft), remote.path)
            return
        beside = remote.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            remote.fs.put_file(str(draft), beside.path)
            remote.fs.mv(beside.path, remote.path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def copy_atomically(source: Path, path: Path) -> None:
    """Copy a file's content to `path`, which appears whole or not at all."""

    def copy(temporary: Path) -> None:
        if is_local(source):
            shutil.copyfile(source, temporary)
        else:
            remote = cast(Any, source)
            remote.fs.get_file(remote.path, str(temporary))

    replace_atomically(path, copy)


def sync_folder(folder: Path) -> None:
    """Make a rename or removal inside `folder` durable; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    replace_atomically(path, lambda temporary: _write_exactly(temporary, text))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, and the folder that it lies in where that is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(path, lambda temporary: _write_whole(temporary, content))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; NaN and infinity are refused, since other readers refuse them."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_checked(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as `write_json` does, with a checksum that `read_json` compares."""
    write_json(path, checked(content))


def checked(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is to be written as JSON with its checksum as the last field."""
    plain: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))  # as it will be read: lists, and names as text
    plain.pop(CHECKSUM, None)
    return {**plain, CHECKSUM: _of_json(plain)}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; one with a checksum is compared with it, and returned without.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a JSON object, or not what was written.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the latter for what nests too deep
        raise ValueError(f"{path} is not whole JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, but holds a {type(content).__name__}")
    wanted = content.pop(CHECKSUM, None)  # none in what other programs write, and in runs of an earlier autoft
    renamed = wanted is None and _LAST.fullmatch(str(next(reversed(content.values()), ""))) is not None
    if renamed or (wanted is not None and wanted != _of_json(content)):
        raise ValueError(f"{path} is altered: its content does not match its checksum")
    return content


def _of_json(content: Mapping[str, Any]) -> str:
    return _named(zlib.crc32(json.dumps(content, sort_keys=True).encode("utf-8")))


def checksum(content: bytes) -> str:
    """Return the checksum of some bytes."""
    return _named(zlib.crc32(content))


def _named(number: int) -> str:
    return f"crc32:{number:08x}"


def checksum_of(path: Path) -> str:
    """Return the checksum of a local file's bytes."""
    found = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            found = zlib.crc32(piece, found)
    return _named(found)


def _write_whole(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append one JSON object as a line to a local file.

    A kill may tear the last line, and a damaged disk any: readers skip what is no JSON, and the next line begins anew.
    """
    with path.open("ab+") as file:
        torn = False
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(("\n" if torn else "").encode() + (json.dumps(content) + "\n").encode("utf-8"))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write tensors and a JSON-ready description as one safetensors file, atomically, with a checksum of both.

    Tensors are copied to the CPU first; ones that share memory are stored apart.
    """
    from safetensors.torch import save_file

    owned = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    plain: dict[str, Any] = json.loads(json.dumps(metadata or {}, allow_nan=False))
    # one entry: safetensors writes several in an order that is never the same twice
    described = {"autoft": json.dumps({**plain, CHECKSUM: _of_tensors(owned, plain)})}
    replace_atomically(path, lambda temporary: save_file(owned, temporary, metadata=described))


def _of_tensors(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> str:
    """Return the checksum of names, types, shapes and bytes, and of the description; 4 GB a second."""
    import torch

    found = zlib.crc32(json.dumps(described, sort_keys=True).encode("utf-8"))
    for name in sorted(tensors):
        tensor = tensors[name]
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        if tensor.numel():
            found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, found)
    return _named(found)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: the tensors on the CPU, and the description.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a whole safetensors file, or not what was written.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load

    try:
        if is_local(path) and path.stat().st_size > IN_ONE_READ:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            # safetensors 0.8 keeps some memory for every tensor got from an open file; of bytes it does not
            content = path.read_bytes()
            tensors, metadata = load(content), _metadata(content)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    try:
        described = json.loads((metadata or {}).get("autoft", "{}"))
    except ValueError as error:
        raise ValueError(f"{path} is altered: its description is no JSON") from error
    if not isinstance(described, dict):
        raise ValueError(f"{path} is altered: its description is no JSON object")
    wanted = described.pop(CHECKSUM, None)  # none in what other programs write, and in runs of an earlier autoft
    if wanted is None:
        altered = any(_LAST.search(value) for value in (metadata or {}).values())
    else:
        altered = wanted != _of_tensors(tensors, described)
    if altered:
        raise ValueError(f"{path} is altered: its content does not match its checksum")
    return tensors, described


def _metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file whose format has been checked: 8 bytes of a length, and JSON so long."""
    length = int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    return found


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def folder_in_place(path: Path) -> Iterator[Path]:
    """Fill a temporary folder that becomes `path` when the block ends without an error.

    A folder already at `path` stays untouched until then, and is removed only after the new one stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    old = path.with_name(f".{path.name}.old")
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        remove_tree(old)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        sync_folder(path.parent)
        remove_tree(old)
    finally:
        remove_tree(temporary)


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Return a sorting key under which numbers count as numbers.

    Example:
        >>> sorted(["10", "9", "a"], key=natural_key)
        ['9', '10', 'a']
    """
    pieces = re.split(r"([0-9]+)", name)
    numbered = tuple((0, int(piece), "") if piece.isdecimal() else (1, 0, piece.casefold()) for piece in pieces if piece)
    return numbered, name  # the name itself decides between equals, such as 01 and 1


def _write_exactly(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
