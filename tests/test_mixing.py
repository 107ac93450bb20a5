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
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_images_and_loss_equal_timms_with_smoothed_labels(
    share: float, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, wanted = batch()
    theirs = Mixup(label_smoothing=smoothing, num_classes=CLASSES)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (share, False))
    expected, soft = theirs(images.clone(), wanted)
    monkeypatch.setattr(mixing, "_beta", lambda alpha: share)
    monkeypatch.setattr(torch, "randperm", lambda count: torch.arange(count).flip(0))
    mixed = mix((images,), mixup=1.0)
    torch.testing.assert_close(mixed.inputs[0], expected)

    def loss(given: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(given, targets, label_smoothing=smoothing)

    found = mixed_loss(loss, outputs(), wanted, mixed)
    torch.testing.assert_close(found, F.cross_entropy(outputs(), soft))
    assert not torch.isclose(found, loss(outputs(), wanted)), "the plain loss must differ"


def test_unmixed_loss_is_the_plain_one() -> None:
    images, wanted = batch()
    expected = F.cross_entropy(outputs(), wanted)
    assert torch.equal(mixed_loss(F.cross_entropy, outputs(), wanted, Mixed((images,))), expected)


def test_share_of_cutmix_is_the_area_that_is_still_the_images_own() -> None:
    images, _ = batch()
    shares = set()
    for seed in range(60):
        torch.manual_seed(seed)
        mixed = mix((images,), cutmix=1.0)
        assert mixed.partner is not None
        moved = mixed.partner != torch.arange(len(images))  # chance may pair an image with itself
        assert own_parts(images, mixed)[moved].float().mean().item() == pytest.approx(mixed.share)
        pasted = ~own_parts(images, mixed)
        assert torch.equal(mixed.inputs[0].movedim(1, -1)[pasted], images[mixed.partner].movedim(1, -1)[pasted])
        shares.add(round(mixed.share, 2))
    assert len(shares) > 20


def test_shares_are_spread_as_the_beta_distribution_says() -> None:
    torch.manual_seed(0)
    one = torch.zeros(2, 1, 1, 1)
    for alpha in (0.1, 0.5, 1.0):
        shares = np.array([mix((one,), mixup=alpha).share for _ in range(2000)])
        assert abs(shares.mean() - 0.5) < 0.05
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


@pytest.mark.parametrize("alpha", [0.001, 100.0])
def test_extreme_alphas_give_shares_between_0_and_1(alpha: float) -> None:
    torch.manual_seed(0)
    shares = np.array([mix((torch.zeros(2, 1, 1, 1),), mixup=alpha).share for _ in range(500)])
    assert ((shares >= 0) & (shares <= 1)).all()  # NaN is neither


@pytest.mark.usefixtures("rolled")
def test_with_both_a_fair_coin_chooses_for_each_batch() -> None:
    images, _ = batch(2)
    torch.manual_seed(0)
    cut = 0
    for _ in range(400):
        mixed = mix((images,), mixup=1.0, cutmix=1.0)
        cut += bool(((mixed.inputs[0] == images) | (mixed.inputs[0] == images.flip(0))).all())
    assert 160 < cut < 240


@pytest.mark.parametrize("asked", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
def test_batch_of_one_has_no_partner(asked: dict[str, float]) -> None:
    images, _ = batch(1)
    mixed = mix((images,), **asked)
    assert mixed.partner is None
    assert mixed.inputs[0] is images


@pytest.mark.parametrize("asked", ["mixup", "cutmix", "erasing"])
def test_seed_decides_everything_and_the_images_given_are_unchanged(asked: str) -> None:
    images, _ = batch()
    copy = images.clone()
    found = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        found.append(mix((images,), **{asked: 0.9}).inputs[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(images, copy)


@pytest.mark.parametrize("asked", ["mixup", "cutmix", "erasing"])
def test_channels_stay_innermost_in_memory_where_they_were(asked: str) -> None:
    images = batch()[0].contiguous(memory_format=torch.channels_last)
    torch.manual_seed(1)
    given = mix((images,), **{asked: 0.9}).inputs[0]
    assert given is not images
    assert given.is_contiguous(memory_format=torch.channels_last)


def test_mixed_batch_is_erased_too() -> None:
    images, _ = batch()
    torch.manual_seed(0)
    plain = mix((images,), mixup=1.0)
    torch.manual_seed(0)
    erased = mix((images,), mixup=1.0, erasing=1.0)
    assert plain.partner is not None
    assert erased.partner is not None
    assert torch.equal(erased.partner, plain.partner)
    assert erased.share == plain.share
    untouched = (erased.inputs[0] == plain.inputs[0]).float().mean()
    assert 0.5 < untouched < 0.95


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 48), (5, 4)])
def test_erased_areas_are_spread_as_timms(height: int, width: int) -> None:
    blank = torch.zeros(3000, 1, height, width)
    torch.manual_seed(0)
    random.seed(0)
    found = erase(blank, 0.5) != 0
    expected = RandomErasing(probability=0.5, mode="pixel", device="cpu")(blank.clone()) != 0

    def spread(box: Tensor) -> Tensor:
        """Count rows and columns erased in each image, and images erased."""
        rows, columns = box[:, 0].any(dim=2).sum(dim=1), box[:, 0].any(dim=1).sum(dim=1)
        assert torch.equal(rows * columns, box[:, 0].sum(dim=(1, 2))), "each is one full rectangle"
        erased = rows > 0
        sides = torch.stack([rows[erased] / height, columns[erased] / width])
        return torch.cat([erased.float().mean()[None], sides.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=1).flatten()])

    torch.testing.assert_close(spread(found), spread(expected), atol=0.04, rtol=0)
    where = found.float().mean(dim=(0, 1)), expected.float().mean(dim=(0, 1))
    torch.testing.assert_close(*where, atol=0.03, rtol=0)


def test_noise_is_standard_normal_in_every_channel() -> None:
    torch.manual_seed(0)
    images = erase(torch.full((200, 3, 32, 32), 50.0), 1.0)
    noise = [images[:, channel][images[:, channel] != 50.0] for channel in range(3)]
    for values in noise:
        assert values.mean().item() == pytest.approx(0.0, abs=0.03)
        assert values.std().item() == pytest.approx(1.0, abs=0.03)
    assert not torch.equal(noise[0], noise[1])


def test_nothing_is_erased_at_probability_0_or_from_images_too_thin() -> None:
    images, _ = batch()
    assert erase(images, 0.0) is images
    thin = torch.zeros(8, 3, 1, 20)
    assert erase(thin, 1.0) is thin
    assert erase(images, 1.0) is not images
