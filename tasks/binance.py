"""The Binance-style public REST protocol: klines, exchange information, server time.

Documentation: https://developers.binance.com/docs/binance-spot-api-docs/rest-api (Market Data
endpoints). A kline is a list: open time, open, high, low, close, volume, close time, and six more.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec
import numpy as np
import pandas as pd

from tasks import http
from tasks.retry import REQUEST, RetryPolicy
from tasks.sources import (
    LIVE,
    ROWS,
    Instrument,
    Row,
    checked_mode,
    milliseconds_of,
    moment_of,
    numbers,
    raw_frame,
    require_over,
)
from trading.calendars import ALWAYS_OPEN, require_calendar
from trading.errors import MalformedResponse, SourceRefused, UnknownSymbol
from trading.window import EPOCH, Timeframe, Window

PAGE: Final = 1000
# https://developers.binance.com/docs/binance-spot-api-docs/rest-api, "IP Limits" of each endpoint
WEIGHTS: Final = {"/api/v3/klines": 2, "/api/v3/exchangeInfo": 20, "/api/v3/time": 1}
# symbols described in one request, which costs what one symbol does
DESCRIBED: Final = 100
# codes of an unknown symbol, and of one in letters that no symbol has, such as lower case
NO_SUCH_SYMBOL: Final = frozenset({-1121, -1100})


class BinanceSource:
    """``tasks.sources.Source`` over the protocol; the connection pool lives as long as the object."""

    def __init__(
        self,
        connection: httpx.Client,
        variable: str,
        guard: http.Guard | None = None,
        policy: RetryPolicy = REQUEST,
        kind: str = "exchange",
    ) -> None:
        self._http, self._variable, self._guard, self._policy = connection, variable, guard, policy
        self._name = f"{kind} {connection.base_url.host}"
        self._reached = EPOCH
        self._described: dict[str, Instrument] = {}

    def describe(self, symbol: str) -> Instrument:
        if symbol not in self._described:
            try:
                found = self._information({"symbol": symbol}, [symbol])
            except SourceRefused as error:
                # the symbol is the only parameter, so the illegal characters are its own
                if _code(error) not in NO_SUCH_SYMBOL:
                    raise
                raise self._unknown(symbol, self._symbols()) from None
            if symbol not in found:
                raise MalformedResponse(f"the exchange information of {symbol} does not list it")
            self._described |= found
        return self._described[symbol]

    def describe_all(self, symbols: Sequence[str]) -> list[Instrument]:
        several = [symbol for symbol in dict.fromkeys(symbols) if symbol not in self._described]
        for at in range(0, len(several), DESCRIBED) if len(several) > 1 else ():
            part = several[at : at + DESCRIBED]
            try:
                self._described |= self._information({"symbols": json.dumps(part)}, part)
            except SourceRefused as error:
                if _code(error) in NO_SUCH_SYMBOL:
                    known = self._symbols()
                    for symbol in part:
                        if symbol not in known:
                            raise self._unknown(symbol, known) from None
                break  # not everybody who speaks this protocol knows lists
        return [self.describe(symbol) for symbol in symbols]

    def _information(self, asked: dict[str, str | int], symbols: Sequence[str]) -> dict[str, Instrument]:
        listed = _listed(self._get("/api/v3/exchangeInfo", asked))
        told = {str(item.get("symbol")): item for item in listed}
        return {symbol: self._instrument(symbol, told[symbol]) for symbol in symbols if symbol in told}

    def _instrument(self, symbol: str, told: dict[str, Any]) -> Instrument:
        return Instrument(
            symbol=symbol,
            calendar=require_calendar(str(told.get("calendar", ALWAYS_OPEN))),
            data_mode=checked_mode(told.get("dataMode", LIVE), symbol),
            source=self._name,
            quote=told.get("quoteAsset"),
        )

    def fetch(self, window: Window) -> pd.DataFrame:
        if window.end > self._reached:  # else its clock was past the end already
            require_over(window, self.server_time())
        start, end = milliseconds_of(window.start), milliseconds_of(window.end)
        first = start
        step = int(window.timeframe.delta.total_seconds() * 1000)
        pages: list[np.ndarray] = []
        while first < end:
            # endTime counts the candle that opens at it
            page = self._klines(window.symbol, window.timeframe, first, end - 1, PAGE)
            found = numbers(page)
            opens = found[:, 0]
            inside = (opens >= start) & (opens < end)
            if not inside.any():
                break
            pages.append(found if inside.all() else found[inside])
            # a page shorter than asked for is no proof of the end: some of its rows may be lost
            first = max(int(pages[-1][:, 0].max()) + step, first + step)
        return raw_frame(np.concatenate(pages) if pages else [])

    def listed(self, symbol: str, timeframe: Timeframe) -> datetime | None:
        return self.next_open(symbol, timeframe, EPOCH)

    def next_open(self, symbol: str, timeframe: Timeframe, after: datetime) -> datetime | None:
        first = milliseconds_of(after)
        opens = numbers(self._klines(symbol, timeframe, first, None, 1))[:, 0]
        later = opens[opens >= first]
        return moment_of(later.min()) if len(later) else None

    def server_time(self) -> datetime:
        reply = self._get("/api/v3/time")
        try:
            moment = moment_of(float(reply["serverTime"]))
        except (KeyError, TypeError, ValueError, MalformedResponse):
            raise MalformedResponse(f"/api/v3/time has no serverTime: {str(reply)[:120]}") from None
        self._reached = max(self._reached, moment)
        return moment

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, path: str, params: dict[str, str | int] | None = None) -> Any:
        return self._ask(path, params or {}, http.ANY_JSON)

    def _klines(self, symbol: str, timeframe: Timeframe, first: int, last: int | None, limit: int) -> list[Row]:
        params: dict[str, str | int] = {"symbol": symbol, "interval": timeframe.value, "startTime": first}
        params |= {"limit": limit} if last is None else {"endTime": last, "limit": limit}
        path = "/api/v3/klines"
        page: list[Row] = self._ask(path, params, ROWS)
        return page

    def _ask(self, path: str, params: dict[str, str | int], decoder: msgspec.json.Decoder[Any]) -> Any:
        return http.get_json(
            self._http, path, params,
            variable=self._variable, decoder=decoder, weight=WEIGHTS[path], guard=self._guard, policy=self._policy,
        )  # fmt: skip

    def _symbols(self) -> list[str]:
        return [str(item.get("symbol")) for item in _listed(self._get("/api/v3/exchangeInfo"))]

    def _unknown(self, symbol: str, known: Sequence[str]) -> UnknownSymbol:
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
