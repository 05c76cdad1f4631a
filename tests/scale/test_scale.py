"""The wide stack for real: PostgreSQL, Redis, MongoDB's protocol, two API servers and the services apart from them,
three workers that share no folder, a Dask cluster. What flows leave there is what they leave on the embedded stack."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments import stack, stack_state
from deployments.sandbox import running_sandbox
from deployments.scale import Running, running
from deployments.scale_databases import missing_programs
from deployments.scale_parts import Wide
from deployments.stack import Wanted
from deployments.sync import differences
from tasks.settings import load_settings
from tests.scale.outcomes import environment, outcome
from tests.scale.playing import Patient, create, deployments, ended, pause_schedules, play, wait_for

pytestmark = [
    pytest.mark.scale,
    pytest.mark.integration,
    pytest.mark.skipif(
        bool(missing_programs()),
        reason=f"not on this machine: {', '.join(missing_programs())}; apt-get install postgresql redis-server",
    ),
]


@dataclass(frozen=True)
class Played:
    """A stack on which the work was done, and what is left of it."""

    runs: dict[str, str]
    outcome: dict[str, Any]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One that PostgreSQL's user may enter where we are root."""
    with tempfile.TemporaryDirectory(prefix="tradeflows-scale-") as made:
        path = Path(made)
        path.chmod(0o711)
        yield path


@pytest.fixture(scope="module")
def exchange() -> Iterator[str]:
    with running_sandbox() as sandbox:
        yield sandbox.url


@pytest.fixture(scope="module")
def embedded(folder: Path, exchange: str) -> Played:
    """Everything on SQLite with one worker, before the wide stack is started: together they would be too much."""
    home = folder / "embedded"
    with environment({"TRADEFLOWS_HOME": str(home), "TRADEFLOWS_EXCHANGE_URL": exchange}):
        state = stack.detached(load_settings(), Wanted(prefect_port=0, mlflow_port=0), print)
        try:
            with httpx.Client(base_url=state.prefect_api, timeout=300, transport=Patient()) as api:
                pause_schedules(api)
                played = play(api)
            told = {"TRADEFLOWS_HOME": str(home), "MLFLOW_TRACKING_URI": str(state.parts["mlflow"].url)}
            return Played(played, outcome(told))
        finally:
            stack.down(home, print)


@pytest.fixture(scope="module")
def wide(folder: Path, exchange: str, embedded: Played) -> Iterator[Running]:
    with environment({}):
        kind = Wide(exchange_url=exchange, mongodb_url=_mongodb())
        with running(folder / "wide", kind, print) as made:
            assert made is not None
            yield made
        assert stack_state.family(made.state) == []


def _mongodb() -> str:
    given = os.environ.get("TEST_MONGODB_URL", "")
    return given and f"{given.rstrip('/')}/tradeflows_scale_{os.getpid()}"


def api_of(wide: Running, server: str) -> httpx.Client:
    user, _, password = wide.client["PREFECT_API_AUTH_STRING"].partition(":")
    url = f"{wide.state.parts[server].url}/api"
    return httpx.Client(base_url=url, auth=(user, password), timeout=300, transport=Patient())


@pytest.fixture(scope="module")
def api(wide: Running) -> Iterator[httpx.Client]:
    """The first server; the second answers the same."""
    with api_of(wide, "prefect") as client:
        yield client


@pytest.fixture(scope="module")
def played(wide: Running, api: httpx.Client) -> Played:
    services_create_scheduled_runs(api)
    pause_schedules(api)
    runs = play(api)
    return Played(runs, outcome({**wide.client, "TRADEFLOWS_HOME": str(wide.home / "nothing")}))


def services_create_scheduled_runs(api: httpx.Client) -> None:
    """They run apart from both servers."""
    wanted = {one["id"] for one in deployments(api).values() if one["schedules"]}
    assert len(wanted) > 5

    def scheduled() -> bool:
        state = {"state": {"type": {"any_": ["SCHEDULED"]}}}
        return wanted <= {
            run["deployment_id"] for run in api.post("/flow_runs/filter", json={"flow_runs": state}).json()
        }

    wait_for(scheduled)


@pytest.mark.parametrize("what", ["candles", "ledger", "analyses", "backtests", "results", "runs", "versions"])
def test_what_is_left_is_what_the_embedded_stack_leaves(embedded: Played, played: Played, what: str) -> None:
    there, here = embedded.outcome[what], played.outcome[what]
    assert len(there) >= 1
    assert list(differences(there, here)) == []
    assert here == there


