"""Which time a flow run is about.

A scheduled run is about the time it was scheduled for, however late it starts; a rerun keeps it. Only a
flow asks here; everything below is told.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from trading.calendars import bars_per_year
from trading.errors import BadWindow
from trading.window import Timeframe, as_utc

_YEAR: Final = timedelta(days=365.25)
# for holidays and gaps: this much more history than the mean number of bars in a year calls for
_SPARE: Final = 1.25


def run_moment() -> datetime:
    """Scheduled start of this flow run, UTC; the current time outside a run."""
    from prefect.runtime import flow_run

    # a class of Prefect's own that loses its zone in arithmetic, so it is made plain here
    return datetime.fromtimestamp(flow_run.scheduled_start_time.timestamp(), tz=UTC)


def span(
    timeframe: Timeframe, start: datetime | None, end: datetime | None, days: int, moment: datetime
) -> tuple[datetime, datetime]:
    """Start and end of a run's windows, on bar boundaries.

    Args:
        start: first bar, or None for ``days`` before the end.
        end: end of the last bar, or None for the last boundary at or before ``moment``.
        days: how far back the run looks where no start is given.
        moment: what ``run_moment`` said.

    Raises:
        BadWindow: naive times, or an end after ``moment`` (it is not over yet), or nothing in between.
    """
    last = timeframe.floor(moment) if end is None else timeframe.floor(as_utc(end))
    first = last - timedelta(days=days) if start is None else as_utc(start)
    first = timeframe.floor(first)
    if last > moment:
        raise BadWindow(
            f"the window ends at {last:%Y-%m-%dT%H:%MZ}, in the future of this run ({moment:%Y-%m-%dT%H:%MZ}); "
            "end it at a bar that is over"
        )
    if first >= last:
        raise BadWindow(
            f"the window is empty: it starts at {first:%Y-%m-%dT%H:%MZ} and ends at {last:%Y-%m-%dT%H:%MZ}; "
            "start it earlier"
        )
    return first, last


def reach(bars: int, timeframe: Timeframe, calendar: str) -> timedelta:
    """How long before its end a window of that many bars begins, with something to spare."""
    return _SPARE * bars / bars_per_year(timeframe, calendar) * _YEAR
