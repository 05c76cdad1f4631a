"""A champion that is not what was registered is refused before it is parsed, and ``previous`` goes on in its place."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import SecretStr

import ml.artifact
from ml.artifact import MANIFEST
from tasks import models, promotions, registry, signing
from tasks.models import champion, unseen_targets
from tasks.promotions import promote
from tasks.store import Store, open_store
from tasks.training_runs import UNSEEN
from tests.registered_models import KEY, NOW, Registry, aliases, candles, flipped, opened
from trading.errors import ModelNotFound, ModelRejected

pytestmark = pytest.mark.integration


@pytest.fixture(scope="session")
def models_at(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return opened(tmp_path_factory)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as made:
        yield made


@pytest.fixture
def name(models_at: Registry, store: Store) -> str:
    """A model whose version 1 (logistic) is ``previous`` and whose version 2 (lightgbm) is the champion."""
    name = models_at.new_name()
    for estimator in ("logistic", "lightgbm"):
        version = models_at.add(name, estimator)
        promote(models_at.client, store, name, version, reason="test", who="me", now=NOW, key=models_at.key)
    assert aliases(models_at.client, name) == {"champion": "2", "previous": "1"}
    return name


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The estimators whose files were parsed."""
    real, asked = ml.artifact.estimator, []

    def watched(kind: str) -> Any:
        asked.append(kind)
        return real(kind)

    monkeypatch.setattr(ml.artifact, "estimator", watched)
    return asked


Fallback = Callable[[str], None]


@pytest.fixture
def falls_back(models_at: Registry, name: str, parsed: list[str], caplog: pytest.LogCaptureFixture) -> Fallback:
    """Checks that the champion is refused for that reason, unparsed and with an alert, and that previous answers."""

    def check(why: str) -> None:
        parsed.clear()
        caplog.clear()
        with caplog.at_level(logging.ERROR, "tradeflows"):
            found = champion(models_at.client, models_at.settings, name)
        assert (found.version, found.estimator, parsed) == ("1", "logistic", ["logistic"])
        assert found.degraded is not None
        assert found.degraded.startswith("version 2 was refused: ")
        assert why in found.degraded
        assert found.degraded.endswith("version 1 (previous) takes its place")
        assert found.model.predict(candles()).open_time == candles().index[-1]
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert "model rejected" in caplog.text
        assert why.split('"', maxsplit=1)[0] in caplog.text
        assert KEY not in found.degraded + caplog.text

    return check


def test_a_sound_champion_is_loaded(models_at: Registry, name: str, parsed: list[str]) -> None:
    found = champion(models_at.client, models_at.settings, name)
    assert (found.version, found.estimator, found.degraded, parsed) == ("2", "lightgbm", None, ["lightgbm"])
    with pytest.raises(ModelNotFound, match="has no champion"):
        champion(models_at.client, models_at.settings, "NOBODY-1h")


def test_one_flipped_bit_of_any_file_is_refused_by_name(models_at: Registry, name: str, falls_back: Fallback) -> None:
    folder = models_at.folder(name, "2")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert {"MLmodel", "requirements.txt", "manifest.json", "booster.txt"} < {path.name for path in files}
    for path in files:
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(flipped(whole, at))
            falls_back(path.name)
        path.write_bytes(whole)
    assert champion(models_at.client, models_at.settings, name).degraded is None


