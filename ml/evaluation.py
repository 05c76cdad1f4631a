"""How good were the probabilities, and what would their signals have earned?

All figures are out of sample: per fold over its test rows, and over folds as plain means, so that a
long quiet fold does not drown a short wild one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ml.labels import CLASSES
from ml.signals import SignalRule, signals
from trading.errors import InvalidRequest


@dataclass(frozen=True)
class FoldScore:
    """One estimator on the test rows of one fold; None where a figure is not defined.

    ``log_loss`` is the mean of -ln p(true class). ``auc`` is the mean of the one-vs-rest areas of the
    classes, defined if all three occur. ``hit_rate`` is the share of Long and Short signals whose
    forward return had their sign, ``net_return`` the mean of that return in the signal's direction
    less the round trip cost, as a fraction; both are None without signals. ``signals`` counts them.
    """

    estimator: str
    fold: int
    test_start: int
    test_end: int
    train_rows: int
    test_rows: int
    log_loss: float
    accuracy: float
    auc: float | None
    hit_rate: float | None
    net_return: float | None
    signals: int

    def document(self) -> dict[str, Any]:
        """The score as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Scores:
    """One estimator over all folds, in their order.

    Raises:
        InvalidRequest: no folds, or folds of several estimators.
    """

    estimator: str
    folds: tuple[FoldScore, ...]

    def __post_init__(self) -> None:
        if not self.folds or {fold.estimator for fold in self.folds} != {self.estimator}:
            raise InvalidRequest(f"scores of {self.estimator!r} need at least one fold, and none of another estimator")

    @property
    def log_loss(self) -> float:
        """Mean log loss over folds."""
        return math.fsum(fold.log_loss for fold in self.folds) / len(self.folds)

    @property
    def spans(self) -> tuple[tuple[int, int, int], ...]:
        """Test start, test end and rows of each fold: scores compare only where these agree."""
        return tuple((fold.test_start, fold.test_end, fold.test_rows) for fold in self.folds)

    def skill(self, baseline: Scores) -> float:
        """1 - log loss / the baseline's log loss: above zero is better than class frequencies."""
        return 1 - self.log_loss / baseline.log_loss

    def metrics(self) -> dict[str, float]:
        """Means over folds by name, of what is defined in at least one fold; ``signals`` is a sum.

        Hit rate and net return are weighted by the number of signals behind them.
        """
        found = {"log_loss": self.log_loss, "accuracy": _mean([fold.accuracy for fold in self.folds])}
        areas = [fold.auc for fold in self.folds if fold.auc is not None]
        if areas:
            found["auc"] = _mean(areas)
        count = sum(fold.signals for fold in self.folds)
        found["signals"] = float(count)
        for name, value in (
            ("hit_rate", [(fold.hit_rate, fold.signals) for fold in self.folds]),
            ("net_return", [(fold.net_return, fold.signals) for fold in self.folds]),
        ):
            if count:
                found[name] = math.fsum(figure * weight for figure, weight in value if figure is not None) / count
        return found


def score_fold(
    probabilities: np.ndarray,
    classes: np.ndarray,
    forward_return: np.ndarray,
    *,
    rule: SignalRule,
    round_trip_cost: float,
    estimator: str,
    fold: int,
    span: tuple[int, int],
    train_rows: int,
) -> FoldScore:
    """Score probabilities of -1, 0, +1 (n, 3) against the true ``classes`` (n,) and ``forward_return`` (n,).

    Args:
        span: test start and end, ms UTC.

    Raises:
        InvalidRequest: no rows, shapes that do not match, or rows that are no probabilities.
    """
    _require_probabilities(probabilities, classes, forward_return)
    sides = signals(probabilities, rule)
    taken = sides != 0
    moves = sides[taken] * forward_return[taken]
    guesses = np.array(CLASSES)[probabilities.argmax(axis=1)]
    return FoldScore(
        estimator=estimator,
        fold=fold,
        test_start=span[0],
        test_end=span[1],
        train_rows=train_rows,
        test_rows=len(classes),
        log_loss=log_loss(probabilities, classes),
        accuracy=float(np.mean(guesses == classes)),
        auc=_area(probabilities, classes),
        hit_rate=float(np.mean(moves > 0)) if taken.any() else None,
        net_return=float(np.mean(moves - round_trip_cost)) if taken.any() else None,
        signals=int(taken.sum()),
    )


def log_loss(probabilities: np.ndarray, classes: np.ndarray) -> float:
    """Mean of -ln p(true class); probabilities below the smallest step of a float count as that step."""
    of_truth = probabilities[np.arange(len(classes)), np.searchsorted(CLASSES, classes)]
    return float(-np.log(np.maximum(of_truth, np.finfo(np.float64).eps)).mean())


def reliability(probabilities: np.ndarray, happened: np.ndarray, bins: int = 10) -> np.ndarray:
    """Mean probability, observed frequency and count in ``bins`` bins of equal count: float64 (<= bins, 3).

    Args:
        probabilities: (n,) of one class.
        happened: bool (n,), whether it was that class.
    """
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return np.array([[probabilities[part].mean(), happened[part].mean(), len(part)] for part in parts])


def best(scores: Sequence[Scores]) -> Scores:
    """The lowest mean out-of-sample log loss; of equals the first.

    Raises:
        InvalidRequest: no scores, or scores over different folds.
    """
    if not scores or len({score.spans for score in scores}) != 1:
        raise InvalidRequest("choosing needs scores of at least one estimator, all over the same folds")

    return min(scores, key=lambda score: score.log_loss)


def _require_probabilities(probabilities: np.ndarray, classes: np.ndarray, forward_return: np.ndarray) -> None:
    n = len(classes)
    if n == 0 or probabilities.shape != (n, len(CLASSES)) or forward_return.shape != (n,):
        raise InvalidRequest(
            f"cannot score probabilities {probabilities.shape} against {n} classes and {forward_return.shape} returns"
        )
    if not (probabilities >= 0).all() or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-6):
        raise InvalidRequest("some rows are no probabilities: negative, NaN, or with another sum than one")


def _area(probabilities: np.ndarray, classes: np.ndarray) -> float | None:
    if len(np.unique(classes)) < len(CLASSES):
        return None
    from sklearn.metrics import roc_auc_score

    return _mean([float(roc_auc_score(classes == name, probabilities[:, at])) for at, name in enumerate(CLASSES)])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
