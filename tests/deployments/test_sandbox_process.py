"""The sandbox exchange as a process of its own: told where it listens, stopped at the end, and why it did not start."""

from __future__ import annotations

import os
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from deployments.sandbox import running_sandbox
from trading.errors import SourceUnavailable

# each starts processes
pytestmark = pytest.mark.integration

BTC = {"symbol": "BTCSIM", "interval": "1h"}


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_it_runs_as_a_process_and_leaves_none(tmp_path: Path) -> None:
    rows = f"open_time,open,high,low,close,volume\n{ms('2020-01-01')},1,2,1,2,5\n"
    (tmp_path / "MINE_1d.csv").write_text(rows)
    with running_sandbox(clock="2020-06-01T00:00:00", folder=tmp_path, seed=11) as exchange:
        assert not gone(exchange.pid)
        host, _, port = exchange.url.removeprefix("http://").partition(":")
        assert host == "127.0.0.1"
        assert httpx.get(f"{exchange.url}/api/v3/time").json() == {"serverTime": ms("2020-06-01")}
        mine = httpx.get(f"{exchange.url}/api/v3/klines", params={"symbol": "MINE", "interval": "1d"}).json()
        assert mine[0][:6] == [ms("2020-01-01"), "1.0", "2.0", "1.0", "2.0", "5.0"]
        exchange.set_clock("2020-07-01T00:00:00Z")
        assert httpx.get(f"{exchange.url}/api/v3/time").json() == {"serverTime": ms("2020-07-01")}
        with httpx.Client(base_url=exchange.url) as client:
            waits = sorted(client.get("/api/v3/time").elapsed for _ in range(15))
        assert waits[7] < timedelta(milliseconds=30)  # small replies are sent at once
        exchange.set_faults(failing=1.0)
        assert httpx.get(f"{exchange.url}/api/v3/klines", params=BTC).status_code == 503
        with pytest.raises(httpx.HTTPStatusError):
            exchange.set_faults(nosuch=1.0)
        leaving = time.monotonic()
    assert gone(exchange.pid)
    assert time.monotonic() - leaving < 5  # it went when asked, and was not killed after a wait
    with socket.socket() as probe:
        assert probe.connect_ex((host, int(port))) != 0


def test_as_a_process_its_clock_runs_at_a_speed() -> None:
    with running_sandbox(clock="2018-06-01T00:00:00", speed=36_000.0) as exchange, httpx.Client() as client:
        begun = time.monotonic()
        while client.get(f"{exchange.url}/api/v3/time").json()["serverTime"] < ms("2018-06-01T01:00:00"):
            assert time.monotonic() - begun < 10
        assert client.get(f"{exchange.url}/sandbox/clock").json()["speed"] == 36_000


def test_text_may_be_made_before_the_start(tmp_path: Path) -> None:
    rows = f"open_time,open,high,low,close,volume\n{ms('2018-01-01')},1,2,1,2,5\n"
    (tmp_path / "MINE_1d.csv").write_text(rows)
    with running_sandbox(folder=tmp_path, rendered=True) as exchange:
        mine = httpx.get(f"{exchange.url}/api/v3/klines", params={"symbol": "MINE", "interval": "1d"}).json()
    assert mine[0][:6] == [ms("2018-01-01"), "1.0", "2.0", "1.0", "2.0", "5.0"]


def test_an_error_of_ours_stops_it_too() -> None:
    with pytest.raises(KeyError), running_sandbox() as exchange:
        raise KeyError(exchange.pid)
    assert gone(exchange.pid)


def test_one_that_does_not_start_says_why() -> None:
    with (
        pytest.raises(SourceUnavailable, match=r"did not start: (?s:.*)Invalid isoformat string: 'noon'"),
        running_sandbox(clock="noon"),
    ):
        pytest.fail("it did start")
