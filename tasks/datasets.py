"""Datasets: ledger-approved windows of some symbols, named by one digest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from tasks import ledger
from tasks.store import Store, read_candles
from trading.errors import InsufficientHistory
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
    """

    windows: tuple[Window, ...]
    rows: Mapping[str, int]
    digest: str
    data_mode: str
    calendars: Mapping[str, str]

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols, in the order asked for."""
        return tuple(window.symbol for window in self.windows)

    @property
    def timeframe(self) -> Timeframe:
        """The timeframe that all windows share."""
        return self.windows[0].timeframe


def select(store: Store, symbols: Sequence[str], timeframe: Timeframe, start: datetime, end: datetime) -> Dataset:
    """The approved dataset over a span.

    Raises:
        InsufficientHistory: the ledger has not approved all of it; names the series, the first gap, and
            the command that fills it.
    """
    windows = tuple(Window(symbol, timeframe, start, end) for symbol in symbols)
    modes, calendars = {}, {}
    for window in windows:
        ledger.require_approved(store, window)
        entries = ledger.entries(store, window.symbol, timeframe)
        modes[window.symbol], calendars[window.symbol] = entries[-1].data_mode, entries[-1].calendar
    frames = load(store, windows)
    empty = [symbol for symbol, frame in frames.items() if frame.empty]
    if empty:
        raise InsufficientHistory(f"the store holds no candles of {', '.join(empty)} {timeframe} in {windows[0]}")
    from ml.training import dataset_digest

    rows = {symbol: len(frame) for symbol, frame in frames.items()}
    return Dataset(windows, rows, dataset_digest(frames), least_real(modes.values()), calendars)


def load(store: Store, windows: Iterable[Window]) -> dict[str, pd.DataFrame]:
    """The candle frames of a dataset by symbol."""
    return {window.symbol: read_candles(store, window) for window in windows}


def least_real(modes: Iterable[str]) -> str:
    """The mode that a mixture must be labelled with."""
    return min(modes, key=MODES.index)
