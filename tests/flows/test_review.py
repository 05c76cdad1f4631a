"""The review flow: a strategy that crosses a threshold is stopped, told of once as critical, and lifted by a word."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from typer.testing import CliRunner

from deployments.notify_command import notify as notify_app
from deployments.review_command import reviews as review_app
from flows.review import review
from tasks.disabled_strategies import disabled
from tasks.settling import PART
from tasks.store import SETTLEMENTS, open_store

pytestmark = pytest.mark.integration


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A webhook that is the only one to tell: what it ``heard``, and the ``status`` that it answers."""
    told: dict[str, Any] = {"heard": [], "status": 200}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told["heard"].append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(told["status"])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("TRADEFLOWS_NOTIFY_URLS", f"warning=json://127.0.0.1:{server.server_address[1]}/T0kenABCDEFGH")
    yield told
    server.shutdown()
    server.server_close()


def losing(home: Path, days: int = 12, profits: tuple[float, ...] = (-0.013,)) -> None:
    """RSI had these profits in turn, by default a loss on each of the last twelve days."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    result = {"analyst": "rsi", "version": "a", "role": PART, "signal": "Short", "confidence": 0.5, "horizon": 12}
    result |= {"moved": 0.01, "idle": False, "usd": 0.0}
    with open_store(home) as store:
        for age in range(2, 2 + days):
            made = {**result, "profit": profits[age % len(profits)]}
            at = today - age * timedelta(days=1)
            document = {"_id": str(age), "symbol": "BTCSIM", "timeframe": "1h", "timestamp": at, "entry_at": at}
            document |= {"exit_at": at + timedelta(hours=12), "cost_per_side": 0.0015, "results": [made]}
            document |= {"hindsight": False, "data_mode": "simulated", "settled_at": at + timedelta(days=1)}
            store.documents.put(SETTLEMENTS, document)


def report(key: str) -> str:
    async def ask() -> Any:
        async with get_client() as client:
            body = {"artifacts": {"key": {"any_": [key]}}}
            return (await client.request("POST", "/artifacts/latest/filter", json=body)).json()

    [found] = asyncio.run(ask())
    return str(found["data"])


def test_a_losing_strategy_is_stopped_and_told_of_once_and_lifted(home: Path, webhook: dict[str, Any]) -> None:
    losing(home)
    assert review(emergency_only=True) is None
    [told] = webhook["heard"]
    assert told["title"] == "[critical] Strategy rsi disabled"
    assert "12 losing spans in a row" in told["message"]
    assert "**rsi**: 12 losing spans in a row" in report("emergency-1h")
    found = review()
    assert (found.silent.startswith("the LLM is off"), found.degraded) == (True, False)
    assert [one["strategy"] for one in found.facts.disabled] == ["rsi"]
    assert "## Strategies" in report("review-1h")
    assert len(webhook["heard"]) == 1

    runner = CliRunner()
    listed = runner.invoke(review_app, ["list", "--home", str(home)])
    assert "rsi is disabled until" in listed.output
    refused = runner.invoke(review_app, ["lift", "rsi", "--reason", " ", "--home", str(home)])
    assert refused.exit_code == 1
    # by a parameter, too
    review(emergency_only=True, lift=["rsi"], lift_reason="it was the data")
    with open_store(home) as store:
        assert disabled(store, datetime.now(UTC)) == ()
    assert len(webhook["heard"]) == 1


def test_a_message_that_nobody_gets_is_a_failed_run_and_told_by_the_next(
    home: Path, webhook: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    losing(home)
    webhook["status"] = 500
    # the policy's retries, without its waits
    from tasks.notifying import notify_task

    monkeypatch.setattr(notify_task, "retry_delay_seconds", 0)
    state = review(emergency_only=True, return_state=True)
    assert state.is_failed()
    assert "1 of 1 addresses were not told 'Strategy rsi disabled': 1 (json): answered 500" in state.message
    assert "T0kenABCDEFGH" not in state.message
    assert len(webhook["heard"]) == 1 + 5
    with open_store(home) as store:
        assert [one.strategy for one in disabled(store, datetime.now(UTC))] == ["rsi"]
    webhook["status"] = 200
    review(emergency_only=True)
    assert len(webhook["heard"]) == 7


def test_proposals_that_nobody_got_are_told_by_the_next_run_and_once(
    home: Path, webhook: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    losing(home, days=25, profits=(-0.013, 0.005))
    monkeypatch.setenv("TRADEFLOWS_NOTIFY_URLS", os.environ["TRADEFLOWS_NOTIFY_URLS"].replace("warning=", "info="))
    webhook["status"] = 500
    from tasks.notifying import notify_task

    monkeypatch.setattr(notify_task, "retry_delay_seconds", 0)
    assert review(return_state=True).is_failed()
    webhook["status"] = 200
    webhook["heard"].clear()
    # nothing is fresh, nor does an emergency run look for any
    review(emergency_only=True)
    [told] = webhook["heard"]
    assert "rsi lost" in told["message"]
    review()
    review(emergency_only=True)
    assert len(webhook["heard"]) == 1


def test_the_command_tells_who_is_told_and_tries_it(home: Path, webhook: dict[str, Any]) -> None:
    runner = CliRunner()
    assert "1 (json): warning and above" in runner.invoke(notify_app, ["list", "--home", str(home)]).output
    assert runner.invoke(notify_app, ["test", "--home", str(home)]).output.strip() == "Delivered to 1 (json)."
    webhook["status"] = 404
    failed = runner.invoke(notify_app, ["test", "--home", str(home)])
    assert failed.exit_code == 1
    assert "answered 404" in failed.output + failed.stderr
    assert len(webhook["heard"]) == 2
