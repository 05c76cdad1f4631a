"""The analyse flow when the store goes away in the middle of it, for shorter and for longer than it is waited for.

The outages are real: a MongoDB-protocol server that is stopped or killed, and started again; a file that another
process has locked. They begin and end at points of the run, not after so many seconds, and the pauses between the
tries are cut short: what is tested is what a run makes of it, not how patient it is.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import task_engine
from prefect.utilities.math import lower_clamp_multiple

from deployments.sandbox.llm import application, serving
from flows.analyse import analyse
from tasks import analysing, sqlite_documents
from tasks.llm_budget import LOST, Budget
from tasks.llm_client import Client
from tasks.panels import panel_task
from tasks.retry import OUTAGE, STORE, prefect_options
from tasks.settings import load_settings
from tasks.signals import DEGRADED
from tasks.store import ANALYSES, LLM_BUDGETS, LLM_CALLS, SIGNALS, Store, configured_store, open_store
from tests.flows.test_analyse import END, START, SYMBOLS, asked, fill, report, run_of, told
from tests.mongo_server import MongoServer
from trading.errors import StoreUnavailable

pytestmark = pytest.mark.integration

WINDOW: dict[str, Any] = {"start": START, "end": END, "return_state": True}
LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
print("released", flush=True)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tries as ever, with short pauses between them."""
    for one in (panel_task, analysing.hear_task, analysing.conclude_task):
        assert one.retries == OUTAGE.attempts
        monkeypatch.setattr(one, "retry_delay_seconds", [0.05] * OUTAGE.attempts)
    monkeypatch.setattr(sqlite_documents, "BUSY_SECONDS", 0.2)


@pytest.fixture
def server(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MongoServer]:
    """The store of the run, with candles in it; a server that does not answer is noticed in one second."""
    running = MongoServer(tmp_path / "mongo").start()
    monkeypatch.setenv("MONGODB_URL", f"{running.url}outage?serverSelectionTimeoutMS=1000&connectTimeoutMS=1000")
    with configured_store(load_settings()) as store:
        fill(store)
    yield running
    running.kill()


class Hooks:
    """What happens at points of a run: before or after a function's first call, and when one has failed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def after_the_first(self, owner: Any, name: str, then: Callable[[], None]) -> None:
        real, first = getattr(owner, name), threading.Lock()

        def hooked(*arguments: Any, **named: Any) -> Any:
            found = real(*arguments, **named)
            if first.acquire(blocking=False):
                then()
            return found

        self._monkeypatch.setattr(owner, name, hooked)

    def when_it_failed(self, owner: Any, name: str, then: Callable[[], None]) -> list[Exception]:
        """The failures, for which ``then`` is called once."""
        real, failures = getattr(owner, name), list[Exception]()

        def hooked(*arguments: Any, **named: Any) -> Any:
            try:
                return real(*arguments, **named)
            except StoreUnavailable as error:
                failures.append(error)
                if len(failures) == 1:
                    then()
                raise

        self._monkeypatch.setattr(owner, name, hooked)
        return failures


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Hooks:
    return Hooks(monkeypatch)


def tries(state: Any) -> dict[str, int]:
    """How often each task of a run was tried, by its name."""
    runs = asked("/task_runs/filter", {"flow_runs": {"id": {"any_": [run_of(state)]}}})
    return {run["name"].rpartition("-")[0]: run["run_count"] for run in runs}


def nothing() -> None:
    """It lasts."""


def is_whole(store: Store, run: str) -> None:
    """Every symbol's analysis is there once, from that run, and so is its signal."""
    made = store.documents.find(ANALYSES)
    assert [(one["symbol"], one["flow_run_id"], one["basis"]) for one in made] == [
        (symbol, run, "technical") for symbol in SYMBOLS
    ]
    signals = {one["_id"]: one["signal"] for one in store.documents.find(SIGNALS)}
    assert signals == {f"{one['symbol']}|1h": one["analysis"]["signal"] for one in made}


