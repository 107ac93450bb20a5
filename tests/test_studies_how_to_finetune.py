"""The study's tables: the largest effect first, bold where it is more than noise, and the best rate at each depth."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[1] / "studies" / "how-to-finetune" / "run.py"


@pytest.fixture(scope="module")
def study() -> Any:
    spec = importlib.util.spec_from_file_location("how_to_finetune", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["how_to_finetune"] = module
    spec.loader.exec_module(module)
    return module


def test_methods_are_sorted_by_effect_and_noise_is_not_bold(study: Any) -> None:
    case = study.Case(FILE, (4, 16), 3, 100)
    methods = {
        "noise": {4: [0.01, -0.02, 0.01], 16: [0.0, 0.0, 0.0]},
        "harm": {4: [-0.2, -0.21, -0.19], 16: [-0.1, -0.1, -0.11]},
        "gain": {4: [0.05, 0.06, 0.05], 16: [0.02, 0.02, 0.03]},
    }
    lines = study.methods_table(methods, {4: [0.8, 0.8, 0.8], 16: [0.9, 0.9, 0.9]}, case).splitlines()
    assert lines[2] == "| nothing: accuracy | 0.800 ± 0.000 | 0.900 ± 0.000 |"
    assert [line.split(" | ")[0] for line in lines[3:]] == ["| gain", "| noise", "| harm"]
    assert lines[3] == "| gain | **+0.053 ± 0.003** | **+0.023 ± 0.003** |"
    assert "**" not in lines[4]
    assert "**-0.200" in lines[5]


def test_each_depth_counts_with_its_best_rate(study: Any) -> None:
    case = study.Case(FILE, (4,), 2, 100)
    found = dict.fromkeys(study.RATES, (0.5, 2.0))
    depths = {(0, 4): [found, found], (3, 4): [{**found, 3.0: (0.9, 0.5)}, {**found, 3.0: (0.8, 0.5)}]}
    table = study.depths_table(depths, SimpleNamespace(stages=3, depths=lambda: [0, 3]), case).splitlines()
    assert table[2] == "| 0 of 3 | 0.500 ± 0.000 | 1.00 |"
    assert table[3] == "| 3 of 3 | 0.850 ± 0.050 | 1.00 |"


def test_every_method_names_settings_that_there_are(study: Any) -> None:
    from autoft.knobs import BY_NAME

    knobs = {"label_smoothing", "dropout", "epochs"}
    assert len(study.METHODS) > 25
    assert {name for changes in study.METHODS.values() for name in changes} <= set(BY_NAME) | knobs
