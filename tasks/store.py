"""The store: candles, analyses and results, above the document port.

Candles lie in one document per symbol, timeframe and calendar period (``tasks.chunks``). A chunk is
written by compare-and-set, so it is the old one or the new one, whoever else writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pandas as pd

from tasks import chunks
from tasks.chunks import Correction, Revision, chunk_id, merge
from tasks.documents import Collection, Document, Documents, Index, Span
from tasks.settings import Settings
from trading.candles import between, check, digest
from trading.errors import DataModeConflict, DatasetLost, RevisionConflict, StoreError
from trading.window import Window, as_utc, period_start, split_by_period

SERIES: Final = Collection("series")
CHUNKS: Final = Collection("candles", (Index("candles_series_idx", ("series", "start"), unique=True),))
DATASETS: Final = Collection("datasets", (Index("datasets_created_idx", ("created_at",)),))
ANALYSES: Final = Collection("ai_analysis", (Index("symbol_timestamp_idx", ("symbol", "timestamp")),))
RESULTS: Final = Collection("results", (Index("results_kind_idx", ("kind", "created_at")),))
LEDGER: Final = Collection(
    "ledger", (Index("ledger_series_idx", ("series", "start")), Index("ledger_recorded_idx", ("recorded_at",)))
)
GAPS: Final = Collection("gaps", (Index("gaps_series_idx", ("series", "start")),))
QUARANTINE: Final = Collection(
    "quarantine",
    (Index("quarantine_series_idx", ("series", "open_time")), Index("quarantine_seen_idx", ("first_seen",))),
)
CIRCUITS: Final = Collection("circuits")
PROMOTIONS: Final = Collection("promotions", (Index("promotions_model_idx", ("model", "number"), unique=True),))
LLM_KEYS: Final = Collection("llm_keys")
LLM_BUDGETS: Final = Collection("llm_budgets")
LLM_CALLS: Final = Collection("llm_calls", (Index("llm_calls_day_idx", ("day", "at")),))
ENGINE_SETTINGS: Final = Collection("engine_settings", (Index("engine_settings_number_idx", ("number",)),))
NOTIFICATIONS: Final = Collection("notifications", (Index("notifications_state_idx", ("state", "at")),))
DISABLED: Final = Collection("disabled_strategies", (Index("disabled_strategies_idx", ("strategy", "since")),))
PROPOSALS: Final = Collection("proposals", (Index("proposals_status_idx", ("status", "at")),))
SIGNALS: Final = Collection("signals")
SETTLEMENTS: Final = Collection("settlements", (Index("settlements_settled_idx", ("timeframe", "timestamp")),))
SCOREBOARDS: Final = Collection("scoreboards", (Index("scoreboards_until_idx", ("timeframe", "until")),))
COLLECTIONS: Final = (
    SERIES, CHUNKS, DATASETS, ANALYSES, RESULTS, LEDGER, GAPS, QUARANTINE, CIRCUITS, PROMOTIONS,
    LLM_KEYS, LLM_BUDGETS, LLM_CALLS,
    ENGINE_SETTINGS, NOTIFICATIONS, DISABLED, PROPOSALS,
    SIGNALS, SETTLEMENTS, SCOREBOARDS,
)  # fmt: skip

FORMAT: Final = 2  # raise it whenever documents change their meaning
CONFLICT_ATTEMPTS: Final = 50


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

    ``withdrawn`` counts stored candles of the window that were not among those written; they stay.
    ``digest`` names the candles of the window as the store now holds them.
    """

    added: int
    changed: int
    unchanged: int
    withdrawn: int
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

    return _of_this_format(Store(SqliteDocuments(home / "store.db", COLLECTIONS)))


def configured_store(settings: Settings) -> Store:
    """The store that the settings name: MongoDB where there is an address, else the embedded one.

    Raises:
        StoreUnavailable: the home folder cannot be made or written, or the server does not answer.
    """
    if settings.mongodb_url is None:
        return open_store(settings.home)
    from tasks.mongo_documents import MongoDocuments

    return _of_this_format(Store(MongoDocuments(settings.mongodb_url.get_secret_value(), COLLECTIONS)))


