"""Purged walk-forward splits over time.

Own code, because the walk-forward splitter of purgedcv counts rows: with several symbols pooled it
cuts through one moment, so that half of a bar's rows train a model that is tested on the other half;
and its embargo does nothing before a test span. Its ``purge`` is the oracle of our tests.

Purge: López de Prado, Advances in Financial Machine Learning (Wiley 2018), section 7.4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from trading.errors import InsufficientHistory, InvalidRequest


@dataclass(frozen=True, eq=False)
class Fold:
    """Row positions to train on and to test on, and the test span ``[test_start, test_end)`` in ms UTC."""

    number: int
    train: np.ndarray
    test: np.ndarray
    test_start: int
    test_end: int


def walk_forward_folds(
    t0: np.ndarray,
    t1: np.ndarray,
    *,
    folds: int = 4,
    embargo: timedelta = timedelta(0),
    first_train: float = 0.4,
    rolling: timedelta | None = None,
) -> list[Fold]:
    """Folds in order of time, each trained on what was known before its test span began.

    The rows whose ``t0`` lies in the last ``1 - first_train`` of all rows are divided into ``folds``
    test spans of about as many rows each; rows of one moment stay together. A row trains a fold if its
    label ended at least ``embargo`` before the test span began: ``t1 + embargo <= test_start``, and ``t0``
    lies before it too.

    Args:
        t0: int64 ms UTC, shape (n,), when each row's position would be filled; in any order.
        t1: int64 ms UTC, shape (n,), when each row's label was known; not before ``t0``.
        rolling: train on rows with ``t0 >= test_start - rolling`` only; None for all of the past.

    Raises:
        InvalidRequest: an argument out of range.
        InsufficientHistory: too few moments for so many folds, or a fold without training rows.
    """
    if len(t0) != len(t1) or (t1 < t0).any():
        raise InvalidRequest(f"{len(t0)} starts and {len(t1)} ends are not pairs of which no end is before its start")
    if folds < 1 or not 0 < first_train < 1:
        raise InvalidRequest(f"folds={folds} must be at least 1 and first_train={first_train} between 0 and 1")
    if embargo < timedelta(0) or (rolling is not None and rolling <= timedelta(0)):
        raise InvalidRequest(f"embargo={embargo} must not be negative, and rolling={rolling} must be positive")
    order = np.sort(t0)
    cuts = first_train + (1 - first_train) * np.arange(folds) / folds
    starts = order[np.minimum((cuts * len(order)).astype(int), len(order) - 1)] if len(order) else order
    if len(np.unique(starts)) < folds or starts[0] == order[0]:
        raise InsufficientHistory(
            f"{len(t0)} labelled rows at {len(np.unique(t0))} moments do not suffice for {folds} folds "
            f"after a first training part of {first_train:.0%}; use a longer window or fewer folds"
        )
    ends = np.append(starts[1:], order[-1] + 1)
    made = []
    for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True), start=1):
        trains = (t0 < start) & (t1 + _ms(embargo) <= start)
        if rolling is not None:
            trains &= t0 >= start - _ms(rolling)
        fold = Fold(number, np.flatnonzero(trains), np.flatnonzero((t0 >= start) & (t0 < end)), start, end)
        if not len(fold.train):
            raise InsufficientHistory(
                f"fold {number} of {folds} has {len(fold.test)} test rows and no training row whose label ends "
                f"{embargo} before them; use a longer window, fewer folds or a shorter embargo"
            )
        made.append(fold)
    return made


def _ms(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)
