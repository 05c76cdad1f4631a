"""Processes of their own for the tests of the store: ``python store_worker.py JOB ADDRESS ARGUMENT...``.

A process imports what it needs, says ``ready``, waits for a line, does its job and prints a JSON line per result.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.documents import Collection, Documents, Index

if TYPE_CHECKING:
    import pandas as pd

THINGS = Collection("things", (Index("things_kind_idx", ("kind", "at")),), expires="expires_at")
NAMED = Collection("named", (Index("named_name_idx", ("name",), unique=True),))
START = datetime(2024, 1, 1, tzinfo=UTC)  # a Monday: chunks of 1m start here
MINUTE = 60_000
SYMBOL = "BTCUSDT"


def open_documents(address: str, collections: Iterable[Collection] = (THINGS, NAMED)) -> Documents:
    """The database at ``scheme:rest``, as every process of a test can open it."""
    scheme, _, rest = address.partition(":")
    if scheme == "sqlite":
        from tasks.sqlite_documents import SqliteDocuments

        return SqliteDocuments(Path(rest), collections)
    if scheme == "mongodb":
        from tasks.mongo_documents import MongoDocuments

        database, _, url = rest.partition("|")
        return MongoDocuments(url, collections, database=database)
    raise ValueError(f"no body is known for {address}")


def candles_at(opens_ms: Iterable[int], level: float) -> pd.DataFrame:
    """Candles that keep the contract and whose every close is ``level``."""
    import numpy as np

    from trading.candles import frame_of

    opens = np.fromiter(opens_ms, dtype="int64")
    return frame_of(opens, np.tile([level, level + 1.0, level - 0.5, level, level], (len(opens), 1)))


def minutes(first: int, last: int, step: int = 1) -> list[int]:
    """Open times of the bars ``first`` to ``last`` (without it) of 1m, counted from ``START``."""
    origin = int(START.timestamp() * 1000)
    return [origin + MINUTE * bar for bar in range(first, last, step)]


def race(address: str, me: str, rounds: str) -> Iterator[Any]:
    """Everything that only one of many may win, over and over, and counting, which all must."""
    yield "ready"
    documents = open_documents(address)
    won: dict[str, list[int]] = {"lease": [], "insert": [], "counter": []}
    now = datetime(2094, 1, 1, tzinfo=UTC)  # far ahead: a server removes by its own clock what has expired
    for number in range(int(rounds)):
        if documents.acquire(f"lease-{number}", me, timedelta(minutes=1), now):
            won["lease"].append(number)
        if documents.insert(THINGS, {"_id": f"thing-{number}", "by": me}):
            won["insert"].append(number)
        won["counter"].append(documents.increment("shared"))
        while True:
            held = documents.get(THINGS, "sum") or {"_id": "sum", "rev": 0, "value": 0}
            if documents.compare_and_set(THINGS, {"_id": "sum", "value": held["value"] + 1}, held["rev"]):
                break
    yield won


def versions(address: str, padding: str) -> Iterator[Any]:
    """Writes one document over and over, and says each version once its write has returned."""
    documents = open_documents(address)
    yield "ready"
    held = documents.get(THINGS, "versioned")
    version = held["left"] if held else 0
    while True:
        version += 1
        body = version.to_bytes(8, "big") * int(padding)
        documents.put(THINGS, {"_id": "versioned", "kind": "v", "left": version, "body": body, "right": version})
        yield version


def slices(address: str, me: str, of: str, batches: str) -> Iterator[Any]:
    """Writes every ``of``-th candle of a series in several batches that lie among those of the others."""
    from tasks.store import COLLECTIONS, Store, write_candles
    from trading.window import Timeframe, Window

    yield "ready"
    store = Store(open_documents(address, COLLECTIONS))
    for batch in range(int(batches)):
        first = batch * 80
        window = Window(SYMBOL, Timeframe.M1, START + timedelta(minutes=first), START + timedelta(minutes=first + 80))
        bars = minutes(first + int(me), first + 80, int(of))
        yield write_candles(store, window, candles_at(bars, 100.0 + int(me)), "sample").added


def rewrites(address: str, bars: str) -> Iterator[Any]:
    """Writes candles on both sides of a chunk's border over and over, each time all with another close."""
    from tasks.store import COLLECTIONS, Store, read_candles, write_candles
    from trading.window import Timeframe, Window

    store = Store(open_documents(address, COLLECTIONS))
    yield "ready"
    half, border = int(bars) // 2, 7 * 24 * 60
    start, end = (START + timedelta(minutes=border + side) for side in (-half, half))
    window = Window(SYMBOL, Timeframe.M1, start, end)
    held = read_candles(store, window)
    version = int(held["close"].max()) if len(held) else 100
    while True:
        version += 1
        write_candles(store, window, candles_at(minutes(border - half, border + half), float(version)), "sample")
        yield version


def forks(address: str) -> Iterator[Any]:
    """Opens the database, forks three times, and counts in all four processes."""
    documents = open_documents(address)
    documents.increment("before", 1)
    yield "ready"
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            for _ in range(100):
                documents.increment("forked")
            os._exit(0)
        children.append(child)
    for _ in range(100):
        documents.increment("forked")
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    yield {"children": ended, "total": documents.increment("forked", 0)}


def full_disk(address: str) -> Iterator[Any]:
    """Writes until no file may grow any more, then where it may again."""
    from trading.errors import StoreUnavailable

    yield "ready"
    documents = open_documents(address)
    documents.put(THINGS, {"_id": "before", "kind": "k"})
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        documents.put(THINGS, {"_id": "large", "body": os.urandom(1_000_000)})
    except StoreUnavailable as error:
        yield {"transient": error.transient, "message": str(error)}
    yield documents.get(THINGS, "large")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    documents.put(THINGS, {"_id": "after", "kind": "k"})
    yield sorted(document["_id"] for document in documents.find(THINGS, {"kind": "k"}))


JOBS: dict[str, Callable[..., Iterator[Any]]] = {
    job.__name__: job for job in (race, versions, slices, rewrites, forks, full_disk)
}

if __name__ == "__main__":
    results = JOBS[sys.argv[1]](*sys.argv[2:])
    print(next(results), flush=True)
    sys.stdin.readline()
    for result in results:
        print(json.dumps(result), flush=True)
