"""Which errors are tried again, how often, and that Prefect is told so."""

from __future__ import annotations

import inspect
import random
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import httpx
import pytest

from tasks.retry import (
    EXCHANGE,
    LLM,
    LONGEST_WAIT,
    NOTIFY,
    OUTAGE,
    REGISTRY,
    REQUEST,
    STORE,
    RetryPolicy,
    is_transient,
    prefect_options,
)
from trading import errors

TASKS = {"exchange": EXCHANGE, "store": STORE, "registry": REGISTRY, "llm": LLM, "notify": NOTIFY}
POLICIES = {"request": REQUEST, "outage": OUTAGE} | TASKS
ASKED = httpx.Request("GET", "http://exchange.test/")
AWAY = errors.StoreUnavailable("away", transient=True)
LEFT_ALONE = errors.CircuitOpen("left alone", datetime(2024, 1, 1, tzinfo=UTC))


def answered(status: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("no", request=ASKED, response=httpx.Response(status, request=ASKED))


TRANSIENT: list[BaseException] = [
    errors.SourceUnavailable("down"),
    LEFT_ALONE,
    errors.RateLimited("slow down"),
    errors.RateLimited("slow down", 3.0),
    errors.RevisionConflict("changed"),
    errors.StoreUnavailable("busy", transient=True),
    errors.LlmUnavailable("down", billed=False),
    errors.LlmRateLimited("slow down", 3.0),
    errors.NotificationFailed("not delivered", ("slack",)),
    httpx.ConnectError("refused"),
    httpx.ReadTimeout("late"),
    httpx.RemoteProtocolError("cut"),
    answered(429),
    answered(500),
    answered(503),
    ConnectionResetError(),
    TimeoutError(),
]
LASTING: list[BaseException] = [
    errors.TradeflowsError("any"),
    errors.RunFailed("it crashed", "CRASHED"),
    errors.RunUnfinished("still at work"),
    errors.ConfigurationError("wrong"),
    errors.BadTimeframe("7m"),
    errors.BadWindow("future"),
    errors.UnknownSymbol("typo"),
    errors.CandleContractError("broken"),
    errors.ExpectationFailed("impossible rows"),
    errors.DataModeConflict("mixed"),
    errors.InsufficientHistory("few"),
    errors.SourcesDisagree("other prices"),
    errors.DatasetLost("corrected since"),
    errors.CandleGap("three bars are missing"),
    errors.SourceRefused("no", 403),
    errors.MalformedResponse("not JSON"),
    errors.StoreUnavailable("unwritable"),
    errors.ModelNotFound("none"),
    errors.ModelRejected("changed"),
    errors.LookAhead("peeks"),
    errors.StrategyFailed("raised"),
    errors.LlmKeyRefused("401"),
    errors.LlmRefused("declined"),
    errors.LlmReplyRejected("not JSON"),
    errors.NoLlmKey("none", None),
    errors.BudgetExhausted("spent", datetime(2024, 1, 2, tzinfo=UTC)),
    errors.SettingsTooOld("a week"),
    answered(400),
    answered(404),
    answered(418),
    httpx.DecodingError("not gzip"),
    ValueError("bug"),
    KeyError("bug"),
    FileNotFoundError("gone"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_what_may_pass_is_tried_again(error: BaseException) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_would_fail_the_same_way_is_not(error: BaseException) -> None:
    assert not is_transient(error)


def test_every_error_of_the_tree_is_in_one_of_the_two_lists() -> None:
    def tree(kind: type[errors.TradeflowsError]) -> set[type]:
        here = [below for below in kind.__subclasses__() if below.__module__ == errors.__name__]
        return {kind}.union(*map(tree, here))

    every = tree(errors.TradeflowsError)
    leaves = {kind for kind in every if not any(other is not kind and issubclass(other, kind) for other in every)}
    assert len(leaves) > 15
    assert leaves - {type(error) for error in TRANSIENT + LASTING} == set()


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_delays_double_up_to_the_longest(policy: RetryPolicy) -> None:
    assert len(policy.delays) == policy.attempts > 0
    assert policy.delays[0] == policy.base
    assert all(later == min(2 * sooner, policy.longest) for sooner, later in pairwise(policy.delays))
    assert 0 < policy.jitter <= 1


def test_delays_by_hand() -> None:
    assert RetryPolicy(attempts=5, base=1.0, longest=6.0).delays == [1.0, 2.0, 4.0, 6.0, 6.0]
    assert RetryPolicy(attempts=0, base=1.0, longest=6.0).delays == []
    assert EXCHANGE.delays == [5.0]
    assert STORE.delays == [1.0, 2.0, 4.0]
    assert OUTAGE.delays == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        EXCHANGE.attempts = 9  # type: ignore[misc]


@pytest.fixture(scope="module")
def fetch() -> Any:
    """A Prefect task under the policy of exchanges."""
    from prefect import task

    @task(**prefect_options(EXCHANGE))
    def fetch() -> None: ...

    return fetch


def test_prefect_takes_the_policy_over(fetch: Any) -> None:
    from prefect.cache_policies import NO_CACHE

    # its own pauses first, and then what a store that is away is given besides
    assert fetch.retry_delay_seconds == [5.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert fetch.retries == OUTAGE.attempts
    assert fetch.retry_jitter_factor == OUTAGE.jitter
    assert fetch.cache_policy == NO_CACHE
    assert fetch.persist_result is False


def would_retry(task: Any, error: BaseException, tries: int = 1) -> bool:
    """What Prefect's task engine asks after so many tries: the condition, with a state as the engine makes it."""
    from prefect.client.schemas.objects import TaskRun
    from prefect.states import Failed

    # the engine takes anything but a plain function for a constant
    assert inspect.isfunction(task.retry_condition_fn)
    run = TaskRun(task_key=task.task_key, dynamic_key="0", run_count=tries)
    answer = task.retry_condition_fn(task, run, Failed(data=error, message="failed"))
    assert isinstance(answer, bool)
    return answer


def test_prefect_retries_transient_errors_and_no_others(fetch: Any) -> None:
    assert [error for error in TRANSIENT if not would_retry(fetch, error)] == [LEFT_ALONE]
    assert [error for error in LASTING if would_retry(fetch, error)] == []


def test_a_rate_limit_is_retried_unless_it_asks_for_longer_than_anybody_waits(fetch: Any) -> None:
    assert sum(EXCHANGE.delays) * (1 + EXCHANGE.jitter) < LONGEST_WAIT  # the delays cannot stand in for the wait
    for asked, worth in ((None, True), (0.0, True), (LONGEST_WAIT, True), (LONGEST_WAIT + 1, False), (1e9, False)):
        assert would_retry(fetch, errors.RateLimited("slow down", asked)) is worth, asked


def test_a_source_that_is_left_alone_is_no_task_s_to_try_again(fetch: Any) -> None:
    """It may be tried later, or elsewhere; under any policy a task would come back while it is left alone."""
    from prefect import task

    assert is_transient(LEFT_ALONE)
    for policy in TASKS.values():

        @task(**prefect_options(policy))
        def ask() -> None: ...

        assert not would_retry(ask, LEFT_ALONE)
        assert would_retry(ask, errors.SourceUnavailable("down"))


@pytest.mark.parametrize("policy", TASKS.values(), ids=TASKS)
def test_a_store_that_is_away_is_waited_for_a_minute_under_any_policy(policy: RetryPolicy) -> None:
    from prefect import task
    from prefect.utilities.math import clamped_poisson_interval, lower_clamp_multiple

    @task(**prefect_options(policy))
    def read() -> None: ...

    assert isinstance(read.retry_delay_seconds, list)
    pauses, jitter = read.retry_delay_seconds, read.retry_jitter_factor
    assert jitter is not None
    assert read.retries == len(pauses)
    assert pauses[: policy.attempts] == policy.delays
    # Prefect draws each pause from a range around it: shorter ones, too
    shortest = [pause * lower_clamp_multiple(1 + jitter) for pause in pauses]
    random.seed(7)
    for pause, least in zip(pauses, shortest, strict=True):
        drawn = [clamped_poisson_interval(pause, jitter) for _ in range(200)]
        assert least <= min(drawn) < pause < max(drawn) <= pause * (1 + jitter)
    assert sum(shortest) >= 75
    # one that stays away is told of within two minutes, but for the time that the tries take
    assert sum(pauses) * (1 + jitter) <= 120
    assert all(would_retry(read, AWAY, tries) for tries in range(1, read.retries + 1))
    # what passing on its own cannot help is told of at once
    assert not would_retry(read, errors.StoreUnavailable("unwritable"))


@pytest.mark.parametrize("policy", TASKS.values(), ids=TASKS)
def test_other_errors_are_tried_again_as_often_as_the_policy_says(policy: RetryPolicy) -> None:
    from prefect import task

    @task(**prefect_options(policy))
    def ask() -> None: ...

    for error in (errors.SourceUnavailable("down"), errors.RevisionConflict("changed"), TimeoutError()):
        worth = [would_retry(ask, error, tries) for tries in range(1, ask.retries + 1)]
        assert worth == [True] * policy.attempts + [False] * (ask.retries - policy.attempts)


def test_a_failed_state_without_an_error_is_not_retried(fetch: Any) -> None:
    from prefect.client.schemas.objects import TaskRun
    from prefect.states import Failed

    run = TaskRun(task_key=fetch.task_key, dynamic_key="0")
    assert fetch.retry_condition_fn(fetch, run, Failed(message="no data")) is False


def test_the_ingest_tasks_are_under_these_policies() -> None:
    from tasks.ingestion import holdings_task, ingest_task, plan_task

    for task, policy in ((plan_task, EXCHANGE), (ingest_task, STORE), (holdings_task, STORE)):
        assert task.retry_delay_seconds == prefect_options(policy)["retry_delay_seconds"]
        assert would_retry(task, errors.SourceUnavailable("down"))
        assert not would_retry(task, errors.MalformedResponse("not JSON"))
        assert not would_retry(task, LEFT_ALONE)
