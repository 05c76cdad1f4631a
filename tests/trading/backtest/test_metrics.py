"""Figures against worked examples, other people's formulas, and laws."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trading import statistics
from trading.backtest import account
from trading.backtest.engine import BacktestResult, Costs, Rules, Sizing, run
from trading.backtest.metrics import (
    Trials,
    bar_returns,
    drawdown,
    sharpe,
    sortino,
    summarise,
    tail_ratio,
    trials,
)
from trading.backtest.plots import equity_picture
from trading.candles import frame_of
from trading.errors import InvalidRequest

DAY_MS = 86_400_000
CURVES = arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1000).map(lambda value: round(value, 2)))
PROFITS = arrays(np.float64, st.integers(1, 20), elements=st.floats(-50, 50).map(lambda value: round(value, 1)))


def candles_of(count: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0.0005, 0.01, count)))
    open_ = np.r_[100.0, close[:-1]]
    values = np.c_[open_, np.maximum(open_, close), np.minimum(open_, close), close, np.ones(count)]
    return frame_of(np.arange(count) * DAY_MS, values)


def hold(count: int = 400) -> BacktestResult:
    return run(candles_of(count, 4), np.ones(count), Rules(Costs(0.001, 0.0005), cash=1_000.0))


def traded(count: int = 700, seed: int = 5) -> tuple[pd.DataFrame, BacktestResult]:
    """Random sides, a few bars each."""
    candles = candles_of(count, seed)
    sides = np.repeat(np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], count // 7), 7)[:count]
    return candles, run(candles, sides, Rules(Costs(0.001, 0.0005), cash=1_000.0))


# --- worked examples -----------------------------------------------------------------------------


def test_sharpe_of_the_published_example(shared: Path) -> None:
    known = json.loads((shared / "oracles" / "statistics.json").read_text())["returns"]["expected"]
    # its first return is undefined and takes no part
    returns = np.array([1, 10, -4, 2, 3, 2, 1, -10]) / 100
    assert sharpe(returns, 252) == pytest.approx(known["sharpe_annualised_252_ddof1"], rel=1e-12)
    found = account.account(np.cumprod(1 + returns), 1.0, np.empty(0))
    assert found.mean / found.deviation * math.sqrt(252) == pytest.approx(sharpe(returns, 252), rel=1e-12)


def test_drawdown_by_hand() -> None:
    equity = np.array([110.0, 99.0, 104.5, 110.0, 55.0, 60.0])
    depth, bars = drawdown(equity, 100.0)
    assert depth == pytest.approx(-0.5)
    assert bars == 2
    assert account.account(equity, 100.0, np.empty(0)).mean_drawdown == pytest.approx(-(0.1 + 0.5) / 2)
    assert drawdown(np.array([90.0, 95.0]), 100.0) == (pytest.approx(-0.1), 2)
    assert drawdown(np.array([100.0, 100.0, 101.0]), 100.0) == (0.0, 0)


def test_returns_start_from_the_cash_and_stop_at_nothing() -> None:
    equity, returns = np.array([110.0, 55.0, 0.0, 0.0]), np.empty(4)
    np.testing.assert_allclose(bar_returns(equity, 100.0), [0.1, -0.5, -1.0, 0.0])
    found = account.account(equity, 100.0, returns)
    np.testing.assert_allclose(returns, [0.1, -0.5, -1.0, 0.0])
    assert (found.total_return, found.max_drawdown, found.drawdown_bars) == (-1.0, -1.0, 3)


def test_figures_without_spread_are_undefined_not_infinite() -> None:
    assert math.isnan(sharpe(np.zeros(10), 252))
    assert math.isnan(sharpe(np.full(10, 0.01), 252))
    assert math.isnan(sortino(np.full(10, 0.01), 252))
    assert math.isnan(tail_ratio(np.zeros(30)))
    grown = account.account(1.01 ** np.arange(1, 3000), 1.0, np.empty(0))
    assert (grown.deviation, grown.skew, grown.kurtosis) == (0.0, 0.0, 3.0)
    assert grown.mean == pytest.approx(0.01, rel=1e-12)


def test_trades_by_hand() -> None:
    pnl = np.array([60.0, -20.0, 10.0, 30.0, -40.0, 20.0, 40.0, 0.0])
    found = account.trade_figures(pnl, np.full(8, 200.0), np.array([1.0, 2, 3, 4, 5, 6, 7, 12]))
    assert (found.trades, found.win_rate, found.profit_factor, found.expectancy) == (8, 5 / 8, 160 / 60, 12.5)
    assert (found.payoff, found.kelly) == (32 / 30, pytest.approx(5 / 8 - (3 / 8) * 30 / 32))
    assert (found.mean_return, found.best_return, found.worst_return) == (0.0625, 0.3, -0.2)
    assert (found.best_five_share, found.mean_bars, found.longest_bars) == (1.6, 5.0, 12)


def test_a_bar_is_held_where_any_symbol_is() -> None:
    positions = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, -3.0], [0.0, -3.0], [0.0, 0.0]])
    assert account.held_share(positions) == 0.6
    assert account.held_share(np.ascontiguousarray(positions[:, :1])) == 0.4


# --- independent formulas ------------------------------------------------------------------------


def plain_drawdowns(equity: np.ndarray, start: float) -> tuple[list[float], int]:
    """Depth of every drawdown and the longest time below a peak, one bar after the other."""
    depths, longest, below, peak = [], 0, 0, start
    for now in equity:
        if now >= peak:
            peak, below = now, 0
            continue
        below += 1
        longest = max(longest, below)
        if below == 1:
            depths.append(0.0)
        depths[-1] = min(depths[-1], now / peak - 1)
    return depths, longest


@settings(max_examples=40, deadline=None)
@given(CURVES, st.floats(1, 1000))
@example(np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.02, 2500))), 1.0)  # several blocks
@example(np.full(1024, 3.0), 3.0)
def test_an_account_is_what_numpy_and_a_slow_loop_say(equity: np.ndarray, start: float) -> None:
    returns = np.empty(len(equity))
    found = account.account(equity, start, returns)
    expected = bar_returns(equity, start)
    np.testing.assert_allclose(returns, expected, rtol=1e-12, atol=1e-12)
    scale = max(1.0, float(np.abs(expected).max()))
    assert found.total_return == pytest.approx(equity[-1] / start - 1, abs=1e-12)
    assert found.mean == pytest.approx(expected.mean(), abs=1e-12 * scale)
    assert found.downside == pytest.approx(math.sqrt(np.mean(np.minimum(expected, 0) ** 2)), abs=1e-12 * scale)
    assert found.mean_equity == pytest.approx(equity.mean())
    if len(equity) > 1 and expected.std() > 1e-6 * scale:
        moments = statistics.moments(expected)
        assert found.deviation == pytest.approx(moments.deviation, rel=1e-7)
        assert found.skew == pytest.approx(moments.skew, rel=1e-6, abs=1e-6)
        assert found.kurtosis == pytest.approx(moments.kurtosis, rel=1e-6)
    depths, longest = plain_drawdowns(equity, start)
    assert found.drawdown_bars == longest
    assert found.max_drawdown == pytest.approx(min(depths, default=0.0), abs=1e-12)
    assert math.isnan(found.mean_drawdown) if not depths else found.mean_drawdown == pytest.approx(np.mean(depths))


def test_small_deviations_of_a_large_drift_are_not_lost() -> None:
    returns = 0.01 + 1e-9 * np.random.default_rng(1).standard_normal(20_000)
    found = account.account(np.exp(np.cumsum(np.log1p(returns))), 1.0, np.empty(0))
    assert found.deviation == pytest.approx(returns.std(ddof=1), rel=1e-6, abs=0)
    assert found.mean == pytest.approx(returns.mean(), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(PROFITS, st.integers(0, 1000))
def test_trade_figures_are_those_of_the_formulas_of_backtesting_py(pnl: np.ndarray, seed: int) -> None:
    notional = np.random.default_rng(seed).uniform(10, 1000, len(pnl))
    found = account.trade_figures(pnl, notional, np.ones(len(pnl)))
    gains, returns = pd.Series(pnl), pd.Series(pnl / notional)
    won, lost = gains[gains > 0], -gains[gains < 0]
    expected = {
        "win_rate": (gains > 0).mean(),
        "profit_factor": won.sum() / (lost.sum() or math.nan),
        "payoff": won.mean() / lost.mean(),
        "expectancy": gains.mean(),
        "kelly": (gains > 0).mean() - (1 - (gains > 0).mean()) / (won.mean() / lost.mean()),
        "mean_return": returns.mean(),
        "best_return": returns.max(),
        "worst_return": returns.min(),
        "best_five_share": gains.nlargest(5).sum() / gains.sum() if gains.sum() > 1e-9 else math.nan,
    }
    if not 0 < abs(gains.sum()) < 1e-9:
        for name, value in expected.items():
            assert getattr(found, name) == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), name
    if gains.std() > 1e-9:
        assert found.sqn == pytest.approx(math.sqrt(len(gains)) * gains.mean() / gains.std(), rel=1e-9, abs=1e-12)


def test_a_summary_is_what_pandas_says() -> None:
    """empyrical's formulas, written down anew; its Sharpe ratio and deviation have ddof 1, too."""
    candles, result = traded()
    closes = candles["close"].to_numpy()
    figures = summarise(result, 365.25, benchmark=closes)
    equity = pd.concat([pd.Series([1_000.0]), result.equity], ignore_index=True)
    returns = equity.pct_change().dropna()
    below = math.sqrt(returns.clip(upper=0).pow(2).mean())
    annual = (equity.iloc[-1] / 1_000) ** (365.25 / len(returns)) - 1
    depth = (equity / equity.cummax() - 1).min()
    own, other = returns.iloc[1:], candles["close"].pct_change().dropna()
    slope, cut = np.polyfit(other, own, 1)
    fills, trades = result.fills, result.trades
    expected = {
        "annual_return": annual,
        "volatility": returns.std() * math.sqrt(365.25),
        "sharpe": returns.mean() / returns.std() * math.sqrt(365.25),
        "sortino": returns.mean() / below * math.sqrt(365.25),
        "calmar": annual / -depth,
        "max_drawdown": depth,
        "tail_ratio": abs(np.percentile(returns, 95)) / abs(np.percentile(returns, 5)),
        "beta": slope,
        "alpha": cut * 365.25,
        "exposure": (result.position != 0).mean(),
        "turnover": (fills["units"].abs() * fills["price"]).sum() / result.equity.mean() / (700 / 365.25),
        "costs": trades["fees"].sum() + trades["slippage"].sum(),
        "win_rate": (trades["pnl"] > 0).mean(),
        "expectancy": trades["pnl"].mean(),
        "best_trade": (trades["pnl"] / trades["size"] / trades["entry_price"]).max(),
        "mean_trade_bars": (trades["exit_bar"] - trades["entry_bar"]).mean(),
    }
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-9), name
    assert figures["trades"] == len(trades) > 20
    assert sharpe(returns.to_numpy(), 365.25) == pytest.approx(figures["sharpe"], rel=1e-12)
    assert sortino(returns.to_numpy(), 365.25) == pytest.approx(figures["sortino"], rel=1e-12)


