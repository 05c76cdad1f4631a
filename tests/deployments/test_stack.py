"""The local stack for real: it comes up, holds what is declared, schedules create runs, REST starts one, a killed part
comes again, and nothing is left behind, also where the supervisor is killed."""

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

from deployments import stack_state
from deployments.stack_state import StackState

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
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackState]:
    home = tmp_path_factory.mktemp("stack") / "home"
    started = command("up", "--detach", "--sandbox", "--prefect-port", "0", "--mlflow-port", "0", home=home)
    logs = "\n".join(path.read_text()[-2000:] for path in (home / "logs").glob("*.log"))
    assert started.returncode == 0, started.stderr + logs
    assert "Ready." in started.stdout
    state = stack_state.read(home)
    assert state is not None and state.well
    yield state
    command("down", home=home)
    assert stack_state.family(state) == []


def home_of(stack: StackState) -> Path:
    return Path(psutil.Process(stack.pid).environ()["TRADEFLOWS_HOME"])


def now(home: Path) -> StackState:
    found = stack_state.read(home)
    assert found is not None
    return found


class Patient(httpx.HTTPTransport):
    """Asks again on 503, which Prefect answers while its SQLite database is busy."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return wait_for(lambda: None if (answer := self.once(request)).status_code == 503 else answer, 30)

    def once(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        answer.read()
        return answer


@pytest.fixture(scope="module")
def api(stack: StackState) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.prefect_api, timeout=30, transport=Patient()) as client:
        yield client


CYCLE = {
    "idempotency_key": "first",
    "parameters": {
        "groups": [{"symbols": ["SP500", "NASDAQ"], "timeframe": "1d", "days": 7305, "horizon": 5}],
        "end": "2019-01-01T00:00:00Z",
    },
}


@pytest.fixture(scope="module", autouse=True)
def runs(api: httpx.Client) -> dict[str, str]:
    """The runs that take long, by deployment, under way while the tests that do not wait for them go on."""
    return {
        "ingest": create(api, "ingest", {"idempotency_key": "declared"}),
        "cycle": create(api, "cycle", CYCLE),
    }


def deployment(api: httpx.Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/deployments/name/{name}/{name}").raise_for_status().json()
    return found


def create(api: httpx.Client, name: str, body: dict[str, Any]) -> str:
    path = f"/deployments/{deployment(api, name)['id']}/create_flow_run"
    return str(api.post(path, json=body).raise_for_status().json()["id"])


def test_each_flow_is_deployed_with_its_schedules_and_limit(api: httpx.Client) -> None:
    """Read without our own code; that the rest is as declared, too, says the second sync below."""
    for name, wanted in DECLARED.items():
        found = deployment(api, name)
        schedules = {(one["slug"], one["schedule"]["cron"], one["schedule"]["timezone"]) for one in found["schedules"]}
        assert schedules == {(one["slug"], one["cron"], "UTC") for one in wanted.get("schedules", [])}
        # with the sandbox as exchange, its symbols stand for the declared ones
        assert found["parameters"] == json.loads(json.dumps(wanted.get("parameters", {})).replace("USDT", "SIM"))
        assert found["global_concurrency_limit"]["limit"] == wanted["concurrency_limit"]["limit"]
        assert found["concurrency_options"]["collision_strategy"] == wanted["concurrency_limit"]["collision_strategy"]
        assert found["work_pool_name"] == "tradeflows"


def test_schedules_create_runs(api: httpx.Client) -> None:
    """With a wrong version of the database library none ever appears, and nothing says so."""
    wanted = {deployment(api, name)["id"] for name, declared in DECLARED.items() if declared.get("schedules")}

    def scheduled() -> bool:
        state = {"state": {"type": {"any_": ["SCHEDULED"]}}}
        runs = api.post("/flow_runs/filter", json={"flow_runs": state}).json()
        return wanted <= {run["deployment_id"] for run in runs}

    wait_for(scheduled, 60)


def ended(api: httpx.Client, run: str) -> dict[str, Any] | None:
    state: dict[str, Any] = api.get(f"/flow_runs/{run}").json()
    return state if state["state_type"] in ENDED else None


def test_a_parameter_out_of_bounds_is_refused_by_the_server(api: httpx.Client) -> None:
    path = f"/deployments/{deployment(api, 'ingest')['id']}/create_flow_run"
    answer = api.post(path, json={"parameters": {"symbols": ["BTCSIM"], "timeframe": "7m"}})
    assert answer.status_code == 409
    assert "7m" in answer.text


def test_sync_mends_what_was_changed_prunes_what_is_ours_and_leaves_the_rest(
    api: httpx.Client, stack: StackState
) -> None:
    home = home_of(stack)
    train, backtest = deployment(api, "train"), deployment(api, "backtest")
    api.patch(f"/deployments/{train['id']}", json={"parameters": {**train["parameters"], "days": 3}}).raise_for_status()
    [daily] = backtest["schedules"]
    api.patch(f"/deployments/{backtest['id']}/schedules/{daily['id']}", json={"active": False}).raise_for_status()
    extra = {"schedule": {"cron": "3 * * * *"}, "active": True, "slug": "extra"}
    api.post(f"/deployments/{train['id']}/schedules", json=[extra]).raise_for_status()
    for name, tags in (("stale", ["tradeflows"]), ("foreign", ["others"])):
        body = {"name": name, "flow_id": train["flow_id"], "tags": tags, "work_pool_name": "tradeflows"}
        api.post("/deployments/", json=body).raise_for_status()
    limit = {"name": "tradeflows-gone", "limit": 1}
    api.post("/v2/concurrency_limits/", json=limit).raise_for_status()

    # nothing but that differs: what `up` deployed is what is declared
    would = command("deploy", "--dry-run", home=home)
    lines = would.stdout.splitlines()
    assert lines[-1] == "3 would be changed.", would.stdout
    assert "    parameters.days: 3 -> 730" in lines
    assert {"~ deployment train/train", "- deployment train/stale", "- limit tradeflows-gone"} <= set(lines)
    assert deployment(api, "train")["parameters"]["days"] == 3

    assert command("deploy", home=home).stdout.splitlines()[:-1] == lines[:-1]
    again = deployment(api, "train")
    assert again["id"] == train["id"]
    assert again["parameters"] == train["parameters"]
    assert [schedule["slug"] for schedule in again["schedules"]] == ["daily"]
    # somebody's pause stays
    assert [schedule["active"] for schedule in deployment(api, "backtest")["schedules"]] == [False]
    assert api.get("/deployments/name/train/stale").status_code == 404
    assert api.get("/deployments/name/train/foreign").status_code == 200
    assert command("deploy", "--dry-run", home=home).stdout.startswith("Nothing to do")


def test_a_served_pool_starts_runs_in_forks_that_can_be_cancelled_and_stops_at_once(
    api: httpx.Client, stack: StackState, tmp_path: Path
) -> None:
    api.post("/work_pools/", json={"name": "served", "type": "process"}).raise_for_status()
    # flows of this test's own, beside the checkout: the way by pull steps
    (tmp_path / "late.py").write_text(
        "import pathlib, time\nfrom prefect import flow\n"
        "@flow\ndef late(path: str, seconds: float):\n    pathlib.Path(path).touch()\n    time.sleep(seconds)\n"
    )
    made = {}
    for name, entrypoint, folder in (
        ("first-line", "deployments/bench_stack.py:first_line", CHECKOUT),
        ("late", "late.py:late", tmp_path),
    ):
        flow = api.post("/flows/", json={"name": name}).json()["id"]
        pull = [{"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}]
        body = {"name": name, "flow_id": flow, "entrypoint": entrypoint, "pull_steps": pull, "work_pool_name": "served"}
        made[name] = api.post("/deployments/", json=body).raise_for_status().json()["id"]
    refused = command("serve", home=home_of(stack))
    assert refused.returncode == 1 and "--warm" in refused.stderr
    words = ["serve", "--pool", "served", "--name", "served", "--home", str(home_of(stack))]
    with (tmp_path / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "deployments.command", *words], cwd=CHECKOUT, stdout=log, stderr=log
        )
    try:
        run = api.post(
            f"/deployments/{made['first-line']}/create_flow_run", json={"parameters": {"path": str(tmp_path / "first")}}
        ).json()["id"]
        assert wait_for(lambda: ended(api, run), 60)["state_type"] == "COMPLETED", (tmp_path / "serve.log").read_text()
        assert float((tmp_path / "first").read_text()) > 0
        hanging = api.post(
            f"/deployments/{made['late']}/create_flow_run",
            json={"parameters": {"path": str(tmp_path / "late"), "seconds": 600}},
        ).json()["id"]
        wait_for((tmp_path / "late").exists, 30)
        cancelling = {"state": {"type": "CANCELLING"}}
        api.post(f"/flow_runs/{hanging}/set_state", json=cancelling).raise_for_status()
        assert wait_for(lambda: ended(api, hanging), 60)["state_type"] == "CANCELLED"
        family = psutil.Process(server.pid).children(recursive=True)
        server.terminate()
        assert server.wait(20) == 0, (tmp_path / "serve.log").read_text()
        assert psutil.wait_procs(family, timeout=10)[1] == []
    finally:
        server.kill()


def test_an_ingest_as_declared_completes_on_the_sandbox_s_running_clock(
    api: httpx.Client, runs: dict[str, str]
) -> None:
    state = wait_for(lambda: ended(api, runs["ingest"]), 120)
    assert state["state_type"] == "COMPLETED", state["state"]["message"]


def test_a_run_created_over_rest_is_executed_and_completes(
    api: httpx.Client, stack: StackState, runs: dict[str, str]
) -> None:
    # asked for again, it is the same run
    assert create(api, "cycle", CYCLE) == runs["cycle"]
    state = wait_for(lambda: ended(api, runs["cycle"]), 180)
    assert state["state_type"] == "COMPLETED", state["state"]["message"]
    # the worker logged to the MLflow server of the stack, and its pages know the champion
    models = httpx.get(
        f"{stack.parts['mlflow'].url}/api/2.0/mlflow/registered-models/get", params={"name": "NASDAQ-SP500-1d"}
    )
    assert {alias["alias"] for alias in models.json()["registered_model"]["aliases"]} == {"champion", "challenger"}
    reports = api.post("/artifacts/filter", json={}).json()
    keys = {report["key"] for report in reports}
    assert {"ingest-1d", "train-nasdaq-sp500-1d", "analyse-1d", "backtest-1d", "equity-sp500-1d"} <= keys
    [training] = [report["data"] for report in reports if report["key"] == "train-nasdaq-sp500-1d"]
    assert f"[MLflow run]({stack.parts['mlflow'].url}/#/experiments/" in training
    assert "**sample**" in training


def test_status_is_readable_in_80_columns_and_a_second_stack_is_refused(stack: StackState) -> None:
    told = command("status", "--stack", home=home_of(stack))
    assert told.returncode == 0, told.stderr
    assert all(len(line) <= 80 for line in told.stdout.splitlines()), told.stdout
    for name, part in stack.parts.items():
        assert name in told.stdout and (part.url or "") in told.stdout
    assert "completed" in told.stdout
    assert "runs already" in command("up", "--detach", home=home_of(stack)).stderr
    assert "started as process" in command("logs", "stack", "-n", "5", home=home_of(stack)).stdout


def test_killed_parts_come_again_and_answer(api: httpx.Client, stack: StackState) -> None:
    home = home_of(stack)
    for name in ("mlflow", "worker"):
        psutil.Process(now(home).parts[name].pid).kill()
    wait_for(lambda: now(home).parts["mlflow"].restarts == 1 and now(home).parts["worker"].restarts == 1, 30)
    wait_for(lambda: now(home).well, 90)
    models = httpx.get(f"{stack.parts['mlflow'].url}/api/2.0/mlflow/registered-models/search")
    assert models.status_code == 200
    run = create(api, "costs", {"idempotency_key": "after the kill"})
    assert wait_for(lambda: ended(api, run), 60)["state_type"] == "COMPLETED"


def test_down_stops_what_a_killed_supervisor_left(stack: StackState) -> None:
    home = home_of(stack)
    psutil.Process(stack.pid).kill()
    psutil.Process(stack.pid).wait(10)
    assert len(stack_state.family(stack)) >= 4
    told = command("status", "--stack", home=home)
    assert told.returncode == 1
    assert "supervisor" in told.stdout and "is gone" in told.stdout
    assert "are left" in command("doctor", home=home).stdout
    assert command("down", home=home).stdout.splitlines()[-1] == "Stopped."
    assert stack_state.family(stack) == []
    for part in stack.parts.values():
        if part.url:
            with pytest.raises(httpx.ConnectError):
                httpx.get(part.url)
    assert not (home / "stack.json").exists()
    assert command("down", home=home).stdout.strip() == "Nothing is running."
    assert command("status", "--stack", home=home).returncode == 3
