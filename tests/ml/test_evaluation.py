"""Evaluation: every figure by hand or against scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from ml.evaluation import (
    FoldScore,
    Scores,
    Third,
    best,
    calibration_error,
    log_loss,
    rank_correlation,
    reliability,
    score_fold,
)
from ml.signals import SignalRule
from trading.errors import InvalidRequest

RULE = SignalRule(0.1, 0.4, 0.4)


def _score(probabilities: np.ndarray, classes: np.ndarray, forward: np.ndarray) -> FoldScore:
    return score_fold(
        probabilities, classes, forward, rule=RULE, round_trip_cost=0.002, estimator="it", fold=1, span=(0, 9),
        train_rows=5,
    )  # fmt: skip


def test_by_hand() -> None:
    probabilities = np.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.3, 0.4, 0.3]])
    found = _score(probabilities, np.array([1, 1, 0, -1]), np.array([0.01, 0.02, -0.004, -0.1]))
    assert found.log_loss == pytest.approx(-(math.log(0.7) + math.log(0.1) + math.log(0.2) + math.log(0.3)) / 4)
    assert found.accuracy == 0.25
    assert found.signals == 3  # Long, Short, Long
    assert found.hit_rate == pytest.approx(1 / 3)
    assert found.net_return == pytest.approx((0.01 - 0.02 - 0.004) / 3 - 0.002)
    assert (found.train_rows, found.test_rows) == (5, 4)
    # Short said with 0.6 and wrong, Long with 0.6 and wrong, Long with 0.7 and right
    assert found.thirds == (Third(0.6, 0.0, 1), Third(0.6, 0.0, 1), Third(0.7, 1.0, 1))
    errors = (0.1**2 + 0.2**2 + 0.3**2, 0.6**2 + 0.3**2 + 0.9**2, 0.2**2 + 0.8**2 + 0.6**2, 0.7**2 + 0.4**2 + 0.3**2)
    assert found.brier == pytest.approx(sum(errors) / 4)
    # p_long - p_short ranks 4, 1, 3, 2 against returns that rank 3, 4, 2, 1
    assert found.information_coefficient == pytest.approx(1 - 6 * (1 + 9 + 1 + 1) / (4 * 15))


def test_against_scikit_learn() -> None:
    from sklearn import metrics

    random = np.random.default_rng(0)
    probabilities = random.dirichlet((1, 1, 1), 400)
    classes = random.integers(-1, 2, 400)
    found = _score(probabilities, classes, random.normal(size=400))
    assert found.log_loss == pytest.approx(metrics.log_loss(classes, probabilities, labels=[-1, 0, 1]))
    assert found.auc == pytest.approx(metrics.roc_auc_score(classes, probabilities, multi_class="ovr"))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(classes, probabilities.argmax(axis=1) - 1))
    each = [metrics.brier_score_loss(classes == side, probabilities[:, side + 1]) for side in (-1, 0, 1)]
    assert found.brier == pytest.approx(sum(each))


def test_the_rank_correlation_is_that_of_scipy_with_ties() -> None:
    from scipy import stats

    random = np.random.default_rng(3)
    one, other = random.integers(0, 9, 200).astype(float), random.normal(size=200)
    assert rank_correlation(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)
    assert rank_correlation(one, one**3) == pytest.approx(1)
    assert rank_correlation(one, np.ones(200)) is None


def test_the_calibration_error_of_honest_probabilities_is_chance_and_of_boasts_is_not() -> None:
    random = np.random.default_rng(4)
    honest = random.dirichlet((2, 3, 2), 20_000)
    classes = (random.random(20_000)[:, None] > honest.cumsum(axis=1)).sum(axis=1) - 1
    assert calibration_error(honest, classes) < 0.01
    boasts = honest**3 / (honest**3).sum(axis=1, keepdims=True)
    assert calibration_error(boasts, classes) > 0.1
    # all sure of +1, which comes once in four times: gaps of 0.75, 0 and 0.75
    sure = np.tile([0.0, 0.0, 1.0], (8, 1))
    assert calibration_error(sure, np.array([1, 0, 0, 0] * 2), bins=1) == pytest.approx(0.5)


def test_hit_rates_by_confidence_are_pooled_by_their_signals() -> None:
    random = np.random.default_rng(5)
    sure = random.uniform(0.45, 0.9, 3000)
    probabilities = np.column_stack([0.9 - sure, np.full(3000, 0.1), sure])
    forward = np.where(random.random(3000) < sure, 0.01, -0.01)
    classes = np.ones(3000, int)
    folds = [_score(probabilities[part], classes[part], forward[part]) for part in (slice(900), slice(900, 3000))]
    found = Scores("it", tuple(folds)).metrics()
    assert found["hit_rate_least"] < found["hit_rate_middle"] < found["hit_rate_most"]
    most = [fold.thirds[2] for fold in folds]
    pooled = sum(third.hit_rate * third.signals for third in most) / sum(third.signals for third in most)
    assert found["hit_rate_most"] == pytest.approx(pooled)
    weights = [third.signals for fold in folds for third in fold.thirds]
    assert sum(weights) == found["signals"]
    hits = [third.hit_rate for fold in folds for third in fold.thirds]
    assert np.average(hits, weights=weights) == pytest.approx(found["hit_rate"])


def test_a_score_is_made_of_json_values() -> None:
    import json

    probabilities = np.random.default_rng(6).dirichlet((1, 1, 1), 50)
    found = _score(probabilities, np.ones(50, int), np.linspace(-1, 1, 50))
    assert json.loads(json.dumps(found.document())) == found.document()


def test_figures_that_are_not_defined_are_none() -> None:
    found = _score(np.full((5, 3), 1 / 3), np.array([0, 0, 1, 1, 0]), np.zeros(5))
    assert (found.auc, found.hit_rate, found.net_return, found.signals) == (None, None, None, 0)
    assert (found.information_coefficient, found.thirds) == (None, ())
    always = {"log_loss", "accuracy", "signals", "brier", "calibration_error"}
    assert Scores("it", (found,)).metrics().keys() == always


def test_certainty_that_was_wrong_costs_much_and_not_infinitely_much() -> None:
    assert 30 < log_loss(np.array([[1.0, 0, 0]]), np.array([1])) < 40


def test_means_over_folds() -> None:
    one = FoldScore("it", 1, 0, 1, 10, 10, 1.0, 0.5, 0.6, 0.4, 0.01, 10)
    two = FoldScore("it", 2, 1, 2, 20, 99, 0.8, 0.7, None, 0.6, -0.01, 30)
    scores = Scores("it", (one, two))
    assert scores.metrics() == pytest.approx(
        {"log_loss": 0.9, "accuracy": 0.6, "auc": 0.6, "signals": 40, "hit_rate": 0.55, "net_return": -0.005}
    )
    assert scores.skill(Scores("it", (one,))) == pytest.approx(0.1)


def test_the_best_has_the_lowest_loss_and_of_equals_the_first_wins() -> None:
    plain = FoldScore("plain", 1, 0, 1, 10, 10, 1.0, 0.5, None, None, None, 0)
    rich = replace(plain, estimator="rich")
    better = replace(plain, estimator="better", log_loss=0.9)
    both = [Scores("plain", (plain,)), Scores("rich", (rich,))]
    assert best(both).estimator == "plain"
    assert best([*both, Scores("better", (better,))]).estimator == "better"
    with pytest.raises(InvalidRequest):
        best([])
    with pytest.raises(InvalidRequest, match="same folds"):
        best([*both, Scores("better", (replace(better, test_end=2),))])


def test_nonsense_is_refused() -> None:
    for probabilities in (np.full((2, 3), 0.5), np.full((2, 3), np.nan), np.array([[2, -1, 0.0]] * 2), np.ones((2, 2))):
        with pytest.raises(InvalidRequest):
            _score(probabilities, np.array([0, 1]), np.zeros(2))
    with pytest.raises(InvalidRequest):
        _score(np.empty((0, 3)), np.empty(0), np.empty(0))
    with pytest.raises(InvalidRequest):
        Scores("it", ())


def test_reliability_of_honest_probabilities_is_the_diagonal() -> None:
    random = np.random.default_rng(1)
    said = random.random(50_000)
    points = reliability(said, random.random(50_000) < said, bins=10)
    assert points.shape == (10, 3)
    np.testing.assert_allclose(points[:, 0], points[:, 1], atol=0.03)
    assert points[:, 2].sum() == 50_000
    assert reliability(said[:3], np.ones(3, bool), bins=10).shape == (3, 3)
