"""What a local stack is made of: the processes, their environment, and how each is asked whether it is ready."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx

from deployments.declared import POOL
from deployments.prefect_api import connected
from deployments.supervising import Part
from tasks import environment
from trading.errors import ConfigurationError

LOOPBACK: Final = "127.0.0.1"
WORKER: Final = "local"
# seconds between two questions for work, and two signs of life
QUERY_SECONDS: Final = 3
HEARTBEAT_SECONDS: Final = 15
# the server looks for what is late, paused or lost; every few seconds is for clusters
SERVER_LOOPS: Final = {
    "LATE_RUNS": 15, "PAUSE_EXPIRATIONS": 60, "CANCELLATION_CLEANUP": 60, "CLEANUP_RECONCILER": 60,
}  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What to start. A port that is taken is replaced by a free one; 0 is any free one."""

    sandbox: bool = False
    warm: bool = False
    prefect_port: int = 4200
    mlflow_port: int = 5000


def parts(home: Path, wanted: Wanted, tell: Callable[[str], None]) -> list[Part]:
    """What a stack is made of, in the order of their start."""
    prefect_port, mlflow_port = _port("Prefect", wanted.prefect_port, tell), _port("MLflow", wanted.mlflow_port, tell)
    prefect_url, mlflow_url = f"http://{LOOPBACK}:{prefect_port}", f"http://{LOOPBACK}:{mlflow_port}"
    api = f"{prefect_url}/api"
    common = {
        **os.environ,
        **environment.defaults(home),
        # also where another server is set: this stack has its own, and keeps it here
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": api,
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
        "TRADEFLOWS_HOME": str(home),
        "TRADEFLOWS_MLFLOW_UI_URL": mlflow_url,
        "PYTHONUNBUFFERED": "1",
    }
    if "PREFECT_SERVER_API_AUTH_STRING" in os.environ:
        # one variable for the server and all who ask it
        common.setdefault("PREFECT_API_AUTH_STRING", os.environ["PREFECT_SERVER_API_AUTH_STRING"])
    made = []
    if wanted.sandbox:
        port = _port("the sandbox exchange", 0, tell)
        sandbox_url = f"http://{LOOPBACK}:{port}"
        common["TRADEFLOWS_EXCHANGE_URL"] = sandbox_url
        made.append(
            Part(
                "sandbox",
                (*_python("deployments.sandbox"), "--port", str(port), "--clock", "now"),
                common,
                lambda _: answers("GET", f"{sandbox_url}/api/v3/time"),
                sandbox_url,
            )
        )
    server = {
        **common,
        # the pages ask the API under the address that the server is told here
        "PREFECT_SERVER_API_HOST": LOOPBACK,
        "PREFECT_SERVER_API_PORT": str(prefect_port),
        "PREFECT_SERVER_UI_API_URL": api,
        **{
            name: str(seconds)
            for service, seconds in SERVER_LOOPS.items()
            if (name := f"PREFECT_SERVER_SERVICES_{service}_LOOP_SECONDS") not in os.environ
        },
    }
    (home / "prefect").mkdir(parents=True, exist_ok=True)
    made.append(
        Part(
            "prefect",
            (*_python("prefect"), "server", "start"),
            server,
            lambda _: answers("GET", f"{api}/ready"),
            prefect_url,
        )
    )
    database = home / "mlflow" / "mlflow.db"
    database.parent.mkdir(parents=True, exist_ok=True)
    made.append(
        Part(
            "mlflow",
            (
                *_python("mlflow"), "server", "--host", LOOPBACK, "--port", str(mlflow_port), "-w", "1",
                "--backend-store-uri", f"sqlite:///{database}",
                "--artifacts-destination", str(home / "mlflow" / "artifacts"),
            ),
            {**common, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            lambda _: answers("POST", f"{mlflow_url}/api/2.0/mlflow/experiments/search", {"max_results": 1}),
            mlflow_url,
        )
    )  # fmt: skip
    work = {**common, "MLFLOW_TRACKING_URI": mlflow_url}
    made.append(
        Part(
            "deploy",
            (*_python("deployments.stack_command"), "--deploy", *(("--sandbox",) if wanted.sandbox else ())),
            work,
            lambda _: True,
            once=True,
        )
    )
    worker = {
        "PREFECT_WORKER_QUERY_SECONDS": str(QUERY_SECONDS),
        "PREFECT_WORKER_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
    }
    command = (
        (*_python("deployments.warm_worker"), "--pool", POOL, "--name", WORKER)
        if wanted.warm
        else (*_python("prefect"), "worker", "start", "--pool", POOL, "--type", "process", "--name", WORKER)
    )
    if wanted.warm:
        del worker["PREFECT_WORKER_QUERY_SECONDS"]
    made.append(
        Part(
            "worker",
            command,
            {**work, **{name: value for name, value in worker.items() if name not in os.environ}},
            lambda started: _beats(api, started),
            after=("prefect", "deploy"),
            children_first=True,
            orphans_stay=True,
        )
    )
    return made


def free_port(wanted: int) -> int:
    """``wanted`` if nobody listens there, else a free port of the system's choice."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigurationError("no free port on the loopback address")


def _port(name: str, wanted: int, tell: Callable[[str], None]) -> int:
    port = free_port(wanted)
    if wanted and port != wanted:
        tell(f"port {wanted} is taken: {name} is on {port}")
    return port


def _python(module: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module)


def answers(method: str, url: str, body: Any = None) -> bool:
    """Whether a server on this machine answers: with 200, or by asking for a password."""
    try:
        # no certificates to load, no proxy between
        answer = httpx.request(method, url, json=body, timeout=5.0, trust_env=False, verify=False)  # noqa: S501
    except httpx.TransportError:
        return False
    return answer.status_code in (200, 401)


def _beats(api: str, started: float) -> bool:
    """The server has heard our worker since its start, and not too long ago."""
    try:
        with connected(api, timeout=5.0) as asked:
            found = asked.ask("POST", f"/work_pools/{POOL}/workers/filter", {})
    except ConfigurationError:
        return False
    times = [one["last_heartbeat_time"] for one in found or () if one["name"] == WORKER and one["last_heartbeat_time"]]
    heard = max((datetime.fromisoformat(moment) for moment in times), default=datetime.fromtimestamp(0, UTC))
    return heard.timestamp() >= max(started, time.time() - 4 * HEARTBEAT_SECONDS)
