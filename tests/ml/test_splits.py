"""Splits: no label that trains overlaps one that tests, the embargo is kept on every side."""

from __future__ import annotations

from datetime import timedelta
from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from purgedcv import CombinatorialPurgedCV, purge

from ml.splits import Fold, combinatorial_folds, inner_split, walk_forward_folds
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
    random = np.random.default_rng(3)
    t0 = np.sort(random.integers(0, 400, 500)) * HOUR
    t1 = t0 + random.integers(1, 20, 500) * HOUR
    starts, ends = (pd.Series(pd.to_datetime(times, unit="ms")) for times in (t0, t1))
    for fold in walk_forward_folds(t0, t1, folds=3):
        kept = purge(np.flatnonzero(t0 < fold.test_start), fold.test, starts, ends)
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


def _apart(train: np.ndarray, test: np.ndarray, t0: np.ndarray, t1: np.ndarray, embargo_ms: int) -> np.ndarray:
    """From the definition, of each training row: does its label keep the embargo from every test label?"""
    if not len(train):
        return np.empty(0, dtype=bool)
    before = t1[train][:, None] + embargo_ms <= t0[test]
    after = t0[train][:, None] >= t1[test] + embargo_ms
    return np.asarray((before | after).all(axis=1))


@settings(max_examples=60, deadline=None)
@given(rows=_rows(), groups=st.integers(2, 6), data=st.data(), embargo=st.integers(0, 5))
def test_no_training_label_comes_near_a_test_label_in_combinatorial_folds(
    rows: tuple[np.ndarray, np.ndarray], groups: int, data: st.DataObject, embargo: int
) -> None:
    t0, t1 = rows
    test_groups = data.draw(st.integers(1, min(groups - 1, 3)))
    try:
        made = combinatorial_folds(t0, t1, groups=groups, test_groups=test_groups, embargo=timedelta(hours=embargo))
    except InsufficientHistory:
        assert groups > 2  # never for want of rows in so few groups, when labels are this short
        return
    assert len(made) == comb(groups, test_groups)
    for fold in made:
        assert _apart(fold.train, fold.test, t0, t1, embargo * HOUR).all()
        assert not set(t0[fold.train]) & set(t0[fold.test])
        inside = np.any([(t0 >= start) & (t0 < end) for start, end in fold.spans], axis=0)
        assert fold.test.tolist() == np.flatnonzero(inside).tolist()
        assert (fold.test_start, fold.test_end) == (fold.spans[0][0], fold.spans[-1][1])
        assert all(one[1] < next_[0] for one, next_ in zip(fold.spans, fold.spans[1:], strict=False))
        # nothing is thrown away without need: of a moment left out, one label at least came too near
        spared = np.setdiff1d(np.flatnonzero(~inside), fold.train)
        near = ~_apart(spared, fold.test, t0, t1 + (t1 == t0), embargo * HOUR + 1)
        assert set(t0[spared]) == set(t0[spared[near]])
    # every row is tested as often as its group is chosen
    times = np.bincount(np.concatenate([fold.test for fold in made]), minlength=len(t0))
    assert (times == comb(groups - 1, test_groups - 1)).all()


def test_combinatorial_folds_of_one_symbol_are_those_of_the_definition() -> None:
    t0 = np.arange(26) * HOUR
    t1 = t0 + 2 * HOUR
    made = combinatorial_folds(t0, t1, groups=5, test_groups=2, embargo=timedelta(hours=1))
    parts = np.array_split(np.arange(26), 5)
    for fold, chosen in zip(made, combinations(range(5), 2), strict=True):
        test = np.concatenate([parts[group] for group in chosen])
        rest = np.setdiff1d(np.arange(26), test)
        assert fold.test.tolist() == test.tolist()
        assert fold.train.tolist() == rest[_apart(rest, test, t0, t1, HOUR)].tolist()
        assert len(fold.spans) == (1 if chosen[1] == chosen[0] + 1 else 2)


def test_why_the_library_is_asked_for_moments_and_not_for_rows() -> None:
    """When this fails, the docstring of ``ml.splits`` is out of date."""
    t0 = np.repeat(np.arange(40) * HOUR, 3)
    starts, ends = (pd.Series(times.astype("datetime64[ms]")) for times in (t0, t0 + 2 * HOUR))
    rows = CombinatorialPurgedCV(7, 2, prediction_times=starts, evaluation_times=ends, embargo=pd.Timedelta(hours=4))
    cut, nearest = 0, 10 * HOUR
    for train, test in rows.split(np.empty((120, 1))):
        cut += bool(set(t0[test]) & set(t0[np.setdiff1d(np.arange(120), test)]))
        nearest = min([nearest, *(t0[test[0]] - t0[train] - 2 * HOUR)[t0[train] < t0[test[0]]]])
    assert cut == 21
    assert nearest == 0
    instants = pd.Series((np.arange(3) * HOUR).astype("datetime64[ms]"))
    assert purge(np.array([0, 2]), np.array([1]), instants, instants, pd.Timedelta(hours=2)).tolist() == [0, 2]


