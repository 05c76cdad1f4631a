"""Group commit: what many threads want written to one document is written together.

A write that has returned is on the disk, which takes its time, and writes of one document stand in line. So whoever
comes while one is under way waits with the others that come, and the next write has the changes of all of them
(DeWitt et al., "Implementation Techniques for Main Memory Database Systems", SIGMOD 1984, section 5). Nobody returns
before what was asked for is written.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from trading.errors import StoreError

Asked = TypeVar("Asked")
Given = TypeVar("Given")


@dataclass(eq=False)
class _Waiting(Generic[Asked, Given]):
    """One thread's wish; ``outcome`` once it is ``done``."""

    asked: Asked
    done: bool = False
    outcome: Given | Exception | None = None


class GroupCommit(Generic[Asked, Given]):
    """Hands what threads ask for to ``commit``, all of those at once that wait at the time.

    Args:
        commit: writes what was asked for, and says what came of each, in their order; an error is raised to whom it
            belongs. What it raises itself befell all of them.
    """

    def __init__(self, commit: Callable[[list[Asked]], list[Given | Exception]]) -> None:
        self._commit = commit
        self._waiting: list[_Waiting[Asked, Given]] = []
        self._gathering, self._committing = threading.Lock(), threading.Lock()

    def submit(self, asked: Asked) -> Given:
        """Ask, and wait until it is written.

        Raises:
            Exception: what ``commit`` gave for it, or raised.
        """
        mine = _Waiting[Asked, Given](asked)
        with self._gathering:
            self._waiting.append(mine)
        with self._committing:
            # the thread before may have taken it along
            if not mine.done:
                self._commit_waiting(mine)
        if isinstance(mine.outcome, Exception):
            raise mine.outcome
        given: Given = mine.outcome  # type: ignore[assignment]
        return given

    def _commit_waiting(self, mine: _Waiting[Asked, Given]) -> None:
        with self._gathering:
            batch, self._waiting = self._waiting, []
        try:
            outcomes = self._commit([one.asked for one in batch])
        except StoreError as error:
            # one each: a traceback grows where an error is raised
            outcomes = [copy.copy(error) for _ in batch]
        except BaseException:
            # this thread was interrupted, or there is a bug: the others try for themselves
            with self._gathering:
                self._waiting = [one for one in batch if one is not mine] + self._waiting
            raise
        for one, outcome in zip(batch, outcomes, strict=True):
            one.outcome, one.done = outcome, True
