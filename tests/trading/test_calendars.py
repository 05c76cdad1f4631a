"""Which bars a market should have."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from trading.calendars import ALWAYS_OPEN, bars_per_year, expected_opens, require_calendar
from trading.errors import ConfigurationError
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
