"""What the exchange changes after the fact (corrections, gaps), and what it counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.sandbox.server import Faults, State

START = datetime(2018, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
BTC = {"symbol": "BTCSIM", "timeframe": "1h"}
Ask = Callable[..., httpx.Response]


@pytest.fixture
def web(sandbox: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sandbox.url) as connection:
        yield connection


def ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def day(web: httpx.Client, interval: str = "1h") -> dict[int, list[float]]:
    """Candles of a day by their open times."""
    span = {"startTime": ms(START), "endTime": ms(START + 23 * HOUR)}
    rows = web.get("/api/v3/klines", params={"symbol": "BTCSIM", "interval": interval} | span).json()
    return {row[0]: [float(text) for text in row[1:6]] for row in rows}


# --- corrections ---------------------------------------------------------------------------------


def test_a_candle_is_corrected_and_put_back(sandbox: Any, web: httpx.Client) -> None:
    before, at = day(web), ms(START + 3 * HOUR)
    sandbox.correct("BTCSIM", "1h", START + 3 * HOUR, close=before[at][3] + 0.01)
    after = day(web)
    assert after.pop(at) == [*before[at][:3], before[at][3] + 0.01, before[at][4]]
    assert after == {opened: row for opened, row in before.items() if opened != at}
    sandbox.correct("BTCSIM", "1h", START + 3 * HOUR, volume=1.5)
    assert day(web)[at][3:] == [before[at][3] + 0.01, 1.5]
    sandbox.set_clock("2018-06-01T23:30:00Z")
    chart = web.get("/api/market/chart/BTCSIM/1h", params={"limit": 24}).json()["candles"]
    assert [row["volume"] for row in chart if row["timestamp"] == at] == [1.5]
    sandbox.restore()
    assert day(web) == before


def test_rows_are_corrected_together_or_not_at_all(sandbox: Any, web: httpx.Client) -> None:
    before, first = day(web), ms(START)
    rows = [[first, 1, 2, 0.5, 1.5, 7], [(START + HOUR).isoformat(), 2, 3, 1, 2, 8]]
    reply = web.put("/sandbox/corrections", json=BTC | {"rows": [*rows, [first + 1, 1, 1, 1, 1, 1]]})
    assert (reply.status_code, "no candle that opens at" in reply.json()["error"]) == (400, True)
    assert day(web) == before
    assert web.put("/sandbox/corrections", json=BTC | {"rows": rows}).json() == {"changed": 2}
    after = day(web)
    assert after[first] == [1, 2, 0.5, 1.5, 7]
    assert after[first + 3_600_000] == [2, 3, 1, 2, 8]
    assert web.delete("/sandbox/corrections").json() == {"restored": True}
    assert day(web) == before


# --- gaps ----------------------------------------------------------------------------------------


def test_candles_are_cut_and_put_back(sandbox: Any, web: httpx.Client) -> None:
    before = day(web)
    assert sandbox.cut("BTCSIM", "1h", START + 2 * HOUR, START + 5 * HOUR) == 3
    gone = {ms(START + hours * HOUR) for hours in (2, 3, 4)}
    assert day(web) == {opened: row for opened, row in before.items() if opened not in gone}
    # a second change is put back to the first state, too
    sandbox.correct("BTCSIM", "1h", START, close=1.0)
    assert sandbox.cut("BTCSIM", "1h", START + 4 * HOUR, START + 6 * HOUR) == 1
    assert len(day(web)) == 20
    assert web.put("/sandbox/gaps", json={"restore": True}).json() == {"restored": True}
    assert day(web) == before
    assert web.put("/sandbox/gaps", json=BTC | {"start": ms(START), "end": ms(START + HOUR)}).json() == {"changed": 1}
    web.delete("/sandbox/gaps")
    assert day(web) == before


def test_a_coarser_market_that_was_made_can_be_changed_as_well(sandbox: Any, web: httpx.Client) -> None:
    hours, before = day(web), day(web, "4h")
    sandbox.correct("BTCSIM", "4h", START, high=99_999.0)
    sandbox.cut("BTCSIM", "4h", START + 8 * HOUR, START + 12 * HOUR)
    assert len(before) == 6
    assert len(day(web, "4h")) == 5
    assert day(web, "4h")[ms(START)][1] == 99_999.0
    assert day(web) == hours
    sandbox.restore()
    assert day(web, "4h") == before
    assert ("BTCSIM", "4h") not in sandbox.state.markets


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("corrections", {}),
        ("corrections", []),
        ("corrections", BTC),
        ("corrections", BTC | {"open_time": "noon", "close": 1}),
        ("corrections", BTC | {"open_time": ms(START) + 1, "close": 1}),
        ("corrections", BTC | {"open_time": True, "close": 1}),
        ("corrections", BTC | {"open_time": ms(START), "close": "dear"}),
        ("corrections", BTC | {"symbol": "NOSUCH", "open_time": ms(START), "close": 1}),
        ("corrections", BTC | {"timeframe": "7m", "open_time": ms(START), "close": 1}),
        ("corrections", BTC | {"rows": [[ms(START), 1, 2]]}),
        ("corrections", BTC | {"rows": 5}),
        ("gaps", BTC),
        ("gaps", BTC | {"start": ms(START)}),
        ("gaps", BTC | {"timeframe": "5m", "start": ms(START), "end": ms(START)}),
        ("gaps", None),
    ],
)
def test_what_cannot_be_changed_is_refused_and_changes_nothing(
    sandbox: Any, web: httpx.Client, path: str, body: object
) -> None:
    before = day(web)
    reply = web.put(f"/sandbox/{path}", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]
    assert day(web) == before


# --- what it counts ------------------------------------------------------------------------------


def test_replies_are_counted_by_what_was_asked_and_status(sandbox: Any, web: httpx.Client) -> None:
    sandbox.forget_requests()
    assert sandbox.requests() == {}
    klines, chart = "/api/v3/klines?symbol=BTCSIM&interval=1h", "/api/market/chart/BTCSIM/1h"
    paths = ["/api/v3/time", "/api/v3/exchangeInfo", klines, chart, "/api/v3/ticker/24hr?symbol=BTCSIM"]
    for path in paths * 2:
        assert web.get(path).status_code == 200
    web.get("/api/v3/klines?symbol=NOSUCH&interval=1h")
    web.get("/api/v3/nosuch")
    sandbox.set_faults(rate_limited=1.0, only=3)
    assert [web.get(klines).status_code for _ in range(3)] == [429] * 3
    assert sandbox.requests() == {
        "time": {"200": 2},
        "exchangeInfo": {"200": 2},
        "klines": {"200": 2, "400": 1, "429": 3},
        "chart": {"200": 2},
        "ticker": {"200": 2},
        "other": {"404": 1},
    }
    assert sandbox.state.requests == 8  # for candles
    sandbox.forget_requests()
    assert (sandbox.requests(), sandbox.state.requests) == ({}, 0)
    sandbox.set_faults(outage_start="2018-01-01", outage_seconds=1e9)
    web.get(paths[0])
    web.get(chart)
    assert sandbox.requests() == {"time": {"503": 1}, "chart": {"503": 1}}


@pytest.mark.parametrize(
    ("path", "weight"),
    [
        ("/api/v3/klines?symbol=BTCSIM&interval=1h", 2),
        ("/api/v3/exchangeInfo", 20),
        ("/api/v3/time", 1),
        ("/api/v3/ticker/24hr?symbol=BTCSIM", 2),
        ("/api/market/chart/BTCSIM/1h", 0),
        ("/sandbox/clock", 0),
    ],
)
def test_every_reply_tells_the_weight_used(web: httpx.Client, path: str, weight: int) -> None:
    def used(path: str) -> int:
        return int(web.get(path).headers["X-MBX-USED-WEIGHT-1M"])

    # what other tests asked for may leave the minute meanwhile
    for _ in range(5):
        before, after = used(path), used(path)
        if after - before == weight:
            return
    pytest.fail(f"{after - before} more, not {weight}")


def test_refusals_weigh_and_tell_it_too(sandbox: Any, web: httpx.Client) -> None:
    sandbox.set_faults(rate_limited=1.0)
    refused = web.get("/api/v3/klines?symbol=BTCSIM&interval=1h")
    sandbox.set_faults(outage_start="2018-01-01", outage_seconds=1e9)
    for reply in (refused, web.get("/api/v3/time"), web.get("/api/v3/nosuch")):
        assert reply.status_code in {429, 503}
        assert int(reply.headers["X-MBX-USED-WEIGHT-1M"]) > 0


def test_weight_is_that_of_the_last_minute() -> None:
    moment = [0.0]
    state = State({}, START, Faults(), np.random.default_rng(0), ticks=lambda: moment[0])
    assert [state.weigh(20), state.weigh(2)] == [20, 22]
    moment[0] = 59.9
    assert state.weigh(1) == 23
    moment[0] = 60.0
    assert state.weigh(2) == 3
    moment[0] = 200.0
    assert state.weigh(0) == 0
