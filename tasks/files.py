"""Candle files: ``<symbol>_<timeframe>.parquet`` or ``.csv`` in one folder.

Columns ``timestamp`` or ``open_time`` (milliseconds UTC, or times with a zone), ``open high low close
volume``. History from a file is ``sample`` data unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import pandas as pd

from tasks.sources import SAMPLE, Instrument, milliseconds_of, moment_of, require_over
from trading.calendars import ALWAYS_OPEN
from trading.candles import COLUMNS
from trading.errors import ConfigurationError, MalformedResponse, UnknownSymbol
from trading.masks import RAW_COLUMNS
from trading.window import EPOCH, Timeframe, Window

TIME_COLUMNS: Final = ("open_time", "timestamp")


class FileSource:
    """``tasks.sources.Source`` over a folder."""

    def __init__(self, folder: Path, *, calendar: str = ALWAYS_OPEN, data_mode: str = SAMPLE) -> None:
        if not folder.is_dir():
            raise ConfigurationError(f"TRADEFLOWS_CANDLE_FOLDER {folder} is not a folder")
        self._folder, self._calendar, self._mode = folder, calendar, data_mode
        self._read: tuple[tuple[Path, int], pd.DataFrame] | None = None

    def describe(self, symbol: str) -> Instrument:
        if not any(_path(self._folder, symbol, timeframe) for timeframe in Timeframe):
            known = sorted({path.stem.rsplit("_", 1)[0] for path in self._folder.iterdir() if "_" in path.stem})
            raise UnknownSymbol(f"{self._folder} has no candles of {symbol!r}; it has {', '.join(known) or 'none'}")
        return Instrument(symbol, self._calendar, self._mode, f"files {self._folder}")

    def describe_all(self, symbols: Sequence[str]) -> list[Instrument]:
        return [self.describe(symbol) for symbol in symbols]

    def fetch(self, window: Window) -> pd.DataFrame:
        require_over(window, self.server_time())
        rows = self._rows(window.symbol, window.timeframe)
        first, end = milliseconds_of(window.start), milliseconds_of(window.end)
        return rows[(rows["open_time"] >= first) & (rows["open_time"] < end)].reset_index(drop=True)

    def listed(self, symbol: str, timeframe: Timeframe) -> datetime | None:
        return self.next_open(symbol, timeframe, EPOCH)

    def next_open(self, symbol: str, timeframe: Timeframe, after: datetime) -> datetime | None:
        opens = self._rows(symbol, timeframe)["open_time"].to_numpy()
        later = opens[opens >= milliseconds_of(after)]
        return moment_of(int(later.min())) if len(later) else None

    def server_time(self) -> datetime:
        return datetime.now(UTC)

    def _rows(self, symbol: str, timeframe: Timeframe) -> pd.DataFrame:
        path = _path(self._folder, symbol, timeframe)
        if path is None:
            raise UnknownSymbol(f"{self._folder} has no {symbol}_{timeframe}.parquet or .csv")
        # a backfill asks for one file window by window
        key = (path, path.stat().st_mtime_ns)
        known = self._read
        if known is None or known[0] != key:
            # another thread may put another file here at any time, so what is given back is our own
            self._read = known = (key, read(path))
        return known[1]

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> pd.DataFrame:
    """All rows of a candle file as a raw frame, in their order.

    Raises:
        MalformedResponse: not a readable file of its kind, a column is missing or is not numbers, or a row
            has no time.
    """
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, OSError, KeyError, TypeError, NotImplementedError) as error:
        # what pandas and pyarrow raise for a damaged file, by which of its bytes are hit
        raise MalformedResponse(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    time = next((name for name in TIME_COLUMNS if name in table.columns), None)
    missing = [name for name in COLUMNS if name not in table.columns]
    if time is None or missing:
        raise MalformedResponse(f"{path} lacks {missing or 'open_time (or timestamp)'}; it has {list(table.columns)}")
    try:
        columns = {"open_time": _milliseconds(table[time])}
        return pd.DataFrame(
            columns | {name: table[name].to_numpy(dtype="float64") for name in COLUMNS}, columns=list(RAW_COLUMNS)
        )
    except (TypeError, ValueError) as error:
        raise MalformedResponse(f"{path} holds something that is no number or time: {error}") from error


def _milliseconds(stamps: pd.Series) -> np.ndarray:
    if not pd.api.types.is_numeric_dtype(stamps):
        times = pd.DatetimeIndex(pd.to_datetime(stamps, utc=True)).as_unit("ms")
        if times.hasnans:
            raise ValueError(f"row {int(times.isna().argmax())} has no time")
        return np.asarray(times.asi8)
    return stamps.astype("int64").to_numpy()


def _path(folder: Path, symbol: str, timeframe: Timeframe) -> Path | None:
    for suffix in ("parquet", "csv"):
        path = folder / f"{symbol}_{timeframe.value}.{suffix}"
        # a symbol such as ../x must not lead out of the folder
        if path.parent == folder and path.is_file():
            return path
    return None
