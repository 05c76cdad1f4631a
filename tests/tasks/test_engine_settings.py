"""The engine's settings: read over HTTP, checked, versioned, kept while it is down, refused when too old."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.disabled_strategies import disable, disabled, disablings, lift
from tasks.engine_settings import CHANGED, STALE, UNSERVED, Refreshed, current, history, refresh, selected_strategies
from tasks.notification_texts import Message, Severity
from tasks.notifying import Notified
from tasks.settings import Settings, load_settings
from tasks.settings_notices import tell_unserved
from tasks.store import Store, open_store
from tasks.strategy_settings import ENGINE, built_in, content_of, settings_of
from tests.conftest import LocalSandbox
from trading.errors import InvalidRequest, MalformedResponse, NotificationFailed, SettingsTooOld
from trading.strategies import RULES
from trading.window import Timeframe

NOW = datetime(2024, 5, 6, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


@pytest.fixture
def engine(sandbox: LocalSandbox, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[Settings]:
    """Settings with the sandbox as the engine, which tells its usual settings."""
    monkeypatch.setenv("ENGINE_URL", sandbox.url)
    httpx.delete(f"{sandbox.url}/sandbox/settings").raise_for_status()
    yield load_settings()
    httpx.delete(f"{sandbox.url}/sandbox/settings").raise_for_status()


class Reading:
    """Refreshes, and remembers what was announced."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store, self.settings = store, settings
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, now: datetime, settings: Settings | None = None) -> Refreshed:
        announce = lambda event, payload: self.events.append((event, payload))  # noqa: E731
        return refresh(self.store, settings or self.settings, now=now, announce=announce)

    def tells(self, body: Any) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        httpx.put(f"{self.settings.engine_url}/sandbox/settings", content=content).raise_for_status()


def only(name: str, **parameters: float) -> dict[str, Any]:
    return {"strategies": [{"name": name, "parameters": parameters}]}


def test_settings_are_read_versioned_and_announced_once(store: Store, engine: Settings) -> None:
    reading = Reading(store, engine)
    first = reading(NOW)
    assert (first.state, first.number, first.strategies) == ("changed", 1, ["rsi", "macd", "volume", "bollinger"])
    assert reading(NOW + HOUR).state == "unchanged"
    reading.tells(only("rsi", period=10))
    second = reading(NOW + 2 * HOUR)
    assert (second.state, second.number, second.strategies) == ("changed", 2, ["rsi"])
    # what was before is a version of its own when it comes back
    httpx.delete(f"{engine.engine_url}/sandbox/settings")
    third = reading(NOW + 3 * HOUR)
    assert (third.number, third.digest) == (3, first.digest)
    assert [(event, payload["number"]) for event, payload in reading.events] == [
        (CHANGED, 1),
        (CHANGED, 2),
        (CHANGED, 3),
    ]
    assert [one.number for one in history(store)] == [1, 2, 3]
    assert history(store)[1].read_at == NOW + 2 * HOUR
    now = current(store, engine, now=NOW + 3 * HOUR)
    assert (now.number, now.read_at, now.origin) == (3, NOW + 3 * HOUR, "engine")


def test_a_version_that_nobody_announced_is_announced_by_the_next_reading(store: Store, engine: Settings) -> None:
    def die(event: str, payload: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refresh(store, engine, now=NOW, announce=die)
    reading = Reading(store, engine)
    assert reading(NOW + HOUR).state == "unchanged"
    assert [event for event, _ in reading.events] == [CHANGED]


@pytest.mark.integration
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"strategies": "rsi"}',
        b'{"strategies": [{"name": "martingale"}]}',
        b'{"strategies": [{"name": "rsi", "parameters": {"perid": 14}}]}',
        b'{"strategies": [{"name": "rsi", "parameters": {"period": -1}}]}',
        b'{"strategies": [{"name": "rsi", "parameters": {"period": "14"}}]}',
        b'{"strategies": [{"name": "rsi", "timeframes": ["7m"]}]}',
        b'{"strategies": [{"name": "rsi"}, {"name": "rsi"}]}',
        b'{"strategies": [{"name": "rsi"}], "analysis": {"confidenceThreshold": 1.5}}',
        b'{"strategies": [{"name": "rsi"}], "indicators": {"rsi": {"period": 0}}}',
    ],
)
def test_what_cannot_be_used_leaves_the_last_good_ones_and_says_how_old_they_are(
    body: bytes, store: Store, engine: Settings
) -> None:
    reading = Reading(store, engine)
    good = reading(NOW)
    reading.tells(body)
    stale = reading(NOW + HOUR)
    assert (stale.state, stale.digest, stale.age, stale.too_old) == ("stale", good.digest, 3600.0, False)
    assert stale.reason
    assert current(store, engine, now=NOW + HOUR).digest == good.digest
    # told once for as long as it lasts
    reading(NOW + HOUR * 1.1)
    assert [event for event, _ in reading.events] == [CHANGED, STALE]
    assert len(history(store)) == 1


