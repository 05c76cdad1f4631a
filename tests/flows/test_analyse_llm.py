"""The analyse flow with the LLM on: it speaks beside the others, costs are stored, and its failures degrade by name."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient

from deployments.sandbox.llm import application, serving
from flows.analyse import analyse
from tasks.limits import limit_name
from tasks.llm_limits import KIND, opened
from tasks.settings import load_settings
from tasks.store import LLM_CALLS, NOTIFICATIONS, analyses, open_store
from tests.flows.test_analyse import END, START, SYMBOLS, fill
from trading.errors import LlmError
from trading.window import Timeframe

pytestmark = pytest.mark.integration

EARLIER = END - timedelta(hours=1)
SECRET = "sk-analyse-0123456789-abcdef"


def test_the_llm_speaks_and_when_it_cannot_the_others_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(home) as store:
        fill(store)
    monkeypatch.setenv("TRADEFLOWS_LLM", "on")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("TRADEFLOWS_LLM_KEY_PAUSE", "0")
    with serving(application()) as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        rows = analyse(SYMBOLS, Timeframe.H1, start=START, end=EARLIER, return_state=True).result()
        assert [row.symbol for row in rows] == SYMBOLS
        with open_store(home) as store:
            stored = [analyses(store, symbol)[0]["analysis"] for symbol in SYMBOLS]
            calls = store.documents.find(LLM_CALLS)
        for one in stored:
            [opinion] = [opinion for opinion in one["opinions"] if opinion["analyst"] == "llm"]
            assert opinion["cost"]["usd"] > 0
            assert opinion["latency"] > 0
            assert opinion["provenance"]["trace"]
        assert {call["symbol"] for call in calls} == set(SYMBOLS)

        # the same candles within the time to live: nothing is bought again
        again = analyse(SYMBOLS, Timeframe.H1, start=START, end=EARLIER, return_state=True).result()
        assert all(row.reused for row in again)
        with open_store(home) as store:
            assert len(store.documents.find(LLM_CALLS)) == len(calls)

        # the next bar, and the only key is refused: the rules speak, the state says who is missing, somebody is told
        endpoint.set_faults("401")
        state = analyse(SYMBOLS, Timeframe.H1, start=START, end=END, return_state=True)
    assert (state.type.value, state.name) == ("COMPLETED", "Degraded")
    assert "llm" in state.message
    with open_store(home) as store:
        newest = max(analyses(store, "AAA"), key=lambda one: one["timestamp"])["analysis"]
        assert "llm" in newest["absent"]
        assert newest["basis"] == "technical"
        told = store.documents.find(NOTIFICATIONS)
    assert any("LLM" in str(one) for one in told)
    for path in home.rglob("*"):
        if path.is_file():
            assert SECRET[3:].encode() not in path.read_bytes(), path


def test_a_limit_that_may_not_be_set_silences_the_llm_and_no_more(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)

    def refused(self: SyncPrefectClient, *_: object, **__: object) -> None:
        # as of an account that may not
        answer = httpx.Response(403, request=httpx.Request("PATCH", "http://me:hidden@127.0.0.1/api"))
        answer.raise_for_status()

    monkeypatch.setattr(SyncPrefectClient, "upsert_global_concurrency_limit_by_name", refused)
    with pytest.raises(LlmError, match=f"Prefect's limit {limit_name(KIND)} cannot be set: ") as told:
        opened(load_settings())
    assert "hidden" not in str(told.value)
    monkeypatch.setenv("TRADEFLOWS_LLM", "on")
    with open_store(home) as store:
        fill(store)
    state = analyse(SYMBOLS, Timeframe.H1, start=START, end=END, return_state=True)
    assert (state.type.value, state.name) == ("COMPLETED", "Degraded")
    assert {row.basis for row in state.result()} == {"technical"}
    assert all("cannot be set" in row.absent["llm"] for row in state.result())
