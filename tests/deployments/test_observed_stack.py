"""A real stack, observed: metrics are what Prefect and the store hold, every log line is an object with its ids, and a
signal is followed to the candles; all of one ingest and one analysis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments import stack_state
from deployments.prefect_api import Api, connected
from deployments.stack_state import StackState
from tasks import ledger
from tasks.store import CHUNKS, analyses, open_store, read_candles
from trading.candles import digest
from trading.window import Timeframe, Window

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).resolve().parents[2]
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
SECRET = "correct-horse-battery-staple"
SYMBOLS = ["BTCSIM", "ETHSIM"]


def command(*words: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    ours = ("PREFECT_", "TRADEFLOWS_", "MLFLOW_", "MONGODB_URL")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [sys.executable, "-m", "deployments.command", *words, "--home", str(home)],
        cwd=CHECKOUT, env={**environment, **variables}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def wait_for(ready: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s")
        time.sleep(0.25)
    return found


@dataclass(frozen=True)
class Observed:
    """A stack in which an ingest and an analysis have run."""

    home: Path
    state: StackState
    ingest: dict[str, Any]
    analyse: dict[str, Any]

    @property
    def metrics(self) -> str:
        return str(self.state.parts["metrics"].url)


def ran(api: Api, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """A run of a deployment, once it has ended; one that is cancelled because a scheduled one works is made again."""

    def again() -> dict[str, Any] | None:
        deployment = api.ask("GET", f"/deployments/name/{name}/{name}")
        run = api.ask("POST", f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})

        def ended() -> dict[str, Any] | None:
            found: dict[str, Any] = api.ask("GET", f"/flow_runs/{run['id']}")
            return found if found["state_type"] in ENDED else None

        found: dict[str, Any] = wait_for(ended, 180)
        return found if found["state_type"] != "CANCELLED" else None

    found: dict[str, Any] = wait_for(again, 180)
    assert found["state_type"] == "COMPLETED", found["state"]
    return found


def leave_waiting(api: Api) -> None:
    """A run that was due an hour ago, of a deployment that no worker serves: Prefect calls it late some time later."""
    flow = api.ask("POST", "/flows/", {"name": "lonely"})["id"]
    api.ask("POST", "/work_pools/", {"name": "nobody", "type": "process"})
    body = {"name": "lonely", "flow_id": flow, "tags": ["tradeflows"], "work_pool_name": "nobody"}
    deployment = api.ask("POST", "/deployments/", body)["id"]
    due = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due}}
    api.ask("POST", f"/deployments/{deployment}/create_flow_run", {"state": state})


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    home = tmp_path_factory.mktemp("observed") / "home"
    words = ("up", "--detach", "--sandbox", "--prefect-port", "0", "--mlflow-port", "0")
    started = command(*words, home=home, TRADEFLOWS_LOG_FORMAT="json", MY_OWN_TOKEN=SECRET)
    logs = "\n".join(path.read_text()[-2000:] for path in (home / "logs").glob("*.log"))
    assert started.returncode == 0, started.stderr + logs
    state = stack_state.read(home)
    assert state is not None
    try:
        with connected(state.prefect_api) as api:
            leave_waiting(api)
            ingest = ran(api, "ingest", {"symbols": SYMBOLS, "days": 400})
            analyse = ran(api, "analyse", {"symbols": SYMBOLS, "refresh": None, "days": 60, "reuse_minutes": 0})
        yield Observed(home, state, ingest, analyse)
    finally:
        command("down", home=home)
    assert stack_state.family(state) == []


def scraped(observed: Observed) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by name and by the values of the labels, in the order of the labels' names."""
    answer = httpx.get(observed.metrics, timeout=30)
    assert answer.status_code == 200
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for one in family.samples:
            found.setdefault(one.name, {})[tuple(value for _, value in sorted(one.labels.items()))] = one.value
    return found


def test_a_scrape_tells_what_prefect_and_the_store_hold(observed: Observed) -> None:
    def whole() -> dict[str, dict[tuple[str, ...], float]] | None:
        found = scraped(observed)
        # readings are some seconds apart
        done = found.get("tradeflows_flow_run_success_age_seconds", {})
        late = found.get("tradeflows_flow_runs", {}).get(("lonely", "late"))
        all_there = ("ingest",) in done and ("analyse",) in done and "tradeflows_signals" in found
        return found if all_there and late else None

    found = wait_for(whole, 120)
    assert found["tradeflows_source_up"] == {(name,): 1.0 for name in ("stack", "store", "prefect", "mlflow")}
    with connected(observed.state.prefect_api) as api:
        ended = api.ask("POST", "/flow_runs/filter", {"flow_runs": {"name": {"any_": ["ingest-1h"]}}})
    completed = [run for run in ended if run["state_type"] == "COMPLETED"]
    assert 1 <= found["tradeflows_flow_runs_total"]["ingest", "completed"] <= len(completed)
    mine = {run["id"]: float(run["total_run_time"]) for run in completed}
    count = int(found["tradeflows_flow_run_duration_seconds_count"]["ingest",])
    if count == len(completed):
        total = found["tradeflows_flow_run_duration_seconds_sum"]["ingest",]
        assert total == pytest.approx(sum(mine.values()))
    assert found["tradeflows_flow_runs"]["lonely", "late"] == 1
    assert 3600 <= found["tradeflows_flow_run_overdue_seconds"]["lonely",] < 5400
    assert found["tradeflows_flow_run_overdue_seconds"]["backtest",] == 0
    assert found["tradeflows_worker_heartbeat_age_seconds"]["local",] < 120
    with open_store(observed.home) as store:
        rows = sum(one.rows for symbol in SYMBOLS for one in ledger.entries(store, symbol, "1h"))
        signals = [analyses(store, symbol)[-1]["analysis"]["signal"] for symbol in SYMBOLS]
        oldest = min(one.approved_until for one in ledger.summary(store) if one.approved_until is not None)
    assert found["tradeflows_candles_received_total"]["simulated", "1h"] == rows
    told = {labels: value for labels, value in found["tradeflows_signals"].items() if labels[0] == "combined"}
    assert sum(told.values()) == 2
    assert {labels[2] for labels in told} == set(signals)
    age = max(found["tradeflows_candles_age_seconds"].values())
    assert age == pytest.approx(time.time() - oldest.timestamp(), abs=120)
    assert found["tradeflows_ingest_candles_per_second"]["simulated",] > 1
    assert found["tradeflows_stack_info"]["true", "false"] == 1
    assert set(found["tradeflows_part_up"].values()) == {1.0}
    # no secret and no address of a person's own in what everybody on the machine can read
    assert SECRET not in httpx.get(observed.metrics, timeout=30).text


