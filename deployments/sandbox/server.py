"""The sandbox exchange: the Binance-style protocol and the engine's chart over real HTTP, with a clock
that can be set and faults that can be switched on.

    GET  /api/v3/time /api/v3/exchangeInfo /api/v3/klines /api/v3/ticker/24hr
    GET  /api/market/chart/{symbol}/{timeframe}?limit=N
    GET  /api/settings/strategy    PUT or DELETE /sandbox/settings  (see ``engine_settings``)
    GET  /sandbox/clock    PUT /sandbox/clock {"time": "2019-01-01T00:02:00Z"} or {"advance_seconds": 3600},
                           and {"speed": 60}: its seconds per real second, 0 to stand still
    GET  /sandbox/faults   PUT /sandbox/faults {"seed": 1, "rate_limited": 0.1, ...}  (see ``Faults``)
    GET  /sandbox/requests: replies by what was asked and status, {"klines": {"200": 12}}; PUT begins anew
    PUT  /sandbox/corrections {"symbol": "BTCSIM", "timeframe": "1h", "open_time": ms or ISO 8601, "close": 1.5}
         or {"symbol": ..., "timeframe": ..., "rows": [[open_time, open, high, low, close, volume], ...]}
    PUT  /sandbox/gaps {"symbol": ..., "timeframe": ..., "start": ms or ISO 8601, "end": the first that stays}
    DELETE either of the two, or PUT {"restore": true}: all changed markets are as they were

Candles are served up to the clock, the one still forming included, as exchanges do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final

import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.sandbox import control, engine_settings
from deployments.sandbox.counting import watched
from deployments.sandbox.faults import Faults, spoilt
from deployments.sandbox.markets import Markets, find
from deployments.sandbox.moments import milliseconds
from deployments.sandbox.pages import candles, klines, klines_text, page
from deployments.sandbox.state import State, require_speed, state_of
from trading.errors import BadTimeframe
from trading.window import Timeframe

__all__ = ["LARGEST_PAGE", "Faults", "State", "application"]

LARGEST_PAGE: Final = 1000
DAY_MS: Final = 24 * 3600 * 1000
JSON: Final = "application/json"


def application(markets: Markets, clock: datetime, *, speed: float = 0.0) -> Starlette:
    """The exchange as an ASGI application; its clock stands still unless it has a ``speed``."""
    state = State(markets, clock, Faults(), np.random.default_rng(0))
    state.run(require_speed(speed))
    app = Starlette(
        routes=[
            Route("/api/v3/klines", _klines),
            Route("/api/v3/time", _time),
            Route("/api/v3/exchangeInfo", _information),
            Route("/api/v3/ticker/24hr", _ticker),
            Route("/api/market/chart/{symbol}/{timeframe}", _chart),
            *engine_settings.ROUTES,
            *control.ROUTES,
        ],
        middleware=[Middleware(watched, state)],
    )
    app.state.exchange = state
    return app


async def _time(request: Request) -> Response:
    return JSONResponse({"serverTime": milliseconds(state_of(request).clock)})


async def _information(request: Request) -> Response:
    state, asked = state_of(request), request.query_params
    try:
        wanted = {asked["symbol"]} if "symbol" in asked else set(orjson.loads(asked.get("symbols", "[]")))
    except (ValueError, TypeError):
        return _refusal(-1100, "Illegal characters found in parameter 'symbols'.")
    listed = {symbol: market for (symbol, _), market in state.markets.items() if not wanted or symbol in wanted}
    if wanted - listed.keys():
        return _refusal(-1121, "Invalid symbol.")
    symbols = [
        {
            "symbol": symbol,
            "status": "TRADING",
            "baseAsset": symbol.removesuffix(market.quote),
            "quoteAsset": market.quote,
            # a real exchange does not say these two
            "calendar": market.calendar,
            "dataMode": market.data_mode,
        }
        for symbol, market in sorted(listed.items())
    ]
    return JSONResponse({"timezone": "UTC", "serverTime": milliseconds(state.clock), "symbols": symbols})


async def _klines(request: Request) -> Response:
    state, asked = state_of(request), request.query_params
    try:
        timeframe = Timeframe.parse(asked.get("interval", ""))
    except BadTimeframe:
        return _refusal(-1120, "Invalid interval.")
    market = find(state.markets, asked.get("symbol", ""), timeframe)
    if market is None:
        return _refusal(-1121, "Invalid symbol.")
    try:
        first, last = (int(asked[name]) if name in asked else None for name in ("startTime", "endTime"))
        limit = max(1, min(int(asked.get("limit", 500)), LARGEST_PAGE))
    except ValueError:
        return _refusal(-1100, "Illegal characters found in a parameter.")
    return await _answered(
        state,
        text=lambda: klines_text(market, page(market, state.newest(market), first, last, limit)),
        rows=lambda: klines(market, page(market, state.newest(market), first, last, limit)),
        around=lambda rows: b"[" + rows + b"]",
    )


async def _chart(request: Request) -> Response:
    state = state_of(request)
    symbol, timeframe = request.path_params["symbol"], request.path_params["timeframe"]
    market = find(state.markets, symbol, Timeframe(timeframe)) if timeframe in set(Timeframe) else None
    if market is None:
        return JSONResponse({"error": f"no chart of {symbol} {timeframe}"}, 404)
    try:
        limit = max(1, int(request.query_params.get("limit", 100)))
    except ValueError:
        return JSONResponse({"error": "limit is not a number"}, 400)
    # an engine of real markets does not say dataMode
    head = orjson.dumps({"symbol": symbol, "timeframe": timeframe, "dataMode": market.data_mode}).removesuffix(b"}")

    def rows() -> list[str]:
        return candles(market, page(market, state.newest(market), None, None, limit))

    return await _answered(
        state,
        text=lambda: ",".join(rows()).encode(),
        rows=rows,
        around=lambda rows: head + b',"candles":[' + rows + b"]}",
    )


async def _answered(
    state: State,
    text: Callable[[], bytes],
    rows: Callable[[], list[str]],
    around: Callable[[bytes], bytes],
) -> Response:
    """A reply of candles, or what the faults make of it.

    Args:
        text, rows: the candles as one JSON text, and one by one; made once the time has come.
        around: puts the rest of the reply around them.
    """
    faults, rng = state.faults, state.rng
    state.faults = faults.after_one()
    fate = rng.random(5)
    if fate[0] < faults.rate_limited:
        headers = {"Retry-After": f"{faults.retry_after:g}"}
        return JSONResponse({"code": -1003, "msg": "Too many requests."}, 429, headers)
    if fate[1] < faults.failing:
        return JSONResponse({"code": -1000, "msg": "An unknown error occurred."}, 503)
    if fate[2] < faults.hanging:
        await asyncio.sleep(faults.hang_seconds)
    if faults.spoils_rows or fate[3] < faults.shuffled:
        made = spoilt(rows(), faults, rng)
        if fate[3] < faults.shuffled:
            rng.shuffle(made)
        body = around(",".join(made).encode())
    else:
        body = around(text())
    if fate[4] < faults.truncated:
        body = body[: len(body) // 2]
    return Response(body, media_type=JSON)


async def _ticker(request: Request) -> Response:
    state = state_of(request)
    symbol = request.query_params.get("symbol", "")
    market = next((market for (name, _), market in state.markets.items() if name == symbol), None)
    if market is None:
        return _refusal(-1121, "Invalid symbol.")
    now = milliseconds(state.clock)
    at = page(market, state.newest(market), now - DAY_MS, None, LARGEST_PAGE)
    if not len(market.opens[at]):
        return _refusal(-1121, "Invalid symbol.")
    values = market.values[at].astype(object)  # Python's floats, which print as numbers
    change = values[-1, 3] - values[0, 0]
    return JSONResponse(
        {
            "symbol": symbol,
            "priceChange": f"{change:g}",
            "priceChangePercent": f"{100 * change / values[0, 0]:.3f}",
            "openPrice": f"{values[0, 0]!r}",
            "highPrice": f"{values[:, 1].max()!r}",
            "lowPrice": f"{values[:, 2].min()!r}",
            "lastPrice": f"{values[-1, 3]!r}",
            "volume": f"{values[:, 4].sum()!r}",
            "openTime": int(market.opens[at][0]),
            "closeTime": now,
        }
    )


def _refusal(code: int, message: str) -> Response:
    return JSONResponse({"code": code, "msg": message}, 400)
