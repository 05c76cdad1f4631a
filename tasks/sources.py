"""Market-data sources behind one protocol: what a symbol is, and the raw rows of a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np
import pandas as pd

from tasks.settings import Settings
from trading.errors import BadWindow, ConfigurationError, MalformedResponse
from trading.masks import RAW_COLUMNS
from trading.window import EPOCH, Window

LIVE: Final = "live"
SAMPLE: Final = "sample"
SIMULATED: Final = "simulated"
DATA_MODES: Final = (LIVE, SAMPLE, SIMULATED)


@dataclass(frozen=True)
class Instrument:
    """What a source says of a symbol.

    Attributes:
        calendar: ``24/7`` or the name of an exchange calendar.
        data_mode: ``live``, ``sample`` (real history, not now) or ``simulated`` (generated).
        source: which source it was.
        quote: currency of the prices, where the source tells.
    """

    symbol: str
    calendar: str
    data_mode: str
    source: str
    quote: str | None = None


class Source(Protocol):
    """A place that candles come from. Close it, or use it as a context manager."""

    def describe(self, symbol: str) -> Instrument:
        """What the symbol is. Raises UnknownSymbol where the source does not trade it."""

    def fetch(self, window: Window) -> pd.DataFrame:
        """The rows of a window exactly as the source gave them, less any that is not over yet.

        Columns ``open_time`` (int64 ms UTC), ``open high low close volume`` (float64), in the order they
        came; nothing is sorted, repaired or dropped for being bad.

        Raises:
            BadWindow: the window is not over by the source's own clock.
            SourceError: unreachable, refused, or not what the protocol promises.
        """

    def server_time(self) -> datetime:
        """The source's clock, UTC."""

    def close(self) -> None:
        """Give back connections."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def source_of(settings: Settings, kind: str) -> Source:
    """The configured source of that kind: ``exchange``, ``engine`` or ``files``.

    Raises:
        ConfigurationError: an unknown kind, or its address or folder is not set.
    """
    if kind == "exchange":
        from tasks.binance import BinanceSource

        return BinanceSource(settings.exchange_url)
    if kind == "engine":
        from tasks.engine import EngineSource

        if settings.engine_url is None:
            raise ConfigurationError("source engine needs ENGINE_URL, the address of the execution engine")
        return EngineSource(settings.engine_url)
    if kind == "files":
        from tasks.files import FileSource

        if settings.candle_folder is None:
            raise ConfigurationError("source files needs TRADEFLOWS_CANDLE_FOLDER, a folder of candle files")
        return FileSource(settings.candle_folder)
    raise ConfigurationError(f"{kind!r} is not a source; use exchange, engine or files")


def raw_frame(rows: Any) -> pd.DataFrame:
    """Rows of (open time in ms, open, high, low, close, volume) as a raw frame."""
    values = np.array(rows, dtype="float64").reshape(-1, len(RAW_COLUMNS))
    frame = pd.DataFrame(values, columns=list(RAW_COLUMNS))
    # milliseconds fit a float64 exactly until the year 287,000
    frame["open_time"] = frame["open_time"].astype("int64")
    return frame


def numbers(row: Any, position: int, origin: str) -> list[float]:
    """Six numbers out of a row that a source sent: time and five values, as numbers or their text.

    Raises:
        MalformedResponse: it is not such a row; names its position and shows it.
    """
    try:
        # a text of six digits is a sequence too, and no row
        values = [float(value) for value in row] if isinstance(row, list) else []
    except (TypeError, ValueError, OverflowError):
        values = []
    if len(values) != len(RAW_COLUMNS) or not np.isfinite(values[0]):
        raise MalformedResponse(
            f"row {position} of {origin} is not a candle of time, open, high, low, close and volume: {str(row)[:120]}"
        )
    return values


def data_mode_of(reply: Mapping[str, Any], symbol: str) -> str:
    """The kind of data that a source's reply tells of a symbol; one that does not tell is ``live``.

    Raises:
        MalformedResponse: it tells of a kind that there is not.
    """
    mode = reply.get("dataMode", LIVE)
    if mode not in DATA_MODES:
        raise MalformedResponse(f"{symbol} has data mode {mode!r}; it is one of {sorted(DATA_MODES)}")
    return str(mode)


def require_over(window: Window, clock: datetime) -> None:
    """Pass if the window has ended by the source's clock.

    Raises:
        BadWindow: it has not.
    """
    if window.end > clock:
        raise BadWindow(
            f"{window} is not over: the source's clock says {clock:%Y-%m-%dT%H:%M:%SZ}; "
            f"end it at {window.timeframe.floor(clock):%Y-%m-%dT%H:%MZ} or before"
        )


def moment_of(milliseconds: float) -> datetime:
    """A time of a source, which counts milliseconds from the epoch, as UTC."""
    return EPOCH + timedelta(milliseconds=milliseconds)


def milliseconds_of(moment: datetime) -> int:
    """The other way round."""
    # in whole numbers: a float's rounding can lose a millisecond
    return (moment - EPOCH) // timedelta(milliseconds=1)
