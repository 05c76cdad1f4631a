"""Market-data sources behind one protocol: what a symbol is, and the raw rows of a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain
from types import TracebackType
from typing import Annotated, Any, Final, Protocol, Self

import msgspec
import numpy as np
import pandas as pd
from httpx import Timeout
from msgspec.structs import astuple

from tasks.http import Guard, client
from tasks.retry import REQUEST
from tasks.settings import Settings
from tasks.settings import variable as variable_of
from trading.candles import COLUMNS
from trading.errors import BadWindow, ConfigurationError, MalformedResponse
from trading.masks import RAW_COLUMNS
from trading.window import EPOCH, Timeframe, Window

LIVE: Final = "live"
SAMPLE: Final = "sample"
SIMULATED: Final = "simulated"
KINDS: Final = ("exchange", "mirror", "engine", "files")
ADDRESSES: Final = {
    "exchange": "the address of a Binance-style REST API",
    "mirror": "the address of a second Binance-style REST API",
    "engine": "the address of the execution engine",
}
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

    def describe_all(self, symbols: Sequence[str]) -> list[Instrument]:
        """``describe`` of each, in their order; with fewer requests where the source can."""

    def fetch(self, window: Window) -> pd.DataFrame:
        """The rows of a window exactly as the source gave them, less any that is not over yet.

        Columns ``open_time`` (int64 ms UTC), ``open high low close volume`` (float64), in the order they
        came; nothing is sorted, repaired or dropped for being bad.

        Raises:
            BadWindow: the window is not over by the source's own clock.
            SourceError: unreachable, refused, or not what the protocol promises.
        """

    def listed(self, symbol: str, timeframe: Timeframe) -> datetime | None:
        """Open time of the first candle that there ever was; None where there is none, or the source cannot tell."""

    def next_open(self, symbol: str, timeframe: Timeframe, after: datetime) -> datetime | None:
        """Open time of the first candle at or after a time; None where there is none yet."""

    def server_time(self) -> datetime:
        """The source's clock, UTC."""

    def close(self) -> None:
        """Give back connections."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def source_of(settings: Settings, kind: str, guard: Guard | None = None) -> Source:
    """The configured source of that kind: ``exchange``, ``mirror``, ``engine`` or ``files``.

    Args:
        guard: stands before each request of those that are asked over HTTP.

    Raises:
        ConfigurationError: an unknown kind, its address or folder is not set, or its host may not be talked to.
    """
    if kind not in KINDS:
        raise ConfigurationError(f"{kind!r} is not a source; use {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if kind == "files":
        from tasks.files import FileSource

        if settings.candle_folder is None:
            raise ConfigurationError("source files needs TRADEFLOWS_CANDLE_FOLDER, a folder of candle files")
        return FileSource(settings.candle_folder, calendar=settings.candle_calendar)
    variable, address = address_of(settings, kind)
    if address is None:
        raise ConfigurationError(f"source {kind} needs {variable}, {ADDRESSES[kind]}")
    connection = client(address, variable, access=settings.access, timeout=Timeout(settings.source_timeout))
    policy = replace(REQUEST, base=settings.source_pause, longest=16 * settings.source_pause)
    if kind == "engine":
        from tasks.engine import EngineSource

        return EngineSource(connection, variable, guard, policy)
    from tasks.binance import BinanceSource

    return BinanceSource(connection, variable, guard, policy, kind)


def address_of(settings: Settings, kind: str) -> tuple[str, str | None]:
    """The setting that holds the address of a source over HTTP, and the address."""
    field = f"{kind}_url"
    return variable_of(field), getattr(settings, field)


def raw_frame(rows: Any) -> pd.DataFrame:
    """Rows of (open time in ms, open, high, low, close, volume) as a raw frame."""
    values = np.asarray(rows, dtype="float64").reshape(-1, len(RAW_COLUMNS))
    # milliseconds fit a float64 exactly until the year 287,000
    columns = {name: values[:, at] for at, name in enumerate(COLUMNS, 1)}
    return pd.DataFrame({"open_time": values[:, 0].astype("int64"), **columns}, copy=False)


# what a datetime can hold; a time of ours in microseconds is beyond it, and said to be so
Milliseconds = Annotated[int, msgspec.Meta(ge=-62_135_596_800_000, le=253_402_300_799_999)]


class Row(msgspec.Struct, array_like=True, gc=False):
    """A candle as exchanges send it: open time in ms, then five numbers or their text; what follows is left alone."""

    open_time: Milliseconds
    open: float
    high: float
    low: float
    close: float
    volume: float


ROWS: Final = msgspec.json.Decoder(list[Row], strict=False)


def numbers(rows: Sequence[Row]) -> np.ndarray:
    """Rows as numbers: float64, shape (n, 6)."""
    cells = chain.from_iterable(map(astuple, rows))
    return np.fromiter(cells, "float64", len(RAW_COLUMNS) * len(rows)).reshape(-1, len(RAW_COLUMNS))


def checked_mode(mode: object, symbol: str) -> str:
    """The kind of data that a source tells of a symbol.

    Raises:
        MalformedResponse: there is no such kind.
    """
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
    """A time of a source, which counts milliseconds from the epoch, as UTC.

    Raises:
        MalformedResponse: it lies beyond what a datetime holds.
    """
    try:
        return EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        raise MalformedResponse(f"{milliseconds:.0f} is no time in milliseconds since 1970") from None


def milliseconds_of(moment: datetime) -> int:
    """The other way round."""
    # in whole numbers: a float's rounding can lose a millisecond
    return (moment - EPOCH) // timedelta(milliseconds=1)
