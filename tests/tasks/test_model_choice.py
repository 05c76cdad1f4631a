"""Which model speaks: the one of exactly these symbols, else the smallest that was trained on all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import promotions, registry
from tasks.model_choice import model_for
from tasks.store import Store, open_store
from tasks.training import model_name
from tests.registered_models import NOW, Registry, opened
from trading.window import Timeframe

# MLflow's database, made and asked
pytestmark = pytest.mark.integration
H1 = Timeframe.H1


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return opened(tmp_path_factory)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened_store:
        yield opened_store


def promoted(models: Registry, store: Store, symbols: list[str], timeframe: Timeframe = H1) -> str:
    name = model_name(symbols, timeframe)
    version = models.add(name, "logistic", symbols=",".join(symbols), timeframe=timeframe.value)
    promotions.promote(models.client, store, name, version, reason="a test", who="me", now=NOW, key=models.key)
    return name


def test_a_part_of_the_symbols_is_answered_by_the_smallest_model_of_them_all(models: Registry, store: Store) -> None:
    client = models.client

    def of(*symbols: str, timeframe: Timeframe = H1) -> str:
        return model_for(client, store, symbols, timeframe)

    # nobody was trained: it is called as it will be
    assert of("CUT2", "CUT1") == "CUT1-CUT2-1h"
    many = promoted(models, store, [f"CUT{number}" for number in range(12)])
    assert many.startswith("12-symbols-")
    some = promoted(models, store, ["CUT1", "CUT2", "CUT3"])
    assert of("CUT3", "CUT1") == of("CUT2") == some
    assert of("CUT2", "CUT4") == many
    # a model of a symbol whose name only begins alike, of another bar, and one that lacks a symbol
    assert of("CUT") == "CUT-1h"
    assert of("CUT2", timeframe=Timeframe.H4) == "CUT2-4h"
    assert of("CUT2", "OTHER") == "CUT2-OTHER-1h"
    # a version that the gate did not let through does not speak
    models.add("CUT2-1h", "logistic", symbols="CUT2", timeframe="1h")
    assert of("CUT2") == some
    own = promoted(models, store, ["CUT2"])
    assert of("CUT2") == own == "CUT2-1h"
    # and once it had a champion nobody takes its place in silence
    registry.set_alias(client, own, registry.CHAMPION, None)
    assert of("CUT2") == own
