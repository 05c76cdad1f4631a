"""The monitor flow: quiet bars start nothing, drift is told once, and the train deployment hears it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.events import DeploymentTriggerTypes
from prefect.events.worker import EventsWorker
from pydantic import TypeAdapter

from flows.monitor import monitor
from flows.train import train
from tasks import ledger, registry
from tasks.monitoring import EVENT
from tasks.settings import load_settings
from tasks.store import Store, open_store, write_candles
from tasks.training_runs import REFERENCE
from trading.candles import frame_of
from trading.window import Timeframe, Window

pytestmark = pytest.mark.integration

START = datetime(2018, 1, 1, tzinfo=UTC)
TRAINED, QUIET, WILD = 2600, 250, 250


def at(bar: int) -> datetime:
    return START + timedelta(hours=bar)


def fill(store: Store) -> None:
    """Momentum that a model can learn; the last bars move three times as much."""
    rng = np.random.default_rng(5)
    count = TRAINED + QUIET + WILD
    moves = np.zeros(count)
    for bar, shock in enumerate(rng.normal(0, 0.004, count)):
        moves[bar] = 0.8 * moves[bar - 1] + shock * (3 if bar >= TRAINED + QUIET else 1)
    close = 100 * np.exp(np.cumsum(moves))
    open_ = np.concatenate([[100.0], close[:-1]])
    values = [
        open_,
        np.maximum(open_, close) * 1.001,
        np.minimum(open_, close) / 1.001,
        close,
        rng.uniform(5, 9, count),
    ]
    window = Window("MOM", Timeframe.H1, START, at(count))
    stamps = int(START.timestamp() * 1000) + 3_600_000 * np.arange(count)
    written = write_candles(store, window, frame_of(stamps, np.column_stack(values)), "simulated")
    ledger.record(
        store,
        ledger.LedgerEntry(
            window=window,
            status=ledger.APPROVED,
            rows=count,
            added=written.added,
            quarantined={},
            gaps=0,
            digest=written.digest,
            suite="2",
            flow_run_id=None,
            data_mode="simulated",
            source="sandbox",
            calendar="24/7",
            recorded_at=at(count),
        ),
    )


def asked(path: str, body: dict[str, Any]) -> Any:
    """What Prefect's server answers."""

    async def ask() -> Any:
        async with get_client() as client:
            return (await client.request("POST", path, json=body)).json()

    return asyncio.run(ask())


def deployed() -> str:
    """The train deployment, with the trigger that prefect.yaml declares and nobody to work on its runs."""
    declared = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text())["deployments"]
    [spec] = [one for one in declared if one["name"] == "train"]

    async def deploy() -> str:
        async with get_client() as client:
            found = await client.create_deployment(
                await client.create_flow(train), "train", parameters=spec["parameters"]
            )
            for one in spec["triggers"]:
                trigger = TypeAdapter(DeploymentTriggerTypes).validate_python(one)
                trigger.set_deployment_id(found)
                await client.create_automation(trigger.as_automation())
            return str(found)

    return asyncio.run(deploy())


def declared_parameters() -> dict[str, Any]:
    declared = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text())["deployments"]
    [found] = [one["parameters"] for one in declared if one["name"] == "train"]
    return dict(found)


def runs_of(deployment: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = asked("/flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [deployment]}}})
    return found


def told(model: str) -> list[dict[str, Any]]:
    """The drift events of a model that the server has heard of."""
    EventsWorker.instance().drain()
    events = asked("/events/filter", {"filter": {"event": {"name": [EVENT]}}, "limit": 50})["events"]
    return [event for event in events if event["resource"]["prefect.resource.name"] == model]


def test_quiet_bars_start_nothing_and_drift_is_told_once(home: Path) -> None:
    with open_store(home) as store:
        fill(store)
    none = monitor(["MOM"], Timeframe.H1, start=at(TRAINED), end=at(TRAINED + QUIET), return_state=True)
    assert (none.type.value, none.name) == ("COMPLETED", "Unknown")
    assert "has no champion" in none.message

    trained = train(["MOM"], Timeframe.H1, start=START, end=at(TRAINED), horizon=4)
    settings = load_settings()
    client = registry.connect(settings)
    assert REFERENCE in {found.path for found in client.list_artifacts(trained.run_id)}
    assert trained.promoted, trained.decision

    quiet = monitor(["MOM"], Timeframe.H1, start=at(TRAINED), end=at(TRAINED + QUIET))
    assert (quiet.state, quiet.retrain, quiet.data_mode) == ("stable", False, "simulated")
    assert told(trained.model) == []

    deployment = deployed()
    wild = monitor(["MOM"], Timeframe.H1, start=at(TRAINED + QUIET), end=at(TRAINED + QUIET + WILD), return_state=True)
    assert (wild.type.value, wild.name) == ("COMPLETED", "Drifted")
    found = wild.result()
    assert (found.state, found.retrain, found.version) == ("drifted", True, trained.version)
    again = monitor(["MOM"], Timeframe.H1, start=at(TRAINED + QUIET), end=at(TRAINED + QUIET + WILD))
    assert again.reused
    # the server writes down what it hears a little later
    deadline = time.monotonic() + 60
    while not (events := told(trained.model)) and time.monotonic() < deadline:
        time.sleep(0.2)
    [event] = events
    assert {name: event["payload"][name] for name in ("symbols", "timeframe", "data_mode")} == {
        "symbols": ["MOM"],
        "timeframe": "1h",
        "data_mode": "simulated",
    }
    [report] = asked("/artifacts/latest/filter", {"artifacts": {"key": {"any_": [f"monitor-{trained.model.lower()}"]}}})
    assert "# " + f"{trained.model} version {trained.version}: drifted" in report["data"]
    assert "**simulated**" in report["data"]

    # the server starts the training that the event asks for, once
    deadline = time.monotonic() + 60
    while not (runs := runs_of(deployment)) and time.monotonic() < deadline:
        time.sleep(0.2)
    [run] = runs
    # what the event names, over what the deployment has
    assert run["parameters"] == {**declared_parameters(), "symbols": ["MOM"], "timeframe": "1h"}
    assert run["state_type"] == "SCHEDULED"
    # by now a second event would have been heard, too
    assert len(told(trained.model)) == 1
