"""Batches are the same from memory and from files, in order, and whatever the threads do."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from toy_training import CONVNET, CPU, SAMPLES, encode, split

from autoft.augment import move_map
from autoft.batching import draw_order, even_batches
from autoft.errors import BackboneError, DataError
from autoft.loading import FixedData
from autoft.specs import BackboneRequest, Preprocessing, Sample
from autoft.testing import toy

MAPS = toy.resolve(BackboneRequest("convnet", "none", features="maps"))

ROWS = [np.array([3, 0, 2]), np.array([47, 1]), np.array([5, 6, 7, 8])]


def collect(
    data: FixedData, rows: list[np.ndarray] = ROWS, seed: tuple[int, ...] = (0,)
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(inputs[0], targets) for inputs, targets in data.batches(rows, device=CPU, seed=seed)]


def assert_equal_batches(found: list, wanted: list) -> None:
    assert len(found) == len(wanted) > 0
    for (one, one_targets), (other, other_targets) in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one_targets, other_targets)


@pytest.mark.parametrize("policy", CONVNET.preprocessing.policies)
def test_memory_and_files_give_equal_batches(policy: str) -> None:
    held, read = split(SAMPLES, policy=policy), split(SAMPLES, policy=policy, memory=0)
    assert (held.in_memory, read.in_memory) == (True, False)
    assert_equal_batches(collect(held), collect(read))


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_batches_hold_the_asked_samples_in_order(memory: int) -> None:
    data = split(SAMPLES, memory=memory)
    for chosen, (pixels, targets) in zip(ROWS, collect(data), strict=True):
        decoded = [CONVNET.preprocessing.decode(SAMPLES[row].source, augmented=False) for row in chosen]
        assert torch.equal(pixels, CONVNET.preprocessing.inputs(torch.stack(decoded))[0])
        assert torch.equal(targets, encode(SAMPLES)[chosen])


def test_memory_is_used_exactly_up_to_its_limit() -> None:
    needed = len(SAMPLES) * 3 * 16 * 16
    assert split(SAMPLES, memory=needed).in_memory
    assert not split(SAMPLES, memory=needed - 1).in_memory


def test_reading_leaves_what_is_held_in_memory_alone() -> None:
    data = split(SAMPLES)
    assert_equal_batches(collect(data), collect(data))


def test_augmentation_depends_on_seed_and_row_alone() -> None:
    data = split(SAMPLES, policy="standard")
    data._threads = 1
    alone = collect(data)
    data._threads = 8
    assert_equal_batches(collect(data), alone)
    # the same row in another batch, at another place
    (moved, _), *_ = collect(data, [np.array([9, 3])])
    assert torch.equal(moved[1], alone[0][0][0])
    other = collect(data, seed=(1,))
    assert not torch.equal(other[0][0], alone[0][0])


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_sample_that_is_drawn_again_is_augmented_anew_and_threads_do_not_matter(memory: int) -> None:
    weights = np.where(np.arange(len(SAMPLES)) < 2, 12.0, 1.0)
    batches = even_batches(draw_order(len(SAMPLES), np.random.default_rng(0), weights), 4)
    data = split(SAMPLES, policy="standard", memory=memory)
    data._threads = 1
    alone = collect(data, batches)
    data._threads = 8
    assert_equal_batches(collect(data, batches), alone)
    order, pixels = np.concatenate(batches), torch.cat([inputs for inputs, _ in alone])
    views = pixels[torch.from_numpy(order == 0)].flatten(1)
    assert len(views) > 3
    assert len(views.unique(dim=0)) == len(views)
    # the first of them is the one that it has where nothing is drawn twice
    assert torch.equal(views[0], collect(data, [np.array([0])])[0][0].flatten())


def test_order_holds_when_later_batches_are_ready_first() -> None:
    class Slow:
        """Decodes the first sample only after another was."""

        def __init__(self, inner: Preprocessing) -> None:
            self.inner = inner
            self.policies = inner.policies
            self.inputs = inner.inputs
            self.others = threading.Event()

        def decode(self, source: bytes, *, augmented: bool) -> torch.Tensor:
            if source == SAMPLES[0].source:
                assert self.others.wait(10), "batches must be prepared ahead"
            else:
                self.others.set()
            return self.inner.decode(source, augmented=augmented)

    data = split(SAMPLES, memory=0)
    data.preprocessing = Slow(CONVNET.preprocessing)  # type: ignore[assignment]
    data._threads = 2
    assert_equal_batches(
        collect(data, [np.array([0]), np.array([20])]), collect(split(SAMPLES), [np.array([0]), np.array([20])])
    )


def test_threads_end_with_the_last_batch_and_with_a_feed_that_is_closed_early() -> None:
    def loaders() -> int:
        return sum(thread.name.startswith("autoft-load") for thread in threading.enumerate())

    data = split(SAMPLES, memory=0)
    collect(data)
    assert loaders() == 0
    feed = data.batches([np.array([row]) for row in range(40)], device=CPU)
    next(feed)
    assert loaders() > 0
    feed.close()  # type: ignore[attr-defined]
    assert loaders() == 0


def files(folder: Path) -> tuple[Sample, ...]:
    written = toy.write_toy_images(folder, classes=3, per_class=2)
    samples = toy.toy_samples(classes=3, per_class=2)
    return tuple(replace(sample, source=path) for sample, path in zip(samples, written, strict=True))


BREAKS: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no image"),
}


@pytest.mark.parametrize("damage", BREAKS)
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_file_that_breaks_after_the_search_began_is_named(tmp_path: Path, damage: str, memory: int) -> None:
    samples = files(tmp_path)
    data = split(samples, memory=memory)
    BREAKS[damage](samples[4].source)
    if memory:
        assert len(collect(data, [np.array([4])])) == 1, "what is in memory needs no file"
        with pytest.raises(DataError, match=r"stripes-120/000\.png was readable when the search began"):
            split(samples, memory=memory)
        return
    with pytest.raises(DataError, match=r"stripes-120/000\.png was readable when the search began"):
        collect(data, [np.array([0]), np.array([4]), np.array([5])])


def test_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match="must be one of none, light, standard, trivial, but got 'wild'"):
        split(SAMPLES, policy="wild")
    with pytest.raises(DataError, match="but got 'wild'"):
        split(SAMPLES, policy="light").varied("wild")


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_split_under_another_policy_gives_what_that_policy_gives_from_the_same_pixels(memory: int) -> None:
    light = split(SAMPLES, policy="light", memory=memory)
    for policy in ("standard", "trivial"):
        other = light.varied(policy)
        assert_equal_batches(collect(other), collect(split(SAMPLES, policy=policy)))
        assert other._decoded is light._decoded
        assert not torch.equal(collect(other)[0][0], collect(light)[0][0])
    assert light.policy == "light"
    assert light.varied("light") is light


@pytest.mark.parametrize(("policy", "other"), [("none", "light"), ("standard", "none")])
def test_pixels_without_a_margin_are_not_varied_nor_shown_for_those_with_one(policy: str, other: str) -> None:
    with pytest.raises(ValueError, match=f"'{policy}' and '{other}' are decoded differently"):
        split(SAMPLES, policy=policy).varied(other)


def test_empty_split_gives_no_batches() -> None:
    data = split(())
    assert len(data) == 0
    assert collect(data, []) == []


@given(st.integers(1, 300), st.integers(1, 70))
def test_even_batches_keep_every_sample_in_order_in_as_few_batches_as_possible(samples: int, size: int) -> None:
    order = np.random.default_rng(samples).permutation(samples)
    batches = even_batches(order, size)
    assert np.array_equal(np.concatenate(batches), order)
    lengths = [len(batch) for batch in batches]
    assert len(lengths) == -(-samples // size)
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(2, 300), st.integers(3, 70))
def test_no_batch_of_one_from_a_batch_size_of_three_on(samples: int, size: int) -> None:
    assert min(len(batch) for batch in even_batches(np.arange(samples), size)) > 1


# --- targets that lie in the image ------------------------------------------------------------------


def masked(policy: str) -> FixedData:
    """Images whose left half is white, with a mask of that half."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    samples = [Sample(f"{number}", file.getvalue(), "", "") for number in range(6)]
    masks = torch.zeros((6, 32, 32), dtype=torch.uint8)
    masks[:, :, :16] = 1
    whole = replace(MAPS.preprocessing, mean=(0.0,) * 3, std=(1.0,) * 3)  # type: ignore[type-var]
    return FixedData(samples, masks, whole, policy=policy, move=lambda target, warp: move_map(target, warp, outside=255))


