"""What stands before every request: how often who was asked, what it weighs, and whether the exchange is out."""

from __future__ import annotations

from typing import Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.sandbox.state import State

API: Final = "/api/"
CHART: Final = "/api/market/chart/"
NAMES: Final = {
    "/api/v3/klines": "klines",
    "/api/v3/time": "time",
    "/api/v3/exchangeInfo": "exchangeInfo",
    "/api/v3/ticker/24hr": "ticker",
}
# https://developers.binance.com/docs/binance-spot-api-docs/rest-api; the engine's chart has none
WEIGHTS: Final = {"klines": 2, "time": 1, "exchangeInfo": 20, "ticker": 2}
CANDLES: Final = frozenset({"klines", "chart"})

OUTAGE: Final = {"code": -1001, "msg": "Internal error; unable to process your request. Please try again."}


def watched(app: ASGIApp, state: State) -> ASGIApp:
    """``app`` with its requests counted and weighed, and none of the protocol's answered during an outage."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        name = _name(scope["path"])
        state.requests += name in CANDLES
        used = state.weigh(WEIGHTS.get(name or "", 0))

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                if name:
                    state.count(name, message["status"])
                weight = (b"x-mbx-used-weight-1m", str(used).encode())
                message = {**message, "headers": [*message["headers"], weight]}
            await send(message)

        out = name is not None and state.faults.out_at(state.clock)
        answering = JSONResponse(OUTAGE, 503) if out else app
        await answering(scope, receive, tell)

    return call


def _name(path: str) -> str | None:
    """What a request is counted under; None for one about the sandbox itself."""
    if not path.startswith(API):
        return None
    return NAMES.get(path) or ("chart" if path.startswith(CHART) else "other")
