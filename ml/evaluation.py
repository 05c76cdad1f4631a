"""How good were the probabilities, and what would their signals have earned?

All figures are out of sample: per fold over its test rows, and over folds as plain means, so that a
long quiet fold does not drown a short wild one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from ml.labels import CLASSES
from ml.signals import SignalRule, signals
from trading.errors import InvalidRequest

THIRDS: Final = ("least", "middle", "most")


@dataclass(frozen=True)
class Third:
    """A third of a fold's signals by confidence, the probability of the side taken: its mean, hit rate and count."""

    confidence: float
    hit_rate: float
    signals: int


@dataclass(frozen=True)
class FoldScore:
    """One estimator on the test rows of one fold; None where a figure is not defined.

    ``log_loss`` is the mean of -ln p(true class). ``auc`` is the mean of the one-vs-rest areas of the
    classes, defined if all three occur. ``hit_rate`` is the share of Long and Short signals whose
    forward return had their sign, ``net_return`` the mean of that return in the signal's direction
    less the round trip cost, as a fraction; both are None without signals. ``signals`` counts them.

    ``brier`` is the mean over rows of the squared errors of the three probabilities, summed: 0 to 2 (Brier
    1950). ``calibration_error``: see ``calibration_error``. ``information_coefficient`` is Spearman's rank
    correlation of p(+1) - p(-1) with the forward return, None where either does not vary. ``thirds`` are
    the signals from the least to the most confident third, none below three signals.
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
    brier: float | None = None
    calibration_error: float | None = None
    information_coefficient: float | None = None
    thirds: tuple[Third, ...] = ()

    def document(self) -> dict[str, Any]:
        """The score as JSON values."""
        return {**asdict(self), "thirds": [asdict(third) for third in self.thirds]}


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

        Hit rates and net return are weighted by the number of signals behind them. ``hit_rate_least``,
        ``_middle`` and ``_most`` are those of the thirds by confidence.
        """
        found = {"log_loss": self.log_loss, "accuracy": _mean([fold.accuracy for fold in self.folds])}
        for name in ("auc", "brier", "calibration_error", "information_coefficient"):
            values = [value for fold in self.folds if (value := getattr(fold, name)) is not None]
            if values:
                found[name] = _mean(values)
        count = sum(fold.signals for fold in self.folds)
        found["signals"] = float(count)
        for name, value in (
            ("hit_rate", [(fold.hit_rate, fold.signals) for fold in self.folds]),
            ("net_return", [(fold.net_return, fold.signals) for fold in self.folds]),
        ):
            if count:
                found[name] = math.fsum(figure * weight for figure, weight in value if figure is not None) / count
        for at, name in enumerate(THIRDS):
            parts = [fold.thirds[at] for fold in self.folds if fold.thirds]
            if parts:
                hits = math.fsum(part.hit_rate * part.signals for part in parts)
                found[f"hit_rate_{name}"] = hits / sum(part.signals for part in parts)
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
        brier=brier(probabilities, classes),
        calibration_error=calibration_error(probabilities, classes),
        information_coefficient=rank_correlation(probabilities[:, 2] - probabilities[:, 0], forward_return),
        thirds=_thirds(probabilities[taken, 1 + sides[taken]], moves > 0),
    )


def log_loss(probabilities: np.ndarray, classes: np.ndarray) -> float:
    """Mean of -ln p(true class); probabilities below the smallest step of a float count as that step."""
    of_truth = probabilities[np.arange(len(classes)), np.searchsorted(CLASSES, classes)]
    return float(-np.log(np.maximum(of_truth, np.finfo(np.float64).eps)).mean())


def brier(probabilities: np.ndarray, classes: np.ndarray) -> float:
    """Mean over rows of the squared errors of the probabilities of -1, 0 and +1 (n, 3), summed: 0 is best, 2 worst."""
    return float(np.mean(np.sum((probabilities - (classes[:, None] == np.array(CLASSES))) ** 2, axis=1)))


def calibration_error(probabilities: np.ndarray, classes: np.ndarray, bins: int = 10) -> float:
    """How far frequencies lie from probabilities, on average: 0 is best.

    Mean over the classes of the mean absolute gap in the bins of ``reliability``, weighted by their counts
    (classwise expected calibration error, Kull et al. 2019; bins of equal count, Nguyen and O'Connor 2015).
    Few rows make it larger than it is: with 10 bins of m rows, chance alone adds about 0.8 sqrt(p (1 - p) / m).
    """
    gaps = []
    for column, name in enumerate(CLASSES):
        said, seen, count = reliability(probabilities[:, column], classes == name, bins).T
        gaps.append(float(np.sum(count * np.abs(said - seen)) / len(classes)))
    return _mean(gaps)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's rank correlation of two rows of numbers (n,), ties at their mean rank; None where either is constant.

    Rows whose labels overlap are not independent: it says how strong the relation is, not how certain.
    """
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


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


def _thirds(confidence: np.ndarray, hits: np.ndarray) -> tuple[Third, ...]:
    if len(hits) < len(THIRDS):
        return ()
    parts = np.array_split(np.argsort(confidence, kind="stable"), len(THIRDS))
    return tuple(Third(float(confidence[part].mean()), float(hits[part].mean()), len(part)) for part in parts)


def _area(probabilities: np.ndarray, classes: np.ndarray) -> float | None:
    if len(np.unique(classes)) < len(CLASSES):
        return None
    from sklearn.metrics import roc_auc_score

    return _mean([float(roc_auc_score(classes == name, probabilities[:, at])) for at, name in enumerate(CLASSES)])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
