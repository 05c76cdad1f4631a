"""The backtest agrees trade by trade with engines that other people wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from trading.backtest.engine import Costs, Sizing, run
from trading.backtest.metrics import summarise
from trading.candles import COLUMNS, frame_of
from trading.strategies import sma_cross

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
def test_sma_20_50_on_real_hours_gives_the_trades_of_three_independent_engines(shared: Path, symbol: str) -> None:
    rows = pd.read_parquet(shared / "data" / f"binance_{symbol}_1h.parquet")
    expected = json.loads((shared / "oracles" / "backtest.json").read_text())["sma_20_50"]["expected"][f"{symbol}_1h"]
    trades = pd.read_csv(shared / "oracles" / f"oracle_sma20_50_{symbol}_1h_trades.csv")
    candles = frame_of(rows["timestamp"], rows[list(COLUMNS)])
    result = run(candles, sma_cross(candles, 20, 50), Costs(0.001, 0.0), sizing=Sizing(units=1), cash=1_000_000.0)
    ours = result.trades
    assert len(ours) == expected["closed_trades"]
    np.testing.assert_array_equal(ours[["entry_bar", "exit_bar"]], trades[["entry_bar", "exit_bar"]])
    np.testing.assert_array_equal(ours[["entry_price", "exit_price"]], trades[["entry", "exit"]])
    figures = summarise(result, 8766.0)
    assert figures["final_equity"] == pytest.approx(expected["final_equity_own"], rel=1e-13)
    assert result.costs["fees"] == pytest.approx(expected["fees"], rel=1e-12)
    assert 100 * float(figures["max_drawdown"]) == pytest.approx(expected["max_drawdown_pct"], rel=1e-10)


def goog() -> pd.DataFrame:
    from backtesting.test import GOOG

    table: pd.DataFrame = GOOG
    return table


def theirs(commission: float) -> pd.Series:
    """backtesting.py: SMA 10/30 on GOOG, close and reverse at the next open, all in, whole shares."""
    from backtesting import Backtest, Strategy
    from backtesting.lib import crossover
    from backtesting.test import SMA

    class Cross(Strategy):  # type: ignore[misc]
        def init(self) -> None:
            self.fast, self.slow = (self.I(SMA, self.data.Close, period) for period in (10, 30))

        def next(self) -> None:
            if crossover(self.fast, self.slow):
                self.position.close()
                self.buy()
            elif crossover(self.slow, self.fast):
                self.position.close()
                self.sell()

    return Backtest(goog(), Cross, cash=10_000, commission=commission, finalize_trades=True).run()


def ours(commission: float) -> tuple[pd.DataFrame, dict[str, float | int | str]]:
    table = goog()
    opens = table.index.tz_localize("UTC").as_unit("ms").asi8
    candles = frame_of(opens, table[["Open", "High", "Low", "Close", "Volume"]].to_numpy(dtype="float64"))
    targets = sma_cross(candles, 10, 30, long_only=False)
    # backtesting.py closes what is open at the open of the last bar; in targets: flat, decided the bar before
    targets[-2:] = 0
    result = run(candles, targets, Costs(commission, 0.0), sizing=Sizing(lot=1), cash=10_000.0)
    return result.trades, summarise(result, 252.0)


@pytest.mark.parametrize("commission", [0.0, 0.001, 0.002])
def test_goog_sma_10_30_gives_the_trades_of_backtesting_py(commission: float) -> None:
    statistics = theirs(commission)
    expected = statistics["_trades"].sort_values("EntryBar")
    trades, figures = ours(commission)
    assert len(trades) == len(expected) == 66
    np.testing.assert_array_equal(trades["entry_bar"], expected["EntryBar"])
    np.testing.assert_array_equal(trades["exit_bar"], expected["ExitBar"])
    np.testing.assert_array_equal(trades["side"] * trades["size"], expected["Size"])
    np.testing.assert_array_equal(trades["entry_price"], expected["EntryPrice"])
    np.testing.assert_array_equal(trades["exit_price"], expected["ExitPrice"])
    np.testing.assert_allclose(trades["fees"], expected["Commission"], rtol=1e-12)
    np.testing.assert_allclose(trades["pnl"], expected["PnL"], rtol=1e-9, atol=1e-8)
    assert figures["final_equity"] == pytest.approx(statistics["Equity Final [$]"], rel=1e-12)
    assert 100 * float(figures["total_return"]) == pytest.approx(statistics["Return [%]"], rel=1e-10)
    assert 100 * float(figures["max_drawdown"]) == pytest.approx(statistics["Max. Drawdown [%]"], rel=1e-9)
    assert 100 * float(figures["win_rate"]) == pytest.approx(statistics["Win Rate [%]"])


def test_goog_equals_the_recorded_run(shared: Path) -> None:
    expected = json.loads((shared / "oracles" / "backtest.json").read_text())["goog_sma_10_30"]["expected"]
    recorded = pd.read_csv(shared / "oracles" / "backtestingpy_GOOG_smacross_test_trades.csv").sort_values("EntryBar")
    trades, figures = ours(0.0)
    np.testing.assert_array_equal(trades["side"] * trades["size"], recorded["Size"])
    np.testing.assert_array_equal(trades[["entry_bar", "exit_bar"]], recorded[["EntryBar", "ExitBar"]])
    assert figures["final_equity"] == pytest.approx(expected["Equity Final [$]"], rel=1e-12)
