"""A probe's head in a model: the same answers, the same metric, and a clear error for a file that is not such a head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_probe import Setup, images, learnable, numbers, tagged
from torch import nn
from toy_training import CPU, assert_equal_tensors

from autoft.errors import DataError
from autoft.files import load_tensors
from autoft.head_start import load_head, save_head, without_standardization
from autoft.linear_probe import as_head, linear_probes
from autoft.probe import probe
from autoft.specs import BackboneRequest
from autoft.testing import toy
from autoft.train import TrainConfig, predict
from autoft.worker import Job, Worker

MEAN, SCALE = torch.tensor([1000.0, -2.0, 0.0]), torch.tensor([0.5, 3.0, 1.0])


def graded() -> Setup:
    """Pairs' numbers: a sigmoid follows the linear layer."""
    setup = numbers()
    return Setup("similarity", tuple(setup.parts["train"] + setup.parts["validation"]), setup.backbone)


def knobs(setup: Setup) -> dict[str, Any]:
    return {knob.name: knob.default for knob in setup.objective.head.knobs}


# --- standardization --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(3, 2),
        nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)),
        nn.Sequential(nn.Sequential(nn.Identity(), nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2)),
    ],
    ids=["linear", "behind dropout", "nested"],
)
def test_head_answers_alike_without_standardization(module: nn.Module) -> None:
    rows = MEAN + SCALE * torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    module.eval()
    wanted = module((rows - MEAN) / SCALE)
    weights = without_standardization(module, module.state_dict(), MEAN, SCALE)
    assert weights is not None
    assert not torch.allclose(module(rows), wanted, atol=0.1)
    module.load_state_dict(weights)
    torch.testing.assert_close(module(rows), wanted, atol=2e-3, rtol=0.0)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(3, 2, bias=False),
        nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)),
        nn.Sequential(nn.Tanh(), nn.Linear(3, 2)),
        nn.Sequential(nn.Flatten(), nn.Linear(6, 2)),
        nn.ModuleList([nn.Linear(3, 2)]),
        nn.Sequential(),
    ],
    ids=["no bias", "norm first", "activation first", "flattened", "unknown order", "empty"],
)
def test_other_heads_have_no_such_weights(module: nn.Module) -> None:
    assert without_standardization(module, module.state_dict(), MEAN, SCALE) is None


# --- from the probe to a model ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [images, numbers, graded, tagged], ids=["labels", "numbers", "similarity", "words"])
def test_frozen_model_with_the_probes_head_has_the_probes_metric(make: Any, tmp_path: Path) -> None:
    setup = make()
    found = probe(3, setup.backbone, setup.objective, setup.worker, device=CPU, folder=tmp_path / "probe")
    assert (found.head, found.declined, found.reason) == ("3.safetensors", None, None)
    splits: Any = {name: (part, setup.encoded[name]) for name, part in setup.parts.items()}
    worker = Worker(splits, setup.objective, device=CPU, memory=1 << 28, heads=tmp_path / "probe")
    config = TrainConfig(learning_rate=0.0, epochs=1, batch_size=1, knobs=knobs(setup), head_start=found.head)
    model = worker.build(setup.backbone, config)
    model.freeze(len(model.stages))
    validation = worker.data("validation", setup.backbone)
    outputs = predict(model, validation, device=CPU, batch_size=64)
    head, metric = setup.objective.head, setup.objective.metric
    value = head.metrics(outputs, validation.targets, setup.objective.targets)[metric]
    assert value == pytest.approx(found.linear, abs=1e-6)
    fresh = worker.build(setup.backbone, TrainConfig(learning_rate=0.0, epochs=1, batch_size=1, knobs=knobs(setup)))
    outputs = predict(fresh, validation, device=CPU, batch_size=64)
    assert head.metrics(outputs, validation.targets, setup.objective.targets)[metric] < value - 0.1
    assert load_tensors(tmp_path / "probe" / "3.safetensors")[1]["value"] == found.linear


def test_nothing_is_written_where_no_folder_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    setup = images()
    found = probe(0, setup.backbone, setup.objective, setup.worker, device=CPU)
    assert (found.head, found.declined) == (None, None)
    assert list(tmp_path.iterdir()) == []


def test_head_that_cannot_take_the_standardization_declines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.linear_probe.without_standardization", lambda *given: None)
    setup = images()
    found = probe(0, setup.backbone, setup.objective, setup.worker, device=CPU, folder=tmp_path)
    assert found.head is None
    assert "does not begin with a linear layer" in str(found.declined)
    assert found.linear is not None
    assert list(tmp_path.iterdir()) == []


def test_score_of_the_head_is_its_own() -> None:
    objective, *rows = learnable()
    best = linear_probes(*rows, objective, device=CPU, steps=60)
    own = as_head(best, rows[2], rows[3], objective)
    assert own is not None
    assert own.score == objective.head.metrics(own.outputs, rows[3], objective.targets)["accuracy"]
    torch.testing.assert_close(own.outputs, best.outputs, atol=1e-3, rtol=1e-3)


# --- files ------------------------------------------------------------------------------------------


def test_head_is_read_as_it_was_written(tmp_path: Path) -> None:
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_head(tmp_path / "made" / "0.safetensors", one.state_dict(), {"value": 0.5})
    load_head(other, tmp_path / "made" / "0.safetensors")
    assert_equal_tensors(other.state_dict(), one.state_dict())


def test_damaged_foreign_or_missing_head_is_a_clear_error(tmp_path: Path) -> None:
    head, file = nn.Linear(3, 2), tmp_path / "0.safetensors"
    with pytest.raises(DataError, match=r"must be readable.*0\.safetensors.*without `probe\.json`"):
        load_head(head, file)
    save_head(file, head.state_dict(), {})
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"must be readable, but is not: .* is not a whole safetensors file"):
        load_head(head, file)
    save_head(file, nn.Linear(4, 2).state_dict(), {})
    with pytest.raises(DataError, match="must hold bias 2, weight 2x3, but holds bias 2, weight 2x4"):
        load_head(head, file)
    save_file({"weight": torch.zeros(2, 3)}, file)
    with pytest.raises(DataError, match="but holds weight 2x3"):
        load_head(head, file)
    save_head(file, {"weight": torch.zeros(2, 3), "bias": torch.tensor([0.0, float("nan")])}, {})
    with pytest.raises(DataError, match="must be finite, but bias is not"):
        load_head(head, file)


def test_model_with_another_classes_head_is_refused(tmp_path: Path) -> None:
    setup = images()
    save_head(tmp_path / "0.safetensors", nn.Sequential(nn.Dropout(), nn.Linear(4, 7)).state_dict(), {})
    splits: Any = {name: (part, setup.encoded[name]) for name, part in setup.parts.items()}
    worker = Worker(splits, setup.objective, device=CPU, memory=1 << 28, heads=tmp_path)
    config = TrainConfig(learning_rate=0.0, epochs=1, batch_size=1, knobs=knobs(setup), head_start="0.safetensors")
    backbone = toy.resolve(BackboneRequest("mlp"))
    with pytest.raises(DataError, match=r"1\.weight 7x4"):
        worker.build(backbone, config)
    failure = worker.run(Job(backbone, config, "none", tmp_path / "trial")).failure
    assert failure is not None
    assert failure.kind == "data"  # it stops the search: no other trial could start from it either
    assert "without `probe.json` in the run folder" in failure.message
