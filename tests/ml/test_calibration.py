"""Calibration: probabilities come nearer to frequencies, their order stays, and their files come back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.baselines import Constant
from ml.calibration import CALIBRATION, METHODS, Calibrated, Scaling, fit_scaling, scaling_from_files
from ml.estimators import Sample, estimator
from ml.evaluation import log_loss
from trading.errors import ModelRejected


def _said(rows: int, seed: int, slope: float, biases: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and classes, of which a scaling by ``slope`` and ``biases`` would be the truth."""
    random = np.random.default_rng(seed)
    said = random.dirichlet((2.0, 3.0, 2.0), rows)
    truth = Scaling(slope, biases).apply(said)
    return said, (random.random(rows)[:, None] > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2).astype(np.int8) - 1


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 300),
    slope=st.floats(-2, 3),
    bias=st.floats(-2, 2),
    method=st.sampled_from(METHODS),
)
def test_it_never_worsens_the_rows_it_was_fitted_on_and_never_turns_odds_round(
    seed: int, rows: int, slope: float, bias: float, method: str
) -> None:
    said, classes = _said(rows, seed, slope, (bias, 0.0, -bias))
    found = fit_scaling(said, classes, method)
    scaled = found.apply(said)
    np.testing.assert_allclose(scaled.sum(axis=1), 1, atol=1e-12)
    assert log_loss(scaled, classes) <= log_loss(said, classes) + 1e-12
    assert found.slope >= 0
    order = np.argsort(said[:, 2] / said[:, 0])
    assert (np.diff(np.log(scaled[:, 2] / scaled[:, 0])[order]) >= -1e-9).all()
    assert found == fit_scaling(said, classes, method)


@pytest.mark.parametrize(("slope", "biases"), [(0.5, (0.0, 0.0, 0.0)), (1.6, (0.4, 0.0, -0.4))])
def test_with_many_rows_it_finds_what_was_distorted(slope: float, biases: tuple[float, float, float]) -> None:
    said, classes = _said(40_000, 1, slope, biases)
    found = fit_scaling(said, classes, "bias")
    assert found.slope == pytest.approx(slope, abs=0.15)
    assert np.subtract(found.biases, np.mean(found.biases)) == pytest.approx(biases, abs=0.1)


def test_the_minimum_is_that_of_an_independent_optimiser() -> None:
    from scipy.optimize import minimize

    said, classes = _said(2000, 3, 0.4, (0.5, 0.0, -0.2))
    found = fit_scaling(said, classes, "bias")

    def loss(at: np.ndarray) -> float:
        p = Scaling(at[0], (at[1], at[2], at[3])).apply(said)
        return 2000 * log_loss(p, classes) + 500 * ((at[0] - 1) ** 2 + float((at[1:] ** 2).sum()))

    best = minimize(loss, [1.0, 0.0, 0.0, 0.0], method="BFGS", options={"gtol": 1e-6})
    assert [found.slope, *found.biases] == pytest.approx(best.x.tolist(), abs=1e-5)


def test_an_estimator_that_was_wrong_headed_is_silenced_not_believed_backwards() -> None:
    said, classes = _said(10_000, 2, -1.0, (0.0, 0.0, 0.0))
    assert fit_scaling(said, classes, "bias").slope == 0
    np.testing.assert_allclose(fit_scaling(said, classes, "temperature").apply(said), 1 / 3)
    few = fit_scaling(said[:10], classes[:10], "bias")
    assert few.slope == pytest.approx(1, abs=0.1)  # ten rows prove nothing
    assert fit_scaling(said[:0], classes[:0], "bias") == Scaling()


def test_a_calibrated_estimator_is_the_estimator_scaled() -> None:
    inner = Constant("baseline", np.array([0.2, 0.5, 0.3]))
    model = Calibrated(inner, Scaling(0.5, (0.1, 0.0, -0.1)))
    expected = np.exp(0.5 * np.log([0.2, 0.5, 0.3]) + [0.1, 0.0, -0.1])
    np.testing.assert_allclose(model.predict_proba(np.zeros((1, 2)))[0], expected / expected.sum())
    assert model.name == "baseline"
    assert set(model.to_files()) == {"estimator.json", CALIBRATION}
    assert scaling_from_files(model.to_files()) == model.scaling
    assert scaling_from_files(inner.to_files()) is None


def test_an_overfitted_estimator_is_humbled_and_its_reasons_with_it() -> None:
    random = np.random.default_rng(8)
    rows, t0 = random.normal(size=(500, 60)), np.arange(500)
    classes = random.integers(-1, 2, 500).astype(np.int8)
    sample = Sample(rows, classes, np.ones(500), t0, t0, tuple(f"f{at}" for at in range(60)))
    raw, scaled = (estimator("logistic").fit(sample, 1, {"c": 10.0, "calibration": one}) for one in ("none", "bias"))
    assert isinstance(scaled, Calibrated)
    fresh, truth = random.normal(size=(500, 60)), random.integers(-1, 2, 500)
    assert log_loss(scaled.predict_proba(fresh), truth) < log_loss(raw.predict_proba(fresh), truth)
    np.testing.assert_allclose(scaled.contributions(rows[0]), scaled.scaling.slope * raw.contributions(rows[0]))


def test_a_class_that_the_earlier_rows_lack_leaves_the_estimator_as_it_is() -> None:
    random = np.random.default_rng(8)
    classes = np.where(np.arange(400) < 320, random.integers(0, 2, 400), -1).astype(np.int8)
    t0 = np.arange(400)
    sample = Sample(random.normal(size=(400, 2)), classes, np.ones(400), t0, t0, ("a", "b"))
    assert not isinstance(estimator("logistic").fit(sample, 1), Calibrated)


@pytest.mark.parametrize(
    "stored", [{"slope": -1.0, "biases": [0, 0, 0]}, {"slope": 1.0, "biases": [0, 0]}, {"slope": float("inf")}, {}]
)
def test_a_scaling_that_is_none_is_refused(stored: dict[str, object]) -> None:
    with pytest.raises(ModelRejected, match=r"calibration\.json"):
        scaling_from_files({CALIBRATION: json.dumps(stored).encode()})
