"""Quarantine: whatever a source sends can be put aside, once, is counted, and may be released."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks import gaps, ledger
from tasks.chunks import Revision
from tasks.quarantine import HEALED, HELD, RELEASED, counts, find, heal, put, release, seen_between, show
from tasks.store import (
    QUARANTINE,
    Store,
    corrections,
    open_store,
    read_candles,
    read_candles_at,
    read_with_revisions,
    write_candles,
)
from trading.candles import digest, frame_of
from trading.errors import InvalidRequest
from trading.gaps import Gap
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
        "status": "held",
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


def test_rows_are_found_by_the_time_they_were_first_seen(store: Store) -> None:
    day = timedelta(days=1)
    put_aside(store, (OPEN + HOUR, GOOD, ["null"]), now=NOW + day)
    put_aside(store, (OPEN, GOOD, ["null"]), now=NOW)
    put_aside(
        store, (OPEN, GOOD, ["null"]), window=Window("ETHUSDT", Timeframe.H1, START, WINDOW.end), now=NOW + 2 * day
    )
    put_aside(store, (OPEN, GOOD, ["null"]), now=NOW + 5 * day)  # was there already

    def seen(start: datetime, end: datetime) -> list[tuple[str, datetime]]:
        return [(row["series"], row["first_seen"]) for row in seen_between(store, start, end)]

    bitcoin, ether = "BTCUSDT|1h", "ETHUSDT|1h"
    assert seen(NOW, NOW + 9 * day) == [(bitcoin, NOW), (bitcoin, NOW + day), (ether, NOW + 2 * day)]
    assert seen(NOW + day, NOW + 2 * day) == [(bitcoin, NOW + day)]
    assert seen(NOW + 3 * day, NOW + 9 * day) == []


# --- healed --------------------------------------------------------------------------------------


def test_a_row_is_healed_once_a_good_candle_of_its_bar_is_there(store: Store) -> None:
    put_aside(store, *[(OPEN + hour * HOUR, GOOD, ["null"]) for hour in (1, 2, 3, 12)])
    put_aside(store, (OPEN + 2 * HOUR, GOOD, ["infinite"]), (OPEN + 2 * HOUR + 1, GOOD, ["misaligned"]))
    good = frame_of([OPEN + hour * HOUR for hour in (0, 2, 12)], [GOOD] * 3)
    assert heal(store, WINDOW, good) == 2  # the last bar is of another window, and one row of no bar
    assert heal(store, WINDOW, good) == 0
    statuses = {(row["open_time"] - START, row["status"]) for row in find(store, "BTCUSDT", "1h")}
    hour = timedelta(hours=1)
    assert statuses == {
        (hour, HELD),
        (2 * hour, HEALED),
        (2 * hour + timedelta(milliseconds=1), HELD),
        (3 * hour, HELD),
        (12 * hour, HELD),
    }
    assert len(find(store, "BTCUSDT", "1h", HEALED)) == 2
    assert len(find(store, "BTCUSDT", "1h", HELD)) == 4
    assert find(store, "BTCUSDT", "1h", RELEASED) == []
    assert counts(store, status=HEALED) == {"BTCUSDT|1h": {"null": 1, "infinite": 1}}
    assert counts(store, "ETHUSDT", status=HEALED) == {}
    # one that comes again is not held again
    assert put_aside(store, (OPEN + 2 * HOUR, GOOD, ["null"])) == 0
    assert len(find(store, "BTCUSDT", "1h", HEALED)) == 2


# --- released ------------------------------------------------------------------------------------


def window_of(first: int, last: int) -> Window:
    return WINDOW.within(START + timedelta(hours=first), START + timedelta(hours=last))


def approve(store: Store, window: Window, *, calendar: str = "24/7", missing: int = 0) -> None:
    candles = read_candles(store, window)
    ledger.record(
        store,
        ledger.LedgerEntry(
            window=window,
            status=ledger.APPROVED,
            rows=len(candles),
            added=len(candles),
            quarantined={},
            gaps=missing,
            digest=digest(candles),
            suite="2",
            flow_run_id="run",
            data_mode="simulated",
            source="sandbox",
            calendar=calendar,
            recorded_at=NOW,
        ),
    )


@pytest.fixture
def gappy(store: Store) -> Store:
    """Bars 0 to 9 approved, without 3, 4 and 5, a confirmed gap."""
    hours = [0, 1, 2, 6, 7, 8, 9]
    write_candles(store, WINDOW, frame_of([OPEN + hour * HOUR for hour in hours], [GOOD] * 7), "simulated")
    approve(store, WINDOW, missing=3)
    gap = Gap(window_of(3, 4).start, window_of(5, 6).end, 3)
    gaps.record(store, WINDOW, [gap], source="sandbox", now=NOW, flow_run_id="run")
    return store


def confirmed(store: Store) -> list[tuple[int, int, int]]:
    step = timedelta(hours=1)
    found = [known.gap for known in gaps.find(store, "BTCUSDT", "1h")]
    return [((gap.start - START) // step, (gap.end - START) // step, gap.bars) for gap in found]


def held_id(store: Store, hour: int) -> str:
    [row] = [row for row in find(store, "BTCUSDT", "1h") if row["open_time"] == START + timedelta(hours=hour)]
    return str(row["_id"])


LATER = NOW + timedelta(days=2)


@pytest.mark.parametrize(
    ("hour", "left"), [(3, [(4, 6, 2)]), (4, [(3, 4, 1), (5, 6, 1)]), (5, [(3, 5, 2)])], ids=["first", "middle", "last"]
)
def test_a_released_row_is_a_candle_and_everything_knows_it(
    gappy: Store, hour: int, left: list[tuple[int, int, int]]
) -> None:
    put_aside(gappy, (OPEN + hour * HOUR, (100.0, 250.0, 99.0, 240.0, 7.0), ["conflicting"]))
    before, revisions = read_with_revisions(gappy, WINDOW)
    released = release(gappy, held_id(gappy, hour), note="the exchange confirmed it", now=LATER)
    assert (released["status"], released["note"], released["released_at"]) == (
        RELEASED,
        "the exchange confirmed it",
        LATER,
    )
    [row] = find(gappy, "BTCUSDT", "1h", RELEASED)
    assert {name: row[name] for name in row if name != "rev"} == {
        name: released[name] for name in released if name != "rev"
    }
    stored = read_candles(gappy, WINDOW)
    assert stored.loc[START + timedelta(hours=hour)].tolist() == [100.0, 250.0, 99.0, 240.0, 7.0]
    [entry] = ledger.entries(gappy, "BTCUSDT", "1h")
    assert (entry.rows, entry.gaps, entry.digest) == (8, 2, digest(stored))
    assert confirmed(gappy) == left
    assert {known.asked for known in gaps.find(gappy, "BTCUSDT", "1h")} == {1}  # nobody asked for the rest again
    [summary] = ledger.summary(gappy)
    assert (summary.quarantined, summary.gaps, summary.rows) == (0, 2, 8)
    [made] = corrections(gappy, "BTCUSDT", "1h")
    assert (made.old, made.new[3]) == (None, 240.0)
    assert made.revision == Revision(LATER, "released: the exchange confirmed it")
    pd.testing.assert_frame_equal(read_candles_at(gappy, WINDOW, revisions), before, check_exact=True)


def test_a_released_row_may_replace_a_candle(gappy: Store) -> None:
    put_aside(gappy, (OPEN + 7 * HOUR, (100.0, 250.0, 99.0, 240.0, 7.0), ["disagrees"]))
    before, revisions = read_with_revisions(gappy, WINDOW)
    # by a word of its own only: what is stored may be the correction of what was put aside
    refused(gappy, held_id(gappy, 7), "holds another candle of .*close 100.5, volume 7.*--replace")
    release(gappy, held_id(gappy, 7), note="it is right", now=LATER, replace=True)
    [entry] = ledger.entries(gappy, "BTCUSDT", "1h")
    assert (entry.rows, entry.gaps, entry.digest) == (7, 3, digest(read_candles(gappy, WINDOW)))
    assert confirmed(gappy) == [(3, 6, 3)]
    [made] = corrections(gappy, "BTCUSDT", "1h")
    assert (made.old, made.new) == (GOOD, (100.0, 250.0, 99.0, 240.0, 7.0))
    pd.testing.assert_frame_equal(read_candles_at(gappy, WINDOW, revisions), before, check_exact=True)


def test_a_row_that_says_what_is_stored_replaces_nothing(gappy: Store) -> None:
    put_aside(gappy, (OPEN + 7 * HOUR, GOOD, ["duplicate"]))
    assert release(gappy, held_id(gappy, 7), note="it is right", now=LATER)["status"] == RELEASED
    assert corrections(gappy, "BTCUSDT", "1h") == []


def test_every_approved_window_of_the_bar_is_brought_up_to_date(gappy: Store) -> None:
    for window in (window_of(2, 5), window_of(7, 10)):
        approve(gappy, window)
    untouched = ledger.approved(gappy, window_of(9, 10))[-1]
    put_aside(gappy, (OPEN + 4 * HOUR, GOOD, ["conflicting"]))
    release(gappy, held_id(gappy, 4), note="it is right", now=LATER)
    for entry in ledger.entries(gappy, "BTCUSDT", "1h"):
        assert entry.digest == digest(read_candles(gappy, entry.window))
        assert entry.rows == len(read_candles(gappy, entry.window))
    assert ledger.approved(gappy, window_of(9, 10))[-1] == untouched


def test_days_without_a_session_are_no_part_of_a_split_gap(store: Store) -> None:
    thursday, friday, monday, tuesday = (datetime(2024, 1, day, tzinfo=UTC) for day in (11, 12, 16, 17))
    week = Window("AAPL", Timeframe.D1, datetime(2024, 1, 8, tzinfo=UTC), datetime(2024, 1, 20, tzinfo=UTC))
    write_candles(store, week, frame_of([int(week.start.timestamp() * 1000)], [GOOD]), "simulated")
    approve(store, week, calendar="XNYS")
    gap = Gap(thursday, tuesday, 3)  # with a holiday behind the week-end
    gaps.record(store, week, [gap], source="files", now=NOW, flow_run_id=None, calendar="XNYS")
    put_aside(store, (int(friday.timestamp() * 1000), GOOD, ["conflicting"]), window=week)
    [row] = find(store, "AAPL", "1d")
    release(store, row["_id"], note="it is right", now=LATER)
    assert [known.gap for known in gaps.find(store, "AAPL", "1d")] == [
        Gap(thursday, friday, 1),
        Gap(monday, tuesday, 1),
    ]


@pytest.mark.parametrize(
    "values",
    [
        (math.nan, *GOOD[1:]),
        (*GOOD[:4], math.inf),
        (100.0, 98.0, 99.0, 100.0, 7.0),
        (-1.0, *GOOD[1:]),
        (*GOOD[:4], -7.0),
    ],
)
def test_an_impossible_row_is_never_released(gappy: Store, values: tuple[float, ...]) -> None:
    put_aside(gappy, (OPEN + 4 * HOUR, values, ["whatever"]))
    refused(gappy, held_id(gappy, 4), "cannot be a candle")


@pytest.mark.parametrize("open_time", [OPEN + 4 * HOUR + 1, 2**63 - 1, -(2**63), OPEN * 1000])
@pytest.mark.parametrize("timeframe", ["1m", "1h", "2h", "1d"])
def test_a_row_of_no_bar_is_never_released(gappy: Store, open_time: int, timeframe: str) -> None:
    window = Window("BTCUSDT", Timeframe(timeframe), START, START + timedelta(days=1))
    put_aside(gappy, (open_time, GOOD, ["outside_window"]), window=window)
    [row] = find(gappy, "BTCUSDT", timeframe)
    refused(gappy, row["_id"], "cannot be a candle|has not been approved")


def test_a_row_of_a_window_that_is_not_approved_is_not_released(gappy: Store) -> None:
    put_aside(gappy, (OPEN + 10 * HOUR, GOOD, ["conflicting"]))
    refused(gappy, held_id(gappy, 10), "has not been approved; ingest it first")


def test_only_held_rows_are_released(gappy: Store) -> None:
    put_aside(gappy, (OPEN + 3 * HOUR, GOOD, ["conflicting"]), (OPEN + 7 * HOUR, GOOD, ["duplicate"]))
    heal(gappy, WINDOW, read_candles(gappy, WINDOW))
    refused(gappy, held_id(gappy, 7), "is healed already; only held rows can be released")
    release(gappy, held_id(gappy, 3), note="it is right", now=LATER)
    refused(gappy, held_id(gappy, 3), "is released already; only held rows can be released")


def refused(store: Store, name: str, said: str) -> None:
    """Releasing it is refused, and nothing has changed."""

    def everything() -> list[object]:
        rows = store.documents.find(QUARANTINE)
        held = [digest(read_candles(store, WINDOW)), corrections(store, "BTCUSDT", "1h"), confirmed(store)]
        return [rows, ledger.entries(store, "BTCUSDT", "1h"), *held]

    before = everything()
    with pytest.raises(InvalidRequest, match=said):
        release(store, name, note="it is right", now=LATER)
    assert everything() == before


def test_a_row_is_shown_by_as_much_of_its_id_as_only_it_has(gappy: Store) -> None:
    put_aside(gappy, *[(OPEN + HOUR, GOOD, ["duplicate"])] * 17)
    every = find(gappy, "BTCUSDT", "1h")
    ids = [row["_id"] for row in every]
    # of 17 ids in hexadecimal digits, two begin alike
    [(shared, _)] = Counter(name[0] for name in ids).most_common(1)
    for row in every:
        least = next(
            row["_id"][:size] for size in range(1, 17) if sum(name.startswith(row["_id"][:size]) for name in ids) == 1
        )
        assert show(gappy, row["_id"]) == show(gappy, least) == row
    for ambiguous in (shared, ""):
        alike = sum(name.startswith(ambiguous) for name in ids)
        with pytest.raises(InvalidRequest, match=rf"begins the ids of {alike} rows .*give more of it"):
            show(gappy, ambiguous)
        refused(gappy, ambiguous, f"begins the ids of {alike} rows")
    for unknown in ("ETHUSDT", ids[0] + "0", "%", "_", "*"):
        with pytest.raises(InvalidRequest, match=r"no row in quarantine .*tradeflows quarantine list"):
            show(gappy, unknown)
        refused(gappy, unknown, "no row in quarantine")


def test_a_row_has_a_short_id_that_can_be_typed(store: Store) -> None:
    put_aside(store, (OPEN, GOOD, ["null"]), (OPEN, GOOD, ["null"]))
    for row in find(store, "BTCUSDT", "1h"):
        assert re.fullmatch("[0-9a-f]{16}", row["_id"])


def test_equal_rows_of_two_series_are_two(store: Store) -> None:
    for symbol in ("BTCUSDT", "ETHUSDT"):
        for timeframe in (Timeframe.H1, Timeframe.H4):
            window = Window(symbol, timeframe, START, START + timedelta(hours=4))
            assert put_aside(store, (OPEN, GOOD, ["null"]), window=window) == 1


def test_the_command_asks_for_a_note() -> None:
    from typer.testing import CliRunner

    from deployments.command import app

    done = CliRunner().invoke(app, ["quarantine", "release", "BTCUSDT|1h"], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "--note" in done.output
