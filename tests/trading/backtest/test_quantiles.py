"""Quantiles of a sample's brackets: equal to numpy's, whatever the values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trading.backtest.quantiles import BLOCK, SAMPLE, quantile, tails

SHARES = (0.0, 0.05, 0.5, 0.95, 1.0)


def agree(values: np.ndarray, share: float) -> None:
    assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)), rel=1e-12, abs=1e-300)
    lower, upper = min(share, 1 - share), max(share, 1 - share)
    assert tails(values, lower, upper) == (quantile(values, lower), quantile(values, upper))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.floats(0, 1))
def test_few_values(values: list[float], share: float) -> None:
    assert quantile(np.array(values), share) == pytest.approx(float(np.quantile(values, share)), rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2 * SAMPLE - 2, 2 * SAMPLE + 3 * BLOCK + 5),
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 6),
)
def test_many_values(n: int, seed: int, zeros: float, share: float, digits: int) -> None:
    # rounding makes ties, zeros are the returns of bars without a position
    rng = np.random.default_rng(seed)
    values = np.round(rng.standard_t(3, n), digits)
    values[rng.random(n) < zeros] = 0.0
    for each in (*SHARES, share):
        agree(values, each)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(30_000.0),  # sorted: the sample is exact
        np.arange(30_000.0)[::-1].copy(),
        np.zeros(30_000),
        np.r_[np.zeros(29_000), np.ones(1_000)],
        np.where(np.arange(40_960) % 10 == 0, 1e6, np.arange(40_960.0)),  # every tenth value is sampled, and misleads
        np.repeat([1.0, 2.0, 3.0], 10_000),
        np.r_[np.full(1_501, -1.0), np.arange(28_499.0)],  # the rank is the last of the equal ones
        np.r_[np.full(1_500, -1.0), np.arange(28_501.0)],  # and the first after them
        np.where(np.arange(30_000) % 14 == 0, 1e6, np.arange(30_000.0)),  # misleads about the upper tail alone
        np.where(np.arange(30_000) % 14 == 0, -1e6, np.arange(30_000.0)),  # about the lower one
    ],
)
def test_values_that_mislead(values: np.ndarray) -> None:
    for share in (0.05, 0.95, 0.051, 0.049):
        agree(values, share)


def test_the_values_stay_in_order() -> None:
    values = np.random.default_rng(3).normal(size=50_000)
    before = values.copy()
    quantile(values, 0.05)
    tails(values, 0.05, 0.95)
    assert np.array_equal(values, before)
