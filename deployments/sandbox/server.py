"""The sandbox exchange: the Binance-style protocol and the engine's chart over real HTTP, with a clock
that can be set and faults that can be switched on.

    GET  /api/v3/time /api/v3/exchangeInfo /api/v3/klines /api/v3/ticker/24hr
    GET  /api/market/chart/{symbol}/{timeframe}?limit=N
    GET  /sandbox/clock    PUT /sandbox/clock {"time": "2019-01-01T00:02:00Z"} or {"advance_seconds": 3600}
    GET  /sandbox/faults   PUT /sandbox/faults {"seed": 1, "rate_limited": 0.1, ...}  (see ``Faults``)

Candles are served up to the clock, the one still forming included, as exchanges do.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.sandbox.markets import Market, Markets
from trading.errors import BadTimeframe
from trading.window import Timeframe

LARGEST_PAGE: Final = 1000
DAY: Final = timedelta(days=1)


@dataclass(frozen=True)
class Faults:
    """How often the exchange misbehaves; shares between 0 and 1 of the candle requests, or of the rows.

    Attributes:
        rate_limited: answered 429 with Retry-After ``retry_after`` seconds.
        failing: answered 503.
        hanging: answered ``hang_seconds`` late.
        truncated: the JSON text is cut in half.
        duplicated, missing, malformed: rows sent twice, left out, or with high below low.
        shuffled: pages whose rows come in another order.
        only: the faults end after so many candle requests; 0 for never.
    """

    seed: int = 0
    rate_limited: float = 0.0
    retry_after: float = 1.0
    failing: float = 0.0
    hanging: float = 0.0
    hang_seconds: float = 30.0
    truncated: float = 0.0
    duplicated: float = 0.0
    missing: float = 0.0
    malformed: float = 0.0
    shuffled: float = 0.0
    only: int = 0


@dataclass
class State:
    """What can be changed from outside while the exchange runs."""

    markets: Markets
    set_to: datetime
    faults: Faults
    rng: np.random.Generator
    running_since: float | None = None
    requests: int = 0

    @property
    def clock(self) -> datetime:
        """The exchange's time: what it was set to, and the seconds since where it runs."""
        if self.running_since is None:
            return self.set_to
        return self.set_to + timedelta(seconds=time.monotonic() - self.running_since)

    def set(self, moment: datetime) -> None:
        """Set the clock; one that runs goes on from there."""
        self.set_to = moment
        if self.running_since is not None:
            self.running_since = time.monotonic()


def application(markets: Markets, clock: datetime, *, running: bool = False) -> Starlette:
    """The exchange as an ASGI application; its clock stands still unless ``running``."""
    app = Starlette(
        routes=[
            Route("/api/v3/time", _time),
            Route("/api/v3/exchangeInfo", _information),
            Route("/api/v3/klines", _klines),
            Route("/api/v3/ticker/24hr", _ticker),
            Route("/api/market/chart/{symbol}/{timeframe}", _chart),
            Route("/sandbox/clock", _clock, methods=["GET", "PUT"]),
            Route("/sandbox/faults", _faults, methods=["GET", "PUT"]),
        ]
    )
    since = time.monotonic() if running else None
    app.state.exchange = State(markets, clock, Faults(), np.random.default_rng(0), since)
    return app


async def _time(request: Request) -> Response:
    return JSONResponse({"serverTime": _ms(_state(request).clock)})


async def _information(request: Request) -> Response:
    state = _state(request)
    wanted = request.query_params.get("symbol")
    listed = {symbol: market for (symbol, _), market in state.markets.items() if wanted in {None, symbol}}
    if wanted is not None and not listed:
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
    return JSONResponse({"timezone": "UTC", "serverTime": _ms(state.clock), "symbols": symbols})


async def _klines(request: Request) -> Response:
    state, asked = _state(request), request.query_params
    state.requests += 1
    try:
        timeframe = Timeframe.parse(asked.get("interval", ""))
    except BadTimeframe:
        return _refusal(-1120, "Invalid interval.")
    market = state.markets.get((asked.get("symbol", ""), timeframe))
    if market is None:
        return _refusal(-1121, "Invalid symbol.")
    try:
        first, last = (int(asked[name]) if name in asked else None for name in ("startTime", "endTime"))
        limit = max(1, min(int(asked.get("limit", 500)), LARGEST_PAGE))
    except ValueError:
        return _refusal(-1100, "Illegal characters found in a parameter.")
    faults, rng = state.faults, state.rng
    if faults.only:
        state.faults = replace(faults, only=faults.only - 1) if faults.only > 1 else Faults()
    fate = rng.random(5)
    if fate[0] < faults.rate_limited:
        headers = {"Retry-After": f"{faults.retry_after:g}"}
        return JSONResponse({"code": -1003, "msg": "Too many requests."}, 429, headers)
    if fate[1] < faults.failing:
        return JSONResponse({"code": -1000, "msg": "An unknown error occurred."}, 503)
    if fate[2] < faults.hanging:
        await asyncio.sleep(faults.hang_seconds)
    at = _page(market, state.clock, first, last, limit)
    rows = _spoilt(_rows(market, at), faults, rng)
    if fate[3] < faults.shuffled:
        rng.shuffle(rows)
    text = "[" + ",".join(rows) + "]"
    if fate[4] < faults.truncated:
        text = text[: len(text) // 2]
    return Response(text, media_type="application/json")


async def _ticker(request: Request) -> Response:
    state = _state(request)
    symbol = request.query_params.get("symbol", "")
    market = next((market for (name, _), market in state.markets.items() if name == symbol), None)
    if market is None:
        return _refusal(-1121, "Invalid symbol.")
    at = _page(market, state.clock, _ms(state.clock - DAY), None, LARGEST_PAGE)
    if not len(at):
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
            "openTime": int(market.opens[at[0]]),
            "closeTime": _ms(state.clock),
        }
    )


