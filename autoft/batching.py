"""Cuts an epoch's order into batches: of even size, or of similar length within a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Rows = np.ndarray  # numbers of samples

POOL = 64  # batches' worth of samples that are sorted by length together, at most
POOLS = 4  # into which an epoch is divided at least: sorted as a whole, it would have the same batches in every epoch


def even_batches(order: Rows, batch_size: int) -> list[Rows]:
    """Cut an order into batches of nearly equal size, none above `batch_size`.

    No sample is dropped, and from a batch size of 3 on no batch holds one sample alone, which BatchNorm could not take.

    Example:
        >>> [len(batch) for batch in even_batches(np.arange(10), 4)]
        [4, 3, 3]
    """
    return np.array_split(order, -(-len(order) // batch_size))


def batches_by_length(order: Rows, lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[Rows]:
    """Cut a random order into batches of samples of similar length, and put the batches into a random order again.

    As many batches as `even_batches` gives. Samples are sorted by length within pools of `POOL` batches of the order, so
    which samples meet still changes from epoch to epoch; and as the batches are shuffled over the whole epoch, training
    sees no drift from short to long.

    Args:
        order: The epoch's samples, shuffled.
        lengths: Length of every sample, by its number.
        batch_size: Samples a batch, at most.
        rng: Shuffles the batches.
    """
    batches: list[Rows] = []
    size = batch_size * min(POOL, max(1, len(order) // (POOLS * batch_size)))
    for start in range(0, len(order), size):
        pool = order[start : start + size]
        batches += even_batches(pool[np.argsort(lengths[pool], kind="stable")], batch_size)
    return [batches[place] for place in rng.permutation(len(batches))]


def within_budget(batch: Rows, lengths: np.ndarray, tokens: int, most: int) -> list[Rows]:
    """Cut a batch into parts of at most `most` samples and `tokens` token slots, padding included; one sample at least."""
    width = max(1, int(lengths[batch].max()))
    return even_batches(batch, max(1, min(most, tokens // width)))


def longest_first(lengths: np.ndarray, tokens: int, most: int) -> list[Rows]:
    """Cut all samples into batches of similar length, the longest first, so that what does not fit fails at once."""
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        count = max(1, min(most, tokens // max(1, int(lengths[order[start]]))))
        batches.append(order[start : start + count])
        start += count
    return batches


def token_slots(batches: Sequence[Rows], lengths: np.ndarray) -> int:
    """Return the token slots of padded batches, `sum of N * T`: what a model computes for them."""
    return sum(len(batch) * int(lengths[batch].max()) for batch in batches)


def draw_order(count: int, rng: np.random.Generator, weights: np.ndarray | None = None) -> Rows:
    """Return an epoch's order of `count` samples: each once, or in proportion to weights.

    Weighted, a sample comes about `count * weight / sum` times: the whole part for certain, the rest by systematic sampling
    (one random offset on an even grid), so that a class's share in an epoch is exact but for one sample.
    """
    if weights is None:
        return rng.permutation(count)
    shuffled = rng.permutation(count)
    shuffled = shuffled[np.argsort(weights[shuffled], kind="stable")]  # samples of a class side by side
    edges = np.cumsum(weights[shuffled], dtype=np.float64)
    picks = (np.arange(count) + rng.random()) * (edges[-1] / count)
    drawn = shuffled[np.minimum(np.searchsorted(edges, picks, side="right"), count - 1)]
    return rng.permutation(drawn)


def turns(batches: Sequence[Rows]) -> list[Rows]:
    """Return for each sample of each batch how many times it has come before.

    Example:
        >>> [each.tolist() for each in turns([np.array([7, 3]), np.array([7, 7])])]
        [[0, 0], [1, 2]]
    """
    if not batches:
        return []
    rows = np.concatenate(batches)
    order = np.argsort(rows, kind="stable")
    places = np.arange(len(rows))
    first = np.r_[True, rows[order][1:] != rows[order][:-1]][: len(rows)]
    before = np.empty_like(places)
    before[order] = places - np.maximum.accumulate(np.where(first, places, 0))
    return np.split(before, np.cumsum([len(batch) for batch in batches])[:-1])
