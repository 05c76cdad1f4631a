"""The execution engine's chart: only its newest candles, the last of which is still forming."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.engine import LARGEST, EngineSource
from tasks.retry import is_transient
from tasks.sources import Instrument, raw_frame
from trading.errors import (
    BadWindow,
    ConfigurationError,
    MalformedResponse,
    SourceRefused,
    SourceUnavailable,
    UnknownSymbol,
)
from trading.window import Timeframe, Window

HOUR = timedelta(hours=1)
STEP = 3_600_000
NOW = datetime(2018, 3, 5, 7, 30, tzinfo=UTC)
THIS_HOUR = datetime(2018, 3, 5, 7, tzinfo=UTC)


def ago(first: int, last: int, symbol: str = "BTCSIM", now: datetime = THIS_HOUR) -> Window:
    """The window of the bars from ``first`` to ``last`` hours before the bar that is forming."""
    return Window(symbol, Timeframe.H1, now - first * HOUR, now - last * HOUR)


def engine(server: Any, now: datetime = NOW) -> EngineSource:
    return EngineSource(server.url, clock=lambda: now)


def candle(hours_ago: int, **other: object) -> dict[str, object]:
    opened = int(THIS_HOUR.timestamp() * 1000) - hours_ago * STEP
    return {"timestamp": opened, "open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0, "volume": 3.0} | other


def chart(*candles: object, **other: object) -> str:
    return json.dumps({"candles": list(candles)} | other)


@pytest.fixture
def at_now(sandbox: Any) -> Any:
    """The sandbox as the engine, its clock in the middle of an hour."""
    sandbox.set_clock(NOW.isoformat())
    return sandbox


@pytest.mark.parametrize(("first", "last"), [(1, 0), (24, 0), (24, 23), (1500, 200), (LARGEST - 2, LARGEST - 9)])
def test_a_window_is_exactly_its_bars(at_now: Any, first: int, last: int) -> None:
    window = ago(first, last)
    with engine(at_now) as source:
        frame = source.fetch(window)
    market = at_now.state.markets["BTCSIM", Timeframe.H1]
    begin, end = (int(moment.timestamp() * 1000) for moment in (window.start, window.end))
    inside = (market.opens >= begin) & (market.opens < end)
    expected = raw_frame(np.column_stack([market.opens[inside], market.values[inside]]))
    assert len(frame) == first - last
    pd.testing.assert_frame_equal(frame, expected, check_exact=True)


def test_the_engine_gives_the_forming_candle_and_we_do_not(stub: Any, http_reply: Any) -> None:
    server = stub([http_reply(chart(candle(2), candle(1), candle(0)))])
    with engine(server) as source:
        frame = source.fetch(ago(2, 0))
    assert frame["open_time"].tolist() == [candle(2)["timestamp"], candle(1)["timestamp"]]
    assert server.paths == ["/api/market/chart/BTCSIM/1h?limit=4"]


def test_an_engine_that_leaves_the_forming_candle_out(stub: Any, http_reply: Any) -> None:
    with engine(stub([http_reply(chart(candle(3), candle(2), candle(1)))])) as source:
        assert len(source.fetch(ago(2, 0))) == 2


@pytest.mark.parametrize("end", [THIS_HOUR + HOUR, datetime(2099, 1, 1, tzinfo=UTC)])
def test_a_window_that_is_not_over(at_now: Any, end: datetime) -> None:
    with engine(at_now) as source, pytest.raises(BadWindow, match=r"clock says 2018-03-05T07:30:00Z.*05T07:00Z or bef"):
        source.fetch(Window("BTCSIM", Timeframe.H1, THIS_HOUR - HOUR, end))


def test_the_clock_is_ours_in_utc(at_now: Any) -> None:
    with engine(at_now) as source:
        assert source.server_time() == NOW
    with EngineSource(at_now.url) as source:
        assert abs(source.server_time() - datetime.now(UTC)) < timedelta(seconds=5)


def test_a_window_further_back_than_can_be_asked_for_is_refused_unasked(stub: Any) -> None:
    server = stub([b""])
    with engine(server) as source, pytest.raises(SourceRefused, match=f"newest {LARGEST + 1} bars .*from files"):
        source.fetch(ago(LARGEST - 1, LARGEST - 5))
    assert server.paths == []


def test_a_window_further_back_than_the_engine_remembers_is_refused(stub: Any, http_reply: Any) -> None:
    """Half an answer would pass for a market that did not trade."""
    server = stub([http_reply(chart(candle(3), candle(2), candle(1), candle(0)))])
    with engine(server) as source, pytest.raises(SourceRefused) as caught:
        source.fetch(ago(10, 0))
    assert "candles of BTCSIM 1h begin at 2018-03-05T04:00Z, after the start of BTCSIM 1h [2018-03-04T21:00Z" in str(
        caught.value
    )
    assert not is_transient(caught.value)


def test_an_engine_whose_clock_is_ahead_of_ours(stub: Any, http_reply: Any) -> None:
    """It has begun the next bar; the newest N of it are not the newest N of ours."""
    bars = [candle(hours) for hours in (3, 2, 1, 0, -1)]
    with engine(stub([http_reply(chart(*bars[-4:]))])) as source:
        assert source.fetch(ago(2, 0))["open_time"].tolist() == [bar["timestamp"] for bar in bars[1:3]]
    # as many rows as were asked for, and yet the window's first is not among them
    with engine(stub([http_reply(chart(*bars[-4:]))])) as source, pytest.raises(SourceRefused, match="begin at"):
        source.fetch(ago(3, 0))


def test_a_gap_inside_is_no_end_of_memory(stub: Any, http_reply: Any) -> None:
    server = stub([http_reply(chart(*(candle(ago) for ago in (6, 5, 2, 1, 0))))])
    with engine(server) as source:
        assert len(source.fetch(ago(4, 0))) == 2


def test_rows_come_as_they_are(stub: Any, http_reply: Any) -> None:
    odd = [candle(3), candle(1, high=1.0), candle(2, open="10.5"), candle(2), candle(0)]
    with engine(stub([http_reply(chart(*odd))])) as source:
        frame = source.fetch(ago(3, 0))
    assert frame["open_time"].tolist() == [row["timestamp"] for row in odd[:4]]
    assert frame["high"].tolist() == [12.0, 1.0, 12.0, 12.0]
    assert frame["open"].tolist() == [10.0, 10.0, 10.5, 10.0]


def test_an_engine_without_candles(stub: Any, http_reply: Any) -> None:
    with engine(stub([http_reply(chart())])) as source:
        assert len(source.fetch(ago(3, 0))) == 0


@pytest.mark.parametrize("body", ["[]", "null", "{}", '{"candles": {}}', '{"candles": null}', '"candles"'])
def test_a_reply_without_candles(stub: Any, http_reply: Any, body: str) -> None:
    for ask in (lambda source: source.fetch(ago(3, 0)), lambda source: source.describe("BTCSIM")):
        with engine(stub([http_reply(body)])) as source, pytest.raises(MalformedResponse, match="no list of candles"):
            ask(source)


@pytest.mark.parametrize(
    "row",
    [
        1,
        None,
        [1, 2, 3, 4, 5, 6],
        {"timestamp": 1},
        {name: value for name, value in candle(1).items() if name != "volume"},
        candle(1, close=None),
        candle(1, close="high"),
        candle(1, close=[1]),
        candle(1, timestamp="2018-03-05"),
        candle(1, timestamp=float("nan")),
    ],
)
def test_a_row_that_is_no_candle(stub: Any, http_reply: Any, row: object) -> None:
    server = stub([http_reply(chart(candle(2), row))])
    with engine(server) as source, pytest.raises(MalformedResponse, match=r"(candle|row) 1 of .*BTCSIM 1h"):
        source.fetch(ago(2, 0))


def test_truncated_json(stub: Any, http_reply: Any) -> None:
    with (
        engine(stub([http_reply(chart(candle(1))[:-9])])) as source,
        pytest.raises(MalformedResponse, match="ENGINE_U"),
    ):
        source.fetch(ago(1, 0))


def test_an_engine_is_live_unless_it_says_otherwise(stub: Any, http_reply: Any, at_now: Any) -> None:
    with engine(stub([http_reply(chart(candle(0)))])) as source:
        assert source.describe("BTCUSDT") == Instrument("BTCUSDT", "24/7", "live", "engine 127.0.0.1")
    with engine(at_now) as source:
        assert source.describe("BTCSIM").data_mode == "simulated"
    bad = stub([http_reply(chart(dataMode="real"))])
    with engine(bad) as source, pytest.raises(MalformedResponse, match="data mode 'real'"):
        source.describe("BTCUSDT")


def test_an_unknown_symbol(at_now: Any) -> None:
    with engine(at_now) as source:
        for ask in (lambda: source.describe("NOSUCH"), lambda: source.fetch(ago(2, 0, "NOSUCH"))):
            with pytest.raises(UnknownSymbol, match=r"no chart of 'NOSUCH' \(.* answered 404.*add it there first"):
                ask()


@pytest.mark.parametrize("status", [302, 400, 401, 403])
def test_a_refusal_is_not_taken_for_an_unknown_symbol(stub: Any, http_reply: Any, status: int) -> None:
    with engine(stub([http_reply("no", status)])) as source, pytest.raises(SourceRefused, match=f"answered {status}"):
        source.describe("BTCSIM")


@pytest.mark.parametrize("symbol", ["BTC/USDT", "../../admin", "a?limit=9", "a#b", "a b"])
def test_a_symbol_stays_one_part_of_the_path(stub: Any, http_reply: Any, symbol: str) -> None:
    server = stub([http_reply(chart(candle(0)))])
    with engine(server) as source:
        source.describe(symbol)
    before, _, after = server.paths[0].partition("/api/market/chart/")
    assert before == ""
    assert after.count("/") == 1
    assert after.endswith("/1h?limit=1")


def test_nobody_there(closed_port: int) -> None:
    source = EngineSource(f"http://127.0.0.1:{closed_port}")
    with source, pytest.raises(SourceUnavailable, match=f"127.0.0.1:{closed_port} .*ENGINE_URL is right"):
        source.describe("BTCSIM")


def test_the_address_is_checked_at_once() -> None:
    with pytest.raises(ConfigurationError, match="ENGINE_URL must be an http or https address"):
        EngineSource("engine:8000")
