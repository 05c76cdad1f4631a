"""The champion changes once per decision, the history says how, and the aliases follow it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ml.promotion import Decision
from tasks import promotions, registry
from tasks.promotions import Change, consider, history, leased, promote, rollback, settle
from tasks.store import PROMOTIONS, Store, open_store
from tests.registered_models import KEY, NOW, Registry, aliases, flipped, opened
from trading.errors import InvalidRequest, ModelNotFound, ModelRejected, RevisionConflict

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as made:
        yield made


def test_entries_are_only_ever_added(store: Store) -> None:
    change = Change("m", 1, "promote", None, "1", None, "me", NOW, ("why",), "run", False)
    assert store.documents.insert(PROMOTIONS, promotions._document(change))
    assert history(store, "m") == [change]
    assert not store.documents.insert(PROMOTIONS, promotions._document(Change(**{**vars(change), "to_version": "2"})))
    assert history(store, "m") == [change]
    promotions.fell_back(store, "m", "1", "2", reason="bad", who="me", now=NOW)
    promotions.fell_back(store, "m", "1", "2", reason="bad", who="me", now=NOW + timedelta(minutes=10))
    promotions.fell_back(store, "m", "1", "2", reason="worse", who="me", now=NOW)
    assert [(one.number, one.kind, one.reasons) for one in history(store, "m")] == [
        (1, "promote", ("why",)),
        (2, "fallback", ("bad",)),
        (3, "fallback", ("worse",)),
    ]
    assert promotions.latest(store, "m") == change
    assert history(store, "another") == []


def test_one_at_a_time_and_who_waits_too_long_says_so(store: Store) -> None:
    with leased(store, "m"):
        with (
            pytest.raises(RevisionConflict, match="changing the champion of m for 0 s"),
            leased(store, "m", patience=0),
        ):
            pass
        with leased(store, "n", patience=0):
            pass
        # a holder that died is waited for no longer than its lease
        with leased(store, "m", patience=0, clock=lambda: NOW + timedelta(days=36500)):
            pass
    with leased(store, "m", patience=0):
        pass


# --- with MLflow ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def models_at(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return opened(tmp_path_factory)


@pytest.fixture
def name(models_at: Registry) -> str:
    """A model with three versions and no champion."""
    name = models_at.new_name()
    for estimator in ("logistic", "lightgbm", "logistic"):
        models_at.add(name, estimator)
    return name


def _yes(why: str = "better") -> Decision:
    return Decision(True, (why,))


def _moves(store: Store, name: str) -> list[tuple[str, str | None, str, str | None]]:
    return [(one.kind, one.from_version, one.to_version, one.previous) for one in history(store, name)]


@pytest.mark.integration
def test_promotions_and_rollbacks_and_the_aliases_after_each(models_at: Registry, store: Store, name: str) -> None:
    client, how = models_at.client, {"who": "me", "now": NOW, "key": models_at.key}
    with pytest.raises(ModelNotFound, match="no previous version"):
        rollback(client, store, name, reason="x", **how)
    decision, change = consider(client, store, name, "1", lambda current: _yes(str(current)), **how)
    assert decision.reasons == ("None",)
    assert change is not None
    assert (change.who, change.at, change.reasons, change.manual) == ("me", NOW, ("None",), False)
    assert change.evidence_run == registry.version_at(client, name, "1").run_id
    assert aliases(client, name) == {"champion": "1"}
    seen: list[str] = []
    consider(client, store, name, "2", lambda current: seen.append(str(current.version)) or _yes(), **how)
    assert seen == ["1"]
    assert aliases(client, name) == {"champion": "2", "previous": "1"}
    closed, none = consider(client, store, name, "3", lambda _: Decision(False, ("worse",)), **how)
    assert (closed, none) == (Decision(False, ("worse",)), None)
    again, none = consider(client, store, name, "2", lambda _: Decision(False, ("itself",)), **how)
    assert (again.promote, none) == (True, None)
    promote(client, store, name, "3", reason="I looked", **how)
    assert aliases(client, name) == {"champion": "3", "previous": "2"}
    rollback(client, store, name, reason="it lost money", **how)
    assert aliases(client, name) == {"champion": "2", "previous": "1"}
    rollback(client, store, name, reason="so did this", **how)
    assert aliases(client, name) == {"champion": "1"}
    with pytest.raises(ModelNotFound, match="no previous version"):
        rollback(client, store, name, reason="x", **how)
    assert _moves(store, name) == [
        ("promote", None, "1", None),
        ("promote", "1", "2", "1"),
        ("promote", "2", "3", "2"),
        ("rollback", "3", "2", "1"),
        ("rollback", "2", "1", None),
    ]
    assert [one.manual for one in history(store, name)] == [False, False, True, True, True]


@pytest.mark.integration
def test_what_may_not_be_promoted_changes_nothing(models_at: Registry, store: Store, name: str) -> None:
    client, how = models_at.client, {"who": "me", "now": NOW, "key": models_at.key}
    models_at.add(name, "baseline")
    promote(client, store, name, "1", reason="first", **how)
    before = (_moves(store, name), aliases(client, name))
    booster = models_at.folder(name, "2") / "data/model/booster.txt"
    booster.write_bytes(flipped(booster.read_bytes(), 3))
    for version, reason, error, said in (
        ("2", "x", ModelRejected, "booster.txt"),
        ("4", "x", InvalidRequest, "the baseline baseline, which is never promoted"),
        ("9", "x", ModelNotFound, "has no version 9"),
        ("nine", "x", ModelNotFound, "has no version nine"),
        ("1", "x", InvalidRequest, "is the champion already"),
        ("3", " ", InvalidRequest, "needs a reason"),
    ):
        with pytest.raises(error, match=said):
            promote(client, store, name, version, reason=reason, **how)
    for version in ("2", "4"):
        with pytest.raises((ModelRejected, InvalidRequest)):
            consider(client, store, name, version, lambda _: _yes(), **how)
    assert (_moves(store, name), aliases(client, name)) == before


@pytest.mark.integration
def test_what_a_dead_process_began_is_finished_by_the_next(models_at: Registry, store: Store, name: str) -> None:
    client, how = models_at.client, {"who": "me", "now": NOW, "key": models_at.key}
    promote(client, store, name, "1", reason="first", **how)
    # it died after its entry, before either alias was moved
    change = Change(name, 2, "promote", "1", "2", "1", "the late", NOW, ("why",), None, False)
    assert store.documents.insert(PROMOTIONS, promotions._document(change))
    assert promotions.strayed(client, store, name) == [
        f"the alias champion of {name} names version 1 and the promotion history 2",
        f"the alias previous of {name} names version None and the promotion history 1",
    ]
    consider(client, store, name, "3", lambda current: Decision(False, (str(current),)), **how)
    assert aliases(client, name) == {"champion": "2", "previous": "1"}
    assert promotions.strayed(client, store, name) == []
    assert not settle(client, store, name)


@pytest.mark.integration
def test_a_lease_that_ran_out_loses_to_whoever_was_faster(
    models_at: Registry, store: Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, how = models_at.client, {"who": "me", "now": NOW, "key": models_at.key}
    promote(client, store, name, "1", reason="first", **how)

    def slow(_: object) -> Decision:
        # while it thinks its lease runs out, and another one promotes
        document = promotions._document(Change(name, 2, "promote", "1", "3", "1", "other", NOW, ("x",), None, False))
        real = promotions.history
        found = real(store, name)
        assert store.documents.insert(PROMOTIONS, document)
        monkeypatch.setattr(promotions, "history", lambda *_: found)
        return _yes()

    with pytest.raises(RevisionConflict, match="somebody else changed the champion"):
        consider(client, store, name, "2", slow, **how)
    monkeypatch.undo()
    settle(client, store, name)
    assert aliases(client, name) == {"champion": "3", "previous": "1"}


@pytest.mark.integration
def test_two_trainings_in_threads_end_at_the_same_moment(
    models_at: Registry, store: Store, name: str, tmp_path: Path
) -> None:
    client, how = models_at.client, {"now": NOW, "key": models_at.key}
    promote(client, store, name, "1", reason="first", who="me", **how)
    start, seen = threading.Barrier(2), []

    def finish(version: str) -> None:
        def judge(current: object) -> Decision:
            seen.append(str(current.version))  # type: ignore[attr-defined]
            return _yes(f"better than {current.version}")  # type: ignore[attr-defined]

        start.wait()
        consider(client, store, name, version, judge, who=f"training {version}", **how)

    threads = [threading.Thread(target=finish, args=(version,)) for version in ("2", "3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _, first, second = history(store, name)
    assert {first.to_version, second.to_version} == {"2", "3"}
    # the second one was judged against the first, not against what was there before both
    assert seen == ["1", first.to_version]
    assert (first.from_version, second.from_version) == ("1", first.to_version)
    assert second.reasons == (f"better than {first.to_version}",)
    assert aliases(client, name) == {"champion": second.to_version, "previous": first.to_version}


FINISH = """
import sys
from pathlib import Path
from pydantic import SecretStr
from ml.promotion import Decision
from tasks import promotions, registry, signing
from tasks.settings import Settings
from tasks.store import open_store
from tests.registered_models import KEY, NOW

