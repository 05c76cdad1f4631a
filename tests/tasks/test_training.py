"""A training leaves runs to compare, a signed version and the gate's word; what chance made is never promoted."""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

import ml.training
from tasks import model_files, promotions, registry, sweep_registry, training_runs
from tasks.backtest_models import models_of, stored_targets, subjects_of
from tasks.backtest_requests import CHAMPION, BacktestRequest
from tasks.datasets import Dataset, load, select
from tasks.learning import TrainingRequest, learn
from tasks.models import champion
from tasks.settings import Settings
from tasks.store import Store, open_store
from tasks.training import Trained, judge_of, train
from tests.trainings import shuffled, stored
from trading.backtest.rules import Rules
from trading.candles import frame_of
from trading.errors import InvalidRequest
from trading.window import Timeframe, Window

pytestmark = pytest.mark.integration

START = datetime(2023, 1, 1, tzinfo=UTC)
BARS = 2_600
NOW = datetime(2024, 1, 1, tzinfo=UTC)
REQUEST = TrainingRequest(4, 3, 7, 0.0, 0.0, 0.001, -0.001, estimators=("logistic",))


def momentum(seed: int) -> pd.DataFrame:
    """A market that goes on as it went: the sign of the next returns follows that of the last ones."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.004, BARS)
    drift = np.zeros(BARS)
    for bar in range(1, BARS):
        drift[bar] = 0.92 * drift[bar - 1] + 0.25 * noise[bar - 1]
    close = 100 * np.exp(np.cumsum(noise + drift))
    open_ = np.r_[close[0], close[:-1]]
    above, below = 1 + rng.uniform(0, 0.001, (2, BARS))
    stamps = int(START.timestamp() * 1000) + 3_600_000 * np.arange(BARS)
    high, low = np.maximum(open_, close) * above, np.minimum(open_, close) / below
    return frame_of(stamps, np.column_stack([open_, high, low, close, rng.uniform(1, 10, BARS)]))


@dataclasses.dataclass(frozen=True)
class Bench:
    """Settings, registry and store of one home folder."""

    settings: Settings
    client: MlflowClient
    store: Store

    def dataset(self, symbol: str, bars: int = BARS) -> Dataset:
        end = START + bars * timedelta(hours=1)
        return select(self.store, [symbol], Timeframe.H1, START, end, now=NOW)

    def train(self, symbol: str, bars: int = BARS, **changed: Any) -> Trained:
        request = dataclasses.replace(REQUEST, **changed)
        dataset = self.dataset(symbol, bars)
        return train(self.store, self.settings, self.client, dataset, request, now=NOW, flow_run_id=None)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    home = tmp_path_factory.mktemp("training")
    settings = Settings(home=home)
    with open_store(home) as store:
        for number, symbol in enumerate(("AAA", "BBB", "CCC", "DDD", "EEE", "FFF")):
            window = Window(symbol, Timeframe.H1, START, START + BARS * timedelta(hours=1))
            stored(store, window, momentum(number), "simulated")
        yield Bench(settings, registry.connect(settings), store)


def children(bench: Bench, trained: Trained) -> dict[str, list[Any]]:
    """The runs below a training by kind."""
    experiment = bench.client.get_run(trained.run_id).info.experiment_id
    found: dict[str, list[Any]] = {}
    for run in bench.client.search_runs([experiment], max_results=1000):
        if run.info.run_id != trained.run_id and run.data.tags["training_key"] == _key(bench, trained):
            found.setdefault(run.data.tags["kind"], []).append(run)
    return found


def _key(bench: Bench, trained: Trained) -> str:
    return str(bench.client.get_run(trained.run_id).data.tags["training_key"])


def test_a_training_can_be_compared_traced_and_used(bench: Bench) -> None:
    trained = bench.train("AAA")
    assert trained.promoted, trained.decision
    run = bench.client.get_run(trained.run_id)
    wanted = {"log_loss", "skill", "auc", "information_coefficient", "hit_rate", "total_return", "sharpe",
              "sharpe_error", "max_drawdown", "turnover", "rows"}  # fmt: skip
    assert wanted <= set(run.data.metrics)
    assert run.data.tags["gate"] == "promoted"
    assert run.data.tags["mlflow.note.content"].startswith("**promoted**")
    assert run.data.tags["dataset_digest"] == trained.dataset_digest
    assert run.data.tags["data_mode"] == "simulated"
    (logged,) = run.inputs.dataset_inputs
    assert json.loads(logged.dataset.source)["digest"] == trained.dataset_digest
    below = children(bench, trained)
    names = {run.info.run_name for run in below["estimator"]}
    assert names == {"baseline", "neutral", "persistence", "hold", "logistic"}
    assert len(below["fold"]) == REQUEST.folds * len(names)
    assert {fold.data.tags["mlflow.parentRunId"] for fold in below["fold"]} == {
        estimator.info.run_id for estimator in below["estimator"]
    }
    experiment = bench.client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.note.content"].startswith(f"AAA-1h version {trained.version} is the champion.")
    assert "| logistic | 0." in experiment.tags["mlflow.note.content"]
    view = experiment.tags["mlflow.sharedViewState.estimators"].removeprefix("deflate;")
    state = json.loads(zlib.decompress(base64.b64decode(view)))
    assert {"metrics.`log_loss`", "metrics.`sharpe`", "tags.`gate`"} <= set(state["selectedColumns"])
    seen = bench.client.search_runs([run.info.experiment_id], state["searchFilter"])
    assert {one.data.tags["kind"] for one in seen} == {"estimator"}
    files = {file.path for file in bench.client.list_artifacts(trained.run_id)}
    assert {training_runs.UNSEEN, training_runs.REFERENCE, training_runs.IMPORTANCE, "summary.json"} <= files
    assert {"fold_losses.png", "reliability.png", "importance.png", "equity.png"} <= files
    chosen = champion(bench.client, bench.settings, trained.model, store=bench.store, now=NOW)
    assert (chosen.version, chosen.degraded) == (trained.version, None)
    (change,) = promotions.history(bench.store, trained.model)
    assert (change.to_version, change.evidence_run, change.manual) == (trained.version, trained.run_id, False)


def test_one_that_died_between_registering_and_judging_is_done_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed says nothing more: the run stays as it is."""
    with monkeypatch.context() as killed:
        killed.setattr(promotions, "consider", _die)
        killed.setattr(registry, "finish_run", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            bench.train("EEE", 1_500)
    left = registry.versions(bench.client, "EEE-1h")
    assert [str(one.version) for one in left] == ["1"]
    assert bench.client.get_run(left[0].run_id).info.status == "RUNNING"
    experiment = bench.client.get_run(left[0].run_id).info.experiment_id
    key = bench.client.get_run(left[0].run_id).data.tags["training_key"]
    # another flow run's is not touched; a retry of its own closes it
    bench.client.set_tag(left[0].run_id, "prefect_flow_run", "mine")
    assert training_runs.close_left(bench.client, experiment, key, "another") == []
    assert training_runs.close_left(bench.client, experiment, key, None) == []
    assert training_runs.close_left(bench.client, experiment, key, "mine") == [left[0].run_id]
    assert bench.client.get_run(left[0].run_id).info.status == "KILLED"
    bench.client.set_terminated(left[0].run_id, "FINISHED")
    again = bench.train("EEE", 1_500)
    assert (again.version, again.reused) == ("2", False)
    assert bench.train("EEE", 1_500).reused


def test_what_cannot_be_closed_is_left_to_the_sweep(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow went away in the middle, and the flow run ends as failed: nobody of it died."""
    with monkeypatch.context() as away:
        away.setattr(promotions, "consider", _die)
        away.setattr(registry, "finish_run", _gone)
        with pytest.raises(MlflowException, match="away"):
            bench.train("EEE", 1_400)
    assert bench.store.documents.increment(sweep_registry.DEATHS, 0) == 1


def _gone(*_: object, **__: object) -> None:
    raise MlflowException("away")


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_gaps_among_the_newest_candles_and_markets_of_two_calendars_can_be_learned_from(bench: Bench) -> None:
    end = START + BARS * timedelta(hours=1)
    gapped = momentum(7)
    keep = np.r_[np.arange(BARS - 60), np.arange(BARS - 40, BARS)]
    stored(bench.store, Window("GAP", Timeframe.H1, START, end), gapped.iloc[keep], "simulated")
    assert bench.train("GAP", folds=2).version == "1"
    stored(bench.store, Window("MIX", Timeframe.H1, START, end), momentum(8), "simulated", calendar="XNYS")
    dataset = select(bench.store, ["AAA", "MIX"], Timeframe.H1, START, end, now=NOW)
    assert set(dataset.calendars.values()) == {"24/7", "XNYS"}
    request = dataclasses.replace(REQUEST, folds=2)
    mixed = train(bench.store, bench.settings, bench.client, dataset, request, now=NOW, flow_run_id=None)
    assert mixed.model == "AAA-MIX-1h"


def test_a_short_backtest_of_the_champion_sees_the_candles_before_it(bench: Bench) -> None:
    """300 bars are fewer than a row of features needs; where the champion trades it sees those before, too."""
    trained = bench.train("FFF", 2_000)
    assert trained.promoted, trained.decision
    request = BacktestRequest(rules=Rules(), strategies=(CHAMPION,))

    def targets(first: int) -> np.ndarray:
        begin, end = (START + bar * timedelta(hours=1) for bar in (first, 2_400))
        dataset = select(bench.store, ["FFF"], Timeframe.H1, begin, end, now=NOW)
        models = models_of(bench.store, bench.settings, bench.client, dataset, request, NOW)
        [subject] = subjects_of(bench.store, bench.client, dataset, request, models, NOW)
        assert (models.absent, subject.first) == ((), 0 if first == 2_100 else subject.first)
        return stored_targets(bench.store, subject.targets[CHAMPION])

    short, long = targets(2_100), targets(0)
    assert (len(short), len(long)) == (300, 2_400)
    assert set(np.unique(short)) == {-1, 1} or set(np.unique(short)) == {-1, 0, 1}
    np.testing.assert_array_equal(short, long[2_100:])


def test_an_equal_training_is_not_done_again_and_a_later_one_meets_the_champion(bench: Bench) -> None:
    first = bench.train("BBB", 2_000)
    assert first.promoted, first.decision
    again = bench.train("BBB", 2_000)
    assert again.reused
    assert (again.version, again.run_id) == (first.version, first.run_id)
    later = bench.train("BBB", BARS)
    assert later.version == "2"
    # the same recipe on newer candles: it scores as the champion's, which walks through the same folds
    assert any("its recipe on newer candles" in reason for reason in later.decision)
    # nobody goes back to older candles in silence, such as by running an old run again
    older = bench.train("BBB", 1_900)
    assert (older.promoted, older.champion) == (False, later.champion)
    assert any("was trained until" in reason for reason in older.decision)
    other = bench.train("BBB", BARS, horizon=6)
    assert not other.promoted
    assert any("has another label" in reason for reason in other.decision)


def test_two_trainings_that_end_at_once_leave_one_champion_and_both_in_the_history(bench: Bench) -> None:
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda bars: bench.train("CCC", bars), (2_300, BARS)))
    assert {one.version for one in done} == {"1", "2"}
    name = done[0].model
    moves = promotions.history(bench.store, name)
    assert len(moves) == sum(one.promoted for one in done) >= 1
    named = registry.version_of(bench.client, name, registry.CHAMPION)
    assert named is not None
    assert str(named.version) == moves[-1].to_version
    if len(moves) == 2:
        assert moves[1].from_version == moves[0].to_version


def test_a_training_of_other_features_labels_and_constraints_says_so(bench: Bench) -> None:
    trained = bench.train(
        "DDD",
        label="triple_barrier",
        stop=1.5,
        rolling_days=60,
        estimators=("lightgbm",),
        features={"rsi": 21, "calendar": []},
        parameters={"lightgbm": {"monotone": {"rsi": -1}, "rounds": 30}},
    )
    version = registry.version_at(bench.client, trained.model, trained.version)
    assert json.loads(version.tags["parameters"]) == {"monotone": {"rsi": -1}, "rounds": 30}
    label = json.loads(version.tags["label"])
    assert (label["kind"], label["stop"]) == ("triple_barrier", 1.5)
    folds = [fold for fold in trained.folds if fold["estimator"] == "lightgbm"]
    assert max(fold["train_rows"] for fold in folds) <= 60 * 24
    with model_files.model_folder(bench.client, version) as folder:
        manifest = json.loads((model_files.artifact_folder(folder) / "manifest.json").read_text())
    assert manifest["features"]["definition"]["rsi"] == 21
    assert not {"hour_sin", "month_cos"} & set(manifest["features"]["names"])


def test_every_trial_of_a_tuning_is_logged_and_counts_as_luck(bench: Bench) -> None:
    trained = bench.train("DDD", estimators=("lightgbm",), tune_trials=3, folds=2)
    trials = children(bench, trained)["trial"]
    assert sorted(run.info.run_name for run in trials) == ["trial 0", "trial 1", "trial 2"]
    assert all({"log_loss", "total_return"} <= set(run.data.metrics) for run in trials)
    metrics = bench.client.get_run(trained.run_id).data.metrics
    assert metrics["tuning.trials"] == 3
    assert any(reason.startswith("tuning, 3 trials of lightgbm: ") for reason in trained.luck)
    params = bench.client.get_run(trained.run_id).data.params
    assert any(key.startswith("lightgbm.") for key in params)


def test_a_combinatorial_evaluation_stands_beside_the_walk_forward_and_decides_nothing(bench: Bench) -> None:
    plain = bench.train("AAA", 2_000)
    trained = bench.train("AAA", 2_000, combinatorial_groups=4)
    assert plain.paths == []
    # another training, with the same word of the gate
    assert trained.version != plain.version
    assert (trained.winner, trained.scores, trained.folds) == (plain.winner, plain.scores, plain.folds)
    assert trained.decision[0] == plain.decision[0]
    rows = {row["estimator"]: row for row in trained.paths}
    assert list(rows) == [row["estimator"] for row in trained.scores]
    assert {(row["splits"], row["count"]) for row in trained.paths} == {(6, 3.0)}
    logged = {run.info.run_name: run.data.metrics for run in children(bench, trained)["estimator"]}
    for name, row in rows.items():
        assert row["log_loss_min"] <= row["log_loss_median"] <= row["log_loss_max"]
        assert {key.removeprefix("paths."): value for key, value in logged[name].items() if key[:6] == "paths."} == {
            key: value for key, value in row.items() if key not in {"estimator", "splits"}
        }
    # this market goes on as it went, so that what learns it is better on every path, and earns on each
    assert rows["logistic"]["log_loss_max"] < rows["baseline"]["log_loss_min"]
    assert rows["logistic"]["profitable"] == 1
    run = bench.client.get_run(trained.run_id)
    assert run.data.metrics["paths.sharpe_median"] == rows["logistic"]["sharpe_median"]
    assert run.data.params["combinatorial_groups"] == "4"
    with pytest.raises(InvalidRequest, match="test_groups=4 must be at least 1 and below groups=4"):
        bench.train("AAA", 2_000, combinatorial_groups=4, combinatorial_test_groups=4)


def test_a_model_of_shuffled_labels_is_never_promoted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the market whose sound model is promoted above, with nobody to beat but chance."""
    dataset = bench.dataset("AAA")
    frames = load(bench.store, dataset)
    for seed in range(20):
        monkeypatch.setattr(ml.training, "assemble", shuffled(seed))
        request = dataclasses.replace(REQUEST, seed=seed, estimators=("logistic", "lightgbm"))
        learned = learn(frames, dataset, request)
        decision = judge_of(bench.client, "NOBODY-1h", learned, frames, dataset, request)(None)
        assert not decision.promote, (seed, decision.reasons)
        # the gate saw through the scores; it did not only miss a figure
        assert any("skill" in reason or "folds" in reason for reason in decision.reasons[:2])


def test_a_training_that_dies_leaves_no_open_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no space left on the device")

    monkeypatch.setattr(training_runs, "log_children", broken)
    with pytest.raises(OSError, match="no space"):
        bench.train("DDD", horizon=9)
    experiment = bench.client.get_experiment_by_name("train DDD-1h h9")
    assert experiment is not None
    (run,) = bench.client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"


def test_an_unknown_home_is_made_for_the_trials(tmp_path: Path) -> None:
    from tasks.training import _trials

    assert _trials(Settings(home=tmp_path / "new")).endswith("new/tuning.db")
    assert (tmp_path / "new").is_dir()
