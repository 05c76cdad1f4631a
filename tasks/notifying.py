"""Notifications: one ``notify`` to every address that wants to know, once, and never silently not.

The same message (``Message.key`` and severity) is told once within ``notify_minutes``, whoever else has it to tell;
how often it came meanwhile is told with the next. The record of each lies in the store. Where the store is down,
messages go out without it: better twice than never.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from prefect import task

from tasks import log
from tasks.documents import Document
from tasks.notification_targets import Target, deliver, masked, targets
from tasks.notification_texts import TITLE, Message, Severity, of_held, plain
from tasks.retry import NOTIFY, prefect_options
from tasks.settings import Settings, load_settings
from tasks.store import CONFLICT_ATTEMPTS, NOTIFICATIONS, Store, configured_store
from trading.errors import NotificationFailed, RevisionConflict, StoreError

Outcome = Literal["delivered", "suppressed", "held", "nobody"]

DELIVERED: Final = "delivered"
FAILED: Final = "failed"
SUPPRESSED: Final = "suppressed"
HELD: Final = "held"
NOBODY: Final = "nobody"
# beyond what a delivery may take: then somebody else may try
_LEASE: Final = timedelta(minutes=1)


@dataclass(frozen=True)
class Notified:
    """What became of a message: who was told by this call, and how often it had come untold before."""

    outcome: Outcome
    targets: tuple[str, ...] = ()
    untold: int = 0


def is_quiet(hours: str, now: datetime) -> bool:
    """Whether ``now`` lies in hours such as ``22:00-06:00`` (UTC, the end not included); never in none."""
    if not hours:
        return False
    start, end = hours.split("-")
    time_of_day = f"{now.astimezone(UTC):%H:%M}"
    return start <= time_of_day < end if start <= end else time_of_day >= start or time_of_day < end


def notify(
    store: Store | None,
    settings: Settings,
    message: Message,
    *,
    now: datetime,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Notified:
    """Tell everybody who wants to know of a message, unless they were just told.

    Without anybody to tell it is logged and recorded as such. In quiet hours what is not critical is held back for
    ``tell_held``. Those who got the message are not told again when a failed delivery is repeated.

    Args:
        store: None where it is down: then nothing is recorded, and nothing held or left out.
        now: when it came about; the window is counted from there.
        clock: leases end by the true time.

    Raises:
        ConfigurationError: as ``targets``.
        NotificationFailed: somebody was not reached; says who and how, never the address.
    """
    message = replace(
        message,
        title=plain(masked(message.title, settings), TITLE, one_line=True),
        text=plain(masked(message.text, settings)),
    )
    everybody = targets(settings)
    chosen = [target for target in everybody if message.severity.rank >= target.threshold.rank]
    if not chosen:
        why = "no address wants what is not worse" if everybody else "TRADEFLOWS_NOTIFY_URLS is not set"
        log.logger().warning("nobody to tell", severity=message.severity.value, title=message.title, why=why)
        if store is not None:
            _count(store, message, NOBODY, now)
        return Notified("nobody")
    if store is None:
        return Notified("delivered", deliver(chosen, message, settings.notify_timeout, ()))
    if message.severity is not Severity.CRITICAL and is_quiet(settings.notify_quiet, now):
        _count(store, message, HELD, now)
        return Notified("held")
    name, owner = f"notify|{message.id}", uuid.uuid4().hex
    lease = _LEASE + 2 * timedelta(seconds=settings.notify_timeout)
    if not store.documents.acquire(name, owner, lease, clock()):
        _count(store, message, None, now)
        return Notified("suppressed")
    try:
        return _told(store, settings, message, chosen, now)
    finally:
        store.documents.release(name, owner)


def tell_held(store: Store, settings: Settings, *, now: datetime) -> Notified | None:
    """Once quiet hours are over, tell in one message what was held back; None where nothing was, or they are not.

    Raises:
        ConfigurationError, NotificationFailed: as ``notify``.
    """
    if is_quiet(settings.notify_quiet, now):
        return None
    held = store.documents.find(NOTIFICATIONS, {"state": HELD})
    if not held:
        return None
    worst = max((Severity(one["severity"]) for one in held), key=lambda severity: severity.rank)
    key = "|".join(f"{one['_id']}:{one['rev']}" for one in held)
    told = notify(store, settings, of_held([(one["title"], one["untold"]) for one in held], worst, key), now=now)
    if told.outcome != SUPPRESSED:
        for one in held:
            # one that changed meanwhile came again, and is told with the next
            rev = one.pop("rev")
            after = {**one, "state": told.outcome, "untold": 0, "sent_at": now}
            store.documents.compare_and_set(NOTIFICATIONS, after, rev)
    return told


def _told(store: Store, settings: Settings, message: Message, chosen: Sequence[Target], now: datetime) -> Notified:
    """Deliver, and record what came of it. The lease is held."""
    record = store.documents.get(NOTIFICATIONS, message.id) or _new(message)
    window = timedelta(minutes=settings.notify_minutes)
    if record["sent_at"] is not None and abs(now - record["sent_at"]) < window:
        _count(store, message, None, now)
        return Notified("suppressed")
    untold = int(record["untold"])
    repeated = record["state"] == FAILED and abs(now - record["at"]) < window
    reached: tuple[str, ...] = tuple(record["reached"]) if repeated else ()
    # a repetition does not count itself
    untold -= int(repeated)
    saying = replace(message, text=f"{message.text}\n\n{_again(untold)}") if untold > 0 else message
    try:
        delivered = deliver(chosen, saying, settings.notify_timeout, reached)
    except NotificationFailed as error:
        # whom a later attempt need not tell
        got = [target.name for target in chosen if target.name not in error.targets]
        _count(store, message, FAILED, now, reached=got, times=0 if repeated else 1)
        raise
    _update(store, message, lambda known: _sent(known, message, untold + int(repeated), now))
    return Notified("delivered", delivered, max(untold, 0))


def _again(untold: int) -> str:
    return (
        f"The same came {untold} more time{'s' if untold > 1 else ''} that {'were' if untold > 1 else 'was'} not told."
    )


def _new(message: Message) -> Document:
    return {
        "_id": message.id,
        "key": message.key,
        "severity": message.severity.value,
        "state": None,
        "at": None,
        "sent_at": None,
        "untold": 0,
        "reached": [],
    }


def _sent(known: Document, message: Message, told: int, now: datetime) -> Document:
    saying = {"title": message.title, "text": message.text, "flow_run_id": log.flow_run_id()}
    # some may have come while this one was on its way
    left = max(int(known["untold"]) - told, 0)
    return {**known, **saying, "state": DELIVERED, "at": now, "sent_at": now, "untold": left, "reached": []}


def _count(
    store: Store,
    message: Message,
    state: str | None,
    now: datetime,
    *,
    reached: Sequence[str] = (),
    times: int = 1,
) -> None:
    """Note that a message came and was not told to everybody; ``state`` None leaves the record's."""

    def changed(known: Document) -> Document:
        after = {**known, "untold": int(known["untold"]) + times}
        if state is not None:
            saying = {"title": message.title, "text": message.text, "flow_run_id": log.flow_run_id()}
            after |= {**saying, "state": state, "at": now, "reached": list(reached)}
        return after

    _update(store, message, changed)


