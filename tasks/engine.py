"""The execution engine's chart API: ``GET /api/market/chart/{symbol}/{timeframe}?limit=N``.

It gives the newest N candles only, the last of which may still be forming; a window further back than
the engine's memory is refused, not answered in part.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import pandas as pd

from tasks import http
from tasks.sources import Instrument, data_mode_of, milliseconds_of, numbers, raw_frame, require_over
from trading.calendars import ALWAYS_OPEN
from trading.errors import MalformedResponse, SourceRefused, UnknownSymbol
from trading.window import Timeframe, Window

VARIABLE: Final = "ENGINE_URL"
LARGEST: Final = 5_000
NOT_FOUND: Final = 404
FIELDS: Final = ("timestamp", "open", "high", "low", "close", "volume")


class EngineSource:
    """``tasks.sources.Source`` over the engine. It has no clock of its own, so ours is asked."""

    def __init__(self, base_url: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._http = http.client(base_url, VARIABLE)
        self._clock = clock

    def describe(self, symbol: str) -> Instrument:
        chart = self._chart(symbol, Timeframe.H1, 1)
        return Instrument(symbol, ALWAYS_OPEN, data_mode_of(chart, symbol), f"engine {self._http.base_url.host}")

    def fetch(self, window: Window) -> pd.DataFrame:
        now = self.server_time()
        require_over(window, now)
        # one for the bar that is forming, one for an engine whose clock has passed into the next
        wanted = (now - window.start) // window.timeframe.delta + 2
        if wanted > LARGEST:
            raise SourceRefused(
                f"{window} would take the newest {wanted} bars and the engine is asked for {LARGEST} at most; "
                "ingest older candles from the exchange or from files"
            )
        candles = self._chart(window.symbol, window.timeframe, wanted)["candles"]
        rows = [_row(candle, at, window) for at, candle in enumerate(candles)]
        first, end = milliseconds_of(window.start), milliseconds_of(window.end)
        if rows and min(row[0] for row in rows) > first:
            raise SourceRefused(
                f"the engine's candles of {window.symbol} {window.timeframe} begin at "
                f"{datetime.fromtimestamp(min(row[0] for row in rows) / 1000, tz=UTC):%Y-%m-%dT%H:%MZ}, after the "
                f"start of {window}; start later, or ingest older candles from the exchange"
            )
        return raw_frame([row for row in rows if first <= row[0] < end])

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

    def _chart(self, symbol: str, timeframe: Timeframe, limit: int) -> dict[str, Any]:
        path = f"/api/market/chart/{quote(symbol, safe='')}/{timeframe.value}"
        try:
            reply = http.get_json(self._http, path, {"limit": limit}, variable=VARIABLE)
        except SourceRefused as error:
            # 401 or a redirect says nothing of the symbol
            if error.status != NOT_FOUND:
                raise
            raise UnknownSymbol(f"the engine has no chart of {symbol!r} ({error}); add it there first") from None
        if not isinstance(reply, dict) or not isinstance(reply.get("candles"), list):
            raise MalformedResponse(f"{path} has no list of candles: {str(reply)[:120]}")
        return reply


def _row(candle: Any, position: int, window: Window) -> list[float]:
    if not isinstance(candle, dict) or not set(FIELDS) <= set(candle):
        raise MalformedResponse(f"candle {position} of {window} lacks one of {list(FIELDS)}: {str(candle)[:120]}")
    return numbers([candle[name] for name in FIELDS], position, f"the chart of {window}")
