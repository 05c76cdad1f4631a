"""A flow that waits until it is let go, a work pool of its own, and workers, for tests that kill them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

CHECKOUT: Final = Path(__file__).parents[2]
TAG: Final = "tradeflows"
ENDED: Final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
# says who it is and what it is about, and waits for the file ``go``; in ``folder`` each attempt leaves a line. Where
# there is a file ``stuck`` it does not come further than its import; ``importing`` names those processes
WAITING: Final = """
import os, pathlib, time
from prefect import flow, task
from prefect.runtime import flow_run

if pathlib.Path(__file__).with_name("stuck").exists():
    with open(pathlib.Path(__file__).with_name("importing"), "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(120)

@task
def wait(folder, name):
    with open(pathlib.Path(folder) / "began", "a") as file:
        file.write(f"{name} {os.getpid()} {flow_run.scheduled_start_time.isoformat()}\\n")
    until = time.monotonic() + 120
    while not (pathlib.Path(folder) / "go").exists() and time.monotonic() < until:
        time.sleep(0.05)

def hook(flow, flow_run, state):
    with open(pathlib.Path(__file__).with_name("hooks"), "a") as file:
        file.write(f"{state.name} {flow_run.id} {os.getpid()} {os.getppid()}\\n")

@flow(retries=0, persist_result=False, on_crashed=[hook], on_cancellation=[hook])
def waiting(folder: str, name: str = "only"):
    wait(folder, name)

@flow(retries=0, persist_result=False)
def nested(folder: str):
    waiting(folder)
"""


def asked(path: str, body: Any = None, method: str = "POST") -> Any:
    """What Prefect's server answers."""
    with get_client(sync_client=True) as client:
        answer = client._client.request(method, path, json=body)
        return answer.json() if answer.content else None


def wait_for(ready: Callable[[], Any], seconds: float = 90) -> Any:
    """What ``ready`` gives, once it is something."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s")
        time.sleep(0.1)
    return found


@dataclass(frozen=True)
class Place:
    """A work pool with the deployment of a waiting flow, and the folder that its runs write to."""

    folder: Path
    pool: str
    deployment: str

    def run(self, **parameters: Any) -> str:
        """The id of a new run."""
        told = {"parameters": {"folder": str(self.folder), **parameters}}
        return str(asked(f"/deployments/{self.deployment}/create_flow_run", told)["id"])

    def attempts(self) -> list[tuple[str, int, str]]:
        """Name, process id and scheduled start of every attempt that began."""
        file = self.folder / "began"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(name, int(pid), moment) for name, pid, moment in (line.split() for line in lines)]

    def began(self, count: int) -> int:
        """Waits for so many attempts; the process id of the last one."""
        return int(wait_for(lambda: self.attempts()[count - 1 :])[0][1])

    def importing(self) -> list[int]:
        """The processes that were stuck in the import of the flow."""
        file = self.folder / "importing"
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

    def hooks(self) -> list[list[str]]:
        """Of every hook that ran: the state, the run, its process, and that one's parent."""
        file = self.folder / "hooks"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def let_go(self) -> None:
        """All attempts may end."""
        (self.folder / "go").touch()

    def slots(self) -> int:
        """How many of the deployment's slots are taken."""
        found = asked(f"/deployments/{self.deployment}", method="GET")
        return int(found["global_concurrency_limit"]["active_slots"])

    @contextmanager
    def worker(self, module: str = "deployments.worker", **variables: str) -> Iterator[subprocess.Popen[bytes]]:
        """A worker of this pool, killed at the end with what it started."""
        command = [sys.executable, "-m", module, "--pool", self.pool, "--name", "test", "--drain", "2"]
        with (self.folder / "worker.log").open("ab") as log:
            worker = subprocess.Popen(
                command, cwd=CHECKOUT, env=environment(**variables), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            yield worker
        finally:
            family = (
                [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
                if (worker.poll() is None)
                else []
            )
            for process in family:
                process.kill()
            worker.wait()


def environment(**variables: str) -> Mapping[str, str]:
    """That of a worker of the server of these tests."""
    return {
        **os.environ,
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PREFECT_HOME": str(PREFECT_HOME.value()),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
        **variables,
    }


def place(folder: Path, *, flow: str = "waiting", limit: int = 1, strategy: str = "CANCEL_NEW") -> Place:
    """A pool and a deployment that no other test knows."""
    pool = f"test-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "waits.py").write_text(WAITING)
    asked("/work_pools/", {"name": pool, "type": "process"})
    made = asked(
        "/deployments/",
        {
            "name": pool,
            "flow_id": asked("/flows/", {"name": flow})["id"],
            "entrypoint": f"waits.py:{flow}",
            "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}],
            "work_pool_name": pool,
            "tags": [TAG],
            "concurrency_limit": limit,
            "concurrency_options": {"collision_strategy": strategy},
        },
    )
    return Place(folder, pool, str(made["id"]))


def state(run: str) -> dict[str, Any]:
    """A run as the server has it."""
    found: dict[str, Any] = asked(f"/flow_runs/{run}", method="GET")
    return found


def in_state(run: str, *names: str) -> dict[str, Any]:
    """The run, once its state has one of these names."""
    found: dict[str, Any] = wait_for(lambda: one if (one := state(run))["state_name"] in names else None)
    return found
