"""Servers of a real stack die in the middle of its work: what is left is what work without a stack leaves.

``make soak`` does the same by chance, for minutes, with every flow.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from rich.console import Console

from deployments import soak_compare, soak_stack, stack, stack_state
from deployments.soak_stack import DAILY, FIRST, Driver
from deployments.stack import Wanted
from tasks import datasets, ledger, registry, training
from tasks.guarding import opened_sources
from tasks.ingestion import batches, ingest_batches, plan
from tasks.learning import TrainingRequest
from tasks.settings import load_settings
from tasks.store import ANALYSES, open_store
from trading.window import Timeframe

pytestmark = pytest.mark.integration

DAYS = 3_000
END = {"end": f"{FIRST:%Y-%m-%dT%H:%M:%SZ}"}
INGEST = {**DAILY, "days": DAYS, **END}
TRAIN = {**DAILY, "refresh": None, "days": DAYS, "horizon": 5, "tune_trials": 0, "estimators": ["logistic"], **END}
ANALYSE = {**DAILY, "refresh": None, "days": 1_000, "horizon": 5, **END}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    home = tmp_path_factory.mktemp("recovery") / "home"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRADEFLOWS_HOME", str(home))
        for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "MONGODB_URL"):
            environment.delenv(name, raising=False)
        wanted = Wanted(sandbox=True, warm=True, prefect_port=0, mlflow_port=0, metrics_port=None)
        state = stack.detached(load_settings(), wanted, lambda _: None)
        made = Driver(home, state, Console(quiet=True))
        made.quiet()
        yield made
        stack.down(home, lambda _: None)
        assert stack_state.family(state) == []


def struck(driver: Driver, part: str, number: signal.Signals, when: Callable[[], Any], name: str, asked: Any) -> None:
    """Run a flow to its good end, with a signal to a part at a moment in the middle."""

    def strike() -> None:
        deadline = time.monotonic() + 120
        while not when():
            assert time.monotonic() < deadline, "the moment never came"
            time.sleep(0.05)
        psutil.Process(driver.parts()[part].pid).send_signal(number)
        driver.tally.kills[part] += 1

    before = driver.tally.kills[part]
    striker = threading.Thread(target=strike)
    striker.start()
    sweeps = threading.Event()
    sweeper = threading.Thread(target=soak_stack.sweeping, args=(driver, sweeps))
    sweeper.start()
    try:
        assert any(driver._done(name, asked, f"{name}/{turn}") for turn in range(3)), driver.tally.again
    finally:
        sweeps.set()
        striker.join()
        sweeper.join()
    assert driver.tally.kills[part] == before + 1


def running(driver: Driver) -> bool:
    wanted = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
    return any(run["name"] != "sweep" for run in driver.ask("POST", "/flow_runs/filter", wanted))


def open_run(driver: Driver) -> bool:
    """MLflow has a run that is at work."""
    url = f"{driver.state.parts['mlflow'].url}/api/2.0/mlflow"
    found = httpx.post(f"{url}/experiments/search", json={"max_results": 100}).json()
    ids = [one["experiment_id"] for one in found.get("experiments", [])]
    wanted = {"experiment_ids": ids, "filter": "attributes.status = 'RUNNING'", "max_results": 1}
    return bool(ids and httpx.post(f"{url}/runs/search", json=wanted).json().get("runs"))


def without(home: Path, exchange: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the same ingest and training leave without Prefect and without anybody's death."""
    monkeypatch.setenv("TRADEFLOWS_HOME", str(home))
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_URL", exchange)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings, bar = load_settings(), Timeframe.D1
    start, symbols = FIRST - timedelta(days=DAYS), DAILY["symbols"]
    client = registry.connect(settings)
    with open_store(home) as store:
        with opened_sources(settings, store, ["exchange"], metered=False) as sources:
            todo = batches(plan(store, sources[0](), symbols, bar, start, FIRST))
            ingest_batches(store, sources, todo, now=FIRST, max_bad_share=settings.max_bad_share, flow_run_id=None)
        dataset = datasets.select(store, symbols, bar, start, FIRST, now=FIRST)
        request = TrainingRequest(5, 4, 7, 0.001, 0.0005, 0.005, -0.005, tune_seconds=600.0, estimators=("logistic",))
        training.train(store, settings, client, dataset, request, now=FIRST, flow_run_id=None)
        return soak_compare.snapshot(settings, store, client)


def test_servers_that_die_in_the_middle_change_nothing(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recorded() -> bool:
        with open_store(driver.home) as store:
            return bool(ledger.entries(store, "SP500", "1d")) or running(driver)

    driver.sandbox.set_clock((FIRST + timedelta(hours=1)).isoformat())
    struck(driver, "prefect", signal.SIGKILL, recorded, "ingest", INGEST)
    struck(driver, "mlflow", signal.SIGKILL, lambda: open_run(driver), "train", TRAIN)
    struck(driver, "prefect", signal.SIGTERM, lambda: running(driver), "analyse", ANALYSE)
    driver.settle()
    driver.count()
    # no slot is held by nobody
    assert driver.tally.lost == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(driver.state.parts["mlflow"].url))
    settings = load_settings()
    with open_store(settings.home) as store:
        found = soak_compare.snapshot(settings, store, registry.connect(settings))
        analysed = {one["symbol"]: one for one in store.documents.find(ANALYSES)}
    calm = without(tmp_path / "calm", str(driver.state.parts["sandbox"].url), monkeypatch)
    assert soak_compare.faults(found) == []
    assert found["registry"]["NASDAQ-SP500-1d"]["trainings"]
    assert [*soak_compare.differences({key: calm[key] for key in ("series", "registry")},
                                      {key: found[key] for key in ("series", "registry")})] == []  # fmt: skip
    assert {symbol: one["timestamp"] for symbol, one in analysed.items()} == dict.fromkeys(DAILY["symbols"], FIRST)
    # and a difference would have been seen
    calm["registry"]["NASDAQ-SP500-1d"]["champion"]["dataset_digest"] = "another"
    assert len([*soak_compare.differences(calm["registry"], found["registry"])]) == 1
