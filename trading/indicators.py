"""Technical indicators over arrays: TA-Lib where it has them, sums of ours where it does not.

Every function takes float64 arrays of one length n, oldest first, and returns arrays of shape (n,) in
which the value at a bar depends on that bar and earlier ones only; NaN while there are too few. All are
computed in compiled code; where ``ta`` has the same indicator, a test holds both to 1e-9.

TA-Lib keeps running sums, which carry the rounding of bars long gone: a price of 100 that fell to 1e-5
is still in them. What is summed over a window here (``window_sum``, ``window_moments``) is summed afresh
for each bar and always in the same order, so it is the same number wherever the series starts.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import talib

# TA-Lib takes what is below 1e-14 for zero, whatever the unit; a power of two changes no digit
_FINER: Final = 2.0**40
_ROUNDING: Final = 1e-12


def sma(values: np.ndarray, period: int) -> np.ndarray:
    """Simple moving average of the last ``period`` values."""
    return np.asarray(talib.SMA(values, period))


def ema(values: np.ndarray, period: int) -> np.ndarray:
    """Exponential moving average, weight 2 / (period + 1), seeded with the first simple average."""
    return np.asarray(talib.EMA(values, period))


def wilder(values: np.ndarray, period: int) -> np.ndarray:
    """Wilder's average, weight 1 / period: an EMA of 2 period - 1 bars."""
    return ema(values, 2 * period - 1)


def rsi(close: np.ndarray, period: int = 14) -> np.ndarray:
    """Relative strength index, 0 to 100 (Wilder 1978, New Concepts in Technical Trading Systems)."""
    return np.asarray(talib.RSI(close * _FINER, period))


