"""A stand-in for an LLM endpoint: the OpenAI chat-completions protocol on loopback, with faults on demand.

    POST /v1/chat/completions   answers with an opinion that it makes of the prompt's own numbers
    GET  /v1/models
    GET  /sandbox/requests      per key: how many requests, replies by status, the most in any window, violations;
                                PUT begins anew
    GET  /sandbox/faults        PUT {"script": ["429", "ok"], "keys": {"sk-stub-1": ["401"]}, "latency": 1.0}

A *script* is taken reply by reply and then over, except that its last word stays where it begins with ``=``
(``=500``: from now on). A key's own script comes before the one for all. Words are those of ``FAULTS``; ``429:7`` has a
Retry-After of 7 seconds, ``slow:3`` answers after 3 seconds. What it says is made up: it is for tests, the demo
and measurements, and its opinions are labelled with the model ``sandbox``.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.sandbox.llm_replies import FAULTS, MODEL, reply_to
from trading.errors import SourceUnavailable

READY: Final = "sandbox LLM on "


@dataclass
class LlmState:
    """What the endpoint remembers.

    Attributes:
        limit: requests that a key may make in any ``window`` seconds; 0: as many as it likes. What is above is counted
            as a violation and answered 429.
        arrivals: of each key, by reading of the clock.
    """

    latency: float = 0.0
    limit: int = 0
    window: float = 60.0
    script: deque[str] = field(default_factory=deque)
    scripts: dict[str, deque[str]] = field(default_factory=dict)
    arrivals: dict[str, deque[float]] = field(default_factory=dict)
    most: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    replies: dict[str, Counter[str]] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def arrived(self, key: str) -> bool:
        """Count a request; whether the key may make it."""
        now = time.monotonic()
        seen = self.arrivals.setdefault(key, deque())
        while seen and seen[0] <= now - self.window:
            seen.popleft()
        seen.append(now)
        self.most[key] = max(self.most[key], len(seen))
        within = not self.limit or len(seen) <= self.limit
        self.violations[key] += not within
        return within

    def next_word(self, key: str) -> str:
        """What the script says of this request."""
        for script in (self.scripts.get(key), self.script):
            if script:
                return script[0].removeprefix("=") if script[0].startswith("=") else script.popleft()
        return "ok"

    def set(self, asked: dict[str, Any]) -> None:
        """Follow these scripts from now on.

        Raises:
            ValueError: a word that is no fault.
        """
        scripts = {"": asked.get("script", []), **asked.get("keys", {})}
        for word in (word for script in scripts.values() for word in script):
            if word.removeprefix("=").partition(":")[0] not in FAULTS:
                raise ValueError(f"{word!r} is none of {', '.join(sorted(FAULTS))}")
        self.latency = float(asked.get("latency", self.latency))
        self.script = deque(scripts.pop(""))
        self.scripts = {key: deque(script) for key, script in scripts.items()}

    def forget(self) -> None:
        """Begin to count anew."""
        # anew, not emptied: replies that are still under way belong to what was before
        self.arrivals, self.most, self.violations, self.replies, self.bodies = {}, Counter(), Counter(), {}, []

    def told(self) -> dict[str, Any]:
        """The counts, by key."""
        return {
            key: {
                "requests": sum(counts.values()),
                "replies": dict(counts),
                "most_in_window": self.most[key],
                "violations": self.violations[key],
            }
            for key, counts in self.replies.items()
        }


def application(*, latency: float = 0.0, limit: int = 0, window: float = 60.0) -> Starlette:
    """The endpoint as an ASGI application; its state is ``app.state.llm``."""
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", _completions, methods=["POST"]),
            Route("/v1/models", _models),
            Route("/sandbox/faults", _faults, methods=["GET", "PUT"]),
            Route("/sandbox/requests", _requests, methods=["GET", "PUT"]),
        ]
    )
    app.state.llm = LlmState(latency, limit, window)
    return app


async def _completions(request: Request) -> Response:
    state = _state(request)
    key = request.headers.get("authorization", "").removeprefix("Bearer ")
    within = state.arrived(key)
    word, _, value = state.next_word(key).partition(":")
    body = await request.json()
    state.bodies.append(body)
    replies = state.replies
    if not within:
        word, value = "429", "1"
    pause = float(value) if word == "slow" and value else state.latency
    if pause:
        await asyncio.sleep(pause)
    reply = reply_to(body, key, word, value)
    replies.setdefault(key, Counter())[str(reply.status_code)] += 1
    return reply


async def _models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "sandbox"}]})


async def _faults(request: Request) -> Response:
    state = _state(request)
    if request.method == "PUT":
        try:
            state.set(await request.json())
        except (ValueError, TypeError, AttributeError) as error:
            return JSONResponse({"error": str(error)}, 400)
    scripts = {key: list(script) for key, script in state.scripts.items()}
    return JSONResponse({"script": list(state.script), "keys": scripts, "latency": state.latency})


async def _requests(request: Request) -> Response:
    state = _state(request)
    if request.method == "PUT":
        state.forget()
    return JSONResponse(state.told())


def _state(request: Request) -> LlmState:
    state: Any = request.app.state.llm
    assert isinstance(state, LlmState)  # noqa: S101 - narrows the type for the reader and the checker
    return state


@dataclass(frozen=True)
class SandboxLlm:
    """A running stand-in; ``url`` ends with /v1. ``state`` can be looked into where it runs in this process."""

    url: str
    state: LlmState | None = None

    def set_faults(
        self, *script: str, keys: dict[str, Sequence[str]] | None = None, latency: float | None = None
    ) -> None:
        """Misbehave like this from now on; without arguments, no more."""
        body = {"script": script, "keys": keys or {}} | ({} if latency is None else {"latency": latency})
        httpx.put(f"{self._root}/sandbox/faults", json=body).raise_for_status()

    def requests(self) -> dict[str, Any]:
        """What was asked and answered, by key (see the module)."""
        found: dict[str, Any] = httpx.get(f"{self._root}/sandbox/requests").raise_for_status().json()
        return found

    def forget_requests(self) -> None:
        """Begin to count anew."""
        httpx.put(f"{self._root}/sandbox/requests").raise_for_status()

    @property
    def _root(self) -> str:
        return self.url.removesuffix("/v1")


@contextmanager
def serving(app: Starlette) -> Iterator[SandboxLlm]:
    """The endpoint on a free loopback port, in a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False))
    listening = _listening("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield SandboxLlm(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", app.state.llm)
    finally:
        server.should_exit = True
        server.force_exit = True  # whoever still waits for a slow reply waits in vain
        thread.join(10)
        listening.close()


