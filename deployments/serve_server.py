"""A signal for posted candles, over HTTP: the verified champion as a small web server.

    POST /signal        candles as the engine's chart has them -> the signal of the last one
    POST /invocations   the same in MLflow's words (dataframe_split, dataframe_records), for its clients
    GET  /model         what is served, and what candles it needs
    GET  /health        503 where no verified version is there
    GET  /ping          whether the process lives; the only question that needs no password

MLflow's own server would answer a wrong candle with the traceback, and knows no signature of the manifest, no
password and no change of champion.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

import anyio
import anyio.to_thread
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.serve_answers import ASKED, INVOKED, Asked, Invoked, answer, described, predictions
from deployments.serve_champion import ChampionWatch, Served, require
from tasks import log
from trading.errors import DataError, InvalidRequest, ModelNotFound, TradeflowsError

LARGEST_BODY: Final = 8_000_000
STATUS: Final = {ModelNotFound: 503, DataError: 422, InvalidRequest: 400}
Clock = Callable[[], datetime]


def application(
    watch: ChampionWatch,
    known: tuple[str, str] | None,
    *,
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost"),
    every: float = 60.0,
    clock: Clock = lambda: datetime.now(UTC),
) -> Starlette:
    """The server as an ASGI application.

    Args:
        known: user and password to ask for; None lets everybody in.
        hosts: names under which it may be asked, against pages that find it under a name of their own.
        every: seconds between two looks for a new champion; 0: never.
    """

    @asynccontextmanager
    async def watching(_: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            if every:
                tasks.start_soon(_look, watch, every)
            yield
            tasks.cancel_scope.cancel()

    closed = _closed(known)
    app = Starlette(
        routes=[
            Route("/signal", closed(_signal), methods=["POST"]),
            Route("/invocations", closed(_invocations), methods=["POST"]),
            Route("/model", closed(_model), methods=["GET"]),
            Route("/health", closed(_health), methods=["GET"]),
            Route("/ping", _ping, methods=["GET"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={TradeflowsError: _refused, HTTPException: _refused_by_protocol, Exception: _failed},
        lifespan=watching,
    )
    app.state.watch, app.state.clock = watch, clock
    return app


async def _look(watch: ChampionWatch, every: float) -> None:
    while True:
        await anyio.sleep(every)
        if await anyio.to_thread.run_sync(watch.refresh):
            said = watch.current.champion
            log.logger().info("champion changed", model=watch.current.name, version=said.version if said else "none")


async def _signal(request: Request) -> Response:
    served = _served(request)
    asked: Asked = await _body(request, ASKED)
    return JSONResponse(await anyio.to_thread.run_sync(answer, require(served), asked, request.app.state.clock()))


async def _invocations(request: Request) -> Response:
    served = _served(request)
    invoked: Invoked = await _body(request, INVOKED)
    return JSONResponse(await anyio.to_thread.run_sync(predictions, require(served), invoked))


async def _model(request: Request) -> Response:
    return JSONResponse(described(_served(request)))


async def _health(request: Request) -> Response:
    served = _served(request)
    found = {
        "status": "ready" if served.champion else "no model",
        "model": served.name,
        "version": served.champion.version if served.champion else None,
        "degraded": served.champion.degraded if served.champion else None,
        "verified_at": served.since.isoformat(),
        "checked_at": served.checked.isoformat(),
        "trouble": served.trouble,
    }
    return JSONResponse(found, 200 if served.champion else 503)


async def _ping(_: Request) -> Response:
    return Response("\n")


def _served(request: Request) -> Served:
    watch: ChampionWatch = request.app.state.watch
    return watch.current


async def _body(request: Request, decoder: msgspec.json.Decoder[Any]) -> Any:
    """The parsed body.

    Raises:
        HTTPException: not JSON (415), or too much of it (413).
        InvalidRequest: it is not what is asked for; says where.
    """
    # a page of another site can post a form here, but no JSON
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send JSON, with Content-Type: application/json")
    text = bytearray()
    async for part in request.stream():
        text += part
        if len(text) > LARGEST_BODY:
            raise HTTPException(413, f"a body may have {LARGEST_BODY:,} bytes; send fewer candles")
    try:
        return decoder.decode(bytes(text))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not what is asked for: {error}") from error


def _closed(known: tuple[str, str] | None) -> Callable[[Any], Any]:
    """Lets in who knows user and password."""
    wanted = base64.b64encode(":".join(known).encode()) if known else None

    def guard(endpoint: Any) -> Any:
        async def guarded(request: Request) -> Response:
            scheme, _, told = request.headers.get("authorization", "").partition(" ")
            right = wanted is None or (
                scheme.lower() == "basic" and secrets.compare_digest(told.strip().encode(), wanted)
            )
            if not right:
                raise HTTPException(401, "user and password, please", {"WWW-Authenticate": 'Basic realm="tradeflows"'})
            response: Response = await endpoint(request)
            return response

        return guarded

    return guard


async def _refused(_: Request, error: Exception) -> Response:
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
    if status == 500:
        log.logger().error("request failed", error=str(error))
    return JSONResponse({"error_code": type(error).__name__, "message": str(error)}, status)


async def _refused_by_protocol(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what Starlette calls it with
    body = {"error_code": f"HTTP{error.status_code}", "message": error.detail}
    return JSONResponse(body, error.status_code, error.headers)


async def _failed(_: Request, error: Exception) -> Response:
    # Starlette raises it on, and uvicorn logs it with its traceback
    return JSONResponse({"error_code": "InternalError", "message": "not your fault; see the server's log"}, 500)
