"""The ledger: one record per ingested window. It says what is approved, what is missing, and whence.

Only approved windows are read by training and backtests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tasks.documents import Document, Span
from tasks.store import LEDGER, Store, series, series_key
from trading.errors import InsufficientHistory
from trading.window import Timeframe, Window, split_by_period, subtract

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
        gaps: bars that the calendar expects and nobody gave.
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


@dataclass(frozen=True)
class SeriesSummary:
    """One series as the ledger and the store see it; times are open times, UTC."""

    symbol: str
    timeframe: str
    data_mode: str
    first: datetime | None
    last: datetime | None
    rows: int
    quarantined: int
    gaps: int
    refused: int
    recorded_at: datetime


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


def approved_spans(store: Store, symbol: str, timeframe: str) -> list[tuple[datetime, datetime]]:
    """Start and end of each approved window of a series."""
    return [
        (entry.window.start, entry.window.end)
        for entry in entries(store, symbol, timeframe)
        if entry.status == APPROVED
    ]


def missing(store: Store, window: Window) -> list[Window]:
    """The parts of ``window`` that are not approved, cut at the borders of chunk periods."""
    gaps = subtract(window, approved_spans(store, window.symbol, window.timeframe.value))
    return [part for gap in gaps for part in split_by_period(gap)]


def require_approved(store: Store, window: Window) -> None:
    """Pass if all of ``window`` is approved.

    Raises:
        InsufficientHistory: it is not; names the first missing part and the command that fetches it.
    """
    gaps = subtract(window, approved_spans(store, window.symbol, window.timeframe.value))
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
                quarantined=sum(sum(entry.quarantined.values()) for entry in mine),
                gaps=sum(entry.gaps for entry in mine),
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
    )
