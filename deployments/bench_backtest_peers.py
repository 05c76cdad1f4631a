"""What the backtest is measured against: vectorbt, backtesting.py, and a bare loop as one would write it by hand.

All trade the same targets with a stop loss, a take profit, a fee and slippage, one unit at a time. The bare loop does
the arithmetic of ours to the last digit. The others decide the same and differ in what they can be told: vectorbt does
not look at stops in the bar of the entry, and slips at targets, too; backtesting.py counts stop and target from the
close of the decision and pays all slippage at the entry.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import pandas as pd

from trading.backtest.rules import Rules


def with_vectorbt(
    candles: pd.DataFrame, targets: np.ndarray, rules: Rules, *, zoned: bool = False, **options: Any
) -> Any:
    """A portfolio ``from_signals``, decided on the close, filled at the next open.

    Args:
        targets: (n,), or (n, columns) for as many portfolios.
        zoned: keep the time zone of the index. Without one it is a hundred times as fast: it turns each index with
            a zone into Python objects, time and again.
        options: more of ``from_signals``, or in place of what the rules say.
    """
    import vectorbt as vbt

    index = candles.index if zoned else pd.DatetimeIndex(candles.index).tz_localize(None)
    opens, highs, lows, closes = (candles[name].to_numpy() for name in ("open", "high", "low", "close"))
    if targets.ndim > 1:
        opens, highs, lows = opens[:, None], highs[:, None], lows[:, None]
    levels = np.zeros_like(targets)
    levels[1:] = targets[:-1]
    enters = np.diff(levels, axis=0, prepend=0) != 0
    return vbt.Portfolio.from_signals(
        pd.Series(closes, index=index), entries=(levels > 0) & enters, short_entries=(levels < 0) & enters,
        exits=levels == 0, short_exits=levels == 0, price=opens, open=opens, high=highs, low=lows,
        **(stops(rules) | {"size": rules.sizing.units} | options),
    )  # fmt: skip


def stops(rules: Rules) -> dict[str, Any]:
    """Costs, cash and protection for ``from_signals``."""
    return {
        "sl_stop": rules.protection.stop_loss, "tp_stop": rules.protection.take_profit,
        "stop_entry_price": "fillprice", "stop_exit_price": "stopmarket", "upon_opposite_entry": "reverse",
        "fees": rules.costs.fee_rate, "slippage": rules.costs.slippage_rate, "init_cash": rules.cash, "freq": "1h",
    }  # fmt: skip


def with_backtesting(candles: pd.DataFrame, targets: np.ndarray, rules: Rules) -> pd.Series:
    """The statistics of a run, entered whenever the target changes."""
    from backtesting import Backtest, Strategy

    stop, goal, units = rules.protection.stop_loss, rules.protection.take_profit, rules.sizing.units

    class Follow(Strategy):  # type: ignore[misc]
        def init(self) -> None:
            self.target, self.wanted = 0.0, self.I(lambda: targets, name="targets")

        def next(self) -> None:
            target = self.wanted[-1]
            if target == self.target:
                return
            self.target, close = target, self.data.Close[-1]
            if self.position:
                self.position.close()
            if target > 0:
                self.buy(size=units, sl=close * (1 - stop), tp=close * (1 + goal))
            elif target < 0:
                self.sell(size=units, sl=close * (1 + stop), tp=close * (1 - goal))

    table = candles.rename(columns=str.title).tz_localize(None)
    costs = rules.costs
    found: pd.Series = Backtest(
        table, Follow, cash=rules.cash, commission=costs.fee_rate, spread=2 * costs.slippage_rate, finalize_trades=True
    ).run()
    return found


def bare(candles: pd.DataFrame, targets: np.ndarray, rules: Rules) -> tuple[np.ndarray, tuple[float, ...]]:
    """Equity after each bar and trade counts (trades, winners, profits, losses) of the bare loop."""
    columns = [np.ascontiguousarray(candles[name]) for name in ("open", "high", "low", "close")]
    equity = np.empty(len(candles))
    costs, protection = rules.costs, rules.protection
    counts = bare_loop(
        *columns, targets, rules.cash, rules.sizing.units, costs.fee_rate, costs.slippage_rate, protection.stop_loss,
        protection.take_profit, equity,
    )  # fmt: skip
    return equity, counts


@numba.njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def bare_loop(  # noqa: PLR0912 - one loop, as by hand
    opens: np.ndarray,
    highs: np.ndarray,
    lows: np.ndarray,
    closes: np.ndarray,
    targets: np.ndarray,
    cash: float,
    units: float,
    fee: float,
    slip: float,
    stop: float,
    goal: float,
    equity: np.ndarray,
) -> tuple[float, float, float, float]:
    """Orders at the open, stop and target inside the bar, the account after it. No records, checks or limits."""
    side = blocked = entry = paid = level = target = won = lost = 0.0
    trades = winners = 0
    for bar in range(len(closes)):
        leaves, price = False, 0.0
        if bar > 0:
            want, opened = targets[bar - 1], opens[bar]
            if want != blocked:
                blocked = 0.0
            if side not in (0.0, want):
                price = opened * (1.0 - side * slip)
                cash += units * (side * price - fee * price)
                profit = units * (side * (price - entry) - fee * price) - paid
                if profit > 0.0:
                    winners, won = winners + 1, won + profit
                else:
                    lost -= profit
                side = 0.0
            if side == 0.0 and want != 0.0 and blocked == 0.0:
                side = want
                entry = opened * (1.0 + side * slip)
                paid = units * entry * fee
                cash -= units * side * entry + paid
                level, target = entry * (1.0 - side * stop), entry * (1.0 + side * goal)
                trades += 1
            if side > 0.0:
                if opened >= target:
                    leaves, price = True, opened
                elif lows[bar] <= level:
                    leaves, price = True, min(level, opened) * (1.0 - slip)
                elif highs[bar] >= target:
                    leaves, price = True, target
            elif side < 0.0:
                if opened <= target:
                    leaves, price = True, opened
                elif highs[bar] >= level:
                    leaves, price = True, max(level, opened) * (1.0 + slip)
                elif lows[bar] <= target:
                    leaves, price = True, target
        if leaves:
            cash += units * (side * price - fee * price)
            profit = units * (side * (price - entry) - fee * price) - paid
            if profit > 0.0:
                winners, won = winners + 1, won + profit
            else:
                lost -= profit
            blocked, side = side, 0.0
        equity[bar] = cash + side * units * closes[bar]
    return trades, winners, won, lost


@numba.njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def bare_figures(equity: np.ndarray, cash: float) -> tuple[float, float, float, float, float, float, float, int]:
    """Of an equity curve, in one pass: return, mean, deviation, skew, kurtosis, downside, drawdown and its bars."""
    before = peak = cash
    first = second = third = fourth = below = deepest = 0.0
    longest = fallen = 0
    n = len(equity)
    for bar in range(n):
        now = equity[bar]
        gain = now / before - 1.0
        square = gain * gain
        first += gain
        second += square
        third += square * gain
        fourth += square * square
        if gain < 0.0:
            below += square
        before = now
        if now >= peak:
            peak, fallen = now, 0
        else:
            fallen += 1
            longest = max(longest, fallen)
            deepest = min(deepest, now / peak - 1.0)
    mean, second, third, fourth = first / n, second / n, third / n, fourth / n
    variance = second - mean * mean
    skew = (third - 3 * mean * second + 2 * mean**3) / variance**1.5
    kurtosis = (fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4) / variance**2
    return before / cash - 1.0, mean, math.sqrt(variance), skew, kurtosis, math.sqrt(below / n), deepest, longest
