"""The head: targets on a grid, loss, scores against scikit-learn, the decoder's sizes, and the conformance kit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from autoft_segmentation import autoft_heads, data, scores
from autoft_segmentation.decoder import PyramidDecoder, upsample
from autoft_segmentation.head import activation, describe, encode, examples, loss, stratify
from autoft_segmentation.masks import UNKNOWN
from segmentation_toys import paint, write_pairs
from sklearn.metrics import jaccard_score
from torch import Tensor

from autoft import timm_models
from autoft.errors import DataError
from autoft.specs import BackboneRequest, FeatureMap, Targets
from autoft.testing import checks_for, toy
from autoft.testing.bound import BoundCheck
from autoft.testing.checks import kinds_to_check, run_checks

(HEAD,) = autoft_heads()
KNOBS = {knob.name: knob.default for knob in HEAD.knobs}
TARGETS = Targets(("a", "b", "c"), (1, 1, 1), {"mask_size": (8.0, 8.0), "palette": (0.0,) * 9})


def one_hot(masks: Tensor, classes: int = 3) -> Tensor:
    """Logits that answer as the masks say."""
    return 20 * torch.nn.functional.one_hot(masks.long(), classes).movedim(-1, 1).float()


# --- targets ----------------------------------------------------------------------------------------


def test_masks_become_bytes_on_one_grid(tmp_path: Path) -> None:
    targets = [sample.target for sample in data.load(write_pairs(tmp_path, 4), {"max_rejected": 0.0}).samples]
    described = describe(targets)
    assert described.labels == ("background", "red", "blue")
    assert described.values["mask_size"] == (24.0, 32.0)
    assert len(described.values["palette"]) == 9
    assert sum(described.counts) == 4 * 24 * 32
    encoded = encode(targets, described)
    assert encoded.dtype == torch.uint8
    assert np.array_equal(encoded[2].numpy(), paint(2)[1])
    half = replace(described, values={**described.values, "mask_size": (12.0, 16.0)})
    assert np.array_equal(encode(targets, half)[2].numpy(), paint(2)[1][1::2, 1::2])


def test_classes_are_matched_by_name_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path, 2)
    targets = [sample.target for sample in data.load(folder, {"max_rejected": 0.0}).samples]
    described = describe(targets)
    turned = replace(described, labels=("blue", "red", "background"))
    assert np.array_equal(encode(targets, turned)[0].numpy(), 2 - paint(0)[1])
    with pytest.raises(DataError, match="the class 'blue' is not among the 2 classes of the model: background, red"):
        encode(targets, replace(described, labels=("background", "red")))


def test_targets_that_are_no_masks_are_refused() -> None:
    with pytest.raises(DataError, match="needs a mask for each image, but got 'cat'"):
        describe(["cat"])  # type: ignore[list-item]
    same = [replace(mask, source=examples()[0].source) for mask in examples()]
    assert len(describe(same).labels) == 3


def test_strata_are_the_rarest_classes() -> None:
    assert stratify(examples()) == ["left", "right", "left"]


# --- scores -----------------------------------------------------------------------------------------


def random_case(seed: int, unknown: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(37, 3, 8, 8, generator=generator)  # more rows than are upsampled at once
    masks = torch.randint(0, 3, (37, 8, 8), generator=generator).to(torch.uint8)
    if unknown:
        masks[torch.rand(37, 8, 8, generator=generator) < 0.2] = UNKNOWN
    return outputs, masks


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_scikit_learns_over_all_pixels(seed: int, unknown: bool) -> None:
    outputs, masks = random_case(seed, unknown)
    known = masks.numpy() != UNKNOWN
    truth, given = masks.numpy()[known], outputs.argmax(dim=1).numpy()[known]
    found = scores.metrics(outputs, masks, TARGETS)
    assert found["miou"] == pytest.approx(jaccard_score(truth, given, average="macro"), abs=1e-12)
    assert found["pixel_accuracy"] == pytest.approx((truth == given).mean(), abs=1e-12)
    each = [entry["iou"] for entry in scores.report(outputs, masks, TARGETS)["areas"]]
    assert each == pytest.approx(jaccard_score(truth, given, average=None).tolist(), abs=1e-12)


def test_scores_are_of_all_pixels_not_means_over_images() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[1, 0] = 1
    answers = torch.zeros(2, 8, 8, dtype=torch.uint8)
    answers[0, 0] = 1
    found = scores.metrics(one_hot(answers), masks, TARGETS)
    assert found["miou"] == pytest.approx((112 / 128 + 0) / 2)
    alone = [scores.metrics(one_hot(answers[row : row + 1]), masks[row : row + 1], TARGETS)["miou"] for row in (0, 1)]
    assert float(np.mean(alone)) == pytest.approx((56 / 64 + 0) / 2)
    empty = torch.cat([masks, torch.zeros(1, 8, 8, dtype=torch.uint8)])
    more = scores.metrics(one_hot(torch.cat([answers, empty[2:]])), empty, TARGETS)
    assert more["miou"] == pytest.approx((176 / 192 + 0) / 2), "a mean over images would be (7/16 + 7/16 + 1) / 3"


def test_class_in_neither_truth_nor_answer_does_not_count() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[:, :4] = 1
    assert scores.metrics(one_hot(masks), masks, TARGETS)["miou"] == 1.0
    third = scores.report(one_hot(masks), masks, TARGETS)["areas"][2]
    assert third == {"label": "c", "iou": None, "precision": None, "recall": None, "share": 0.0}


def test_split_without_a_known_pixel_has_no_scores_and_nan_is_refused() -> None:
    masks = torch.full((2, 8, 8), UNKNOWN, dtype=torch.uint8)
    assert scores.metrics(torch.zeros(2, 3, 2, 2), masks, TARGETS) == {}
    with pytest.raises(ValueError, match="must be finite"):
        scores.metrics(torch.full((2, 3, 2, 2), math.nan), masks, TARGETS)


def test_coarse_outputs_are_scored_on_the_masks_pixels() -> None:
    masks = torch.zeros(1, 8, 8, dtype=torch.uint8)
    masks[:, :, 4:] = 1
    assert scores.metrics(one_hot(masks[:, ::4, ::4]), masks, TARGETS)["pixel_accuracy"] == 1.0


# --- loss and graph ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dice_weight", [0.0, 0.5, 1.0])
def test_loss_is_small_where_right_and_unknown_pixels_do_not_count(dice_weight: float) -> None:
    knobs = {**KNOBS, "dice_weight": dice_weight}
    masks = torch.randint(0, 3, (4, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    right, wrong = one_hot(masks), one_hot((masks + 1) % 3)
    assert float(loss(right, masks, TARGETS, knobs)) < 1e-3
    assert float(loss(wrong, masks, TARGETS, knobs)) > 0.9
    hidden = masks.clone()
    hidden[:, :4] = UNKNOWN
    half_wrong = torch.cat([wrong[:, :, :4], right[:, :, 4:]], dim=2)
    assert float(loss(half_wrong, hidden, TARGETS, knobs)) < 1e-3
    assert float(loss(wrong, torch.full_like(masks, UNKNOWN), TARGETS, knobs)) == 0.0


def test_entropy_is_torchs_and_dice_that_of_the_paper() -> None:
    outputs, masks = random_case(3, unknown=True)
    entropy = torch.nn.functional.cross_entropy(outputs, masks.long(), ignore_index=UNKNOWN)
    assert float(loss(outputs, masks, TARGETS, {**KNOBS, "dice_weight": 0.0})) == pytest.approx(float(entropy), rel=1e-5)
    known = (masks != UNKNOWN).unsqueeze(1)
    shares, truth = outputs.softmax(dim=1) * known, one_hot(masks.masked_fill(masks == UNKNOWN, 0)) / 20 * known
    both, sums = (shares * truth).sum(dim=(0, 2, 3)), (shares + truth).sum(dim=(0, 2, 3))
    wanted = float((1 - 2 * both / sums).mean())
    assert float(loss(outputs, masks, TARGETS, {**KNOBS, "dice_weight": 1.0})) == pytest.approx(wanted, abs=1e-2)


@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (16, 16, 16, 16), (2, 4), (8, 16, 32)])
def test_decoder_answers_for_every_fourth_pixel_whatever_the_strides(strides: tuple[int, ...]) -> None:
    maps = tuple(FeatureMap(3 + place, stride) for place, stride in enumerate(strides))
    decoder = PyramidDecoder(maps, 5, width=32, dropout=0.1).eval()
    given = [torch.randn(2, each.channels, 64 // each.stride, 96 // each.stride) for each in maps]
    outputs = decoder(given)
    assert outputs.shape == (2, 5, 16, 24)
    assert activation(outputs).shape == (2, 64, 96)
    assert activation(outputs).dtype == torch.uint8
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_classes_of_the_graph_are_those_that_are_scored() -> None:
    outputs = torch.randn(2, 3, 8, 8)
    assert torch.equal(activation(outputs).long(), upsample(outputs, (32, 32)).argmax(dim=1))


@pytest.mark.parametrize("check", checks_for(HEAD), ids=str)
def test_head_keeps_the_contract(check: BoundCheck) -> None:
    result = check.run()
    assert result.outcome == "passed", result.message


@pytest.mark.parametrize("name", ["toy/convnet", "timm/test_resnet", "timm/test_vit"])
def test_conformance_kit_passes(name: str) -> None:
    family = toy.resolve if name.startswith("toy") else timm_models.resolve
    size = 32 if name != "timm/test_vit" else None

    def resolve(features: str):  # type: ignore[no-untyped-def]
        return family(BackboneRequest(name.partition("/")[2], "none", size, features=features))

    found = {backbone.features: (backbone, head) for backbone, head in kinds_to_check(resolve, [HEAD, *toy.autoft_heads()])}
    assert set(found) == {"pooled", "maps"}
    results = run_checks(*found["maps"])
    assert len(results) >= 6
    assert {f"{result.id}: {result.message}" for result in results if result.outcome != "passed"} <= {
        f"{result.id}: {result.message}" for result in results if result.id == "cuts"
    }
