"""What would fail after the last trial fails before the first: building, running, exporting, the disk."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Heard
from torch import nn

from autoft.errors import BackboneError, ExportError, RunError
from autoft.preflight import Checked, preflight
from autoft.prepare import Prepared, load_config, prepare
from autoft.specs import Backbone, Stage
from autoft.testing.toy import write_toy_csv
from autoft.worker import Worker

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def ready(toy_images: Path) -> Prepared:
    config, catalog = load_config(toy_images, ["backbones=[toy/mlp, toy/convnet]"])
    return prepare(config, catalog, Heard())


def check(ready: Prepared, folder: Path, *, export: bool = False, heard: Heard | None = None) -> Checked:
    splits = {split: (ready.samples[split], ready.encoded[split]) for split in ready.samples}
    worker = Worker(splits, ready.objective, device=torch.device("cpu"), memory=1 << 30)
    return preflight(ready, worker, folder, heard or Heard(), export=export)


def with_backbone(ready: Prepared, module: type[nn.Module], **changes: Any) -> Prepared:
    """Replace the backbones by one that builds another module."""
    changed: Backbone = replace(
        ready.backbones[0],
        build=module,
        stages=lambda built: (Stage("all", tuple(name for name, _ in built.named_parameters())),),
        feature_size=lambda built: 16,
        **changes,
    )
    return replace(ready, backbones=(changed,))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 16)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.linear(pixels.mean(dim=(2, 3)))


class TwoInputs(Plain):
    def forward(self, pixels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(pixels * mask)


class NotPooled(Plain):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels)[:, None].expand(-1, 4, -1)


class TooSmall(Plain):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels.reshape(-1, 3, 100, 100))


class NotExportable(Plain):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        mean = torch.from_numpy(pixels.detach().numpy().mean(axis=(2, 3)))
        return self.linear(mean) * torch.linalg.eig(torch.eye(2))[0].real.sum()


def test_every_backbone_is_built_run_and_described(ready: Prepared, tmp_path: Path) -> None:
    heard = Heard()
    found = check(ready, tmp_path, heard=heard)
    assert found.stages == (3, 4)
    assert all(count > 1000 for count in found.parameters)
    assert found.export_seconds == 0.0
    assert [data["backbone"] for data in heard.of("preflight")] == ["toy/mlp", "toy/convnet"]
    assert all("exports" not in event.text for event in heard.events)


def test_export_is_tried_and_timed(ready: Prepared, tmp_path: Path) -> None:
    heard = Heard()
    found = check(replace(ready, backbones=ready.backbones[:1]), tmp_path, export=True, heard=heard)
    assert found.export_seconds > 0.0
    assert heard.events[-1].text.endswith("builds, exports")


def test_sound_backbone_of_the_tests_own_passes(ready: Prepared, tmp_path: Path) -> None:
    assert check(with_backbone(ready, Plain), tmp_path).stages == (1,)


@pytest.mark.parametrize(
    ("module", "error", "said"),
    [
        (TwoInputs, BackboneError, r"cannot take inputs of \(2, 3, 16, 16\)"),
        (TooSmall, BackboneError, r"cannot take inputs of \(2, 3, 16, 16\)"),
        (NotPooled, BackboneError, r"must give outputs of \(2, 3\), but gives \(2, 4, 3\)"),
    ],
)
def test_backbone_that_does_not_fit_the_data_is_refused(
    module: type[nn.Module], error: type[Exception], said: str, ready: Prepared, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        check(with_backbone(ready, module), tmp_path)


def test_backbone_that_cannot_be_exported_is_refused_before_the_first_trial(ready: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot be exported to ONNX|the graph must map"):
        check(with_backbone(ready, NotExportable), tmp_path, export=True)


def test_number_of_inputs_must_be_that_of_the_preprocessing(ready: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="names 2 inputs, but its preprocessing gives 1"):
        check(with_backbone(ready, Plain, inputs=("pixel_values", "mask")), tmp_path)


def test_disk_must_hold_what_the_search_writes(ready: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 0
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("autoft.preflight.shutil.disk_usage", lambda path: usage._replace(free=needed))
    with pytest.raises(RunError, match=r"needs about 0\.07 GB of disk, but .* has 0\.00 GB free") as caught:
        check(ready, tmp_path)
    assert "-o" in str(caught.value.hint)
    needed = 70_000_000
    assert check(ready, tmp_path)


@pytest.mark.parametrize(("longest", "why"), [(12, "`max_length` of the backbone decides"), (128, "it takes no more")])
def test_texts_that_are_cut_are_counted_and_told(longest: int, why: str, tmp_path: Path) -> None:
    table = write_toy_csv(tmp_path / "texts.csv", per_class=8)
    with table.open("a") as file:
        file.write(f"{'soup bread ' * 300},food\n")
    config, catalog = load_config(table, [f"backbones=[{{name: toy/text, max_length: {longest}}}]"])
    heard = Heard()
    check(prepare(config, catalog, heard), tmp_path, heard=heard)
    (told,) = [event for event in heard.of("warning") if event["about"] == "cut"]
    assert told["max_length"] == longest
    assert 1 <= sum(told["cut"].values()) <= 25
    assert (sum(told["cut"].values()) == 1) == (longest == 128)
    (checked,) = [event["tokens"] for event in heard.of("preflight") if "stages" in event]
    assert {split: found["cut"] for split, found in checked.items()} == told["cut"]
    for found in checked.values():
        assert 2 < found["median"] <= found["most"] <= found["longest"] <= longest
        assert not found["cut"] or found["longest"] == longest
    assert any(
        f"are longer than {longest} tokens for toy/text and are cut; {why}" in text
        for text in (event.text for event in heard.events)
    )
