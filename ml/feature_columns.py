"""Columns made of prices: returns, momentum, trend, volatility. What a feature is, and what it sees of candles.

Each function gives the features of one family; ``ml.features`` says which are wanted. All are without
units and of order one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np

from trading import indicators

# What weighs less than this in a recursive average is forgotten. A row is the same from any start up to 1e-9;
# this is less, since what is forgotten may be larger than what is there now: prices by some times, and moves,
# which Wilder's averages are made of, by hundreds of times.
FORGOTTEN: Final = 1e-10
FORGOTTEN_MOVES: Final = 1e-12
# features are of order one: what has no bound of its own and is above this is not a number to learn from
BEYOND: Final = 1e6

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Bars:
    """Columns of a candle frame as float64 arrays of shape (n,), and open times in milliseconds.

    ``step_ms`` is how long a bar lasts. ``made`` keeps what several features are made of.
    """

    open_ms: np.ndarray
    step_ms: int
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    _kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def made(self, make: Callable[..., T], *parameters: int) -> T:
        """``make(self, *parameters)``, made once."""
        key = (make, parameters)
        if key not in self._kept:
            self._kept[key] = make(self, *parameters)
        found: T = self._kept[key]
        return found


@dataclass(frozen=True)
class Feature:
    """One column: its name, how many earlier bars it may depend on, and how to compute it.

    ``lowest`` and ``highest`` are what its arithmetic can give at all (rounding aside), whatever the
    candles; ``expectations.features`` holds every matrix to them.
    """

    name: str
    look_back: int
    compute: Callable[[Bars], np.ndarray]
    lowest: float = -BEYOND
    highest: float = BEYOND


def ema_memory(period: int) -> int:
    """Bars until an EMA with smoothing 2 / (period + 1), seeded with a mean of ``period`` bars, forgot its seed."""
    return period + math.ceil(math.log(FORGOTTEN) / math.log(1 - 2 / (period + 1)))


def wilder_memory(period: int) -> int:
    """The same for Wilder's smoothing 1 / period of moves; one bar more, for the first of them."""
    return period + 1 + math.ceil(math.log(FORGOTTEN_MOVES) / math.log(1 - 1 / period))


# --- returns --------------------------------------------------------------------------------------


def returns(spans: Sequence[int]) -> list[Feature]:
    """``return_n``: log return over n bars."""
    return [Feature(f"return_{bars}", bars, _log_return(bars, 0)) for bars in spans]


def lagged_returns(lags: Sequence[int]) -> list[Feature]:
    """``lagged_return_k``: log return of the one bar that closed k bars ago."""
    return [Feature(f"lagged_return_{lag}", lag + 1, _log_return(1, lag)) for lag in lags]


def _log_return(span: int, lag: int) -> Callable[[Bars], np.ndarray]:
    def compute(bars: Bars) -> np.ndarray:
        log = bars.made(_log_close)
        return _after(log[span : len(log) - lag] - log[: len(log) - lag - span], span + lag)

    return compute


def _log_close(bars: Bars) -> np.ndarray:
    return np.asarray(np.log(bars.close))


def _one_bar_returns(bars: Bars) -> np.ndarray:
    return _after(np.diff(bars.made(_log_close)), 1)


def _after(values: np.ndarray, rows: int) -> np.ndarray:
    result = np.empty(len(values) + rows)
    result[:rows] = np.nan
    result[rows:] = values
    return result


# --- momentum -------------------------------------------------------------------------------------


def rsi(period: int) -> list[Feature]:
    """RSI from 0 to 1; 0.5 where the close did not move for twice the period.

    It is a quotient of two averages. While the price stands still both fade, for at most twice the
    period until the feature stops looking at them, so what came before is forgotten as much later.
    """

    def compute(bars: Bars) -> np.ndarray:
        span = 2 * period + 1
        still = indicators.highest(bars.close, span) == indicators.lowest(bars.close, span)
        return np.where(still, 0.5, indicators.rsi(bars.close, period) / 100)

    return [Feature("rsi", wilder_memory(period) + 2 * period, compute, 0, 1)]


