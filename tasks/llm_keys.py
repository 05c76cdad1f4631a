"""The keys of the LLM: which may be used now, shared by all workers, and never more often than it may be.

What is known of a key lies in the store under a keyed hash of it (HMAC-SHA256 under a random salt that is kept
there, too); the key itself, or a part of it, leaves memory only in the header of a request. A key is *in use* for
``KeyRule.window`` after each call, *cools down* after a 429 for as long as it was told to, and is left alone until
the next UTC day once it was refused or its quota is used up.

The endpoint counts a request when it arrives, this pool when it is promised. A promise therefore counts ``GRACE``
longer than the window: as long as requests arrive within that time, no window of the endpoint, wherever it
begins, holds more of them than the rule allows. Clocks of several machines may differ by as much.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import SecretStr

from tasks import log
from tasks.documents import Document, Documents
from tasks.llm_commits import GroupCommit
from tasks.store import LLM_KEYS
from trading.errors import LlmError, LlmKeyRefused, LlmRateLimited, NoLlmKey, RevisionConflict

GRACE: Final = timedelta(seconds=2)
# a 429 that does not say for how long: the first in a row, then doubled
FIRST_COOLING: Final = timedelta(seconds=20)
LONGEST_COOLING: Final = timedelta(minutes=15)
# Retry-After: 0 is not taken at its word, and one of a week is not believed
SHORTEST_TOLD: Final = timedelta(seconds=1)
LONGEST_TOLD: Final = timedelta(days=1)
CONFLICT_ATTEMPTS: Final = 200
SALT: Final = "salt"

REFUSED: Final = "refused"
QUOTA: Final = "quota used up"
RATE_LIMITED: Final = "rate limited"


@dataclass(frozen=True)
class KeyRule:
    """How often one key may be used: ``requests`` in any ``window``, and ``pause`` between two of them."""

    requests: int = 60
    pause: timedelta = timedelta(seconds=20)
    window: timedelta = timedelta(minutes=1)
    grace: timedelta = GRACE


@dataclass(frozen=True)
class KeyState:
    """What is known of a key; ``number`` is its place in the settings, from 1 on.

    Attributes:
        busy: promises by id, and until when each counts.
        last: when it was last promised.
        until: before then it may not be used, and ``why``.
        strikes: rate limits in a row, without an answer in between.
    """

    number: int
    fingerprint: str
    busy: dict[str, datetime] = field(default_factory=dict)
    last: datetime | None = None
    until: datetime | None = None
    why: str = ""
    strikes: int = 0
    rev: int = 0

    def resting(self, now: datetime) -> bool:
        """Whether it cools down or is refused."""
        return self.until is not None and self.until > now


@dataclass(frozen=True)
class Lease:
    """A promise to use a key once, now; ``number`` is the key's place in the settings."""

    number: int
    key: SecretStr
    id: str
    at: datetime
    state: KeyState


# a promise; or none, when there may be one, and what each key waits for
_Taken = tuple[Lease | None, datetime | None, str]
# given all keys and the time: one of them as it is to be, or None, and the answer to who wanted the change
_Change = Callable[[Sequence[KeyState], datetime], tuple[KeyState | None, Any]]


def free_at(state: KeyState, rule: KeyRule, now: datetime) -> datetime:
    """When the key may be used: ``now``, or the first moment after it."""
    moment = now
    if state.until is not None:
        moment = max(moment, state.until)
    if state.last is not None and rule.pause:
        moment = max(moment, state.last + rule.pause)
    counting = sorted(until for until in state.busy.values() if until > now)
    if len(counting) >= rule.requests:
        moment = max(moment, counting[len(counting) - rule.requests])
    return moment


def promised(state: KeyState, rule: KeyRule, now: datetime, promise: str) -> KeyState:
    """The key after a promise; those that no longer count are forgotten."""
    busy = {name: until for name, until in state.busy.items() if until > now}
    return replace(state, busy={**busy, promise: now + rule.window + rule.grace}, last=now)


