"""When a source is left alone, for how long, and that all workers know it at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import http
from tasks.circuit import LONGEST_BAN, LONGEST_OPEN, PROBE, Breaker, Circuit, Rule, State, after, every, find
from tasks.retry import LONGEST_WAIT, RetryPolicy, is_transient
from tasks.store import Store, open_store
from trading.errors import (
    CircuitOpen,
    MalformedResponse,
    RateLimited,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)

NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)
SOURCE = "exchange api.test"
RULE = Rule(failures=3, pause=timedelta(seconds=30))
DOWN = SourceUnavailable("api.test answered 503")
GARBLED = MalformedResponse("api.test did not answer with JSON")
ANSWERS: list[SourceError | None] = [
    None,
    SourceRefused("no", 403),
    RateLimited("slow down"),
    RateLimited("slow down", 0.0),
    RateLimited("slow down", LONGEST_WAIT),
]
FAILURES = [DOWN, GARBLED]
BANS = [RateLimited("banned", seconds) for seconds in (LONGEST_WAIT + 1, 7200.0, 1e12, float("inf"))]

rules = st.builds(Rule, st.integers(1, 8), st.timedeltas(timedelta(milliseconds=1), timedelta(days=2)))


def told(circuit: Circuit, *errors: SourceError | None, rule: Rule = RULE, now: datetime = NOW) -> Circuit:
    for error in errors:
        circuit = after(circuit, error, rule, now)
    return circuit


def tried(circuit: Circuit, now: datetime) -> Circuit:
    """The circuit while somebody tries it."""
    return replace(circuit, state=State.HALF_OPEN, until=now + PROBE, since=now)


# --- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: type(error).__name__)
def test_so_many_failures_in_a_row_open_it(failure: SourceError) -> None:
    closed = told(Circuit(SOURCE), failure, failure)
    assert closed == Circuit(SOURCE, failures=2, reason=str(failure))
    opened = told(closed, failure)
    assert opened == Circuit(SOURCE, State.OPEN, 3, 1, NOW + RULE.pause, str(failure), NOW)


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_an_answer_in_between_begins_the_count_anew(answer: SourceError | None) -> None:
    circuit = told(Circuit(SOURCE), DOWN, DOWN, answer, DOWN, DOWN)
    assert (circuit.state, circuit.failures) == (State.CLOSED, 2)
    assert told(circuit, DOWN).state is State.OPEN


def test_nothing_to_note_is_the_circuit_itself() -> None:
    closed = Circuit(SOURCE, since=NOW, rev=4)
    for answer in ANSWERS:
        assert after(closed, answer, RULE, NOW + PROBE) is closed


@given(st.lists(st.sampled_from([*ANSWERS, *FAILURES]), max_size=40), rules)
def test_it_is_open_from_the_rule_s_number_of_failures_in_a_row_until_an_answer(
    errors: list[SourceError | None], rule: Rule
) -> None:
    circuit, row, opened = Circuit(SOURCE), 0, None
    for seconds, error in enumerate(errors):
        now = NOW + timedelta(seconds=seconds)
        circuit = after(circuit, error, rule, now)
        row = 0 if error in ANSWERS else row + 1
        opened = (opened or now) if row >= rule.failures else None
        assert circuit.failures == row
        assert circuit.state is (State.OPEN if opened else State.CLOSED)
        # those who were on their way when it opened do not make it last longer
        assert circuit.until == (opened + min(rule.pause, LONGEST_OPEN) if opened else None)
        assert circuit.openings == (opened is not None)
        assert circuit.reason == (str(error) if row else "")


@given(
    st.sampled_from(State),
    st.integers(0, 50),
    st.integers(0, 50),
    st.none() | st.datetimes(timezones=st.just(UTC)),
    st.sampled_from(ANSWERS),
    rules,
)
def test_an_answer_always_closes_it(
    state: State, failures: int, openings: int, until: datetime | None, answer: SourceError | None, rule: Rule
) -> None:
    if state is State.CLOSED:  # which has neither, whatever came before
        openings, until = 0, None
    before = Circuit(SOURCE, state, failures, openings, until, "down" if failures else "", NOW - PROBE)
    then = after(before, answer, rule, NOW)
    assert then == Circuit(SOURCE, since=before.since if state is State.CLOSED else NOW)


@given(st.integers(1, 200), rules)
def test_each_opening_in_a_row_lasts_twice_as_long_up_to_the_longest(openings: int, rule: Rule) -> None:
    circuit, now = told(Circuit(SOURCE), *[DOWN] * rule.failures, rule=rule), NOW
    lasted = []
    for number in range(1, openings + 1):
        assert (circuit.state, circuit.openings) == (State.OPEN, number)
        assert circuit.until is not None
        lasted.append(circuit.until - now)
        now = circuit.until
        circuit = after(tried(circuit, now), DOWN, rule, now)
    assert lasted[0] == min(rule.pause, LONGEST_OPEN)
    for sooner, later in pairwise(lasted):
        assert abs(later - min(2 * sooner, LONGEST_OPEN)) <= timedelta(microseconds=2)
    # an answer makes it forget
    again = told(after(tried(circuit, now), None, rule, now), *[DOWN] * rule.failures, rule=rule, now=now)
    assert again.until == now + min(rule.pause, LONGEST_OPEN)


@pytest.mark.parametrize("ban", BANS, ids=lambda error: f"{error.retry_after:g}")
@pytest.mark.parametrize("state", State)
def test_a_long_rate_limit_opens_it_until_it_is_over(ban: RateLimited, state: State) -> None:
    """The first one, for exchanges ban those who ask again before; no longer than exchanges ban, though."""
    before = Circuit(SOURCE, state, until=None if state is State.CLOSED else NOW)
    then = after(before, ban, RULE, NOW)
    assert ban.retry_after is not None
    assert then.state is State.OPEN
    assert then.until == NOW + min(timedelta(seconds=min(ban.retry_after, 1e9)), LONGEST_BAN)
    assert then.reason == "banned"


def test_a_long_reason_is_shortened() -> None:
    assert len(told(Circuit(SOURCE), SourceUnavailable("x" * 5000)).reason) == 200


# --- the breaker ---------------------------------------------------------------------------------


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def worker(store: Store, clock: Clock) -> Callable[[], Breaker]:
    """Makes the breakers of several workers, which share the store."""
    return lambda: Breaker(store.documents, SOURCE, RULE, clock)


def fail(breaker: Breaker, times: int = 1, error: SourceError = DOWN) -> None:
    for _ in range(times):
        breaker.admit(1)
        breaker.heard(error)


def lets_pass(breaker: Breaker) -> bool:
    try:
        breaker.admit(1)
    except CircuitOpen as error:
        assert is_transient(error)
        return False
    return True


def test_an_unknown_source_is_closed_and_answers_leave_no_trace(store: Store, worker: Callable[[], Breaker]) -> None:
    breaker = worker()
    for _ in range(3):
        breaker.admit(20)
        breaker.heard(None)
    assert find(store.documents, SOURCE) == Circuit(SOURCE)
    assert every(store.documents) == []


def test_failures_are_written_down(store: Store, worker: Callable[[], Breaker]) -> None:
    fail(worker(), 2)
    found = find(store.documents, SOURCE)
    assert found == Circuit(SOURCE, failures=2, reason=str(DOWN), rev=2)
    fail(worker())
    assert find(store.documents, SOURCE) == Circuit(SOURCE, State.OPEN, 3, 1, NOW + RULE.pause, str(DOWN), NOW, rev=3)


def test_while_it_is_open_nobody_passes_and_all_are_told_why(worker: Callable[[], Breaker], clock: Clock) -> None:
    one, other = worker(), worker()
    assert lets_pass(other)
    fail(one, 3)
    clock.wait(29)
    for breaker in (one, other, worker()):
        with pytest.raises(CircuitOpen) as caught:
            breaker.admit(1)
        assert str(caught.value) == (
            f"{SOURCE} is left alone until 2024-06-01T12:00:30Z after 3 failures in a row, the last: {DOWN}"
        )
        assert caught.value.until == NOW + RULE.pause


def test_failures_of_several_workers_add_up(worker: Callable[[], Breaker]) -> None:
    workers = [worker() for _ in range(3)]
    for breaker in workers:
        fail(breaker)
    assert not lets_pass(workers[2])
    assert not lets_pass(worker())


def test_an_answer_to_one_worker_counts_for_all(store: Store, worker: Callable[[], Breaker], clock: Clock) -> None:
    one, other = worker(), worker()
    fail(one, 2)
    other.admit(1)
    other.heard(None)
    assert find(store.documents, SOURCE).failures == 0
    fail(one, 2)
    assert lets_pass(one)


def test_another_worker_s_opening_is_seen_within_a_second(worker: Callable[[], Breaker], clock: Clock) -> None:
    one, other = worker(), worker()
    assert lets_pass(other)
    fail(one, 3)
    clock.wait(1)
    assert not lets_pass(other)


def test_a_closed_circuit_is_not_looked_up_for_each_request(store: Store, clock: Clock) -> None:
    looked: list[str] = []

    class Counted:
        def get(self, collection: Any, key: str) -> Any:
            looked.append(key)
            return store.documents.get(collection, key)

    documents: Any = Counted()
    breaker = Breaker(documents, SOURCE, RULE, clock)
    for _ in range(50):
        breaker.admit(1)
        breaker.heard(None)
    assert looked == [SOURCE]
    clock.wait(1)
    breaker.admit(1)
    assert looked == [SOURCE, SOURCE]


def test_one_trial_after_the_pause_and_its_answer_closes_it(
    store: Store, worker: Callable[[], Breaker], clock: Clock
) -> None:
    one, other = worker(), worker()
    fail(one, 3)
    clock.wait(30)
    assert lets_pass(other)
    assert find(store.documents, SOURCE).state is State.HALF_OPEN
    with pytest.raises(CircuitOpen, match=f"{SOURCE} is being tried by another request until 2024-06-01T12:02:30Z"):
        one.admit(1)
    assert not lets_pass(other)  # its own second request is another one, too
    other.heard(None)
    found = find(store.documents, SOURCE)
    assert found == Circuit(SOURCE, since=clock.now, rev=found.rev)
    assert lets_pass(one)
    assert lets_pass(one)
    assert lets_pass(worker())


@pytest.mark.parametrize("answer", ANSWERS[1:], ids=repr)
def test_a_trial_that_is_refused_was_answered(
    store: Store, worker: Callable[[], Breaker], clock: Clock, answer: SourceError
) -> None:
    breaker = worker()
    fail(breaker, 3)
    clock.wait(30)
    breaker.admit(1)
    breaker.heard(answer)
    assert find(store.documents, SOURCE).state is State.CLOSED
    assert lets_pass(breaker)


def test_a_trial_that_fails_opens_it_for_twice_as_long(worker: Callable[[], Breaker], clock: Clock) -> None:
    one, other = worker(), worker()
    fail(one, 3)
    for number, pause in enumerate((30, 60, 120, 240, 480, 900, 900)):
        clock.wait(pause - 0.001)
        assert not lets_pass(one), number
        clock.wait(0.001)
        fail((one, other)[number % 2])
        assert not lets_pass(one), number


def test_a_trial_that_nobody_hears_of_is_given_up(worker: Callable[[], Breaker], clock: Clock) -> None:
    """Its worker may have died."""
    one, other = worker(), worker()
    fail(one, 3)
    clock.wait(30)
    assert lets_pass(one)
    clock.wait(PROBE.total_seconds() - 1)
    assert not lets_pass(other)
    clock.wait(1)
    assert lets_pass(other)
    assert not lets_pass(one)  # that one is given its time, too
    other.heard(None)
    assert lets_pass(one)


def test_a_ban_is_kept_by_all(worker: Callable[[], Breaker], clock: Clock) -> None:
    one, other = worker(), worker()
    assert lets_pass(other)
    fail(one, error=RateLimited("banned", 3600.0))
    clock.wait(3599)
    assert not lets_pass(other)
    assert not lets_pass(one)
    clock.wait(1)
    assert lets_pass(other)


def test_sources_have_circuits_of_their_own(store: Store, clock: Clock) -> None:
    one, other = (Breaker(store.documents, name, RULE, clock) for name in ("mirror b.test", "exchange a.test"))
    fail(one, 3)
    assert lets_pass(other)
    fail(other)
    assert [(circuit.source, circuit.state) for circuit in every(store.documents)] == [
        ("exchange a.test", State.CLOSED),
        ("mirror b.test", State.OPEN),
    ]


def test_a_restart_forgets_nothing(tmp_path: Path, clock: Clock) -> None:
    with open_store(tmp_path) as store:
        fail(Breaker(store.documents, SOURCE, RULE, clock), 3)
    with open_store(tmp_path) as store:
        assert not lets_pass(Breaker(store.documents, SOURCE, RULE, clock))


def test_by_default_five_failures_and_half_a_minute_of_our_clock(store: Store) -> None:
    breaker = Breaker(store.documents, SOURCE)
    fail(breaker, 4)
    assert lets_pass(breaker)
    breaker.heard(DOWN)
    assert not lets_pass(breaker)
    until = find(store.documents, SOURCE).until
    assert until is not None
    assert timedelta(seconds=20) < until - datetime.now(UTC) <= timedelta(seconds=30)


# --- many at once --------------------------------------------------------------------------------


def together(actions: list[Callable[[], Any]]) -> list[Any]:
    """What the actions return, each in a thread, begun at once."""
    barrier, results = threading.Barrier(len(actions)), [None] * len(actions)

    def run(at: int) -> None:
        barrier.wait(10)
        results[at] = actions[at]()

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


@pytest.mark.parametrize("shared", [True, False], ids=["threads of one worker", "workers"])
def test_only_one_of_many_gets_the_trial(worker: Callable[[], Breaker], clock: Clock, shared: bool) -> None:
    fail(worker(), 3)
    one = worker()
    breakers = [one if shared else worker() for _ in range(12)]
    for pause in (30, PROBE.total_seconds(), PROBE.total_seconds()):
        clock.wait(pause)
        passed = together([lambda breaker=breaker: lets_pass(breaker) for breaker in breakers])  # type: ignore[misc]
        assert passed.count(True) == 1
        assert passed.count(False) == 11


def test_no_failure_of_many_threads_is_lost(store: Store, clock: Clock) -> None:
    rule = replace(RULE, failures=1000)
    breakers = [Breaker(store.documents, SOURCE, rule, clock) for _ in range(6)]
    together([lambda breaker=breaker: fail(breaker, 5) for breaker in breakers])  # type: ignore[misc]
    assert find(store.documents, SOURCE).failures == 30


# --- before real requests ------------------------------------------------------------------------


def test_a_source_that_is_down_is_asked_no_more_than_the_rule_says(
    stub: Any, http_reply: Any, worker: Callable[[], Breaker], clock: Clock
) -> None:
    server = stub([*[http_reply("busy", 503)] * 3, http_reply("7")])
    waited: list[float] = []

    def ask(breaker: Breaker) -> Any:
        return http.get_json(connection, "/x", variable="X", guard=breaker, sleep=waited.append)

    with http.client(server.url, "X") as connection:
        with pytest.raises(CircuitOpen, match=r"after 3 failures in a row, the last: .*/x answered 503"):
            ask(worker())
        assert len(server.paths) == 3
        for _ in range(5):
            with pytest.raises(CircuitOpen):
                ask(worker())
        assert len(server.paths) == 3
        clock.wait(30)
        assert ask(worker()) == 7
        assert ask(worker()) == 7
    assert len(server.paths) == 5
    assert len(waited) == 3


def test_a_ban_reaches_every_worker_before_it_asks(
    stub: Any, http_reply: Any, worker: Callable[[], Breaker], clock: Clock
) -> None:
    server = stub([http_reply("banned", 418, Retry_After="1e400")])
    with http.client(server.url, "X") as connection:
        with pytest.raises(RateLimited):
            http.get_json(connection, "/x", variable="X", guard=worker())
        for _ in range(3):
            with pytest.raises(CircuitOpen) as caught:
                http.get_json(connection, "/x", variable="X", guard=worker(), policy=RetryPolicy(0, 1, 1))
            assert caught.value.until == NOW + LONGEST_BAN
    assert len(server.paths) == 1
