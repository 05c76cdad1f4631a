"""Candles for the tests of ml."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from trading.candles import frame_of

HOUR_MS = 3_600_000


def _random_candles(rows: int, seed: int, *, step_ms: int = HOUR_MS, volatility: float = 0.006) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(random.standard_t(4, rows) * volatility))
    open_ = np.concatenate([[100.0], close[:-1]])
    high = np.maximum(open_, close) * (1 + np.abs(random.normal(0, volatility / 2, rows)))
    low = np.minimum(open_, close) * (1 - np.abs(random.normal(0, volatility / 2, rows)).clip(0, 0.5))
    start = 1_577_836_800_000
    return frame_of(
        start + step_ms * np.arange(rows), np.column_stack([open_, high, low, close, random.lognormal(5, 1, rows)])
    )


@pytest.fixture(scope="session")
def random_candles() -> Callable[..., pd.DataFrame]:
    """Makes hourly candles of a random walk: (rows, seed)."""
    return _random_candles


@pytest.fixture(scope="session")
def sp500() -> pd.DataFrame:
    """Daily candles of the S&P 500, 1999 to 2018, as the arch package ships them."""
    from arch.data import sp500 as source

    table = source.load()
    index = pd.DatetimeIndex(table.index).as_unit("ms")
    return frame_of(index.asi8, table[["Open", "High", "Low", "Close", "Volume"]].to_numpy())


@pytest.fixture(scope="session")
def predictable() -> pd.DataFrame:
    """Hourly candles whose next moves follow from the last: momentum that every model should find."""
    random = np.random.default_rng(5)
    shocks = random.normal(0, 0.004, 3000)
    moves = np.empty(3000)
    moves[0] = shocks[0]
    for at in range(1, 3000):
        moves[at] = 0.8 * moves[at - 1] + shocks[at]
    close = 100 * np.exp(np.cumsum(moves))
    open_ = np.concatenate([[100.0], close[:-1]])
    values = [open_, np.maximum(open_, close) * 1.001, np.minimum(open_, close) / 1.001, close, np.full(3000, 10.0)]
    return frame_of(1_577_836_800_000 + HOUR_MS * np.arange(3000), np.column_stack(values))
