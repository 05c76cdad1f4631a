"""Bootstrap intervals: against the closed form where there is one, and the figures of what was drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trading.backtest import account, bootstrap
from trading.backtest.bootstrap import intervals
from trading.backtest.metrics import sharpe
from trading.errors import InsufficientHistory, InvalidRequest
from trading.statistics import sharpe_error

RETURNS = arrays(np.float64, st.integers(2, 40), elements=st.floats(-1, 1).map(lambda value: round(value, 3)))


@settings(max_examples=40, deadline=None)
@given(RETURNS, st.integers(1, 7))
def test_groups_in_their_order_are_the_account_itself(returns: np.ndarray, together: int) -> None:
    mean = float(returns.mean())
    groups = bootstrap._grouped(returns, mean, together)
    total, ratio, depth = bootstrap._resampled(groups, np.arange(len(groups)), mean)
    equity = np.cumprod(1 + returns)
    found = account.account(equity, 1.0, np.empty(0))
    assert total == pytest.approx(found.total_return, abs=1e-9, rel=1e-9)
    assert depth == pytest.approx(found.max_drawdown, abs=1e-12)
    if equity[-1] > 0:  # later returns on nothing are none
        assert ratio == pytest.approx(np.nan_to_num(sharpe(returns, 1.0)), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("bars", [800, 12_001])
def test_of_independent_returns_the_interval_is_that_of_the_closed_form(bars: int) -> None:
    returns = np.random.default_rng(1).normal(0.0005, 0.01, bars)
    found = intervals(returns, 252, seed=2, repeats=500)
    lower, upper = found.sharpe
    each = sharpe(returns, 1.0)
    assert upper - lower == pytest.approx(2 * 1.96 * sharpe_error(each, bars) * math.sqrt(252), rel=0.15)
    assert lower < each * math.sqrt(252) < upper
    assert found.total_return[0] < np.prod(1 + returns) - 1 < found.total_return[1]
    assert -1 < found.max_drawdown[0] < found.max_drawdown[1] < 0
    narrow = intervals(returns, 252, seed=2, repeats=500, level=0.5).sharpe
    assert lower < narrow[0] < narrow[1] < upper


def test_what_hangs_together_is_drawn_together() -> None:
    noise = np.random.default_rng(3).normal(0, 0.01, 3_000)
    waves = np.convolve(noise, np.ones(20) / math.sqrt(20))[:3_000]
    plain, waving = (intervals(returns, 252, seed=4, repeats=200) for returns in (noise, waves))
    assert waving.block > 3 * plain.block
    assert np.diff(waving.sharpe)[0] > 2 * np.diff(plain.sharpe)[0]


def test_the_seed_decides() -> None:
    returns = np.random.default_rng(5).normal(0, 0.01, 100)
    first, again, other = (intervals(returns, 252, seed=seed, repeats=50) for seed in (1, 1, 2))
    assert first == again
    assert first.sharpe != other.sharpe


def test_accounts_that_did_nothing_or_lost_everything() -> None:
    idle = intervals(np.zeros(50), 252, seed=1, repeats=20)
    assert (idle.total_return, idle.max_drawdown) == ((0.0, 0.0), (0.0, 0.0))
    assert all(math.isnan(end) for end in idle.sharpe)
    ruined = intervals(np.r_[np.full(30, 0.01), -1.0, np.zeros(30)], 252, seed=1, repeats=200)
    assert ruined.total_return[0] == ruined.max_drawdown[0] == -1
    assert all(math.isfinite(end) for end in ruined.sharpe)


def test_bad_input_is_refused() -> None:
    returns = np.full(30, 0.01)
    with pytest.raises(InsufficientHistory, match="19 bars"):
        intervals(returns[:19], 252, seed=1)
    for wrong in (np.r_[returns, math.nan], np.r_[returns, -1.1], returns[:, None]):
        with pytest.raises(InvalidRequest, match="one row of finite numbers"):
            intervals(wrong, 252, seed=1)
    for choice in ({"repeats": 0}, {"level": 1.0}):
        with pytest.raises(InvalidRequest, match="level="):
            intervals(returns, 252, seed=1, **choice)
