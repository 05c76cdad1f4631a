"""Uniqueness of overlapping labels against its definition, counted moment by moment."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.weights import uniqueness
from trading.errors import InvalidRequest

HOUR = 3_600_000
YEAR_2024 = 1_704_067_200_000


def _counted(t0: np.ndarray, t1: np.ndarray, symbol: np.ndarray) -> list[float]:
    """The definition: the mean over a label's moments of one over how many labels of its symbol are alive."""
    lives = [set(range(start, max(end, start + 1))) for start, end in zip(t0.tolist(), t1.tolist(), strict=True)]
    found = []
    for life, name in zip(lives, symbol, strict=True):
        alive = [
            sum(at in other for other, owner in zip(lives, symbol, strict=True) if owner == name) for at in sorted(life)
        ]
        found.append(float(np.mean([1 / count for count in alive])))
    return found


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 25), st.integers(0, 9), st.sampled_from(["BTC", "ETH", "SOL"])), max_size=18)
)
def test_agrees_with_the_definition(rows: list[tuple[int, int, str]]) -> None:
    t0 = np.array([start for start, _, _ in rows], dtype=np.int64)
    t1 = t0 + np.array([length for _, length, _ in rows], dtype=np.int64)
    symbol = np.array([name for _, _, name in rows], dtype=str)
    found = uniqueness(t0, t1, symbol)
    np.testing.assert_allclose(found, _counted(t0, t1, symbol), rtol=1e-9)
    assert ((found > 0) & (found <= 1)).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), symbols=st.integers(1, 5))
def test_hourly_bars_of_today_are_weighed_as_small_numbers_are(seed: int, symbols: int) -> None:
    random = np.random.default_rng(seed)
    t0, length = random.integers(0, 30, 40), random.integers(1, 8, 40)
    symbol = random.integers(0, symbols, 40).astype(str)
    at = YEAR_2024 + t0 * HOUR
    np.testing.assert_allclose(uniqueness(at, at + length * HOUR, symbol), _counted(t0, t0 + length, symbol), rtol=1e-9)


def test_by_hand() -> None:
    # a pair that shares half of its life, one that only touches the second, and another symbol in between
    t0, t1 = np.array([0, 10, 30, 0]) * HOUR, np.array([20, 30, 40, 40]) * HOUR
    assert uniqueness(t0, t1, np.array(["A", "A", "A", "B"])).tolist() == [0.75, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("horizon", [1, 5, 24])
def test_labels_of_every_bar_share_the_market_with_a_horizon_of_others(horizon: int) -> None:
    t0 = np.repeat(YEAR_2024 + np.arange(2000) * HOUR, 3)
    found = uniqueness(t0, t0 + horizon * HOUR, np.tile(["A", "B", "C"], 2000))
    np.testing.assert_allclose(found[3 * horizon : -3 * horizon], 1 / horizon, rtol=1e-9)
    # what all labels have to themselves adds up to the time that is covered at all
    assert found.sum() * horizon == pytest.approx(3 * (2000 + horizon - 1), rel=1e-9)


def test_no_rows_give_no_weights_and_half_rows_are_refused() -> None:
    none = np.empty(0, dtype=np.int64)
    assert uniqueness(none, none, none.astype(str)).shape == (0,)
    two = np.array([0, HOUR])
    for t1, symbol in ((two[:1], np.array(["A", "A"])), (two, np.array(["A"])), (two - 1, np.array(["A", "A"]))):
        with pytest.raises(InvalidRequest, match="2 starts"):
            uniqueness(two, t1, symbol)