def stochastic(parameters: tuple[int, int]) -> list[Feature]:
    """``stochastic_k``, from 0 to 1, over so many bars, and ``stochastic_d``, its average over so many."""
    period, smooth = parameters

    def both(bars: Bars) -> tuple[np.ndarray, np.ndarray]:
        return indicators.stochastic(bars.high, bars.low, bars.close, period, smooth)

    return [
        Feature("stochastic_k", period - 1, lambda bars: bars.made(both)[0] / 100, 0, 1),
        Feature("stochastic_d", period + smooth - 2, lambda bars: bars.made(both)[1] / 100, 0, 1),
    ]


def williams_r(period: int) -> list[Feature]:
    """Williams %R, from -1 to 0."""

    def compute(bars: Bars) -> np.ndarray:
        return indicators.williams_r(bars.high, bars.low, bars.close, period) / 100

    return [Feature("williams_r", period - 1, compute, -1, 0)]


def roc(period: int) -> list[Feature]:
    """Rate of change as a share of the earlier price."""
    return [Feature("roc", period, lambda bars: indicators.roc(bars.close, period) / 100, -1)]


def cci(period: int) -> list[Feature]:
    """CCI over 100, so that the usual band is from -1 to 1."""

    def compute(bars: Bars) -> np.ndarray:
        return indicators.cci(bars.high, bars.low, bars.close, period) / 100

    # the mean absolute deviation of n values is at least 2 / n of any one's deviation
    widest = period / 2 / 0.015 / 100
    return [Feature("cci", period - 1, compute, -widest, widest)]


def macd(parameters: tuple[int, int, int]) -> list[Feature]:
    """MACD line, signal line and histogram in percent of the slow EMA, so that they are of order one like the rest.

    Of the slow EMA and not of the close, which has no bound: after a crash to a hundredth the line is still
    made of the prices before.
    """
    fast, slow, smooth = parameters

    def all_three(bars: Bars) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return indicators.macd(bars.close, fast, slow, smooth)

    def column(at: int) -> Callable[[Bars], np.ndarray]:
        return lambda bars: bars.made(all_three)[at] / bars.made(hundredth)

    def hundredth(bars: Bars) -> np.ndarray:
        return indicators.ema(bars.close, slow) / 100

    look_back = ema_memory(slow) + ema_memory(smooth)
    # each close weighs at most (slow + 1) / (fast + 1) times as much in the fast EMA as in the slow one
    most = 100 * ((slow + 1) / (fast + 1) - 1)
    return [
        Feature("macd", look_back, column(0), -100, most),
        Feature("macd_signal", look_back, column(1)),
        Feature("macd_histogram", look_back, column(2)),
    ]


# --- trend ----------------------------------------------------------------------------------------


def ema(periods: Sequence[int]) -> list[Feature]:
    """``ema_n``: the close over its EMA, less one."""

    def column(period: int) -> Callable[[Bars], np.ndarray]:
        return lambda bars: bars.close / indicators.ema(bars.close, period) - 1

    # the close is itself 2 / (period + 1) of the EMA
    return [Feature(f"ema_{period}", ema_memory(period), column(period), -1, (period - 1) / 2) for period in periods]


def sma(periods: Sequence[int]) -> list[Feature]:
    """``sma_n``: the close over its mean of n bars, less one."""

    def column(period: int) -> Callable[[Bars], np.ndarray]:
        return lambda bars: bars.close * period / indicators.window_sum(bars.close, period) - 1

    return [Feature(f"sma_{period}", period - 1, column(period), -1, period - 1) for period in periods]


