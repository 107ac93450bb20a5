from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.batching import (
    POOL,
    batches_by_length,
    draw_order,
    even_batches,
    longest_first,
    token_slots,
    turns,
    within_budget,
)


def skewed(count: int, seed: int = 0) -> np.ndarray:
    """Lengths as texts have them: most short, a few long."""
    return np.clip(np.random.default_rng(seed).lognormal(3, 0.9, count), 3, 512).astype(np.int64)


@given(st.integers(1, 500), st.integers(1, 40), st.integers(0, 9))
def test_batches_by_length_hold_every_sample_once_in_as_many_steps_as_even_ones(samples: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permutation(samples)
    batches = batches_by_length(order, skewed(samples), size, rng)
    assert sorted(np.concatenate(batches)) == list(range(samples))
    assert len(batches) == len(even_batches(order, size))
    assert max(map(len, batches)) <= size


def test_batches_by_length_pad_far_less_than_random_batches() -> None:
    lengths, rng = skewed(5000), np.random.default_rng(0)
    order = rng.permutation(len(lengths))
    grouped = token_slots(batches_by_length(order, lengths, 32, rng), lengths)
    assert lengths.sum() <= grouped < 1.2 * lengths.sum()
    assert token_slots(even_batches(order, 32), lengths) > 2 * grouped


def test_grouping_by_length_does_not_order_the_epoch_by_length() -> None:
    """Neither over the whole epoch, nor again and again within the pools that are sorted."""
    lengths, size = skewed(20_000), 16
    drifts = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        batches = batches_by_length(rng.permutation(len(lengths)), lengths, size, rng)
        means = np.log([lengths[batch].mean() for batch in batches])
        places = np.arange(len(means))
        drifts.append([np.corrcoef(means, at)[0, 1] for at in (places, places % POOL)])
    # sorted, as a whole or pool by pool, it would be above 0.8; chance alone gives 0.03 for one epoch
    assert np.abs(np.mean(drifts, axis=0)).max() < 0.05


def test_samples_meet_others_in_each_epoch() -> None:
    lengths = skewed(2000)
    companions = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        batches = batches_by_length(rng.permutation(len(lengths)), lengths, 16, rng)
        companions.append({frozenset(pair) for batch in batches for pair in pairwise(batch)})
    shared = len(companions[0] & companions[1]) / len(companions[0])
    assert shared < 0.1


@pytest.mark.parametrize(("tokens", "most", "parts"), [(10**6, 100, 1), (10**6, 5, 2), (40, 100, 3), (1, 100, 10)])
def test_parts_of_a_batch_stay_within_the_budget(tokens: int, most: int, parts: int) -> None:
    lengths = np.full(10, 10)
    found = within_budget(np.arange(10), lengths, tokens, most)
    assert len(found) == parts
    assert sorted(np.concatenate(found)) == list(range(10))
    assert all(len(part) == 1 or len(part) * 10 <= tokens for part in found)


@given(st.integers(1, 300), st.integers(1, 4000), st.integers(1, 64))
def test_evaluation_takes_every_sample_once_and_the_longest_first(samples: int, tokens: int, most: int) -> None:
    lengths = skewed(samples)
    batches = longest_first(lengths, tokens, most)
    assert sorted(np.concatenate(batches)) == list(range(samples))
    assert lengths[batches[0][0]] == lengths.max()
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= tokens
        assert len(batch) <= most


def test_unweighted_order_is_a_permutation() -> None:
    assert sorted(draw_order(100, np.random.default_rng(0))) == list(range(100))


@given(st.integers(1, 50), st.integers(1, 200), st.integers(0, 5))
def test_weighted_order_has_each_class_in_its_share(rare: int, common: int, seed: int) -> None:
    labels = np.array([0] * rare + [1] * common)
    weights = np.where(labels == 0, 1 / rare, 1 / common)
    order = draw_order(len(labels), np.random.default_rng(seed), weights)
    drawn = np.bincount(labels[order], minlength=2)
    assert len(order) == len(labels)
    assert abs(drawn[0] - len(labels) / 2) <= 1
    times = np.bincount(order, minlength=len(labels))
    expected = len(labels) * weights / weights.sum()
    assert np.all(np.abs(times - expected) < 1 + 1e-9)


def test_weighted_order_is_exact_where_weights_are_equal() -> None:
    order = draw_order(50, np.random.default_rng(1), np.full(50, 0.3))
    assert sorted(order) == list(range(50))


@given(st.lists(st.lists(st.integers(0, 5), max_size=6), max_size=6))
def test_turns_count_how_often_a_sample_came_before(epoch: list[list[int]]) -> None:
    seen: Counter[int] = Counter()
    wanted: list[list[int]] = []
    for batch in epoch:
        wanted.append([])
        for row in batch:
            wanted[-1].append(seen[row])
            seen[row] += 1
    found = turns([np.array(batch, dtype=np.int64) for batch in epoch])
    assert [each.tolist() for each in found] == wanted
