"""A Prefect harness (one real server for all of these tests), a sandbox exchange, and a home folder each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.prefect_server import mend_on_demand
from deployments.sandbox import Sandbox, running_sandbox
from tasks.environment import DEFAULTS


@pytest.fixture(scope="session", autouse=True)
def prefect_server() -> Iterator[None]:
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    mend_on_demand()
    # the heartbeat's thread takes a second to end with every flow
    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


@pytest.fixture(scope="session")
def exchange_process() -> Iterator[Sandbox]:
    with running_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def exchange(exchange_process: Sandbox) -> Iterator[Sandbox]:
    """The sandbox exchange, without faults and at its usual time, before and after the test."""
    exchange_process.set_faults()
    exchange_process.set_clock("2019-01-01T00:02:00+00:00")
    yield exchange_process
    exchange_process.set_faults()


@pytest.fixture
def home(tmp_path: Path, exchange: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder that the settings point to, with the sandbox as the exchange."""
    for name, value in DEFAULTS.items():
        if not name.startswith("PREFECT"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("TRADEFLOWS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", exchange.url)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "home"
