"""When a market trades: which bars a window should hold, and how many a year has."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from trading.errors import BadWindow, ConfigurationError
from trading.window import Timeframe, Window

if TYPE_CHECKING:
    from exchange_calendars import ExchangeCalendar

ALWAYS_OPEN: Final = "24/7"
DAYS_PER_YEAR: Final = 365.25  # Gregorian mean, leap years counted
# of the calendars that say nothing of their own beginning
EARLIEST: Final = pd.Timestamp("1900-01-01")
# exchange_calendars takes its sessions from pandas, which leaves out the holidays before this day
PANDAS_HOLIDAYS: Final = pd.Timestamp("1970-01-01")


@dataclass(frozen=True, eq=False)
class _Sessions:
    """A calendar as numbers: int64 milliseconds UTC, increasing.

    Attributes:
        known: from when on, and until when (exclusive), the calendar can be asked.
        days: 00:00 UTC of each session's date.
        opened: begin of each span of trade; a lunch break makes two of a session.
        closed: end of each.
    """

    known: tuple[datetime, datetime]
    days: np.ndarray
    opened: np.ndarray
    closed: np.ndarray


def expected_opens(window: Window, calendar: str) -> np.ndarray:
    """Open times of the bars that ``window`` should hold: int64 milliseconds UTC, increasing, shape (n,).

    On a calendar of sessions a daily bar opens at 00:00 UTC of the session's date (the convention of
    daily history files), and an intraday bar on the timeframe's UTC grid if the market trades at any
    moment of it; in a lunch break it does not. Saturdays are no sessions, though New York traded on them until 1952.

    Raises:
        ConfigurationError: the calendar is unknown, or cannot be made.
        BadWindow: some of the window is outside the time that the calendar is known for.
    """
    step_ms = int(window.timeframe.delta.total_seconds() * 1000)
    first, last = (int(moment.timestamp() * 1000) for moment in (window.start, window.end))
    if calendar == ALWAYS_OPEN:
        return np.arange(first, last, step_ms, dtype=np.int64)
    sessions = _sessions(calendar)
    _require_known(window, calendar, sessions)
    if window.timeframe is Timeframe.D1:
        begin, end = np.searchsorted(sessions.days, (first, last))
        return np.asarray(sessions.days[begin:end].copy())
    starts = np.arange(first, last, step_ms, dtype=np.int64)
    begin = np.searchsorted(sessions.closed, first, side="right")
    end = np.searchsorted(sessions.opened, last, side="left")
    # the bars that share a moment with each span of trade; two spans may share a bar
    begins = np.searchsorted(starts, sessions.opened[begin:end] - step_ms, side="right")
    stops = np.searchsorted(starts, sessions.closed[begin:end], side="left")
    borders = np.bincount(begins, minlength=len(starts) + 1) - np.bincount(stops, minlength=len(starts) + 1)
    return np.asarray(starts[np.cumsum(borders)[:-1] > 0])


def bars_per_year(timeframe: Timeframe, calendar: str) -> float:
    """Mean number of bars in a year, counted on the years 2010 to 2019, or the first ten that the calendar knows."""
    if calendar == ALWAYS_OPEN:
        return DAYS_PER_YEAR * timedelta(days=1) / timeframe.delta
    since, until = _sessions(calendar).known
    first = max(2010, since.year + (since > datetime(since.year, 1, 1, tzinfo=UTC)))
    last = min(first + 10, until.year)
    years = Window("any", timeframe, datetime(first, 1, 1, tzinfo=UTC), datetime(last, 1, 1, tzinfo=UTC))
    return len(expected_opens(years, calendar)) / (last - first)


def require_calendar(calendar: str) -> str:
    """``calendar`` itself, if it is known.

    Raises:
        ConfigurationError: it is not.
    """
    if calendar != ALWAYS_OPEN:
        _sessions(calendar)
    return calendar


def _require_known(window: Window, calendar: str, sessions: _Sessions) -> None:
    since, until = sessions.known
    if window.start < since:
        raise BadWindow(
            f"{window} begins before {since:%Y-%m-%d}, from when on the sessions of calendar {calendar!r} are known; "
            f"begin it there: --start {since:%Y-%m-%dT%H:%MZ}"
        )
    if window.end > until:
        raise BadWindow(
            f"{window} ends after {until:%Y-%m-%d}, until when the sessions of calendar {calendar!r} are known; "
            "end it earlier, or install a newer exchange_calendars"
        )


@lru_cache(maxsize=8)
def _sessions(name: str) -> _Sessions:
    # a second to import and a tenth to make, so once per process and calendar
    calendar, since = _calendar(name)
    schedule = calendar.schedule
    if since < PANDAS_HOLIDAYS and calendar.regular_holidays is not None:
        schedule = schedule[~schedule.index.isin(calendar.regular_holidays.holidays(since, PANDAS_HOLIDAYS))]
    opens, break_starts, break_ends, closes = (
        schedule[column].dropna().dt.as_unit("ms").astype("int64").to_numpy()
        for column in ("open", "break_start", "break_end", "close")
    )
    return _Sessions(
        known=(_midnight(since), _midnight(calendar.default_end() + pd.Timedelta(days=1))),
        days=schedule.index.as_unit("ms").asi8,
        opened=np.sort(np.concatenate([opens, break_ends])),
        closed=np.sort(np.concatenate([break_starts, closes])),
    )


def _calendar(name: str) -> tuple[ExchangeCalendar, pd.Timestamp]:
    """The calendar from its beginning on, and when that is."""
    import exchange_calendars
    from exchange_calendars.errors import InvalidCalendarName

    try:
        try:
            return exchange_calendars.get_calendar(name, start=EARLIEST), EARLIEST
        except ValueError:
            # it begins later, and says when only once it is made
            usual = exchange_calendars.get_calendar(name)
            since = usual.bound_min() or usual.default_start()
            return exchange_calendars.get_calendar(name, start=since), since
    except InvalidCalendarName:
        raise ConfigurationError(
            f"{name!r} is not a calendar; use {ALWAYS_OPEN!r} or a name of exchange_calendars, such as 'XNYS'"
        ) from None
    except (ValueError, NotImplementedError) as error:
        raise ConfigurationError(
            f"exchange_calendars {exchange_calendars.__version__} cannot make its calendar {name!r} "
            f"({str(error)[:200]}); use another one, or another release of it"
        ) from error


def _midnight(day: pd.Timestamp) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
