"""Datasets: ledger-approved windows of some symbols, frozen, named by one digest over times and values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from tasks import ledger
from tasks.documents import Document
from tasks.store import DATASETS, Store, read_candles, read_candles_at, read_with_revisions
from trading.errors import DatasetLost, InsufficientHistory
from trading.window import Timeframe, Window

if TYPE_CHECKING:
    import pandas as pd

# from the least real to the most: a mixture is called by its least real part
MODES: Final = ("simulated", "sample", "live")


@dataclass(frozen=True)
class Dataset:
    """What a training or a backtest reads.

    Attributes:
        windows: one per symbol, wholly approved by the ledger.
        rows: candles per symbol.
        digest: sha256 over symbols, times and values.
        data_mode: live, sample or simulated; the least real of its series.
        calendars: the calendar of each symbol.
        revisions: of the chunks that it was read from, so that it can be read again after corrections.
    """

    windows: tuple[Window, ...]
    rows: Mapping[str, int]
    digest: str
    data_mode: str
    calendars: Mapping[str, str]
    revisions: Mapping[str, int]

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols, in the order asked for."""
        return tuple(window.symbol for window in self.windows)

    @property
    def timeframe(self) -> Timeframe:
        """The timeframe that all windows share."""
        return self.windows[0].timeframe


def select(
    store: Store, symbols: Sequence[str], timeframe: Timeframe, start: datetime, end: datetime, *, now: datetime
) -> Dataset:
    """Freeze the approved candles of a span as a dataset; ``find`` gives it again by its digest.

    A symbol that was listed later begins later.

    Raises:
        InsufficientHistory: the ledger has not approved all of it; names the series, the first gap, and
            the command that fills it.
    """
    windows = tuple(ledger.since_listed(store, Window(symbol, timeframe, start, end)) for symbol in symbols)
    modes, calendars, frames = {}, {}, {}
    revisions: dict[str, int] = {}
    for window in windows:
        ledger.require_approved(store, window)
        newest = ledger.approved(store, window)[-1]
        modes[window.symbol], calendars[window.symbol] = newest.data_mode, newest.calendar
        frames[window.symbol], read = read_with_revisions(store, window)
        revisions |= read
    empty = [symbol for symbol, frame in frames.items() if frame.empty]
    if empty:
        raise InsufficientHistory(f"the store holds no candles of {', '.join(empty)} {timeframe} in {windows[0]}")
    from ml.training import dataset_digest

    rows = {symbol: len(frame) for symbol, frame in frames.items()}
    mode = least_real(modes.values())
    dataset = Dataset(windows, rows, dataset_digest(frames), mode, calendars, revisions)
    store.documents.put(DATASETS, _document(dataset, now))
    return dataset


def find(store: Store, digest: str) -> Dataset:
    """A dataset that was frozen earlier.

    Raises:
        DatasetLost: this store never had it.
    """
    document = store.documents.get(DATASETS, digest)
    if document is None:
        raise DatasetLost(f"the store knows no dataset {digest}; it was frozen in another store, or not at all")
    windows = tuple(
        Window(one["symbol"], Timeframe(one["timeframe"]), one["start"], one["end"]) for one in document["windows"]
    )
    return Dataset(
        windows,
        {one["symbol"]: one["rows"] for one in document["windows"]},
        digest,
        document["data_mode"],
        {one["symbol"]: one["calendar"] for one in document["windows"]},
        {one["chunk"]: one["rev"] for one in document["revisions"]},
    )


def load(store: Store, dataset: Dataset) -> dict[str, pd.DataFrame]:
    """The candle frames of a dataset by symbol, exactly as they were frozen, whatever was corrected since.

    Raises:
        DatasetLost: they cannot be read back exactly; says why.
    """
    from ml.training import dataset_digest

    frames = {window.symbol: read_candles(store, window) for window in dataset.windows}
    if dataset_digest(frames) == dataset.digest:
        return frames
    frames = {window.symbol: read_candles_at(store, window, dataset.revisions) for window in dataset.windows}
    digest = dataset_digest(frames)
    if digest != dataset.digest:
        raise DatasetLost(
            f"dataset {dataset.digest[:12]} of {', '.join(dataset.symbols)} {dataset.timeframe} cannot be read back: "
            f"its candles are {digest[:12]} now, and the changes on record do not explain it; make a new dataset"
        )
    return frames


def _document(dataset: Dataset, now: datetime) -> Document:
    windows = [
        {
            "symbol": window.symbol,
            "timeframe": window.timeframe.value,
            "start": window.start,
            "end": window.end,
            "rows": dataset.rows[window.symbol],
            "calendar": dataset.calendars[window.symbol],
        }
        for window in dataset.windows
    ]
    return {
        "_id": dataset.digest,
        "windows": windows,
        "data_mode": dataset.data_mode,
        # as a list: the names of chunks are no names of fields
        "revisions": [{"chunk": chunk, "rev": rev} for chunk, rev in sorted(dataset.revisions.items())],
        "created_at": now,
    }


def least_real(modes: Iterable[str]) -> str:
    """The mode that a mixture must be labelled with."""
    return min(modes, key=MODES.index)
