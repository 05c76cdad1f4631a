"""Quarantine: rows that were put aside, each with its reasons, for a person to look at.

A row is *held*; *healed* once a good candle of its bar is in the store; *released* once a person decided
that it is right, which puts it into the store.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pandas as pd

from tasks import gaps, ledger
from tasks.chunks import Revision
from tasks.documents import Document, Span
from tasks.store import QUARANTINE, Store, read_candles, series_key, write_candles
from trading.candles import COLUMNS, check, frame_of, open_times_ms
from trading.errors import CandleContractError, InvalidRequest
from trading.window import EPOCH, Timeframe, Window

HELD: Final = "held"
HEALED: Final = "healed"
RELEASED: Final = "released"
STATUSES: Final = (HELD, HEALED, RELEASED)


def put(store: Store, window: Window, rows: pd.DataFrame, *, source: str, now: datetime, data_mode: str) -> int:
    """Put rows aside; returns how many had not been there before.

    Args:
        rows: columns ``open_time`` (int64 ms UTC), ``open high low close volume`` (float64, whatever
            the source gave) and ``reasons`` (list of codes of ``trading.masks.Reason``).
    """
    key = series_key(window.symbol, window.timeframe.value)
    new = 0
    # the n-th equal row of a batch is a row of its own: two copies of one candle are two rows put aside
    copies: Counter[str] = Counter()
    for row in rows.to_dict("records"):
        values = {name: _value(row[name]) for name in COLUMNS}
        content = json.dumps([key, int(row["open_time"]), values, row["reasons"]])
        copies[content] += 1
        name = hashlib.sha256(f"{content} {copies[content]}".encode()).hexdigest()[:16]
        document: Document = {
            "_id": name,
            "series": key,
            "open_time": _moment(row["open_time"]),
            **values,
            "reasons": list(row["reasons"]),
            "window": str(window),
            "source": source,
            "data_mode": data_mode,
            "first_seen": now,
            "status": HELD,
        }
        new += store.documents.insert(QUARANTINE, document)
    return new


def heal(store: Store, window: Window, candles: pd.DataFrame) -> int:
    """Note which held rows of ``window`` have a good candle among ``candles`` now; returns how many."""
    times = set(open_times_ms(candles).tolist())
    healed = 0
    for row in _in(store, window):
        if row["status"] == HELD and int(row["open_time"].timestamp() * 1000) in times:
            store.documents.put(QUARANTINE, {**row, "status": HEALED})
            healed += 1
    return healed


def release(store: Store, name: str, *, note: str, now: datetime, replace: bool = False) -> Document:
    """Put a held row into the store: a person says that it is right. What it replaces can be undone.

    Args:
        replace: even where the store holds another candle of its bar.

    Raises:
        InvalidRequest: there is no such row, no note, it is not held, it is not a candle (an impossible one never
            is), its window has not been approved, or the store holds another candle and ``replace`` is not given.
    """
    row = show(store, name)
    if not note.strip():
        raise InvalidRequest("a release needs a note: why is the row right?")
    if row["status"] != HELD:
        raise InvalidRequest(f"{name} is {row['status']} already; only held rows can be released")
    symbol, bar = row["series"].rsplit("|", 1)
    timeframe = Timeframe(bar)
    try:
        values = [float(row[column]) for column in COLUMNS]
        window = Window(symbol, timeframe, row["open_time"], row["open_time"] + timeframe.delta)
        candle = check(frame_of([int(row["open_time"].timestamp() * 1000)], [values]))
        entries = ledger.approved(store, window)
    except (CandleContractError, ValueError, OverflowError) as error:  # no calendar reaches the last times there are
        raise InvalidRequest(f"{name} cannot be a candle: {error}") from error
    if not entries:
        raise InvalidRequest(f"{window} has not been approved; ingest it first")
    stored = read_candles(store, window)
    if len(stored) and not replace and (stored.to_numpy() != candle.to_numpy()).any():
        held = ", ".join(f"{column} {stored[column].iloc[0]:g}" for column in COLUMNS)
        raise InvalidRequest(
            f"the store holds another candle of {window} ({held}), which may be the correction of this row; look at "
            f"both with `tradeflows quarantine show {name}`, and if the row is right, release it with --replace"
        )
    # each step finds what an earlier try has done already, and the status comes last
    write_candles(store, window, candle, row["data_mode"], Revision(now, f"released: {note}"))
    ledger.refresh(store, window)
    _close_gap(store, window, row["source"], entries[-1].calendar, now)
    document = {**row, "status": RELEASED, "released_at": now, "note": note}
    store.documents.put(QUARANTINE, document)
    heal(store, window, candle)
    return document


def show(store: Store, name: str) -> Document:
    """A row by its id, or by a start of it that only one has.

    Raises:
        InvalidRequest: there is none, or several.
    """
    row = store.documents.get(QUARANTINE, name)
    if row is not None:
        return row
    found = [row for row in store.documents.find(QUARANTINE) if row["_id"].startswith(name)]
    if len(found) != 1:
        several = ", ".join(row["_id"] for row in found[:5])
        raise InvalidRequest(
            f"{name!r} begins the ids of {len(found)} rows in quarantine ({several}, ...); give more of it"
            if found
            else f"no row in quarantine has an id that begins with {name!r}; list them with: tradeflows quarantine list"
        )
    return found[0]


def find(store: Store, symbol: str, timeframe: str, status: str | None = None) -> list[Document]:
    """Rows put aside of a series, by open time; of one status only, where it is given."""
    found = store.documents.find(QUARANTINE, {"series": series_key(symbol, timeframe)}, Span("open_time"))
    return [row for row in found if status in {None, row["status"]}]


def seen_between(store: Store, start: datetime, end: datetime) -> list[Document]:
    """Rows of all series that runs scheduled in ``[start, end)`` put aside, by that time."""
    return store.documents.find(QUARANTINE, span=Span("first_seen", start, end))


def counts(store: Store, symbol: str | None = None, status: str | None = None) -> dict[str, dict[str, int]]:
    """How many rows per series and reason; of one symbol or status only, where they are given."""
    found: dict[str, dict[str, int]] = {}
    for document in store.documents.find(QUARANTINE):
        if symbol not in {None, document["series"].rsplit("|", 1)[0]} or status not in {None, document["status"]}:
            continue
        of_series = found.setdefault(document["series"], {})
        for reason in document["reasons"]:
            of_series[reason] = of_series.get(reason, 0) + 1
    return found


def _in(store: Store, window: Window) -> list[Document]:
    key = series_key(window.symbol, window.timeframe.value)
    return store.documents.find(QUARANTINE, {"series": key}, Span("open_time", window.start, window.end))


def _close_gap(store: Store, window: Window, source: str, calendar: str, now: datetime) -> None:
    """Take the bar of ``window`` out of the confirmed gap that it was part of."""
    gaps.record(store, window, (), source=source, now=now, flow_run_id=None, calendar=calendar)


def _moment(open_time: int) -> datetime:
    """The open time, or the nearest time that there is: a source that counts in other units gives any number."""
    try:
        return EPOCH + timedelta(milliseconds=open_time)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC) if open_time < 0 else datetime.max.replace(tzinfo=UTC)


def _value(number: float) -> Any:
    """A number as a document can hold it: NaN and infinities as text."""
    return float(number) if math.isfinite(number) else str(number)
