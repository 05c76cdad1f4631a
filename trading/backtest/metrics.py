"""Figures of a backtest.

Conventions: simple returns per bar of the marked equity, the first against the starting cash; deviations
with ddof 1; annualised by the square root of bars per year (which follow from the calendar); risk-free
rate 0. Fractions, not percent. NaN where a figure is not defined.
"""

from __future__ import annotations

import math

import numpy as np

from trading.backtest.engine import BacktestResult


def summarise(result: BacktestResult, bars_per_year: float) -> dict[str, float | int | str]:
    """The figures of one result by name.

    total_return, annual_return (compounded), volatility, sharpe, sortino (deviation of the returns below
    zero, over all bars), max_drawdown (a negative fraction) and its longest duration in bars from a peak
    to the bar that reaches it again, exposure (share of bars with a position), turnover (notional traded
    per year over mean equity), costs (quote currency), cost_of_start (share of the starting cash),
    cost_share (of gross profit), win_rate,
    profit_factor, trades, final_equity, start and end (open times, ISO 8601).
    """
    equity = result.equity.to_numpy()
    returns = bar_returns(equity, result.start_cash)
    years = len(equity) / bars_per_year
    growth = equity[-1] / result.start_cash
    trades = result.trades
    pnl = trades["pnl"].to_numpy()
    won, lost = pnl[pnl > 0].sum(), -pnl[pnl < 0].sum()
    traded = (trades["size"] * trades["entry_price"]).sum() + (trades["size"] * trades["exit_price"]).sum()
    paid = sum(result.costs.values())
    gross = pnl.sum() + paid
    depth, duration = drawdown(equity, result.start_cash)
    return {
        "total_return": float(growth - 1),
        "annual_return": float(growth ** (1 / years) - 1) if growth > 0 else -1.0,
        "volatility": _deviation(returns) * math.sqrt(bars_per_year),
        "sharpe": sharpe(returns, bars_per_year),
        "sortino": sortino(returns, bars_per_year),
        "max_drawdown": depth,
        "drawdown_bars": duration,
        "exposure": float(np.mean(result.position.to_numpy() != 0)),
        "turnover": float(traded / equity.mean() / years) if equity.mean() > 0 else math.nan,
        "costs": float(paid),
        "cost_of_start": float(paid / result.start_cash),
        "cost_share": float(paid / gross) if gross > 0 else math.nan,
        "win_rate": float(np.mean(pnl > 0)) if len(pnl) else math.nan,
        "profit_factor": float(won / lost) if lost > 0 else math.nan,
        "trades": len(trades),
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
    spread = _deviation(returns)
    return float(np.mean(returns) / spread * math.sqrt(bars_per_year)) if spread > 0 else math.nan


def sortino(returns: np.ndarray, bars_per_year: float) -> float:
    """Mean over the root mean square of the negative returns (over all bars), annualised (Sortino 1994)."""
    below = math.sqrt(float(np.mean(np.minimum(returns, 0) ** 2))) if len(returns) else 0.0
    return float(np.mean(returns) / below * math.sqrt(bars_per_year)) if below > 0 else math.nan


def drawdown(equity: np.ndarray, start_cash: float) -> tuple[float, int]:
    """Deepest fall from a peak as a negative fraction, and most bars from a peak until it is reached again."""
    curve = np.concatenate([[start_cash], equity])
    peak = np.maximum.accumulate(curve)
    depth = float((curve / peak - 1).min())
    at = np.arange(len(curve))
    since = at - np.maximum.accumulate(np.where(curve >= peak, at, 0))
    return depth, int(since.max())


def _deviation(returns: np.ndarray) -> float:
    return float(np.std(returns, ddof=1)) if len(returns) > 1 else 0.0
