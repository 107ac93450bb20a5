"""Verifies a bundle one check at a time: contract, files, graphs, signature, golden vectors; running it is `deploy`'s.

Nothing of the bundle is executed: golden vectors are replayed by autoft's own copy of its script, after all else has passed.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from autoft.catalog import Catalog
from autoft.errors import AutoftError, BundleError, first_line, printable
from autoft.export.contract import read_contract
from autoft.runtime import shared
from autoft.signing import SIGNATURE, check_signature

if TYPE_CHECKING:
    import onnx

CONTRACT = "autoft.json"
SHOWN = 5  # problems of one check that are listed
HEAD = 1 << 10  # bytes of a file that tell whether it is a pickle
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # of protocol 2 to 5; older ones are plain text
LARGEST_GRAPH = 2 << 30  # bytes: more no protobuf has
GOLDEN_SECONDS = 60.0  # that the golden vectors may take: a graph may hold a loop without end
SCRIPT = "predict.py"
PROGRAMS = frozenset({".py", ".pyc", ".so", ".dll", ".dylib", ".sh", ".exe", ".js"})
REMOTE_CODE = frozenset({"auto_map", "custom_pipelines", "trust_remote_code"})  # of transformers' configurations
ZIP = b"PK\x03\x04"  # torch saves pickles in such an archive, whose first entry is named .../data.pkl

Outcome = Literal["ok", "failed", "not checked"]


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: Of the check.
        outcome: `ok`, `failed`, or `not checked`, where something that it needs is missing.
        message: What was found.
    """

    name: str
    outcome: Outcome
    message: str


def verify(folder: Path, catalog: Catalog, *, public_key: Path | None = None) -> tuple[Check, ...]:
    """Run every check on a bundle, also after one has failed.

    Args:
        folder: The bundle.
        catalog: Provides its task.
        public_key: PEM file of the key that the bundle must be signed with; None where a signature is not asked for.

    Returns:
        The checks in their order. A check that cannot be made safely because an earlier one failed is `not checked`.

    Raises:
        BundleError: The folder is not a bundle at all, or a part of it cannot be read.
    """
    contract = read_contract(folder)
    links, present = _walk(folder)
    listed = contract.get("files")
    named: Mapping[str, Any] = listed if isinstance(listed, dict) else {}
    graphs = sorted(name for name in present if name.endswith(".onnx"))
    checks = [
        _checked("contract", lambda: _check_contract(contract)),
        _checked("links", lambda: _listing(links, f"none among {len(present)} files")),
        _checked("files", lambda: _check_files(folder, named)),
        _checked("extra files", lambda: _check_extra(named, present)),
        _checked("pickles", lambda: _check_pickles(present)),
        _checked("formats", lambda: _check_formats(present)),
        _checked("code", lambda: _check_code(present)),
        _checked("external data", lambda: _check_external_data(folder, graphs, named)),
    ]
    if checks[0].outcome == "ok":
        checks.append(_checked("graphs", lambda: _check_graphs(folder, graphs, contract)))
        checks.append(_checked("gate", lambda: _check_gate(contract["parity"])))
    else:
        checks += [Check(name, "not checked", "the contract does not say what to expect") for name in ("graphs", "gate")]
    checks.append(_check_signature(folder, public_key))
    if passed(checks):
        checks.append(_checked("golden vectors", lambda: _check_golden(folder, catalog)))
    else:
        checks.append(Check("golden vectors", "not checked", "they are replayed once all of the above is ok"))
    return tuple(checks)


def passed(checks: Sequence[Check]) -> bool:
    """Return whether no check failed. What was not checked for a failure before it comes with that failure."""
    return all(check.outcome != "failed" for check in checks)


def _checked(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", printable(check()))
    except AutoftError as error:
        return Check(name, "failed", printable(error.message))
    except (shared.BundleError, OSError) as error:
        return Check(name, "failed", printable(str(error)))


def _listing(problems: Sequence[str], fine: str) -> str:
    """Return what to say where nothing is wrong. Raises `BundleError` with the first few problems otherwise."""
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise BundleError("; ".join(problems[:SHOWN]) + more)
    return fine


# --- the contract -----------------------------------------------------------------------------------


class _Part(BaseModel):
    """Fields that are not named here are welcome: later versions add some."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(min_length=1)]
Names = Annotated[list[Name], Field(min_length=1)]


class _Backbone(_Part):
    name: Name
    weights: str | None
    licence: str | None


class _Parity(_Part):
    samples: int
    metric: Name
    trained: float
    exported: float
    max_output_difference: float
    batch_sizes: list[int]
    runtime: Name


class _Contract(_Part):
    """What `autoft.json` of format version 1 holds; what the script needs of it is checked by the script's own code."""

    format: Name
    format_version: int
    name: Name
    task: Name
    metric: Name
    labels: Names
    inputs: Names
    outputs: Names = Field(default=["logits", "probabilities"])
    preprocessing: dict[str, Any]
    backbone: _Backbone
    parity: _Parity
    validation: dict[str, float]
    test: dict[str, float]
    training: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, Digest]


