"""Columns made of coarser bars: several base bars each, counted from the epoch as ``trading.candles.resample`` does.

At the close of a base bar only coarse bars that are over by then are looked at. All of it is finite: m
coarse bars are made of at most m times the factor base bars, and at most factor - 1 more are not part of a
finished one yet.

Where a coarse bar has base bars with trades, those without (no volume and one flat price) are left out of
it, as exchanges do; where it has none, it is flat itself. Time without any base bar makes no coarse bar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ml.feature_columns import Bars, Feature
from trading import indicators


@dataclass(frozen=True)
class _Coarse:
    """Coarse bars, oldest first, and for each base bar the last of them that was over at its close (-1: none)."""

    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    last: np.ndarray


def coarse(factor: int, spans: Sequence[int], period: int) -> list[Feature]:
    """Features of the last finished bar of ``factor`` base bars.

    ``x4_return_n``: its log return over n coarse bars; ``x4_sma_p``: its close over the mean of the last
    ``period`` closes, less one; ``x4_position_p``: its close in their range, from 0 to 1.
    """

    def of_base_bars(compute: Callable[[_Coarse], np.ndarray]) -> Callable[[Bars], np.ndarray]:
        def column(bars: Bars) -> np.ndarray:
            bigger = bars.made(coarse_bars, factor)
            # one NaN more at the end, which is where -1 points
            return np.take(np.append(compute(bigger), np.nan), bigger.last)

        return column

    def log_return(span: int) -> Callable[[_Coarse], np.ndarray]:
        def compute(bigger: _Coarse) -> np.ndarray:
            result = np.full(len(bigger.close), np.nan)
            result[span:] = np.log(bigger.close[span:] / bigger.close[:-span])
            return result

        return compute

    def ratio(bigger: _Coarse) -> np.ndarray:
        return np.asarray(bigger.close * period / indicators.window_sum(bigger.close, period) - 1)

    def position(bigger: _Coarse) -> np.ndarray:
        top, bottom = indicators.highest(bigger.high, period), indicators.lowest(bigger.low, period)
        return indicators.range_position(top, bottom, bigger.close)

    def look_back(count: int) -> int:
        # the bars of ``count`` coarse ones and of the unfinished one, less the bar itself
        return count * factor + factor - 2

    name = f"x{factor}"
    return [
        *(Feature(f"{name}_return_{span}", look_back(span + 1), of_base_bars(log_return(span))) for span in spans),
        Feature(f"{name}_sma_{period}", look_back(period), of_base_bars(ratio), -1, period - 1),
        Feature(f"{name}_position_{period}", look_back(period), of_base_bars(position), 0, 1),
    ]


def coarse_bars(bars: Bars, factor: int) -> _Coarse:
    """The coarse bars of all base bars, the unfinished last one among them; ``bars`` has at least one."""
    length = factor * bars.step_ms
    slot = bars.open_ms // length
    starts = _starts(slot)
    sizes = np.diff(np.append(starts, len(slot)))
    over = (slot + 1) * length <= bars.open_ms + bars.step_ms
    last = np.repeat(np.arange(len(starts)), sizes) - ~over
    high, low, close = bars.high, bars.low, bars.close
    traded = (bars.volume > 0) | (high > low)
    if not traded.all():
        silent = ~np.logical_or.reduceat(traded, starts)
        kept = traded | np.repeat(silent, sizes)
        high, low, close, slot = high[kept], low[kept], close[kept], slot[kept]
        starts = _starts(slot)
    ends = np.append(starts[1:], len(slot)) - 1
    return _Coarse(np.maximum.reduceat(high, starts), np.minimum.reduceat(low, starts), close[ends], last)


def _starts(slot: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.concatenate([[True], slot[1:] != slot[:-1]]))
