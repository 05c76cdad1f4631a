"""The engine's strategy settings: asked for, kept in versions, and refused when they are too old.

What they look like stands in ``tasks.strategy_settings``. Versions are numbered and only ever added; beside them
one record says when the engine last told which of them, and why it did not since.

An engine that answers 404 and never told any *does not serve* settings: the built-in ones count, by that name, until
it tells its own or answers anything else. Of one that did tell some, a 404 is a failure like any other.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from prefect import task

from tasks import http, log
from tasks.disabled_strategies import Disabled, disabled
from tasks.documents import Document, Span
from tasks.guarding import guard_of
from tasks.retry import STORE, prefect_options
from tasks.settings import Settings, load_settings, variable
from tasks.store import CONFLICT_ATTEMPTS, ENGINE_SETTINGS, Store, configured_store
from tasks.strategy_settings import ENGINE, NOT_SERVED, EngineSettings, built_in, content_of, settings_of
from tasks.technical_analyst import Selected, within
from trading.errors import MalformedResponse, RevisionConflict, SettingsTooOld, SourceError, SourceRefused
from trading.window import Timeframe

CHANGED: Final = "tradeflows.settings.changed"
STALE: Final = "tradeflows.settings.stale"
UNSERVED: Final = "tradeflows.settings.unserved"
_NOT_FOUND: Final = 404
_READING: Final = "reading"
_SHOWN: Final = 500


@dataclass(frozen=True)
class Selection:
    """Who may speak: ``strategies`` without the selected ones that are ``disabled``, and the settings behind it."""

    strategies: tuple[Selected, ...]
    disabled: tuple[Disabled, ...]
    settings: EngineSettings


@dataclass(frozen=True)
class Refreshed:
    """What a reading came to.

    ``state``: changed, unchanged, stale (the last good ones stay), unserved (the engine has none to tell) or
    unconfigured (no engine is asked); with these two the built-in ones count.
    ``age`` is how many seconds old the settings are that count now; None where there are none from the engine.
    ``too_old``: no analysis may be made with them.
    """

    state: str
    version: str
    number: int
    digest: str
    strategies: list[str]
    age: float | None
    reason: str
    too_old: bool = False


def is_configured(settings: Settings) -> bool:
    """Whether there is an engine that is asked for its settings."""
    return settings.engine_url is not None and bool(settings.engine_settings_path)


def refresh(
    store: Store,
    settings: Settings,
    *,
    now: datetime,
    guard: http.Guard | None = None,
    announce: Callable[[str, Document], None],
) -> Refreshed:
    """Ask the engine, and keep what it says as a new version where that is news.

    An engine that does not answer, or not with settings, is no error: the last good ones stay, and the answer says
    how old they are. A version that a process died over before it was announced is announced by the next.

    Args:
        announce: given an event's name and payload; may be told the same twice.

    Raises:
        ConfigurationError: the engine's address is none.
    """
    if not is_configured(settings):
        return _refreshed("unconfigured", built_in(), None, "no engine is asked for settings; set ENGINE_URL")
    try:
        content = content_of(_asked(settings, guard))
    except SourceError as error:
        if _unserved(store, error):
            return _not_served(store, str(error)[:_SHOWN], announce)
        return _stale(store, settings, now, error, announce)
    number, added = _kept(store, content, now)
    found = settings_of(content, ENGINE, number, now)
    noted = _note(store, {"read_at": now, "number": number, "failures": 0, "reason": "", "unserved": False})
    if noted["announced"] < number:
        announce(CHANGED, _payload(found))
        _note(store, {"announced": number})
    return _refreshed("changed" if added else "unchanged", found, 0.0, "")


def current(store: Store, settings: Settings, *, now: datetime, oldest: timedelta | None = None) -> EngineSettings:
    """The settings that count at ``now``: the last good ones of the engine, the built-in ones where it has none.

    Args:
        oldest: how long ago they may have been read; ``TRADEFLOWS_ENGINE_SETTINGS_HOURS`` where it is not given.

    Raises:
        SettingsTooOld: they were read longer ago than that, or never.
    """
    if not is_configured(settings):
        return built_in()
    limit = oldest if oldest is not None else timedelta(hours=settings.engine_settings_hours)
    found, reading = _last_good(store), _reading(store)
    why = reading["reason"] or "the settings flow did not run"
    if found is None and reading["unserved"]:
        return built_in(NOT_SERVED)
    if found is None or found.read_at is None:
        raise SettingsTooOld(
            f"the engine's settings were never read ({why}); run `tradeflows settings`, or set "
            f"{variable('engine_settings_path')} to nothing to use the built-in ones"
        )
    age = now - found.read_at
    if age > limit:
        raise SettingsTooOld(
            f"the engine's settings were last read {_hours(age)} hours ago and {_hours(limit)} are allowed ({why}); "
            "see whether the engine runs"
        )
    return found


def selected_strategies(
    store: Store, settings: Settings, now: datetime, timeframe: Timeframe | None = None
) -> Selection:
    """Who may speak at ``now``: the selected strategies, less those that are disabled.

    Args:
        timeframe: of the bars that are analysed; leave out strategies that are limited to others than are looked at.

    Raises:
        SettingsTooOld: as ``current``.
    """
    chosen = current(store, settings, now=now)
    names = {one.rule for one in chosen.strategies}
    out = tuple(one for one in disabled(store, now) if one.strategy in names)
    allowed = [one for one in chosen.strategies if one.rule not in {each.strategy for each in out}]
    may = [within(one, timeframe) if timeframe is not None else one for one in allowed]
    return Selection(tuple(one for one in may if one is not None), out, chosen)


def history(store: Store) -> list[EngineSettings]:
    """Every version, oldest first; ``read_at`` is when each was first read."""
    found = store.documents.find(ENGINE_SETTINGS, span=Span("number", 1))
    return [settings_of(one["content"], ENGINE, one["number"], one["read_at"]) for one in found]


def _asked(settings: Settings, guard: http.Guard | None) -> object:
    """The JSON of the engine's reply. What it means is not the guard's: the engine's candles may be well."""
    name = variable("engine_url")
    with closing(http.client(str(settings.engine_url), name, access=settings.access)) as connection:
        reply: object = http.get_json(connection, settings.engine_settings_path, variable=name, guard=guard)
        return reply


