"""The day's sums: what was spent, on what, and what is left."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tasks.llm_budget import NANO, Budget
from tasks.llm_costs import Row, default_day, report, roll_up
from tasks.llm_keys import KeyPool, KeyRule
from tasks.settings import Settings, load_settings
from tasks.store import LLM_BUDGETS, Store, get_result, open_store
from trading.errors import BadWindow, LlmKeyRefused

NOW = datetime(2026, 11, 22, 1, 7, tzinfo=UTC)
DAY = "2026-11-21"
KEY = "sk-costs-0123456789"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return load_settings()


def spend(store: Store, at: datetime, outcome: str, usd: float, **about: Any) -> None:
    budget = Budget(store.documents, 1.0, 10.0, clock=lambda: at)
    told = {"model": "gpt-4o-mini", "purpose": "opinion", "symbol": "BTCUSDT", "data_mode": "live", **about}
    reservation = budget.reserve(round(0.01 * NANO), told)
    tokens = (600, 30) if usd else None
    budget.settle(reservation, outcome, nano=round(usd * NANO), latency=0.5, tokens=tokens)


def test_a_day_without_a_call_says_so(store: Store, settings: Settings) -> None:
    found = roll_up(store, settings, DAY, NOW)
    assert (found.state, found.calls, found.usd, found.day_left, found.month_left) == ("nothing", 0, 0.0, 1.0, 10.0)
    text = report(found)
    assert "No call was made on this day." in text
    assert "|" not in text


def test_a_day_is_added_up_by_model_outcome_and_symbol(store: Store, settings: Settings) -> None:
    noon = datetime(2026, 11, 21, 12, tzinfo=UTC)
    spend(store, noon, "answered", 0.002)
    spend(store, noon, "answered", 0.003, symbol="ETHUSDT")
    spend(store, noon, "rate limited", 0.0)
    spend(store, noon, "rejected", 0.001, model="other", data_mode="simulated")
    spend(store, noon, "answered", 0.004, purpose="review", symbol=None, data_mode=None)
    spend(store, noon - timedelta(days=1), "answered", 0.005)  # another day of the month
    found = roll_up(store, settings, DAY, NOW)
    assert (found.state, found.calls, found.useful, found.lost) == ("spent", 5, 3, 0)
    assert (found.usd, found.month_usd) == (0.01, 0.015)
    assert (found.day_left, found.month_left) == (0.99, 9.985)
    assert (found.prompt_tokens, found.completion_tokens) == (2400, 120)
    assert found.by_model == [Row("gpt-4o-mini", 4, 1800, 90, 0.009, 0.5), Row("other", 1, 600, 30, 0.001, 0.5)]
    assert [(row.name, row.calls) for row in found.by_outcome] == [
        ("answered", 3),
        ("rejected", 1),
        ("rate limited", 1),
    ]
    assert [(row.name, row.usd) for row in found.by_symbol] == [
        ("review", 0.004),
        ("BTCUSDT", 0.003),
        ("ETHUSDT", 0.003),
    ]
    assert found.data_modes == ["live", "simulated"]
    assert found.differs == 0.0
    stored = get_result(store, f"costs|{DAY}")
    assert stored is not None
    assert stored["usd"] == 0.01
    text = report(found)
    assert "# LLM costs of 2026-11-21 (UTC): 0.0100 USD" in text
    assert "| review | 1 | 600 | 30 | 0.004000 | 0.50 |" in text
    assert "5 calls, 60% of them answered" in text
    assert roll_up(store, settings, DAY, NOW) == found


def test_calls_that_nobody_settled_are_booked_first_and_told(store: Store, settings: Settings) -> None:
    budget = Budget(store.documents, 1.0, 10.0, clock=lambda: NOW - timedelta(hours=2))
    budget.reserve(2_000_000, {"model": "m", "purpose": "opinion", "symbol": "X", "data_mode": "live"})
    found = roll_up(store, settings, DAY, NOW)
    assert (found.lost, found.usd, found.by_outcome[0].latency) == (1, 0.002, None)
    assert "**1 calls were lost**" in report(found)


def test_a_budget_that_does_not_add_up_is_told(store: Store, settings: Settings) -> None:
    spend(store, datetime(2026, 11, 21, 12, tzinfo=UTC), "answered", 0.002)
    month = store.documents.get(LLM_BUDGETS, "2026-11")
    assert month is not None
    store.documents.put(LLM_BUDGETS, {**month, "spent": {DAY: 3_000_000}})
    found = roll_up(store, settings, DAY, NOW)
    assert found.differs == 0.001
    assert "differs from that of the calls by 0.001000000 USD" in report(found)


def test_keys_stand_there_by_number_and_state_only(store: Store, settings: Settings) -> None:
    pool = KeyPool(store.documents, [SecretStr(KEY)], KeyRule(), clock=lambda: NOW)
    assert roll_up(store, settings, DAY, NOW).keys == ["key 1: in order"]
    pool.heard(pool.take(NOW), LlmKeyRefused("401"))
    found = roll_up(store, settings, DAY, NOW)
    assert found.keys == ["key 1: refused until 2026-11-23T00:00Z"]
    assert KEY[3:11] not in report(found)


def test_a_day_that_has_not_begun_is_refused(store: Store, settings: Settings) -> None:
    with pytest.raises(BadWindow, match="2026-11-23 has not begun"):
        roll_up(store, settings, "2026-11-23", NOW)
    assert roll_up(store, settings, "2026-11-22", NOW).state == "nothing"


def test_by_default_it_is_the_day_before_in_utc() -> None:
    assert default_day(NOW) == DAY
    assert default_day(datetime(2026, 3, 1, 0, 0, tzinfo=UTC)) == "2026-02-28"
