"""The Prefect server's REST API, for commands that must not pay for importing prefect: asked again while it is busy."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx

from trading.errors import ConfigurationError

# on SQLite the server answers 503 while another writer holds the database
BUSY: Final = frozenset({429, 502, 503})
ATTEMPTS: Final = 8
PAGE: Final = 200


class Unreachable(ConfigurationError):
    """No answer. ``lost``: the server may have done what it was asked, and we do not know."""

    def __init__(self, url: httpx.URL, error: httpx.TransportError) -> None:
        super().__init__(
            f"the Prefect server at {url} cannot be reached ({error}); "
            "start one with `tradeflows up`, or set PREFECT_API_URL"
        )
        self.lost = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol)


class Refused(ConfigurationError):
    """The server says no: ``status`` is what it answered, ``detail`` why."""

    def __init__(self, method: str, path: str, answer: httpx.Response) -> None:
        super().__init__(f"Prefect refused {method} {path} ({answer.status_code}): {answer.text[:1000]}")
        self.status = answer.status_code
        told = answer.json() if answer.headers.get("content-type", "").startswith("application/json") else {}
        self.detail = str(told.get("detail") or told.get("exception_detail") or answer.text[:1000])


class Api:
    """One server. Every request that ``ask`` makes may be repeated without harm."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """The JSON of the answer, None where there is none or nothing of that name (404).

        Raises:
            ConfigurationError: the server cannot be reached, is still busy after several attempts, or refuses;
                with what it says.
        """
        pause = 0.1
        for attempt in range(ATTEMPTS):
            try:
                answer = self._client.request(method, path, json=body)
            except httpx.TransportError as error:
                raise Unreachable(self._client.base_url, error) from error
            if answer.status_code not in BUSY or attempt == ATTEMPTS - 1:
                break
            time.sleep(pause)
            pause *= 2
        if answer.status_code == 404:
            return None
        if answer.status_code == 401:
            raise ConfigurationError(
                f"the Prefect server at {self._client.base_url} wants another password; set TRADEFLOWS_PASSWORD to the "
                "one that it was started with, or PREFECT_API_AUTH_STRING to user:password"
            )
        if answer.is_error:
            raise Refused(method, path, answer)
        return answer.json() if answer.content else None

    def all(self, path: str, **query: object) -> Iterator[dict[str, Any]]:
        """Everything that a ``/filter`` path finds, page by page."""
        offset = 0
        while True:
            page = self.ask("POST", path, {**query, "limit": PAGE, "offset": offset}) or []
            yield from page
            if len(page) < PAGE:
                return
            offset += PAGE


@contextmanager
def connected(url: str, *, timeout: float = 30.0) -> Iterator[Api]:
    """The API at ``url`` (with ``/api``), with the user and password of PREFECT_API_AUTH_STRING where it is set."""
    told = os.environ.get("PREFECT_API_AUTH_STRING") or os.environ.get("PREFECT_SERVER_API_AUTH_STRING", "")
    user, _, password = told.partition(":")
    auth = httpx.BasicAuth(user, password) if user else None
    # loading the certificates takes longer than asking a server on this machine, which has none
    verify = trusted(url)
    with httpx.Client(base_url=url, auth=auth, timeout=timeout, verify=verify, trust_env=bool(verify)) as client:
        yield Api(client)


def trusted(url: str) -> ssl.SSLContext | bool:
    """Whom to believe the certificate of ``url``: the system's authorities, and who PREFECT_API_SSL_CERT_FILE names."""
    if not url.startswith("https:"):
        return False
    context = ssl.create_default_context()
    extra = os.environ.get("PREFECT_API_SSL_CERT_FILE")
    if extra:
        context.load_verify_locations(extra)
    return context
