"""The execution engine's chart API: ``GET /api/market/chart/{symbol}/{timeframe}?limit=N``.

It gives the newest N candles only, the last of which may still be forming; a window further back than
the engine's memory is refused, not answered in part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

import httpx
import msgspec
import numpy as np
import pandas as pd

from tasks import http
from tasks.retry import REQUEST, RetryPolicy
from tasks.sources import (
    LIVE,
    Instrument,
    Milliseconds,
    checked_mode,
    milliseconds_of,
    moment_of,
    raw_frame,
    require_over,
)
from trading.calendars import ALWAYS_OPEN
from trading.errors import SourceRefused, UnknownSymbol
from trading.window import Timeframe, Window

LARGEST: Final = 5_000
NOT_FOUND: Final = 404


class Candle(msgspec.Struct):
    """A candle as the engine sends it; times in ms."""

    timestamp: Milliseconds
    open: float
    high: float
    low: float
    close: float
    volume: float


class Chart(msgspec.Struct, rename="camel"):
    """The engine's reply; one of real markets does not say what kind of data it is."""

    candles: list[Candle]
    data_mode: str = LIVE


CHART: Final = msgspec.json.Decoder(Chart, strict=False)


class EngineSource:
    """``tasks.sources.Source`` over the engine. It has no clock of its own, so ours is asked."""

    def __init__(
        self,
        connection: httpx.Client,
        variable: str,
        guard: http.Guard | None = None,
        policy: RetryPolicy = REQUEST,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._http, self._variable, self._guard, self._policy = connection, variable, guard, policy
        self._clock = clock

    def describe(self, symbol: str) -> Instrument:
        chart = self._chart(symbol, Timeframe.H1, 1)
        mode = checked_mode(chart.data_mode, symbol)
        return Instrument(symbol, ALWAYS_OPEN, mode, f"engine {self._http.base_url.host}")

    def describe_all(self, symbols: Sequence[str]) -> list[Instrument]:
        return [self.describe(symbol) for symbol in symbols]

    def fetch(self, window: Window) -> pd.DataFrame:
        now = self.server_time()
        require_over(window, now)
        rows = self._newest(window, now)
        first, end = milliseconds_of(window.start), milliseconds_of(window.end)
        if len(rows) and rows[:, 0].min() > first:
            raise SourceRefused(
                f"the engine's candles of {window.symbol} {window.timeframe} begin at "
                f"{moment_of(rows[:, 0].min()):%Y-%m-%dT%H:%MZ}, after the start of {window}; start later, or ingest "
                "older candles from the exchange"
            )
        return raw_frame(rows[(rows[:, 0] >= first) & (rows[:, 0] < end)])

    def listed(self, symbol: str, timeframe: Timeframe) -> datetime | None:
        return None  # it remembers the newest candles only

    def next_open(self, symbol: str, timeframe: Timeframe, after: datetime) -> datetime | None:
        now = self.server_time()
        first = timeframe.floor(after)
        rows = self._newest(Window(symbol, timeframe, first, max(timeframe.floor(now), first + timeframe.delta)), now)
        if len(rows) and rows[:, 0].min() > milliseconds_of(after):
            return None  # what it has forgotten is not what it never had
        later = rows[rows[:, 0] >= milliseconds_of(after), 0]
        return moment_of(later.min()) if len(later) else None

    def _newest(self, window: Window, now: datetime) -> np.ndarray:
        # one for the bar that is forming, one for an engine whose clock has passed into the next
        wanted = (now - window.start) // window.timeframe.delta + 2
        if wanted > LARGEST:
            raise SourceRefused(
                f"{window} would take the newest {wanted} bars and the engine is asked for {LARGEST} at most; "
                "ingest older candles from the exchange or from files"
            )
        candles = self._chart(window.symbol, window.timeframe, max(wanted, 1)).candles
        rows = [(one.timestamp, one.open, one.high, one.low, one.close, one.volume) for one in candles]
        return np.array(rows, dtype="float64").reshape(-1, 6)

    def server_time(self) -> datetime:
        return self._clock()

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _chart(self, symbol: str, timeframe: Timeframe, limit: int) -> Chart:
        path = f"/api/market/chart/{quote(symbol, safe='')}/{timeframe.value}"
        try:
            chart: Chart = http.get_json(
                self._http, path, {"limit": limit},
                variable=self._variable, decoder=CHART, guard=self._guard, policy=self._policy,
            )  # fmt: skip
        except SourceRefused as error:
            # 401 or a redirect says nothing of the symbol
            if error.status != NOT_FOUND:
                raise
            raise UnknownSymbol(f"the engine has no chart of {symbol!r} ({error}); add it there first") from None
        return chart
