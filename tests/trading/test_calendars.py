"""Which bars a market should have."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest

from trading.calendars import ALWAYS_OPEN, bars_per_year, expected_opens, require_calendar
from trading.errors import BadWindow, ConfigurationError
from trading.window import Timeframe, Window


def opens(timeframe: Timeframe, start: datetime, end: datetime, calendar: str) -> list[str]:
    window = Window("X", timeframe, start, end)
    return [str(stamp)[:16] for stamp in expected_opens(window, calendar).astype("datetime64[ms]")]


def day(month: int, date: int) -> datetime:
    return datetime(2018, month, date, tzinfo=UTC)


def test_a_market_that_never_closes_has_every_bar() -> None:
    window = Window("X", Timeframe.M15, day(3, 10), day(3, 12))
    found = expected_opens(window, ALWAYS_OPEN)
    assert len(found) == window.slots == 192
    assert (np.diff(found) == 900_000).all()


def test_sessions_leave_out_week_ends_and_holidays() -> None:
    found = opens(Timeframe.D1, day(7, 2), day(7, 9), "XNYS")
    assert found == [f"2018-07-0{date}T00:00" for date in (2, 3, 5, 6)]


def test_hours_of_a_session_follow_daylight_saving_and_half_days() -> None:
    winter = opens(Timeframe.H1, day(1, 3), day(1, 4), "XNYS")
    summer = opens(Timeframe.H1, day(7, 2), day(7, 3), "XNYS")
    half = opens(Timeframe.H1, day(7, 3), day(7, 4), "XNYS")
    assert (winter[0], winter[-1], len(winter)) == ("2018-01-03T14:00", "2018-01-03T20:00", 7)
    assert (summer[0], summer[-1], len(summer)) == ("2018-07-02T13:00", "2018-07-02T19:00", 7)
    assert (half[0], half[-1]) == ("2018-07-03T13:00", "2018-07-03T16:00")


def test_bars_per_year_follow_from_the_calendar() -> None:
    assert bars_per_year(Timeframe.D1, ALWAYS_OPEN) == 365.25
    assert bars_per_year(Timeframe.H1, ALWAYS_OPEN) == 8766
    assert 251 < bars_per_year(Timeframe.D1, "XNYS") < 253
    assert bars_per_year(Timeframe.M30, ALWAYS_OPEN) * timedelta(minutes=30) == timedelta(days=365.25)


def test_an_unknown_calendar_is_told() -> None:
    with pytest.raises(ConfigurationError, match="'MOON' is not a calendar; use '24/7' or"):
        require_calendar("MOON")


@pytest.mark.parametrize(("name", "year"), [("XTKS", 1997), ("XSHG", 1990), ("XSAU", 2021), ("AIXK", 2017)])
def test_a_calendar_that_begins_late_says_since_when_and_can_be_used(name: str, year: int) -> None:
    assert require_calendar(name) == name
    late = datetime(2022, 5, 11, tzinfo=UTC)
    assert len(opens(Timeframe.D1, late, late + timedelta(days=7), name)) == 5
    said = f"begins before {year}-.*, from when on .*'{name}' are known; begin it there: --start {year}-"
    with pytest.raises(BadWindow, match=said):
        opens(Timeframe.D1, datetime(1985, 1, 1, tzinfo=UTC), late, name)


def test_a_year_of_a_young_market_is_counted_on_the_years_it_has() -> None:
    assert 244 < bars_per_year(Timeframe.D1, "XSAU") < 256
    assert 240 < bars_per_year(Timeframe.D1, "AIXK") < 255


def test_history_from_before_1990_is_expected() -> None:
    crash = opens(Timeframe.D1, datetime(1987, 10, 16, tzinfo=UTC), datetime(1987, 10, 21, tzinfo=UTC), "XNYS")
    assert crash == ["1987-10-16T00:00", "1987-10-19T00:00", "1987-10-20T00:00"]
    # closed on the Monday of President Kennedy's funeral, and on Thanksgiving
    week = opens(Timeframe.D1, datetime(1963, 11, 23, tzinfo=UTC), datetime(1963, 11, 30, tzinfo=UTC), "XNYS")
    assert week == ["1963-11-26T00:00", "1963-11-27T00:00", "1963-11-29T00:00"]
    # the days that New York traded in these years, Saturdays left aside
    years = [(1950, 249), (1960, 252), (1963, 251), (1980, 253)]
    for year, days in years:
        window = datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC)
        assert (year, len(opens(Timeframe.D1, *window, "XNYS"))) == (year, days)
    with pytest.raises(BadWindow, match="begins before 1900-01-01"):
        opens(Timeframe.D1, datetime(1899, 12, 1, tzinfo=UTC), datetime(1901, 1, 1, tzinfo=UTC), "XNYS")


def test_nothing_is_said_of_a_time_that_the_calendar_does_not_know_yet() -> None:
    with pytest.raises(BadWindow, match=r"ends after 20\d\d-.*end it earlier, or install a newer exchange_calendars"):
        opens(Timeframe.D1, datetime(2018, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC), "XNYS")


def test_no_bar_is_expected_in_a_lunch_break() -> None:
    found = opens(Timeframe.M15, day(1, 3), day(1, 4), "XHKG")
    assert found[:10] == [f"2018-01-03T{at}" for at in (
        "01:30", "01:45", "02:00", "02:15", "02:30", "02:45", "03:00", "03:15", "03:30", "03:45",
    )]  # fmt: skip
    assert (found[10], found[-1], len(found)) == ("2018-01-03T05:00", "2018-01-03T07:45", 22)


def test_a_bar_that_is_partly_in_a_lunch_break_is_expected_once() -> None:
    # Tokyo rests from 02:30 to 03:30 UTC
    hours = opens(Timeframe.H1, day(1, 4), day(1, 5), "XTKS")
    assert hours == [f"2018-01-04T0{hour}:00" for hour in range(6)]
    assert opens(Timeframe.H4, day(1, 4), day(1, 5), "XTKS") == ["2018-01-04T00:00", "2018-01-04T04:00"]
    # a day with a half session has no break
    eve = opens(Timeframe.M30, datetime(2018, 12, 24, tzinfo=UTC), datetime(2018, 12, 25, tzinfo=UTC), "XHKG")
    assert (eve[0], eve[-1], len(eve)) == ("2018-12-24T01:30", "2018-12-24T03:30", 5)


@pytest.mark.parametrize("name", ["XNYS", "XHKG", "XTKS", "24/5", "CMES"])
def test_the_bars_of_a_window_are_those_of_its_parts(name: str) -> None:
    start, hours = day(7, 1), 24 * 9
    whole = opens(Timeframe.M15, start, start + timedelta(hours=hours), name)
    cuts = [start + timedelta(hours=at) for at in range(0, hours + 1, 4)]
    parts = [at for one, other in pairwise(cuts) for at in opens(Timeframe.M15, one, other, name)]
    assert parts == whole
    assert len(whole) > 100


def test_a_calendar_that_the_library_cannot_make_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import exchange_calendars

    def broken(name: str, **_: object) -> object:
        raise ValueError("Special dates [1990-01-07] are not sessions.")

    monkeypatch.setattr(exchange_calendars, "get_calendar", broken)
    with pytest.raises(ConfigurationError, match=r"cannot make its calendar 'XTAE' \(Special dates .*use another one"):
        require_calendar("XTAE")
