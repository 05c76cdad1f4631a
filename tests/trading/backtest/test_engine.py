"""The kernel against a slow, obvious reference; the books balance; bad input is refused before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trading.backtest.engine import Costs, Sizing, run
from trading.candles import frame_of
from trading.errors import CandleContractError, InvalidRequest

HOUR = 3_600_000


def market(count: int, seed: int, wild: float = 0.02) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.standard_t(3, count) * wild))
    open_ = np.r_[100.0, close[:-1]] * np.exp(rng.normal(0, wild / 2, count))
    values = np.c_[open_, np.maximum(open_, close) * 1.001, np.minimum(open_, close) * 0.999, close, np.ones(count)]
    return frame_of(np.arange(count) * HOUR, values)


@dataclass
class Account:
    """A broker as one would write it on a napkin."""

    cash: float
    fee: float
    slip: float
    units: float = 0.0
    trades: list[dict[str, Any]] = field(default_factory=list)
    ruined: bool = False

    def fill(self, bar: int, price: float, units: float, reason: str) -> None:
        side = 1 if units > 0 else -1
        paid = price * (1 + self.slip * side)
        fee = abs(units) * paid * self.fee
        self.cash -= units * paid + fee
        if self.units == 0:
            self.trades.append({"entry": bar, "side": side, "size": abs(units), "in": paid, "fees": fee, "why": "open"})
        else:
            self.trades[-1] |= {"exit": bar, "out": paid, "why": reason}
            self.trades[-1]["fees"] += fee
        self.units += units

    def want(self, bar: int, price: float, target: int, sizing: Sizing) -> None:
        if self.ruined or target == np.sign(self.units):
            return
        if self.units:
            self.fill(bar, price, -self.units, "target reversed" if target else "target flat")
            self.units = 0.0
        if target and self.cash > 0:
            unit_cost = price * (1 + self.slip * target) * (1 + self.fee)
            size = sizing.units or self.cash * sizing.fraction / unit_cost
            if sizing.lot:
                size = math.floor(size / sizing.lot * (1 + 1e-12)) * sizing.lot
            if size > 0 and size * unit_cost <= self.cash * (1 + 1e-12):
                self.fill(bar, price, size * target, "")


def reference(candles: pd.DataFrame, targets: np.ndarray, costs: Costs, sizing: Sizing, cash: float) -> Any:
    account = Account(cash, costs.fee_rate, costs.slippage_rate)
    equity = []
    for bar in range(len(candles)):
        if bar:
            account.want(bar, float(candles["open"].iloc[bar]), int(targets[bar - 1]), sizing)
        close = float(candles["close"].iloc[bar])
        if account.units and account.cash + account.units * close <= 0:
            account.fill(bar, close, -account.units, "ruin")
            account.units = 0.0
        if account.cash + account.units * close <= 0:
            account.ruined, account.cash = True, 0.0
        equity.append(account.cash + account.units * close)
    return account, equity


cases = {
    "count": st.integers(2, 60),
    "seed": st.integers(0, 10_000),
    "wild": st.sampled_from([0.005, 0.05, 0.6]),
    "fee": st.sampled_from([0.0, 0.001, 0.05]),
    "slip": st.sampled_from([0.0, 0.0005, 0.02]),
    "sizing": st.sampled_from(
        [Sizing(), Sizing(fraction=0.3), Sizing(lot=1), Sizing(units=3), Sizing(units=500, lot=10)]
    ),
}


@settings(max_examples=150, deadline=None)
@given(**cases)
def test_the_kernel_is_the_reference_only_faster(
    count: int, seed: int, wild: float, fee: float, slip: float, sizing: Sizing
) -> None:
    candles = market(count, seed, wild)
    targets = np.random.default_rng(seed + 1).choice([-1, 0, 1], count, p=[0.4, 0.2, 0.4]).astype(np.int8)
    costs = Costs(fee, slip)
    result = run(candles, targets, costs, sizing=sizing, cash=10_000.0)
    account, equity = reference(candles, targets, costs, sizing, 10_000.0)
    np.testing.assert_allclose(result.equity, equity, rtol=1e-10, atol=1e-7)
    trades = result.trades
    assert list(trades["exit_reason"]) == [trade["why"] for trade in account.trades]
    assert list(trades["entry_bar"]) == [trade["entry"] for trade in account.trades]
    assert list(trades["exit_bar"]) == [trade.get("exit", count) for trade in account.trades]
    np.testing.assert_allclose(trades["size"], [trade["size"] for trade in account.trades], rtol=1e-10)
    np.testing.assert_allclose(trades["fees"], [trade["fees"] for trade in account.trades], rtol=1e-9)


@settings(max_examples=100, deadline=None)
@given(**cases)
def test_cash_position_and_equity_reconcile_at_every_bar(
    count: int, seed: int, wild: float, fee: float, slip: float, sizing: Sizing
) -> None:
    candles = market(count, seed, wild)
    targets = np.random.default_rng(seed).choice([-1, 0, 1], count).astype(np.int8)
    result = run(candles, targets, Costs(fee, slip), sizing=sizing, cash=10_000.0, close_at_end=True)
    marked = result.cash + result.position * candles["close"]
    np.testing.assert_allclose(marked, result.equity, rtol=1e-12, atol=1e-9)
    assert (result.equity >= 0).all()
    assert result.position.iloc[-1] == 0
    if "ruin" not in set(result.trades["exit_reason"]) and result.equity.iloc[-1] > 0:
        assert result.equity.iloc[-1] == pytest.approx(10_000 + result.trades["pnl"].sum(), rel=1e-9)


def test_a_decision_is_filled_at_the_next_open_and_not_before() -> None:
    candles = market(5, 1)
    result = run(candles, np.array([0, 1, 1, 0, 0]), Costs(0, 0), sizing=Sizing(units=1), cash=1_000.0)
    [trade] = result.trades.to_dict("records")
    assert (trade["entry_bar"], trade["exit_bar"]) == (2, 4)
    assert trade["entry_price"] == candles["open"].iloc[2]
    assert trade["exit_price"] == candles["open"].iloc[4]
    assert trade["entry_time"] == candles.index[2]


def test_a_short_that_loses_more_than_there_is_ends_the_account_at_zero() -> None:
    candles = frame_of(
        np.arange(4) * HOUR,
        [[100, 101, 99, 100, 1], [100, 101, 99, 100, 1], [100, 900, 100, 900, 1], [900, 901, 99, 100, 1]],
    )
    result = run(candles, np.array([-1, -1, -1, -1]), Costs(0.001, 0), cash=1_000.0)
    assert result.equity.tolist()[2:] == [0.0, 0.0]
    assert result.trades["exit_reason"].tolist() == ["ruin"]


def test_what_cannot_be_bought_is_not_traded() -> None:
    result = run(market(10, 2), np.ones(10), Costs(), sizing=Sizing(lot=1), cash=50.0)
    assert len(result.trades) == 0
    assert (result.equity == 50.0).all()


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"targets": np.ones(9)}, InvalidRequest, r"mine gave targets of shape \(9,\) for 10 candles"),
        ({"targets": np.r_[np.ones(9), 2]}, InvalidRequest, r"mine wants 2.0 at 1970-01-01 09:00.*-1, 0 or \+1"),
        ({"targets": np.r_[np.ones(9), np.nan]}, InvalidRequest, "mine wants nan"),
        ({"cash": -1.0}, InvalidRequest, "mine: starting cash is -1.0"),
        ({"candles": market(10, 1).iloc[:0], "targets": np.ones(0)}, InvalidRequest, "mine: there are no candles"),
        ({"candles": market(10, 1).iloc[::-1]}, CandleContractError, "unique and increasing"),
        ({"candles": market(10, 1).assign(close=np.nan)}, CandleContractError, "is impossible"),
        ({"candles": market(10, 1).assign(low=0.0)}, CandleContractError, "is impossible"),
    ],
)
def test_bad_input_is_refused_with_strategy_and_bar(change: dict[str, Any], kind: type[Exception], said: str) -> None:
    request: dict[str, Any] = {"candles": market(10, 1), "targets": np.ones(10), "cash": 1_000.0} | change
    with pytest.raises(kind, match=said):
        run(request["candles"], request["targets"], Costs(), cash=request["cash"], strategy="mine")


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan, math.inf])
def test_costs_that_make_no_sense(rate: float) -> None:
    with pytest.raises(InvalidRequest, match="fee rate is"):
        Costs(rate, 0.0)
    with pytest.raises(InvalidRequest, match="slippage rate is"):
        Costs(0.0, rate)


@pytest.mark.parametrize(
    "sizing", [{"units": -1}, {"fraction": 0}, {"fraction": 1.5}, {"lot": -1}, {"units": math.nan}]
)
def test_sizes_that_make_no_sense(sizing: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match="makes no sense"):
        Sizing(**sizing)
