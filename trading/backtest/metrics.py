"""Figures of a backtest, all after costs.

Conventions: simple returns per bar of the marked equity, the first against the starting cash; deviations
with ddof 1, skew and kurtosis with ddof 0, the kurtosis raw (3 for a normal distribution); means annualised by
bars per year, deviations and ratios by their root (bars per year follow from the calendar,
``trading.calendars.bars_per_year``); risk-free rate 0. Fractions, not percent; money in the quote currency.
NaN where a figure is not defined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import pandas as pd

from trading.backtest import account, kernel
from trading.backtest.quantiles import tails
from trading.errors import InvalidRequest
from trading.statistics import annualised, deflated_sharpe, has_spread, probabilistic_sharpe, sharpe_error

_NOT_KEPT: Final = np.empty(0)


class Accounted(Protocol):
    """What figures are made of: ``BacktestResult``, or a part of one (``trading.backtest.periods.Part``)."""

    @property
    def equity(self) -> pd.Series: ...
    @property
    def start_cash(self) -> float: ...
    @property
    def positions(self) -> np.ndarray: ...
    @property
    def trade_rows(self) -> np.ndarray: ...
    @property
    def fill_rows(self) -> np.ndarray: ...
    @property
    def costs(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Trials:
    """How many strategies or parameters were tried, and the variance of their annual Sharpe ratios."""

    count: int
    variance: float


def trials(sharpes: np.ndarray) -> Trials:
    """Of the annual Sharpe ratios of everything that was tried, the chosen one included; 0 where one is NaN.

    Raises:
        InvalidRequest: none at all.
    """
    if len(sharpes) == 0:
        raise InvalidRequest("no Sharpe ratios were given; the chosen strategy is a trial, too")
    known = np.nan_to_num(np.asarray(sharpes, dtype=np.float64), nan=0.0)
    return Trials(len(known), float(np.var(known, ddof=1)) if len(known) > 1 else 0.0)


def summarise(
    result: Accounted, bars_per_year: float, *, benchmark: np.ndarray | None = None, trials: Trials | None = None
) -> dict[str, float | int | str]:
    """The figures of one result by name.

    Of the returns: total_return, annual_return (compounded), volatility, skew, kurtosis, sharpe, sharpe_error
    (Mertens 2002), psr (probability that the true Sharpe ratio is above 0), deflated_sharpe (probability that it
    is above what the best of the trials shows by luck), sortino (deviation of the returns below zero, over all
    bars), calmar (annual_return over max_drawdown), max_drawdown (a negative fraction), drawdown_bars (most bars
    in a row below a peak), mean_drawdown (of the deepest points of all drawdowns), tail_ratio (size of the 95th
    percentile of the returns over that of the 5th), alpha (annual) and beta (regression of the returns on those
    of the benchmark, from the second bar on).

    Of the account: exposure (share of bars with a position), turnover (notional traded per year over mean
    equity), fees, slippage, funding and borrow, costs (their sum), cost_of_start (share of the starting cash),
    cost_share (of the profit before costs), final_equity, start and end (open times, ISO 8601).

    Of the trades, the open one included, each return over the notional of its entry: trades, win_rate,
    profit_factor, payoff (mean profit over mean loss), expectancy (mean profit, money), sqn, kelly, mean_trade,
    best_trade, worst_trade (returns), trade_tail_ratio, best_five_share (of the whole profit, from the best
    five), mean_trade_bars, longest_trade_bars.

    Args:
        benchmark: prices to compare with, float64 (n,): the closes for buy-and-hold. alpha and beta are NaN
            without it.
        trials: what was tried, of which this is the best. deflated_sharpe is NaN without it.

    Raises:
        InvalidRequest: benchmark prices of another length, or not all finite and above zero.
    """
    equity = result.equity.to_numpy()
    bars, start_cash = len(equity), result.start_cash
    years = bars / bars_per_year
    returns = np.empty(bars)
    curve = account.account(equity, start_cash, returns)
    annual = _annual_return(float(curve.total_return), years)
    depth = float(curve.max_drawdown)
    drift, market_drift, beta = (math.nan,) * 3
    if benchmark is not None:
        drift, market_drift, beta = account.against(returns, _prices(benchmark, bars))
    fills = result.fill_rows
    traded = float(np.abs(fills[:, kernel.F_UNITS] * fills[:, kernel.F_PRICE]).sum())
    return {
        "total_return": float(curve.total_return),
        "annual_return": annual,
        "volatility": float(curve.deviation) * math.sqrt(bars_per_year),
        "skew": float(curve.skew),
        "kurtosis": float(curve.kurtosis),
        **_sharpes(curve, bars, bars_per_year, trials),
        "sortino": annualised(_ratio(curve.mean, curve.downside), bars_per_year),
        "calmar": _ratio(annual, -depth),
        "max_drawdown": depth,
        "drawdown_bars": int(curve.drawdown_bars),
        "mean_drawdown": float(curve.mean_drawdown),
        "tail_ratio": tail_ratio(returns),
        "alpha": float(drift - beta * market_drift) * bars_per_year,
        "beta": float(beta),
        "exposure": float(account.held_share(result.positions)),
        "turnover": _ratio(traded, curve.mean_equity) / years,
        **_costs(result),
        **_trades(result.trade_rows),
        "final_equity": float(equity[-1]),
        "start": result.equity.index[0].isoformat(),
        "end": result.equity.index[-1].isoformat(),
    }


def bar_returns(equity: np.ndarray, start_cash: float) -> np.ndarray:
    """Simple returns per bar, shape (n,); 0 from the bar on at which nothing was left."""
    before = np.concatenate([[start_cash], equity[:-1]])
    return np.asarray(np.divide(equity, before, out=np.ones_like(equity), where=before > 0)) - 1


def sharpe(returns: np.ndarray, bars_per_year: float) -> float:
    """Mean over deviation (ddof 1) of the returns per bar, times the root of bars per year; NaN without spread."""
    if len(returns) < 2 or not has_spread(returns[:, None])[0]:
        return math.nan
    return float(np.mean(returns) / np.std(returns, ddof=1) * math.sqrt(bars_per_year))


def sortino(returns: np.ndarray, bars_per_year: float) -> float:
    """Mean over the root mean square of the negative returns (over all bars), annualised (Sortino 1994)."""
    below = math.sqrt(float(np.mean(np.minimum(returns, 0) ** 2))) if len(returns) else 0.0
    return float(np.mean(returns) / below * math.sqrt(bars_per_year)) if below > 0 else math.nan


def drawdown(equity: np.ndarray, start_cash: float) -> tuple[float, int]:
    """Deepest fall from a peak as a negative fraction, and most bars in a row below one; of (n,), n > 0."""
    curve = account.account(np.ascontiguousarray(equity, dtype=np.float64), start_cash, _NOT_KEPT)
    return float(curve.max_drawdown), int(curve.drawdown_bars)


def tail_ratio(returns: np.ndarray) -> float:
    """Size of the 95th percentile over that of the 5th, of returns (n,); linear between neighbours."""
    if len(returns) == 0:
        return math.nan
    values = np.ascontiguousarray(returns, dtype=np.float64)
    lower, upper = tails(values, 0.05, 0.95)
    return _ratio(abs(float(upper)), abs(float(lower)))


def _sharpes(curve: account.Account, bars: int, bars_per_year: float, trials: Trials | None) -> dict[str, float]:
    each = _ratio(curve.mean, curve.deviation)
    if math.isnan(each):
        return dict.fromkeys(("sharpe", "sharpe_error", "psr", "deflated_sharpe"), math.nan)
    skew, kurtosis = float(curve.skew), float(curve.kurtosis)
    deflated = math.nan
    if trials is not None:
        variance = trials.variance / bars_per_year
        deflated = deflated_sharpe(
            each, bars, trials=trials.count, variance=variance, skew=skew, kurtosis=kurtosis
        )  # fmt: skip
    return {
        "sharpe": annualised(each, bars_per_year),
        "sharpe_error": annualised(sharpe_error(each, bars, skew, kurtosis), bars_per_year),
        "psr": probabilistic_sharpe(each, bars, skew=skew, kurtosis=kurtosis),
        "deflated_sharpe": deflated,
    }


def _costs(result: Accounted) -> dict[str, float]:
    paid = math.fsum(result.costs.values())
    gross = float(result.trade_rows[:, kernel.T_PNL].sum()) + paid
    return {
        **{kind: result.costs[kind] for kind in ("fees", "slippage", "funding", "borrow")},
        "costs": paid,
        "cost_of_start": _ratio(paid, result.start_cash),
        "cost_share": _ratio(paid, gross),
    }


def _trades(rows: np.ndarray) -> dict[str, float | int]:
    pnl = np.ascontiguousarray(rows[:, kernel.T_PNL])
    notional = rows[:, kernel.T_SIZE] * rows[:, kernel.T_ENTRY_PRICE]
    found = account.trade_figures(pnl, notional, rows[:, kernel.T_EXIT_BAR] - rows[:, kernel.T_ENTRY_BAR])
    return {
        "trades": int(found.trades),
        "win_rate": float(found.win_rate),
        "profit_factor": float(found.profit_factor),
        "payoff": float(found.payoff),
        "expectancy": float(found.expectancy),
        "sqn": float(found.sqn),
        "kelly": float(found.kelly),
        "mean_trade": float(found.mean_return),
        "best_trade": float(found.best_return),
        "worst_trade": float(found.worst_return),
        "trade_tail_ratio": tail_ratio(pnl / notional),
        "best_five_share": float(found.best_five_share),
        "mean_trade_bars": float(found.mean_bars),
        "longest_trade_bars": int(found.longest_bars),
    }


def _annual_return(total: float, years: float) -> float:
    if not total > -1:
        return total  # all is lost, in any time
    with np.errstate(over="ignore"):
        found = float(np.expm1(np.log1p(total) / years))
    # a good day is no annual return
    return found if math.isfinite(found) else math.nan


def _prices(benchmark: np.ndarray, bars: int) -> np.ndarray:
    prices = np.ascontiguousarray(benchmark, dtype=np.float64)
    if prices.shape != (bars,) or not (prices.min() > 0 and prices.max() < math.inf):
        raise InvalidRequest(
            f"benchmark prices of shape {prices.shape} for {bars} bars: one per bar is needed, finite and above zero"
        )
    return prices


def _ratio(value: float, base: float) -> float:
    return float(value / base) if base > 0 else math.nan
