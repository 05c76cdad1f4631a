"""The compiled kernel against the slow reference, on generated markets, decisions and rules."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.trading.backtest.markets import Scenario, scenarios
from tests.trading.backtest.reference import assert_same, simulate
from trading.backtest.engine import run_portfolio


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
