"""Baselines: what every model has to beat, and what must never trade.

``baseline`` says how often each class occurred, and is what the others' log loss is compared with.
``persistence`` says it given the direction of the last bar. ``neutral`` and ``hold`` always say the
same, Neutral and Long; their log loss is high because they are sure, and it is their returns that count.

All count rows plainly, without weights: they state frequencies of the rows that others are judged on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ml.fitted import NUMBERS, Fitted, absent, numbers, to_json
from ml.labels import CLASSES
from ml.sample import Sample
from trading.errors import InvalidRequest, ModelRejected

BASELINE: Final = "baseline"
NEUTRAL: Final = "neutral"
PERSISTENCE: Final = "persistence"
HOLD: Final = "hold"
LAST_RETURN: Final = "return_1"


@dataclass(frozen=True, eq=False)
class Constant:
    """The same probabilities (3,) for every row."""

    name: str
    priors: np.ndarray

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """See Fitted."""
        return np.tile(self.priors, (len(rows), 1))

    def contributions(self, row: np.ndarray) -> np.ndarray:
        """See Fitted."""
        return np.zeros(len(row))

    def gain(self) -> np.ndarray | None:
        """See Fitted."""
        return None

    def to_files(self) -> dict[str, bytes]:
        """See Fitted."""
        return {NUMBERS: to_json({"priors": self.priors.tolist()})}


@dataclass(frozen=True, eq=False)
class Persistence:
    """Class frequencies ``priors`` (3, 3): by the sign of column ``column`` (NaN counts as 0), then by class."""

    column: int
    priors: np.ndarray
    name: str = PERSISTENCE

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """See Fitted."""
        return np.asarray(self.priors[_signs(rows[:, self.column])])

    def contributions(self, row: np.ndarray) -> np.ndarray:
        """See Fitted. Against a last bar that did not move."""
        shares = np.zeros(len(row))
        odds = np.log(self.priors[:, 2] / self.priors[:, 0])
        shares[self.column] = odds[_signs(row[self.column : self.column + 1])[0]] - odds[1]
        return shares

    def gain(self) -> np.ndarray | None:
        """See Fitted."""
        return None

    def to_files(self) -> dict[str, bytes]:
        """See Fitted."""
        return {NUMBERS: to_json({"column": self.column, "priors": self.priors.tolist()})}


def learn_baseline(
    sample: Sample, seed: int, chosen: Mapping[str, Any], judge: Sample | None
) -> tuple[Fitted, Mapping[str, Any]]:
    """Class frequencies, one row added to each class."""
    return Constant(BASELINE, _frequencies(sample.classes)), chosen


def learn_neutral(
    sample: Sample, seed: int, chosen: Mapping[str, Any], judge: Sample | None
) -> tuple[Fitted, Mapping[str, Any]]:
    """Always Neutral."""
    return Constant(NEUTRAL, _sure(0, len(sample))), chosen


def learn_hold(
    sample: Sample, seed: int, chosen: Mapping[str, Any], judge: Sample | None
) -> tuple[Fitted, Mapping[str, Any]]:
    """Buy and hold: always Long."""
    return Constant(HOLD, _sure(1, len(sample))), chosen


def learn_persistence(
    sample: Sample, seed: int, chosen: Mapping[str, Any], judge: Sample | None
) -> tuple[Fitted, Mapping[str, Any]]:
    """Class frequencies given the sign of the last return, one row added to each class.

    Raises:
        InvalidRequest: the sample has no column ``return_1``.
    """
    if LAST_RETURN not in sample.names:
        raise InvalidRequest(f"persistence needs the feature {LAST_RETURN}; there are {', '.join(sample.names)}")
    column = sample.names.index(LAST_RETURN)
    signs = _signs(sample.rows[:, column])
    return Persistence(column, np.array([_frequencies(sample.classes[signs == at]) for at in range(3)])), chosen


def constant_from_files(name: str, files: Mapping[str, bytes]) -> Fitted:
    """One of the constant baselines back."""
    priors = np.array(numbers(files, "priors")["priors"], dtype=np.float64)
    if priors.shape != (len(CLASSES),):
        raise ModelRejected(f"{NUMBERS} of {name} holds {priors.shape} priors and 3 are needed; train it again")
    return Constant(name, priors)


def persistence_from_files(files: Mapping[str, bytes]) -> Fitted:
    """Persistence back."""
    stored = numbers(files, "column", "priors")
    priors = np.array(stored["priors"], dtype=np.float64)
    if priors.shape != (len(CLASSES), len(CLASSES)):
        raise ModelRejected(f"{NUMBERS} of {PERSISTENCE} holds {priors.shape} priors, not (3, 3); train it again")
    return Persistence(int(stored["column"]), priors)


def _frequencies(classes: np.ndarray) -> np.ndarray:
    counts = np.array([(classes == name).sum() for name in CLASSES], dtype=np.float64) + 1
    return np.asarray(counts / counts.sum())


def _sure(of: int, rows: int) -> np.ndarray:
    other = absent(rows)
    return np.asarray(np.where(np.array(CLASSES) == of, 1 - 2 * other, other))


def _signs(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.sign(np.nan_to_num(values)).astype(np.int64) + 1)
