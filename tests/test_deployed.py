"""What deployed models cost: measured on real graphs, kept, held against limits, and weighed against the metric."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import Heard, autoft, run_search, study_of
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from autoft.config import ConstraintsConfig, SearchConfig
from autoft.deployed import (
    Cost,
    Point,
    allowed,
    dominates,
    excess,
    front,
    load_costs,
    measure,
    save_costs,
    wants_costs,
    worse,
)
from autoft.errors import RunError

points = st.builds(
    Point,
    trial=st.integers(0, 20),
    backbone=st.just("toy/a"),
    value=st.sampled_from([0.1, 0.5, 0.9]),
    latency_ms=st.sampled_from([1.0, 2.0, 3.0]),
    size_mb=st.sampled_from([10.0, 20.0]),
)


def graph(width: int, layers: int) -> onnx.ModelProto:
    """A chain of matrix products."""
    weight = numpy_helper.from_array(np.eye(width, dtype=np.float32), "weight")
    nodes = [helper.make_node("MatMul", [f"x{i}", "weight"], [f"x{i + 1}"]) for i in range(layers)]
    ends = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["batch", width]) for i in (0, layers)]
    made = helper.make_graph(nodes, "chain", ends[:1], ends[1:], [weight])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_larger_graph_costs_more() -> None:
    small, large = (
        measure(graph(width, layers), {"x0": np.ones((4, width), np.float32)}) for width, layers in ((8, 1), (1024, 20))
    )
    assert large.latency_ms > 3 * small.latency_ms > 0
    assert large.size_mb == pytest.approx(1024 * 1024 * 4 / 1e6, rel=0.01)
    assert small.size_mb < 0.01


def test_costs_are_kept_in_the_order_of_the_backbones(tmp_path: Path) -> None:
    assert load_costs(tmp_path) is None
    costs = (Cost(1.5, 20.0), Cost(0.5, 30.0))
    save_costs(tmp_path, list(zip(("b", "a"), costs, strict=True)))
    assert load_costs(tmp_path) == costs
    (tmp_path / "costs.json").write_text('{"backbones": [{"backbone": "b"}]}')
    with pytest.raises(RunError, match=r"costs\.json is damaged"):
        load_costs(tmp_path)


def test_limits_leave_out_what_costs_more() -> None:
    costs = (Cost(10.0, 50.0), Cost(30.0, 10.0))
    none = SearchConfig()
    assert not wants_costs(none)
    assert allowed(costs, none, 2) == allowed(None, none, 2) == (0, 1)
    quick = SearchConfig(constraints=ConstraintsConfig(latency_ms=20.0))
    assert wants_costs(quick)
    assert allowed(costs, quick, 2) == (0,)
    assert excess(costs[1], quick) == ("30 ms an answer, where `latency_ms` allows 20",)
    small = SearchConfig(constraints=ConstraintsConfig(size_mb=10.0))
    assert allowed(costs, small, 2) == (1,)
    assert wants_costs(SearchConfig(objectives=("metric", "size")))
    assert worse(*costs) == Cost(30.0, 50.0)


@given(st.lists(points, max_size=8, unique_by=lambda point: point.trial), st.sampled_from(["maximize", "minimize"]))
def test_nothing_dominates_the_front_and_it_dominates_all_else(found: list[Point], direction: str) -> None:
    objectives = ("metric", "latency", "size")
    kept = front(found, objectives, direction)  # type: ignore[arg-type]
    assert bool(kept) == bool(found)
    for point in found:
        over = [other for other in kept if dominates(other, point, objectives, direction)]  # type: ignore[arg-type]
        assert bool(over) == (point not in kept)


def test_costs_that_nobody_asked_for_do_not_count() -> None:
    good, cheap = Point(0, "a", 0.9, 5.0, 1.0), Point(1, "b", 0.8, 1.0, 2.0)
    assert front([cheap, good], ("metric", "latency"), "maximize") == (good, cheap)
    assert front([cheap, good], ("metric", "size"), "maximize") == (good,)
    assert front([cheap, good], ("metric", "latency"), "minimize") == (cheap,)
    equal = replace(good, trial=2)
    assert front([equal, good], ("metric", "latency"), "maximize") == (good,)


# --- searches -------------------------------------------------------------------------------------------------------

BOTH = ("toy/mlp", "toy/convnet")


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> list[Cost]:
    """What the backbones cost, in their order; each is asked for once."""
    named = [Cost(5.0, 1.0), Cost(1.0, 2.0)]
    left = iter(named)
    monkeypatch.setattr("autoft.preflight.measure", lambda *arguments: next(left))
    return named


@pytest.mark.usefixtures("toys", "fast_export", "costs")
def test_each_backbone_is_searched_by_itself_for_the_front_also_after_a_resume(toy_images: Path, tmp_path: Path) -> None:
    wanted, run = ("search.objectives=[metric, latency]", "search.probe=false", "search.prune=true"), tmp_path / "run"
    run_search(toy_images, run, *wanted, "search.trials=4", backbones=BOTH)
    result = run_search(toy_images, run, *wanted, "search.trials=6", backbones=BOTH)  # costs are not measured again
    tried = [trial.params["backbone"] for trial in study_of(run).trials]
    assert [tried.count(label) for label in BOTH] == [3, 3]
    stored = json.loads((run / "result.json").read_text())["front"]
    assert [point.trial for point in result.front] == [point["trial"] for point in stored]
    assert result.front[0].trial == result.trial or len(result.front) > 1
    cheapest = min(result.front, key=lambda point: point.latency_ms)
    assert (cheapest.backbone, cheapest.latency_ms) == ("toy/convnet", 1.0)
    for point in result.front:  # any of them can be exported
        assert (run / "trials" / str(point.trial) / "model.safetensors").exists()


@pytest.mark.usefixtures("toys", "fast_export", "costs")
def test_backbone_that_costs_too_much_is_never_trained(toy_images: Path, tmp_path: Path) -> None:
    heard = Heard()
    run_search(toy_images, tmp_path / "run", "search.constraints.latency_ms=2", backbones=BOTH, on_event=heard)
    assert {data["backbone"] for data in heard.of("trial")} == {"toy/convnet"}
    assert [data["backbone"] for data in heard.of("preflight") if data.get("left_out")] == ["toy/mlp"]


def test_study_whose_backbones_all_cost_too_much_is_refused_without_a_trace(
    toy_images: Path, toy_env: dict[str, str], tmp_path: Path
) -> None:
    limit = ("--set", "search.constraints.size_mb=0.001")
    refused = autoft("search", toy_images, "-b", "toy/mlp", "-o", tmp_path / "run", *limit, env=toy_env)
    assert refused.code == 2
    assert "no backbone meets `search.constraints`: toy/mlp: " in refused.err
    assert "where `size_mb` allows 0.001" in refused.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", ["latency", "[metric, metric]", "[metric, speed]", "[]"])
def test_objectives_that_cannot_be_are_refused(
    wrong: str, toy_images: Path, toy_env: dict[str, str], tmp_path: Path
) -> None:
    refused = autoft("search", toy_images, "-b", "toy/mlp", "--set", f"search.objectives={wrong}", env=toy_env, cwd=tmp_path)
    assert refused.code == 2
    assert "must be a list of `metric` and any of `latency` and `size`" in refused.err
