"""The ledger: what is approved, what is missing, and that nothing else is read by training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.ledger import (
    APPROVED,
    REFUSED,
    LedgerEntry,
    SeriesSummary,
    approved_spans,
    entries,
    missing,
    record,
    require_approved,
    summary,
)
from tasks.store import LEDGER, Store, open_store, write_candles
from trading.candles import frame_of
from trading.errors import BadTimeframe, InsufficientHistory, StoreError
from trading.window import Timeframe, Window

START = datetime(2024, 1, 1, tzinfo=UTC)
NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)
H1 = Timeframe.H1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def window_of(first: int, last: int, symbol: str = "BTCUSDT", timeframe: Timeframe = H1) -> Window:
    """Bars ``first`` to ``last`` (without it), counted from ``START``."""
    return Window(symbol, timeframe, START + first * timeframe.delta, START + last * timeframe.delta)


def entry(window: Window, status: str = APPROVED, **others: Any) -> LedgerEntry:
    plain = LedgerEntry(
        window=window,
        status=status,
        rows=window.slots,
        added=window.slots,
        quarantined={},
        gaps=0,
        digest="d" if status == APPROVED else "",
        suite="2",
        flow_run_id="run",
        data_mode="live",
        source="sandbox",
        calendar="24/7",
        recorded_at=NOW,
    )
    return replace(plain, **others)


def spans(*bars: tuple[int, int]) -> list[tuple[datetime, datetime]]:
    return [(START + first * H1.delta, START + last * H1.delta) for first, last in bars]


def test_what_was_recorded_comes_back(store: Store) -> None:
    full = entry(window_of(0, 24), quarantined={"null": 2, "duplicate": 1}, gaps=3, rows=21, added=20)
    refused = entry(window_of(24, 48), REFUSED, flow_run_id=None, data_mode="simulated", calendar="XNYS")
    for one in (refused, full):
        record(store, one)
    assert entries(store, "BTCUSDT", "1h") == [full, refused]
    assert entries(store, "BTCUSDT", "4h") == entries(store, "ETHUSDT", "1h") == []


def test_a_symbol_may_hold_any_character(store: Store) -> None:
    odd = entry(window_of(0, 24, "BRK.B|X Y"))
    record(store, odd)
    assert entries(store, "BRK.B|X Y", "1h") == [odd]
    assert [one.symbol for one in summary(store)] == ["BRK.B|X Y"]


def test_a_window_ingested_again_has_one_record_the_last(store: Store) -> None:
    record(store, entry(window_of(0, 24), rows=20, recorded_at=NOW))
    again = entry(window_of(0, 24), rows=24, added=4, recorded_at=NOW + timedelta(days=1))
    record(store, again)
    assert entries(store, "BTCUSDT", "1h") == [again]
    other = entry(window_of(0, 25))
    record(store, other)
    assert len(entries(store, "BTCUSDT", "1h")) == 2


def test_a_refusal_never_replaces_an_approval(store: Store) -> None:
    approved = entry(window_of(0, 24))
    record(store, approved)
    record(store, entry(window_of(0, 24), REFUSED, recorded_at=NOW + timedelta(days=1)))
    assert entries(store, "BTCUSDT", "1h") == [approved]


def test_an_approval_replaces_a_refusal_and_a_refusal_a_refusal(store: Store) -> None:
    record(store, entry(window_of(0, 24), REFUSED, rows=1))
    record(store, entry(window_of(0, 24), REFUSED, rows=2))
    assert [(one.status, one.rows) for one in entries(store, "BTCUSDT", "1h")] == [(REFUSED, 2)]
    record(store, entry(window_of(0, 24), rows=3))
    assert [(one.status, one.rows) for one in entries(store, "BTCUSDT", "1h")] == [(APPROVED, 3)]


@pytest.mark.parametrize("known", [None, REFUSED])
def test_an_approval_in_the_same_moment_is_not_replaced_either(
    store: Store, monkeypatch: pytest.MonkeyPatch, known: str | None
) -> None:
    if known:
        record(store, entry(window_of(0, 24), known))
    approved = entry(window_of(0, 24), rows=5)
    get, met = store.documents.get, []

    def get_just_before_an_approval(collection: Any, key: str) -> Any:
        found = get(collection, key)
        if not met:
            met.append(key)
            record(store, approved)
        return found

    monkeypatch.setattr(store.documents, "get", get_just_before_an_approval)
    record(store, entry(window_of(0, 24), REFUSED))
    assert met
    assert entries(store, "BTCUSDT", "1h") == [approved]


def test_approved_spans_are_those_of_approved_windows(store: Store) -> None:
    record(store, entry(window_of(48, 72)))
    record(store, entry(window_of(24, 48), REFUSED))
    record(store, entry(window_of(0, 24)))
    record(store, entry(window_of(10, 60)))
    record(store, entry(window_of(72, 96, "ETHUSDT")))
    record(store, entry(window_of(18, 24, timeframe=Timeframe.H4)))
    assert approved_spans(store, "BTCUSDT", "1h") == spans((0, 24), (10, 60), (48, 72))


def test_missing_is_what_no_approval_covers_cut_at_the_borders_of_chunks(store: Store) -> None:
    assert missing(store, window_of(0, 24)) == [window_of(0, 24)]
    record(store, entry(window_of(10, 20)))
    record(store, entry(window_of(12, 14), REFUSED))
    record(store, entry(window_of(40, 50), REFUSED))
    assert missing(store, window_of(0, 60)) == [window_of(0, 10), window_of(20, 60)]
    assert missing(store, window_of(12, 14)) == []
    assert missing(store, window_of(19, 21)) == [window_of(20, 21)]
    # a chunk of 1h is a year
    assert missing(store, window_of(-48, 12)) == [window_of(-48, 0), window_of(0, 10)]


def test_windows_that_touch_or_overlap_cover_together(store: Store) -> None:
    for first, last in ((20, 30), (0, 10), (8, 20)):
        record(store, entry(window_of(first, last)))
    require_approved(store, window_of(0, 30))
    require_approved(store, window_of(5, 25))
    assert missing(store, window_of(0, 30)) == []


def test_what_is_not_approved_is_refused_with_the_command_that_fetches_it(store: Store) -> None:
    record(store, entry(window_of(0, 10)))
    record(store, entry(window_of(10, 12), REFUSED))
    record(store, entry(window_of(12, 20)))
    with pytest.raises(InsufficientHistory) as caught:
        require_approved(store, window_of(0, 24))
    assert str(caught.value) == (
        "BTCUSDT 1h [2024-01-01T10:00Z, 2024-01-01T12:00Z) has not been ingested and approved "
        "(2 such parts in BTCUSDT 1h [2024-01-01T00:00Z, 2024-01-02T00:00Z)); "
        "run: tradeflows ingest BTCUSDT --timeframe 1h --start 2024-01-01T00:00 --end 2024-01-02T00:00"
    )
    require_approved(store, window_of(12, 20))
    for other in (window_of(0, 10, "ETHUSDT"), window_of(0, 2, timeframe=Timeframe.H4)):
        with pytest.raises(InsufficientHistory):
            require_approved(store, other)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 15), st.booleans()), max_size=6),
    first=st.integers(0, 40),
    count=st.integers(1, 20),
)
def test_missing_bars_are_those_that_no_approved_window_has(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[int, int, bool]], first: int, count: int
) -> None:
    covered: set[int] = set()
    with open_store(tmp_path_factory.mktemp("home")) as store:
        for start, length, good in records:
            record(store, entry(window_of(start, start + length), APPROVED if good else REFUSED))
            covered |= set(range(start, start + length)) if good else set()
        wanted = set(range(first, first + count)) - covered
        parts = missing(store, window_of(first, first + count))
        bars = [
            bar for part in parts for bar in range((part.start - START) // H1.delta, (part.end - START) // H1.delta)
        ]
        assert bars == sorted(wanted)
        if wanted:
            with pytest.raises(InsufficientHistory):
                require_approved(store, window_of(first, first + count))
        else:
            require_approved(store, window_of(first, first + count))


def test_the_summary_is_what_ledger_and_store_say_together(store: Store) -> None:
    assert summary(store) == []
    window = window_of(0, 24)
    opens = int(START.timestamp() * 1000) + 3_600_000 * np.arange(22)
    write_candles(store, window, frame_of(opens, np.ones((22, 5))), "live")
    record(store, entry(window, rows=22, quarantined={"null": 2, "infinite": 1}, gaps=2))
    record(
        store,
        entry(window_of(24, 48), REFUSED, quarantined={"null": 9}, gaps=1, recorded_at=NOW + timedelta(hours=1)),
    )
    record(store, entry(window_of(0, 24, "AAPL"), REFUSED, rows=0, data_mode="sample"))
    assert summary(store) == [
        SeriesSummary(
            symbol="AAPL", timeframe="1h", data_mode="sample", first=None, last=None, rows=0,
            quarantined=0, gaps=0, refused=1, recorded_at=NOW,
        ),
        SeriesSummary(
            symbol="BTCUSDT", timeframe="1h", data_mode="live", first=START, last=START + timedelta(hours=21), rows=22,
            quarantined=12, gaps=3, refused=1, recorded_at=NOW + timedelta(hours=1),
        ),
    ]  # fmt: skip


def test_bad_input_is_refused_and_writes_nothing(store: Store) -> None:
    with pytest.raises(BadTimeframe, match="'7m' is not a timeframe"):
        entries(store, "BTCUSDT", "7m")
    for wrong in ({"rows": np.int64(3)}, {"quarantined": {"null": np.int64(3)}}, {"recorded_at": datetime(2024, 6, 1)}):
        with pytest.raises(StoreError):
            record(store, entry(window_of(0, 24), **wrong))
    assert store.documents.find(LEDGER) == []


def test_the_ledger_outlives_the_process(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        record(store, entry(window_of(0, 24)))
    with open_store(tmp_path) as store:
        require_approved(store, window_of(0, 24))
        assert entries(store, "BTCUSDT", "1h") == [entry(window_of(0, 24))]
