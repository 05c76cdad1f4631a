"""Trained on real candles: signed and tamper-proof, deaf to chance, tuned with its luck counted, and watched.

Hourly BTCUSDT and ETHUSDT of 2024 where they stand beside the checkout, else the daily history of S&P 500 and
NASDAQ that the arch package carries.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from pydantic import SecretStr

import ml.training
from deployments.sandbox.markets import Market, from_folder, shipped
from ml.hits import WORSE
from ml.monitoring import DRIFTED, STABLE, DriftRule
from ml.promotion import PromotionRule, decide
from tasks import promotions, registry, signing
from tasks.datasets import Dataset, load, select
from tasks.learning import TrainingRequest, learn
from tasks.models import Champion, champion
from tasks.monitoring import Monitored, monitor, reference_text
from tasks.settings import Settings
from tasks.store import Store, open_store
from tasks.training import Trained, judge_of, train
from tests.conftest import CHECKOUT, CLOCK
from tests.registered_models import Registry, flipped
from tests.trainings import shuffled, stored
from trading.candles import frame_of
from trading.errors import ModelRejected
from trading.window import Timeframe, Window

pytestmark = pytest.mark.integration

# the thresholds and costs of the flow; the last bars are kept from every training
REQUEST = TrainingRequest(12, 3, 7, 0.001, 0.0005, 0.005, -0.005, estimators=("logistic",))
LIVE = 1_000
LOSSES = PromotionRule(min_net_return=None, risk=None)
FEW = {"lightgbm": {"rounds": 40, "patience": 0}}


@dataclasses.dataclass(frozen=True)
class Real:
    """Real markets in a store, and what was trained on all but their last bars: version 1 linear, version 2 trees."""

    models: Registry
    store: Store
    frames: dict[str, pd.DataFrame]
    timeframe: Timeframe
    start: datetime
    until: datetime
    end: datetime
    linear: Trained
    trees: Trained

    @property
    def name(self) -> str:
        return self.linear.model

    @property
    def client(self) -> MlflowClient:
        return self.models.client

    @property
    def settings(self) -> Settings:
        return self.models.settings

    def champion(self) -> Champion:
        return champion(self.client, self.settings, self.name)


def markets() -> list[Market]:
    folder = Path(os.environ.get("TRADEFLOWS_SHARED", CHECKOUT.parent / "shared")) / "data"
    if not folder.is_dir():
        found = shipped(7, CLOCK)
        return [found["NASDAQ", Timeframe.D1], found["SP500", Timeframe.D1]]
    found = from_folder(folder)
    pair = {symbol: found[f"binance_{symbol}", Timeframe.H1] for symbol in ("BTCUSDT", "ETHUSDT")}
    return [dataclasses.replace(market, symbol=symbol) for symbol, market in pair.items()]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    home = tmp_path_factory.mktemp("real")
    settings = Settings(home=home, signing_key=SecretStr("thirty-two bytes of a key for real"))
    settings = settings.model_copy(update={"mlflow_tracking_uri": None})
    client, chosen = registry.connect(settings), markets()
    timeframe = chosen[0].timeframe
    frames = {market.symbol: frame_of(market.opens, market.values) for market in chosen}
    index = next(iter(frames.values())).index
    start, until, last = (index[at].to_pydatetime() for at in (0, -LIVE, -1))
    end = last + timeframe.delta
    with open_store(home) as store:
        for market in chosen:
            window = Window(market.symbol, timeframe, start, end)
            stored(store, window, frames[market.symbol], market.data_mode, market.calendar)
        dataset = select(store, list(frames), timeframe, start, until, now=end)
        made = []
        for estimator in ("logistic", "lightgbm"):
            request = dataclasses.replace(REQUEST, estimators=(estimator,), parameters=FEW)
            made.append(train(store, settings, client, dataset, request, now=end, flow_run_id=None))
            if not made[-1].promoted:
                promotions.promote(
                    client, store, made[-1].model, made[-1].version, reason="test", who="me", now=end,
                    key=signing.signing_key(settings),
                )  # fmt: skip
        yield Real(Registry(settings, client), store, frames, timeframe, start, until, end, made[0], made[1])


def dataset_of(real: Real) -> Dataset:
    return select(real.store, list(real.frames), real.timeframe, real.start, real.until, now=real.end)


def newest_of_one(real: Real, bars: int = 2_600) -> Dataset:
    """The first market's last bars that were trained on: as much as is learned from in a second."""
    symbol, frame = next(iter(real.frames.items()))
    return select(real.store, [symbol], real.timeframe, frame.index[-LIVE - bars], real.until, now=real.end)


def falls_back(real: Real, why: str) -> None:
    found = real.champion()
    assert found.version == "1"
    assert found.degraded is not None
    assert found.degraded.startswith("version 2 was refused: ")
    assert why in found.degraded
    assert found.degraded.endswith("version 1 (previous) takes its place")
    candles = next(iter(real.frames.values()))
    assert found.model.predict(candles).open_time == candles.index[-1]