@pytest.mark.parametrize("policy", ["none", "light", "standard"])
def test_targets_move_with_their_images(policy: str) -> None:
    data = masked(policy)
    (((images,), masks),) = data.batches([np.arange(6)], device=CPU, seed=(0, 1))
    white = torch.nn.functional.interpolate(images, (32, 32))[:, 0] > 0.5
    known = masks != 255
    same = (white == (masks == 1)) | ~known
    assert float(same.float().mean()) > 0.95
    assert float(known.float().mean()) > 0.8
    still = torch.equal(masks, torch.as_tensor(data.targets))
    assert still == (policy == "none")
    if not still:  # were they left where they are, this would be seen
        unmoved = white == (torch.as_tensor(data.targets) == 1)
        assert float(unmoved.float().mean()) < float(same.float().mean())


def test_targets_of_a_row_are_the_same_in_any_batch_and_other_in_the_next_epoch() -> None:
    data = masked("standard")
    ((_, together),) = data.batches([np.arange(6)], device=CPU, seed=(0, 1))
    ((_, alone),) = data.batches([np.array([4])], device=CPU, seed=(0, 1))
    ((_, later),) = data.batches([np.arange(6)], device=CPU, seed=(0, 2))
    assert torch.equal(alone[0], together[4])
    assert not torch.equal(later, together)


def test_targets_that_move_need_inputs_that_show_the_whole_image() -> None:
    with pytest.raises(BackboneError, match="need inputs that show all of it"):
        FixedData(SAMPLES, encode(SAMPLES), cropping(), move=lambda target, warp: target)
    FixedData(SAMPLES, encode(SAMPLES), cropping())


def cropping() -> Preprocessing:
    return replace(CONVNET.preprocessing, resize=20)  # type: ignore[type-var]
