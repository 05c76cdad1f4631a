"""What trainings that died leave in a real MLflow registry, and what a sweep makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ml.promotion import Decision
from tasks import promotions, registry, signing, sweep_registry
from tasks.store import PROMOTIONS, Store, open_store
from tasks.sweep_registry import FLOW_RUN, HALF, TRAINING, UnknownRun, mend
from tests.registered_models import KEY, NOW, Registry, aliases, opened

pytestmark = pytest.mark.integration


@pytest.fixture(scope="session")
def models_at(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return opened(tmp_path_factory)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as made:
        yield made


def open_run(at: Registry, name: str, flow_run: str) -> str:
    record = registry.Record("training", tags={FLOW_RUN: flow_run} if flow_run else {})
    return registry.log_run(
        at.client, registry.experiment_id(at.client, at.settings, name), record, at_ms=1, finish=False
    )


def knows(**began: datetime | None) -> Callable[[str], datetime | None]:
    """When the attempts of flow runs began, by id."""

    def of(flow_run: str) -> datetime | None:
        if flow_run not in began:
            raise UnknownRun(flow_run)
        return began[flow_run]

    return of


def test_open_runs_of_dead_flow_runs_are_closed_and_others_stay_open(models_at: Registry, store: Store) -> None:
    name = models_at.new_name()
    now = datetime.now(UTC)
    dead, earlier, at_work, foreign, nobodys = (
        open_run(models_at, name, flow_run) for flow_run in ("dead", "again", "works", "foreign", "")
    )
    # a flow run that died and runs again: what its first attempt left is older than the second
    known = knows(dead=None, again=now + timedelta(seconds=5), works=now - timedelta(minutes=5))
    assert mend(models_at.client, store, known, now=now, dry_run=True).closed
    assert models_at.client.get_run(dead).info.status == "RUNNING"
    found = mend(models_at.client, store, known, now=now)
    assert set(found.closed) == {dead, earlier}
    assert f"MLflow run {dead} was open" in "\n".join(found.lines())
    statuses = {run: models_at.client.get_run(run).info.status for run in (dead, earlier, at_work, foreign, nobodys)}
    assert statuses == {dead: "KILLED", earlier: "KILLED", at_work: "RUNNING", foreign: "RUNNING", nobodys: "RUNNING"}
    assert mend(models_at.client, store, known, now=now).closed == ()
    for run in (at_work, foreign, nobodys):
        registry.finish_run(models_at.client, run)


def test_a_half_registered_version_goes_and_whole_ones_stay(models_at: Registry, store: Store) -> None:
    name = models_at.new_name()
    whole, half = (models_at.add(name, "logistic", **{TRAINING: key}) for key in ("one", "two"))
    models_at.client.delete_model_version_tag(name, half, signing.SIGNATURE)
    now, nobody = datetime.now(UTC), knows()
    # its maker may be about to sign it
    found = mend(models_at.client, store, nobody, now=now)
    assert (found.removed, found.open) == ((), (f"{name} version {half}",))
    found = mend(models_at.client, store, nobody, now=now + HALF)
    assert (found.removed, found.open) == ((f"{name} version {half}",), ())
    assert [str(one.version) for one in registry.versions(models_at.client, name)] == [whole]
    # one that an alias names, or of whose making we know nothing, is for a person to look at
    other = models_at.add(name, "logistic")
    models_at.client.delete_model_version_tag(name, other, signing.SIGNATURE)
    named = models_at.add(name, "logistic", **{TRAINING: "three"})
    models_at.client.delete_model_version_tag(name, named, signing.SIGNATURE)
    models_at.client.set_registered_model_alias(name, "kept", named)
    assert mend(models_at.client, store, nobody, now=now + HALF + HALF).removed == ()


def test_a_version_whose_training_is_at_work_is_waited_for(models_at: Registry, store: Store) -> None:
    name = models_at.new_name()
    version = models_at.add(name, "logistic", **{TRAINING: "one"})
    models_at.client.delete_model_version_tag(name, version, signing.SIGNATURE)
    run = str(registry.version_at(models_at.client, name, version).run_id)
    models_at.client.update_run(run, status="RUNNING")
    now = datetime.now(UTC)
    found = mend(models_at.client, store, knows(), now=now + HALF)
    assert (found.removed, found.open) == ((), (f"{name} version {version}",))
    # its flow run died: run and version go together
    models_at.client.set_tag(run, FLOW_RUN, "dead")
    models_at.client.set_tag(run, "mlflow.source.name", "tradeflows")
    found = mend(models_at.client, store, knows(dead=None), now=now + HALF)
    assert (found.closed, found.removed) == ((run,), (f"{name} version {version}",))


def test_aliases_that_a_dead_promotion_left_behind_follow_its_history(models_at: Registry, store: Store) -> None:
    name = models_at.new_name()
    first, second = (models_at.add(name, "logistic") for _ in range(2))
    for version in (first, second):
        promotions.consider(
            models_at.client, store, name, version, lambda _: Decision(True, ("good",)), who="me", now=NOW,
            key=KEY.encode(),
        )  # fmt: skip
    # died after the entry, before the alias
    models_at.client.set_registered_model_alias(name, registry.CHAMPION, first)
    found = mend(models_at.client, store, knows(), now=datetime.now(UTC), dry_run=True)
    assert name in found.moved
    assert aliases(models_at.client, name)[registry.CHAMPION] == first
    assert name in mend(models_at.client, store, knows(), now=datetime.now(UTC)).moved
    assert aliases(models_at.client, name)[registry.CHAMPION] == second
    assert name not in mend(models_at.client, store, knows(), now=datetime.now(UTC)).moved
    assert len(store.documents.find(PROMOTIONS)) == 2
    assert sweep_registry.Mended().lines() == []
