"""The clock of the sandbox exchange: set, moved on, and run at a speed."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.sandbox.server import Faults, State


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


def still(text: str) -> dict[str, object]:
    return {"time": text, "speed": 0.0}


def test_the_clock_is_set_and_moved_on(ask: Any, put: Any) -> None:
    assert put("/sandbox/clock", {"time": "2018-06-01T12:00:00Z"}).json() == still("2018-06-01T12:00:00+00:00")
    assert put("/sandbox/clock", {"advance_seconds": 90}).json() == still("2018-06-01T12:01:30+00:00")
    assert put("/sandbox/clock", {"advance_seconds": -30}).json() == still("2018-06-01T12:01:00+00:00")
    assert ask("/sandbox/clock").json() == still("2018-06-01T12:01:00+00:00")
    assert ask("/api/v3/time").json() == {"serverTime": ms("2018-06-01T12:01:00")}


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine whose local time is not UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_east")
@pytest.mark.parametrize("text", ["2018-06-01T12:00:00", "2018-06-01T14:00:00+02:00", "2018-06-01T12:00:00Z"])
def test_times_are_utc_unless_they_say_otherwise(put: Any, text: str) -> None:
    assert put("/sandbox/clock", {"time": text}).json() == still("2018-06-01T12:00:00+00:00")


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        5,
        None,
        {"time": "noon"},
        {"time": 5},
        {"advance_seconds": "x"},
        {"advance_seconds": 1e300},
        {"speed": -1},
        {"speed": True},
        {"speed": "fast"},
        {"speed": 1e7},
        {"time": "2018-06-01T12:00:00Z", "speed": None},
        {"time": "noon", "speed": 60},
    ],
)
def test_a_clock_that_cannot_be_set_stays(ask: Any, put: Any, body: object) -> None:
    reply = put("/sandbox/clock", body)
    assert reply.status_code == 400
    assert "give time (ISO 8601) or advance_seconds" in reply.json()["error"]
    assert ask("/sandbox/clock").json() == still("2019-01-01T00:02:00+00:00")


def test_a_running_clock_goes_on_from_where_it_is_set() -> None:
    moment = [100.0]
    start = datetime(2018, 1, 1, tzinfo=UTC)
    clock = State({}, start, Faults(), np.random.default_rng(0), ticks=lambda: moment[0])
    moment[0] = 160.0
    assert clock.clock == start
    clock.run(1.0)
    moment[0] = 220.0
    assert clock.clock == start + timedelta(seconds=60)
    clock.set(start)
    moment[0] = 225.0
    assert clock.clock == start + timedelta(seconds=5)
    # another speed begins where the clock is
    clock.run(60.0)
    assert clock.clock == start + timedelta(seconds=5)
    moment[0] = 227.0
    assert clock.clock == start + timedelta(seconds=125)
    clock.run(0.0)
    moment[0] = 300.0
    assert clock.clock == start + timedelta(seconds=125)


def test_the_clock_runs_at_the_speed_it_is_told(sandbox: Any, ask: Any, put: Any) -> None:
    start = datetime(2018, 6, 1, tzinfo=UTC)
    begun = time.monotonic()
    told = put("/sandbox/clock", {"time": start.isoformat(), "speed": 36_000}).json()
    assert told["speed"] == 36_000
    while ask("/api/v3/time").json()["serverTime"] < ms("2018-06-01T01:00:00"):
        assert time.monotonic() - begun < 10  # it takes a tenth of a second
    assert sandbox.state.clock - start <= timedelta(seconds=36_000 * (time.monotonic() - begun))
    sandbox.set_speed(0)
    stopped = ask("/sandbox/clock").json()
    assert stopped["speed"] == 0
    assert ask("/sandbox/clock").json() == stopped
