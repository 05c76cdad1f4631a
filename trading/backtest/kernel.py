"""The backtest's inner loop: one pass over arrays, compiled, without the interpreter's lock.

Targets decided on the close of bar i are filled at the open of bar i + 1. All money is in the quote
currency, all sizes in units of the base asset.
"""

from __future__ import annotations

import math

import numba
import numpy as np

FILL, REVERSE, END, RUIN = 0, 1, 2, 3

Arrays = tuple[
    np.ndarray, np.ndarray, np.ndarray, int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray,
    np.ndarray, np.ndarray, np.ndarray,
]  # fmt: skip


@numba.njit(cache=True, nogil=True)
def simulate(  # noqa: PLR0915 - one loop, so that it compiles into one
    opens: np.ndarray,
    closes: np.ndarray,
    targets: np.ndarray,
    cash: float,
    fee_rate: float,
    slippage_rate: float,
    units: float,
    fraction: float,
    lot: float,
    close_at_end: bool,
) -> Arrays:
    """Trade ``targets`` and account for every bar.

    Args:
        opens, closes: float64 (n,), prices > 0.
        targets: int8 (n,), -1, 0, +1.
        fee_rate: fee of each fill as a share of its notional.
        slippage_rate: share of the open by which each fill is worse.
        units: size of every entry where > 0; else the size is bought for ``fraction`` of the cash.
        lot: sizes are whole multiples of it, rounded down; 0 leaves them as they are.
        close_at_end: sell what is held at the last close, with costs; else it stays, marked there.

    Returns:
        equity, cash, position after each bar, float64 (n,); the number of trades t; and of each trade, shape
        (n + 1,) of which the first t count: entry bar, exit bar (n while open), side, size, entry price, exit
        price, fees, slippage cost, reason of the exit (``FILL`` to flat, ``REVERSE``, ``END``, ``RUIN``).
    """
    n = len(opens)
    equity, cash_after, position_after = np.empty(n), np.empty(n), np.empty(n)
    entry_bar, exit_bar = np.zeros(n + 1, np.int64), np.full(n + 1, n, np.int64)
    side, reason = np.zeros(n + 1, np.int8), np.zeros(n + 1, np.int8)
    size, entry, exit_ = np.zeros(n + 1), np.zeros(n + 1), np.zeros(n + 1)
    fees, slipped = np.zeros(n + 1), np.zeros(n + 1)
    position, trades, ruined = 0.0, 0, False

    for bar in range(n):
        want = targets[bar - 1] if bar > 0 and not ruined else 0
        held = 1 if position > 0 else (-1 if position < 0 else 0)
        if want != held and bar > 0 and not ruined:
            if held != 0:
                price = opens[bar] * (1 - slippage_rate * held)
                at = trades - 1
                cost = abs(position) * price * fee_rate
                cash += position * price - cost
                fees[at] += cost
                slipped[at] += abs(position) * opens[bar] * slippage_rate
                exit_bar[at], exit_[at] = bar, price
                reason[at] = REVERSE if want != 0 else FILL
                position = 0.0
            if want != 0 and cash > 0:
                price = opens[bar] * (1 + slippage_rate * want)
                with_fee = price * (1 + fee_rate)
                bought = units if units > 0 else cash * fraction / with_fee
                if lot > 0:
                    # a hair above, so that 3.0 that came out as 2.9999999999 is 3
                    bought = math.floor(bought / lot * (1 + 1e-12)) * lot
                # what cannot be paid for (or, sold short, be covered) in full is not traded
                if bought > 0 and bought * with_fee <= cash * (1 + 1e-12):
                    cost = bought * price * fee_rate
                    position = bought * want
                    cash -= position * price + cost
                    entry_bar[trades], side[trades], size[trades], entry[trades] = bar, want, bought, price
                    fees[trades] = cost
                    slipped[trades] = bought * opens[bar] * slippage_rate
                    trades += 1
        worth = cash + position * closes[bar]
        last = close_at_end and bar == n - 1
        if position != 0 and (worth <= 0 or last):
            direction = 1 if position > 0 else -1
            price = closes[bar] * (1 - slippage_rate * direction)
            at = trades - 1
            cost = abs(position) * price * fee_rate
            cash += position * price - cost
            fees[at] += cost
            slipped[at] += abs(position) * closes[bar] * slippage_rate
            exit_bar[at], exit_[at] = bar, price
            reason[at] = RUIN if worth <= 0 else END
            position = 0.0
            worth = cash
        if worth <= 0:
            # the account is empty; the broker bears what is below zero, and trading ends
            ruined = True
            cash = 0.0
            worth = 0.0
        equity[bar], cash_after[bar], position_after[bar] = worth, cash, position
    return (
        equity, cash_after, position_after, trades,
        entry_bar, exit_bar, side, size, entry, exit_, fees, slipped, reason,
    )  # fmt: skip
