"""Technical rules: candles to target positions.

A target is int8 per bar, -1 short, 0 flat, +1 long, decided on the close of that bar and wanted from the
next bar on. It depends on that bar and earlier ones only. A rule is flat while it has too little history:
``..._bars`` says how many bars it needs before it can want anything. Parameters are not checked here but by
``trading.strategies.Rule``, which calls these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import pandas as pd

from trading import indicators, passes
from trading.backtest.rules import Decisions
from trading.positions import combine


def sma_cross(candles: pd.DataFrame, fast: int = 20, slow: int = 50, *, long_only: bool = True) -> np.ndarray:
    """Long from the bar on which the fast average crosses above the slow one, until it crosses below.

    Then flat, or short unless ``long_only``. Flat before the first cross: an average that was above from
    the start has not crossed.
    """
    close = column(candles, "close")
    return np.asarray(passes.crossed(indicators.sma(close, fast), indicators.sma(close, slow), long_only))


def sma_cross_bars(fast: int = 20, slow: int = 50, *, long_only: bool = True) -> int:
    """Two bars with both averages."""
    return max(fast, slow) + 1


def rsi(candles: pd.DataFrame, period: int = 14, low: float = 30.0, high: float = 70.0) -> np.ndarray:
    """Against the crowd: long once the RSI is below ``low``, short once it is above ``high``, each held
    until the RSI is back across 50.
    """
    return np.asarray(passes.from_extremes(indicators.rsi(column(candles, "close"), period), low, high, 50.0))


def rsi_bars(period: int = 14, low: float = 30.0, high: float = 70.0) -> int:
    """``period`` changes."""
    return period + 1


def macd(candles: pd.DataFrame, fast: int = 12, slow: int = 26, signal: int = 9) -> np.ndarray:
    """With the trend: long while the MACD line is above its signal line, short while it is below."""
    _, _, histogram = indicators.macd(column(candles, "close"), fast, slow, signal)
    return np.asarray(passes.signs(histogram))


def macd_bars(fast: int = 12, slow: int = 26, signal: int = 9) -> int:
    """``signal`` bars with the slower average."""
    return max(fast, slow) + signal - 1


def bollinger(candles: pd.DataFrame, period: int = 20, width: float = 2.0) -> np.ndarray:
    """Back to the mean: long from a close below the lower band, short from one above the upper band, each
    held until a close reaches the middle (Bollinger 2001, Bollinger on Bollinger Bands).
    """
    close = column(candles, "close")
    return np.asarray(passes.between_bands(close, *indicators.bollinger(close, period, width)))


def bollinger_bars(period: int = 20, width: float = 2.0) -> int:
    """One bar with bands."""
    return period


def volume(candles: pd.DataFrame, period: int = 20, ratio: float = 1.0) -> np.ndarray:
    """With a trend that volume confirms: long from a bar on which on-balance volume is above its average of
    ``period`` bars and the bar's volume above ``ratio`` times its own average; short mirrored. Each is held
    until on-balance volume is no longer on that side of its average (Granville 1963).
    """
    traded = column(candles, "volume")
    flow = indicators.obv(column(candles, "close"), traded)
    average, usual = indicators.sma(flow, period), indicators.sma(traded, period)
    return np.asarray(passes.confirmed(flow, average, traded, usual, ratio, period))


def volume_bars(period: int = 20, ratio: float = 1.0) -> int:
    """One bar with both averages."""
    return period


def breakout(candles: pd.DataFrame, entry: int = 20, exit: int = 10, atr: int = 14, stop: float = 2.0) -> Decisions:
    """Donchian's channel: long from a close above the highest high of the ``entry`` bars before it, until a
    close below the lowest low of the ``exit`` bars before; short mirrored (Faith 2007, Way of the Turtle).

    ``stop_price`` is ``stop`` average true ranges (over ``atr`` bars) from the close of each bar with a target:
    the level for an entry decided on that bar. NaN where that is not above zero.
    """
    high, low, close = (column(candles, name) for name in ("high", "low", "close"))
    targets, stops = passes.broken_out(
        close,
        indicators.highest(high, entry),
        indicators.lowest(low, entry),
        indicators.highest(high, exit),
        indicators.lowest(low, exit),
        stop * indicators.atr(high, low, close, atr),
    )
    return Decisions(targets, stop_price=stops)


def breakout_bars(entry: int = 20, exit: int = 10, atr: int = 14, stop: float = 2.0) -> int:
    """One bar after a whole channel, with a true range."""
    return max(entry, atr) + 1


def buy_and_hold(candles: pd.DataFrame) -> np.ndarray:
    """Long from the first bar on."""
    return np.ones(len(candles), dtype=np.int8)


def combination(
    candles: pd.DataFrame, trend: float = 1.0, reversion: float = 1.0, threshold: float = 0.5
) -> np.ndarray:
    """The vote of the other rules with their default parameters (``trading.positions.combine``).

    ``trend`` is the weight of each that goes with the price (moving averages, both sides; MACD; volume;
    breakout, without its stop), ``reversion`` of each that goes against it (RSI; Bollinger).
    """
    weights = voters(trend, reversion)
    result = combine(votes(candles, trend, reversion), weights, threshold)
    result[: combination_bars() - 1] = 0
    return result


def combination_bars(trend: float = 1.0, reversion: float = 1.0, threshold: float = 0.5) -> int:
    """Until the last of them can vote."""
    return max(sma_cross_bars(), macd_bars(), volume_bars(), breakout_bars(), rsi_bars(), bollinger_bars())


def voters(trend: float, reversion: float) -> dict[str, float]:
    """The rules that vote in ``combination``, with their weights; those of weight 0 do not."""
    weights = dict.fromkeys(("sma_cross", "macd", "volume", "breakout"), trend)
    weights |= dict.fromkeys(("rsi", "bollinger"), reversion)
    return {name: weight for name, weight in weights.items() if weight > 0}


def votes(candles: pd.DataFrame, trend: float, reversion: float) -> dict[str, np.ndarray]:
    """What each of the ``voters`` wants, (n,) by name."""
    return {name: _VOTE[name](candles) for name in voters(trend, reversion)}


def column(candles: pd.DataFrame, name: str) -> np.ndarray:
    """A column as float64 (n,), not a copy."""
    return candles[name].to_numpy(dtype=np.float64)


_VOTE: Final[Mapping[str, Callable[[pd.DataFrame], np.ndarray]]] = {
    "sma_cross": lambda candles: sma_cross(candles, long_only=False),
    "macd": macd,
    "volume": volume,
    "breakout": lambda candles: breakout(candles).targets,
    "rsi": rsi,
    "bollinger": bollinger,
}
