"""The ledger: one record per ingested window. It says what is approved, what is missing, and whence.

Only approved windows are read by training and backtests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import numpy as np

from tasks.documents import Document, Span
from tasks.store import GAPS, LEDGER, QUARANTINE, SERIES, Store, read_candles, series, series_key
from trading.calendars import expected_opens
from trading.candles import digest, open_times_ms
from trading.errors import InsufficientHistory
from trading.window import Timeframe, Window, period_start, split_by_period, subtract

APPROVED: Final = "approved"
REFUSED: Final = "refused"


@dataclass(frozen=True)
class LedgerEntry:
    """What became of one window.

    Attributes:
        status: ``approved`` or ``refused``.
        rows: good candles received.
        added: how many of them were not in the store before.
        quarantined: rows put aside per reason.
        gaps: bars that the calendar expects and the source, asked again, does not have.
        changed: stored candles that the source gave with other values.
        repaired: bars of confirmed gaps that the source gave after all.
        withdrawn: stored candles that the source did not give again; they stay.
        findings: expectations that were not met, as text.
        digest: of the window's candles as stored; empty where it was refused.
        suite: version of the expectations that judged it.
        recorded_at: scheduled time of the run, UTC.
    """

    window: Window
    status: str
    rows: int
    added: int
    quarantined: Mapping[str, int]
    gaps: int
    digest: str
    suite: str
    flow_run_id: str | None
    data_mode: str
    source: str
    calendar: str
    recorded_at: datetime
    changed: int = 0
    repaired: int = 0
    withdrawn: int = 0
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class SeriesSummary:
    """One series as the ledger and the store see it; times are open times, UTC.

    Attributes:
        approved_until: end of the newest approved window.
        quarantined: rows put aside that are still held.
        gaps: bars missing in confirmed gaps.
        corrected: candles that were changed, or came, late.
    """

    symbol: str
    timeframe: str
    data_mode: str
    first: datetime | None
    last: datetime | None
    rows: int
    approved_until: datetime | None
    quarantined: int
    gaps: int
    corrected: int
    refused: int
    recorded_at: datetime

    def bars_behind(self, now: datetime) -> int | None:
        """How many whole bars have ended since the newest approved one, on a market that never closes."""
        if self.approved_until is None:
            return None
        return max((now - self.approved_until) // Timeframe(self.timeframe).delta, 0)


def record(store: Store, entry: LedgerEntry) -> None:
    """Write the record of a window; a window ingested again has its record replaced.

    A refusal never replaces an approval: what was trusted before is still in the store.
    """
    window = entry.window
    key = f"{series_key(window.symbol, window.timeframe.value)}|{window.start:%Y%m%dT%H%M}-{window.end:%Y%m%dT%H%M}"
    document: Document = {
        "_id": key,
        "series": series_key(window.symbol, window.timeframe.value),
        "start": window.start,
        "end": window.end,
        "status": entry.status,
        "rows": entry.rows,
        "added": entry.added,
        "quarantined": dict(entry.quarantined),
        "gaps": entry.gaps,
        "digest": entry.digest,
        "suite": entry.suite,
        "flow_run_id": entry.flow_run_id,
        "data_mode": entry.data_mode,
        "source": entry.source,
        "calendar": entry.calendar,
        "recorded_at": entry.recorded_at,
        "changed": entry.changed,
        "repaired": entry.repaired,
        "withdrawn": entry.withdrawn,
        "findings": list(entry.findings),
    }
    if entry.status != REFUSED:
        store.documents.put(LEDGER, document)
        return
    while True:
        known = store.documents.get(LEDGER, key)
        if known is not None and known["status"] == APPROVED:
            return
        # an approval by another run between the two lines makes this look again
        if store.documents.compare_and_set(LEDGER, document, known["rev"] if known else 0):
            return


def entries(store: Store, symbol: str, timeframe: str) -> list[LedgerEntry]:
    """Every record of a series, by start of the window."""
    found = store.documents.find(
        LEDGER, {"series": series_key(symbol, Timeframe.parse(timeframe).value)}, Span("start")
    )
    return [_entry(document) for document in found]


def overlapping(store: Store, window: Window) -> list[LedgerEntry]:
    """The records of windows that share a bar with ``window``, by start."""
    # no record reaches over the border of a chunk's period
    span = Span("start", period_start(window.timeframe, window.start), window.end)
    found = store.documents.find(LEDGER, {"series": series_key(window.symbol, window.timeframe.value)}, span)
    return [entry for entry in map(_entry, found) if entry.window.end > window.start]


def recorded_between(store: Store, start: datetime, end: datetime) -> list[LedgerEntry]:
    """The records that runs scheduled in ``[start, end)`` made, of all series, by that time."""
    return [_entry(document) for document in store.documents.find(LEDGER, span=Span("recorded_at", start, end))]


def approved(store: Store, window: Window) -> list[LedgerEntry]:
    """The records that approve some of ``window``, by start."""
    return [entry for entry in overlapping(store, window) if entry.status == APPROVED]


def missing(store: Store, window: Window) -> list[Window]:
    """The parts of ``window`` that are not approved, cut at the borders of chunk periods."""
    return [part for gap in _unapproved(store, window) for part in split_by_period(gap)]


def _unapproved(store: Store, window: Window) -> list[Window]:
    return subtract(window, [(entry.window.start, entry.window.end) for entry in approved(store, window)])


def set_listed(store: Store, symbol: str, timeframe: Timeframe, first: datetime) -> None:
    """Note the open time of a symbol's first candle; of what several sources say, the earliest counts."""
    known = _listed(store, symbol, timeframe)
    if known is None or first < known:
        name = f"listed {series_key(symbol, timeframe.value)}"
        store.documents.put(SERIES, {"_id": name, "first": timeframe.floor(first)})


