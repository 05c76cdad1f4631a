"""Economics: signals become the money that the backtest engine says, and no more."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.economics import Economics, trade
from ml.labels import LabelDefinition, labels
from trading import statistics
from trading.backtest.engine import Costs, Execution, Rules, run
from trading.backtest.metrics import summarise
from trading.candles import frame_of, open_times_ms
from trading.errors import InvalidRequest
from trading.strategies import hold

HOUR_MS = 3_600_000
FREE = Costs(0.0, 0.0)
Candles = Callable[..., pd.DataFrame]


def walk(rows: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(random.normal(0, 0.01, rows)))
    open_ = np.concatenate([[100.0], close[:-1]]) * np.exp(random.normal(0, 0.002, rows))
    values = [open_, np.maximum(open_, close), np.minimum(open_, close), close, np.ones(rows)]
    return frame_of(1_577_836_800_000 + HOUR_MS * np.arange(rows), np.column_stack(values))


def said(candles: pd.DataFrame, symbol: str, signals: np.ndarray, first: int, folds: int = 1) -> pd.DataFrame:
    """Out-of-sample rows from bar ``first`` on, in folds of about the same length."""
    parts = [np.full(len(part), at + 1) for at, part in enumerate(np.array_split(np.arange(len(signals)), folds))]
    decided = open_times_ms(candles)[first : first + len(signals)]
    return pd.DataFrame(
        {"symbol": symbol, "decided_at": decided, "fold": np.concatenate(parts), "signal": signals.astype(np.int8)}
    )


def traded(unseen: pd.DataFrame, candles: dict[str, pd.DataFrame], costs: Costs = FREE, hold: int = 3) -> Economics:
    return trade(unseen, candles, costs, bars_per_year=8766, hold=hold)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([-1, 1]), st.integers(1, 8))
def test_a_signal_alone_earns_the_forward_return_of_its_label(seed: int, side: int, horizon: int) -> None:
    candles = walk(40, seed)
    known = labels(candles, LabelDefinition(horizon=horizon))
    signals = np.zeros(len(known) - 5)
    at = seed % len(signals)
    signals[at] = side
    found = traded(said(candles, "X", signals, 5), {"X": candles}, hold=horizon)
    assert found.pooled.total_return == pytest.approx(side * known["forward_return"].iloc[5 + at], abs=1e-12)
    assert (found.pooled.trades, found.pooled.costs) == (1, 0)
    assert found.pooled.exposure == pytest.approx(horizon / found.pooled.bars)


def test_a_symbol_has_the_figures_of_a_backtest_of_its_own() -> None:
    candles, costs = walk(300, 1), Costs(0.001, 0.0005)
    signals = np.random.default_rng(2).choice([-1, 0, 0, 0, 1], 250)
    found = traded(said(candles, "X", signals, 20), {"X": candles}, costs)
    span = candles.iloc[20 : 20 + 250 + 4]
    result = run(
        span, hold(np.append(signals, [0] * 4).astype(np.int8), 3), Rules(costs, execution=Execution(close_at_end=True))
    )
    figures = summarise(result, 8766)
    for name in ("total_return", "sharpe", "max_drawdown", "turnover", "trades", "exposure"):
        assert found.metrics()[name] == pytest.approx(figures[name], rel=1e-12), name
        assert found.by_symbol["X"].metrics()[name] == found.metrics()[name]
    assert found.pooled.costs == pytest.approx(figures["cost_of_start"])
    gross = float(result.trades["pnl"].sum()) + float(figures["costs"])
    assert found.pooled.cost_share == (pytest.approx(figures["costs"] / gross) if gross > 0 else None)
    returns = found.returns.to_numpy()
    moments = statistics.moments(returns)
    error = statistics.sharpe_error(statistics.sharpe_ratio(returns), len(returns), moments.skew, moments.kurtosis)
    assert found.pooled.sharpe_error == pytest.approx(error * math.sqrt(8766))


def test_symbols_share_the_money_equally_and_an_absent_one_leaves_its_part_in_cash() -> None:
    one, two = walk(80, 3), walk(80, 4)
    two = two.drop(two.index[30])
    rows = [said(one, "A", np.ones(50), 5), said(two, "B", np.ones(20), 25)]
    found = traded(pd.concat(rows), {"A": one, "B": two, "unused": one})
    alone = [traded(row, {"A": one, "B": two}).returns for row in rows]
    both = pd.concat(alone, axis=1).sort_index().fillna(0.0)
    pd.testing.assert_series_equal(found.returns, both.mean(axis=1), check_names=False)
    assert list(found.by_symbol) == list(found.by_symbol_returns.columns) == ["A", "B"]
    assert found.returns.iloc[0] == 0  # decided on its close, filled after it
    assert found.by_symbol_returns.loc[one.index[30], "B"] == 0
    assert found.pooled.total_return == pytest.approx(np.prod(1 + both.mean(axis=1)) - 1)
    assert found.pooled.trades == 2


def test_folds_add_up_to_the_whole() -> None:
    candles = {"A": walk(400, 5), "B": walk(400, 6)}
    random = np.random.default_rng(7)
    rows = [said(frame, name, random.choice([-1, 0, 1], 360), 10, folds=4) for name, frame in candles.items()]
    found = traded(pd.concat(rows), candles, Costs(0.0005, 0.0))
    assert list(found.by_fold) == [1, 2, 3, 4]
    folds = list(found.by_fold.values())
    assert math.prod(1 + fold.total_return for fold in folds) == pytest.approx(1 + found.pooled.total_return)
    assert sum(fold.trades for fold in folds) == found.pooled.trades
    assert sum(fold.bars for fold in folds) == found.pooled.bars
    assert min(fold.max_drawdown for fold in folds) >= found.pooled.max_drawdown


def test_the_costs_of_a_fold_are_a_share_of_what_it_began_with() -> None:
    candles, costs = walk(300, 14), Costs(0.001, 0.0)
    signals = np.random.default_rng(15).choice([-1, 0, 1], 280)
    found = traded(said(candles, "X", signals, 10, folds=2), {"X": candles}, costs)
    first, second = found.by_fold.values()
    assert first.costs + second.costs * (1 + first.total_return) == pytest.approx(found.pooled.costs)
    assert abs(first.total_return) > 0.04


def test_a_position_that_the_candles_end_in_is_closed_with_its_costs() -> None:
    candles = walk(50, 16)
    found = traded(said(candles, "X", np.array([1]), 46), {"X": candles}, Costs(0.01, 0.0), hold=20)
    bought, sold = candles["open"].iloc[47], candles["close"].iloc[49]
    assert 1 + found.pooled.total_return == pytest.approx(sold * 0.99 / (bought * 1.01))


def test_later_signals_and_candles_change_nothing_before_them() -> None:
    candles = walk(200, 8)
    signals = np.random.default_rng(9).choice([-1, 0, 1], 180)
    before = traded(said(candles, "X", signals, 5), {"X": candles}).returns
    other = np.concatenate([signals[:100], -signals[100:]])
    changed = candles.copy()
    changed.iloc[110:] *= 1.5
    after = traded(said(changed, "X", other, 5), {"X": changed}).returns
    # the first other signal falls on bar 105, is filled on bar 106, and the returns begin on bar 5
    pd.testing.assert_series_equal(before.iloc[:101], after.iloc[:101])
    assert before.iloc[101] != after.iloc[101]


def test_costs_only_ever_cost() -> None:
    candles = walk(300, 10)
    unseen = said(candles, "X", np.random.default_rng(11).choice([-1, 0, 1], 250), 20)
    free, dear = (traded(unseen, {"X": candles}, costs) for costs in (FREE, Costs(0.002, 0.001)))
    assert dear.pooled.total_return < free.pooled.total_return
    assert dear.pooled.costs > 0
    assert dear.pooled.trades == free.pooled.trades


def test_no_signals_are_no_trades_and_no_sharpe_ratio() -> None:
    candles = walk(50, 12)
    found = traded(said(candles, "X", np.zeros(30), 5), {"X": candles})
    assert (found.pooled.sharpe, found.pooled.sharpe_error, found.pooled.cost_share) == (None, None, None)
    assert found.metrics() == {
        "total_return": 0, "max_drawdown": 0, "turnover": 0, "costs": 0, "trades": 0, "exposure": 0, "bars": 34
    }  # fmt: skip


def test_nonsense_is_refused() -> None:
    candles = walk(50, 13)
    good = said(candles, "X", np.ones(20), 5)
    frames = {"X": candles}
    for unseen, given_, held in (
        (good.iloc[:0], frames, 3),
        (good.drop(columns="signal"), frames, 3),
        (pd.concat([good, good]), frames, 3),
        (good, {"Y": candles}, 3),
        (good, {"X": candles.drop(candles.index[10])}, 3),
        (good, {"X": candles.iloc[:15]}, 3),
        (good, frames, 0),
    ):
        with pytest.raises(InvalidRequest):
            traded(unseen, given_, hold=held)
