"""The data layer's part of ``make bench``: backfill, reading, appending, validation, memory.

The backfills run in processes of their own against a sandbox exchange of their own, so that neither finds
anything warm; imports are not counted on either side.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from deployments.bench_figures import Figure, best, market
from deployments.sandbox import running_sandbox
from deployments.sandbox.markets import GENERATED_START
from deployments.soak import generated
from trading.candles import COLUMNS, frame_of
from trading.window import Timeframe, Window

if TYPE_CHECKING:
    from tasks.store import Store

BARS = 10_000
SYMBOLS = 50
REPEATS = 3
BACKFILLS = 5
MILLION = 1_000_000
# one document per candle is far too slow for a million
ROW_DOCUMENTS = 100_000


def backfills(folder: Path) -> list[Figure]:
    """50 symbols x 10,000 candles from a sandbox exchange: the whole ingest, against ccxt and a Parquet file each."""
    windows = generated(folder / "candles", 2 * SYMBOLS, BARS)
    # by turns, so that both meet the machine in the same moods
    runs = [[_measured(which, folder, windows, SYMBOLS) for which in ("ours", "ccxt")] for _ in range(BACKFILLS)]
    quick, slow = (min(run["seconds"] for run in side) for side in zip(*runs, strict=True))
    twice = _measured("ours", folder, windows, 2 * SYMBOLS)
    rate = SYMBOLS * BARS / quick
    peak = min(run["peak_mib"] for run, _ in runs)
    return [
        Figure(
            "backfill 50 x 10,000 candles, stored, validated, ledgered", 1000 * quick, "ccxt + Parquet", 1000 * slow,
            f"{rate:,.0f} candles a second; peak {peak:.0f} MiB, with twice the symbols {twice['peak_mib']:.0f} MiB",
        )
    ]  # fmt: skip


def validation() -> list[Figure]:
    """Masks and Great Expectations over 100,000 rows in ten windows, against the time to ingest as many."""
    from expectations.candles import judge
    from trading.masks import screen

    candles = market(100_000, 60_000)
    start = GENERATED_START
    parts = []
    for at in range(0, 100_000, 10_000):
        window = Window("BTCSIM", Timeframe.M1, start + timedelta(minutes=at), start + timedelta(minutes=at + 10_000))
        rows = candles.iloc[at : at + 10_000]
        opens = rows.index.asi8  # type: ignore[attr-defined]
        raw = pd.DataFrame({"open_time": opens, **{name: rows[name].to_numpy() for name in COLUMNS}})
        parts.append((raw, window))

    def ours() -> object:
        return judge([screen(raw, window, "24/7") for raw, window in parts], max_bad_share=0.0)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        windows = generated(folder / "candles", 10, BARS)
        whole = min(_measured("ours", folder, windows, 10)["seconds"] for _ in range(REPEATS))
    spent = best(ours, 5)
    share = f"{spent / (1000 * whole):.0%} of the time to ingest them"
    return [
        Figure("masks and Great Expectations, 100,000 rows", spent, "the whole ingest of them", 1000 * whole, share)
    ]


def reading(folder: Path) -> list[Figure]:
    """A million one-minute candles: read all of them, append one; embedded and over the MongoDB protocol."""
    from tasks.store import open_store

    candles = market(MILLION, 60_000)
    path = folder / "candles.parquet"
    candles.reset_index().to_parquet(path)
    rewritten = best(lambda: candles.reset_index()[["open_time", *COLUMNS]].to_parquet(io.BytesIO()), 2)
    with open_store(folder / "embedded") as store:
        read, appended = _read_and_append(store, candles)
    # as the store does: open times, contract, index
    parquet = best(lambda: pd.read_parquet(path).set_index("open_time"), 7)
    figures = [
        Figure("read 1,000,000 candles of one series", read, "pandas.read_parquet", parquet),
        Figure("append one candle to that series", appended, "rewrite the Parquet file", rewritten),
    ]
    with mongo(folder / "mongo") as url:
        from tasks.mongo_documents import MongoDocuments
        from tasks.store import COLLECTIONS, Store

        with Store(MongoDocuments(url, COLLECTIONS, database="chunks")) as store:
            over_wire, appended_there = _read_and_append(store, candles)
        one_each = _row_documents(url, candles.iloc[:ROW_DOCUMENTS]) * MILLION / ROW_DOCUMENTS
    note = f"theirs from {ROW_DOCUMENTS:,} candles; server SecantusDB"
    figures += [
        Figure("the same read over the MongoDB protocol", over_wire, "one document per candle", one_each, note),
        Figure("the same append over the MongoDB protocol", appended_there, "rewrite the Parquet file", rewritten),
    ]
    return figures


def _read_and_append(store: Store, candles: pd.DataFrame) -> tuple[float, float]:
    from tasks.store import read_candles, write_candles

    start, end = GENERATED_START, GENERATED_START + timedelta(minutes=len(candles))
    window = Window("BTCSIM", Timeframe.M1, start, end)
    one_more = window.within(end, end + timedelta(minutes=1))
    write_candles(store, window, candles, "simulated")
    read = best(lambda: read_candles(store, window), 7)
    values = candles.iloc[-1:].to_numpy()
    prices = iter(np.linspace(1.0, 1.001, 20))

    def append() -> object:
        # another value each time, so that each is a real write
        row = frame_of([int(end.timestamp() * 1000)], values * next(prices))
        return write_candles(store, one_more, row, "simulated")

    return read, best(append, 10)


def _row_documents(url: str, candles: pd.DataFrame) -> float:
    """Milliseconds to read candles that are stored as one document each."""
    from pymongo import MongoClient

    client: Any
    with MongoClient(url) as client:
        rows = client["rows"]["candles"]
        rows.create_index([("symbol", 1), ("open_time", 1)])
        documents = candles.reset_index().assign(symbol="BTCSIM").to_dict("records")
        rows.insert_many(documents)

        def read() -> pd.DataFrame:
            found = rows.find({"symbol": "BTCSIM"}, {"_id": 0, "symbol": 0}).sort("open_time", 1)
            return pd.DataFrame(list(found)).set_index("open_time")

        assert len(read()) == len(candles)  # noqa: S101 - a benchmark of nothing is none
        return best(read, 2)


@contextmanager
def mongo(folder: Path) -> Iterator[str]:
    """A MongoDB-protocol server: the one at TEST_MONGODB_URL, else SecantusDB in a process of its own."""
    given = os.environ.get("TEST_MONGODB_URL")
    if given:
        yield given
        return
    from tests.mongo_server import MongoServer

    server = MongoServer(folder).start()
    try:
        yield server.url
    finally:
        server.kill()


# --- backfills in processes of their own ---------------------------------------------------------


def _measured(which: str, folder: Path, windows: tuple[Window, ...], symbols: int) -> dict[str, float]:
    clock = (windows[0].end + timedelta(hours=1)).isoformat()
    with (
        running_sandbox(folder=folder / "candles", clock=clock) as exchange,
        tempfile.TemporaryDirectory(dir=folder) as home,
    ):
        command = [sys.executable, "-m", "deployments.bench_data", which, exchange.url, home]
        names = [window.symbol for window in windows[:symbols]]
        done = subprocess.run([*command, *names], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the {which} backfill failed: {done.stderr[-1000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _ours(url: str, home: Path, symbols: list[str]) -> float:
    import expectations.candles as suites
    from tasks.guarding import opened_sources
    from tasks.ingestion import batches, ingest_batches, plan
    from tasks.settings import load_settings
    from tasks.store import open_store

    os.environ["TRADEFLOWS_EXCHANGE_URL"] = url
    suites.candle_suite()  # imports Great Expectations
    start, end = GENERATED_START, GENERATED_START + timedelta(minutes=BARS)
    started = time.perf_counter()
    with (
        open_store(home) as store,
        opened_sources(load_settings(), store, ["exchange"], metered=False) as sources,
    ):
        plans = plan(store, sources[0](), symbols, Timeframe.M1, start, end)
        outcomes, failures = ingest_batches(
            store, sources, batches(plans), now=end, max_bad_share=0.0, flow_run_id=None
        )
    seconds = time.perf_counter() - started
    if failures or sum(outcome.added for outcome in outcomes) != BARS * len(symbols):
        raise RuntimeError(f"not every candle was stored: {failures[:1]}")
    return seconds


def _ccxt(url: str, home: Path, symbols: list[str]) -> float:
    import ccxt

    exchange = ccxt.binance({"enableRateLimit": False, "options": {"defaultType": "spot"}})
    exchange.urls["api"]["public"] = f"{url}/api/v3"
    kinds = dict.fromkeys(("contract", "swap", "future", "option"), False) | {"type": "spot", "spot": True}
    exchange.set_markets(
        [
            {"id": name, "symbol": name, "base": name[:-4], "quote": "USDT", "baseId": name[:-4], "quoteId": "USDT",
             "active": True, "linear": None, "inverse": None, "precision": {}, "limits": {}, **kinds}
            for name in symbols
        ]
    )  # fmt: skip
    started = time.perf_counter()
    for symbol in symbols:
        since = int(GENERATED_START.timestamp() * 1000)
        rows: list[list[float]] = []
        while len(rows) < BARS:
            page = exchange.fetch_ohlcv(symbol, "1m", since=since, limit=1000)
            rows += page
            since = page[-1][0] + 60_000
        pd.DataFrame(rows[:BARS], columns=["open_time", *COLUMNS]).to_parquet(home / f"{symbol}.parquet")
    return time.perf_counter() - started


def main() -> None:
    """One backfill; prints its seconds and the process's peak memory as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=["ours", "ccxt"])
    parser.add_argument("url")
    parser.add_argument("home", type=Path)
    parser.add_argument("symbols", nargs="+")
    options = parser.parse_args()
    seconds = (_ours if options.which == "ours" else _ccxt)(options.url, options.home, options.symbols)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))


if __name__ == "__main__":
    main()