def _check_contract(contract: Mapping[str, Any]) -> str:
    try:
        read = _Contract.model_validate(dict(contract))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors()]
        return _listing(problems, "")
    return f"format {read.format_version}, {read.task}, labels: {len(read.labels)}"


def _check_gate(parity: Mapping[str, Any]) -> str:
    """Check that what the gate measured is recorded; measuring it again needs the validation data."""
    if parity["samples"] < 1 or not parity["batch_sizes"]:
        raise BundleError(f"`parity` in {CONTRACT} must be of at least 1 sample and batch size, but is {dict(parity)}")
    return (
        f"recorded: {parity['metric']} {parity['exported']:.6g} over {parity['samples']} samples, "
        f"trained {parity['trained']:.6g}, outputs within {parity['max_output_difference']:.2g}"
    )


# --- files ------------------------------------------------------------------------------------------


def _walk(folder: Path) -> tuple[list[str], dict[str, Path]]:
    """Return the links of a folder in words, and its files by their names in `autoft.json`; no link is followed."""
    links: list[str] = []
    files: dict[str, Path] = {}

    def stop(error: OSError) -> None:
        raise BundleError(printable(f"{folder} cannot be read as a whole: {error}"), "make all of it readable") from error

    for here, folders, names in os.walk(folder, onerror=stop, followlinks=False):
        for name in sorted([*folders, *names]):
            path = Path(here) / name
            shown = path.relative_to(folder).as_posix()
            if path.is_symlink():
                links.append(f"{shown} must be a file of the bundle, but is a link to {os.readlink(path)}")
            elif path.is_file():
                files[shown] = path
            elif not path.is_dir():
                links.append(f"{shown} must be a file, but is a device, a pipe or a socket")
    return links, files


def _check_files(folder: Path, named: Mapping[str, Any]) -> str:
    problems = []
    for name, digest in named.items():
        try:
            shared.check_file(folder, name, digest)
        except shared.BundleError as error:
            problems.append(str(error).removeprefix(f"{folder}: "))
        except OSError as error:
            problems.append(f"{name} cannot be read: {error}")
    if not named:
        problems.append(f"`files` in {CONTRACT} must list the bundle's files")
    return _listing(problems, f"{len(named)} files have the SHA-256 of {CONTRACT}")


def _check_extra(named: Mapping[str, Any], present: Mapping[str, Path]) -> str:
    extra = sorted(present.keys() - named.keys() - {CONTRACT, SIGNATURE})
    return _listing([f"{name} is not listed in {CONTRACT}" for name in extra], "none")


def _check_pickles(present: Mapping[str, Path]) -> str:
    """Check that no file is a pickle, judged by its content: loading one runs what it says."""
    return _listing([f"{name} is a pickle" for name, path in present.items() if _is_pickle(path)], "none")


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(HEAD)
    return start.startswith(PICKLES) or (start.startswith(ZIP) and b".pkl" in start)


def _check_formats(present: Mapping[str, Path]) -> str:
    """Check that each file can be read as what its name says, where no other check reads it."""
    import numpy as np
    from safetensors import safe_open

    def weights(path: Path) -> None:
        with safe_open(path, framework="numpy") as file:
            file.keys()

    readers: dict[str, Callable[[Path], object]] = {
        ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
        ".npy": lambda path: np.load(path, allow_pickle=False),
        ".py": lambda path: ast.parse(path.read_bytes()),
        ".safetensors": weights,
    }
    problems, read = [], 0
    for name, path in present.items():
        if path.suffix not in readers:
            continue
        read += 1
        try:
            readers[path.suffix](path)
        except Exception as error:  # noqa: BLE001 - each reader has errors of its own for a damaged file
            problems.append(f"{name} is no {path.suffix} file: {first_line(error)}")
    return _listing(problems, f"{read} files are what their names say")


def _check_code(present: Mapping[str, Path]) -> str:
    """Check that there is no program but the bundle's own, and none that a loader of another library would run."""
    problems = [f"{name} is a program" for name, path in present.items() if path.suffix in PROGRAMS and name != SCRIPT]
    for name, path in present.items():
        if path.suffix == ".json" and "/" not in name:
            with contextlib.suppress(OSError, ValueError, RecursionError):  # what is no JSON, `formats` tells
                content = json.loads(path.read_text(encoding="utf-8"))
                found = sorted(REMOTE_CODE & content.keys()) if isinstance(content, dict) else []
                problems += [f"{name} asks for code by `{key}`, which other libraries may run" for key in found]
    return _listing(problems, f"none but {SCRIPT}")


# --- graphs -----------------------------------------------------------------------------------------


