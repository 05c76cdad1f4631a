"""The local stack on loopback: Prefect server, MLflow server, a worker, and on request the sandbox exchange.

``up`` runs a supervisor that starts the parts in order, waits until each answers, deploys prefect.yaml,
and stops all of them in reverse when it is told to stop or when one of them dies. Addresses and process
id stand in ``<home>/stack.json`` while it runs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import httpx
import psutil
from rich.console import Console

from tasks import environment
from tasks.settings import Settings
from trading.errors import ConfigurationError

CHECKOUT: Final = Path(__file__).resolve().parents[1]
LOOPBACK: Final = "127.0.0.1"
READY_SECONDS: Final = 120.0
STOP_SECONDS: Final = 15.0
POOL: Final = "tradeflows"
SANDBOX_SYMBOLS: Final = ("BTCSIM", "ETHSIM")


@dataclass(frozen=True)
class Addresses:
    """Where the parts answer, and which process supervises them.

    ``born`` is that process's start in seconds since the epoch: ids are used again, the pair is not.
    """

    pid: int
    born: float
    prefect: str
    mlflow: str
    sandbox: str | None

    @property
    def prefect_api(self) -> str:
        """What PREFECT_API_URL is to be."""
        return f"{self.prefect}/api"


def up(settings: Settings, console: Console, *, detach: bool, sandbox: bool) -> None:
    """Start the stack; returns when it ends, or with ``detach`` when it is ready.

    Raises:
        ConfigurationError: it runs already, or a part did not come up; names the part and its log file.
    """
    running = read(settings.home)
    if running is not None:
        raise ConfigurationError(f"the stack runs already (process {running.pid}); stop it with `tradeflows down`")
    if detach:
        addresses = _detached(settings, sandbox=sandbox)
        _tell(console, addresses)
        return
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with started(settings, sandbox=sandbox) as (addresses, processes):
        _tell(console, addresses)
        while not stop.wait(1.0):
            for name, process in processes.items():
                if process.poll() is not None:
                    log_file = settings.home / "logs" / f"{name}.log"
                    raise ConfigurationError(f"{name} ended with code {process.returncode}; its log is {log_file}")


def down(settings: Settings, console: Console) -> None:
    """Stop the stack and wait until nothing of it is left."""
    running = read(settings.home)
    if running is None:
        console.print("Nothing is running.")
        return
    process = psutil.Process(running.pid)
    family = [process, *process.children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS * 3)
    for straggler in alive:
        straggler.kill()
    _file(settings.home).unlink(missing_ok=True)
    console.print("Stopped.")


def read(home: Path) -> Addresses | None:
    """The running stack, or None; a file left by one that was killed is removed."""
    path = _file(home)
    if not path.exists():
        return None
    addresses = Addresses(**json.loads(path.read_text()))
    if psutil.pid_exists(addresses.pid) and psutil.Process(addresses.pid).create_time() == addresses.born:
        return addresses
    path.unlink()
    return None


@contextmanager
def started(settings: Settings, *, sandbox: bool) -> Iterator[tuple[Addresses, dict[str, subprocess.Popen[bytes]]]]:
    """The stack, ready: every part answers and prefect.yaml is deployed. Stops all parts at the end."""
    home = settings.home.resolve()
    (home / "logs").mkdir(parents=True, exist_ok=True)
    with ExitStack() as closing:
        processes: dict[str, subprocess.Popen[bytes]] = {}
        variables = {**os.environ, **environment.defaults(home), "TRADEFLOWS_HOME": str(home)}
        variables["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"

        def start(name: str, *command: str) -> None:
            with (home / "logs" / f"{name}.log").open("ab") as log_file:
                processes[name] = subprocess.Popen(
                    command,
                    env=variables,
                    cwd=CHECKOUT,
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=subprocess.STDOUT,
                    # our own signal must not reach them: they are stopped in order
                    start_new_session=True,
                )
            closing.callback(_stop, processes[name])

        prefect_port, mlflow_port = free_port(4200), free_port(5000)
        prefect_url, mlflow_url = f"http://{LOOPBACK}:{prefect_port}", f"http://{LOOPBACK}:{mlflow_port}"
        sandbox_url = None
        if sandbox:
            from deployments.sandbox import running_sandbox

            sandbox_url = closing.enter_context(running_sandbox(clock="now")).url
            variables["TRADEFLOWS_EXCHANGE_URL"] = sandbox_url
        # the pages ask the API under the address that the server is told here
        variables |= {"PREFECT_SERVER_API_HOST": LOOPBACK, "PREFECT_SERVER_API_PORT": str(prefect_port)}
        variables["PREFECT_SERVER_UI_API_URL"] = f"{prefect_url}/api"
        variables["PREFECT_API_URL"] = f"{prefect_url}/api"
        start("prefect", *_python("prefect"), "server", "start")
        variables["TRADEFLOWS_MLFLOW_UI_URL"] = mlflow_url
        database = home / "mlflow" / "mlflow.db"
        database.parent.mkdir(parents=True, exist_ok=True)
        variables["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        start(
            "mlflow", *_python("mlflow"), "server", "--host", LOOPBACK, "--port", str(mlflow_port), "-w", "1",
            "--backend-store-uri", f"sqlite:///{database}",
            "--artifacts-destination", str(home / "mlflow" / "artifacts"),
        )  # fmt: skip
        _wait("prefect", lambda: _answers(f"{prefect_url}/api/health"), processes, home)
        _wait("mlflow", lambda: _answers(f"{mlflow_url}/health"), processes, home)
        variables["MLFLOW_TRACKING_URI"] = mlflow_url
        for command in (
            ("work-pool", "create", POOL, "--type", "process", "--overwrite"),
            ("--no-prompt", "deploy", "--all", "--prefect-file", str(_declared(home, sandbox=sandbox))),
        ):
            made = subprocess.run(
                [*_python("prefect"), *command],
                env=variables,
                cwd=CHECKOUT,
                capture_output=True,
                text=True,
                check=False,
            )
            if made.returncode:
                raise ConfigurationError(f"prefect {' '.join(command)} failed: {(made.stderr or made.stdout)[-1000:]}")
        start("worker", *_python("prefect"), "worker", "start", "--pool", POOL, "--with-healthcheck")
        addresses = Addresses(os.getpid(), psutil.Process().create_time(), prefect_url, mlflow_url, sandbox_url)
        _file(home).write_text(json.dumps(asdict(addresses)))
        closing.callback(_file(home).unlink, missing_ok=True)
        yield addresses, processes


def _declared(home: Path, *, sandbox: bool) -> Path:
    """The deployments to make: prefect.yaml, with the sandbox's symbols where that is the exchange."""
    declared = CHECKOUT / "prefect.yaml"
    if not sandbox:
        return declared
    import yaml

    content = yaml.safe_load(declared.read_text())
    for deployment in content["deployments"]:
        parameters = deployment["parameters"]
        for group in parameters.get("groups", [parameters]):
            group["symbols"] = list(SANDBOX_SYMBOLS)
    written = home / "prefect.sandbox.yaml"
    written.write_text(yaml.safe_dump(content, sort_keys=False))
    return written


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