def _kept(store: Store, content: Document, now: datetime) -> tuple[int, bool]:
    """The number of the version with this content, and whether it was added."""
    digest = settings_of(content, ENGINE).digest
    for _ in range(CONFLICT_ATTEMPTS):
        newest = store.documents.find(ENGINE_SETTINGS, span=Span("number", 1), newest=1)
        if newest and newest[0]["digest"] == digest:
            return int(newest[0]["number"]), False
        number = int(newest[0]["number"]) + 1 if newest else 1
        version = {"_id": _key(number), "number": number, "digest": digest, "content": content, "read_at": now}
        if store.documents.insert(ENGINE_SETTINGS, version):
            return number, True
    raise RevisionConflict("others kept adding versions of the engine's settings; try again")


def _last_good(store: Store) -> EngineSettings | None:
    reading = _reading(store)
    version = store.documents.get(ENGINE_SETTINGS, _key(reading["last"])) if reading["last"] else None
    if version is None:
        return None
    return settings_of(version["content"], ENGINE, version["number"], reading["read_at"])


def _reading(store: Store) -> Document:
    """The record of the last reading. Its version is ``last``: ``number`` is what only versions have."""
    empty = {"last": 0, "read_at": None, "announced": 0, "failures": 0, "reason": "", "unserved": False, "rev": 0}
    return {**empty, **(store.documents.get(ENGINE_SETTINGS, _READING) or {})}


def _note(store: Store, values: Document) -> Document:
    """Write down what a reading came to, unless a later one was written down already."""
    changed = {("last" if name == "number" else name): value for name, value in values.items()}
    for _ in range(CONFLICT_ATTEMPTS):
        known = _reading(store)
        if "read_at" in changed and known["read_at"] is not None and known["read_at"] > changed["read_at"]:
            return known
        rev = known.pop("rev")
        after = {**known, **changed, "_id": _READING}
        if store.documents.compare_and_set(ENGINE_SETTINGS, after, rev):
            return after
    raise RevisionConflict("others kept writing down their reading of the engine's settings; try again")


