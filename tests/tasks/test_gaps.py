"""Confirmed gaps: asked for again, filled wholly or in part, and each missing bar on record once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.gaps import CONFIRMED, REPAIRED, ConfirmedGap, find, record, within
from tasks.store import GAPS, Store, open_store
from trading.gaps import Gap
from trading.window import Timeframe, Window

START = datetime(2024, 1, 1, tzinfo=UTC)
NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)
H1 = Timeframe.H1
HOUR = timedelta(hours=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def window_of(first: int, last: int, symbol: str = "BTCUSDT") -> Window:
    return Window(symbol, H1, START + first * HOUR, START + last * HOUR)


def gap(first: int, last: int) -> Gap:
    return Gap(START + first * HOUR, START + last * HOUR, last - first)


def note(store: Store, window: Window, *found: Gap, now: datetime = NOW, run: str | None = "run") -> int:
    return record(store, window, found, source="sandbox", now=now, flow_run_id=run)


def on_record(store: Store, status: str | None = CONFIRMED) -> list[tuple[Gap, int]]:
    return [(one.gap, one.asked) for one in find(store, "BTCUSDT", "1h", status)]


def test_a_gap_is_on_record_with_whence_it_is_known(store: Store) -> None:
    assert note(store, window_of(0, 24), gap(3, 5), gap(9, 10)) == 0
    assert find(store, "BTCUSDT", "1h") == [
        ConfirmedGap(gap(3, 5), CONFIRMED, 1, "sandbox", NOW, NOW, "run"),
        ConfirmedGap(gap(9, 10), CONFIRMED, 1, "sandbox", NOW, NOW, "run"),
    ]
    assert find(store, "ETHUSDT", "1h") == find(store, "BTCUSDT", "4h") == []


def test_a_gap_asked_for_again_counts_up_and_keeps_when_it_was_first_seen(store: Store) -> None:
    for day in range(3):
        assert note(store, window_of(0, 24), gap(3, 5), now=NOW + timedelta(days=day), run=f"run-{day}") == 0
    assert find(store, "BTCUSDT", "1h") == [
        ConfirmedGap(gap(3, 5), CONFIRMED, 3, "sandbox", NOW, NOW + timedelta(days=2), "run-2")
    ]


def test_a_gap_that_is_filled_is_kept_as_repaired(store: Store) -> None:
    note(store, window_of(0, 24), gap(3, 5), gap(9, 10))
    assert note(store, window_of(0, 24), gap(9, 10), now=NOW + HOUR, run="later") == 2
    assert on_record(store) == [(gap(9, 10), 2)]
    [repaired] = find(store, "BTCUSDT", "1h", REPAIRED)
    assert repaired == ConfirmedGap(gap(3, 5), REPAIRED, 1, "sandbox", NOW, NOW + HOUR, "later")
    assert [one.gap for one in find(store, "BTCUSDT", "1h", None)] == [gap(3, 5), gap(9, 10)]
    # what is repaired is not repaired again
    assert note(store, window_of(0, 24), gap(9, 10)) == 0
    assert note(store, window_of(0, 24)) == 1


@pytest.mark.parametrize(
    ("left", "repaired"),
    [
        ([gap(3, 8)], 5),
        ([gap(8, 13)], 5),
        ([gap(5, 6), gap(7, 8)], 8),
        ([gap(3, 4), gap(12, 13)], 8),
        ([], 10),
        ([gap(3, 13)], 0),
    ],
)
def test_of_a_gap_that_is_filled_in_part_the_rest_stays(store: Store, left: list[Gap], repaired: int) -> None:
    note(store, window_of(0, 24), gap(3, 13))
    assert note(store, window_of(0, 24), *left, now=NOW + HOUR) == repaired
    # whoever asked for all of it has asked for the rest
    assert on_record(store) == [(one, 2) for one in left]
    assert {one.first_seen for one in find(store, "BTCUSDT", "1h")} <= {NOW}
    assert [one.gap for one in find(store, "BTCUSDT", "1h", REPAIRED)] == ([gap(3, 13)] if repaired else [])


def test_gaps_of_other_windows_and_series_are_untouched(store: Store) -> None:
    note(store, window_of(0, 24), gap(22, 24))
    note(store, window_of(48, 72), gap(48, 50))
    note(store, window_of(24, 48, "ETHUSDT"), gap(30, 31))
    note(store, Window("BTCUSDT", Timeframe.H4, START, START + 24 * HOUR), Gap(START, START + 4 * HOUR, 1))
    before = store.documents.find(GAPS)
    assert note(store, window_of(24, 48), now=NOW + HOUR) == 0
    assert store.documents.find(GAPS) == before


def test_within_are_the_confirmed_gaps_that_begin_in_the_window(store: Store) -> None:
    note(store, window_of(0, 48), gap(3, 5), gap(9, 10), gap(30, 32))
    note(store, window_of(0, 8))
    assert [one.gap for one in within(store, window_of(0, 24))] == [gap(9, 10)]
    assert [one.gap for one in within(store, window_of(9, 48))] == [gap(9, 10), gap(30, 32)]
    assert within(store, window_of(10, 30)) == []


# --- gaps that cross the border of what is asked for ---------------------------------------------


def test_a_gap_asked_for_in_part_in_vain_is_on_record_once(store: Store) -> None:
    note(store, window_of(0, 40), gap(20, 30))
    # the newest bars are asked for again, and the window begins, or ends, in the middle of the gap
    assert note(store, window_of(26, 40), gap(26, 30)) == 0
    assert note(store, window_of(0, 25), gap(20, 25)) == 0
    assert note(store, window_of(22, 24), gap(22, 24)) == 0
    assert on_record(store, None) == [(gap(20, 30), 4)]


def test_a_gap_filled_up_to_the_border_is_left_beyond_it(store: Store) -> None:
    note(store, window_of(0, 40), gap(20, 30))
    assert note(store, window_of(26, 40), now=NOW + HOUR, run="later") == 4
    assert find(store, "BTCUSDT", "1h") == [ConfirmedGap(gap(20, 26), CONFIRMED, 1, "sandbox", NOW, NOW, "run")]
    assert note(store, window_of(0, 22)) == 2
    assert on_record(store) == [(gap(22, 26), 1)]
    assert note(store, window_of(23, 24)) == 1
    assert on_record(store) == [(gap(22, 23), 1), (gap(24, 26), 1)]


def test_a_gap_that_grew_is_not_repaired(store: Store) -> None:
    note(store, window_of(0, 24), gap(20, 24))
    assert note(store, window_of(0, 48), gap(20, 30)) == 0
    assert on_record(store, None) == [(gap(20, 30), 2)]


def test_days_without_a_session_are_no_bars_of_what_is_left(store: Store) -> None:
    # Thursday to Tuesday, and the Monday is a holiday
    days = [datetime(2024, 1, day, tzinfo=UTC) for day in (11, 12, 15, 16, 17)]
    thursday, friday, monday, tuesday, end = days
    whole = Window("AAPL", Timeframe.D1, thursday, end)

    def note_days(window: Window, *found: Gap) -> int:
        return record(store, window, found, source="files", now=NOW, flow_run_id=None, calendar="XNYS")

    assert note_days(whole, Gap(thursday, end, 3)) == 0
    assert note_days(whole.within(friday, monday)) == 1
    assert [one.gap for one in find(store, "AAPL", "1d")] == [
        Gap(thursday, friday, 1),
        Gap(tuesday, end, 1),
    ]


@settings(max_examples=40, deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 20), st.sets(st.integers(0, 40))), min_size=1, max_size=6
    )
)
def test_every_missing_bar_is_on_record_once_and_repairs_add_up(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, int, set[int]]]
) -> None:
    missing: set[int] = set()
    with open_store(tmp_path_factory.mktemp("home")) as store:
        for first, count, absent in asked:
            bars = set(range(first, first + count))
            now = absent & bars
            starts = sorted(bar for bar in now if bar - 1 not in now)
            runs = [gap(bar, next(end for end in range(bar + 1, 99) if end not in now)) for bar in starts]
            repaired = note(store, window_of(first, first + count), *runs)
            assert repaired == len((missing & bars) - now)
            missing = missing - bars | now
            held = [one.gap for one in find(store, "BTCUSDT", "1h")]
            covered = [bar for one in held for bar in range((one.start - START) // HOUR, (one.end - START) // HOUR)]
            assert covered == sorted(missing)
            assert sum(one.bars for one in held) == len(missing)
