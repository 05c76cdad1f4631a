"""Which version is the champion: a history that only grows, and aliases that follow it.

An entry is written first and the aliases are moved after it, ``champion`` last; whoever comes next
finishes what a process that died between the two had begun. Entries are numbered per model and only
ever inserted, so that of two writers at once, whatever their leases, one loses and says so.
"""

from __future__ import annotations

import getpass
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal

from tasks import log, model_files, registry
from tasks.documents import Document, Span
from tasks.store import PROMOTIONS, Store
from trading.errors import InvalidRequest, ModelNotFound, RevisionConflict

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from ml.promotion import Decision

Kind = Literal["promote", "rollback", "fallback"]

LEASE: Final = timedelta(minutes=1)
PATIENCE: Final = 90.0  # seconds; longer than the lease of one that died with it
_PAUSE: Final = 0.05


@dataclass(frozen=True)
class Change:
    """One entry of the history.

    ``kind``: promote and rollback move the aliases; fallback only says that ``to_version`` was used in
    place of a ``from_version`` that was refused. ``previous`` is the version that the alias of that name
    has from then on. ``who`` is a user or a flow run, ``at`` the time (UTC) they gave, ``evidence_run``
    the MLflow run that speaks for the change; ``manual`` is True where no gate was asked.
    """

    model: str
    number: int
    kind: Kind
    from_version: str | None
    to_version: str
    previous: str | None
    who: str
    at: datetime
    reasons: tuple[str, ...]
    evidence_run: str | None
    manual: bool


def who() -> str:
    """The flow run this code runs in, or else the user."""
    run = log.flow_run_id()
    return f"flow run {run}" if run is not None else f"user {getpass.getuser()}"


def history(store: Store, name: str) -> list[Change]:
    """Every entry of a model, oldest first."""
    return [_change(document) for document in store.documents.find(PROMOTIONS, {"model": name}, Span("number"))]


def latest(store: Store, name: str) -> Change | None:
    """The entry that the aliases follow; None where no change was ever recorded."""
    moves = [change for change in history(store, name) if change.kind != "fallback"]
    return moves[-1] if moves else None


def consider(
    client: MlflowClient,
    store: Store,
    name: str,
    version: str,
    judge: Callable[[ModelVersion | None], Decision],
    *,
    who: str,
    now: datetime,
    key: bytes,
) -> tuple[Decision, Change | None]:
    """Let the gate decide about ``version``, and promote it if it may pass: both under one lease.

    Args:
        judge: decides against the champion that it is given, which nobody else can change meanwhile.
        now: when, as the history will say.
        key: the version is verified with it before it is promoted.

    Returns:
        The decision, and the entry if there was a change.

    Raises:
        RevisionConflict: others were at it for too long; try again.
        ModelRejected: the version is not what was registered.
    """
    from ml.promotion import Decision

    with leased(store, name):
        _apply(client, store, name)
        current = registry.version_of(client, name, registry.CHAMPION)
        if current is not None and str(current.version) == version:
            # a retry must not be judged against itself
            return Decision(True, (f"version {version} is the champion already",)), None
        decision = judge(current)
        if not decision.promote:
            return decision, None
        chosen = _promotable(client, name, version, key)
        evidence = str(chosen.run_id)
        return decision, _move(client, store, name, "promote", version, who, now, decision.reasons, evidence, False)


def promote(
    client: MlflowClient, store: Store, name: str, version: str, *, reason: str, who: str, now: datetime, key: bytes
) -> Change:
    """Make ``version`` the champion because somebody says so; no gate is asked, and the history says that.

    Raises:
        InvalidRequest: no reason, the champion itself, or a baseline.
        ModelNotFound, ModelRejected: the version is not there, or not what was registered.
        RevisionConflict: as ``consider``.
    """
    _require_reason(reason)
    with leased(store, name):
        _apply(client, store, name)
        current = registry.version_of(client, name, registry.CHAMPION)
        if current is not None and str(current.version) == version:
            raise InvalidRequest(f"version {version} of {name} is the champion already")
        chosen = _promotable(client, name, version, key)
        return _move(client, store, name, "promote", version, who, now, (reason,), str(chosen.run_id), True)


def rollback(
    client: MlflowClient, store: Store, name: str, *, reason: str, who: str, now: datetime, key: bytes
) -> Change:
    """Make the previous champion the champion again; the one before it becomes ``previous``.

    Raises:
        InvalidRequest: no reason.
        ModelNotFound: there is no previous version.
        ModelRejected: it is not what was registered.
        RevisionConflict: as ``consider``.
    """
    _require_reason(reason)
    with leased(store, name):
        _apply(client, store, name)
        previous = registry.version_of(client, name, registry.PREVIOUS)
        if previous is None:
            raise ModelNotFound(f"model {name} has no previous version to go back to; see: tradeflows models list")
        chosen = _promotable(client, name, str(previous.version), key)
        version = str(chosen.version)
        return _move(client, store, name, "rollback", version, who, now, (reason,), str(chosen.run_id), True)


