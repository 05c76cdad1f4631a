"""The backtest agrees trade by trade with backtesting.py, and to the last digit with recorded runs of three engines.

What is made equal, and how:

- backtesting.py looks at stop and target of a position on the whole range of a bar before it fills, at the open of
  that bar, what the strategy decided at the close before; ours goes by time. So it is given every bar as two rows,
  the open and then the bar itself; what it does then is what it documents, in the order of time.
- It keeps an order until it is cancelled; ours stands for one bar. The strategy cancels and places anew.
- It buys whole units with all the cash: ``Sizing(lot=1)``. It knows no slippage; its spread is paid at entries only,
  ours on both sides: both are 0.
- It enters the same side again at once when its strategy says so; ours waits until the target has left the side
  (``Protection.reenter`` is the setting). The strategy waits likewise, or the setting is on.
- It closes what is held at the end at the open of the last bar; ours, with ``Execution.close_at_end``, at its
  close. The targets end flat, which both fill at that open.
- A position entered inside a bar, at a limit or a stop, is not stopped by it in that bar, and it says that this is
  dubious. Ours may be stopped there; it has no setting for an exit that is missed. Stops lie further away than that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from trading import indicators
from trading.backtest.engine import BacktestResult, Costs, Decisions, Execution, Protection, Rules, Sizing, run
from trading.backtest.metrics import summarise
from trading.candles import COLUMNS, frame_of
from trading.strategies import bollinger, breakout, rsi, sma_cross

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
def test_sma_20_50_on_real_hours_gives_the_trades_of_three_independent_engines(shared: Path, symbol: str) -> None:
    rows = pd.read_parquet(shared / "data" / f"binance_{symbol}_1h.parquet")
    expected = json.loads((shared / "oracles" / "backtest.json").read_text())["sma_20_50"]["expected"][f"{symbol}_1h"]
    trades = pd.read_csv(shared / "oracles" / f"oracle_sma20_50_{symbol}_1h_trades.csv")
    candles = frame_of(rows["timestamp"], rows[list(COLUMNS)])
    result = run(candles, sma_cross(candles, 20, 50), Rules(Costs(0.001, 0.0), Sizing(units=1), cash=1_000_000.0))
    ours = result.trades
    assert len(ours) == expected["closed_trades"]
    np.testing.assert_array_equal(ours[["entry_bar", "exit_bar"]], trades[["entry_bar", "exit_bar"]])
    np.testing.assert_array_equal(ours[["entry_price", "exit_price"]], trades[["entry", "exit"]])
    figures = summarise(result, 8766.0)
    assert figures["final_equity"] == pytest.approx(expected["final_equity_own"], rel=1e-14)
    assert result.costs["fees"] == pytest.approx(expected["fees"], rel=1e-13)
    assert ours["pnl"].sum() + result.costs["fees"] == pytest.approx(expected["gross_pnl_closed"], rel=1e-10)
    assert 100 * float(figures["max_drawdown"]) == pytest.approx(expected["max_drawdown_pct"], rel=1e-12)


def shipped(name: str) -> pd.DataFrame:
    """GOOG (days) or EURUSD (hours) as they come with backtesting.py, in our layout."""
    from backtesting import test

    table: pd.DataFrame = getattr(test, name)
    opens = table.index.tz_localize("UTC").as_unit("ms").asi8
    return frame_of(opens, table[["Open", "High", "Low", "Close", "Volume"]].to_numpy(dtype="float64"))


@dataclass(frozen=True, eq=False)
class Peer:
    """What backtesting.py did: its trades in the order of their entries, by bar; equity after each bar."""

    trades: pd.DataFrame
    equity: np.ndarray
    statistics: pd.Series = field(repr=False)


def followed(candles: pd.DataFrame, decisions: Decisions, rules: Rules) -> Peer:
    """backtesting.py, its strategy following ``decisions``; of the rules it heeds fee, protection, cash, leverage."""
    from backtesting import Backtest, Strategy

    protection, closes = rules.protection, len(candles)

    def at(name: str, bar: int) -> float | None:
        values = getattr(decisions, name)
        return float(values[bar]) if len(values) and not np.isnan(values[bar]) else None

    class Follow(Strategy):  # type: ignore[misc]
        def init(self) -> None:
            self.blocked, self.leaving, self.seen, self.best = 0, False, 0, 0.0

        def next(self) -> None:
            bar, whole = divmod(len(self.data) - 1, 2)
            for trade in self.closed_trades[self.seen :]:
                protected = not self.leaving or trade.entry_bar == 2 * bar + whole
                if protected and not protection.reenter:
                    self.blocked = 1 if trade.size > 0 else -1
            self.seen, self.leaving = len(self.closed_trades), False
            self.protect(whole)
            if whole:
                self.follow(bar)

        def protect(self, whole: int) -> None:
            """What hangs on the entry's price, and what trails the best price of the bars before."""
            for trade in self.trades:
                side = 1 if trade.size > 0 else -1
                fresh = trade.entry_bar == len(self.data) - 1
                if fresh and protection.stop_loss:
                    trade.sl = trade.entry_price * (1 - side * protection.stop_loss)
                if fresh and protection.take_profit:
                    trade.tp = trade.entry_price * (1 + side * protection.take_profit)
                if protection.trailing_stop and (fresh or whole):
                    extreme = (self.data.High if side > 0 else self.data.Low)[-1]
                    self.best = trade.entry_price if fresh else max(self.best * side, extreme * side) * side
                    level = self.best * (1 - side * protection.trailing_stop)
                    if trade.sl is None or (level - trade.sl) * side > 0:
                        trade.sl = level

        def follow(self, bar: int) -> None:
            for order in self.orders:
                if not order.is_contingent:
                    order.cancel()
            want, held = int(decisions.targets[bar]), int(np.sign(self.position.size))
            if want != self.blocked:
                self.blocked = 0
            if held and want != held:
                self.position.close()
                self.leaving = True
            if want and want != held and not self.blocked and bar < closes - 1:
                (self.buy if want > 0 else self.sell)(
                    limit=at("limit", bar), stop=at("stop_entry", bar),
                    sl=at("stop_price", bar), tp=at("target_price", bar),
                )  # fmt: skip

    bars = candles.to_numpy()
    rows = np.repeat(bars, 2, axis=0)
    rows[::2, :4] = bars[:, :1]
    times = np.repeat(candles.index.tz_localize(None).to_numpy(), 2)
    times[1::2] += np.timedelta64(1, "s")
    table = pd.DataFrame(rows, columns=["Open", "High", "Low", "Close", "Volume"], index=pd.DatetimeIndex(times))
    statistics = Backtest(
        table, Follow, cash=rules.cash, commission=rules.costs.fee_rate, margin=1 / rules.sizing.leverage
    ).run()
    trades = statistics["_trades"].sort_values(["EntryBar", "ExitBar"], ignore_index=True)
    trades[["EntryBar", "ExitBar"]] //= 2
    return Peer(trades, statistics["_equity_curve"]["Equity"].to_numpy()[1::2], statistics)


