"""The analyse flow under a Prefect server: what each fault leaves in the store, in the state and in the events."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker

from flows.analyse import analyse
from tasks import ledger, registry
from tasks.panels import panel_task
from tasks.settings import load_settings
from tasks.signals import CHANGED, DEGRADED
from tasks.store import ANALYSES, SIGNALS, Store, analyses, configured_store, open_store, write_candles
from tasks.training import model_name
from tests.mongo_server import MongoServer
from tests.registered_models import Registry, candles, flipped
from trading.errors import DataError, StoreUnavailable
from trading.window import Timeframe, Window

pytestmark = pytest.mark.integration

SYMBOLS = ["AAA", "BBB"]
START = datetime(2020, 1, 1, tzinfo=UTC)
END = START + timedelta(hours=1200)


def fill(store: Store, symbols: list[str] = SYMBOLS, *, end: datetime = END) -> None:
    """Hourly candles of a random walk for each symbol, approved."""
    for seed, symbol in enumerate(symbols, 1):
        mine = Window(symbol, Timeframe.H1, START, end)
        rows = candles(seed).iloc[: mine.slots]
        written = write_candles(store, mine, rows, "simulated")
        ledger.record(
            store,
            ledger.LedgerEntry(
                window=mine, status=ledger.APPROVED, rows=len(rows), added=written.added, quarantined={}, gaps=0,
                digest=written.digest, suite="2", flow_run_id=None, data_mode="simulated", source="sandbox",
                calendar="24/7", recorded_at=end,
            ),
        )  # fmt: skip


def asked(path: Any, body: dict[str, Any]) -> Any:
    """What the Prefect server answers."""

    async def ask() -> Any:
        async with get_client() as client:
            return (await client.request("POST", path, json=body)).json()

    return asyncio.run(ask())


def told(event: str, run: str) -> list[dict[str, Any]]:
    """Events that a flow run told the server, which writes them down a little later."""
    EventsWorker.instance().drain()
    deadline = time.monotonic() + 30
    while True:
        events = asked("/events/filter", {"filter": {"event": {"name": [event]}}, "limit": 50})["events"]
        mine = [one for one in events if one["payload"]["flow_run_id"] == run]
        if mine or time.monotonic() > deadline:
            return mine
        time.sleep(0.2)


def report(timeframe: str = "1h") -> str:
    [found] = asked("/artifacts/latest/filter", {"artifacts": {"key": {"any_": [f"analyse-{timeframe}"]}}})
    return str(found["data"])


def run_of(state: Any) -> str:
    return str(state.state_details.flow_run_id)


def test_each_fault_has_its_state_its_document_and_its_event(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(home) as store:
        fill(store)
    settings = load_settings()
    models = Registry(settings, registry.connect(settings))
    name = model_name(SYMBOLS, Timeframe.H1)
    first, second = models.add(name, "logistic"), models.add(name, "logistic", note="the second")
    registry.set_alias(models.client, name, registry.PREVIOUS, first)
    registry.set_alias(models.client, name, registry.CHAMPION, second)
    window: dict[str, Any] = {"start": START, "end": END, "return_state": True}

    # everybody speaks
    good = analyse(SYMBOLS, **window)
    assert (good.type.value, good.name) == ("COMPLETED", "Completed")
    rows = good.result()
    assert [(row.symbol, row.basis, row.absent, row.reused) for row in rows] == [
        (symbol, "all", {}, False) for symbol in SYMBOLS
    ]
    assert {row.model_version for row in rows} == {f"v{second} logistic"}
    assert "# Analysis 1h: all good" in report()
    assert f"models/{name}/versions/{second}" in report()
    with open_store(home) as store:
        [stored] = analyses(store, "AAA")
        assert (stored["timestamp"], stored["flow_run_id"]) == (END, run_of(good))

    # the same again is reused, and the report says so
    again = analyse(SYMBOLS, batch_size=1, **window)
    assert [row.reused for row in again.result()] == [True, True]
    assert "| before |" in report()

    # a champion that does not verify: the previous one, by name
    tamper(models, name, second)
    degraded = analyse(SYMBOLS, **window)
    assert (degraded.type.value, degraded.name) == ("COMPLETED", "Degraded")
    assert f"version {second} was refused" in degraded.message
    rows = degraded.result()
    assert {row.model_version for row in rows} == {f"v{first} logistic, degraded"}
    [event] = told(DEGRADED, run_of(degraded))
    assert (event["payload"]["state"], event["payload"]["symbols"]) == ("Degraded", SYMBOLS)
    assert f"version {second} was refused" in event["payload"]["absent"]["champion"]

    # no version that verifies: the rules, by name
    tamper(models, name, first)
    rules = analyse(SYMBOLS, **window)
    assert (rules.type.value, rules.name) == ("COMPLETED", "Degraded")
    assert {(row.basis, row.model_version) for row in rules.result()} == {("technical", None)}
    with open_store(home) as store:
        [stored] = analyses(store, "BBB")
        assert (stored["basis"], stored["analysis"]["absent"], stored["model"]) == ("technical", ["model"], None)
        assert f"no version of {name} can be used" in stored["analysis"]["reasoning"]

    # one symbol without candles: the others are analysed, and the state tells
    partly = analyse(["AAA", "ZZZ", "BBB"], **window)
    assert (partly.type.value, partly.name) == ("COMPLETED", "Partly")
    assert [row.symbol for row in partly.result()] == ["AAA", "BBB"]
    assert partly.message.startswith("1 of 3 symbols were not analysed; ZZZ: the store holds no candles")
    assert "## Not analysed" in report()
    [event] = told(DEGRADED, run_of(partly))
    assert event["payload"]["state"] == "Partly"
    assert event["payload"]["failures"][0].startswith("ZZZ: ")

    # none could be
    failed = analyse(["YYY", "ZZZ"], **window)
    assert (failed.type.value, failed.name) == ("FAILED", "Failed")
    with pytest.raises(DataError, match="2 of 2 symbols were not analysed; YYY: the store holds no candles"):
        failed.result()
    [event] = told(DEGRADED, run_of(failed))
    assert event["payload"]["state"] == "Failed"
    assert "# Analysis 1h: Failed" in report()

    _an_engine_that_is_down_degrades_what_is_stored_and_fails_what_is_not(monkeypatch, window)
    _a_signal_that_changed_is_told(home, window)


def tamper(models: Registry, name: str, version: str) -> None:
    [victim] = models.folder(name, version).rglob("estimator.json")
    victim.write_bytes(flipped(victim.read_bytes(), 40))


def _an_engine_that_is_down_degrades_what_is_stored_and_fails_what_is_not(
    monkeypatch: pytest.MonkeyPatch, window: dict[str, Any]
) -> None:
    monkeypatch.setenv("TRADEFLOWS_ENGINE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("TRADEFLOWS_ENGINE_SETTINGS_PATH", "")
    monkeypatch.setenv("TRADEFLOWS_SOURCE_PAUSE", "0.01")
    # an hour more than there is: nobody can be analysed on an old bar
    later = {**window, "end": END + timedelta(hours=1)}
    failed = analyse(["AAA"], refresh="engine", **later)
    assert failed.type.value == "FAILED"
    assert "opened at 2020-02-19T23:00Z and the one of 2020-02-20T00:00Z is due" in failed.message
    assert "the candles were not all refreshed" in failed.message
    # what is stored needs no engine
    stored = analyse(["AAA"], refresh="engine", **window)
    assert [row.symbol for row in stored.result()] == ["AAA"]
    assert stored.name == "Degraded"
    monkeypatch.delenv("TRADEFLOWS_ENGINE_URL")


def _a_signal_that_changed_is_told(home: Path, window: dict[str, Any]) -> None:
    with open_store(home) as store:
        known = store.documents.get(SIGNALS, "BBB|1h")
        assert known is not None
        other = "Short" if known["signal"] != "Short" else "Long"
        store.documents.put(SIGNALS, {**known, "signal": other})
    state = analyse(SYMBOLS, reuse_minutes=0, **window)
    [event] = told(CHANGED, run_of(state))
    assert event["resource"]["prefect.resource.id"] == "tradeflows.signal.BBB.1h"
    payload = event["payload"]
    assert (payload["before"], payload["signal"], payload["data_mode"]) == (other, known["signal"], "simulated")


def test_a_store_that_is_down_fails_the_run_by_name_and_the_next_one_makes_all_of_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = MongoServer(tmp_path / "mongo").start()
    try:
        monkeypatch.setenv("MONGODB_URL", f"{server.url}down?serverSelectionTimeoutMS=1000")
        # as often as ever, with short pauses
        monkeypatch.setattr(panel_task, "retry_delay_seconds", 0.05)
        with configured_store(load_settings()) as store:
            fill(store)
        server.kill()
        window: dict[str, Any] = {"start": START, "end": END, "return_state": True}
        down = analyse(SYMBOLS, **window)
        assert down.type.value == "FAILED"
        with pytest.raises(StoreUnavailable):
            down.result()
        # it was tried more than once
        runs = asked("/task_runs/filter", {"flow_runs": {"id": {"any_": [run_of(down)]}}})
        assert {(run["name"].split("-")[0], run["run_count"] > 1) for run in runs} == {("gather", True)}
        server.start()
        with configured_store(load_settings()) as store:
            assert store.documents.find(ANALYSES) == []
        back = analyse(SYMBOLS, **window)
        assert [row.symbol for row in back.result()] == SYMBOLS
    finally:
        server.kill()


def test_strategies_are_those_asked_for_and_settings_that_are_too_old_are_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(home) as store:
        fill(store)
    window: dict[str, Any] = {"start": START, "end": END, "return_state": True}
    one = analyse(["AAA"], strategies=["rsi"], strategy_parameters={"rsi": {"period": 9}}, **window)
    [row] = one.result()
    assert any("rsi: 1h" in reason and "RSI(9)" in reason for reason in row.reasons)
    assert not any("macd" in reason for reason in row.reasons)
    # an LLM that is on and has no key abstains by name, and is not asked
    monkeypatch.setenv("TRADEFLOWS_LLM", "on")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    unable = analyse(["AAA"], strategies=["rsi"], **window)
    [row] = unable.result()
    assert (unable.name, row.basis, row.absent["llm"]) == (
        "Degraded", "technical", "the LLM has no key; set OPENAI_API_KEY",
    )  # fmt: skip
    monkeypatch.delenv("TRADEFLOWS_LLM")
    # an engine whose settings were never read: nobody knows who may speak
    monkeypatch.setenv("TRADEFLOWS_ENGINE_URL", "http://127.0.0.1:9")
    refused = analyse(["AAA"], **window)
    assert refused.type.value == "FAILED"
    assert "the engine's settings were never read" in refused.message