def after(state: KeyState, error: LlmError | None, now: datetime) -> KeyState:
    """The key after a call that ended with ``error``, or with an answer (None)."""
    if error is None:
        return replace(state, strikes=0) if state.strikes else state
    if isinstance(error, LlmKeyRefused):
        return replace(state, until=tomorrow(now), why=REFUSED)
    if not isinstance(error, LlmRateLimited):
        return state
    if error.quota:
        return replace(state, until=tomorrow(now), why=QUOTA)
    if error.retry_after is not None:
        pause = timedelta(
            seconds=min(max(error.retry_after, SHORTEST_TOLD.total_seconds()), LONGEST_TOLD.total_seconds())
        )
    else:
        pause = min(FIRST_COOLING * 2 ** min(state.strikes, 10), LONGEST_COOLING)
    if state.resting(now) and state.until is not None:
        # one of several requests that were under way: the same rate limit, told again
        return replace(state, until=max(state.until, now + pause)) if error.retry_after is not None else state
    return replace(state, until=now + pause, why=RATE_LIMITED, strikes=state.strikes + 1)


def tomorrow(now: datetime) -> datetime:
    """The start of the next UTC day."""
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def fingerprint(documents: Documents, key: SecretStr) -> str:
    """What a key is called in the store: says nothing of the key, and is the same in all workers."""
    if documents.get(LLM_KEYS, SALT) is None:
        documents.insert(LLM_KEYS, {"_id": SALT, "value": secrets.token_hex(32)})
    found = documents.get(LLM_KEYS, SALT) or {}
    return hmac.new(bytes.fromhex(found["value"]), key.get_secret_value().encode(), hashlib.sha256).hexdigest()


def key_states(documents: Documents, keys: Sequence[SecretStr]) -> list[KeyState]:
    """What is known of each key, in the order of the settings."""
    names = [fingerprint(documents, key) for key in keys]
    return [_state(documents, name, number) for number, name in enumerate(names, 1)]


