"""HTTP to market-data sources: pooled, bounded in time and size, asked politely, errors of our own tree.

One ``get_json`` for every source, so that all of them treat a refused connection, a rate limit and a
truncated reply alike. Who may be talked to is decided in ``tasks.addresses``.
"""

from __future__ import annotations

import math
import random
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Final, Protocol

import httpx
import msgspec
import tenacity

from tasks.addresses import ANYWHERE, Access, checked_url, checking_peers
from tasks.retry import LONGEST_WAIT, REQUEST, RetryPolicy
from trading.errors import (
    CircuitOpen,
    MalformedResponse,
    RateLimited,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)

TIMEOUT: Final = httpx.Timeout(10.0, connect=5.0)
# as many as are used at once, kept open between requests
POOL: Final = httpx.Limits(max_connections=16, max_keepalive_connections=16)
LARGEST_REPLY: Final = 32 * 1024 * 1024
# the timeouts count between two bytes: this one bounds a reply that comes in drops
LONGEST_REPLY: Final = 60.0
SHOWN: Final = 120
ANY_JSON: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder()


class Guard(Protocol):
    """Stands before a source: asked before each request, told how it ended."""

    def admit(self, weight: int) -> None:
        """Wait until a request of that weight may go out. Raises CircuitOpen where none may for now."""

    def heard(self, error: SourceError | None) -> None:
        """What came of it; None for an answer."""


class Unguarded:
    """A guard that lets everything pass."""

    def admit(self, weight: int) -> None:
        pass

    def heard(self, error: SourceError | None) -> None:
        pass


class _Damaged(MalformedResponse):
    """Cut or garbled on the way: another reply, or another source, may do."""

    transient = True


class _Hopeless(MalformedResponse):
    """Asking again gives the same: too large, or JSON that says something else."""


def client(
    base_url: str, variable: str, *, access: Access = ANYWHERE, timeout: httpx.Timeout | None = None
) -> httpx.Client:
    """A client of one source.

    Args:
        variable: the setting that the address comes from, for error messages.
        access: which hosts may be talked to.
        timeout: of connecting, and between two bytes; ``TIMEOUT`` by default.

    Raises:
        ConfigurationError: not an http or https address, one with a password in it, or of a host that may
            not be talked to.
    """
    url = checked_url(base_url, variable, access)
    # reading the system's trust takes 20 ms, and plain http has no use for it: with none, no TLS peer is trusted
    trust = True if url.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # a redirect could lead a request, and the trust in its reply, to any other host
    return httpx.Client(
        base_url=url,
        timeout=timeout or TIMEOUT,
        limits=POOL,
        follow_redirects=False,
        verify=trust,
        # behind a proxy the peer that is checked would be the proxy
        trust_env=not (access.allowed or access.public_only),
        event_hooks={"request": [checking_peers(access, variable)]},
    )


def get_json(
    connection: httpx.Client,
    path: str,
    params: Mapping[str, str | int] | None = None,
    *,
    variable: str,
    decoder: msgspec.json.Decoder[Any] = ANY_JSON,
    weight: int = 1,
    guard: Guard | None = None,
    policy: RetryPolicy = REQUEST,
    sleep: Callable[[float], None] = time.sleep,
) -> Any:
    """GET ``path`` and parse the reply.

    Asked again under ``policy``: 429 and 418 once their Retry-After is over (one of more than ``LONGEST_WAIT``
    seconds is not waited for), no answer, 5xx, and a reply that was damaged on the way.

    Args:
        decoder: says what the reply looks like; any JSON by default.
        weight: what the request costs under the source's rate limit.
        guard: asked before each try, told its outcome.

    Raises:
        SourceUnavailable: unreachable, timed out, took longer than ``LONGEST_REPLY`` seconds, or 5xx;
            CircuitOpen where the guard lets nobody through.
        RateLimited: asked to slow down, again and again or for long.
        SourceRefused: another 4xx, or a redirect.
        MalformedResponse: not JSON, not the encoding it claims, or larger than ``LARGEST_REPLY`` bytes.
    """
    stands = guard or Unguarded()

    def once() -> Any:
        stands.admit(weight)
        try:
            answer = _once(connection, path, params, variable, decoder)
        except SourceError as error:
            stands.heard(error)
            raise
        stands.heard(None)
        return answer

    return _retrying(policy, sleep)(once)