def _python(module: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module)


def _detached(settings: Settings, *, sandbox: bool) -> Addresses:
    logs = settings.home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    command = [*_python("deployments.command"), "up", "--home", str(settings.home)]
    with (logs / "stack.log").open("wb") as log_file:
        child = subprocess.Popen(
            [*command, *(["--sandbox"] if sandbox else []), "--traceback"],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "TRADEFLOWS_HOME": str(settings.home)},
        )
    deadline = time.monotonic() + 2 * READY_SECONDS
    while time.monotonic() < deadline:
        addresses = read(settings.home) if child.poll() is None else None
        if addresses is not None:
            return addresses
        if child.poll() is not None:
            break
        time.sleep(0.2)
    child.terminate()
    raise ConfigurationError(f"the stack did not come up; see {logs / 'stack.log'}")


def _wait(name: str, ready: Callable[[], bool], processes: dict[str, subprocess.Popen[bytes]], home: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not ready():
        log_file = home / "logs" / f"{name}.log"
        if processes[name].poll() is not None:
            raise ConfigurationError(f"{name} ended with code {processes[name].returncode}; its log is {log_file}")
        if time.monotonic() > deadline:
            raise ConfigurationError(f"{name} did not answer within {READY_SECONDS:.0f} s; its log is {log_file}")
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0).status_code == 200
    except httpx.TransportError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a part and everything it started."""
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for straggler in alive:
        straggler.kill()


def _file(home: Path) -> Path:
    return home / "stack.json"


def _tell(console: Console, addresses: Addresses) -> None:
    console.print("[bold green]Ready.[/]")
    console.print(f"  Prefect   {addresses.prefect}")
    console.print(f"  MLflow    {addresses.mlflow}")
    if addresses.sandbox:
        console.print(f"  sandbox   {addresses.sandbox}")
    console.print("\nTry next:")
    console.print(f"  open {addresses.prefect}/deployments and run [bold]ingest[/]")
    console.print(
        f"  curl -X POST {addresses.prefect_api}/deployments/name/ingest/ingest   # its id, for create_flow_run",
        soft_wrap=True,
    )
    console.print("  tradeflows down")
