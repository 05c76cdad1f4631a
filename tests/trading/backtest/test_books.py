"""The books of the kernel balance, and what must hold on every market holds, on generated markets and rules."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings

from tests.trading.backtest.markets import Scenario, changed, scenarios
from trading.backtest.engine import BacktestResult, run_portfolio
from trading.backtest.rules import Decisions, Rules

few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
PRICES = ("limit", "stop_entry", "stop_price", "target_price", "trail_distance")


def result_of(scenario: Scenario, rules: Rules | None = None, bars_per_year: float = 8766.0) -> BacktestResult:
    return run_portfolio(
        scenario.candles,
        scenario.decisions,
        rules or scenario.rules,
        funding=scenario.funding,
        bars_per_year=bars_per_year,
    )


def on_bars(scenario: Scenario, index: pd.Index, column: str) -> np.ndarray:
    """(n, symbols), NaN where a symbol has no candle."""
    return np.column_stack([frame[column].reindex(index).to_numpy() for frame in scenario.candles.values()])


def marks_of(scenario: Scenario, index: pd.Index) -> np.ndarray:
    return pd.DataFrame(on_bars(scenario, index, "close")).ffill().fillna(0.0).to_numpy()


@few
@given(scenarios())
def test_the_books_balance(scenario: Scenario) -> None:
    result = result_of(scenario)
    fills, trades, cash = result.fills, result.trades, scenario.rules.cash
    index = result.equity.index
    # every bar: what is there is cash and positions at their marks
    worth = result.cash.to_numpy() + (result.positions * marks_of(scenario, index)).sum(axis=1)
    np.testing.assert_allclose(result.equity, worth, rtol=1e-12, atol=cash * 1e-12)
    assert (result.equity >= 0).all()
    # positions are what the fills made of them
    summed = np.zeros_like(result.positions)
    for column, symbol in enumerate(result.symbols):
        ours = fills[fills["symbol"] == symbol]
        np.add.at(summed[:, column], ours["bar"].to_numpy(), ours["units"].to_numpy())
    most = np.abs(fills["units"]).max() if len(fills) else 0.0
    np.testing.assert_allclose(result.positions, summed.cumsum(axis=0), rtol=1e-9, atol=1e-9 * most)
    # trades and fills tell of the same money
    final = cash + trades["pnl"].sum() + result.written_off
    assert result.equity.iloc[-1] == pytest.approx(final, rel=1e-9, abs=cash * 1e-9)
    for kind in ("fees", "slippage", "funding", "borrow"):
        assert result.costs[kind] == pytest.approx(trades[kind].sum(), abs=cash * 1e-9)
    assert result.costs["fees"] == pytest.approx(fills["fee"].sum(), abs=cash * 1e-9)
    assert result.costs["slippage"] == pytest.approx(fills["slippage"].sum(), abs=cash * 1e-9)
    by_trade = (np.sign(fills["units"]) == trades["side"].to_numpy()[fills["trade"]]) * fills["units"].abs()
    sizes = by_trade.groupby(fills["trade"]).sum()
    np.testing.assert_allclose(trades["size"], sizes, rtol=1e-9)
    # and of the same times
    closed = trades["exit_reason"] != "open"
    assert (trades["entry_time"] == index[trades["entry_bar"]]).all()
    assert (trades.loc[closed, "exit_time"] == index[trades.loc[closed, "exit_bar"]]).all()
    assert (trades.loc[~closed, "exit_bar"] == len(index)).all()
    assert trades.loc[~closed, "exit_time"].isna().all()
    assert (fills["time"] == index[fills["bar"]]).all()


@few
@given(scenarios())
def test_nobody_trades_where_the_market_was_not(scenario: Scenario) -> None:
    result = result_of(scenario)
    index, fills = result.equity.index, result.fills
    marks = marks_of(scenario, index)
    for row in fills.itertuples():
        frame = scenario.candles[row.symbol]
        if index[row.bar] in frame.index:
            bar = frame.loc[index[row.bar]]
            assert bar["low"] <= row.reference <= bar["high"], row
        else:
            # an account that is closed as a whole is closed at the last known close
            assert row.reason in ("liquidation", "ruin", "end of data")
            assert row.reference == marks[row.bar, result.symbols.index(row.symbol)]
        # and never at a better price than that
        assert (row.price - row.reference) * row.units >= 0, row


@few
@given(scenarios())
def test_limits_of_turnover_hold(scenario: Scenario) -> None:
    result = result_of(scenario)
    limits, trades = scenario.rules.limits, result.trades
    if limits.max_trades_per_day:
        assert (
            trades.groupby(trades["entry_time"].dt.floor("D")).size().max() <= limits.max_trades_per_day or trades.empty
        )
    for _, ours in trades.groupby("symbol"):
        between = ours["entry_bar"].to_numpy()[1:] - ours["exit_bar"].to_numpy()[:-1]
        assert (between >= limits.cooldown_bars).all()
    if limits.max_positions:
        held: dict[str, float] = {}
        for row in result.fills.itertuples():
            held[row.symbol] = held.get(row.symbol, 0.0) + row.units
            open_now = sum(abs(units) > 1e-9 * abs(row.units) for units in held.values())
            assert open_now <= limits.max_positions


@few
@given(scenarios())
def test_no_entry_takes_the_account_beyond_its_limits(scenario: Scenario) -> None:
    """At the prices of the decisions; without slippage, which is what an entry at the limit loses at once."""
    rules = changed(
        scenario.rules,
        costs={"slippage_rate": 0.0, "spread": 0.0, "impact": 0.0},
        execution={"fill": "next open"},
    )
    at_market = {
        symbol: dataclasses.replace(one, limit=np.empty(0), stop_entry=np.empty(0))
        for symbol, one in scenario.decisions.items()
    }
    scenario = dataclasses.replace(scenario, decisions=at_market)
    result = result_of(scenario, rules)
    index = result.equity.index
    opens, marks = on_bars(scenario, index, "open"), marks_of(scenario, index)
    most = min(rules.sizing.leverage, rules.limits.max_exposure)
    rates = np.zeros_like(opens)
    if scenario.funding is not None:
        for column, (symbol, frame) in enumerate(scenario.candles.items()):
            rates[:, column] = pd.Series(scenario.funding[symbol], frame.index).reindex(index, fill_value=0.0)
    for bar, fills in result.fills.groupby("bar"):
        held, refs = result.positions[bar - 1].copy(), np.where(np.isnan(opens[bar]), marks[bar], opens[bar])
        cash = result.cash.iloc[bar - 1] - np.nansum(held * opens[bar] * rates[bar])
        for fill in fills.itertuples():
            column = result.symbols.index(fill.symbol)
            held[column] += fill.units
            cash -= fill.units * fill.price + fill.fee
            if fill.reason in ("target", "increased"):
                worth, gross = cash + held @ refs, np.abs(held) @ refs
                assert gross <= most * worth * (1 + 1e-9) + 1e-9
                assert abs(held[column]) * refs[column] <= rules.limits.max_symbol * worth * (1 + 1e-9) + 1e-9


@few
@given(scenarios())
def test_twice_the_prices_and_twice_the_cash_are_twice_the_equity(scenario: Scenario) -> None:
    # logarithms of twice the prices are rounded anew, so not by volatility
    rules = changed(scenario.rules, sizing={"volatility": 0.0})
    tiers = tuple(dataclasses.replace(tier, traded=2 * tier.traded) for tier in rules.costs.tiers)
    twice = dataclasses.replace(
        changed(rules, costs={"tiers": tiers}, sizing={"min_notional": 2 * rules.sizing.min_notional}),
        cash=2 * rules.cash,
    )
    dearer = dataclasses.replace(
        scenario,
        candles={symbol: frame * [2, 2, 2, 2, 1] for symbol, frame in scenario.candles.items()},
        decisions={
            symbol: dataclasses.replace(one, **{name: 2 * getattr(one, name) for name in PRICES})
            for symbol, one in scenario.decisions.items()
        },
    )
    once, again = result_of(scenario, rules), result_of(dearer, twice)
    np.testing.assert_array_equal(again.equity, 2 * once.equity)
    np.testing.assert_array_equal(again.positions, once.positions)
    assert again.fills["reason"].tolist() == once.fills["reason"].tolist()


@few
@given(scenarios())
def test_higher_fees_never_make_richer(scenario: Scenario) -> None:
    """Of the same trades: units, and an account that no fee brings near a limit."""
    plain = dataclasses.replace(
        changed(
            scenario.rules,
            costs={"tiers": ()},
            sizing={"units": scenario.rules.cash / scenario.scale / 64, "risk": 0.0, "volatility": 0.0, "kelly": 0.0},
            limits={"min_edge": 0.0, "max_exposure": np.inf, "max_symbol": np.inf},
        ),
        cash=scenario.rules.cash * 2**20,
    )
    dear = changed(plain, costs={"fee_rate": plain.costs.fee_rate + 0.01, "maker_rate": plain.costs.maker + 0.01})
    cheap, costly = result_of(scenario, plain), result_of(scenario, dear)
    same = ["bar", "symbol", "units", "price", "reason"]
    pd.testing.assert_frame_equal(cheap.fills[same], costly.fills[same])
    assert (costly.equity <= cheap.equity).all()
    paid = 0.01 * (cheap.fills["units"].abs() * cheap.fills["price"]).sum()
    assert costly.costs["fees"] - cheap.costs["fees"] == pytest.approx(paid)


@few
@given(scenarios())
def test_what_happens_later_changes_nothing_before(scenario: Scenario) -> None:
    rules = changed(scenario.rules, execution={"close_at_end": False})
    whole = result_of(scenario, rules)
    until = whole.equity.index[len(whole.equity) // 2]
    kept = {symbol: frame.index <= until for symbol, frame in scenario.candles.items()}
    if not all(mask.any() for mask in kept.values()):
        return  # a series that begins later cannot be cut off
    cut = dataclasses.replace(
        scenario,
        candles={symbol: frame[kept[symbol]] for symbol, frame in scenario.candles.items()},
        decisions={symbol: first(one, kept[symbol]) for symbol, one in scenario.decisions.items()},
        funding=scenario.funding and {symbol: rates[kept[symbol]] for symbol, rates in scenario.funding.items()},
    )
    part = result_of(cut, rules)
    np.testing.assert_array_equal(part.equity, whole.equity[: len(part.equity)])
    np.testing.assert_array_equal(part.positions, whole.positions[: len(part.equity)])


def first(decisions: Decisions, kept: np.ndarray) -> Decisions:
    columns = {field.name: getattr(decisions, field.name) for field in dataclasses.fields(Decisions)}
    return Decisions(**{name: values[kept] if len(values) else values for name, values in columns.items()})
