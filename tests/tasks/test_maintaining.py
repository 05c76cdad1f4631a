"""What goes from the store and what stays, on a real one."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from tasks import sqlite_files
from tasks.chunks import Revision
from tasks.datasets import find, load, select
from tasks.documents import Collection, Document
from tasks.maintaining import RESULT_KINDS, Maintained, maintain
from tasks.mongo_documents import MongoDocuments
from tasks.retention import Retention
from tasks.settings import Settings
from tasks.store import (
    ANALYSES,
    COLLECTIONS,
    DATASETS,
    LEDGER,
    LLM_CALLS,
    NOTIFICATIONS,
    PROMOTIONS,
    QUARANTINE,
    RESULTS,
    SCOREBOARDS,
    Store,
    corrections,
    open_store,
    put_result,
    read_candles,
    write_candles,
)
from tasks.upkeep import LEASE, LEASE_NAME, alone, earlier
from tests.trainings import stored
from trading.candles import frame_of
from trading.errors import DatasetLost, RevisionConflict
from trading.window import Timeframe, Window

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
START = datetime(2023, 1, 1, tzinfo=UTC)
KEEP = Retention(newest_results=2)


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def run(store: Store, tmp_path: Path, *, keep: Retention = KEEP, dry_run: bool = False) -> Maintained:
    configured = Settings(home=tmp_path).model_copy(update={"mongodb_url": None, "mlflow_tracking_uri": None})
    return maintain(store, configured, None, keep, now=NOW, dry_run=dry_run)


def put(store: Store, collection: Collection, *documents: Document) -> None:
    for document in documents:
        store.documents.put(collection, document)


def ids(store: Store, collection: Collection) -> set[str]:
    return {one["_id"] for one in store.documents.find(collection)}


def test_old_results_go_but_the_newest_the_used_and_unknown_kinds_stay(store: Store, tmp_path: Path) -> None:
    for number in range(5):
        put_result(store, f"batch {number}", "backtest batch", {"n": number}, ago(100 - number))
    put_result(store, "young", "backtest", {}, ago(29))
    put_result(store, "of a stranger", "portfolio", {}, ago(999))
    put_result(store, "costs|2023-01-01", "costs", {}, ago(480))
    used = store.documents.get(RESULTS, "batch 1")
    assert used is not None
    store.documents.put(RESULTS, {**used, "used_at": ago(3)})
    rehearsed = run(store, tmp_path, dry_run=True)
    assert rehearsed.removed == 2
    assert len(ids(store, RESULTS)) == 8
    done = run(store, tmp_path)
    assert (done.removed, done.bytes) == (rehearsed.removed, rehearsed.bytes)
    # batch 3 and 4 are the newest two, batch 1 was used again
    assert ids(store, RESULTS) == {
        "batch 1", "batch 3", "batch 4", "young", "of a stranger", "costs|2023-01-01"
    }  # fmt: skip
    assert run(store, tmp_path).removed == 0


def test_old_reports_go_but_for_those_of_answers_that_stay(store: Store, tmp_path: Path) -> None:
    keep = Retention(newest_results=1, most_reports=1)
    for number, age in enumerate((90, 40, 35, 10)):
        page = tmp_path / "reports" / "backtest" / f"X-1h-{number}" / "X.html"
        page.parent.mkdir(parents=True)
        page.write_bytes(b"x" * 1_000)
        for path in (page, page.parent):
            os.utime(path, (ago(age).timestamp(), ago(age).timestamp()))
        put_result(store, f"{number}", "backtest", {"run_id": "r", "pages": [str(page)], "pictures": []}, ago(age))
    store.documents.delete(RESULTS, "0")

    def row(done: Maintained) -> tuple[int, int, int]:
        found = next(one for one in done.rows if one.what == "reports")
        return found.removed, found.bytes, found.kept

    assert row(run(store, tmp_path, keep=keep, dry_run=True)) == (1, 1_000, 2)
    # the page whose answer had gone before; those of the answers that go now are looked at the next time
    assert row(run(store, tmp_path, keep=keep)) == (1, 1_000, 2)
    assert ids(store, RESULTS) == {"3"}
    assert row(run(store, tmp_path, keep=keep)) == (2, 2_000, 0)
    assert row(run(store, tmp_path, keep=keep)) == (0, 0, 0)
    assert [path.name for path in (tmp_path / "reports" / "backtest").iterdir()] == ["X-1h-3"]


def test_every_kind_of_result_that_the_code_stores_is_known() -> None:
    from tasks.backtest_leaders import COMPARISON
    from tasks.backtest_models import TARGETS
    from tasks.backtest_proofs import PROOF
    from tasks.backtest_runs import BATCH
    from tasks.backtest_studies import DRAWING, STUDY
    from tasks.backtesting import RESULT
    from tasks.reviewing import KIND

    assert set(RESULT_KINDS) == {BATCH, COMPARISON, TARGETS, PROOF, STUDY, DRAWING, RESULT, KIND, "monitor"}


def test_records_go_by_their_age_and_what_is_still_at_work_stays(store: Store, tmp_path: Path) -> None:
    old, mid = ago(1_900), ago(200)
    analysis: dict[str, Any] = {"symbol": "A", "timeframe": "1h"}
    put(
        store, ANALYSES,
        {"_id": "old", **analysis, "timestamp": old, "created_at": old},
        {"_id": "made lately", **analysis, "timestamp": old, "created_at": ago(1)},
        {"_id": "young", **analysis, "timestamp": mid, "created_at": mid},
    )  # fmt: skip
    row = {"series": "A|1h", "open_time": old}
    put(
        store, QUARANTINE,
        {"_id": "held", **row, "first_seen": mid, "status": "held"},
        {"_id": "released", **row, "first_seen": mid, "status": "released"},
        {"_id": "released long ago", **row, "first_seen": old, "status": "released"},
        {"_id": "fresh", **row, "first_seen": ago(10), "status": "held"},
    )  # fmt: skip
    put(
        store, NOTIFICATIONS,
        {"_id": "told", "state": "delivered", "at": mid}, {"_id": "held back", "state": "held", "at": mid},
    )  # fmt: skip
    put(store, LLM_CALLS, {"_id": "a", "day": "2023-01-01", "at": ago(480)}, {"_id": "b", "day": "d", "at": mid})
    put(
        store, SCOREBOARDS,
        {"_id": "first", "timeframe": "1h", "until": ago(1_950), "created_at": old},
        {"_id": "last", "timeframe": "1h", "until": ago(1_930), "created_at": old},
    )  # fmt: skip
    put(store, LEDGER, {"_id": "A|1h|x", "series": "A|1h", "start": old, "recorded_at": old})
    put(store, PROMOTIONS, {"_id": "M|1", "model": "M", "number": 1, "evidence_run": None, "at": old})
    put(store, DATASETS, {"_id": "d", "created_at": old, "revisions": []})
    done = run(store, tmp_path)
    assert ids(store, ANALYSES) == {"made lately", "young"}
    assert ids(store, QUARANTINE) == {"released", "fresh"}
    assert ids(store, NOTIFICATIONS) == {"held back"}
    assert ids(store, LLM_CALLS) == {"b"}
    assert ids(store, SCOREBOARDS) == {"last"}
    assert ids(store, LEDGER) == {"A|1h|x"}
    assert ids(store, PROMOTIONS) == {"M|1"}
    # there are promotions, and without MLflow nobody knows of which datasets
    assert ids(store, DATASETS) == {"d"}
    assert next(row for row in done.rows if row.what == "datasets").remark.startswith("all kept")


def candles(count: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    close = 100 + rng.normal(0, 1, count).cumsum() / 10
    stamps = int(START.timestamp() * 1000) + 3_600_000 * np.arange(count)
    return frame_of(stamps, np.column_stack([close, close + 1, close - 1, close, np.ones(count)]))


def test_corrections_are_forgotten_unless_a_dataset_is_read_back_by_them(store: Store, tmp_path: Path) -> None:
    window = Window("A", Timeframe.H1, START, START + timedelta(hours=200))
    first, second, third = (candles(200, seed) for seed in (1, 2, 3))
    stored(store, window, first, "simulated")
    write_candles(store, window, second, "simulated", Revision(ago(500), "test"))
    dataset = select(store, ["A"], Timeframe.H1, window.start, window.end, now=ago(100))
    write_candles(store, window, third, "simulated", Revision(ago(450), "test"))
    assert len(corrections(store, "A", "1h")) == 400
    done = run(store, tmp_path)
    row = next(row for row in done.rows if row.what == "what corrections replaced")
    # the change before the dataset goes, the one after it stays
    assert (row.removed, row.kept) == (1, 1)
    assert load(store, find(store, dataset.digest))["A"].equals(second)
    assert read_candles(store, window).equals(third)
    assert len(corrections(store, "A", "1h")) == 200
    # without the dataset (365 days are not over: named as too old here) the other goes, too
    done = run(store, tmp_path, keep=Retention(datasets=90))
    assert next(row for row in done.rows if row.what == "what corrections replaced").removed == 1
    assert not corrections(store, "A", "1h")
    assert read_candles(store, window).equals(third)
    with pytest.raises(DatasetLost, match="corrected too often"):
        load(store, dataset)


def test_large_collections_are_walked_whole_even_where_many_share_a_moment(store: Store) -> None:
    moments = [ago(1)] * 25 + [ago(2)] * 3 + [ago(3)] * 12 + [ago(4), ago(5)]
    for number, at in enumerate(moments):
        put_result(store, f"{number:02}", "k", {}, at)
    for cutoff, wanted in ((None, 42), (ago(1), 17), (ago(3), 2)):
        found = [one["_id"] for one in earlier(store, RESULTS, "created_at", cutoff, {"kind": "k"})]
        assert len(found) == len(set(found)) == wanted
    # removed while one walks: all are seen all the same
    for one in earlier(store, RESULTS, "created_at", None, {"kind": "k"}):
        assert store.documents.delete(RESULTS, one["_id"])
    assert not ids(store, RESULTS)


def test_one_at_a_time_and_a_lease_that_was_lost_is_noticed(store: Store) -> None:
    clock = [NOW]
    with alone(store, "maintenance", clock=lambda: clock[0]) as hold:
        with (
            pytest.raises(RevisionConflict, match="the backup would disturb"),
            alone(store, "the backup", clock=lambda: clock[0]),
        ):
            pass
        clock[0] += LEASE / 2
        hold()
        clock[0] += 0.9 * LEASE
        hold()
        clock[0] += 2 * LEASE
        assert store.documents.acquire(LEASE_NAME, "another", LEASE, clock[0])
        with pytest.raises(RevisionConflict, match="held up"):
            hold()
    # it is the other's still
    assert not store.documents.acquire(LEASE_NAME, "a third", LEASE, clock[0])


@pytest.mark.integration
def test_a_half_empty_store_is_written_anew_while_it_is_open(store: Store, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for number in range(12):
        put_result(store, f"{number}", "backtest batch", {"body": rng.bytes(1_000_000)}, ago(60 - number))
    done = run(store, tmp_path)
    before, after = done.files["store"]
    assert done.bytes > 10_000_000
    assert before > 12_000_000
    assert after < 3_000_000
    assert ids(store, RESULTS) == {"10", "11"}
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        # while somebody writes it is left for another time
        connection.execute("CREATE TABLE bulk (body BLOB)")
        connection.execute("INSERT INTO bulk VALUES (?)", (b"x" * 12_000_000,))
        connection.commit()
        connection.execute("DROP TABLE bulk")
        connection.commit()
        connection.execute("BEGIN IMMEDIATE")
        waited = sqlite_files.vacuum(tmp_path / "store.db", seconds=0.01)
    assert waited is not None
    assert "next run" in waited


@pytest.mark.integration
def test_the_same_on_mongodb(mongo_url: str, mongo_database: str, tmp_path: Path) -> None:
    with Store(MongoDocuments(mongo_url, COLLECTIONS, database=mongo_database)) as store:
        for number in range(25):
            put_result(store, f"{number:02}", "backtest batch", {"body": b"x" * 1_000}, ago(60 - number % 5))
        window = Window("A", Timeframe.H1, START, START + timedelta(hours=100))
        stored(store, window, candles(100, 1), "simulated")
        write_candles(store, window, candles(100, 2), "simulated", Revision(ago(500), "test"))
        configured = Settings(home=tmp_path).model_copy(
            update={"mongodb_url": SecretStr(mongo_url), "mlflow_tracking_uri": None}
        )
        done = maintain(store, configured, None, KEEP, now=NOW, dry_run=False)
        counts = {row.what: row.removed for row in done.rows if row.removed}
        assert counts == {"results: backtest batch": 23, "what corrections replaced": 1}
        # the newest two, of five that are of one moment
        left = store.documents.find(RESULTS)
        assert [one["created_at"] for one in left] == [ago(56), ago(56)]
        assert read_candles(store, window).equals(candles(100, 2))
        assert maintain(store, configured, None, KEEP, now=NOW, dry_run=False).removed == 0
        assert done.files == {}
