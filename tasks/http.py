"""HTTP to market-data sources: pooled, bounded in time and size, errors of our own tree.

One ``get_json`` for every source, so that all of them treat a refused connection, a rate limit and a
truncated reply alike.
"""

from __future__ import annotations

import json
import math
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx

from trading.errors import ConfigurationError, MalformedResponse, RateLimited, SourceRefused, SourceUnavailable

TIMEOUT: Final = httpx.Timeout(10.0, connect=5.0)
LARGEST_REPLY: Final = 32 * 1024 * 1024
# the timeouts count between two bytes: this one bounds a reply that comes in drops
LONGEST_REPLY: Final = 60.0
# a rate limit of up to this many seconds is waited out in place; a longer one fails the run, because asking
# again before it is over makes exchanges ban the address
LONGEST_WAIT: Final = 30.0
SHOWN: Final = 120


def client(base_url: str, variable: str) -> httpx.Client:
    """A client of one source.

    Args:
        variable: the setting that the address comes from, for error messages.

    Raises:
        ConfigurationError: not an http or https address, or one with a password in it.
    """
    # looked for in the text: a password with a slash in it is no user information to a parser
    if "@" in base_url:
        raise ConfigurationError(f"{variable} holds a user name or password; leave them out of the address")
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"{variable} is not an address ({error}); it looks like https://host") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ConfigurationError(f"{variable} must be an http or https address with a host, such as https://host")
    # reading the system's trust takes 20 ms, and plain http has no use for it: with none, no TLS peer is trusted
    trust = True if url.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # a redirect could lead a request, and the trust in its reply, to any other host
    return httpx.Client(base_url=url, timeout=TIMEOUT, follow_redirects=False, verify=trust)


def get_json(
    connection: httpx.Client,
    path: str,
    params: Mapping[str, str | int] | None = None,
    *,
    variable: str,
    sleep: Callable[[float], None] = time.sleep,
) -> Any:
    """GET ``path`` and parse the reply.

    A 429 or 418 with a Retry-After of up to ``LONGEST_WAIT`` seconds is waited out once.

    Raises:
        SourceUnavailable: unreachable, timed out, took longer than ``LONGEST_REPLY`` seconds, or 5xx.
        RateLimited: asked to slow down, twice or for long.
        SourceRefused: another 4xx, or a redirect.
        MalformedResponse: not JSON, not the encoding it claims, or larger than ``LARGEST_REPLY`` bytes.
    """
    try:
        return _once(connection, path, params, variable)
    except RateLimited as error:
        if error.retry_after is None or error.retry_after > LONGEST_WAIT:
            raise
        sleep(error.retry_after)
    return _once(connection, path, params, variable)


def _once(connection: httpx.Client, path: str, params: Mapping[str, str | int] | None, variable: str) -> Any:
    where = f"{connection.base_url.host}:{connection.base_url.port or connection.base_url.scheme}"
    try:
        with connection.stream("GET", path, params=dict(params or {})) as reply:
            body = _read(reply, where, path)
    except httpx.TransportError as error:
        raise SourceUnavailable(
            f"no answer from {where} for {path} ({type(error).__name__}: {error}); "
            f"check that it runs and that {variable} is right"
        ) from error
    except httpx.DecodingError as error:
        raise MalformedResponse(
            f"{where}{path} sent what it says is compressed and is not ({error}); check that {variable} is right"
        ) from error
    status = reply.status_code
    said = f"{where}{path} answered {status}: {_start(body)}"
    if status in {httpx.codes.TOO_MANY_REQUESTS, 418}:
        raise RateLimited(f"{said}; slow down", _seconds(reply.headers.get("Retry-After")))
    if status >= 500:
        raise SourceUnavailable(f"{said}; it will be asked again")
    if status >= 300:
        raise SourceRefused(said, status, body)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedResponse(
            f"{where}{path} did not answer with JSON ({error}): {_start(body)}; check that {variable} is right"
        ) from error


def _read(reply: httpx.Response, where: str, path: str) -> bytes:
    parts, size = [], 0
    latest = time.monotonic() + LONGEST_REPLY
    for part in reply.iter_bytes():
        size += len(part)
        if size > LARGEST_REPLY:
            raise MalformedResponse(f"{where}{path} sent more than {LARGEST_REPLY} bytes; ask for fewer candles")
        if time.monotonic() > latest:
            raise SourceUnavailable(f"{where}{path} took longer than {LONGEST_REPLY:g} seconds to answer")
        parts.append(part)
    return b"".join(parts)


def _start(body: bytes) -> str:
    text = body[: SHOWN + 1].decode("utf-8", "replace")
    return repr(text[:SHOWN] + ("…" if len(text) > SHOWN else ""))


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; None where it is absent or a date, which is treated as unknown."""
    try:
        seconds = float(header) if header is not None else math.nan
    except ValueError:
        return None
    return None if math.isnan(seconds) else max(seconds, 0.0)