@contextmanager
def running_llm(*, latency: float = 0.0, limit: int = 0, window: float = 60.0) -> Iterator[SandboxLlm]:
    """The endpoint as a process of its own, answering; stopped at the end.

    Raises:
        SourceUnavailable: it did not start; shows what it said.
    """
    command = [sys.executable, "-m", "deployments.sandbox.llm"]
    command += ["--latency", str(latency), "--limit", str(limit), "--window", str(window)]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        ) as process,
    ):
        try:
            line = next((line for line in process.stdout or () if line.startswith(READY)), None)
            if line is None:
                said.seek(0)
                raise SourceUnavailable(f"the sandbox LLM did not start: {said.read().decode()[-500:].strip()}")
            yield SandboxLlm(line.removeprefix(READY).strip())
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _listening(host: str, port: int) -> socket.socket:
    listening = socket.create_server((host, port), backlog=512)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as deployments.sandbox does
    return listening


def main() -> None:
    """Serve until told to stop; prints the address once connections are accepted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each reply")
    parser.add_argument("--limit", type=int, default=0, help="requests of one key in a window; 0: any")
    parser.add_argument("--window", type=float, default=60.0, help="seconds")
    asked = parser.parse_args()
    listening = _listening(asked.host, asked.port)
    host, port = listening.getsockname()[:2]
    print(f"{READY}http://{host}:{port}/v1", flush=True)
    app = application(latency=asked.latency, limit=asked.limit, window=asked.window)
    uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False)).run(sockets=[listening])


if __name__ == "__main__":
    main()