def test_it_is_registered_with_its_candles_and_the_word_of_the_gate(real: Real) -> None:
    found = real.champion()
    assert (found.version, found.estimator, found.degraded) == ("2", "lightgbm", None)
    for made in (real.linear, real.trees):
        assert made.data_mode == "sample"
        version = registry.version_at(real.client, real.name, made.version)
        assert version.tags["dataset_digest"] == made.dataset_digest == dataset_of(real).digest
        run = real.client.get_run(made.run_id)
        assert run.data.tags["gate"] == ("promoted" if made.promoted else "not promoted")
        # none of the bars kept from it is in what it learned from
        assert int(version.tags["trained_until_ms"]) <= real.until.timestamp() * 1000
    changes = promotions.history(real.store, real.name)
    assert [(one.to_version, one.manual) for one in changes] == [
        ("1", not real.linear.promoted), ("2", not real.trees.promoted),
    ]  # fmt: skip


def test_a_flipped_bit_of_any_file_is_refused_by_name(real: Real) -> None:
    files = sorted(path for path in real.models.folder(real.name, "2").rglob("*") if path.is_file())
    assert {"MLmodel", "requirements.txt", "manifest.json", "booster.txt"} < {path.name for path in files}
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(flipped(whole, len(whole) // 2))
        falls_back(real, path.name)
        path.write_bytes(whole)
    assert real.champion().degraded is None


def test_swapped_files_a_changed_tag_and_another_key_are_refused(real: Real, tmp_path: Path) -> None:
    one, two = (real.models.folder(real.name, version) for version in ("1", "2"))

    def swap() -> None:
        shutil.move(one, tmp_path / "swap")
        shutil.move(two, one)
        shutil.move(tmp_path / "swap", two)

    swap()
    with pytest.raises(ModelRejected, match=r"version 2 was refused: .*; version 1 was refused: "):
        real.champion()
    swap()
    tags = registry.version_at(real.client, real.name, "2").tags
    real.client.set_model_version_tag(real.name, "2", "dataset_digest", "0" * 64)
    falls_back(real, "signature of")
    real.client.set_model_version_tag(real.name, "2", "dataset_digest", tags["dataset_digest"])
    other = real.settings.model_copy(update={"signing_key": SecretStr("quite another key, of thirty-two")})
    with pytest.raises(ModelRejected, match=r"no version of .* can be used"):
        champion(real.client, other, real.name)
    assert real.champion().degraded is None


def test_labels_that_chance_dealt_out_are_never_promoted(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = newest_of_one(real)
    frames = load(real.store, dataset)
    request = dataclasses.replace(REQUEST, estimators=("logistic", "lightgbm"), parameters=FEW)
    for seed in range(20):
        monkeypatch.setattr(ml.training, "assemble", shuffled(seed))
        learned = learn(frames, dataset, dataclasses.replace(request, seed=seed))
        decision = judge_of(real.client, "NOBODY-1h", learned, frames, dataset, request)(None)
        assert not decision.promote, (seed, decision.reasons)
        # the losses alone give it away, whatever its signals happened to earn
        assert not decide(learned.winner, learned.baseline, None, LOSSES).promote, (seed, decision.reasons)


def test_a_tuning_says_how_much_of_its_best_trial_is_luck(real: Real) -> None:
    dataset = dataset_of(real)
    request = dataclasses.replace(REQUEST, estimators=("lightgbm",), parameters=FEW, tune_trials=4, folds=2)
    learned = learn(load(real.store, dataset), dataset, request)
    assert learned.tuning is not None
    found, luck = learned.tuning.found, learned.tuning.overfitting
    assert (len(found.trials), luck.trials, luck.chosen) == (4, 4, str(found.best.number))
    # it looked at none of the rows that the gate compares on
    assert int(learned.table.t1[found.rows].max()) <= learned.folds[0].test_start
    assert len({json.dumps(dict(trial.parameters), sort_keys=True) for trial in found.trials}) == 4
    assert learned.parameters["lightgbm"] == found.best.parameters
    for figure in (luck.deflated_sharpe, luck.pbo, luck.spa):
        assert figure is not None
        assert 0 <= figure <= 1
    assert luck.sharpe is not None
    assert luck.luck is not None


def test_the_bars_since_are_held_against_the_training_once(real: Real) -> None:
    announced: list[str] = []

    def look() -> Monitored:
        chosen = real.champion()
        return monitor(
            real.store, real.settings, chosen, reference_text(real.client, chosen), list(real.frames), real.timeframe,
            real.start, real.end, DriftRule(), now=real.end, announce=lambda _, key: announced.append(key),
        )  # fmt: skip

    found = look()
    assert found.state in {STABLE, DRIFTED}
    assert (found.data_mode, found.version, found.reused) == ("sample", "2", False)
    # every bar that was filled after the last label, of both symbols; bars of a session market may lack one
    version = registry.version_at(real.client, real.name, "2")
    until = datetime.fromtimestamp(int(version.tags["trained_until_ms"]) / 1000, tz=UTC)
    wanted = sum(int((frame.index[1:] > until).sum()) + 1 for frame in real.frames.values())
    assert found.rows == wanted
    drifted = [column["name"] for column in found.columns if column["drifted"]]
    assert found.retrain == (bool(drifted) or found.performance["state"] == WORSE)
    assert len(announced) == int(found.retrain)
    assert found.performance["live"]["count"] > 0
    assert dataclasses.replace(look(), reused=False) == found
    assert len(announced) == int(found.retrain)
