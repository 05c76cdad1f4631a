"""Columns made of volume, of earlier highs and lows, of the shape of a bar, and of the calendar."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from ml.feature_columns import Bars, Feature
from trading import indicators

_MINUTE_MS = 60_000
_DAY = 1440  # minutes
_WEEK = 7 * _DAY


# --- volume ---------------------------------------------------------------------------------------


def obv(period: int) -> list[Feature]:
    """``obv``: volume of the last bars, each with the sign of its change of close, over their whole volume.

    On-balance volume itself is counted from wherever the series starts; this is its change over ``period``
    bars, from -1 to 1; 0 where nothing was traded.
    """

    def compute(bars: Bars) -> np.ndarray:
        signed = np.empty_like(bars.volume)
        signed[0] = np.nan
        np.multiply(np.sign(np.diff(bars.close)), bars.volume[1:], out=signed[1:])
        return _per_volume(bars, signed, period)

    return [Feature("obv", period, compute, -1, 1)]


def vwap(period: int) -> list[Feature]:
    """``vwap``: the close over the volume-weighted average price, less one; 0 where nothing was traded."""

    def compute(bars: Bars) -> np.ndarray:
        average = indicators.vwap(bars.high, bars.low, bars.close, bars.volume, period)
        return np.asarray(bars.close / average - 1)

    return [Feature("vwap", period - 1, compute, -1)]


def volume_ratio(period: int) -> list[Feature]:
    """Volume over its mean, as log(1 + ratio); a ratio of one where nothing at all was traded."""

    def compute(bars: Bars) -> np.ndarray:
        total = bars.made(_traded, period)
        silent = total == 0
        return np.asarray(np.log1p(np.where(silent, 1.0, bars.volume * period / np.where(silent, 1.0, total))))

    return [Feature("volume_ratio", period - 1, compute, 0, math.log1p(period))]


def volume_roc(period: int) -> list[Feature]:
    """Change of volume over ``period`` bars as a share of both volumes together, from -1 to 1.

    The rate of change r itself has no bound; this is r / (r + 2). 0 where neither bar was traded.
    """

    def compute(bars: Bars) -> np.ndarray:
        now, then = bars.volume[period:], bars.volume[:-period]
        both = now + then
        result = np.full(len(bars.volume), np.nan)
        result[period:] = (now - then) / np.where(both == 0, 1.0, both)
        return result

    return [Feature("volume_roc", period, compute, -1, 1)]


def volume_price_trend(period: int) -> list[Feature]:
    """One-bar returns of the last bars weighted with their volume; 0 where nothing was traded.

    The change over ``period`` bars of the volume-price trend, over the volume of those bars.
    """

    def compute(bars: Bars) -> np.ndarray:
        moved = np.empty_like(bars.volume)
        moved[0] = np.nan
        np.multiply(bars.close[1:] / bars.close[:-1] - 1, bars.volume[1:], out=moved[1:])
        return _per_volume(bars, moved, period)

    return [Feature("volume_price_trend", period, compute, -1)]


def _traded(bars: Bars, period: int) -> np.ndarray:
    return indicators.window_sum(bars.volume, period)


def _per_volume(bars: Bars, values: np.ndarray, period: int) -> np.ndarray:
    total = bars.made(_traded, period)
    return indicators.window_sum(values, period) / np.where(total == 0, 1.0, total)


# --- patterns -------------------------------------------------------------------------------------


def levels(period: int) -> list[Feature]:
    """``support`` and ``resistance``: the close over the lowest low and the highest high of so many bars before it,
    less one; ``breakout``: 1 where the close is above that range, -1 below, else 0.
    """

    def support(bars: Bars) -> np.ndarray:
        return np.asarray(bars.close / _before(indicators.lowest(bars.low, period)) - 1)

    def resistance(bars: Bars) -> np.ndarray:
        return np.asarray(bars.close / _before(indicators.highest(bars.high, period)) - 1)

    def breakout(bars: Bars) -> np.ndarray:
        above, below = bars.made(resistance) > 0, bars.made(support) < 0
        return np.subtract(above, below, dtype=np.float64)

    return [
        Feature("support", period, lambda bars: bars.made(support), -1),
        Feature("resistance", period, lambda bars: bars.made(resistance), -1),
        Feature("breakout", period, breakout, -1, 1),
    ]


def _before(values: np.ndarray) -> np.ndarray:
    result = np.empty_like(values)
    result[0] = np.nan
    result[1:] = values[:-1]
    return result


def doji(share: float) -> list[Feature]:
    """1 where open and close lie no further apart than ``share`` of the bar's range, else 0.

    Nison (1991, Japanese Candlestick Charting Techniques). TA-Lib compares with the ranges of ten bars
    before; this looks at one bar only.
    """

    def compute(bars: Bars) -> np.ndarray:
        return np.asarray(np.abs(bars.close - bars.open) <= share * (bars.high - bars.low), dtype=np.float64)

    return [Feature("doji", 0, compute, 0, 1)]


def hammer(bodies: float) -> list[Feature]:
    """1 for a hammer, -1 for one upside down (a shooting star), else 0.

    The long shadow is at least ``bodies`` times the body and half of the bar's range, the other one at
    most a tenth of it (after Nison 1991; TA-Lib compares with bars before, this looks at one bar only).
    """

    def compute(bars: Bars) -> np.ndarray:
        top, bottom = np.maximum(bars.open, bars.close), np.minimum(bars.open, bars.close)
        above, below, whole = bars.high - top, bottom - bars.low, bars.high - bars.low
        least, most = np.maximum(bodies * (top - bottom), whole / 2), whole / 10
        upright = (below >= least) & (above <= most)
        upturned = (above >= least) & (below <= most)
        return np.asarray(np.subtract(upright, upturned, dtype=np.float64))

    return [Feature("hammer", 0, compute, -1, 1)]


# --- calendar -------------------------------------------------------------------------------------


def calendar(cycles: Sequence[str]) -> list[Feature]:
    """Sine and cosine of where the bar opened in the UTC day (``hour``), in the week from Sunday (``weekday``), to
    the minute, and of the month of the year from January (``month``).
    """
    return [
        Feature(f"{cycle}_{name}", 0, _wave(CYCLES[cycle], at), -1, 1)
        for cycle in cycles
        for at, name in enumerate(("sin", "cos"))
    ]


def _minute_of_day(bars: Bars) -> tuple[np.ndarray, int]:
    return bars.open_ms // _MINUTE_MS % _DAY, _DAY


def _minute_of_week(bars: Bars) -> tuple[np.ndarray, int]:
    # 1970-01-01 was a Thursday: three days later is a Sunday
    return (bars.open_ms // _MINUTE_MS - 3 * _DAY) % _WEEK, _WEEK


def _month_of_year(bars: Bars) -> tuple[np.ndarray, int]:
    # months since 1970; bars of one day are of one month
    days = bars.open_ms // (_DAY * _MINUTE_MS)
    if not len(days):
        return days, 12
    first = days.min()
    months = np.arange(first, days.max() + 1).astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    return months[days - first] % 12, 12


CYCLES = {"hour": _minute_of_day, "weekday": _minute_of_week, "month": _month_of_year}


def _wave(cycle: Callable[[Bars], tuple[np.ndarray, int]], which: int) -> Callable[[Bars], np.ndarray]:
    def compute(bars: Bars) -> np.ndarray:
        at, length = bars.made(cycle)
        return np.take(_circle(length)[which], at)

    return compute


@lru_cache(maxsize=4)
def _circle(length: int) -> tuple[np.ndarray, np.ndarray]:
    angle = 2 * np.pi * np.arange(length) / length
    return np.sin(angle), np.cos(angle)
