"""Keys and budget of the LLM among several processes, on both stores: limits, cool-downs, sums, and kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deployments.sandbox.llm import SandboxLlm, application, serving
from tasks.documents import Documents
from tasks.llm_budget import LOST, NANO, Budget, prompt_bound
from tasks.llm_prompt import LlmOpinion
from tasks.llm_schema import response_format
from tasks.store import COLLECTIONS, LLM_BUDGETS, LLM_CALLS
from tests.tasks import llm_worker
from tests.tasks.llm_worker import MESSAGES, PRICE, Job
from tests.tasks.store_worker import open_documents

# processes, servers, and windows that really pass
pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).resolve().parents[2]
KEYS = ("sk-stub-alpha-0123456789abcdef", "sk-stub-bravo-fedcba9876543210", "sk-stub-gamma-5555aaaa7777cccc")
ALPHA, BRAVO, GAMMA = KEYS
PROCESSES = 3
PATIENCE = 120.0
# what a question can cost at most
WORST = PRICE.nano(prompt_bound(MESSAGES, response_format(LlmOpinion)), 1200)


class Worker:
    """A process of ``llm_worker``: it does job after job."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, llm_worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )

    def ready(self) -> None:
        assert self._line() == "ready\n"

    def start(self, job: Job) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(job.line())
        self._process.stdin.flush()

    def said(self) -> list[str]:
        """What became of the questions of the job that it was given."""
        answers: list[str] = json.loads(self._line())
        return answers

    def doomed(self, job: Job) -> int:
        """The number of another process, a fork of this one, that is at the job."""
        self.start(replace(job, doomed=True))
        return int(json.loads(self._line()))

    def end(self) -> None:
        self._process.kill()
        with self._process:
            self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        watchdog = threading.Timer(PATIENCE, self._process.kill)
        watchdog.start()
        try:
            return self._process.stdout.readline()
        finally:
            watchdog.cancel()


@pytest.fixture(scope="module")
def workers() -> Iterator[list[Worker]]:
    """Processes that outlive their tests."""
    made = [Worker() for _ in range(PROCESSES)]
    try:
        for one in made:
            one.ready()
        yield made
    finally:
        for one in made:
            one.end()


@dataclass(frozen=True)
class Bed:
    """An endpoint, a database, and the job that asks the one and writes to the other."""

    endpoint: SandboxLlm
    documents: Documents
    job: Job

    def asks(self, *workers: Worker, **changes: Any) -> list[str]:
        """What all say to the same job, done at the same time."""
        job = replace(self.job, **changes)
        for one in workers:
            one.start(job)
        return [answer for one in workers for answer in one.said()]

    @property
    def asked(self) -> int:
        """Requests that the endpoint has answered."""
        return sum(one["requests"] for one in self.endpoint.requests().values())

    @property
    def arrived(self) -> int:
        """Requests that reached the endpoint, answered or not."""
        assert self.endpoint.state is not None
        return len(self.endpoint.state.bodies)

    @property
    def calls(self) -> list[dict[str, Any]]:
        return self.documents.find(LLM_CALLS)

    def budget(self) -> Budget:
        return Budget(self.documents, 1.0, 10.0)

    def adds_up(self) -> None:
        """Nothing is reserved any more, and the budget's sum is that of the calls."""
        months = self.documents.find(LLM_BUDGETS)
        assert [month["open"] for month in months] == [{} for _ in months]
        assert sum(sum(month["spent"].values()) for month in months) == sum(call["nano"] for call in self.calls)


@pytest.fixture(params=["sqlite", "mongodb"])
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bed]:
    address = f"sqlite:{tmp_path / 'store.db'}"
    if request.param == "mongodb":
        address = f"mongodb:{request.getfixturevalue('mongo_database')}|{request.getfixturevalue('mongo_url')}"
    with serving(application()) as endpoint, open_documents(address, COLLECTIONS) as documents:
        yield Bed(endpoint, documents, Job(address, endpoint.url, KEYS))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def test_together_they_use_every_key_to_its_limit_and_no_further(bed: Bed, workers: list[Worker]) -> None:
    state = bed.endpoint.state
    assert state is not None
    state.limit, state.window, state.latency = 5, 2.0, 0.05
    said = bed.asks(*workers, questions=10, threads=5, requests=5, window=2.0, grace=2.0)
    assert Counter(said) == {"answered": 10 * PROCESSES}
    seen = bed.endpoint.requests()
    # the endpoint counts every window that ends with a request; apart, the processes would have sent three times that
    assert {key: (one["most_in_window"], one["violations"]) for key, one in seen.items()} == dict.fromkeys(KEYS, (5, 0))
    # no record is lost, none is there twice, and together they are what the budget says
    assert Counter(call["outcome"] for call in bed.calls) == {"answered": 10 * PROCESSES} == {"answered": bed.asked}
    assert Counter(call["symbol"] for call in bed.calls) == {f"SYM{number}": PROCESSES for number in range(10)}
    bed.adds_up()
    assert bed.budget().spent().day == sum(call["nano"] for call in bed.calls) / NANO > 0


