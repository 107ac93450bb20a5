"""Ranks and correlations, compared with scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from autoft.tasks.numeric import is_constant, pearson, quotient, ranks, spearman

numbers = st.lists(st.tuples(st.integers(-3, 3), st.floats(-1e6, 1e6)), min_size=2, max_size=30)


@given(st.lists(st.integers(-5, 5) | st.floats(-1e300, 1e300), max_size=30))
def test_ranks_are_scipys(values: list[float]) -> None:
    assert ranks(np.array(values, dtype=np.float64)).tolist() == stats.rankdata(values).tolist()


@settings(deadline=None)
@given(numbers)
def test_correlations_are_scipys(pairs: list[tuple[int, float]]) -> None:
    one, other = np.array(pairs, dtype=np.float64).T
    if np.ptp(one) < 1e-6 or np.ptp(other) < 1e-6:
        return
    assert pearson(one, other) == pytest.approx(stats.pearsonr(one, other).statistic, abs=1e-6)
    assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_correlation_does_not_overflow_or_vanish(scale: float) -> None:
    assert pearson(np.array([1.0, 2.0, 3.0]) * scale, np.array([2.0, 4.0, 6.0])) == pytest.approx(1.0)


def test_constant_series_have_no_correlation() -> None:
    assert pearson(np.full(3, 0.1), np.arange(3.0)) == 0.0
    assert spearman(np.arange(3.0), np.full(3, 0.1)) == 0.0


def test_constants_are_told_from_others() -> None:
    assert is_constant(np.full(3, 0.1))
    assert is_constant(np.array([]))
    assert not is_constant(np.array([0.1, 0.1, 0.2]))


def test_nothing_over_nothing_is_zero() -> None:
    assert quotient([1, 0, 3], [2, 0, 0]).tolist() == [0.5, 0.0, 0.0]
    assert float(quotient(1, 4)) == 0.25
