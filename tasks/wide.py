"""The same tasks on threads of this process, or on a Dask cluster: many at once, with progress to be seen.

What is handed to a task is small (keys, windows, rules): each reads its candles from the store, so a cluster's
workers need the same settings and a store that they can reach.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, cast

from tasks import progress
from tasks.settings import Settings

if TYPE_CHECKING:
    from uuid import UUID

    from prefect import Flow, Task
    from prefect.task_runners import TaskRunner

UPDATES: Final = 50  # of a progress bar: each is a request to Prefect
# task runs of one step: each is some 40 kB of Prefect's database, and so many keep a cluster of thirty busy
MOST_TASKS: Final = 100


class Named(Protocol):
    """Something to do, with a name for people."""

    @property
    def name(self) -> str: ...


Item = TypeVar("Item", bound=Named)


@dataclass(frozen=True)
class Group(Generic[Item]):
    """Some things that one task does, one after the other."""

    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        """The first one's, and how many more there are."""
        more = f" and {len(self.items) - 1} more" if len(self.items) > 1 else ""
        return f"{self.items[0].name}{more}"


def grouped(items: Sequence[Item], most: int = MOST_TASKS) -> list[Group[Item]]:
    """Neighbours together, in ``most`` groups of nearly equal size, or each by itself where there are no more."""
    count = min(len(items), most)
    cuts = [len(items) * number // count for number in range(count + 1)] if count else []
    return [Group(tuple(items[low:high])) for low, high in itertools.pairwise(cuts)]


def runner(settings: Settings) -> AbstractContextManager[TaskRunner[Any]]:
    """Where tasks of this flow run: on the Dask cluster that the settings name; on what the flow was given
    (``flow.with_options(task_runner=...)``); else on as many threads as there are processors.
    """
    from prefect.context import FlowRunContext
    from prefect.task_runners import ThreadPoolTaskRunner

    context = FlowRunContext.get()
    if settings.dask_address is not None:
        from prefect_dask import DaskTaskRunner

        if context is not None and context.flow is not None:
            send_whole(context.flow)
        cluster: TaskRunner[Any] = DaskTaskRunner(address=settings.dask_address)
        return cluster
    if context is not None and not isinstance(context.task_runner, ThreadPoolTaskRunner):
        return nullcontext(context.task_runner)  # started with the flow
    return ThreadPoolTaskRunner(max_workers=os.cpu_count() or 1)


def send_whole(flow: Flow[..., Any]) -> None:
    """Let a flow that Prefect loaded from its file reach other processes.

    It goes along with each task, and the name that its module was loaded under can be imported nowhere else.
    """
    import cloudpickle  # type: ignore[import-untyped]

    name = flow.fn.__module__
    if "." not in name:
        cloudpickle.register_pickle_by_value(sys.modules[name])


def run_all(
    workers: TaskRunner[Any], task: Task[Any, Any], items: Sequence[Named], now: datetime, *, step: str, key: str
) -> None:
    """Run ``task(group, now)`` for all items in groups and wait; the first failure is raised, what waits is given up.

    Args:
        step: what is going on, for whoever watches.
        key: of the progress artifact in the Prefect pages.
    """
    from prefect.artifacts import create_progress_artifact, update_progress_artifact
    from prefect.futures import as_completed

    if not items:
        return
    progress.report(step, 0, len(items))
    bar = cast("UUID", create_progress_artifact(progress=0.0, key=key, description=f"{step}: {len(items)} to do"))
    groups = grouped(items)
    every = max(1, len(groups) // UPDATES)
    futures = {workers.submit(task, {"group": group, "now": now}): len(group.items) for group in groups}
    done = 0
    for number, future in enumerate(as_completed(list(futures)), start=1):
        future.result()
        done += futures[future]
        progress.report(step, done, len(items))
        if number % every == 0 or done == len(items):
            update_progress_artifact(
                bar, progress=100 * done / len(items), description=f"{step}: {done} of {len(items)}"
            )  # fmt: skip
