"""Confirmed gaps: bars that a source was asked for again, does not have, and has moved on from.

They are on record and never filled. ``tradeflows ingest --repair`` asks for them once more; a gap that the
source then fills is kept as ``repaired``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np

from tasks.documents import Document, Span
from tasks.store import GAPS, Store, series_key
from trading.calendars import ALWAYS_OPEN, expected_opens
from trading.gaps import Gap, gaps
from trading.window import Window, period_start

CONFIRMED: Final = "confirmed"
REPAIRED: Final = "repaired"


@dataclass(frozen=True)
class ConfirmedGap:
    """A gap on record. ``asked`` counts the runs that asked for it in vain."""

    gap: Gap
    status: str
    asked: int
    source: str
    first_seen: datetime
    last_asked: datetime
    flow_run_id: str | None


def record(
    store: Store,
    window: Window,
    found: Iterable[Gap],
    *,
    source: str,
    now: datetime,
    flow_run_id: str | None,
    calendar: str = ALWAYS_OPEN,
) -> int:
    """Note the gaps of a window, and as repaired those on record that are none any more; returns how many bars were.

    A gap on record that crosses the window's border is judged by the part inside it; the rest stays missing.

    Args:
        found: all gaps of the window, in order of time.
        calendar: of the series; needed where a gap crosses the window's border.
    """
    key = series_key(window.symbol, window.timeframe.value)
    known = [document for document in _sharing(store, window) if document["status"] == CONFIRMED]
    missing = _with_outside(window, list(found), [_gap(document).gap for document in known], calendar)
    confirmed = set()
    for gap in missing:
        name = f"{key}|{gap.start:%Y%m%dT%H%M%S}-{gap.end:%Y%m%dT%H%M%S}"
        confirmed.add(name)
        before = next((document for document in known if _shared(window, _gap(document).gap, gap)), None)
        document: Document = {
            "_id": name,
            "series": key,
            "start": gap.start,
            "end": gap.end,
            "bars": gap.bars,
            "status": CONFIRMED,
            "asked": (before["asked"] if before else 0) + 1,
            "source": source,
            "first_seen": before["first_seen"] if before else now,
            "last_asked": now,
            "flow_run_id": flow_run_id,
        }
        if before and (gap.end <= window.start or window.end <= gap.start):
            # what is left of a gap outside the window, which nobody asked for
            document |= {name: before[name] for name in ("asked", "source", "last_asked", "flow_run_id")}
        store.documents.put(GAPS, document)
    repaired = 0
    for document in known:
        old = _gap(document).gap
        if document["_id"] in confirmed:
            continue
        # what is left of a gap that was filled in part is on record under its own name
        left = [_bars(shared, gap, calendar) for gap in missing if (shared := _shared(window, old, gap))]
        filled = old.bars - sum(left)
        if filled:
            repaired += filled
            store.documents.put(GAPS, {**document, "status": REPAIRED, "last_asked": now, "flow_run_id": flow_run_id})
        else:
            store.documents.delete(GAPS, document["_id"])  # it is part of a longer one now
    return repaired


def find(store: Store, symbol: str, timeframe: str, status: str | None = CONFIRMED) -> list[ConfirmedGap]:
    """The gaps of a series by time; of one status only, unless that is None."""
    found = store.documents.find(GAPS, {"series": series_key(symbol, timeframe)}, Span("start"))
    return [_gap(document) for document in found if status in {None, document["status"]}]


def within(store: Store, window: Window) -> list[ConfirmedGap]:
    """The confirmed gaps that share time with a window, by time."""
    return [_gap(document) for document in _sharing(store, window) if document["status"] == CONFIRMED]


def _in(store: Store, window: Window) -> list[Document]:
    key = series_key(window.symbol, window.timeframe.value)
    return store.documents.find(GAPS, {"series": key}, Span("start", window.start, window.end))


def _sharing(store: Store, window: Window) -> list[Document]:
    """The gaps of any status that share time with a window; none reaches over the border of a chunk's period."""
    first = period_start(window.timeframe, window.start)
    return [document for document in _in(store, window.within(first, window.end)) if document["end"] > window.start]


def _with_outside(window: Window, found: list[Gap], known: list[Gap], calendar: str) -> list[Gap]:
    """The gaps found in a window, together with what known ones that cross its border have outside it."""
    crossing = [gap for gap in known if gap.start < window.start or window.end < gap.end]
    if not crossing:
        return found
    whole = window.within(
        min(window.start, *(gap.start for gap in crossing)), max(window.end, *(gap.end for gap in crossing))
    )
    expected = expected_opens(whole, calendar)
    start, end = (int(border.timestamp() * 1000) for border in (window.start, window.end))
    inside = (start <= expected) & (expected < end)
    missing = (_covered(expected, found) & inside) | (_covered(expected, crossing) & ~inside)
    return gaps(expected, expected[missing], window.timeframe.delta)


def _covered(expected: np.ndarray, by: list[Gap]) -> np.ndarray:
    covered = np.zeros(len(expected), dtype=bool)
    for gap in by:
        start, end = (int(border.timestamp() * 1000) for border in (gap.start, gap.end))
        covered |= (start <= expected) & (expected < end)
    return covered


def _shared(window: Window, one: Gap, other: Gap) -> Window | None:
    start, end = max(one.start, other.start), min(one.end, other.end)
    return window.within(start, end) if start < end else None


def _bars(shared: Window, gap: Gap, calendar: str) -> int:
    """How many bars of a gap lie in a part of it."""
    whole = (shared.start, shared.end) == (gap.start, gap.end)
    return gap.bars if whole else len(expected_opens(shared, calendar))


def _gap(document: Document) -> ConfirmedGap:
    return ConfirmedGap(
        Gap(document["start"], document["end"], document["bars"]),
        document["status"],
        document["asked"],
        document["source"],
        document["first_seen"],
        document["last_asked"],
        document["flow_run_id"],
    )
