"""The costs flow: from real calls to a stand-in to the report, the run in MLflow, and the state of the flow run."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from deployments.bench_figures import market
from deployments.sandbox.llm import application, serving
from flows.costs import costs
from tasks import registry
from tasks.limits import limit_name
from tasks.llm_analyst import opinion
from tasks.llm_costs import EXPERIMENT
from tasks.llm_limits import KIND, opened
from tasks.llm_setup import opened_llm
from tasks.llm_tracing import EXPERIMENT as TRACES
from tasks.settings import load_settings
from tasks.store import LLM_CALLS, open_store
from trading.analysis import Abstention, Opinion
from trading.errors import NoLlmKey
from trading.window import Timeframe, Window

pytestmark = pytest.mark.integration

SECRETS = ("sk-flow-one-0123456789", "sk-flow-two-9876543210")
CANDLES = market(100, 3_600_000)
START = CANDLES.index[0].to_pydatetime()
WINDOW = Window("BTCSIM", Timeframe.H1, START, START + timedelta(hours=100))


def artifact(key: str) -> str:
    async def ask() -> Any:
        async with get_client() as client:
            body = {"artifacts": {"key": {"any_": [key]}}}
            return (await client.request("POST", "/artifacts/latest/filter", json=body)).json()

    [found] = asyncio.run(ask())
    return str(found["data"])


def test_calls_are_traced_and_added_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    today = datetime.now(UTC).date()
    empty = costs(today, return_state=True)
    assert (empty.type.value, empty.name, empty.message) == ("COMPLETED", "Nothing", f"no LLM call on {today}")
    assert "No call was made" in artifact(f"costs-{today}")

    monkeypatch.setenv("TRADEFLOWS_LLM", "on")
    monkeypatch.setenv("OPENAI_API_KEY", SECRETS[0])
    monkeypatch.setenv("OPENAI_BACKUP_API_KEYS", SECRETS[1])
    monkeypatch.setenv("TRADEFLOWS_LLM_KEY_PAUSE", "0")
    with serving(application()) as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        settings = load_settings()
        with open_store(home) as store, opened_llm(settings, store.documents, metered=True) as llm:
            found = []
            for script in (["401", "ok"], ["no-json", "ok"], ["schema", "schema"]):
                endpoint.set_faults(*script)
                found.append(opinion(llm, CANDLES, WINDOW, horizon=12, data_mode="simulated"))
            calls = store.documents.find(LLM_CALLS)
    assert [type(one) for one in found] == [Opinion, Opinion, Abstention]

    # the traces, as the pages show them
    client = registry.connect(settings)
    experiment = client.get_experiment_by_name(TRACES)
    traces = client.search_traces(locations=[experiment.experiment_id])
    assert experiment.tags["mlflow.experimentKind"] == "genai_development"
    assert {trace.info.tags["outcome"] for trace in traces} == {"answered", "failed"}
    named = {trace.info.trace_id: trace for trace in traces}
    for one in found[:2]:
        assert isinstance(one, Opinion)
        assert one.cost is not None
        trace = named[one.provenance["trace"]]
        assert trace.info.cost["total_cost"] == pytest.approx(one.cost.usd)
        assert trace.info.token_usage["input_tokens"] == one.cost.prompt_tokens
        spans = trace.data.spans
        assert [span.span_type for span in spans] == ["CHAIN", "CHAT_MODEL", "CHAT_MODEL"]
        assert spans[2].inputs["messages"][1]["content"].startswith('{"symbol":"BTCSIM"')
        assert '"signal"' in spans[2].outputs["choices"][0]["message"]["content"]
        assert spans[2].attributes["latency_seconds"] > 0
    told = "".join(str(trace.to_dict()) for trace in traces)
    assert not any(secret[8:16] in told for secret in SECRETS)

    spent = costs(today)
    assert (spent.state, spent.calls, spent.data_modes) == ("spent", 6, ["simulated"])
    assert spent.usd == pytest.approx(sum(call["usd"] for call in calls))
    assert spent.keys[0].startswith("key 1: refused until ")
    text = artifact(f"costs-{today}")
    assert f"# LLM costs of {today} (UTC): {spent.usd:.4f} USD" in text
    assert spent.link is not None
    assert spent.link in text
    # again: the same day, the same run
    assert costs(today).link == spent.link
    [run] = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id], "tags.day != ''")
    assert run.data.metrics["calls"] == 6
    assert "By outcome" in run.data.tags["mlflow.note.content"]


def test_prefect_s_global_limit_is_drawn_from(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRETS[0])
    monkeypatch.setenv("TRADEFLOWS_LLM_REQUESTS_PER_MINUTE", "1")
    # long enough for a busy server's answer, and far from the minute after which a slot is free again
    monkeypatch.setenv("TRADEFLOWS_LLM_PATIENCE", "10")
    with get_client(sync_client=True) as client:
        # drawn from by others of these tests
        client.delete_global_concurrency_limit_by_name(limit_name(KIND))
    throttle = opened(load_settings())
    throttle.admit()
    with pytest.raises(NoLlmKey, match=f"the Prefect concurrency limit {limit_name(KIND)} gave nothing"):
        throttle.admit()
