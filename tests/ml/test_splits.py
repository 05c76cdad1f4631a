"""Walk-forward folds: nothing that was unknown at the start of a test span trains its model."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.splits import Fold, walk_forward_folds
from trading.errors import InsufficientHistory, InvalidRequest

HOUR = 3_600_000


def _leaks(fold: Fold, t0: np.ndarray, t1: np.ndarray, embargo_ms: int) -> bool:
    """From the definition: does any training label, embargo added, reach into the test span?"""
    return any(t1[row] + embargo_ms > fold.test_start for row in fold.train)


@st.composite
def _rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Several symbols that share moments, with labels of irregular length, in any order."""
    random = np.random.default_rng(draw(st.integers(0, 100_000)))
    parts = [np.cumsum(random.integers(1, 4, draw(st.integers(30, 120)))) for _ in range(draw(st.integers(1, 4)))]
    t0 = random.permutation(np.concatenate(parts)) * HOUR
    return t0, t0 + random.integers(0, draw(st.integers(1, 15)), len(t0)) * HOUR


@settings(max_examples=80, deadline=None)
@given(rows=_rows(), folds=st.integers(1, 4), embargo=st.integers(0, 5))
def test_no_training_label_overlaps_the_test_span(
    rows: tuple[np.ndarray, np.ndarray], folds: int, embargo: int
) -> None:
    t0, t1 = rows
    made = walk_forward_folds(t0, t1, folds=folds, embargo=timedelta(hours=embargo))
    assert len(made) == folds
    for fold in made:
        assert not _leaks(fold, t0, t1, embargo * HOUR)
        assert ((t0[fold.test] >= fold.test_start) & (t0[fold.test] < fold.test_end)).all()
        # nothing is thrown away without need
        spared = np.setdiff1d(np.flatnonzero(t0 < fold.test_start), fold.train)
        assert (t1[spared] + embargo * HOUR > fold.test_start).all()
    tested = np.concatenate([fold.test for fold in made])
    assert len(np.unique(tested)) == len(tested)
    assert set(tested) == set(np.flatnonzero(t0 >= made[0].test_start))
    # rows of one moment are never on both sides
    for fold in made:
        assert not set(t0[fold.train]) & set(t0[fold.test])


def test_a_planted_leak_is_caught() -> None:
    t0 = np.arange(100) * HOUR
    t1 = t0 + 5 * HOUR
    fold = walk_forward_folds(t0, t1, folds=1)[0]
    careless = Fold(1, np.flatnonzero(t0 < fold.test_start), fold.test, fold.test_start, fold.test_end)
    assert _leaks(careless, t0, t1, 0)
    assert not _leaks(fold, t0, t1, 0)
    assert len(careless.train) - len(fold.train) == 4  # the label that ends where the test span starts may stay


def test_agrees_with_the_purge_of_purgedcv() -> None:
    purgedcv = pytest.importorskip("purgedcv")
    random = np.random.default_rng(3)
    t0 = np.sort(random.integers(0, 400, 500)) * HOUR
    t1 = t0 + random.integers(1, 20, 500) * HOUR
    starts, ends = (pd.Series(pd.to_datetime(times, unit="ms")) for times in (t0, t1))
    for fold in walk_forward_folds(t0, t1, folds=3):
        kept = purgedcv.purge(np.flatnonzero(t0 < fold.test_start), fold.test, starts, ends)
        assert fold.train.tolist() == kept.tolist()


def test_rolling_windows_forget_the_distant_past() -> None:
    t0 = np.arange(1000) * HOUR
    for fold in walk_forward_folds(t0, t0 + HOUR, folds=3, rolling=timedelta(hours=100)):
        assert len(fold.train) == 100
        assert t0[fold.train[0]] == fold.test_start - 100 * HOUR


def test_folds_hold_about_as_many_rows_each() -> None:
    t0 = np.repeat(np.arange(1000), 3) * HOUR
    sizes = [len(fold.test) for fold in walk_forward_folds(t0, t0 + HOUR, folds=4, first_train=0.4)]
    assert sum(sizes) == 1800
    assert max(sizes) - min(sizes) <= 3


def test_too_little_history_is_said() -> None:
    t0 = np.arange(10) * HOUR
    with pytest.raises(InsufficientHistory, match="10 labelled rows"):
        walk_forward_folds(t0, t0 + HOUR, folds=20)
    with pytest.raises(InsufficientHistory, match="no training row"):
        walk_forward_folds(t0, t0 + HOUR, folds=2, embargo=timedelta(days=2))
    with pytest.raises(InsufficientHistory, match="0 labelled rows"):
        walk_forward_folds(t0[:0], t0[:0])
    with pytest.raises(InsufficientHistory):
        walk_forward_folds(t0 * 0, t0 * 0, folds=1)


@pytest.mark.parametrize(
    "wrong",
    [{"folds": 0}, {"first_train": 1.0}, {"embargo": timedelta(-1)}, {"rolling": timedelta(0)}],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    t0 = np.arange(50) * HOUR
    with pytest.raises(InvalidRequest):
        walk_forward_folds(t0, t0 + HOUR, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="no end is before its start"):
        walk_forward_folds(t0, t0 - HOUR)
