"""The backtest agrees trade by trade with vectorbt, on generated candles and on real hours.

What is made equal, and how:

- vectorbt fills one order per bar and looks at the stops of a position before its signals, and not at all in the
  bar of the entry; ours goes by time: the order at the open, then what the bar touches. So vectorbt is given every
  bar as three rows: exits at the open, entries at the open (both of one price), the bar itself. Nothing is made
  equal where signals and fills are at the close: its order of time is ours there (``Execution(fill="same close")``).
- There, too, it has one order per bar: whoever was stopped enters, and whoever reverses is back, one bar later.
  ``Limits(cooldown_bars=1)`` says so, against ``upon_opposite_entry="close"``.
- A stop loss or trailing stop; it has no two at once. ``Protection`` has any.
- Its stops count from the close of the entry by default, ours from the price paid: ``stop_entry_price="fillprice"``.
- One switch says whether exits at a stop and at a target slip (``stop_exit_price``). Ours slips at stops, which are
  market orders, and not at targets, which are limit orders: they are compared one by one, or without slippage.
- It looks at the stop before the target where a bar opened beyond the target, ours takes the open that came first.
  The candles here do not leap from beyond one level to the other within a bar.
- A signal is an edge, a target a level: it enters at each change of the target, as ours does; at each bar of it with
  ``Protection(reenter=True)``.
- Cash may fall below what a short owes, and its size by percent is one of free cash; equal to a share of the equity
  where nothing else is held.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from trading.backtest.engine import BacktestResult, run, run_portfolio
from trading.backtest.metrics import summarise
from trading.backtest.rules import Costs, Execution, Limits, Protection, Rules, Sizing
from trading.candles import COLUMNS, frame_of
from trading.strategies import bollinger, breakout, rsi, sma_cross

# it compiles for 20 seconds where it was never used before
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]

HOUR = 3_600_000
YEAR = 8760.0  # its hours in a year
HOLDS = ("fraction", "units")


def generated(seed: int, bars: int = 4_000) -> pd.DataFrame:
    """Hours that open where the last one closed, in steps of a cent."""
    rng = np.random.default_rng(seed)
    close = np.round(100 * np.exp(np.cumsum(rng.normal(0, 0.006, bars))), 2)
    opened = np.concatenate([[100.0], close[:-1]])
    high = np.round(np.maximum(opened, close) * (1 + rng.exponential(0.003, bars)), 2)
    low = np.round(np.minimum(opened, close) * (1 - rng.exponential(0.003, bars)), 2)
    return frame_of(np.arange(bars) * HOUR, np.column_stack([opened, high, low, close, np.ones(bars)]))


def real(shared: Path, symbol: str) -> pd.DataFrame:
    rows = pd.read_parquet(shared / "data" / f"binance_{symbol}_1h.parquet")
    return frame_of(rows["timestamp"], rows[list(COLUMNS)])


def wanted(candles: pd.DataFrame) -> dict[str, np.ndarray]:
    """Targets of both sides by strategy."""
    return {
        "sma cross": sma_cross(candles, 10, 30, long_only=False),
        "rsi": rsi(candles, 14, 35.0, 65.0),
        "bollinger": bollinger(candles, 20, 1.5),
        "breakout": breakout(candles, 20, 10).targets,
    }


def rules_of(hold: str, **parts: Any) -> Rules:
    sizing = Sizing(units=2.0) if hold == "units" else Sizing(fraction=0.5)
    return Rules(sizing=sizing, cash=1_000_000.0, **parts)


def changes(targets: np.ndarray) -> np.ndarray:
    return np.asarray(np.diff(targets, prepend=0) != 0)


def options(rules: Rules) -> dict[str, Any]:
    """Costs, size and stops as vectorbt takes them."""
    stop = rules.protection.stop_loss or rules.protection.trailing_stop
    sized = {"size": rules.sizing.units, "size_type": "amount"}
    if not rules.sizing.units:
        sized = {"size": rules.sizing.fraction, "size_type": "percent"}
    return {
        **sized,
        "fees": rules.costs.fee_rate,
        "slippage": rules.costs.slippage_rate,
        "init_cash": rules.cash,
        "sl_stop": stop or np.nan,
        "sl_trail": rules.protection.trailing_stop > 0,
        "tp_stop": rules.protection.take_profit or np.nan,
        "stop_entry_price": "fillprice",
        "stop_exit_price": "stoplimit" if rules.protection.take_profit else "stopmarket",
        "accumulate": False,
        "freq": "1h",
    }


def at_the_open(candles: pd.DataFrame, targets: np.ndarray, rules: Rules) -> Any:
    """vectorbt's portfolio with three rows per bar: exits, entries, the bar itself."""
    import vectorbt as vbt

    bars = len(candles)
    rows = {name: np.repeat(candles[name].to_numpy(), 3) for name in ("open", "high", "low", "close")}
    price = np.where(np.arange(3 * bars) % 3 < 2, rows["open"], rows["close"])
    for values in rows.values():
        values[0::3] = values[1::3] = np.nan  # no stop is looked at there
    levels = np.concatenate([[0], targets[:-1]])
    enters = np.ones(bars, dtype=bool) if rules.protection.reenter else changes(levels)
    signals = np.zeros((4, 3 * bars), dtype=bool)
    signals[0, 0::3], signals[1, 0::3] = levels != 1, levels != -1
    signals[2, 1::3], signals[3, 1::3] = (levels == 1) & enters, (levels == -1) & enters
    return vbt.Portfolio.from_signals(
        pd.Series(rows["close"]), exits=signals[0], short_exits=signals[1], entries=signals[2],
        short_entries=signals[3], price=price, open=rows["open"], high=rows["high"], low=rows["low"], **options(rules),
    )  # fmt: skip


