"""Triple barrier: what becomes of a long and a short position that each carry a target, a stop and a deadline.

López de Prado, Advances in Financial Machine Learning (Wiley 2018), sections 3.2 to 3.5. Ours differs on
purpose: barriers are touched inside the bar (his look at closes only), fills are those of a backtest that
does not flatter itself, and both sides are followed, so that target and stop may differ in width.

Decided on the close of bar i, filled at its price, the open of bar i + 1, and given up at the open of bar
i + 1 + horizon at the latest. A bar that opens beyond a barrier fills at that open; a bar that reaches both
barriers is taken to have reached the stop first; else the fill is at the barrier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import pandas as pd


@dataclass(frozen=True, eq=False)
class Sides:
    """How both positions of every decision ended; arrays of shape (n - horizon - 1,), one row per decision.

    ``long_move`` and ``short_move``: float64, the price at the exit over the price at the entry, less one:
    the long position earned the one, the short position lost the other, both before costs. ``long_end`` and
    ``short_end``: int64, the bar at whose open the outcome was known. ``long_touch`` and ``short_touch``:
    int8, +1 for the upper barrier (target of the long, stop of the short), -1 for the lower, 0 for neither.
    """

    long_move: np.ndarray
    long_end: np.ndarray
    long_touch: np.ndarray
    short_move: np.ndarray
    short_end: np.ndarray
    short_touch: np.ndarray


def follow(
    opens: np.ndarray,
    highs: np.ndarray,
    lows: np.ndarray,
    target_width: np.ndarray,
    stop_width: np.ndarray,
    horizon: int,
) -> Sides:
    """Follow the long and the short position of every bar whose future is there.

    Args:
        opens, highs, lows: float64 (n,), prices > 0.
        target_width, stop_width: float64, at least (n - horizon - 1,), by bar decided on: how far target and
            stop lie from the price at the entry, as fractions of it, not negative.
        horizon: bars that a position is held at most, at least 1.
    """
    return Sides(
        *_exits(opens, highs, lows, target_width, stop_width, horizon, -1),
        *_exits(opens, highs, lows, stop_width, target_width, horizon, 1),
    )


def classify(sides: Sides, buy: float, sell: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label, forward return and end of every decision; all of shape (n,).

    The label is +1 where the long position reaches its target, -1 where the short one does, the side of
    the first where both do, and 0 where both do in the same bar. Where neither does, a position that is
    given up at the deadline labels its side if the move is above ``buy`` or below ``sell``; else 0.

    Args:
        buy, sell: fractions of the price, ``buy`` not negative and ``sell`` not positive.

    Returns:
        label (int8); the move of the labelled side's position, or of both in the mean where the label is 0
        (float64: nothing, where one bar reached both barriers and both were stopped); and the bar at whose
        open the label was known (int64).
    """
    long_won, short_won = sides.long_touch == 1, sides.short_touch == -1
    long_first = long_won & ~(short_won & (sides.short_end <= sides.long_end))
    short_first = short_won & ~(long_won & (sides.long_end <= sides.short_end))
    # a position that was stopped did not move its way, so that only the deadline is left
    neither = ~long_won & ~short_won
    up = long_first | (neither & (sides.long_move > buy))
    down = short_first | (neither & (sides.short_move < sell))
    move = np.where(up, sides.long_move, np.where(down, sides.short_move, (sides.long_move + sides.short_move) / 2))
    last = np.maximum(sides.long_end, sides.short_end)
    end = np.where(long_first, sides.long_end, np.where(short_first, sides.short_end, last))
    return up.astype(np.int8) - down.astype(np.int8), move, end


def volatility(closes: np.ndarray, span: int) -> np.ndarray:
    """Root of the exponentially weighted mean of squared log returns of one bar, float64 (n,).

    Weights fall by the factor 1 - 2 / (span + 1) a bar (his snippet 3.1), around a mean of zero, as no bar's
    mean can be told from it (RiskMetrics Technical Document, 1996). The value at a bar uses its close and
    earlier ones; near the start those that are there, and 0 at the first bar.
    """
    squares = np.full(len(closes), np.nan)
    squares[1:] = np.square(np.diff(np.log(closes)))
    return np.asarray(np.sqrt(np.nan_to_num(pd.Series(squares).ewm(span=span).mean().to_numpy())))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
def _exits(
    opens: np.ndarray,
    highs: np.ndarray,
    lows: np.ndarray,
    up: np.ndarray,
    down: np.ndarray,
    horizon: int,
    stop: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Move, end and touched barrier of one side's positions; ``stop`` is +1 where the upper barrier is its stop."""
    known = max(len(opens) - horizon - 1, 0)
    move, end, touch = np.empty(known), np.empty(known, np.int64), np.zeros(known, np.int8)
    for at in range(known):
        entry = opens[at + 1]
        above, below = entry * (1 + up[at]), entry * (1 - down[at])
        end[at] = at + 1 + horizon
        move[at] = opens[at + 1 + horizon] / entry - 1
        for bar in range(at + 1, at + 1 + horizon):
            if highs[bar] < above and lows[bar] > below:
                continue
            opened = opens[bar]
            beyond = opened >= above or opened <= below
            reaches_up = opened >= above if beyond else highs[bar] >= above
            reaches_down = opened <= below if beyond else lows[bar] <= below
            touch[at] = stop if reaches_up and reaches_down else (1 if reaches_up else -1)
            end[at] = bar + 1
            if beyond:
                move[at] = opened / entry - 1
            else:
                move[at] = up[at] if touch[at] == 1 else -down[at]
            break
    return move, end, touch