@lru_cache(maxsize=16)
def _retrying(policy: RetryPolicy, sleep: Callable[[float], None]) -> tenacity.Retrying:
    delays = policy.delays or [0.0]  # tenacity asks for a pause after the last try, too
    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(policy.attempts + 1),
        retry=tenacity.retry_if_exception(_worth_asking_again),
        wait=lambda state: _pause(state, delays, policy.jitter),
        sleep=sleep,
        reraise=True,
    )


def _worth_asking_again(error: BaseException) -> bool:
    if isinstance(error, RateLimited):
        return (error.retry_after or 0) <= LONGEST_WAIT
    return isinstance(error, SourceUnavailable | _Damaged) and not isinstance(error, CircuitOpen)


def _pause(state: tenacity.RetryCallState, delays: list[float], jitter: float) -> float:
    """Retry-After where the source gave one, else exponential; a little more by chance, never less."""
    error = state.outcome.exception() if state.outcome is not None else None
    told = error.retry_after if isinstance(error, RateLimited) else None
    delay = delays[min(state.attempt_number, len(delays)) - 1] if told is None else told
    # the chance is only for spreading many clients; nothing computed depends on it
    return delay + random.uniform(0, jitter) * min(delay, 1.0)  # noqa: S311


def _once(
    connection: httpx.Client,
    path: str,
    params: Mapping[str, str | int] | None,
    variable: str,
    decoder: msgspec.json.Decoder[Any],
) -> Any:
    where = f"{connection.base_url.host}:{connection.base_url.port or connection.base_url.scheme}"
    try:
        reply = connection.send(connection.build_request("GET", path, params=dict(params or {})), stream=True)
        with closing(reply):
            body = _read(reply, where, path)
    except httpx.TransportError as error:
        raise SourceUnavailable(
            f"no answer from {where} for {path} ({type(error).__name__}: {error}); "
            f"check that it runs and that {variable} is right"
        ) from error
    except httpx.DecodingError as error:
        raise _Damaged(
            f"{where}{path} sent what it says is compressed and is not ({error}); check that {variable} is right"
        ) from error
    status = reply.status_code
    said = f"{where}{path} answered {status}: {_start(body)}"
    if status in {httpx.codes.TOO_MANY_REQUESTS, 418}:
        raise RateLimited(f"{said}; slow down", retry_after(reply.headers.get("Retry-After")))
    if status >= 500:
        raise SourceUnavailable(f"{said}; it will be asked again")
    if status >= 300:
        raise SourceRefused(said, status, body)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _Hopeless(f"{where}{path} did not answer as the protocol says ({error}): {_start(body)}") from error
    except (ValueError, RecursionError) as error:  # msgspec's DecodeError is a ValueError
        raise _Damaged(
            f"{where}{path} did not answer with JSON ({error}): {_start(body)}; check that {variable} is right"
        ) from error


def _read(reply: httpx.Response, where: str, path: str) -> bytes:
    parts, size = [], 0
    latest = time.monotonic() + LONGEST_REPLY
    for part in reply.iter_bytes():
        size += len(part)
        if size > LARGEST_REPLY:
            raise _Hopeless(f"{where}{path} sent more than {LARGEST_REPLY} bytes; ask for fewer candles")
        if time.monotonic() > latest:
            raise SourceUnavailable(f"{where}{path} took longer than {LONGEST_REPLY:g} seconds to answer")
        parts.append(part)
    return b"".join(parts)


def _start(body: bytes) -> str:
    text = body[: SHOWN + 1].decode("utf-8", "replace")
    return repr(text[:SHOWN] + ("…" if len(text) > SHOWN else ""))


def retry_after(header: str | None) -> float | None:
    """Retry-After in seconds, given as a number or as a date; None where it is absent or neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    return None if math.isnan(seconds) else max(seconds, 0.0)
