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

from deployments import auth
from deployments.declared import POOL
from deployments.prefect_api import connected
from deployments.supervising import Part
from deployments.worker import PATIENCE_SECONDS
from tasks import credentials, environment
from tasks.settings import Settings
from trading.errors import ConfigurationError

LOOPBACK: Final = "127.0.0.1"
EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 - only where TRADEFLOWS_BIND says so
WORKER: Final = "local"
UVICORN_JSON: Final = Path(__file__).with_name("uvicorn_logging.yml")
# seconds between two questions for work, and two signs of life
QUERY_SECONDS: Final = 3
HEARTBEAT_SECONDS: Final = 15
# the server looks for what is late, paused or lost; every few seconds is for clusters
SERVER_LOOPS: Final = {
    "LATE_RUNS": 15, "PAUSE_EXPIRATIONS": 60, "CANCELLATION_CLEANUP": 60, "CLEANUP_RECONCILER": 60,
}  # fmt: skip
# the server forgets runs that ended so long ago, with their tasks, logs and reports
RUN_DAYS: Final = 30


@dataclass(frozen=True)
class Wanted:
    """What to start. A port that is taken is replaced by a free one; 0 is any free one; no metrics where it is None."""

    sandbox: bool = False
    warm: bool = False
    prefect_port: int = 4200
    mlflow_port: int = 5000
    metrics_port: int | None = 0


def parts(settings: Settings, wanted: Wanted, tell: Callable[[str], None]) -> list[Part]:
    """What a stack is made of, in the order of their start.

    Raises:
        ConfigurationError: servers that would let everybody in where that is not to be, or no free port.
    """
    auth.require_password(settings)
    home = settings.home.resolve()
    known = credentials.pair(settings)
    # where we reach them ourselves
    host = LOOPBACK if settings.loopback or settings.bind == EVERYWHERE else settings.bind
    prefect_port = _port("Prefect", wanted.prefect_port, tell, settings.bind)
    mlflow_port = _port("MLflow", wanted.mlflow_port, tell, settings.bind)
    prefect_url, mlflow_url = f"http://{host}:{prefect_port}", f"http://{host}:{mlflow_port}"
    api = f"{prefect_url}/api"
    if not settings.loopback:
        tell(f"Prefect and MLflow listen at {settings.bind} without TLS: others on the way can read the password")
    common = {
        **os.environ,
        **environment.defaults(home),
        # also where another server is set: this stack has its own, and keeps it here
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": api,
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
        "TRADEFLOWS_HOME": str(home),
        # behind a proxy people open it elsewhere
        "TRADEFLOWS_MLFLOW_UI_URL": os.environ.get("TRADEFLOWS_MLFLOW_UI_URL", mlflow_url),
        "PYTHONUNBUFFERED": "1",
        **auth.of_clients(settings),
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
                # what it took to generate its markets goes back to the system
                {"MALLOC_TRIM_THRESHOLD_": "131072", **auth.without_secrets(common)},
                lambda _: answers("GET", f"{sandbox_url}/api/v3/time"),
                sandbox_url,
            )
        )
    server = {
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": f"{RUN_DAYS}d",
        # pages of other sites may not ask it; its own pages ask it where they came from, also through a proxy
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": prefect_url,
        "PREFECT_SERVER_UI_API_URL": "/api",
        **auth.without_secrets(common),
        **auth.of_prefect_server(settings),
        "PREFECT_SERVER_API_HOST": settings.bind,
        "PREFECT_SERVER_API_PORT": str(prefect_port),
        # kept in memory they would be lost with a server that dies, and runs at work with them
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
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
            (*_python("deployments.prefect_server"), "server", "start"),
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
                *_python("deployments.auth_mlflow" if known else "deployments.mlflow_server"), "server",
                "--host", settings.bind, "--port", str(mlflow_port), "-w", "1",
                "--backend-store-uri", f"sqlite:///{database}",
                "--artifacts-destination", str(home / "mlflow" / "artifacts"),
                *(("--app-name", "basic-auth") if known else ()),
                *(("--uvicorn-opts", f"--log-config '{UVICORN_JSON}'") if settings.log_format == "json" else ()),
            ),
            {
                **auth.without_secrets(common),
                **auth.of_mlflow_server(settings, database.parent),
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                # then its lines are the server's, which the option above makes JSON
                **({"MLFLOW_CONFIGURE_LOGGING": "false"} if settings.log_format == "json" else {}),
            },
            lambda _: answers("POST", f"{mlflow_url}/api/2.0/mlflow/experiments/search", {"max_results": 1}, known),
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
    kind = "deployments.warm_worker" if wanted.warm else "deployments.worker"
    command = (*_python(kind), "--pool", POOL, "--name", WORKER)
    if wanted.warm:
        del worker["PREFECT_WORKER_QUERY_SECONDS"]
    made.append(
        Part(
            "worker",
            command,
            {**work, **{name: value for name, value in worker.items() if name not in os.environ}},
            lambda started: _beats(api, started),
            after=("prefect", "deploy"),
            orphans_stay=True,
            # it lets its runs end, or hands them back
            stop_seconds=PATIENCE_SECONDS,
        )
    )
    if wanted.metrics_port is not None:
        port = _port("the metrics endpoint", wanted.metrics_port, tell)
        metrics_url = f"http://{LOOPBACK}:{port}"
        made.append(
            Part(
                "metrics",
                (*_python("deployments.metrics"), "--port", str(port)),
                # its threads come and go; each would leave memory behind
                {"MALLOC_ARENA_MAX": "2", **work},
                lambda _: answers("GET", f"{metrics_url}/"),
                f"{metrics_url}/metrics",
            )
        )
    return made


def free_port(wanted: int, bind: str = LOOPBACK) -> int:
    """``wanted`` if nobody listens there, else a free port of the system's choice.

    Raises:
        ConfigurationError: there is none, or the address is none of this machine.
    """
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((bind, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigurationError(f"no free port at {bind}; TRADEFLOWS_BIND must be an address of this machine")


def _port(name: str, wanted: int, tell: Callable[[str], None], bind: str = LOOPBACK) -> int:
    port = free_port(wanted, bind)
    if wanted and port != wanted:
        tell(f"port {wanted} is taken: {name} is on {port}")
    return port


def _python(module: str) -> tuple[str, ...]:
    whole_lines = ("deployments.json_process",) if os.environ.get("TRADEFLOWS_LOG_FORMAT") == "json" else ()
    return (sys.executable, "-m", *whole_lines, module)


def answers(method: str, url: str, body: Any = None, known: tuple[str, str] | None = None) -> bool:
    """Whether a server of this stack answers with 200; ``known`` are user and password."""
    try:
        # no certificates to load, no proxy between
        answer = httpx.request(
            method,
            url,
            json=body,
            auth=known,
            timeout=5.0,
            trust_env=False,
            verify=False,  # noqa: S501
        )
    except httpx.TransportError:
        return False
    return answer.status_code == 200


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