@settings(max_examples=60, deadline=None)
@given(rows=_rows(), share=st.floats(0.05, 0.5), embargo=st.integers(0, 5))
def test_the_inner_split_holds_out_the_last_moments(
    rows: tuple[np.ndarray, np.ndarray], share: float, embargo: int
) -> None:
    t0, t1 = rows
    train, held_out = inner_split(t0, t1, share=share, embargo=timedelta(hours=embargo))
    moments = np.unique(t0)
    assert len(np.unique(t0[held_out])) == round(share * len(moments))
    assert (t0[held_out] >= moments[-round(share * len(moments))]).all()
    start = t0[held_out].min()
    assert (t1[train] + embargo * HOUR <= start).all()
    assert (t0[train] < start).all()
    spared = np.setdiff1d(np.arange(len(t0)), np.concatenate([train, held_out]))
    assert (t1[spared] + embargo * HOUR > start).all()


def test_a_nearest_neighbour_gains_nothing_from_overlapping_labels() -> None:
    """Rows whose labels overlap share a feature that tells their label; it tells nothing of any other row.

    So a model that remembers scores well exactly where training labels overlap test labels.
    """
    random = np.random.default_rng(8)
    moments, length, symbols = 120, 12, 60
    moment, symbol = (grid.ravel() for grid in np.meshgrid(np.arange(moments), np.arange(symbols), indexing="ij"))
    shift = random.integers(0, length, symbols)[symbol]
    block = (moment + shift) // length
    t0, t1 = moment * HOUR, ((block + 1) * length - shift) * HOUR
    story = symbol * 100 + block
    x, y = random.permutation(symbols * 100)[story], random.integers(0, 2, symbols * 100)[story]

    def score(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
        hits = []
        for train, test in pairs:
            nearest = np.abs(x[test][:, None] - x[train]).argmin(axis=1)
            hits.append(np.mean(y[train][nearest] == y[test]))
        return float(np.mean(hits))

    embargo = timedelta(hours=2)
    walked = walk_forward_folds(t0, t1, folds=6, embargo=embargo)
    combined = combinatorial_folds(t0, t1, groups=10, test_groups=1, embargo=embargo)
    held_out = [inner_split(t0, t1, share=share, embargo=embargo) for share in (0.05, 0.1)]
    # rows of other moments, labels that overlap or not
    assert score([(np.flatnonzero(t0 < fold.test_start), fold.test) for fold in walked]) > 0.7
    assert score([(np.flatnonzero(~np.isin(t0, t0[fold.test])), fold.test) for fold in combined]) > 0.9
    assert score([(np.flatnonzero(t0 < t0[test].min()), test) for _, test in held_out]) > 0.7
    for pairs in (
        [(fold.train, fold.test) for fold in walked],
        [(fold.train, fold.test) for fold in combined],
        held_out,
    ):
        assert abs(score(pairs) - 0.5) < 0.08


def test_too_little_history_for_the_other_splits_is_said() -> None:
    t0 = np.arange(10) * HOUR
    with pytest.raises(InsufficientHistory, match="10 moments do not make 11 groups"):
        combinatorial_folds(t0, t0 + HOUR, groups=11)
    with pytest.raises(InsufficientHistory, match="no training row"):
        combinatorial_folds(t0, t0 + HOUR, groups=2, test_groups=1, embargo=timedelta(days=1))
    with pytest.raises(InsufficientHistory, match="0 labelled rows"):
        combinatorial_folds(t0[:0], t0[:0])
    for rows, hours, share in ((t0, 24, 0.2), (t0[:0], 0, 0.2), (t0, 0, 0.01), (t0, 0, 0.99), (t0 * 0, 0, 0.5)):
        with pytest.raises(InsufficientHistory, match="held out"):
            inner_split(rows, rows + HOUR, share=share, embargo=timedelta(hours=hours))


def test_a_fold_without_spans_has_one() -> None:
    assert Fold(1, np.array([0]), np.array([1]), 5, 9).spans == ((5, 9),)


@pytest.mark.parametrize("wrong", [{"groups": 1, "test_groups": 1}, {"test_groups": 0}, {"test_groups": 6}])
def test_choices_of_groups_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    t0 = np.arange(50) * HOUR
    with pytest.raises(InvalidRequest):
        combinatorial_folds(t0, t0 + HOUR, **wrong)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(InvalidRequest, match="share"):
            inner_split(t0, t0 + HOUR, share=share)
    for split in (combinatorial_folds, inner_split):
        with pytest.raises(InvalidRequest, match="embargo"):
            split(t0, t0 + HOUR, embargo=timedelta(-1))


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
