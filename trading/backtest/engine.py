"""The backtest engine: checked input, the compiled kernel, results one can read.

The rules, and what happens in which order within a bar, stand in ``trading.backtest.rules``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import pandas as pd

from trading.backtest import inputs
from trading.backtest import kernel as books
from trading.backtest.rules import Costs, Decisions, Execution, FeeTier, Limits, Protection, Rules, Sizing

__all__ = [
    "BacktestResult", "Costs", "Decisions", "Execution", "FeeTier", "Limits", "Protection", "Rules", "Sizing", "run",
    "run_portfolio",
]  # fmt: skip

REASONS: Final = (
    "target", "limit", "stop entry", "increased", "reduced", "target flat", "target reversed", "stop loss",
    "take profit", "trailing stop", "time stop", "liquidation", "ruin", "end of data", "open",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class BacktestResult:
    """What one strategy did; money in the quote currency.

    Attributes:
        symbols: traded, in the order of the columns of ``positions``.
        equity, cash: one value per bar after its close, indexed by open time.
        positions: units held after each bar, float64 (n, symbols).
        trade_rows, fill_rows: what ``trades`` and ``fills`` are made of, columns as in ``trading.backtest.books``.
        written_off: what the account owed when it was ruined; the broker bears it.
    """

    strategy: str
    symbols: tuple[str, ...]
    equity: pd.Series
    cash: pd.Series
    positions: np.ndarray
    trade_rows: np.ndarray
    fill_rows: np.ndarray
    written_off: float
    rules: Rules

    @property
    def start_cash(self) -> float:
        """What the account began with."""
        return self.rules.cash

    @property
    def total_return(self) -> float:
        """Final equity over starting cash, less one."""
        return float(self.equity.to_numpy()[-1] / self.start_cash - 1)

    @property
    def position(self) -> pd.Series:
        """Units held after each bar, of a result of one symbol."""
        return pd.Series(self.positions[:, 0], index=self.equity.index, name="position")

    @cached_property
    def costs(self) -> dict[str, float]:
        """What was paid, by kind: fees, slippage, funding (negative: received), borrow."""
        columns = {
            "fees": books.T_FEES, "slippage": books.T_SLIPPAGE, "funding": books.T_FUNDING, "borrow": books.T_BORROW,
        }  # fmt: skip
        return {name: float(self.trade_rows[:, column].sum()) for name, column in columns.items()}

    @cached_property
    def trades(self) -> pd.DataFrame:
        """One row per round trip from flat to flat, in the order of their entries.

        Columns: symbol, side, entry_bar, exit_bar (n while open), entry_time, exit_time (NaT while open), size
        (units entered in all), entry_price and exit_price (means over the fills), fees, slippage, funding,
        borrow, pnl (after all costs; an open trade's at the last close), entry_reason, exit_reason.
        """
        rows, times = self.trade_rows, self.equity.index
        still_open = rows[:, books.T_EXIT_REASON] == books.STILL_OPEN
        ends = rows[:, books.T_EXIT_BAR].astype(np.int64)
        return pd.DataFrame(
            {
                "symbol": np.array(self.symbols, dtype=object)[rows[:, books.T_SYMBOL].astype(np.int64)],
                "side": rows[:, books.T_SIDE].astype(np.int8),
                "entry_bar": rows[:, books.T_ENTRY_BAR].astype(np.int64),
                "exit_bar": ends,
                "entry_time": times[rows[:, books.T_ENTRY_BAR].astype(np.int64)],
                "exit_time": pd.Series(times[np.minimum(ends, len(times) - 1)]).mask(still_open),
                "size": rows[:, books.T_SIZE],
                "entry_price": rows[:, books.T_ENTRY_PRICE],
                "exit_price": rows[:, books.T_EXIT_PRICE],
                "fees": rows[:, books.T_FEES],
                "slippage": rows[:, books.T_SLIPPAGE],
                "funding": rows[:, books.T_FUNDING],
                "borrow": rows[:, books.T_BORROW],
                "pnl": rows[:, books.T_PNL],
                "entry_reason": _reasons(rows[:, books.T_ENTRY_REASON]),
                "exit_reason": _reasons(rows[:, books.T_EXIT_REASON]),
            }
        )

    @cached_property
    def fills(self) -> pd.DataFrame:
        """Every fill in its order: bar, time (open of the bar), symbol, units (signed), price, reference (price
        before slippage), fee, slippage, reason, trade (row of ``trades``).
        """
        rows = self.fill_rows
        bars = rows[:, books.F_BAR].astype(np.int64)
        return pd.DataFrame(
            {
                "bar": bars,
                "time": self.equity.index[bars],
                "symbol": np.array(self.symbols, dtype=object)[rows[:, books.F_SYMBOL].astype(np.int64)],
                "units": rows[:, books.F_UNITS],
                "price": rows[:, books.F_PRICE],
                "reference": rows[:, books.F_REFERENCE],
                "fee": rows[:, books.F_FEE],
                "slippage": rows[:, books.F_SLIPPAGE],
                "reason": _reasons(rows[:, books.F_REASON]),
                "trade": rows[:, books.F_TRADE].astype(np.int64),
            }
        )


def run(
    candles: pd.DataFrame,
    decisions: np.ndarray | Decisions,
    rules: Rules | None = None,
    *,
    funding: np.ndarray | None = None,
    bars_per_year: float | None = None,
    strategy: str = "strategy",
) -> BacktestResult:
    """Trade one series: decided on the close, filled at the next open, accounted for at every bar.

    Args:
        decisions: targets, shape (n,), -1 to +1, or ``Decisions`` with prices.
        funding: rate per bar that a long pays at its open, shape (n,), 0 where none is due.
        bars_per_year: of the calendar, for borrow and volatility; None: of a market that never closes.
        strategy: its name, for messages and tables.

    Raises:
        CandleContractError: the candles break their contract.
        InvalidRequest: no candles, or decisions or funding that make no sense; names the strategy and the bar.
    """
    return run_portfolio(
        {"": candles},
        {"": decisions},
        rules,
        funding=None if funding is None else {"": funding},
        bars_per_year=bars_per_year,
        strategy=strategy,
    )


def run_portfolio(
    candles: Mapping[str, pd.DataFrame],
    decisions: Mapping[str, np.ndarray | Decisions],
    rules: Rules | None = None,
    *,
    funding: Mapping[str, np.ndarray] | None = None,
    bars_per_year: float | None = None,
    strategy: str = "portfolio",
) -> BacktestResult:
    """Trade several series out of one account, in the order of the symbols.

    The bars are those of all series together; a symbol without a candle at a bar is neither traded nor marked
    anew there. Arguments and errors as ``run``, by symbol.
    """
    rules = rules or Rules()
    times = inputs.times_of(candles, strategy)
    per_year = bars_per_year or inputs.usual_bars_per_year(times)
    market = inputs.market_of(candles, times, rules, funding or {}, per_year, strategy)
    orders = inputs.orders_of(decisions, candles, times, rules, strategy)
    return simulated(market, orders, rules, per_year, times, tuple(candles), strategy)


def simulated(
    market: books.Market,
    orders: books.Orders,
    rules: Rules,
    bars_per_year: float,
    times: pd.DatetimeIndex,
    symbols: tuple[str, ...],
    strategy: str,
) -> BacktestResult:
    """The result of input that was checked before."""
    # one block, which the allocator keeps for the next backtest where it would give back three
    bars = len(times)
    block = np.empty((2 + len(symbols)) * bars)
    equity, cash, positions = block[:bars], block[bars : 2 * bars], block[2 * bars :].reshape(bars, len(symbols))
    terms = inputs.terms_of(rules, bars_per_year)
    trades, fills, written_off = books.simulate(market, orders, terms, equity, cash, positions)
    return BacktestResult(
        strategy=strategy,
        symbols=symbols,
        equity=pd.Series(equity, index=times, name="equity", copy=False),
        cash=pd.Series(cash, index=times, name="cash", copy=False),
        positions=positions,
        trade_rows=trades,
        fill_rows=fills,
        written_off=float(written_off),
        rules=rules,
    )


def _reasons(codes: np.ndarray) -> np.ndarray:
    return np.array(REASONS, dtype=object)[codes.astype(np.int64)]
