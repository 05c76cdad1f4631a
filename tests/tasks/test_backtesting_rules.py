"""The form of a backtest says what the engine takes, with the same defaults."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from pydantic import ValidationError

from flows import backtest_rules as forms
from tasks.backtest_requests import WalkForwardModel
from trading.backtest import rules
from trading.errors import InvalidRequest


@pytest.mark.parametrize(
    ("made", "usual"),
    [
        (forms.FurtherCosts().costs(0.001, 0.0005), rules.Costs()),
        (forms.SizingRules().sizing(), rules.Sizing()),
        (forms.ProtectionRules().protection(), rules.Protection()),
        (forms.LimitRules().limits(), rules.Limits()),
        (forms.ExecutionRules().execution(), rules.Execution()),
        (forms.Model().model(), WalkForwardModel()),
    ],
)
def test_an_empty_form_is_the_usual(made: Any, usual: Any) -> None:
    assert made == usual


@pytest.mark.parametrize(
    ("form", "kind", "elsewhere"),
    [
        (forms.FurtherCosts, rules.Costs, {"fee_rate", "slippage_rate"}),
        (forms.SizingRules, rules.Sizing, set()),
        (forms.ProtectionRules, rules.Protection, set()),
        # no strategy says which edge it expects
        (forms.LimitRules, rules.Limits, {"min_edge"}),
        (forms.ExecutionRules, rules.Execution, set()),
        (forms.Model, WalkForwardModel, set()),
        (forms.Tier, rules.FeeTier, set()),
    ],
)
def test_a_form_has_every_field(form: Any, kind: Any, elsewhere: set[str]) -> None:
    assert set(form.model_fields) | elsewhere == {one.name for one in dataclasses.fields(kind)}


def test_what_is_filled_in_arrives() -> None:
    tier = {"traded": 1e6, "maker": 0.0, "taker": 0.0004}
    costs = forms.FurtherCosts.model_validate({"maker_rate": 0.0002, "tiers": [tier], "spread": 0.001})
    made = costs.costs(0.002, 0.0)
    assert made == rules.Costs(0.002, 0.0, 0.0002, (rules.FeeTier(1e6, 0.0, 0.0004),), 0.001)
    sized = forms.SizingRules.model_validate({"risk": 0.01, "leverage": 3, "max_volume_share": 0.1}).sizing()
    assert (sized.risk, sized.leverage, sized.max_volume_share, sized.rebalance) == (0.01, 3, 0.1, math.inf)


@pytest.mark.parametrize(
    ("form", "values"),
    [
        (forms.FurtherCosts, {"spred": 0.1}),
        (forms.FurtherCosts, {"spread": 1.0}),
        (forms.SizingRules, {"fraction": 0.0}),
        (forms.ProtectionRules, {"stop_loss": -0.1}),
        (forms.LimitRules, {"max_positions": -1}),
        (forms.ExecutionRules, {"fill": "yesterday"}),
        (forms.Model, {"folds": 1}),
    ],
)
def test_what_the_form_cannot_mean_is_refused(form: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        form.model_validate(values)


def test_what_only_the_engine_can_judge_is_its_own_error() -> None:
    with pytest.raises(InvalidRequest, match="sizes in several ways"):
        forms.SizingRules(risk=0.01, volatility=0.2).sizing()
