"""The doctor finds what is wrong and says what to do; what is right is said, too."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from deployments import doctor, stack_state
from deployments.stack_state import PartState, StackState
from tasks.settings import load_settings

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def levels(findings: object) -> list[str]:
    return [finding.level for finding in findings]  # type: ignore[attr-defined]


def test_what_is_installed_is_held_to_what_is_wanted() -> None:
    [fine] = doctor.pins(["psutil>=7", "nothing-of-this-name; python_version < '3'"])
    assert (fine.level, fine.seen) == ("ok", "1 packages as pyproject.toml wants them")
    [bad] = doctor.pins(["psutil<1", "nothing-of-this-name>=1"])
    assert bad.level == "error"
    assert "psutil is " in bad.seen and "wanted <1" in bad.seen and "nothing-of-this-name is not installed" in bad.seen
    assert "make" in bad.advice


def test_variables_that_surprise_are_named() -> None:
    assert levels(doctor.variables({"PATH": "x", "TRADEFLOWS_HOME": "y", "TRADEFLOWS_SHARED": "z"})) == ["ok"]
    [unknown] = doctor.variables({"TRADEFLOWS_HOEM": "y"})
    assert unknown.level == "error" and "TRADEFLOWS_HOEM" in unknown.seen
    [proxy] = doctor.variables({"HTTP_PROXY": "http://proxy"})
    assert proxy.level == "error" and "NO_PROXY" in proxy.advice
    assert "error" not in levels(doctor.variables({"HTTP_PROXY": "http://proxy", "NO_PROXY": "127.0.0.1"}))
    assert levels(doctor.variables({"PREFECT_PROFILE": "cloud"})) == ["warning"]


def test_memory_is_enough_or_not() -> None:
    assert levels(doctor.memory(doctor.MEMORY_BYTES, running=False)) == ["ok"]
    assert levels(doctor.memory(doctor.MEMORY_BYTES - 1, running=False)) == ["warning"]
    assert levels(doctor.memory(0, running=True)) == ["ok"]


def test_a_folder_that_is_a_file_cannot_be_written(tmp_path: Path) -> None:
    assert levels(doctor.writable(tmp_path / "deep" / "home")) == ["ok"]
    (tmp_path / "file").touch()
    [found] = doctor.writable(tmp_path / "file")
    assert found.level == "error" and "TRADEFLOWS_HOME" in found.advice


@pytest.mark.parametrize(
    ("behind", "level"), [(0, "ok"), (5, "ok"), (20, "warning"), (-20, "warning"), (300, "error"), (-300, "error")]
)
def test_a_clock_that_differs_is_told(
    stub: Callable[..., object], http_reply: Callable[..., bytes], behind: int, level: str
) -> None:
    told = NOON - timedelta(seconds=behind)
    server = stub([http_reply("{}", Date=f"{told:%a, %d %b %Y %H:%M:%S GMT}")])
    [found] = doctor.server("Prefect", f"{server.url}/", required=True, now=lambda: NOON)  # type: ignore[attr-defined]
    assert found.level == level
    assert ("NTP" in found.advice) == (level != "ok")


def test_a_server_that_is_away_or_refuses_is_told(
    stub: Callable[..., object], http_reply: Callable[..., bytes], closed_port: int
) -> None:
    [away] = doctor.server("Prefect", f"http://127.0.0.1:{closed_port}/", required=True)
    assert away.level == "error" and "tradeflows up" in away.advice
    [exchange] = doctor.server("exchange", f"http://127.0.0.1:{closed_port}/", required=False)
    assert exchange.level == "warning"
    server = stub([http_reply("{}", 401)])
    [refused] = doctor.server("Prefect", f"{server.url}/", required=True)  # type: ignore[attr-defined]
    assert refused.level == "error" and "PREFECT_API_AUTH_STRING" in refused.advice


def test_a_taken_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from deployments import stack

    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = listening.getsockname()[1]
        assert stack.free_port(taken) != taken
    assert len(list(doctor.ports(None))) == 2


def test_a_stack_whose_supervisor_was_killed_is_an_error() -> None:
    born = psutil.Process().create_time()
    assert levels(doctor.running(None)) == ["ok"]
    dead = StackState(uuid.uuid4().hex, os.getpid(), born - 1, 0.0, "ready", sandbox=False)
    [found] = doctor.running(dead)
    assert found.level == "error" and "tradeflows down" in found.advice
    parts = {"mlflow": PartState("failed", 0.0, told="ended with signal 9"), "prefect": PartState("ready", 0.0)}
    [given_up] = doctor.running(StackState("x", os.getpid(), born, 0.0, "ready", sandbox=False, parts=parts))
    assert given_up.level == "error" and "ended with signal 9" in given_up.seen and "logs mlflow" in given_up.advice
    again = {"mlflow": PartState("ready", 0.0, restarts=2)}
    [seen] = doctor.running(StackState("x", os.getpid(), born, 0.0, "ready", sandbox=False, parts=again))
    assert seen.level == "warning" and "2 restarts" in seen.seen
    assert stack_state.read(Path("/nowhere")) is None


def test_a_store_that_is_not_there_yet_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONGODB_URL", raising=False)
    monkeypatch.setenv("TRADEFLOWS_HOME", str(tmp_path / "home"))
    assert levels(doctor.database(load_settings())) == ["ok"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "store.db").write_text("this is no database, and never was one" * 100)
    [found] = doctor.database(load_settings())
    assert found.level == "error"


@pytest.mark.integration
def test_the_exit_code_says_whether_something_is_wrong(tmp_path: Path) -> None:
    ours = ("PREFECT_", "TRADEFLOWS_", "MONGODB_URL", "MLFLOW_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {"NO_PROXY": "*", "TRADEFLOWS_EXCHANGE_URL": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "deployments.command", "doctor", "--home", str(tmp_path)]
    checkout = Path(__file__).resolve().parents[2]
    fine = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert fine.returncode == 0, fine.stdout + fine.stderr
    assert " 0 errors, 1 warnings." in fine.stdout
    broken = environment | {"TRADEFLOWS_HOEM": "x"}
    ended = subprocess.run(command, cwd=checkout, env=broken, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "unknown: TRADEFLOWS_HOEM" in ended.stdout and "-> unset them" in ended.stdout
