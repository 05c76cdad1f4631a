"""Timeframes and windows: what every run is about.

A window is half-open, in UTC, aligned to its timeframe, and immutable. Times are
``datetime.datetime`` with ``tzinfo=UTC`` throughout; naive times are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from trading.errors import BadTimeframe, BadWindow

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Timeframe(StrEnum):
    """Length of a bar, in the exchanges' spelling."""

    M1 = "1m"
    M3 = "3m"
    M5 = "5m"
    M15 = "15m"
    M30 = "30m"
    H1 = "1h"
    H2 = "2h"
    H4 = "4h"
    H6 = "6h"
    H8 = "8h"
    H12 = "12h"
    D1 = "1d"

    @property
    def delta(self) -> timedelta:
        """Length of one bar."""
        count, unit = int(self.value[:-1]), self.value[-1]
        return count * {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}[unit]

    @classmethod
    def parse(cls, text: str) -> Timeframe:
        """The timeframe that ``text`` spells.

        Raises:
            BadTimeframe: it spells none; the message lists those that exist.
        """
        try:
            return cls(text)
        except ValueError:
            known = ", ".join(timeframe.value for timeframe in cls)
            raise BadTimeframe(f"{text!r} is not a timeframe; use one of {known}") from None

    def floor(self, moment: datetime) -> datetime:
        """The last bar boundary at or before ``moment`` (UTC, counted from the epoch)."""
        return moment - (as_utc(moment) - EPOCH) % self.delta


def as_utc(moment: datetime) -> datetime:
    """``moment`` in UTC.

    Raises:
        BadWindow: the time has no time zone.
    """
    if moment.tzinfo is None:
        raise BadWindow(f"{moment.isoformat()} has no time zone; give it in UTC, like {moment.isoformat()}Z")
    return moment.astimezone(UTC)


@dataclass(frozen=True, order=True)
class Window:
    """Half-open span ``[start, end)`` of bars of one symbol and timeframe, in UTC.

    ``start`` and ``end`` lie on bar boundaries and ``start < end``.

    Raises:
        BadWindow: naive, misaligned or empty span.
        BadTimeframe: unknown timeframe.
    """

    symbol: str
    timeframe: Timeframe
    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        timeframe = Timeframe.parse(str(self.timeframe))
        object.__setattr__(self, "timeframe", timeframe)
        for name in ("start", "end"):
            moment = as_utc(getattr(self, name))
            object.__setattr__(self, name, moment)
            if timeframe.floor(moment) != moment:
                raise BadWindow(
                    f"{name} {_stamp(moment)} is not on a {timeframe} boundary; use {_stamp(timeframe.floor(moment))}"
                )
        if not self.symbol:
            raise BadWindow("a window needs a symbol, and this one is empty")
        if self.start >= self.end:
            raise BadWindow(
                f"window of {self.symbol} {timeframe} is empty: "
                f"start {_stamp(self.start)} is not before end {_stamp(self.end)}"
            )

    def __str__(self) -> str:
        return f"{self.symbol} {self.timeframe} [{_stamp(self.start)}, {_stamp(self.end)})"

    @property
    def slots(self) -> int:
        """How many bars a market that never closes has in this window."""
        return (self.end - self.start) // self.timeframe.delta

    def within(self, start: datetime, end: datetime) -> Window:
        """The same series over another span."""
        return Window(self.symbol, self.timeframe, start, end)


def subtract(window: Window, covered: Iterable[tuple[datetime, datetime]]) -> list[Window]:
    """The parts of ``window`` that no span in ``covered`` covers, in order of time.

    Spans are half-open and in UTC; they may overlap and come in any order.
    """
    gaps: list[Window] = []
    cursor = window.start
    for start, end in sorted(covered):
        if end <= cursor:
            continue
        if start >= window.end:
            break
        if start > cursor:
            gaps.append(window.within(cursor, start))
        cursor = max(cursor, end)
    if cursor < window.end:
        gaps.append(window.within(cursor, window.end))
    return gaps


def split_by_period(window: Window) -> list[Window]:
    """``window`` cut at the borders of the chunk periods of its timeframe, in order of time."""
    parts: list[Window] = []
    cursor = window.start
    while cursor < window.end:
        border = period_end(window.timeframe, cursor)
        parts.append(window.within(cursor, min(border, window.end)))
        cursor = border
    return parts


# Calendar months per chunk, so that a chunk holds 5,000 to 15,000 bars of a market that
# never closes; one-minute bars go by the week (10,080 bars).
_PERIOD_MONTHS = {
    Timeframe.M3: 1, Timeframe.M5: 1, Timeframe.M15: 3, Timeframe.M30: 6,
    Timeframe.H1: 12, Timeframe.H2: 24, Timeframe.H4: 48, Timeframe.H6: 72,
    Timeframe.H8: 96, Timeframe.H12: 144, Timeframe.D1: 240,
}  # fmt: skip


def period_start(timeframe: Timeframe, moment: datetime) -> datetime:
    """Start of the chunk period that holds ``moment``: a Monday for 1m, else the first of a month."""
    moment = as_utc(moment)
    if timeframe is Timeframe.M1:
        midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        return midnight - timedelta(days=midnight.weekday())
    months = _PERIOD_MONTHS[timeframe]
    index = (moment.year * 12 + moment.month - 1) // months * months
    return datetime(index // 12, index % 12 + 1, 1, tzinfo=UTC)


def period_end(timeframe: Timeframe, moment: datetime) -> datetime:
    """Start of the chunk period after the one that holds ``moment``."""
    start = period_start(timeframe, moment)
    if timeframe is Timeframe.M1:
        return start + timedelta(days=7)
    index = start.year * 12 + start.month - 1 + _PERIOD_MONTHS[timeframe]
    return datetime(index // 12, index % 12 + 1, 1, tzinfo=UTC)


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%MZ") if moment.second == 0 else moment.strftime("%Y-%m-%dT%H:%M:%SZ")
