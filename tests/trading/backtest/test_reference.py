"""The compiled kernel against the slow reference, on generated markets, decisions and rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trading.backtest.markets import HOUR, Scenario, candles, costs, executions, protections, scenarios
from tests.trading.backtest.reference import assert_same, simulate
from trading.backtest.engine import Costs, Execution, Protection, Rules, Sizing, run, run_portfolio
from trading.backtest.kernel import TOGETHER
from trading.candles import frame_of


def agree(scenario: Scenario) -> None:
    result = run_portfolio(scenario.candles, scenario.decisions, scenario.rules, funding=scenario.funding)
    assert_same(result, simulate(scenario.candles, scenario.decisions, scenario.rules, scenario.funding))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(scenarios())
def test_the_kernel_is_the_reference_only_faster(scenario: Scenario) -> None:
    agree(scenario)


@pytest.mark.integration
@settings(max_examples=3000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(scenarios())
def test_the_kernel_is_the_reference_on_thousands_of_markets(scenario: Scenario) -> None:
    agree(scenario)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.integers(1, 12 * TOGETHER), st.integers(0, 2**32 - 1), costs, protections, executions, st.sampled_from([1, 8])
)
def test_bars_in_which_nothing_happens_are_skipped_only_to_be_faster(
    bars: int, seed: int, costs: Costs, protection: Protection, execution: Execution, leverage: int
) -> None:
    """Funding of nothing keeps the kernel from skipping; stays of all lengths begin and end anywhere in a step."""
    rng = np.random.default_rng(seed)
    market = candles(rng, bars, HOUR, 1.0, 0.0, 100.0)
    # the higher the prices, the less they move, and the longer stops leave positions alone
    market[["open", "high", "low", "close"]] += rng.choice([0.0, 192.0, 960.0])
    stays = rng.geometric(rng.choice([0.01, 0.03, 0.3]), bars)
    targets = np.repeat(rng.choice([-1.0, 0.0, 0.5, 1.0], bars), stays)[:bars]
    rules = Rules(
        replace(costs, tiers=()),
        Sizing(fraction=leverage, leverage=leverage),
        protection,
        execution=execution,
        cash=1024.0,
    )
    skipped = run(market, targets, rules)
    counted = run(market, targets, rules, funding=np.zeros(bars))
    for each in ("equity", "cash", "positions", "trade_rows", "fill_rows"):
        np.testing.assert_array_equal(np.asarray(getattr(skipped, each)), np.asarray(getattr(counted, each)))


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("reason", ["stop loss", "take profit"])
def test_a_level_that_is_touched_to_the_tick_ends_a_long_quiet_position(side: float, reason: str) -> None:
    bars = 3 * TOGETHER
    up = (side > 0) == (reason == "take profit")
    for touched in range(2, bars):
        values = np.full((bars, 5), 1024.0)
        values[touched, 1 if up else 2] += 64.0 if up else -64.0
        market = frame_of(1_704_067_200_000 + HOUR * np.arange(bars), values)
        rules = Rules(Costs(0.0, 0.0), Sizing(units=0.5), Protection(stop_loss=0.0625, take_profit=0.0625))
        trades = run(market, np.full(bars, side), rules).trades
        assert trades["exit_bar"].tolist() == [touched]
        assert trades["exit_reason"].tolist() == [reason]
