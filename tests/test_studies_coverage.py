"""The study of coverage: what counts as exported, what becomes of a process that dies, and the table made of it all."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FILE = Path(__file__).resolve().parents[1] / "studies" / "coverage" / "run.py"


@pytest.fixture(scope="module")
def study() -> Any:
    spec = importlib.util.spec_from_file_location("coverage_study", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["coverage_study"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("apart", "spread", "status"),
    [
        (1e-6, 0.5, "exported"),
        (2e-3, 0.5, "differs"),
        (5e-4, 1e-3, "differs"),  # half of what different inputs differ by
        (1e-5, 1e-3, "exported"),
        (1e-7, 1e-6, "no verdict"),
        (math.nan, 0.5, "differs"),
        (1e-6, math.nan, "no verdict"),
    ],
)
def test_difference_is_judged_by_what_the_inputs_make(apart: float, spread: float, status: str, study: Any) -> None:
    assert study.verdict(apart, spread) == status


def test_models_own_rounding_error_is_nobodys_fault(study: Any) -> None:
    assert study.verdict(1.5e-3, 0.5) == "differs"
    assert study.verdict(1.5e-3, 0.5, own=1e-3) == "exported"
    assert study.verdict(1.5e-3, 0.5, own=1e-4) == "differs"
    assert study.verdict(1.5e-3, 1e-2, own=1e-3) == "differs"  # too much of what different inputs differ by


def test_rounding_error_is_torchs_own_and_leaves_the_model_as_it_was(study: Any) -> None:
    model = torch.nn.Linear(300, 2)
    assert 0 < study.rounding(model, (torch.randn(4, 300),)) < 1e-5
    assert model.weight.dtype == torch.float32


def test_process_that_dies_is_a_row_with_its_last_words(study: Any) -> None:
    assert study.outcome(-11, "", "some\nlast words\n") == {"status": "crashed", "reason": "exit code -11: last words"}
    assert study.outcome(1, "noise", "")["reason"] == "exit code 1: no message"
    assert study.outcome(0, 'noise\n{"status": "exported"}\n', "warning") == {"status": "exported"}


def test_waking_gives_noise_and_the_statistics_of_the_inputs(study: Any) -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    torch.nn.init.zeros_(model[1].weight)
    inputs = torch.randn(64, 3) * 5 + 7
    study.wake(model, (inputs,))
    assert not model.training
    assert bool((model[1].weight != 0).all())
    torch.testing.assert_close(model[0].running_mean, inputs.mean(0))
    torch.testing.assert_close(model[0].running_var, inputs.var(0))


def row(model: str, status: str, **facts: Any) -> dict[str, Any]:
    return {"model": model, "family": model.partition("/")[2], "status": status, "seconds": 1.0, **facts}


ROWS = [
    row("timm/a", "exported", difference=1.2e-6, spread=0.5, millions=1.5, size="3x32x32", exporter="torch.export"),
    row("timm/b", "exported", difference=0.0, spread=0.5, exporter="TorchScript", first="\x1b[96mno | way\x1b[0m"),
    row("timm/c", "too slow", reason="not done after 5 s"),
    row("transformers/d", "exported", difference=1e-7, spread=0.5, size="20", exporter="torch.export"),
]


def test_table_counts_and_puts_failures_first(study: Any) -> None:
    lines = study.table(ROWS)
    assert lines[0] == "**timm: 2 of 3 families export with equal outputs** (1 by TorchScript)."
    assert lines[2] == "**transformers: 1 of 1 families export with equal outputs** (0 by TorchScript)."
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert [line.split(" | ")[1] for line in rows] == ["c", "a", "b", "d"]
    assert rows[0] == "| c | c | - | - | **too slow** | - | - | not done after 5 s |"
    assert rows[1] == "| a | a | 1.5 | 3x32x32 | exported | torch.export | 1e-06 |  |"
    assert "| 20 tokens |" in rows[3]
    assert rows[2].endswith("| TorchScript | 0 | torch.export: no \\| way |")


def test_last_result_of_a_model_counts_and_goes_between_the_marks(study: Any, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    assert study.read_results(results) == {}
    lines = [row("timm/a", "crashed", reason="x"), ROWS[0]]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = tmp_path / "README.md"
    page.write_text(f"before\n{study.BEGIN}\nold\n{study.END}\nafter\n")
    study.write_table(page, study.read_results(results))
    text = page.read_text()
    assert text.startswith(f"before\n{study.BEGIN}\n\n**timm: 1 of 1")
    assert text.endswith(f"\n{study.END}\nafter\n")
    assert "old" not in text
    assert "crashed" not in text


def test_enough_families_are_listed() -> None:
    families = json.loads((FILE.parent / "families.json").read_text())
    assert len(families) >= 50
    assert len(set(families.values())) == len(families)
