"""Combinatorial paths: each is a whole history, no model is asked about what it learned, and the spread is counted."""

from __future__ import annotations

import math
from datetime import timedelta
from math import comb
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.combinatorial import PathSpread, paths, spread, spreads
from ml.economics import Economics, trade
from ml.evaluation import log_loss
from ml.features import FeatureSet
from ml.labels import LabelDefinition
from ml.splits import combinatorial_folds, walk_forward_folds
from ml.training import TrainingTable, Walk, assemble, walk_forward
from trading.backtest.engine import Costs
from trading.errors import InsufficientHistory, InvalidRequest

HOUR = 3_600_000


def table(t0: np.ndarray, t1: np.ndarray, seed: int = 1) -> TrainingTable:
    random, rows = np.random.default_rng(seed), len(t0)
    order = np.argsort(t0, kind="stable")
    return TrainingTable(
        feature_set=FeatureSet(), label=LabelDefinition(horizon=2), names=("f",), x=random.normal(size=(rows, 1)),
        y=np.resize(np.array([-1, 0, 1], dtype=np.int8), rows), forward_return=0.01 * random.normal(size=rows),
        weight=np.ones(rows), decided_at=t0[order] - HOUR, t0=t0[order], t1=t1[order], symbol=np.full(rows, "A"),
        digest="d",
    )  # fmt: skip


def walked(made: TrainingTable, groups: int, test_groups: int, embargo: int) -> Walk:
    folds = combinatorial_folds(
        made.t0, made.t1, groups=groups, test_groups=test_groups, embargo=timedelta(hours=embargo)
    )
    return walk_forward(made, folds, estimators={"baseline": {}}, seed=1)


@settings(max_examples=12, deadline=None)
@given(
    starts=st.lists(st.integers(0, 70), min_size=25, max_size=60),
    lasts=st.data(),
    groups=st.integers(3, 6),
    embargo=st.integers(0, 3),
)
def test_a_path_holds_every_row_once_and_no_model_has_learned_from_what_it_is_asked(
    starts: list[int], lasts: st.DataObject, groups: int, embargo: int
) -> None:
    t0 = np.array(starts, dtype=np.int64) * HOUR
    t1 = t0 + np.array(lasts.draw(st.lists(st.integers(0, 4), min_size=len(t0), max_size=len(t0)))) * HOUR
    test_groups = lasts.draw(st.integers(1, min(groups - 1, 3)))
    made = table(t0, t1)
    try:
        walk = walked(made, groups, test_groups, embargo)
    except InsufficientHistory:
        return  # nothing would be left to learn from
    found = paths(walk, "baseline")
    assert len(found) == comb(groups - 1, test_groups - 1)
    asked = set()
    for path in found:
        assert path["row"].tolist() == list(range(len(made)))
        assert (np.diff(path["decided_at"]) >= 0).all()
        for number, rows in path.groupby("fold")["row"]:
            fold = walk.folds[int(number) - 1]
            assert fold.number == number
            # from the definition: every label learned from keeps the embargo from every label asked about
            before = made.t1[fold.train][:, None] + embargo * HOUR <= made.t0[rows]
            after = made.t0[fold.train][:, None] >= made.t1[rows] + embargo * HOUR
            assert (before | after).all()
            asked |= {(int(number), int(row)) for row in rows}
    # and no prediction is used twice or left out
    assert len(asked) == len(found) * len(made) == sum(len(fold.test) for fold in walk.folds)


def test_the_paths_of_six_groups_are_those_of_the_book() -> None:
    """López de Prado 2018, figures 12.1 and 12.2: which split speaks for which group on which path."""
    t0 = np.arange(60, dtype=np.int64) * HOUR
    found = paths(walked(table(t0, t0 + HOUR), 6, 2, 0), "baseline")
    book = [[1, 2, 3, 4, 5], [1, 6, 7, 8, 9], [2, 6, 10, 11, 12], [3, 7, 10, 13, 14], [4, 8, 11, 13, 15],
            [5, 9, 12, 14, 15]]  # fmt: skip
    assert [[int(path["fold"][10 * group]) for path in found] for group in range(6)] == book
    assert all((path["fold"].to_numpy().reshape(6, 10) == path["fold"].to_numpy()[::10, None]).all() for path in found)


@pytest.fixture
def market(predictable: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {"AAA": predictable.iloc[:1300], "BBB": predictable.iloc[1600:2900].set_axis(predictable.index[:1300])}


def test_each_path_is_one_account_and_its_figures_are_counted_again(market: dict[str, pd.DataFrame]) -> None:
    made = assemble(market, FeatureSet(), LabelDefinition(horizon=4))
    folds = combinatorial_folds(made.t0, made.t1, groups=4, test_groups=2, embargo=timedelta(hours=4))
    asked: list[pd.DataFrame] = []

    def earn(unseen: pd.DataFrame) -> Economics:
        asked.append(unseen)
        return trade(unseen, market, Costs(0.001, 0.0005), bars_per_year=8766, hold=4)

    estimators: dict[str, dict[str, Any]] = {"persistence": {}, "neutral": {}}
    fits: list[int] = []
    persistence, neutral = spreads(
        made, folds, estimators, earn, seed=1, progress=lambda done, total, _: fits.append(total)
    )
    assert fits == [12] * 12
    assert (persistence.estimator, persistence.splits, len(persistence.returns), len(asked)) == (
        "persistence", 6, 3, 6,
    )  # fmt: skip
    for path, loss, earned, sharpe in zip(
        asked, persistence.log_losses, persistence.returns, persistence.sharpes, strict=False
    ):
        assert len(path) == len(made)
        assert loss == log_loss(path[["p_short", "p_neutral", "p_long"]].to_numpy(), made.y)
        again = trade(path, market, Costs(0.001, 0.0005), bars_per_year=8766, hold=4)
        growth = (1 + again.returns).prod() - 1
        assert earned == pytest.approx(growth, rel=1e-9)
        assert sharpe == pytest.approx(again.returns.mean() / again.returns.std(ddof=1) * math.sqrt(8766), rel=1e-9)
    # who never trades has no Sharpe ratio, and no profit
    assert (neutral.sharpes, neutral.profitable) == ((None,) * 3, 0.0)
    assert set(neutral.metrics()) == {"count", "profitable", "log_loss_min", "log_loss_median", "log_loss_max"}


def test_the_spread_is_least_median_and_largest() -> None:
    found = PathSpread("x", 10, (1.0, 0.9, 1.3, 1.1), (0.1, -0.2, 0.0, 0.3), (0.5, None, -0.2, 0.9))
    assert found.metrics() == {
        "count": 4, "profitable": 0.5, "log_loss_min": 0.9, "log_loss_median": pytest.approx(1.05),
        "log_loss_max": 1.3, "sharpe_min": -0.2, "sharpe_median": 0.5, "sharpe_max": 0.9,
    }  # fmt: skip


def test_folds_that_make_no_paths_are_refused() -> None:
    t0 = np.arange(60, dtype=np.int64) * HOUR
    made = table(t0, t0 + HOUR)
    walk = walk_forward(made, walk_forward_folds(made.t0, made.t1, folds=2), estimators={"baseline": {}}, seed=1)
    with pytest.raises(InvalidRequest, match="2 folds test the rows 0 to 1 times"):
        paths(walk, "baseline")
    with pytest.raises(InvalidRequest, match="'oracle' was not walked forward"):
        spread(walk, "oracle", lambda _: pytest.fail("nothing to trade"))
    assert spreads(made, [], {"baseline": {}}, lambda _: pytest.fail("nothing to trade"), seed=1) == ()
