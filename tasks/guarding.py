"""Sources with their guards: each request spends weight and minds its source's circuit breaker."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import httpx

from tasks import limits
from tasks.addresses import ANYWHERE, checked_url
from tasks.circuit import Breaker, Rule
from tasks.collecting import OpenSource
from tasks.http import Guard
from tasks.settings import Settings
from tasks.sources import Source, address_of, source_of
from tasks.store import Store
from trading.errors import SourceError


class Both:
    """Two guards, one behind the other."""

    def __init__(self, first: Guard, second: Guard) -> None:
        self._first, self._second = first, second

    def admit(self, weight: int) -> None:
        """Pass both."""
        self._first.admit(weight)
        self._second.admit(weight)

    def heard(self, error: SourceError | None) -> None:
        """Tell both."""
        self._first.heard(error)
        self._second.heard(error)


@contextmanager
def opened_sources(
    settings: Settings, store: Store, kinds: Sequence[str], *, metered: bool
) -> Iterator[list[OpenSource]]:
    """Functions that give the configured sources of these kinds, each opened once, when first asked for.

    Args:
        metered: draw request weight from Prefect's limits, which are made here; needs a Prefect server.

    Raises:
        ConfigurationError: (by the function) a source that is not configured.
    """
    with ExitStack() as closing:
        lock = threading.Lock()
        opened: dict[str, Source] = {}

        def opener(kind: str) -> OpenSource:
            def open_once() -> Source:
                with lock:
                    if kind not in opened:
                        guard = guard_of(settings, store, kind, metered=metered)
                        opened[kind] = closing.enter_context(source_of(settings, kind, guard))
                    return opened[kind]

            return open_once

        yield [opener(kind) for kind in kinds]


def guard_of(settings: Settings, store: Store, kind: str, *, metered: bool, about: str = "") -> Guard | None:
    """The guard of a kind of source; None for one that is not asked over HTTP.

    Args:
        about: what else than candles is asked for: it fails on its own, and spends the same weight.
    """
    if kind not in limits.weights_per_minute(settings):
        return None
    rule = Rule(settings.circuit_failures, timedelta(seconds=settings.circuit_seconds))
    breaker = Breaker(store.documents, circuit_name(settings, kind, about), rule)
    if not metered:
        return breaker
    limits.ensure(settings, kind)
    # the weight first: who has waited for it may still find the circuit open, and a trial begins at once
    return Both(limits.Meter(kind), breaker)


def circuit_name(settings: Settings, kind: str, about: str = "") -> str:
    """What the circuit of a source is called: its kind, what it is asked about beside candles, and where it is."""
    variable, address = address_of(settings, kind)
    # where none is set, opening the source says so
    url = checked_url(address, variable, ANYWHERE) if address else httpx.URL("")
    asked = f"{kind} {about}" if about else kind
    return f"{asked} {url.host}" + (f":{url.port}" if url.port else "")