def at_the_close(candles: pd.DataFrame, targets: np.ndarray, rules: Rules, opposite: str) -> Any:
    """vectorbt's portfolio with bars as they are, signals and fills at the close."""
    import vectorbt as vbt

    enters = np.ones(len(targets), dtype=bool) if rules.protection.reenter else changes(targets)
    return vbt.Portfolio.from_signals(
        candles["close"], entries=(targets == 1) & enters, short_entries=(targets == -1) & enters, exits=targets == 0,
        short_exits=targets == 0, open=candles["open"], high=candles["high"], low=candles["low"],
        upon_opposite_entry=opposite, **options(rules),
    )  # fmt: skip


def agrees(result: BacktestResult, theirs: Any, rows: int) -> None:
    """Same bars and sides exactly; prices, sizes and money but for rounding, cash and equity at every bar.

    Its trades have no prices of their own but means over their orders.
    """
    trades, peer = result.trades, theirs.trades.records
    np.testing.assert_array_equal(trades["entry_bar"], peer["entry_idx"] // rows)
    closed = (trades["exit_reason"] != "open").to_numpy()
    np.testing.assert_array_equal(closed, peer["status"] == 1)
    np.testing.assert_array_equal(trades["exit_bar"][closed], peer["exit_idx"][closed] // rows)
    np.testing.assert_array_equal(trades["side"], 1 - 2 * peer["direction"])
    np.testing.assert_allclose(trades["entry_price"], peer["entry_price"], rtol=1e-14)
    np.testing.assert_allclose(trades["exit_price"][closed], peer["exit_price"][closed], rtol=1e-14)
    np.testing.assert_allclose(trades["size"], peer["size"], rtol=1e-10)
    np.testing.assert_allclose(trades["fees"], peer["entry_fees"] + peer["exit_fees"], rtol=1e-10)
    np.testing.assert_allclose(trades["pnl"], peer["pnl"], rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(result.equity, theirs.value().to_numpy()[rows - 1 :: rows], rtol=1e-12)
    np.testing.assert_allclose(result.cash, theirs.cash().to_numpy()[rows - 1 :: rows], rtol=1e-11)


PROTECTIONS = {
    "none": Protection(),
    "stop": Protection(stop_loss=0.01),
    "trailing": Protection(trailing_stop=0.012),
    "target": Protection(take_profit=0.015),
    "stop and target": Protection(stop_loss=0.01, take_profit=0.015),
    "trailing and target": Protection(trailing_stop=0.01, take_profit=0.02),
    "stop, again": Protection(stop_loss=0.01, reenter=True),
    "trailing and target, again": Protection(trailing_stop=0.01, take_profit=0.02, reenter=True),
}


@pytest.fixture(params=["generated 1", "generated 2", "BTCUSDT", "ETHUSDT"])
def candles(request: pytest.FixtureRequest) -> pd.DataFrame:
    kind, _, seed = request.param.partition(" ")
    return generated(int(seed)) if seed else real(request.getfixturevalue("shared"), kind)


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_orders_at_the_open_and_stops_in_the_bar_give_the_trades_of_vectorbt(
    candles: pd.DataFrame, protection: str
) -> None:
    protected = PROTECTIONS[protection]
    slips = not (protected.take_profit and (protected.stop_loss or protected.trailing_stop))
    for targets in wanted(candles).values():
        for hold in HOLDS:
            rules = rules_of(hold, costs=Costs(0.001, 0.0005 if slips else 0.0), protection=protected)
            result = run(candles, targets, rules)
            assert len(result.trades) > 30
            agrees(result, at_the_open(candles, targets, rules), 3)


def test_orders_at_the_close_give_the_trades_of_vectorbt(candles: pd.DataFrame) -> None:
    for targets in wanted(candles).values():
        rules = rules_of("units", costs=Costs(0.001, 0.0005), execution=Execution(fill="same close"))
        agrees(run(candles, targets, rules), at_the_close(candles, targets, rules, "reverse"), 1)


@pytest.mark.parametrize("protection", ["stop, again", "trailing and target, again"])
def test_orders_at_the_close_a_bar_after_a_stop_give_the_trades_of_vectorbt(
    candles: pd.DataFrame, protection: str
) -> None:
    for targets in wanted(candles).values():
        for hold in HOLDS:
            rules = rules_of(
                hold, costs=Costs(0.001, 0.0), protection=PROTECTIONS[protection],
                execution=Execution(fill="same close"), limits=Limits(cooldown_bars=1),
            )  # fmt: skip
            agrees(run(candles, targets, rules), at_the_close(candles, targets, rules, "close"), 1)


@pytest.mark.parametrize("way", ["units", "fraction"])
def test_several_series_out_of_one_account_give_the_books_of_vectorbt(shared: Path, way: str) -> None:
    import vectorbt as vbt

    markets = {symbol: real(shared, symbol) for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT")}
    times = markets["BTCUSDT"].index
    for frame in markets.values():
        times = times.intersection(frame.index)
    markets = {symbol: frame.loc[times] for symbol, frame in markets.items()}
    targets = {symbol: sma_cross(frame, 20, 50, long_only=False) for symbol, frame in markets.items()}
    # its share is one of the equity before the costs of the order, ours one of what is left after them
    costs = Costs(0.001, 0.0005) if way == "units" else Costs(0.0, 0.0)
    sizing = Sizing(units=2.0, leverage=9.0) if way == "units" else Sizing(fraction=0.3, leverage=9.0)
    rules = Rules(costs, sizing, execution=Execution(fill="same close"), cash=1_000_000.0)
    result = run_portfolio(markets, targets, rules)
    closes = pd.DataFrame({symbol: frame["close"] for symbol, frame in markets.items()})
    levels = pd.DataFrame(targets, index=times).astype(float)
    theirs = vbt.Portfolio.from_orders(
        closes, size=(levels * (sizing.units or sizing.fraction)).where(levels.diff().fillna(levels) != 0),
        size_type="targetamount" if sizing.units else "targetpercent", fees=costs.fee_rate,
        slippage=costs.slippage_rate, init_cash=rules.cash, group_by=True, cash_sharing=True, freq="1h",
    )  # fmt: skip
    np.testing.assert_allclose(result.positions, theirs.assets(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(result.equity, theirs.value(), rtol=1e-12)
    np.testing.assert_allclose(result.cash, theirs.cash(), rtol=1e-10)


def test_figures_are_those_of_vectorbt_where_they_are_defined_alike(candles: pd.DataFrame) -> None:
    targets = wanted(candles)["sma cross"].copy()
    targets[-1] = 0  # a trade still open counts as one of ours, and is left out of its
    rules = rules_of("units", costs=Costs(0.001, 0.0005), execution=Execution(fill="same close"))
    result, theirs = run(candles, targets, rules), at_the_close(candles, targets, rules, "reverse")
    figures, trades = summarise(result, YEAR, benchmark=candles["close"].to_numpy()), theirs.trades
    same = {
        "total_return": theirs.total_return(),
        "annual_return": theirs.annualized_return(),
        "volatility": theirs.annualized_volatility(),
        "sharpe": theirs.sharpe_ratio(),
        "sortino": theirs.sortino_ratio(),
        "calmar": theirs.calmar_ratio(),
        "max_drawdown": theirs.max_drawdown(),
        "tail_ratio": theirs.tail_ratio(),
        "exposure": theirs.position_coverage(),
        "final_equity": theirs.final_value(),
        "fees": theirs.orders.fees.sum(),
        "trades": trades.count(),
        "win_rate": trades.win_rate(),
        "profit_factor": trades.profit_factor(),
        "expectancy": trades.expectancy(),
        "sqn": trades.sqn(),
        "best_trade": trades.returns.max(),
        "worst_trade": trades.returns.min(),
    }
    assert {name: figures[name] for name in same} == pytest.approx(same, rel=1e-8)
    # its drawdowns last from the peak to the bar that recovers, ours are the bars below the peak
    falls = theirs.drawdowns.records
    below = falls["end_idx"] - falls["peak_idx"] - (falls["status"] == 1)
    assert figures["drawdown_bars"] == below.max()
    depths = falls["valley_val"] / falls["peak_val"] - 1
    assert figures["mean_drawdown"] == pytest.approx(depths.mean(), rel=1e-9)


def test_an_open_beyond_the_target_is_a_profit_where_vectorbt_takes_the_stop_of_the_same_bar() -> None:
    import vectorbt as vbt

    bars = [(100, 100, 100, 100), (100, 100, 100, 100), (103, 104, 98, 99)]
    candles = frame_of(np.arange(3) * HOUR, [(*bar, 1.0) for bar in bars])
    rules = rules_of("units", costs=Costs(0.0, 0.0), protection=Protection(stop_loss=0.01, take_profit=0.02))
    result = run(candles, np.ones(3), rules)
    assert result.trades[["exit_bar", "exit_price"]].to_numpy().tolist() == [[2, 103.0]]
    theirs = vbt.Portfolio.from_signals(
        candles["close"], entries=np.array([False, True, False]), exits=False, open=candles["open"],
        high=candles["high"], low=candles["low"], **options(rules),
    )  # fmt: skip
    assert theirs.trades.records[["exit_idx", "exit_price"]].to_numpy().tolist() == [[2, 99.0]]
