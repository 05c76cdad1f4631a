"""Quarantine: whatever a source sends can be put aside, once, and is counted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.quarantine import counts, find, put
from tasks.store import QUARANTINE, Store, open_store
from trading.masks import Reason, screen
from trading.window import Timeframe, Window

START = datetime(2024, 1, 1, tzinfo=UTC)
NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)
WINDOW = Window("BTCUSDT", Timeframe.H1, START, START + timedelta(hours=10))
OPEN = int(START.timestamp() * 1000)
HOUR = 3_600_000
GOOD = (100.0, 101.0, 99.0, 100.5, 7.0)

Row = tuple[int, tuple[float, ...], list[str]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def rows_of(*rows: Row) -> pd.DataFrame:
    frame = pd.DataFrame(
        [values for _, values, _ in rows], columns=["open", "high", "low", "close", "volume"], dtype="float64"
    )
    frame.insert(0, "open_time", np.array([time for time, _, _ in rows], dtype="int64"))
    frame["reasons"] = pd.Series([reasons for _, _, reasons in rows], dtype=object)
    return frame


def put_aside(store: Store, *rows: Row, window: Window = WINDOW, now: datetime = NOW) -> int:
    return put(store, window, rows_of(*rows), source="sandbox", now=now, data_mode="simulated")


def test_a_row_is_kept_with_its_reasons_and_whence_it_came(store: Store) -> None:
    assert put_aside(store, (OPEN + HOUR, (100.0, 98.0, 99.0, -1.0, 7.5), ["inconsistent", "non_positive"])) == 1
    [row] = find(store, "BTCUSDT", "1h")
    del row["_id"], row["rev"]
    assert row == {
        "series": "BTCUSDT|1h",
        "open_time": START + timedelta(hours=1),
        "open": 100.0,
        "high": 98.0,
        "low": 99.0,
        "close": -1.0,
        "volume": 7.5,
        "reasons": ["inconsistent", "non_positive"],
        "window": str(WINDOW),
        "source": "sandbox",
        "data_mode": "simulated",
        "first_seen": NOW,
    }


def test_nan_and_infinities_are_kept_as_text(store: Store) -> None:
    values = (math.nan, math.inf, -math.inf, 1e308, -0.0)
    assert put_aside(store, (OPEN, values, ["null", "infinite"])) == 1
    [row] = find(store, "BTCUSDT", "1h")
    assert (row["open"], row["high"], row["low"], row["close"], row["volume"]) == ("nan", "inf", "-inf", 1e308, 0.0)
    assert math.isnan(float(row["open"]))
    assert float(row["low"]) == -math.inf
    assert put_aside(store, (OPEN, values, ["null", "infinite"])) == 0


def test_rows_put_aside_again_are_not_new_and_keep_the_time_they_were_first_seen(store: Store) -> None:
    rows: list[Row] = [(OPEN, GOOD, ["misaligned"]), (OPEN + HOUR, GOOD, ["misaligned"])]
    assert put_aside(store, *rows) == 2
    before = store.documents.find(QUARANTINE)
    wider = WINDOW.within(WINDOW.start, WINDOW.end + timedelta(hours=1))
    assert put_aside(store, *reversed(rows), window=wider, now=NOW + timedelta(days=1)) == 0
    assert store.documents.find(QUARANTINE) == before
    assert put_aside(store, *rows, (OPEN + 2 * HOUR, GOOD, ["misaligned"])) == 1
    assert {row["first_seen"] for row in before} == {NOW}


def test_copies_are_rows_of_their_own(store: Store) -> None:
    copy: Row = (OPEN, GOOD, ["duplicate"])
    assert put_aside(store, copy, copy) == 2
    assert put_aside(store, copy, copy) == 0
    assert put_aside(store, copy, copy, copy) == 1
    assert counts(store) == {"BTCUSDT|1h": {"duplicate": 3}}


@pytest.mark.parametrize(
    "other",
    [
        (OPEN + 1, GOOD, ["conflicting"]),
        (OPEN, (*GOOD[:4], 7.000000000000001), ["conflicting"]),
        (OPEN, (*GOOD[:4], math.nan), ["conflicting"]),
        (OPEN, GOOD, ["conflicting", "misaligned"]),
    ],
)
def test_rows_that_differ_in_anything_are_two(store: Store, other: Row) -> None:
    assert put_aside(store, (OPEN, GOOD, ["conflicting"]), other) == 2
    assert len(find(store, "BTCUSDT", "1h")) == 2


def test_a_row_with_another_reason_than_before_is_new(store: Store) -> None:
    assert put_aside(store, (OPEN, GOOD, ["misaligned"])) == 1
    assert put_aside(store, (OPEN, GOOD, ["off_session"])) == 1
    assert counts(store) == {"BTCUSDT|1h": {"misaligned": 1, "off_session": 1}}


def test_no_rows_are_none(store: Store) -> None:
    assert put_aside(store) == 0
    assert (find(store, "BTCUSDT", "1h"), counts(store), counts(store, "BTCUSDT")) == ([], {}, {})


@pytest.mark.parametrize(
    ("open_time", "stored"),
    [
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (-1, datetime(1969, 12, 31, 23, 59, 59, 999_000, UTC)),
        (OPEN + 123, START + timedelta(milliseconds=123)),
        (OPEN // 1000, datetime(1970, 1, 20, 17, 21, 7, 200_000, UTC)),  # seconds
        (OPEN * 1000, datetime(9999, 12, 31, 23, 59, 59, 999_000, UTC)),  # microseconds: after the last time there is
        (2**63 - 1, datetime(9999, 12, 31, 23, 59, 59, 999_000, UTC)),
        (-(2**63), datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_any_open_time_can_be_put_aside(store: Store, open_time: int, stored: datetime) -> None:
    assert put_aside(store, (open_time, GOOD, ["outside_window"])) == 1
    assert put_aside(store, (open_time, GOOD, ["outside_window"])) == 0
    [row] = find(store, "BTCUSDT", "1h")
    assert row["open_time"] == stored
    assert f"|{open_time}|" in row["_id"]


def test_times_out_of_range_stay_apart(store: Store) -> None:
    assert put_aside(store, (2**62, GOOD, ["outside_window"]), (2**62 + 1, GOOD, ["outside_window"])) == 2


def test_rows_of_a_series_come_by_open_time(store: Store) -> None:
    put_aside(store, *[(OPEN + hour * HOUR, GOOD, ["off_session"]) for hour in (10, 2, 7)])
    for other in (
        Window("ETHUSDT", Timeframe.H1, WINDOW.start, WINDOW.end),
        Window("BTCUSDT", Timeframe.M30, WINDOW.start, WINDOW.end),
    ):
        put_aside(store, (OPEN, GOOD, ["off_session"]), window=other)
    assert [row["open_time"].hour for row in find(store, "BTCUSDT", "1h")] == [2, 7, 10]


def test_counts_are_per_series_and_reason(store: Store) -> None:
    put_aside(store, (OPEN, GOOD, ["null", "infinite"]), (OPEN + HOUR, GOOD, ["null"]))
    put_aside(store, (OPEN, GOOD, ["null"]), window=Window("BTCUSDT", Timeframe.H4, START, START + timedelta(hours=4)))
    put_aside(store, (OPEN, GOOD, ["duplicate"]), window=Window("BTC", Timeframe.H1, START, WINDOW.end))
    bitcoin = {"BTCUSDT|1h": {"null": 2, "infinite": 1}, "BTCUSDT|4h": {"null": 1}}
    assert counts(store) == {**bitcoin, "BTC|1h": {"duplicate": 1}}
    assert counts(store, "BTCUSDT") == bitcoin
    assert counts(store, "BTC") == {"BTC|1h": {"duplicate": 1}}
    assert counts(store, "ETHUSDT") == {}


def test_whatever_the_screen_puts_aside_can_be_kept(store: Store) -> None:
    bad = [math.nan, math.inf, -1.0, 0.0]
    rows = [(OPEN + hour * HOUR, (value, *GOOD[1:])) for hour, value in enumerate(bad)]
    rows += [(OPEN + 5 * HOUR, GOOD)] * 3  # copies
    rows += [(OPEN + 6 * HOUR, GOOD), (OPEN + 6 * HOUR, (*GOOD[:4], 8.0))]  # conflicting
    rows += [(OPEN + 7 * HOUR + 5, GOOD), (OPEN + 99 * HOUR, GOOD), (OPEN * 1000, GOOD)]
    raw = rows_of(*[(time, values, []) for time, values in rows]).drop(columns="reasons")
    screening = screen(raw, WINDOW, "24/7")
    assert len(screening.bad) == len(rows) - 1
    assert put(store, WINDOW, screening.bad, source="sandbox", now=NOW, data_mode="sample") == len(screening.bad)
    assert put(store, WINDOW, screening.bad, source="sandbox", now=NOW, data_mode="sample") == 0
    assert counts(store) == {"BTCUSDT|1h": screening.quarantined}
    assert counts(store)["BTCUSDT|1h"][Reason.DUPLICATE] == 2
