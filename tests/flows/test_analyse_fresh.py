"""The analyse flow on a fresh installation: what is not there yet is named and no fault; what is gone again is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect.events.worker import EventsWorker

from deployments.sandbox import Sandbox
from flows.analyse import analyse
from flows.settings import settings as read_settings
from tasks import promotions, registry
from tasks.settings import load_settings
from tasks.signals import DEGRADED
from tasks.store import NOTIFICATIONS, analyses, open_store
from tasks.training import model_name
from tests.flows.test_analyse import END, START, SYMBOLS, asked, fill, report, run_of, told
from tests.registered_models import NOW, Registry
from trading.window import Timeframe

pytestmark = pytest.mark.integration

WINDOW: dict[str, Any] = {"start": START, "end": END, "return_state": True}


def test_before_the_first_promotion_a_run_is_completed_and_names_who_is_not_there(home: Path) -> None:
    with open_store(home) as store:
        fill(store)
    name = model_name(SYMBOLS, Timeframe.H1)
    fresh = analyse(SYMBOLS, **WINDOW)
    assert (fresh.type.value, fresh.name) == ("COMPLETED", "Completed")
    assert fresh.message.startswith(f"without the model: model {name} has no champion; run the train flow for it")
    assert [(row.symbol, row.basis, row.absent, row.degraded) for row in fresh.result()] == [
        (symbol, "technical", {}, None) for symbol in SYMBOLS
    ]
    text = report()
    assert "# Analysis 1h: all good" in text
    assert f"## Not there yet\n\n- model: model {name} has no champion" in text
    with open_store(home) as store:
        [stored] = analyses(store, "AAA")
    said = stored["analysis"]
    assert (said["basis"], said["absent"], said["unconfigured"]) == ("technical", [], ["model"])
    # reused, it is still named
    again = analyse(SYMBOLS, **WINDOW)
    assert [row.reused for row in again.result()] == [True, True]
    assert again.message == fresh.message

    # with a champion everybody speaks, and there is nothing to say
    settings = load_settings()
    models = Registry(settings, registry.connect(settings))
    version = models.add(name, "logistic")
    with open_store(home) as store:
        promotions.promote(models.client, store, name, version, reason="a test", who="me", now=NOW, key=models.key)
    good = analyse(SYMBOLS, **WINDOW)
    assert (good.name, good.message) == ("Completed", None)
    assert {row.basis for row in good.result()} == {"all"}

    # one that is gone is missed
    models.client.delete_model_version(name, version)
    gone = analyse(SYMBOLS, **WINDOW)
    assert (gone.type.value, gone.name) == ("COMPLETED", "Degraded")
    assert "model: MLflow does not tell of" in gone.message
    assert {row.basis for row in gone.result()} == {"technical"}
    [event] = told(DEGRADED, run_of(gone))
    assert event["payload"]["symbols"] == SYMBOLS
    # and of the others nobody was told: their events would be there by now
    EventsWorker.instance().drain()
    events = asked("/events/filter", {"filter": {"event": {"name": [DEGRADED]}}, "limit": 50})["events"]
    runs = {one["payload"]["flow_run_id"] for one in events}
    assert runs.isdisjoint({run_of(fresh), run_of(again), run_of(good)})


def test_an_engine_without_settings_is_told_of_once_and_analyses_say_what_they_used_instead(
    home: Path, exchange: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(home) as store:
        fill(store)
    monkeypatch.setenv("ENGINE_URL", exchange.url)
    monkeypatch.setenv("TRADEFLOWS_ENGINE_SETTINGS_PATH", "/api/none")
    # nobody has asked the engine yet
    refused = analyse(["AAA"], **WINDOW)
    assert refused.type.value == "FAILED"
    assert "the engine's settings were never read (the settings flow did not run)" in refused.message
    assert "## Broke off\n\n- the engine's settings were never read" in report()
    for _ in range(2):
        unserved = read_settings(return_state=True)
        assert (unserved.type.value, unserved.name) == ("COMPLETED", "Unserved")
        assert "set TRADEFLOWS_ENGINE_SETTINGS_PATH to nothing" in unserved.message
    with open_store(home) as store:
        [news] = store.documents.find(NOTIFICATIONS)
    assert news["title"] == "The engine serves no strategy settings"
    assert "TRADEFLOWS_ENGINE_SETTINGS_PATH" in news["text"]
    done = analyse(["AAA"], **WINDOW)
    assert (done.type.value, done.name) == ("COMPLETED", "Completed")
    assert "settings built-in (the engine serves none)" in report()
    with open_store(home) as store:
        [stored] = analyses(store, "AAA")
    assert stored["settings_version"].startswith("built-in (the engine serves none) ")
    # where the engine tells some after all, they are those that count
    monkeypatch.delenv("TRADEFLOWS_ENGINE_SETTINGS_PATH")
    assert read_settings().state == "changed"
    analyse(["AAA"], **WINDOW)
    with open_store(home) as store:
        [stored] = analyses(store, "AAA")
    assert stored["settings_version"].startswith("engine 1 ")