def test_the_work_was_not_trivial(played: Played) -> None:
    left = played.outcome
    assert sum(chunk["rows"] for chunk in left["candles"].values()) == 5031 + 5029 + 3 * 120 * 24
    assert {one["analysis"]["signal"] for one in left["analyses"].values()} <= {"Long", "Short", "Neutral"}
    assert len(left["analyses"]) == 5
    assert any(one["trials"] > 50 for one in left["backtests"].values())
    assert sum("log_loss" in run["metrics"] for run in left["runs"].values()) >= 7
    [(name, version)] = left["versions"].items()
    assert (name, version["aliases"]) == ("NASDAQ-SP500-1d 1", ["challenger", "champion"])
    assert version["files"]


def test_the_runs_were_spread_over_the_workers(api: httpx.Client, played: Played) -> None:
    """Each worker tells, by an event over Redis, which runs it took."""

    def told() -> dict[str, str] | None:
        wanted = {"event": {"name": ["prefect.worker.submitted-flow-run"]}}
        events = api.post("/events/filter", json={"filter": wanted}).raise_for_status().json()["events"]
        took = {
            related["prefect.resource.id"].removeprefix("prefect.flow-run."): event["resource"]["prefect.resource.name"]
            for event in events
            for related in event["related"]
            if related["prefect.resource.role"] == "flow-run"
        }
        return took if set(played.runs.values()) <= took.keys() else None

    took = wait_for(told, 60)
    assert {took[run] for run in played.runs.values()} == {"worker-1", "worker-2", "worker-3"}


def test_the_backtests_ran_on_every_worker_of_the_cluster(wide: Running, played: Played) -> None:
    from distributed import Client

    with Client(wide.client["TRADEFLOWS_DASK_ADDRESS"]) as client:
        names = client.run(lambda dask_worker: dask_worker.name)
        done = client.run(lambda dask_worker: dask_worker.state.executed_count)
    assert sorted(names.values()) == ["dask-1", "dask-2"]
    assert min(done.values()) > 5
    # each batch was a task there
    assert sum(done.values()) >= sum(one["batches"] for one in played.outcome["backtests"].values())


def test_both_servers_tell_the_same_and_ask_for_the_password(wide: Running, played: Played) -> None:
    with api_of(wide, "prefect-2") as other:
        found = other.get(f"/flow_runs/{played.runs['cycle']}").raise_for_status().json()
        assert found["state_type"] == "COMPLETED"
    for server in ("prefect", "prefect-2"):
        url = f"{wide.state.parts[server].url}/api/flow_runs/{played.runs['cycle']}"
        assert httpx.get(url).status_code == 401
    mlflow = f"{wide.client['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/registered-models/search"
    assert httpx.get(mlflow).status_code == 401


def test_a_failed_run_is_told_by_an_automation_of_the_services(
    api: httpx.Client, wide: Running, played: Played
) -> None:
    """From a worker over the second server's event stream, Redis and the services to a run of notify."""
    with api_of(wide, "prefect-2") as other:
        failed = create(other, "ingest", {"symbols": ["NOSUCH"], "timeframe": "1h", "days": 2}, "failing")
    assert ended(api, failed)["state_type"] == "FAILED"
    notify = deployments(api)["notify"]["id"]

    def told() -> list[str]:
        runs = {"flow_runs": {"deployment_id": {"any_": [notify]}}}
        found = api.post("/flow_runs/filter", json=runs).raise_for_status().json()
        return [run["id"] for run in found if run["parameters"].get("flow_run_id") == failed]

    [run] = wait_for(told, 120)
    assert ended(api, run)["state_type"] == "COMPLETED"


def test_workers_keep_nothing_but_reports(wide: Running, played: Played) -> None:
    """Another worker may take the next run."""
    for number in (1, 2, 3):
        home = wide.home / f"worker-{number}"
        assert not list(home.rglob("store.db"))
        assert not list(home.rglob("mlflow.db"))
        assert not (home / "signing.key").exists()


def test_no_password_is_in_a_log_or_command_line(wide: Running, played: Played) -> None:
    known = [path.read_text() for path in (wide.home / "secrets").iterdir() if path.name != "redis.conf"]
    assert len(known) >= 4
    logs = {path.name: path.read_text(errors="replace") for path in (wide.home / "logs").glob("*.log")}
    assert {"prefect.log", "services.log", "worker-3.log", "dask-2.log"} <= logs.keys()
    lines = [" ".join(process.cmdline()) for process in stack_state.family(wide.state)]
    for password in known:
        assert not [name for name, text in logs.items() if password in text]
        assert not [line for line in lines if password in line]


def test_nobody_complained(wide: Running, played: Played) -> None:
    for name in ("prefect", "prefect-2", "services"):
        text = (wide.home / "logs" / f"{name}.log").read_text()
        complaints = [line for line in text.splitlines() if "| ERROR" in line or "Traceback" in line]
        assert complaints == [], json.dumps(complaints[:5])
