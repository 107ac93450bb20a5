"""What keeps a search from repeating bit for bit is named; where nothing does, nothing is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autoft.config.schema import SearchConfig, TrainerConfig
from autoft.determinism import reasons_to_differ, repeats


def prepared(device: str = "cpu", search: dict[str, Any] | None = None, **trainer: Any) -> Any:
    config = SimpleNamespace(search=SearchConfig(**(search or {})), trainer=TrainerConfig(**trainer))
    return SimpleNamespace(config=config, device=torch.device(device))


def test_search_on_a_cpu_that_is_bounded_by_trials_repeats() -> None:
    assert reasons_to_differ(prepared(), {}) == []
    assert repeats(prepared(), {"infra": 7}, workers=2) == {"bit_for_bit": True, "why_not": [], "seed": 0, "workers": 2}


@pytest.mark.parametrize(
    ("changes", "survived", "words"),
    [
        ({"search": {"time_limit": "1m"}}, {}, "time limit"),
        ({"device": "cuda", "precision": "fp32", "compile": False}, {}, "sums on cuda"),
        ({"device": "mps"}, {}, "sums on mps"),
        ({"precision": "probe"}, {}, "precision may be chosen otherwise"),
        ({"compile": "probe"}, {}, "compile may be chosen otherwise"),
        ({"search": {"objectives": ["metric", "latency"]}}, {}, "latencies are measured"),
        ({"search": {"constraints": {"latency_ms": 5}}}, {}, "latencies are measured"),
        ({}, {"oom": 1}, "memory ran out"),
    ],
)
def test_each_reason_is_named(changes: dict[str, Any], survived: dict[str, int], words: str) -> None:
    (reason,) = reasons_to_differ(prepared(**changes), survived)
    assert words in reason
    assert repeats(prepared(**changes), survived, workers=1)["bit_for_bit"] is False


def test_cuda_measures_what_is_left_to_it() -> None:
    _, measured = reasons_to_differ(prepared("cuda"), {})
    assert measured.startswith("precision and compile may be chosen otherwise")
