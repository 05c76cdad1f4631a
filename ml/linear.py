"""Multinomial logistic regression on standardised features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from ml.fitted import NUMBERS, Fitted, absent, fixed_threads, long_minus_short, numbers, softmax, spread, to_json
from ml.parameters import Choice, Number, Parameter
from ml.sample import Sample, present, weights_of

LOGISTIC: Final = "logistic"
# standardised features beyond this many deviations count as this many: tails must not rule a linear model
_CLIP: Final = 5.0
_ARRAYS: Final = ("medians", "means", "scales", "coefficients", "intercepts")

SPACE: Final[Mapping[str, Parameter]] = MappingProxyType(
    {
        # inverse strength of the L2 penalty
        "c": Number(0.01, 1e-8, 1e4, search=(1e-5, 1.0), log=True),
        "class_weight": Choice("none", ("none", "balanced")),
    }
)


@dataclass(frozen=True, eq=False)
class Logistic:
    """Medians for NaN, standardisation, clipping at five deviations, softmax of linear scores.

    ``medians``, ``means``, ``scales``: (k,); ``coefficients``: (classes, k); ``intercepts``: (classes,).
    """

    classes: tuple[int, ...]
    absent: float
    medians: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    coefficients: np.ndarray
    intercepts: np.ndarray
    name: str = LOGISTIC

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """See Fitted."""
        # not BLAS: its order of sums, and so the last bit, would depend on how many rows are asked at once
        scores = np.einsum("nk,ck->nc", self._standardised(rows), self.coefficients) + self.intercepts
        return spread(softmax(scores), self.classes, self.absent)

    def contributions(self, row: np.ndarray) -> np.ndarray:
        """See Fitted."""
        return long_minus_short(self._standardised(row[None, :]) * self.coefficients, self.classes)

    def gain(self) -> np.ndarray | None:
        """See Fitted."""
        return None

    def to_files(self) -> dict[str, bytes]:
        """See Fitted."""
        arrays = {key: getattr(self, key).tolist() for key in _ARRAYS}
        return {NUMBERS: to_json({"classes": list(self.classes), "absent": self.absent, **arrays})}

    def _standardised(self, rows: np.ndarray) -> np.ndarray:
        filled = np.ascontiguousarray(np.where(np.isnan(rows), self.medians, rows))
        return np.asarray(np.clip((filled - self.means) / self.scales, -_CLIP, _CLIP))


def learn_logistic(
    sample: Sample, seed: int, chosen: Mapping[str, Any], judge: Sample | None
) -> tuple[Fitted, Mapping[str, Any]]:
    """Multinomial logistic regression with an L2 penalty; medians, means and scales are unweighted.

    Raises:
        InsufficientHistory: the rows hold a single class.
    """
    from sklearn.linear_model import LogisticRegression

    found, rows = present(sample, LOGISTIC), sample.rows
    missing = np.isnan(rows)
    known = np.where(missing.all(axis=0), 0.0, rows)  # a column without any value counts as zeros
    medians = np.nanmedian(known, axis=0) if missing.any() else np.median(known, axis=0)
    filled = np.where(missing, medians, rows)
    means, scales = filled.mean(axis=0), filled.std(axis=0)
    # a feature that never moved carries rounding noise instead of a scale
    scales = np.where(scales > 1e-12 * np.maximum(1.0, np.abs(means)), scales, 1.0)
    standard = np.clip((filled - means) / scales, -_CLIP, _CLIP)
    with fixed_threads():
        model = LogisticRegression(C=chosen["c"], max_iter=500, random_state=seed)
        model.fit(standard, sample.classes, sample_weight=weights_of(sample, chosen["class_weight"]))
    # in one memory layout, for the last bit of a sum depends on it
    weights, intercepts = np.ascontiguousarray(model.coef_), np.asarray(model.intercept_)
    if len(found) == 2:  # scikit-learn keeps one score for two classes: that of the second
        weights, intercepts = np.vstack([np.zeros_like(weights), weights]), np.append(0.0, intercepts)
    return Logistic(found, absent(len(sample)), medians, means, scales, weights, intercepts), chosen


def logistic_from_files(files: Mapping[str, bytes]) -> Fitted:
    """A Logistic back."""
    stored = numbers(files, "classes", "absent", *_ARRAYS)
    arrays: dict[str, Any] = {key: np.array(stored[key], dtype=np.float64) for key in _ARRAYS}
    return Logistic(tuple(stored["classes"]), float(stored["absent"]), **arrays)