def test_the_statistics_of_the_sharpe_ratio_are_those_of_the_returns() -> None:
    _, result = traded()
    returns = bar_returns(result.equity.to_numpy(), 1_000.0)
    tried = trials(np.array([0.3, -0.4, math.nan, 1.2]))
    assert (tried.count, tried.variance) == (4, pytest.approx(np.var([0.3, -0.4, 0.0, 1.2], ddof=1)))
    assert trials(np.array([0.7])) == Trials(1, 0.0)
    figures, moments = summarise(result, 252.0, trials=tried), statistics.moments(returns)
    each, shape = statistics.sharpe_ratio(returns), {"skew": moments.skew, "kurtosis": moments.kurtosis}
    error = statistics.sharpe_error(each, 700, moments.skew, moments.kurtosis)
    assert figures["sharpe_error"] == pytest.approx(error * math.sqrt(252), rel=1e-9)
    assert figures["psr"] == pytest.approx(statistics.probabilistic_sharpe(each, 700, **shape), rel=1e-9)
    deflated = statistics.deflated_sharpe(each, 700, trials=4, variance=tried.variance / 252, **shape)
    assert figures["deflated_sharpe"] == pytest.approx(deflated, rel=1e-9)
    assert float(figures["deflated_sharpe"]) < float(figures["psr"])
    assert math.isnan(float(summarise(result, 252.0)["deflated_sharpe"]))
    with pytest.raises(InvalidRequest, match="no Sharpe ratios"):
        trials(np.empty(0))


