"""Estimators: what learns the classes -1, 0 and +1 from rows of features.

Three, side by side: class frequencies (``baseline``), multinomial logistic regression (``logistic``)
and gradient-boosted trees (``lightgbm``). Fitted ones turn into named bytes and back, in formats that
hold numbers and no code: JSON, and LightGBM's own text. Equal data and seed give equal bytes.

A class that the training rows lack gets the probability 1 / (n + 3), n being the number of rows
(Laplace's rule of succession), so that its first appearance costs a finite log loss.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from ml.labels import CLASSES
from trading.errors import InsufficientHistory, InvalidRequest, ModelRejected

if TYPE_CHECKING:
    from lightgbm import Booster

BASELINE: Final = "baseline"
_NUMBERS: Final = "estimator.json"
_TREES: Final = "booster.txt"
# standardised features beyond this many deviations count as this many: tails must not rule a linear model
_CLIP: Final = 5.0

_THREADS: Final = 2  # a fixed number: the order of sums, and so the trees, depend on it

LIGHTGBM_ROUNDS: Final = 60
LIGHTGBM_PARAMETERS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "objective": "multiclass",
        "learning_rate": 0.04,
        "num_leaves": 15,
        "min_data_in_leaf": 100,
        "lambda_l2": 10.0,
        "feature_fraction": 0.7,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "max_bin": 63,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": _THREADS,
        "verbosity": -1,
    }
)


class Fitted(Protocol):
    """A fitted estimator."""

    @property
    def name(self) -> str:
        """Key of the estimator in ``ESTIMATORS``."""

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """Probabilities of -1, 0 and +1 for float64 ``rows`` (n, k): float64 (n, 3), each row sums to one."""

    def contributions(self, row: np.ndarray) -> np.ndarray:
        """How much each feature of ``row`` (k,) moves the log odds of +1 against -1: float64 (k,)."""

    def to_files(self) -> dict[str, bytes]:
        """Everything needed to have it back, by file name."""


@dataclass(frozen=True)
class Estimator:
    """How to fit one and how to have it back; ``from_files`` raises ModelRejected for what it cannot read."""

    name: str
    fit: Callable[[np.ndarray, np.ndarray, int], Fitted]
    from_files: Callable[[Mapping[str, bytes]], Fitted]


@dataclass(frozen=True, eq=False)
class Baseline:
    """Class frequencies of the training rows, one row added to each class."""

    priors: np.ndarray
    name: str = BASELINE

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """See Fitted."""
        return np.tile(self.priors, (len(rows), 1))

    def contributions(self, row: np.ndarray) -> np.ndarray:
        """See Fitted."""
        return np.zeros(len(row))

    def to_files(self) -> dict[str, bytes]:
        """See Fitted."""
        return {_NUMBERS: _json({"priors": self.priors.tolist()})}


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
    name: str = "logistic"

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """See Fitted."""
        # not BLAS: its order of sums, and so the last bit, would depend on how many rows are asked at once
        scores = np.einsum("nk,ck->nc", self._standardised(rows), self.coefficients) + self.intercepts
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return _spread(powers / powers.sum(axis=1, keepdims=True), self.classes, self.absent)

    def contributions(self, row: np.ndarray) -> np.ndarray:
        """See Fitted."""
        return _long_minus_short(self._standardised(row[None, :]) * self.coefficients, self.classes)

    def to_files(self) -> dict[str, bytes]:
        """See Fitted."""
        arrays = {key: getattr(self, key).tolist() for key in _LOGISTIC_ARRAYS}
        return {_NUMBERS: _json({"classes": list(self.classes), "absent": self.absent, **arrays})}

    def _standardised(self, rows: np.ndarray) -> np.ndarray:
        filled = np.ascontiguousarray(np.where(np.isnan(rows), self.medians, rows))
        return np.asarray(np.clip((filled - self.means) / self.scales, -_CLIP, _CLIP))


_LOGISTIC_ARRAYS: Final = ("medians", "means", "scales", "coefficients", "intercepts")


@dataclass(frozen=True, eq=False)
class Trees:
    """LightGBM's text model; parsed at first use."""

    classes: tuple[int, ...]
    absent: float
    text: str
    name: str = "lightgbm"

    @cached_property
    def booster(self) -> Booster:
        """The model in LightGBM's hands."""
        import lightgbm

        return lightgbm.Booster(model_str=self.text)

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """See Fitted."""
        return _spread(np.asarray(self.booster.predict(rows, num_threads=_THREADS)), self.classes, self.absent)

    def contributions(self, row: np.ndarray) -> np.ndarray:
        """See Fitted. SHAP values of the trees."""
        shares = np.asarray(self.booster.predict(row[None, :], pred_contrib=True))
        shares = shares.reshape(len(self.classes), -1)
        return _long_minus_short(shares[:, :-1], self.classes)

    def to_files(self) -> dict[str, bytes]:
        """See Fitted."""
        return {
            _NUMBERS: _json({"classes": list(self.classes), "absent": self.absent}),
            _TREES: self.text.encode(),
        }


def fit_baseline(rows: np.ndarray, classes: np.ndarray, seed: int) -> Fitted:
    """Class frequencies; the seed is there because all of them take one."""
    counts = np.array([(classes == name).sum() for name in CLASSES], dtype=np.float64) + 1
    return Baseline(counts / counts.sum())


