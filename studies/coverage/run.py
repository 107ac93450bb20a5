"""Export a model of every family with random weights and compare it with ONNX Runtime; makes the table in README.md.

    python run.py            # measures what is not yet in data/results.jsonl, then writes the table
    python run.py choose     # looks for the smallest model of each timm family again, into families.json

Each model has a process of its own with a time limit: one that crashes or never ends is a row of the table like the others.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1] / "tests"  # whose tiny models stand for the architectures of transformers
FAMILIES = HERE / "families.json"
RESULTS = HERE / "data" / "results.jsonl"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
NOISE = 0.02  # added to every weight: a layer scale that starts at 1e-6 would hide all that lies behind it
TOLERANCE = 1e-3  # of the largest output; the gate's default for a bundle
TOLERANCE_OF_SPREAD = 0.02  # of what different inputs differ by: outputs may be one large constant and little else
ALIVE = 1e-4  # of the largest output; different inputs that differ by less say nothing about an export
LABELS = ("a", "b", "c")
TEXTS = (
    "the old cat sat on the mat near the river and looked at the green moon",
    "a dog runs through the park",
    "rain falls on the roof of the house in Berlin, every morning",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("do", nargs="?", choices=["measure", "choose", "table", "one"], default="measure", help="what to do")
    parser.add_argument("--model", help="the model of `one`, such as timm/resnet18")
    parser.add_argument("--only", help="measure models whose name has this in it")
    parser.add_argument("--limit", type=float, default=300, help="seconds that a model may take")
    parser.add_argument("--jobs", type=int, default=1, help="processes at the same time")
    parser.add_argument("--again", action="store_true", help="measure models that failed again")
    arguments = parser.parse_args()
    if arguments.do == "one":
        print(json.dumps(measure(arguments.model)))
        return 0
    if arguments.do == "choose":
        FAMILIES.write_text(json.dumps(smallest_models(), indent=1) + "\n")
        return 0
    if arguments.do == "measure":
        measure_all(arguments.only or "", arguments.limit, arguments.jobs, again=arguments.again)
    write_table(HERE / "README.md", read_results(RESULTS))
    return 0


def smallest_models() -> dict[str, str]:
    """Return the model with the fewest parameters of each of timm's modules, which are its families."""
    import timm
    import torch
    from timm.models import list_modules

    chosen = {}
    for family in list_modules():
        sizes = {}
        for name in timm.list_models(module=family):
            if name.startswith("test_"):
                continue  # timm's own toys
            try:
                with torch.device("meta"):
                    sizes[name] = sum(item.numel() for item in timm.create_model(name, num_classes=0).parameters())
            except Exception as error:  # noqa: BLE001 - some cannot be built without memory, in ways of their own
                print(f"{name}: {error}", file=sys.stderr)
        if sizes:
            chosen[family] = min(sizes, key=lambda name: sizes[name])
    return chosen


def models() -> dict[str, str]:
    """Return the family of each model to be measured, by the model's full name."""
    sys.path.insert(0, str(TESTS))
    from tiny_transformers import ARCHITECTURES

    timm = {f"timm/{model}": family for family, model in json.loads(FAMILIES.read_text()).items()}
    return {**{f"transformers/{name}": name for name in ARCHITECTURES}, **timm}


def measure_all(only: str, limit: float, jobs: int, *, again: bool) -> None:
    """Measure the models that have no result yet, each in its own process, and keep each result at once."""
    known = read_results(RESULTS)
    RESULTS.parent.mkdir(exist_ok=True)
    wanted = [
        (name, family)
        for name, family in models().items()
        if only in name and (name not in known or (again and known[name]["status"] != "exported"))
    ]
    with ThreadPoolExecutor(jobs) as pool:
        for found in pool.map(lambda each: in_process(*each, limit), wanted):
            with RESULTS.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(f"{found['model']}: {found['status']} {found.get('reason', '')}", flush=True)


