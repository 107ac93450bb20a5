"""Makes the two bundles that loaders are tried on: a small network of timm on photos' sizes, and a tiny BERT."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_transformers import SENTENCES, write_tiny

from autoft import timm_models
from autoft.builtin import transformers
from autoft.builtin.heads import autoft_heads
from autoft.export.bundle import Trained, export_bundle
from autoft.loading import load_split
from autoft.model import assemble
from autoft.specs import Backbone, BackboneRequest, Sample
from autoft.testing.toy import paint_png
from autoft.train import Objective

HEADS = {head.name: head for head in autoft_heads()}
# wider, higher, odd, and smaller than the input: shrunk images show who resizes without antialiasing
SIZES = ((300, 200), (200, 300), (157, 99), (24, 20), (64, 64), (301, 301))


def make_image(folder: Path) -> Path:
    """Return a bundle of random weights in `folder` that tells three kinds of stripes apart, or not."""
    samples = []
    for number, (width, height) in enumerate(SIZES * 2):
        file = folder / "photos" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        square = Image.open(io.BytesIO(paint_png(number % 3, 3, seed=(number,), size=320)))
        square.crop((0, 0, width, height)).save(file)
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        samples.append(Sample(file.name, file, f"stripes {number % 3}", content))
    backbone = timm_models.resolve(BackboneRequest("test_resnet", "none", image_size=64))
    return _export(folder / "image", backbone, HEADS["image-classification"], samples)


def make_text(folder: Path) -> Path:
    """Return a bundle of random weights in `folder` that sorts sentences into three kinds."""
    weights = write_tiny(folder / "tiny", "bert")
    texts = (*SENTENCES, "Rain!", "the cat sat on the mat " * 20, "Ärger über naïve cafés", "a dog")
    samples = [
        Sample(f"{number}", text, f"kind {number % 3}", hashlib.sha256(text.encode()).hexdigest())
        for number, text in enumerate(texts)
    ]
    backbone = transformers.resolve(BackboneRequest(str(weights), str(weights), features="pooled"))
    return _export(folder / "text", backbone, HEADS["text-classification"], samples)


def _export(folder: Path, backbone: Backbone, head: Any, samples: Sequence[Sample]) -> Path:
    targets = head.describe([sample.target for sample in samples])
    fitted: Any = backbone.preprocessing.fit([sample.source for sample in samples])
    object.__setattr__(backbone, "preprocessing", fitted)
    model = assemble(backbone, head, targets, {knob.name: knob.default for knob in head.knobs}, seed=0).eval()
    data = load_split(samples, head.encode([sample.target for sample in samples], targets), fitted)
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        for parameter in model.head.parameters():
            parameter.normal_(std=0.7)  # a new head answers nearly the same for all, and would hide differences
    facts = {
        "name": folder.name,
        "data": {"train": 9, "validation": len(samples), "test": 9, "rejected": 0, "made_splits": [], "columns": {}},
        "training": {
            "trial": 0, "trials": 1, "epoch": 1, "device": "cpu", "precision": "fp32", "settings": {}, "test_scored": 1,
            "why_not_repeated": [],
        },
    }  # fmt: skip
    objective = Objective(head, targets, head.default_metric(targets))
    trained = Trained(model, backbone, objective, data, data, facts)
    export_bundle(trained, folder, max_metric_drop=1e-6, max_output_difference=1e-3, golden=6)
    return folder


def golden_tensors(bundle: Path) -> dict[str, np.ndarray]:
    """Return the stored inputs and outputs of a bundle's golden samples by name."""
    return {file.stem: np.load(file, allow_pickle=False) for file in sorted((bundle / "golden").glob("*.npy"))}
