"""Gaps are runs of missing bars among those expected, and a second answer mends what it can."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.files import read
from trading.calendars import expected_opens
from trading.candles import check, open_times_ms
from trading.gaps import Gap, gaps, mended, moment, spans, until
from trading.masks import RAW_COLUMNS, screen
from trading.window import Timeframe, Window

START = datetime(2024, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
ORIGIN, STEP = int(START.timestamp() * 1000), 3_600_000
bars = st.sets(st.integers(0, 39))


def window_of(first: int, last: int) -> Window:
    return Window("BTCUSDT", Timeframe.H1, START + first * HOUR, START + last * HOUR)


def opens(found: set[int]) -> np.ndarray:
    return ORIGIN + STEP * np.array(sorted(found), dtype="int64")


# --- runs ----------------------------------------------------------------------------------------


def test_neighbours_are_one_gap() -> None:
    found = gaps(opens(set(range(20))), opens({0, 1, 2, 7, 9, 10, 19}), HOUR)
    assert [((one.start - START) // HOUR, (one.end - START) // HOUR, one.bars) for one in found] == [
        (0, 3, 3),
        (7, 8, 1),
        (9, 11, 2),
        (19, 20, 1),
    ]


def test_nothing_missing_is_no_gap() -> None:
    assert gaps(opens({1, 2, 3}), opens(set()), HOUR) == []
    assert gaps(opens(set()), opens(set()), HOUR) == []


@given(expected=bars, data=st.data())
def test_gaps_are_the_longest_runs_and_hold_every_missing_bar_once(expected: set[int], data: st.DataObject) -> None:
    missing = data.draw(st.sets(st.sampled_from(sorted(expected)))) if expected else set()
    found = gaps(opens(expected), opens(missing), HOUR)
    ranks = {bar: rank for rank, bar in enumerate(sorted(expected))}
    held = []
    for one in found:
        first, last = (one.start - START) // HOUR, (one.end - START) // HOUR - 1
        inside = [bar for bar in sorted(expected) if first <= bar <= last]
        assert len(inside) == one.bars
        assert {first, last} <= missing
        held.append(inside)
    assert [bar for run in held for bar in run] == sorted(missing)
    for one, other in pairwise(held):
        assert ranks[other[0]] - ranks[one[-1]] > 1


def test_friday_and_monday_are_neighbours_on_a_calendar_of_sessions() -> None:
    window = Window("AAPL", Timeframe.D1, datetime(2024, 1, 8, tzinfo=UTC), datetime(2024, 1, 27, tzinfo=UTC))
    expected = expected_opens(window, "XNYS")
    missing = [datetime(2024, 1, day, tzinfo=UTC) for day in (12, 16, 19, 22, 24)]  # the 15th is a holiday
    found = gaps(expected, np.array([int(day.timestamp() * 1000) for day in missing]), timedelta(days=1))
    assert found == [
        Gap(missing[0], missing[1] + timedelta(days=1), 2),
        Gap(missing[2], missing[3] + timedelta(days=1), 2),
        Gap(missing[4], missing[4] + timedelta(days=1), 1),
    ]


# --- spans ---------------------------------------------------------------------------------------


@given(missing=bars, longest=st.integers(1, 45))
def test_every_missing_bar_is_in_exactly_one_span_and_none_is_too_long(missing: set[int], longest: int) -> None:
    window = window_of(0, 40)
    found = spans(opens(missing), window, longest)
    held = []
    for span in found:
        first, last = (span.start - START) // HOUR, (span.end - START) // HOUR
        assert span.slots <= longest
        assert (span.symbol, span.timeframe) == (window.symbol, window.timeframe)
        assert {first, last - 1} <= missing  # no longer than it needs to be
        held += [bar for bar in range(first, last) if bar in missing]
    assert held == sorted(missing)
    # greedy is best: no two neighbours would fit into one
    for one, other in pairwise(found):
        assert other.start + HOUR - one.start > longest * HOUR


# --- what a second answer mends ------------------------------------------------------------------

GOOD, OTHER, BAD = (2.0, 3.0, 1.0, 2.0, 5.0), (2.5, 3.0, 1.0, 2.0, 5.0), (2.0, 1.0, 3.0, 2.0, 5.0)
answers = st.lists(st.tuples(st.integers(-2, 12), st.sampled_from([GOOD, GOOD, GOOD, OTHER, BAD])), max_size=15)
ANSWERED = window_of(0, 10)
Answer = list[tuple[int, tuple[float, ...]]]


def raw(answer: Answer) -> pd.DataFrame:
    values = np.array([values for _, values in answer], dtype="float64").reshape(-1, 5)
    frame = pd.DataFrame(values, columns=list(RAW_COLUMNS[1:]))
    frame.insert(0, "open_time", ORIGIN + STEP * np.array([bar for bar, _ in answer], dtype="int64"))
    return frame


def hours(times: np.ndarray) -> list[int]:
    return ((times - ORIGIN) // STEP).tolist()


def listed(rows: pd.DataFrame) -> list[tuple[object, ...]]:
    return [(*row[:-1], tuple(row[-1])) for row in rows.itertuples(index=False, name=None)]


@settings(max_examples=80, deadline=None)
@given(first=answers, second=answers)
def test_a_second_answer_only_adds(first: Answer, second: Answer) -> None:
    one, other = (screen(raw(answer), ANSWERED, "24/7") for answer in (first, second))
    both = mended(one, other)
    check(both.good)
    had, came = set(hours(open_times_ms(one.good))), set(hours(open_times_ms(other.good)))
    assert hours(open_times_ms(both.good)) == sorted(had | came)
    assert hours(both.missing) == sorted(set(range(10)) - had - came)
    # candles of the first answer stay what they were
    pd.testing.assert_frame_equal(both.good.loc[one.good.index], one.good)
    new = both.good.index.difference(one.good.index)
    pd.testing.assert_frame_equal(both.good.loc[new], other.good.loc[new])
    assert (both.expected, both.flags) == (one.expected, one.flags)
    # what was put aside stays so, first and in its order; the second adds of the bars that had no candle
    assert listed(both.bad)[: len(one.bad)] == listed(one.bad)
    added = [row[:-1] for row in listed(both.bad)[len(one.bad) :]]
    missing = set(one.missing.tolist())
    wanted = {row[:-1] for row in listed(other.bad) if row[0] in missing} - {row[:-1] for row in listed(one.bad)}
    assert len(added) == len(set(added))
    assert set(added) == wanted


@settings(max_examples=40, deadline=None)
@given(first=answers, second=answers)
def test_an_answer_mends_once(first: Answer, second: Answer) -> None:
    one, other = (screen(raw(answer), ANSWERED, "24/7") for answer in (first, second))
    once = mended(one, other)
    twice = mended(once, other)
    pd.testing.assert_frame_equal(twice.good, once.good)
    assert listed(twice.bad) == listed(once.bad)
    assert twice.missing.tolist() == once.missing.tolist()


@settings(max_examples=60, deadline=None)
@given(held=st.sets(st.integers(0, 9), min_size=1), data=st.data())
def test_until_is_the_screening_of_the_shorter_window(held: set[int], data: st.DataObject) -> None:
    end = data.draw(st.integers(max(held) + 1, 10))
    rows = raw([(bar, GOOD) for bar in sorted(held)])
    shorter = screen(rows, window_of(0, end), "24/7")
    cut = until(screen(rows, ANSWERED, "24/7"), START + end * HOUR)
    assert (cut.expected, cut.missing.tolist(), cut.flags) == (
        shorter.expected,
        shorter.missing.tolist(),
        shorter.flags,
    )
    pd.testing.assert_frame_equal(cut.good, shorter.good)
    assert cut.received == shorter.received


def test_a_moment_is_exact_to_the_millisecond() -> None:
    for milliseconds in (0, -1, 1_704_067_200_001, np.int64(1_704_067_200_123)):
        assert moment(milliseconds) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=int(milliseconds))


# --- real candles --------------------------------------------------------------------------------


def test_the_known_gaps_of_a_real_day_are_found_and_no_others(shared: Path) -> None:
    [path] = (shared / "data").glob("jesse_testcandles0_1m.*")
    raw_day = read(path)
    day = datetime(2019, 3, 29, tzinfo=UTC)
    window = Window("BTCUSDT", Timeframe.M1, day, day + timedelta(days=1))
    screening = screen(raw_day, window, "24/7")
    assert (len(screening.good), len(screening.bad), screening.expected) == (1_382, 0, 1_440)
    expected = expected_opens(window, "24/7")
    found = gaps(expected, screening.missing, Timeframe.M1.delta)
    assert (len(found), sum(one.bars for one in found), len(screening.missing)) == (52, 58, 58)
    # as one would find them in the file itself, without any of our code
    stamps = raw_day["open_time"].tolist()
    begin = int(day.timestamp() * 1000)
    edges = [begin - 60_000, *stamps, begin + 86_400_000]
    holes = [(one + 60_000, other) for one, other in pairwise(edges) if other - one > 60_000]
    assert [(int(one.start.timestamp() * 1000), int(one.end.timestamp() * 1000)) for one in found] == holes
    assert not set(screening.missing.tolist()) & set(stamps)
    asked = [expected_opens(page, "24/7") for page in spans(screening.missing, window, 100)]
    assert np.isin(np.concatenate(asked), screening.missing).sum() == 58
    assert max(map(len, asked)) <= 100


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
def test_a_complete_file_has_no_gaps(shared: Path, symbol: str) -> None:
    rows = read(shared / "data" / f"binance_{symbol}_5m.parquet")
    window = Window(
        symbol, Timeframe.M5, moment(rows["open_time"].iloc[0]), moment(rows["open_time"].iloc[-1] + 300_000)
    )
    screening = screen(rows, window, "24/7")
    assert len(screening.good) + len(screening.bad) == len(rows) == screening.expected
    assert gaps(expected_opens(window, "24/7"), screening.missing, Timeframe.M5.delta) == []
