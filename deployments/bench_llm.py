"""How close the LLM calls come to what the keys allow, and whether they ever exceed it.

python -m deployments.bench_llm                 # three keys, 60 requests a minute each, 1 s latency: three minutes
python -m deployments.bench_llm --short         # the same rate as 30 in 30 s, two windows: half a minute
python -m deployments.bench_llm --scale 10      # ten times as fast: windows of 6 s, replies after 0.1 s

The endpoint is the stand-in of ``deployments.sandbox.llm`` in a process of its own, which counts every window of
every key. Everything between is real: client, key pool, budget, store. Best possible is a client that knows no
overhead: in each window of the endpoint as many requests as the keys allow, all at once, the first at its start.
Only the clock is scaled: what the program itself takes is not, so a scaled run is the harder one. A promise counts
``tasks.llm_keys.GRACE`` longer than the window, which shorter windows pay more often: 2 s in 30 instead of in 60.

Writes are those that the store makes durable: of keys, of budgets, and one for each call's own document.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr
from rich.console import Console

from deployments import show
from deployments.bench_figures import Figure, market
from deployments.sandbox.llm import running_llm
from tasks.addresses import ANYWHERE
from tasks.circuit import Breaker
from tasks.documents import Collection, Document
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
# as often as 60 a minute, in half the time
SHORT: Final[dict[str, Any]] = {"windows": 2, "per_window": 30, "window": 30.0}


@dataclass(frozen=True)
class Throughput:
    """``calls`` answered in ``seconds``, ``best`` the least possible; ``violations`` are as the endpoint saw them.

    ``writes`` are durable writes of the store, by collection.
    """

    calls: int
    seconds: float
    best: float
    violations: int
    most: int
    abstained: int
    writes: dict[str, int]

    @property
    def over(self) -> float:
        """How much longer than possible, 0.1 for ten per cent."""
        return self.seconds / self.best - 1

    @property
    def writes_per_call(self) -> float:
        """Durable writes for each answered call."""
        return sum(self.writes.values()) / self.calls


class _Counted:
    """Documents whose writes are counted. Safe for threads."""

    def __init__(self, documents: Any) -> None:
        self._documents = documents
        self._lock = threading.Lock()
        self.writes: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._documents, name)

    def put(self, collection: Collection, document: Document) -> None:
        self._documents.put(collection, document)
        self._count(collection)

    def compare_and_set(self, collection: Collection, document: Document, expected: int) -> bool:
        written = bool(self._documents.compare_and_set(collection, document, expected))
        if written:
            self._count(collection)
        return written

    def _count(self, collection: Collection) -> None:
        with self._lock:
            self.writes[collection.name] += 1


def llm_figures() -> list[Figure]:
    """Three keys at 60 calls a minute each; the peer is the least that the keys allow."""
    found = measure(**SHORT)
    note = (
        f"the endpoint saw {found.violations} violations; {found.writes_per_call:.1f} durable writes a call; a window "
        f"of 30 s counts {GRACE.total_seconds():g} s longer here than at the endpoint"
    )
    what = f"{found.calls} LLM calls with {len(KEYS)} keys at 30 in 30 s, 1 s an answer"
    return [Figure(what, 1000 * found.seconds, "the least possible", 1000 * found.best, note)]


def measure(
    windows: int,
    *,
    scale: float = 1.0,
    workers: int = 64,
    keys: Sequence[str] = KEYS,
    per_window: int = PER_WINDOW,
    window: float = WINDOW,
    processes: int = 1,
) -> Throughput:
    """Ask as many questions as fit into so many windows of the endpoint, from ``workers`` threads.

    Args:
        window: seconds, before they are scaled.
        processes: pools on the same store, as several workers have; threads are shared out among them.
    """
    window, latency = window / scale, LATENCY / scale
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
        documents: Any = _Counted(store.documents)
        llms = [
            Llm(
                client,
                KeyPool(documents, secrets, rule),
                Budget(documents, 1e3, 1e3),
                Breaker(documents, "llm bench"),
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
        dict(documents.writes),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=4, help="windows of the endpoint to fill")
    parser.add_argument("--short", action="store_true", help="two windows of 30 s, 30 requests in each")
    parser.add_argument("--scale", type=float, default=1.0, help="how much faster clock and replies are")
    parser.add_argument("--workers", type=int, default=64, help="questions under way at once")
    parser.add_argument("--pools", type=int, default=1, help="key pools that share the store")
    asked = parser.parse_args()
    size = SHORT if asked.short else {"windows": asked.windows, "per_window": PER_WINDOW, "window": WINDOW}
    found = measure(**size, scale=asked.scale, workers=asked.workers, processes=asked.pools)
    rows = [
        ["calls", f"{found.calls:,}"],
        ["seconds", f"{found.seconds:.1f}"],
        ["best possible", f"{found.best:.1f}"],
        ["longer by", f"{found.over:.1%}"],
        ["most of a key in a window", f"{found.most} of {size['per_window']}"],
        ["violations", str(found.violations)],
        ["abstained", str(found.abstained)],
        ["durable writes a call", f"{found.writes_per_call:.2f}"],
        *([f"  {name}", f"{count / found.calls:.2f}"] for name, count in sorted(found.writes.items())),
    ]
    title = f"LLM calls, {len(KEYS)} keys, {size['per_window']} per {size['window'] / asked.scale:g} s each"
    Console(width=80).print(show.table(title, ("what", "measured"), rows, right=("measured",)))


if __name__ == "__main__":
    main()
