import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import TrivialAugmentWide

from autoft import augment as module
from autoft.augment import POLICIES, augment, move_map, vary

SIZE, VIEW = (32, 32), (32.0, 32.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def noise(side=37, seed=0):
    return torch.from_numpy(rng(seed).integers(0, 256, (3, side, side), dtype=np.uint8))


def ramp(side=37):
    """Red grows to the right, green downwards: where a pixel came from can be read off its colour."""
    line = torch.linspace(0, 255, side)
    return torch.stack([line.expand(side, side), line.unsqueeze(1).expand(side, side), torch.full((side, side), 128.0)]).to(
        torch.uint8
    )


def variants(item, policy, count=200, size=SIZE, view=VIEW):
    generator = rng(1)
    return [augment(item, policy, generator, size=size, view=view) for _ in range(count)]


@pytest.mark.parametrize("policy", POLICIES)
def test_same_generator_gives_the_same_variant_whatever_torchs_own_is(policy):
    torch.manual_seed(1)
    first = augment(noise(), policy, rng(5), size=SIZE, view=VIEW)
    torch.manual_seed(2)
    assert torch.equal(first, augment(noise(), policy, rng(5), size=SIZE, view=VIEW))


@pytest.mark.parametrize("policy", POLICIES)
def test_torchs_global_generator_is_not_drawn_from(policy):
    before = torch.get_rng_state()
    augment(noise(), policy, rng(), size=SIZE, view=VIEW)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_other_generators_give_other_variants(policy):
    assert not torch.equal(
        augment(noise(), policy, rng(1), size=SIZE, view=VIEW), augment(noise(), policy, rng(2), size=SIZE, view=VIEW)
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("side", "size"), [(37, (32, 32)), (37, (24, 32)), (20, (32, 32)), (1, (2, 2)), (32, (32, 32))])
def test_result_is_uint8_of_the_asked_size_and_the_item_is_unchanged(policy, side, size):
    item = noise(side)
    copy = item.clone()
    result = augment(item, policy, rng(), size=size, view=(min(size[0], side), min(size[1], side)))
    assert result.shape == (3, *size)
    assert result.dtype == torch.uint8
    assert result.is_contiguous()
    result.zero_()
    assert torch.equal(item, copy)


def test_none_is_the_center():
    item = noise(36)
    assert torch.equal(augment(item, "none", rng(), size=SIZE, view=VIEW), item[:, 2:34, 2:34])


def test_light_never_mirrors():
    for variant in variants(ramp(), "light"):
        assert variant[0, 16, 28] > variant[0, 16, 4]
        assert variant[1, 28, 16] > variant[1, 4, 16]


def test_standard_mirrors_left_to_right_about_half_of_the_time_and_never_upside_down():
    results = variants(ramp(), "standard", 400)
    mirrored = sum(bool(variant[0, 16, 28] < variant[0, 16, 4]) for variant in results)
    assert 160 < mirrored < 240
    assert all(variant[1, 28, 16] > variant[1, 4, 16] for variant in results)


@pytest.mark.parametrize(("policy", "factor"), [("light", 1.2), ("standard", 1.3)])
def test_brightness_stays_within_its_bounds_and_reaches_for_them(policy, factor):
    grey = torch.full((3, 37, 37), 100, dtype=torch.uint8)
    means = [variant.float().mean().item() for variant in variants(grey, policy)]
    assert min(means) >= 100 * (2 - factor) - 1
    assert max(means) <= 100 * factor + 1
    assert max(means) - min(means) > 100 * (factor - 1)


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_grey_stays_grey(policy):
    grey = noise()[:1].expand(3, 37, 37).contiguous()
    for variant in variants(grey, policy, 20):
        assert (variant[0].int() - variant[1].int()).abs().max() <= 1
        assert (variant[0].int() - variant[2].int()).abs().max() <= 1


class Scripted:
    """A generator that draws operation, strength and sign as told, and all else as a real one does."""

    def __init__(self, operation, level, negative):
        self._integers = iter([list(module._OPERATIONS).index(operation), level])
        self._random = iter([0.9, 0.1 if negative else 0.9])  # not mirrored
        self.uniform = rng(3).uniform

    def integers(self, bound):
        drawn = next(self._integers)
        assert drawn < bound
        return drawn

    def random(self):
        return next(self._random)


def crop_of(item, size=SIZE, view=VIEW):
    """Return what `Scripted` gives to the operation."""
    return augment(item, "trivial", Scripted("Identity", 0, negative=False), size=size, view=view)


def torchvisions(pixels, operation, strength):
    fill = {torch.Tensor: None}
    return TrivialAugmentWide()._apply_image_or_video_transform(
        pixels, operation, strength, interpolation=InterpolationMode.NEAREST, fill=fill
    )


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("level", [0, 1, 7, 15, 20, 29, 30])
@pytest.mark.parametrize("operation", TrivialAugmentWide._AUGMENTATION_SPACE)
def test_trivial_changes_pixels_as_torchvision_does(operation, level, size):
    item, view = noise(64), (float(size[0]), float(size[1]))
    strengths, signed = TrivialAugmentWide._AUGMENTATION_SPACE[operation]
    table = strengths(31, *size)
    strength = 0.0 if table is None else float(table[level])
    pixels = crop_of(item, size, view)
    for negative in (False, True):
        expected = torchvisions(pixels, operation, -strength if negative and signed else strength)
        found = augment(item, "trivial", Scripted(operation, level, negative), size=size, view=view)
        assert torch.equal(found, expected)
    if level == 15 and operation != "Identity":  # what is compared must be able to differ
        assert not torch.equal(augment(item, "trivial", Scripted(operation, level, True), size=size, view=view), pixels)


def test_trivial_has_torchvisions_table_with_every_operation_equally_often(monkeypatch):
    assert list(module._OPERATIONS) == list(TrivialAugmentWide._AUGMENTATION_SPACE)
    drawn = []
    monkeypatch.setattr(module, "_changed", lambda pixels, name, strength: drawn.append((name, strength)) or pixels)
    variants(noise(), "trivial", 5000)
    names, strengths = zip(*drawn, strict=True)
    assert set(names) == set(module._OPERATIONS)
    assert all(270 < names.count(name) < 450 for name in set(names))
    turns = [strength for name, strength in zip(names, strengths, strict=True) if name == "Rotate"]
    assert len(set(turns)) > 55, "31 strengths, both ways, and 0 counts once"
    assert 0.4 < np.mean(np.array(turns) > 0) < 0.6


def test_light_turns_by_up_to_ten_degrees():
    angles = []
    for variant in variants(ramp(200), "light", size=(160, 160), view=(200.0, 200.0)):
        red = variant[0, 40:120, 40:120].float()
        across, down = (red[:, -1] - red[:, 0]).mean(), (red[-1] - red[0]).mean()
        angles.append(torch.atan2(down, across).rad2deg().item())
    # Turned crops at the border repeat it, so the middle of the ramp is measured, to about a degree.
    assert -11.5 < min(angles) < -8
    assert 8 < max(angles) < 11.5


@pytest.mark.parametrize(("policy", "least"), [("light", 0.7), ("standard", 0.35)])
def test_crops_keep_at_least_their_share_of_the_area(policy, least):
    # The colours' slope gives the crop's extent; colour changes scale red and green alike, so compare to the full one.
    item = ramp(256)
    shares = []
    for variant in variants(item, policy, 300, size=(128, 128), view=(256.0, 256.0)):
        distinct = [len(torch.unique(variant[channel])) for channel in (0, 1)]
        shares.append(distinct[0] * distinct[1] / 128**2)
    assert len(shares) == 300
    assert min(shares) > least * 0.5


def test_crops_follow_the_views_proportions():
    # Twice as wide as high: an undistorted view of the square item, so slopes per pixel must agree on both axes.
    item = ramp(64)
    ratios = []
    for variant in variants(item, "light", size=(16, 32), view=(32.0, 64.0)):
        red, green = variant[0].float(), variant[1].float()
        ratios.append(((red[8, 24] - red[8, 8]) / 16 / ((green[12, 16] - green[4, 16]) / 8)).item())
    assert 0.95 < np.median(ratios) < 1.05


def test_border_is_repeated_rather_than_painted_in_one_colour():
    white = torch.full((3, 37, 37), 255, dtype=torch.uint8)
    for variant in variants(white, "light", 50):
        assert variant.min() == variant.max()


def test_unknown_policy_is_named():
    with pytest.raises(ValueError, match="one of none, light, standard, trivial, but got 'strong'"):
        augment(noise(), "strong", rng(), size=SIZE, view=VIEW)


class PlainColours(np.random.Generator):
    """Draws geometry as ever, but leaves brightness, contrast and saturation as they are."""

    def uniform(self, low=0.0, high=1.0, size=None):
        drawn = super().uniform(low, high, size)
        return drawn if size is None else np.ones(size)


def places(warp, size):
    """Where the centers of an image's pixels come from, (H, W) for x and for y in 0..1."""
    height, width = size
    across = ((torch.arange(width) + 0.5) / width).expand(height, width)
    down = ((torch.arange(height) + 0.5) / height).unsqueeze(1).expand(height, width)
    return [a * across + b * down + c for a, b, c in warp]


def colours(side):
    """An image whose red is the place from left to right, and green that from top to bottom, in 0..1 of 255."""
    line = (torch.arange(side) + 0.5) / side * 255
    pixels = torch.stack([line.expand(side, side), line.unsqueeze(1).expand(side, side), torch.zeros(side, side)])
    return pixels.round().to(torch.uint8)


def assert_shows(pixels, warp, margin=0.03):
    """Assert that each pixel has the colour of the place that the warp names; outside and at the edges nothing is said."""
    checked = 0
    inside = torch.ones(pixels.shape[1:], dtype=torch.bool)
    wanted = places(warp, tuple(pixels.shape[1:]))
    for place in wanted:
        inside &= (place > margin) & (place < 1 - margin)
    for channel, place in zip(pixels[:2], wanted, strict=True):
        assert float((channel.float() / 255 - place).abs()[inside].max()) < 0.02
        checked += int(inside.sum())
    assert checked > pixels[0].numel() / 2


@pytest.mark.parametrize("policy", ["none", "light", "standard"])
@pytest.mark.parametrize("size", [(96, 96), (64, 128)])
def test_warp_names_the_place_that_each_pixel_shows(policy, size):
    generator = PlainColours(np.random.PCG64(3))
    for _ in range(20):
        pixels, (warp,) = vary(colours(144), policy, generator, size=size, view=(128.0, 128.0))
        assert_shows(pixels, warp)


def test_warp_of_another_variant_is_noticed():
    generator = PlainColours(np.random.PCG64(3))
    first, _ = vary(colours(144), "standard", generator, size=(96, 96), view=(128.0, 128.0))
    _, (other,) = vary(colours(144), "standard", generator, size=(96, 96), view=(128.0, 128.0))
    with pytest.raises(AssertionError):
        assert_shows(first, other)


@pytest.mark.parametrize("size", [(96, 96), (64, 128)])
@pytest.mark.parametrize(
    ("operation", "strength"),
    [("ShearX", 0.2), ("ShearX", -0.3), ("ShearY", 0.3), ("TranslateX", 11.0), ("TranslateX", -7.5), ("TranslateY", 9.0),
     ("Rotate", 17.0), ("Rotate", -28.0)],
)  # fmt: skip
def test_operations_move_places_as_torchvision_does(operation, strength, size):
    pixels = module._resized(colours(128), size)
    changed = module._changed(pixels, operation, strength)
    assert_shows(changed, module._moved(operation, strength, size))
    with pytest.raises(AssertionError):
        assert_shows(changed, module._moved(operation, -strength, size))


def test_trivial_gives_a_warp_for_its_crop_and_one_for_its_operation(monkeypatch):
    monkeypatch.setattr(module, "_OPERATIONS", {"Rotate": ((20.0,) * 31, True), "TranslateX": ((9.0,) * 31, True)})
    generator = rng(4)
    seen = 0
    for _ in range(10):
        pixels, (crop, operation) = vary(colours(144), "trivial", generator, size=(96, 96), view=(128.0, 128.0))
        across, down = places(operation, (96, 96))
        inside = (across > 0.03) & (across < 0.97) & (down > 0.03) & (down < 0.97)
        for channel, (a, b, c) in zip(pixels[:2], crop, strict=True):
            assert float((channel.float() / 255 - (a * across + b * down + c)).abs()[inside].max()) < 0.02
        black = pixels[:2].sum(dim=0) == 0
        assert not bool((black & inside).any())  # the corners come from nowhere, not from beside the crop
        seen += int(black.sum())
    assert seen


def test_trivial_gives_one_warp_where_only_colours_change(monkeypatch):
    monkeypatch.setattr(module, "_OPERATIONS", {"Posterize": ((8.0,) * 31, False)})
    pixels, (warp,) = vary(colours(144), "trivial", rng(4), size=(96, 96), view=(128.0, 128.0))
    assert_shows(pixels, warp)


def test_map_moves_with_its_image_whatever_its_size():
    mask = torch.arange(6 * 8, dtype=torch.uint8).view(6, 8)
    mirrored = (-1.0, 0.0, 1.0), (0.0, 1.0, 0.0)
    assert torch.equal(move_map(mask, mirrored, outside=255), mask.flip(1))
    to_the_right = (1.0, 0.0, -0.25), (0.0, 1.0, 0.0)
    moved = move_map(mask, to_the_right, outside=255)
    assert torch.equal(moved[:, 2:], mask[:, :-2])
    assert bool((moved[:, :2] == 255).all())
    assert moved.dtype == torch.uint8


@pytest.mark.parametrize("policy", POLICIES)
def test_augment_gives_the_pixels_of_vary(policy):
    pixels, _ = vary(noise(), policy, rng(5), size=SIZE, view=VIEW)
    assert torch.equal(pixels, augment(noise(), policy, rng(5), size=SIZE, view=VIEW))
