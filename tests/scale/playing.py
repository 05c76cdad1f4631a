"""The same work on any stack, over Prefect's REST API alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

PATIENCE = 600.0
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
END = "2019-01-01T00:00:00Z"
HOURLY = {"symbols": ["BTCSIM", "ETHSIM", "SOLSIM"], "timeframe": "1h", "days": 120, "end": END}
DAILY = {"symbols": ["SP500", "NASDAQ"], "timeframe": "1d", "days": 7305, "horizon": 5}


class Patient(httpx.HTTPTransport):
    """Asks again on 503, which Prefect answers while its database is busy."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        def asked() -> httpx.Response | None:
            answer = super(Patient, self).handle_request(request)
            answer.read()
            return None if answer.status_code == 503 else answer

        found: httpx.Response = wait_for(asked)
        return found


def wait_for(ready: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s")
        time.sleep(0.25)
    return found


def deployments(api: httpx.Client) -> dict[str, dict[str, Any]]:
    found = api.post("/deployments/filter", json={}).raise_for_status().json()
    return {one["name"]: one for one in found}


def pause_schedules(api: httpx.Client) -> None:
    """Or scheduled runs, about the market of today, come in between."""
    for one in deployments(api).values():
        api.patch(f"/deployments/{one['id']}", json={"paused": True}).raise_for_status()


def create(api: httpx.Client, name: str, parameters: dict[str, Any], key: str) -> str:
    path = f"/deployments/{deployments(api)[name]['id']}/create_flow_run"
    body = {"parameters": parameters, "idempotency_key": key}
    return str(api.post(path, json=body).raise_for_status().json()["id"])


def ended(api: httpx.Client, run: str) -> dict[str, Any]:
    """The run, once it is over."""

    def over() -> dict[str, Any] | None:
        found: dict[str, Any] = api.get(f"/flow_runs/{run}").raise_for_status().json()
        return found if found["state_type"] in ENDED else None

    found: dict[str, Any] = wait_for(over)
    return found


def play(api: httpx.Client) -> dict[str, str]:
    """Cycle, and beside it ingest, then analyse and backtest at the same time; the ids of the runs."""
    played = {
        "cycle": create(api, "cycle", {"groups": [DAILY], "end": END}, "cycle"),
        "ingest": create(api, "ingest", {**HOURLY, "recheck": 0}, "ingest"),
    }
    assert ended(api, played["ingest"])["state_name"] == "Completed"
    played["analyse"] = create(api, "analyse", {**HOURLY, "refresh": None}, "analyse")
    backtest = {"strategies": ["rsi", "sma_cross", "breakout"], "sweep": True, "refresh": None}
    played["backtest"] = create(api, "backtest", {**HOURLY, **backtest}, "backtest")
    for name, run in played.items():
        over = ended(api, run)
        # nobody has trained a model for these hourly markets, and the analysis says so
        assert over["state_type"] == "COMPLETED", f"{name}: {over['state']['message']}"
    return played
