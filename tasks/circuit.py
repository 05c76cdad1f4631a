"""A circuit breaker per source, its state in the store: what one worker learns, all of them know.

*Closed*: requests pass; ``failures`` in a row (no answer, 5xx, garbled) open it, and so does a rate limit too
long to wait for. *Open*: nothing passes until ``until``. *Half-open*: the first who comes after that may try,
for ``PROBE`` at most; success closes the circuit, failure opens it again for twice as long. See M. Nygard,
"Release It!" (2007), chapter "Circuit Breaker".
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from tasks.documents import Documents
from tasks.retry import LONGEST_WAIT
from tasks.store import CIRCUITS
from trading.errors import CircuitOpen, RateLimited, SourceError, SourceRefused

PROBE: Final = timedelta(minutes=2)
LONGEST_OPEN: Final = timedelta(minutes=15)
# exchanges ban for three days at most; whoever names a longer time is not believed
LONGEST_BAN: Final = timedelta(days=7)
# how old a state of the store may be before a request looks again
FRESH: Final = timedelta(seconds=1)
SHOWN: Final = 200


class State(StrEnum):
    """What a circuit lets pass: all, nothing, or one."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True)
class Circuit:
    """What is known of a source.

    Attributes:
        failures: in a row, since the last answer.
        openings: in a row, without an answer in between.
        until: when an open circuit may be tried, or a trial is given up; None while closed.
        reason: the last failure.
        since: when it came into this state.
    """

    source: str
    state: State = State.CLOSED
    failures: int = 0
    openings: int = 0
    until: datetime | None = None
    reason: str = ""
    since: datetime | None = None
    rev: int = 0


@dataclass(frozen=True)
class Rule:
    """When a circuit opens, and for how long the first time; each further opening in a row lasts twice as long."""

    failures: int = 5
    pause: timedelta = timedelta(seconds=30)


def after(circuit: Circuit, error: SourceError | None, rule: Rule, now: datetime) -> Circuit:
    """The circuit after a request that ended with ``error``, or was answered (None)."""
    # a refusal is an answer, and so is a rate limit short enough to wait for
    told = error.retry_after if isinstance(error, RateLimited) else None
    if error is None or isinstance(error, SourceRefused) or (isinstance(error, RateLimited) and not _long(told)):
        if circuit.state is State.CLOSED and not circuit.failures:
            return circuit
        return Circuit(circuit.source, since=now if circuit.state is not State.CLOSED else circuit.since)
    failures = circuit.failures + 1
    reason = str(error)[:SHOWN]
    if told is not None:
        return _opened(circuit, failures, reason, now, timedelta(seconds=min(told, LONGEST_BAN.total_seconds())))
    if circuit.state is State.HALF_OPEN or (circuit.state is State.CLOSED and failures >= rule.failures):
        # as floats: an outage of half a day doubles past what a timedelta holds
        pause = min(rule.pause.total_seconds() * 2.0 ** min(circuit.openings, 64), LONGEST_OPEN.total_seconds())
        return _opened(circuit, failures, reason, now, timedelta(seconds=pause))
    return replace(circuit, failures=failures, reason=reason)


def _opened(circuit: Circuit, failures: int, reason: str, now: datetime, pause: timedelta) -> Circuit:
    return Circuit(circuit.source, State.OPEN, failures, circuit.openings + 1, now + pause, reason, now)


def _long(retry_after: float | None) -> bool:
    return retry_after is not None and retry_after > LONGEST_WAIT


def find(documents: Documents, source: str) -> Circuit:
    """The circuit of a source; closed where nothing is known of it."""
    found = documents.get(CIRCUITS, source)
    if found is None:
        return Circuit(source)
    return _circuit(found)


def every(documents: Documents) -> list[Circuit]:
    """The circuit of each source that ever failed, by name."""
    return [_circuit(found) for found in documents.find(CIRCUITS)]


class Breaker:
    """``tasks.http.Guard`` that keeps the circuit of one source."""

    def __init__(
        self,
        documents: Documents,
        source: str,
        rule: Rule | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._documents, self._source, self._clock = documents, source, clock
        self._rule = rule or Rule()
        self._known = Circuit(source)
        self._looked: datetime | None = None
        self._lock = threading.Lock()

    def admit(self, weight: int) -> None:
        """Let a request pass, or not.

        Raises:
            CircuitOpen: the circuit is open, or another one is trying it; says why and until when.
        """
        now = self._clock()
        with self._lock:
            if self._looked is None or now - self._looked >= FRESH or self._known.state is not State.CLOSED:
                self._known, self._looked = find(self._documents, self._source), now
            known = self._known
        if known.state is State.CLOSED:
            return
        if known.until is not None and now >= known.until:
            trial = replace(known, state=State.HALF_OPEN, until=now + PROBE, since=now)
            if self._write(trial):
                return
            known = find(self._documents, self._source)
            if known.state is State.CLOSED:
                return
        until = known.until or now
        doing = "is being tried by another request" if known.state is State.HALF_OPEN else "is left alone"
        raise CircuitOpen(
            f"{self._source} {doing} until {until:%Y-%m-%dT%H:%M:%SZ} after {known.failures} failures in a row, the "
            f"last: {known.reason}",
            until,
        )

    def heard(self, error: SourceError | None) -> None:
        """Note how a request ended."""
        with self._lock:
            quiet = error is None and self._known.state is State.CLOSED and not self._known.failures
        if quiet:
            return
        while True:
            known = find(self._documents, self._source)
            then = after(known, error, self._rule, self._clock())
            if then == known or self._write(replace(then, rev=known.rev)):
                with self._lock:
                    self._known = then
                return

    def _write(self, circuit: Circuit) -> bool:
        document = asdict(circuit)
        document["_id"] = document.pop("source")
        return self._documents.compare_and_set(CIRCUITS, document, document.pop("rev"))


def _circuit(found: dict[str, object]) -> Circuit:
    values = {name: value for name, value in found.items() if name != "_id"}
    return Circuit(source=str(found["_id"]), **{**values, "state": State(str(values["state"]))})  # type: ignore[arg-type]
