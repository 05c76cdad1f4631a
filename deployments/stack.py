"""The local stack on loopback: Prefect server, MLflow server, a worker, and on request the sandbox exchange.

``up`` starts them under a supervisor (``deployments.supervising``), deploys prefect.yaml, and returns when each has
answered a real question, or stays in the foreground. ``down`` stops what carries the stack's mark, also where the
supervisor was killed. One stack per home folder; a lock says so.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from deployments import stack_state
from deployments.prefect_api import connected
from deployments.stack_state import StackState
from deployments.supervising import READY_SECONDS, STOP_SECONDS, Part, Supervisor
from tasks import environment
from tasks.settings import Settings
from trading.errors import ConfigurationError

CHECKOUT: Final = Path(__file__).resolve().parents[1]
LOOPBACK: Final = "127.0.0.1"
POOL: Final = "tradeflows"
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


def run(settings: Settings, wanted: Wanted, tell: Callable[[str], None], ready: Callable[[StackState], None]) -> None:
    """Be the supervisor until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: a stack of this home runs already, or a part did not come up; all is stopped then.
    """
    home = settings.home.resolve()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with _locked(home):
        left = stack_state.read(home)
        if left is not None:
            tell("a stack was not stopped in order; stopping what is left of it")
            stack_state.stop(stack_state.family(left), STOP_SECONDS)
        state = StackState(
            id=uuid.uuid4().hex,
            pid=os.getpid(),
            born=psutil.Process().create_time(),
            started=time.time(),
            state="starting",
            sandbox=wanted.sandbox,
            warm=wanted.warm,
        )
        supervisor = Supervisor(home, parts(home, wanted, tell), state, CHECKOUT)
        stack_state.write(home, state)
        try:
            if supervisor.start(stop, tell):
                ready(supervisor.state)
                supervisor.keep(stop)
        finally:
            supervisor.stop()


def detached(settings: Settings, wanted: Wanted, tell: Callable[[str], None]) -> StackState:
    """Start a supervisor of its own session; its state once everything is ready.

    Raises:
        ConfigurationError: as ``run``.
    """
    home = settings.home.resolve()
    running = running_stack(home)
    if running is not None:
        raise ConfigurationError(f"the stack runs already (process {running.pid}); stop it with `tradeflows down`")
    logs = home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "deployments.stack_command", "--home", str(home)]
    command += ["--prefect-port", str(wanted.prefect_port), "--mlflow-port", str(wanted.mlflow_port)]
    command += ["--sandbox"] if wanted.sandbox else []
    command += ["--warm"] if wanted.warm else []
    said = logs / "up.log"
    with said.open("wb") as log:
        child = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "TRADEFLOWS_HOME": str(home)},
        )
    shown = 0
    try:
        while True:
            ended = child.poll() is not None
            lines = said.read_text().splitlines()
            for line in lines[shown:]:
                tell(line)
            shown = len(lines)
            state = stack_state.read(home)
            if state is not None and state.pid == child.pid and state.state == "ready":
                return state
            if ended:
                break
            time.sleep(0.1)
    except BaseException:
        if child.poll() is None:
            child.terminate()
            child.wait(READY_SECONDS)
        raise
    raise ConfigurationError(f"the stack did not come up, see above; its logs are in {logs}")


def down(home: Path, tell: Callable[[str], None]) -> bool:
    """Stop the stack of ``home`` and wait until nothing of it is left; False where there was none."""
    state = stack_state.read(home)
    if state is None:
        stack_state.file(home).unlink(missing_ok=True)
        return False
    was_supervised = state.supervised
    if was_supervised:
        supervisor = psutil.Process(state.pid)
        supervisor.terminate()
        # each part may take its time, and then be killed
        _, stubborn = psutil.wait_procs([supervisor], timeout=3 * STOP_SECONDS * (len(state.parts) + 1))
        for process in stubborn:
            process.kill()
    left = stack_state.family(state)
    if left:
        tell(f"stopping {len(left)} processes that their supervisor left")
        stack_state.stop(left, STOP_SECONDS)
    stack_state.file(home).unlink(missing_ok=True)
    return was_supervised or bool(left)


def running_stack(home: Path) -> StackState | None:
    """The stack of ``home`` whose supervisor lives."""
    state = stack_state.read(home.resolve())
    return state if state is not None and state.supervised else None


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
    """Whether a server on this machine answers with 200."""
    try:
        # no certificates to load, no proxy between
        return httpx.request(method, url, json=body, timeout=5.0, trust_env=False, verify=False).status_code == 200  # noqa: S501
    except httpx.TransportError:
        return False


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


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Hold the home's lock; it goes with this process, however that ends."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "stack.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(f"a stack of {home} runs already; stop it with `tradeflows down`") from None
        yield
