"""Runs that fail, crash or are late end in a delivered message each, through Prefect's automations and a worker."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from deployments.stack import POOL
from tasks.settings import load_settings
from tasks.store import NOTIFICATIONS, open_store

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).parents[2]
TOKEN = "T0kenABCDEFGH1234567890"


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its apprise address, and what it heard."""
    heard: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"json://127.0.0.1:{server.server_address[1]}/{TOKEN}", heard
    server.shutdown()
    server.server_close()


def asked(path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
    """What Prefect's server answers."""

    async def ask() -> Any:
        async with get_client() as client:
            answer = await client.request(method, path, json=body)
            return answer.json() if answer.content else None

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


def wait_for(ready: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s")
        time.sleep(0.2)
    return found


@flow(name="breaks", persist_result=False)
def breaks() -> None:
    raise ValueError("mongodb://root:s3same@db/admin says <!channel> no")


def set_to(kind: str, name: str) -> None:
    """A run that never ran and is in that state."""
    made = asked("/flow_runs/", {"flow_id": flow_id(), "name": f"run-{name.lower()}", "state": {"type": "PENDING"}})
    asked(f"/flow_runs/{made['id']}/set_state", {"state": {"type": kind, "name": name}, "force": True})


def flow_id() -> str:
    return str(asked("/flows/", {"name": "breaks"})["id"])


def test_each_kind_of_trouble_is_told_once_and_that_of_the_telling_is_not(
    home: Path, tmp_path: Path, webhook: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, heard = webhook
    monkeypatch.setenv("TRADEFLOWS_NOTIFY_URLS", address)
    content = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())
    content["deployments"] = [one for one in content["deployments"] if one["name"] == "notify"]
    [late] = [one for one in content["deployments"][0]["triggers"] if one["posture"] == "Proactive"]
    late["within"] = 10
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    command("work-pool", "create", POOL, "--type", "process", "--overwrite")
    command("deploy", "--all", "--prefect-file", str(tmp_path / "prefect.yaml"))
    ours = [one for one in asked("/automations/filter", {}) if one["name"].startswith("tell-of-")]
    assert len(ours) == 5
    assert TOKEN not in json.dumps(ours)
    try:
        state = breaks(return_state=True)
        assert state.is_failed()
        set_to("CRASHED", "Crashed")
        set_to("SCHEDULED", "Late")

        def waiting(count: int) -> list[dict[str, Any]]:
            wanted = {
                "deployments": {"name": {"any_": ["notify"]}},
                "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
            }
            found: list[dict[str, Any]] = asked("/flow_runs/filter", wanted)
            return found if len(found) >= count else []

        kinds = {run["parameters"]["kind"] for run in wait_for(lambda: waiting(3))}
        assert kinds == {"failed", "crashed", "late"}
        command("worker", "start", "--pool", POOL, "--run-once", "--install-policy", "never")

        assert sorted(one["title"] for one in heard) == [
            "[warning] breaks crashed",
            "[warning] breaks failed",
            "[warning] breaks is late",
        ]
        [failed] = [one["message"] for one in heard if one["title"].endswith("failed")]
        assert "mongodb://root:***@" in failed
        assert "<!channel>" not in failed
        assert "/runs/flow-run/" in failed
        # the same again within the window: a run of its own, and no message
        assert breaks(return_state=True).is_failed()
        wait_for(lambda: waiting(1))
        # of this one nobody is told, or there would be no end
        lost = {"flow_run_id": "00000000-0000-4000-8000-000000000000", "kind": "failed", "severity": "critical"}
        deployment = asked("/deployments/filter", {"deployments": {"name": {"any_": ["notify"]}}})[0]["id"]
        asked(f"/deployments/{deployment}/create_flow_run", {"parameters": lost})
        command("worker", "start", "--pool", POOL, "--run-once", "--install-policy", "never")
        assert len(heard) == 3
        runs = asked("/flow_runs/filter", {"deployments": {"name": {"any_": ["notify"]}}})
        assert sorted(run["state_type"] for run in runs) == ["COMPLETED"] * 4 + ["FAILED"]
        assert TOKEN not in json.dumps(runs)
        with open_store(load_settings().home) as store:
            [again] = [one for one in store.documents.find(NOTIFICATIONS) if one["title"] == "breaks failed"]
        assert (again["state"], again["untold"]) == ("delivered", 1)
    finally:
        # other tests have runs that fail
        for one in ours:
            asked(f"/automations/{one['id']}", method="DELETE")