def test_missing_added_and_linked_files_are_refused(
    models_at: Registry, name: str, falls_back: Fallback, tmp_path: Path
) -> None:
    folder = models_at.folder(name, "2")
    for path in (folder / "data/model/booster.txt", folder / "data/model/estimator.json", folder / "MLmodel"):
        shutil.move(path, tmp_path / path.name)
        falls_back(path.name)
        path.symlink_to(tmp_path / path.name)  # the very bytes
        falls_back(path.name)
        path.unlink()
        shutil.move(tmp_path / path.name, path)
    for added in ("data/model/extra.py", "data/extra.py", "extra.py", "code/extra.py", "data/model/more/extra.py"):
        path = folder / added
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit")
        falls_back("extra.py" if "more" not in added else "more")
        path.unlink()
        if path.parent not in {folder, folder / "data", folder / "data/model"}:
            path.parent.rmdir()
    shutil.move(folder, tmp_path / "whole")
    falls_back("are gone")
    folder.symlink_to(tmp_path / "whole" / "data")
    falls_back("MLmodel is missing")
    folder.unlink()
    shutil.move(tmp_path / "whole", folder)
    assert champion(models_at.client, models_at.settings, name).degraded is None


def test_a_model_whose_scaler_was_taken_out_is_refused(models_at: Registry, store: Store, name: str) -> None:
    # the champion is linear now, so that it has a scaler, and its manifest is made to agree with the loss
    version = models_at.add(name, "logistic")
    promote(models_at.client, store, name, version, reason="test", who="me", now=NOW, key=models_at.key)
    folder = models_at.folder(name, version) / "data/model"
    numbers = json.loads((folder / "estimator.json").read_text())
    assert numbers.pop("means")
    (folder / "estimator.json").write_text(json.dumps(numbers))
    found = champion(models_at.client, models_at.settings, name)
    assert (found.version, found.estimator) == ("2", "lightgbm")
    assert "estimator.json has" in str(found.degraded)
    manifest = json.loads((folder / MANIFEST).read_text())
    data = (folder / "estimator.json").read_bytes()
    manifest["files"]["estimator.json"] = {"sha256": ml.artifact._sha256(data), "size": len(data)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert "manifest.json has sha256" in str(champion(models_at.client, models_at.settings, name).degraded)


def test_the_files_of_another_version_are_refused_even_with_its_tags(
    models_at: Registry, name: str, parsed: list[str], tmp_path: Path, falls_back: Fallback
) -> None:
    one, two = models_at.folder(name, "1"), models_at.folder(name, "2")
    shutil.move(one, tmp_path / "swap")
    shutil.move(two, one)
    shutil.move(tmp_path / "swap", two)
    with pytest.raises(ModelRejected, match=r"version 2 was refused: .*; version 1 was refused: "):
        champion(models_at.client, models_at.settings, name)
    assert parsed == []
    shutil.copytree(two, one, dirs_exist_ok=True)
    (one / "data/model/booster.txt").unlink()
    # version 1 is whole again, and version 2 is a copy of it, tags and signature and all
    for tag, value in registry.version_at(models_at.client, name, "1").tags.items():
        models_at.client.set_model_version_tag(name, "2", tag, value)
    falls_back("signature of")


def test_a_changed_added_or_removed_tag_is_refused(models_at: Registry, name: str, falls_back: Fallback) -> None:
    client = models_at.client
    for tag, value in registry.version_at(client, name, "2").tags.items():
        client.set_model_version_tag(name, "2", tag, flipped(value.encode(), 0).decode())
        falls_back("signature of")
        client.delete_model_version_tag(name, "2", tag)
        falls_back("not signed" if tag == signing.SIGNATURE else "signature of")
        client.set_model_version_tag(name, "2", tag, value)
    client.set_model_version_tag(name, "2", "approved_by", "somebody")
    falls_back("signature of")
    client.delete_model_version_tag(name, "2", "approved_by")
    assert champion(client, models_at.settings, name).degraded is None


def test_another_signing_key_refuses_all_and_is_not_told(models_at: Registry, name: str, parsed: list[str]) -> None:
    other = "quite another key, of the same length"
    settings = models_at.settings.model_copy(update={"signing_key": SecretStr(other)})
    with pytest.raises(ModelRejected, match=r"no version of .* can be used: version 2 .* version 1 ") as told:
        champion(models_at.client, settings, name)
    assert parsed == []
    assert KEY not in str(told.value)
    assert other not in str(told.value)


def test_a_fall_back_is_recorded_once_and_moves_no_alias(models_at: Registry, name: str, store: Store) -> None:
    booster = models_at.folder(name, "2") / "data/model/booster.txt"
    booster.write_bytes(flipped(booster.read_bytes(), 7))
    for _ in range(3):
        assert champion(models_at.client, models_at.settings, name, store=store, now=NOW).version == "1"
    *_, last = promotions.history(store, name)
    assert (last.number, last.kind, last.from_version, last.to_version) == (3, "fallback", "2", "1")
    assert "booster.txt" in last.reasons[0]
    assert aliases(models_at.client, name) == {"champion": "2", "previous": "1"}
    latest = promotions.latest(store, name)
    assert latest is not None
    assert latest.to_version == "2"


def test_an_alias_that_was_moved_past_the_history_is_put_back(
    models_at: Registry, name: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    client = models_at.client
    for disturb in (
        lambda: client.set_registered_model_alias(name, "champion", "1"),
        lambda: client.delete_registered_model_alias(name, "champion"),
    ):
        disturb()
        found = champion(client, models_at.settings, name, store=store, now=NOW)
        assert (found.version, found.degraded) == ("2", None)
        assert aliases(client, name) == {"champion": "2", "previous": "1"}
        assert "it was put back" in caplog.text
        caplog.clear()


def test_without_a_previous_version_there_is_nothing_to_fall_back_to(models_at: Registry, store: Store) -> None:
    name = models_at.new_name()
    version = models_at.add(name, "logistic")
    promote(models_at.client, store, name, version, reason="test", who="me", now=NOW, key=models_at.key)
    (models_at.folder(name, version) / "MLmodel").write_text("")
    with pytest.raises(ModelRejected, match=r"no version of .* can be used"):
        champion(models_at.client, models_at.settings, name)


def test_the_alert_is_an_event_where_there_is_a_prefect_server() -> None:
    from prefect.events.clients import AssertingEventsClient
    from prefect.events.worker import EventsWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        EventsWorker.set_client_override(AssertingEventsClient)
        try:
            models.alert("BTCUSDT-1h", "3", ["booster.txt was changed"])
            EventsWorker.instance().drain()
            [event] = [one for client in AssertingEventsClient.all for one in client.events]
        finally:
            EventsWorker.set_client_override(None)
            AssertingEventsClient.reset()
    assert event.event == models.REJECTED == "tradeflows.model.rejected"
    assert event.resource.id == "tradeflows.model.BTCUSDT-1h"
    assert event.payload["reasons"] == ["booster.txt was changed"]


def test_signals_of_the_walk_forward_that_were_changed_are_refused(
    models_at: Registry, store: Store, tmp_path: Path
) -> None:
    name = models_at.new_name()
    stamps = pd.DatetimeIndex(candles().index).as_unit("ms").asi8
    table = pd.DataFrame({"symbol": "AAA", "decided_at": stamps[500:600], "signal": np.int8(1)})
    table.to_parquet(tmp_path / UNSEEN)
    digest = ml.artifact._sha256((tmp_path / UNSEEN).read_bytes())
    version = models_at.add(name, "logistic", unseen_sha256=digest, trained_until_ms=str(stamps[-1]))
    run = registry.version_at(models_at.client, name, version).run_id
    models_at.client.log_artifact(run, str(tmp_path / UNSEEN))
    promote(models_at.client, store, name, version, reason="test", who="me", now=NOW, key=models_at.key)
    chosen = champion(models_at.client, models_at.settings, name)
    targets, first = unseen_targets(models_at.client, chosen, "AAA", candles())
    assert first == 500
    assert (targets[500:600] == 1).all()
    table.assign(signal=np.int8(-1)).to_parquet(tmp_path / UNSEEN)
    models_at.client.log_artifact(run, str(tmp_path / UNSEEN))
    with pytest.raises(ModelRejected, match=r"out_of_sample\.parquet of"):
        unseen_targets(models_at.client, chosen, "AAA", candles())
