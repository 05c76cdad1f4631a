"""Calibration: probabilities that mean what they say, by three or four numbers fitted on rows kept back.

With p the probabilities of the estimator, the calibrated ones are softmax(a * ln p + b): a slope a >= 0
(one over the temperature) and a bias for each class. A larger lead of one class over another stays the
larger one, so calibration orders no rows anew in their odds. Temperature scaling: Guo et al., On Calibration of
Modern Neural Networks (ICML 2017); with biases: Alexandari, Kundaje and Shrikumar, Maximum Likelihood with
Bias-Corrected Calibration (ICML 2020). A slope for each class and a full matrix, also in Guo et al., fit more
numbers than a few thousand overlapping labels can carry, and may turn the order of two rows round.

Fitted without the weights of the rows: a probability is a frequency of bars, and a model that was
trained with class weights or weights of uniqueness is set right by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ml.fitted import Fitted, numbers, softmax, to_json
from ml.labels import CLASSES
from trading.errors import ModelRejected

CALIBRATION: Final = "calibration.json"
METHODS: Final = ("none", "temperature", "bias")
# what the belief "already calibrated" is worth, in units of the rows' information: labels overlap and symbols move
# together, so thousands of rows hold hundreds of independent outcomes
_BELIEF: Final = 1000.0
_LEAST: Final = 1e-15


@dataclass(frozen=True)
class Scaling:
    """``slope`` >= 0 and a bias for each of -1, 0 and +1."""

    slope: float = 1.0
    biases: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities (n, 3)."""
        return softmax(self.slope * _logs(probabilities) + np.array(self.biases))


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A fitted estimator whose probabilities are scaled."""

    fitted: Fitted
    scaling: Scaling

    @property
    def name(self) -> str:
        """See Fitted."""
        return self.fitted.name

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """See Fitted."""
        return self.scaling.apply(self.fitted.predict_proba(rows))

    def contributions(self, row: np.ndarray) -> np.ndarray:
        """See Fitted. The biases are no feature's doing."""
        return self.scaling.slope * self.fitted.contributions(row)

    def gain(self) -> np.ndarray | None:
        """See Fitted."""
        return self.fitted.gain()

    def to_files(self) -> dict[str, bytes]:
        """See Fitted."""
        scaling = {"slope": self.scaling.slope, "biases": list(self.scaling.biases)}
        return {**self.fitted.to_files(), CALIBRATION: to_json(scaling)}


def fit_scaling(probabilities: np.ndarray, classes: np.ndarray, method: str) -> Scaling:
    """The most likely scaling of ``probabilities`` (n, 3) given the true ``classes`` (n,).

    The sum of -ln p(true class) plus ``_BELIEF`` / 2 times the squared distance from no scaling is
    minimised by Newton's method; it is convex, and no scaling is one of the candidates, so the log
    loss of these rows does not rise.

    Args:
        method: ``temperature`` moves the slope alone, ``bias`` slope and biases, ``none`` nothing.
    """
    if method == "none" or not len(classes):
        return Scaling()
    free = np.array([True, *[method == "bias"] * len(CLASSES)])
    logs, truth = _logs(probabilities), np.searchsorted(CLASSES, classes)
    best = _minimum(logs, truth, free)
    if best[0] < 0:  # the estimator was wrong-headed on these rows: then it says nothing, rather than the opposite
        best = _minimum(logs, truth, free & np.array([False, True, True, True]), slope=0.0)
    return Scaling(float(best[0]), (float(best[1]), float(best[2]), float(best[3])))


def scaling_from_files(files: Mapping[str, bytes]) -> Scaling | None:
    """The scaling stored beside an estimator; None where there is none.

    Raises:
        ModelRejected: the file is not what ``Calibrated.to_files`` writes.
    """
    if CALIBRATION not in files:
        return None
    stored = numbers(files, "slope", "biases", file=CALIBRATION)
    values = np.array([stored["slope"], *stored["biases"]], dtype=np.float64)
    if values.shape != (1 + len(CLASSES),) or not np.isfinite(values).all() or values[0] < 0:
        raise ModelRejected(f"{CALIBRATION} holds {stored}, not a slope >= 0 and three biases; train the model again")
    return Scaling(float(values[0]), (float(values[1]), float(values[2]), float(values[3])))


def _minimum(logs: np.ndarray, truth: np.ndarray, free: np.ndarray, slope: float = 1.0) -> np.ndarray:
    """Slope and biases (4,) at the minimum over those that are ``free``."""
    at = np.array([slope, 0.0, 0.0, 0.0])
    value, gradient, curvature = _penalised(logs, truth, at)
    for _ in range(100):
        step = np.zeros(4)
        step[free] = np.linalg.solve(curvature[np.ix_(free, free)], gradient[free]) if free.any() else 0.0
        size = 1.0
        while size > 1e-6:
            tried = _penalised(logs, truth, at - size * step)
            if tried[0] < value:
                break
            size /= 2
        else:  # no step lowers it any more
            return at
        at = at - size * step
        value, gradient, curvature = tried
    return at


def _penalised(logs: np.ndarray, truth: np.ndarray, at: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """What is minimised, its gradient (4,) and its Hessian (4, 4)."""
    rows = np.arange(len(truth))
    q = softmax(at[0] * logs + at[1:])
    distance = at - np.array([1.0, 0.0, 0.0, 0.0])
    value = float(-np.log(np.maximum(q[rows, truth], _LEAST)).sum() + _BELIEF / 2 * (distance**2).sum())
    # the score of class c depends on slope and biases through (ln p_c, one at c)
    expected = np.column_stack([(q * logs).sum(axis=1), q])
    observed = np.column_stack([logs[rows, truth], np.eye(len(CLASSES))[truth]])
    second: Any = np.zeros((4, 4))
    second[0, 0] = (q * logs**2).sum()
    second[0, 1:] = second[1:, 0] = (q * logs).sum(axis=0)
    second[1:, 1:] = np.diag(q.sum(axis=0))
    curvature = second - np.einsum("np,nq->pq", expected, expected) + _BELIEF * np.eye(4)
    return value, (expected - observed).sum(axis=0) + _BELIEF * distance, curvature


def _logs(probabilities: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(np.maximum(np.ascontiguousarray(probabilities), _LEAST)))