def test_goog_against_the_recorded_figures_of_backtesting_py(shared: Path) -> None:
    """What can be equal is equal; the rest follows from our account by its formulas, so that only they differ.

    Its annual figures start from the geometric mean of the returns between bars, one fewer than ours, which
    count the first bar from the starting cash; its Sharpe ratio divides that by a compounded deviation, its
    Sortino and Calmar ratios divide it too; its beta is that of log returns; its profit factor sums returns, not
    money; its average trade is a geometric mean; its exposure counts the bar of the exit; its drawdowns last until
    the bar that ends them, in days.
    """
    known = json.loads((shared / "oracles" / "backtest.json").read_text())["goog_sma_10_30"]["expected"]
    recorded = pd.read_csv(shared / "oracles" / "backtestingpy_GOOG_smacross_test_trades.csv")
    # found, not imported: that takes a second
    package = importlib.util.find_spec("backtesting")
    assert package is not None and package.origin is not None
    table = pd.read_csv(Path(package.origin).parent / "test" / "GOOG.csv", index_col=0, parse_dates=True)
    opens = pd.DatetimeIndex(table.index).tz_localize("UTC").as_unit("ms").asi8
    candles = frame_of(opens, table.to_numpy(dtype="float64"))
    targets = np.zeros(len(table))
    for trade in recorded.itertuples():
        targets[trade.EntryBar - 1 : trade.ExitBar - 1] = np.sign(trade.Size)
    result = run(candles, targets, Rules(Costs(0.0, 0.0), Sizing(lot=1)))
    closes = candles["close"].to_numpy()
    figures = summarise(result, 252.0, benchmark=closes)

    def percent(name: str) -> float:
        return float(known[f"{name} [%]"]) / 100

    assert figures["final_equity"] == pytest.approx(known["Equity Final [$]"], rel=1e-12)
    assert figures["total_return"] == pytest.approx(percent("Return"), rel=1e-12)
    assert figures["max_drawdown"] == pytest.approx(percent("Max. Drawdown"), rel=1e-12)
    assert figures["mean_drawdown"] == pytest.approx(percent("Avg. Drawdown"), rel=1e-12)
    assert figures["trades"] == int(known["# Trades"])
    assert figures["win_rate"] == pytest.approx(percent("Win Rate"), rel=1e-12)
    assert figures["best_trade"] == pytest.approx(percent("Best Trade"), rel=1e-12)
    assert figures["worst_trade"] == pytest.approx(percent("Worst Trade"), rel=1e-12)
    assert figures["mean_trade"] == pytest.approx(percent("Expectancy"), rel=1e-12)
    assert figures["sqn"] == pytest.approx(known["SQN"], rel=1e-9)
    assert figures["kelly"] == pytest.approx(known["Kelly Criterion"], rel=1e-9)

    bars, returns = len(closes), bar_returns(result.equity.to_numpy(), 10_000.0)
    assert returns[0] == 0
    annual = (1 + float(figures["annual_return"])) ** (bars / (bars - 1)) - 1
    assert annual == pytest.approx(percent("Return (Ann.)"), rel=1e-9)
    assert annual / -float(figures["max_drawdown"]) == pytest.approx(known["Calmar Ratio"], rel=1e-9)
    below = math.sqrt(252 * np.mean(np.minimum(returns[1:], 0) ** 2))
    assert annual / below == pytest.approx(known["Sortino Ratio"], rel=1e-9)
    growth = (1 + annual) ** (1 / 252)
    deviation = math.sqrt((np.var(returns[1:], ddof=1) + growth**2) ** 252 - growth**504)
    assert annual / deviation == pytest.approx(known["Sharpe Ratio"], rel=1e-9)
    covariances = np.cov(np.log1p(returns[1:]), np.diff(np.log(closes)))
    assert covariances[0, 1] / covariances[1, 1] == pytest.approx(known["Beta"], rel=1e-9)
    gains = result.trades["pnl"] / result.trades["size"] / result.trades["entry_price"]
    assert gains[gains > 0].sum() / -gains[gains < 0].sum() == pytest.approx(known["Profit Factor"], rel=1e-9)
    assert math.expm1(np.log1p(gains).mean()) == pytest.approx(percent("Avg. Trade"), rel=1e-9)