def _unserved(store: Store, error: SourceError) -> bool:
    """Whether it means that the engine has no settings to tell: it says so, and never told any."""
    never = not _reading(store)["last"]
    return never and isinstance(error, SourceRefused) and error.status == _NOT_FOUND


def _not_served(store: Store, reason: str, announce: Callable[[str, Document], None]) -> Refreshed:
    path = variable("engine_settings_path")
    why = (
        f"the engine at {variable('engine_url')} serves no settings ({reason}); if that is right, set {path} to "
        f"nothing, and it is not asked any more; if it serves them elsewhere, set {path} to where"
    )
    found = built_in(NOT_SERVED)
    if not _reading(store)["unserved"]:
        log.logger().warning("the engine serves no settings", reason=why)
        # before it is noted: rather twice than never
        announce(UNSERVED, {**_payload(found), "reason": why})
    _note(store, {"unserved": True, "failures": 0, "reason": reason})
    return _refreshed("unserved", found, None, why)


def _stale(
    store: Store, settings: Settings, now: datetime, error: SourceError, announce: Callable[[str, Document], None]
) -> Refreshed:
    reason = str(error)[:_SHOWN]
    known = _reading(store)
    # one that does not answer has not changed its mind; any other reply means that there is something to tell
    unserved = known["unserved"] and error.transient and not isinstance(error, MalformedResponse)
    noted = _note(store, {"failures": known["failures"] + 1, "reason": reason, "unserved": unserved})
    found = _last_good(store)
    if found is None and unserved:
        return _refreshed("unserved", built_in(NOT_SERVED), None, f"{reason}; before that it served no settings")
    if found is None or found.read_at is None:
        return Refreshed("stale", "none", 0, "", [], None, reason, too_old=True)
    age = now - found.read_at
    told = _refreshed("stale", found, age.total_seconds(), reason)
    # once for each time that they became stale, not every five minutes
    if noted["failures"] == 1:
        announce(STALE, {**_payload(found), "age_seconds": told.age, "reason": reason})
    return replace(told, too_old=age > timedelta(hours=settings.engine_settings_hours))


def _payload(found: EngineSettings) -> Document:
    return {"number": found.number, "digest": found.digest, "strategies": [one.rule for one in found.strategies]}


def _refreshed(state: str, found: EngineSettings, age: float | None, reason: str) -> Refreshed:
    names = [one.rule for one in found.strategies]
    return Refreshed(state, found.version, found.number, found.digest, names, age, reason)


def _key(number: int) -> str:
    return f"{number:08d}"


def _hours(age: timedelta) -> str:
    return f"{age.total_seconds() / 3600:.1f}"


# --- Prefect task --------------------------------------------------------------------------------


@task(name="refresh-settings", **prefect_options(STORE))
def refresh_task(now: datetime) -> Refreshed:
    """``refresh`` on the configured store and engine; what changed is announced by an event."""
    settings = load_settings()
    with configured_store(settings) as store:
        asked = is_configured(settings)
        guard = guard_of(settings, store, "engine", metered=True, about="settings") if asked else None
        found = refresh(store, settings, now=now, guard=guard, announce=_emit)
        log.logger().info("settings read", state=found.state, version=found.version, age=found.age, reason=found.reason)
        return found


def _emit(event: str, payload: Document) -> None:
    """Tell Prefect; of a version told twice the id is the same, so that it is the same event."""
    from prefect.events import emit_event

    key = f"{event}/{payload['number']}/{payload['digest']}"
    emit_event(
        event,
        resource={"prefect.resource.id": "tradeflows.settings.engine", "prefect.resource.name": "engine settings"},
        payload={**payload, "flow_run_id": log.flow_run_id()},
        # what is stale may become so again
        id=uuid.uuid5(uuid.NAMESPACE_URL, key) if event == CHANGED else None,
    )
