"""What the exchange itself changes after the fact: candles that are corrected, gaps that open, both put back.

Each gives markets anew and leaves those it was given as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deployments.sandbox.markets import Market, Markets, find
from trading.candles import COLUMNS
from trading.window import Timeframe


def corrected(markets: Markets, symbol: str, timeframe: Timeframe, rows: Sequence[Sequence[float | None]]) -> Markets:
    """Markets with other values in some candles.

    Args:
        rows: open time in ms, open, high, low, close, volume; None for what stays.

    Raises:
        ValueError: there is no such market or candle, or a row is not of that form.
    """
    market = _found(markets, symbol, timeframe)
    values = market.values.copy()
    for row in rows:
        if len(row) != 1 + len(COLUMNS):
            raise ValueError(f"give rows of open_time, {', '.join(COLUMNS)}; this one is {row!r}")
        at = np.flatnonzero(market.opens == row[0])
        if not len(at):
            raise ValueError(f"{symbol} {timeframe} has no candle that opens at {row[0]}")
        for column, value in enumerate(row[1:]):
            if value is not None:
                values[at, column] = float(value)
    return _with(markets, market, market.opens, values)


def cut(markets: Markets, symbol: str, timeframe: Timeframe, start: int, end: int) -> tuple[Markets, int]:
    """Markets without the candles that open in [start, end) ms, and how many those were.

    Raises:
        ValueError: there is no such market.
    """
    market = _found(markets, symbol, timeframe)
    stays = (market.opens < start) | (market.opens >= end)
    return _with(markets, market, market.opens[stays], market.values[stays]), int((~stays).sum())


def restored(markets: Markets) -> Markets:
    """Markets as they were before any change."""
    originals = {name: market.original or market for name, market in markets.items()}
    return {name: market for name, market in originals.items() if not market.derived}


def _found(markets: Markets, symbol: str, timeframe: Timeframe) -> Market:
    market = find(markets, symbol, timeframe)
    if market is None:
        raise ValueError(f"there is no market {symbol} {timeframe}")
    return market


def _with(markets: Markets, market: Market, opens: np.ndarray, values: np.ndarray) -> Markets:
    original = market.original or market
    # one that was derived is listed from now on, as it differs from what would be made of the finer one
    changed = replace(market, opens=opens, values=values, original=original, derived=False, coarser={})
    return {**markets, (market.symbol, market.timeframe): changed}
