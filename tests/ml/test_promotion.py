"""Promotion: closed unless the evidence opens it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.evaluation import FoldScore, Scores
from ml.promotion import PromotionRule, decide
from trading.errors import InvalidRequest


def _scores(name: str, *losses: float, end: int = 100, net: float | None = None) -> Scores:
    return Scores(
        name,
        tuple(
            FoldScore(name, at, at, at + end, 50, 50, loss, 0.5, None, None, net, 0 if net is None else 10)
            for at, loss in enumerate(losses, start=1)
        ),
    )


BASE = _scores("baseline", 1.0, 1.0, 1.0, 1.0)


def test_the_first_model_that_beats_the_baseline_is_promoted() -> None:
    decision = decide(_scores("lightgbm", 0.9, 0.95, 0.9, 1.01), BASE, None)
    assert decision.promote
    assert any("3 of 4 folds" in reason for reason in decision.reasons)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ((1.1, 1.1, 1.1, 1.1), "skill -10.00%"),
        ((1.0, 1.0, 1.0, 1.0), "skill +0.00%"),
        ((0.999, 0.999, 0.999, 0.999), "skill +0.10%, needed 0.20%"),  # margin
        ((0.5, 1.001, 1.001, 1.001), "1 of 4 folds"),  # one lucky fold
        ((0.9, 0.9, 1.0, 1.0), "2 of 4 folds"),  # half is no majority
        ((float("nan"), 0.5, 0.5, 0.5), "not all finite"),
        ((0.0, 0.0, 0.0, 0.0), "not all finite and positive"),
    ],
)
def test_too_little_evidence_promotes_nothing_and_says_why(losses: tuple[float, ...], said: str) -> None:
    decision = decide(_scores("lightgbm", *losses), BASE, None)
    assert not decision.promote
    assert said in decision.reasons[0]


def test_a_champion_must_not_be_better() -> None:
    challenger = _scores("lightgbm", 0.9, 0.9, 0.9, 0.9)
    assert decide(challenger, BASE, _scores("logistic", 0.9, 0.9, 0.9, 0.9)).promote
    better = _scores("logistic", 0.89, 0.9, 0.9, 0.9)
    decision = decide(challenger, BASE, better)
    assert not decision.promote
    assert "champion" in decision.reasons[0]
    assert decide(challenger, BASE, better, PromotionRule(champion_slack=0.01)).promote


def test_scores_over_other_rows_are_not_compared() -> None:
    challenger = _scores("lightgbm", 0.9, 0.9, 0.9, 0.9)
    for baseline, champion in (
        (_scores("baseline", 1, 1, 1, 1, end=99), None),
        (_scores("baseline", 1, 1, 1), None),
        (BASE, _scores("logistic", 0.95, 0.95, 0.95)),
    ):
        decision = decide(challenger, baseline, champion)
        assert not decision.promote
        assert "same test rows" in decision.reasons[0]


def test_the_baseline_itself_is_never_promoted() -> None:
    assert not decide(_scores("baseline", 0.9, 0.9, 0.9, 0.9), BASE, None).promote
    assert not decide(_scores("lightgbm", 0.9, 0.9, 0.9, 0.9), _scores("logistic", 1, 1, 1, 1), None).promote


def test_earnings_after_costs_can_be_asked_for() -> None:
    rule = PromotionRule(min_net_return=0.0)
    assert decide(_scores("lightgbm", 0.9, 0.9, 0.9, 0.9, net=0.001), BASE, None, rule).promote
    poor = decide(_scores("lightgbm", 0.9, 0.9, 0.9, 0.9, net=-0.001), BASE, None, rule)
    assert not poor.promote
    assert "-0.1000% per signal" in poor.reasons[0]
    assert not decide(_scores("lightgbm", 0.9, 0.9, 0.9, 0.9), BASE, None, rule).promote  # no signals, no evidence


@given(
    mine=st.lists(st.floats(0.1, 3), min_size=3, max_size=3),
    champions=st.lists(st.floats(0.1, 3), min_size=3, max_size=3),
)
def test_whatever_is_promoted_is_better_than_both(mine: list[float], champions: list[float]) -> None:
    baseline, challenger, champion = _scores("baseline", 1, 1, 1), _scores("x", *mine), _scores("y", *champions)
    if decide(challenger, baseline, champion).promote:
        assert challenger.log_loss < baseline.log_loss
        assert challenger.log_loss <= champion.log_loss
        assert sum(loss < 1 for loss in mine) >= 2


def test_rules_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        PromotionRule(min_skill=-1)
