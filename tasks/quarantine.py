"""Quarantine: rows that were put aside, each with its reasons, for a person to look at."""

from __future__ import annotations

import hashlib
import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from tasks.documents import Document, Span
from tasks.store import QUARANTINE, Store, series_key
from trading.candles import COLUMNS
from trading.window import EPOCH, Window


def put(store: Store, window: Window, rows: pd.DataFrame, *, source: str, now: datetime, data_mode: str) -> int:
    """Put rows aside; returns how many had not been there before.

    Args:
        rows: columns ``open_time`` (int64 ms UTC), ``open high low close volume`` (float64, whatever
            the source gave) and ``reasons`` (list of codes of ``trading.masks.Reason``).
    """
    key = series_key(window.symbol, window.timeframe.value)
    new = 0
    # the n-th equal row of a batch is a row of its own: two copies of one candle are two rows put aside
    copies: dict[str, int] = {}
    for row in rows.to_dict("records"):
        values = {name: _value(row[name]) for name in COLUMNS}
        content = hashlib.sha256(json.dumps([values, row["reasons"]]).encode()).hexdigest()[:16]
        name = f"{key}|{row['open_time']}|{content}"
        copies[name] = copies.get(name, 0) + 1
        document: Document = {
            "_id": f"{name}|{copies[name]}",
            "series": key,
            "open_time": _moment(row["open_time"]),
            **values,
            "reasons": list(row["reasons"]),
            "window": str(window),
            "source": source,
            "data_mode": data_mode,
            "first_seen": now,
        }
        new += store.documents.insert(QUARANTINE, document)
    return new


def find(store: Store, symbol: str, timeframe: str) -> list[Document]:
    """Rows put aside of a series, by open time."""
    return store.documents.find(QUARANTINE, {"series": series_key(symbol, timeframe)}, Span("open_time"))


def counts(store: Store, symbol: str | None = None) -> dict[str, dict[str, int]]:
    """How many rows per series and reason; of one symbol only, where it is given."""
    found: dict[str, dict[str, int]] = {}
    for document in store.documents.find(QUARANTINE):
        if symbol is not None and document["series"].rsplit("|", 1)[0] != symbol:
            continue
        of_series = found.setdefault(document["series"], {})
        for reason in document["reasons"]:
            of_series[reason] = of_series.get(reason, 0) + 1
    return found


def _moment(open_time: int) -> datetime:
    """The open time, or the nearest time that there is: a source that counts in other units gives any number."""
    try:
        return EPOCH + timedelta(milliseconds=open_time)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC) if open_time < 0 else datetime.max.replace(tzinfo=UTC)


def _value(number: float) -> Any:
    """A number as a document can hold it: NaN and infinities as text."""
    return float(number) if math.isfinite(number) else str(number)
