"""The command: bad input is one sentence on standard error and an exit code, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# each test is a process of its own
pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).resolve().parents[2]


def tradeflows(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    ours = ("PREFECT_", "TRADEFLOWS_", "MONGODB_URL")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | variables
    return subprocess.run(
        [sys.executable, "-m", "deployments.command", *words],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_bad_timeframe_is_told_with_those_there_are(tmp_path: Path) -> None:
    ended = tradeflows("ingest", "BTCUSDT", "--timeframe", "7m", "--home", str(tmp_path / "home"))
    assert ended.returncode == 1
    assert ended.stderr.startswith("BadTimeframe: '7m' is not a timeframe; use one of 1m, ")
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "home").exists()


def test_a_parameter_that_the_flow_refuses_is_told_by_name(tmp_path: Path) -> None:
    ended = tradeflows("backtest", "BTCUSDT", "--fee-rate", "1.5", "--home", str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith("InvalidRequest: fee_rate: Input should be less than 1")


def test_the_traceback_is_there_for_who_asks(tmp_path: Path) -> None:
    ended = tradeflows("ingest", "BTCUSDT", "--timeframe", "7m", "--home", str(tmp_path), "--traceback")
    assert "Traceback" in ended.stderr


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    ended = tradeflows("status", "--home", str(tmp_path / "file" / "home"))
    assert ended.returncode == 1
    assert "cannot be written (Not a directory); set TRADEFLOWS_HOME, or --home, to a folder" in ended.stderr


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    ended = tradeflows("status", "--home", str(tmp_path), TRADEFLOWS_EXCHANGE_ULR="http://x")
    assert ended.returncode == 1
    assert "did you mean TRADEFLOWS_EXCHANGE_URL?" in ended.stderr


def test_a_database_that_does_not_answer_is_named_and_its_password_is_not(tmp_path: Path, closed_port: int) -> None:
    address = f"mongodb://bot:hunter2@127.0.0.1:{closed_port}/?serverSelectionTimeoutMS=200"
    ended = tradeflows("status", "--home", str(tmp_path), MONGODB_URL=address)
    assert ended.returncode == 1
    assert f"MongoDB at 127.0.0.1:{closed_port} cannot be reached" in ended.stderr
    assert "hunter2" not in ended.stderr + ended.stdout


def test_an_empty_home_says_how_to_start(tmp_path: Path) -> None:
    ended = tradeflows("status", "--home", str(tmp_path))
    assert ended.returncode == 0
    assert "start with `tradeflows ingest BTCUSDT`" in ended.stdout


@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "ingest",
        "train",
        "analyse",
        "backtest",
        "cycle",
        "status",
        "up",
        "down",
        "data",
        "quarantine",
        "models",
        "monitor",
        "logs",
        "doctor",
        "deploy",
        "serve",
        "settings",
        "notify",
        "review",
        "backup",
        "restore",
    ],
)
def test_every_word_has_help(name: str) -> None:
    from typer.testing import CliRunner

    from deployments.command import app

    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    assert "Usage" in shown.output


def test_down_without_a_stack_says_so(tmp_path: Path) -> None:
    ended = tradeflows("down", "--home", str(tmp_path))
    assert (ended.returncode, ended.stdout.strip()) == (0, "Nothing is running.")
