"""The sandbox's own routes: clock, faults, what was asked, and what the exchange changes after the fact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.sandbox import changes
from deployments.sandbox.faults import checked
from deployments.sandbox.moments import told, utc_of
from deployments.sandbox.state import State, require_speed, state_of
from trading.candles import COLUMNS
from trading.errors import BadTimeframe
from trading.window import Timeframe

# what a body that is not what it should be raises, JSON that is none included
UNFIT = (KeyError, TypeError, ValueError, OverflowError, BadTimeframe)


async def _clock(request: Request) -> Response:
    state = state_of(request)
    if request.method == "PUT":
        try:
            _set_clock(state, await request.json())
        except UNFIT as error:
            return _unfit(f"give time (ISO 8601) or advance_seconds, and speed: {error}")
    return JSONResponse({"time": state.clock.isoformat(), "speed": 0.0 if state.running_since is None else state.speed})


def _set_clock(state: State, asked: Any) -> None:
    # everything is read before anything is set
    speed = require_speed(asked["speed"]) if "speed" in asked else None
    moment = None
    if "advance_seconds" in asked:
        moment = state.clock + timedelta(seconds=float(asked["advance_seconds"]))
    elif "time" in asked or speed is None:
        moment = utc_of(asked["time"])
    if moment is not None:
        state.set(moment)
    if speed is not None:
        state.run(speed)


async def _faults(request: Request) -> Response:
    state = state_of(request)
    if request.method == "PUT":
        try:
            state.faults = checked(await request.json())
        except UNFIT as error:
            return _unfit(str(error))
        state.rng = np.random.default_rng(state.faults.seed)
    return JSONResponse(asdict(state.faults))


async def _requests(request: Request) -> Response:
    state = state_of(request)
    if request.method == "PUT":
        state.replies.clear()
        state.requests = 0
    return JSONResponse(state.replies)


async def _corrections(request: Request) -> Response:
    return await _changed(request, _correct)


async def _gaps(request: Request) -> Response:
    return await _changed(request, _cut)


async def _changed(request: Request, change: Callable[[State, Any], int]) -> Response:
    state = state_of(request)
    try:
        asked = {"restore": True} if request.method == "DELETE" else await request.json()
        if asked.get("restore"):
            state.markets = changes.restored(state.markets)
            return JSONResponse({"restored": True})
        return JSONResponse({"changed": change(state, asked)})
    except (*UNFIT, AttributeError) as error:
        return _unfit(f"{type(error).__name__}: {error}")


def _correct(state: State, asked: Any) -> int:
    if "rows" in asked:
        rows = [[told(row[0]), *row[1:]] for row in asked["rows"]]
    else:
        rows = [[told(asked["open_time"]), *map(asked.get, COLUMNS)]]
    timeframe = Timeframe.parse(asked["timeframe"])
    state.markets = changes.corrected(state.markets, asked["symbol"], timeframe, rows)
    return len(rows)


def _cut(state: State, asked: Any) -> int:
    span = told(asked["start"]), told(asked["end"])
    state.markets, count = changes.cut(state.markets, asked["symbol"], Timeframe.parse(asked["timeframe"]), *span)
    return count


def _unfit(message: str) -> Response:
    return JSONResponse({"error": message}, 400)


ROUTES = [
    Route("/sandbox/clock", _clock, methods=["GET", "PUT"]),
    Route("/sandbox/faults", _faults, methods=["GET", "PUT"]),
    Route("/sandbox/requests", _requests, methods=["GET", "PUT"]),
    Route("/sandbox/corrections", _corrections, methods=["PUT", "DELETE"]),
    Route("/sandbox/gaps", _gaps, methods=["PUT", "DELETE"]),
]