def in_process(name: str, family: str, limit: float) -> dict[str, Any]:
    """Measure a model in a process of its own, and return what is kept of it."""
    started = time.monotonic()
    command = [sys.executable, str(Path(__file__).resolve()), "one", "--model", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        found = outcome(done.returncode, done.stdout, done.stderr)
    except subprocess.TimeoutExpired:
        found = {"status": "too slow", "reason": f"not done after {limit:g} s"}
    return {"model": name, "family": family, "seconds": round(time.monotonic() - started, 1), **found}


def outcome(code: int, stdout: str, stderr: str) -> dict[str, Any]:
    """Return what a process found; one that died without a word is a crash, with its last words."""
    lines = stdout.strip().splitlines()
    if code == 0 and lines:
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    words = stderr.strip().splitlines()
    return {"status": "crashed", "reason": f"exit code {code}: {words[-1] if words else 'no message'}"}


def measure(name: str) -> dict[str, Any]:
    """Export a model as a bundle's is, run both, and return `status` and what belongs to it.

    The statuses are `exported`; `differs`: it exports, but answers otherwise; `does not load`: in ONNX Runtime; `refused`:
    autoft says that it cannot be used or exported; `no verdict`: it answers the same for all inputs.
    """
    import numpy as np
    import onnxruntime
    import torch

    from autoft.builtin.heads import autoft_heads
    from autoft.errors import AutoftError, first_line
    from autoft.export.onnx import OUTPUTS, to_onnx
    from autoft.model import assemble
    from autoft.specs import Targets

    torch.manual_seed(0)
    head = next(head for head in autoft_heads() if head.name == "classification")
    with tempfile.TemporaryDirectory() as folder:
        try:
            backbone = resolve(name, Path(folder))
            model = assemble(backbone, head, Targets(LABELS, (1, 1, 1)), {"dropout": 0.0}, seed=0).eval()
        except AutoftError as error:
            return {"status": "refused", "reason": error.message}
    example = inputs_of(backbone, 2)
    wake(model, inputs_of(backbone, 4))
    millions = sum(parameter.numel() for parameter in model.backbone.parameters()) / 1e6
    facts = {"millions": round(millions, 3), "size": "x".join(map(str, example[0].shape[1:]))}
    log = Fallback()
    logger = logging.getLogger("autoft")
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    try:
        proto = to_onnx(
            model,
            head.activation,
            example,
            input_names=backbone.inputs,
            labels=LABELS,
            lengths=backbone.preprocessing.ragged,
        )
    except AutoftError as error:
        return {"status": "refused", "reason": error.message, **facts}
    finally:
        logger.removeHandler(log)
    facts["exporter"] = "TorchScript" if log.reason else "torch.export"
    if log.reason:
        facts["first"] = log.reason
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common type
        return {"status": "does not load", "reason": first_line(error), **facts}
    apart, spread = 0.0, 0.0
    for rows in (1, 3):
        inputs = inputs_of(backbone, rows)
        with torch.no_grad():
            wanted = model(*inputs).numpy()
        given = {name: item.numpy() for name, item in zip(backbone.inputs, inputs, strict=True)}
        found = session.run([OUTPUTS[0]], given)[0]
        if found.shape != wanted.shape:
            return {"status": "differs", "reason": f"{found.shape} instead of {wanted.shape}", **facts}
        scale = float(np.abs(wanted).max())
        apart = max(apart, float(np.abs(found - wanted).max()) / scale)
        spread = float(np.ptp(wanted, axis=0).max()) / scale  # of the last batch, which has rows to compare
    facts |= {"difference": apart, "spread": spread}
    if apart > TOLERANCE:
        facts["rounding"] = rounding(model, inputs)
    return {"status": verdict(apart, spread, facts.get("rounding", 0.0)), **facts}


def rounding(model: Any, inputs: Sequence[Any]) -> float:
    """Return how far torch's own float32 is from its float64, as a share of the largest output.

    Some deep models with random weights make much of little: what is left of each rounding grows from layer to layer.
    """
    import torch

    with torch.no_grad():
        single = model(*inputs).double()
        exact = model.double()(*(item.double() if item.is_floating_point() else item for item in inputs))
    model.float()
    return float((single - exact).abs().max() / exact.abs().max())


def wake(model: Any, inputs: Sequence[Any]) -> None:
    """Give a new model some noise in every weight, and BatchNorm the statistics of the inputs.

    Without them, deep models give one answer to all: zeros in a layer scale, or activations that fade from layer to layer.
    """
    import torch

    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(NOISE * torch.randn_like(parameter))
        for norm in norms:
            norm.momentum = None  # the mean of all that passes, that is of these inputs
            norm.train()
        model(*inputs)
    model.eval()


def verdict(apart: float, spread: float, own: float = 0.0) -> str:
    """Judge a difference; NaN differs, and a model that gives all inputs one answer proves nothing.

    Args:
        apart: Largest difference between torch and ONNX Runtime, as a share of the largest output.
        spread: How far outputs of different inputs lie apart, as the same share.
        own: torch's own rounding error, as the same share; twice as much is nobody's fault.
    """
    if not apart <= min(max(TOLERANCE, 2 * own), TOLERANCE_OF_SPREAD * max(spread, ALIVE)):
        return "differs"
    return "exported" if spread >= ALIVE else "no verdict"


def resolve(name: str, folder: Path) -> Any:
    """Return the backbone of a model with random weights; those of transformers are written to the folder first."""
    from autoft.discovery import discover

    catalog = discover(enabled=False)
    family, _, model = name.partition("/")
    if family != "transformers":
        return catalog.resolve_backbone(name, weights="none")
    sys.path.insert(0, str(TESTS))
    from tiny_transformers import write_tiny

    return catalog.resolve_backbone(f"transformers/{write_tiny(folder / model, model)}")


def inputs_of(backbone: Any, rows: int) -> tuple[Any, ...]:
    """Return noise for an image model, or texts of different lengths."""
    import torch

    if not backbone.preprocessing.ragged:
        return (torch.randn(rows, 3, *backbone.image_size),)
    decoded, _ = backbone.preprocessing.decode_many([TEXTS[row % len(TEXTS)] for row in range(rows)])
    return tuple(backbone.preprocessing.inputs(decoded))


class Fallback(logging.Handler):
    """Hears why torch's exporter failed where the older one takes over."""

    reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        if "trying TorchScript" in record.getMessage():
            self.reason = str(record.args[0]) if isinstance(record.args, tuple) and record.args else record.getMessage()


def read_results(file: Path) -> dict[str, dict[str, Any]]:
    """Return the last result of each model; none where there is no file."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return {found["model"]: found for found in map(json.loads, lines)}


def table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table: a count of each family library first, then a row a model, those that fail first."""
    lines = []
    for library in ("timm", "transformers"):
        own = [found for found in results if found["model"].startswith(f"{library}/")]
        if not own:
            continue
        good = sum(found["status"] == "exported" for found in own)
        older = sum(found["status"] == "exported" and found["exporter"] == "TorchScript" for found in own)
        lines += [f"**{library}: {good} of {len(own)} families export with equal outputs** ({older} by TorchScript).", ""]
    lines += [
        "| family | model | million parameters | input | result | exporter | largest difference | reason |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def place(found: Mapping[str, Any]) -> tuple[Any, ...]:
        return found["status"] == "exported", found["model"].partition("/")[0], found["family"]

    order = sorted(results, key=place)
    return lines + [row(found) for found in order]


def row(found: Mapping[str, Any]) -> str:
    reason = found.get("reason") or (f"torch.export: {found['first']}" if found.get("first") else "")
    if found.get("rounding"):
        reason = reason or f"torch's own rounding error is {found['rounding']:.1g}: float64 against float32"
    reason = re.sub(r"\x1b\[\d*m", "", reason)  # colours of torch's exporter
    reason = reason.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")[:160]
    size = found.get("size", "-")
    difference = f"{found['difference']:.1g}" if "difference" in found else "-"
    cells = (
        found["family"],
        found["model"].partition("/")[2],
        found.get("millions", "-"),
        size if "x" in size or size == "-" else f"{size} tokens",
        found["status"] if found["status"] == "exported" else f"**{found['status']}**",
        found.get("exporter", "-"),
        difference,
        reason,
    )
    return f"| {' | '.join(map(str, cells))} |"


def write_table(file: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the table between the README's two marks."""
    text = file.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    file.write_text("\n".join([before, "", *table(list(results.values())), "", after]))


if __name__ == "__main__":
    sys.exit(main())
