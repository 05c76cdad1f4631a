"""What waits is written together; an answer, and an error, belongs to who asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tasks.documents import Collection, Document
from tasks.llm_budget import ANSWERED, Budget
from tasks.llm_commits import GroupCommit
from tasks.llm_keys import KeyPool, KeyRule
from tasks.store import LLM_BUDGETS, LLM_KEYS, open_store
from trading.errors import BudgetExhausted, StoreUnavailable

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Line:
    """A group commit whose first write waits until the others stand in line."""

    def __init__(self, write: Callable[[list[Any]], list[Any]]) -> None:
        self.batches: list[list[Any]] = []
        self._write, self._open = write, threading.Event()
        self.group: GroupCommit[Any, Any] = GroupCommit(self._held)

    def _held(self, asked: list[Any]) -> list[Any]:
        self.batches.append(asked)
        if len(self.batches) == 1:
            assert self._open.wait(30)
        return self._write(asked)

    def asked(self, first: Any, *others: Any) -> list[Future[Any]]:
        """What came of each, all of the others having waited for the first."""
        with ThreadPoolExecutor(1 + len(others)) as threads:
            futures = [threads.submit(self.group.submit, first)]
            until(lambda: len(self.batches) == 1)
            for number, one in enumerate(others, 1):
                futures.append(threads.submit(self.group.submit, one))
                until(lambda number=number: len(self.group._waiting) == number)  # type: ignore[misc]
            self._open.set()
        return futures


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_whoever_comes_during_a_write_is_in_the_next_one_with_all_the_others() -> None:
    line = Line(lambda asked: [10 * one for one in asked])
    assert [future.result() for future in line.asked(1, 2, 3, 4)] == [10, 20, 30, 40]
    assert line.batches == [[1], [2, 3, 4]]
    assert line.group.submit(5) == 50
    assert line.batches[2:] == [[5]]


def test_an_error_is_raised_to_whom_it_belongs() -> None:
    line = Line(lambda asked: [BudgetExhausted("no", NOW) if one == 3 else one for one in asked])
    first, second, third, fourth = line.asked(1, 2, 3, 4)
    assert (first.result(), second.result(), fourth.result()) == (1, 2, 4)
    with pytest.raises(BudgetExhausted):
        third.result()


def test_a_store_that_fails_fails_all_that_were_in_the_write_and_nobody_else() -> None:
    def write(asked: list[int]) -> list[int]:
        if 2 in asked:
            raise StoreUnavailable("gone", transient=True)
        return asked

    line = Line(write)
    first, *others = line.asked(1, 2, 3)
    assert first.result() == 1
    errors = [future.exception() for future in others]
    assert [(type(one), str(one), getattr(one, "transient", None)) for one in errors] == [
        (StoreUnavailable, "gone", True)
    ] * 2
    assert errors[0] is not errors[1]
    assert line.batches == [[1], [2, 3]]
    assert line.group.submit(4) == 4


def test_a_thread_that_is_interrupted_leaves_the_others_to_themselves() -> None:
    def write(asked: list[int]) -> list[int]:
        if 2 in asked:
            raise KeyboardInterrupt
        return asked

    line = Line(write)
    first, second, third, fourth = line.asked(1, 2, 3, 4)
    assert first.result() == 1
    # whichever of them was at it when the write that had 2 in it was broken off is gone with it
    ended = [future.exception() for future in (second, third, fourth)]
    assert isinstance(ended[0], KeyboardInterrupt)
    assert all(error is None or isinstance(error, KeyboardInterrupt) for error in ended)
    assert len(line.batches) >= 2


class Counting:
    """Documents whose writes are counted; the first of each collection waits until it may."""

    def __init__(self, documents: Any) -> None:
        self._documents = documents
        self.writes: dict[str, int] = {}
        self.may_go = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._documents, name)

    def compare_and_set(self, collection: Collection, document: Document, expected: int) -> bool:
        self.writes[collection.name] = self.writes.get(collection.name, 0) + 1
        if self.writes[collection.name] == 1:
            assert self.may_go.wait(30)
        return bool(self._documents.compare_and_set(collection, document, expected))


def test_keys_and_reservations_of_threads_that_come_together_are_two_writes_each(tmp_path: Path) -> None:
    count = 8
    with open_store(tmp_path) as store, ThreadPoolExecutor(count) as threads:
        documents: Any = Counting(store.documents)
        keys = [SecretStr("sk-one-11111111"), SecretStr("sk-two-22222222")]
        pool = KeyPool(documents, keys, KeyRule(4, timedelta(0)), clock=lambda: NOW)
        budget = Budget(documents, 1.0, 10.0, clock=lambda: NOW)
        taken = [threads.submit(pool.take, NOW) for _ in range(count)]
        until(lambda: len(pool._changes._waiting) == count - 1)
        documents.may_go.set()
        leases = [future.result() for future in taken]
        assert sorted(lease.number for lease in leases) == [1] * 4 + [2] * 4
        # one by the first, and then one for each key
        assert documents.writes == {LLM_KEYS.name: 3}
        documents.may_go.clear()
        reserved = [threads.submit(budget.reserve, 1000, {}) for _ in range(count)]
        until(lambda: sum(len(group._waiting) for group in budget._months.values()) == count - 1)
        documents.may_go.set()
        for future in reserved:
            budget.settle(future.result(), ANSWERED, nano=10, latency=0.1, tokens=None)
        assert documents.writes[LLM_BUDGETS.name] == 2 + count
        assert budget.spent().day == 10 * count / 1e9


def test_a_refusal_of_one_does_not_stop_those_it_waited_with(tmp_path: Path) -> None:
    with open_store(tmp_path) as store, ThreadPoolExecutor(3) as threads:
        documents: Any = Counting(store.documents)
        budget = Budget(documents, 1.0, 10.0, clock=lambda: NOW)
        first = threads.submit(budget.reserve, 400_000_000, {})
        until(lambda: documents.writes == {LLM_BUDGETS.name: 1})
        others = []
        for number, nano in enumerate((700_000_000, 600_000_000), 1):
            others.append(threads.submit(budget.reserve, nano, {}))
            [group] = budget._months.values()
            until(lambda number=number, group=group: len(group._waiting) == number)  # type: ignore[misc]
        documents.may_go.set()
        assert first.result().nano == 400_000_000
        assert isinstance(others[0].exception(), BudgetExhausted)
        assert others[1].result().nano == 600_000_000
        assert budget.spent().day_left == 0.0