@pytest.mark.parametrize(
    ("module", "point", "step"),
    [
        # before anybody was heard, and with one of two analyses stored
        (analysing, "look", "hear"),
        (analysing, "put_analysis", "conclude"),
    ],
)
def test_a_shorter_outage_of_a_server_is_outlived(
    server: MongoServer, hooks: Hooks, module: Any, point: str, step: str
) -> None:
    hooks.after_the_first(module, point, server.stop)
    failures = hooks.when_it_failed(analysing, step, lambda: server.start() and None)
    state = analyse(SYMBOLS, **WINDOW)
    assert (state.type.value, state.name) == ("COMPLETED", "Completed")
    assert [row.symbol for row in state.result()] == SYMBOLS
    assert failures
    assert tries(state)[{"hear": "hear", "conclude": "conclude-analyses"}[step]] == 1 + len(failures)
    assert "# Analysis 1h: all good" in report()
    with configured_store(load_settings()) as store:
        is_whole(store, run_of(state))


def test_a_server_that_is_refused_for_a_minute_is_outlived(
    server: MongoServer, hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real pauses, as short as chance makes them, on a clock that only they move: the tries take no time on it."""
    monkeypatch.setattr(analysing.conclude_task, "retry_delay_seconds", prefect_options(STORE)["retry_delay_seconds"])
    waited: list[float] = []

    def shortest(pause: float, clamping_factor: float) -> float:
        waited.append(pause * lower_clamp_multiple(1 + clamping_factor))
        if sum(waited) >= 60 > sum(waited[:-1]):
            server.start()
        return 0.05

    monkeypatch.setattr(task_engine, "clamped_poisson_interval", shortest)
    hooks.after_the_first(analysing, "put_analysis", server.kill)
    failures = hooks.when_it_failed(analysing, "conclude", nothing)
    state = analyse(SYMBOLS, **WINDOW)
    assert (state.type.value, state.name) == ("COMPLETED", "Completed")
    assert failures
    assert sum(waited) >= 60
    assert tries(state)["conclude-analyses"] == 1 + len(waited) > 1 + STORE.attempts
    with configured_store(load_settings()) as store:
        is_whole(store, run_of(state))


def test_a_longer_one_fails_the_run_by_name_and_keeps_what_was_stored(
    server: MongoServer, hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as during:
        outage = Hooks(during)
        outage.after_the_first(analysing, "put_analysis", server.kill)
        failures = outage.when_it_failed(analysing, "conclude", nothing)
        state = analyse(SYMBOLS, **WINDOW)
    assert (state.type.value, state.name) == ("FAILED", "Failed")
    with pytest.raises(StoreUnavailable, match=r"MongoDB at .* cannot be reached .*check that it runs") as caught:
        state.result()
    assert caught.value.transient
    # the store was opened in the first try only; the others failed at the door
    assert tries(state)["conclude-analyses"] == 1 + OUTAGE.attempts
    assert failures
    # a person reads it in the report, and whoever listens is told
    text = report()
    assert "# Analysis 1h: Failed" in text
    assert "## Broke off\n\n- MongoDB at" in text
    [event] = told(DEGRADED, run_of(state))
    assert (event["payload"]["state"], len(event["payload"]["failures"])) == ("Failed", 1)
    assert event["payload"]["failures"][0].startswith("MongoDB at")
    server.start()
    with configured_store(load_settings()) as store:
        [kept] = store.documents.find(ANALYSES)
        assert (kept["symbol"], kept["basis"], kept["flow_run_id"]) == ("AAA", "technical", run_of(state))
        assert kept["analysis"]["reasoning"]
    # the next run makes what is missing, and buys nothing twice
    back = analyse(SYMBOLS, **WINDOW)
    assert [(row.symbol, row.reused) for row in back.result()] == [("AAA", True), ("BBB", False)]


def test_one_that_begins_while_nobody_was_heard_fails_with_the_store_s_own_error(
    server: MongoServer, hooks: Hooks
) -> None:
    hooks.after_the_first(analysing, "look", server.kill)
    # two batches: each is tried as often as any, and neither gets through
    state = analyse(SYMBOLS, batch_size=1, **WINDOW)
    assert state.type.value == "FAILED"
    with pytest.raises(StoreUnavailable):
        state.result()
    text = report()
    assert "## Broke off\n\n- MongoDB at" in text
    assert all(f"- {symbol}: MongoDB at" in text for symbol in SYMBOLS)


def test_an_llm_whose_answer_cannot_be_written_down_is_missing_and_its_call_stays_reserved(
    server: MongoServer, hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRADEFLOWS_LLM", "on")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-outage-0123456789-abcdef")
    with serving(application()) as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        hooks.after_the_first(Client, "complete", server.stop)
        failures = hooks.when_it_failed(analysing, "configured_store", lambda: server.start() and None)
        state = analyse(["AAA"], **WINDOW)
        assert sum(one["requests"] for one in endpoint.requests().values()) == 1
    assert failures
    assert (state.type.value, state.name) == ("COMPLETED", "Degraded")
    assert "llm: StoreUnavailable: MongoDB at" in state.message
    with configured_store(load_settings()) as store:
        [kept] = store.documents.find(ANALYSES)
        assert (kept["basis"], kept["analysis"]["absent"]) == ("technical", ["llm"])
        # nobody knows what it cost, so that it counts as what it can have cost, and is on record in the end
        assert store.documents.find(LLM_CALLS) == []
        [month] = store.documents.find(LLM_BUDGETS)
        [reserved] = month["open"].values()
        budget = Budget(store.documents, 1.0, 10.0)
        later = Budget(store.documents, 1.0, 10.0, clock=lambda: reserved["at"] + timedelta(hours=2))
        assert (later.reconcile(), budget.spent().under_way) == (1, 0.0)
        [call] = store.documents.find(LLM_CALLS)
        assert (call["outcome"], call["nano"], call["symbol"]) == (LOST, reserved["nano"], "AAA")


# --- a file that another process has locked ------------------------------------------------------


class Locker:
    """Another process that has the store's file locked."""

    def __init__(self, home: Path) -> None:
        self._path = home / "store.db"
        self._process: subprocess.Popen[str] | None = None

    def lock(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", LOCK, str(self._path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "locked\n"

    def release(self) -> None:
        assert self._process is not None
        said, _ = self._process.communicate("\n")
        assert said == "released\n"
        self._process = None

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


@pytest.fixture
def locker(home: Path) -> Iterator[Locker]:
    with open_store(home) as store:
        fill(store)
    made = Locker(home)
    yield made
    made.end()


def test_a_file_that_is_locked_for_a_while_is_waited_for(home: Path, locker: Locker, hooks: Hooks) -> None:
    hooks.after_the_first(analysing.model_analyst, "judge_predictions", locker.lock)
    failures = hooks.when_it_failed(analysing, "conclude", locker.release)
    state = analyse(SYMBOLS, **WINDOW)
    assert (state.type.value, state.name) == ("COMPLETED", "Completed")
    assert len(failures) == 1
    assert tries(state)["conclude-analyses"] == 2
    with open_store(home) as store:
        is_whole(store, run_of(state))


def test_a_lock_shorter_than_a_write_waits_is_not_even_noticed(
    home: Path, locker: Locker, hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_documents, "BUSY_SECONDS", 60.0)
    releasing: list[threading.Timer] = []

    def lock() -> None:
        locker.lock()
        releasing.append(threading.Timer(0.5, locker.release))
        releasing[0].start()

    hooks.after_the_first(analysing.model_analyst, "judge_predictions", lock)
    state = analyse(SYMBOLS, **WINDOW)
    releasing[0].join()
    assert state.name == "Completed"
    assert set(tries(state).values()) == {1}
    with open_store(home) as store:
        is_whole(store, run_of(state))


def test_a_file_that_stays_locked_fails_the_run_by_name(
    home: Path, locker: Locker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as during:
        Hooks(during).after_the_first(analysing.model_analyst, "judge_predictions", locker.lock)
        state = analyse(SYMBOLS, **WINDOW)
    assert state.type.value == "FAILED"
    with pytest.raises(StoreUnavailable, match=r"store\.db cannot be used \(database is locked\); try again"):
        state.result()
    assert tries(state)["conclude-analyses"] == 1 + OUTAGE.attempts
    assert "## Broke off" in report()
    locker.release()
    with open_store(home) as store:
        assert store.documents.find(ANALYSES) == []
    assert [row.reused for row in analyse(SYMBOLS, **WINDOW).result()] == [False, False]
