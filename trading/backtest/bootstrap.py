"""How far the figures of a backtest may lie from those of another sample of the same market: block bootstrap.

The stationary bootstrap (Politis and Romano 1994) draws blocks of random length, which keep what consecutive bars
have in common; their mean length is chosen by the data (Politis and White 2004, corrected by Patton, Politis and
White 2009). Both from arch. Intervals are percentiles of the resamples.

A long series is drawn in groups of neighbouring bars, so that at most ``MOST_GROUPS`` are drawn: blocks then
begin on the first bar of a group. No figure is coarser for it: sums, growth and drawdown of the bars within a group
are carried along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np

from trading.errors import InsufficientHistory, InvalidRequest
from trading.statistics import has_spread

MOST_GROUPS: Final = 5_000
LEAST_BARS: Final = 20

# columns of a group
_COUNT, _SUM, _SQUARES, _GROWTH, _LOWEST, _HIGHEST, _DEEPEST = range(7)
_WIDTH = 7


@dataclass(frozen=True)
class Intervals:
    """Lower and upper end of each figure at ``level``: total_return, sharpe (annual; NaN without spread),
    max_drawdown (negative fractions).

    ``block``: mean length of the blocks in bars. ``repeats``: number of resamples.
    """

    total_return: tuple[float, float]
    sharpe: tuple[float, float]
    max_drawdown: tuple[float, float]
    level: float
    block: float
    repeats: int


def intervals(
    returns: np.ndarray, bars_per_year: float, *, seed: int, repeats: int = 1000, level: float = 0.95
) -> Intervals:
    """Intervals of the figures of an account with these simple returns per bar, float64 (n,), -1 or more.

    The same seed gives the same intervals.

    Raises:
        InvalidRequest: returns that are not finite or below -1, no repeats, a level outside (0, 1).
        InsufficientHistory: fewer than 20 bars.
    """
    values = np.ascontiguousarray(returns, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < -1).any():
        raise InvalidRequest(f"returns of shape {values.shape} must be one row of finite numbers from -1 on")
    if repeats < 1 or not 0 < level < 1:
        raise InvalidRequest(f"repeats={repeats} must be one or more and level={level} between 0 and 1")
    if len(values) < LEAST_BARS:
        raise InsufficientHistory(f"{len(values)} bars are too few for a bootstrap; {LEAST_BARS} are needed")
    from arch.bootstrap import StationaryBootstrap

    together = math.ceil(len(values) / MOST_GROUPS)
    mean = float(values.mean())
    groups = _grouped(values, mean, together)
    spread = bool(has_spread(values[:, None])[0])
    block = _block_length(groups[:, _SUM]) if spread else 1.0
    resampling = StationaryBootstrap(block, np.arange(len(groups)), seed=seed)
    found = np.empty((repeats, 3))
    for repeat, drawn in enumerate(resampling.bootstrap(repeats)):
        found[repeat] = _resampled(groups, drawn[0][0], mean)
    found[:, 1] *= math.sqrt(bars_per_year) if spread else math.nan
    lower, upper = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0).tolist()
    total, ratio, depth = zip(lower, upper, strict=True)
    return Intervals(total, ratio, depth, level, block * together, repeats)


def _block_length(sums: np.ndarray) -> float:
    """Mean block length in groups: the longer of those that the returns and their sizes ask for."""
    from arch.bootstrap import optimal_block_length

    # a span without trades has no correlations
    with np.errstate(divide="ignore", invalid="ignore"):
        found = optimal_block_length(np.column_stack([sums, np.abs(sums)]))["stationary"].to_numpy()
    usual = len(sums) ** (1 / 3)
    return float(max(1.0, *np.where(np.isfinite(found), found, usual)))


@numba.njit(cache=True, nogil=True)
def _grouped(returns: np.ndarray, mean: float, together: int) -> np.ndarray:
    """What figures need of each group of bars, float64 (groups, ``_WIDTH``): count, sum and sum of squares of the
    returns less ``mean``, growth, and against the equity before it its lowest and highest, and its deepest fall.
    """
    n = len(returns)
    found = np.zeros((math.ceil(n / together), _WIDTH))
    for group in range(len(found)):
        growth = lowest = highest = 1.0
        deepest = 0.0
        for bar in range(group * together, min(n, (group + 1) * together)):
            apart = returns[bar] - mean
            found[group, _COUNT] += 1
            found[group, _SUM] += apart
            found[group, _SQUARES] += apart * apart
            growth *= 1 + returns[bar]
            lowest, highest = min(lowest, growth), max(highest, growth)
            deepest = min(deepest, growth / highest - 1)
        found[group, _GROWTH], found[group, _LOWEST] = growth, lowest
        found[group, _HIGHEST], found[group, _DEEPEST] = highest, deepest
    return found


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _resampled(groups: np.ndarray, drawn: np.ndarray, mean: float) -> tuple[float, float, float]:
    """Total return, Sharpe ratio per bar (0 without spread) and deepest fall of the groups ``drawn``, in that order."""
    count = total = squares = grown = deepest = 0.0
    part = 1.0  # of the highest equity so far
    for at in drawn:
        group = groups[at]
        count += group[_COUNT]
        total += group[_SUM]
        squares += group[_SQUARES]
        grown += math.log(group[_GROWTH])
        deepest = min(deepest, group[_DEEPEST], part * group[_LOWEST] - 1)
        part *= group[_GROWTH] / max(1.0, part * group[_HIGHEST])
    apart = total / count
    variance = max(squares / count - apart * apart, 0.0) * count / (count - 1)
    # what is left of a constant after subtraction is rounding
    ratio = (mean + apart) / math.sqrt(variance) if variance > 1e-14 * squares / count else 0.0
    return math.expm1(grown), ratio, deepest
