"""The backtest engine: checked input, the compiled kernel, results one can read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from trading.candles import check
from trading.errors import InvalidRequest

EXIT_REASONS: Final = ("target flat", "target reversed", "end of data", "ruin")


@dataclass(frozen=True)
class Costs:
    """Costs of each fill: the fee as a share of the notional, the slippage as a share of the price.

    Raises:
        InvalidRequest: outside [0, 1).
    """

    fee_rate: float = 0.001
    slippage_rate: float = 0.0005

    def __post_init__(self) -> None:
        for name, rate in (("fee rate", self.fee_rate), ("slippage rate", self.slippage_rate)):
            if not (math.isfinite(rate) and 0 <= rate < 1):
                raise InvalidRequest(f"{name} is {rate}; it is a share per side from 0 to below 1, 0.001 for 0.1 %")


@dataclass(frozen=True)
class Sizing:
    """How much an entry buys: fixed ``units`` of the base asset, else ``fraction`` of the cash at hand.

    ``lot``: sizes are whole multiples of it, rounded down (1 for whole shares; 0: any size).

    Raises:
        InvalidRequest: negative values, or a fraction outside (0, 1].
    """

    units: float = 0.0
    fraction: float = 1.0
    lot: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.units < math.inf and 0 < self.fraction <= 1 and 0 <= self.lot < math.inf):
            raise InvalidRequest(f"{self} makes no sense: units and lot are 0 or more, the fraction is in (0, 1]")


@dataclass(frozen=True, eq=False)
class BacktestResult:
    """What one strategy did on one series; money in the quote currency.

    Attributes:
        equity, cash, position: one value per bar after its close, indexed by open time.
        trades: one row per trade: entry_bar, exit_bar, entry_time, exit_time, side, size, entry_price,
            exit_price, fees, slippage, pnl (after fees; at the last close for the open one), exit_reason.
        costs: fees and slippage paid, by kind.
    """

    strategy: str
    equity: pd.Series
    cash: pd.Series
    position: pd.Series
    trades: pd.DataFrame
    costs: dict[str, float]
    start_cash: float

    @property
    def total_return(self) -> float:
        """Final equity over starting cash, less one."""
        return float(self.equity.iloc[-1] / self.start_cash - 1)


def run(
    candles: pd.DataFrame,
    targets: np.ndarray,
    costs: Costs | None = None,
    *,
    sizing: Sizing | None = None,
    cash: float = 10_000.0,
    close_at_end: bool = False,
    strategy: str = "strategy",
) -> BacktestResult:
    """Trade target positions over candles: decided on the close, filled at the next open.

    While the target stays, the position keeps its size. An entry that the cash does not cover is left
    out and tried again on the next bar. An account that reaches zero is closed and trades no more.

    Args:
        targets: -1, 0 or +1 per candle, shape (n,).
        close_at_end: close an open position at the last close; else it stays open, valued there.
        strategy: its name, for messages and tables.

    Raises:
        CandleContractError: the candles break their contract.
        InvalidRequest: no candles, or targets, cash, costs or sizing that make no sense; names the strategy
            and the bar.
    """
    check(candles)
    costs, sizing = costs or Costs(), sizing or Sizing()
    if candles.empty:
        raise InvalidRequest(f"{strategy}: there are no candles to trade")
    if not (math.isfinite(cash) and cash > 0):
        raise InvalidRequest(f"{strategy}: starting cash is {cash}; it must be above zero")
    wanted = _targets(targets, candles, strategy)

    from trading.backtest import kernel

    equity, cash_after, position, count, *trades = kernel.simulate(
        np.ascontiguousarray(candles["open"].to_numpy()),
        np.ascontiguousarray(candles["close"].to_numpy()),
        wanted,
        float(cash),
        float(costs.fee_rate),
        float(costs.slippage_rate),
        float(sizing.units),
        float(sizing.fraction),
        float(sizing.lot),
        bool(close_at_end),
    )
    table = _trades(candles, [values[:count] for values in trades], float(costs.fee_rate))
    index = candles.index
    return BacktestResult(
        strategy=strategy,
        equity=pd.Series(equity, index=index, name="equity"),
        cash=pd.Series(cash_after, index=index, name="cash"),
        position=pd.Series(position, index=index, name="position"),
        trades=table,
        costs={"fees": float(table["fees"].sum()), "slippage": float(table["slippage"].sum())},
        start_cash=float(cash),
    )


def _targets(targets: np.ndarray, candles: pd.DataFrame, strategy: str) -> np.ndarray:
    given = np.asarray(targets, dtype=np.float64)
    if given.shape != (len(candles),):
        raise InvalidRequest(f"{strategy} gave targets of shape {given.shape} for {len(candles)} candles")
    wrong = ~np.isin(given, (-1.0, 0.0, 1.0))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise InvalidRequest(f"{strategy} wants {given[at]} at {candles.index[at]}; a target is -1, 0 or +1")
    return np.ascontiguousarray(given.astype(np.int8))


def _trades(candles: pd.DataFrame, columns: list[np.ndarray], fee_rate: float) -> pd.DataFrame:
    names = ("entry_bar", "exit_bar", "side", "size", "entry_price", "exit_price", "fees", "slippage", "reason")
    table = pd.DataFrame(dict(zip(names, columns, strict=True)))
    times = candles.index
    still_open = table["exit_bar"].to_numpy() == len(candles)
    last_price = np.where(still_open, candles["close"].iloc[-1], table["exit_price"])
    table["pnl"] = table["side"] * table["size"] * (last_price - table["entry_price"]) - table["fees"]
    table["entry_time"] = times[table["entry_bar"].to_numpy()]
    table["exit_time"] = pd.Series(times[np.minimum(table["exit_bar"].to_numpy(), len(times) - 1)]).mask(still_open)
    table["exit_reason"] = [
        "open" if is_open else EXIT_REASONS[reason] for is_open, reason in zip(still_open, table["reason"], strict=True)
    ]
    table["exit_price"] = table["exit_price"].mask(still_open)
    return table.drop(columns="reason")
