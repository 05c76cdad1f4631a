"""Pages of candles: which rows, exactly which text, from files in any order; and coarser candles out of finer ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from deployments.sandbox.markets import Market, find, from_folder
from deployments.sandbox.pages import BLOCK, candles, klines, klines_text, page, render
from trading.candles import COLUMNS, frame_of, open_times_ms, resample
from trading.window import Timeframe

START = 1_514_764_800_000  # 2018-01-01
MINUTE = 60_000
COUNT = 3 * BLOCK + 100


def made(opens: np.ndarray, values: np.ndarray | None = None, timeframe: Timeframe = Timeframe.M1) -> Market:
    if values is None:
        values = np.random.default_rng(1).lognormal(3, 1, (len(opens), 5)).round(5)
    return Market("MINE", timeframe, "24/7", "sample", "USDT", opens, values)


def minutes(count: int) -> np.ndarray:
    return START + np.arange(count) * MINUTE


def reference(market: Market, at: Any) -> list[str]:
    """The text that the protocol asks for, written the slow way."""
    step = market.step
    return [
        f'[{opened},"{o!r}","{h!r}","{low!r}","{c!r}","{v!r}",{opened + step - 1},"{c * v:.8f}",0,"0","0","0"]'
        for opened, (o, h, low, c, v) in zip(market.opens[at].tolist(), market.values[at].tolist(), strict=True)
    ]


# --- text ----------------------------------------------------------------------------------------


def test_text_is_the_repr_of_each_number() -> None:
    rng = np.random.default_rng(3)
    market = made(minutes(5_000), np.exp(rng.uniform(-8, 34, (5_000, 5))))
    assert klines(market, slice(0, 5_000)) == reference(market, slice(0, 5_000))


@pytest.mark.parametrize(
    "value",
    [0.0, -0.0, 1e-4, 9.999e-5, 1e-5, 5e-324, 0.1 + 0.2, 1e15, 1e16, 1.5e17, 1e22, 1.7e308, float("nan"), float("inf")],
)
def test_text_of_numbers_on_the_edge(value: float) -> None:
    market = made(minutes(2), np.array([[1.0, 2.0, 1.0, 1.5, 1.0], [1.0, value, 1.0, 1.5, value]]))
    assert klines(market, slice(0, 2)) == reference(market, slice(0, 2))


@pytest.mark.parametrize(
    ("first", "last"),
    [(0, 0), (0, 1), (5, 5), (0, BLOCK), (BLOCK, 2 * BLOCK), (BLOCK - 1, BLOCK + 1), (7, 7 + 1000),
     (1000, 2000), (3 * BLOCK, COUNT), (COUNT - 1, COUNT), (COUNT, COUNT), (0, COUNT)],
)  # fmt: skip
def test_text_that_was_kept_is_the_same(first: int, last: int) -> None:
    market = made(minutes(COUNT))
    for _ in range(2):
        assert klines_text(market, slice(first, last)).decode() == ",".join(reference(market, slice(first, last)))
    render([market])
    assert klines_text(market, slice(first, last)).decode() == ",".join(reference(market, slice(first, last)))


def test_numbers_of_the_chart_are_those_of_the_market() -> None:
    market = made(minutes(50))
    found = [json.loads(row) for row in candles(market, slice(10, 50))]
    assert [row["timestamp"] for row in found] == market.opens[10:].tolist()
    assert [[row[name] for name in COLUMNS] for row in found] == market.values[10:].tolist()


# --- which rows ----------------------------------------------------------------------------------


def masked(market: Market, newest: int, first: int | None, last: int | None, limit: int) -> np.ndarray:
    """Positions by looking at every row."""
    there = market.opens <= newest
    if first is not None:
        there &= market.opens >= first
    if last is not None:
        there &= market.opens <= last
    at = np.flatnonzero(there)
    return at[:limit] if first is not None else at[-limit:]


@pytest.mark.parametrize("order", ["sorted", "twice", "shuffled", "empty"])
def test_a_page_is_the_rows_that_a_look_at_each_would_find(order: str) -> None:
    rng = np.random.default_rng(4)
    opens = minutes(40)
    if order == "twice":
        opens = np.sort(np.concatenate([opens, opens[5:15]]))
    elif order == "shuffled":
        opens = rng.permutation(opens)
    elif order == "empty":
        opens = opens[:0]
    market = made(opens)
    assert market.in_order == (order != "shuffled")
    edges = [
        None,
        START - 1,
        START,
        START + 10 * MINUTE,
        START + 10 * MINUTE + 1,
        START + 99 * MINUTE,
        10**30,
        -(10**30),
    ]
    for first in edges:
        for last in edges:
            for newest in (START - 1, START + 20 * MINUTE, START + 10**9):
                for limit in (1, 7, 1000):
                    at = page(market, newest, first, last, limit)
                    expected = masked(market, newest, first, last, limit)
                    np.testing.assert_array_equal(np.arange(len(market.opens))[at], expected)


@pytest.fixture
def serve(sandbox: Any) -> Iterator[Any]:
    """Puts a market on the exchange beside the others; GET from it."""
    with httpx.Client(base_url=sandbox.url) as connection:

        def put(*markets: Market) -> Any:
            sandbox.state.markets = sandbox.state.markets | {(m.symbol, m.timeframe): m for m in markets}
            return lambda path, **params: connection.get(path, params=params).json()

        yield put


def test_a_file_out_of_order_is_served_as_it_stands(serve: Any) -> None:
    opens = np.random.default_rng(5).permutation(minutes(3_000))
    market = made(opens)
    ask = serve(market)
    asked = {"symbol": "MINE", "interval": "1m", "startTime": int(minutes(3_000)[500]), "limit": 1000}
    rows = ask("/api/v3/klines", **asked)
    expected = np.flatnonzero(opens >= asked["startTime"])[:1000]
    assert [row[0] for row in rows] == opens[expected].tolist()
    assert [[float(text) for text in row[1:6]] for row in rows] == market.values[expected].tolist()
    chart = ask("/api/market/chart/MINE/1m", limit=20)["candles"]
    assert [row["timestamp"] for row in chart] == opens[-20:].tolist()


def test_pages_put_together_are_the_market(serve: Any) -> None:
    market = made(minutes(COUNT))
    ask = serve(market)
    rows: list[Any] = []
    while page_ := ask("/api/v3/klines", symbol="MINE", interval="1m", limit=700, startTime=START + len(rows) * MINUTE):
        rows += page_
    assert [row[0] for row in rows] == market.opens.tolist()
    assert [[float(text) for text in row[1:6]] for row in rows] == market.values.tolist()


# --- coarser timeframes --------------------------------------------------------------------------


def consistent(count: int) -> np.ndarray:
    rng = np.random.default_rng(6)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 1e-3, count)))
    open_ = np.concatenate([[100.0], close[:-1]])
    spread = rng.uniform(0, 0.1, (2, count))
    high, low = np.maximum(open_, close) + spread[0], np.minimum(open_, close) - spread[1]
    return np.column_stack([open_, high, low, close, rng.lognormal(3, 1, count)])


@pytest.mark.parametrize("timeframe", [Timeframe.M5, Timeframe.M15, Timeframe.H1, Timeframe.H4, Timeframe.D1])
def test_coarser_candles_are_made_of_the_finer_ones(serve: Any, timeframe: Timeframe) -> None:
    count = 2 * 24 * 60 + 77
    market = made(minutes(count), consistent(count))
    ask = serve(market)
    rows = ask("/api/v3/klines", symbol="MINE", interval=timeframe.value, startTime=START, limit=1000)
    expected = resample(frame_of(market.opens, market.values), Timeframe.M1, timeframe)
    assert len(rows) == len(expected) == count * Timeframe.M1.delta // timeframe.delta
    assert [row[0] for row in rows] == open_times_ms(expected).tolist()
    assert [[float(text) for text in row[1:6]] for row in rows] == expected.to_numpy().tolist()
    step = int(timeframe.delta.total_seconds() * 1000)
    assert all(row[6] == row[0] + step - 1 for row in rows)
    chart = ask(f"/api/market/chart/MINE/{timeframe.value}", limit=1000)
    assert (chart["dataMode"], len(chart["candles"])) == ("sample", len(rows))


def test_they_are_made_once_of_the_nearest_and_not_where_there_is_a_file() -> None:
    bars = (Timeframe.M1, Timeframe.M5, Timeframe.H1)
    fine, five, hour = (made(minutes(6_000), consistent(6_000), bar) for bar in bars)
    markets = {("MINE", market.timeframe): market for market in (fine, five, hour)}
    assert find(markets, "MINE", Timeframe.H1) is hour
    fifteen = find(markets, "MINE", Timeframe.M15)
    assert fifteen is not None
    assert fifteen is find(markets, "MINE", Timeframe.M15)
    assert fifteen is five.coarser[Timeframe.M15]
    assert (fifteen.derived, fifteen.calendar, fifteen.data_mode, fifteen.quote) == (True, "24/7", "sample", "USDT")
    assert find(markets, "MINE", Timeframe.M3) is fine.coarser[Timeframe.M3]
    assert find(markets, "OTHER", Timeframe.M15) is None


def test_finer_ones_and_those_of_sessions_are_not_made(serve: Any) -> None:
    ask = serve()
    for symbol, interval in (("BTCSIM", "30m"), ("BTCSIM", "1m")):
        assert ask("/api/v3/klines", symbol=symbol, interval=interval)["code"] == -1121
    assert len(ask("/api/v3/klines", symbol="BTCSIM", interval="4h")) == 500
    sessions = Market("S", Timeframe.H1, "XNYS", "sample", "USD", minutes(10), consistent(10))
    assert find({("S", Timeframe.H1): sessions}, "S", Timeframe.H4) is None


def test_out_of_order_and_twice_makes_the_same(tmp_path: Path) -> None:
    table = pd.DataFrame(consistent(600), columns=list(COLUMNS))
    table.insert(0, "open_time", minutes(600))
    table.to_parquet(tmp_path / "GOOD_1m.parquet")
    stale = table.iloc[100:200].assign(close=1.0, high=1e6)
    # the later of two rows counts
    pd.concat([stale, table]).to_parquet(tmp_path / "BAD_1m.parquet")
    table.sample(frac=1, random_state=1).to_parquet(tmp_path / "MIXED_1m.parquet")
    markets = from_folder(tmp_path)
    good, *others = (find(markets, symbol, Timeframe.H1) for symbol in ("GOOD", "BAD", "MIXED"))
    assert good is not None
    assert len(good.opens) == 10
    for other in others:
        assert other is not None
        np.testing.assert_array_equal(other.opens, good.opens)
        np.testing.assert_array_equal(other.values, good.values)