def _of_this_format(store: Store) -> Store:
    """The store itself, if its documents are as this version writes them.

    Raises:
        StoreError: they are of another version.
    """
    try:
        found = _format(store)
    except BaseException:
        store.documents.close()
        raise
    if found != FORMAT:
        store.documents.close()
        raise StoreError(
            f"the store is of format {found} and this version reads format {FORMAT}; ingest again into another "
            "TRADEFLOWS_HOME (or database), or use the version that wrote it"
        )
    return store


def _format(store: Store) -> int:
    """The format of the store's documents; an empty store is marked with ours."""
    marked = store.documents.get(SERIES, "format")
    if marked is not None:
        return int(marked.get("version", 0))
    if store.documents.find(CHUNKS, newest=1):
        return 1
    store.documents.insert(SERIES, {"_id": "format", "version": FORMAT})
    return FORMAT


def series_key(symbol: str, timeframe: str) -> str:
    """Names a series in every collection."""
    return f"{symbol}|{timeframe}"


# --- candles -------------------------------------------------------------------------------------


def write_candles(
    store: Store, window: Window, candles: pd.DataFrame, data_mode: str, revision: Revision | None = None
) -> WriteReport:
    """Merge the candles that lie in ``window`` into the series; equal candles touch nothing.

    A window over several chunks is written chunk by chunk, each of them old or new.

    Args:
        revision: given where the window was approved before, so that somebody may have read it: what
            the write changes is kept and can be undone.

    Raises:
        CandleContractError: the frame breaks the contract.
        DataModeConflict: the series holds candles of another data mode; nothing was written.
        RevisionConflict: other writers kept changing a chunk.
    """
    candles = between(check(candles), window)
    _claim_mode(store, window, data_mode)
    added = changed = 0
    held: list[pd.DataFrame] = []
    whole = None
    for part in split_by_period(window):
        rows = between(candles, part)
        if len(rows):
            merged, written = _write_chunk(store, part, rows, data_mode, revision)
            added, changed = added + len(merged.added), changed + len(merged.changed)
            held.append(between(merged.candles, part))
            whole = written if len(held[-1]) == len(merged.candles) else None
        else:
            held.append(read_candles(store, part))
    now = pd.concat(held) if len(held) > 1 else held[0]
    # a window that is all of its chunk has the chunk's digest
    found = whole if whole and len(held) == 1 else digest(now)
    return WriteReport(added, changed, len(candles) - added - changed, len(now) - len(candles), found)


def read_candles(store: Store, window: Window) -> pd.DataFrame:
    """The stored candles of ``window``, in the contract of ``trading.candles``; empty where there are none.

    Raises:
        StoreUnavailable: a chunk is not what was written; says which.
    """
    return between(chunks.frames(_chunks(store, window)), window)


def read_candles_at(store: Store, window: Window, revisions: Mapping[str, int]) -> pd.DataFrame:
    """The candles of ``window`` as they were when its chunks had these revisions (see ``read_with_revisions``).

    Raises:
        DatasetLost: what was replaced since is no longer kept.
    """
    found = _chunks(store, window)
    key = series_key(window.symbol, window.timeframe.value)
    # the revisions may be of other series, too
    wanted = {chunk_id(key, part) for part in split_by_period(window)}.intersection(revisions)
    gone = wanted - {chunk["_id"] for chunk in found}
    if gone:
        raise DatasetLost(f"the chunks {sorted(gone)} of {window} are no longer in the store")
    parts = [chunks.before(chunk, revisions.get(chunk["_id"], 0)) for chunk in found]
    return between(pd.concat(parts), window) if parts else chunks.frame(None)


def read_with_revisions(store: Store, window: Window) -> tuple[pd.DataFrame, dict[str, int]]:
    """The stored candles of ``window``, and the revision of each chunk that they were read from."""
    found = _chunks(store, window)
    return between(chunks.frames(found), window), {chunk["_id"]: chunk["rev"] for chunk in found}


