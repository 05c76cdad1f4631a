"""How close the LLM calls come to what the keys allow, and whether they ever exceed it.

python -m deployments.bench_llm                 # three keys, 60 requests a minute each, 1 s latency: three minutes
python -m deployments.bench_llm --scale 10      # the same ten times as fast: windows of 6 s, replies after 0.1 s

The endpoint is the stand-in of ``deployments.sandbox.llm`` in a process of its own, which counts every window of
every key. Everything between is real: client, key pool, budget, store. Best possible is a client that knows no
overhead: in each window of the endpoint as many requests as the keys allow, all at once, the first at its start.
Only the clock is scaled: what the program itself takes is not, so a scaled run is the harder one.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from pydantic import SecretStr
from rich.console import Console

from deployments import show
from deployments.bench_figures import market
from deployments.sandbox.llm import running_llm
from tasks.addresses import ANYWHERE
from tasks.circuit import Breaker
from tasks.llm import Llm, Setup
from tasks.llm_analyst import opinion
from tasks.llm_budget import Budget, Price
from tasks.llm_client import opened_client
from tasks.llm_keys import GRACE, KeyPool, KeyRule
from tasks.store import open_store
from trading.analysis import Abstention
from trading.window import Timeframe, Window

KEYS: Final = ("sk-bench-one-aaaaaaaaaaaaaaaa", "sk-bench-two-bbbbbbbbbbbbbbbb", "sk-bench-three-cccccccccccccc")
PER_WINDOW: Final = 60
WINDOW: Final = 60.0
LATENCY: Final = 1.0


@dataclass(frozen=True)
class Throughput:
    """``calls`` answered in ``seconds``, ``best`` the least possible; ``violations`` are as the endpoint saw them."""

    calls: int
    seconds: float
    best: float
    violations: int
    most: int
    abstained: int

    @property
    def over(self) -> float:
        """How much longer than possible, 0.1 for ten per cent."""
        return self.seconds / self.best - 1


def measure(
    windows: int,
    *,
    scale: float = 1.0,
    workers: int = 64,
    keys: Sequence[str] = KEYS,
    per_window: int = PER_WINDOW,
    processes: int = 1,
) -> Throughput:
    """Ask as many questions as fit into so many windows of the endpoint, from ``workers`` threads.

    Args:
        processes: pools on the same store, as several workers have; threads are shared out among them.
    """
    window, latency = WINDOW / scale, LATENCY / scale
    calls = windows * per_window * len(keys)
    candles = market(200, 3_600_000)
    start = candles.index[0].to_pydatetime()
    asked = [Window(f"SYM{number}", Timeframe.H1, start, start + timedelta(days=9)) for number in range(calls)]
    secrets = [SecretStr(key) for key in keys]
    rule = KeyRule(per_window, timedelta(0), timedelta(seconds=window), GRACE / scale)
    setup = Setup("gpt-4o-mini", Price(0.15, 0.6), patience=timedelta(hours=1))
    with (
        tempfile.TemporaryDirectory(prefix="tradeflows-bench-") as folder,
        running_llm(latency=latency, limit=per_window, window=window) as endpoint,
        open_store(Path(folder)) as store,
        opened_client(endpoint.url, secrets, access=ANYWHERE, seconds=60.0, connections=workers) as client,
        ThreadPoolExecutor(workers) as threads,
    ):
        llms = [
            Llm(
                client,
                KeyPool(store.documents, secrets, rule),
                Budget(store.documents, 1e3, 1e3),
                Breaker(store.documents, "llm bench"),
                setup,
            )
            for _ in range(processes)
        ]
        ready = threading.Barrier(workers + 1)
        for _ in range(workers):
            threads.submit(ready.wait)  # threads take time to start, too
        ready.wait()
        began = time.perf_counter()
        found = list(
            threads.map(
                lambda one: opinion(llms[one[0] % processes], candles, one[1], horizon=12, data_mode="simulated"),
                enumerate(asked),
            )
        )
        seconds = time.perf_counter() - began
        seen = endpoint.requests()
    return Throughput(
        calls,
        seconds,
        (math.ceil(calls / (per_window * len(keys))) - 1) * window + latency,
        sum(one["violations"] for one in seen.values()),
        max(one["most_in_window"] for one in seen.values()),
        sum(isinstance(one, Abstention) for one in found),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=4, help="windows of the endpoint to fill")
    parser.add_argument("--scale", type=float, default=1.0, help="how much faster clock and replies are")
    parser.add_argument("--workers", type=int, default=64, help="questions under way at once")
    parser.add_argument("--pools", type=int, default=1, help="key pools that share the store")
    asked = parser.parse_args()
    found = measure(asked.windows, scale=asked.scale, workers=asked.workers, processes=asked.pools)
    rows = [
        ["calls", f"{found.calls:,}"],
        ["seconds", f"{found.seconds:.1f}"],
        ["best possible", f"{found.best:.1f}"],
        ["longer by", f"{found.over:.1%}"],
        ["most of a key in a window", f"{found.most} of {PER_WINDOW}"],
        ["violations", str(found.violations)],
        ["abstained", str(found.abstained)],
    ]
    title = f"LLM calls, {len(KEYS)} keys, {PER_WINDOW} per {WINDOW / asked.scale:g} s each"
    Console(width=80).print(show.table(title, ("what", "measured"), rows, right=("measured",)))


if __name__ == "__main__":
    main()
