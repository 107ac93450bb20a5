"""Tests of the model card: it is whole whatever a head reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoft.export.card import model_card
from autoft.specs import BackboneRequest
from autoft.testing import toy
from autoft.train import Objective

FACTS = {
    "name": "stripes",
    "data": {"train": 12, "validation": 6, "test": 6, "rejected": 0, "made_splits": []},
    "training": {
        "trial": 0,
        "trials": 1,
        "epoch": 1,
        "device": "cpu",
        "precision": "fp32",
        "settings": {"epochs": 1},
        "test_scored": 1,
        "why_not_repeated": [],
    },
}
MEASURED = {
    "parity": {
        "samples": 6,
        "metric": "accuracy",
        "trained": 0.5,
        "exported": 0.5,
        "max_output_difference": 1e-6,
        "batch_sizes": [1, 2],
    },
    "validation": {"accuracy": 0.5, "loss": 1.0},
    "test": {"accuracy": 0.5, "loss": 1.0},
    "test_error": 0.1,
}
ROW = {"label": "stripes-0", "precision": 0.5, "recall": 0.25, "f1": 0.333, "support": 4}


def card(report, **changes):
    (head,) = toy.autoft_heads()
    head = replace(head, **changes)
    backbone = toy.resolve(BackboneRequest("mlp", weights="none"))
    objective = Objective(head, head.describe(["stripes-0", "stripes-60"]), "accuracy")
    return model_card(backbone, objective, MEASURED, {"validation": report, "test": report}, FACTS)


def test_classes_are_listed_where_the_head_reports_them():
    text = card({"classes": [ROW]})
    assert "### Test split by class" in text
    assert "| stripes-0 | 0.500 | 0.250 | 0.333 | 4 |" in text


@pytest.mark.parametrize("report", [{}, {"accuracy": 0.5}])
def test_a_head_need_not_report_classes(report):
    text = card(report)
    assert "by class" not in text
    assert "| **accuracy** | 0.5000 | 0.5000 ± 0.1000 |" in text


def test_masks_have_a_table_of_areas_and_words_of_their_own():
    areas = [{"label": "stripes-0", "iou": 0.5, "recall": None}]
    text = card({"areas": areas}, answer="mask", scores="classes")
    assert "| class | iou | recall |\n|---|---|---|\n| stripes-0 | 0.5 | - |" in text
    assert "pipeline_tag: image-segmentation" in text
    assert "`logits` (N, K, h, w), and `classes` (N, H, W), uint8" in text
    assert "It answers one of stripes-0, stripes-60 for every pixel" in text
    assert "pipeline_tag: image-classification" in card({})


def test_card_of_audio_speaks_of_clips_and_of_images_does_not():
    (head,) = toy.autoft_heads()
    image = toy.resolve(BackboneRequest("mlp", weights="none"))
    objective = Objective(head, head.describe(["a", "b"]), "accuracy")
    texts = [
        model_card(each, objective, MEASURED, {"validation": {}, "test": {}}, FACTS)
        for each in (replace(image, modality="audio"), image)
    ]
    assert ["pipeline_tag: audio-classification" in text for text in texts] == [True, False]
    assert ["predict.py CLIP" in text for text in texts] == [True, False]
    assert ["transformers.js" in text for text in texts] == [False, True]
