"""Estimators: they learn, they are deterministic, and they come back from their files as they were."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ml.estimators import ESTIMATORS, Logistic, estimator
from trading.errors import InsufficientHistory, InvalidRequest, ModelRejected

NAMES = list(ESTIMATORS)


def _data(rows: int = 1500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 4))
    x[random.random(x.shape) < 0.02] = np.nan
    drive = np.nan_to_num(x[:, 0]) + 0.5 * random.normal(size=rows)
    return x, np.where(drive > 0.5, 1, np.where(drive < -0.5, -1, 0)).astype(np.int8)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_data_and_seed_give_the_same_bytes(name: str) -> None:
    x, y = _data()
    assert estimator(name).fit(x, y, 3).to_files() == estimator(name).fit(x.copy(), y.copy(), 3).to_files()
    other, _ = _data(seed=1)
    if name != "baseline":
        assert estimator(name).fit(x, y, 3).to_files() != estimator(name).fit(other, y, 3).to_files()


@pytest.mark.parametrize("name", NAMES)
def test_from_files_gives_the_same_probabilities(name: str) -> None:
    x, y = _data()
    fitted = estimator(name).fit(x, y, 3)
    back = estimator(name).from_files(fitted.to_files())
    assert back.name == name
    np.testing.assert_array_equal(back.predict_proba(x), fitted.predict_proba(x))
    assert back.to_files() == fitted.to_files()


@pytest.mark.parametrize("name", NAMES)
def test_a_row_alone_gets_what_it_gets_among_others(name: str) -> None:
    x, y = _data()
    fitted = estimator(name).fit(x, y, 3)
    whole = fitted.predict_proba(x)
    for at in range(0, len(x), 97):
        np.testing.assert_array_equal(fitted.predict_proba(x[at : at + 1])[0], whole[at])
    np.testing.assert_array_equal(fitted.predict_proba(np.asfortranarray(x)), whole)


@pytest.mark.parametrize("name", NAMES)
def test_files_hold_no_pickle(name: str) -> None:
    x, y = _data()
    for data in estimator(name).fit(x, y, 3).to_files().values():
        data.decode("ascii")
        assert not data.startswith(b"\x80")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("missing", [None, -1, 0, 1])
def test_probabilities_are_probabilities_whatever_classes_were_there(name: str, missing: int | None) -> None:
    x, y = _data()
    keep = y != missing if missing is not None else np.ones(len(y), bool)
    fitted = estimator(name).fit(x[keep], y[keep], 3)
    found = fitted.predict_proba(x)
    assert found.shape == (len(x), 3)
    assert (found > 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-9)
    if missing is not None:
        np.testing.assert_allclose(found[:, missing + 1], 1 / (keep.sum() + 3))


@pytest.mark.parametrize("name", ["logistic", "lightgbm"])
def test_they_learn_what_there_is_to_learn(name: str) -> None:
    (x, y), (fresh, truth) = _data(), _data(seed=1)
    fitted = estimator(name).fit(x, y, 3)
    assert np.mean(fitted.predict_proba(fresh).argmax(axis=1) - 1 == truth) > 0.65
    row = np.array([2.0, 0, 0, 0])
    shares = fitted.contributions(row)
    assert shares.argmax() == 0
    assert fitted.contributions(-row)[0] < 0 < shares[0]


@pytest.mark.parametrize("missing", [None, -1, 0, 1])
def test_logistic_equals_scikit_learn_on_the_same_standardised_rows(missing: int | None) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = _data()
    keep = y != missing if missing is not None else np.ones(len(y), bool)
    x, y = np.nan_to_num(x[keep]), y[keep]
    standard = np.clip((x - x.mean(axis=0)) / x.std(axis=0), -5, 5)
    model = LogisticRegression(C=0.01, max_iter=500).fit(standard, y)
    mine = estimator("logistic").fit(x, y, 0).predict_proba(x)[:, model.classes_ + 1]
    np.testing.assert_allclose(mine / mine.sum(axis=1, keepdims=True), model.predict_proba(standard), atol=1e-9)


def test_logistic_bears_constant_and_empty_columns_and_outliers() -> None:
    x, y = _data()
    x = np.column_stack([x, np.full(len(x), 7.3), np.full(len(x), np.nan)])
    fitted = estimator("logistic").fit(x, y, 0)
    assert isinstance(fitted, Logistic)
    assert np.isfinite(fitted.predict_proba(np.full((1, 6), 1e12))).all()
    assert abs(fitted.contributions(x[5])[4]) < 1e-12


def test_the_baseline_says_how_often_each_class_occurred() -> None:
    fitted = estimator("baseline").fit(np.zeros((7, 2)), np.array([-1, 0, 0, 0, 0, 1, 1]), 0)
    np.testing.assert_allclose(fitted.predict_proba(np.zeros((2, 2))), [[0.2, 0.5, 0.3]] * 2)


@pytest.mark.parametrize("name", ["logistic", "lightgbm"])
def test_a_single_class_is_too_little_to_learn_from(name: str) -> None:
    with pytest.raises(InsufficientHistory, match=r"\[1\] only"):
        estimator(name).fit(np.zeros((20, 2)), np.ones(20, np.int8), 0)


def test_unknown_names_and_unreadable_files_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="baseline, logistic, lightgbm"):
        estimator("oracle")
    for name in NAMES:
        with pytest.raises(ModelRejected, match=r"no estimator\.json"):
            estimator(name).from_files({})
        with pytest.raises(ModelRejected, match="not JSON"):
            estimator(name).from_files({"estimator.json": b"{"})
        with pytest.raises(ModelRejected, match="lacks"):
            estimator(name).from_files({"estimator.json": b"[]"})
    with pytest.raises(ModelRejected, match=r"booster\.txt"):
        estimator("lightgbm").from_files({"estimator.json": json.dumps({"classes": [0, 1], "absent": 0.1}).encode()})
