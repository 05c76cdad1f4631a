"""The one table of retry policies, and the one answer to "would trying again help?"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx

from trading.errors import CircuitOpen, RateLimited, StoreUnavailable, TradeflowsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how patiently to try again.

    Attributes:
        attempts: retries after the first try.
        base: seconds before the first retry; each later one waits twice as long, ``longest`` at most.
        jitter: how much of the wait is drawn by chance, so that many do not come back at once.
    """

    attempts: int
    base: float
    longest: float
    jitter: float = 0.5

    @property
    def delays(self) -> list[float]:
        """Seconds before each retry, before jitter."""
        return [min(self.base * 2**attempt, self.longest) for attempt in range(self.attempts)]


# a rate limit of up to this many seconds is waited out in place; a longer one fails the run, because asking
# again before it is over makes exchanges ban the address
LONGEST_WAIT: Final = 30.0

# one request; the policies below are for tasks, whose every request was retried like this already
REQUEST: Final = RetryPolicy(attempts=4, base=0.5, longest=8.0)
EXCHANGE: Final = RetryPolicy(attempts=1, base=5.0, longest=60.0)
STORE: Final = RetryPolicy(attempts=3, base=1.0, longest=10.0)
REGISTRY: Final = RetryPolicy(attempts=2, base=2.0, longest=30.0)
LLM: Final = RetryPolicy(attempts=2, base=2.0, longest=30.0)
NOTIFY: Final = RetryPolicy(attempts=5, base=1.0, longest=120.0)

# a store that is away is waited for by every task, whatever its policy for other errors: a minute at least, by the
# pauses alone and when chance draws the shortest of each
OUTAGE: Final = RetryPolicy(attempts=7, base=1.0, longest=30.0, jitter=0.2)


def is_transient(error: BaseException) -> bool:
    """Whether trying again can help.

    Our own errors say so themselves; of others, transport errors and timeouts, 429 and 5xx do. Anything
    else (4xx, bad data, a bug) fails the same way again.
    """
    if isinstance(error, TradeflowsError):
        return error.transient
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == httpx.codes.TOO_MANY_REQUESTS or error.response.is_server_error
    return isinstance(error, httpx.TransportError | ConnectionError | TimeoutError)


def prefect_options(policy: RetryPolicy) -> dict[str, Any]:
    """Keyword arguments of ``@task`` for a policy: retries, no cache, no persisted result.

    A task is tried again as often as its policy says, and while the store is away as often as ``OUTAGE`` does:
    Prefect is given the pauses of the policy, followed by those that ``OUTAGE`` has left. Tries are counted together,
    whatever made them fail.

    Retry-After is honoured below the task, by the client that got it: Prefect fixes a task's delays
    beforehand. One too long for the client to wait is not tried again: a policy's delays together may
    be shorter, and asking before the time is what exchanges ban for.
    """
    from prefect.cache_policies import NO_CACHE

    delays = [*policy.delays, *OUTAGE.delays[policy.attempts :]]
    return {
        "retries": len(delays),
        "retry_delay_seconds": delays,
        "retry_jitter_factor": min(policy.jitter, OUTAGE.jitter),
        "retry_condition_fn": _condition(policy.attempts),
        "cache_policy": NO_CACHE,
        "persist_result": False,
    }


def _condition(attempts: int) -> Callable[[Task[..., Any], TaskRun, State[Any]], bool]:
    """What Prefect asks after a failure; ``attempts``: retries of errors that are not a store's that is away."""

    def worth_a_retry(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
        error = state.data
        if not isinstance(error, BaseException) or not is_transient(error) or isinstance(error, CircuitOpen):
            return False
        if isinstance(error, RateLimited) and (error.retry_after or 0) > LONGEST_WAIT:
            return False
        # the count has the try that has just failed in it
        return isinstance(error, StoreUnavailable) or run.run_count <= attempts

    return worth_a_retry
