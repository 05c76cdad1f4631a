"""A chunk: the candles of one series and calendar period as one document, and what they were before.

The candles are an Arrow stream with zstd; first, last, rows and digest stand in the clear. ``checksum`` is over the
stored bytes and checked on every read: databases have no checksums of their own, and a damaged disk must not
become other prices. ``undo`` keeps what each late change replaced, with a checksum of its own, so that the chunk
can be read as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import xxhash

from tasks.documents import Document
from trading.candles import COLUMNS, digest, empty, frame_of, open_times_ms, values_of
from trading.errors import DatasetLost, StoreUnavailable
from trading.window import Window, period_end, period_start

# what is kept of late changes, per chunk: far more than exchanges correct, and far below a document's limit
UNDO_ENTRIES: Final = 1_000
UNDO_BYTES: Final = 4_000_000


@dataclass(frozen=True)
class Revision:
    """Where a late change comes from. ``at`` is the scheduled time of the run, UTC."""

    at: datetime
    source: str
    flow_run_id: str | None = None


@dataclass(frozen=True)
class Correction:
    """A candle that was stored, or known to be missing, and is another one now.

    ``old`` and ``new`` are (open, high, low, close, volume); ``old`` is None for a candle that came late.
    """

    open_time: datetime
    old: tuple[float, ...] | None
    new: tuple[float, ...]
    revision: Revision


@dataclass(frozen=True)
class Merged:
    """Two frames as one; ``added`` and ``changed`` are positions in ``candles``, ``old`` the values that changed."""

    candles: pd.DataFrame
    added: np.ndarray
    changed: np.ndarray
    old: np.ndarray

    @property
    def touched(self) -> bool:
        """Whether anything is not as it was."""
        return bool(len(self.added) or len(self.changed))


def chunk_id(series: str, window: Window) -> str:
    """Names the chunk of a window that lies in one period."""
    return f"{series}|{period_start(window.timeframe, window.start):%Y-%m-%d}"


def merge(stored: pd.DataFrame, new: pd.DataFrame) -> Merged:
    """Both frames as one, sorted and unique; on equal open times the new row wins."""
    nothing = np.empty(0, "int64")
    if new.empty:
        return Merged(stored, nothing, nothing, np.empty((0, len(COLUMNS))))
    if stored.empty:
        return Merged(new, np.arange(len(new)), nothing, np.empty((0, len(COLUMNS))))
    old_times, new_times = open_times_ms(stored), open_times_ms(new)
    old_values, new_values = values_of(stored), values_of(new)
    at = np.minimum(np.searchsorted(old_times, new_times), len(old_times) - 1)
    known = old_times[at] == new_times
    differs = np.zeros(len(new_times), dtype=bool)
    differs[known] = (old_values[at[known]] != new_values[known]).any(axis=1)
    if known.all() and not differs.any():
        return Merged(stored, nothing, nothing, np.empty((0, len(COLUMNS))))
    kept = ~np.isin(old_times, new_times)
    times = np.concatenate([old_times[kept], new_times])
    order = np.argsort(times, kind="stable")
    times = times[order]
    candles = frame_of(times, np.concatenate([old_values[kept], new_values])[order])
    return Merged(
        candles,
        np.searchsorted(times, new_times[~known]),
        np.searchsorted(times, new_times[differs]),
        old_values[at[differs]],
    )


def document(
    series: str, part: Window, merged: Merged, stored: Document | None, data_mode: str, revision: Revision | None
) -> Document:
    """The chunk to write over ``stored``. With a ``revision``, what it changes can be undone."""
    candles = merged.candles
    body = stream_of(candles)
    rev = stored["rev"] + 1 if stored else 1
    undo = list(stored.get("undo", [])) if stored else []
    forgotten = int(stored.get("forgotten", 0)) if stored else 0
    if revision is not None and merged.touched:
        undo.append(_undo(merged, revision, rev))
    while len(undo) > UNDO_ENTRIES or sum(len(entry["rows"]) for entry in undo) > UNDO_BYTES:
        forgotten = undo.pop(0)["rev"]
    return {
        "_id": chunk_id(series, part),
        "series": series,
        "start": period_start(part.timeframe, part.start),
        "end": period_end(part.timeframe, part.start),
        "first": _moment(candles, 0),
        "last": _moment(candles, -1),
        "rows": len(candles),
        "digest": digest(candles),
        "data_mode": data_mode,
        "candles": body,
        "checksum": xxhash.xxh3_128_hexdigest(body),
        "undo": undo,
        "forgotten": forgotten,
    }


def frame(chunk: Document | None) -> pd.DataFrame:
    """The candles of one chunk; none of None.

    Raises:
        StoreUnavailable: it is not what was written.
    """
    return frames([chunk] if chunk is not None else [])


def frames(chunks: Sequence[Document]) -> pd.DataFrame:
    """The candles of chunks that follow each other, as one frame.

    Raises:
        StoreUnavailable: one of them is not what was written; says which.
    """
    if not chunks:
        return empty()
    tables = [_table(chunk, chunk, "candles") for chunk in chunks]
    count = sum(table.num_rows for table in tables)
    # one copy, in the layout in which pandas keeps columns
    times, values = np.empty(count, "int64"), np.empty((len(COLUMNS), count))
    at = 0
    for chunk, table in zip(chunks, tables, strict=True):
        end = at + table.num_rows
        try:
            times[at:end] = _column(table, "open_time")
            for row, name in enumerate(COLUMNS):
                values[row, at:end] = _column(table, name)
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise damaged(chunk, str(error)) from error
        at = end
    return frame_of(times, values.T)


def before(chunk: Document, rev: int) -> pd.DataFrame:
    """The candles of a chunk as they were at an earlier ``rev``, where only late changes came after it.

    Raises:
        DatasetLost: what was replaced since is no longer kept.
    """
    if chunk.get("forgotten", 0) > rev:
        raise DatasetLost(
            f"chunk {chunk['_id']} was corrected too often since its revision {rev}: of what was replaced, only the "
            f"last {UNDO_ENTRIES} changes and {UNDO_BYTES:,} bytes are kept, for as long as maintenance is told to; "
            "make a new dataset"
        )
    candles = frame(chunk)
    for entry in reversed(chunk.get("undo", [])):
        if entry["rev"] <= rev:
            break
        rows = _undone(chunk, entry)
        times = open_times_ms(rows)
        absent = np.isnan(rows["close"].to_numpy())
        candles = merge(candles[~np.isin(open_times_ms(candles), times[absent])], rows[~absent]).candles
    return candles


def corrections(chunk: Document) -> list[Correction]:
    """The late changes that a chunk keeps, oldest first."""
    found: list[Correction] = []
    if not chunk.get("undo"):
        return found
    now = frame(chunk)
    # from the newest back, since an entry says only what was there before it
    for entry in reversed(chunk.get("undo", [])):
        rows = _undone(chunk, entry)
        revision = Revision(entry["at"], entry["source"], entry["flow_run_id"])
        then = now.reindex(rows.index).to_numpy()
        # the list is turned round at the end
        for opened, old, new in reversed(list(zip(rows.index, rows.to_numpy(), then, strict=True))):
            was = None if np.isnan(old).any() else tuple(old.tolist())
            found.append(Correction(opened.to_pydatetime(), was, tuple(new.tolist()), revision))
        absent = rows["close"].isna().to_numpy()
        kept = now[~np.isin(open_times_ms(now), open_times_ms(rows)[absent])]
        now = merge(kept, rows[~absent]).candles
    return found[::-1]


def stream_of(candles: pd.DataFrame) -> bytes:
    """Candles as an Arrow stream with zstd: columns ``open_time`` (int64 ms UTC) and the five of ``COLUMNS``."""
    columns = {"open_time": open_times_ms(candles)} | {name: candles[name].to_numpy() for name in COLUMNS}
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def damaged(chunk: Mapping[str, Any], why: str) -> StoreUnavailable:
    """The error for a chunk that is not what was written."""
    return StoreUnavailable(f"chunk {chunk.get('_id')} is damaged ({why}); restore the store from a backup")


def _table(chunk: Document, part: Document, name: str) -> pa.Table:
    """The candles in a field of a part of the chunk that has their checksum, too."""
    try:
        body = part[name]
        if xxhash.xxh3_128_hexdigest(body) != part["checksum"]:
            raise damaged(chunk, "its bytes are not what its checksum says")
        return pa.ipc.open_stream(body).read_all()
    except (pa.ArrowException, KeyError, ValueError, OSError, TypeError) as error:
        raise damaged(chunk, str(error)) from error


def _column(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table.column(name).to_numpy())


def _undo(merged: Merged, revision: Revision, rev: int) -> Document:
    times = open_times_ms(merged.candles)
    # no values where there was no candle
    rows = merge(
        frame_of(times[merged.changed], merged.old),
        frame_of(times[merged.added], np.full((len(merged.added), len(COLUMNS)), np.nan)),
    ).candles
    body = stream_of(rows)
    return {
        "rev": rev,
        "at": revision.at,
        "source": revision.source,
        "flow_run_id": revision.flow_run_id,
        "rows": body,
        "checksum": xxhash.xxh3_128_hexdigest(body),
    }


def _undone(chunk: Document, entry: Document) -> pd.DataFrame:
    table = _table(chunk, entry, "rows")
    return frame_of(_column(table, "open_time"), np.column_stack([_column(table, name) for name in COLUMNS]))


def _moment(candles: pd.DataFrame, at: int) -> datetime:
    return datetime.fromtimestamp(int(open_times_ms(candles)[at]) / 1000, tz=UTC)
