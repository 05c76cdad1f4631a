"""A Prefect server that asks for a password and holds every deployment; nobody takes its runs unless a test does.

They find the sandbox exchange, whose clock stands at the beginning of 2019.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from deployments.sandbox import running_sandbox

CHECKOUT = Path(__file__).resolve().parents[2]
LOGIN = "tradeflows:correct-horse-42"


@dataclass(frozen=True)
class Deployed:
    """The server's API address, and the environment of its clients and of runs."""

    api: str
    environment: dict[str, str]

    def execute(self, run_id: str) -> subprocess.Popen[bytes]:
        """Run one run, as a worker would."""
        return subprocess.Popen(
            [sys.executable, "-m", "prefect", "flow-run", "execute", run_id],
            cwd=CHECKOUT,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The server, for all tests of this folder that need one."""
    folder = tmp_path_factory.mktemp("deployed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "TRADEFLOWS_"))}
    environment = {
        **kept,
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": api,
        "PREFECT_API_AUTH_STRING": LOGIN,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "TRADEFLOWS_HOME": str(folder / "home"),
        "TRADEFLOWS_SIGNING_KEY": "a key of thirty-two bytes, or so",
    }
    server = {**environment, "PREFECT_SERVER_API_AUTH_STRING": LOGIN, "PREFECT_SERVER_API_PORT": str(port)}
    with (folder / "server.log").open("wb") as log:
        words = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.prefect_server", *words],
            env=server, cwd=CHECKOUT, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        while not _ready(api):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()[-3000:]
            time.sleep(0.2)
        _deploy(api)
        with running_sandbox() as exchange:
            yield Deployed(api, {**environment, "TRADEFLOWS_EXCHANGE_URL": exchange.url})
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _ready(api: str) -> bool:
    try:
        return httpx.get(f"{api}/ready", auth=httpx.BasicAuth(*LOGIN.split(":"))).status_code == 200
    except httpx.TransportError:
        return False


def _deploy(api: str) -> None:
    """What prefect.yaml declares, but for schedules and automations, which would start runs of their own."""
    from deployments import declared
    from deployments.prefect_api import Api
    from deployments.sync import sync
    from tasks.settings import load_settings

    quiet = {"schedules": [], "triggers": [], "automations": []}
    wanted = [
        one.model_copy(update={name: value for name, value in quiet.items() if name in type(one).model_fields})
        for one in declared.read()
    ]
    with httpx.Client(base_url=api, auth=httpx.BasicAuth(*LOGIN.split(":")), timeout=60) as client:
        sync(Api(client), load_settings(), wanted)
