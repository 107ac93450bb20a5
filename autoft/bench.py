"""Measures the variants of a bundle on this machine: latency, size, memory; in turns, so that a busy machine slows all."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoft.errors import BundleError, first_line
from autoft.export.contract import read_contract
from autoft.export.graphs import DATA

ROUNDS = 40  # runs of each variant, at most
LEAST = 5  # and at least
SECONDS = 3.0  # that the runs of one variant at one batch size may take
WARM_UP = 3

# Run by itself: memory once taken by one variant would be counted for the next. Linux counts what the process was before it
# became this one in `ru_maxrss`, so there it is asked for in another way.
_PEAK = """
import json, pathlib, sys
import numpy, onnxruntime
given = json.loads(sys.stdin.readline())
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = given["threads"]
session = onnxruntime.InferenceSession(given["graph"], options, providers=["CPUExecutionProvider"])
inputs = {name: numpy.load(file) for name, file in given["inputs"].items()}
for _ in range(3):
    session.run(None, inputs)
status = pathlib.Path("/proc/self/status")
if status.exists():
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    print(int(line.split()[1]) * 1024)
else:
    import resource
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one run.

    Attributes:
        p50: Median.
        p95: 95th percentile.
        runs: Of which they are.
    """

    p50: float
    p95: float
    runs: int


@dataclass(frozen=True)
class Measured:
    """What a variant costs.

    Attributes:
        latency: By batch size.
        size_mb: Megabytes of its files.
        peak_mb: Most memory of a process that does nothing but load and run it, Python included; None where the platform
            does not say.
    """

    latency: Mapping[int, Latency]
    size_mb: float
    peak_mb: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return {
            "latency_ms": {str(size): asdict(latency) for size, latency in self.latency.items()},
            "size_mb": self.size_mb,
            "peak_mb": self.peak_mb,
        }


def graphs_of(bundle: Path) -> dict[str, Path]:
    """Return the graph of each variant that a bundle holds, float32 first.

    Raises:
        BundleError: The folder is no bundle.
    """
    contract = read_contract(bundle)
    found = {"fp32": bundle / "onnx" / "model.onnx"}
    found |= {name: bundle / each["file"] for name, each in contract.get("variants", {}).items() if each["shipped"]}
    return found


def golden_inputs(bundle: Path) -> dict[str, np.ndarray]:
    """Return the tensors that a bundle keeps of a few samples, by the names of the graph's inputs.

    Raises:
        BundleError: It keeps none.
    """
    names = read_contract(bundle)["inputs"]
    files = [bundle / "golden" / f"{name}.npy" for name in names]
    if not all(file.is_file() for file in files):
        raise BundleError(
            f"a bundle is measured with its golden samples, but {bundle} has none",
            "export it with `export.golden` above 0",
        )
    try:
        return {name: np.load(file, allow_pickle=False) for name, file in zip(names, files, strict=True)}
    except (OSError, ValueError) as error:
        raise BundleError(f"{bundle / 'golden'} is damaged: {first_line(error)}", "get the bundle again") from error


def bench(
    graphs: Mapping[str, Path],
    inputs: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    batch_sizes: Sequence[int] = (1, 8),
) -> dict[str, Measured]:
    """Measure graphs in ONNX Runtime on the CPU.

    Args:
        graphs: By name.
        inputs: By the names of the graphs' inputs, of any number of samples; repeated to fill a batch.
        threads: Of one run; 0 leaves the choice to ONNX Runtime.
        batch_sizes: Samples a run.
    """
    import onnxruntime

    sessions = {}
    for name, file in graphs.items():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        sessions[name] = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    times: dict[str, dict[int, list[float]]] = {name: {size: [] for size in batch_sizes} for name in graphs}
    for size in batch_sizes:
        batch = {name: array[np.arange(size) % len(array)] for name, array in inputs.items()}
        for session in sessions.values():
            for _ in range(WARM_UP):
                session.run(None, batch)
        spent = 0.0
        for turn in range(ROUNDS):
            if turn >= LEAST and spent > SECONDS * len(sessions):
                break
            for name, session in sessions.items():
                began = time.perf_counter()
                session.run(None, batch)
                times[name][size].append(time.perf_counter() - began)
                spent += times[name][size][-1]
    largest = {name: array[np.arange(max(batch_sizes)) % len(array)] for name, array in inputs.items()}
    return {
        name: Measured(
            latency={size: _latency(found) for size, found in times[name].items()},
            size_mb=round(sum(part.stat().st_size for part in _files(file)) / 1e6, 3),
            peak_mb=_peak(file, largest, threads),
        )
        for name, file in graphs.items()
    }


def fastest(measured: Mapping[str, Measured]) -> str:
    """Return the variant with the smallest median for one sample, or the smallest batch that was measured."""
    return min(measured, key=lambda name: measured[name].latency[min(measured[name].latency)].p50)


def report(bundle: Path, *, threads: int = 1, batch_sizes: Sequence[int] = (1, 8)) -> dict[str, Measured]:
    """Measure all variants of a bundle with its golden samples.

    Raises:
        BundleError: The folder is no bundle, or keeps no samples.
    """
    return bench(graphs_of(bundle), golden_inputs(bundle), threads=threads, batch_sizes=batch_sizes)


def _latency(seconds: Sequence[float]) -> Latency:
    milliseconds = [1e3 * each for each in seconds]
    return Latency(
        round(statistics.median(milliseconds), 3), round(float(np.percentile(milliseconds, 95)), 3), len(milliseconds)
    )


def _files(graph: Path) -> list[Path]:
    data = graph.with_name(graph.name + DATA)
    return [graph, *([data] if data.exists() else [])]


def _peak(graph: Path, inputs: Mapping[str, np.ndarray], threads: int) -> float | None:
    """Return megabytes; None on platforms without `resource`."""
    if sys.platform == "win32":
        return None
    with tempfile.TemporaryDirectory(prefix="autoft-bench-") as folder:
        files: dict[str, str] = {}
        for number, (name, array) in enumerate(inputs.items()):
            files[name] = str(Path(folder) / f"{number}.npy")
            np.save(files[name], array, allow_pickle=False)
        given = json.dumps({"graph": str(graph), "inputs": files, "threads": threads})
        ran = subprocess.run(
            [sys.executable, "-I", "-c", _PEAK], input=given, capture_output=True, text=True, check=False, timeout=600
        )
    if ran.returncode:
        raise BundleError(f"{graph} could not be run in a process of its own: {ran.stderr.strip()[-300:]}")
    return round(int(ran.stdout) / 1e6, 1)
