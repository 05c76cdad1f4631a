"""Evaluation: every figure by hand or against scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from ml.evaluation import FoldScore, Scores, best, log_loss, reliability, score_fold
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


def test_against_scikit_learn() -> None:
    from sklearn import metrics

    random = np.random.default_rng(0)
    probabilities = random.dirichlet((1, 1, 1), 400)
    classes = random.integers(-1, 2, 400)
    found = _score(probabilities, classes, random.normal(size=400))
    assert found.log_loss == pytest.approx(metrics.log_loss(classes, probabilities, labels=[-1, 0, 1]))
    assert found.auc == pytest.approx(metrics.roc_auc_score(classes, probabilities, multi_class="ovr"))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(classes, probabilities.argmax(axis=1) - 1))


def test_figures_that_are_not_defined_are_none() -> None:
    found = _score(np.full((5, 3), 1 / 3), np.array([0, 0, 1, 1, 0]), np.zeros(5))
    assert (found.auc, found.hit_rate, found.net_return, found.signals) == (None, None, None, 0)
    assert Scores("it", (found,)).metrics().keys() == {"log_loss", "accuracy", "signals"}


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
