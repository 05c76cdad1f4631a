"""State machines of strategies: one compiled pass over the bars each, without the interpreter's lock.

Prices and indicators are float64 (n,), oldest first. A comparison with NaN is false, so nothing opens, and
nothing closes, while an indicator is not known. Positions come as int8 (n,), -1, 0 or +1.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def crossed(fast: np.ndarray, slow: np.ndarray, long_only: bool) -> np.ndarray:
    """The side of ``fast`` from its first change of sides on; where both are equal, the side before."""
    result = np.zeros(len(fast), dtype=np.int8)
    side, changed = 0, False
    for at in range(len(fast)):
        now = (fast[at] > slow[at]) - (fast[at] < slow[at])
        if now not in (0, side):
            changed = changed or side != 0
            side = now
        if changed and not (long_only and side < 0):
            result[at] = side
    return result


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def signs(values: np.ndarray) -> np.ndarray:
    """The sign of each value; 0 for NaN."""
    result = np.zeros(len(values), dtype=np.int8)
    for at in range(len(values)):
        result[at] = (values[at] > 0) - (values[at] < 0)
    return result


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def from_extremes(values: np.ndarray, low: float, high: float, middle: float) -> np.ndarray:
    """Short above ``high``, else long below ``low``; held until ``values`` are back across ``middle``."""
    result = np.zeros(len(values), dtype=np.int8)
    state, before = 0, np.nan
    for at in range(len(values)):
        value = values[at]
        if value > high:
            state = -1
        elif value < low:
            state = 1
        elif (before < middle <= value) or (before > middle >= value):
            state = 0
        result[at] = state
        before = value
    return result


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def between_bands(close: np.ndarray, upper: np.ndarray, middle: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Long below the lower band, short above the upper one, each held until the close reaches the middle."""
    result = np.zeros(len(close), dtype=np.int8)
    state = 0
    for at in range(len(close)):
        if close[at] < lower[at]:
            state = 1
        elif close[at] > upper[at]:
            state = -1
        elif (state > 0 and close[at] >= middle[at]) or (state < 0 and close[at] <= middle[at]):
            state = 0
        result[at] = state
    return result


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def confirmed(
    flow: np.ndarray, average: np.ndarray, volume: np.ndarray, usual: np.ndarray, ratio: float, period: int
) -> np.ndarray:
    """The side of ``flow`` against its average, taken where the volume is above ``ratio`` times the usual.

    Held until the flow is no longer on that side. Where it stood still for ``period`` bars it is on
    neither: a running average of equal values differs from them by its rounding.
    """
    result = np.zeros(len(flow), dtype=np.int8)
    state, still = 0, 1
    for at in range(len(flow)):
        still = still + 1 if at > 0 and flow[at] == flow[at - 1] else 1
        side = 0
        if still < period:
            if flow[at] > average[at]:
                side = 1
            elif flow[at] < average[at]:
                side = -1
        if side != state:
            state = side if volume[at] > ratio * usual[at] else 0
        result[at] = state
    return result


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def broken_out(
    close: np.ndarray,
    top: np.ndarray,
    bottom: np.ndarray,
    exit_top: np.ndarray,
    exit_bottom: np.ndarray,
    distance: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of channels, and stops ``distance`` from the close (float64, NaN while flat).

    The channels include the bar they stand at; each close is held against those of the bar before.
    """
    result = np.zeros(len(close), dtype=np.int8)
    stops = np.full(len(close), np.nan)
    state = 0
    for at in range(1, len(close)):
        price = close[at]
        if price > top[at - 1] and distance[at] > 0:
            state = 1
        elif price < bottom[at - 1] and distance[at] > 0:
            state = -1
        elif (state > 0 and price < exit_bottom[at - 1]) or (state < 0 and price > exit_top[at - 1]):
            state = 0
        result[at] = state
        stop = price - state * distance[at]
        # a stop at zero or below is none
        if state != 0 and stop > 0:
            stops[at] = stop
    return result, stops


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def kept(signals: np.ndarray, bars: int) -> np.ndarray:
    """Each signal for ``bars`` bars, or until the next one."""
    result = np.zeros(len(signals), dtype=np.int8)
    side, left = 0, 0
    for at in range(len(signals)):
        if signals[at] != 0:
            side, left = signals[at], bars
        if left > 0:
            result[at] = side
            left -= 1
    return result