def macd(
    close: np.ndarray, fast: int = 12, slow: int = 26, signal: int = 9
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MACD line, its signal line, and their difference, in the unit of the price."""
    line, smoothed, histogram = talib.MACD(close, fast, slow, signal)
    return np.asarray(line), np.asarray(smoothed), np.asarray(histogram)


def stochastic(
    high: np.ndarray, low: np.ndarray, close: np.ndarray, period: int = 14, smooth: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Fast stochastic %K (0 to 100) over ``period`` bars, and %D, its average over ``smooth`` bars.

    %K is 50 where the range is empty (TA-Lib's is 0 there).
    """
    k = 100 * range_position(highest(high, period), lowest(low, period), close)
    return k, window_sum(k, smooth) / smooth


def williams_r(high: np.ndarray, low: np.ndarray, close: np.ndarray, period: int = 14) -> np.ndarray:
    """Williams %R, -100 to 0; -50 where the range is empty (TA-Lib's is 0 there)."""
    return 100 * range_position(highest(high, period), lowest(low, period), close) - 100


def range_position(top: np.ndarray, bottom: np.ndarray, close: np.ndarray) -> np.ndarray:
    """Where the close is between ``bottom`` (0) and ``top`` (1); 0.5 where they are equal."""
    width = top - bottom
    empty = width == 0
    return np.where(empty, 0.5, (close - bottom) / np.where(empty, 1.0, width))


def roc(values: np.ndarray, period: int = 10) -> np.ndarray:
    """Rate of change over ``period`` bars, in percent."""
    return np.asarray(talib.ROC(values, period))


def cci(high: np.ndarray, low: np.ndarray, close: np.ndarray, period: int = 20) -> np.ndarray:
    """Commodity channel index with Lambert's constant 0.015 (Commodities magazine, October 1980).

    0 where the typical price stood still over the period: TA-Lib divides rounding by rounding there.
    """
    typical = typical_price(high, low, close)
    top = highest(typical, period)
    still = top - lowest(typical, period) <= _ROUNDING * top
    return np.where(still, 0.0, talib.CCI(high, low, close, period))


def adx(high: np.ndarray, low: np.ndarray, close: np.ndarray, period: int = 14) -> np.ndarray:
    """Average directional index, 0 to 100 (Wilder 1978); 0 where nothing moved from the start."""
    return np.asarray(talib.ADX(high * _FINER, low * _FINER, close * _FINER, period))


def directional_movement(high: np.ndarray, low: np.ndarray, period: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """Wilder's smoothed +DM and -DM in the unit of the price (Wilder 1978); over one true range +DI and -DI."""
    return np.asarray(talib.PLUS_DM(high, low, period)), np.asarray(talib.MINUS_DM(high, low, period))


def true_range(high: np.ndarray, low: np.ndarray, close: np.ndarray) -> np.ndarray:
    """The bar's range, from the close before where that lies outside, in the unit of the price (Wilder 1978)."""
    return np.asarray(talib.TRANGE(high, low, close))


def atr(high: np.ndarray, low: np.ndarray, close: np.ndarray, period: int = 14) -> np.ndarray:
    """Average true range in the unit of the price, Wilder's smoothing (Wilder 1978)."""
    return np.asarray(talib.ATR(high, low, close, period))


def bollinger(close: np.ndarray, period: int = 20, width: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Upper, middle and lower Bollinger band: mean plus and minus ``width`` population deviations (ddof 0)."""
    mean, deviation = window_moments(close, period)
    return mean + width * deviation, mean, mean - width * deviation


def obv(close: np.ndarray, volume: np.ndarray) -> np.ndarray:
    """On-balance volume in the unit of the volume, starting with the first bar's (Granville 1963)."""
    return np.asarray(talib.OBV(close, volume))


def typical_price(high: np.ndarray, low: np.ndarray, close: np.ndarray) -> np.ndarray:
    """Mean of high, low and close."""
    return np.asarray(talib.TYPPRICE(high, low, close))


def vwap(high: np.ndarray, low: np.ndarray, close: np.ndarray, volume: np.ndarray, period: int = 14) -> np.ndarray:
    """Volume-weighted average of the typical price over ``period`` bars; the close where nothing was traded."""
    total = window_sum(volume, period)
    silent = total == 0
    paid = window_sum(typical_price(high, low, close) * volume, period)
    return np.where(silent, close, paid / np.where(silent, 1.0, total))


def highest(values: np.ndarray, period: int) -> np.ndarray:
    """The largest of the last ``period`` values."""
    return np.asarray(talib.MAX(values, period))


def lowest(values: np.ndarray, period: int) -> np.ndarray:
    """The smallest of the last ``period`` values."""
    return np.asarray(talib.MIN(values, period))


def window_sum(values: np.ndarray, period: int) -> np.ndarray:
    """Sum of the last ``period`` values, each window summed afresh.

    Windows of 1, 2, 4, ... values are sums of two of half the length; those that the binary digits of
    ``period`` name are put together.
    """
    rows = len(values) - period + 1
    result = np.full(len(values), np.nan)
    if rows < 1:
        return result
    total = result[period - 1 :]
    total[:] = 0.0
    part, size, used = values, 1, 0
    while True:
        if period & size:
            total += part[used : used + rows]
            used += size
        if used == period:
            return result
        part = part[:-size] + part[size:]
        size *= 2


def window_moments(values: np.ndarray, period: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation of the last ``period`` values, each window computed afresh.

    Windows of half the length are merged as in Chan, Golub and LeVeque (1979, Updating formulae and a
    pairwise algorithm for computing sample variances), so equal values have a deviation of exactly 0.
    """
    result = np.full((2, len(values)), np.nan)
    rows = len(values) - period + 1
    # in pieces that stay in the processor's cache
    for start in range(0, max(rows, 0), _PIECE):
        piece = values[start : start + _PIECE + period - 1]
        result[:, start + period - 1 : start + len(piece)] = _moments(piece, period)
    return result[0], result[1]


_PIECE: Final = 1 << 14


def _moments(values: np.ndarray, period: int) -> tuple[np.ndarray, np.ndarray]:
    rows = len(values) - period + 1
    mean, squares, used = np.empty(0), np.empty(0), 0
    part_mean, part_squares, size = values, np.zeros(len(values)), 1
    while True:
        if period & size:
            more = part_mean[used : used + rows], part_squares[used : used + rows]
            mean, squares = _merged(mean, squares, used, *more, size) if used else more
            used += size
        if used == period:
            return mean, np.sqrt(squares / period)
        halves = part_mean[:-size], part_squares[:-size], size, part_mean[size:], part_squares[size:], size
        part_mean, part_squares = _merged(*halves)
        size *= 2


def _merged(
    mean: np.ndarray, squares: np.ndarray, count: int, other: np.ndarray, other_squares: np.ndarray, others: int
) -> tuple[np.ndarray, np.ndarray]:
    """Means and sums of squared deviations of neighbouring windows of ``count`` and ``others`` values, together."""
    apart = other - mean
    share = others / (count + others)
    total = squares + other_squares
    together = mean + apart * share
    apart *= apart
    apart *= share * count
    total += apart
    return together, total
