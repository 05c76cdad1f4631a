"""Walk-forward: nothing that was chosen, and nothing that was earned, depends on what came later."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trading.backtest.test_engine import market
from trading.backtest.engine import run
from trading.backtest.metrics import summarise
from trading.backtest.rules import Costs, Decisions, Rules
from trading.backtest.walk_forward import Span, WalkForward, optimise, spans, walk_forward
from trading.errors import InsufficientHistory, InvalidRequest, StrategyFailed
from trading.strategies import RULES, Strategy, buy_and_hold
from trading.strategy_grids import parameter_sets

PER_YEAR = 8766.0
BARS = 900
RULES_OF_TEST = Rules(Costs(0.0002, 0.0))
CROSS = RULES["sma_cross"]
SETS = parameter_sets(CROSS, {"fast": [3, 8], "slow": [12, 30], "long_only": [True, False]})


@pytest.fixture(scope="module")
def hours() -> pd.DataFrame:
    return market(BARS, 6)


def changed(candles: pd.DataFrame, at: int, seed: int) -> pd.DataFrame:
    """Another market from bar ``at`` on."""
    other = market(len(candles), seed)
    return pd.concat([candles.iloc[:at], other.iloc[at:]])


@pytest.mark.parametrize("rolling", [False, True])
@pytest.mark.parametrize(("bars", "folds"), [(900, 4), (10, 5), (101, 3), (2, 1)])
def test_spans_follow_one_another_to_the_end(bars: int, folds: int, rolling: bool) -> None:
    found = spans(bars, folds, first_train=0.5, rolling=rolling)
    assert [span.number for span in found] == list(range(1, folds + 1))
    assert found[0].begin == 0
    assert [span.first for span in found] == [bars // 2, *(span.last for span in found[:-1])]
    assert found[-1].last == bars
    traded = [span.last - span.first for span in found]
    assert max(traded) - min(traded) <= 1
    for span in found:
        assert span.first - span.begin == (bars // 2 if rolling else span.first)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(fold=st.integers(0, 2), seed=st.integers(100, 10_000), rolling=st.booleans())
def test_what_is_chosen_and_earned_does_not_depend_on_what_comes_later(
    hours: pd.DataFrame, fold: int, seed: int, rolling: bool
) -> None:
    folds = spans(BARS, 3, rolling=rolling)
    before = optimise(hours, CROSS, SETS[::2], folds, RULES_OF_TEST, PER_YEAR, threads=1)
    cut = folds[fold].first
    after = optimise(changed(hours, cut, seed), CROSS, SETS[::2], folds, RULES_OF_TEST, PER_YEAR, threads=1)
    assert after.choices[: fold + 1] == before.choices[: fold + 1]
    np.testing.assert_array_equal(after.folds["in_sample"].iloc[: fold + 1], before.folds["in_sample"].iloc[: fold + 1])
    pd.testing.assert_frame_equal(after.folds.iloc[:fold], before.folds.iloc[:fold], check_exact=True)
    earned = cut - folds[0].first
    pd.testing.assert_series_equal(after.result.equity.iloc[:earned], before.result.equity.iloc[:earned])


def by_hand(candles: pd.DataFrame, folds: list[Span], goal: str) -> tuple[list[dict[str, object]], pd.Series]:
    """The same, one run at a time."""
    choices, targets = [], np.zeros(len(candles))
    for span in folds:
        best, most = {}, -math.inf
        for each in SETS:
            decided = CROSS(candles.iloc[: span.first], **each)[span.begin :]
            done = run(candles.iloc[span.begin : span.first], decided, RULES_OF_TEST, bars_per_year=PER_YEAR)
            value = float(summarise(done, PER_YEAR)[goal])
            if value > most:
                best, most = each, value
        choices.append(best)
        targets[span.first : span.last] = CROSS(candles.iloc[: span.last], **best)[span.first :]
    first = folds[0].first
    return choices, run(candles.iloc[first:], targets[first:], RULES_OF_TEST, bars_per_year=PER_YEAR).equity


@pytest.mark.parametrize(("goal", "rolling"), [("sharpe", False), ("max_drawdown", True)])
def test_folds_are_chosen_and_stitched_as_one_would_by_hand(hours: pd.DataFrame, goal: str, rolling: bool) -> None:
    folds = spans(BARS, 4, rolling=rolling)
    walked = optimise(hours, CROSS, SETS, folds, RULES_OF_TEST, PER_YEAR, goal=goal)
    choices, equity = by_hand(hours, folds, goal)
    assert list(walked.choices) == choices
    pd.testing.assert_series_equal(walked.result.equity, equity, check_names=False, check_exact=True)
    assert len({str(choice) for choice in choices}) > 1, "the market of this test should change what is best"
    table = walked.folds
    assert table["test_start"].tolist() == [hours.index[span.first] for span in folds]
    assert table["train_start"].tolist() == [hours.index[span.begin] for span in folds]
    assert (1 + table["total_return"]).prod() - 1 == pytest.approx(walked.result.total_return, rel=1e-9)
    assert table["trades"].sum() == len(walked.result.trades)


def test_efficiency_is_the_share_of_the_sharpe_ratio_that_is_left(hours: pd.DataFrame) -> None:
    walked = optimise(hours, CROSS, SETS, spans(BARS, 4), RULES_OF_TEST, PER_YEAR)
    for _, row in walked.folds.iterrows():
        expected = row["out_of_sample"] / row["in_sample"] if row["in_sample"] > 0 else math.nan
        assert row["efficiency"] == pytest.approx(expected, nan_ok=True)
    assert (walked.folds["in_sample"] > 0).any()
    own = float(summarise(walked.result, PER_YEAR)["sharpe"])
    mean = walked.folds["in_sample"].mean()
    assert walked.efficiency == pytest.approx(own / mean if mean > 0 else math.nan, nan_ok=True)


def test_a_position_is_carried_from_fold_to_fold(hours: pd.DataFrame) -> None:
    folds = spans(BARS, 5)
    walked = walk_forward(hours, lambda history, span: buy_and_hold, folds, RULES_OF_TEST, PER_YEAR)
    assert len(walked.result.fills) == 1
    assert walked.result.equity.index[0] == hours.index[folds[0].first]
    assert walked.choices == ()


def test_a_model_is_fitted_on_the_past_and_asked_about_its_fold(hours: pd.DataFrame) -> None:
    shown: list[tuple[int, int, int]] = []

    def retrain(history: pd.DataFrame, span: Span) -> Strategy:
        trained = history.iloc[span.begin :]["close"]
        side = float(np.sign(trained.iloc[-1] - trained.iloc[0]))

        def decide(candles: pd.DataFrame, /) -> np.ndarray:
            shown.append((span.number, len(history), len(candles)))
            return np.full(len(candles), side)

        return decide

    folds = spans(BARS, 3, rolling=True)
    funding = np.where(np.arange(BARS) % 8 == 0, 0.0005, 0.0)
    walked = walk_forward(hours, retrain, folds, RULES_OF_TEST, PER_YEAR, funding=funding)
    assert shown == [(span.number, span.first, seen) for span in folds for seen in (span.first, span.last)]
    close = hours["close"].to_numpy()
    sides = [np.sign(close[span.first - 1] - close[span.begin]) for span in folds]
    targets = np.repeat(sides, [span.last - span.first for span in folds])
    first = folds[0].first
    alone = run(hours.iloc[first:], targets, RULES_OF_TEST, funding=funding[first:])
    np.testing.assert_array_equal(walked.result.equity, alone.equity)
    trained = run(hours.iloc[:first], np.full(first, sides[0]), RULES_OF_TEST, funding=funding[:first])
    assert walked.folds["in_sample"].loc[1] == summarise(trained, PER_YEAR)["sharpe"]


def test_prices_of_some_folds_stand_beside_none_of_others() -> None:
    candles = market(BARS, 5)
    stops = candles["close"].to_numpy() * 0.98

    def retrain(history: pd.DataFrame, span: Span) -> Strategy:
        def with_stop(candles: pd.DataFrame, /) -> Decisions:
            return Decisions(np.ones(len(candles)), stop_price=stops[: len(candles)])

        return with_stop if span.number % 2 else buy_and_hold

    folds = spans(BARS, 3)
    walked = walk_forward(candles, retrain, folds, RULES_OF_TEST, PER_YEAR)
    first = folds[0].first
    stops[folds[1].first : folds[1].last] = math.nan
    alone = run(candles.iloc[first:], Decisions(np.ones(BARS - first), stop_price=stops[first:]), RULES_OF_TEST)
    np.testing.assert_array_equal(walked.result.equity, alone.equity)
    assert "stop loss" in set(walked.result.trades["exit_reason"])


def test_where_nothing_traded_nothing_is_chosen_and_nothing_is_traded(hours: pd.DataFrame) -> None:
    flat = pd.concat([hours.iloc[:600].assign(open=5.0, high=5.0, low=5.0, close=5.0), hours.iloc[600:]])
    walked: WalkForward = optimise(flat, CROSS, SETS, spans(BARS, 3), RULES_OF_TEST, PER_YEAR)
    # 360 and 540 bars without a change, and then some with
    assert walked.choices[:2] == (None, None)
    assert walked.choices[2] is not None
    assert (walked.result.equity.iloc[:360] == RULES_OF_TEST.cash).all()
    assert walked.folds["in_sample"].isna().tolist() == [True, True, False]


@pytest.mark.parametrize("goal", ["total_return", "annual_return", "max_drawdown"])
def test_a_set_that_did_not_trade_is_never_the_best(hours: pd.DataFrame, goal: str) -> None:
    flat = hours.assign(open=5.0, high=5.0, low=5.0, close=5.0)
    walked = optimise(flat, CROSS, SETS, spans(BARS, 3), RULES_OF_TEST, PER_YEAR, goal=goal)
    assert walked.choices == (None, None, None)
    # what never crosses within the bars loses nothing; the others lose, for fees are high
    idle, active = {"fast": 800, "slow": 850, "long_only": True}, {"fast": 3, "slow": 12, "long_only": True}
    dear = Rules(Costs(0.02, 0.0))
    walked = optimise(hours, CROSS, [idle, active], spans(BARS, 3), dear, PER_YEAR, goal=goal)
    assert (walked.folds["in_sample"] < 0).all()
    assert [choice and choice["fast"] for choice in walked.choices] == [3, 3, 3]


def test_what_makes_no_sense_is_refused(hours: pd.DataFrame) -> None:
    def walk(folds: list[Span], **others: np.ndarray) -> None:
        walk_forward(hours, lambda history, span: buy_and_hold, folds, RULES_OF_TEST, PER_YEAR, **others)

    for folds in ([], [Span(1, 0, 10, 20), Span(2, 0, 30, 40)]):
        with pytest.raises(InvalidRequest, match="do not follow one another"):
            walk(folds)
    for span in (Span(1, 0, 10, 901), Span(1, 10, 10, 20), Span(1, 0, 10, 10), Span(1, -1, 10, 20)):
        with pytest.raises(InvalidRequest, match="do not lie within 900 candles"):
            walk([span])
    with pytest.raises(InvalidRequest, match="3 funding rates"):
        walk(spans(BARS), funding=np.zeros(3))
    with pytest.raises(InvalidRequest, match="'turnover' cannot be the goal"):
        optimise(hours, CROSS, SETS, spans(BARS), RULES_OF_TEST, PER_YEAR, goal="turnover")
    for wrong in ({"folds": 0}, {"first_train": 1.0}):
        with pytest.raises(InvalidRequest, match="must be at least 1"):
            spans(BARS, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InsufficientHistory, match="3 bars do not suffice for 4 folds"):
        spans(3, 4)


def test_a_failing_model_names_its_fold(hours: pd.DataFrame) -> None:
    def retrain(history: pd.DataFrame, span: Span) -> Strategy:
        return lambda candles: np.zeros(len(candles) if span.number < 2 else 1)

    with pytest.raises(StrategyFailed, match="mean, fold 2 gave targets of shape"):
        walk_forward(hours, retrain, spans(BARS), RULES_OF_TEST, PER_YEAR, strategy="mean")
