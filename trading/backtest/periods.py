"""A backtest by month, by parts of its time, and by what the market was like.

Conventions as in ``trading.backtest.metrics``. A bar belongs to the month and the part in which it opens, a trade
to the part in which it began, with all its costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final

import numba
import numpy as np
import pandas as pd

from trading.backtest import account, kernel
from trading.backtest.metrics import Accounted, bar_returns, sharpe, summarise
from trading.errors import InvalidRequest

TOTAL: Final = "total"


@dataclass(frozen=True, eq=False)
class Part:
    """Some bars of a result in a row; its fields are those of ``BacktestResult``, bars counted from its first."""

    equity: pd.Series
    positions: np.ndarray
    trade_rows: np.ndarray
    fill_rows: np.ndarray
    start_cash: float

    @cached_property
    def costs(self) -> dict[str, float]:
        """What the trades that began in it cost, by kind."""
        columns = {
            "fees": kernel.T_FEES, "slippage": kernel.T_SLIPPAGE, "funding": kernel.T_FUNDING,
            "borrow": kernel.T_BORROW,
        }  # fmt: skip
        return {name: float(self.trade_rows[:, column].sum()) for name, column in columns.items()}


def part(result: Accounted, first: int, last: int) -> Part:
    """The bars ``[first, last)`` of a result, with the trades and fills that began there.

    ``start_cash`` is the equity before them.

    Raises:
        InvalidRequest: no bar, or bars that the result lacks.
    """
    bars = len(result.equity)
    if not 0 <= first < last <= bars:
        raise InvalidRequest(f"bars {first} to {last} make no part of a result of {bars} bars")
    trades, fills = result.trade_rows, result.fill_rows
    entered, filled = trades[:, kernel.T_ENTRY_BAR], fills[:, kernel.F_BAR]
    trades = trades[(entered >= first) & (entered < last)]
    fills = fills[(filled >= first) & (filled < last)]
    trades[:, [kernel.T_ENTRY_BAR, kernel.T_EXIT_BAR]] -= first
    fills[:, kernel.F_BAR] -= first
    return Part(
        equity=result.equity.iloc[first:last],
        positions=result.positions[first:last],
        trade_rows=trades,
        fill_rows=fills,
        start_cash=float(result.equity.iloc[first - 1]) if first else result.start_cash,
    )


def monthly(equity: pd.Series, start_cash: float) -> pd.DataFrame:
    """Compounded return of each month and year, UTC.

    Args:
        equity: marked after each bar, index of open times in UTC, increasing.

    Returns:
        float64, index ``year`` (every year from the first to the last), columns 1 to 12 and ``"total"``; NaN for
        months and years without bars, and for those that began with nothing.

    Raises:
        InvalidRequest: no equity.
    """
    if equity.empty:
        raise InvalidRequest("there is no equity, so there are no months")
    times = pd.DatetimeIndex(equity.index).tz_localize(None).to_numpy()
    first, last = (int(str(times[at].astype("datetime64[Y]"))) for at in (0, -1))
    months = np.arange(f"{first}-01", f"{last + 1}-02", dtype="datetime64[M]")
    # how many bars open before each month begins; the equity then is that of the bar before
    before = np.searchsorted(times, months.astype(times.dtype))
    worth = np.concatenate([[start_cash], equity.to_numpy()])[before]
    grown = _grown(worth, before).reshape(-1, 12)
    table = pd.DataFrame(grown, index=pd.RangeIndex(first, last + 1, name="year"), columns=[*range(1, 13)])
    table[TOTAL] = _grown(worth[::12], before[::12])
    return table


def _grown(worth: np.ndarray, before: np.ndarray) -> np.ndarray:
    known = (np.diff(before) > 0) & (worth[:-1] > 0)
    found = np.full(len(known), math.nan)
    np.divide(worth[1:], worth[:-1], out=found, where=known)
    return found - 1


def sub_periods(result: Accounted, bars_per_year: float, parts: int = 4) -> pd.DataFrame:
    """The figures of ``summarise`` for parts of equal length in time: index 1 to ``parts``, a column per figure.

    Parts without a bar are left out. The returns of all parts compound to that of the whole, and their trades
    and costs add up to it.

    Raises:
        InvalidRequest: fewer than one part.
    """
    if parts < 1:
        raise InvalidRequest(f"a result cannot be cut into {parts} parts; ask for one or more")
    stamps = pd.DatetimeIndex(result.equity.index).asi8
    begins = np.linspace(stamps[0], stamps[-1], parts + 1)[:-1]
    cuts = [*np.searchsorted(stamps, begins).tolist(), len(stamps)]
    found = {
        number: summarise(part(result, first, last), bars_per_year)
        for number, (first, last) in enumerate(pairwise(cuts), 1)
        if first < last
    }
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("part")


def regimes(
    result: Accounted, closes: np.ndarray, bars_per_year: float, *, trend_bars: int = 200, volatility_bars: int = 100
) -> pd.DataFrame:
    """How the account did in rising and falling, in calm and wild markets.

    What kind a bar is, was known at the close of the bar before: *trend* is up where that close lay above the
    mean of the last ``trend_bars`` closes, else down; *volatility* is high where the deviation (ddof 1) of the
    last ``volatility_bars`` log returns lay above the median of all such deviations up to then, else low. The
    first bars, of which that is not known, are of the kind unknown.

    Args:
        closes: float64 (n,), above zero, one per bar of the result.

    Returns:
        Index (regime, kind); columns bars, share (of all bars), total_return (of these bars, compounded), sharpe
        (annual), exposure. The total returns of the kinds of one regime compound to that of the account.

    Raises:
        InvalidRequest: closes of another length or not above zero, or spans below two bars.
    """
    bars = len(result.equity)
    prices = np.ascontiguousarray(closes, dtype=np.float64)
    if prices.shape != (bars,) or not (prices.min() > 0 and prices.max() < math.inf):
        raise InvalidRequest(f"closes of shape {prices.shape} for {bars} bars: one per bar is needed, above zero")
    if min(trend_bars, volatility_bars) < 2:
        raise InvalidRequest(f"trend_bars={trend_bars} and volatility_bars={volatility_bars} must be two or more")
    returns = bar_returns(result.equity.to_numpy(), result.start_cash)
    levels, moves = pd.Series(prices), pd.Series(np.log(prices)).diff()
    realised = moves.rolling(volatility_bars).std()
    usual = np.full(bars, math.nan)
    usual[volatility_bars:] = expanding_median(realised.iloc[volatility_bars:].to_numpy())
    kinds = {
        "trend": ("up", "down", _above(levels, levels.rolling(trend_bars).mean())),
        "volatility": ("high", "low", _above(realised, pd.Series(usual))),
    }
    rows = {}
    for regime, (over, under, above) in kinds.items():
        for kind, value in ((over, 1), (under, 0), ("unknown", -1)):
            bar = above == value
            rows[regime, kind] = {
                "bars": int(bar.sum()),
                "share": float(bar.mean()),
                "total_return": float(np.prod(1 + returns[bar]) - 1),
                "sharpe": sharpe(returns[bar], bars_per_year),
                "exposure": float(account.held_share(result.positions[bar])) if bar.any() else math.nan,
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["regime", "kind"])


def expanding_median(values: np.ndarray) -> np.ndarray:
    """Median of the values up to each, itself included; float64 (n,), no NaN."""
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = np.arange(len(values))
    return np.asarray(_medians(values[order], ranks))


@numba.njit(cache=True, nogil=True)
def _medians(ordered: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """From the last to the first: all values stand in order, and one after the other is taken out again."""
    n = len(ordered)
    found = np.empty(n)
    above, below = np.arange(1, n + 1), np.arange(-1, n - 1)
    middle = (n - 1) // 2
    for count in range(n, 0, -1):
        even = count % 2 == 0
        found[count - 1] = (ordered[middle] + ordered[above[middle]]) / 2 if even else ordered[middle]
        out = ranks[count - 1]
        if even and out <= middle:
            middle = above[middle]
        elif not even and out >= middle:
            middle = below[middle]
        if below[out] >= 0:
            above[below[out]] = above[out]
        if above[out] < n:
            below[above[out]] = below[out]
    return found


def _above(values: pd.Series, level: pd.Series) -> np.ndarray:
    """Whether values lay above the level one bar before: 1, 0, or -1 where it is not known; int8 (n,)."""
    known = np.where(level.notna(), (values > level).to_numpy(dtype=np.int8), -1)
    return np.concatenate([[-1], known[:-1]]).astype(np.int8)
