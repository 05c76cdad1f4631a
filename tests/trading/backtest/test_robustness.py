"""Planted weaknesses are found, each where it was planted."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import groupby, permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trading.backtest.test_engine import market
from trading.backtest.engine import run
from trading.backtest.metrics import summarise
from trading.backtest.periods import regimes, sub_periods
from trading.backtest.robustness import examine, examine_decisions, later, order_of_trades
from trading.backtest.rules import Costs, Decisions, Rules, Sizing
from trading.candles import frame_of
from trading.errors import InvalidRequest
from trading.strategies import RULES, Parameter, Rule

PER_YEAR = 8766.0
HOUR = 3_600_000
FREE = Rules(Costs(0.0, 0.0))


def of_opens(opens: np.ndarray) -> pd.DataFrame:
    """Candles that close where the next one opens."""
    close = np.append(opens[1:], opens[-1])
    values = np.c_[opens, np.maximum(opens, close), np.minimum(opens, close), close, np.ones(len(opens))]
    return frame_of(np.arange(len(opens)) * HOUR, values)


def steps(gains: np.ndarray) -> pd.DataFrame:
    """A market that moves by ``gains`` from open to close."""
    return of_opens(100 * np.cumprod(np.append(1.0, 1 + gains)))


@pytest.fixture(scope="module")
def hours() -> pd.DataFrame:
    return market(1_200, 8)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_of_fixed_units_what_costs_less_ends_with_more(seed: int) -> None:
    candles = market(150, seed)
    targets = np.repeat(np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], 30), 5)
    rules = Rules(Costs(0.001, 0.0005), Sizing(units=1.0), cash=100_000.0)
    found = examine_decisions(candles, targets, rules, PER_YEAR, seed=1)
    ends = found.costs["final_equity"].to_numpy()
    assert (np.diff(ends) < 0).all()
    assert found.costs.index.tolist() == [0, 1, 2, 3]
    assert found.costs["costs"].loc[0] == 0
    # the same trades, so that the costs are what the equity lacks
    np.testing.assert_allclose(ends + found.costs["costs"], ends[0], rtol=1e-12)


def test_the_accounts_are_those_of_run(hours: pd.DataFrame) -> None:
    rules, full = Rules(Costs(0.001, 0.0005)), {"entry": 15, "exit": 7, "atr": 14, "stop": 1.5}
    funding = np.where(np.arange(len(hours)) % 8 == 0, 0.0002, 0.0)
    found = examine(hours, RULES["breakout"], full, rules, PER_YEAR, seed=1, funding=funding)
    decided = RULES["breakout"](hours, **full)
    assert isinstance(decided, Decisions)

    def figures(decisions: Decisions, costs: Costs) -> dict[str, Any]:
        done = run(hours, decisions, Rules(costs), funding=funding, bars_per_year=PER_YEAR)
        return summarise(done, PER_YEAR)

    np.testing.assert_equal(found.costs.loc[1].to_dict(), figures(decided, rules.costs))
    np.testing.assert_equal(found.costs.loc[3].to_dict(), figures(decided, Costs(0.003, 0.0015)))
    late = Decisions(
        np.append(0.0, decided.targets[:-1]), stop_price=np.append(math.nan, np.asarray(decided.stop_price)[:-1])
    )
    np.testing.assert_equal(found.delay.loc[1].to_dict(), figures(late, rules.costs))
    np.testing.assert_equal(found.delay.loc[0].to_dict(), found.costs.loc[1].to_dict())
    result = run(hours, decided, rules, funding=funding, bars_per_year=PER_YEAR)
    pd.testing.assert_frame_equal(found.parts, sub_periods(result, PER_YEAR))
    pd.testing.assert_frame_equal(found.regimes, regimes(result, hours["close"].to_numpy(), PER_YEAR))
    around = found.neighbourhood
    assert around is not None
    assert around.chosen == (15, 7)
    assert around.sharpe.loc[15, 7] == found.costs["sharpe"].loc[1]
    assert around.total_return.loc[15, 7] == found.costs["total_return"].loc[1]
    # the exit is below the entry
    assert math.isnan(around.sharpe.loc[10, 20])
    assert around.sharpe.loc[55, 20] == figures(RULES["breakout"](hours, **{**full, "entry": 55, "exit": 20}),  # type: ignore[arg-type]
                                                rules.costs)["sharpe"]  # fmt: skip


def test_a_signal_examined_alone_has_no_neighbourhood(hours: pd.DataFrame) -> None:
    rules = Rules(Costs(0.0001, 0.0))
    ruled = examine(hours, RULES["macd"], {}, rules, PER_YEAR, seed=3)
    alone = examine_decisions(hours, RULES["macd"](hours), rules, PER_YEAR, seed=3)
    assert alone.neighbourhood is None
    pd.testing.assert_frame_equal(alone.costs, ruled.costs)
    pd.testing.assert_frame_equal(alone.delay, ruled.delay)
    assert alone.order is not None
    assert ruled.order is not None
    np.testing.assert_array_equal(alone.order.drawdowns, ruled.order.drawdowns)


def test_a_seed_makes_it_the_same_again(hours: pd.DataFrame) -> None:
    one, again, other = (
        examine_decisions(hours, RULES["macd"](hours), FREE, PER_YEAR, seed=seed).order for seed in (1, 1, 2)
    )
    assert one is not None
    assert again is not None
    assert other is not None
    np.testing.assert_array_equal(one.drawdowns, again.drawdowns)
    np.testing.assert_array_equal(one.streaks, again.streaks)
    assert not np.array_equal(one.drawdowns, other.drawdowns)
    assert (one.drawdown, one.streak) == (other.drawdown, other.streak)


def fallen(gains: tuple[float, ...]) -> float:
    worth = np.cumprod([1.0, *(1 + gain for gain in gains)])
    return float((worth / np.maximum.accumulate(worth) - 1).min())


def longest(gains: tuple[float, ...]) -> int:
    return max((len(list(run)) for loses, run in groupby(gains, lambda gain: gain < 0) if loses), default=0)


def test_every_order_of_the_trades_comes_up_about_as_often() -> None:
    gains = (0.1, -0.05, -0.2, 0.3)
    # each trade is one bar long, and one bar is between
    candles = steps(np.column_stack([np.zeros(4), gains]).ravel())
    targets = np.array([1.0, 0.0] * 4 + [0.0])
    result = run(candles, targets, FREE)
    order = order_of_trades(result, seed=7, repeats=12_000)
    assert (order.drawdown, order.streak) == (pytest.approx(fallen(gains)), 2)
    assert math.prod(1 + gain for gain in gains) - 1 == pytest.approx(result.total_return)
    expected = Counter((round(fallen(each), 9), longest(each)) for each in permutations(gains))
    found = Counter(zip(order.drawdowns.round(9).tolist(), order.streaks.tolist(), strict=True))
    assert set(found) == set(expected)
    for key, count in expected.items():
        assert found[key] == pytest.approx(500 * count, abs=5 * math.sqrt(500 * count))
    table = order.table
    assert table["drawdown"].is_monotonic_increasing
    assert table["drawdown"].loc[0.5] == pytest.approx(float(np.median(order.drawdowns)))
    assert table["streak"].loc[0.05] == np.quantile(order.streaks, 0.95)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.002]))
def test_the_trades_compound_to_the_whole_in_every_order(seed: int, fee: float) -> None:
    candles = market(120, seed)
    targets = np.repeat(np.random.default_rng(seed).choice([-0.5, 0.0, 0.5, 1.0], 40), 3)
    result = run(candles, targets, Rules(Costs(fee, 0.0)))
    pnl = result.trades["pnl"].to_numpy()
    gains = pnl / (result.start_cash + np.append(0.0, np.cumsum(pnl)[:-1]))
    assert np.prod(1 + gains) - 1 == pytest.approx(result.total_return, abs=1e-9)
    order = order_of_trades(result, seed=seed, repeats=20)
    assert order.drawdown == pytest.approx(fallen(tuple(gains)), abs=1e-12)
    assert order.streak == longest(tuple(gains))


def test_an_edge_of_one_bar_is_gone_one_bar_later() -> None:
    rng = np.random.default_rng(4)
    gains = rng.choice([-0.01, 0.0101], 1_000)
    candles = steps(gains)
    # says on each close where the next bar goes
    targets = np.append((gains[1:] > 0).astype(np.float64), [0.0, 0.0])
    found = examine_decisions(candles, targets, FREE, PER_YEAR, seed=1)
    assert found.delay["sharpe"].loc[0] > 20
    assert abs(found.delay["sharpe"].loc[1]) < 3
    np.testing.assert_array_equal(later(Decisions(targets)).targets, np.append(0.0, targets[:-1]))


def test_one_lucky_trade_is_found_by_the_best_five() -> None:
    gains = np.full(60, -0.002)
    gains[31] = 0.5
    candles = steps(np.column_stack([1 / (1 + gains) - 1, gains]).ravel())
    found = examine_decisions(candles, np.append(np.tile([1.0, 0.0], 60), 0.0), FREE, PER_YEAR, seed=1)
    assert found.costs["total_return"].loc[1] > 0.3
    assert found.best_five_share > 1
    assert found.without_best_five < 0
    pnl = run(candles, np.append(np.tile([1.0, 0.0], 60), 0.0), FREE).trades["pnl"]
    assert found.without_best_five == pytest.approx(pnl.sum() - pnl.nlargest(5).sum())
    assert any(said.startswith("without its best five trades of 60 it loses money") for said in found.breaks)
    assert "it loses money in 3 of 4 parts of the time" in found.breaks


def waves(blocks: int = 40) -> tuple[pd.DataFrame, np.ndarray]:
    """Ten bars up by half a percent each, ten bars down, and so on; and being long in the first kind."""
    rising = np.repeat(np.arange(blocks) % 2 == 1, 10)
    targets = np.append(rising[1:], [False, False]).astype(np.float64)
    return steps(np.where(rising, 0.005, 1 / 1.005 - 1)), targets


def knife(good: set[tuple[int, int]]) -> tuple[pd.DataFrame, Rule]:
    """A rule that is right with the ``good`` parameters and wrong with all others."""
    candles, targets = waves()

    def decide(market: pd.DataFrame, one: int, other: int) -> np.ndarray:
        return targets if (one, other) in good else 1 - targets

    values = tuple(range(1, 31))
    return candles, Rule(
        "knife", decide, lambda *_, **__: "", lambda **_: 1,
        {name: Parameter(10, 1, 30, values) for name in ("one", "other")}, ("one", "other"), "",
    )  # fmt: skip


def test_a_parameter_on_a_knife_edge_is_seen_in_the_heat_map() -> None:
    candles, rule = knife({(10, 10)})
    found = examine(candles, rule, {}, Rules(Costs(0.0001, 0.0)), PER_YEAR, seed=1)
    around = found.neighbourhood
    assert around is not None
    assert around.sharpe.shape == around.total_return.shape == (9, 9)
    assert around.sharpe.index.tolist() == around.sharpe.columns.tolist() == list(range(6, 15))
    assert np.argwhere(around.sharpe.to_numpy() > 0).tolist() == [[4, 4]]
    assert (around.neighbours, around.positive, around.share) == (80, 0, 0.0)
    assert found.verdict == "only 0 of 80 neighbouring parameter sets have a Sharpe ratio above 0"


def test_a_plateau_is_no_knife_edge_and_maps_may_be_chosen() -> None:
    candles, rule = knife({(one, other) for one in range(1, 31) for other in range(1, 31) if one < 12})
    found = examine(candles, rule, {"other": 29}, Rules(Costs(0.0001, 0.0)), PER_YEAR, seed=1)
    assert found.neighbourhood is not None
    # at an end of what is declared, the map goes the other way
    assert found.neighbourhood.sharpe.columns.tolist() == list(range(22, 31))
    assert found.neighbourhood.positive == 6 * 9 - 1
    assert found.breaks == ()
    assert found.verdict.startswith("nothing tried here breaks it: +")
    own = examine(
        candles, rule, {}, Rules(Costs(0.0001, 0.0)), PER_YEAR, seed=1, heat={"other": [3, 2], "one": [11, 12]}
    )
    assert own.neighbourhood is not None
    assert own.neighbourhood.sharpe.index.tolist() == [2, 3, 10]
    assert own.neighbourhood.sharpe.columns.tolist() == [10, 11, 12]
    assert (own.neighbourhood.neighbours, own.neighbourhood.positive) == (8, 5)
    for heat in ({"one": [1]}, {"one": [1], "two": [2]}):
        with pytest.raises(InvalidRequest, match="a heat map of knife needs two of one, other"):
            examine(candles, rule, {}, FREE, PER_YEAR, seed=1, heat=heat)


@pytest.mark.parametrize(
    ("fee", "said"),
    [
        (0.03, r"it loses money as it is \(-\d+.\d%\), though free of costs it would earn \+\d+.\d%"),
        (0.015, r"it loses money at twice the costs \(-\d+.\d% instead of \+\d+.\d%\)"),
        (0.01, r"it loses money at three times the costs \(-\d+.\d% instead of \+\d+.\d%\)"),
        (0.001, r"nothing tried here breaks it: \+\d+.\d% at three times the costs, \+\d+.\d% one bar late"),
    ],
)
def test_the_verdict_is_what_takes_least(fee: float, said: str) -> None:
    found = examine_decisions(*waves(), Rules(Costs(fee, 0.0)), PER_YEAR, seed=1)
    assert re.fullmatch(said, found.verdict)
    assert len(found.breaks) == (fee > 0.001)


def test_verdicts_on_next_to_nothing() -> None:
    candles, targets = waves(6)
    never = examine_decisions(candles, np.zeros(len(candles)), FREE, PER_YEAR, seed=1)
    assert (never.verdict, never.order) == ("it never traded", None)
    wrong = examine_decisions(candles, 1 - targets, FREE, PER_YEAR, seed=1)
    assert re.fullmatch(r"it loses money as it is \(-\d+.\d%\), even free of costs", wrong.verdict)
    few = examine_decisions(candles, targets, FREE, PER_YEAR, seed=1)
    assert "its whole profit comes from 3 trades" in few.breaks
    with pytest.raises(InvalidRequest, match="0 trades of 1 symbols"):
        order_of_trades(run(candles, np.zeros(len(candles)), FREE), seed=1)


def test_a_short_that_loses_more_than_there_is_ends_with_nothing_in_every_order() -> None:
    level = np.array([1.0, 1.0, 1.1, 1.1, 1.1, 5.0, 5.0])
    candles = frame_of(np.arange(7) * HOUR, np.column_stack([level] * 4 + [np.ones(7)]))
    result = run(candles, np.array([1.0, 0.0, 0.0, -1.0, -1.0, 0.0, 0.0]), FREE)
    assert len(result.trades) == 2
    assert result.written_off > 0
    order = order_of_trades(result, seed=1, repeats=50)
    assert (order.drawdown, set(order.drawdowns)) == (-1.0, {-1.0})