def since_listed(store: Store, window: Window) -> Window:
    """``window`` from the symbol's first candle on, where that is known and lies inside."""
    first = _listed(store, window.symbol, window.timeframe)
    return window.within(first, window.end) if first is not None and window.start < first < window.end else window


def _listed(store: Store, symbol: str, timeframe: Timeframe) -> datetime | None:
    known = store.documents.get(SERIES, f"listed {series_key(symbol, timeframe.value)}")
    return known["first"] if known is not None else None


def refresh(store: Store, window: Window) -> None:
    """Bring records up to date with what is stored, after a late change inside ``window``: rows, gaps, digest."""
    for entry in approved(store, window):
        held = read_candles(store, entry.window)
        expected = expected_opens(entry.window, entry.calendar)
        absent = int((~np.isin(expected, open_times_ms(held))).sum())
        now = replace(entry, digest=digest(held), rows=len(held), gaps=absent)
        if now != entry:
            record(store, now)


def require_approved(store: Store, window: Window) -> None:
    """Pass if all of ``window`` is approved.

    Raises:
        InsufficientHistory: it is not; names the first missing part and the command that fetches it.
    """
    gaps = _unapproved(store, window)
    if gaps:
        raise InsufficientHistory(
            f"{gaps[0]} has not been ingested and approved ({len(gaps)} such parts in {window}); "
            f"run: tradeflows ingest {window.symbol} --timeframe {window.timeframe} "
            f"--start {window.start:%Y-%m-%dT%H:%M} --end {window.end:%Y-%m-%dT%H:%M}"
        )


def summary(store: Store) -> list[SeriesSummary]:
    """Every series that the ledger knows, by symbol and timeframe."""
    by_series: dict[str, list[LedgerEntry]] = {}
    for document in store.documents.find(LEDGER):
        by_series.setdefault(document["series"], []).append(_entry(document))
    stored = {series_key(one.symbol, one.timeframe): one for one in series(store)}
    aside = Counter(row["series"] for row in store.documents.find(QUARANTINE) if row["status"] == "held")
    absent: Counter[str] = Counter()
    for gap in store.documents.find(GAPS):
        absent[gap["series"]] += gap["bars"] if gap["status"] == "confirmed" else 0
    found = []
    for key in sorted(by_series):
        mine, held = by_series[key], stored.get(key)
        found.append(
            SeriesSummary(
                symbol=mine[0].window.symbol,
                timeframe=mine[0].window.timeframe.value,
                data_mode=mine[-1].data_mode,
                first=held.first if held else None,
                last=held.last if held else None,
                rows=held.rows if held else 0,
                approved_until=max((entry.window.end for entry in mine if entry.status == APPROVED), default=None),
                quarantined=aside[key],
                gaps=absent[key],
                corrected=sum(entry.changed + entry.repaired for entry in mine),
                refused=sum(entry.status == REFUSED for entry in mine),
                recorded_at=max(entry.recorded_at for entry in mine),
            )
        )
    return found


def _entry(document: Document) -> LedgerEntry:
    symbol, timeframe = document["series"].rsplit("|", 1)
    names = ("status", "rows", "added", "quarantined", "gaps", "digest", "suite", "flow_run_id", "data_mode", "source")
    return LedgerEntry(
        window=Window(symbol, Timeframe(timeframe), document["start"], document["end"]),
        **{name: document[name] for name in names},
        calendar=document["calendar"],
        recorded_at=document["recorded_at"],
        # records of earlier versions lack these
        **{name: document.get(name, 0) for name in ("changed", "repaired", "withdrawn")},
        findings=tuple(document.get("findings", ())),
    )
