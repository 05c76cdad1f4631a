"""Strategies: small functions from candles to target positions.

A target is int8 per bar, -1 short, 0 flat, +1 long, decided on the close of that bar and wanted from the
next bar on. It depends on that bar and earlier ones only. A rule is flat while it has too little history.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import numpy as np
import pandas as pd

from trading import indicators
from trading.errors import InvalidRequest


class Strategy(Protocol):
    """Candles to targets, int8, shape (n,)."""

    def __call__(self, candles: pd.DataFrame) -> np.ndarray: ...


def sma_cross(candles: pd.DataFrame, fast: int = 20, slow: int = 50, *, long_only: bool = True) -> np.ndarray:
    """Long from the bar on which the fast average crosses above the slow one, until it crosses below.

    Then flat, or short unless ``long_only``. Flat before the first cross: an average that was above from
    the start has not crossed.
    """
    close = _column(candles, "close")
    above = _above(indicators.sma(close, fast), indicators.sma(close, slow))
    side = _since_first_change(above)
    return np.maximum(side, 0) if long_only else side


def rsi(candles: pd.DataFrame, period: int = 14, low: float = 30.0, high: float = 70.0) -> np.ndarray:
    """Against the crowd: long once the RSI is below ``low``, short once it is above ``high``, each held
    until the RSI is back across 50.
    """
    value = indicators.rsi(_column(candles, "close"), period)
    before = np.concatenate([[np.nan], value[:-1]])
    # events in the order of their weight: the extremes open a position, the middle closes any
    events = np.full(len(value), np.nan)
    events[((before < 50) & (value >= 50)) | ((before > 50) & (value <= 50))] = 0
    events[value < low] = 1
    events[value > high] = -1
    return _carried(events)


def macd(candles: pd.DataFrame, fast: int = 12, slow: int = 26, signal: int = 9) -> np.ndarray:
    """With the trend: long while the MACD line is above its signal line, short while it is below."""
    _, _, histogram = indicators.macd(_column(candles, "close"), fast, slow, signal)
    return np.asarray(np.sign(np.nan_to_num(histogram)), dtype=np.int8)


def buy_and_hold(candles: pd.DataFrame) -> np.ndarray:
    """Long from the first bar on."""
    return np.ones(len(candles), dtype=np.int8)


RULES: Final[Mapping[str, Strategy]] = {"rsi": rsi, "macd": macd, "sma_cross": sma_cross}


def rule(name: str) -> Strategy:
    """The rule of that name with its default parameters.

    Raises:
        InvalidRequest: there is none; lists those there are.
    """
    if name not in RULES:
        raise InvalidRequest(f"{name!r} is not a rule; use one of {', '.join(RULES)}")
    return RULES[name]


def explain(name: str, candles: pd.DataFrame) -> tuple[int, str]:
    """What a rule wants after the last bar, and why, with the numbers it looked at."""
    target = int(rule(name)(candles)[-1])
    close = _column(candles, "close")
    if name == "rsi":
        value = indicators.rsi(close)[-1]
        where = "below 30" if value < 30 else "above 70" if value > 70 else "between 30 and 70"
        held = {1: "; long since it was below 30", -1: "; short since it was above 70", 0: ""}[target]
        return target, f"RSI(14) is {value:.1f}, {where}{held if 30 <= value <= 70 else ''}"
    if name == "macd":
        line, signal, _ = (values[-1] for values in indicators.macd(close))
        return target, f"MACD(12, 26) {line:.4g} is {'above' if line > signal else 'not above'} its signal {signal:.4g}"
    fast, slow = indicators.sma(close, 20)[-1], indicators.sma(close, 50)[-1]
    return target, f"SMA(20) {fast:.6g} is {'above' if fast > slow else 'not above'} SMA(50) {slow:.6g}"


def hold(signals: np.ndarray, bars: int) -> np.ndarray:
    """Positions that keep each signal for ``bars`` bars, or until the opposite signal.

    Args:
        signals: int8 (n,), -1, 0 or +1 per bar. A signal of the same side starts the count again.
    """
    at = np.arange(len(signals))
    last = np.maximum.accumulate(np.where(signals != 0, at, -1))
    alive = (last >= 0) & (at - last < bars)
    return np.where(alive, signals[np.maximum(last, 0)], 0).astype(np.int8)


def _column(candles: pd.DataFrame, name: str) -> np.ndarray:
    return candles[name].to_numpy(dtype=np.float64)


def _above(fast: np.ndarray, slow: np.ndarray) -> np.ndarray:
    """+1 above, -1 below, the last of them where equal, 0 in the warm-up."""
    side = np.sign(fast - slow)
    return _carried(np.where(side == 0, np.nan, side))


def _since_first_change(side: np.ndarray) -> np.ndarray:
    known = np.flatnonzero(side)
    if not len(known):
        return side
    changed = np.flatnonzero(side != side[known[0]])
    changed = changed[changed > known[0]]
    kept = side.copy()
    kept[: changed[0] if len(changed) else len(side)] = 0
    return kept


def _carried(events: np.ndarray) -> np.ndarray:
    """The last event that is not NaN, as int8; 0 before the first."""
    at = np.maximum.accumulate(np.where(np.isnan(events), -1, np.arange(len(events))))
    return np.where(at >= 0, np.nan_to_num(events)[np.maximum(at, 0)], 0).astype(np.int8)