def corrections(store: Store, symbol: str, timeframe: str) -> list[Correction]:
    """Candles that were changed, or came, after their window had been approved; by time of the change."""
    found = store.documents.find(CHUNKS, {"series": series_key(symbol, timeframe)}, Span("start"))
    made = [correction for chunk in found for correction in chunks.corrections(chunk)]
    return sorted(made, key=lambda correction: (correction.revision.at, correction.open_time))


def _chunks(store: Store, window: Window) -> list[Document]:
    key = series_key(window.symbol, window.timeframe.value)
    span = Span("start", period_start(window.timeframe, window.start), window.end)
    return store.documents.find(CHUNKS, {"series": key}, span)


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


def _write_chunk(
    store: Store, part: Window, rows: pd.DataFrame, data_mode: str, revision: Revision | None
) -> tuple[chunks.Merged, str | None]:
    """The chunk as it is now, and its digest where it was written."""
    key = series_key(part.symbol, part.timeframe.value)
    for _ in range(CONFLICT_ATTEMPTS):
        stored = store.documents.get(CHUNKS, chunk_id(key, part))
        merged = merge(chunks.frame(stored), rows)
        if not merged.touched:
            return merged, None
        chunk = chunks.document(key, part, merged, stored, data_mode, revision)
        if store.documents.compare_and_set(CHUNKS, chunk, stored["rev"] if stored else 0):
            return merged, str(chunk["digest"])
    raise RevisionConflict(
        f"chunk {chunk_id(key, part)} was changed by others {CONFLICT_ATTEMPTS} times in a row; try again"
    )


# --- analyses and results ------------------------------------------------------------------------


def put_analysis(store: Store, document: Document) -> None:
    """Store an analysis; there is one per symbol, timeframe and bar close, and the last one stands."""
    store.documents.put(ANALYSES, keyed_analysis(document))


def keyed_analysis(document: Document) -> Document:
    """The analysis under its key."""
    key = f"{document['symbol']}|{document['timeframe']}|{as_utc(document['timestamp']):%Y-%m-%dT%H:%M:%SZ}"
    return {**document, "_id": key}


def analyses(store: Store, symbol: str, since: datetime | None = None) -> list[Document]:
    """Analyses of a symbol with ``timestamp`` at or after ``since``, oldest first."""
    return store.documents.find(ANALYSES, {"symbol": symbol}, Span("timestamp", since))


def newest_analysis(store: Store, symbol: str, timeframe: str, until: datetime | None = None) -> Document | None:
    """The newest analysis of a series with ``timestamp`` before ``until``."""
    # of all timeframes of a symbol; it is nearly always among the last
    for newest in (32, None):
        there = store.documents.find(ANALYSES, {"symbol": symbol}, Span("timestamp", None, until), newest=newest)
        mine = [document for document in there if document["timeframe"] == timeframe]
        if mine:
            return max(mine, key=lambda document: document["timestamp"])
        if newest is None or len(there) < newest:
            break
    return None


def latest_analyses(store: Store) -> list[Document]:
    """The newest analysis of each stored series that has one."""
    found = [newest_analysis(store, one.symbol, one.timeframe) for one in series(store)]
    return [one for one in found if one is not None]


def put_result(store: Store, key: str, kind: str, result: dict[str, Any], now: datetime) -> None:
    """Store the answer to a request under the request's digest."""
    store.documents.put(RESULTS, {"_id": key, "kind": kind, "created_at": now, "result": result})


def touch_result(store: Store, key: str, now: datetime) -> bool:
    """Whether an answer is stored; if so it counts as used at ``now``, which keeps it from maintenance."""
    for _ in range(CONFLICT_ATTEMPTS):
        found = store.documents.get(RESULTS, key)
        if found is None:
            return False
        if now - max(found["created_at"], found.get("used_at") or found["created_at"]) < timedelta(days=1):
            return True
        if store.documents.compare_and_set(RESULTS, {**found, "used_at": now}, found["rev"]):
            return True
    raise RevisionConflict(f"the result {key[:12]} was changed by others {CONFLICT_ATTEMPTS} times; try again")


def get_result(store: Store, key: str) -> dict[str, Any] | None:
    """The stored answer to a request, or None."""
    document = store.documents.get(RESULTS, key)
    return dict(document["result"]) if document is not None else None
