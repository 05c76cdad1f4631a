"""The Binance-style protocol, against the sandbox exchange over real HTTP and against servers out of their mind."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.binance import PAGE, WEIGHTS, BinanceSource
from tasks.http import Guard, client
from tasks.retry import REQUEST, is_transient
from tasks.sources import Instrument, raw_frame
from trading.candles import COLUMNS
from trading.errors import (
    BadWindow,
    ConfigurationError,
    MalformedResponse,
    RateLimited,
    SourceError,
    SourceRefused,
    SourceUnavailable,
    UnknownSymbol,
)
from trading.masks import RAW_COLUMNS, Flag, Reason, screen
from trading.window import Timeframe, Window

pytestmark = pytest.mark.usefixtures("waits")

VARIABLE = "TRADEFLOWS_EXCHANGE_URL"
HOUR = timedelta(hours=1)
START = datetime(2018, 3, 5, 7, tzinfo=UTC)
FIRST = int(START.timestamp() * 1000)
STEP = 3_600_000
H1 = Timeframe.H1
TRIES = REQUEST.attempts + 1


def exchange(url: str, guard: Guard | None = None) -> BinanceSource:
    return BinanceSource(client(url, VARIABLE), VARIABLE, guard)


def hours(count: int, symbol: str = "BTCSIM", start: datetime = START) -> Window:
    return Window(symbol, Timeframe.H1, start, start + count * HOUR)


def served(sandbox: Any, window: Window) -> pd.DataFrame:
    """What the exchange has of a window, read from its memory."""
    market = sandbox.state.markets[window.symbol, window.timeframe]
    first, end = (int(moment.timestamp() * 1000) for moment in (window.start, window.end))
    inside = (market.opens >= first) & (market.opens < end)
    return raw_frame(np.column_stack([market.opens[inside], market.values[inside]]))


def fetched(sandbox: Any, window: Window) -> pd.DataFrame:
    with exchange(sandbox.url) as source:
        return source.fetch(window)


def kline(number: int, price: str = "10.5") -> list[Any]:
    opened = FIRST + number * STEP
    return [opened, price, price, price, price, "3.0", opened + STEP - 1, "31.5", 7, "0", "0", "0"]


# --- series --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bars", "requests"), [(1, 1), (999, 1), (1000, 1), (1001, 2), (2000, 2), (2500, 3)])
def test_pages_join_to_exactly_the_series(sandbox: Any, bars: int, requests: int) -> None:
    window = hours(bars)
    frame = fetched(sandbox, window)
    assert len(frame) == bars
    pd.testing.assert_frame_equal(frame, served(sandbox, window), check_exact=True)
    assert sandbox.state.requests == requests


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, 20_000), bars=st.integers(1, 2_300), symbol=st.sampled_from(["ETHSIM", "SOLSIM"]))
def test_any_window_is_what_the_exchange_has(sandbox: Any, offset: int, bars: int, symbol: str) -> None:
    window = hours(bars, symbol, datetime(2016, 1, 1, tzinfo=UTC) + offset * HOUR)
    pd.testing.assert_frame_equal(fetched(sandbox, window), served(sandbox, window), check_exact=True)


def test_a_market_with_weekends_and_holidays(sandbox: Any) -> None:
    window = Window("SP500", Timeframe.D1, datetime(1999, 1, 1, tzinfo=UTC), datetime(2018, 12, 30, tzinfo=UTC))
    frame = fetched(sandbox, window)
    assert len(frame) == 5030  # all but 2018-12-31
    pd.testing.assert_frame_equal(frame, served(sandbox, window), check_exact=True)


def test_the_raw_frame_s_layout(sandbox: Any) -> None:
    frame = fetched(sandbox, hours(3))
    assert list(frame.columns) == list(RAW_COLUMNS)
    assert frame.dtypes.astype(str).tolist() == ["int64"] + ["float64"] * 5
    assert frame["open_time"].tolist() == [FIRST, FIRST + STEP, FIRST + 2 * STEP]


def test_no_candles_is_an_empty_frame_of_the_same_layout(sandbox: Any) -> None:
    frame = fetched(sandbox, hours(24, start=datetime(2001, 1, 1, tzinfo=UTC)))
    assert len(frame) == 0
    assert frame.dtypes.astype(str).tolist() == ["int64"] + ["float64"] * 5


def test_what_is_asked(stub: Any, http_reply: Any) -> None:
    server = stub([http_reply('{"serverTime": 1600000000000}'), http_reply(json.dumps([kline(0), kline(1)]))])
    with exchange(server.url) as source:
        assert len(source.fetch(hours(2, "A/B&C"))) == 2
    asked = parse_qs(urlsplit(server.paths[1]).query)
    assert asked == {
        "symbol": ["A/B&C"],
        "interval": ["1h"],
        "startTime": [str(FIRST)],
        "endTime": [str(FIRST + 2 * STEP - 1)],
        "limit": [str(PAGE)],
    }
    assert len(server.paths) == 2


# --- what is over and what is not ----------------------------------------------------------------


def test_the_unfinished_candle_is_never_returned(sandbox: Any) -> None:
    clock = sandbox.state.clock
    newest = httpx.get(f"{sandbox.url}/api/v3/klines", params={"symbol": "BTCSIM", "interval": "1h", "limit": 1}).json()
    midnight = int(datetime(2019, 1, 1, tzinfo=UTC).timestamp() * 1000)
    assert newest[0][0] == midnight  # the exchange does serve it
    window = hours(10, start=Timeframe.H1.floor(clock) - 10 * HOUR)
    frame = fetched(sandbox, window)
    assert frame["open_time"].iloc[-1] == midnight - STEP
    assert len(frame) == 10


def test_rows_past_the_end_are_cut(stub: Any, http_reply: Any) -> None:
    """Whatever an exchange that ignores endTime sends."""
    page = http_reply(json.dumps([kline(number) for number in range(5)]))
    server = stub({"/api/v3/time": http_reply('{"serverTime": 1600000000000}'), "/api/v3/klines": page})
    with exchange(server.url) as source:
        assert source.fetch(hours(3))["open_time"].tolist() == [FIRST, FIRST + STEP, FIRST + 2 * STEP]
    assert len(server.paths) == 2


def test_rows_before_the_start_are_cut(stub: Any, http_reply: Any) -> None:
    """Whatever an exchange that ignores startTime sends."""
    page = http_reply(json.dumps([kline(number) for number in range(-3, 3)]))
    server = stub({"/api/v3/time": http_reply('{"serverTime": 1600000000000}'), "/api/v3/klines": page})
    with exchange(server.url) as source:
        assert source.fetch(hours(3))["open_time"].tolist() == [FIRST, FIRST + STEP, FIRST + 2 * STEP]
    assert len(server.paths) == 2


def test_a_row_from_far_ahead_does_not_end_the_paging(stub: Any, http_reply: Any) -> None:
    pages = [[kline(0), kline(10**6)], [kline(1), kline(2)]]
    server = stub([http_reply('{"serverTime": 1600000000000}'), *(http_reply(json.dumps(page)) for page in pages)])
    with exchange(server.url) as source:
        assert source.fetch(hours(3))["open_time"].tolist() == [FIRST, FIRST + STEP, FIRST + 2 * STEP]


@pytest.mark.parametrize("end", [datetime(2019, 1, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)])
def test_a_window_that_is_not_over_is_refused_by_the_exchange_s_clock(sandbox: Any, end: datetime) -> None:
    with pytest.raises(BadWindow) as caught:
        fetched(sandbox, Window("BTCSIM", Timeframe.H1, START, end))
    assert f"{end:%Y-%m-%dT%H:%MZ}) is not over: the source's clock says 2019-01-01T00:02:00Z" in str(caught.value)
    assert "end it at 2019-01-01T00:00Z or before" in str(caught.value)
    assert sandbox.state.requests == 0  # no candle was asked for


def test_a_window_is_over_to_the_second(sandbox: Any) -> None:
    window = hours(2, start=datetime(2018, 12, 31, 23, tzinfo=UTC))
    sandbox.set_clock("2019-01-01T00:59:59+00:00")
    with pytest.raises(BadWindow, match="2019-01-01T00:59:59Z"):
        fetched(sandbox, window)
    sandbox.set_clock("2019-01-01T01:00:00+00:00")
    assert len(fetched(sandbox, window)) == 2


def test_the_clock_moves_on(sandbox: Any) -> None:
    with exchange(sandbox.url) as source:
        assert source.server_time() == datetime(2019, 1, 1, 0, 2, tzinfo=UTC)
        httpx.put(f"{sandbox.url}/sandbox/clock", json={"advance_seconds": 90}).raise_for_status()
        assert source.server_time() == datetime(2019, 1, 1, 0, 3, 30, tzinfo=UTC)


def test_the_exchange_s_clock_is_asked_only_for_what_it_may_not_have_reached(sandbox: Any) -> None:
    def asked_for_time() -> int:
        return int(sandbox.state.replies.get("time", {}).get("200", 0))

    with exchange(sandbox.url) as source:
        source.fetch(hours(5))
        assert asked_for_time() == 1
        source.fetch(hours(48))
        to_the_end = hours(24, start=datetime(2018, 12, 31, tzinfo=UTC))
        source.fetch(to_the_end)
        assert asked_for_time() == 1  # it was at 00:02 of the next day then, so all of that is over
        sandbox.set_clock("2019-01-01T01:00:00+00:00")
        assert len(source.fetch(hours(25, start=to_the_end.start))) == 25
        assert asked_for_time() == 2
        with pytest.raises(BadWindow, match="clock says 2019-01-01T01:00:00Z"):
            source.fetch(hours(26, start=to_the_end.start))
        assert asked_for_time() == 3
    # another source knows nothing of it
    fetched(sandbox, hours(5))
    assert asked_for_time() == 4


def test_a_clock_that_was_asked_for_is_remembered(sandbox: Any) -> None:
    with exchange(sandbox.url) as source:
        source.server_time()
        source.fetch(hours(5))
    assert sandbox.state.replies == {"time": {"200": 1}, "klines": {"200": 1}}


# --- first candles -------------------------------------------------------------------------------


def test_when_a_symbol_was_listed(sandbox: Any) -> None:
    market = sandbox.state.markets["BTCSIM", H1]
    with exchange(sandbox.url) as source:
        assert source.listed("BTCSIM", H1) == datetime.fromtimestamp(market.opens[0] / 1000, UTC)
        with pytest.raises(SourceRefused, match="-1121"):
            source.listed("NOSUCH", H1)
    assert sandbox.state.requests == 2


def test_the_first_candle_of_a_series_is_asked_for_alone(stub: Any, http_reply: Any) -> None:
    server = stub([http_reply(json.dumps([kline(3)]))])
    with exchange(server.url) as source:
        assert source.listed("BTC/USDT", H1) == START + 3 * HOUR
    asked = parse_qs(urlsplit(server.paths[0]).query)
    assert asked == {"symbol": ["BTC/USDT"], "interval": ["1h"], "startTime": ["0"], "limit": ["1"]}


def test_the_next_candle_after_a_gap(sandbox: Any) -> None:
    sandbox.cut("BTCSIM", "1h", START, START + 30 * HOUR)
    with exchange(sandbox.url) as source:
        assert source.next_open("BTCSIM", H1, START - HOUR) == START - HOUR
        assert source.next_open("BTCSIM", H1, START) == START + 30 * HOUR
        assert source.next_open("BTCSIM", H1, START + 29 * HOUR + timedelta(minutes=1)) == START + 30 * HOUR
        assert source.next_open("BTCSIM", H1, START + 30 * HOUR + timedelta(minutes=1)) == START + 31 * HOUR


def test_no_candle_yet(sandbox: Any) -> None:
    with exchange(sandbox.url) as source:
        assert source.next_open("BTCSIM", H1, datetime(2019, 1, 1, tzinfo=UTC)) == datetime(2019, 1, 1, tzinfo=UTC)
        assert source.next_open("BTCSIM", H1, datetime(2019, 1, 1, 1, tzinfo=UTC)) is None
    with exchange(sandbox.url) as source:
        assert source.next_open("BTCSIM", H1, datetime(2030, 1, 1, tzinfo=UTC)) is None


def test_a_candle_from_before_is_not_the_next_one(stub: Any, http_reply: Any) -> None:
    """Whatever an exchange that ignores startTime, or limit, sends."""
    server = stub([http_reply(json.dumps([kline(-2)])), http_reply(json.dumps([kline(-1), kline(2), kline(1)]))])
    with exchange(server.url) as source:
        assert source.next_open("BTCSIM", H1, START) is None
        assert source.next_open("BTCSIM", H1, START) == START + HOUR


# --- the guard -----------------------------------------------------------------------------------


def test_each_request_weighs_what_the_exchange_says(sandbox: Any) -> None:
    weights: list[int] = []

    class Scales:
        def admit(self, weight: int) -> None:
            weights.append(weight)

        def heard(self, error: SourceError | None) -> None:
            assert error is None or isinstance(error, SourceRefused)

    with exchange(sandbox.url, Scales()) as source:
        source.fetch(hours(1_500))
        source.describe("BTCSIM")
        source.listed("BTCSIM", H1)
        with pytest.raises(UnknownSymbol):
            source.describe("NOSUCH")  # asks for all of them, too
        source.describe_all(["BTCSIM", "SP500", "ETHSIM", "SP500"])
    assert weights == [1, 2, 2, 20, 2, 20, 20, 20]
    assert sum(weights) == sandbox.state.used_weight
    assert set(WEIGHTS) == {"/api/v3/klines", "/api/v3/exchangeInfo", "/api/v3/time"}


# --- symbols -------------------------------------------------------------------------------------


def test_generated_and_shipped_markets_say_what_they_are(sandbox: Any) -> None:
    with exchange(sandbox.url) as source:
        assert source.describe("BTCSIM") == Instrument("BTCSIM", "24/7", "simulated", "exchange 127.0.0.1", "USDT")
        assert source.describe("SP500") == Instrument("SP500", "XNYS", "sample", "exchange 127.0.0.1", "USD")


def test_all_are_described_by_one_request(sandbox: Any) -> None:
    symbols = ["SP500", "BTCSIM", "SP500", "ETHSIM"]
    with exchange(sandbox.url) as source:
        together = source.describe_all(symbols)
        assert source.describe_all([]) == []
    with exchange(sandbox.url) as source:
        assert together == [source.describe(symbol) for symbol in symbols]


def test_the_unknown_one_of_many_is_named(sandbox: Any) -> None:
    with exchange(sandbox.url) as source, pytest.raises(UnknownSymbol, match="'ETHSIN'; did you mean ETHSIM"):
        source.describe_all(["BTCSIM", "ETHSIN", "SOLSIM"])


@pytest.mark.parametrize(
    "refusal", ['{"code": -1101, "msg": "Too many parameters"}', '{"code": -1121, "msg": "Invalid symbol."}']
)
def test_an_exchange_that_knows_no_lists_is_asked_for_each(stub: Any, http_reply: Any, refusal: str) -> None:
    both = {"symbols": [{"symbol": "ETHUSDT"}, {"symbol": "BTCUSDT"}]}
    replies = [http_reply(json.dumps({"symbols": [one]})) for one in both["symbols"]]
    if "-1121" in refusal:
        replies.insert(0, http_reply(json.dumps(both)))
    with exchange(stub([http_reply(refusal, 400), *replies]).url) as source:
        assert [one.symbol for one in source.describe_all(["ETHUSDT", "BTCUSDT"])] == ["ETHUSDT", "BTCUSDT"]


def test_an_exchange_that_does_not_say_is_live(stub: Any, http_reply: Any) -> None:
    listed = {"symbols": [{"symbol": "ETHUSDT", "quoteAsset": "USDT"}, {"symbol": "BTCUSDT", "quoteAsset": "USDT"}]}
    with exchange(stub([http_reply(json.dumps(listed))]).url) as source:
        assert source.describe("BTCUSDT") == Instrument("BTCUSDT", "24/7", "live", "exchange 127.0.0.1", "USDT")


@pytest.mark.parametrize("mode", ["real", "", None, 1, ["live"]])
def test_a_data_mode_that_there_is_not(stub: Any, http_reply: Any, mode: object) -> None:
    listed = {"symbols": [{"symbol": "BTCUSDT", "dataMode": mode}]}
    source = exchange(stub([http_reply(json.dumps(listed))]).url)
    with source, pytest.raises(MalformedResponse, match=r"BTCUSDT has data mode .*'live', 'sample', 'simulated'"):
        source.describe("BTCUSDT")


def test_a_calendar_that_there_is_not(stub: Any, http_reply: Any) -> None:
    listed = {"symbols": [{"symbol": "BTCUSDT", "calendar": "XMARS"}]}
    source = exchange(stub([http_reply(json.dumps(listed))]).url)
    with source, pytest.raises(ConfigurationError, match="'XMARS' is not a calendar"):
        source.describe("BTCUSDT")


@pytest.mark.parametrize(("asked", "meant"), [("BTCSIN", "BTCSIM"), ("solsim", "SOLSIM"), ("SP50", "SP500")])
def test_an_unknown_symbol_comes_with_close_ones(sandbox: Any, asked: str, meant: str) -> None:
    with exchange(sandbox.url) as source, pytest.raises(UnknownSymbol) as caught:
        source.describe(asked)
    assert f"127.0.0.1 does not trade '{asked}'; did you mean {meant}" in str(caught.value)
    assert not is_transient(caught.value)


def test_a_symbol_like_no_other_comes_with_some_that_exist(sandbox: Any) -> None:
    with (
        exchange(sandbox.url) as source,
        pytest.raises(UnknownSymbol, match=r"BTCSIM, ETHSIM, NASDAQ, SOLSIM, SP"),
    ):
        source.describe("ÄÖÜ&x=1")


def test_letters_that_no_symbol_has_are_an_unknown_symbol_too(stub: Any, http_reply: Any) -> None:
    """What Binance says of a symbol in lower case."""
    refusal = {"code": -1100, "msg": "Illegal characters found in parameter 'symbol'; legal range is '^[A-Z0-9-_.]+$'."}
    listed = {"symbols": [{"symbol": "ETHUSDT"}, {"symbol": "BTCUSDT"}]}
    server = stub([http_reply(json.dumps(refusal), 400), http_reply(json.dumps(listed))])
    with exchange(server.url) as source, pytest.raises(UnknownSymbol, match="'btcusdt'; did you mean BTCUSDT"):
        source.describe("btcusdt")


def test_another_refusal_is_no_unknown_symbol(stub: Any, http_reply: Any) -> None:
    for body in ('{"code": -2015, "msg": "key"}', "<html>", "[1]", '{"code": null}', "\xff"):
        source = exchange(stub([http_reply(body.encode("latin-1"), 403), http_reply('{"symbols": []}')]).url)
        with source, pytest.raises(SourceRefused, match="answered 403"):
            source.describe("BTCUSDT")


def test_candles_of_a_series_that_the_exchange_has_not(sandbox: Any) -> None:
    with pytest.raises(SourceRefused, match=r"answered 400: .*-1121"):
        fetched(sandbox, hours(2, "NOSUCH"))
    with pytest.raises(SourceRefused, match=r"answered 400: .*-1121"):
        fetched(sandbox, Window("BTCSIM", Timeframe.M5, START, START + HOUR))


# --- failures ------------------------------------------------------------------------------------


def test_nobody_there(closed_port: int) -> None:
    with exchange(f"http://127.0.0.1:{closed_port}") as source:
        for ask in (lambda: source.fetch(hours(1)), lambda: source.describe("BTCSIM"), source.server_time):
            with pytest.raises(SourceUnavailable, match=f"127.0.0.1:{closed_port}.*TRADEFLOWS_EXCHANGE_URL is right"):
                ask()


def test_truncated_json(sandbox: Any) -> None:
    sandbox.set_faults(truncated=1.0)
    with pytest.raises(MalformedResponse, match="did not answer with JSON") as caught:
        fetched(sandbox, hours(5))
    assert is_transient(caught.value)
    assert sandbox.state.requests == TRIES


def test_an_exchange_that_fails(sandbox: Any, waits: list[float]) -> None:
    sandbox.set_faults(failing=1.0)
    with pytest.raises(SourceUnavailable, match=r"/api/v3/klines answered 503.*-1000") as caught:
        fetched(sandbox, hours(5))
    assert is_transient(caught.value)
    assert sandbox.state.requests == TRIES == len(waits) + 1


def test_a_failure_on_a_later_page_gives_no_half_series(sandbox: Any) -> None:
    sandbox.set_faults(failing=0.7, seed=1)
    with pytest.raises(SourceUnavailable):
        fetched(sandbox, hours(20_000, start=datetime(2016, 1, 1, tzinfo=UTC)))
    assert sandbox.state.replies["klines"]["200"] > 0


@pytest.mark.parametrize("fault", ["failing", "truncated"])
def test_failures_that_pass_do_not_show(sandbox: Any, fault: str, waits: list[float]) -> None:
    sandbox.set_faults(seed=2, **{fault: 0.3})
    window = hours(6_000)
    pd.testing.assert_frame_equal(fetched(sandbox, window), served(sandbox, window), check_exact=True)
    assert sandbox.state.requests == 6 + len(waits) > 6  # some were asked twice


def test_rate_limits_that_pass_do_not_show(sandbox: Any, waits: list[float]) -> None:
    sandbox.set_faults(rate_limited=0.3, retry_after=0, seed=2)
    window = hours(6_000)
    pd.testing.assert_frame_equal(fetched(sandbox, window), served(sandbox, window), check_exact=True)
    assert sandbox.state.requests == 6 + len(waits) > 6  # some were asked twice


def test_a_rate_limit_that_stays(sandbox: Any) -> None:
    sandbox.set_faults(rate_limited=1.0, retry_after=0)
    with pytest.raises(RateLimited, match=r"/api/v3/klines answered 429.*slow down"):
        fetched(sandbox, hours(5))
    assert sandbox.state.requests == TRIES


def test_a_ban_is_not_waited_for(sandbox: Any, waits: list[float]) -> None:
    sandbox.set_faults(rate_limited=1.0, retry_after=31)
    with pytest.raises(RateLimited) as caught:
        fetched(sandbox, hours(5))
    assert (caught.value.retry_after, sandbox.state.requests, waits) == (31.0, 1, [])


def test_an_outage_of_every_endpoint(sandbox: Any) -> None:
    sandbox.set_faults(outage_start="2018-12-31T00:00:00+00:00", outage_seconds=7 * 86400)
    with exchange(sandbox.url) as source:
        for ask in (source.server_time, lambda: source.describe("BTCSIM"), lambda: source.listed("BTCSIM", H1)):
            with pytest.raises(SourceUnavailable, match=r"answered 503.*-1001"):
                ask()
        sandbox.set_clock("2019-01-08T00:00:00+00:00")
        assert source.server_time() == datetime(2019, 1, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ("[]", "$[1]"),
        ("7", "$[1]"),
        ('"123456"', "$[1]"),
        ("null", "$[1]"),
        ('{"0": 1, "1": 2, "2": 3, "3": 4, "4": 5, "5": 6}', "$[1]"),
        ("[1, 2, 3, 4, 5]", "$[1]"),
        ('[1, "2", "3", "4", "five", "6"]', "$[1][4]"),
        ("[1, 2, 3, 4, null, 6]", "$[1][4]"),
        ("[1, 2, [3], 4, 5, 6]", "$[1][2]"),
        ("[1, true, 3, 4, 5, 6]", "$[1][1]"),
        ('["inf", 2, 3, 4, 5, 6]', "$[1][0]"),
        ("[null, 2, 3, 4, 5, 6]", "$[1][0]"),
        ("[1.5, 2, 3, 4, 5, 6]", "$[1][0]"),
        ("[1600000000000000, 2, 3, 4, 5, 6]", "$[1][0]"),  # in microseconds
        (f"[1{'0' * 400}, 2, 3, 4, 5, 6]", "$[1][0]"),
        (f"[1, 2, 3, 4, 5, 1{'0' * 400}]", "$[1][5]"),
    ],
)
def test_a_row_that_is_no_candle(stub: Any, http_reply: Any, row: str, place: str) -> None:
    server = stub(
        {
            "/api/v3/time": http_reply('{"serverTime": 1600000000000}'),
            "/api/v3/klines": http_reply(f"[{json.dumps(kline(0))}, {row}]"),
        }
    )
    with exchange(server.url) as source, pytest.raises(MalformedResponse) as caught:
        source.fetch(hours(2))
    assert "/api/v3/klines did not answer as the protocol says" in str(caught.value)
    assert f"at `{place}`" in str(caught.value)
    assert len(str(caught.value)) < 400
    assert len(server.paths) == 2  # what was whole is not asked for again


def test_a_number_that_json_has_not(stub: Any, http_reply: Any) -> None:
    pages = {
        "/api/v3/time": http_reply('{"serverTime": 1600000000000}'),
        "/api/v3/klines": http_reply("[[NaN, 2, 3, 4, 5, 6]]"),
    }
    with exchange(stub(pages).url) as source, pytest.raises(MalformedResponse, match="did not answer with JSON"):
        source.fetch(hours(2))


def test_text_that_is_not_finite_comes_through_to_the_screening(stub: Any, http_reply: Any) -> None:
    page = [kline(0), kline(1, "nan"), kline(2, "inf"), kline(3)]
    server = stub([http_reply('{"serverTime": 1600000000000}'), http_reply(json.dumps(page))])
    with exchange(server.url) as source:
        raw = source.fetch(hours(4))
    assert len(raw) == 4
    screening = screen(raw, hours(4), "24/7")
    assert screening.quarantined == {Reason.NULL: 1, Reason.INFINITE: 1}
    assert len(screening.good) == 2


@pytest.mark.parametrize("page", ['{"code": 0}', "null", "7", '"text"', "true"])
def test_a_page_that_is_no_list(stub: Any, http_reply: Any, page: str) -> None:
    pages = {"/api/v3/time": http_reply('{"serverTime": 1600000000000}'), "/api/v3/klines": http_reply(page)}
    with exchange(stub(pages).url) as source, pytest.raises(MalformedResponse, match=r"Expected `array`, got .*: '"):
        source.fetch(hours(2))


@pytest.mark.parametrize(
    "body", ["{}", "[]", "null", '{"serverTime": "now"}', '{"serverTime": null}', '{"serverTime": 1e30}', "5"]
)
def test_a_time_that_is_none(stub: Any, http_reply: Any, body: str) -> None:
    with exchange(stub([http_reply(body)]).url) as source, pytest.raises(MalformedResponse, match="no serverTime"):
        source.server_time()


@pytest.mark.parametrize(
    "body", ["{}", "[]", "null", '{"symbols": 5}', '{"symbols": [1, null]}', '{"symbols": [{"symbol": "OTHER"}]}']
)
def test_exchange_information_that_is_none(stub: Any, http_reply: Any, body: str) -> None:
    source = exchange(stub([http_reply(body)]).url)
    with source, pytest.raises(MalformedResponse, match="the exchange information of BTCUSDT does not list it"):
        source.describe("BTCUSDT")


def test_an_unknown_symbol_of_an_exchange_that_lists_none(stub: Any, http_reply: Any) -> None:
    server = stub([http_reply('{"code": -1121, "msg": "Invalid symbol."}', 400), http_reply('{"symbols": 5}')])
    with exchange(server.url) as source, pytest.raises(UnknownSymbol, match="did you mean another source"):
        source.describe("BTCUSDT")


def test_a_closed_source_asks_nobody(sandbox: Any) -> None:
    with exchange(sandbox.url) as source:
        source.server_time()
    with pytest.raises(RuntimeError, match="closed"):
        source.server_time()


# --- rows that are wrong -------------------------------------------------------------------------


def test_a_short_page_does_not_end_the_paging(stub: Any, http_reply: Any) -> None:
    """A page shorter than asked for may have lost rows, even its last one, which is then asked for again."""
    pages = [[kline(0), kline(2)], [kline(3), kline(4)], [kline(5)]]
    server = stub([http_reply('{"serverTime": 1600000000000}'), *(http_reply(json.dumps(page)) for page in pages)])
    with exchange(server.url) as source:
        frame = source.fetch(hours(6))
    assert ((frame["open_time"] - FIRST) // STEP).tolist() == [0, 2, 3, 4, 5]
    starts = [int(parse_qs(urlsplit(path).query)["startTime"][0]) for path in server.paths[1:]]
    assert [(start - FIRST) // STEP for start in starts] == [0, 3, 5]


def test_an_exchange_that_sends_one_page_for_ever_is_not_asked_for_ever(stub: Any, http_reply: Any) -> None:
    page = http_reply(json.dumps([kline(-2), kline(-1)]))
    server = stub({"/api/v3/time": http_reply('{"serverTime": 1600000000000}'), "/api/v3/klines": page})
    with exchange(server.url) as source:
        assert len(source.fetch(hours(20))) == 0
    assert len(server.paths) == 2


def test_lost_rows_are_missing_and_nothing_else_is(sandbox: Any) -> None:
    window = hours(5_000)
    whole = served(sandbox, window)
    sandbox.set_faults(missing=0.01, seed=5)
    raw = fetched(sandbox, window)
    lost = np.setdiff1d(whole["open_time"], raw["open_time"])
    assert 20 < len(lost) < 90
    assert raw["open_time"].iloc[-1] > whole["open_time"].iloc[-20]  # the last page came
    screening = screen(raw, window, "24/7")
    assert screening.missing.tolist() == lost.tolist()
    assert screening.quarantined == {}
    pd.testing.assert_frame_equal(raw, whole[whole["open_time"].isin(raw["open_time"])].reset_index(drop=True))


def test_rows_sent_twice_are_put_aside_once(sandbox: Any) -> None:
    window = hours(2_500)
    sandbox.set_faults(duplicated=0.02, seed=6)
    raw = fetched(sandbox, window)
    twice = len(raw) - 2_500
    assert 20 < twice < 90
    screening = screen(raw, window, "24/7")
    assert screening.quarantined == {Reason.DUPLICATE: twice}
    assert screening.impossible == 0
    assert len(screening.missing) == 0
    np.testing.assert_array_equal(screening.good.to_numpy(), served(sandbox, window)[list(COLUMNS)].to_numpy())


def test_rows_with_high_below_low_are_impossible(sandbox: Any) -> None:
    window = hours(2_500)
    sandbox.set_faults(malformed=0.01, seed=7)
    raw = fetched(sandbox, window)
    broken = raw[raw["high"] < raw["low"]]
    assert 8 < len(broken) < 60
    screening = screen(raw, window, "24/7")
    assert screening.quarantined == {Reason.INCONSISTENT: len(broken)}
    assert screening.impossible == len(broken)
    assert screening.bad["open_time"].tolist() == broken["open_time"].tolist() == screening.missing.tolist()
    assert len(screening.good) == 2_500 - len(broken)


def test_pages_in_disorder_are_sorted_and_flagged(sandbox: Any) -> None:
    window = hours(2_500)
    whole = served(sandbox, window)
    sandbox.set_faults(shuffled=1.0, seed=8)
    raw = fetched(sandbox, window)
    assert raw["open_time"].tolist() != whole["open_time"].tolist()  # as they came
    screening = screen(raw, window, "24/7")
    assert screening.flags[Flag.OUT_OF_ORDER] > 1_000
    assert screening.quarantined == {}
    assert len(screening.missing) == 0
    np.testing.assert_array_equal(screening.good.to_numpy(), whole[list(COLUMNS)].to_numpy())


@pytest.mark.parametrize("seed", range(4))
def test_all_faults_at_once_let_no_bad_row_through(sandbox: Any, seed: int) -> None:
    window = hours(3_000, "SOLSIM")
    whole = served(sandbox, window).set_index("open_time")
    sandbox.set_faults(duplicated=0.02, missing=0.02, malformed=0.02, shuffled=0.5, seed=seed)
    raw = fetched(sandbox, window)
    screening = screen(raw, window, "24/7")
    assert set(screening.quarantined) == {Reason.DUPLICATE, Reason.INCONSISTENT}
    stamps = screening.good.index.as_unit("ms").asi8
    np.testing.assert_array_equal(screening.good.to_numpy(), whole.loc[stamps].to_numpy())
    assert len(screening.good) + len(screening.missing) == screening.expected == 3_000
    assert screening.received == len(raw)