class KeyPool:
    """The keys in their order; the first that may be used is.

    Safe for threads. ``clock`` gives the time (UTC), ``sleep`` waits.
    """

    def __init__(
        self,
        documents: Documents,
        keys: Sequence[SecretStr],
        rule: KeyRule,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._documents, self._keys, self._rule = documents, tuple(keys), rule
        self._clock, self._sleep = clock, sleep
        self._names = [fingerprint(documents, key) for key in keys]
        # threads of one process would only make each other's writes fail
        self._changes: GroupCommit[_Change, Any] = GroupCommit(self._changed)

    def __len__(self) -> int:
        return len(self._keys)

    def take(self, latest: datetime) -> Lease:
        """Promise a call of one of the keys, and wait for one until ``latest`` at most.

        Raises:
            NoLlmKey: none may be used by then; says why and when.
            StoreError: the store cannot be used; nothing was promised.
        """
        while True:
            lease, moment, said = self._promise(uuid.uuid4().hex)
            if lease is not None:
                return lease
            if moment is None or moment > latest:
                raise NoLlmKey(f"no LLM key may be used: {said}", moment)
            # a little later than told: the store cuts times to milliseconds
            self._sleep(max((moment - self._clock()).total_seconds(), 0.0) + 0.001)

    def late(self, lease: Lease) -> bool:
        """Whether so much time has passed since the promise that its call could arrive after it is counted for."""
        return self._clock() - lease.at > self._rule.grace / 2

    def give_back(self, lease: Lease) -> None:
        """Take back a promise that was not used."""

        def undone(state: KeyState) -> KeyState:
            busy = {name: until for name, until in state.busy.items() if name != lease.id}
            return replace(state, busy=busy, last=lease.state.last if state.last == lease.at else state.last)

        self._change(lease.number, undone)

    def heard(self, lease: Lease, error: LlmError | None) -> None:
        """Note how a call ended. A key that is refused is told of once a day, in the log."""
        if error is None and not lease.state.strikes:
            return
        now = self._clock()
        before, then = self._change(lease.number, lambda state: after(state, error, now))
        ended = then.why in {REFUSED, QUOTA} and (before.until, before.why) != (then.until, then.why)
        if ended and then.until is not None:
            log.logger().error("LLM key cannot be used", key=then.number, why=then.why, until=then.until.isoformat())

    def _promise(self, promise: str) -> _Taken:
        """A promise of the first key that is free."""

        def change(states: Sequence[KeyState], now: datetime) -> tuple[KeyState | None, _Taken]:
            moments = [free_at(state, self._rule, now) for state in states]
            free = next((state for state, moment in zip(states, moments, strict=True) if moment <= now), None)
            if free is not None:
                lease = Lease(free.number, self._keys[free.number - 1], promise, now, free)
                return promised(free, self._rule, now, promise), (lease, None, "")
            said = [_said(state, at, now) for state, at in zip(states, moments, strict=True)]
            why = "; ".join(said) or "there is none; set OPENAI_API_KEY"
            return None, (None, min(moments, default=None), why)

        taken: _Taken = self._changes.submit(change)
        return taken

    def _change(self, number: int, change: Callable[[KeyState], KeyState]) -> tuple[KeyState, KeyState]:
        """The key before and after."""

        def one(states: Sequence[KeyState], now: datetime) -> tuple[KeyState | None, tuple[KeyState, KeyState]]:
            state = states[number - 1]
            then = change(state)
            return None if then == state else then, (state, then)

        changed: tuple[KeyState, KeyState] = self._changes.submit(one)
        return changed

    def _changed(self, changes: list[_Change]) -> list[Any]:
        """What each change gives, in their order; one write for each key that they change."""
        given: dict[int, Any] = {}
        for _ in range(CONFLICT_ATTEMPTS):
            # looked at here, after the turn was waited for
            now = _cut(self._clock())
            held = [_state(self._documents, name, number) for number, name in enumerate(self._names, 1)]
            states, hoped = list(held), dict[int, tuple[int, Any]]()
            for at, change in enumerate(changes):
                if at in given:
                    continue
                then, answer = change(states, now)
                if then is None:
                    given[at] = answer
                else:
                    states[then.number - 1] = then
                    hoped[at] = (then.number, answer)
            for before, after_all in zip(held, states, strict=True):
                if after_all is not before and self._write(after_all):
                    given |= {at: answer for at, (number, answer) in hoped.items() if number == after_all.number}
            if len(given) == len(changes):
                return [given[at] for at in range(len(changes))]
        raise RevisionConflict(f"the LLM keys were changed by others {CONFLICT_ATTEMPTS} times in a row; try again")

    def _write(self, state: KeyState) -> bool:
        document: Document = {
            "_id": state.fingerprint,
            "busy": [{"id": name, "until": until} for name, until in state.busy.items()],
            "last": state.last,
            "until": state.until,
            "why": state.why,
            "strikes": state.strikes,
        }
        return self._documents.compare_and_set(LLM_KEYS, document, state.rev)


def _state(documents: Documents, name: str, number: int) -> KeyState:
    found = documents.get(LLM_KEYS, name)
    if found is None:
        return KeyState(number, name)
    known: dict[str, Any] = {part: found[part] for part in ("last", "until", "why", "strikes", "rev")}
    return KeyState(number, name, {one["id"]: one["until"] for one in found["busy"]}, **known)


def _said(state: KeyState, moment: datetime, now: datetime) -> str:
    doing = state.why if state.resting(now) else "in use"
    return f"key {state.number} is {doing} until {moment:%Y-%m-%dT%H:%M:%SZ}"


def _cut(moment: datetime) -> datetime:
    """As the store keeps it."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
