"""Who speaks for the models: a champion, nobody yet, one that is gone, and none that can be looked up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import promotions, registry
from tasks.model_analyst import Models
from tasks.panels import Panel, with_models
from tasks.store import Store, open_store
from tasks.technical_analyst import selection
from tests.registered_models import NOW, Registry, flipped, opened
from trading.window import Timeframe

# MLflow's database, made and asked
pytestmark = pytest.mark.integration


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return opened(tmp_path_factory)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened_store:
        yield opened_store


def gathered(models: Registry, store: Store, name: str) -> Panel:
    return with_models(
        store, models.settings, Panel(Models(), selection()), [name.removesuffix("-1h")], Timeframe.H1, NOW
    )


def promoted(models: Registry, store: Store, name: str, note: str = "") -> str:
    version = models.add(name, "logistic", note=note)
    promotions.promote(models.client, store, name, version, reason="a test", who="me", now=NOW, key=models.key)
    return version


def test_before_the_first_promotion_the_model_is_not_there_and_nobody_misses_it(models: Registry, store: Store) -> None:
    name = models.new_name()
    for panel in (gathered(models, store, name), gathered(models, store, name)):
        [one] = panel.unconfigured
        assert one.analyst == "model"
        assert one.reason.startswith(f"model {name} has no champion; run the train flow for it")
        assert (panel.models.champion, panel.models.abstention, panel.models.refused) == (None, None, False)
    # a version that the gate did not let through changes nothing
    models.add(name, "logistic")
    assert [one.analyst for one in gathered(models, store, name).unconfigured] == ["model"]
    version = promoted(models, store, name, note="better")
    panel = gathered(models, store, name)
    assert panel.unconfigured == ()
    assert panel.models.champion is not None
    assert panel.models.champion.version == version


def test_a_champion_that_is_refused_or_gone_is_missed(models: Registry, store: Store) -> None:
    name = models.new_name()
    version = promoted(models, store, name)
    [file] = models.folder(name, version).rglob("estimator.json")
    whole = file.read_bytes()
    file.write_bytes(flipped(whole, 40))
    refused = gathered(models, store, name)
    assert (refused.unconfigured, refused.models.refused) == ((), True)
    file.write_bytes(whole)
    # an alias that somebody took away is put back
    models.client.delete_registered_model_alias(name, registry.CHAMPION)
    back = gathered(models, store, name)
    assert back.models.champion is not None
    # a version that somebody deleted cannot be
    models.client.delete_model_version(name, version)
    gone = gathered(models, store, name)
    assert (gone.unconfigured, gone.models.champion) == ((), None)
    assert gone.models.abstention is not None
    assert gone.models.abstention.reason.startswith(f"MLflow does not tell of {name} (Model Version")
    models.client.delete_registered_model(name)
    assert gathered(models, store, name).models.abstention is not None


def test_an_mlflow_that_is_down_silences_the_model_at_once(models: Registry, store: Store, closed_port: int) -> None:
    down = models.settings.model_copy(update={"mlflow_tracking_uri": f"http://me:hidden@127.0.0.1:{closed_port}"})
    began = time.monotonic()
    panel = with_models(store, down, Panel(Models(), selection()), ["any"], Timeframe.H1, NOW)
    # MLflow's own client would have tried for minutes
    assert time.monotonic() - began < 30
    assert panel.unconfigured == ()
    assert panel.models.abstention is not None
    assert panel.models.abstention.reason.startswith("MLflow does not tell of any-1h (")
    assert "hidden" not in str(panel)
