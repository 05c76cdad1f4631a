"""The ledger: what is approved, what is missing, and that nothing else is read by training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.ledger import (
    APPROVED,
    REFUSED,
    LedgerEntry,
    SeriesSummary,
    approved,
    entries,
    missing,
    overlapping,
    record,
    recorded_between,
    refresh,
    require_approved,
    set_listed,
    since_listed,
    summary,
)
from tasks.store import GAPS, LEDGER, QUARANTINE, Store, open_store, read_candles, write_candles
from trading.candles import digest, frame_of
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


def candles_of(first: int, last: int, close: float = 100.0) -> pd.DataFrame:
    opens = int(START.timestamp() * 1000) + 3_600_000 * np.arange(first, last)
    return frame_of(opens, np.full((last - first, 5), close))


def test_what_was_recorded_comes_back(store: Store) -> None:
    full = entry(window_of(0, 24), quarantined={"null": 2, "duplicate": 1}, gaps=3, rows=21, added=20)
    refused = entry(window_of(24, 48), REFUSED, flow_run_id=None, data_mode="simulated", calendar="XNYS")
    full = replace(full, changed=4, repaired=5, withdrawn=6, findings=("share of bad rows 0.1", "stale: 24"))
    for one in (refused, full):
        record(store, one)
    assert entries(store, "BTCUSDT", "1h") == [full, refused]
    assert entries(store, "BTCUSDT", "4h") == entries(store, "ETHUSDT", "1h") == []


def test_records_of_earlier_versions_lack_fields_and_are_read(store: Store) -> None:
    whole = entry(window_of(0, 24), changed=4, repaired=5, withdrawn=6, findings=("stale: 24",))
    record(store, whole)
    [document] = store.documents.find(LEDGER)
    later = ("changed", "repaired", "withdrawn", "findings")
    store.documents.put(LEDGER, {name: value for name, value in document.items() if name not in later})
    assert entries(store, "BTCUSDT", "1h") == [replace(whole, changed=0, repaired=0, withdrawn=0, findings=())]
    assert [(one.corrected, one.approved_until) for one in summary(store)] == [(0, whole.window.end)]


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


def test_overlapping_are_the_records_that_share_a_bar_with_the_window(store: Store) -> None:
    first, wide, refused, last = (
        entry(window_of(*bars), status)
        for *bars, status in ((0, 24, APPROVED), (10, 60, APPROVED), (24, 48, REFUSED), (48, 72, APPROVED))
    )
    for one in (last, refused, first, wide):
        record(store, one)
    record(store, entry(window_of(0, 96, "ETHUSDT")))
    record(store, entry(window_of(0, 24, timeframe=Timeframe.H4)))
    record(store, entry(window_of(-24, 0)))  # of the chunk before
    assert overlapping(store, window_of(0, 72)) == [first, wide, refused, last]
    assert overlapping(store, window_of(23, 24)) == [first, wide]
    assert overlapping(store, window_of(24, 25)) == [wide, refused]
    assert overlapping(store, window_of(60, 61)) == [last]
    assert overlapping(store, window_of(72, 100)) == []
    assert [one.window.start for one in overlapping(store, window_of(-1, 1))] == [window_of(-24, 0).start, START]
    assert approved(store, window_of(24, 25)) == [wide]
    assert approved(store, window_of(0, 72)) == [first, wide, last]


def test_a_record_that_begins_long_before_the_window_counts(store: Store) -> None:
    # a chunk of 1h is a year
    year = window_of(0, 366 * 24)
    record(store, entry(year))
    last = window_of(366 * 24 - 1, 366 * 24)
    assert [one.window for one in overlapping(store, last)] == [year]
    assert missing(store, last) == []
    require_approved(store, last)
    assert missing(store, window_of(366 * 24 - 1, 366 * 24 + 1)) == [window_of(366 * 24, 366 * 24 + 1)]


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


def test_a_late_change_brings_the_digests_that_it_touches_up_to_date(store: Store) -> None:
    write_candles(store, window_of(0, 72), candles_of(0, 72), "live")
    for first, last in ((0, 24), (10, 30), (24, 48), (48, 72)):
        record(store, entry(window_of(first, last), digest=digest(candles_of(first, last))))
    record(store, entry(window_of(20, 26), REFUSED))
    before = entries(store, "BTCUSDT", "1h")
    refresh(store, window_of(0, 72))
    assert entries(store, "BTCUSDT", "1h") == before
    write_candles(store, window_of(22, 23), candles_of(22, 23, 101.0), "live")
    refresh(store, window_of(22, 23))
    after = entries(store, "BTCUSDT", "1h")
    for old, new in zip(before, after, strict=True):
        touched = old.status == APPROVED and old.window.start <= window_of(22, 23).start < old.window.end
        assert (new.digest != old.digest) == touched
        assert new == replace(old, digest=digest(read_candles(store, old.window)) if touched else old.digest)


def test_records_are_found_by_the_time_of_their_run(store: Store) -> None:
    hour = timedelta(hours=1)
    made = [
        entry(window_of(24, 48), recorded_at=NOW),
        entry(window_of(0, 24, "ETHUSDT"), REFUSED, recorded_at=NOW + hour),
        entry(window_of(0, 24), recorded_at=NOW + 2 * hour),
    ]
    for one in reversed(made):
        record(store, one)
    assert recorded_between(store, NOW, NOW + 3 * hour) == made
    assert recorded_between(store, NOW, NOW + 2 * hour) == made[:2]
    assert recorded_between(store, NOW + hour, NOW + 2 * hour) == made[1:2]
    assert recorded_between(store, NOW + 3 * hour, NOW + 9 * hour) == []
    record(store, replace(made[0], recorded_at=NOW + 5 * hour))
    assert recorded_between(store, NOW, NOW + 3 * hour) == made[1:]


# --- when a symbol was listed --------------------------------------------------------------------


def test_a_window_begins_where_its_symbol_was_listed(store: Store) -> None:
    assert since_listed(store, window_of(0, 24)) == window_of(0, 24)
    set_listed(store, "BTCUSDT", H1, START + 10 * H1.delta)
    assert since_listed(store, window_of(0, 24)) == window_of(10, 24)
    # one that ends before has nothing to begin with, and is not made empty
    for unchanged in (
        window_of(10, 24),
        window_of(12, 24),
        window_of(0, 10),
        window_of(0, 24, "ETHUSDT"),
        window_of(0, 24, timeframe=Timeframe.H4),
    ):
        assert since_listed(store, unchanged) == unchanged


@given(hours=st.lists(st.integers(1, 47), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None)
def test_of_several_sources_the_earliest_counts(tmp_path_factory: pytest.TempPathFactory, hours: list[int]) -> None:
    with open_store(tmp_path_factory.mktemp("home")) as store:
        for half_hours in hours:
            set_listed(store, "BTCUSDT", H1, START + half_hours * timedelta(minutes=30))
        first = min(hours) // 2
        assert since_listed(store, window_of(-1, 48)) == window_of(first, 48)
        # it is no series, and no record
        assert (summary(store), entries(store, "BTCUSDT", "1h")) == ([], [])


# --- the summary ---------------------------------------------------------------------------------


def test_the_summary_is_what_ledger_and_store_say_together(store: Store) -> None:
    assert summary(store) == []
    window = window_of(0, 24)
    write_candles(store, window, candles_of(0, 22), "live")
    record(store, entry(window, rows=22, quarantined={"null": 2, "infinite": 1}, gaps=2, changed=3))
    record(
        store,
        entry(window_of(24, 48), REFUSED, quarantined={"null": 9}, gaps=1, recorded_at=NOW + timedelta(hours=1)),
    )
    record(store, entry(window_of(20, 24), changed=1))
    record(store, entry(window_of(0, 24, "AAPL"), REFUSED, rows=0, data_mode="sample"))
    for number, status in enumerate(("held", "healed", "held", "released")):
        row = {"_id": f"row-{number}", "series": "BTCUSDT|1h", "open_time": START, "first_seen": NOW, "status": status}
        store.documents.put(QUARANTINE, row)
    for number, (status, bars) in enumerate((("confirmed", 2), ("repaired", 50), ("confirmed", 5))):
        gap = {"_id": f"gap-{number}", "series": "BTCUSDT|1h", "start": START, "bars": bars, "status": status}
        store.documents.put(GAPS, gap)
    assert summary(store) == [
        SeriesSummary(
            symbol="AAPL", timeframe="1h", data_mode="sample", first=None, last=None, rows=0, approved_until=None,
            quarantined=0, gaps=0, corrected=0, refused=1, recorded_at=NOW,
        ),
        SeriesSummary(
            symbol="BTCUSDT", timeframe="1h", data_mode="live", first=START, last=START + timedelta(hours=21), rows=22,
            approved_until=window.end, quarantined=2, gaps=7, corrected=4, refused=1,
            recorded_at=NOW + timedelta(hours=1),
        ),
    ]  # fmt: skip


def test_bars_behind_are_whole_bars_that_ended_since_the_newest_approved(store: Store) -> None:
    record(store, entry(window_of(0, 24)))
    record(store, entry(window_of(24, 48), REFUSED))
    record(store, entry(window_of(0, 24, "ETHUSDT"), REFUSED))
    bitcoin, ether = summary(store)
    end = window_of(0, 24).end
    minutes = ((-90, 0), (0, 0), (59, 0), (60, 1), (61, 1), (179, 2))
    assert [bitcoin.bars_behind(end + timedelta(minutes=late)) for late, _ in minutes] == [bars for _, bars in minutes]
    assert ether.bars_behind(NOW) is None


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
