"""Nothing is fitted on a feature matrix that is not what its features declare."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

import ml.training
from ml.features import FeatureSet
from tasks.datasets import Dataset
from tasks.learning import TUNING_FOLDS, TrainingRequest, early_folds, features_of, label_of, learn
from trading.candles import frame_of
from trading.errors import ExpectationFailed, InsufficientHistory, InvalidRequest
from trading.window import Timeframe, Window

WINDOW = Window("AAA", Timeframe.H1, datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 3, 10, tzinfo=UTC))
DATASET = Dataset((WINDOW,), {"AAA": WINDOW.slots}, "digest", "simulated", {"AAA": "24/7"}, {})
REQUEST = TrainingRequest(4, 3, 7, 0.001, 0.0005, 0.005, -0.005, estimators=("logistic",))


def candles(*, volume: float | None = None) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, WINDOW.slots)))
    traded = rng.uniform(1, 10, WINDOW.slots) if volume is None else np.full(WINDOW.slots, volume)
    stamps = int(WINDOW.start.timestamp() * 1000) + 3_600_000 * np.arange(WINDOW.slots)
    open_ = np.r_[close[0], close[:-1]]
    above, below = 1 + rng.uniform(0, 0.02, (2, WINDOW.slots))
    high, low = np.maximum(open_, close) * above, np.minimum(open_, close) / below
    return frame_of(stamps, np.column_stack([open_, high, low, close, traded]))


@pytest.mark.integration
def test_a_feature_out_of_its_bounds_stops_the_training_before_anything_is_fitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = ml.training.features

    def spoilt(frame: pd.DataFrame, feature_set: FeatureSet) -> pd.DataFrame:
        table = real(frame, feature_set)
        table["rsi"] = table["rsi"] * 100  # somebody forgot to divide
        return table

    def fit(*_: object, **__: object) -> None:
        raise AssertionError("something was fitted")

    monkeypatch.setattr(ml.training, "features", spoilt)
    monkeypatch.setattr(ml.training, "walk_forward", fit)
    with pytest.raises(ExpectationFailed, match=r"critical: rsi must be .* of AAA at 2024-.*; nothing was trained"):
        learn({"AAA": candles()}, DATASET, REQUEST)


@pytest.mark.integration
def test_warnings_go_with_what_was_learned() -> None:
    assert learn({"AAA": candles()}, DATASET, REQUEST).findings == ()
    learned = learn({"AAA": candles(volume=5.0)}, DATASET, REQUEST)
    assert learned.findings == (
        "warning: volume_ratio must have at least 2 distinct values: 1",
        "warning: volume_roc must have at least 2 distinct values: 1",
    )


@pytest.mark.integration
def test_a_request_that_nothing_could_win_is_refused() -> None:
    for estimators, why in ((("baseline",), "nothing that could win"), (("forest",), "'forest' is not an estimator")):
        with pytest.raises(InvalidRequest, match=why):
            learn({"AAA": candles()}, DATASET, replace(REQUEST, estimators=estimators))
    with pytest.raises(InvalidRequest, match="no lightgbm to tune"):
        learn({"AAA": candles()}, DATASET, replace(REQUEST, tune_trials=3))


def test_a_request_says_which_features_and_which_label() -> None:
    assert features_of(REQUEST) == FeatureSet()
    assert features_of(replace(REQUEST, features={"rsi": 21, "calendar": []})).rsi == 21
    with pytest.raises(InvalidRequest, match="exactly"):
        features_of(replace(REQUEST, features={"rsy": 21}))
    label = label_of(replace(REQUEST, label="triple_barrier", stop=2.0))
    assert (label.kind, label.horizon, label.stop, label.round_trip_cost) == ("triple_barrier", 4, 2.0, 0.003)


def test_tuning_sees_only_rows_that_were_over_before_the_first_test_span() -> None:
    table = ml.training.assemble({"AAA": candles()}, FeatureSet(), label_of(REQUEST))
    embargo = timedelta(hours=4)
    start = int(table.t0[int(0.6 * len(table))])
    folds = early_folds(table, start, embargo)
    assert len(folds) == TUNING_FOLDS
    for fold in folds:
        rows = np.concatenate([fold.train, fold.test])
        assert (table.t1[rows] + 4 * 3_600_000 <= start).all()
        assert (table.t1[fold.train] + 4 * 3_600_000 <= fold.test_start).all()
    with pytest.raises(InsufficientHistory, match="nothing can be tuned"):
        early_folds(table, int(table.t0[0]), embargo)