def test_an_engine_that_is_down_is_outlived_until_the_limit(
    store: Store, engine: Settings, sandbox: LocalSandbox, waits: list[float]
) -> None:
    reading = Reading(store, engine)
    reading(NOW)
    sandbox.set_faults(outage_start="2018-12-31T00:00:00Z", outage_seconds=1e7)
    stale = reading(NOW + 6 * HOUR)
    assert (stale.state, stale.too_old) == ("stale", False)
    assert "503" in stale.reason
    assert waits
    assert current(store, engine, now=NOW + 6 * HOUR).number == 1
    with pytest.raises(SettingsTooOld, match=r"6\.1 hours ago and 6\.0 are allowed .*503"):
        current(store, engine, now=NOW + 6.1 * HOUR)
    assert reading(NOW + 7 * HOUR).too_old
    with pytest.raises(SettingsTooOld, match=r"2\.0 hours ago and 1\.0 are"):
        current(store, engine, now=NOW + 2 * HOUR, oldest=HOUR)
    sandbox.set_faults()
    assert reading(NOW + 8 * HOUR).state == "unchanged"
    assert current(store, engine, now=NOW + 8 * HOUR).read_at == NOW + 8 * HOUR


def test_settings_that_were_never_read_are_refused_and_without_an_engine_the_built_in_ones_count(
    store: Store, engine: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsTooOld, match="never read"):
        current(store, engine, now=NOW)
    monkeypatch.setenv("TRADEFLOWS_ENGINE_SETTINGS_PATH", "")
    without_path = load_settings()
    monkeypatch.delenv("ENGINE_URL")
    for told in (without_path, load_settings()):
        assert current(store, told, now=NOW) == built_in()
        assert Reading(store, engine)(NOW, told).state == "unconfigured"
    usual = built_in()
    assert [one.rule for one in usual.strategies] == ["rsi", "macd", "volume", "bollinger"]
    assert all(one.parameters == RULES[one.rule].defaults for one in usual.strategies)
    assert (usual.confidence_threshold, usual.time_to_live) == (0.2, timedelta(minutes=15))


@pytest.fixture
def elsewhere(engine: Settings) -> Settings:
    """The same engine, asked at a path that it does not have."""
    return engine.model_copy(update={"engine_settings_path": "/api/none"})


def test_an_engine_that_serves_no_settings_is_told_of_once_and_the_built_in_ones_count(
    store: Store, engine: Settings, elsewhere: Settings, sandbox: LocalSandbox
) -> None:
    reading = Reading(store, elsewhere)
    first = reading(NOW)
    assert (first.state, first.too_old, first.age, first.number) == ("unserved", False, None, 0)
    assert first.strategies == ["rsi", "macd", "volume", "bollinger"]
    assert "/api/none answered 404" in first.reason
    assert "set TRADEFLOWS_ENGINE_SETTINGS_PATH to nothing" in first.reason
    assert reading(NOW + HOUR).state == "unserved"
    [(event, payload)] = reading.events
    assert (event, payload["reason"]) == (UNSERVED, first.reason)
    # analyses go on for as long as it stays so, and say which settings these are
    later = current(store, elsewhere, now=NOW + 100 * HOUR)
    assert (later.origin, later.version) == (
        "built-in (the engine serves none)",
        f"built-in (the engine serves none) {built_in().digest[:8]}",
    )
    assert later.strategies == built_in().strategies
    assert later.version != built_in().version
    # an outage changes nothing about it
    sandbox.set_faults(outage_start="2018-12-31T00:00:00Z", outage_seconds=1e7)
    down = reading(NOW + 2 * HOUR)
    assert (down.state, down.too_old) == ("unserved", False)
    assert "503" in down.reason
    assert current(store, elsewhere, now=NOW + 2 * HOUR).origin == later.origin
    sandbox.set_faults()
    # settings that cannot be used are settings all the same: nobody knows who may speak
    reading.tells({"strategies": [{"name": "martingale"}]})
    assert reading(NOW + 3 * HOUR, engine).too_old
    with pytest.raises(SettingsTooOld, match=r"never read .*martingale"):
        current(store, engine, now=NOW + 3 * HOUR)
    # and back
    assert reading(NOW + 4 * HOUR).state == "unserved"
    assert [event for event, _ in reading.events] == [UNSERVED, UNSERVED]


