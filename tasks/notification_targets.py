"""Whom to tell, and how a message gets there: apprise addresses, whose tokens nobody gets to see.

Addresses are those of https://appriseit.com/services/ and hold tokens. So they are named by number and scheme only,
and of what apprise says about a delivery only the status is told on.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from pydantic import SecretStr

from tasks.notification_texts import Message, Severity
from tasks.settings import Settings
from trading.errors import ConfigurationError, NotificationFailed

if TYPE_CHECKING:
    from apprise import Apprise

HIDDEN: Final = "***"
_ADDRESS: Final = re.compile(r"(?:(info|warning|critical)=)?(([a-z][a-z0-9+.-]*)://\S+)", re.IGNORECASE)
_LOGIN: Final = re.compile(r"(://[^\s/@:]*:)[^\s/@]+@")
_PASSWORD: Final = re.compile(r"://[^\s/@:]*:([^\s/@]+)@")
_STATUS: Final = re.compile(r"error=(\d{3})\b")


@dataclass(frozen=True)
class Target:
    """Somebody to tell. ``name`` is safe to show, ``address`` is not."""

    name: str
    threshold: Severity
    address: SecretStr


def targets(settings: Settings) -> tuple[Target, ...]:
    """Everybody who may be told, in the order of the settings.

    Raises:
        ConfigurationError: an address that apprise does not understand; names it by number and scheme only.
    """
    words = (settings.notify_urls.get_secret_value() if settings.notify_urls else "").split()
    found = []
    for number, word in enumerate(words, start=1):
        matched = _ADDRESS.fullmatch(word)
        if matched is None:
            raise ConfigurationError(
                f"TRADEFLOWS_NOTIFY_URLS: address {number} is not one; write scheme://..., or critical=scheme://..."
            )
        target = Target(
            f"{number} ({matched[3].lower()})",
            Severity((matched[1] or settings.notify_threshold).lower()),
            SecretStr(matched[2]),
        )
        _opened(target, settings.notify_timeout)
        found.append(target)
    return tuple(found)


def masked(text: str, settings: Settings) -> str:
    """The text without any secret of the settings, nor the password of any address in it."""
    for secret in sorted(_secrets(settings), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _LOGIN.sub(rf"\1{HIDDEN}@", text)


def deliver(chosen: Sequence[Target], message: Message, timeout: float, reached: Sequence[str]) -> tuple[str, ...]:
    """Tell all at once, within twice ``timeout`` seconds; the names of those told now.

    Raises:
        NotificationFailed: some were not reached, and why.
    """
    due = [target for target in chosen if target.name not in reached]
    answers: dict[str, str | None] = {}

    def send(target: Target) -> None:
        answers[target.name] = _answer(target, message, timeout)

    # a receiver that answers in drops cannot be stopped: its thread is left behind, and ends with the process
    threads = [threading.Thread(target=partial(send, target), daemon=True) for target in due]
    until = time.monotonic() + 2 * timeout
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0.0))
    late = f"no answer within {2 * timeout:g} s"
    failures = {target.name: why for target in due if (why := answers.get(target.name, late)) is not None}
    if failures:
        said = "; ".join(f"{name}: {why}" for name, why in failures.items())
        raise NotificationFailed(
            f"{len(failures)} of {len(chosen)} addresses were not told {message.title!r}: {said}; "
            "look at TRADEFLOWS_NOTIFY_URLS",
            tuple(failures),
        )
    return tuple(target.name for target in due)


def _answer(target: Target, message: Message, timeout: float) -> str | None:
    """None for delivered, else why not, in words that hold nothing of the address."""
    from apprise import NotifyFormat, NotifyType

    kinds = {
        Severity.INFO: NotifyType.INFO,
        Severity.WARNING: NotifyType.WARNING,
        Severity.CRITICAL: NotifyType.FAILURE,
    }
    with _Heard() as heard:
        try:
            done = _opened(target, timeout).notify(
                body=message.text or message.title,
                title=f"[{message.severity.value}] {message.title}",
                notify_type=kinds[message.severity],
                body_format=NotifyFormat.TEXT,
            )
        except Exception as error:  # noqa: BLE001 - plugins of others; a traceback would show the address
            return f"{type(error).__name__} in apprise"
    if done:
        return None
    statuses = _STATUS.findall(" ".join(heard.lines))
    return f"answered {statuses[-1]}" if statuses else "no answer, or apprise could not send it"


class _Heard(logging.Handler):
    """What apprise logs in this thread, kept from everybody else: addresses stand in it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self._thread = threading.get_ident()

    def __enter__(self) -> _Heard:
        talking = logging.getLogger("apprise")
        talking.propagate = False
        talking.setLevel(logging.WARNING)
        # tells the path of each request, which is where tokens are
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        talking.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("apprise").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line, if it is of this thread."""
        if record.thread == self._thread:
            self.lines.append(record.getMessage())


def _opened(target: Target, timeout: float) -> Apprise:
    """The one address, ready to be told.

    Raises:
        ConfigurationError: apprise does not understand it.
    """
    from apprise import Apprise, AppriseAsset

    asset = AppriseAsset(
        app_id="tradeflows",
        app_desc="tradeflows",
        app_url="",
        image_url_mask="",
        image_url_logo="",
        async_mode=False,
        # a redirect could lead the token to any other host
        http_redirects=False,
    )
    with _Heard():
        plugin = Apprise.instantiate(target.address.get_secret_value(), asset=asset, suppress_exceptions=True)
    if plugin is None:
        raise ConfigurationError(
            f"TRADEFLOWS_NOTIFY_URLS: apprise does not understand address {target.name}; "
            "https://appriseit.com/services/ shows how it is written"
        )
    plugin.socket_connect_timeout = plugin.socket_read_timeout = timeout
    opened = Apprise(asset=asset)
    opened.add(plugin)
    return opened


def _secrets(settings: Settings) -> set[str]:
    """Every secret of the settings, and the parts of addresses that are secret by themselves."""
    found: set[str] = set()
    for name in type(settings).model_fields:
        value: Any = getattr(settings, name)
        if not isinstance(value, SecretStr):
            continue
        for word in re.split(r"[\s,]+", value.get_secret_value()):
            address = word.partition("=")[2] if _ADDRESS.fullmatch(word) and "=" in word.split("://")[0] else word
            found |= {word, address, *_PASSWORD.findall(word)}
            if "://" in word:
                parts = re.split(r"[/:@?&=#]+", address.partition("://")[2])
                # tokens are long, or mix letters and digits; hosts and channels are told
                found |= {part for part in parts if _is_token(part)}
    return {form for secret in found for form in (secret, unquote(secret)) if len(form) >= 4}


def _is_token(part: str) -> bool:
    mixed = any(sign.isdigit() for sign in part) and any(sign.isalpha() for sign in part)
    return "." not in part and (len(part) >= 20 or (len(part) >= 8 and mixed))
