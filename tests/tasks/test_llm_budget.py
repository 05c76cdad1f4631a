"""What calls may cost: never more than the budgets, whoever calls and whoever dies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import ceil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.llm_budget import ANSWERED, LOST, NANO, Budget, Price, Reservation, calls_of, price_of, prompt_bound
from tasks.settings import load_settings
from tasks.store import LLM_BUDGETS, LLM_CALLS, Store, open_store
from trading.errors import BudgetExhausted, ConfigurationError

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = "2026-11-21"
ABOUT = {"model": "m", "purpose": "opinion", "symbol": "BTCUSDT", "data_mode": "live", "flow_run_id": None}


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


def budget_of(store: Store, clock: Clock, daily: float = 1.0, monthly: float = 10.0) -> Budget:
    return Budget(store.documents, daily, monthly, clock=clock)


def settled(budget: Budget, reservation: Reservation, nano: int) -> None:
    budget.settle(reservation, ANSWERED, nano=nano, latency=0.5, tokens=(100, 10))


@given(st.integers(0, 10**7), st.integers(0, 10**5), st.integers(0, 10**5), st.integers(0, 10**5))
def test_a_price_is_rounded_up_to_whole_nano_dollars(prompt: int, completion: int, cheap: int, dear: int) -> None:
    price = Price(cheap / 1000, dear / 1000)
    exact = Fraction(cheap, 1000) * prompt * 1000 + Fraction(dear, 1000) * completion * 1000
    assert price.nano(prompt, completion) == ceil(exact)


def test_the_default_price_is_that_of_the_model() -> None:
    assert price_of(load_settings()) == Price(0.150, 0.600)
    assert price_of(load_settings()).nano(1_000_000, 1_000_000) == 0.75 * NANO


def test_a_model_of_unknown_price_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADEFLOWS_LLM_MODEL", "gpt-99")
    with pytest.raises(ConfigurationError, match=r"price of the LLM 'gpt-99' is not known.*TRADEFLOWS_LLM_PRICES"):
        price_of(load_settings())
    monkeypatch.setenv("TRADEFLOWS_LLM_PRICES", '{"gpt-99": [2, 8]}')
    assert price_of(load_settings()) == Price(2, 8)


@given(st.text(max_size=200))
def test_no_prompt_has_more_tokens_than_bytes(text: str) -> None:
    assert prompt_bound([{"role": "user", "content": text}], {}) >= len(text.encode()) + 32


def test_a_call_is_reserved_and_then_costs_what_it_cost(store: Store, clock: Clock) -> None:
    budget = budget_of(store, clock)
    reservation = budget.reserve(400_000_000, ABOUT)
    spent = budget.spent()
    assert (spent.day, spent.under_way, spent.day_left, spent.month_left) == (0.0, 0.4, 0.6, 9.6)
    settled(budget, reservation, 100_000_000)
    settled(budget, reservation, 100_000_000)  # told twice
    spent = budget.spent()
    assert (spent.day, spent.month, spent.under_way, spent.day_left) == (0.1, 0.1, 0.0, 0.9)
    [call] = calls_of(store.documents, DAY)
    assert call | ABOUT == call
    wanted = {
        "day": DAY,
        "month": "2026-11",
        "at": NOW,
        "outcome": ANSWERED,
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "usd": 0.1,
        "reserved_usd": 0.4,
        "latency": 0.5,
    }
    assert call | wanted == call


def test_a_call_that_was_not_made_costs_nothing_and_leaves_no_document(store: Store, clock: Clock) -> None:
    budget = budget_of(store, clock)
    budget.release(budget.reserve(NANO, ABOUT))
    assert budget.spent().day_left == 1.0
    assert store.documents.find(LLM_CALLS) == []


@pytest.mark.parametrize(
    ("daily", "monthly", "name", "until"),
    [
        (0.5, 10.0, "day", datetime(2026, 11, 22, tzinfo=UTC)),
        (10.0, 0.5, "month", datetime(2026, 12, 1, tzinfo=UTC)),
        (0.0, 10.0, "day", datetime(2026, 11, 22, tzinfo=UTC)),
    ],
)
def test_a_call_that_could_cross_a_budget_is_refused(
    store: Store, clock: Clock, daily: float, monthly: float, name: str, until: datetime
) -> None:
    budget = budget_of(store, clock, daily, monthly)
    if daily:
        budget.reserve(200_000_000, ABOUT)
        budget.require(300_000_000)
    for refuse in (budget.require, lambda nano: budget.reserve(nano, ABOUT)):
        with pytest.raises(BudgetExhausted, match=f"budget of this UTC {name} is .*it is renewed at") as caught:
            refuse(300_000_001)
        assert caught.value.until == until


def test_a_new_day_has_its_own_budget_and_a_month_adds_up(store: Store, clock: Clock) -> None:
    budget = budget_of(store, clock, 1.0, 2.5)
    for day in range(2):
        clock.now = NOW + timedelta(days=day)
        settled(budget, budget.reserve(NANO, ABOUT), NANO)
    clock.now = NOW + timedelta(days=2)
    with pytest.raises(BudgetExhausted, match=r"month is 2\.5 USD"):
        budget.reserve(NANO, ABOUT)
    budget.reserve(NANO // 2, ABOUT)
    clock.now = datetime(2026, 12, 1, tzinfo=UTC)
    budget.reserve(NANO, ABOUT)


def test_a_call_over_midnight_counts_where_it_began(store: Store, clock: Clock) -> None:
    budget = budget_of(store, clock)
    clock.now = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)
    reservation = budget.reserve(NANO, ABOUT)
    clock.now = datetime(2026, 12, 1, tzinfo=UTC)
    settled(budget, reservation, NANO)
    assert budget.spent("2026-11-30").day == 1.0
    assert budget.spent().day == 0.0


def test_a_dead_worker_s_call_stays_reserved_and_is_then_booked_as_lost(store: Store, clock: Clock) -> None:
    budget = budget_of(store, clock)
    reservation = budget.reserve(NANO, ABOUT)
    with pytest.raises(BudgetExhausted):
        budget.reserve(1, ABOUT)
    clock.now += timedelta(minutes=59)
    assert budget.reconcile() == 0
    clock.now += timedelta(minutes=2)
    assert (budget.reconcile(), budget.reconcile()) == (1, 0)
    spent = budget.spent()
    assert (spent.day, spent.under_way) == (1.0, 0.0)
    [call] = calls_of(store.documents, DAY)
    assert (call["_id"], call["outcome"], call["usd"], call["symbol"]) == (reservation.id, LOST, 1.0, "BTCUSDT")
    # were it alive after all, nothing would be added
    settled(budget, reservation, NANO // 2)
    assert budget.spent().day == 1.0


def test_a_worker_that_died_between_its_two_writes_is_booked_at_its_true_cost(store: Store, clock: Clock) -> None:
    budget = budget_of(store, clock)
    reservation = budget.reserve(NANO, ABOUT)
    before = store.documents.get(LLM_BUDGETS, "2026-11")
    settled(budget, reservation, 1000)
    assert before is not None
    store.documents.put(LLM_BUDGETS, before)  # as if the second write had not come about
    clock.now += timedelta(hours=2)
    assert budget.reconcile() == 0
    assert budget.spent().day == 1000 / NANO


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, NANO), st.floats(0, 1)), min_size=1, max_size=8))
def test_whatever_is_called_the_budget_is_not_crossed(store: Store, wanted: list[tuple[int, float]]) -> None:
    clock = Clock()
    for document in store.documents.find(LLM_BUDGETS):
        store.documents.delete(LLM_BUDGETS, document["_id"])
    budget = budget_of(store, clock, 1.0, 1.5)
    for worst, share in wanted:
        try:
            reservation = budget.reserve(worst, ABOUT)
        except BudgetExhausted:
            continue
        if share > 0.3:
            settled(budget, reservation, int(worst * share))
        spent = budget.spent()
        assert spent.day + spent.under_way <= 1.0 + 1e-12


def test_many_workers_at_once_do_not_cross_it(store: Store, clock: Clock) -> None:
    budgets = [budget_of(store, clock) for _ in range(3)]
    let_through: list[Reservation] = []

    def call(budget: Budget) -> None:
        for _ in range(3):
            try:
                let_through.append(budget.reserve(150_000_000, ABOUT))
            except BudgetExhausted:
                return

    threads = [threading.Thread(target=call, args=(budget,)) for budget in budgets * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(let_through) == 6
    assert budgets[0].spent().under_way == 0.9


def test_a_call_dearer_than_its_worst_case_is_counted_as_it_is_and_told(
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    budget = budget_of(store, clock)
    settled(budget, budget.reserve(NANO // 2, ABOUT), 2 * NANO)
    assert budget.spent().day == 2.0
    assert "more than its worst case" in caplog.text
