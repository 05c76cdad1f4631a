"""What out-of-sample signals would have earned, through the backtest engine.

Positions: the signal of a bar, decided on its close and filled at the next open, is held for the horizon
of its label, or until the opposite signal; a signal of the same side starts the count again, and a
Neutral one neither opens nor closes (``trading.strategies.hold``, as in every other backtest). Labels that
overlap are thus one position, not several. What is held after the last signal is closed with its costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import pandas as pd

from trading import statistics
from trading.backtest import kernel
from trading.backtest.engine import BacktestResult, Costs, Execution, Rules, run
from trading.backtest.metrics import Accounted, bar_returns, drawdown, summarise
from trading.backtest.periods import part
from trading.candles import check, open_times_ms
from trading.errors import InvalidRequest
from trading.strategies import hold as held

_NEEDED: Final = ("symbol", "decided_at", "fold", "signal")


@dataclass(frozen=True)
class Figures:
    """Of one account after costs; None where a figure is not defined.

    ``total_return``: fraction of the start. ``sharpe`` and its standard error ``sharpe_error`` (Mertens 2002):
    annual, ddof 1, risk-free rate 0. ``max_drawdown``: a negative fraction. ``turnover``: notional traded per
    year over mean equity. ``cost_share``: fees and slippage as a share of the profit before them, None
    without such a profit; ``costs``: the same as a share of the starting money. ``exposure``: share of bars
    with a position. ``trades``, ``bars``: counts.
    """

    total_return: float
    sharpe: float | None
    sharpe_error: float | None
    max_drawdown: float
    turnover: float | None
    cost_share: float | None
    costs: float
    trades: int
    exposure: float
    bars: int

    def metrics(self) -> dict[str, float]:
        """The figures by name, of what is defined."""
        return {name: float(value) for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, eq=False)
class Economics:
    """Net results of the signals of all folds.

    ``returns``: simple net return per bar of all symbols in equal parts, float64, index ``open_time``
    (datetime64[ms, UTC]); ``by_symbol_returns`` those of each, on the same index. The parts are made equal
    again at every bar, which is free here; a symbol without a bar or a signal leaves its part in cash.
    ``pooled``: of ``returns``; its turnover and exposure are means over the symbols, its trades and costs
    are summed. ``by_fold``: the same within the span of each fold, a trade belonging to the fold it began in.
    """

    returns: pd.Series
    by_symbol_returns: pd.DataFrame
    pooled: Figures
    by_symbol: Mapping[str, Figures]
    by_fold: Mapping[int, Figures]

    def metrics(self) -> dict[str, float]:
        """The pooled figures by name, of what is defined."""
        return self.pooled.metrics()


def trade(
    unseen: pd.DataFrame, candles: Mapping[str, pd.DataFrame], costs: Costs, *, bars_per_year: float, hold: int
) -> Economics:
    """Trade the out-of-sample signals of ``ml.training.out_of_sample`` on the candles they were made of.

    Each symbol is traded from its first decision until the position of its last one is closed.

    Args:
        unseen: columns ``symbol``, ``decided_at`` (ms UTC, open of the bar decided on), ``fold``, ``signal``.
        candles: by symbol, for every symbol of ``unseen``; further ones are left alone.
        bars_per_year: of the timeframe (``trading.calendars.bars_per_year``).
        hold: bars that a signal is held for: the horizon of the label.

    Raises:
        InvalidRequest: no signals, several for one bar, a symbol or bar without candles, hold below one.
        CandleContractError: candles that break their contract.
    """
    missing = [name for name in _NEEDED if name not in unseen.columns]
    if missing or unseen.empty:
        raise InvalidRequest(f"there are {len(unseen)} out-of-sample rows to trade, and the columns {missing} lack")
    if unseen.duplicated(["symbol", "decided_at"]).any():
        raise InvalidRequest("a bar has several signals; trade the folds of one walk-forward, each bar tested once")
    if hold < 1 or not 0 < bars_per_year < math.inf:
        raise InvalidRequest(f"hold={hold} bars must be 1 or more and bars_per_year={bars_per_year} positive")
    absent = sorted(set(unseen["symbol"]) - set(candles))
    if absent:
        raise InvalidRequest(f"there are signals and no candles for {', '.join(absent)}")
    results = {
        str(symbol): _traded(str(symbol), rows, check(candles[str(symbol)]), costs, hold)
        for symbol, rows in unseen.groupby("symbol", sort=True)
    }
    returns = pd.DataFrame({symbol: _returns(result) for symbol, result in results.items()}).sort_index().fillna(0.0)
    pooled = returns.mean(axis=1).rename("return")
    return Economics(
        returns=pooled,
        by_symbol_returns=returns,
        pooled=_figures(pooled, list(results.values()), bars_per_year),
        by_symbol={symbol: _figures(_returns(one), [one], bars_per_year) for symbol, one in results.items()},
        by_fold={
            fold: _figures(
                pooled.iloc[slice(*_places(pooled.index, begin, end))], _within(results, begin, end), bars_per_year
            )
            for fold, begin, end in _spans(unseen)
        },
    )


def _traded(symbol: str, rows: pd.DataFrame, candles: pd.DataFrame, costs: Costs, hold: int) -> BacktestResult:
    opens, decided = open_times_ms(candles), rows["decided_at"].to_numpy(dtype=np.int64)
    at = np.searchsorted(opens, decided)
    if at.max() >= len(opens) or (opens[at] != decided).any():
        raise InvalidRequest(f"{symbol} has signals on bars that its candles lack; use the candles it was trained on")
    signals = np.zeros(len(candles), dtype=np.int8)
    signals[at] = rows["signal"]
    # decided on bar i, filled at the open of i + 1, given up at the open of i + 1 + hold
    span = slice(int(at.min()), int(at.max()) + hold + 2)
    rules = Rules(costs, execution=Execution(close_at_end=True))
    return run(candles[span], held(signals[span], hold), rules, strategy=symbol)


def _returns(result: BacktestResult) -> pd.Series:
    return pd.Series(bar_returns(result.equity.to_numpy(), result.start_cash), index=result.equity.index)


def _figures(returns: pd.Series, results: Sequence[Accounted], bars_per_year: float) -> Figures:
    """Of the net ``returns`` of an account that the ``results`` share in equal parts."""
    values = returns.to_numpy()
    growth = np.cumprod(1 + values)
    moments = statistics.moments(values) if len(values) > 1 else None
    sharpe = error = None
    if moments is not None and moments.deviation > 0:
        each = moments.mean / moments.deviation
        sharpe = statistics.annualised(each, bars_per_year)
        error = statistics.annualised(
            statistics.sharpe_error(each, moments.count, moments.skew, moments.kurtosis), bars_per_year
        )
    parts = [summarise(result, bars_per_year) for result in results]
    turnover = float(np.mean([float(part["turnover"]) for part in parts]))
    paid = math.fsum(float(part["costs"]) for part in parts)
    gross = math.fsum(float(result.trade_rows[:, kernel.T_PNL].sum()) for result in results) + paid
    return Figures(
        total_return=float(growth[-1] - 1),
        sharpe=sharpe,
        sharpe_error=error,
        max_drawdown=drawdown(growth, 1.0)[0],
        turnover=turnover if math.isfinite(turnover) else None,
        cost_share=paid / gross if gross > 0 else None,
        costs=paid / start if (start := math.fsum(result.start_cash for result in results)) > 0 else 0.0,
        trades=sum(int(part["trades"]) for part in parts),
        exposure=float(np.mean([float(part["exposure"]) for part in parts])),
        bars=len(values),
    )


def _spans(unseen: pd.DataFrame) -> list[tuple[int, int, int]]:
    """Fold, first decision, and first decision of the next fold, ms UTC, in order of time."""
    begins = unseen.groupby("fold")["decided_at"].min().sort_values()
    ends = [*begins.iloc[1:].tolist(), np.iinfo(np.int64).max]
    return list(zip(begins.index.tolist(), begins.tolist(), ends, strict=True))


def _places(index: pd.Index, begin: int, end: int) -> tuple[int, int]:
    first, last = np.searchsorted(pd.DatetimeIndex(index).as_unit("ms").asi8, [begin, end])
    return int(first), int(last)


def _within(results: Mapping[str, BacktestResult], begin: int, end: int) -> list[Accounted]:
    """The bars of each result in ``[begin, end)``, ms UTC, with the trades that began there."""
    found: list[Accounted] = []
    for result in results.values():
        first, last = _places(result.equity.index, begin, end)
        if first < last:
            found.append(part(result, first, last))
    return found
