"""Purged splits over time: walk-forward, combinatorial, and an inner one for early stopping.

In each a row belongs to the moment of its fill ``t0`` and lives to the end ``t1`` of its label. Rows of one
moment, whatever their symbols, are on one side together. A label that only touches a span (``t1`` equal to
its start) does not overlap it. The embargo is a distance kept on every side that training rows lie on.

The walk-forward is own code, because the splitter of purgedcv counts rows: with several symbols pooled it
cuts through one moment, so that half of a bar's rows train a model that is tested on the other half; and
its embargo does nothing before a test span. Its ``purge`` is the oracle of our tests. The combinatorial
folds are purgedcv's, asked for moments instead of rows, with the embargo as its symmetric purge horizon:
over rows it would cut through moments there as well, and its ``embargo`` works after a test span only.

Purge: López de Prado, Advances in Financial Machine Learning (Wiley 2018), section 7.4.1; combinatorial
purged cross-validation: chapter 12.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pandas as pd

from trading.errors import InsufficientHistory, InvalidRequest


@dataclass(frozen=True, eq=False)
class Fold:
    """Row positions to train on and to test on, and when the test rows are, in ms UTC.

    ``spans`` are the test spans ``[start, end)`` in order, none adjacent to the next; ``test_start`` and
    ``test_end`` are the start of the first and the end of the last. Left out, there is one: all between them.
    """

    number: int
    train: np.ndarray
    test: np.ndarray
    test_start: int
    test_end: int
    spans: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.spans:
            object.__setattr__(self, "spans", ((self.test_start, self.test_end),))


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
    _check(t0, t1, embargo)
    if folds < 1 or not 0 < first_train < 1:
        raise InvalidRequest(f"folds={folds} must be at least 1 and first_train={first_train} between 0 and 1")
    if rolling is not None and rolling <= timedelta(0):
        raise InvalidRequest(f"rolling={rolling} must be positive, or None for all of the past")
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


def combinatorial_folds(
    t0: np.ndarray,
    t1: np.ndarray,
    *,
    groups: int = 6,
    test_groups: int = 2,
    embargo: timedelta = timedelta(0),
) -> list[Fold]:
    """Combinatorial purged cross-validation: every choice of ``test_groups`` out of ``groups`` is tested once.

    All moments are divided into ``groups`` runs of as many moments each (one more in the first ones where it
    does not come out even). A moment trains a fold if every label of it ends at least ``embargo`` before a
    test label starts, or starts at least ``embargo`` after one ends, for all test labels of all symbols.
    Models so trained have seen what came after their test: good for the spread of a score over many paths,
    not for what trading would have earned.

    Args:
        t0, t1: as in ``walk_forward_folds``.

    Returns:
        The folds in lexicographic order of their groups, ``comb(groups, test_groups)`` of them.

    Raises:
        InvalidRequest: an argument out of range.
        InsufficientHistory: fewer moments than groups, or a fold without training rows.
    """
    from purgedcv import CombinatorialPurgedCV

    _check(t0, t1, embargo)
    if not 1 <= test_groups < groups:
        raise InvalidRequest(f"test_groups={test_groups} must be at least 1 and below groups={groups}")
    moments, at = np.unique(t0, return_inverse=True)
    if len(moments) < groups:
        raise InsufficientHistory(
            f"{len(t0)} labelled rows at {len(moments)} moments do not make {groups} groups; "
            "use a longer window or fewer groups"
        )
    # the library overlooks what has no duration, so that such a label lasts a millisecond
    ends = moments + 1
    np.maximum.at(ends, at, t1)
    times = {"prediction_times": _utc(moments), "evaluation_times": _utc(ends)}
    splitter = CombinatorialPurgedCV(groups, test_groups, purge_horizon=pd.Timedelta(embargo), **times)
    after = np.append(moments[1:], moments[-1] + 1)
    made = []
    for number, (trains, tests) in enumerate(splitter.split(moments[:, None]), start=1):
        breaks = np.flatnonzero(np.diff(tests) > 1)
        firsts, lasts = np.append(tests[0], tests[breaks + 1]), np.append(tests[breaks], tests[-1])
        spans = tuple(zip(moments[firsts].tolist(), after[lasts].tolist(), strict=True))
        train, test = (np.flatnonzero(np.isin(at, chosen)) for chosen in (trains, tests))
        fold = Fold(number, train, test, spans[0][0], spans[-1][1], spans)
        if not len(fold.train):
            raise InsufficientHistory(
                f"fold {number} has {len(fold.test)} test rows and no training row whose label keeps {embargo} from "
                "theirs; use a longer window, fewer groups or a shorter embargo"
            )
        made.append(fold)
    return made


def inner_split(
    t0: np.ndarray, t1: np.ndarray, *, share: float = 0.2, embargo: timedelta = timedelta(0)
) -> tuple[np.ndarray, np.ndarray]:
    """Positions to fit on, and those of the last ``share`` of all moments for early stopping and calibration.

    A row is fitted on if its label ended at least ``embargo`` before the first of those moments.

    Args:
        t0, t1: as in ``walk_forward_folds``; those of a fold's training rows, say.

    Raises:
        InvalidRequest: an argument out of range.
        InsufficientHistory: nothing would be left on one of the sides.
    """
    _check(t0, t1, embargo)
    if not 0 < share < 1:
        raise InvalidRequest(f"share={share} of the moments to validate on must be between 0 and 1")
    moments = np.unique(t0)
    held_out = round(share * len(moments))
    if 0 < held_out < len(moments):
        start = moments[-held_out]
        train = np.flatnonzero((t0 < start) & (t1 + _ms(embargo) <= start))
        if len(train):
            return train, np.flatnonzero(t0 >= start)
    raise InsufficientHistory(
        f"{len(t0)} labelled rows at {len(moments)} moments leave nothing to fit on, or nothing to validate on, when "
        f"the last {share:.0%} of the moments are held out with an embargo of {embargo}; use a longer window"
    )


def _check(t0: np.ndarray, t1: np.ndarray, embargo: timedelta) -> None:
    if len(t0) != len(t1) or (t1 < t0).any():
        raise InvalidRequest(f"{len(t0)} starts and {len(t1)} ends are not pairs of which no end is before its start")
    if embargo < timedelta(0):
        raise InvalidRequest(f"embargo={embargo} must not be negative")


def _utc(stamps: np.ndarray) -> pd.Series:
    return pd.Series(stamps.astype("datetime64[ms]"))


def _ms(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)
