"""What an estimator learns from, as one value, and the part of it kept back to stop and to calibrate by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from ml.labels import CLASSES
from ml.splits import inner_split
from trading.errors import InsufficientHistory, InvalidRequest


@dataclass(frozen=True, eq=False)
class Sample:
    """Labelled rows.

    ``rows``: float64 (n, k), NaN where a feature is unknown, its columns ``names`` in order; ``classes``: int8
    (n,), -1, 0 or +1; ``weights``: float64 (n,), positive, how much each row counts; ``t0`` and ``t1``: int64 ms
    UTC (n,), fill and end of the label.

    Raises:
        InvalidRequest: lengths that do not match, other classes, or a weight that is not positive.
    """

    rows: np.ndarray
    classes: np.ndarray
    weights: np.ndarray
    t0: np.ndarray
    t1: np.ndarray
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.classes)
        if self.rows.shape != (n, len(self.names)) or {len(self.weights), len(self.t0), len(self.t1)} != {n}:
            raise InvalidRequest(
                f"a sample of {n} classes needs rows ({n}, {len(self.names)}) and as many weights and times; it got "
                f"rows {self.rows.shape}, {len(self.weights)} weights, {len(self.t0)} starts, {len(self.t1)} ends"
            )
        if not np.isin(self.classes, CLASSES).all():
            raise InvalidRequest(f"classes are {np.unique(self.classes).tolist()}; only -1, 0 and 1 are known")
        if not ((self.weights > 0) & np.isfinite(self.weights)).all():
            raise InvalidRequest("some weights are not positive numbers; leave rows that shall not count out")

    def __len__(self) -> int:
        return len(self.classes)

    def take(self, positions: np.ndarray) -> Sample:
        """The rows at ``positions``, their weights brought to a mean of one: only the proportions count."""
        weights = self.weights[positions]
        return Sample(
            rows=self.rows[positions],
            classes=self.classes[positions],
            weights=weights / weights.mean() if len(weights) else weights,
            t0=self.t0[positions],
            t1=self.t1[positions],
            names=self.names,
        )

    def kept_back(self, share: float) -> tuple[Sample, Sample]:
        """The earlier rows to learn from and the last ``share`` of them to judge by, purged and embargoed.

        The embargo is the median length of a label: the longest would be that of a gap in the candles.

        Raises:
            InsufficientHistory: too few rows for both parts.
        """
        embargo = timedelta(milliseconds=int(np.median(self.t1 - self.t0))) if len(self) else timedelta(0)
        train, judge = inner_split(self.t0, self.t1, share=share, embargo=embargo)
        return self.take(train), self.take(judge)


def present(sample: Sample, name: str) -> tuple[int, ...]:
    """The classes that occur, in order.

    Raises:
        InsufficientHistory: a single one, or none.
    """
    found = tuple(int(value) for value in np.unique(sample.classes))
    if len(found) < 2:
        raise InsufficientHistory(
            f"{name} cannot learn from {len(sample)} rows that hold the classes {list(found)} only; "
            "use a longer window or a smaller label threshold"
        )
    return found


def weights_of(sample: Sample, class_weight: str) -> np.ndarray:
    """Weights of the rows, float64 (n,); ``balanced`` lets each class that occurs weigh the same in sum."""
    if class_weight == "none":
        return sample.weights
    found, at = np.unique(sample.classes, return_inverse=True)
    sums = np.bincount(at, weights=sample.weights)
    return np.asarray(sample.weights * (sample.weights.sum() / (len(found) * sums))[at])