async def _chart(request: Request) -> Response:
    state = _state(request)
    symbol, timeframe = request.path_params["symbol"], request.path_params["timeframe"]
    market = next((m for (name, bar), m in state.markets.items() if (name, bar.value) == (symbol, timeframe)), None)
    if market is None:
        return JSONResponse({"error": f"no chart of {symbol} {timeframe}"}, 404)
    try:
        limit = max(1, int(request.query_params.get("limit", 100)))
    except ValueError:
        return JSONResponse({"error": "limit is not a number"}, 400)
    at = np.flatnonzero(market.opens <= _ms(state.clock))[-limit:]
    names = ("open", "high", "low", "close", "volume")
    candles = [
        {"timestamp": int(market.opens[row]), **dict(zip(names, market.values[row].tolist(), strict=True))}
        for row in at
    ]
    # an engine of real markets does not say dataMode
    answer = {"symbol": symbol, "timeframe": timeframe, "dataMode": market.data_mode, "candles": candles}
    return JSONResponse(answer)


async def _clock(request: Request) -> Response:
    state = _state(request)
    if request.method == "PUT":
        try:
            asked = await request.json()
            if "advance_seconds" in asked:
                state.set(state.clock + timedelta(seconds=float(asked["advance_seconds"])))
            else:
                told = datetime.fromisoformat(asked["time"])
                state.set(told.replace(tzinfo=UTC) if told.tzinfo is None else told.astimezone(UTC))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            return JSONResponse({"error": f"give time (ISO 8601) or advance_seconds: {error}"}, 400)
    return JSONResponse({"time": state.clock.isoformat()})


async def _faults(request: Request) -> Response:
    state = _state(request)
    if request.method == "PUT":
        try:
            state.faults = _checked(await request.json())
        except (TypeError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 400)
        state.rng = np.random.default_rng(state.faults.seed)
    return JSONResponse(asdict(state.faults))


def _checked(asked: Any) -> Faults:
    for name, value in dict(asked).items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        if not number or (name in {"seed", "only"} and not isinstance(value, int)):
            raise ValueError(f"{name} is {value!r}; give a number from 0 on, a whole one for seed and only")
    return Faults(**asked)


def _page(market: Market, clock: datetime, first: int | None, last: int | None, limit: int) -> np.ndarray:
    """Positions of the rows that a request is answered with: the oldest from ``first``, else the newest."""
    visible = market.opens <= _ms(clock)
    if first is not None:
        visible &= market.opens >= first
    if last is not None:
        visible &= market.opens <= last
    at = np.flatnonzero(visible)
    return at[:limit] if first is not None else at[-limit:]


def _rows(market: Market, at: np.ndarray) -> list[str]:
    """Rows as the protocol writes them: times as numbers, prices and volumes as text."""
    step = int(market.timeframe.delta.total_seconds() * 1000)
    return [
        f'[{opened},"{o!r}","{h!r}","{low!r}","{c!r}","{v!r}",{opened + step - 1},"{c * v:.8f}",0,"0","0","0"]'
        for opened, (o, h, low, c, v) in zip(market.opens[at].tolist(), market.values[at].tolist(), strict=True)
    ]


def _spoilt(rows: list[str], faults: Faults, rng: np.random.Generator) -> list[str]:
    if not (faults.duplicated or faults.missing or faults.malformed):
        return rows
    fates = rng.random((len(rows), 3))
    made = []
    for row, (lost, broken, twice) in zip(rows, fates.tolist(), strict=True):
        if lost < faults.missing:
            continue
        sent = row
        if broken < faults.malformed:
            fields = json.loads(row)
            fields[2] = repr(float(fields[3]) * 0.99)
            sent = json.dumps(fields)
        made += [sent, sent] if twice < faults.duplicated else [sent]
    return made


def _refusal(code: int, message: str) -> Response:
    return JSONResponse({"code": code, "msg": message}, 400)


def _state(request: Request) -> State:
    state: Any = request.app.state.exchange
    assert isinstance(state, State)  # noqa: S101 - narrows the type for the reader and the checker
    return state


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