# --- laws ----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(CURVES, st.floats(1, 1000), st.integers(-10, 10))
def test_money_of_another_size_changes_no_figure_of_returns(equity: np.ndarray, start: float, power: int) -> None:
    found = account.account(equity, start, np.empty(0))
    # powers of two leave every digit as it is
    other = account.account(equity * 2.0**power, start * 2.0**power, np.empty(0))
    np.testing.assert_equal(other[:-1], found[:-1])
    assert -1 <= found.max_drawdown <= 0
    assert math.isnan(found.mean_drawdown) or found.max_drawdown <= found.mean_drawdown <= 0
    assert 0 <= found.drawdown_bars <= len(equity)
    assert (found.drawdown_bars == 0) == (found.max_drawdown == 0)
    assert found.kurtosis >= 1 + found.skew**2
    assert found.max_drawdown <= min(found.total_return, 0) + 1e-15


@settings(max_examples=30, deadline=None)
@given(arrays(np.float64, st.integers(1, 200), elements=st.floats(-0.2, 0.2).map(lambda value: round(value, 3))))
def test_the_tail_ratio_is_that_of_the_percentiles(returns: np.ndarray) -> None:
    upper, lower = np.abs(np.percentile(returns, [95, 5]))
    assert tail_ratio(returns) == pytest.approx(upper / lower if lower > 0 else math.nan, rel=1e-9, nan_ok=True)


