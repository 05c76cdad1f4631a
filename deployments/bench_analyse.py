"""The analyses' part of ``make bench``: one run for many symbols under a real Prefect server, and without one.

python -m deployments.bench_analyse                    # 100 symbols: seconds, and Prefect's share of them
python -m deployments.bench_analyse --symbols 500      # more of them, to see how time and memory grow

Candles are in the store; model and rules speak. Each run is a process that has imported nothing yet, as a
worker's is, and its time is that of the flow run, with its own imports. Prefect's share is what the same work takes
less in a process without Prefect's engine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from deployments.bench_figures import Figure

SYMBOLS = 100
DAYS = 60
END = datetime(2026, 3, 2, tzinfo=UTC)
SERVER_SECONDS = 120
CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Took:
    """Seconds of a flow run and of its work alone, seconds of the whole process, and its peak memory in MB."""

    symbols: int
    flow: float
    plain: float
    process: float
    memory: float

    @property
    def orchestration(self) -> float:
        """Share of the flow run's time that is not the work's."""
        return max(1 - self.plain / self.flow, 0.0)


def analyse_figures() -> list[Figure]:
    """One run for 100 symbols; the peer is the same work without Prefect."""
    with tempfile.TemporaryDirectory(prefix="tradeflows-bench-") as temporary:
        took = measure(Path(temporary), SYMBOLS, 3)
    note = f"model and rules, a new process; Prefect's share is {took.orchestration:.0%}, {took.memory:.0f} MB at most"
    return [
        Figure(f"analyse {SYMBOLS} symbols under a Prefect server", 1000 * took.flow, "its work alone",
               1000 * took.plain, note),
    ]  # fmt: skip


def measure(home: Path, symbols: int, repeats: int) -> Took:
    """The medians of several runs under a server of its own."""
    names = [f"S{number:03d}USDT" for number in range(symbols)]
    fill(home, names)
    flows, plains = [], []
    with prefect_server(home) as url:
        for _ in range(repeats):
            flows.append(_child(home, names, url, "flow"))
            plains.append(_child(home, names, url, "plain"))
    return Took(
        symbols,
        statistics.median(one["seconds"] for one in flows),
        statistics.median(one["seconds"] for one in plains),
        statistics.median(one["process"] for one in flows),
        statistics.median(one["memory"] for one in flows),
    )


def fill(home: Path, symbols: Sequence[str]) -> None:
    """Candles of generated markets in the store, and a LightGBM champion for them in MLflow."""
    import numpy as np

    from deployments.bench_models import _stored
    from deployments.sandbox.generator import Recipe, generate
    from tasks.store import open_store
    from trading.candles import frame_of
    from trading.window import Timeframe, Window

    bars = DAYS * 24
    start = END - timedelta(days=DAYS)
    opens = int(start.timestamp() * 1000) + 3_600_000 * np.arange(bars, dtype="int64")
    recipes = [Recipe(name, 100.0 + at, 0.006, 900.0, 4) for at, name in enumerate(symbols)]
    markets = generate(recipes, bars, 7)
    with open_store(home) as store:
        for name in symbols:
            _stored(store, Window(name, Timeframe.H1, start, END), frame_of(opens, markets[name]), "simulated")
    learned = {name: frame_of(opens, markets[name]) for name in symbols[:6]}
    _champion(home, symbols, learned)


def _champion(home: Path, symbols: Sequence[str], learned: dict[str, Any]) -> None:
    from ml.artifact import save
    from ml.features import FeatureSet
    from ml.labels import LabelDefinition
    from ml.training import assemble, fit_final
    from tasks import registry
    from tasks.settings import Settings
    from tasks.signing import signing_key
    from tasks.training import model_name
    from trading.window import Timeframe

    settings = Settings(home=home)  # type: ignore[call-arg]
    client = registry.connect(settings)
    label = LabelDefinition(horizon=12)
    table = assemble(learned, FeatureSet(), label)
    model, rule = fit_final(table, "lightgbm", 7)
    folder = home / "bench" / "model"
    saved = save(
        folder, model, feature_set=FeatureSet(), label=label, rule=rule, timeframe=Timeframe.H1,
        dataset_digest=table.digest, metadata={"data_mode": "simulated"},
    )  # fmt: skip
    name = model_name(list(symbols), Timeframe.H1)
    experiment = registry.experiment_id(client, settings, name)
    run = registry.log_run(client, experiment, registry.Record("bench"), at_ms=1, finish=False)
    rows = learned[symbols[0]].tail(FeatureSet().rows_needed).reset_index()
    uri = registry.log_model(client, run, folder, rows)
    registry.finish_run(client, run)
    tags = {
        "estimator": "lightgbm", "manifest_sha256": saved.sha256, "trained_until_ms": str(int(table.t1.max())),
        "data_mode": "simulated", "dataset_digest": table.digest,
    }  # fmt: skip
    version = registry.register(client, name, uri, run, tags, key=signing_key(settings))
    registry.set_alias(client, name, registry.CHAMPION, version)


@contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """A Prefect server of its own on SQLite; yields the address of its API."""
    from deployments.stack import LOOPBACK, free_port
    from tasks.environment import DEFAULTS

    port = free_port(0)
    url = f"http://{LOOPBACK}:{port}/api"
    variables = {
        **os.environ, **DEFAULTS, "PREFECT_HOME": str(home / "prefect"), "PREFECT_SERVER_API_HOST": LOOPBACK,
        "PREFECT_SERVER_API_PORT": str(port), "PREFECT_API_URL": url,
    }  # fmt: skip
    command = [sys.executable, "-m", "deployments.prefect_server", "server", "start"]
    with (home / "prefect.log").open("wb") as log_file:
        server = subprocess.Popen(command, env=variables, stdout=log_file, stderr=subprocess.STDOUT)
    try:
        _wait(url)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def _wait(url: str) -> None:
    deadline = time.monotonic() + SERVER_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health", timeout=2).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"the Prefect server did not answer at {url} within {SERVER_SECONDS} s")


def _child(home: Path, symbols: Sequence[str], url: str, how: str) -> dict[str, float]:
    """Seconds and memory of a run in a process of its own."""
    from tasks.environment import DEFAULTS

    variables = {
        **os.environ, **DEFAULTS, "TRADEFLOWS_HOME": str(home), "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": url, "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }  # fmt: skip
    command = [sys.executable, "-m", "deployments.bench_analyse", "--run", how]
    started = time.perf_counter()
    told = subprocess.run(
        command, env=variables, cwd=CHECKOUT, input=json.dumps(list(symbols)), stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    took = time.perf_counter() - started
    found: dict[str, float] = json.loads(told.stdout.splitlines()[-1])
    return {**found, "process": took}


def run_flow(symbols: list[str]) -> float:
    """Seconds of the flow run, as the server has them."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    from flows.analyse import analyse

    state = analyse(symbols, days=DAYS, end=END, reuse_minutes=0, return_state=True)
    if not state.is_completed():
        raise RuntimeError(f"the run ended {state.name}: {state.message}")
    with get_client(sync_client=True) as client:
        [run] = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
    return float(run.total_run_time.total_seconds())


