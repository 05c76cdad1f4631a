"""Which key may be used when, that no limit is exceeded, and that nothing of a key is stored."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tasks.llm_keys import (
    FIRST_COOLING,
    GRACE,
    LONGEST_COOLING,
    LONGEST_TOLD,
    QUOTA,
    REFUSED,
    KeyPool,
    KeyRule,
    KeyState,
    after,
    fingerprint,
    free_at,
    key_states,
    promised,
    tomorrow,
)
from tasks.store import LLM_KEYS, Store, open_store
from trading.errors import LlmError, LlmKeyRefused, LlmRateLimited, LlmUnavailable, NoLlmKey

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
KEYS = [SecretStr(f"sk-{name}-{name * 6}") for name in ("first", "second", "third")]
STATE = KeyState(1, "print")
PLAIN = KeyRule(requests=60, pause=timedelta(0))


@dataclass
class Clock:
    """Time that passes when somebody sleeps, ``begun`` sleeps long."""

    now: datetime = NOW
    slept: float = 0.0

    def __call__(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.slept += seconds


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pool_of(store: Store, clock: Clock, keys: int = 3, rule: KeyRule = PLAIN) -> KeyPool:
    return KeyPool(store.documents, KEYS[:keys], rule, clock=clock, sleep=clock.sleep)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


# --- the rule ------------------------------------------------------------------------------------


@given(
    requests=st.integers(1, 6),
    pause=st.integers(0, 20),
    asked=st.lists(st.floats(0, 40), min_size=1, max_size=60),
    delays=st.lists(st.floats(0, GRACE.total_seconds()), min_size=60, max_size=60),
)
def test_no_window_of_the_endpoint_holds_more_than_the_limit(
    requests: int, pause: int, asked: list[float], delays: list[float]
) -> None:
    """Requests arrive up to the grace after their promise; every window that ends with an arrival is counted."""
    rule = KeyRule(requests, seconds(pause), seconds(60))
    state, now, starts = STATE, NOW, []
    for number, wait in enumerate(asked):
        now += seconds(wait)
        moment = free_at(state, rule, now)
        assert moment >= now
        now = moment
        state = promised(state, rule, now, str(number))
        starts.append(now)
    arrivals = sorted(start + seconds(delay) for start, delay in zip(starts, delays, strict=False))
    for at, last in enumerate(arrivals):
        assert sum(last - seconds(60) < arrival for arrival in arrivals[: at + 1]) <= requests
    assert all(later - earlier >= seconds(pause) for earlier, later in pairwise(starts))


def test_who_never_stops_asking_gets_all_that_the_limit_allows() -> None:
    rule = KeyRule(60, timedelta(0))
    state, now, starts = STATE, NOW, []
    for number in range(60 * 5):
        now = free_at(state, rule, now)
        state = promised(state, rule, now, str(number))
        starts.append(now - NOW)
    # five windows full take four windows and graces: 3.3 % over the least possible
    assert starts[-1] == 4 * (rule.window + rule.grace)
    assert len(state.busy) == 60


@given(st.integers(0, 40))
def test_rate_limits_in_a_row_without_a_time_cool_longer_and_longer(strikes: int) -> None:
    state = after(replace(STATE, strikes=strikes), LlmRateLimited("429"), NOW)
    assert state.until is not None
    assert state.until - NOW == min(FIRST_COOLING * 2 ** min(strikes, 10), LONGEST_COOLING)
    assert after(state, None, NOW).strikes == 0


@pytest.mark.parametrize(
    ("told", "cools"), [(7.0, seconds(7)), (0.0, seconds(1)), (1e12, LONGEST_TOLD), (float("inf"), LONGEST_TOLD)]
)
def test_retry_after_is_kept_to_within_reason(told: float, cools: timedelta) -> None:
    assert after(STATE, LlmRateLimited("429", told), NOW).until == NOW + cools


def test_many_requests_that_meet_one_rate_limit_are_one_strike() -> None:
    state = STATE
    for _ in range(10):
        state = after(state, LlmRateLimited("429"), NOW)
    assert (state.strikes, state.until) == (1, NOW + FIRST_COOLING)
    assert after(state, LlmRateLimited("429", 90.0), NOW).until == NOW + seconds(90)
    assert after(state, LlmRateLimited("429", 3.0), NOW).until == NOW + FIRST_COOLING


@pytest.mark.parametrize(
    ("error", "why"), [(LlmKeyRefused("401"), REFUSED), (LlmRateLimited("429", quota=True), QUOTA)]
)
def test_a_key_that_is_refused_or_used_up_is_left_alone_until_the_next_day(error: LlmError, why: str) -> None:
    late = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)
    state = after(STATE, error, late)
    assert (state.until, state.why) == (datetime(2027, 1, 1, tzinfo=UTC), why)


def test_what_is_not_the_key_s_fault_changes_nothing() -> None:
    assert after(STATE, LlmUnavailable("500", billed=False), NOW) == STATE


# --- the pool ------------------------------------------------------------------------------------


def test_keys_are_used_in_their_order_with_the_pause_between(store: Store, clock: Clock) -> None:
    pool = pool_of(store, clock, rule=KeyRule())
    taken = [pool.take(NOW + seconds(60)) for _ in range(5)]
    assert [lease.number for lease in taken] == [1, 2, 3, 1, 2]
    assert [lease.key for lease in taken[:3]] == KEYS
    assert 20 <= clock.slept < 20.1


def test_a_rate_limit_on_each_key_is_known_to_all_workers(store: Store, clock: Clock) -> None:
    one, other = pool_of(store, clock), pool_of(store, clock)
    for cooling in (30.0, 10.0, None):
        one.heard(one.take(NOW), LlmRateLimited("429", cooling))
    with pytest.raises(NoLlmKey, match="key 1 is rate limited until 2026-11-21T12:00:30Z") as caught:
        other.take(NOW + seconds(9))
    assert caught.value.until == NOW + seconds(10)
    lease = other.take(NOW + seconds(10))
    assert (lease.number, clock.now >= NOW + seconds(10)) == (2, True)


def test_refused_keys_are_told_of_once_a_day(store: Store, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    one, other = pool_of(store, clock, 1), pool_of(store, clock, 1)
    leases = [one.take(NOW), one.take(NOW), other.take(NOW)]
    for pool, lease in zip((one, one, other), leases, strict=True):
        pool.heard(lease, LlmKeyRefused("api.test answered 401"))
    assert [record.message.count("LLM key cannot be used") for record in caplog.records] == [1]
    with pytest.raises(NoLlmKey) as caught:
        other.take(NOW + seconds(3600))
    assert caught.value.until == tomorrow(NOW)
    assert clock.slept == 0
    clock.now = tomorrow(NOW)
    one.heard(other.take(clock.now), LlmKeyRefused("api.test answered 401"))
    assert len(caplog.records) == 2


def test_a_promise_given_back_counts_no_more(store: Store, clock: Clock) -> None:
    pool = pool_of(store, clock, 1, KeyRule(1, seconds(20)))
    lease = pool.take(NOW)
    with pytest.raises(NoLlmKey, match="key 1 is in use until 2026-11-21T12:01:02Z"):
        pool.take(NOW)
    pool.give_back(lease)
    assert pool.take(NOW).number == 1


def test_without_keys_it_says_what_to_set(store: Store, clock: Clock) -> None:
    with pytest.raises(NoLlmKey, match="set OPENAI_API_KEY") as caught:
        pool_of(store, clock, 0).take(NOW + seconds(60))
    assert caught.value.until is None


def test_threads_and_workers_together_promise_no_more_than_the_limit(store: Store) -> None:
    clock = Clock()
    rule = KeyRule(4, timedelta(0))
    pools = [pool_of(store, clock, 3, rule) for _ in range(3)]
    taken: list[int] = []
    refused: list[NoLlmKey] = []

    def take(pool: KeyPool) -> None:
        for _ in range(3):
            try:
                taken.append(pool.take(NOW).number)
            except NoLlmKey as error:
                refused.append(error)

    threads = [threading.Thread(target=take, args=(pools[at % 3],)) for at in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(taken) == [1] * 4 + [2] * 4 + [3] * 4
    assert len(refused) == 6


def test_nothing_of_a_key_is_in_the_store(store: Store, clock: Clock, tmp_path: Path) -> None:
    pool = pool_of(store, clock)
    for error in (LlmRateLimited("429"), LlmKeyRefused("401"), None):
        pool.heard(pool.take(NOW), error)
    said = str(store.documents.find(LLM_KEYS)) + str(key_states(store.documents, KEYS))
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for key in KEYS:
        secret = key.get_secret_value()
        for at in range(len(secret) - 7):
            assert secret[at : at + 8] not in said
            assert secret[at : at + 8].encode() not in stored
    assert str(pool.take(NOW + seconds(3600))).count("sk-") == 0


def test_the_name_of_a_key_is_the_same_everywhere_and_another_in_another_store(store: Store, tmp_path: Path) -> None:
    assert fingerprint(store.documents, KEYS[0]) == fingerprint(store.documents, KEYS[0])
    assert fingerprint(store.documents, KEYS[0]) != fingerprint(store.documents, KEYS[1])
    with open_store(tmp_path / "other") as other:
        assert fingerprint(other.documents, KEYS[0]) != fingerprint(store.documents, KEYS[0])
