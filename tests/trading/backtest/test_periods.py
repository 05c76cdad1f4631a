"""Months, parts and regimes add up to the whole, and no bar is judged by what came after it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trading.backtest.engine import BacktestResult, Costs, Rules, run
from trading.backtest.metrics import summarise
from trading.backtest.periods import expanding_median, monthly, part, regimes, sub_periods
from trading.candles import frame_of
from trading.errors import InvalidRequest

HOUR_MS = 3_600_000
BEGIN = int(pd.Timestamp("2023-11-20T05:00", tz="UTC").timestamp() * 1000)
BARS = 3_000


def walk(seed: int = 3) -> tuple[pd.DataFrame, BacktestResult]:
    """Hours from November to March, long, short and flat at random."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, BARS)))
    open_ = np.r_[100.0, close[:-1]]
    values = np.c_[open_, np.maximum(open_, close), np.minimum(open_, close), close, np.ones(BARS)]
    candles = frame_of(BEGIN + HOUR_MS * np.arange(BARS), values)
    return candles, run(candles, np.repeat(rng.choice([-1.0, 0.0, 1.0], BARS // 20), 20), Rules(Costs(0.0005, 0.0)))


@pytest.fixture(scope="module")
def whole() -> tuple[pd.DataFrame, BacktestResult]:
    return walk()


def test_months_compound_to_years_and_to_the_whole(whole: tuple[pd.DataFrame, BacktestResult]) -> None:
    _, result = whole
    table = monthly(result.equity, result.start_cash)
    assert table.index.tolist() == [2023, 2024]
    assert table.columns.tolist() == [*range(1, 13), "total"]
    ends = pd.concat([pd.Series([10_000.0]), result.equity.resample("MS").last()])
    np.testing.assert_allclose(table.drop(columns="total").stack().dropna(), ends.pct_change().dropna(), rtol=1e-12)
    assert table.loc[2023, list(range(1, 11))].isna().all()
    np.testing.assert_allclose(table["total"], (1 + table[[*range(1, 13)]]).prod(axis=1) - 1, rtol=1e-9)
    assert (1 + table["total"]).prod() == pytest.approx(1 + result.total_return, rel=1e-12)


def test_months_by_hand() -> None:
    times = pd.DatetimeIndex(["2020-12-31T23:00", "2021-01-01T00:00", "2021-01-31T23:00", "2021-03-01", "2023-02-01"])
    equity = pd.Series([110.0, 121.0, 99.0, 0.0, 0.0], index=times.tz_localize("UTC").as_unit("ms"))
    table = monthly(equity, 100.0)
    assert table.loc[2020, 12] == pytest.approx(0.1)
    assert table.loc[2021, 1] == pytest.approx(99 / 110 - 1)
    assert math.isnan(table.loc[2021, 2])
    assert (table.loc[2021, 3], table.loc[2021, "total"]) == (-1.0, -1.0)
    # a year without bars, and one that began with nothing
    assert table.loc[[2022, 2023]].isna().to_numpy().all()
    with pytest.raises(InvalidRequest, match="no equity"):
        monthly(equity.iloc[:0], 100.0)


def test_the_whole_is_a_part_of_itself(whole: tuple[pd.DataFrame, BacktestResult]) -> None:
    candles, result = whole
    closes = candles["close"].to_numpy()
    np.testing.assert_equal(
        summarise(part(result, 0, BARS), 8766, benchmark=closes), summarise(result, 8766, benchmark=closes)
    )
    # cut where a trade began: it belongs to what follows, with its fill
    cut = int(result.trades["entry_bar"].iloc[7])
    before, after = part(result, 0, cut), part(result, cut, BARS)
    assert (len(before.trade_rows), len(after.trade_rows)) == (7, len(result.trades) - 7)
    assert summarise(after, 8766)["longest_trade_bars"] == int(
        (result.trades["exit_bar"] - result.trades["entry_bar"]).iloc[7:].max()
    )
    turnovers = [
        float(summarise(one, 8766)["turnover"]) * one.equity.sum() for one in (before, after, part(result, 0, BARS))
    ]
    assert turnovers[0] + turnovers[1] == pytest.approx(turnovers[2])
    for first, last in ((-1, 5), (5, 5), (5, BARS + 1)):
        with pytest.raises(InvalidRequest, match="make no part"):
            part(result, first, last)


@pytest.mark.parametrize("parts", [1, 3, 4])
def test_parts_add_up_to_the_whole(whole: tuple[pd.DataFrame, BacktestResult], parts: int) -> None:
    _, result = whole
    table, figures = sub_periods(result, 8766, parts), summarise(result, 8766)
    assert table.index.tolist() == list(range(1, parts + 1))
    assert (1 + table["total_return"].astype(float)).prod() == pytest.approx(1 + result.total_return, rel=1e-12)
    for name in ("trades", "costs", "fees"):
        assert float(table[name].sum()) == pytest.approx(float(figures[name])), name
    assert float(table["exposure"].mean()) == pytest.approx(float(figures["exposure"]), abs=1e-3)
    assert float(table["max_drawdown"].min()) >= float(figures["max_drawdown"])
    assert table["start"].tolist()[0] == figures["start"] and table["end"].tolist()[-1] == figures["end"]


def test_parts_are_equal_in_time_not_in_bars() -> None:
    days = np.r_[np.arange(10), 100]
    candles = frame_of(days * 24 * HOUR_MS, np.full((11, 5), 7.0))
    result = run(candles, np.zeros(11))
    table = sub_periods(result, 365.25, 4)
    # nothing opened in the second and third
    assert table.index.tolist() == [1, 4]
    assert table["end"].tolist()[0].startswith("1970-01-10")
    with pytest.raises(InvalidRequest, match="0 parts"):
        sub_periods(result, 365.25, 0)


def test_regimes_by_hand() -> None:
    closes = np.array([10.0, 11, 12, 11, 9, 10, 12])
    candles = frame_of(HOUR_MS * np.arange(7), np.c_[closes, closes, closes, closes, np.ones(7)])
    result = run(candles, np.ones(7), Rules(Costs(0.0, 0.0)))
    table = regimes(result, closes, 8766, trend_bars=2, volatility_bars=3)
    # the means of two closes are 10.5, 11.5, 11.5, 10, 9.5, 11: up after 11, 12 and 10, down after 11 and 9
    assert table.loc[("trend", "up"), "bars"] == 3
    assert table.loc[("trend", "down"), "bars"] == 2
    assert table.loc[("trend", "unknown"), "bars"] == 2
    # bought at the second open at 11; the bars that follow closes above the mean: 11 to 12, 12 to 11, 10 to 12
    assert table.loc[("trend", "up"), "total_return"] == pytest.approx(12 / 11 * 11 / 12 * 12 / 10 - 1)
    assert table.loc[("trend", "up"), "exposure"] == 1
    # three moves are known at the fourth close, whose deviation is the median of itself and so not above it
    assert table["bars"].loc["volatility"].to_dict() == {"high": 2, "low": 1, "unknown": 4}


def test_regimes_add_up_and_do_not_look_ahead(whole: tuple[pd.DataFrame, BacktestResult]) -> None:
    candles, result = whole
    closes = candles["close"].to_numpy()
    table = regimes(result, closes, 8766)
    for regime, unknown in (("trend", 200), ("volatility", 101)):
        one = table.loc[regime]
        assert (one["bars"].sum(), one.loc["unknown", "bars"]) == (BARS, unknown)
        assert one["share"].sum() == pytest.approx(1)
        assert (1 + one["total_return"]).prod() == pytest.approx(1 + result.total_return, rel=1e-9)
        exposure = (one["share"] * one["exposure"]).sum()
        assert exposure == pytest.approx((result.position != 0).mean())
    # what the last close is cannot change what any bar was known to be
    for factor in (0.01, 100.0):
        pd.testing.assert_frame_equal(regimes(result, np.r_[closes[:-1], closes[-1] * factor], 8766), table)


def test_regimes_refuse_what_they_cannot_judge(whole: tuple[pd.DataFrame, BacktestResult]) -> None:
    candles, result = whole
    closes = candles["close"].to_numpy()
    with pytest.raises(InvalidRequest, match="one per bar"):
        regimes(result, closes[1:], 8766)
    with pytest.raises(InvalidRequest, match="two or more"):
        regimes(result, closes, 8766, trend_bars=1)
    short = part(result, 0, 50)
    assert regimes(short, closes[:50], 8766)["bars"].tolist() == [0, 0, 50, 0, 0, 50]


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, st.integers(0, 40), elements=st.integers(0, 12).map(float)))
def test_the_expanding_median_is_that_of_pandas(values: np.ndarray) -> None:
    np.testing.assert_array_equal(expanding_median(values), pd.Series(values).expanding().median())
