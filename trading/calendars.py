"""When a market trades: which bars a window should hold, and how many a year has."""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from trading.errors import ConfigurationError
from trading.window import Timeframe, Window

if TYPE_CHECKING:
    from exchange_calendars import ExchangeCalendar

ALWAYS_OPEN: Final = "24/7"
DAYS_PER_YEAR: Final = 365.25  # Gregorian mean, leap years counted


def expected_opens(window: Window, calendar: str) -> np.ndarray:
    """Open times of the bars that ``window`` should hold: int64 milliseconds UTC, increasing, shape (n,).

    On a calendar of sessions a daily bar opens at 00:00 UTC of the session's date (the convention of
    daily history files), and an intraday bar on the timeframe's UTC grid if the market trades at any
    moment of it.

    Raises:
        ConfigurationError: the calendar is unknown.
    """
    step_ms = int(window.timeframe.delta.total_seconds() * 1000)
    first, last = (int(moment.timestamp() * 1000) for moment in (window.start, window.end))
    starts = np.arange(first, last, step_ms, dtype=np.int64)
    if calendar == ALWAYS_OPEN:
        return starts
    sessions = _calendar(calendar)
    days = (window.start - timedelta(days=1), window.end + timedelta(days=1))
    schedule = sessions.schedule.loc[pd.Timestamp(days[0].date()) : pd.Timestamp(days[1].date())]
    if window.timeframe is Timeframe.D1:
        labels = schedule.index.tz_localize("UTC").as_unit("ms")
        return np.asarray(labels[(labels >= window.start) & (labels < window.end)].asi8)
    ends = starts + step_ms
    trades = np.zeros(len(starts), dtype=bool)
    for opened, closed in zip(schedule["open"].dt.as_unit("ms").astype("int64"),
                              schedule["close"].dt.as_unit("ms").astype("int64"), strict=True):  # fmt: skip
        begins, stops = np.searchsorted(ends, opened, side="right"), np.searchsorted(starts, closed, side="left")
        trades[begins:stops] = True
    return np.asarray(starts[trades])


def bars_per_year(timeframe: Timeframe, calendar: str) -> float:
    """Mean number of bars in a year, counted on the calendar's last ten full years."""
    if calendar == ALWAYS_OPEN:
        return DAYS_PER_YEAR * timedelta(days=1) / timeframe.delta
    first, last = pd.Timestamp("2010-01-01", tz="UTC"), pd.Timestamp("2020-01-01", tz="UTC")
    decade = Window("any", timeframe, first.to_pydatetime(), last.to_pydatetime())
    return len(expected_opens(decade, calendar)) / 10


def require_calendar(calendar: str) -> str:
    """``calendar`` itself, if it is known.

    Raises:
        ConfigurationError: it is not.
    """
    if calendar != ALWAYS_OPEN:
        _calendar(calendar)
    return calendar


@lru_cache(maxsize=8)
def _calendar(name: str) -> ExchangeCalendar:
    # a second to import and as long to build, so once per process and calendar
    import exchange_calendars
    from exchange_calendars.errors import InvalidCalendarName

    try:
        return exchange_calendars.get_calendar(name, start="1990-01-01")
    except InvalidCalendarName:
        raise ConfigurationError(
            f"{name!r} is not a calendar; use {ALWAYS_OPEN!r} or a name of exchange_calendars, such as 'XNYS'"
        ) from None
