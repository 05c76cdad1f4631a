"""``tradeflows backup`` and ``restore``: models of a restored home are verified, and its candles are read."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from deployments import backup_command
from deployments.command import app as tradeflows
from tasks import promotions
from tasks.store import open_store, read_candles
from tests.registered_models import KEY, Registry, candles, opened
from tests.trainings import stored
from trading.window import Timeframe, Window

pytestmark = pytest.mark.integration
START = datetime(2020, 1, 1, tzinfo=UTC)
WINDOW = Window("AAA", Timeframe.H1, START, START + timedelta(hours=1200))

commands = typer.Typer()
commands.command()(backup_command.backup)
commands.command()(backup_command.restore)
Run = Callable[..., Result]


@pytest.fixture(scope="session")
def models_at(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return opened(tmp_path_factory)


@pytest.fixture
def run() -> Iterator[Run]:
    before = dict(os.environ)

    def invoke(app: typer.Typer, *words: str | Path) -> Result:
        os.environ.clear()
        os.environ.update(before)
        return CliRunner(env={"TRADEFLOWS_SIGNING_KEY": KEY}).invoke(app, [str(word) for word in words])

    yield invoke
    os.environ.clear()
    os.environ.update(before)


def test_models_and_candles_of_a_restored_home(models_at: Registry, run: Run, tmp_path: Path) -> None:
    name, home, now = models_at.new_name(), models_at.settings.home, datetime.now(UTC)
    models_at.add(name, "logistic")
    with open_store(home) as store:
        stored(store, WINDOW, candles(), "simulated")
        promotions.promote(
            models_at.client, store, name, "1", reason="test", who="test", now=now, key=models_at.key
        )  # fmt: skip
        wanted = read_candles(store, WINDOW)
    assert len(wanted) == 1200
    file, target = tmp_path / "backup.zip", tmp_path / "elsewhere" / "home"
    made = run(commands, "backup", file, "--home", home)
    assert made.exit_code == 0, made.output
    assert "Wrote" in made.stdout
    assert KEY.encode() not in file.read_bytes()
    done = run(commands, "restore", file, "--home", target)
    assert done.exit_code == 0, done.output
    with open_store(target) as store:
        assert read_candles(store, WINDOW).equals(wanted)
        assert promotions.latest(store, name) is not None
    with closing(sqlite3.connect(target / "mlflow" / "mlflow.db")) as connection:
        # other versions in this registry may have been left where other tests put them
        wanted_ones = "SELECT storage_location FROM model_versions WHERE name = ?"
        places = [place for (place,) in connection.execute(wanted_ones, (name,))]
    assert places
    assert all(place.startswith(target.as_uri()) for place in places)
    verified = run(tradeflows, "models", "verify", name, "--home", target)
    assert verified.exit_code == 0, verified.output
    # and it is the restored files that were verified
    mine = next(Path(place.removeprefix("file://")) for place in places if Path(place.removeprefix("file://")).is_dir())
    for path in (mine.parents[1]).rglob("manifest.json"):
        path.write_text("{}")
    assert run(tradeflows, "models", "verify", name, "--home", target).exit_code == 1
    assert run(tradeflows, "models", "verify", name, "--home", home).exit_code == 0
    again = run(commands, "restore", file, "--home", target)
    assert again.exit_code == 1
    assert "not an empty folder" in again.stderr
    shutil.rmtree(target)