def run_plain(symbols: list[str]) -> float:
    """Seconds of the same work, its tasks called as plain functions; what the flow imports is imported before."""
    import flows.analyse  # noqa: F401
    from tasks.analysing import conclude_task, hear_task
    from tasks.panels import AnalysisRequest, panel_task
    from trading.window import Timeframe

    started = time.perf_counter()
    moment = datetime.now(tz=UTC)
    request = AnalysisRequest(Timeframe.H1, END - timedelta(days=DAYS), END, ttl=timedelta(0))
    panel = panel_task.fn(symbols, request, moment)
    heard, errors = hear_task.fn(0, symbols, request, panel, moment)
    rows = conclude_task.fn(heard, panel, moment)
    if errors or len(rows) != len(symbols):
        raise RuntimeError(f"{len(rows)} analyses, {errors}")
    return time.perf_counter() - started


def _run(how: str) -> None:
    import resource

    symbols = json.loads(sys.stdin.read())
    seconds = run_flow(symbols) if how == "flow" else run_plain(symbols)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "memory": memory}))


def main() -> None:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=SYMBOLS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", choices=("flow", "plain"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run:
        _run(chosen.run)
        return
    with tempfile.TemporaryDirectory(prefix="tradeflows-bench-") as temporary:
        took = measure(Path(temporary), chosen.symbols, chosen.repeats)
    print(
        f"{took.symbols} symbols: {took.flow:.1f} s the flow run, {took.plain:.1f} s its work without Prefect "
        f"(Prefect's share {took.orchestration:.0%}), {took.process:.1f} s the process, {took.memory:.0f} MB at most"
    )


if __name__ == "__main__":
    main()
