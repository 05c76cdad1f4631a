"""``tradeflows models``: what it shows fits the screen, and what it changes is what was asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner, Result

from deployments.command import app
from tasks import promotions, registry
from tasks.store import Store, configured_store
from tests.registered_models import KEY, Registry, aliases, flipped, opened

pytestmark = pytest.mark.integration
Tradeflows = Callable[..., Result]


@pytest.fixture(scope="session")
def models_at(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return opened(tmp_path_factory)


@pytest.fixture
def tradeflows(models_at: Registry) -> Iterator[Tradeflows]:
    """Runs ``tradeflows models`` on that registry."""
    before = dict(os.environ)
    variables = {"TRADEFLOWS_SIGNING_KEY": KEY, "COLUMNS": "80", "TRADEFLOWS_HOME": str(models_at.settings.home)}

    def run(*words: str) -> Result:
        done = CliRunner(env=variables).invoke(app, ["models", *words])
        assert KEY not in done.output
        assert all(len(line) <= 80 for line in done.stdout.splitlines() if "│" in line or "─" in line)
        return done

    yield run
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def store(models_at: Registry) -> Iterator[Store]:
    with configured_store(models_at.settings) as found:
        yield found


def test_from_the_first_version_to_a_rollback(models_at: Registry, tradeflows: Tradeflows, store: Store) -> None:
    name = models_at.new_name()
    models_at.add(name, "logistic")
    models_at.add(name, "lightgbm", dataset_digest="of other candles")
    assert "no previous version" in tradeflows("rollback", name, "--reason", "why not").stderr
    assert tradeflows("promote", name, "1").exit_code == 2  # a reason must be given
    assert "needs a reason" in tradeflows("promote", name, "1", "--reason", " ").stderr
    assert "version 1 is the champion now (was none" in tradeflows("promote", name, "1", "--reason", "first").stdout
    assert tradeflows("promote", name, "2", "--reason", "I looked at it").exit_code == 0
    listed = tradeflows("list", name).stdout
    for word in ("champion", "previous", "lightgbm", "logistic", "simulated", "+1.00%", "0 h", "by hand"):
        assert word in listed
    assert "I looked at it" in " ".join(listed.split())
    compared = tradeflows("compare", name, "1", "2").stdout
    for word in ("v1 logistic", "v2 lightgbm", "log_loss", "difference", "scored on different candles"):
        assert word in compared
    assert (
        "version 1 is the champion now (was 2; previous is none)"
        in tradeflows("rollback", name, "--reason", "it lost money").stdout
    )
    assert aliases(models_at.client, name) == {"champion": "1"}
    *_, last = promotions.history(store, name)
    assert (last.kind, last.who.split()[0], last.reasons, last.manual) == ("rollback", "user", ("it lost money",), True)
    assert "no version 7" in tradeflows("compare", name, "1", "7").stderr
    assert "there is no model NOBODY" in tradeflows("list", "NOBODY").stderr


def test_verify_names_the_file_and_ends_with_one(models_at: Registry, tradeflows: Tradeflows) -> None:
    name = models_at.new_name()
    for estimator in ("logistic", "lightgbm"):
        models_at.add(name, estimator)
    tradeflows("promote", name, "1", "--reason", "first")
    sound = tradeflows("verify", name)
    assert (sound.exit_code, sound.stdout.count("verified")) == (0, 2)
    booster = models_at.folder(name, "2") / "data/model/booster.txt"
    whole = booster.read_bytes()
    booster.write_bytes(flipped(whole, 1000))
    bad = tradeflows("verify", name)
    assert bad.exit_code == 1
    assert ("refused" in bad.stdout, "verified" in bad.stdout) == (True, True)
    assert "ModelRejected: booster.txt has" in bad.stderr
    assert tradeflows("verify", name, "1").exit_code == 0
    assert tradeflows("verify", name, "2").exit_code == 1
    assert "booster.txt has" in tradeflows("promote", name, "2", "--reason", "x").stderr
    booster.write_bytes(whole)
    models_at.client.set_registered_model_alias(name, registry.CHAMPION, "2")
    strayed = tradeflows("verify", name)
    assert strayed.exit_code == 1
    assert "names version 2 and the promotion history 1" in strayed.stderr