def fit_logistic(rows: np.ndarray, classes: np.ndarray, seed: int) -> Fitted:
    """Multinomial logistic regression with an L2 penalty.

    Raises:
        InsufficientHistory: the rows hold a single class.
    """
    from sklearn.linear_model import LogisticRegression

    present = _present(classes, "logistic")
    medians = np.array([np.median(column[~np.isnan(column)]) if not np.isnan(column).all() else 0.0
                        for column in rows.T])  # fmt: skip
    filled = np.where(np.isnan(rows), medians, rows)
    means, scales = filled.mean(axis=0), filled.std(axis=0)
    # a feature that never moved carries rounding noise instead of a scale
    scales = np.where(scales > 1e-12 * np.maximum(1.0, np.abs(means)), scales, 1.0)
    standard = np.clip((filled - means) / scales, -_CLIP, _CLIP)
    model = LogisticRegression(C=0.01, max_iter=500, random_state=seed).fit(standard, classes)
    # in one memory layout, for the last bit of a sum depends on it
    weights, intercepts = np.ascontiguousarray(model.coef_), np.asarray(model.intercept_)
    if len(present) == 2:  # scikit-learn keeps one score for two classes: that of the second
        weights, intercepts = np.vstack([np.zeros_like(weights), weights]), np.append(0.0, intercepts)
    return Logistic(present, 1 / (len(rows) + 3), medians, means, scales, weights, intercepts)


def fit_lightgbm(rows: np.ndarray, classes: np.ndarray, seed: int) -> Fitted:
    """Gradient-boosted trees, the same for the same data, seed and LightGBM version.

    Raises:
        InsufficientHistory: the rows hold a single class.
    """
    import lightgbm

    present = _present(classes, "lightgbm")
    parameters = {**LIGHTGBM_PARAMETERS, "num_class": len(present), "seed": seed}
    data = lightgbm.Dataset(np.ascontiguousarray(rows), label=np.searchsorted(present, classes), params=parameters)
    booster = lightgbm.train(parameters, data, num_boost_round=LIGHTGBM_ROUNDS)
    return Trees(present, 1 / (len(rows) + 3), booster.model_to_string())


def _baseline_from_files(files: Mapping[str, bytes]) -> Fitted:
    return Baseline(np.array(_numbers(files, "priors")["priors"], dtype=np.float64))


def _logistic_from_files(files: Mapping[str, bytes]) -> Fitted:
    stored = _numbers(files, "classes", "absent", *_LOGISTIC_ARRAYS)
    arrays: dict[str, Any] = {key: np.array(stored[key], dtype=np.float64) for key in _LOGISTIC_ARRAYS}
    return Logistic(tuple(stored["classes"]), float(stored["absent"]), **arrays)


def _lightgbm_from_files(files: Mapping[str, bytes]) -> Fitted:
    stored = _numbers(files, "classes", "absent")
    if _TREES not in files:
        raise ModelRejected(f"the model has no {_TREES}; train and save it again")
    return Trees(tuple(stored["classes"]), float(stored["absent"]), files[_TREES].decode())


# From simple to rich: where two score the same, the first is preferred.
ESTIMATORS: Final[Mapping[str, Estimator]] = MappingProxyType(
    {
        BASELINE: Estimator(BASELINE, fit_baseline, _baseline_from_files),
        "logistic": Estimator("logistic", fit_logistic, _logistic_from_files),
        "lightgbm": Estimator("lightgbm", fit_lightgbm, _lightgbm_from_files),
    }
)


def estimator(name: str) -> Estimator:
    """The estimator of that name.

    Raises:
        InvalidRequest: there is none; the message lists those that exist.
    """
    if name not in ESTIMATORS:
        raise InvalidRequest(f"{name!r} is not an estimator; use one of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]


def _present(classes: np.ndarray, name: str) -> tuple[int, ...]:
    present = tuple(int(value) for value in np.unique(classes))
    if len(present) < 2:
        raise InsufficientHistory(
            f"{name} cannot learn from {len(classes)} rows that hold the classes {list(present)} only; "
            "use a longer window or a smaller label threshold"
        )
    return present


def _spread(probabilities: np.ndarray, classes: tuple[int, ...], absent: float) -> np.ndarray:
    full = np.full((len(probabilities), len(CLASSES)), absent)
    full[:, [CLASSES.index(name) for name in classes]] = probabilities * (1 - absent * (len(CLASSES) - len(classes)))
    return full


def _long_minus_short(shares: np.ndarray, classes: tuple[int, ...]) -> np.ndarray:
    """Row of +1 minus row of -1 of ``shares`` (classes, k); a class that was absent counts as zero."""
    zero = np.zeros(shares.shape[1])
    long_, short = (shares[classes.index(name)] if name in classes else zero for name in (1, -1))
    return np.asarray(long_ - short)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False).encode()


def _numbers(files: Mapping[str, bytes], *needed: str) -> dict[str, Any]:
    if _NUMBERS not in files:
        raise ModelRejected(f"the model has no {_NUMBERS}; train and save it again")
    try:
        stored = json.loads(files[_NUMBERS])
    except ValueError as error:
        raise ModelRejected(f"{_NUMBERS} is not JSON ({error}); train and save the model again") from error
    if not isinstance(stored, dict) or not set(needed) <= set(stored):
        raise ModelRejected(f"{_NUMBERS} lacks some of {list(needed)}; train and save the model again")
    return stored
