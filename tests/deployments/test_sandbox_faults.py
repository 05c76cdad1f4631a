"""What the exchange does wrong on demand, on every route that candles come by; and how quick a page is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tasks.settings import Settings
from tasks.sources import source_of
from trading.window import Timeframe, Window

BTC = {"symbol": "BTCSIM", "interval": "1h"}
KLINES = "/api/v3/klines?symbol=BTCSIM&interval=1h&limit=200"
CHART = "/api/market/chart/BTCSIM/1h?limit=200"
HOUR_MS = 3_600_000
each_route = pytest.mark.parametrize("path", [KLINES, CHART], ids=["klines", "chart"])


@pytest.fixture
def ask(sandbox: Any) -> Iterator[Callable[[str], httpx.Response]]:
    """GET from the exchange: the reply."""
    with httpx.Client(base_url=sandbox.url) as connection:
        yield connection.get


def candles(reply: httpx.Response) -> list[dict[str, float]]:
    """Open time, high and low of each row, whichever route it is from."""
    found = reply.json()
    if isinstance(found, list):
        return [{"at": row[0], "high": float(row[2]), "low": float(row[3])} for row in found]
    return [{"at": row["timestamp"], "high": row["high"], "low": row["low"]} for row in found["candles"]]


# --- both routes that candles come by ------------------------------------------------------------


@each_route
def test_requests_for_candles_are_refused(sandbox: Any, ask: Any, path: str) -> None:
    sandbox.set_faults(rate_limited=1.0, retry_after=7)
    assert (ask(path).status_code, ask(path).headers["Retry-After"]) == (429, "7")
    sandbox.set_faults(failing=1.0)
    assert ask(path).status_code == 503
    sandbox.set_faults(rate_limited=1.0, only=2)
    assert [ask(path).status_code for _ in range(4)] == [429, 429, 200, 200]


@each_route
def test_candles_hang(sandbox: Any, ask: Any, path: str) -> None:
    sandbox.set_faults(hanging=1.0, hang_seconds=0.15)
    assert ask(path).elapsed >= timedelta(seconds=0.15)


@each_route
def test_candles_are_cut_in_half(sandbox: Any, ask: Any, path: str) -> None:
    whole = ask(path).content
    sandbox.set_faults(truncated=1.0)
    assert ask(path).content == whole[: len(whole) // 2]


@each_route
def test_rows_are_spoilt(sandbox: Any, ask: Any, path: str) -> None:
    good = candles(ask(path))
    assert len(good) == 200
    sandbox.set_faults(missing=0.2)
    left = [row["at"] for row in candles(ask(path))]
    assert 120 < len(left) < 190
    assert left == sorted(left)
    sandbox.set_faults(duplicated=0.2)
    twice = candles(ask(path))
    assert 210 < len(twice) < 280
    assert {row["at"] for row in twice} == {row["at"] for row in good}
    sandbox.set_faults(malformed=0.2)
    broken = [row for row in candles(ask(path)) if row["high"] < row["low"]]
    assert 10 < len(broken) < 80
    sandbox.set_faults(shuffled=1.0)
    mixed = candles(ask(path))
    assert mixed != good
    assert sorted(mixed, key=lambda row: row["at"]) == good


def test_a_seed_strikes_both_routes_alike(sandbox: Any, ask: Any) -> None:
    struck = {"seed": 5, "rate_limited": 0.2, "failing": 0.2, "missing": 0.1, "malformed": 0.1, "duplicated": 0.1}

    def seen(path: str) -> list[Any]:
        sandbox.set_faults(**struck)
        replies = [ask(path) for _ in range(12)]
        return [candles(reply) if reply.status_code == 200 else reply.status_code for reply in replies]

    assert seen(KLINES) == seen(CHART)
    assert {entry for entry in seen(KLINES) if isinstance(entry, int)} == {429, 503}


# --- late candles --------------------------------------------------------------------------------


@each_route
def test_a_late_candle_appears_so_long_after_its_close(sandbox: Any, ask: Any, path: str) -> None:
    sandbox.set_faults(late=90)

    def newest(clock: str) -> datetime:
        sandbox.set_clock(clock)
        return datetime.fromtimestamp(candles(ask(path))[-1]["at"] / 1000, tz=UTC)

    assert newest("2018-06-01T11:01:29Z") == datetime(2018, 6, 1, 9, tzinfo=UTC)
    assert newest("2018-06-01T11:01:30Z") == datetime(2018, 6, 1, 10, tzinfo=UTC)
    # one that is there stays there: the next is not shown while it forms
    assert newest("2018-06-01T11:59:59Z") == datetime(2018, 6, 1, 10, tzinfo=UTC)
    sandbox.set_faults()
    assert newest("2018-06-01T11:01:00Z") == datetime(2018, 6, 1, 11, tzinfo=UTC)


# --- outages -------------------------------------------------------------------------------------


def test_an_outage_by_the_clock_of_the_exchange(sandbox: Any, ask: Any) -> None:
    sandbox.set_faults(outage_start="2019-01-01T01:00:00Z", outage_seconds=3600)
    ticker = "/api/v3/ticker/24hr?symbol=BTCSIM"
    paths = ("/api/v3/time", "/api/v3/exchangeInfo", ticker, KLINES, CHART, "/api/v3/nosuch")

    def statuses(clock: str) -> set[int]:
        sandbox.set_clock(clock)
        return {ask(path).status_code for path in paths[:-1]}

    assert statuses("2019-01-01T00:59:59Z") == {200}
    assert statuses("2019-01-01T01:00:00Z") == {503}
    assert {ask(path).status_code for path in paths} == {503}
    assert ask("/api/v3/time").json()["code"] == -1001
    for path in ("/sandbox/clock", "/sandbox/faults", "/sandbox/requests"):
        assert ask(path).status_code == 200
    assert statuses("2019-01-01T01:59:59Z") == {503}
    assert statuses("2019-01-01T02:00:00Z") == {200}


def test_an_outage_and_lateness_outlast_what_ends_after_some_requests(sandbox: Any, ask: Any) -> None:
    outage = {"outage_start": "2019-01-02T00:00:00+00:00", "outage_seconds": 60}
    sandbox.set_faults(failing=1.0, only=1, late=5, **outage)
    assert [ask(KLINES).status_code for _ in range(2)] == [503, 200]
    left = ask("/sandbox/faults").json()
    assert left | outage | {"late": 5, "failing": 0.0, "only": 0} == left


# --- faults that end, and such as there are none ---------------------------------------------------


@pytest.mark.parametrize(("fault", "status"), [("rate_limited", 429), ("failing", 503)])
@pytest.mark.parametrize("only", [1, 3])
def test_faults_end_after_so_many_requests(sandbox: Any, fault: str, status: int, only: int) -> None:
    sandbox.set_faults(**{fault: 1.0}, only=only)
    with httpx.Client(base_url=sandbox.url) as connection:
        statuses = [connection.get("/api/v3/klines", params=BTC).status_code for _ in range(only + 3)]
        assert statuses == [status] * only + [200] * 3
        # what is shown is what is left: nothing
        assert connection.get("/sandbox/faults").json()[fault] == 0


def test_a_fetch_that_failed_once_succeeds_when_tried_again(sandbox: Any) -> None:
    end = datetime(2018, 6, 1, tzinfo=UTC)
    window = Window("BTCSIM", Timeframe.H1, end - timedelta(hours=2_500), end)
    sandbox.set_faults(failing=1.0, only=1)
    sandbox.forget_requests()
    with source_of(Settings(exchange_url=sandbox.url), "exchange") as source:
        assert len(source.fetch(window)) == 2_500
    assert sandbox.requests()["klines"] == {"503": 1, "200": 3}


@pytest.mark.parametrize(
    "body",
    [
        '{"failing": "often"}',
        '{"failing": true}',
        '{"failing": null}',
        '{"failing": -0.1}',
        '{"failing": NaN}',
        '{"hang_seconds": Infinity}',
        '{"seed": -1}',
        '{"seed": 0.5}',
        '{"only": 1.5}',
        '{"late": -1}',
        '{"late": "30"}',
        '{"outage_start": "2019-01-01"}',
        '{"outage_seconds": 5}',
        '{"outage_start": "noon", "outage_seconds": 5}',
        '{"outage_start": 5, "outage_seconds": 5}',
        '{"outage_start": "2019-01-01", "outage_seconds": 1e300}',
        "[]",
        "null",
        "[1]",
        '"failing"',
        "not JSON",
        "",
    ],
)
def test_faults_that_are_none_are_refused_and_change_nothing(sandbox: Any, body: str) -> None:
    sandbox.set_faults(failing=0.25, seed=3)
    reply = httpx.put(f"{sandbox.url}/sandbox/faults", content=body)
    assert reply.status_code == 400
    assert reply.json()["error"]
    shown = httpx.get(f"{sandbox.url}/sandbox/faults").json()
    assert (shown["failing"], shown["seed"]) == (0.25, 3)


@pytest.mark.parametrize("body", ["not JSON", ""])
def test_a_clock_that_is_not_json_is_refused(sandbox: Any, body: str) -> None:
    before = httpx.get(f"{sandbox.url}/sandbox/clock").json()
    reply = httpx.put(f"{sandbox.url}/sandbox/clock", content=body)
    assert reply.status_code == 400
    assert "give time" in reply.json()["error"]
    assert httpx.get(f"{sandbox.url}/sandbox/clock").json() == before


# --- how quick a page is -------------------------------------------------------------------------


def test_a_page_takes_milliseconds(sandbox: Any) -> None:
    """The best of several, so that a busy machine does not count; the bound is ten times what it takes."""
    took = []
    with httpx.Client(base_url=sandbox.url) as connection:
        for _ in range(15):
            begun = time.perf_counter()
            reply = connection.get("/api/v3/klines", params=BTC | {"limit": "1000"})
            took.append(time.perf_counter() - begun)
            assert len(reply.json()) == 1000
    assert min(took) < 0.01, took
