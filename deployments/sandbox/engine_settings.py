"""The engine's strategy settings in the sandbox: served as an engine does, and changed from outside.

GET    /api/settings/strategy: what ``tasks.engine_settings`` reads
PUT    /sandbox/settings: the bytes to answer with from then on, whatever they are
DELETE /sandbox/settings: the usual ones again
"""

from __future__ import annotations

from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

JSON: Final = "application/json"
USUAL: Final = {
    "strategies": [
        {"name": "rsi", "enabled": True, "parameters": {"period": 14, "low": 30, "high": 70}},
        {"name": "macd", "enabled": True, "parameters": {"fast": 12, "slow": 26, "signal": 9}},
        {"name": "volume", "enabled": True},
        {"name": "bollinger", "enabled": True, "parameters": {"period": 20, "width": 2.0}},
        {"name": "breakout", "enabled": False},
    ],
    "analysis": {"confidenceThreshold": 0.2, "timeToLiveMinutes": 15},
}


async def _strategy(request: Request) -> Response:
    told = getattr(request.app.state, "settings", None)
    return Response(orjson.dumps(USUAL) if told is None else told, media_type=JSON)


async def _settings(request: Request) -> Response:
    request.app.state.settings = await request.body() if request.method == "PUT" else None
    return JSONResponse({"changed": request.method == "PUT"})


ROUTES: Final = [
    Route("/api/settings/strategy", _strategy),
    Route("/sandbox/settings", _settings, methods=["PUT", "DELETE"]),
]
