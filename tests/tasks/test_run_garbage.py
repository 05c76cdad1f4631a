"""MLflow's garbage, in a real database with real files: what failed goes in two steps, what is promoted never."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks import model_files, promotions, registry
from tasks.llm_tracing import EXPERIMENT
from tasks.retention import Retention
from tasks.run_garbage import Collected, backend_of, collect, collect_traces, collect_versions, promoted
from tasks.settings import Settings
from tasks.store import SCOREBOARDS, Store, open_store, put_result
from tests.registered_models import SET, Registry, candles, opened

pytestmark = pytest.mark.integration

DAY_MS = 86_400_000
KEEP = Retention(runs=30)


@pytest.fixture(scope="session")
def models_at(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return opened(tmp_path_factory)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as found:
        yield found


def sql(at: Registry, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(at.settings.home / "mlflow" / "mlflow.db", timeout=30)) as connection, connection:
        connection.execute(statement, values)


def run_at(
    at: Registry, experiment: str, name: str, *, days: float, failed: bool = True, parent: str | None = None
) -> str:
    """A run that began so many days ago, with a file of 1,000 bytes."""
    path = at.settings.home / "saved" / "figures.txt"
    path.write_text("x" * 1_000)
    record = registry.Record(name, {"a": 1}, {"m": 0.5}, {"kind": "training"}, [path])
    run = registry.log_run(at.client, experiment, record, at_ms=1, parent=parent, finish=False)
    registry.finish_run(at.client, run, failed=failed)
    sql(at, "UPDATE runs SET start_time = ? WHERE run_uuid = ?", int(time.time() * 1000 - days * DAY_MS), run)
    return run


def folder_of(client: MlflowClient, run: str) -> Path:
    return Path(client.get_run(run).info.artifact_uri.removeprefix("file://"))


def age_deletion(at: Registry, run: str, days: float) -> None:
    sql(at, "UPDATE runs SET deleted_time = ? WHERE run_uuid = ?", int(time.time() * 1000 - days * DAY_MS), run)


def test_what_failed_goes_and_what_was_promoted_never(models_at: Registry, store: Store) -> None:
    client, name = models_at.client, models_at.new_name()
    now = datetime.now(UTC)

    def run(*, dry_run: bool = False) -> Collected:
        return collect(
            client, models_at.settings, store, KEEP, now=now, dry_run=dry_run, hold=lambda: None
        )  # fmt: skip

    # two versions: one promoted, one that is only registered
    for _ in range(2):
        models_at.add(name, "logistic")
    promotions.promote(client, store, name, "1", reason="test", who="test", now=now, key=models_at.key)
    champion, other = (str(client.get_model_version(name, number).run_id) for number in ("1", "2"))
    experiment = str(client.get_run(champion).info.experiment_id)
    child = run_at(models_at, experiment, "fold of the champion", days=90, parent=champion)
    failed = run_at(models_at, experiment, "failed", days=90)
    fold = run_at(models_at, experiment, "its fold", days=90, failed=False, parent=failed)
    lately = run_at(models_at, experiment, "failed lately", days=20)
    well = run_at(models_at, experiment, "ended well", days=90, failed=False)
    by_people = run_at(models_at, experiment, "deleted by people", days=50, failed=False)
    stranger = client.create_run(experiment, start_time=1).info.run_id
    client.set_terminated(stranger, "FAILED")
    for one in (by_people, champion, other, child):
        client.delete_run(one)
        age_deletion(models_at, one, 40)

    rehearsed = run(dry_run=True)
    assert client.get_run(failed).info.lifecycle_stage == "active"
    assert folder_of(client, by_people).is_dir()
    kept_folders = [folder_of(client, one) for one in (champion, other, child, lately, well)]
    by_people_folder = folder_of(client, by_people)

    first = run()
    assert first == rehearsed
    assert set(first.deleted) == {failed, fold}
    assert set(first.gone) == {by_people}
    assert set(first.kept) == {champion, other, child}
    assert first.bytes == 1_000
    assert not by_people_folder.exists()
    assert not registry.run_exists(client, by_people)
    # deleted only: they could still be restored, with their files
    assert client.get_run(failed).info.lifecycle_stage == "deleted"
    failed_folder = folder_of(client, failed)
    assert failed_folder.is_dir()
    again = run()
    assert (again.deleted, again.gone) == ((), ())

    # as long again, and they are gone for good
    for one in (failed, fold):
        age_deletion(models_at, one, 31)
    assert set(run().gone) == {failed, fold}
    assert not failed_folder.exists()
    assert not registry.run_exists(client, fold)
    assert client.get_run(stranger).info.lifecycle_stage == "active"  # not ours
    for one in (champion, other, child, lately, well):
        assert registry.run_exists(client, one)
    # the promoted version's run and files are whole, though somebody had deleted the run
    assert all(any(folder.iterdir()) for folder in kept_folders[2:])
    client.restore_run(champion)
    for number in ("1", "2"):
        with model_files.verified(client, client.get_model_version(name, number), models_at.key) as folder:
            assert any(folder.iterdir())


def test_what_ended_well_goes_when_it_is_old_and_nothing_leads_to_it(models_at: Registry, store: Store) -> None:
    client, name = models_at.client, models_at.new_name()
    now = datetime.now(UTC)
    models_at.add(name, "logistic")
    registered = str(client.get_model_version(name, "1").run_id)
    sql(models_at, "UPDATE runs SET start_time = 1 WHERE run_uuid = ?", registered)
    experiment = registry.experiment_id(client, models_at.settings, "backtest of " + name)

    def ended(what: str, days: float, parent: str | None = None) -> str:
        return run_at(models_at, experiment, what, days=days, failed=False, parent=parent)

    old, young, shown, board, earlier_board = (
        ended(what, days)
        for what, days in (("old", 100), ("young", 60), ("shown", 100), ("board", 100), ("earlier board", 100))
    )
    below = [ended(f"below {number}", 100, old) for number in range(3)]
    lowest = ended("lowest", 100, below[0])
    # somebody deleted the parent alone
    parent = ended("parent", 100)
    orphan = ended("orphan", 100, parent)
    client.delete_run(parent)
    put_result(store, "answer", "backtest", {"run_id": shown}, now - timedelta(days=100))
    for run, days in ((board, 100), (earlier_board, 101)):
        document = {"_id": run, "timeframe": "1h", "until": now - timedelta(days=days), "run_id": run}
        store.documents.put(SCOREBOARDS, document | {"created_at": now})

    def done(*, dry_run: bool = False, days: int = 90) -> Collected:
        keep = Retention(finished_runs=days)
        return collect(
            client, models_at.settings, store, keep, now=now, dry_run=dry_run, hold=lambda: None
        )  # fmt: skip

    rehearsed = done(dry_run=True)
    assert client.get_run(old).info.lifecycle_stage == "active"
    first = done()
    assert first == rehearsed
    mine = {run for run in first.old if client.get_run(run).info.experiment_id == experiment}
    assert mine == {old, *below, lowest, earlier_board, orphan}
    assert first.deleted == ()
    assert {client.get_run(run).info.lifecycle_stage for run in mine} == {"deleted"}
    for run in (young, shown, board, registered):
        assert client.get_run(run).info.lifecycle_stage == "active"
    assert done().old == ()
    # with the shorter time the young one goes, too
    assert young in done(days=30).old
    for run in mine:
        age_deletion(models_at, run, 31)
    assert mine <= set(done().gone)


def test_versions_that_were_never_promoted_go_when_they_are_old(models_at: Registry, store: Store) -> None:
    client, name = models_at.client, models_at.new_name()
    now = datetime.now(UTC)
    for _ in range(6):
        models_at.add(name, "logistic")
    for number in ("1", "2"):
        promotions.promote(client, store, name, number, reason="test", who="test", now=now, key=models_at.key)
    registry.set_alias(client, name, registry.CHALLENGER, "4")
    old = int((now - timedelta(days=400)).timestamp() * 1000)
    sql(models_at, "UPDATE model_versions SET creation_time = ? WHERE name = ? AND version <> 5", old, name)
    stranger = models_at.new_name()
    client.create_registered_model(stranger)
    for _ in range(2):
        client.create_model_version(stranger, "s3://elsewhere/model")
    sql(models_at, "UPDATE model_versions SET creation_time = 1 WHERE name = ?", stranger)
    run = str(client.get_model_version(name, "3").run_id)

    def done(*, dry_run: bool = False) -> list[str]:
        before = Retention().before("versions", now)
        found = collect_versions(client, store, before, dry_run=dry_run, hold=lambda: None)
        return [one for one in found if one.split()[0] in (name, stranger)]

    assert done(dry_run=True) == done() == [f"{name} 3"]
    # champions of now and of before, the challenger, the young one and the newest
    assert [int(version.version) for version in registry.versions(client, name)] == [6, 5, 4, 2, 1]
    assert len(registry.versions(client, stranger)) == 2
    assert done() == []
    # what it was made by is garbage now, with its model
    sql(models_at, "UPDATE runs SET start_time = 1 WHERE run_uuid = ?", run)
    collected = collect(
        client, models_at.settings, store, KEEP, now=now, dry_run=False, hold=lambda: None
    )  # fmt: skip
    assert run in collected.old
    age_deletion(models_at, run, 31)
    assert run in collect(client, models_at.settings, store, KEEP, now=now, dry_run=False, hold=lambda: None).gone
    for number in ("1", "2", "4", "5", "6"):
        with model_files.verified(client, client.get_model_version(name, number), models_at.key) as folder:
            assert any(folder.iterdir())


def test_old_conversations_with_the_llm_go_and_other_traces_stay(models_at: Registry) -> None:
    import mlflow

    client, now = models_at.client, datetime.now(UTC)
    assert collect_traces(client, now, dry_run=False, hold=lambda: None) == 0

    def traces(experiment: str, days: float, count: int) -> None:
        began = int((now - timedelta(days=days)).timestamp() * 1e9)
        for number in range(count):
            span = mlflow.start_span_no_context(
                f"{number}", inputs={"messages": "x" * 500}, experiment_id=experiment, start_time_ns=began
            )
            mlflow.start_span_no_context("call", parent_span=span, start_time_ns=began).end(end_time_ns=began + 9)
            span.end(end_time_ns=began + 10)

    def left(experiment: str) -> int:
        return len(client.search_traces(locations=[experiment], max_results=500))

    llm, other = (registry.experiment_id(client, models_at.settings, name) for name in (EXPERIMENT, "of a stranger"))
    traces(llm, 40, 130)
    traces(llm, 20, 5)
    traces(other, 40, 2)
    mlflow.flush_trace_async_logging()
    assert (left(llm), left(other)) == (135, 2)
    cutoff = now - timedelta(days=30)
    held: list[int] = []
    assert collect_traces(client, cutoff, dry_run=True, hold=lambda: None) == 130
    assert left(llm) == 135
    assert collect_traces(client, cutoff, dry_run=False, hold=lambda: held.append(1)) == 130
    assert (left(llm), left(other)) == (5, 2)
    assert len(held) == 2  # not all at once
    assert collect_traces(client, cutoff, dry_run=False, hold=lambda: None) == 0
    with closing(sqlite3.connect(models_at.settings.home / "mlflow" / "mlflow.db")) as connection:
        assert connection.execute("SELECT count(*) FROM spans").fetchone() == (2 * 7,)


def test_a_model_that_a_failed_training_left_goes_with_its_files(models_at: Registry, store: Store) -> None:
    client, name = models_at.client, models_at.new_name()
    models_at.add(name, "logistic")
    mine = client.get_model_version(name, "1")
    registered = mine.source.removeprefix("models:/")
    assert registered.startswith("m-")
    run = client.create_run(client.get_run(mine.run_id).info.experiment_id, start_time=1).info.run_id
    client.set_tag(run, "mlflow.source.name", "tradeflows")
    with model_files.model_folder(client, mine) as folder:
        artifact = model_files.artifact_folder(folder)
        uri = registry.log_model(client, run, artifact, candles().tail(SET.rows_needed).reset_index())
    registry.finish_run(client, run, failed=True)
    sql(models_at, "UPDATE runs SET start_time = 1 WHERE run_uuid = ?", run)
    model = uri.removeprefix("models:/")
    files = Path(client.get_logged_model(model).artifact_location.removeprefix("file://"))
    assert len(list(files.rglob("*"))) > 5

    def collected() -> Collected:
        return collect(
            client, models_at.settings, store, KEEP, now=datetime.now(UTC), dry_run=False, hold=lambda: None
        )  # fmt: skip

    assert run in collected().deleted
    assert files.is_dir()  # it can still be restored
    age_deletion(models_at, run, 31)
    sql(
        models_at,
        "UPDATE logged_models SET last_updated_timestamp_ms = 1 WHERE model_id IN (?, ?)",
        model,
        registered,
    )
    done = collected()
    assert (done.gone, done.models) == ((run,), (model,))
    assert not files.exists()
    assert collected().models == ()
    # somebody deletes the model of a version behind its back: its files stay
    client.delete_logged_model(registered)
    sql(models_at, "UPDATE logged_models SET last_updated_timestamp_ms = 1 WHERE model_id = ?", registered)
    assert registered in collected().kept
    location = Path(client.get_model_version_download_uri(name, "1").removeprefix("file://"))
    assert len(list(location.rglob("*"))) > 5


def test_the_history_alone_protects_a_run_and_its_dataset(models_at: Registry, store: Store) -> None:
    client, name = models_at.client, models_at.new_name()
    now = datetime.now(UTC) - timedelta(days=1)
    models_at.add(name, "logistic", dataset_digest="of the champion")
    promotions.promote(client, store, name, "1", reason="test", who="test", now=now, key=models_at.key)
    run = str(client.get_model_version(name, "1").run_id)
    client.set_tag(run, "dataset_digest", "of the run")
    assert {"of the champion", "of the run"} <= promoted(client, store).datasets
    client.delete_registered_model(name)
    found = promoted(client, store)
    assert run in found.roots
    assert "of the run" in found.datasets
    assert "of the champion" not in found.datasets


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (None, "sqlite"),
        ("http://127.0.0.1:5000", "sqlite"),
        ("https://mlflow.example.com", None),
        ("postgresql://db/mlflow", "postgresql"),
    ],
)
def test_where_the_database_is(models_at: Registry, told: str | None, wanted: str | None, tmp_path: Path) -> None:
    settings = models_at.settings.model_copy(update={"mlflow_tracking_uri": told})
    found = backend_of(settings)
    assert (found or "None").startswith(wanted or "None")
    empty = Settings(home=tmp_path).model_copy(update={"mlflow_tracking_uri": None})
    assert backend_of(empty) is None