def agrees(result: BacktestResult, peer: Peer) -> None:
    """Same bars, units and prices exactly; money but for the order in which it was added."""
    trades, theirs = result.trades, peer.trades
    assert len(trades) == len(theirs)
    np.testing.assert_array_equal(trades["entry_bar"], theirs["EntryBar"])
    np.testing.assert_array_equal(trades["exit_bar"], theirs["ExitBar"])
    np.testing.assert_array_equal(trades["side"] * trades["size"], theirs["Size"])
    np.testing.assert_array_equal(trades["entry_price"], theirs["EntryPrice"])
    np.testing.assert_array_equal(trades["exit_price"], theirs["ExitPrice"])
    np.testing.assert_allclose(trades["fees"], theirs["Commission"], rtol=1e-12)
    np.testing.assert_allclose(trades["pnl"], theirs["PnL"], rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(result.equity, peer.equity, rtol=1e-12)


def wanted(strategy: str, candles: pd.DataFrame) -> np.ndarray:
    """Targets of both sides, flat at the last open."""
    found = {
        "sma cross": lambda: sma_cross(candles, 10, 30, long_only=False),
        "rsi": lambda: rsi(candles, 14, 35.0, 65.0),
        "bollinger": lambda: bollinger(candles, 20, 1.5),
        "breakout": lambda: breakout(candles, 20, 10).targets,
    }[strategy]()
    targets = np.asarray(found, dtype=np.float64).copy()
    targets[-2:] = 0
    return targets


def ranged(candles: pd.DataFrame) -> np.ndarray:
    """The average true range, with the first known one before it."""
    high, low, close = (candles[name].to_numpy() for name in ("high", "low", "close"))
    return pd.Series(indicators.atr(high, low, close, 14)).bfill().to_numpy()


def decided(way: str, candles: pd.DataFrame, targets: np.ndarray) -> tuple[Decisions, Protection]:
    """The same targets, entered and protected in one of several ways."""
    close, width, none = candles["close"].to_numpy(), ranged(candles), Protection()
    plain = Decisions(targets)
    return {
        "plain": lambda: (plain, none),
        # levels as prices, two average ranges below and three above the close of the decision
        "levels": lambda: (
            replace(plain, stop_price=close - 2 * width * targets_side(targets),
                    target_price=close + 3 * width * targets_side(targets)), none,
        ),
        "tight levels": lambda: (
            replace(plain, stop_price=close - 0.4 * width * targets_side(targets),
                    target_price=close + 0.6 * width * targets_side(targets)), none,
        ),
        # shares of the entry's price
        "shares": lambda: (plain, shares_of(close, width, 1.5, 2.5)),
        "tight shares": lambda: (plain, shares_of(close, width, 0.3, 0.5)),
        "reenter": lambda: (plain, replace(shares_of(close, width, 1.0, 1.0), reenter=True)),
        "trailing": lambda: (plain, Protection(trailing_stop=2 * float(np.median(width / close)))),
        "stop and trailing": lambda: (
            plain, replace(shares_of(close, width, 1.0, 4.0), trailing_stop=2 * float(np.median(width / close))),
        ),
        "limit": lambda: (
            replace(plain, limit=close - 0.5 * width * targets_side(targets),
                    target_price=close + 2 * width * targets_side(targets)), none,
        ),
        "stop entry": lambda: (
            replace(plain, stop_entry=close + 0.5 * width * targets_side(targets),
                    stop_price=close - 6 * width * targets_side(targets)), none,
        ),
    }[way]()  # fmt: skip


def targets_side(targets: np.ndarray) -> np.ndarray:
    """+1 and -1; NaN without a target, which is no level."""
    return np.where(targets == 0, np.nan, np.sign(targets))


def shares_of(close: np.ndarray, width: np.ndarray, stop: float, target: float) -> Protection:
    usual = float(np.median(width / close))
    return Protection(stop_loss=stop * usual, take_profit=target * usual)


WAYS = (
    "plain", "levels", "tight levels", "shares", "tight shares", "reenter", "trailing", "stop and trailing", "limit",
    "stop entry",
)  # fmt: skip


def both(market: str, strategy: str, way: str, commission: float) -> tuple[BacktestResult, Peer]:
    candles = shipped(market)
    decisions, protection = decided(way, candles, wanted(strategy, candles))
    rules = Rules(Costs(commission, 0.0), Sizing(lot=1), protection, cash=10_000.0)
    return run(candles, decisions, rules), followed(candles, decisions, rules)


@pytest.mark.parametrize(
    ("strategy", "way"),
    [("sma cross", "reenter"), ("rsi", "limit"), ("bollinger", "stop and trailing"), ("breakout", "levels")],
)
def test_goog_gives_the_trades_of_backtesting_py(strategy: str, way: str) -> None:
    result, peer = both("GOOG", strategy, way, 0.001)
    assert set(result.trades["side"]) == {-1, 1}
    agrees(result, peer)


@pytest.mark.integration
@pytest.mark.parametrize("market", ["GOOG", "EURUSD"])
@pytest.mark.parametrize("strategy", ["sma cross", "rsi", "bollinger", "breakout"])
def test_every_strategy_protected_and_entered_in_every_way_gives_the_trades_of_backtesting_py(
    market: str, strategy: str
) -> None:
    reasons: set[str] = set()
    for way in WAYS:
        result, peer = both(market, strategy, way, 0.001 if market == "GOOG" else 0.0002)
        assert len(result.trades) > 40
        reasons |= set(result.trades["entry_reason"]) | set(result.trades["exit_reason"])
        agrees(result, peer)
    assert reasons >= {
        "target", "limit", "stop entry", "stop loss", "take profit", "trailing stop", "target flat",
    }  # fmt: skip


def test_a_stop_may_be_touched_in_the_bar_of_a_limit_entry_which_backtesting_py_sees_a_bar_later() -> None:
    bars = [(100, 101, 99, 100), (100, 101, 95, 98), (98, 99, 97, 98), (98, 98, 94, 95), (95, 95, 95, 95)]
    candles = frame_of(np.arange(5) * 3_600_000, [(*bar, 1.0) for bar in bars])
    nothing = np.full(5, np.nan)
    limit, stop = nothing.copy(), nothing.copy()
    limit[0], stop[0] = 98.0, 96.0
    decisions = Decisions(np.array([1.0, 1.0, 1.0, 1.0, 0.0]), limit=limit, stop_price=stop)
    rules = Rules(Costs(0.0, 0.0), Sizing(lot=1), cash=10_000.0)
    result, peer = run(candles, decisions, rules), followed(candles, decisions, rules)
    assert result.trades[["entry_bar", "exit_bar", "exit_price"]].to_numpy().tolist() == [[1, 1, 96.0]]
    assert peer.trades[["EntryBar", "ExitBar", "ExitPrice"]].to_numpy().tolist() == [[1, 3, 96.0]]


def crossing(candles: pd.DataFrame, commission: float, **options: Any) -> pd.Series:
    """backtesting.py with bars as they are: SMA 10/30, close and reverse, all in, whole shares."""
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

    table = candles.rename(columns=str.title).tz_localize(None)
    return Backtest(table, Cross, cash=10_000, commission=commission, finalize_trades=True, **options).run()


def crossed(candles: pd.DataFrame, commission: float, **options: Any) -> BacktestResult:
    return run(
        candles, wanted("sma cross", candles), Rules(Costs(commission, 0.0), Sizing(lot=1), cash=10_000.0, **options)
    )


@pytest.mark.parametrize("commission", [0.0, 0.002])
def test_goog_sma_10_30_gives_the_trades_and_figures_of_backtesting_py(commission: float) -> None:
    candles = shipped("GOOG")
    statistics, result = crossing(candles, commission), crossed(candles, commission)
    trades = statistics["_trades"].sort_values("EntryBar", ignore_index=True)
    assert len(trades) == 66
    agrees(result, Peer(trades, statistics["_equity_curve"]["Equity"].to_numpy(), statistics))
    figures = summarise(result, 252.0)
    same = {
        "final_equity": statistics["Equity Final [$]"],
        "fees": statistics.get("Commissions [$]", 0.0),
        "total_return": statistics["Return [%]"] / 100,
        "max_drawdown": statistics["Max. Drawdown [%]"] / 100,
        "mean_drawdown": statistics["Avg. Drawdown [%]"] / 100,
        "trades": statistics["# Trades"],
        "win_rate": statistics["Win Rate [%]"] / 100,
        "mean_trade": statistics["Expectancy [%]"] / 100,  # what it calls expectancy is a mean return, ours is money
        "best_trade": statistics["Best Trade [%]"] / 100,
        "worst_trade": statistics["Worst Trade [%]"] / 100,
        "sqn": statistics["SQN"],
        "kelly": statistics["Kelly Criterion"],
    }
    assert {name: figures[name] for name in same} == pytest.approx(same, rel=1e-9)


def test_where_figures_differ_from_backtesting_py_it_is_by_definition() -> None:
    candles = shipped("GOOG")
    statistics, result = crossing(candles, 0.002), crossed(candles, 0.002)
    trades, bars = result.trades, len(candles)
    # its profit factor is one of returns, ours one of money
    gains = (trades["pnl"] / (trades["size"] * trades["entry_price"])).to_numpy()
    assert statistics["Profit Factor"] == pytest.approx(gains[gains > 0].sum() / -gains[gains < 0].sum(), rel=1e-9)
    # it counts the bar of the exit as one with a position, ours goes by what is held after the close
    held = np.zeros(bars, dtype=bool)
    for first, last in zip(trades["entry_bar"], trades["exit_bar"], strict=True):
        held[first : last + 1] = True
    assert statistics["Exposure Time [%]"] == pytest.approx(100 * held.mean(), rel=1e-12)
    # its year is made of the bars after the first one, ours of all
    growth = (1 + result.total_return) ** (252 / (bars - 1)) - 1
    assert statistics["Return (Ann.) [%]"] == pytest.approx(100 * growth, rel=1e-9)
    # its Sharpe ratio is that growth over the deviation of a log-normal year, ours is of plain returns per bar
    returns = np.diff(result.equity) / result.equity.to_numpy()[:-1]
    even = (1 + growth) ** (1 / 252)
    year = np.sqrt((returns.var(ddof=1) + even**2) ** 252 - even**504)
    assert statistics["Sharpe Ratio"] == pytest.approx(growth / year, rel=1e-9)
    # its beta is of log returns, ours of plain ones
    logs, market = np.diff(np.log(result.equity)), np.diff(np.log(candles["close"]))
    assert statistics["Beta"] == pytest.approx(np.cov(logs, market)[0, 1] / market.var(ddof=1), rel=1e-9)


def test_fills_at_the_same_close_are_those_of_backtesting_py() -> None:
    candles = shipped("GOOG")
    statistics = crossing(candles, 0.001, trade_on_close=True)
    result = crossed(candles, 0.001, execution=Execution(fill="same close"))
    # the last trade ends at a close of its own in each, see above
    trades, theirs = result.trades[:-1], statistics["_trades"].sort_values("EntryBar")[:-1]
    np.testing.assert_array_equal(trades[["entry_bar", "exit_bar"]], theirs[["EntryBar", "ExitBar"]])
    np.testing.assert_array_equal(trades[["entry_price", "exit_price"]], theirs[["EntryPrice", "ExitPrice"]])
    np.testing.assert_array_equal(trades["side"] * trades["size"], theirs["Size"])


def test_twice_the_equity_is_twice_the_equity_of_backtesting_py() -> None:
    # without fees: it pays them out of the borrowed money, ours keeps the notional at twice what is left after them
    candles = shipped("EURUSD")
    statistics = crossing(candles, 0.0, margin=0.5)
    rules = Rules(Costs(0.0, 0.0), Sizing(fraction=2.0, leverage=2.0, lot=1), cash=10_000.0)
    result = run(candles, wanted("sma cross", candles), rules)
    trades = statistics["_trades"].sort_values("EntryBar", ignore_index=True)
    agrees(result, Peer(trades, statistics["_equity_curve"]["Equity"].to_numpy(), statistics))


def test_goog_equals_the_recorded_run(shared: Path) -> None:
    expected = json.loads((shared / "oracles" / "backtest.json").read_text())["goog_sma_10_30"]["expected"]
    recorded = pd.read_csv(shared / "oracles" / "backtestingpy_GOOG_smacross_test_trades.csv").sort_values("EntryBar")
    result = crossed(shipped("GOOG"), 0.0)
    trades, figures = result.trades, summarise(result, 252.0)
    np.testing.assert_array_equal(trades["side"] * trades["size"], recorded["Size"])
    np.testing.assert_array_equal(trades[["entry_bar", "exit_bar"]], recorded[["EntryBar", "ExitBar"]])
    np.testing.assert_array_equal(trades[["entry_price", "exit_price"]], recorded[["EntryPrice", "ExitPrice"]])
    np.testing.assert_allclose(trades["pnl"], recorded["PnL"], rtol=1e-11)
    assert figures["final_equity"] == pytest.approx(expected["Equity Final [$]"], rel=1e-14)
    assert 100 * float(figures["max_drawdown"]) == pytest.approx(expected["Max. Drawdown [%]"], rel=1e-13)
    assert figures["sqn"] == pytest.approx(float(expected["SQN"]), rel=1e-6)