def test_buy_and_hold_against_itself_costs_what_it_costs() -> None:
    result, closes = hold(), candles_of(400, 4)["close"].to_numpy()
    figures = summarise(result, 365.25, benchmark=closes)
    assert figures["beta"] == pytest.approx(1, abs=0.01)
    # bought at the close of the first bar, so all that its returns lack is what the entry cost
    assert float(figures["alpha"]) == pytest.approx(-0.0015 * 365.25 / 399, rel=0.1)
    constant = summarise(result, 365.25, benchmark=np.full(400, 7.0))
    assert math.isnan(float(constant["beta"])) and math.isnan(float(constant["alpha"]))


def test_a_benchmark_needs_a_price_for_every_bar() -> None:
    result, prices = hold(), np.ones(400)
    for wrong in (prices[1:], *(np.where(np.arange(400) == 7, value, prices) for value in (0, math.nan, math.inf))):
        with pytest.raises(InvalidRequest, match="benchmark prices of shape"):
            summarise(result, 365.25, benchmark=wrong)


def test_a_summary_adds_up() -> None:
    result = hold()
    figures = summarise(result, 365.25)
    growth = result.equity.iloc[-1] / 1_000
    assert figures["total_return"] == pytest.approx(growth - 1)
    assert (1 + float(figures["annual_return"])) ** (400 / 365.25) == pytest.approx(growth)
    assert figures["trades"] == 1
    assert figures["exposure"] == pytest.approx(399 / 400)
    assert figures["costs"] == pytest.approx(sum(result.costs.values()))
    assert figures["costs"] == sum(float(figures[kind]) for kind in ("fees", "slippage", "funding", "borrow"))
    assert float(figures["costs"]) / 1_000 == pytest.approx(figures["cost_of_start"])


def test_an_account_that_never_traded_has_no_figures_of_trades() -> None:
    figures = summarise(run(candles_of(30, 1), np.zeros(30)), 365.25)
    undefined = {name for name, value in figures.items() if isinstance(value, float) and math.isnan(value)}
    assert undefined >= {"sharpe", "sharpe_error", "psr", "sortino", "calmar", "win_rate", "sqn", "best_trade"}
    assert (figures["total_return"], figures["exposure"], figures["turnover"], figures["trades"]) == (0, 0, 0, 0)


def test_a_picture_says_what_data_it_shows(tmp_path: Path) -> None:
    results = {"champion": hold(), "buy_and_hold": hold()}
    live = equity_picture(results, "X 1d", tmp_path / "live.png", "live").read_bytes()
    sample = equity_picture(results, "X 1d", tmp_path / "deep" / "sample.png", "sample").read_bytes()
    assert live[:8] == b"\x89PNG\r\n\x1a\n"
    assert live != sample
    width, height = (int.from_bytes(live[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (1380, 768)
    assert isinstance(results["champion"].equity, pd.Series)
