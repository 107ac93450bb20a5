"""From a folder of images and masks to `predict.py`: a whole search, its bundle without autoft, planted faults."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from autoft_segmentation import autoft_heads
from PIL import Image
from segmentation_toys import paint, write_pairs

from autoft import search
from autoft.deploy import evaluate, line, open_bundle, predict
from autoft.discovery import discover
from autoft.errors import ExportError
from autoft.export.parity import check_parity
from autoft.files import read_json, sha256, write_json
from autoft.specs import Targets
from autoft.train import Objective
from autoft.verify import verify

STUDY = (
    "backbones=[{name: timm/test_resnet, weights: none, image_size: 64}]", "search.trials=1", "trainer.epochs=40",
    "search.seeds=1", "search.workers=0", "search.prune=false", "trainer.augmentation=standard", "export.golden=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search on 36 small pictures."""
    folder = tmp_path_factory.mktemp("segmentation")
    write_pairs(folder / "data", 36)
    search(folder / "data", output=folder / "run", overrides=list(STUDY))
    return folder


def script(bundle: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a bundle's script where neither autoft nor torch can be imported."""
    blocked = "import sys; sys.modules.update({'autoft': None, 'torch': None}); import runpy; sys.argv = sys.argv[1:]; " \
        "runpy.run_path(sys.argv[0], run_name='__main__')"  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", blocked, bundle / "predict.py", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_search_learns_and_its_bundle_keeps_the_score(run: Path) -> None:
    contract = read_json(run / "run" / "bundle" / "autoft.json")
    assert contract["task"] == "semantic-segmentation"
    assert contract["answer"] == "mask"
    assert contract["outputs"] == ["logits", "classes"]
    assert contract["labels"] == ["background", "red", "blue"]
    assert contract["parity"]["exported"] == pytest.approx(contract["parity"]["trained"], abs=1e-6)
    assert contract["test"]["miou"] > 0.7
    card = (run / "run" / "bundle" / "README.md").read_text()
    assert "### Test split by class" in card
    assert "| class | iou | precision | recall | share |" in card


def test_script_writes_masks_of_the_images_sizes_in_colours(run: Path, tmp_path: Path) -> None:
    bundle = run / "run" / "bundle"
    pixels, mask = paint(1000)
    Image.fromarray(pixels).save(tmp_path / "small.png")
    Image.fromarray(pixels).resize((131, 77)).save(tmp_path / "large.jpg", quality=95)
    done = script(bundle, "small.png", "large.jpg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("small.png  masks/small.png  background ")
    small, large = Image.open(tmp_path / "masks" / "small.png"), Image.open(tmp_path / "masks" / "large.png")
    assert (small.mode, small.size, large.size) == ("P", (32, 24), (131, 77))
    assert small.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]  # type: ignore[index]
    assert float((np.asarray(small) == mask).mean()) > 0.9
    assert set(np.unique(np.asarray(large)).tolist()) <= {0, 1, 2}
    again = script(bundle, "--json", "--out", "elsewhere", "small.png", cwd=tmp_path)
    told = json.loads(again.stdout)
    assert told["written"] == "elsewhere/small.png"
    assert sum(told["shares"].values()) == pytest.approx(1.0)
    assert "mask" not in told


def test_script_refuses_what_would_be_lost(run: Path, tmp_path: Path) -> None:
    bundle = run / "run" / "bundle"
    for name in ("masks", "other"):
        (tmp_path / name).mkdir()
        Image.fromarray(paint(1)[0]).save(tmp_path / name / "a.png")
    before = (tmp_path / "masks" / "a.png").read_bytes()
    same = script(bundle, "masks/a.png", cwd=tmp_path)
    assert same.returncode == 2
    assert "is one of the inputs, which a mask must not replace" in same.stderr
    twice = script(bundle, "--out", "out", "masks/a.png", "other/a.png", cwd=tmp_path)
    assert twice.returncode == 2
    assert "would both be" in twice.stderr
    (tmp_path / "broken.png").write_bytes(b"no image")
    some = script(bundle, "--out", "out", "broken.png", "other/a.png", cwd=tmp_path)
    assert some.returncode == 2
    assert "broken.png: is not a JPEG" in some.stderr
    assert (tmp_path / "out" / "a.png").exists()
    assert (tmp_path / "masks" / "a.png").read_bytes() == before


def test_golden_vectors_are_met_and_a_changed_one_is_noticed(run: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(run / "run" / "bundle", tmp_path / "bundle"))
    done = script(bundle, "--check", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "classes       largest difference 0" in done.stdout
    stored = np.load(bundle / "golden" / "classes.npy")
    assert stored.dtype == np.uint8
    stored[:, :3] = 2 - stored[:, :3]
    np.save(bundle / "golden" / "classes.npy", stored)
    contract = read_json(bundle / "autoft.json")
    contract["files"]["golden/classes.npy"] = sha256(bundle / "golden" / "classes.npy")
    write_json(bundle / "autoft.json", contract)
    failed = script(bundle, "--check", cwd=tmp_path)
    assert failed.returncode == 1
    assert "FAILED" in failed.stdout


def test_autoft_predicts_evaluates_and_verifies(run: Path, tmp_path: Path) -> None:
    catalog = discover()
    opened = open_bundle(run / "run" / "bundle", catalog)
    write_pairs(tmp_path, 8, first=500)
    (answer,) = predict(opened, [tmp_path / "images" / "500.png"])
    assert answer["mask"].shape == (24, 32)
    assert "background" in line(opened, answer, as_json=False)
    assert set(json.loads(line(opened, answer, as_json=True))) == {"input", "shares"}
    found = evaluate(opened, tmp_path, catalog)
    assert found["samples"] == 8
    assert found["miou"] > 0.7
    checks = verify(run / "run" / "bundle", catalog)
    assert [check for check in checks if check.outcome == "failed"] == []
    assert len(checks) > 5


def upsample_otherwise(proto: onnx.ModelProto) -> None:
    """Make the graph's last Resize shift what it makes larger, as a runtime that knows another rule would."""
    last = [node for node in proto.graph.node if node.op_type == "Resize"][-1]
    for attribute in last.attribute:
        if attribute.name == "coordinate_transformation_mode":
            attribute.s = b"asymmetric"


def test_gate_stops_a_graph_whose_masks_are_not_those_of_its_logits(run: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(run / "run" / "bundle", tmp_path / "bundle"))
    catalog = discover()
    raw = catalog.data_format("image-mask-folder").load(run / "data", {"max_rejected": 0.0})
    contract = read_json(bundle / "autoft.json")
    targets = Targets(tuple(contract["labels"]), values={name: tuple(v) for name, v in contract["values"].items()})
    (head,) = autoft_heads()
    objective = Objective(head, targets, "miou")
    encoded = head.encode([sample.target for sample in raw.samples], targets)
    outputs = torch.from_numpy(open_bundle(bundle, catalog).runner.outputs([sample.source for sample in raw.samples]))

    def gate() -> Any:
        return check_parity(
            bundle, raw.samples, outputs, encoded, objective, max_metric_drop=0.0, max_output_difference=1e-3
        )  # fmt: skip

    assert gate().exported > 0.7
    proto = onnx.load(bundle / "onnx" / "model.onnx")
    upsample_otherwise(proto)
    onnx.save(proto, bundle / "onnx" / "model.onnx")
    contract["files"]["onnx/model.onnx"] = sha256(bundle / "onnx" / "model.onnx")
    write_json(bundle / "autoft.json", contract)
    with pytest.raises(ExportError, match="must give the classes that its outputs mean, but classes differ in"):
        gate()
