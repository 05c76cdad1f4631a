"""The settings flow against the sandbox's engine: a version and its event, a stale state, a failure when too old."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker

from deployments.sandbox import Sandbox
from flows.settings import settings as flow
from tasks.engine_settings import CHANGED, STALE
from trading.errors import SettingsTooOld

pytestmark = pytest.mark.integration


def asked(path: str, body: dict[str, Any]) -> Any:
    async def ask() -> Any:
        async with get_client() as client:
            return (await client.request("POST", path, json=body)).json()

    return asyncio.run(ask())


def events(name: str) -> list[dict[str, Any]]:
    EventsWorker.instance().drain()
    found: list[dict[str, Any]] = asked("/events/filter", {"filter": {"event": {"name": [name]}}, "limit": 50})[
        "events"
    ]
    return found


def test_settings_are_read_and_outlived_and_refused(
    home: Path, exchange: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert flow().state == "unconfigured"
    monkeypatch.setenv("ENGINE_URL", exchange.url)
    first = flow()
    assert (first.state, first.number, first.strategies) == ("changed", 1, ["rsi", "macd", "volume", "bollinger"])
    assert flow().state == "unchanged"
    try:
        httpx.put(f"{exchange.url}/sandbox/settings", content=b'{"strategies": [{"name": "martingale"}]}')
        stale = flow(return_state=True)
        assert (stale.type.value, stale.name) == ("COMPLETED", "Stale")
        assert "'martingale' is not a rule" in stale.message
        assert stale.result().digest == first.digest
        monkeypatch.setenv("TRADEFLOWS_ENGINE_SETTINGS_HOURS", "1e-9")
        too_old = flow(return_state=True)
        assert too_old.is_failed()
        with pytest.raises(SettingsTooOld, match="martingale"):
            too_old.result()
    finally:
        httpx.delete(f"{exchange.url}/sandbox/settings")
    deadline = time.monotonic() + 60
    while not (events(CHANGED) and events(STALE)) and time.monotonic() < deadline:
        time.sleep(0.2)
    [changed] = [one for one in events(CHANGED) if one["payload"]["digest"] == first.digest]
    assert changed["payload"]["strategies"] == first.strategies
    assert len(events(STALE)) == 1
    [report] = asked("/artifacts/latest/filter", {"artifacts": {"key": {"any_": ["settings"]}}})
    assert report["data"].startswith("# Engine settings: stale")
