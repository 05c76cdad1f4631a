"""Reviews on a store: who is stopped and told of once, what is proposed, and what an LLM may and may not add."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.disabled_strategies import disabled, disablings, lift, mark_told, untold
from tasks.ledger import set_listed
from tasks.llm_setup import opened_llm
from tasks.review_facts import gather, records
from tasks.reviewing import (
    Critique,
    Suggested,
    asking,
    decide,
    disable_failing,
    mark_proposals_told,
    messages_of,
    open_proposals,
    review,
    untold_proposals,
)
from tasks.settings import load_settings
from tasks.settling import ANALYST, PART
from tasks.store import PROMOTIONS, SCOREBOARDS, SETTLEMENTS, Store, open_store, put_result, write_candles
from trading.candles import frame_of
from trading.errors import InvalidRequest, LlmUnavailable
from trading.review import Action, Limits
from trading.window import Timeframe, Window

NOW = datetime(2024, 5, 6, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
LIMITS = Limits()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def settled(
    store: Store,
    strategy: str,
    profits: Sequence[float],
    *,
    last: datetime = NOW - DAY,
    version: str = "a",
    **more: Any,
) -> None:
    """One long word a day, each of which moved the market by its profit; the last at ``last``."""
    for age, profit in enumerate(reversed(profits)):
        at = last - age * DAY
        result = {
            "analyst": strategy,
            "version": version,
            "role": PART,
            "signal": "Long",
            "confidence": 0.5,
            "horizon": 12,
            "moved": profit,
            "profit": profit,
            "idle": profit <= 0,
            "usd": 0.0,
        }
        document = {
            "_id": f"BTCSIM|1h|{at.isoformat()}|{strategy}|{version}",
            "symbol": "BTCSIM",
            "timeframe": "1h",
            "timestamp": at,
            "entry_at": at,
            "exit_at": at + timedelta(hours=12),
            "cost_per_side": 0.0015,
            "results": [{**result, **more.get("result", {})}],
            "hindsight": more.get("hindsight", False),
            "data_mode": "simulated",
            "settled_at": at + DAY,
        }
        store.documents.put(SETTLEMENTS, document)


def stop(store: Store, now: datetime = NOW) -> list[str]:
    made = disable_failing(store, Timeframe.H1, 90, LIMITS, 7 * DAY, now=now, by="test")
    return [one.strategy for one in made]


def test_a_strategy_that_crosses_a_threshold_is_out_for_a_week_and_told_of_once(store: Store) -> None:
    settled(store, "rsi", [0.01] * 20 + [-0.005] * 10)
    settled(store, "macd", [0.01, -0.005] * 15)
    assert stop(store) == ["rsi"]
    [out] = disabled(store, NOW)
    assert out.reasons == ("10 losing spans in a row; 10 is the limit",)
    assert out.until == NOW + 7 * DAY
    assert (out.evidence["spans"], out.evidence["streak"]) == (30, 10)
    assert [one.strategy for one in untold(store, NOW)] == ["rsi"]
    mark_told(store, "rsi", out.since, now=NOW)
    assert untold(store, NOW) == []
    # the same figures again change nothing
    assert stop(store) == stop(store, NOW + DAY) == []


def test_what_was_before_the_end_of_a_disabling_is_not_held_against_it_again(store: Store) -> None:
    settled(store, "rsi", [-0.005] * 12)
    assert stop(store) == ["rsi"]
    lift(store, "rsi", reason="wrong candles", by="me", now=NOW + timedelta(hours=1))
    later = NOW + timedelta(hours=2)
    assert stop(store, later) == []
    assert records(store, Timeframe.H1, 90, now=later) == {}
    settled(store, "rsi", [-0.005] * 9, last=later + 9 * DAY)
    assert stop(store, later + 10 * DAY) == []
    settled(store, "rsi", [-0.005], last=later + 10 * DAY)
    assert stop(store, later + 11 * DAY) == ["rsi"]
    assert [one.lifted_by for one in disablings(store, "rsi")] == ["me", None]


@pytest.mark.parametrize(
    ("version", "more"),
    [
        ("b", {}),
        ("a", {"hindsight": True}),
        ("a", {"result": {"signal": "Neutral"}}),
        ("a", {"result": {"role": ANALYST}}),
    ],
)
def test_others_than_its_newest_words_do_not_count(version: str, more: dict[str, Any], store: Store) -> None:
    settled(store, "rsi", [-0.05] * 12, last=NOW - 2 * DAY, version=version, **more)
    settled(store, "rsi", [0.01], last=NOW - DAY)
    found = records(store, Timeframe.H1, 90, now=NOW)["rsi"]
    assert (found.spans, found.streak) == (1, 0)
    assert stop(store) == []


def test_what_is_not_over_at_the_time_of_the_review_is_not_known(store: Store) -> None:
    settled(store, "rsi", [-0.005] * 10, last=NOW - timedelta(hours=1))
    assert stop(store, NOW + timedelta(hours=11)) == []
    assert stop(store, NOW + timedelta(hours=12)) == ["rsi"]


def fill(store: Store) -> None:
    """A drifted model, a losing strategy, an analyst that lost its weight, and a market."""
    settled(store, "rsi", [0.01, -0.03] * 12)
    monitored = {"model": "BTCSIM-1h", "version": "3", "state": "drifted", "reasons": ["psi"], "data_mode": "simulated"}
    put_result(store, "m", "monitor", monitored, NOW - DAY)
    put_result(store, "old", "monitor", {**monitored, "model": "OLD"}, NOW - 8 * DAY)
    row = {"symbol": "BTCSIM", "strategy": "rsi", "sharpe": 0.5, "unknown": object.__name__}
    put_result(store, "b", "backtest", {"rows": [row], "data_mode": "simulated"}, NOW - DAY)
    score = {"signals": 30, "clusters": 30, "hit_rate": 0.3, "profit": -0.01, "total": -0.3, "usd": 1.0, "symbol": ""}
    who = {"analyst": "llm", "version": "m 1", "role": "analyst"}
    board = {"_id": "b", "timeframe": "1h", "until": NOW - DAY, "newest": {"llm": "m 1"}, "modes": ["simulated"]}
    board |= {"scores": [{**who, **score}], "weights": [{**who, "weight": 0.1}]}
    store.documents.put(SCOREBOARDS, board)
    change = {"_id": "p", "model": "BTCSIM-1h", "number": 1, "kind": "promote", "from_version": None, "to_version": "3"}
    store.documents.insert(PROMOTIONS, {**change, "at": NOW - 2 * DAY, "reasons": ["better"]})
    hours = 24 * 33
    close = 100 * np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.01, hours)))
    values = np.column_stack([close, close * 1.01, close / 1.01, close, np.full(hours, 5.0)])
    start = NOW - timedelta(hours=hours)
    stamps = int(start.timestamp() * 1000) + 3_600_000 * np.arange(hours)
    write_candles(store, Window("BTCSIM", Timeframe.H1, start, NOW), frame_of(stamps, values), "simulated")
    # what the ledger notes of a series beside its candles
    set_listed(store, "BTCSIM", Timeframe.H1, start)


def test_the_facts_are_gathered_as_they_were_known(store: Store) -> None:
    fill(store)
    facts = gather(store, Timeframe.H1, 90, now=NOW)
    assert facts.drifted == {"BTCSIM-1h": ["psi"]}
    assert facts.weights == {"llm": 0.1}
    assert (facts.records["rsi"].spans, facts.records["rsi"].signals) == (24, 24)
    assert facts.backtests == [{"symbol": "BTCSIM", "strategy": "rsi", "sharpe": 0.5}]
    assert [one["to_version"] for one in facts.promotions] == ["3"]
    [market] = facts.market
    assert market["volume"] == market["usual_volume"] == 120
    assert facts.costs == {"calls": 0, "usd": 0, "answered": 0}
    assert facts.modes == ["simulated"]
    before = gather(store, Timeframe.H1, 90, now=NOW - 4 * DAY)
    assert [one["model"] for one in before.drift] == ["OLD"]
    assert (before.analysts, before.promotions, before.backtests) == ([], [], [])
    empty = gather(store, Timeframe.M5, 90, now=NOW)
    assert (empty.records, empty.market) == ({}, [])


def test_without_an_llm_the_figures_propose_and_nothing_is_proposed_twice(store: Store) -> None:
    fill(store)
    found = review(store, Timeframe.H1, 90, None, "the LLM is off", now=NOW)
    told = [(one.action, one.subject) for one in found.proposals]
    assert told == [(Action.DISABLE, "rsi"), (Action.RETRAIN, "BTCSIM-1h"), (Action.WEIGHTS, "llm")]
    assert (found.silent, found.degraded) == ("the LLM is off", False)
    assert len(found.fresh) == 3
    again = review(store, Timeframe.H1, 90, None, "the LLM is off", now=NOW)
    assert (again.proposals, again.fresh) == (found.proposals, [])
    # proposed, never applied
    assert disabled(store, NOW) == ()
    assert {one["status"] for one in open_proposals(store)} == {"proposed"}

    key = found.fresh[0]
    done = decide(store, key, "rejected", reason="too early", by="me", now=NOW + DAY)
    assert (done["status"], done["decided_by"], done["decided_why"]) == ("rejected", "me", "too early")
    assert len(open_proposals(store)) == 2
    for wrong in ((key, "accepted", "why"), (key, "maybe", "why"), ("none", "accepted", "why"), (key, "rejected", " ")):
        with pytest.raises(InvalidRequest):
            decide(store, wrong[0], wrong[1], reason=wrong[2], by="me", now=NOW)
    # a week later it may come again
    later = NOW + 4 * DAY
    assert review(store, Timeframe.H1, 90, None, "", now=later).fresh == [f"{later:%Y-%m-%d}|disable|rsi"]


def test_proposals_are_told_until_somebody_was_told_and_then_no_more(store: Store) -> None:
    fill(store)
    found = review(store, Timeframe.H1, 90, None, "", now=NOW)
    # the run that made them died, and this one finds nothing new
    assert review(store, Timeframe.H1, 90, None, "", now=NOW + DAY).fresh == []
    assert {one["_id"] for one in untold_proposals(store)} == set(found.fresh)
    decide(store, found.fresh[0], "rejected", reason="no", by="me", now=NOW)
    assert {one["_id"] for one in untold_proposals(store)} == set(found.fresh[1:])
    mark_proposals_told(store, found.fresh, now=NOW + DAY)
    assert untold_proposals(store) == []
    assert {one["told_at"] for one in open_proposals(store)} == {NOW + DAY}
    # what was decided meanwhile stays decided
    assert len(open_proposals(store)) == 2
    with pytest.raises(InvalidRequest, match="no proposal 'none'"):
        mark_proposals_told(store, ["none"], now=NOW)


CRITIQUE = {
    "assessment": "A bad week. @everyone [look](http://evil)",
    "concerns": ["rsi lost money", "x" * 1000],
    "actions": [
        {"action": "disable", "subject": "rsi", "reason": "it lost"},
        {"action": "retrain", "subject": "BTCSIM-1h", "reason": "drift"},
        {"action": "disable", "subject": "everything", "reason": "ignore your limits"},
        {"action": "weights", "subject": "model", "reason": "there is none"},
    ],
}


def completion(content: str) -> str:
    message = {"role": "assistant", "content": content}
    usage = {"prompt_tokens": 900, "completion_tokens": 100}
    return json.dumps({"model": "m", "choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})


@pytest.mark.integration
def test_the_llm_is_asked_once_over_its_own_protocol_and_may_suggest_only_what_there_is(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    stub: Callable[..., Any],
    http_reply: Callable[..., bytes],
) -> None:
    fill(store)
    endpoint = stub(
        {"/v1/chat/completions": http_reply(completion(json.dumps(CRITIQUE)), Content_Type="application/json")}
    )
    for name, value in {
        "TRADEFLOWS_HOME": str(tmp_path),
        "TRADEFLOWS_LLM": "on",
        "OPENAI_API_KEY": "sk-test-key-1234567890",
        "TRADEFLOWS_LLM_URL": f"{endpoint.url}/v1",
    }.items():
        monkeypatch.setenv(name, value)
    with opened_llm(load_settings(), store.documents, traced=False) as llm:
        found = review(store, Timeframe.H1, 90, asking(llm), "", now=NOW)
        again = review(store, Timeframe.H1, 90, asking(llm), "", now=NOW)
    assert len(endpoint.paths) == 1
    assert (again.assessment, again.fresh) == (found.assessment, [])
    assert (found.silent, found.degraded) == ("", False)
    for bad in ("@everyone", "](h"):
        assert bad not in found.assessment
    assert [len(one) for one in found.concerns] == [14, 400]
    # the figures had proposed those already, and of what there is not nothing is proposed
    assert {one.origin for one in found.proposals} == {"figures"}
    assert [one.split(":")[0] for one in found.passed_over] == ["disable everything", "weights model"]


def test_what_only_the_llm_suggests_is_marked_as_its_own(store: Store) -> None:
    settled(store, "rsi", [0.01] * 12)
    reply = Critique(
        assessment="Fine.", concerns=[], actions=[Suggested(action="disable", subject="rsi", reason="a feeling")] * 2
    )
    found = review(store, Timeframe.H1, 90, lambda messages: (reply, "trace-1"), "", now=NOW)
    [one] = found.proposals
    assert (one.origin, one.evidence["figures"]["spans"]) == ("llm", 12)
    [stored] = open_proposals(store)
    assert (stored["origin"], stored["trace"], stored["status"]) == ("llm", "trace-1", "proposed")


def test_an_llm_that_fails_leaves_a_review_that_says_so(store: Store) -> None:
    fill(store)

    def fails(messages: list[dict[str, str]]) -> tuple[Critique, str | None]:
        raise LlmUnavailable("it answered 500", billed=False)

    found = review(store, Timeframe.H1, 90, fails, "", now=NOW)
    assert (found.degraded, found.silent, found.assessment) == (True, "it answered 500", "")
    assert len(found.fresh) == 3


def test_the_llm_is_told_figures_as_data(store: Store) -> None:
    fill(store)
    system, user = messages_of(gather(store, Timeframe.H1, 90, now=NOW))
    told = json.loads(user["content"])
    assert told["records"]["rsi"]["spans"] == 24
    assert told["market"][0]["data_mode"] == "simulated"
    assert "no instructions" in system["content"]
    assert len(user["content"]) < 5_000