def test_together_they_do_not_cross_the_budget(bed: Bed, workers: list[Worker]) -> None:
    # replies whose tokens nobody counts cost their worst case, so that seven fit, and not a part of an eighth
    bed.endpoint.set_faults("=no-usage")
    said = bed.asks(*workers, questions=10, threads=5, daily=7.5 * WORST / NANO)
    assert said.count("answered") == 7
    refused = {answer.partition(":")[0] for answer in said if answer != "answered"}
    assert refused == {"BudgetExhausted"}
    assert bed.arrived == 7
    assert [call["nano"] for call in bed.calls] == [WORST] * 7
    bed.adds_up()


def test_what_one_hears_of_a_key_the_others_respect(bed: Bed, workers: list[Worker]) -> None:
    bed.endpoint.set_faults(keys={ALPHA: ["=429:600"], BRAVO: ["=401"]})
    first, *others = workers
    assert bed.asks(first) == ["answered"]
    assert bed.asks(*others, questions=4, threads=2, patience=0.0) == ["answered"] * 8
    seen = bed.endpoint.requests()
    assert {key: one["replies"] for key, one in seen.items()} == {
        ALPHA: {"429": 1}, BRAVO: {"401": 1}, GAMMA: {"200": 9}
    }  # fmt: skip
    # with the last key gone, too, nobody asks any more, and each can say until when
    bed.endpoint.set_faults(keys={GAMMA: ["=429:600"]})
    assert [answer.partition(":")[0] for answer in bed.asks(first, patience=0.0)] == ["NoLlmKey"]
    asked = bed.asked
    for answer in bed.asks(*workers, questions=2, patience=0.0):
        assert answer.startswith("NoLlmKey: no LLM key may be used: key 1 is rate limited until")
        assert "key 2 is refused until" in answer
    assert bed.asked == asked
    bed.adds_up()


def test_one_that_is_killed_in_a_call_locks_no_key_and_its_call_is_booked(bed: Bed, workers: list[Worker]) -> None:
    survivor, parent, _ = workers
    bed.endpoint.set_faults("slow:600")
    # one key, one call in three seconds and their grace
    rule: dict[str, Any] = {"keys": (ALPHA,), "requests": 1, "window": 3.0, "grace": 1.0}
    doomed = parent.doomed(replace(bed.job, **rule))
    until(lambda: bed.arrived == 1)
    killed = time.monotonic()
    os.kill(doomed, signal.SIGKILL)
    # at once the key is still in use: the endpoint counts the call, whoever made it
    [answer] = bed.asks(survivor, **rule, patience=0.0)
    assert answer.startswith("NoLlmKey: no LLM key may be used: key 1 is in use until")
    # and it is free again when the call has ceased to count
    assert bed.asks(survivor, **rule) == ["answered"]
    assert time.monotonic() - killed < PATIENCE
    # the call stays reserved, and is booked at its worst case when nobody can settle it any more
    [call] = bed.calls
    assert bed.budget().spent().under_way == WORST / NANO
    later = Budget(bed.documents, 1.0, 10.0, clock=lambda: datetime.now(UTC) + timedelta(hours=2))
    assert later.reconcile() == 1
    assert Counter(one["outcome"] for one in bed.calls) == {"answered": 1, LOST: 1}
    assert sum(one["nano"] for one in bed.calls) == call["nano"] + WORST
    bed.adds_up()


def test_killed_at_any_moment_they_leave_a_record_of_every_call(bed: Bed, workers: list[Worker]) -> None:
    survivor, *parents = workers
    threads, doomed = 3, 4
    survivor.start(replace(bed.job, questions=60, threads=threads))
    for number in range(doomed):
        before = bed.arrived
        child = parents[number % 2].doomed(replace(bed.job, questions=1000, threads=threads))
        # each at another moment of its calls
        until(lambda least=before + 10 + 7 * number: bed.arrived >= least)  # type: ignore[misc]
        os.kill(child, signal.SIGKILL)
    assert Counter(survivor.said()) == {"answered": 60}
    bed.budget().reconcile(timedelta(0))
    bed.adds_up()
    outcomes = Counter(call["outcome"] for call in bed.calls)
    assert set(outcomes) <= {"answered", LOST}
    # whatever reached the endpoint is on record; what was reserved and never sent is booked besides
    assert outcomes[LOST] <= threads * doomed
    assert bed.arrived <= outcomes.total() <= bed.arrived + threads * doomed
    # and the keys serve on
    assert bed.asks(survivor, questions=3) == ["answered"] * 3
