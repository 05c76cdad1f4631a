"""Windows: aligned, half-open, UTC; arithmetic on them loses and invents nothing."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trading.errors import BadTimeframe, BadWindow
from trading.window import Timeframe, Window, period_end, period_start, split_by_period, subtract

START = datetime(2024, 1, 1, tzinfo=UTC)
moments = st.datetimes(datetime(1995, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))
timeframes = st.sampled_from(list(Timeframe))


def hours(first: int, last: int) -> Window:
    return Window("BTCUSDT", Timeframe.H1, START + timedelta(hours=first), START + timedelta(hours=last))


def test_an_unknown_timeframe_names_the_known_ones() -> None:
    with pytest.raises(BadTimeframe, match=r"'7m' is not a timeframe; use one of 1m, .*1d"):
        Timeframe.parse("7m")


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        (START, START, "is empty"),
        (START, START - timedelta(hours=1), "is empty"),
        (START.replace(tzinfo=None), START, "no time zone"),
        (START + timedelta(minutes=5), START + timedelta(hours=2), "not on a 1h boundary; use 2024-01-01T00:00Z"),
    ],
)
def test_a_window_that_makes_no_sense_is_refused(start: datetime, end: datetime, said: str) -> None:
    with pytest.raises(BadWindow, match=said):
        Window("BTCUSDT", Timeframe.H1, start, end)


def test_times_of_another_zone_become_utc() -> None:
    berlin = timezone(timedelta(hours=1))
    window = Window("X", Timeframe.H1, datetime(2024, 1, 1, 1, tzinfo=berlin), datetime(2024, 1, 1, 3, tzinfo=berlin))
    assert (window.start, window.end) == (START, START + timedelta(hours=2))
    assert window.slots == 2


@given(timeframes, moments)
def test_floor_is_the_last_boundary(timeframe: Timeframe, moment: datetime) -> None:
    floor = timeframe.floor(moment)
    assert floor <= moment < floor + timeframe.delta
    assert timeframe.floor(floor) == floor


@given(timeframes, moments)
def test_periods_hold_their_moment_and_meet(timeframe: Timeframe, moment: datetime) -> None:
    start, end = period_start(timeframe, moment), period_end(timeframe, moment)
    assert start <= moment < end
    assert period_start(timeframe, end) == end
    assert period_start(timeframe, end - timedelta(milliseconds=1)) == start
    assert 5_000 <= (end - start) / timeframe.delta <= 15_000


@given(st.lists(st.tuples(st.integers(-20, 120), st.integers(0, 40)), max_size=12))
def test_subtract_is_set_difference(spans: list[tuple[int, int]]) -> None:
    window = hours(0, 100)
    covered = [(START + timedelta(hours=at), START + timedelta(hours=at + length)) for at, length in spans]
    left = {hour for at, length in spans for hour in range(at, at + length)}
    gaps = subtract(window, covered)
    got = [hour for gap in gaps for hour in range((gap.start - START) // timedelta(hours=1), (gap.end - START) // timedelta(hours=1))]  # fmt: skip # noqa: E501
    assert got == [hour for hour in range(100) if hour not in left]


@given(timeframes, moments, st.integers(1, 60_000))
def test_split_by_period_tiles_the_window(timeframe: Timeframe, moment: datetime, bars: int) -> None:
    start = timeframe.floor(moment)
    window = Window("X", timeframe, start, start + bars * timeframe.delta)
    parts = split_by_period(window)
    assert parts[0].start == window.start
    assert parts[-1].end == window.end
    assert all(before.end == after.start for before, after in itertools.pairwise(parts))
    assert all(period_start(timeframe, part.start) == period_start(timeframe, part.end - timeframe.delta) for part in parts)  # fmt: skip # noqa: E501
