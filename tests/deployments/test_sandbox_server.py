"""The sandbox exchange: the protocol as exchanges speak it, and faults on demand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.sandbox.markets import Market
from deployments.sandbox.server import LARGEST_PAGE
from trading.window import Timeframe

HOUR_MS = 3_600_000
BTC = {"symbol": "BTCSIM", "interval": "1h"}


@pytest.fixture(scope="module")
def web() -> Any:
    with httpx.Client() as client:
        yield client


@pytest.fixture
def ask(sandbox: Any, web: httpx.Client) -> Any:
    """GET from the exchange: the reply."""
    return lambda path, **params: web.get(f"{sandbox.url}{path}", params=params)


@pytest.fixture
def put(sandbox: Any, web: httpx.Client) -> Any:
    """PUT to the exchange: the reply."""
    return lambda path, body: web.put(f"{sandbox.url}{path}", content=json.dumps(body))


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def market(sandbox: Any, symbol: str = "BTCSIM", timeframe: Timeframe = Timeframe.H1) -> Market:
    return sandbox.state.markets[symbol, timeframe]


# --- candles -------------------------------------------------------------------------------------


def test_a_row_as_the_protocol_has_it(sandbox: Any, ask: Any) -> None:
    row = ask("/api/v3/klines", **BTC, startTime=ms("2018-03-05"), limit=1).json()[0]
    series = market(sandbox)
    values = series.values[np.searchsorted(series.opens, ms("2018-03-05"))].tolist()
    assert len(row) == 12
    assert row[0] == ms("2018-03-05")
    assert row[6] == row[0] + HOUR_MS - 1
    # prices are text, and the text is the number to the last bit
    assert all(isinstance(text, str) for text in row[1:6])
    assert [float(text) for text in row[1:6]] == values


def test_with_a_start_the_oldest_rows_come_and_without_one_the_newest(ask: Any) -> None:
    oldest = ask("/api/v3/klines", **BTC, startTime=ms("2018-01-01"), limit=3).json()
    assert [row[0] for row in oldest] == [ms("2018-01-01") + step * HOUR_MS for step in range(3)]
    newest = ask("/api/v3/klines", **BTC, limit=3).json()
    assert [row[0] for row in newest] == [ms("2019-01-01") - step * HOUR_MS for step in (2, 1, 0)]
    before = ask("/api/v3/klines", **BTC, endTime=ms("2018-01-01"), limit=2).json()
    assert [row[0] for row in before] == [ms("2018-01-01") - HOUR_MS, ms("2018-01-01")]


def test_both_ends_are_counted_in(ask: Any) -> None:
    day = {"startTime": ms("2018-01-01"), "endTime": ms("2018-01-02")}
    assert len(ask("/api/v3/klines", **BTC, **day).json()) == 25
    assert len(ask("/api/v3/klines", **BTC, **day | {"endTime": day["endTime"] - 1}).json()) == 24
    assert ask("/api/v3/klines", **BTC, startTime=day["endTime"], endTime=day["startTime"]).json() == []


@pytest.mark.parametrize(
    ("limit", "rows"), [(None, 500), (1, 1), (1000, LARGEST_PAGE), (5000, LARGEST_PAGE), (0, 1), (-5, 1)]
)
def test_the_size_of_a_page(ask: Any, limit: int | None, rows: int) -> None:
    asked = BTC if limit is None else BTC | {"limit": limit}
    assert len(ask("/api/v3/klines", **asked).json()) == rows
    assert len(ask("/api/v3/klines", **asked, startTime=ms("2018-01-01")).json()) == rows


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"symbol": "BTCSIM", "interval": "7m"}, -1120),
        ({"symbol": "BTCSIM"}, -1120),
        ({"symbol": "NOSUCH", "interval": "1h"}, -1121),
        ({"symbol": "BTCSIM", "interval": "5m"}, -1121),
        ({"interval": "1h"}, -1121),
        (BTC | {"startTime": "today"}, -1100),
        (BTC | {"limit": "many"}, -1100),
    ],
)
def test_refusals_carry_the_protocol_s_code(ask: Any, params: dict[str, str], code: int) -> None:
    reply = ask("/api/v3/klines", **params)
    assert reply.status_code == 400
    assert reply.json()["code"] == code


def test_the_candle_that_is_forming_is_served_and_none_after_it(ask: Any, put: Any) -> None:
    put("/sandbox/clock", {"time": "2018-06-01T10:59:59Z"})
    assert ask("/api/v3/klines", **BTC).json()[-1][0] == ms("2018-06-01T10:00:00")
    put("/sandbox/clock", {"time": "2018-06-01T11:00:00Z"})
    assert ask("/api/v3/klines", **BTC).json()[-1][0] == ms("2018-06-01T11:00:00")


# --- the rest of the protocol --------------------------------------------------------------------


def test_time_and_exchange_information(sandbox: Any, ask: Any) -> None:
    assert ask("/api/v3/time").json() == {"serverTime": ms("2019-01-01T00:02:00")}
    everything = ask("/api/v3/exchangeInfo").json()
    assert everything["serverTime"] == ms("2019-01-01T00:02:00")
    names = [item["symbol"] for item in everything["symbols"]]
    assert names == ["BTCSIM", "ETHSIM", "NASDAQ", "SOLSIM", "SP500"]
    modes = {item["symbol"]: (item["dataMode"], item["calendar"]) for item in everything["symbols"]}
    assert modes["ETHSIM"] == ("simulated", "24/7")
    assert modes["NASDAQ"] == ("sample", "XNYS")
    only = ask("/api/v3/exchangeInfo", symbol="SOLSIM").json()["symbols"]
    assert only == [item for item in everything["symbols"] if item["symbol"] == "SOLSIM"]
    some = ask("/api/v3/exchangeInfo", symbols='["SP500","BTCSIM"]').json()["symbols"]
    assert some == [item for item in everything["symbols"] if item["symbol"] in {"SP500", "BTCSIM"}]
    for wrong in ({"symbol": "NOSUCH"}, {"symbols": '["BTCSIM","NOSUCH"]'}):
        unknown = ask("/api/v3/exchangeInfo", **wrong)
        assert (unknown.status_code, unknown.json()["code"]) == (400, -1121)
    assert ask("/api/v3/exchangeInfo", symbols="BTCSIM").json()["code"] == -1100


def test_the_ticker_is_of_the_last_day(sandbox: Any, ask: Any) -> None:
    sandbox.set_clock("2018-06-02T00:00:00Z")
    ticker = ask("/api/v3/ticker/24hr", symbol="BTCSIM").json()
    series = market(sandbox)
    day = (series.opens >= ms("2018-06-01")) & (series.opens <= ms("2018-06-02"))
    values = series.values[day]
    shown = [float(ticker[name]) for name in ("openPrice", "highPrice", "lowPrice", "lastPrice")]
    assert shown == [values[0, 0], values[:, 1].max(), values[:, 2].min(), values[-1, 3]]
    assert float(ticker["volume"]) == pytest.approx(values[:, 4].sum())
    assert float(ticker["priceChangePercent"]) == pytest.approx(100 * (values[-1, 3] / values[0, 0] - 1), abs=6e-4)
    assert float(ticker["priceChange"]) == pytest.approx(values[-1, 3] - values[0, 0], rel=1e-5)
    assert ask("/api/v3/ticker/24hr", symbol="NOSUCH").status_code == 400


def test_the_chart_of_the_engine(sandbox: Any, ask: Any) -> None:
    chart = ask("/api/market/chart/BTCSIM/1h", limit=3).json()
    assert (chart["symbol"], chart["timeframe"], chart["dataMode"]) == ("BTCSIM", "1h", "simulated")
    assert [candle["timestamp"] for candle in chart["candles"]] == [
        ms("2019-01-01") - step * HOUR_MS for step in (2, 1, 0)
    ]
    series = market(sandbox)
    newest = series.values[np.searchsorted(series.opens, ms("2019-01-01"))].tolist()
    assert [chart["candles"][-1][name] for name in ("open", "high", "low", "close", "volume")] == newest
    assert len(ask("/api/market/chart/BTCSIM/1h").json()["candles"]) == 100
    assert len(ask("/api/market/chart/BTCSIM/1h", limit=0).json()["candles"]) == 1
    assert ask("/api/market/chart/NOSUCH/1h").status_code == 404
    assert ask("/api/market/chart/BTCSIM/5m").status_code == 404
    assert ask("/api/market/chart/BTCSIM/1h", limit="x").status_code == 400


# --- faults --------------------------------------------------------------------------------------


def test_faults_are_shown_and_each_setting_starts_afresh(ask: Any, put: Any) -> None:
    assert put("/sandbox/faults", {"seed": 3, "missing": 0.1}).json()["missing"] == 0.1
    assert ask("/sandbox/faults").json()["seed"] == 3
    after = put("/sandbox/faults", {"failing": 0.2}).json()
    assert (after["missing"], after["failing"], after["seed"]) == (0.0, 0.2, 0)


@pytest.mark.parametrize("body", [{"nosuch": 1}, [], 5])
def test_an_unknown_fault_changes_nothing(ask: Any, put: Any, body: object) -> None:
    before = ask("/sandbox/faults").json()
    assert put("/sandbox/faults", body).status_code == 400
    assert ask("/sandbox/faults").json() == before


def test_no_faults_unless_asked_for(ask: Any) -> None:
    first = ask("/api/v3/klines", **BTC, limit=1000)
    assert all(ask("/api/v3/klines", **BTC, limit=1000).text == first.text for _ in range(5))


def test_the_same_seed_spoils_the_same_rows(sandbox: Any, ask: Any) -> None:
    def spoilt(seed: int) -> list[str]:
        sandbox.set_faults(
            seed=seed, missing=0.05, duplicated=0.05, malformed=0.05, shuffled=0.3, failing=0.2, truncated=0.2
        )
        return [ask("/api/v3/klines", **BTC, limit=50).text for _ in range(10)]

    assert spoilt(1) == spoilt(1)
    assert spoilt(1) != spoilt(2)


def parses(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("fault", "share"), [("rate_limited", 0.3), ("failing", 0.3), ("truncated", 0.3), ("rate_limited", 1.0)]
)
def test_a_share_of_the_requests_fails(sandbox: Any, ask: Any, fault: str, share: float) -> None:
    sandbox.set_faults(**{fault: share}, seed=4, retry_after=7)
    replies = [ask("/api/v3/klines", **BTC, limit=2) for _ in range(60)]

    def struck(reply: httpx.Response) -> bool:
        if fault == "truncated":
            return not parses(reply.text)
        return reply.status_code == {"rate_limited": 429, "failing": 503}[fault]

    count = sum(map(struck, replies))
    assert count == 60 if share == 1 else 8 < count < 30
    assert all(reply.status_code == 200 for reply in replies if not struck(reply) or fault == "truncated")
    if fault == "rate_limited":
        assert {reply.headers["Retry-After"] for reply in replies if struck(reply)} == {"7"}


def test_faults_strike_candles_only(sandbox: Any, ask: Any) -> None:
    sandbox.set_faults(rate_limited=1.0, failing=1.0, truncated=1.0)
    for path in ("/api/v3/time", "/api/v3/exchangeInfo", "/sandbox/clock"):
        assert ask(path).status_code == 200


def test_a_hanging_request_answers_late_and_holds_up_nobody(sandbox: Any, ask: Any) -> None:
    sandbox.set_faults(hanging=1.0, hang_seconds=0.3)
    with httpx.Client(timeout=0.1) as impatient, pytest.raises(httpx.ReadTimeout):
        impatient.get(f"{sandbox.url}/api/v3/klines", params=BTC)
    assert ask("/api/v3/time").elapsed < timedelta(seconds=0.2)
    assert len(ask("/api/v3/klines", **BTC, limit=3).json()) == 3
