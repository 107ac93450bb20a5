"""What each backbone will cost once deployed: latency and size of its exported graph, measured before any training.

Both depend on the graph alone and not on its weights, so that one export of the untrained model tells them for every trial.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from autoft.config import SearchConfig
from autoft.errors import RunError
from autoft.export.graphs import graph_bytes, make_session
from autoft.files import read_json, write_checked
from autoft.runfolder import COSTS
from autoft.specs import Direction

if TYPE_CHECKING:
    import onnx

WARM_UP = 3  # runs that are not counted
LEAST, MOST = 5, 50  # runs that are
SECONDS = 2.0  # that they may take together

Objective = Literal["metric", "latency", "size"]


@dataclass(frozen=True)
class Cost:
    """What one answer costs.

    Attributes:
        latency_ms: Median milliseconds of one sample through ONNX Runtime, on one thread of this machine's CPU, float32;
            without preprocessing.
        size_mb: Megabytes of the graph with its weights, float32.
    """

    latency_ms: float
    size_mb: float


@dataclass(frozen=True)
class Point:
    """A trial on the front: no other is better in one objective and at least as good in all others.

    Attributes:
        trial: Its number.
        backbone: Label of its backbone.
        value: Its validation metric.
        latency_ms: As of `Cost`.
        size_mb: As of `Cost`.
    """

    trial: int
    backbone: str
    value: float
    latency_ms: float
    size_mb: float


def wants_costs(search: SearchConfig) -> bool:
    """Return whether a search has to know what models cost."""
    limits = search.constraints
    return len(search.objectives) > 1 or limits.latency_ms is not None or limits.size_mb is not None


def measure(proto: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> Cost:
    """Measure a graph.

    Args:
        proto: As exported.
        inputs: By name, of any number of samples, of which the first is run alone.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = make_session(proto, options)
    one = {name: array[:1] for name, array in inputs.items()}
    for _ in range(WARM_UP):
        session.run(None, one)
    seconds: list[float] = []
    while len(seconds) < LEAST or (len(seconds) < MOST and sum(seconds) < SECONDS):
        began = time.perf_counter()
        session.run(None, one)
        seconds.append(time.perf_counter() - began)
    return Cost(round(1e3 * statistics.median(seconds), 3), round(graph_bytes(proto) / 1e6, 3))


def worse(one: Cost, other: Cost) -> Cost:
    """Return the larger of both costs, each by itself."""
    return Cost(max(one.latency_ms, other.latency_ms), max(one.size_mb, other.size_mb))


def excess(cost: Cost, search: SearchConfig) -> tuple[str, ...]:
    """Return what about a cost is more than `search.constraints` allows, in words; empty where nothing is."""
    limits = search.constraints
    found = []
    if limits.latency_ms is not None and cost.latency_ms > limits.latency_ms:
        found.append(f"{cost.latency_ms:.3g} ms an answer, where `latency_ms` allows {limits.latency_ms:g}")
    if limits.size_mb is not None and cost.size_mb > limits.size_mb:
        found.append(f"{cost.size_mb:.3g} MB, where `size_mb` allows {limits.size_mb:g}")
    return tuple(found)


def save_costs(run: Path, named: Sequence[tuple[str, Cost]]) -> None:
    """Keep the costs of a study's backbones, in their order."""
    write_checked(run / COSTS, {"backbones": [{"backbone": name, **asdict(cost)} for name, cost in named]})


def load_costs(run: Path) -> tuple[Cost, ...] | None:
    """Return the costs of a run's backbones, in the study's order; None where none were measured.

    Raises:
        RunError: The file is damaged.
    """
    file = run / COSTS
    if not file.exists():
        return None
    try:
        return tuple(Cost(float(each["latency_ms"]), float(each["size_mb"])) for each in read_json(file)["backbones"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} is damaged: {error}", "remove it: the costs are measured again") from error


def allowed(costs: Sequence[Cost] | None, search: SearchConfig, count: int) -> tuple[int, ...]:
    """Return the places of the backbones that meet the constraints, of so many; all where no costs are known."""
    return tuple(range(count)) if costs is None else tuple(i for i, cost in enumerate(costs) if not excess(cost, search))


def front(points: Sequence[Point], objectives: Sequence[Objective], direction: Direction) -> tuple[Point, ...]:
    """Return the points that no other dominates, the best metric first (Pareto front).

    Args:
        points: One for each trial, or the best one for each backbone.
        objectives: What counts; costs that are not among them do not.
        direction: Of the metric.
    """
    kept = [point for point in points if not any(dominates(other, point, objectives, direction) for other in points)]
    sign = 1.0 if direction == "minimize" else -1.0
    return tuple(sorted(kept, key=lambda point: (sign * point.value, point.latency_ms, point.trial)))


def dominates(one: Point, other: Point, objectives: Sequence[Objective], direction: Direction) -> bool:
    """Return whether a point is better than another in one objective, and as good in all; of equals, the earlier trial."""
    pairs = [(one.value, other.value) if direction == "minimize" else (-one.value, -other.value)]
    if "latency" in objectives:
        pairs.append((one.latency_ms, other.latency_ms))
    if "size" in objectives:
        pairs.append((one.size_mb, other.size_mb))
    if any(mine > theirs for mine, theirs in pairs):
        return False
    return any(mine < theirs for mine, theirs in pairs) or one.trial < other.trial


@dataclass(frozen=True)
class Apart:
    """How backbones are searched each by itself: for the front, not for the best of all.

    Attributes:
        objectives: What counts.
        costs: Of each backbone, by its label.
    """

    objectives: tuple[Objective, ...]
    costs: Mapping[str, Cost]

    def point(self, trial: int, backbone: str, value: float) -> Point:
        """Return where a trial stands."""
        cost = self.costs[backbone]
        return Point(trial, backbone, value, cost.latency_ms, cost.size_mb)


def describe(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return a front as `result.json` has it."""
    return [asdict(point) for point in points]
