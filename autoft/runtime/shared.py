"""What the scripts of all bundles share: the contract and its checks, answers, golden vectors, and the command line.

The export puts this source in the place of the script's import of it, so that a bundle has one `predict.py`. It imports
nothing of autoft or torch; Python 3.10 will do.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL = "onnx/model.onnx"
SECONDS = 600.0  # that a batch may take: a graph from elsewhere may hold a loop without end
ANSWERS = ("label", "labels", "values", "entities", "mask")


class BundleError(ValueError):
    """A bundle is incomplete, altered, or not of the kind that this script runs."""


class InputError(ValueError):
    """An input cannot be answered; others can."""


# --- the contract -----------------------------------------------------------------------------------


class Contract(NamedTuple):
    """What a bundle's `autoft.json` promises, checked.

    Attributes:
        folder: The bundle.
        labels: Names of the outputs, in their order.
        answer: What an answer is: one `label`, any number of `labels`, `values`, `entities`, or a `mask`.
        values: Numbers that answers need, such as `thresholds`, one for each label; and what else the task keeps.
        outputs: Names of the graph's outputs: `logits`, and of what scores there are.
        preprocessing: How inputs become tensors.
        fields: All of `autoft.json`.
    """

    folder: Path
    labels: tuple[str, ...]
    answer: str
    values: Mapping[str, tuple[float, ...]]
    outputs: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    fields: Mapping[str, Any]


def read_bundle(folder: Path, answers: Sequence[str], check_preprocessing: Callable[[Mapping[str, Any]], None]) -> Contract:
    """Check a bundle's files against their hashes, and what its contract says.

    A contract of an early autoft lacks `answer`, `values` and `outputs`; it is of a classification.

    Args:
        folder: The bundle.
        answers: Kinds of answers that the script can give.
        check_preprocessing: Raises `ValueError` for a declaration that is wrong.

    Raises:
        BundleError: A file is missing or altered, or the contract is none that the script can keep.
    """
    fields = read_json(folder / "autoft.json")

    def check(holds: bool, rule: str, value: object) -> None:
        if not holds:
            raise BundleError(f"{folder}: {rule}, but got {shortened(repr(value))}")

    files, labels = fields.get("files"), fields.get("labels")
    if not isinstance(files, dict) or MODEL not in files:
        raise BundleError(f"{folder}: autoft.json must list {MODEL} in `files`")
    for name, digest in files.items():
        check_file(folder, name, digest)
    named = isinstance(labels, list) and bool(labels) and all(isinstance(label, str) for label in labels)
    if not isinstance(labels, list) or not named:
        raise BundleError(f"{folder}: `labels` in autoft.json must be a list of names, but got {shortened(repr(labels))}")
    check(len(set(labels)) == len(labels), "`labels` in autoft.json must differ", labels)
    answer, outputs = fields.get("answer", "label"), fields.get("outputs", ["logits", "probabilities"])
    check(answer in ANSWERS, f"`answer` in autoft.json must be one of {', '.join(ANSWERS)}", answer)
    check(answer in answers, f"this script gives {' or '.join(answers)}, as `answer` in autoft.json must ask for", answer)
    known = isinstance(outputs, list) and all(isinstance(name, str) for name in outputs) and outputs[:1] == ["logits"]
    check(known and len(outputs) in (1, 2), "`outputs` in autoft.json must be logits, and of scores at most one", outputs)
    check(len(outputs) == 2 or answer == "values", f"`outputs` in autoft.json must name the scores of {answer}", outputs)
    values = fields.get("values", {})
    check(isinstance(values, dict), "`values` in autoft.json must be lists of numbers by name", values)
    for name, numbers in values.items():
        right = isinstance(numbers, list) and all(map(is_finite, numbers))
        check(right, f"`values.{name}` in autoft.json must be a list of finite numbers", numbers)
        each = name not in ("thresholds", "scale") or len(numbers) == len(labels)
        check(each, f"`values.{name}` in autoft.json must have a number for each label", numbers)
    check(answer != "labels" or "thresholds" in values, "`values` in autoft.json must hold `thresholds`", values)
    preprocessing = fields.get("preprocessing")
    if not isinstance(preprocessing, dict):
        raise BundleError(f"{folder}: autoft.json must hold `preprocessing`")
    try:
        check_preprocessing(preprocessing)
    except ValueError as error:
        raise BundleError(f"{folder}: {error}") from error
    numbers_of = {name: tuple(map(float, numbers)) for name, numbers in values.items()}
    return Contract(folder, tuple(labels), answer, numbers_of, tuple(outputs), preprocessing, fields)


def is_finite(value: object) -> bool:
    """Return whether a value from JSON is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def shortened(text: str, most: int = 200) -> str:
    """Return the beginning of a text, to be put into a message."""
    return text if len(text) <= most else text[:most] + "..."


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object. Raises `BundleError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: is missing or no JSON ({error})") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path}: must hold a JSON object")
    return value


def inside(folder: Path, name: str) -> Path:
    """Return a file of a folder; refuse names that lead out of it, and links, which may."""
    path = PurePosixPath(name)
    # Windows would read a backslash or a drive in a name that looks plain here.
    plain = path.parts and not path.is_absolute() and ".." not in path.parts and not PureWindowsPath(name).drive
    if not plain or "\\" in name or "\0" in name:
        raise BundleError(f"{folder}: files must lie inside the bundle, but one is named {name!r}")
    here = folder
    for part in path.parts:
        here = here / part
        if here.is_symlink():
            raise BundleError(f"{folder}: {name} must be a file of the bundle, but is or lies behind a link")
    return here


def check_file(folder: Path, name: str, digest: object) -> None:
    """Check that a file of a bundle is there and has the SHA-256. Raises `BundleError`."""
    path = inside(folder, name)
    if not path.is_file():
        raise BundleError(f"{folder}: {name} is missing")
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    if hashed.hexdigest() != digest:
        raise BundleError(f"{folder}: {name} was altered: its SHA-256 is not the one in autoft.json")


# --- the model --------------------------------------------------------------------------------------


def graph_of(contract: Contract, variant: str) -> Path:
    """Return the file of a variant's graph: `fp32`, or one that autoft.json names under `variants`.

    Raises:
        BundleError: The bundle has no such variant.
    """
    named = contract.fields.get("variants", {})
    known = {"fp32": MODEL}
    for name, entry in named.items() if isinstance(named, dict) else ():
        if isinstance(entry, dict) and entry.get("shipped") is True and entry.get("file") in contract.fields["files"]:
            known[name] = entry["file"]
    if variant not in known:
        raise BundleError(f"{contract.folder}: has the variants {', '.join(known)}, but {variant!r} was asked for")
    return inside(contract.folder, known[variant])


class Model:
    """A bundle's graph in ONNX Runtime.

    Args:
        contract: The bundle's.
        inputs: Names of the inputs that the graph must have, in their order.
        threads: Threads of one inference; 0 leaves the choice to ONNX Runtime.
        variant: Which of the bundle's graphs.

    Raises:
        BundleError: The bundle has no such variant, or the graph is not the one that the contract describes.
    """

    def __init__(self, contract: Contract, inputs: Sequence[str], threads: int, variant: str = "fp32") -> None:
        import onnxruntime  # here: training shares this module and must not need a runtime

        path = graph_of(contract, variant)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common type
            raise BundleError(f"{path}: cannot be loaded ({error})") from error
        names = [value.name for value in session.get_inputs()]
        shapes = {value.name: value.shape for value in session.get_outputs()}
        if names != list(inputs) or not set(contract.outputs) <= set(shapes):
            raise BundleError(
                f"{path}: must take {', '.join(inputs)} and give {' and '.join(contract.outputs)}, "
                f"but it is {', '.join(names)} -> {', '.join(shapes)}"
            )
        is_mask = contract.answer == "mask"
        axes, each = (4, 1) if is_mask else (3 if contract.answer == "entities" else 2, -1)
        for number, name in enumerate(contract.outputs):
            shape = shapes[name]
            given = axes - 1 if is_mask and number else axes  # of a mask, the second output is the classes themselves
            if shape and len(shape) != given:
                raise BundleError(f"{path}: {name} must have {given} axes, but has {len(shape)}")
            if shape and given == axes and isinstance(shape[each], int) and shape[each] != len(contract.labels):
                raise BundleError(f"{path}: has {shape[each]} outputs, but autoft.json has {len(contract.labels)} labels")
        self.seconds = SECONDS
        self._path = path
        self._names = list(contract.outputs)
        self._session = session
        self._options = onnxruntime.RunOptions

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Return the outputs of a batch by name. Raises `BundleError`, also where it takes longer than `seconds`."""
        options = self._options()
        late = threading.Timer(self.seconds, setattr, (options, "terminate", True))
        late.daemon = True
        late.start()
        try:
            found = self._session.run(self._names, dict(inputs), options)
        except Exception as error:  # onnxruntime's errors have no common type
            if options.terminate:
                said = f"a batch took longer than {self.seconds:g} s, which is too long; smaller ones take less"
                raise BundleError(f"{self._path}: {said}") from error
            raise BundleError(f"{self._path}: cannot run ({error})") from error
        finally:
            late.cancel()
        return dict(zip(self._names, found, strict=True))


# --- answers ----------------------------------------------------------------------------------------


def answer_of(contract: Contract, row: NDArray[np.float32]) -> dict[str, Any]:
    """Make an answer of one sample's scores, or of its numbers.

    Args:
        contract: Whose `answer` is `label`, `labels` or `values`.
        row: The graph's last output for the sample, `(K,)`.

    Returns:
        `{"label", "score", "scores"}`; `{"labels", "scores"}` with the labels whose score reaches their threshold;
        `{"value"}` of one number, `{"values"}` of several by name.

    Raises:
        InputError: The scores are not finite.
    """
    if not np.isfinite(row).all():
        raise InputError("the model's answer is not a finite number")
    named = {label: float(value) for label, value in zip(contract.labels, row, strict=True)}
    if contract.answer == "values":
        return {"value": float(row[0])} if len(named) == 1 else {"values": named}
    if contract.answer == "labels":
        limits = dict(zip(contract.labels, contract.values["thresholds"], strict=True))
        return {"labels": [label for label, score in named.items() if score >= limits[label]], "scores": named}
    best = contract.labels[int(row.argmax())]
    return {"label": best, "score": named[best], "scores": named}


def answer_all(
    sources: Iterable[Any],
    size: int,
    read: Callable[[Any], Any],
    answer: Callable[[list[Any]], Iterable[dict[str, Any] | InputError]],
    shown: Callable[[Any], Any],
) -> Iterator[dict[str, Any]]:
    """Answer inputs, so many at a time; one that cannot be answered gives `{"input", "error"}`, in its place.

    Args:
        sources: The inputs; they are not held.
        size: How many are read before they are answered.
        read: Makes of one input what `answer` takes. Raises `InputError`.
        answer: Gives an answer, or an error, for each that was read.
        shown: How an input is named in its answer.
    """
    rest = iter(sources)
    while chunk := list(itertools.islice(rest, size)):
        found = [_attempt(read, source) for source in chunk]
        good = [item for item in found if not isinstance(item, InputError)]
        answers = iter(answer(good) if good else ())
        for source, item in zip(chunk, found, strict=True):
            made = item if isinstance(item, InputError) else next(answers)
            yield {"input": shown(source), **({"error": str(made)} if isinstance(made, InputError) else made)}


def _attempt(read: Callable[[Any], Any], source: Any) -> Any:
    try:
        return read(source)
    except InputError as error:
        return error


def predicted(answers: Iterable[dict[str, Any]], error: type[InputError]) -> list[dict[str, Any]]:
    """Return answers as a list. Raises the error for the first input that has none."""
    found = []
    for answer in answers:
        if "error" in answer:
            raise error(answer["error"])
        found.append(answer)
    return found


def plain_answer(answer: Mapping[str, Any], width: int = 0) -> str:
    """Return an answer in one line for people, without its input.

    Args:
        answer: From `Bundle.answers`.
        width: A single label is filled up to so many characters, so that lines are aligned.

    Example:
        >>> plain_answer({"label": "cat", "score": 0.75})
        'cat  0.7500'
    """
    if "label" in answer:
        return f"{answer['label']:{width}}  {answer['score']:.4f}"
    if "labels" in answer:
        return ", ".join(f"{label} {answer['scores'][label]:.4f}" for label in answer["labels"]) or "(none)"
    if "value" in answer:
        return f"{answer['value']:.6g}"
    if "values" in answer:
        return ", ".join(f"{name} {value:.6g}" for name, value in answer["values"].items())
    if "shares" in answer:
        return ", ".join(f"{name} {share:.1%}" for name, share in answer["shares"].items() if share)
    found = (f"{e['label']} {e['text']!r} {e['start']}-{e['end']} {e['score']:.4f}" for e in answer["entities"])
    return "; ".join(found) or "(none)"


def json_answer(answer: Mapping[str, Any]) -> str:
    """Return an answer as one line of JSON, with the scores of the labels that it gives, but not of all."""
    shown = {name: value for name, value in answer.items() if name not in ("scores", "mask")}
    if "labels" in answer:
        shown["scores"] = {label: answer["scores"][label] for label in answer["labels"]}
    return json.dumps(shown)


# --- golden vectors ---------------------------------------------------------------------------------


def essence(answer: Mapping[str, Any]) -> Any:
    """Return what of an answer must be the same everywhere, JSON-ready: all but scores, which are compared as arrays."""
    if "entities" in answer:
        return [[entity["label"], entity["start"], entity["end"]] for entity in answer["entities"]]
    return next((answer[name] for name in ("label", "labels", "value", "values", "shares") if name in answer), None)


def check_golden(
    contract: Contract,
    run: Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[np.float32]]],
    inputs_of: Callable[[list[Any]], Mapping[str, NDArray[Any]]],
    answers: Callable[[list[Any]], Iterable[dict[str, Any]]],
    source: Callable[[Path, Any], Any],
) -> dict[str, Any]:
    """Replay a bundle's golden inputs through this machine's runtime.

    Differences of `values` count in standard deviations of the training targets, where the contract has their `scale`;
    outputs for parts of a text count where its `attention_mask` is 1. Of classes (whole numbers) the share that differs
    counts: where two are as likely, rounding decides.

    Args:
        contract: The bundle's.
        run: Runs the model.
        inputs_of: Makes the model's inputs of raw inputs.
        answers: Answers raw inputs.
        source: Makes a raw input of a folder and an entry of `golden.json`.

    Returns:
        `ok`; `tolerance`; for each of the model's inputs (from the raw inputs) and outputs (from the stored inputs) the
        largest absolute difference, by name; `wrong`, the entries whose answer differs from end to end.

    Raises:
        BundleError: The golden files are missing or do not fit together.
    """
    folder = contract.folder / "golden"
    golden = read_json(folder / "golden.json")
    entries, wanted, tolerance = golden.get("inputs"), golden.get("answers"), golden.get("tolerance")
    if not isinstance(entries, list) or not isinstance(wanted, list) or not len(entries) == len(wanted) > 0:
        raise BundleError(f"{folder}: golden.json must have as many `answers` as `inputs`, at least one")
    if not isinstance(tolerance, (int, float)) or not is_finite(tolerance):
        raise BundleError(f"{folder}: golden.json must hold `tolerance`, but got {tolerance!r}")
    try:
        sources = [source(folder, entry) for entry in entries]
        inputs = inputs_of(sources)
        stored = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in (*inputs, *contract.outputs)}
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{folder}: cannot be replayed ({error})") from error
    for name, values in inputs.items():
        if stored[name].dtype != values.dtype or stored[name].ndim != values.ndim or len(stored[name]) != len(entries):
            raise _misfit(folder, name, values, stored[name])
    found = {**inputs, **run({name: stored[name] for name in inputs})}
    differences = {}
    for name, values in found.items():
        if name in inputs and values.shape != stored[name].shape:
            differences[name] = math.inf  # texts became other tokens
            continue
        if values.shape != stored[name].shape or values.dtype != stored[name].dtype:
            raise _misfit(folder, name, values, stored[name])
        apart = np.abs(values.astype(np.float64) - stored[name])
        if name not in inputs and values.dtype.kind in "ui":
            differences[name] = float((apart != 0).mean())
            continue
        if name == "logits" and "scale" in contract.values:
            apart = apart / np.maximum(contract.values["scale"], sys.float_info.min)
        if name not in inputs and apart.ndim > 2 and "attention_mask" in stored:
            apart = apart[stored["attention_mask"] == 1]
        differences[name] = float(apart.max()) if apart.size else 0.0
    compared = zip(entries, wanted, answers(sources), strict=True)
    wrong = [entry for entry, want, answer in compared if not _same(essence(answer), want, contract, tolerance)]
    # `<=` is false for NaN, which must fail too.
    ok = not wrong and all(difference <= tolerance for difference in differences.values())
    return {"ok": ok, "tolerance": tolerance, **differences, "wrong": wrong}


def _misfit(folder: Path, name: str, wanted: NDArray[Any], found: NDArray[Any]) -> BundleError:
    return BundleError(f"{folder}: {name}.npy must be {wanted.dtype} {wanted.shape}, but is {found.dtype} {found.shape}")


def _same(found: Any, wanted: Any, contract: Contract, tolerance: float) -> bool:
    if contract.answer not in ("values", "mask"):
        return bool(found == wanted)
    pairs = [(found, wanted)] if len(contract.labels) == 1 and contract.answer == "values" else []
    if not pairs:
        if not isinstance(found, dict) or not isinstance(wanted, dict) or set(found) != set(wanted):
            return False
        pairs = [(found[name], wanted[name]) for name in contract.labels]
    scales = contract.values.get("scale", (1.0,) * len(pairs))
    return all(
        is_finite(one) and is_finite(other) and abs(one - other) <= tolerance * scale
        for (one, other), scale in zip(pairs, scales, strict=True)
    )


# --- the command line -------------------------------------------------------------------------------


def make_parser(description: str, script: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every bundle's script.

    Args:
        description: What the script does.
        script: Its file; the bundle is the folder that it lies in, unless told otherwise.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument(
        "--bundle", type=Path, default=Path(script).resolve().parent, help="bundle folder (default: the script's)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="inputs at once (default: 32)")
    parser.add_argument("--variant", default="fp32", help="graph to run, as autoft.json names them (default: fp32)")
    parser.add_argument("--check", action="store_true", help="replay golden/ and print the largest differences")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None, inputs: Sequence[str]) -> argparse.Namespace:
    """Return the options; of the options named in `inputs`, at least one must be given, or `--check` without them."""
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, but got {options.batch_size}")
    given = any(getattr(options, name) for name in inputs)
    if not given and not options.check:
        parser.error("give at least one input, or use --check")
    if given and options.check:
        parser.error("--check replays the bundle's own inputs and takes no others")
    if options.check and options.variant != "fp32":
        parser.error("--check compares with what the variant fp32 gave")
    return options


def safely(work: Callable[[], int]) -> int:
    """Do a command's work; return its exit code, 2 where the bundle or an input cannot be read."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names need not be text that the terminal can show
    try:
        return work()
    except (BundleError, InputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def print_check(result: Mapping[str, Any]) -> int:
    """Print what `check_golden` found; return the exit code."""
    names = [name for name in result if name not in ("ok", "tolerance", "wrong")]
    width = max(map(len, names))
    for name in names:
        print(f"{name:{width}}  largest difference {result[name]:.3g}")
    for entry in result["wrong"]:
        print(f"wrong answer: {entry if isinstance(entry, str) else json.dumps(entry)}")
    print(f"{'ok' if result['ok'] else 'FAILED'}: the tolerance is {result['tolerance']:g}")
    return 0 if result["ok"] else 1


def exit_code(main: Callable[[], int]) -> int:
    """Run a script's `main`; return its exit code, 141 where the reader of a pipe has seen enough."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code
