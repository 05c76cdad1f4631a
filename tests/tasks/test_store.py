"""The store above the port: chunks, late changes, formats, data modes, analyses, results, and what a bad disk does."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.chunks import Correction, Revision
from tasks.sqlite_documents import SqliteDocuments
from tasks.store import (
    ANALYSES,
    CHUNKS,
    COLLECTIONS,
    FORMAT,
    RESULTS,
    SERIES,
    Store,
    analyses,
    corrections,
    get_result,
    latest_analyses,
    open_store,
    put_analysis,
    put_result,
    read_candles,
    read_candles_at,
    read_with_revisions,
    series,
    write_candles,
)
from tests.tasks import store_worker
from tests.tasks.store_worker import START, SYMBOL, candles_at, minutes
from trading.candles import between, check, digest, empty, frame_of, open_times_ms
from trading.errors import (
    BadWindow,
    CandleContractError,
    DataModeConflict,
    DatasetLost,
    RevisionConflict,
    StoreError,
    StoreUnavailable,
)
from trading.window import Timeframe, Window, split_by_period

CHECKOUT = Path(__file__).resolve().parents[2]
NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
WEEK = 7 * 24 * 60  # bars in a chunk of 1m


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def window_of(first: int, last: int, symbol: str = SYMBOL, timeframe: Timeframe = Timeframe.M1) -> Window:
    """Bars ``first`` to ``last`` (without it), counted from ``START``."""
    return Window(symbol, timeframe, START + first * timeframe.delta, START + last * timeframe.delta)


def candles_of(window: Window, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    step = int(window.timeframe.delta.total_seconds() * 1000)
    opens = int(window.start.timestamp() * 1000) + step * np.arange(window.slots)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.001, window.slots)))
    open_ = np.roll(close, 1)
    high, low = np.maximum(open_, close) * 1.001, np.minimum(open_, close) * 0.999
    return frame_of(opens, np.column_stack([open_, high, low, close, rng.lognormal(size=window.slots)]))


# --- chunks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeframe", "first", "last", "chunks"),
    [
        (Timeframe.M1, -5, 5, 2),
        (Timeframe.M1, 0, WEEK, 1),
        (Timeframe.M1, WEEK - 1, 2 * WEEK + 1, 3),
        (Timeframe.M5, 31 * 288 - 3, 31 * 288 + 3, 2),
        (Timeframe.H1, -24, 366 * 24 + 24, 3),
        (Timeframe.D1, -400, 400, 1),
    ],
)
def test_what_was_written_over_several_periods_is_read_back(
    store: Store, timeframe: Timeframe, first: int, last: int, chunks: int
) -> None:
    window = window_of(first, last, timeframe=timeframe)
    candles = candles_of(window)
    report = write_candles(store, window, candles, "live")
    assert (report.added, report.changed, report.unchanged, report.digest) == (len(candles), 0, 0, digest(candles))
    read = read_candles(store, window)
    pd.testing.assert_frame_equal(read, candles, check_exact=True)
    check(read)
    documents = store.documents.find(CHUNKS)
    assert len(documents) == chunks == len(split_by_period(window))
    assert sum(document["rows"] for document in documents) == len(candles)
    for document in documents:
        of_period = candles[document["start"] : document["end"] - timedelta(milliseconds=1)]
        assert (document["rows"], document["digest"]) == (len(of_period), digest(of_period))
        assert (document["first"], document["last"]) == (of_period.index[0], of_period.index[-1])
        assert document["data_mode"] == "live"


@pytest.mark.parametrize(
    ("first", "last"),
    [(0, 1), (WEEK - 3, WEEK + 3), (WEEK, WEEK + 1), (WEEK - 1, WEEK), (-50, 2 * WEEK), (2 * WEEK - 1, 2 * WEEK + 60)],
)
def test_a_read_is_trimmed_to_its_window(store: Store, first: int, last: int) -> None:
    everything = window_of(-10, WEEK + 10)
    candles = candles_of(everything)
    write_candles(store, everything, candles, "live")
    window = window_of(first, last)
    expected = candles[(candles.index >= window.start) & (candles.index < window.end)]
    pd.testing.assert_frame_equal(read_candles(store, window), expected, check_exact=True)


def test_a_read_of_nothing_is_an_empty_candle_frame(store: Store) -> None:
    write_candles(store, window_of(0, 10), candles_of(window_of(0, 10)), "live")
    for window in (
        window_of(10, 20),
        window_of(5 * WEEK, 6 * WEEK),
        window_of(0, 10, "ETHUSDT"),
        window_of(0, 10, timeframe=Timeframe.M3),
    ):
        pd.testing.assert_frame_equal(read_candles(store, window), empty())


def test_only_candles_of_the_window_are_written_and_counted(store: Store) -> None:
    report = write_candles(store, window_of(5, 8), candles_of(window_of(0, 10)), "live")
    assert (report.added, report.changed, report.unchanged) == (3, 0, 0)
    assert len(read_candles(store, window_of(0, 10))) == 3
    report = write_candles(store, window_of(5, 9), candles_of(window_of(0, 10)), "live")
    assert (report.added, report.changed, report.unchanged) == (1, 0, 3)


def test_the_report_names_the_window_as_stored_not_as_given(store: Store) -> None:
    whole = candles_of(window_of(0, 10))
    write_candles(store, window_of(0, 10), whole, "live")
    report = write_candles(store, window_of(0, 10), whole.iloc[2:4], "live")
    assert (report.added, report.changed, report.unchanged, report.digest) == (0, 0, 2, digest(whole))


def test_writing_no_candles_stores_none(store: Store) -> None:
    report = write_candles(store, window_of(0, 10), empty(), "live")
    assert (report.added, report.changed, report.unchanged, report.digest) == (0, 0, 0, digest(empty()))
    assert store.documents.find(CHUNKS) == []


def test_candles_that_break_the_contract_are_refused_whole(store: Store) -> None:
    candles = candles_of(window_of(0, 10))
    candles.iloc[7, candles.columns.get_loc("high")] = 0.5
    with pytest.raises(CandleContractError):
        write_candles(store, window_of(0, 10), candles, "live")
    assert store.documents.find(CHUNKS) == []
    assert [document["_id"] for document in store.documents.find(SERIES)] == ["format"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    writes=st.lists(
        st.tuples(st.integers(WEEK - 40, WEEK + 40), st.integers(1, 40), st.sampled_from([10.0, 20.0])),
        min_size=1,
        max_size=6,
    ),
    span=st.tuples(st.integers(WEEK - 45, WEEK + 45), st.integers(1, 60)),
)
def test_any_writes_on_both_sides_of_a_border_read_as_a_dict_would(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, int, float]], span: tuple[int, int]
) -> None:
    expected: dict[int, float] = {}
    with open_store(tmp_path_factory.mktemp("home")) as store:
        for first, count, level in writes:
            bars = dict.fromkeys(minutes(first, first + count), level)
            report = write_candles(store, window_of(first, first + count), candles_at(bars, level), "live")
            assert report.added == len(bars.keys() - expected.keys())
            assert report.changed == sum(expected[bar] != level for bar in bars.keys() & expected.keys())
            assert report.added + report.changed + report.unchanged == count
            expected |= bars
        first, count = span
        read = read_candles(store, window_of(first, first + count))
        wanted = {bar: expected[bar] for bar in minutes(first, first + count) if bar in expected}
        assert dict(zip(open_times_ms(read).tolist(), read["close"].tolist(), strict=True)) == wanted
        assert sum(one.rows for one in series(store)) == len(expected)


def test_candles_that_were_not_written_again_are_counted_and_stay(store: Store) -> None:
    whole = candles_of(window_of(WEEK - 10, WEEK + 10))
    write_candles(store, window_of(WEEK - 10, WEEK + 10), whole, "live")
    report = write_candles(store, window_of(WEEK - 5, WEEK + 5), whole.iloc[[5, 6, 14]], "live")
    assert (report.added, report.changed, report.unchanged, report.withdrawn) == (0, 0, 3, 7)
    assert report.digest == digest(whole.iloc[5:15])
    assert write_candles(store, window_of(WEEK + 2, WEEK + 8), empty(), "live").withdrawn == 6
    pd.testing.assert_frame_equal(read_candles(store, window_of(WEEK - 10, WEEK + 10)), whole, check_exact=True)


def test_a_damaged_chunk_is_named_and_the_others_are_read(store: Store) -> None:
    window = window_of(WEEK - 10, WEEK + 10)
    candles = candles_of(window)
    write_candles(store, window, candles.iloc[:-1], "live")
    write_candles(store, window, candles, "live", late(1))
    chunk = store.documents.find(CHUNKS)[1]
    body = bytearray(chunk["candles"])
    body[len(body) // 2] ^= 1
    for spoilt in (
        {**chunk, "candles": bytes(body)},
        {**chunk, "checksum": "0" * 32},
        {name: value for name, value in chunk.items() if name != "candles"},
    ):
        store.documents.put(CHUNKS, spoilt)
        with pytest.raises(StoreUnavailable, match=r"BTCUSDT\|1m\|2024-01-08 is damaged") as caught:
            read_candles(store, window)
        assert not caught.value.transient
        with pytest.raises(StoreUnavailable, match=r"2024-01-08 is damaged"):
            write_candles(store, window, candles, "live")
        with pytest.raises(StoreUnavailable, match=r"2024-01-08 is damaged"):
            corrections(store, SYMBOL, "1m")
        pd.testing.assert_frame_equal(
            read_candles(store, window_of(WEEK - 10, WEEK)), candles.iloc[:10], check_exact=True
        )


def test_a_chunk_that_never_stands_still_is_a_revision_conflict(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.documents, "compare_and_set", lambda *_: False)
    with pytest.raises(RevisionConflict, match="changed by others 50 times") as caught:
        write_candles(store, window_of(0, 10), candles_of(window_of(0, 10)), "live")
    assert caught.value.transient


# --- late changes --------------------------------------------------------------------------------


def late(hour: int) -> Revision:
    return Revision(NOW + timedelta(hours=hour), "sandbox", f"run-{hour}")


def test_a_late_change_is_on_record_with_what_was_there(store: Store) -> None:
    window = window_of(0, 10)
    write_candles(store, window, candles_at(minutes(0, 9), 100.0), "live")
    assert corrections(store, SYMBOL, "1m") == []
    then, revisions = read_with_revisions(store, window)
    report = write_candles(store, window, candles_at(minutes(7, 10), 101.0), "live", late(1))
    assert (report.added, report.changed, report.unchanged, report.withdrawn) == (1, 2, 0, 7)
    before, after = (100.0, 101.0, 99.5, 100.0, 100.0), (101.0, 102.0, 100.5, 101.0, 101.0)
    assert corrections(store, SYMBOL, "1m") == [
        Correction(START + timedelta(minutes=7), before, after, late(1)),
        Correction(START + timedelta(minutes=8), before, after, late(1)),
        Correction(START + timedelta(minutes=9), None, after, late(1)),
    ]
    assert corrections(store, SYMBOL, "1h") == corrections(store, "ETHUSDT", "1m") == []
    pd.testing.assert_frame_equal(read_candles_at(store, window, revisions), then, check_exact=True)


def test_corrections_of_several_chunks_come_by_time_of_the_change(store: Store) -> None:
    write_candles(store, window_of(WEEK - 5, WEEK + 5), candles_at(minutes(WEEK - 5, WEEK + 5), 1.0), "live")
    for hour, bar in ((3, WEEK - 1), (1, WEEK + 1), (2, WEEK - 1)):
        write_candles(store, window_of(bar, bar + 1), candles_at(minutes(bar, bar + 1), 1.0 + hour), "live", late(hour))
    made = [(one.revision, one.open_time) for one in corrections(store, SYMBOL, "1m")]
    opened = [START + timedelta(minutes=WEEK + side) for side in (1, -1, -1)]
    assert made == list(zip(map(late, (1, 2, 3)), opened, strict=True))


def test_a_late_write_that_changes_nothing_leaves_no_trace(store: Store) -> None:
    window = window_of(0, 10)
    write_candles(store, window, candles_at(minutes(0, 10), 100.0), "live")
    before = store.documents.find(CHUNKS)
    write_candles(store, window, candles_at(minutes(2, 8), 100.0), "live", late(1))
    write_candles(store, window, empty(), "live", late(2))
    assert store.documents.find(CHUNKS) == before
    assert corrections(store, SYMBOL, "1m") == []


Write = tuple[int, int, float]
spans_of_bars = st.tuples(st.integers(WEEK - 12, WEEK + 12), st.integers(1, 8), st.sampled_from([10.0, 20.0]))


@settings(max_examples=12, deadline=None)
@given(
    first=st.sets(st.integers(WEEK - 15, WEEK + 19)),
    writes=st.lists(st.tuples(spans_of_bars, st.booleans(), st.booleans()), min_size=1, max_size=8),
    order=st.randoms(use_true_random=False),
)
def test_every_snapshot_is_read_back_exactly_afterwards(
    tmp_path_factory: pytest.TempPathFactory,
    first: set[int],
    writes: list[tuple[Write, bool, bool]],
    order: Any,
) -> None:
    window = window_of(WEEK - 15, WEEK + 20)
    with open_store(tmp_path_factory.mktemp("home")) as store:
        # some bars are missing and may come late; now and then no bar of a chunk, or none at all, is there
        write_candles(store, window, candles_at([minutes(bar, bar + 1)[0] for bar in sorted(first)], 10.0), "live")
        snapshots = []
        for hour, ((start, count, close), snapped, elsewhere) in enumerate(writes):
            if snapped:
                candles, revisions = read_with_revisions(store, window)
                snapshots.append((candles, revisions, len(corrections(store, SYMBOL, "1m"))))
            if elsewhere:  # another window of the same chunk, which nobody can have read
                bars = minutes(WEEK + 100 + 3 * hour, WEEK + 103 + 3 * hour)
                write_candles(store, window_of(WEEK + 100, WEEK + 200), candles_at(bars, 50.0), "live")
            candles = candles_at(minutes(start, start + count), close)
            write_candles(store, window, candles, "live", late(hour))
        made = corrections(store, SYMBOL, "1m")
        order.shuffle(snapshots)
        for candles, revisions, corrected in snapshots:
            pd.testing.assert_frame_equal(read_candles_at(store, window, revisions), candles, check_exact=True)
            part = window_of(WEEK - 3, WEEK + 4)
            pd.testing.assert_frame_equal(
                read_candles_at(store, part, revisions), between(candles, part), check_exact=True
            )
            # the changes on record lead from the snapshot to now
            model = {at.to_pydatetime(): tuple(row) for at, row in zip(candles.index, candles.to_numpy(), strict=True)}
            for one in made[corrected:]:
                assert model.get(one.open_time) == one.old
                model[one.open_time] = one.new
            now = read_candles(store, window)
            assert model == {at.to_pydatetime(): tuple(row) for at, row in zip(now.index, now.to_numpy(), strict=True)}


def test_snapshots_older_than_what_is_kept_are_lost_and_say_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.chunks.UNDO_ENTRIES", 3)
    window = window_of(0, 10)
    write_candles(store, window, candles_at(minutes(0, 8), 100.0), "live")
    snapshots = [read_with_revisions(store, window)]
    for hour in range(6):
        write_candles(store, window, candles_at(minutes(hour, hour + 4), 101.0 + hour), "live", late(hour))
        snapshots.append(read_with_revisions(store, window))
    for candles, revisions in snapshots[-4:]:
        pd.testing.assert_frame_equal(read_candles_at(store, window, revisions), candles, check_exact=True)
    for _, revisions in snapshots[:-4]:
        with pytest.raises(DatasetLost, match=r"BTCUSDT\|1m\|2024-01-01 was corrected too often .* make a new dataset"):
            read_candles_at(store, window, revisions)
    assert {one.revision.at for one in corrections(store, SYMBOL, "1m")} == {late(hour).at for hour in (3, 4, 5)}


def test_a_chunk_that_is_gone_is_a_lost_dataset(store: Store) -> None:
    window = window_of(WEEK - 5, WEEK + 5)
    write_candles(store, window, candles_of(window), "live")
    _, revisions = read_with_revisions(store, window)
    store.documents.delete(CHUNKS, "BTCUSDT|1m|2024-01-08")
    with pytest.raises(DatasetLost, match=r"BTCUSDT\|1m\|2024-01-08.* no longer in the store"):
        read_candles_at(store, window, revisions)


def test_a_chunk_that_came_late_was_not_there_before(store: Store) -> None:
    window = window_of(WEEK - 5, WEEK + 5)
    write_candles(store, window, candles_at(minutes(WEEK - 5, WEEK), 1.0), "live")
    then, revisions = read_with_revisions(store, window)
    write_candles(store, window, candles_at(minutes(WEEK, WEEK + 5), 1.0), "live", late(1))
    assert len(read_candles(store, window)) == 10
    pd.testing.assert_frame_equal(read_candles_at(store, window, revisions), then, check_exact=True)
    pd.testing.assert_frame_equal(read_candles_at(store, window_of(WEEK, WEEK + 5), revisions.fromkeys(())), empty())


# --- formats -------------------------------------------------------------------------------------


def test_a_new_store_is_marked_and_opens_again(tmp_path: Path) -> None:
    for _ in range(2):
        with open_store(tmp_path) as store:
            assert store.documents.find(SERIES) == [{"_id": "format", "version": FORMAT, "rev": 1}]


@pytest.mark.parametrize(("mark", "found"), [(None, 1), (1, 1), (FORMAT + 1, FORMAT + 1)])
def test_a_store_of_another_format_is_refused_and_left_alone(tmp_path: Path, mark: int | None, found: int) -> None:
    with open_store(tmp_path) as store:
        write_candles(store, window_of(0, 10), candles_of(window_of(0, 10)), "live")
        store.documents.delete(SERIES, "format")
        if mark is not None:
            store.documents.put(SERIES, {"_id": "format", "version": mark})
        before = [store.documents.find(collection) for collection in (SERIES, CHUNKS)]
    for _ in range(2):
        with pytest.raises(
            StoreError, match=rf"format {found} and this version reads format {FORMAT}; ingest again .*TRADEFLOWS_HOME"
        ) as caught:
            open_store(tmp_path)
        assert not caught.value.transient
    with SqliteDocuments(tmp_path / "store.db", COLLECTIONS) as documents:
        assert [documents.find(collection) for collection in (SERIES, CHUNKS)] == before


def test_a_store_that_is_refused_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path) as store:
        store.documents.put(SERIES, {"_id": "format", "version": 1})
    closed: list[SqliteDocuments] = []
    close = SqliteDocuments.close

    def close_and_say(documents: SqliteDocuments) -> None:
        closed.append(documents)
        close(documents)

    monkeypatch.setattr(SqliteDocuments, "close", close_and_say)
    with pytest.raises(StoreError, match="format 1"):
        open_store(tmp_path)
    assert len(closed) == 1
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("UPDATE series SET body = x'00ff'")
    connection.close()
    with pytest.raises(StoreUnavailable, match="damaged"):
        open_store(tmp_path)
    assert len(closed) == 2


# --- series and data modes -----------------------------------------------------------------------


def test_series_are_listed_by_symbol_and_timeframe(store: Store) -> None:
    assert series(store) == []
    for symbol, timeframe, first, last in [
        ("ETHUSDT", Timeframe.M1, 0, 10),
        ("BTCUSDT", Timeframe.H1, -24, 24),
        ("BTCUSDT", Timeframe.M1, WEEK - 1, WEEK + 3),
        ("A|B", Timeframe.M1, 0, 2),
    ]:
        window = window_of(first, last, symbol, timeframe)
        write_candles(store, window, candles_of(window), "sample")
    assert [(one.symbol, one.timeframe, one.rows, one.data_mode) for one in series(store)] == [
        ("A|B", "1m", 2, "sample"),
        ("BTCUSDT", "1h", 48, "sample"),
        ("BTCUSDT", "1m", 4, "sample"),
        ("ETHUSDT", "1m", 10, "sample"),
    ]
    hourly, minutely = series(store)[1:3]
    assert (hourly.first, hourly.last) == (START - timedelta(hours=24), START + timedelta(hours=23))
    assert (minutely.first, minutely.last) == (window_of(WEEK - 1, WEEK).start, window_of(WEEK + 2, WEEK + 3).start)


def test_data_modes_are_not_mixed_in_a_series(store: Store) -> None:
    write_candles(store, window_of(0, 10), candles_of(window_of(0, 10)), "live")
    later = window_of(3 * WEEK, 3 * WEEK + 10)
    before = store.documents.find(CHUNKS)
    with pytest.raises(
        DataModeConflict, match=r"BTCUSDT 1m holds live candles and these are simulated.*TRADEFLOWS_HOME"
    ):
        write_candles(store, later, candles_of(later), "simulated")
    assert store.documents.find(CHUNKS) == before
    other = window_of(0, 10, "ETHUSDT")
    write_candles(store, other, candles_of(other), "simulated")
    hourly = window_of(0, 10, timeframe=Timeframe.H1)
    write_candles(store, hourly, candles_of(hourly), "sample")
    assert [one.data_mode for one in series(store)] == ["sample", "live", "simulated"]


def test_of_two_first_writers_with_two_modes_one_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    get = store.documents.get

    def get_just_before_another_claims(collection: Any, key: str) -> Any:
        found = get(collection, key)
        if collection == SERIES and not asked:
            asked.append(key)
            assert store.documents.insert(SERIES, {"_id": key, "data_mode": "sample"})
        return found

    monkeypatch.setattr(store.documents, "get", get_just_before_another_claims)
    with pytest.raises(DataModeConflict):
        write_candles(store, window_of(0, 10), candles_of(window_of(0, 10)), "live")
    assert asked
    assert store.documents.find(CHUNKS) == []


# --- analyses and results ------------------------------------------------------------------------


def analysis(hour: int, signal: str = "Long", *, symbol: str = SYMBOL, timeframe: str = "1h") -> dict[str, Any]:
    return {
        "symbol": symbol,
        "timeframe": timeframe,
        "timestamp": START + timedelta(hours=hour),
        "analysis": {"signal": signal, "confidence": 0.7, "reasoning": ["RSI under 30"], "indicators": {"rsi": 28.5}},
        "created_at": START + timedelta(hours=hour, minutes=1),
    }


def test_an_analysis_has_the_shape_that_its_readers_know(store: Store, tmp_path: Path) -> None:
    put_analysis(store, analysis(1))
    [document] = analyses(store, SYMBOL)
    assert {"symbol", "timestamp", "analysis", "created_at"} <= document.keys()
    assert {name: document[name] for name in analysis(1)} == analysis(1)
    assert ANALYSES.name == "ai_analysis"
    assert [(index.name, index.fields) for index in ANALYSES.indexes] == [
        ("symbol_timestamp_idx", ("symbol", "timestamp"))
    ]
    with sqlite3.connect(tmp_path / "store.db") as connection:
        columns = connection.execute("SELECT name FROM pragma_index_info('symbol_timestamp_idx')").fetchall()
    connection.close()
    assert columns == [("symbol",), ("timestamp",)]


def test_there_is_one_analysis_per_bar_and_the_last_one_stands(store: Store) -> None:
    put_analysis(store, analysis(1, "Long"))
    put_analysis(store, analysis(1, "Long"))
    put_analysis(store, analysis(1, "Short"))
    put_analysis(store, analysis(1, "Neutral", timeframe="4h"))
    found = {document["timeframe"]: document["analysis"]["signal"] for document in analyses(store, SYMBOL)}
    assert (len(analyses(store, SYMBOL)), found) == (2, {"1h": "Short", "4h": "Neutral"})


def test_a_bar_is_the_same_one_in_any_time_zone(store: Store) -> None:
    put_analysis(store, analysis(1, "Long"))
    local = analysis(1, "Short")
    local["timestamp"] = local["timestamp"].astimezone(timezone(timedelta(hours=5, minutes=30)))
    put_analysis(store, local)
    [document] = analyses(store, SYMBOL)
    assert (document["analysis"]["signal"], document["timestamp"]) == ("Short", START + timedelta(hours=1))
    with pytest.raises(BadWindow, match="no time zone"):
        put_analysis(store, {**analysis(2), "timestamp": datetime(2024, 1, 1, 2)})


def test_analyses_of_a_symbol_come_oldest_first_from_a_time_on(store: Store) -> None:
    for hour in (3, 1, 2):
        put_analysis(store, analysis(hour))
    put_analysis(store, analysis(2, symbol="ETHUSDT"))

    def hours(found: list[dict[str, Any]]) -> list[int]:
        return [document["timestamp"].hour for document in found]

    assert hours(analyses(store, SYMBOL)) == [1, 2, 3]
    assert hours(analyses(store, SYMBOL, START + timedelta(hours=2))) == [2, 3]
    assert hours(analyses(store, SYMBOL, START + timedelta(hours=9))) == []
    assert analyses(store, "XRPUSDT") == []


def test_the_latest_analysis_of_each_stored_series(store: Store) -> None:
    for symbol, timeframe in ((SYMBOL, Timeframe.H1), (SYMBOL, Timeframe.H4), ("ETHUSDT", Timeframe.H1)):
        window = window_of(0, 5, symbol, timeframe)
        write_candles(store, window, candles_of(window), "live")
    for hour in (1, 3, 2):
        put_analysis(store, analysis(hour))
    put_analysis(store, analysis(4, "Short", timeframe="4h"))
    put_analysis(store, analysis(5, symbol="NOSERIES"))
    found = [
        (document["symbol"], document["timeframe"], document["timestamp"].hour) for document in latest_analyses(store)
    ]
    assert found == [(SYMBOL, "1h", 3), (SYMBOL, "4h", 4)]


def test_results_are_kept_under_the_digest_of_the_request(store: Store) -> None:
    assert get_result(store, "digest") is None
    put_result(store, "digest", "backtest", {"sharpe": 1.5, "ratio": None, "equity": [1.0, 1.1]}, NOW)
    put_result(store, "digest", "backtest", {"sharpe": 1.5, "ratio": None, "equity": [1.0, 1.1]}, NOW)
    put_result(store, "other", "training", {"folds": 5}, NOW)
    assert get_result(store, "digest") == {"sharpe": 1.5, "ratio": None, "equity": [1.0, 1.1]}
    [document] = store.documents.find(RESULTS, {"kind": "backtest"})
    assert (document["_id"], document["created_at"]) == ("digest", NOW)
    with pytest.raises(StoreError, match="NaN"):
        put_result(store, "digest", "backtest", {"sharpe": float("nan")}, NOW)


# --- a bad disk ----------------------------------------------------------------------------------


def test_a_home_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for home in (tmp_path / "file", tmp_path / "file" / "home"):
        with pytest.raises(StoreUnavailable, match=r"cannot be used .*; set TRADEFLOWS_HOME to a folder") as caught:
            open_store(home)
        assert not caught.value.transient
        assert str(home) in str(caught.value)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_folder_in_the_place_of_the_database(tmp_path: Path) -> None:
    (tmp_path / "store.db").mkdir()
    with pytest.raises(StoreUnavailable, match=r"store\.db cannot be used .*; set TRADEFLOWS_HOME") as caught:
        open_store(tmp_path)
    assert not caught.value.transient


def test_a_file_that_is_not_a_database_is_left_as_it_is(tmp_path: Path) -> None:
    junk = np.random.default_rng(4).bytes(20_000)
    (tmp_path / "store.db").write_bytes(junk)
    with pytest.raises(StoreUnavailable, match=r"store\.db is damaged .*; restore it from a backup") as caught:
        open_store(tmp_path)
    assert not caught.value.transient
    assert (tmp_path / "store.db").read_bytes() == junk


def test_damaged_bytes_never_read_as_other_candles(tmp_path: Path) -> None:
    window = window_of(0, 5000)
    candles = candles_of(window)
    with open_store(tmp_path) as store:
        write_candles(store, window, candles, "live")
    path = tmp_path / "store.db"
    intact = path.read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(60):
        damaged = bytearray(intact)
        damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            with open_store(tmp_path) as store:
                read = read_candles(store, window)
        except StoreError as error:
            assert not error.transient
            refused += 1
        else:
            assert read.empty or digest(read) == digest(candles)
    # most of the file is the candles themselves
    assert refused > 20


def test_a_store_cut_short_is_refused(tmp_path: Path) -> None:
    window = window_of(0, 2000)
    with open_store(tmp_path) as store:
        write_candles(store, window, candles_of(window), "live")
    path = tmp_path / "store.db"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(StoreUnavailable, match="damaged"), open_store(tmp_path) as store:
        read_candles(store, window)


def test_a_body_that_is_not_bson_is_damage(tmp_path: Path, store: Store) -> None:
    put_result(store, "digest", "backtest", {"a": 1}, NOW)
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("UPDATE results SET body = x'00ff'")
    connection.close()
    with pytest.raises(StoreUnavailable, match="damaged"):
        get_result(store, "digest")
    with pytest.raises(StoreUnavailable, match="damaged"):
        store.documents.find(RESULTS)


def test_a_damaged_table_of_contents_is_damage(tmp_path: Path) -> None:
    open_store(tmp_path).documents.close()
    path = tmp_path / "store.db"
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE ledger", b"CREATE TABL\xff ledger"))
    with pytest.raises(StoreUnavailable, match="damaged"):
        open_store(tmp_path)


def test_a_busy_store_is_worth_another_try(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.sqlite_documents.BUSY_SECONDS", 0.05)
    connection = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    # exclusive: readers do not wait for a writer
    connection.execute("BEGIN EXCLUSIVE")
    with open_store(tmp_path) as impatient:
        with pytest.raises(StoreUnavailable, match="try again") as caught:
            put_result(impatient, "digest", "backtest", {}, NOW)
        assert caught.value.transient
        assert get_result(impatient, "digest") is None
        connection.execute("ROLLBACK")
        put_result(impatient, "digest", "backtest", {}, NOW)
        assert get_result(impatient, "digest") == {}
    connection.close()


def test_a_commit_waits_for_the_disk(store: Store) -> None:
    # what only pulling the plug would show
    assert isinstance(store.documents, SqliteDocuments)
    assert store.documents._connection().execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_full_disk_is_an_error_and_the_store_works_on_when_there_is_space(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, store_worker.__file__, "full_disk", f"sqlite:{tmp_path / 'store.db'}"],
        input="go\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    refusal, large, kept = map(json.loads, done.stdout.splitlines()[1:])
    assert not refusal["transient"]
    assert "that has space" in refusal["message"]
    assert large is None
    assert kept == ["after", "before"]
