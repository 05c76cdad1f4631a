"""Datasets: frozen, found by their digest, and read again exactly as they were, on either body."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import ledger
from tasks.chunks import Revision
from tasks.datasets import Dataset, find, least_real, load, select
from tasks.store import CHUNKS, COLLECTIONS, DATASETS, Store, open_store, read_candles, write_candles
from tests.tasks.store_worker import open_documents
from trading.candles import check, digest, frame_of
from trading.errors import DatasetLost, InsufficientHistory, StoreUnavailable
from trading.window import Timeframe, Window, split_by_period

START = datetime(2024, 1, 1, tzinfo=UTC)
NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)
H1 = Timeframe.H1
DAY = 24
SYMBOLS = ("BTCUSDT", "ETHUSDT")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def window_of(first: int, last: int, symbol: str = "BTCUSDT") -> Window:
    return Window(symbol, H1, START + first * H1.delta, START + last * H1.delta)


def candles_of(window: Window, seed: int = 0) -> pd.DataFrame:
    """The same candle of an hour, whatever the window."""
    hours = np.arange(window.slots) + (window.start - START) // H1.delta
    close = 100 + seed + len(window.symbol) + ord(window.symbol[0]) + np.sin(hours / 7.0)
    values = np.column_stack([close, close + 1, close - 1, close + 0.1, 1.0 + np.abs(np.cos(hours))])
    return check(frame_of(int(START.timestamp() * 1000) + 3_600_000 * hours, values))


def ingest(
    store: Store, window: Window, *, without: tuple[int, ...] = (), mode: str = "live", status: str = ledger.APPROVED
) -> None:
    candles = candles_of(window)
    candles = candles[~candles.index.isin([START + hour * H1.delta for hour in without])]
    late = Revision(NOW, "sandbox") if ledger.approved(store, window) else None
    written = write_candles(store, window, candles, mode, late)
    ledger.record(
        store,
        ledger.LedgerEntry(
            window=window,
            status=status,
            rows=len(candles),
            added=written.added,
            quarantined={},
            gaps=len(without),
            digest=written.digest,
            suite="2",
            flow_run_id="run",
            data_mode=mode,
            source="sandbox",
            calendar="24/7",
            recorded_at=NOW,
        ),
    )


def freeze(store: Store, *symbols: str, first: int = 0, last: int = 10 * DAY) -> Dataset:
    window = window_of(first, last)
    return select(store, symbols, H1, window.start, window.end, now=NOW)


def correct(store: Store, first: int, last: int, symbol: str = "BTCUSDT", *, seed: int = 1) -> None:
    """Late changes, or late candles, of an approved window."""
    window = window_of(first, last, symbol)
    write_candles(store, window, candles_of(window, seed), "live", Revision(NOW + timedelta(hours=seed), "sandbox"))


def same(one: dict[str, pd.DataFrame], other: dict[str, pd.DataFrame]) -> None:
    assert list(one) == list(other)
    for symbol, frame in one.items():
        pd.testing.assert_frame_equal(frame, other[symbol], check_exact=True)


def test_a_dataset_is_frozen_and_found_again_by_its_digest(store: Store) -> None:
    for symbol in SYMBOLS:
        ingest(store, window_of(-DAY, 12 * DAY, symbol), without=(5,))
    dataset = freeze(store, *SYMBOLS, first=-DAY)
    assert dataset.symbols == SYMBOLS
    assert dataset.timeframe is H1
    assert dataset.windows == tuple(window_of(-DAY, 10 * DAY, symbol) for symbol in SYMBOLS)
    assert dataset.rows == dict.fromkeys(SYMBOLS, 11 * DAY - 1)
    assert (dataset.data_mode, dataset.calendars) == ("live", dict.fromkeys(SYMBOLS, "24/7"))
    # a chunk of 1h is a year
    years = [f"{symbol}|1h|{year}-01-01" for symbol in SYMBOLS for year in (2023, 2024)]
    assert dataset.revisions == dict.fromkeys(years, 1)
    assert find(store, dataset.digest) == dataset
    [document] = store.documents.find(DATASETS)
    assert (document["_id"], document["created_at"]) == (dataset.digest, NOW)
    same(
        load(store, dataset),
        {symbol: candles_of(window_of(-DAY, 10 * DAY, symbol)).drop(START + 5 * H1.delta) for symbol in SYMBOLS},
    )


def test_a_dataset_that_was_never_frozen_here_is_lost(store: Store) -> None:
    with pytest.raises(DatasetLost, match="knows no dataset abc123; it was frozen in another store, or not at all"):
        find(store, "abc123")


def test_the_same_candles_are_the_same_dataset(store: Store) -> None:
    ingest(store, window_of(0, 10 * DAY))
    one = freeze(store, "BTCUSDT")
    assert freeze(store, "BTCUSDT") == one
    assert len(store.documents.find(DATASETS)) == 1
    assert freeze(store, "BTCUSDT", last=9 * DAY).digest != one.digest
    assert len(store.documents.find(DATASETS)) == 2
    correct(store, 5, 6)
    assert freeze(store, "BTCUSDT").digest != one.digest
    correct(store, 5, 6, seed=0)  # back to what it was
    assert freeze(store, "BTCUSDT").digest == one.digest


def test_the_order_of_symbols_is_kept_and_does_not_change_the_digest(store: Store) -> None:
    for symbol in SYMBOLS:
        ingest(store, window_of(0, 10 * DAY, symbol))
    one, other = freeze(store, "BTCUSDT", "ETHUSDT"), freeze(store, "ETHUSDT", "BTCUSDT")
    assert one.digest == other.digest
    assert list(load(store, other)) == ["ETHUSDT", "BTCUSDT"]


# --- after later changes -------------------------------------------------------------------------


def test_a_dataset_is_read_as_it_was_frozen_after_corrections_and_late_candles(store: Store) -> None:
    for symbol in SYMBOLS:
        ingest(store, window_of(-DAY, 10 * DAY, symbol), without=(50, 51))
    dataset = freeze(store, *SYMBOLS, first=-DAY)
    then = load(store, dataset)
    correct(store, 48, 55)  # corrections, and two that come late
    correct(store, -3, 3, "ETHUSDT", seed=2)  # on both sides of a chunk's border
    correct(store, 49, 51, seed=3)
    ingest(store, window_of(10 * DAY, 12 * DAY))  # the next window of the same chunk
    now = {symbol: read_candles(store, window_of(-DAY, 10 * DAY, symbol)) for symbol in SYMBOLS}
    assert all(digest(now[symbol]) != digest(then[symbol]) for symbol in SYMBOLS)
    same(load(store, dataset), then)
    same(load(store, find(store, dataset.digest)), then)
    later = freeze(store, *SYMBOLS, first=-DAY)
    same(load(store, later), now)
    assert later.digest != dataset.digest


@settings(max_examples=20, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(-8, 12), st.integers(1, 6), st.sampled_from([0, 1, 2]), st.booleans()), max_size=8
    )
)
def test_every_dataset_is_read_back_whatever_came_later(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, int, bool]]
) -> None:
    with open_store(tmp_path_factory.mktemp("home")) as store:
        ingest(store, window_of(-8, 0), without=(-4, -1))
        ingest(store, window_of(0, 18), without=(0, 7))
        frozen = [(freeze(store, "BTCUSDT", first=-8, last=18), read_candles(store, window_of(-8, 18)))]
        for first, count, seed, freezes in steps:
            correct(store, first, first + count, seed=seed)
            if freezes:
                frozen.append((freeze(store, "BTCUSDT", first=-8, last=18), read_candles(store, window_of(-8, 18))))
        for dataset, then in reversed(frozen):
            same(load(store, dataset), {"BTCUSDT": then})
            same(load(store, find(store, dataset.digest)), {"BTCUSDT": then})


def test_a_dataset_older_than_what_is_kept_is_lost_and_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.chunks.UNDO_ENTRIES", 2)
    ingest(store, window_of(0, 10 * DAY))
    first = freeze(store, "BTCUSDT")
    correct(store, 5, 6, seed=1)
    second, then = freeze(store, "BTCUSDT"), read_candles(store, window_of(0, 10 * DAY))
    correct(store, 5, 6, seed=2)
    correct(store, 7, 8, seed=3)
    same(load(store, second), {"BTCUSDT": then})
    with pytest.raises(DatasetLost, match=r"\|1h\|2024-01-01 was corrected too often .*last 2 changes .*new dataset"):
        load(store, first)


def test_a_change_that_nobody_noted_is_a_lost_dataset(store: Store) -> None:
    ingest(store, window_of(0, 10 * DAY))
    dataset = freeze(store, "BTCUSDT")
    write_candles(store, window_of(5, 6), candles_of(window_of(5, 6), 1), "live")
    with pytest.raises(
        DatasetLost, match=rf"dataset {dataset.digest[:12]} of BTCUSDT 1h cannot be read back: .* make a new dataset"
    ):
        load(store, dataset)


def test_candles_that_are_gone_or_damaged_are_told_apart(store: Store) -> None:
    ingest(store, window_of(0, 10 * DAY))
    dataset = freeze(store, "BTCUSDT")
    [chunk] = store.documents.find(CHUNKS)
    store.documents.put(CHUNKS, {**chunk, "checksum": "0" * 32})
    with pytest.raises(StoreUnavailable, match=r"BTCUSDT\|1h\|2024-01-01 is damaged"):
        load(store, dataset)
    store.documents.delete(CHUNKS, chunk["_id"])
    with pytest.raises(DatasetLost, match=r"BTCUSDT\|1h\|2024-01-01.* no longer in the store"):
        load(store, dataset)


# --- what may be frozen --------------------------------------------------------------------------


def test_what_is_not_approved_is_refused_with_the_command_that_fills_it(store: Store) -> None:
    ingest(store, window_of(0, 10 * DAY))
    ingest(store, window_of(0, 3 * DAY, "ETHUSDT"))
    ingest(store, window_of(3 * DAY, 4 * DAY, "ETHUSDT"), status=ledger.REFUSED)
    ingest(store, window_of(4 * DAY, 10 * DAY, "ETHUSDT"))
    with pytest.raises(InsufficientHistory) as caught:
        freeze(store, *SYMBOLS)
    assert "ETHUSDT 1h [2024-01-04T00:00Z, 2024-01-05T00:00Z) has not been ingested and approved" in str(caught.value)
    assert "tradeflows ingest ETHUSDT --timeframe 1h --start 2024-01-01T00:00 --end 2024-01-11T00:00" in str(
        caught.value
    )
    assert store.documents.find(DATASETS) == []
    freeze(store, "BTCUSDT")
    freeze(store, *SYMBOLS, last=3 * DAY)


def test_an_approved_window_without_a_candle_is_no_dataset(store: Store) -> None:
    ingest(store, window_of(0, 10))
    ingest(store, window_of(0, 10, "ETHUSDT"), without=tuple(range(10)))
    with pytest.raises(InsufficientHistory, match="holds no candles of ETHUSDT 1h"):
        freeze(store, *SYMBOLS, last=10)


def test_a_symbol_that_was_listed_later_begins_later(store: Store) -> None:
    ingest(store, window_of(0, 10 * DAY))
    ingest(store, window_of(4 * DAY, 10 * DAY, "NEWUSDT"))
    with pytest.raises(InsufficientHistory):
        freeze(store, "BTCUSDT", "NEWUSDT")
    # of what several sources say, the earliest counts
    for day in (7, 4, 5):
        ledger.set_listed(store, "NEWUSDT", H1, window_of(day * DAY, day * DAY + 1).start)
    dataset = freeze(store, "BTCUSDT", "NEWUSDT")
    assert dataset.windows == (window_of(0, 10 * DAY), window_of(4 * DAY, 10 * DAY, "NEWUSDT"))
    assert dataset.rows == {"BTCUSDT": 10 * DAY, "NEWUSDT": 6 * DAY}
    assert find(store, dataset.digest) == dataset
    same(
        load(store, dataset),
        {"BTCUSDT": candles_of(dataset.windows[0]), "NEWUSDT": candles_of(dataset.windows[1])},
    )
    ledger.set_listed(store, "NEWUSDT", H1, window_of(3 * DAY, 3 * DAY + 1).start)
    with pytest.raises(InsufficientHistory, match=r"NEWUSDT 1h \[2024-01-04T00:00Z, 2024-01-05T00:00Z\)"):
        freeze(store, "BTCUSDT", "NEWUSDT")


def test_a_mixture_is_called_by_its_least_real_part(store: Store) -> None:
    for symbol, mode in (("BTCUSDT", "live"), ("ETHUSDT", "sample"), ("BTCSIM", "simulated")):
        ingest(store, window_of(0, 10, symbol), mode=mode)
    assert freeze(store, "BTCUSDT", last=10).data_mode == "live"
    assert freeze(store, "BTCUSDT", "ETHUSDT", last=10).data_mode == "sample"
    assert freeze(store, "BTCUSDT", "BTCSIM", "ETHUSDT", last=10).data_mode == "simulated"
    assert least_real(["live", "live"]) == "live"


# --- one digest, whatever the body, the order and the chunking -----------------------------------


@pytest.mark.integration
def test_a_dataset_has_one_digest_on_both_bodies_and_in_any_order_of_writing(
    tmp_path: Path, mongo_url: str, mongo_database: str
) -> None:
    windows = [window_of(first, first + DAY, symbol) for symbol in SYMBOLS for first in range(-2 * DAY, 4 * DAY, DAY)]
    rng = np.random.default_rng(9)
    orders: dict[str, Any] = {
        f"sqlite:{tmp_path / 'one.db'}": windows,
        f"sqlite:{tmp_path / 'other.db'}": [windows[at] for at in rng.permutation(len(windows))],
        f"sqlite:{tmp_path / 'whole.db'}": [window_of(-2 * DAY, 4 * DAY, symbol) for symbol in SYMBOLS],
        f"mongodb:{mongo_database}|{mongo_url}": [windows[at] for at in rng.permutation(len(windows))],
    }
    made = {}
    for address, order in orders.items():
        with Store(open_documents(address, COLLECTIONS)) as store:
            for window in order:
                for part in split_by_period(window):
                    ingest(store, part)
            dataset = freeze(store, *SYMBOLS, first=-2 * DAY, last=4 * DAY)
            frames = load(store, dataset)
            # one that is corrected and frozen later, too
            correct(store, -5, 5, "ETHUSDT")
            later = freeze(store, *SYMBOLS, first=-2 * DAY, last=4 * DAY)
            same(load(store, find(store, dataset.digest)), frames)
            made[address] = (dataset.digest, later.digest, [digest(frame) for frame in frames.values()])
    assert len({str(one) for one in made.values()}) == 1, made
    assert made[address][0] != made[address][1]
