"""Permutation importance: what is not used has none, and scikit-learn finds the same."""

from __future__ import annotations

import numpy as np
import pytest

from ml.importance import permutation_importance
from trading.errors import InvalidRequest


class First:
    """Leans on the first of its features alone."""

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        long_ = 1 / (1 + np.exp(-3 * rows[:, 0]))
        return np.column_stack([0.8 * (1 - long_), np.full(len(rows), 0.2), 0.8 * long_])


def data(rows: int = 600) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 3))
    return x, np.where(x[:, 0] + 0.3 * random.normal(size=rows) > 0, 1, -1)


def test_only_what_is_used_matters() -> None:
    x, y = data()
    kept = x.copy()
    found = permutation_importance(First(), x, y, ["used", "b", "c"], seed=1)
    assert found.index[0] == "used"
    assert found.loc["used", "importance"] > 0.3
    assert found.loc[["b", "c"]].to_numpy().tolist() == [[0, 0], [0, 0]]
    np.testing.assert_array_equal(x, kept)
    assert found.equals(permutation_importance(First(), x, y, ["used", "b", "c"], seed=1))
    fewer = permutation_importance(First(), x, y, ["used", "b", "c"], seed=1, most_rows=300, repeats=1)
    assert fewer.loc["used", "importance"] == pytest.approx(found.loc["used", "importance"], rel=0.3)
    assert fewer.loc["used", "deviation"] == 0


def test_scikit_learn_finds_the_same() -> None:
    from sklearn.inspection import permutation_importance as theirs
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(2)
    x = random.normal(size=(400, 3))
    y = np.digitize(x @ [1.0, 0.3, 0.0] + random.normal(size=400), [-0.5, 0.5]) - 1
    model = LogisticRegression().fit(x[:200], y[:200])
    expected = theirs(model, x[200:], y[200:], scoring="neg_log_loss", n_repeats=40, random_state=3)
    found = permutation_importance(model, x[200:], y[200:], ["a", "b", "c"], seed=4, repeats=40)
    error = expected.importances_std / np.sqrt(40)
    gap = np.abs(found.loc[["a", "b", "c"], "importance"].to_numpy() - expected.importances_mean)
    assert (gap < 5 * error + 1e-4).all()


def test_nonsense_is_refused() -> None:
    x, y = data(10)
    for rows, classes, names, repeats in (
        (x, y[:5], "abc", 1),
        (x, y, "ab", 1),
        (x[:0], y[:0], "abc", 1),
        (x, y, "abc", 0),
    ):
        with pytest.raises(InvalidRequest):
            permutation_importance(First(), rows, classes, list(names), seed=1, repeats=repeats)
