"""Mixup and cutmix equal torchvision's and timm's, and random erasing is distributed as timm's."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import v2

from autoft import mixing
from autoft.mixing import Mixed, erase, mix, mixed_loss

CLASSES = 5


def batch(count: int = 8, height: int = 12, width: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, height, width, generator=generator)
    return images, torch.randint(CLASSES, (count,), generator=generator)


def outputs(count: int = 8) -> Tensor:
    return torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def rolled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pair each image with the one before it, as torchvision does."""
    monkeypatch.setattr(torch, "randperm", lambda count: torch.arange(count).roll(1))


def own_parts(images: Tensor, mixed: Mixed) -> Tensor:
    """Return where an image is still itself `(N, H, W)`."""
    return (mixed.inputs[0] == images).all(dim=1)


def test_nothing_asked_gives_the_inputs_themselves_and_draws_nothing() -> None:
    inputs = (batch()[0], torch.ones(8, 2))
    before = torch.get_rng_state()
    mixed = mix(inputs)
    assert mixed.inputs is inputs
    assert mixed.partner is None
    assert torch.equal(torch.get_rng_state(), before)
    mix(inputs[:1], mixup=1.0)
    assert not torch.equal(torch.get_rng_state(), before), "the comparison must be able to fail"


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0])
@pytest.mark.parametrize(("asked", "theirs"), [("mixup", v2.MixUp), ("cutmix", v2.CutMix)])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.usefixtures("rolled")
def test_images_and_loss_equal_torchvisions(asked: str, theirs: type, alpha: float, seed: int) -> None:
    images, wanted = batch()
    torch.manual_seed(seed)
    mixed = mix((images,), **{asked: alpha})
    torch.manual_seed(seed)
    expected, soft = theirs(alpha=alpha, num_classes=CLASSES)(images, wanted)
    torch.testing.assert_close(mixed.inputs[0], expected)
    loss = mixed_loss(F.cross_entropy, outputs(), wanted, mixed)
    torch.testing.assert_close(loss, F.cross_entropy(outputs(), soft))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("seed", range(8))
def test_loss_equals_that_of_timms_soft_targets(
    kind: str, smoothing: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, wanted = batch()
    theirs = Mixup(
        mixup_alpha=0.5 * (kind == "mixup"),
        cutmix_alpha=0.5 * (kind == "cutmix"),
        label_smoothing=smoothing,
        num_classes=CLASSES,
    )
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor, **_: tensor, raising=False)
    np.random.seed(seed)
    expected, soft = theirs(images.clone(), wanted) if kind == "mixup" else _timm_cutmix(theirs, images, wanted)
    partner = torch.arange(8).flip(0)
    share = float(np.random.RandomState(seed).beta(0.5, 0.5)) if kind == "mixup" else _share(images, expected)
    mixed = Mixed((expected,), partner, share)
    if kind == "mixup":
        torch.testing.assert_close(expected, images * share + images[partner] * (1 - share))

    def loss(given: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(given, targets, label_smoothing=smoothing)

    torch.testing.assert_close(
        mixed_loss(loss, outputs(), wanted, mixed), F.cross_entropy(outputs(), soft.float()), atol=1e-5, rtol=1e-5
    )