def _load(path: Path) -> onnx.ModelProto:
    """Return a graph without its external data, whose paths are not to be trusted yet. Raises `BundleError`."""
    import onnx
    from google.protobuf.message import DecodeError

    if path.stat().st_size > LARGEST_GRAPH:
        size = path.stat().st_size
        raise BundleError(f"{path.name} is no ONNX graph: these have at most {LARGEST_GRAPH} bytes, but it has {size}")
    try:
        return onnx.load_model(path, load_external_data=False)
    except (OSError, ValueError, DecodeError) as error:
        raise BundleError(f"{path.name} is no ONNX graph: {first_line(error)}") from error


def _check_external_data(folder: Path, graphs: Sequence[str], named: Mapping[str, Any]) -> str:
    """Check that tensors kept outside of a graph's file lie in hashed files of the bundle, within their bounds."""
    problems, count = [], 0
    for graph in graphs:
        for tensor in tensors_of(_load(folder / graph).graph):
            if tensor.data_location != tensor.EXTERNAL:
                continue
            count += 1
            where = {entry.key: entry.value for entry in tensor.external_data}
            try:
                _check_place(folder, graph, where, named)
            except (shared.BundleError, BundleError) as error:
                problems.append(f"{graph}, tensor {tensor.name}: {str(error).removeprefix(f'{folder}: ')}")
    return _listing(problems, f"{count} tensors, all in files of the bundle" if count else "none")


def _check_place(folder: Path, graph: str, where: Mapping[str, str], named: Mapping[str, Any]) -> None:
    location = where.get("location", "")
    # beside the graph: what leads out of its folder with `..` is refused even where it comes back to the bundle
    shared.inside(folder, location)
    name = "/".join([*graph.split("/")[:-1], location])
    path = shared.inside(folder, name)
    if name not in named or not path.is_file():
        raise BundleError(f"its data must be in a file listed in {CONTRACT}, but is in {name!r}")
    try:
        offset, length = int(where.get("offset", 0)), int(where.get("length", 0))
    except ValueError as error:
        raise BundleError(f"offset and length of its data must be whole numbers: {error}") from error
    size = path.stat().st_size
    if offset < 0 or length < 0 or offset + length > size:
        raise BundleError(f"its data must lie within the {size} bytes of {name}, but is {length} bytes at {offset}")


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that a graph keeps: initializers, sparse ones, constants, and those of graphs inside of it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from tensors_of(inner)


def _check_graphs(folder: Path, graphs: Sequence[str], contract: Mapping[str, Any]) -> str:
    """Check the opset and the IR version of every graph, and of the model all that the export promises."""
    from autoft.export.onnx import NEWEST_IR, OPSET, check_graph

    problems = [] if shared.MODEL in graphs else [f"{shared.MODEL} is missing"]
    for name in graphs:
        proto = _load(folder / name)
        opsets = {entry.domain: entry.version for entry in proto.opset_import}
        if not opsets.get("", 0) <= OPSET or not opsets:
            problems.append(f"{name}: the opset must be at most {OPSET}, but is {opsets}")
        if proto.ir_version > NEWEST_IR:
            problems.append(f"{name}: the IR version must be at most {NEWEST_IR}, but is {proto.ir_version}")
        if name == shared.MODEL and not problems:
            inputs = contract.get("inputs", [])
            try:
                check_graph(
                    proto,
                    inputs,
                    contract.get("outputs", ["logits", "probabilities"]),
                    lengths="attention_mask" in inputs,
                )
            except AutoftError as error:
                problems.append(f"{name}: {error.message}")
    return _listing(problems, f"{len(graphs)}: opset {OPSET}, IR {NEWEST_IR} or older")


# --- signature and golden vectors -------------------------------------------------------------------


def _check_golden(folder: Path, catalog: Catalog) -> str:
    from autoft.deploy import open_bundle

    opened = open_bundle(folder, catalog)
    if not (folder / "golden" / "golden.json").is_file():
        return "none in this bundle; it loads in ONNX Runtime"
    if hasattr(opened.runner, "limit"):  # a plugin's script need not have it
        opened.runner.limit(GOLDEN_SECONDS)
    found = opened.runner.check()
    measured = {name: value for name, value in found.items() if name not in ("ok", "tolerance", "wrong")}
    shown = ", ".join(f"{name} {value:.2g}" for name, value in measured.items())
    if not found["ok"]:
        wrong = f"; wrong answers: {len(found['wrong'])}" if found["wrong"] else ""
        raise BundleError(f"they must be met within {found['tolerance']:g}, but differ here by {shown}{wrong}")
    return f"met in ONNX Runtime within {found['tolerance']:g}: {shown}"


def _check_signature(folder: Path, public_key: Path | None) -> Check:
    if public_key is not None:
        return _checked("signature", lambda: check_signature(folder, public_key))
    if (folder / SIGNATURE).is_file():
        return Check("signature", "not checked", f"{SIGNATURE} is there: give the signer's key as --public-key FILE")
    return Check("signature", "not checked", "the bundle is not signed")