def _update(store: Store, message: Message, change: Callable[[Document], Document]) -> None:
    for _ in range(CONFLICT_ATTEMPTS):
        known = store.documents.get(NOTIFICATIONS, message.id)
        after = change(known or _new(message))
        after.pop("rev", None)
        if store.documents.compare_and_set(NOTIFICATIONS, after, known["rev"] if known else 0):
            return
    raise RevisionConflict(f"the record of {message.key} was changed by others {CONFLICT_ATTEMPTS} times in a row")


# --- Prefect task --------------------------------------------------------------------------------


@task(name="notify", **prefect_options(NOTIFY))
def notify_task(severity: str, title: str, text: str, key: str, now: datetime) -> Notified:
    """``notify`` on the configured store and addresses; repeated by policy, then a failed task.

    A message in the hands of a task is masked before it is logged or stored, not before Prefect sees the flow's
    own error: what holds a secret must not be put into one.
    """
    settings = load_settings()
    message = Message(Severity(severity), title, text, key)
    try:
        with configured_store(settings) as store:
            return notify(store, settings, message, now=now)
    except StoreError as error:
        log.logger().warning("told without the store", reason=masked(str(error), settings))
    return notify(None, settings, message, now=now)


@task(name="tell-held", **prefect_options(NOTIFY))
def tell_held_task(now: datetime) -> Notified | None:
    """``tell_held`` on the configured store and addresses."""
    settings = load_settings()
    with configured_store(settings) as store:
        return tell_held(store, settings, now=now)
