"""The execution engine's chart: only its newest candles, the last of which is still forming."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.engine import LARGEST, EngineSource
from tasks.http import client
from tasks.retry import REQUEST, is_transient
from tasks.sources import Instrument, raw_frame
from trading.errors import (
    BadWindow,
    MalformedResponse,
    SourceError,
    SourceRefused,
    SourceUnavailable,
    UnknownSymbol,
)
from trading.window import Timeframe, Window

pytestmark = pytest.mark.usefixtures("waits")

VARIABLE = "ENGINE_URL"
HOUR = timedelta(hours=1)
H1 = Timeframe.H1
STEP = 3_600_000
NOW = datetime(2018, 3, 5, 7, 30, tzinfo=UTC)
THIS_HOUR = datetime(2018, 3, 5, 7, tzinfo=UTC)


def ago(first: int, last: int, symbol: str = "BTCSIM", now: datetime = THIS_HOUR) -> Window:
    """The window of the bars from ``first`` to ``last`` hours before the bar that is forming."""
    return Window(symbol, Timeframe.H1, now - first * HOUR, now - last * HOUR)


def engine(server: Any, now: datetime = NOW) -> EngineSource:
    return EngineSource(client(server.url, VARIABLE), VARIABLE, clock=lambda: now)


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
    with EngineSource(client(at_now.url, VARIABLE), VARIABLE) as source:
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
    asking: list[Callable[[EngineSource], object]] = [
        lambda source: source.fetch(ago(3, 0)),
        lambda source: source.describe("BTCSIM"),
        lambda source: source.next_open("BTCSIM", H1, THIS_HOUR),
    ]
    for ask in asking:
        server = stub([http_reply(body)])
        with engine(server) as source, pytest.raises(MalformedResponse) as caught:
            ask(source)
        assert "did not answer as the protocol says (" in str(caught.value)
        assert str(caught.value).endswith(repr(body))
        assert "array" in str(caught.value) or "object" in str(caught.value) or "`candles`" in str(caught.value)
        assert len(server.paths) == 1


@pytest.mark.parametrize(
    ("row", "place"),
    [
        (1, ""),
        (None, ""),
        ([1, 2, 3, 4, 5, 6], ""),
        ({"timestamp": 1}, ""),
        ({name: value for name, value in candle(1).items() if name != "volume"}, ""),
        (candle(1, close=None), ".close"),
        (candle(1, close="high"), ".close"),
        (candle(1, close=[1]), ".close"),
        (candle(1, close=True), ".close"),
        (candle(1, timestamp="2018-03-05"), ".timestamp"),
        (candle(1, timestamp=None), ".timestamp"),
        (candle(1, timestamp=1.5), ".timestamp"),
        (candle(1, timestamp=1_520_000_000_000_000), ".timestamp"),  # in microseconds
        (candle(1, timestamp=10**400), ".timestamp"),
    ],
)
def test_a_row_that_is_no_candle(stub: Any, http_reply: Any, row: object, place: str) -> None:
    server = stub([http_reply(chart(candle(2), row))])
    with engine(server) as source, pytest.raises(MalformedResponse) as caught:
        source.fetch(ago(2, 0))
    assert "/api/market/chart/BTCSIM/1h did not answer as the protocol says" in str(caught.value)
    assert f"at `$.candles[1]{place}`" in str(caught.value)
    assert len(server.paths) == 1


def test_a_number_that_json_has_not(stub: Any, http_reply: Any) -> None:
    server = stub([http_reply(chart(candle(2), candle(1, close=float("nan"))))])
    with engine(server) as source, pytest.raises(MalformedResponse, match="did not answer with JSON"):
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


def test_nobody_there(closed_port: int, waits: list[float]) -> None:
    source = EngineSource(client(f"http://127.0.0.1:{closed_port}", VARIABLE), VARIABLE)
    with source, pytest.raises(SourceUnavailable, match=f"127.0.0.1:{closed_port} .*ENGINE_URL is right"):
        source.describe("BTCSIM")
    assert len(waits) == REQUEST.attempts


@pytest.mark.parametrize("fault", ["failing", "truncated", "rate_limited"])
def test_failures_that_pass_do_not_show(at_now: Any, fault: str, waits: list[float]) -> None:
    at_now.set_faults(only=2, retry_after=3, **{fault: 1.0})
    with engine(at_now) as source:
        assert len(source.fetch(ago(24, 0))) == 24
    assert len(waits) == 2
    assert at_now.state.requests == 3


def test_the_guard_is_asked_for_one_request_each(stub: Any, http_reply: Any) -> None:
    heard: list[object] = []

    class Ear:
        def admit(self, weight: int) -> None:
            heard.append(weight)

        def heard(self, error: SourceError | None) -> None:
            heard.append(error)

    server = stub([http_reply(chart(candle(1), candle(0)))])
    with EngineSource(client(server.url, VARIABLE), VARIABLE, Ear(), clock=lambda: NOW) as source:
        source.describe("BTCSIM")
        source.fetch(ago(1, 0))
        source.next_open("BTCSIM", H1, THIS_HOUR)
    assert heard == [1, None] * 3
    assert len(server.paths) == 3


# --- first candles -------------------------------------------------------------------------------


def test_an_engine_cannot_tell_when_a_symbol_was_listed(stub: Any) -> None:
    server = stub([b""])
    with engine(server) as source:
        assert source.listed("BTCSIM", H1) is None
    assert server.paths == []


def test_the_next_candle_after_a_gap(at_now: Any) -> None:
    at_now.cut("BTCSIM", "1h", THIS_HOUR - 9 * HOUR, THIS_HOUR - 4 * HOUR)
    with engine(at_now) as source:
        assert source.next_open("BTCSIM", H1, THIS_HOUR - 10 * HOUR) == THIS_HOUR - 10 * HOUR
        assert source.next_open("BTCSIM", H1, THIS_HOUR - 9 * HOUR) == THIS_HOUR - 4 * HOUR
        assert source.next_open("BTCSIM", H1, THIS_HOUR - 4 * HOUR) == THIS_HOUR - 4 * HOUR
        assert source.next_open("BTCSIM", H1, THIS_HOUR - 4 * HOUR + timedelta(minutes=1)) == THIS_HOUR - 3 * HOUR
        assert source.next_open("BTCSIM", H1, THIS_HOUR) == THIS_HOUR  # the one that is forming


def test_no_candle_yet(at_now: Any) -> None:
    with engine(at_now) as source:
        for ahead in (1, 2, 1000):
            assert source.next_open("BTCSIM", H1, THIS_HOUR + ahead * HOUR) is None


def test_the_next_candle_is_the_earliest_in_whatever_order_they_come(stub: Any, http_reply: Any) -> None:
    server = stub([http_reply(chart(candle(1), candle(4), candle(3), candle(0)))])
    with engine(server) as source:
        assert source.next_open("BTCSIM", H1, THIS_HOUR - 3 * HOUR) == THIS_HOUR - 3 * HOUR
    assert server.paths == ["/api/market/chart/BTCSIM/1h?limit=5"]


def test_a_next_candle_further_back_than_can_be_asked_for(stub: Any) -> None:
    server = stub([b""])
    with engine(server) as source, pytest.raises(SourceRefused, match=f"{LARGEST} at most"):
        source.next_open("BTCSIM", H1, THIS_HOUR - LARGEST * HOUR)
    assert server.paths == []
