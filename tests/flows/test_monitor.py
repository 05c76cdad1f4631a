"""The monitor flow: quiet bars start nothing, drift is told once, and the training that it starts meets the gate."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from deployments.stack import POOL
from flows.monitor import monitor
from flows.train import train
from tasks import ledger, promotions, registry
from tasks.monitoring import EVENT
from tasks.settings import load_settings
from tasks.store import Store, open_store, write_candles
from tasks.training_runs import REFERENCE
from trading.candles import frame_of
from trading.window import Timeframe, Window

pytestmark = pytest.mark.integration

START = datetime(2018, 1, 1, tzinfo=UTC)
TRAINED, QUIET, WILD = 2600, 250, 250
CHECKOUT = Path(__file__).parents[2]


def at(bar: int) -> datetime:
    return START + timedelta(hours=bar)


# of the deployment: all the bars that are stored, and one estimator beside the baselines
SMALL: dict[str, Any] = {
    "symbols": ["BTCUSDT"],
    "timeframe": "4h",
    "start": START.isoformat(),
    "end": at(TRAINED + QUIET + WILD).isoformat(),
    "horizon": 4,
    "estimators": ["logistic"],
}


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


def command(*words: str) -> None:
    """What Prefect's command line does, against the server of these tests."""
    address = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_HOME": str(PREFECT_HOME.value())}
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *words],
        cwd=CHECKOUT,
        env={**os.environ, **address},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def deployed(folder: Path) -> str:
    """The train deployment of prefect.yaml and its trigger, for a small training; nobody works on its runs yet."""
    content = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())
    content["deployments"] = [one for one in content["deployments"] if one["name"] == "train"]
    content["deployments"][0]["parameters"] = SMALL
    (folder / "prefect.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    command("work-pool", "create", POOL, "--type", "process", "--overwrite")
    command("deploy", "--all", "--prefect-file", str(folder / "prefect.yaml"))
    [found] = asked("/deployments/filter", {"deployments": {"name": {"any_": ["train"]}}})
    return str(found["id"])


def runs_of(deployment: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = asked("/flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [deployment]}}})
    return found


def told(model: str) -> list[dict[str, Any]]:
    """The drift events of a model that the server has heard of."""
    EventsWorker.instance().drain()
    events = asked("/events/filter", {"filter": {"event": {"name": [EVENT]}}, "limit": 50})["events"]
    return [event for event in events if event["resource"]["prefect.resource.name"] == model]


def test_quiet_bars_start_nothing_and_drift_is_told_once_and_trains_again(home: Path, tmp_path: Path) -> None:
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

    deployment = deployed(tmp_path)
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
    # what has drifted stands in the table, first, and columns far from their limits do not
    rows = [line for line in report["data"].splitlines() if line.startswith("| ") and "usual up to" not in line]
    assert rows[0].endswith("| **drifted** |")
    assert len(rows) < len(found.columns)

    # the server starts the training that the event asks for, once
    deadline = time.monotonic() + 60
    while not (runs := runs_of(deployment)) and time.monotonic() < deadline:
        time.sleep(0.2)
    [run] = runs
    # what the event names, over what the deployment has
    assert run["parameters"] == {**SMALL, "symbols": ["MOM"], "timeframe": "1h"}
    assert run["state_type"] == "SCHEDULED"
    # by now a second event would have been heard, too
    assert len(told(trained.model)) == 1

    # a worker looks once, works on what it finds, and goes
    command("worker", "start", "--pool", POOL, "--run-once", "--install-policy", "never")
    [run] = runs_of(deployment)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    # what it made is a challenger like any other: the gate held it against the champion, and its word is on record
    challenger = registry.version_of(client, trained.model, registry.CHALLENGER)
    assert challenger is not None
    assert int(challenger.version) == int(trained.version) + 1
    made = client.get_run(challenger.run_id)
    assert made.data.tags["prefect_flow_run"] == run["id"]
    assert "the champion's" in made.data.tags["mlflow.note.content"]
    champion = registry.version_of(client, trained.model, registry.CHAMPION)
    assert champion is not None
    moved = str(champion.version) == str(challenger.version)
    assert made.data.tags["gate"] == ("promoted" if moved else "not promoted")
    with open_store(home) as store:
        history = promotions.history(store, trained.model)
    assert [one.to_version for one in history] == [trained.version, str(challenger.version)][: 1 + moved]
    assert not any(one.manual for one in history)
