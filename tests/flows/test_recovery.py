"""The database dies in the middle of an ingest: the flow goes on when it is back, and ends as if nothing had been."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.ingest import ingest
from tasks import ledger
from tasks.settings import load_settings
from tasks.store import Store, configured_store, open_store, read_candles
from tests.flows.at_work import wait_for
from tests.mongo_server import MongoServer
from trading.candles import digest
from trading.errors import StoreError
from trading.window import Timeframe, Window

pytestmark = pytest.mark.integration

SYMBOLS = ["BTCSIM", "ETHSIM", "SOLSIM"]
START, END = datetime(2016, 1, 1, tzinfo=UTC), datetime(2019, 1, 1, tzinfo=UTC)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[MongoServer]:
    server = MongoServer(tmp_path / "mongo").start()
    yield server
    server.kill()


def held(store: Store) -> dict[str, tuple[str, list[tuple[datetime, datetime, str, str]]]]:
    """Candles and ledger by symbol."""
    found = {}
    for symbol in SYMBOLS:
        records = ledger.entries(store, symbol, "1h")
        spans = [(one.window.start, one.window.end, one.status, one.digest) for one in records]
        found[symbol] = (digest(read_candles(store, Window(symbol, Timeframe.H1, START, END))), spans)
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_database_that_dies_and_comes_back_changes_nothing(
    home: Path, database: MongoServer, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setenv("TRADEFLOWS_HOME", str(home / "calm"))
        ingest(SYMBOLS, Timeframe.H1, start=START, end=END)
    monkeypatch.setenv("MONGODB_URL", f"{database.url}soak")
    settings = load_settings()
    died = threading.Event()

    def begun() -> bool:
        with configured_store(settings) as store:
            return any(ledger.entries(store, symbol, "1h") for symbol in SYMBOLS)

    def kill() -> None:
        # the first window is on record, the others are on their way
        wait_for(begun)
        database.kill() if number is signal.SIGKILL else database.stop()
        died.set()
        database.start()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        try:
            ingest(SYMBOLS, Timeframe.H1, start=START, end=END)
        except StoreError:
            # longer away than a task is patient: the run failed, and said so; the next one catches up
            killer.join()
            ingest(SYMBOLS, Timeframe.H1, start=START, end=END)
    finally:
        killer.join()
    assert died.is_set()
    with open_store(home / "calm") as calm, configured_store(settings) as storm:
        assert held(storm) == held(calm)
        assert not [
            part for symbol in SYMBOLS for part in ledger.missing(storm, Window(symbol, Timeframe.H1, START, END))
        ]
