"""Keeping the stores small: what is too old goes, by the rules of ``tasks.retention``, and is counted.

Everything here can be done twice, is taken up again by the next run where it was cut off, and goes on beside
running flows: a document is looked at again before it is removed, and a chunk is written by compare-and-set.
Chunks need no compaction: a period has one, and each write is the whole of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from prefect import task

from tasks import log, registry
from tasks.documents import Collection, Document, encoded
from tasks.quarantine import RELEASED
from tasks.report_garbage import sweep
from tasks.retention import (
    Retention,
    forgettable,
    last_used,
    needed_revisions,
    too_old,
)
from tasks.retry import STORE, prefect_options
from tasks.run_garbage import Collected, collect, collect_traces, collect_versions, promoted
from tasks.settings import Settings, load_settings
from tasks.sqlite_files import databases, vacuum
from tasks.store import (
    ANALYSES,
    CHUNKS,
    DATASETS,
    LLM_CALLS,
    NOTIFICATIONS,
    PROMOTIONS,
    QUARANTINE,
    RESULTS,
    SCOREBOARDS,
    SERIES,
    SETTLEMENTS,
    Store,
    configured_store,
)
from tasks.upkeep import alone, earlier

if TYPE_CHECKING:
    from mlflow import MlflowClient

# what is more is left for the next run: each removal is a write that others wait for
MOST: Final = 20_000
# answers to requests, which running the request again gives again; other kinds stay
RESULT_KINDS: Final = (
    "backtest", "backtest batch", "backtest comparison", "backtest drawing", "backtest study", "backtest targets",
    "look-ahead proof", "monitor", "review",
)  # fmt: skip


@dataclass(frozen=True)
class Removed:
    """What went of one kind of thing: how many, how many bytes, and how many too old ones stayed and why."""

    what: str
    removed: int
    bytes: int
    kept: int = 0
    remark: str = ""


@dataclass(frozen=True)
class Maintained:
    """What a maintenance did, or with ``dry_run`` would do. ``files``: bytes of each database before and after."""

    dry_run: bool
    rows: list[Removed]
    files: dict[str, tuple[int, int]]
    remarks: list[str]

    @property
    def removed(self) -> int:
        """How many things went."""
        return sum(row.removed for row in self.rows)

    @property
    def bytes(self) -> int:
        """How large they were."""
        return sum(row.bytes for row in self.rows)


def maintain(
    store: Store, settings: Settings, client: MlflowClient | None, retention: Retention, *, now: datetime, dry_run: bool
) -> Maintained:
    """Remove what is too old at ``now`` from the store, from MLflow and from the reports' folder, then write
    half-empty files anew.

    Args:
        client: None where there is no MLflow yet.

    Raises:
        RevisionConflict: a backup or another maintenance is at work.
    """
    with alone(store, "maintenance") as hold:
        rows, remarks = [], []
        if client is not None:
            found = collect(client, settings, store, retention, now=now, dry_run=dry_run, hold=hold)
            rows += _of_mlflow(found)
            remarks += [found.remark] if found.remark else []
            before = retention.before("versions", now)
            versions = collect_versions(client, store, before, dry_run=dry_run, hold=hold)
            rows.append(Removed("versions that were never promoted", len(versions), 0))
            before = retention.before("traces", now)
            rows.append(Removed("MLflow traces", collect_traces(client, before, dry_run=dry_run, hold=hold), 0))
        swept = sweep(store, settings.home, retention, now=now, dry_run=dry_run, hold=hold)
        rows.append(Removed("reports", swept.removed, swept.bytes, swept.kept))
        # what an answer leads to is looked at while it is there: it goes with the maintenance after this one
        rows += _of_store(store, client, retention, now, dry_run, hold)
        if not dry_run:
            store.documents.purge(now)
        files = {}
        for name, path in databases(settings).items():
            hold()
            size = path.stat().st_size
            remark = None if dry_run else vacuum(path)
            files[name] = (size, path.stat().st_size)
            remarks += [f"{name}: {remark}"] if remark else []
    return Maintained(dry_run, rows, files, remarks)


def _of_mlflow(found: Collected) -> list[Removed]:
    return [
        Removed("MLflow runs that failed: deleted, can be restored", len(found.deleted), 0),
        Removed("MLflow runs that ended well: deleted, can be restored", len(found.old), 0),
        Removed("MLflow runs deleted before: gone", len(found.gone), found.bytes, len(found.kept)),
        Removed("MLflow models deleted before: gone", len(found.models), 0),
    ]


def _of_store(
    store: Store, client: MlflowClient | None, keep: Retention, now: datetime, dry_run: bool, hold: Callable[[], None]
) -> Iterator[Removed]:
    def purge(
        what: str, collection: Collection, fields: tuple[str, ...], name: str, may: Callable[[Document], bool]
    ) -> Removed:
        cutoff = keep.before(name, now)
        judged = earlier(store, collection, fields[0], cutoff)
        return _purge(
            store, what, collection, judged, lambda one: too_old(one, fields, cutoff) and may(one), dry_run, hold
        )

    yield from _results(store, keep, now, dry_run, hold)
    made = ("timestamp", "created_at")
    yield purge("analyses", ANALYSES, made, "records", lambda _: True)
    yield purge("settlements", SETTLEMENTS, ("timestamp", "settled_at"), "records", lambda _: True)
    newest = _newest_boards(store)
    yield purge("scoreboards", SCOREBOARDS, ("until", "created_at"), "records", lambda one: one["_id"] not in newest)
    seen = ("first_seen",)
    yield purge("quarantined rows", QUARANTINE, seen, "quarantine", lambda one: one["status"] != RELEASED)
    yield purge("released rows", QUARANTINE, seen, "records", lambda one: one["status"] == RELEASED)
    yield purge("LLM calls", LLM_CALLS, ("at",), "llm_calls", lambda _: True)
    yield purge("notifications", NOTIFICATIONS, ("at",), "notifications", lambda one: one["state"] != "held")
    if client is None and store.documents.find(PROMOTIONS, newest=1):
        yield Removed("datasets", 0, 0, remark="all kept: without MLflow nobody knows which models need them")
    else:
        needed = promoted(client, store).datasets if client is not None else frozenset()
        yield purge("datasets", DATASETS, ("created_at",), "datasets", lambda one: one["_id"] not in needed)
    yield _corrections(store, keep.before("corrections", now), dry_run, hold)


def _results(
    store: Store, keep: Retention, now: datetime, dry_run: bool, hold: Callable[[], None]
) -> Iterator[Removed]:
    cutoff = keep.before("results", now)
    for kind in RESULT_KINDS:
        where = {"kind": kind}
        newest = {one["_id"] for one in _some(store, where, keep.newest_results)}
        judged = earlier(store, RESULTS, "created_at", cutoff, where)

        def may(one: Document, newest: set[str] = newest) -> bool:
            return last_used(one) < cutoff and one["_id"] not in newest

        found = _purge(store, f"results: {kind}", RESULTS, judged, may, dry_run, hold)
        if found.removed or found.kept:
            yield found
    costs = earlier(store, RESULTS, "created_at", keep.before("records", now), {"kind": "costs"})
    yield _purge(store, "results: costs", RESULTS, costs, lambda _: True, dry_run, hold)


def _some(store: Store, where: Mapping[str, Any], count: int) -> Iterator[Document]:
    """The newest ``count`` results, a few in memory at a time."""
    for at, one in enumerate(earlier(store, RESULTS, "created_at", None, where)):
        if at >= count:
            return
        yield one


def _newest_boards(store: Store) -> set[str]:
    """The last record of each timeframe stays, however old: it is the one that counts."""
    newest: dict[str, Document] = {}
    for one in earlier(store, SCOREBOARDS, "until", None):
        newest.setdefault(one["timeframe"], one)
    return {one["_id"] for one in newest.values()}


def _corrections(store: Store, cutoff: datetime, dry_run: bool, hold: Callable[[], None]) -> Removed:
    """Drop what late corrections replaced long ago, unless a dataset is read back by it."""
    needed = needed_revisions(earlier(store, DATASETS, "created_at", None))
    removed = size = kept = 0
    for series in store.documents.find(SERIES):
        for chunk in earlier(store, CHUNKS, "start", None, {"series": series["_id"]}):
            hold()
            undo = chunk.get("undo", [])
            count = forgettable(undo, needed.get(chunk["_id"]), cutoff)
            kept += sum(entry["at"] < cutoff for entry in undo[count:])
            if not count:
                continue
            after = {**chunk, "undo": undo[count:], "forgotten": undo[count - 1]["rev"]}
            # a chunk that changed meanwhile is left for the next run
            if dry_run or store.documents.compare_and_set(CHUNKS, after, chunk["rev"]):
                removed += count
                size += sum(len(entry["rows"]) for entry in undo[:count])
    return Removed("what corrections replaced", removed, size, kept)


def _purge(
    store: Store, what: str, collection: Collection, judged: Iterator[Document], may: Callable[[Document], bool],
    dry_run: bool, hold: Callable[[], None],
) -> Removed:  # fmt: skip
    removed = size = kept = 0
    for document in judged:
        hold()
        if not may(document):
            kept += 1
            continue
        if removed >= MOST:
            return Removed(what, removed, size, kept, f"more than {MOST:,}: the rest with the next run")
        if not dry_run:
            found = store.documents.get(collection, document["_id"])
            # somebody used it meanwhile, or another removed it
            if found is None or found["rev"] != document["rev"]:
                continue
            store.documents.delete(collection, document["_id"])
        removed, size = removed + 1, size + len(encoded(collection, document))
    return Removed(what, removed, size, kept)


# --- Prefect task --------------------------------------------------------------------------------


@task(name="maintain-stores", **prefect_options(STORE))
def maintain_task(retention: Retention, now: datetime, dry_run: bool) -> Maintained:
    """``maintain`` on the configured store and MLflow."""
    settings = load_settings()
    with configured_store(settings) as store:
        there = settings.mlflow_tracking_uri or (settings.home / "mlflow" / "mlflow.db").is_file()
        client = registry.connect(settings) if there else None
        done = maintain(store, settings, client, retention, now=now, dry_run=dry_run)
        log.logger().info("maintained", removed=done.removed, bytes=done.bytes, dry_run=dry_run)
        return done