def settle(client: MlflowClient, store: Store, name: str) -> bool:
    """Set the aliases to what the history says; whether one had to be moved.

    They differ where a process died at its work, or where somebody moved one past the history.
    """
    with leased(store, name):
        return _apply(client, store, name)


def strayed(client: MlflowClient, store: Store, name: str) -> list[str]:
    """Aliases that do not name what the history says, as sentences."""
    last = latest(store, name)
    if last is None:
        return []
    found = []
    for alias, wanted in ((registry.CHAMPION, last.to_version), (registry.PREVIOUS, last.previous)):
        current = registry.version_of(client, name, alias)
        named = str(current.version) if current is not None else None
        if named != wanted:
            found.append(f"the alias {alias} of {name} names version {named} and the promotion history {wanted}")
    return found


def fell_back(
    store: Store, name: str, from_version: str, to_version: str, *, reason: str, who: str, now: datetime
) -> None:
    """Record that ``to_version`` is used in place of a champion that was refused; once, however often it happens."""
    for _ in range(10):
        known = history(store, name)
        last = known[-1] if known else None
        same = ("fallback", from_version, to_version, (reason,))
        if last is not None and (last.kind, last.from_version, last.to_version, last.reasons) == same:
            return
        change = Change(
            name, len(known) + 1, "fallback", from_version, to_version, None, who, now, (reason,), None, False
        )
        if store.documents.insert(PROMOTIONS, _document(change)):
            return
    raise RevisionConflict(f"the history of {name} was changed by others ten times in a row; try again")


@contextmanager
def leased(
    store: Store,
    name: str,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    patience: float = PATIENCE,
) -> Iterator[None]:
    """Hold the lease on a model's promotions.

    Args:
        clock: leases end by the true time, not by that of a run.

    Raises:
        RevisionConflict: somebody else held it for longer than ``patience`` seconds.
    """
    lease, owner = f"promotion|{name}", uuid.uuid4().hex
    until = time.monotonic() + patience
    while not store.documents.acquire(lease, owner, LEASE, clock()):
        if time.monotonic() >= until:
            raise RevisionConflict(f"somebody else has been changing the champion of {name} for {patience:g} s")
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        store.documents.release(lease, owner)


def _promotable(client: MlflowClient, name: str, version: str, key: bytes) -> ModelVersion:
    from ml.estimators import BASELINES

    chosen = registry.version_at(client, name, version)
    with model_files.verified(client, chosen, key):
        estimator = model_files.required_tag(chosen, "estimator")
    if estimator in BASELINES:
        raise InvalidRequest(f"version {version} of {name} is the baseline {estimator}, which is never promoted")
    return chosen


def _move(
    client: MlflowClient,
    store: Store,
    name: str,
    kind: Kind,
    version: str,
    who: str,
    now: datetime,
    reasons: Sequence[str],
    evidence_run: str,
    manual: bool,
) -> Change:
    """Write the entry, then let the aliases follow. The lease is held."""
    known = history(store, name)
    current = registry.version_of(client, name, registry.CHAMPION)
    from_version = str(current.version) if current is not None else None
    reigned = _reigned([change for change in known if change.kind != "fallback"])
    before = (reigned[-3] if len(reigned) > 2 else None) if kind == "rollback" else from_version
    change = Change(
        name, len(known) + 1, kind, from_version, version, before, who, now, tuple(reasons), evidence_run, manual
    )
    if not store.documents.insert(PROMOTIONS, _document(change)):
        raise RevisionConflict(f"somebody else changed the champion of {name} first; try again")
    _apply(client, store, name)
    log.logger().info("champion changed", model=name, kind=kind, was=from_version, version=version, who=who)
    return change


def _reigned(moves: Sequence[Change]) -> list[str]:
    """The champions that one could go back through, the present one last."""
    stack: list[str] = []
    for move in moves:
        if move.kind == "rollback":
            stack = stack[:-1] if len(stack) > 1 else [move.to_version]
        else:
            stack = [*(stack or ([move.from_version] if move.from_version else [])), move.to_version]
    return stack


def _apply(client: MlflowClient, store: Store, name: str) -> bool:
    """Let the aliases follow the history; whether one was moved."""
    moved = False
    last = latest(store, name)
    while last is not None:
        # both, whatever the first says: champion last
        before = registry.set_alias(client, name, registry.PREVIOUS, last.previous)
        moved = registry.set_alias(client, name, registry.CHAMPION, last.to_version) or before or moved
        # our lease may have run out meanwhile
        newer = latest(store, name)
        if newer == last:
            break
        last = newer
    return moved


def _require_reason(reason: str) -> None:
    if not reason.strip():
        raise InvalidRequest("a change of the champion by hand needs a reason, which is kept in the history")


def _document(change: Change) -> Document:
    return {**vars(change), "_id": f"{change.model}|{change.number:06d}", "reasons": list(change.reasons)}


def _change(document: Document) -> Change:
    values = {name: document[name] for name in Change.__dataclass_fields__}
    return Change(**{**values, "reasons": tuple(document["reasons"])})
