"""Quantiles of many values, compiled; several times as fast as parting all of them."""

from __future__ import annotations

import math
from typing import Final

import numba
import numpy as np

SAMPLE: Final = 2048
AROUND: Final = 64  # ranks of the sample on either side: six deviations of independent values, so room for others
BLOCK: Final = 1024  # values that stay in the fastest cache between the steps

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@_compiled
def tails(values: np.ndarray, lower: float, upper: float) -> tuple[float, float]:
    """``quantile`` at ``lower`` and at ``upper``, out of one pass over all values where both lie far outside.

    Args:
        values: float64 (n,), n > 0, all finite.
        lower, upper: from 0 to 1.
    """
    n = len(values)
    if n > 2 * SAMPLE:
        sample = _sample(values)
        begin = sample[min(int(SAMPLE * lower) + AROUND, SAMPLE - 1)]
        end = sample[max(int(SAMPLE * upper) - AROUND, 0)]
        lows, highs = _outside(values, begin, end)
        low_place, high_place, before = (n - 1) * lower, (n - 1) * upper, n - len(highs)
        low, high = int(low_place), int(high_place)
        # else the sample misled, or too much lies outside
        if low + 1 < len(lows) and high >= before:
            return _ranked(lows, low, low_place - low), _ranked(highs, high - before, high_place - high)
    return quantile(values, lower), quantile(values, upper)


@_compiled
def quantile(values: np.ndarray, share: float) -> float:
    """The quantile at ``share``, exact, linear between neighbours as ``np.quantile`` has it.

    Args:
        values: float64 (n,), n > 0, all finite.
        share: from 0 to 1.
    """
    place = (len(values) - 1) * share
    return _ranked(values, int(place), place - int(place))


@_compiled
def _ranked(values: np.ndarray, rank: int, rest: float) -> float:
    """The value at ``rank``, and ``rest`` of the way to the next.

    A sorted sample says between which two of its values it must lie. One pass keeps what lies between and counts what
    is below; where the count says that the sample misled, or too much lies between, all values are parted.
    """
    n = len(values)
    if n <= 2 * SAMPLE:
        return _parted(values, rank, rest)
    sample, place = _sample(values), SAMPLE * rank // n
    begin, end = sample[max(place - AROUND, 0)], sample[min(place + AROUND, SAMPLE - 1)]
    room = n // 8
    kept = np.empty(room + BLOCK)
    count = below = equal = 0
    for first in range(0, n, BLOCK):
        part = values[first : first + BLOCK]
        found = _counts(part, begin)
        below, equal = below + found[0], equal + found[1]
        # many values are often the same, such as the returns of bars without a position
        if begin < end and count < room:
            count = _keep(part, begin, end, kept, count)
    if below <= rank and rank + 1 < below + equal:
        return begin
    if below <= rank and rank + 1 < below + count < below + room:
        return _parted(kept[:count], rank - below, rest)
    return _parted(values, rank, rest)


@_compiled
def _sample(values: np.ndarray) -> np.ndarray:
    """``SAMPLE`` of more values, evenly from all over, sorted."""
    step = len(values) // SAMPLE
    return np.sort(values[: SAMPLE * step : step])


@_compiled
def _outside(values: np.ndarray, begin: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """The values up to ``begin`` and those from ``end`` on; none where they are more than half of all."""
    # many values are often the same, such as the returns of bars without a position
    room = len(values) // 2 if begin < end else 0
    kept = np.empty(room + BLOCK)
    count = 0
    for first in range(0, len(values), BLOCK):
        if count >= room:
            return kept[:0], kept[:0]
        count = _keep_outside(values[first : first + BLOCK], begin, end, kept, count)
    lows, highs = np.empty(count + 1), np.empty(count + 1)
    low = _keep(kept[:count], -math.inf, begin, lows, 0)
    high = _keep(kept[:count], end, math.inf, highs, 0)
    return lows[:low], highs[:high]


@_compiled
def _counts(values: np.ndarray, least: float) -> tuple[int, int]:
    below = equal = 0
    for each in range(len(values)):
        below += values[each] < least
        equal += values[each] == least
    return below, equal


# without branches: which values are kept cannot be foreseen
@_compiled
def _keep(values: np.ndarray, begin: float, end: float, kept: np.ndarray, count: int) -> int:
    for each in range(len(values)):
        value = values[each]
        kept[count] = value
        count += (value >= begin) & (value <= end)
    return count


@_compiled
def _keep_outside(values: np.ndarray, begin: float, end: float, kept: np.ndarray, count: int) -> int:
    for each in range(len(values)):
        value = values[each]
        kept[count] = value
        count += (value <= begin) | (value >= end)
    return count


@_compiled
def _parted(values: np.ndarray, rank: int, rest: float) -> float:
    parted = np.partition(values, rank)
    lower = parted[rank]
    if rest == 0.0 or rank + 1 == len(values):
        return lower
    upper = np.min(parted[rank + 1 :])
    return lower + rest * (upper - lower)
