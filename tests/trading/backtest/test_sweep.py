"""A sweep says of each set what ``run`` and ``summarise`` say of it, to the last digit, on any number of threads."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trading.backtest.markets import Scenario, decisions, scenarios
from tests.trading.backtest.test_engine import market
from trading.backtest.engine import run
from trading.backtest.metrics import bar_returns, summarise
from trading.backtest.rules import Costs, Decisions, Protection, Rules
from trading.backtest.sweep import after, sweep, sweep_returns
from trading.errors import CandleContractError, InvalidRequest, StrategyFailed
from trading.statistics import overfitting_probability
from trading.strategies import RULES, Parameter, Rule
from trading.strategy_grids import parameter_sets

PER_YEAR = 8766.0
SETS = 3


def of_answers(answers: list[Any]) -> Rule:
    """A rule whose one parameter is the place of its answer."""
    return Rule(
        "answers", lambda candles, which: answers[which], lambda *_, **__: "", lambda which: 1,
        {"which": Parameter(0, 0, len(answers) - 1, tuple(range(len(answers))))}, ("which", "which"), "",
    )  # fmt: skip


@settings(max_examples=12, deadline=None, derandomize=True)
@given(scenarios(), st.data())
def test_a_sweep_is_many_runs(scenario: Scenario, data: st.DataObject) -> None:
    symbol, candles = next(iter(scenario.candles.items()))
    funding = None if scenario.funding is None else scenario.funding[symbol]
    first = data.draw(st.integers(0, len(candles) - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    kinds = ["stop_price", "edge"] if scenario.rules.limits.min_edge else ["stop_price"]
    answers: list[Decisions] = [decisions(rng, candles, scenario.scale, kinds) for _ in range(SETS - 1)]
    answers.append(scenario.decisions[symbol])
    sets = [{"which": which} for which in rng.permutation(SETS).tolist()]
    found = sweep_returns(
        candles, of_answers(answers), sets, scenario.rules, PER_YEAR, first=first, threads=2, funding=funding,
        buckets=3,
    )  # fmt: skip
    for row, each in enumerate(sets):
        result = run(
            candles.iloc[first:],
            after(answers[each["which"]], first),
            scenario.rules,
            funding=None if funding is None else funding[first:],
            bars_per_year=PER_YEAR,
        )
        np.testing.assert_equal(found.figures.loc[row].to_dict(), {**each, **summarise(result, PER_YEAR)})
        compounded = (1 + found.returns.iloc[:, row]).prod() - 1
        assert compounded == pytest.approx(result.total_return, rel=1e-9, abs=1e-12)


@pytest.fixture(scope="module")
def hours() -> pd.DataFrame:
    return market(1_500, 3)


@pytest.mark.parametrize("name", ["sma_cross", "breakout"])
def test_rules_with_their_defaults_and_threads_that_change_nothing(name: str, hours: pd.DataFrame) -> None:
    rules = Rules(Costs(0.0005, 0.0002), protection=Protection(take_profit=0.08))
    sets = [{}, *parameter_sets(RULES[name])[:7]]
    one, many = (sweep_returns(hours, RULES[name], sets, rules, PER_YEAR, threads=threads) for threads in (1, 4))
    pd.testing.assert_frame_equal(one.figures, many.figures, check_exact=True)
    pd.testing.assert_frame_equal(one.returns, many.returns, check_exact=True)
    pd.testing.assert_frame_equal(sweep(hours, RULES[name], sets, rules, PER_YEAR), one.figures, check_exact=True)
    defaults = RULES[name].defaults
    expected = {**defaults, **summarise(run(hours, RULES[name](hours), rules, bars_per_year=PER_YEAR), PER_YEAR)}
    np.testing.assert_equal(one.figures.loc[0].to_dict(), expected)
    assert one.figures["trades"].min() > 0
    assert one.returns.columns[0].startswith(f"{name}({next(iter(defaults))}=")


def test_returns_of_as_many_buckets_as_bars_are_those_of_the_bars(hours: pd.DataFrame) -> None:
    rules = Rules(Costs(0.0005, 0.0))
    found = sweep_returns(hours, RULES["macd"], [{}], rules, PER_YEAR, buckets=len(hours))
    result = run(hours, RULES["macd"](hours), rules)
    np.testing.assert_array_equal(found.returns.iloc[:, 0], bar_returns(result.equity.to_numpy(), rules.cash))
    assert found.returns.index.equals(hours.index)


def test_buckets_are_equally_long_in_time_and_empty_ones_are_left_out(hours: pd.DataFrame) -> None:
    # 1,500 hours with a hole from the 300th to the 900th; buckets of 150 hours
    torn = pd.concat([hours.iloc[:300], hours.iloc[900:]])
    found = sweep_returns(torn, RULES["rsi"], [{}], Rules(), PER_YEAR, buckets=10)
    assert found.returns.index.tolist() == hours.index[[149, 299, 1049, 1199, 1349, 1499]].tolist()
    equity = run(torn, RULES["rsi"](torn), Rules()).equity
    marks = np.append(Rules().cash, equity.loc[found.returns.index])
    np.testing.assert_allclose(found.returns.iloc[:, 0], marks[1:] / marks[:-1] - 1, rtol=1e-12)


def test_nothing_is_earned_after_ruin(hours: pd.DataFrame) -> None:
    crash = hours.assign(open=1.0, high=1.0, low=1.0, close=1.0)
    crash.iloc[500:] *= 1000
    found = sweep_returns(crash, of_answers([np.full(1_500, -1.0), np.zeros(1_500)]), [{"which": 0}, {"which": 1}],
                          Rules(), PER_YEAR, buckets=6)  # fmt: skip
    assert found.returns.iloc[:, 0].tolist()[2:] == [-1, 0, 0, 0]
    assert found.returns.iloc[:, 1].tolist() == [0] * 6
    assert found.figures["total_return"].tolist() == [-1, 0]


def test_the_returns_are_what_the_overfitting_statistics_take(hours: pd.DataFrame) -> None:
    sets = parameter_sets(RULES["bollinger"])
    found = sweep_returns(hours, RULES["bollinger"], sets, Rules(Costs(0.0, 0.0)), PER_YEAR, buckets=200)
    assert found.returns.shape == (200, len(sets))
    assert np.isfinite(found.returns.to_numpy()).all()
    assert 0 <= overfitting_probability(found.returns.to_numpy(), blocks=4).probability <= 1


def test_memory_does_not_grow_with_the_sets() -> None:
    candles = market(20_000, 1)
    sets = parameter_sets(RULES["sma_cross"], {"fast": [5, 10, 20], "slow": [50, 100, 200]})

    def peak(sets: list[dict[str, Any]]) -> int:
        tracemalloc.start()
        sweep(candles, RULES["sma_cross"], sets, Rules(), PER_YEAR, threads=1)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(sets[:1])
    assert peak(sets) < 1.3 * peak(sets[:1])


def test_what_makes_no_sense_is_refused_before_anything_runs(hours: pd.DataFrame) -> None:
    cross = RULES["sma_cross"]
    with pytest.raises(InvalidRequest, match="no parameter sets"):
        sweep(hours, cross, [], Rules(), PER_YEAR)
    with pytest.raises(InvalidRequest, match="no parameter 'speed'"):
        sweep(hours, cross, [{}, {"speed": 2}], Rules(), PER_YEAR)
    with pytest.raises(InvalidRequest, match="threads=0"):
        sweep(hours, cross, [{}], Rules(), PER_YEAR, threads=0)
    with pytest.raises(InvalidRequest, match="buckets=0"):
        sweep_returns(hours, cross, [{}], Rules(), PER_YEAR, buckets=0)
    with pytest.raises(InvalidRequest, match="bar 1500 of 1500"):
        sweep(hours, cross, [{}], Rules(), PER_YEAR, first=1_500)
    with pytest.raises(InvalidRequest, match="3 funding rates for 1500 candles"):
        sweep(hours, cross, [{}], Rules(), PER_YEAR, funding=np.zeros(3))
    with pytest.raises(CandleContractError, match="sma_cross"):
        sweep(hours.iloc[::-1], cross, [{}], Rules(), PER_YEAR)


def test_an_error_names_the_set(hours: pd.DataFrame) -> None:
    good, wild = np.zeros(1_500), np.full(1_500, 2.0)
    sets = [{"which": 0}, {"which": 1}]
    with pytest.raises(StrategyFailed, match=r"answers\(which=1\) gave targets 2.0 at"):
        sweep(hours, of_answers([good, wild]), sets, Rules(), PER_YEAR)
    with pytest.raises(StrategyFailed, match=r"answers\(which=1\) gave targets of shape \(3,\)"):
        sweep(hours, of_answers([good, good[:3]]), sets, Rules(), PER_YEAR)
    broken = replace(of_answers([good]), decide=lambda candles, which: 1 / 0)
    with pytest.raises(StrategyFailed, match=r"answers\(which=0\) failed on .*ZeroDivisionError"):
        sweep(hours, broken, sets[:1], Rules(), PER_YEAR)