def adx(period: int) -> list[Feature]:
    """``direction``: (+DI - -DI) / (+DI + -DI), from -1 to 1; ``adx``: Wilder's average of its size, from 0 to 1.

    Both are 0 where nothing moved for twice the period. TA-Lib's ADX stops there instead, and goes on later
    from what was, however long ago; elsewhere they are equal. As for the RSI, standing still delays forgetting.
    """

    def direction(bars: Bars) -> np.ndarray:
        plus, minus = indicators.directional_movement(bars.high, bars.low, period)
        total = plus + minus
        none = (indicators.highest(bars.made(_true_range), 2 * period) == 0) | (total == 0)
        return np.where(none, 0.0, (plus - minus) / np.where(none, 1.0, total))

    def strength(bars: Bars) -> np.ndarray:
        return indicators.wilder(np.abs(bars.made(direction)), period)

    once = wilder_memory(period) + 2 * period
    return [
        # ADX smooths a smoothed series, so the start is forgotten later than once
        Feature("adx", once * 3 // 2, strength, 0, 1),
        Feature("direction", once, lambda bars: bars.made(direction), -1, 1),
    ]


# --- volatility -----------------------------------------------------------------------------------


def bollinger(period: int) -> list[Feature]:
    """``bollinger_position``: distance from the middle band in half band widths of two standard deviations, 0 where
    the price is flat; ``bollinger_width``: from band to band, over the middle.
    """

    def bands(bars: Bars) -> tuple[np.ndarray, np.ndarray]:
        return indicators.window_moments(bars.close, period)

    def position(bars: Bars) -> np.ndarray:
        mean, deviation = bars.made(bands)
        flat = deviation == 0
        return np.where(flat, 0.0, (bars.close - mean) / np.where(flat, 1.0, 2 * deviation))

    def width(bars: Bars) -> np.ndarray:
        mean, deviation = bars.made(bands)
        return np.asarray(4 * deviation / mean)

    # none of n values lies further from their mean than sqrt(n - 1) population deviations
    widest = math.sqrt(period)
    return [
        Feature("bollinger_position", period - 1, position, -widest / 2, widest / 2),
        Feature("bollinger_width", period - 1, width, 0, 4 * widest),
    ]


def atr(period: int) -> list[Feature]:
    """``atr``: ATR over the close; ``range_to_atr``: the bar's own true range over it, 0 where it has none."""

    def average(bars: Bars) -> np.ndarray:
        return indicators.atr(bars.high, bars.low, bars.close, period)

    def share(bars: Bars) -> np.ndarray:
        true_range = bars.made(_true_range)
        return true_range / np.where(true_range == 0, 1.0, bars.made(average))

    # the true range is itself 1 / period of the average
    return [
        Feature("atr", wilder_memory(period), lambda bars: bars.made(average) / bars.close, 0),
        Feature("range_to_atr", wilder_memory(period), share, 0, period),
    ]


def volatility(period: int) -> list[Feature]:
    """Standard deviation of the one-bar log returns, per bar."""
    return [Feature("volatility", period, lambda bars: bars.made(_deviation, period), 0)]


def short_over_long(spans: tuple[int, int]) -> list[Feature]:
    """``volatility_ratio`` and ``range_ratio``: volatility and mean true range, short over long; 1 where nothing moved.

    The means are plain ones: a long ATR would remember for a thousand bars.
    """
    short, long = spans

    def volatility_ratio(bars: Bars) -> np.ndarray:
        return _ratio(bars.made(_deviation, short), bars.made(_deviation, long))

    def range_ratio(bars: Bars) -> np.ndarray:
        sums = (indicators.window_sum(bars.made(_true_range), span) / span for span in spans)
        return _ratio(*sums)

    return [
        Feature("volatility_ratio", long, volatility_ratio, 0, math.sqrt(long / short)),
        Feature("range_ratio", long, range_ratio, 0, long / short),
    ]


def _deviation(bars: Bars, period: int) -> np.ndarray:
    return indicators.window_moments(bars.made(_one_bar_returns), period)[1]


def _true_range(bars: Bars) -> np.ndarray:
    return indicators.true_range(bars.high, bars.low, bars.close)


def _ratio(short: np.ndarray, long: np.ndarray) -> np.ndarray:
    none = long == 0
    return np.where(none, 1.0, short / np.where(none, 1.0, long))
