"""What may go, and when: rules over plain facts, without a store. Times are UTC.

The ledger, series, gaps, promotions, proposals, disablings and the engine's settings are never removed, nor the
datasets of registered models: by them one walks back from a decision to its candles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from trading.errors import InvalidRequest

# a budget's month and the one before it are settled from the calls themselves
LEAST_LLM_DAYS: Final = 62
# a review looks back a week
LEAST_RESULT_DAYS: Final = 8
# a file is written anew when this much of it is empty, and this much at least
EMPTY_SHARE: Final = 0.25
EMPTY_BYTES: Final = 8_000_000
# writers wait while a file is written anew: of one this large, for about six seconds
LARGEST_VACUUM: Final = 1_000_000_000


@dataclass(frozen=True)
class Retention:
    """For how many days things are kept.

    Attributes:
        results: answers to requests (backtests and their parts), which can be worked out again.
        newest_results: of each kind so many are kept, however old.
        records: analyses, settlements, scoreboards and days' costs.
        quarantine: rows put aside. Those that a person released are kept as ``records``.
        llm_calls: single calls of the LLM; the sums of their months stay.
        notifications: what people were told. What is still held back stays.
        datasets: frozen datasets that no registered model was trained on.
        corrections: what late corrections replaced, where no dataset needs it.
        runs: MLflow runs that failed or never ended, until they are deleted; and those deleted, until they are gone.
        finished_runs: MLflow runs that ended well, until they are deleted; none that a registered version, the
            promotion history or a stored answer names.
        versions: registered versions that were never promoted.
        traces: conversations with the LLM in MLflow.
        reports: pages and pictures on the disk, but for those that a stored answer shows again.
        most_reports: of each kind not more than so many are kept, however young.

    Raises:
        InvalidRequest: so few days that work under way would miss something.
    """

    results: int = 30
    newest_results: int = 20
    records: int = 1_825
    quarantine: int = 180
    llm_calls: int = 400
    notifications: int = 90
    datasets: int = 365
    corrections: int = 365
    runs: int = 30
    finished_runs: int = 60
    versions: int = 365
    traces: int = 30
    reports: int = 30
    most_reports: int = 100

    def __post_init__(self) -> None:
        least = {"results": LEAST_RESULT_DAYS, "llm_calls": LEAST_LLM_DAYS}
        for name, value in vars(self).items():
            if value < least.get(name, 1):
                raise InvalidRequest(f"{name} cannot be kept for {value}; {least.get(name, 1)} is the least")

    def before(self, name: str, now: datetime) -> datetime:
        """The moment before which things of that name are too old."""
        days: int = getattr(self, name)
        return now - timedelta(days=days)


@dataclass(frozen=True)
class Stamped:
    """Something with a name that was last changed ``at`` (UTC)."""

    name: str
    at: datetime


def surplus(found: Iterable[Stamped], most: int, cutoff: datetime) -> list[Stamped]:
    """Those that are older than ``cutoff`` or beyond the ``most`` newest, the oldest first; the newest is never one."""
    order = sorted(found, key=lambda one: (one.at, one.name), reverse=True)
    return [one for rank, one in enumerate(order) if rank and (rank >= most or one.at < cutoff)][::-1]


def last_used(result: Mapping[str, Any]) -> datetime:
    """When a stored result was last made or, where that is noted, taken for another request."""
    made: datetime = result["created_at"]
    return max(made, result.get("used_at") or made)


def too_old(document: Mapping[str, Any], fields: Sequence[str], cutoff: datetime) -> bool:
    """Whether all those of the document's times that it has lie before ``cutoff``: one is not enough.

    An analysis of years ago that was made today is not old.
    """
    times = [document[field] for field in fields if document.get(field) is not None]
    return bool(times) and all(time < cutoff for time in times)


def needed_revisions(datasets: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """By chunk, the oldest revision that a dataset was read from."""
    oldest: dict[str, int] = {}
    for dataset in datasets:
        for one in dataset["revisions"]:
            oldest[one["chunk"]] = min(one["rev"], oldest.get(one["chunk"], one["rev"]))
    return oldest


def forgettable(undo: Sequence[Mapping[str, Any]], needed: int | None, cutoff: datetime) -> int:
    """How many of a chunk's undo entries, from the oldest on, nobody needs.

    Args:
        undo: oldest first; ``rev`` is the chunk's revision after the change, ``at`` its time.
        needed: the oldest revision that a dataset was read from; None where there is none. It is read back by
            undoing what came after it, so entries up to it are not for it.
    """
    count = 0
    for entry in undo:
        if entry["at"] >= cutoff or (needed is not None and entry["rev"] > needed):
            break
        count += 1
    return count


def worth_vacuum(pages: int, empty: int, page_size: int) -> bool:
    """Whether so much of an SQLite file is empty that it should be written anew."""
    return empty * page_size >= EMPTY_BYTES and empty >= EMPTY_SHARE * pages


def root_of(run: str, parents: Mapping[str, str | None]) -> str:
    """The run at the top of a family. A circle, which MLflow does not forbid, ends where it closes."""
    seen = {run}
    while (parent := parents.get(run)) is not None and parent not in seen:
        seen.add(parent)
        run = parent
    return run
