"""Strategies that were taken out: why, until when, and who lifted it before.

A disabling is one document that nothing removes; it ends by itself at ``until``, or when it is lifted. What a
strategy did before the end of its last disabling is not held against it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tasks.documents import Document, Span
from tasks.store import CONFLICT_ATTEMPTS, DISABLED, Store
from trading.errors import InvalidRequest, RevisionConflict


@dataclass(frozen=True)
class Disabled:
    """A strategy that was taken out, why, and until when (UTC) unless it is lifted before.

    ``by`` is a user or a flow run, ``evidence`` the figures behind it, ``told_at`` when people were told.
    """

    strategy: str
    since: datetime
    until: datetime
    reasons: tuple[str, ...]
    by: str
    evidence: dict[str, Any]
    lifted_at: datetime | None = None
    lifted_by: str | None = None
    lifted_why: str | None = None
    told_at: datetime | None = None

    def active(self, now: datetime) -> bool:
        """Whether it is in force at ``now``."""
        return self.since <= now < self.until and (self.lifted_at is None or now < self.lifted_at)

    @property
    def end(self) -> datetime:
        """When it ended, or will."""
        return self.until if self.lifted_at is None else min(self.until, self.lifted_at)


def disabled(store: Store, now: datetime) -> tuple[Disabled, ...]:
    """The strategies that are disabled at ``now``, by name; of several disablings of one the latest."""
    latest = {one.strategy: one for one in disablings(store) if one.active(now)}
    return tuple(latest[name] for name in sorted(latest))


def disablings(store: Store, strategy: str | None = None) -> list[Disabled]:
    """Every disabling, of one strategy or of all, oldest first."""
    where = {"strategy": strategy} if strategy is not None else None
    return [_disabled(one) for one in store.documents.find(DISABLED, where, Span("since"))]


def disable(
    store: Store,
    strategy: str,
    reasons: Sequence[str],
    *,
    now: datetime,
    lasting: timedelta,
    by: str,
    evidence: dict[str, Any],
) -> Disabled | None:
    """Take a strategy out from ``now`` on; None where it is out already.

    Raises:
        InvalidRequest: no reason.
    """
    if not [reason for reason in reasons if reason.strip()]:
        raise InvalidRequest(f"{strategy} is not disabled without a reason, which is kept")
    if any(one.active(now) for one in disablings(store, strategy)):
        return None
    made = Disabled(strategy, now, now + lasting, tuple(reasons), by, evidence)
    document = {**vars(made), "_id": _id(strategy, now), "reasons": list(made.reasons)}
    return made if store.documents.insert(DISABLED, document) else None


def lift(store: Store, strategy: str, *, reason: str, by: str, now: datetime) -> Disabled:
    """Let a disabled strategy speak again.

    Raises:
        InvalidRequest: no reason, or it is not disabled.
        RevisionConflict: others kept changing the record.
    """
    if not reason.strip():
        raise InvalidRequest("a strategy is not let speak again without a reason, which is kept")
    active = [one for one in disablings(store, strategy) if one.active(now)]
    if not active:
        names = ", ".join(one.strategy for one in disabled(store, now)) or "none"
        raise InvalidRequest(f"the strategy {strategy!r} is not disabled; disabled are: {names}")
    return _changed(store, _id(strategy, active[-1].since), lifted_at=now, lifted_by=by, lifted_why=reason)


def untold(store: Store, now: datetime) -> list[Disabled]:
    """The disablings in force of which nobody was told yet."""
    return [one for one in disabled(store, now) if one.told_at is None]


def mark_told(store: Store, strategy: str, since: datetime, *, now: datetime) -> None:
    """Note that people were told of a disabling.

    Raises:
        InvalidRequest: there is none that began then.
        RevisionConflict: others kept changing the record.
    """
    _changed(store, _id(strategy, since), told_at=now)


def _changed(store: Store, key: str, **values: object) -> Disabled:
    for _ in range(CONFLICT_ATTEMPTS):
        known = store.documents.get(DISABLED, key)
        if known is None:
            raise InvalidRequest(f"there is no disabling {key}")
        rev = known.pop("rev")
        after = {**known, **values}
        if store.documents.compare_and_set(DISABLED, after, rev):
            return _disabled(after)
    raise RevisionConflict(f"the disabling {key} was changed by others {CONFLICT_ATTEMPTS} times in a row")


def _id(strategy: str, since: datetime) -> str:
    # to the millisecond, which is what the store keeps
    return f"{strategy}|{since:%Y-%m-%dT%H:%M:%S}.{since.microsecond // 1000:03d}Z"


def _disabled(document: Document) -> Disabled:
    values = {name: document[name] for name in Disabled.__dataclass_fields__}
    return Disabled(**{**values, "reasons": tuple(document["reasons"])})
