"""The figures of one account and of its trades, compiled; to be called from Python and from compiled sweeps.

Simple returns per bar, the first against the starting cash, 0 from the bar on at which nothing was left.
Deviations with ddof 1, skew and kurtosis with ddof 0, the kurtosis raw (3 for a normal distribution). Nothing
here is annual. NaN where a figure is not defined.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np

# of the growth per bar: what equity that grows evenly leaves as deviation is rounding
ROUNDING = 1e-14
BEST = 5
BLOCK = 1024  # bars that stay in the fastest cache between the steps


class Account(NamedTuple):
    """Of the returns per bar: mean, deviation, skew and raw kurtosis (0 and 3 without spread), and ``downside``, the
    root of the mean square of the negative ones over all bars. ``max_drawdown`` and ``mean_drawdown`` (of the
    deepest points of all drawdowns; NaN without one): negative fractions. ``drawdown_bars``: most bars in a row
    below a peak. ``mean_equity``: in money.
    """

    total_return: float
    mean: float
    deviation: float
    skew: float
    kurtosis: float
    downside: float
    max_drawdown: float
    mean_drawdown: float
    drawdown_bars: int
    mean_equity: float


class TradeFigures(NamedTuple):
    """Of the trades of an account; a return is the profit over the notional at the entry, both net of costs.

    ``win_rate``: share with a profit above 0. ``profit_factor``: profits over losses. ``payoff``: mean profit of
    winners over mean loss of losers. ``expectancy``: mean profit, in money. ``sqn``: root of the count times mean
    over deviation (ddof 1) of the profits (Tharp's System Quality Number). ``kelly``: ``W - (1 - W) / payoff``
    (Kelly 1956). ``best_five_share``: profit of the best five over that of all, where that is above 0; above 1
    where the rest lost. ``mean_bars``, ``longest_bars``: from entry to exit; a trade still open ends after the
    last bar.
    """

    trades: int
    win_rate: float
    profit_factor: float
    payoff: float
    expectancy: float
    sqn: float
    kelly: float
    mean_return: float
    best_return: float
    worst_return: float
    best_five_share: float
    mean_bars: float
    longest_bars: int


@numba.njit(cache=True, nogil=True, error_model="numpy")
def account(equity: np.ndarray, start_cash: float, returns: np.ndarray) -> Account:
    """The figures of one equity curve; one pass through memory.

    Args:
        equity: marked after each bar, float64 (n,), n > 0, not negative.
        start_cash: above 0.
        returns: float64 (n,), is given the returns per bar; an empty one where nobody wants them.
    """
    n = len(equity)
    last = equity[n - 1]
    # moments about the even growth per bar, which lies close to the mean: nothing cancels
    shift = math.expm1(math.log(last / start_cash) / n) if last > 0 else 0.0
    scratch = np.empty(BLOCK)
    first = second = third = fourth = below = worth = 0.0
    peak = trough = start_cash
    deepest = fallen = 0.0
    falls, longest, peaked = 0, 0, -1
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        part = equity[begin:end]
        gains = returns[begin:end] if len(returns) > 0 else scratch[: end - begin]
        _gains(part, equity[begin - 1] if begin > 0 else start_cash, gains)
        sums = _sums(part, gains, shift)
        first, second, third = first + sums[0], second + sums[1], third + sums[2]
        fourth, below, worth = fourth + sums[3], below + sums[4], worth + sums[5]
        if _all_below(part, peak):
            trough = min(trough, _least(part))
            continue
        for bar in range(begin, end):
            now = equity[bar]
            if now < peak:
                trough = min(trough, now)
                continue
            if bar - peaked > 1:
                depth = trough / peak - 1.0
                deepest, fallen, falls = min(deepest, depth), fallen + depth, falls + 1
                longest = max(longest, bar - peaked - 1)
            peak = trough = now
            peaked = bar
    if n - peaked > 1:
        depth = trough / peak - 1.0
        deepest, fallen, falls, longest = min(deepest, depth), fallen + depth, falls + 1, max(longest, n - peaked - 1)
    first, second, third, fourth = first / n, second / n, third / n, fourth / n
    mean, variance = shift + first, max(second - first * first, 0.0)
    deviation = math.sqrt(variance * n / (n - 1)) if n > 1 else 0.0
    skew, kurtosis = 0.0, 3.0
    if deviation > ROUNDING * (1.0 + abs(mean)):
        skew = (third - 3 * first * second + 2 * first**3) / variance**1.5
        kurtosis = (fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4) / variance**2
        # true of every distribution, but for rounding
        kurtosis = max(kurtosis, 1.0 + skew * skew)
    else:
        deviation = 0.0
    return Account(
        last / start_cash - 1.0, mean, deviation, skew, kurtosis, math.sqrt(below / n),
        deepest, fallen / falls if falls > 0 else math.nan, longest, worth / n,
    )  # fmt: skip


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _gains(equity: np.ndarray, before: float, gains: np.ndarray) -> None:
    gains[0] = equity[0] / before - 1.0 if before > 0 else 0.0
    for bar in range(1, len(equity)):
        gain = equity[bar] / equity[bar - 1] - 1.0
        gains[bar] = gain if equity[bar - 1] > 0 else 0.0


# in any order, so that the processor adds several bars at once; it does so with an index only
@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "nsz"})
def _sums(equity: np.ndarray, gains: np.ndarray, shift: float) -> tuple[float, float, float, float, float, float]:
    first = second = third = fourth = below = worth = 0.0
    for bar in range(len(gains)):
        gain = gains[bar]
        apart = gain - shift
        square = apart * apart
        first += apart
        second += square
        third += square * apart
        fourth += square * square
        below += min(gain, 0.0) ** 2
        worth += equity[bar]
    return first, second, third, fourth, below, worth


@numba.njit(cache=True, nogil=True)
def _all_below(values: np.ndarray, bound: float) -> bool:
    below = 0
    for each in range(len(values)):
        below += values[each] < bound
    return below == len(values)


# four at a time, as each comparison waits for the one before
@numba.njit(cache=True, nogil=True)
def _least(values: np.ndarray) -> float:
    one = two = three = four = values[0]
    even = len(values) // 4 * 4
    for each in range(0, even, 4):
        one, two = min(one, values[each]), min(two, values[each + 1])
        three, four = min(three, values[each + 2]), min(four, values[each + 3])
    for each in range(even, len(values)):
        one = min(one, values[each])
    return min(one, two, three, four)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def against(returns: np.ndarray, prices: np.ndarray) -> tuple[float, float, float]:
    """Mean return per bar from the second bar on, that of ``prices``, and the slope of the one on the other.

    Both float64 (n,), prices above 0. All NaN with fewer than three bars; the slope also where the prices do not
    spread.
    """
    n = len(returns)
    if n < 3:
        return math.nan, math.nan, math.nan
    shift = math.expm1(math.log(prices[n - 1] / prices[0]) / (n - 1))
    scratch = np.empty(BLOCK)
    own = other = product = square = 0.0
    for begin in range(1, n, BLOCK):
        end = min(begin + BLOCK, n)
        gains = scratch[: end - begin]
        _gains(prices[begin:end], prices[begin - 1], gains)
        sums = _products(returns[begin:end], gains, shift)
        own, other, product, square = own + sums[0], other + sums[1], product + sums[2], square + sums[3]
    own, other, product, square = own / (n - 1), other / (n - 1), product / (n - 1), square / (n - 1)
    mean, variance = shift + other, square - other * other
    slope = math.nan
    if variance > (ROUNDING * (1.0 + abs(mean))) ** 2:
        slope = (product - own * other) / variance
    return own, mean, slope


# in any order, as above
@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "nsz"})
def _products(returns: np.ndarray, gains: np.ndarray, shift: float) -> tuple[float, float, float, float]:
    own = other = product = square = 0.0
    for bar in range(len(gains)):
        apart = gains[bar] - shift
        own += returns[bar]
        other += apart
        product += returns[bar] * apart
        square += apart * apart
    return own, other, product, square


@numba.njit(cache=True, nogil=True, error_model="numpy")
def held_share(positions: np.ndarray) -> float:
    """Share of the bars with any position, from the positions after each bar, float64 (n, symbols)."""
    n, symbols = positions.shape
    held = 0
    if symbols == 1:
        alone = positions.ravel()
        for bar in range(n):
            held += alone[bar] != 0
        return held / n
    for bar in range(n):
        found = False
        for symbol in range(symbols):
            found |= positions[bar, symbol] != 0
        held += found
    return held / n


@numba.njit(cache=True, nogil=True, error_model="numpy")
def trade_figures(pnl: np.ndarray, notional: np.ndarray, bars: np.ndarray) -> TradeFigures:
    """The figures of t trades, which may be none.

    Args:
        pnl: net profit of each in money, float64 (t,).
        notional: size times price of its entry, float64 (t,), above 0.
        bars: from its entry to its exit, (t,).
    """
    count = len(pnl)
    winners = losers = longest = 0
    won = lost = total = gain = waited = 0.0
    best_return, worst_return = -math.inf, math.inf
    best = np.full(BEST, -math.inf)  # falling
    for trade in range(count):
        profit = pnl[trade]
        if profit > 0:
            winners, won = winners + 1, won + profit
        elif profit < 0:
            losers, lost = losers + 1, lost - profit
        total += profit
        each = profit / notional[trade]
        gain += each
        best_return, worst_return = max(best_return, each), min(worst_return, each)
        waited += bars[trade]
        longest = max(longest, int(bars[trade]))
        if profit > best[BEST - 1]:
            place = BEST - 1
            while place > 0 and best[place - 1] < profit:
                best[place] = best[place - 1]
                place -= 1
            best[place] = profit
    if count == 0:
        nan = math.nan
        return TradeFigures(0, nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, 0)
    mean, spread = total / count, 0.0
    for trade in range(count):
        spread += (pnl[trade] - mean) ** 2
    deviation = math.sqrt(spread / (count - 1)) if count > 1 else 0.0
    win_rate = winners / count
    payoff = won / winners / (lost / losers) if winners > 0 and losers > 0 else math.nan
    top = 0.0
    for place in range(min(BEST, count)):
        top += best[place]
    return TradeFigures(
        count,
        win_rate,
        won / lost if lost > 0 else math.nan,
        payoff,
        mean,
        math.sqrt(count) * mean / deviation if deviation > ROUNDING * abs(mean) else math.nan,
        win_rate - (1 - win_rate) / payoff,
        gain / count,
        best_return,
        worst_return,
        top / total if total > 0 else math.nan,
        waited / count,
        longest,
    )
