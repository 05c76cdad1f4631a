"""Technical indicators over arrays: TA-Lib where it has them, ``ta`` where it does not.

Every function takes float64 arrays of one length n, oldest first, and returns arrays of shape (n,) in
which the value at a bar depends on that bar and earlier ones only; NaN while there are too few. All are
computed in compiled code; where the other library has the same indicator, a test holds both to 1e-9.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import talib


def sma(values: np.ndarray, period: int) -> np.ndarray:
    """Simple moving average of the last ``period`` values."""
    return np.asarray(talib.SMA(values, period))


def ema(values: np.ndarray, period: int) -> np.ndarray:
    """Exponential moving average, weight 2 / (period + 1), seeded with the first simple average."""
    return np.asarray(talib.EMA(values, period))


def rsi(close: np.ndarray, period: int = 14) -> np.ndarray:
    """Relative strength index, 0 to 100 (Wilder 1978, New Concepts in Technical Trading Systems)."""
    return np.asarray(talib.RSI(close, period))


def macd(
    close: np.ndarray, fast: int = 12, slow: int = 26, signal: int = 9
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MACD line, its signal line, and their difference, in the unit of the price."""
    line, smoothed, histogram = talib.MACD(close, fast, slow, signal)
    return np.asarray(line), np.asarray(smoothed), np.asarray(histogram)


def stochastic(
    high: np.ndarray, low: np.ndarray, close: np.ndarray, period: int = 14, smooth: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Fast stochastic %K (0 to 100) over ``period`` bars, and %D, its average over ``smooth`` bars."""
    k, d = talib.STOCHF(high, low, close, period, smooth, 0)
    return np.asarray(k), np.asarray(d)


def williams_r(high: np.ndarray, low: np.ndarray, close: np.ndarray, period: int = 14) -> np.ndarray:
    """Williams %R, -100 to 0."""
    return np.asarray(talib.WILLR(high, low, close, period))


def roc(close: np.ndarray, period: int = 10) -> np.ndarray:
    """Rate of change over ``period`` bars, in percent."""
    return np.asarray(talib.ROC(close, period))


def cci(high: np.ndarray, low: np.ndarray, close: np.ndarray, period: int = 20) -> np.ndarray:
    """Commodity channel index with Lambert's constant 0.015 (Commodities magazine, October 1980)."""
    return np.asarray(talib.CCI(high, low, close, period))


def adx(high: np.ndarray, low: np.ndarray, close: np.ndarray, period: int = 14) -> np.ndarray:
    """Average directional index, 0 to 100 (Wilder 1978)."""
    return np.asarray(talib.ADX(high, low, close, period))


def atr(high: np.ndarray, low: np.ndarray, close: np.ndarray, period: int = 14) -> np.ndarray:
    """Average true range in the unit of the price, Wilder's smoothing (Wilder 1978)."""
    return np.asarray(talib.ATR(high, low, close, period))


def bollinger(close: np.ndarray, period: int = 20, width: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Upper, middle and lower Bollinger band: SMA plus and minus ``width`` population deviations (ddof 0)."""
    upper, middle, lower = talib.BBANDS(close, period, width, width)
    return np.asarray(upper), np.asarray(middle), np.asarray(lower)


def obv(close: np.ndarray, volume: np.ndarray) -> np.ndarray:
    """On-balance volume in the unit of the volume, starting with the first bar's (Granville 1963)."""
    return np.asarray(talib.OBV(close, volume))


def vwap(high: np.ndarray, low: np.ndarray, close: np.ndarray, volume: np.ndarray, period: int = 14) -> np.ndarray:
    """Volume-weighted average of the typical price over ``period`` bars, from ``ta`` (TA-Lib has none)."""
    from ta.volume import VolumeWeightedAveragePrice

    series = (pd.Series(values) for values in (high, low, close, volume))
    return np.asarray(VolumeWeightedAveragePrice(*series, window=period).volume_weighted_average_price())
