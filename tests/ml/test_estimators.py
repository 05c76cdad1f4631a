"""Estimators: they learn, they are deterministic, and they come back from their files as they were."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml.boosting import Forest
from ml.estimators import BASELINES, ESTIMATORS, Fitted, Sample, estimator
from ml.fitted import fixed_threads
from ml.linear import Logistic
from ml.sample import weights_of
from ml.trees import Trees
from trading.errors import InsufficientHistory, InvalidRequest, ModelRejected

NAMES = list(ESTIMATORS)
LEARNED = [name for name in NAMES if name not in BASELINES]
COLUMNS = ("return_1", "rsi", "hour", "volume")
HOUR_MS = 3_600_000
FEW: dict[str, dict[str, Any]] = {"lightgbm": {"rounds": 15}, "boosting": {"rounds": 8, "bins": 31}}
# every row learned from, nothing kept back
PLAIN = {
    "logistic": {"calibration": "none"},
    "boosting": {"rounds": 8, "patience": 0, "calibration": "none"},
    "lightgbm": {"rounds": 15, "patience": 0, "calibration": "none"},
}


def _sample(rows: int = 1200, seed: int = 0, missing: int | None = None) -> Sample:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 4))
    x[random.random(x.shape) < 0.02] = np.nan
    drive = np.nan_to_num(x[:, 0]) + 0.5 * random.normal(size=rows)
    y = np.where(drive > 0.5, 1, np.where(drive < -0.5, -1, 0)).astype(np.int8)
    t0 = HOUR_MS * np.arange(rows, dtype=np.int64)
    whole = Sample(x, y, random.uniform(0.5, 1.5, rows), t0, t0 + 3 * HOUR_MS, COLUMNS)
    return whole.take(np.flatnonzero(y != missing)) if missing is not None else whole


def _fit(name: str, sample: Sample, seed: int = 3, **parameters: Any) -> Fitted:
    return estimator(name).fit(sample, seed, {**FEW.get(name, {}), **parameters})


@pytest.fixture(scope="module")
def fitted() -> dict[str, Fitted]:
    return {name: _fit(name, _sample()) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_sample_and_seed_give_the_same_bytes(name: str, fitted: dict[str, Fitted]) -> None:
    assert _fit(name, _sample()).to_files() == fitted[name].to_files()
    if name not in ("neutral", "hold"):
        assert _fit(name, _sample(seed=1)).to_files() != fitted[name].to_files()


@pytest.mark.integration
def test_another_process_with_other_threads_gives_the_same_bytes(fitted: dict[str, Fitted]) -> None:
    program = (
        "import hashlib, tests.ml.test_estimators as t\n"
        "for name in t.NAMES:\n"
        "    files = t._fit(name, t._sample()).to_files()\n"
        "    print(name, *(key + hashlib.sha256(files[key]).hexdigest() for key in sorted(files)))\n"
    )
    mine = [
        " ".join([name, *(key + hashlib.sha256(files[key]).hexdigest() for key in sorted(files))])
        for name, files in ((name, fitted[name].to_files()) for name in NAMES)
    ]
    for threads in ("1", "3"):
        told = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, **told},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines() == mine


@pytest.mark.parametrize("name", NAMES)
def test_from_files_gives_the_same_probabilities(name: str, fitted: dict[str, Fitted]) -> None:
    x = _sample().rows
    back = estimator(name).from_files(fitted[name].to_files())
    assert back.name == name
    np.testing.assert_array_equal(back.predict_proba(x), fitted[name].predict_proba(x))
    np.testing.assert_array_equal(back.contributions(x[0]), fitted[name].contributions(x[0]))
    assert back.to_files() == fitted[name].to_files()


@pytest.mark.parametrize("name", NAMES)
def test_a_row_alone_gets_what_it_gets_among_others(name: str, fitted: dict[str, Fitted]) -> None:
    x = _sample().rows
    whole = fitted[name].predict_proba(x)
    for at in range(0, len(x), 97):
        np.testing.assert_array_equal(fitted[name].predict_proba(x[at : at + 1])[0], whole[at])
    np.testing.assert_array_equal(fitted[name].predict_proba(np.asfortranarray(x)), whole)


@pytest.mark.parametrize("name", NAMES)
def test_files_hold_no_pickle(name: str, fitted: dict[str, Fitted]) -> None:
    for data in fitted[name].to_files().values():
        data.decode("ascii")
        assert not data.startswith(b"\x80")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("missing", [None, -1, 0, 1])
def test_probabilities_are_probabilities_whatever_classes_were_there(name: str, missing: int | None) -> None:
    sample = _sample(missing=missing)
    model = estimator(name).fit(sample, 3, PLAIN.get(name, {}))
    found = model.predict_proba(_sample().rows)
    assert found.shape == (1200, 3)
    assert (found > 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-9)
    if missing is not None and name in LEARNED:
        np.testing.assert_allclose(found[:, missing + 1], 1 / (len(sample) + 3))


@pytest.mark.parametrize("name", LEARNED)
def test_they_learn_what_there_is_to_learn(name: str, fitted: dict[str, Fitted]) -> None:
    fresh = _sample(seed=1)
    assert np.mean(fitted[name].predict_proba(fresh.rows).argmax(axis=1) - 1 == fresh.classes) > 0.6
    row = np.array([2.0, 0, 0, 0])
    shares = fitted[name].contributions(row)
    assert shares.argmax() == 0
    assert fitted[name].contributions(-row)[0] < 0 < shares[0]
    gain = fitted[name].gain()
    assert (gain is None) == (name == "logistic")
    if gain is not None:
        assert gain.shape == (4,)
        assert gain[0] > 0.8 * gain.sum()


def test_persistence_says_how_often_each_class_followed_a_rise_a_fall_and_neither() -> None:
    random = np.random.default_rng(2)
    x = np.round(random.normal(size=(300, 1)))
    x[::50] = np.nan
    y = random.integers(-1, 2, 300).astype(np.int8)
    sample = Sample(x, y, np.ones(300), np.arange(300), np.arange(300) + 1, ("return_1",))
    said = _fit("persistence", sample).predict_proba(np.array([[0.3], [-2.0], [0.0], [np.nan]]))
    signs = np.nan_to_num(np.sign(x[:, 0]))
    for row, sign in zip(said, (1, -1, 0, 0), strict=True):
        kept = y[signs == sign]
        np.testing.assert_allclose(row, [((kept == one).sum() + 1) / (len(kept) + 3) for one in (-1, 0, 1)])
    with pytest.raises(InvalidRequest, match="return_1"):
        _fit("persistence", Sample(x, y, np.ones(300), sample.t0, sample.t1, ("rsi",)))


def test_the_baselines_say_what_they_are_named_after(fitted: dict[str, Fitted]) -> None:
    y = np.array([-1, 0, 0, 0, 0, 1, 1], dtype=np.int8)
    seven = Sample(np.zeros((7, 1)), y, np.ones(7), np.arange(7), np.arange(7), ("rsi",))
    np.testing.assert_allclose(_fit("baseline", seven).predict_proba(np.zeros((2, 1))), [[0.2, 0.5, 0.3]] * 2)
    x = _sample().rows
    assert (fitted["neutral"].predict_proba(x)[:, 1] > 0.99).all()
    assert (fitted["hold"].predict_proba(x)[:, 2] > 0.99).all()
    assert set(ESTIMATORS) > BASELINES
    assert all(fitted[name].gain() is None for name in BASELINES)


@pytest.mark.parametrize("missing", [None, -1, 0, 1])
def test_logistic_equals_scikit_learn_on_the_same_standardised_rows(missing: int | None) -> None:
    from sklearn.linear_model import LogisticRegression

    sample = _sample(missing=missing)
    x = np.nan_to_num(sample.rows)
    sample = Sample(x, sample.classes, sample.weights, sample.t0, sample.t1, sample.names)
    standard = np.clip((x - x.mean(axis=0)) / x.std(axis=0), -5, 5)
    model = LogisticRegression(C=0.02, max_iter=500).fit(standard, sample.classes, sample_weight=sample.weights)
    mine = _fit("logistic", sample, c=0.02, calibration="none").predict_proba(x)[:, model.classes_ + 1]
    np.testing.assert_allclose(mine / mine.sum(axis=1, keepdims=True), model.predict_proba(standard), atol=1e-9)


def test_logistic_bears_constant_and_empty_columns_and_outliers() -> None:
    one = _sample()
    x = np.column_stack([one.rows, np.full(len(one), 7.3), np.full(len(one), np.nan)])
    wide = Sample(x, one.classes, one.weights, one.t0, one.t1, (*COLUMNS, "still", "empty"))
    model = _fit("logistic", wide, calibration="none")
    assert isinstance(model, Logistic)
    assert np.isfinite(model.predict_proba(np.full((1, 6), 1e12))).all()
    assert abs(model.contributions(x[5])[4]) < 1e-12


@pytest.mark.parametrize("missing", [None, -1])
def test_the_stored_trees_predict_what_scikit_learn_predicts(missing: int | None) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    sample = _sample(missing=missing)
    x = sample.rows.copy()
    x[np.random.default_rng(4).random(len(x)) < 0.3, 1] = np.nan  # all that this column tells: it gets splits of NaN
    y = np.where(np.isnan(x[:, 1]), 1, sample.classes).astype(np.int8)
    sample = Sample(x, y, sample.weights, sample.t0, sample.t1, sample.names)
    mine = _fit("boosting", sample, calibration="none", patience=0, min_leaf_rows=20)
    with fixed_threads():
        model = HistGradientBoostingClassifier(
            learning_rate=0.1, max_iter=8, max_leaf_nodes=15, min_samples_leaf=20, l2_regularization=10.0,
            max_features=0.7, max_bins=31, early_stopping=False, random_state=3,
        ).fit(x, y, sample_weight=sample.weights)  # fmt: skip
    assert isinstance(mine, Forest)
    assert np.isinf(mine.threshold).any()
    fresh = np.random.default_rng(5).normal(size=(2000, 4)) * 2
    fresh[np.random.default_rng(6).random(fresh.shape) < 0.3] = np.nan
    fresh[:50] = x[:50]
    fresh[50:60, 0], fresh[60:70, 0] = np.inf, -np.inf
    stored = estimator("boosting").from_files(mine.to_files()).predict_proba(fresh)[:, model.classes_ + 1]
    stored /= stored.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(stored, model.predict_proba(fresh), rtol=0, atol=1e-12)


def test_the_shares_of_the_stored_trees_add_up_to_the_odds() -> None:
    model = _fit("boosting", _sample(), calibration="none")
    assert isinstance(model, Forest)
    means = np.bincount(np.tile(np.arange(3), len(model.roots)), weights=model.value[model.roots.ravel()]) + model.start
    for row in _sample(seed=7).rows[:20]:
        p = model.predict_proba(row[None, :])[0]
        expected = np.log(p[2] / p[0]) - (means[2] - means[0])
        assert model.contributions(row).sum() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["boosting", "lightgbm"])
def test_rounds_end_where_rows_kept_back_stop_gaining(name: str) -> None:
    sample = _sample(900)
    noise = Sample(
        sample.rows,
        np.random.default_rng(9).integers(-1, 2, len(sample)).astype(np.int8),
        sample.weights, sample.t0, sample.t1, sample.names,
    )  # fmt: skip
    many = {"rounds": 100, "patience": 5, "min_leaf_rows": 20, "l2": 0.0, "calibration": "none", "learning_rate": 0.2}

    def rounds(learned: Fitted) -> int:
        if isinstance(learned, Forest):
            return len(learned.roots)
        assert isinstance(learned, Trees)
        return int(learned.boosters[0].current_iteration())

    found, in_noise = rounds(_fit(name, sample, **many)), rounds(_fit(name, noise, **many))
    assert 1 <= in_noise < 15
    assert in_noise < found < 100
    # then all rows are learned from, with exactly so many rounds
    again = _fit(name, sample, **{**many, "rounds": found, "patience": 0})
    assert again.predict_proba(sample.rows).tolist() == _fit(name, sample, **many).predict_proba(sample.rows).tolist()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_direction_binds_the_odds_of_long_against_short(sign: int) -> None:
    sample = _sample()
    bound = _fit("lightgbm", sample, monotone={"rsi": sign, "return_1": 1}, min_leaf_rows=20, l2=0.0, rounds=25)
    free = _fit("lightgbm", sample, min_leaf_rows=20, l2=0.0, rounds=25)
    lines = np.repeat(np.random.default_rng(1).normal(size=(40, 4)), 25, axis=0)
    for column, direction in ((0, 1), (1, sign)):
        moved = lines.copy()
        moved[:, column] = np.tile(np.linspace(-3, 3, 25), 40)
        odds = [np.log(p[:, 2] / p[:, 0]).reshape(40, 25) for p in (one.predict_proba(moved) for one in (bound, free))]
        assert (direction * np.diff(odds[0], axis=1) >= -1e-12).all()
        assert (direction * np.diff(odds[1], axis=1) < -1e-6).any()
    back = estimator("lightgbm").from_files(bound.to_files())
    np.testing.assert_array_equal(back.predict_proba(lines), bound.predict_proba(lines))
    assert bound.contributions(np.array([2.0, 0, 0, 0])).argmax() == 0


@pytest.mark.parametrize("name", ["boosting", "lightgbm"])
def test_features_of_different_groups_do_not_meet_in_a_tree(name: str) -> None:
    random = np.random.default_rng(3)
    x = random.normal(size=(1500, 4))
    y = np.sign(x[:, 0] * x[:, 1]).astype(np.int8)  # nothing to learn but from both at once
    t0 = np.arange(1500)
    sample = Sample(x, y, np.ones(1500), t0, t0, COLUMNS)
    settings = {**PLAIN[name], "rounds": 20, "min_leaf_rows": 20, "l2": 0.0, "feature_share": 1.0, "learning_rate": 0.3}
    apart, together = (
        estimator(name).fit(sample, 1, {**settings, "interactions": groups})
        for groups in ([["return_1"]], [["return_1", "rsi"]])
    )

    def interplay(model: Fitted) -> float:
        grid = np.zeros((4, 4))
        grid[:, :2] = [[1, 1], [1, -1], [-1, 1], [-1, -1]]
        p = model.predict_proba(grid)
        odds = np.log(p[:, 2] / p[:, 0])
        return float(abs(odds[0] - odds[1] - odds[2] + odds[3]))

    assert interplay(together) > 1
    assert interplay(apart) < 1e-9


@pytest.mark.parametrize("name", LEARNED)
def test_weights_count_rows_more_than_once(name: str) -> None:
    one = _sample()
    heavy = np.where(one.classes == 1, 20.0, 1.0)
    tilted = Sample(one.rows, one.classes, heavy / heavy.mean(), one.t0, one.t1, one.names)
    plain, weighted = (
        estimator(name).fit(each, 1, PLAIN[name]).predict_proba(one.rows).mean(axis=0) for each in (one, tilted)
    )
    assert weighted[2] > plain[2] + 0.1
    balanced = estimator(name).fit(tilted, 1, {**PLAIN[name], "class_weight": "balanced"})
    assert np.ptp(balanced.predict_proba(one.rows).mean(axis=0)) < np.ptp(weighted)
    sums = [weights_of(tilted, "balanced")[one.classes == label].sum() for label in (-1, 0, 1)]
    np.testing.assert_allclose(sums, len(one) / 3)


@pytest.mark.parametrize("name", LEARNED)
def test_a_single_class_is_too_little_to_learn_from(name: str) -> None:
    t0 = np.arange(20)
    single = Sample(np.zeros((20, 2)), np.ones(20, np.int8), np.ones(20), t0, t0, ("return_1", "rsi"))
    with pytest.raises(InsufficientHistory, match=r"\[1\] only"):
        _fit(name, single)


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("baseline", {"rounds": 3}, "no parameter rounds; it has none"),
        ("logistic", {"C": 1.0}, "no parameter C; it has c, "),
        ("logistic", {"c": -1.0}, "c=-1.0; it must be a number from"),
        ("logistic", {"c": float("nan")}, "c=nan"),
        ("lightgbm", {"rounds": 2.5}, "rounds=2.5; it must be a whole number from 1 to 5000"),
        ("lightgbm", {"rounds": True}, "rounds=True"),
        ("lightgbm", {"monotone": {"oracle": 1}}, r"\['oracle'\], which are no features here"),
        ("lightgbm", {"monotone": {"rsi": 2}}, "a direction is 1 or -1"),
        ("lightgbm", {"monotone": 3}, "must map feature names"),
        ("lightgbm", {"interactions": [["rsi", "oracle"]]}, r"\['oracle'\]"),
        ("boosting", {"interactions": ["rsi"]}, "list of lists"),
        ("boosting", {"monotone": {"rsi": 1}}, "no parameter monotone"),
        ("boosting", {"calibration": "isotonic"}, "use one of none, temperature, bias"),
    ],
)
def test_unknown_parameters_and_features_are_refused(name: str, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        _fit(name, _sample(), **wrong)


def test_samples_that_make_no_sense_are_refused() -> None:
    one = _sample(50)
    with pytest.raises(InvalidRequest, match=r"needs rows \(50, 1\)"):
        Sample(one.rows, one.classes, one.weights, one.t0, one.t1, ("rsi",))
    with pytest.raises(InvalidRequest, match="only -1, 0 and 1"):
        Sample(one.rows, one.classes + 1, one.weights, one.t0, one.t1, one.names)
    with pytest.raises(InvalidRequest, match="not positive"):
        Sample(one.rows, one.classes, one.weights * 0, one.t0, one.t1, one.names)
    assert one.take(np.arange(10)).weights.mean() == pytest.approx(1)


def test_what_is_kept_back_comes_later_and_overlaps_nothing() -> None:
    earlier, judge = _sample(500).kept_back(0.2)
    assert len(judge) == 100
    # three hours of label and as many of embargo
    assert earlier.t1.max() + 3 * HOUR_MS <= judge.t0.min()
    assert len(earlier) == 400 - 5


def test_unknown_names_and_unreadable_files_are_refused(fitted: dict[str, Fitted]) -> None:
    with pytest.raises(InvalidRequest, match="baseline, neutral, hold, persistence, logistic, boosting, lightgbm"):
        estimator("oracle")
    for name in NAMES:
        with pytest.raises(ModelRejected, match=r"no estimator\.json"):
            estimator(name).from_files({})
        with pytest.raises(ModelRejected, match="not JSON"):
            estimator(name).from_files({"estimator.json": b"{"})
        with pytest.raises(ModelRejected, match="lacks"):
            estimator(name).from_files({"estimator.json": b"[]"})
    files = fitted["lightgbm"].to_files()
    with pytest.raises(ModelRejected, match=r"booster\.txt"):
        estimator("lightgbm").from_files({"estimator.json": files["estimator.json"]})
    for key, wrong in (("left", 10**6), ("feature", 4), ("right", 0)):
        stored = json.loads(fitted["boosting"].to_files()["estimator.json"])
        stored[key][1] = wrong
        with pytest.raises(ModelRejected, match="no trees"):
            estimator("boosting").from_files({"estimator.json": json.dumps(stored).encode()})
