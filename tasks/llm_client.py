"""One request to an OpenAI-compatible endpoint, through the official client: no retries, bounded in time and size.

What goes wrong becomes an ``LlmError`` that holds neither the request (its header carries the key) nor words of
the endpoint: some repeat a part of the key in what they say. A key that comes back in a reply is masked.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, SecretStr, ValidationError

from tasks.addresses import Access, checked_url, checking_peers
from tasks.http import retry_after
from trading.errors import ConfigurationError, LlmError, LlmKeyRefused, LlmRateLimited, LlmRefused, LlmUnavailable

if TYPE_CHECKING:
    import httpx2

VARIABLE: Final = "TRADEFLOWS_LLM_URL"
CONNECT_SECONDS: Final = 5.0
LARGEST_REPLY: Final = 1024 * 1024
LARGEST_REFUSAL: Final = 64 * 1024
# so many characters of a key in a row are taken for a part of it
FRAGMENT: Final = 8
MASK: Final = "***"
# at 429, the code of an account without money: no waiting helps
NO_QUOTA: Final = b'"insufficient_quota"'
KEY_REFUSED: Final = frozenset({401, 403})
_NAME: Final = re.compile(r"[A-Za-z0-9._:/@-]{1,100}")
# words of the protocol that say what is wrong; sentences may hold a part of the key
_CODE: Final = re.compile(rb'"(model_not_found|context_length_exceeded|unsupported_parameter|unsupported_value)"')


@dataclass(frozen=True)
class Reply:
    """What the model said. Tokens are None where the endpoint did not count them.

    ``refusal`` is its refusal to answer, ``finish`` why it ended: ``stop``, or ``length`` for a reply cut short.
    """

    text: str
    refusal: str | None
    finish: str | None
    model: str
    tokens: tuple[int, int] | None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice]
    model: str | None = None
    usage: Any = None


class Client:
    """Asks one endpoint; close it with ``opened_client``. Safe for threads."""

    def __init__(self, base_url: str, http: httpx2.Client, keys: Sequence[SecretStr], seconds: float) -> None:
        import openai

        self.host = host_of(base_url)
        self._seconds, self._mask = seconds, masking(keys)
        # made at once: the import alone takes two seconds, and a key that was promised is to be used at once
        self._clients = {
            key.get_secret_value(): openai.OpenAI(
                api_key=key.get_secret_value(),
                admin_api_key="",  # else one of the environment would be sent along
                base_url=base_url,
                max_retries=0,
                timeout=http.timeout,
                http_client=http,
            )
            for key in keys
        }

    def complete(self, key: SecretStr, request: Mapping[str, Any]) -> Reply:
        """The model's answer to ``request``, the body of a chat completion.

        Raises:
            LlmRateLimited: 429.
            LlmKeyRefused: 401 or 403.
            LlmRefused: another 4xx, a redirect, or a peer that may not be talked to.
            LlmUnavailable: unreachable, late, cut short, 5xx, or an answer that is no chat completion.
        """
        found = self._asked(key, request)
        # raised out here, so that no error of the client hangs on it with the request inside
        if isinstance(found, LlmError):
            raise found.with_traceback(None)
        return found

    def _asked(self, key: SecretStr, request: Mapping[str, Any]) -> Reply | LlmError:
        import httpx2
        import openai

        latest = time.monotonic() + self._seconds
        try:
            create = self._clients[key.get_secret_value()].chat.completions.with_streaming_response.create
            with create(**request) as response:
                body = _read(response.iter_bytes(), latest, LARGEST_REPLY)
        except LlmError as error:
            return _plain(error)
        except ConfigurationError as error:
            # the peer that was reached may not be talked to; nothing was sent
            return LlmRefused(str(error))
        except (openai.APITimeoutError, httpx2.TimeoutException, TimeoutError):
            return LlmUnavailable(f"{self.host} did not answer within {self._seconds:g} s", billed=True)
        except openai.APIConnectionError as error:
            reached = not isinstance(error.__cause__, httpx2.ConnectError | httpx2.UnsupportedProtocol)
            doing = "broke the connection off" if reached else "cannot be reached"
            return LlmUnavailable(f"{self.host} {doing}; check that {VARIABLE} is right", billed=reached)
        except httpx2.RequestError:
            return LlmUnavailable(f"{self.host} broke the connection off", billed=True)
        return self._parsed(body, str(request["model"]))

    def _parsed(self, body: bytes | None, asked: str) -> Reply | LlmError:
        if body is None:
            return LlmUnavailable(f"{self.host} sent more than {LARGEST_REPLY} bytes", billed=True)
        try:
            found = _Completion.model_validate_json(body)
        except ValidationError:
            found = None
        if found is None or not found.choices:
            return LlmUnavailable(f"{self.host} answered with what is no chat completion", billed=True)
        said = found.choices[0]
        return Reply(
            self._mask(said.message.content or ""),
            self._mask(said.message.refusal) if said.message.refusal else None,
            self._mask(said.finish_reason or "") or None,
            self._mask(found.model) if found.model and _NAME.fullmatch(found.model) else asked,
            _tokens(found.usage),
        )


@contextmanager
def opened_client(
    base_url: str, keys: Sequence[SecretStr], *, access: Access, seconds: float, connections: int = 64
) -> Iterator[Client]:
    """A client of the endpoint at ``base_url`` (up to /v1).

    Args:
        keys: all that are in use: none of them may come back in a reply.
        seconds: that a reply may take as a whole.
        connections: how many requests may be under way at once.

    Raises:
        ConfigurationError: not an address, or of a host that may not be talked to.
    """
    import httpx2

    checked_url(base_url, VARIABLE, access)
    host = host_of(base_url)

    def refuse(response: httpx2.Response) -> None:
        # here, and not by the client's own errors: those keep the request, and read all that is sent
        if not response.is_success:
            raise _refusal(response, host, seconds)

    checking: Any = checking_peers(access, VARIABLE)
    with httpx2.Client(
        timeout=httpx2.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds)),
        limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        # a redirect could lead the key to any other host
        follow_redirects=False,
        trust_env=not (access.allowed or access.public_only),
        event_hooks={"request": [checking], "response": [refuse]},
    ) as http:
        yield Client(base_url, http, keys, seconds)


def masking(keys: Sequence[SecretStr]) -> Callable[[str], str]:
    """A function that takes every ``FRAGMENT`` characters in a row of a key out of a text.

    What is shorter is no secret: endpoints that need no key are given such words.
    """
    parts = {
        secret[start : start + FRAGMENT]
        for secret in (key.get_secret_value() for key in keys)
        for start in range(len(secret) - FRAGMENT + 1)
    }

    def masked(text: str) -> str:
        made, shown_to = [], 0
        for start in range(len(text) - FRAGMENT + 1):
            if text[start : start + FRAGMENT] in parts:
                if start >= shown_to:
                    made += [text[shown_to:start], MASK]
                shown_to = start + FRAGMENT
        return "".join([*made, text[shown_to:]])

    return masked


def _refusal(response: httpx2.Response, host: str, seconds: float) -> LlmError:
    status = response.status_code
    body = _read(response.iter_bytes(), time.monotonic() + seconds, LARGEST_REFUSAL) or b""
    told = retry_after(response.headers.get("retry-after"))
    if status == 429:
        quota = NO_QUOTA in body
        return LlmRateLimited(f"{host} answered 429" + (": the quota is used up" if quota else ""), told, quota=quota)
    if status in KEY_REFUSED:
        return LlmKeyRefused(f"{host} answered {status}")
    if status >= 500:
        return LlmUnavailable(f"{host} answered {status}", billed=False)
    code = _CODE.search(body)
    said = f" ({code[1].decode()})" if code is not None else ""
    return LlmRefused(f"{host} answered {status}{said}; check {VARIABLE} and TRADEFLOWS_LLM_MODEL")


def _read(parts: Iterator[bytes], latest: float, largest: int) -> bytes | None:
    """The body; None where it is too large.

    Raises:
        TimeoutError: it came in drops, until after ``latest``.
    """
    body = bytearray()
    for part in parts:
        body += part
        if len(body) > largest:
            return None
        if time.monotonic() > latest:
            raise TimeoutError
    return bytes(body)


def _tokens(usage: Any) -> tuple[int, int] | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    if not (type(prompt) is int and type(completion) is int and 0 <= prompt < 10**9 and 0 <= completion < 10**9):
        return None
    return prompt, completion


def _plain(error: LlmError) -> LlmError:
    """The error without what it was raised among."""
    error.__context__ = error.__cause__ = None
    return error


def host_of(base_url: str) -> str:
    import httpx

    url = httpx.URL(base_url)
    return url.host + (f":{url.port}" if url.port else "")
