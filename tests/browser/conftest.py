"""Debian's Chromium under Playwright, and the local stack with a champion, trainings and reports to look at."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from deployments import stack_state
from tests.browser.visits import CHECKOUT, PATIENCE, Visit, visiting

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
# the new pages of Prefect ask a host on the internet, whatever is set; the old ones ask nobody
QUIET = {"PREFECT_SERVER_UI_V2_ENABLED": "false", "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false"}
# twenty years of one index: the smallest training here whose winner the gate lets in
NASDAQ = {"symbols": ["NASDAQ"], "timeframe": "1d", "days": 7305, "end": "2019-01-01T00:00:00Z"}
TRAINING = {**NASDAQ, "refresh": None, "tune_trials": 0, "horizon": 5, "estimators": ["logistic"]}


@dataclass(frozen=True)
class Desk:
    """The addresses of a running stack, and the ids of the flow runs in it, by what they were for."""

    home: Path
    prefect: str
    mlflow: str
    runs: dict[str, str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; skips where it or Playwright is not installed, and downloads neither."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    playwright.expect.set_options(timeout=PATIENCE)
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        # as on a machine without internet
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=arguments)
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A visit on which nothing may go wrong, and of which no other machine may hear."""
    with visiting(browser) as made:
        yield made
        assert made.outside == []
        assert made.wrong == []


@pytest.fixture(scope="module")
def desk(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A stack in which candles were ingested, two models trained, analysed and backtested; no schedule runs."""
    home = tmp_path_factory.mktemp("pages") / "home"
    started = _command("up", "--detach", "--sandbox", "--warm", "--prefect-port", "0", "--mlflow-port", "0", home=home)
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        state = stack_state.read(home)
        assert state is not None and state.well
        with httpx.Client(base_url=state.prefect_api, timeout=PATIENCE / 1000) as api:
            _hush(api)
            runs = {
                "ingest": _run(api, "ingest", NASDAQ),
                "train": _run(api, "train", {**TRAINING, "folds": 2}),
                "train again": _run(api, "train", {**TRAINING, "folds": 3}),
                "analyse": _run(api, "analyse", {**NASDAQ, "refresh": None}),
                "backtest": _run(api, "backtest", {**NASDAQ, "refresh": None, "strategies": ["champion", "rsi"]}),
            }
        yield Desk(home, str(state.parts["prefect"].url), str(state.parts["mlflow"].url), runs)
    finally:
        stopped = _command("down", home=home)
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr


def _command(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    ours = ("PREFECT_", "TRADEFLOWS_", "MLFLOW_")
    return subprocess.run(
        [sys.executable, "-m", "deployments.command", *words, "--home", str(home)],
        cwd=CHECKOUT,
        env={name: value for name, value in os.environ.items() if not name.startswith(ours)} | QUIET,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def ask(api: httpx.Client, method: str, path: str, body: Any = None) -> Any:
    """Ask the Prefect server, again while its database is busy."""
    deadline = time.monotonic() + PATIENCE / 1000
    while (answer := api.request(method, path, json=body)).status_code == 503:
        if time.monotonic() > deadline:
            pytest.fail(f"{path} is busy for too long")
        time.sleep(0.25)
    answer.raise_for_status()
    return answer.json() if answer.content else None


def _hush(api: httpx.Client) -> None:
    """Schedules and automations off: a run that nobody here asked for would take the place of one that was."""
    for deployment in ask(api, "POST", "/deployments/filter", {"limit": 100}):
        for schedule in deployment["schedules"]:
            ask(api, "PATCH", f"/deployments/{deployment['id']}/schedules/{schedule['id']}", {"active": False})
    for automation in ask(api, "POST", "/automations/filter", {"limit": 100}):
        ask(api, "PATCH", f"/automations/{automation['id']}", {"enabled": False})


def _run(api: httpx.Client, name: str, parameters: dict[str, Any]) -> str:
    """Run a deployment to its end; the id of the run."""
    deployment = ask(api, "GET", f"/deployments/name/{name}/{name}")["id"]
    body = {"parameters": parameters, "idempotency_key": f"{name} {parameters}"}
    run = str(ask(api, "POST", f"/deployments/{deployment}/create_flow_run", body)["id"])
    deadline = time.monotonic() + 600
    while (found := ask(api, "GET", f"/flow_runs/{run}"))["state_type"] not in ENDED:
        if time.monotonic() > deadline:
            pytest.fail(f"{name} is {found['state_name']} for too long")
        time.sleep(0.25)
    assert found["state_type"] == "COMPLETED", f"{name}: {found['state']['message']}"
    return run
