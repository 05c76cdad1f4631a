"""What one worker does in a minute, and Prefect on either database: ``python -m deployments.bench_scale``.

On the embedded stack, then on the wide one (``deployments.scale``), over Prefect's REST API: generated hourly markets
are ingested (two years, then one more bar of each), analysed and trained on by one worker; runs that do nothing go
through all workers; and the life of runs is told to the servers by clients, without workers. Requests to the sandbox
exchange are metered far above any real limit, so that it is the worker that is measured. It uses folders and ports of
its own.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
from prefect import flow
from rich.console import Console

from deployments import declared, scale, stack
from deployments.declared import POOL
from deployments.prefect_api import Api, connected
from deployments.sandbox import running_sandbox
from deployments.scale_parts import Wide
from deployments.stack import Wanted
from tasks import credentials
from tasks.settings import load_settings
from trading.errors import TradeflowsError

NAME: Final = "bench-scale"
DAYS: Final = 730
END: Final = datetime(2020, 1, 1, tzinfo=UTC)
PATIENCE: Final = 3600.0
ENDED: Final = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
# of the life of a run, as a worker and its process tell it
LIFE: Final = ("PENDING", "RUNNING", "COMPLETED")
HOUR: Final = timedelta(hours=1)
ALONE: Final[Mapping[str, Any]] = {"source": "exchange", "recheck": 0}


class BenchFailed(TradeflowsError):
    """A run of the measurement did not complete."""


@dataclass(frozen=True)
class Plan:
    """How much of each."""

    symbols: int
    learned: int
    runs: int
    seconds: float
    clients: int


@dataclass(frozen=True)
class Stack:
    """Where to measure: a connected API, its address and credentials, and how many bytes Prefect's database has."""

    name: str
    workers: int
    api: Api
    urls: Sequence[str]
    known: tuple[str, str] | None
    size: Callable[[], int]


@flow(name=NAME)
def nothing() -> None:
    """A run, and no more."""


def measure(at: Stack, plan: Plan) -> dict[str, float]:
    """Figures by name: symbols or runs a minute, bytes a run."""
    _pause_schedules(at.api)
    names = [f"S{number:04d}USDT" for number in range(plan.symbols)]
    market: dict[str, Any] = {"symbols": names, "timeframe": "1h", "start": (END - timedelta(days=DAYS)).isoformat()}
    learned = {**market, "symbols": names[: plan.learned], "end": END.isoformat(), "refresh": None}
    before = END - HOUR
    figures = {
        "ingest, 2 years of 1h": plan.symbols / _minutes(at, "ingest", {**market, "end": before.isoformat(), **ALONE}),
        "ingest, the newest bar": plan.symbols / _minutes(at, "ingest", {**market, "end": END.isoformat(), **ALONE}),
        "analyse": plan.symbols
        / _minutes(at, "analyse", {**market, "end": END.isoformat(), "refresh": None, "reuse_minutes": 0}),
        "train, 2 years of 1h": plan.learned / _minutes(at, "train", {**learned, "tune_trials": 0}),
    }
    size = at.size()
    figures["runs through the workers"] = _empty_runs(at, plan.runs)
    figures["bytes of database per run"] = (at.size() - size) / plan.runs
    return figures | _lives(at, plan)


def _pause_schedules(api: Api) -> None:
    """Or declared runs, about other symbols, come in between."""
    for one in api.all("/deployments/filter"):
        api.ask("PATCH", f"/deployments/{one['id']}", {"paused": True})


def _minutes(at: Stack, name: str, parameters: Mapping[str, Any]) -> float:
    """Minutes that a flow run takes by the server's clock, from its process's first word to its end."""
    deployment = at.api.ask("GET", f"/deployments/name/{name}/{name}")["id"]
    run = at.api.ask("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": dict(parameters)})["id"]
    found = _ended(at.api, run)
    if found["state_type"] != "COMPLETED":
        raise BenchFailed(f"{name} on the {at.name} stack is {found['state_name']}: {found['state']['message']}")
    return float(found["total_run_time"]) / 60


