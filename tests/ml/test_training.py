"""Training: the table holds what it says, and walk-forward finds what is there and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ml.estimators import BASELINES
from ml.evaluation import FoldScore, best, log_loss
from ml.features import FeatureSet, features
from ml.labels import LabelDefinition, labels
from ml.splits import walk_forward_folds
from ml.training import (
    DEFAULTS,
    TrainingTable,
    assemble,
    dataset_digest,
    fit_final,
    out_of_sample,
    score_on,
    walk_forward,
)
from ml.weights import uniqueness
from trading.candles import open_times_ms
from trading.errors import CandleContractError, InsufficientHistory, InvalidRequest

SET = FeatureSet(ema=(9, 21), rsi=7, atr=7, adx=5, macd=(5, 10, 4))
LABEL = LabelDefinition(horizon=4)
# enough to find what there is to find, in less time than the defaults take
QUICK: dict[str, dict[str, Any]] = {
    "baseline": {},
    "logistic": {"calibration": "none"},
    "lightgbm": {"rounds": 20, "patience": 0, "calibration": "none"},
}


@pytest.fixture(scope="module")
def table(predictable: pd.DataFrame, random_candles: Callable[..., pd.DataFrame]) -> TrainingTable:
    return assemble({"MOM": predictable, "WALK": random_candles(2000, 1)}, SET, LABEL)


def test_every_row_is_the_features_and_the_label_of_one_bar(
    table: TrainingTable, predictable: pd.DataFrame, random_candles: Callable[..., pd.DataFrame]
) -> None:
    for symbol, candles in (("MOM", predictable), ("WALK", random_candles(2000, 1))):
        mine = table.symbol == symbol
        assert mine.sum() == len(candles) - (SET.rows_needed - 1) - LABEL.future_rows
        rows, known = features(candles, SET), labels(candles, LABEL)
        stamps = open_times_ms(candles)
        for at in np.flatnonzero(mine)[::173]:
            bar = int(np.searchsorted(stamps, table.t0[at])) - 1
            np.testing.assert_array_equal(table.x[at], rows.iloc[bar])
            assert table.y[at] == known["label"].iloc[bar]
            assert table.forward_return[at] == known["forward_return"].iloc[bar]
            assert table.decided_at[at] == stamps[bar]
            assert table.t1[at] == stamps[bar + LABEL.future_rows]
    assert np.isfinite(table.x).all()
    unique = uniqueness(table.t0, table.t1, table.symbol)
    np.testing.assert_allclose(table.weight, unique / unique.mean())
    assert 0.2 < unique.mean() < 0.26  # of four bars each, four overlap nearly everywhere
    assert (np.diff(table.t0) >= 0).all()
    assert len(table) == len(table.x) == len(table.t1)


def test_the_order_of_symbols_does_not_matter(random_candles: Callable[..., pd.DataFrame]) -> None:
    frames = {"B": random_candles(900, 1), "A": random_candles(900, 2)}
    one, two = assemble(frames, SET, LABEL), assemble(dict(reversed(frames.items())), SET, LABEL)
    np.testing.assert_array_equal(one.x, two.x)
    assert one.digest == two.digest
    swapped = {"A": frames["B"], "B": frames["A"]}
    assert dataset_digest(swapped) != one.digest
    late = frames["A"].copy()
    late["close"] = late["close"].to_numpy() * 1.0001
    assert dataset_digest({**frames, "A": late}) != one.digest


def test_too_little_history_says_how_much_there_is_and_how_much_is_needed(
    random_candles: Callable[..., pd.DataFrame],
) -> None:
    needed = SET.rows_needed + LABEL.future_rows
    with pytest.raises(InsufficientHistory, match=rf"A has {needed - 1} candles and {needed} are needed"):
        assemble({"A": random_candles(needed - 1, 1)}, SET, LABEL)
    with pytest.raises(InsufficientHistory, match="give 1 labelled rows and 500 are needed"):
        assemble({"A": random_candles(needed, 1)}, SET, LABEL)
    assert len(assemble({"A": random_candles(needed, 1)}, SET, LABEL, minimum_rows=1)) == 1
    with pytest.raises(InsufficientHistory, match="no candles"):
        assemble({}, SET, LABEL)


def test_candles_that_break_the_contract_are_refused(random_candles: Callable[..., pd.DataFrame]) -> None:
    with pytest.raises(CandleContractError):
        assemble({"A": random_candles(900, 1).iloc[::-1]}, SET, LABEL)


def test_momentum_is_found_and_earns_its_costs(predictable: pd.DataFrame) -> None:
    only = assemble({"MOM": predictable}, SET, LABEL)
    calls: list[tuple[int, int, FoldScore]] = []
    folds = walk_forward_folds(only.t0, only.t1, folds=2)
    chosen = {**DEFAULTS, **QUICK, "boosting": {"rounds": 20, "patience": 0, "calibration": "none"}}
    scores = walk_forward(only, folds, estimators=chosen, seed=1, progress=lambda *call: calls.append(call)).scores
    assert [score.estimator for score in scores] == list(DEFAULTS)
    baseline = scores[0]
    assert {baseline.estimator} == BASELINES - {"neutral", "hold", "persistence"}
    assert scores[3].skill(baseline) > 0.01  # persistence: momentum is what it knows of
    for score in scores[4:]:
        assert score.skill(baseline) > 0.1
        assert score.metrics()["hit_rate"] > 0.6
        assert score.metrics()["net_return"] > 0
    assert best(scores).estimator not in BASELINES
    assert [(done, total) for done, total, _ in calls] == [(at, 14) for at in range(1, 15)]
    by_name = {score.estimator: score.metrics() for score in scores}
    assert by_name["neutral"]["signals"] == 0
    assert by_name["hold"]["signals"] == sum(len(fold.test) for fold in folds)


def test_a_random_walk_shows_no_skill(random_candles: Callable[..., pd.DataFrame]) -> None:
    table = assemble({name: random_candles(2500, seed) for seed, name in enumerate("AB")}, SET, LABEL)
    folds = walk_forward_folds(table.t0, table.t1)
    baseline, *learned = walk_forward(table, folds, estimators=QUICK, seed=1).scores
    for score in learned:
        assert score.skill(baseline) < 0.01


def test_labels_of_the_test_span_do_not_reach_the_model(table: TrainingTable) -> None:
    folds = walk_forward_folds(table.t0, table.t1, folds=1)
    y = table.y.copy()
    y[folds[0].test] = -1
    learned = {"lightgbm": {"rounds": 40}}
    seen, unseen = (walk_forward(one, folds, estimators=learned, seed=1) for one in (table, replace(table, y=y)))
    honest, blind = (out_of_sample(walk, "lightgbm") for walk in (seen, unseen))
    pd.testing.assert_frame_equal(honest.drop(columns="label"), blind.drop(columns="label"), check_exact=True)
    assert honest["row"].tolist() == folds[0].test.tolist()
    # nor the signal rule: what is signalled and earned stays the same
    one, other = (walk.scores[0].folds[0] for walk in (seen, unseen))
    assert one.signals > 0
    assert (one.signals, one.net_return) == (other.signals, other.net_return)


def test_what_was_said_out_of_sample_is_what_was_scored(table: TrainingTable) -> None:
    folds = walk_forward_folds(table.t0, table.t1, folds=2)
    walk = walk_forward(table, folds, estimators=QUICK, seed=1)
    said = out_of_sample(walk, "logistic")
    for at, score in enumerate(walk.scores_of("logistic").folds):
        # the models of the folds are there, so nobody has to fit them again
        assert score_on(walk.fitted["logistic"][at], walk.rules[at], table, folds[at]) == score
        mine = said[said["fold"] == score.fold]
        assert (len(mine), int((mine["signal"] != 0).sum())) == (score.test_rows, score.signals)
        found = log_loss(mine[["p_short", "p_neutral", "p_long"]].to_numpy(), mine["label"].to_numpy())
        assert found == pytest.approx(score.log_loss)
    np.testing.assert_array_equal(said["decided_at"], table.decided_at[said["row"]])
    np.testing.assert_array_equal(said["symbol"], table.symbol[said["row"]])
    with pytest.raises(InvalidRequest, match="'boosting' was not walked forward; there are baseline, logistic"):
        out_of_sample(walk, "boosting")


def test_the_same_seed_gives_the_same_scores_and_the_same_model(table: TrainingTable) -> None:
    folds = walk_forward_folds(table.t0, table.t1, folds=2)
    one_walk, two_walk = (walk_forward(table, folds, estimators=QUICK, seed=4) for _ in range(2))
    assert one_walk.scores == two_walk.scores
    one, rule = fit_final(table, "lightgbm", 4, {"rounds": 10})
    two, again = fit_final(table, "lightgbm", 4, {"rounds": 10})
    assert one.to_files() == two.to_files()
    assert rule == again


def test_a_fold_of_one_class_is_named(table: TrainingTable) -> None:
    folds = walk_forward_folds(table.t0, table.t1, folds=2)
    with pytest.raises(InsufficientHistory, match="fold 1: logistic"):
        walk_forward(replace(table, y=np.zeros_like(table.y)), folds, estimators={"logistic": {}}, seed=1)


def test_a_class_that_training_never_saw_costs_a_finite_loss(table: TrainingTable) -> None:
    folds = walk_forward_folds(table.t0, table.t1, folds=1)
    y = table.y.copy()
    y[folds[0].train] = np.abs(y[folds[0].train])
    for score in walk_forward(replace(table, y=y), folds, estimators=QUICK, seed=1).scores:
        assert np.isfinite(score.log_loss)


def test_unknown_estimators_are_refused(table: TrainingTable) -> None:
    folds = walk_forward_folds(table.t0, table.t1, folds=1)
    with pytest.raises(InvalidRequest, match="oracle"):
        walk_forward(table, folds, estimators={"oracle": {}}, seed=1)
    with pytest.raises(InvalidRequest, match="no parameter depth"):
        walk_forward(table, folds, estimators={"lightgbm": {"depth": 3}}, seed=1)
    with pytest.raises(InvalidRequest):
        walk_forward(table, [], seed=1)
    with pytest.raises(InvalidRequest):
        walk_forward(table, folds, estimators={}, seed=1)