home, folder, name, version = sys.argv[1:]
settings = Settings(home=Path(home), signing_key=SecretStr(KEY)).model_copy(update={"mlflow_tracking_uri": None})
client = registry.connect(settings)
with open_store(Path(folder)) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    promotions.consider(
        client, store, name, version, lambda current: Decision(True, (f"better than {current.version}",)),
        who=f"training {version}", now=NOW, key=signing.signing_key(settings),
    )
"""


@pytest.mark.integration
def test_two_trainings_in_processes_end_at_the_same_moment(
    models_at: Registry, store: Store, name: str, tmp_path: Path
) -> None:
    client = models_at.client
    promote(client, store, name, "1", reason="first", who="me", now=NOW, key=models_at.key)
    words = [str(models_at.settings.home), str(tmp_path), name]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": CHECKOUT}
    started = [subprocess.Popen([sys.executable, "-c", FINISH, *words, version], **pipes) for version in ("2", "3")]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.communicate("go\n", timeout=60)
    assert [process.returncode for process in started] == [0, 0]
    _, first, second = history(store, name)
    assert {first.to_version, second.to_version} == {"2", "3"}
    assert (first.from_version, second.from_version) == ("1", first.to_version)
    assert second.reasons == (f"better than {first.to_version}",)
    assert aliases(client, name) == {"champion": second.to_version, "previous": first.to_version}
    assert KEY not in str(history(store, name))
