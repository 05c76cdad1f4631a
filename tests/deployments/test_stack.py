"""The local stack for real: it comes up, schedules create runs, REST starts one, and nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from deployments.stack import Addresses

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).resolve().parents[2]
DECLARED: dict[str, dict[str, Any]] = {
    one["name"]: one for one in yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]
}
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def command(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "TRADEFLOWS_"))
    }
    return subprocess.run(
        [sys.executable, "-m", "deployments.command", *words, "--home", str(home)],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def wait_for(ready: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s")
        time.sleep(0.25)
    return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    home = tmp_path_factory.mktemp("stack") / "home"
    started = command("up", "--detach", "--sandbox", home=home)
    logs = "\n".join(path.read_text()[-2000:] for path in (home / "logs").glob("*.log"))
    assert started.returncode == 0, started.stderr + logs
    assert "Ready." in started.stdout
    addresses = Addresses(**json.loads((home / "stack.json").read_text()))
    family = [psutil.Process(addresses.pid), *psutil.Process(addresses.pid).children(recursive=True)]
    yield addresses
    assert "runs already" in command("up", "--detach", home=home).stderr
    assert command("down", home=home).stdout.strip() == "Stopped."
    assert [process for process in family if process.is_running()] == []
    assert not (home / "stack.json").exists()


@pytest.fixture(scope="module")
def api(stack: Addresses) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.prefect_api, timeout=30) as client:
        yield client


def deployment(api: httpx.Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/deployments/name/{name}/{name}").raise_for_status().json()
    return found


def create(api: httpx.Client, name: str, body: dict[str, Any]) -> str:
    """Create a run; asks again on 503, which Prefect answers while its SQLite database is busy.

    The idempotency key makes the second asking harmless.
    """
    path = f"/deployments/{deployment(api, name)['id']}/create_flow_run"

    def created() -> str | None:
        answer = api.post(path, json=body)
        return None if answer.status_code == 503 else str(answer.raise_for_status().json()["id"])

    return str(wait_for(created, 30))


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_each_flow_is_deployed_as_declared(api: httpx.Client, name: str) -> None:
    found = deployment(api, name)
    # with the sandbox as exchange, its symbols stand for the declared ones; nothing else differs
    declared = json.loads(json.dumps(DECLARED[name]["parameters"]).replace("USDT", "SIM"))
    assert found["parameters"] == declared
    schedules = [(one["schedule"]["cron"], one["schedule"]["timezone"]) for one in found["schedules"]]
    assert schedules == [(one["cron"], "UTC") for one in DECLARED[name]["schedules"]]
    # two minutes after a bar
    assert all(cron.startswith("2 ") for cron, _ in schedules)
    assert found["global_concurrency_limit"]["limit"] == 1
    assert found["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert found["work_pool_name"] == "tradeflows"
    assert set(found["parameters"]) <= set(found["parameter_openapi_schema"]["properties"])


def test_schedules_create_runs(api: httpx.Client) -> None:
    """With a wrong version of the database library none ever appears, and nothing says so."""
    wanted = {deployment(api, name)["id"] for name in DECLARED}

    def scheduled() -> bool:
        runs = api.post("/flow_runs/filter", json={"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}).json()
        return wanted <= {run["deployment_id"] for run in runs}

    wait_for(scheduled, 60)


def test_an_ingest_as_declared_completes_on_the_sandbox_s_running_clock(api: httpx.Client) -> None:
    run = create(api, "ingest", {"idempotency_key": "declared"})
    state = wait_for(lambda: ended(api, run), 120)
    assert state["state_type"] == "COMPLETED", state["state"]["message"]


def ended(api: httpx.Client, run: str) -> dict[str, Any] | None:
    state: dict[str, Any] = api.get(f"/flow_runs/{run}").json()
    return state if state["state_type"] in ENDED else None


def test_a_run_created_over_rest_is_executed_and_completes(api: httpx.Client, stack: Addresses) -> None:
    body = {
        "idempotency_key": "first",
        "parameters": {
            "groups": [{"symbols": ["SP500", "NASDAQ"], "timeframe": "1d", "days": 7305, "horizon": 5}],
            "end": "2019-01-01T00:00:00Z",
        },
    }
    run = create(api, "cycle", body)
    assert create(api, "cycle", body) == run

    state = wait_for(lambda: ended(api, run), 180)
    assert state["state_type"] == "COMPLETED", state["state"]["message"]
    # the worker logged to the MLflow server of the stack, and its pages know the champion
    models = httpx.get(f"{stack.mlflow}/api/2.0/mlflow/registered-models/get", params={"name": "NASDAQ-SP500-1d"})
    assert {alias["alias"] for alias in models.json()["registered_model"]["aliases"]} == {"champion", "challenger"}
    reports = api.post("/artifacts/filter", json={}).json()
    keys = {report["key"] for report in reports}
    assert {"ingest-1d", "train-nasdaq-sp500-1d", "analyse-1d", "backtest-1d", "equity-sp500-1d"} <= keys
    [training] = [report["data"] for report in reports if report["key"] == "train-nasdaq-sp500-1d"]
    assert f"[MLflow run]({stack.mlflow}/#/experiments/" in training
    assert "**sample**" in training


def test_a_parameter_out_of_bounds_is_refused_by_the_server(api: httpx.Client) -> None:
    path = f"/deployments/{deployment(api, 'ingest')['id']}/create_flow_run"
    answer = api.post(path, json={"parameters": {"symbols": ["BTCSIM"], "timeframe": "7m"}})
    assert answer.status_code == 409
    assert "7m" in answer.text
