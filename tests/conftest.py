"""Fixtures for every test."""

from __future__ import annotations

import os
import socket
import socketserver
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.sandbox import Sandbox

CHECKOUT = Path(__file__).resolve().parents[1]
CLOCK = datetime(2019, 1, 1, 0, 2, tzinfo=UTC)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real candles and oracles that may stand beside the checkout; skips where it does not."""
    folder = Path(os.environ.get("TRADEFLOWS_SHARED", CHECKOUT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real candles and oracles are not here ({folder}); set TRADEFLOWS_SHARED to the folder")
    return folder


@dataclass(frozen=True)
class LocalSandbox(Sandbox):
    """A sandbox exchange in this process: its ``state`` (``deployments.sandbox.server.State``) can be looked into."""

    state: Any


@pytest.fixture(scope="session")
def sandbox_server() -> Iterator[LocalSandbox]:
    import uvicorn

    from deployments.sandbox.markets import shipped
    from deployments.sandbox.server import application

    app = application(shipped(7, CLOCK), CLOCK)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as deployments.sandbox does
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    # connections queue from the moment the socket listens, so nobody has to wait for the thread
    thread.start()
    yield LocalSandbox(f"http://127.0.0.1:{listening.getsockname()[1]}", os.getpid(), app.state.exchange)
    server.should_exit = True
    thread.join(10)
    listening.close()


@pytest.fixture
def sandbox(sandbox_server: LocalSandbox) -> Iterator[LocalSandbox]:
    """The sandbox exchange over real HTTP: shipped markets of seed 7, its usual time, no faults, no requests yet."""
    from deployments.sandbox.server import Faults

    state = sandbox_server.state
    before = dict(state.markets)
    state.set_to, state.running_since, state.faults, state.requests = CLOCK, None, Faults(), 0
    state.rng = np.random.default_rng(0)
    state.replies.clear()
    state.weights.clear()
    state.used_weight, state.speed, state.ticks = 0, 1.0, time.monotonic
    yield sandbox_server
    state.markets = before
    state.faults = Faults()


# what a stub sends: the bytes of a whole HTTP reply, or parts of one for as long as they are taken
Reply = bytes | Callable[[], Iterator[bytes]]


@dataclass
class Stub:
    """A server that says what it was told to say. ``paths`` are the requests it got, with their queries."""

    url: str
    paths: list[str] = field(default_factory=list)


@pytest.fixture
def http_reply() -> Callable[..., bytes]:
    """Builds the bytes of an HTTP reply: ``http_reply(body, status=200, **headers)``, with - for _ in the names."""

    def build(body: bytes | str, status: int = 200, **headers: str) -> bytes:
        content = body if isinstance(body, bytes) else body.encode()
        lines = [f"HTTP/1.1 {status} -", f"Content-Length: {len(content)}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + content

    return build


@pytest.fixture
def stub() -> Iterator[Callable[[Mapping[str, Reply] | Sequence[Reply]], Stub]]:
    """Starts servers that give raw replies: by path, or in turn (the last one from then on).

    For what no sane server says: replies cut short, of any length, with any headers.
    """
    started: list[socketserver.ThreadingTCPServer] = []

    def start(replies: Mapping[str, Reply] | Sequence[Reply]) -> Stub:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                line = self.rfile.readline()
                if not line:
                    return  # connected, and gone without a word
                path = line.split()[1].decode()
                while self.rfile.readline().strip():
                    pass
                made.paths.append(path)
                if isinstance(replies, Mapping):
                    reply = replies[path.partition("?")[0]]
                else:
                    reply = replies[min(len(made.paths), len(replies)) - 1]
                try:
                    for part in [reply] if isinstance(reply, bytes) else reply():
                        self.wfile.write(part)
                except (BrokenPipeError, ConnectionResetError):
                    return  # the other side had enough

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        made = Stub(f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        started.append(server)
        return made

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that sources would have waited before they asked again; nobody waits."""
    from tasks import http

    waited: list[float] = []
    # sources call it by its module, and say nothing of how to sleep
    monkeypatch.setattr(http, "get_json", partial(http.get_json, sleep=waited.append))
    return waited


@pytest.fixture
def closed_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.fixture(scope="session")
def mongo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server at TEST_MONGODB_URL, else one of our own."""
    given = os.environ.get("TEST_MONGODB_URL")
    if given:
        yield given
        return
    from tests.mongo_server import MongoServer

    server = MongoServer(tmp_path_factory.mktemp("mongodb")).start()
    yield server.url
    server.kill()  # its folder goes, too


@pytest.fixture
def mongo_database(mongo_url: str) -> Iterator[str]:
    """The name of a database that is not there yet, and that goes after the test."""
    from pymongo import MongoClient

    name = f"tradeflows_test_{uuid.uuid4().hex}"
    yield name
    with MongoClient[Any](mongo_url) as client:
        client.drop_database(name)
