"""How long a posted signal takes: ``python -m deployments.bench_serve``.

Our model server and MLflow's answer the same candles from the same LightGBM champion, over one connection that stays
open, one request after the other; and ours with several connections at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from deployments.bench_analyse import DAYS, END, fill
from deployments.serve_command import READY
from deployments.stack_parts import free_port

SYMBOL = "BTCUSDT"
NAME = f"{SYMBOL}-1h"
CONNECTIONS = 4
START_SECONDS = 120


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="tradeflows-bench-") as temporary:
        home = Path(temporary)
        fill(home, [SYMBOL])
        candles = _candles(home)
        with _ours(home) as url:
            rows = {"candles": candles[-httpx.get(f"{url}/model").json()["candles_needed"] :]}
            print(f"{len(rows['candles'])} candles, {len(json.dumps(rows)):,} bytes a request")
            _told("POST /signal", _latencies(f"{url}/signal", rows, options.requests))
            table = {"dataframe_split": {"columns": ["open_time", "open", "high", "low", "close", "volume"],
                                         "data": rows["candles"]}}  # fmt: skip
            _told("POST /invocations", _latencies(f"{url}/invocations", table, options.requests))
            begun = time.perf_counter()
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                share = options.requests // CONNECTIONS
                list(pool.map(lambda _: _latencies(f"{url}/signal", rows, share), range(CONNECTIONS)))
            rate = share * CONNECTIONS / (time.perf_counter() - begun)
            print(f"{CONNECTIONS} connections at once: {rate:,.0f} signals a second")
        with _mlflow(home) as url:
            _told("MLflow's server", _latencies(f"{url}/invocations", table, options.requests))


def _latencies(url: str, body: dict[str, Any], requests: int) -> np.ndarray:
    """Milliseconds of each request, the first ten left out."""
    content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    took = []
    with httpx.Client(timeout=30) as client:
        for _ in range(requests + 10):
            begun = time.perf_counter()
            client.post(url, content=content, headers=headers).raise_for_status()
            took.append(1000 * (time.perf_counter() - begun))
    return np.array(took[10:])


def _told(what: str, took: np.ndarray) -> None:
    median, high, highest = np.percentile(took, [50, 95, 99])
    print(f"{what:<18} median {median:.1f} ms, 95 of 100 within {high:.1f} ms, 99 within {highest:.1f} ms")


def _candles(home: Path) -> list[list[float]]:
    from tasks.store import open_store, read_candles
    from trading.candles import open_times_ms, values_of
    from trading.window import Timeframe, Window

    with open_store(home) as store:
        frame = read_candles(store, Window(SYMBOL, Timeframe.H1, END - timedelta(days=DAYS), END))
    stamps = open_times_ms(frame).tolist()
    return [[stamp, *row] for stamp, row in zip(stamps, values_of(frame).tolist(), strict=True)]


@contextmanager
def _ours(home: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "deployments.command", "serve-model", NAME, "--port", "0", "--home", str(home)]

    def address(log: str) -> str | None:
        lines = [line for line in log.splitlines() if line.startswith(READY)]
        return lines[0].rpartition(" on ")[2] if lines else None

    with _process(command, home, address) as url:
        yield url


@contextmanager
def _mlflow(home: Path) -> Iterator[str]:
    from tasks import model_files, registry
    from tasks.settings import load_settings
    from tasks.signing import signing_key

    settings = load_settings().model_copy(update={"home": home})
    client = registry.connect(settings)
    with model_files.verified(client, registry.require_champion(client, NAME), signing_key(settings)) as folder:
        url = f"http://127.0.0.1:{(port := free_port(0))}"
        command = [sys.executable, "-m", "uvicorn", "--port", str(port), "mlflow.pyfunc.scoring_server.app:app"]
        variables = {"__pyfunc_model_path__": folder.parents[1].as_uri()}
        with _process(command, home, lambda _: url, variables):
            yield url


@contextmanager
def _process(
    command: Sequence[str], home: Path, address: Callable[[str], str | None], variables: dict[str, str] | None = None
) -> Iterator[str]:
    """A server, once it answers under the address that ``address`` reads off its output."""
    log = home / "serve.log"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(variables or {})}
    with (
        log.open("wb") as out,
        subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT) as process,
    ):
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                url = address(log.read_text())
                if url is not None and _answers(url):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"it did not start: {log.read_text()[-2000:]}")
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ping").status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    main()