def test_the_endpoint_is_light_and_watched(observed: Observed) -> None:
    part = observed.state.parts["metrics"]
    assert psutil.Process(part.pid).memory_info().rss < 80_000_000
    psutil.Process(part.pid).kill()

    def again() -> bool:
        now = stack_state.read(observed.home)
        return now is not None and now.parts["metrics"].restarts == 1 and now.parts["metrics"].state == "ready"

    wait_for(again, 60)
    assert scraped(observed)["tradeflows_part_restarts_total"]["metrics",] == 1


def test_every_line_of_every_part_is_an_object(observed: Observed) -> None:
    seen: dict[str, list[dict[str, Any]]] = {}
    for path in (observed.home / "logs").glob("*.log"):
        if path.stem == "up":
            continue  # what `up` itself showed
        text = path.read_text()
        assert SECRET not in text
        for line in text.splitlines():
            told = json.loads(line)
            assert {"time", "level", "logger", "message"} <= told.keys(), line
            assert told["time"].endswith("Z")
            seen.setdefault(path.stem, []).append(told)
    assert seen.keys() == {*observed.state.parts, "stack"}
    assert any(one["message"] == "Worker 'local' started!" for one in seen["worker"])


def test_lines_of_a_flow_run_carry_its_ids_and_windows(observed: Observed) -> None:
    lines = [json.loads(line) for line in (observed.home / "logs" / "worker.log").read_text().splitlines()]
    mine = [one for one in lines if one.get("flow_run_id") == observed.ingest["id"]]
    stored = [one for one in mine if one["message"] == "stored"]
    assert {one["symbol"] for one in stored} == set(SYMBOLS)
    for one in stored:
        assert (one["logger"], one["level"], one["timeframe"], one["flow_name"]) == (
            "tradeflows",
            "info",
            "1h",
            "ingest",
        )
        assert one["trace_id"] == observed.ingest["id"]
        assert one["added"] > 0 and one["window"].count("Z") == 2
        assert one["task_run_id"]
    assert any("Finished in state Completed" in one["message"] for one in mine)
    assert {one["trace_id"] for one in mine} == {observed.ingest["id"]}


def test_logs_are_shown_as_text(observed: Observed) -> None:
    shown = command("logs", "worker", "-n", "5000", home=observed.home)
    assert shown.returncode == 0
    end = observed.ingest["id"][-12:]
    stored = [line for line in shown.stdout.splitlines() if f"INFO    ingest-1h {end}: stored " in line]
    assert stored and all(" window=" in line and " added=" in line for line in stored), shown.stdout[-6000:]
    assert '{"time"' not in shown.stdout


def test_a_signal_is_followed_to_the_candles(observed: Observed) -> None:
    with open_store(observed.home) as store:
        [stored] = [one for one in analyses(store, "BTCSIM") if one["flow_run_id"] == observed.analyse["id"]]
        name = f"BTCSIM/1h/{stored['timestamp']:%Y-%m-%dT%H:%M:%SZ}"
        window = Window("BTCSIM", Timeframe.H1, stored["candles_start"], stored["timestamp"])
        expected = digest(read_candles(store, window))
        revisions = {one["_id"]: (one["rev"], one["digest"]) for one in store.documents.find(CHUNKS)}
    traced = command("trace", name, "--json", home=observed.home)
    assert traced.returncode == 0, traced.stdout + traced.stderr
    found = json.loads(traced.stdout)
    assert found["findings"] == []
    pages = observed.state.prefect_api.removesuffix("/api")
    run = observed.analyse["id"]
    assert found["run"] == {"id": run, "link": f"{pages}/runs/flow-run/{run}"}
    held = found["candles"]
    assert (held["digest"], held["verdict"]) == (expected, "equal")
    assert observed.ingest["id"] in {one["run"]["id"] for one in held["ledger"]}
    assert {(one["id"], (one["rev"], one["digest"])) for one in held["chunks"]} <= set(revisions.items())
    # the page of the run is there
    with connected(observed.state.prefect_api) as api:
        assert api.ask("GET", f"/flow_runs/{found['run']['id']}")["name"] == "analyse-1h"
        reports = api.ask("POST", "/artifacts/latest/filter", {"artifacts": {"key": {"any_": ["analyse-1h"]}}})
    assert "tradeflows trace BTCSIM/1h/" in reports[0]["data"]
    shown = command("trace", name, home=observed.home)
    assert shown.returncode == 0 and shown.stdout.startswith("BTCSIM 1h: ")