def test_once_an_engine_has_told_settings_their_absence_is_a_failure_like_any_other(
    store: Store, engine: Settings, elsewhere: Settings
) -> None:
    reading = Reading(store, engine)
    assert reading(NOW, elsewhere).state == "unserved"
    good = reading(NOW + HOUR)
    assert (good.state, current(store, engine, now=NOW + HOUR).number) == ("changed", 1)
    gone = reading(NOW + 2 * HOUR, elsewhere)
    assert (gone.state, gone.digest, gone.too_old) == ("stale", good.digest, False)
    assert current(store, elsewhere, now=NOW + 2 * HOUR).number == 1
    assert reading(NOW + 8 * HOUR, elsewhere).too_old
    with pytest.raises(SettingsTooOld, match=r"7\.0 hours ago and 6\.0 are allowed .*404"):
        current(store, elsewhere, now=NOW + 8 * HOUR)
    assert [event for event, _ in reading.events] == [UNSERVED, CHANGED, STALE]


def test_a_refusal_is_not_taken_for_an_engine_without_settings(
    store: Store, stub: Callable[[Sequence[bytes]], Any], http_reply: Callable[..., bytes], engine: Settings
) -> None:
    for status in (403, 410, 500):
        refusing = stub([http_reply("no", status)])
        told = engine.model_copy(update={"engine_url": refusing.url})
        assert Reading(store, told)(NOW).too_old
        with pytest.raises(SettingsTooOld, match=f"never read .*{status}"):
            current(store, told, now=NOW)


def test_people_are_told_once_and_again_where_that_failed(store: Store) -> None:
    sent: list[Message] = []

    def send(message: Message) -> Notified:
        sent.append(message)
        return Notified("delivered")

    def fail(message: Message) -> Notified:
        raise NotificationFailed("nobody there")

    with pytest.raises(NotificationFailed):
        tell_unserved(store, "why", now=NOW, send=fail)
    assert tell_unserved(store, "why", now=NOW, send=send)
    assert not tell_unserved(store, "why", now=NOW + 1000 * HOUR, send=send)
    [message] = sent
    assert (message.severity, message.text) == (Severity.WARNING, "why")


def test_where_there_was_nobody_to_tell_it_is_told_once_there_is(store: Store) -> None:
    assert not tell_unserved(store, "why", now=NOW, send=lambda message: Notified("nobody"))
    assert not tell_unserved(store, "why", now=NOW + HOUR, send=lambda message: Notified("held"))
    assert tell_unserved(store, "why", now=NOW + 25 * HOUR, send=lambda message: Notified("held"))
    assert not tell_unserved(store, "why", now=NOW + 100 * HOUR, send=lambda message: Notified("delivered"))


def test_a_process_that_died_before_it_told_leaves_it_to_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(message: Message) -> Notified:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        # one that is killed gives nothing back
        killed.setattr(store.documents, "release", lambda name, owner: None)
        tell_unserved(store, "why", now=NOW, send=die)
    assert not tell_unserved(store, "why", now=NOW + timedelta(minutes=5), send=lambda message: Notified("delivered"))
    assert tell_unserved(store, "why", now=NOW + HOUR, send=lambda message: Notified("delivered"))
    assert not tell_unserved(store, "why", now=NOW + 2 * HOUR, send=lambda message: Notified("delivered"))