def _ended(api: Api, run: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found: dict[str, Any] = api.ask("GET", f"/flow_runs/{run}")
        if found["state_type"] in ENDED:
            return found
        time.sleep(0.2)
    raise BenchFailed(f"run {run} did not end within {PATIENCE:.0f} s")


def _empty_runs(at: Stack, count: int) -> float:
    """Runs a minute, from the moment when all are asked for until the last has ended."""
    flow_id = at.api.ask("POST", "/flows/", {"name": NAME})["id"]
    body = {
        "name": NAME,
        "flow_id": flow_id,
        "entrypoint": "deployments/bench_scale.py:nothing",
        "work_pool_name": POOL,
        "pull_steps": declared.pulled(),
    }
    deployment = at.api.ask("POST", "/deployments/", body)["id"]
    begun = time.monotonic()
    made = [at.api.ask("POST", f"/deployments/{deployment}/create_flow_run", {})["id"] for _ in range(count)]
    for run in made:
        found = _ended(at.api, run)
        if found["state_type"] != "COMPLETED":
            raise BenchFailed(f"an empty run on the {at.name} stack is {found['state_name']}")
    return 60 * count / (time.monotonic() - begun)


def _lives(at: Stack, plan: Plan) -> dict[str, float]:
    """Runs a minute whose life the servers write down, told by several clients at once; how often and how long one
    had to wait for a busy database."""
    flow_id = at.api.ask("POST", "/flows/", {"name": NAME})["id"]
    until = time.monotonic() + plan.seconds
    told: list[tuple[int, int, int, float]] = []

    def client(url: str) -> None:
        runs = answers = busy = 0
        slowest = 0.0
        # SQLite itself may wait a minute for its lock before the server says 503
        with httpx.Client(base_url=url, auth=at.known, timeout=PATIENCE, trust_env=False) as http:

            def ask(path: str, body: object) -> Any:
                nonlocal answers, busy, slowest
                while True:
                    answer = http.post(path, json=body)
                    answers += 1
                    slowest = max(slowest, answer.elapsed.total_seconds())
                    if answer.status_code != 503:
                        return answer.raise_for_status().json()
                    busy += 1
                    time.sleep(0.05)

            while time.monotonic() < until:
                run = ask("/flow_runs/", {"flow_id": flow_id, "state": {"type": "SCHEDULED"}})["id"]
                for kind in LIFE:
                    ask(f"/flow_runs/{run}/set_state", {"state": {"type": kind}, "force": True})
                runs += 1
        told.append((runs, answers, busy, slowest))

    threads = [
        threading.Thread(target=client, args=(at.urls[number % len(at.urls)],)) for number in range(plan.clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(told) < plan.clients:
        raise BenchFailed(f"a client of the {at.name} stack's server broke off")
    runs, answers, busy = (sum(one[column] for one in told) for column in range(3))
    return {
        "lives of runs at the servers": 60 * runs / plan.seconds,
        "seconds, the slowest answer": max(one[3] for one in told),
        "of its answers, busy (503)": busy / answers,
    }


# --- stacks --------------------------------------------------------------------------------------


@contextmanager
def embedded(home: Path) -> Iterator[Stack]:
    """SQLite and one worker."""
    os.environ["TRADEFLOWS_HOME"] = str(home)
    settings = load_settings()
    state = stack.detached(settings, Wanted(prefect_port=0, mlflow_port=0), print)

    def size() -> int:
        return sum(path.stat().st_size for path in (home / "prefect").glob("prefect.db*"))

    try:
        with connected(state.prefect_api, timeout=PATIENCE) as api:
            yield Stack("embedded", 1, api, [state.prefect_api], credentials.pair(settings), size)
    finally:
        stack.down(home, print)


@contextmanager
def wide(home: Path, workers: int) -> Iterator[Stack]:
    """PostgreSQL, Redis, two servers, several workers."""
    import psycopg2  # type: ignore[import-untyped]

    kind = Wide(workers=workers, exchange_url=os.environ["TRADEFLOWS_EXCHANGE_URL"])
    with scale.running(home, kind, print) as made:
        if made is None:
            raise BenchFailed("told to stop")
        os.environ["PREFECT_API_AUTH_STRING"] = made.client["PREFECT_API_AUTH_STRING"]
        user, _, password = made.client["PREFECT_API_AUTH_STRING"].partition(":")
        urls = [f"{made.state.parts[name].url}/api" for name in ("prefect", "prefect-2")]

        def size() -> int:
            database = psycopg2.connect(**made.postgres, dbname="prefect")
            try:
                with database.cursor() as cursor:
                    cursor.execute("select pg_database_size('prefect')")
                    [found] = cursor.fetchone() or (0,)
                    return int(found)
            finally:
                database.close()

        with connected(urls[0], timeout=PATIENCE) as api:
            yield Stack("wide", workers, api, urls, (user, password), size)


def markets(folder: Path, symbols: int) -> None:
    """Hourly candles of generated markets, as files that the sandbox exchange serves."""
    import numpy as np

    from deployments.sandbox.generator import Recipe, generate
    from trading.candles import frame_of

    start = END - timedelta(days=DAYS)
    opens = int(start.timestamp() * 1000) + 3_600_000 * np.arange(DAYS * 24, dtype="int64")
    folder.mkdir(parents=True)
    recipes = [Recipe(f"S{number:04d}USDT", 100.0 + number, 0.006, 900.0, 4) for number in range(symbols)]
    for name, values in generate(recipes, DAYS * 24, 7).items():
        frame_of(opens, values).reset_index().to_parquet(folder / f"{name}_1h.parquet")


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", choices=("embedded", "wide", "both"), default="both")
    parser.add_argument("--symbols", type=int, default=50)
    parser.add_argument("--learned", type=int, default=6, help="symbols of the training")
    parser.add_argument("--runs", type=int, default=30, help="empty runs through the workers")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long clients tell of runs")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--workers", type=int, default=3, help="of the wide stack")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    plan = Plan(options.symbols, options.learned, options.runs, options.seconds, options.clients)
    console = Console(highlight=False, soft_wrap=True)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="tradeflows-scale-") as temporary:
        folder = Path(temporary)
        # for PostgreSQL's user, where we are root
        folder.chmod(0o711)
        markets(folder / "candles", plan.symbols)
        clock = (END + HOUR / 2).isoformat()
        with running_sandbox(folder=folder / "candles", clock=clock, rendered=True) as exchange:
            os.environ["TRADEFLOWS_EXCHANGE_URL"] = exchange.url
            os.environ["TRADEFLOWS_EXCHANGE_WEIGHT_PER_MINUTE"] = "6000000"
            for name in ("embedded", "wide") if options.stack == "both" else (options.stack,):
                made = embedded(folder / name) if name == "embedded" else wide(folder / name, options.workers)
                with made as at:
                    found[name] = measure(at, plan)
    if options.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        console.print(f"\n{name} stack, {options.symbols} symbols, {os.cpu_count()} processors")
        for what, figure in figures.items():
            console.print(f"  {what:<32}{figure:>12,.1%}" if "503" in what else f"  {what:<32}{figure:>12,.1f}")
    console.print("\nsymbols or runs a minute; of one worker, but for the runs, which go through all of a stack's")


if __name__ == "__main__":
    main()
