"""The engine: results one can read, and bad input refused before anything runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trading.backtest import inputs
from trading.backtest.engine import (
    Costs,
    Decisions,
    Execution,
    FeeTier,
    Limits,
    Protection,
    Rules,
    Sizing,
    run,
    run_portfolio,
)
from trading.candles import check, frame_of
from trading.errors import CandleContractError, InvalidRequest

HOUR = 3_600_000


def market(count: int, seed: int, wild: float = 0.02, start: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.standard_t(3, count) * wild))
    open_ = np.r_[100.0, close[:-1]] * np.exp(rng.normal(0, wild / 2, count))
    values = np.c_[open_, np.maximum(open_, close) * 1.001, np.minimum(open_, close) * 0.999, close, np.ones(count)]
    return frame_of((start + np.arange(count)) * HOUR, values)


def test_a_decision_is_filled_at_the_next_open_and_not_before() -> None:
    candles = market(5, 1)
    result = run(candles, np.array([0, 1, 1, 0, 0]), Rules(Costs(0, 0), Sizing(units=1), cash=1_000.0), strategy="mine")
    [trade] = result.trades.to_dict("records")
    assert (trade["entry_bar"], trade["exit_bar"]) == (2, 4)
    assert trade["entry_price"] == candles["open"].iloc[2]
    assert trade["exit_price"] == candles["open"].iloc[4]
    assert (trade["entry_time"], trade["exit_time"]) == (candles.index[2], candles.index[4])
    assert (trade["entry_reason"], trade["exit_reason"], trade["symbol"]) == ("target", "target flat", "")
    assert result.fills["units"].tolist() == [1, -1]
    assert result.fills["time"].tolist() == [candles.index[2], candles.index[4]]
    assert result.position.tolist() == [0, 0, 1, 1, 0]
    assert result.strategy == "mine"


def test_an_open_trade_says_so() -> None:
    candles = market(6, 3)
    result = run(candles, np.ones(6), Rules(Costs(0.01, 0), Sizing(units=2), cash=1_000.0))
    [trade] = result.trades.to_dict("records")
    assert (trade["exit_bar"], trade["exit_reason"]) == (6, "open")
    assert trade["exit_time"] is pd.NaT
    assert math.isnan(trade["exit_price"])
    paid = 2 * candles["open"].iloc[1]
    assert trade["pnl"] == pytest.approx(2 * candles["close"].iloc[-1] - paid * 1.01)
    assert result.equity.iloc[-1] == pytest.approx(1_000 + trade["pnl"])
    assert result.costs == {"fees": pytest.approx(paid * 0.01), "slippage": 0, "funding": 0, "borrow": 0}


def test_a_portfolio_trades_on_the_bars_of_all_its_symbols() -> None:
    early, late = market(6, 1), market(6, 2, start=3)
    rules = Rules(Costs(0, 0), Sizing(units=1), cash=10_000.0)
    result = run_portfolio({"A": early, "B": late}, {"A": np.ones(6), "B": -np.ones(6)}, rules)
    assert len(result.equity) == 9
    assert result.symbols == ("A", "B")
    assert result.positions.tolist() == [[0, 0], *[[1, 0]] * 3, *[[1, -1]] * 5]
    # A is not traded and not marked anew once its candles are over
    gain = early["close"].iloc[-1] - early["open"].iloc[1] - (late["close"].iloc[-1] - late["open"].iloc[1])
    assert result.equity.iloc[-1] == pytest.approx(10_000 + gain)
    assert result.trades["symbol"].tolist() == ["A", "B"]


candles10 = market(10, 1)
nan9 = np.full(9, np.nan)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"decisions": np.ones(9)}, InvalidRequest, r"mine gave targets of shape \(9,\) for 10 candles"),
        ({"decisions": np.r_[np.ones(9), 2]}, InvalidRequest, r"mine wants 2.0 at 1970-01-01 09:00.*from -1 to \+1"),
        ({"decisions": np.r_[np.nan, np.ones(9)]}, InvalidRequest, "mine wants nan at 1970-01-01 00:00"),
        (
            {"decisions": Decisions(np.ones(10), limit=np.ones(3))},
            InvalidRequest,
            r"mine gave limit of shape \(3,\) for 10 candles",
        ),
        (
            {"decisions": Decisions(np.ones(10), stop_price=np.r_[nan9, -5.0])},
            InvalidRequest,
            "mine gives the stop price -5.0 at 1970-01-01 09:00",
        ),
        (
            {"decisions": Decisions(np.ones(10), limit=np.full(10, 99.0), stop_entry=np.full(10, 99.0))},
            InvalidRequest,
            "mine gives a limit and a stop entry at 1970-01-01 00:00",
        ),
        (
            {
                "decisions": Decisions(np.ones(10), limit=np.full(10, 99.0)),
                "rules": Rules(execution=Execution(fill="same close")),
            },
            InvalidRequest,
            "mine enters at limits or stops, which a fill at the same close cannot",
        ),
        ({"rules": Rules(limits=Limits(min_edge=1))}, InvalidRequest, "mine gives no edge, and min_edge=1"),
        ({"funding": np.ones(4)}, InvalidRequest, r"mine gave funding rates of the series of shape \(4,\)"),
        ({"funding": np.r_[nan9, 0]}, InvalidRequest, "mine: funding rates of the series are nan at 1970-01-01 00"),
        ({"candles": candles10.iloc[:0], "decisions": np.ones(0)}, InvalidRequest, "mine: there are no candles"),
        ({"candles": candles10.iloc[::-1]}, CandleContractError, "mine: candles must be unique and increasing"),
        ({"candles": candles10.assign(close=np.nan)}, CandleContractError, "mine: the candle at .* is impossible"),
        ({"candles": candles10.assign(low=0.0)}, CandleContractError, "mine: the candle at .* is impossible"),
        ({"candles": candles10.assign(open=-1.0)}, CandleContractError, "mine: the candle at .* is impossible"),
        ({"candles": candles10.drop(columns="volume")}, CandleContractError, "mine: candles lack the columns"),
        ({"candles": candles10.tz_localize(None)}, CandleContractError, "mine: candle index is"),
    ],
)
def test_bad_input_is_refused_with_strategy_and_bar(change: dict[str, Any], kind: type[Exception], said: str) -> None:
    request: dict[str, Any] = {"candles": candles10, "decisions": np.ones(10), "rules": Rules(), "funding": None}
    request |= change
    with pytest.raises(kind, match=said):
        run(
            request["candles"], request["decisions"], request["rules"], funding=request["funding"], strategy="mine"
        )  # fmt: skip


def test_portfolios_that_do_not_fit_together() -> None:
    with pytest.raises(InvalidRequest, match="there are no symbols"):
        run_portfolio({}, {})
    with pytest.raises(InvalidRequest, match=r"of the same symbols; \['B'\] lack one"):
        run_portfolio({"A": candles10}, {"A": np.ones(10), "B": np.ones(10)})
    with pytest.raises(InvalidRequest, match="funding and no candles for B"):
        run_portfolio({"A": candles10}, {"A": np.ones(10)}, funding={"B": np.zeros(10)})


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "name", ["fee_rate", "slippage_rate", "maker_rate", "spread", "impact", "borrow_rate"]
)  # fmt: skip
def test_costs_that_make_no_sense(name: str, rate: float) -> None:
    with pytest.raises(InvalidRequest, match=f"{name.replace('_', ' ')} is"):
        Costs(**{name: rate})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Costs(slippage_rate=0.6, spread=0.8), "a sale would earn nothing"),
        (lambda: Costs(tiers=(FeeTier(5, 0, 0), FeeTier(5, 0, 0))), "each must begin above"),
        (lambda: Costs(tiers=(FeeTier(5, 0, 2),)), "taker rate from 5 is 2"),
        (lambda: Sizing(units=-1), "makes no sense"),
        (lambda: Sizing(fraction=0), "makes no sense"),
        (lambda: Sizing(fraction=1.5), "at most the leverage"),
        (lambda: Sizing(lot=-1), "makes no sense"),
        (lambda: Sizing(units=math.nan), "makes no sense"),
        (lambda: Sizing(units=1, risk=0.01), "sizes in several ways"),
        (lambda: Sizing(short_of_cash="borrow"), "skip or cut"),  # type: ignore[arg-type]
        (lambda: Protection(stop_loss=1.0), "makes no sense"),
        (lambda: Protection(take_profit=-0.1), "makes no sense"),
        (lambda: Protection(max_bars=-1), "max_bars=-1"),
        (lambda: Limits(cooldown_bars=-1), "makes no sense"),
        (lambda: Limits(max_exposure=0), "makes no sense"),
        (lambda: Execution(fill="last close"), "fill is 'next open' or 'same close'"),  # type: ignore[arg-type]
        (lambda: Execution(maintenance=1.0), "makes no sense"),
        (lambda: Rules(cash=-1.0), "starting cash is -1.0"),
    ],
)
def test_rules_that_make_no_sense(make: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        make()


def test_costs_times_a_factor() -> None:
    costs = Costs(0.001, 0.002, 0.0005, (FeeTier(100, 0.0001, 0.0002),), 0.004, 0.1, 0.05)
    assert costs.times(2) == Costs(0.002, 0.004, 0.001, (FeeTier(100, 0.0002, 0.0004),), 0.008, 0.2, 0.1)
    assert costs.times(0).round_trip == 0


@given(
    st.integers(2, 40),
    st.integers(0, 2**31),
    st.sampled_from([None, "open", "high", "low", "close", "volume", "time"]),
    st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -1.0, 1e9, 99.0]),
)
def test_the_quick_check_of_candles_finds_what_the_contract_forbids(
    count: int, seed: int, column: str | None, value: float
) -> None:
    candles = market(count, seed % 7)
    at = seed % count
    if column == "time":
        candles = candles.iloc[[*range(at + 1), *range(at, count)]]
    elif column is not None:
        candles.iloc[at, candles.columns.get_loc(column)] = value
    try:
        check(candles)
    except CandleContractError as expected:
        with pytest.raises(CandleContractError) as found:
            inputs.times_of({"": candles}, "mine")
        assert str(found.value) == f"mine: {expected}"
    else:
        inputs.times_of({"": candles}, "mine")


def test_volatility_is_of_the_year_of_each_market() -> None:
    rng = np.random.default_rng(3)
    hourly = market_of_hours(rng, np.arange(4000))
    # seven hours a day, five days a week
    open_hours = np.flatnonzero((np.arange(4000) % 24 < 7) & (np.arange(4000) // 24 % 7 < 5))
    session = market_of_hours(rng, open_hours)
    of_year = 8766 * 35 / 168
    rules = Rules(sizing=Sizing(volatility=0.2, volatility_bars=50))

    def shares(candles: dict[str, pd.DataFrame], bars_per_year: float) -> np.ndarray:
        times = inputs.times_of(candles, "test")
        return inputs.market_of(candles, times, rules, {}, bars_per_year, "test").shares

    together = shares({"session": session, "hourly": hourly}, 8766)
    # as known at each bar: the same to the bit for the market that has all bars, near for the other one
    np.testing.assert_array_equal(together[:, 1], shares({"hourly": hourly}, 8766)[:, 0])
    alone = shares({"session": session}, of_year)[:, 0]
    np.testing.assert_allclose(together[open_hours[500:], 0], alone[500:], rtol=0.03)
    # one that begins later has all bars from there on
    later = hourly.iloc[1000:]
    together = shares({"later": later, "hourly": hourly}, 8766)
    np.testing.assert_array_equal(together[1000:, 0], shares({"later": later}, 8766)[:, 0])


def market_of_hours(rng: np.random.Generator, hours: np.ndarray) -> pd.DataFrame:
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, len(hours))))
    return frame_of(1_704_067_200_000 + 3_600_000 * hours, np.column_stack([close] * 4 + [np.full(len(close), 1e6)]))
