"""The Binance-style public REST protocol: klines, exchange information, server time.

Documentation: https://developers.binance.com/docs/binance-spot-api-docs/rest-api (Market Data
endpoints). A kline is a list: open time, open, high, low, close, volume, close time, and six more.
"""

from __future__ import annotations

import difflib
import json
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self

import pandas as pd

from tasks import http
from tasks.sources import (
    Instrument,
    data_mode_of,
    milliseconds_of,
    moment_of,
    numbers,
    raw_frame,
    require_over,
)
from trading.calendars import ALWAYS_OPEN, require_calendar
from trading.errors import MalformedResponse, SourceRefused, UnknownSymbol
from trading.window import Window

VARIABLE: Final = "TRADEFLOWS_EXCHANGE_URL"
PAGE: Final = 1000
# codes of an unknown symbol, and of one in letters that no symbol has, such as lower case
NO_SUCH_SYMBOL: Final = frozenset({-1121, -1100})


class BinanceSource:
    """``tasks.sources.Source`` over the protocol; the connection pool lives as long as the object."""

    def __init__(self, base_url: str) -> None:
        self._http = http.client(base_url, VARIABLE)

    def describe(self, symbol: str) -> Instrument:
        try:
            information = self._get("/api/v3/exchangeInfo", {"symbol": symbol})
        except SourceRefused as error:
            # the symbol is the only parameter, so the illegal characters are its own
            if _code(error) not in NO_SUCH_SYMBOL:
                raise
            raise self._unknown(symbol) from None
        one = next((item for item in _listed(information) if item.get("symbol") == symbol), None)
        if one is None:
            raise MalformedResponse(f"the exchange information of {symbol} does not list it: {str(information)[:120]}")
        return Instrument(
            symbol=symbol,
            calendar=require_calendar(str(one.get("calendar", ALWAYS_OPEN))),
            data_mode=data_mode_of(one, symbol),
            source=f"exchange {self._http.base_url.host}",
            quote=one.get("quoteAsset"),
        )

    def fetch(self, window: Window) -> pd.DataFrame:
        require_over(window, self.server_time())
        start, end = milliseconds_of(window.start), milliseconds_of(window.end)
        first = start
        step = int(window.timeframe.delta.total_seconds() * 1000)
        rows: list[list[float]] = []
        while first < end:
            # endTime counts the candle that opens at it
            page = self._get(
                "/api/v3/klines",
                {
                    "symbol": window.symbol,
                    "interval": window.timeframe.value,
                    "startTime": first,
                    "endTime": end - 1,
                    "limit": PAGE,
                },
            )
            if not isinstance(page, list):
                raise MalformedResponse(f"klines of {window} are not a list: {str(page)[:120]}")
            found = [
                numbers(row[:6] if isinstance(row, list) else row, len(rows) + at, f"klines of {window}")
                for at, row in enumerate(page)
            ]
            inside = [row for row in found if start <= row[0] < end]
            if not inside:
                break
            rows += inside
            # a page shorter than asked for is no proof of the end: some of its rows may be lost
            first = max(int(max(row[0] for row in inside)) + step, first + step)
        return raw_frame(rows)

    def server_time(self) -> datetime:
        reply = self._get("/api/v3/time")
        try:
            return moment_of(float(reply["serverTime"]))
        except (KeyError, TypeError, ValueError, OverflowError, OSError):
            raise MalformedResponse(f"/api/v3/time has no serverTime: {str(reply)[:120]}") from None

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, path: str, params: dict[str, str | int] | None = None) -> Any:
        return http.get_json(self._http, path, params, variable=VARIABLE)

    def _unknown(self, symbol: str) -> UnknownSymbol:
        known = [str(item.get("symbol")) for item in _listed(self._get("/api/v3/exchangeInfo"))]
        near = difflib.get_close_matches(symbol.upper(), known, n=3, cutoff=0.5) or sorted(known)[:5]
        return UnknownSymbol(
            f"{self._http.base_url.host} does not trade {symbol!r}; did you mean {', '.join(near) or 'another source'}?"
        )


def _listed(information: Any) -> list[dict[str, Any]]:
    """The symbols of an exchange information, none where it is not one."""
    symbols = information.get("symbols") if isinstance(information, dict) else None
    return [item for item in symbols if isinstance(item, dict)] if isinstance(symbols, list) else []


def _code(error: SourceRefused) -> int | None:
    """The protocol's error code in a refusal, such as {"code": -1121, "msg": "Invalid symbol."}."""
    try:
        return int(json.loads(error.reply)["code"])
    except (ValueError, TypeError, KeyError):
        return None
