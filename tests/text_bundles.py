"""Bundles of texts for tests: toy encoders with random heads, one for each kind of answer, exported once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from autoft.builtin.heads import autoft_heads
from autoft.export.bundle import Exported, Trained, export_bundle
from autoft.loading import load_split
from autoft.model import assemble
from autoft.specs import BackboneRequest, Sample
from autoft.testing import toy
from autoft.testing.toy_text import toy_tagged, toy_texts
from autoft.train import Objective

KINDS = ("label", "pair", "labels", "value", "values", "entities")
LIMITS: dict[str, Any] = {"max_metric_drop": 1e-6, "max_output_difference": 1e-3}
HEADS = {head.name: head for head in autoft_heads()}
TASKS = {"label": "text-classification", "pair": "text-classification", "labels": "multi-label", "value": "regression",
         "values": "regression", "entities": "token-classification"}  # fmt: skip
LONG = "it was nothing but Rain " * 12  # longer than any bundle takes


class Made(NamedTuple):
    """A bundle and what it was made of."""

    trained: Trained
    exported: Exported
    folder: Path


def samples_of(kind: str) -> list[Sample]:
    """Some 40 samples of different lengths; of each third, one is capitalized, so that lowercasing matters."""
    if kind == "entities":
        found = toy_tagged(40)
        long = Sample("long", LONG.split(), ("O",) * len(LONG.split()), "long")
        return [*found, long]
    texts = toy_texts(classes=3, per_class=13, pairs=kind == "pair")
    changed = [replace(sample, target=_target(kind, sample, number)) for number, sample in enumerate(texts)]
    long_source: Any = (LONG, "a trip") if kind == "pair" else LONG
    return [*changed, replace(changed[0], id="long", source=long_source)]


def _target(kind: str, sample: Sample, number: int) -> Any:
    length = sum(map(len, sample.source))
    return {
        "labels": (sample.target, "long") if length > 40 else () if number % 5 == 0 else (sample.target,),
        "value": (length * 1e6,),
        "values": (length * 1e6, -length / 1e3),
    }.get(kind, sample.target)


def make_trained(kind: str) -> Trained:
    head, samples = HEADS[TASKS[kind]], samples_of(kind)
    targets = head.describe([sample.target for sample in samples])
    backbone = toy.resolve(BackboneRequest("text", "pretrained", features=head.features))
    fitted: Any = backbone.preprocessing.fit([sample.source for sample in samples[:-1]])
    longest = int(fitted.decode_many([sample.source for sample in samples[:-1]])[0].lengths.max())
    fitted = replace(fitted, max_length=-(-longest // 8) * 8)  # all but the last sample stay whole
    backbone = replace(backbone, preprocessing=fitted)
    knobs = {knob.name: knob.default for knob in head.knobs}
    model = assemble(backbone, head, targets, knobs, seed=0)
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        for parameter in model.head.parameters():
            parameter.normal_(std=0.7)  # a new head answers nearly the same for all
    validation, test = (load_split(part, head.encode([one.target for one in part], targets), fitted)
                        for part in (samples, samples[::2]))  # fmt: skip
    facts = {
        "name": f"toy {kind}",
        "data": {"train": 9, "validation": len(samples), "test": 9, "rejected": 0, "made_splits": [],
                 "columns": {"text": ["first", "second"] if kind == "pair" else "review"}},
        "training": {"trial": 0, "trials": 1, "epoch": 1, "device": "cpu", "precision": "fp32", "settings": {},
                     "test_scored": 1, "why_not_repeated": []},
    }  # fmt: skip
    return Trained(model, backbone, Objective(head, targets, head.default_metric(targets)), validation, test, facts)


def make(kind: str, folder: Path) -> Made:
    trained = make_trained(kind)
    return Made(trained, export_bundle(trained, folder / "bundle", **LIMITS, golden=5), folder / "bundle")


def sources(samples: Sequence[Sample]) -> list[Any]:
    return [sample.source for sample in samples]
