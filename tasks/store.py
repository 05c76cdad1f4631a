"""The store: candle chunks, staged batches, analyses and results, above the document port.

Candles lie in one document per symbol, timeframe and calendar period (``trading.window.period_start``),
as an Arrow stream with zstd, first, last, rows and digest in the clear. A chunk is written by
compare-and-set, so it is the old one or the new one, whoever else writes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import pandas as pd
import pyarrow as pa

from tasks.documents import Collection, Document, Documents, Index, Span
from tasks.settings import Settings
from trading.candles import COLUMNS, between, check, digest, empty, frame_of, open_times_ms
from trading.errors import ConfigurationError, DataModeConflict, RevisionConflict, StoreUnavailable
from trading.window import Window, as_utc, period_end, period_start, split_by_period

SERIES: Final = Collection("series")
CHUNKS: Final = Collection("candles", (Index("candles_series_idx", ("series", "start"), unique=True),))
STAGING: Final = Collection("staging", expires="expires_at")
ANALYSES: Final = Collection("ai_analysis", (Index("symbol_timestamp_idx", ("symbol", "timestamp")),))
RESULTS: Final = Collection("results", (Index("results_kind_idx", ("kind", "created_at")),))
LEDGER: Final = Collection("ledger", (Index("ledger_series_idx", ("series", "start")),))
QUARANTINE: Final = Collection("quarantine", (Index("quarantine_series_idx", ("series", "open_time")),))
COLLECTIONS: Final = (SERIES, CHUNKS, STAGING, ANALYSES, RESULTS, LEDGER, QUARANTINE)

CONFLICT_ATTEMPTS: Final = 50
STAGED_FOR: Final = timedelta(days=1)


@dataclass(frozen=True)
class Store:
    """The open store. Close it, or use it as a context manager."""

    documents: Documents

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.documents.close()


@dataclass(frozen=True)
class WriteReport:
    """What a write did: new candles, candles that had other values, candles that were there already.

    ``digest`` names the candles of the window as the store now holds them.
    """

    added: int
    changed: int
    unchanged: int
    digest: str


@dataclass(frozen=True)
class SeriesInfo:
    """One stored series; ``first`` and ``last`` are open times, UTC."""

    symbol: str
    timeframe: str
    first: datetime
    last: datetime
    rows: int
    data_mode: str


def open_store(home: Path) -> Store:
    """The embedded store in ``home``.

    Raises:
        StoreUnavailable: the folder cannot be made or written.
    """
    from tasks.sqlite_documents import SqliteDocuments

    return Store(SqliteDocuments(home / "store.db", COLLECTIONS))


def configured_store(settings: Settings) -> Store:
    """The store that the settings name.

    Raises:
        ConfigurationError: a MongoDB server is named, which this version cannot use.
        StoreUnavailable: the home folder cannot be made or written.
    """
    if settings.mongodb_url is not None:
        raise ConfigurationError(
            "MONGODB_URL is set, and this version stores to the embedded database only; unset it to use the one in "
            f"{settings.home}"
        )
    return open_store(settings.home)


def series_key(symbol: str, timeframe: str) -> str:
    """Names a series in every collection."""
    return f"{symbol}|{timeframe}"


# --- candles -------------------------------------------------------------------------------------


def merge(stored: pd.DataFrame, new: pd.DataFrame) -> tuple[pd.DataFrame, int, int]:
    """Both frames as one; on equal open times the new row wins.

    Returns:
        The merged frame (sorted, unique), how many rows are new, how many have other values than before.
    """
    if stored.empty or new.empty:
        return (new, len(new), 0) if stored.empty else (stored, 0, 0)
    old_times, new_times = open_times_ms(stored), open_times_ms(new)
    at = np.minimum(np.searchsorted(old_times, new_times), len(old_times) - 1)
    known = old_times[at] == new_times
    old_values, new_values = stored[list(COLUMNS)].to_numpy(), new[list(COLUMNS)].to_numpy()
    changed = int((old_values[at[known]] != new_values[known]).any(axis=1).sum())
    added = int((~known).sum())
    if not added and not changed:
        return stored, 0, 0
    kept = ~np.isin(old_times, new_times)
    times = np.concatenate([old_times[kept], new_times])
    order = np.argsort(times, kind="stable")
    return frame_of(times[order], np.concatenate([old_values[kept], new_values])[order]), added, changed


def write_candles(store: Store, window: Window, candles: pd.DataFrame, data_mode: str) -> WriteReport:
    """Merge the candles that lie in ``window`` into the series; equal candles touch nothing.

    A window over several chunks is written chunk by chunk, each of them old or new.

    Raises:
        CandleContractError: the frame breaks the contract.
        DataModeConflict: the series holds candles of another data mode; nothing was written.
        RevisionConflict: other writers kept changing a chunk.
    """
    candles = between(check(candles), window)
    _claim_mode(store, window, data_mode)
    added = changed = 0
    for part in split_by_period(window):
        rows = between(candles, part)
        if len(rows):
            more, other = _write_chunk(store, part, rows, data_mode)
            added, changed = added + more, changed + other
    return WriteReport(added, changed, len(candles) - added - changed, digest(read_candles(store, window)))


def read_candles(store: Store, window: Window) -> pd.DataFrame:
    """The stored candles of ``window``, in the contract of ``trading.candles``; empty where there are none.

    Raises:
        StoreUnavailable: a chunk is not what was written; says which.
    """
    chunks = store.documents.find(
        CHUNKS,
        {"series": series_key(window.symbol, window.timeframe.value)},
        Span("start", period_start(window.timeframe, window.start), window.end),
    )
    if not chunks:
        return empty()
    frames = [_frame(chunk) for chunk in chunks]
    times = np.concatenate([open_times_ms(frame) for frame in frames])
    return between(frame_of(times, np.concatenate([frame.to_numpy() for frame in frames])), window)


def series(store: Store) -> list[SeriesInfo]:
    """Every stored series, by symbol and timeframe."""
    found: dict[str, SeriesInfo] = {}
    for chunk in store.documents.find(CHUNKS):
        symbol, timeframe = chunk["series"].rsplit("|", 1)
        known = found.get(chunk["series"])
        found[chunk["series"]] = SeriesInfo(
            symbol,
            timeframe,
            min(chunk["first"], known.first) if known else chunk["first"],
            max(chunk["last"], known.last) if known else chunk["last"],
            chunk["rows"] + (known.rows if known else 0),
            chunk["data_mode"],
        )
    return [found[key] for key in sorted(found)]


def _claim_mode(store: Store, window: Window, data_mode: str) -> None:
    key = series_key(window.symbol, window.timeframe.value)
    known = store.documents.get(SERIES, key)
    if known is None:
        store.documents.insert(SERIES, {"_id": key, "data_mode": data_mode})
        known = store.documents.get(SERIES, key) or {"data_mode": data_mode}
    if known["data_mode"] != data_mode:
        raise DataModeConflict(
            f"{window.symbol} {window.timeframe} holds {known['data_mode']} candles and these are {data_mode}; "
            "keep them apart: set TRADEFLOWS_HOME to another folder"
        )


def _write_chunk(store: Store, part: Window, rows: pd.DataFrame, data_mode: str) -> tuple[int, int]:
    key = series_key(part.symbol, part.timeframe.value)
    start = period_start(part.timeframe, part.start)
    chunk_id = f"{key}|{start:%Y-%m-%d}"
    for _ in range(CONFLICT_ATTEMPTS):
        stored = store.documents.get(CHUNKS, chunk_id)
        merged, added, changed = merge(_frame(stored), rows)
        if not added and not changed:
            return 0, 0
        chunk: Document = {
            "_id": chunk_id,
            "series": key,
            "start": start,
            "end": period_end(part.timeframe, part.start),
            "first": _moment(merged, 0),
            "last": _moment(merged, -1),
            "rows": len(merged),
            "digest": digest(merged),
            "data_mode": data_mode,
            "candles": _arrow(merged),
        }
        if store.documents.compare_and_set(CHUNKS, chunk, stored["rev"] if stored else 0):
            return added, changed
    raise RevisionConflict(f"chunk {chunk_id} was changed by others {CONFLICT_ATTEMPTS} times in a row; try again")


def _moment(candles: pd.DataFrame, at: int) -> datetime:
    return datetime.fromtimestamp(int(open_times_ms(candles)[at]) / 1000, tz=UTC)


def _frame(chunk: Document | None) -> pd.DataFrame:
    if chunk is None:
        return empty()
    try:
        table = _table(chunk["candles"])
        times, columns = table.column("open_time").to_numpy(), [table.column(name).to_numpy() for name in COLUMNS]
        candles = frame_of(times, np.column_stack(columns))
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise StoreUnavailable(f"chunk {chunk['_id']} is damaged ({error}); restore the store from a backup") from error
    # the database has no checksums of its own, and a damaged disk must not become other prices
    if digest(candles) != chunk.get("digest"):
        raise StoreUnavailable(f"chunk {chunk['_id']} is not what its digest says; restore the store from a backup")
    return candles


def _arrow(candles: pd.DataFrame) -> bytes:
    columns = {"open_time": open_times_ms(candles)} | {name: candles[name].to_numpy() for name in COLUMNS}
    return _stream(pa.table(columns))


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _table(stream: bytes) -> pa.Table:
    return pa.ipc.open_stream(stream).read_all()


# --- staged batches ------------------------------------------------------------------------------


def stage(store: Store, raw: pd.DataFrame, window: Window, now: datetime) -> str:
    """Keep raw rows for a day between two tasks; returns the name to ask for them by.

    Equal rows of a window have one name, so that a retry stages nothing twice.
    """
    body = _stream(pa.table({name: raw[name].to_numpy() for name in ("open_time", *COLUMNS)}))
    name = hashlib.sha256(f"{window}\0".encode() + body).hexdigest()
    document = {"_id": name, "window": str(window), "rows": body, "expires_at": now + STAGED_FOR}
    store.documents.put(STAGING, document)
    return name


def staged(store: Store, name: str) -> pd.DataFrame:
    """Raw rows that ``stage`` kept.

    Raises:
        RevisionConflict: they are gone (stored already, or older than a day); fetch them again.
    """
    document = store.documents.get(STAGING, name)
    if document is None:
        raise RevisionConflict(f"the staged batch {name[:12]} is gone; fetch its window again")
    frame: pd.DataFrame = _table(document["rows"]).to_pandas()
    return frame


def unstage(store: Store, name: str) -> None:
    """Forget staged rows."""
    store.documents.delete(STAGING, name)


# --- analyses and results ------------------------------------------------------------------------


def put_analysis(store: Store, document: Document) -> None:
    """Store an analysis; there is one per symbol, timeframe and bar close, and the last one stands."""
    key = f"{document['symbol']}|{document['timeframe']}|{as_utc(document['timestamp']):%Y-%m-%dT%H:%M:%SZ}"
    store.documents.put(ANALYSES, {**document, "_id": key})


def analyses(store: Store, symbol: str, since: datetime | None = None) -> list[Document]:
    """Analyses of a symbol with ``timestamp`` at or after ``since``, oldest first."""
    return store.documents.find(ANALYSES, {"symbol": symbol}, Span("timestamp", since))


def latest_analyses(store: Store) -> list[Document]:
    """The newest analysis of each stored series that has one."""
    found = []
    for one in series(store):
        mine = [document for document in analyses(store, one.symbol) if document["timeframe"] == one.timeframe]
        found += mine[-1:]
    return found


def put_result(store: Store, key: str, kind: str, result: dict[str, Any], now: datetime) -> None:
    """Store the answer to a request under the request's digest."""
    store.documents.put(RESULTS, {"_id": key, "kind": kind, "created_at": now, "result": result})


def get_result(store: Store, key: str) -> dict[str, Any] | None:
    """The stored answer to a request, or None."""
    document = store.documents.get(RESULTS, key)
    return dict(document["result"]) if document is not None else None