def test_disabled_strategies_and_those_of_other_timeframes_do_not_speak(store: Store, engine: Settings) -> None:
    reading = Reading(store, engine)
    reading.tells({"strategies": [{"name": "rsi"}, {"name": "macd", "timeframes": ["4h"]}, {"name": "volume"}]})
    reading(NOW)

    def speaking(now: datetime, timeframe: Timeframe | None = None) -> list[str]:
        return [one.rule for one in selected_strategies(store, engine, now, timeframe).strategies]

    assert speaking(NOW) == ["rsi", "macd", "volume"]
    # an analysis of 1h looks at bars of 4h, too
    assert speaking(NOW, Timeframe.H1) == ["rsi", "macd", "volume"]
    assert speaking(NOW, Timeframe.H4) == ["rsi", "macd", "volume"]
    assert speaking(NOW, Timeframe.M15) == ["rsi", "volume"]
    out = {"now": NOW, "lasting": 3 * HOUR, "by": "test", "evidence": {"streak": 12}}
    made = disable(store, "rsi", ["lost 12 times in a row"], **out)
    assert made is not None
    assert disable(store, "rsi", ["again"], **out) is None
    assert disable(store, "breakout", ["not selected"], **out) is not None
    found = selected_strategies(store, engine, NOW + HOUR)
    assert [one.strategy for one in found.disabled] == ["rsi"]
    assert speaking(NOW + HOUR) == ["macd", "volume"]
    lifted = lift(store, "rsi", reason="the data were wrong", by="me", now=NOW + 2 * HOUR)
    assert (lifted.end, lifted.lifted_why) == (NOW + 2 * HOUR, "the data were wrong")
    assert speaking(NOW + 2 * HOUR) == ["rsi", "macd", "volume"]
    # a run of before it was lifted sees what was then
    assert speaking(NOW + HOUR) == ["macd", "volume"]
    with pytest.raises(InvalidRequest, match=r"'rsi' is not disabled; disabled are: breakout"):
        lift(store, "rsi", reason="twice", by="me", now=NOW + 2 * HOUR)
    with pytest.raises(InvalidRequest, match="reason"):
        lift(store, "breakout", reason=" ", by="me", now=NOW)
    # and by itself it ends
    assert disabled(store, NOW + 3 * HOUR) == ()
    assert len(disablings(store)) == 2


def test_a_limit_goes_with_the_strategy_and_names_it_only_where_it_keeps_it_from_bars(
    store: Store, engine: Settings
) -> None:
    reading = Reading(store, engine)
    reading.tells({"strategies": [{"name": "rsi", "timeframes": ["1h", "1d"]}, {"name": "macd"}]})
    reading(NOW)

    def version(timeframe: Timeframe | None) -> str:
        return selected_strategies(store, engine, NOW, timeframe).strategies[0].version

    free = built_in().strategies[0].version
    assert version(Timeframe.H1) == f"{free},timeframes=1h"
    # a day has no coarser bars: nothing is kept from it, and its record goes on
    assert version(Timeframe.D1) == free
    assert version(None) == f"{free},timeframes=1h+1d"


@settings(max_examples=40)
@given(st.data())
def test_every_set_of_allowed_parameters_is_understood_and_the_digest_names_it(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(RULES)), unique=True))
    told = []
    for name in names:
        rule = RULES[name]
        chosen = {key: data.draw(st.sampled_from(parameter.values)) for key, parameter in rule.parameters.items()}
        if all(chosen[lower] < chosen[upper] for lower, upper in rule.ordered):
            told.append({"name": name, "parameters": chosen, "unknown": 1})
    found = settings_of(content_of({"strategies": told, "more": None}), ENGINE)
    assert [(one.rule, dict(one.parameters)) for one in found.strategies] == [
        (one["name"], one["parameters"]) for one in told
    ]
    shared = {one["name"]: one["parameters"] for one in told}
    bare = [{"name": one["name"]} for one in told]
    same = settings_of(content_of({"strategies": bare, "indicators": {**shared, "sun": {"spots": 1}}}), ENGINE)
    assert same.digest == found.digest
    other = content_of({"strategies": told, "analysis": {"confidenceThreshold": 0.3}})
    assert settings_of(other, ENGINE).digest != found.digest


FIELDS = st.sampled_from(["strategies", "name", "parameters", "indicators", "analysis"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["rsi", "1h", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(JSON)
def test_no_reply_breaks_the_reader(reply: Any) -> None:
    try:
        found = settings_of(content_of(reply), ENGINE)
    except MalformedResponse:
        return
    assert all(one.rule in RULES for one in found.strategies)
