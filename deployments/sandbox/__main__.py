"""Run the sandbox exchange: ``python -m deployments.sandbox``."""

from __future__ import annotations

import argparse
import socket
from datetime import UTC, datetime
from pathlib import Path

import uvicorn

from deployments.sandbox import READY
from deployments.sandbox.markets import from_folder, shipped
from deployments.sandbox.pages import render
from deployments.sandbox.server import application


def main() -> None:
    """Serve until told to stop; prints the address once connections are accepted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--clock", default="2019-01-01T00:02:00+00:00", help="ISO 8601, or now: it runs along")
    parser.add_argument("--folder", type=Path, help="candle files to serve too")
    parser.add_argument("--seed", type=int, default=7, help="of the generated markets")
    parser.add_argument("--speed", type=float, help="seconds of its clock per real second; 0: it stands still")
    parser.add_argument("--rendered", action="store_true", help="make the text of the folder's candles at the start")
    options = parser.parse_args()
    clock = datetime.now(UTC) if options.clock == "now" else datetime.fromisoformat(options.clock)
    clock = clock.replace(tzinfo=UTC) if clock.tzinfo is None else clock.astimezone(UTC)
    mine = from_folder(options.folder) if options.folder else {}
    markets = shipped(options.seed, clock) | mine
    if options.rendered:
        render(mine.values())
    speed = options.speed if options.speed is not None else float(options.clock == "now")
    exchange = application(markets, clock, speed=speed)
    listening = socket.create_server((options.host, options.port))
    # else every reply but a connection's first waits 40 ms for an acknowledgement; connections inherit it, and
    # asyncio sets it only on sockets whose protocol number was given
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    host, port = listening.getsockname()[:2]
    # connections queue from here on, so the address can be told
    print(f"{READY}http://{host}:{port}", flush=True)
    config = uvicorn.Config(exchange, log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
