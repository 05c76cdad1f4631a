"""Faults that end by themselves, requests about them that are refused, and how quick a page is."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tasks.binance import BinanceSource
from trading.errors import SourceUnavailable
from trading.window import Timeframe, Window

BTC = {"symbol": "BTCSIM", "interval": "1h"}


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
    with BinanceSource(sandbox.url) as source:
        with pytest.raises(SourceUnavailable):
            source.fetch(window)
        assert len(source.fetch(window)) == 2_500


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


def test_a_page_takes_milliseconds(sandbox: Any) -> None:
    """The best of several, so that a busy machine does not count; the bound is five times what it takes."""
    took = []
    with httpx.Client(base_url=sandbox.url) as connection:
        for _ in range(15):
            begun = time.perf_counter()
            reply = connection.get("/api/v3/klines", params=BTC | {"limit": "1000"})
            took.append(time.perf_counter() - begun)
            assert len(reply.json()) == 1000
    assert min(took) < 0.03, took
