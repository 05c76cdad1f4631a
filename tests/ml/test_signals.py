"""The signal rule: by hand at its borders."""

from __future__ import annotations

import numpy as np
import pytest

from ml.signals import SignalRule, default_rule, signals
from trading.errors import InvalidRequest

RULE = SignalRule(min_edge=0.125, min_long=0.375, min_short=0.25)


@pytest.mark.parametrize(
    ("probabilities", "signal"),
    [
        ((0.25, 0.375, 0.375), 1),  # lead and minimum just reached, Neutral as likely
        ((0.26, 0.365, 0.375), 0),  # lead too small
        ((0.10, 0.53, 0.37), 0),  # minimum missed
        ((0.25, 0.625, 0.125), -1),  # short has a minimum of its own
        ((0.24, 0.66, 0.10), 0),
        ((0.40, 0.20, 0.40), 0),
        ((np.nan, np.nan, np.nan), 0),
    ],
)
def test_by_hand(probabilities: tuple[float, float, float], signal: int) -> None:
    found = signals(np.array([probabilities]), RULE)
    assert found.tolist() == [signal]
    assert found.dtype == np.int8


def test_without_any_lead_there_is_no_direction() -> None:
    assert signals(np.array([[0.4, 0.2, 0.4]]), SignalRule(0, 0, 0)).tolist() == [0]


def test_the_default_asks_for_more_than_the_priors_and_never_for_certainty() -> None:
    rule = default_rule(np.array([-1] * 30 + [0] * 20 + [1] * 50))
    assert rule.min_short == pytest.approx(0.33)
    assert rule.min_long == pytest.approx(0.55)
    assert signals(np.array([[0.3, 0.2, 0.5]]), rule).tolist() == [0]  # the priors themselves are no news
    assert default_rule(np.ones(10)).min_long == 0.9
    assert default_rule(np.empty(0)).min_long == 0.9


def test_definitions() -> None:
    assert SignalRule.from_definition(RULE.definition()) == RULE
    with pytest.raises(InvalidRequest):
        SignalRule.from_definition({"min_edge": 0})
    with pytest.raises(InvalidRequest, match="min_edge=nan"):
        SignalRule(float("nan"), 0, 0)
    with pytest.raises(InvalidRequest, match="min_long"):
        SignalRule(0, 1.5, 0)
