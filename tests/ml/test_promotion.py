"""Promotion: closed unless the evidence opens it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ml.estimators import BASELINES
from ml.evaluation import FoldScore, Scores
from ml.promotion import Evidence, PromotionRule, RiskRule, Unscored, decide, paired_gain
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
# what the losses alone say
LOSSES = PromotionRule(min_net_return=None, risk=None)
SOUND = Evidence(
    total_return=0.2, sharpe=1.1, sharpe_error=0.4, drawdown=0.1, turnover=30.0, trades=120,
    deflated_sharpe=0.97, pbo=0.1, spa_p_value=0.03,
)  # fmt: skip


def test_the_first_model_that_beats_the_baseline_is_promoted() -> None:
    decision = decide(_scores("lightgbm", 0.9, 0.95, 0.9, 1.01), BASE, None, LOSSES)
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
    decision = decide(_scores("lightgbm", *losses), BASE, None, LOSSES)
    assert not decision.promote
    assert said in decision.reasons[0]


def test_the_gain_on_the_champion_must_exceed_its_standard_error() -> None:
    champion = _scores("logistic", 0.92, 0.93, 0.94, 0.95)
    steady, noisy = _scores("lightgbm", 0.90, 0.92, 0.91, 0.94), _scores("lightgbm", 0.70, 0.97, 0.97, 0.98)
    gain, error = paired_gain(steady, champion)
    gains = np.array([0.02, 0.01, 0.03, 0.01])
    assert (gain, error) == pytest.approx((gains.mean(), stats.sem(gains)))
    assert decide(steady, BASE, champion, LOSSES).promote
    decision = decide(noisy, BASE, champion, LOSSES)
    assert paired_gain(noisy, champion)[0] > 0  # better on the mean, by one fold
    assert not decision.promote
    assert "standard error" in decision.reasons[0]
    assert not decide(steady, BASE, champion, replace(LOSSES, min_gain_errors=4)).promote
    assert not decide(steady, BASE, champion, replace(LOSSES, min_gain=0.03)).promote
    worse = decide(champion, BASE, steady, LOSSES)
    assert not worse.promote
    assert "gain -0.01750" in worse.reasons[0]


def test_a_single_fold_shows_no_gain() -> None:
    base, champion = _scores("baseline", 1.0), _scores("logistic", 0.9)
    assert decide(_scores("lightgbm", 0.5), base, None, LOSSES).promote
    assert not decide(_scores("lightgbm", 0.5), base, champion, LOSSES).promote


def test_the_champions_own_recipe_may_follow_it_and_another_as_good_may_not() -> None:
    same = _scores("lightgbm", 0.9, 0.91, 0.92, 0.93)
    assert decide(same, BASE, same, LOSSES).promote
    assert not decide(same, BASE, same, replace(LOSSES, refresh=False)).promote
    assert not decide(same, BASE, _scores("logistic", 0.9, 0.91, 0.92, 0.93), LOSSES).promote


def test_better_on_its_own_windows_and_not_on_the_shared_ones_is_rejected() -> None:
    champion = _scores("logistic", 0.92, 0.93, 0.92, 0.93)
    own, shared = _scores("lightgbm", 0.5, 0.5, 0.5, 0.5, end=99), _scores("lightgbm", 0.93, 0.94, 0.93, 0.95)
    for rule in (None, LOSSES):
        assert not decide(own, BASE, champion, rule, evidence=SOUND).promote
        assert not decide(own, _scores("baseline", 1, 1, 1, 1, end=99), champion, rule, evidence=SOUND).promote
        assert not decide(shared, BASE, champion, rule, evidence=SOUND).promote


def test_a_champion_without_scores_is_not_passed() -> None:
    decision = decide(_scores("lightgbm", 0.5, 0.5, 0.5, 0.5), BASE, Unscored("its recipe is unknown"), LOSSES)
    assert not decision.promote
    assert "its recipe is unknown" in decision.reasons[0]


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


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_a_baseline_is_never_promoted(name: str) -> None:
    good = (0.5, 0.5, 0.5, 0.5)
    assert decide(_scores("lightgbm", *good), BASE, None, LOSSES).promote
    assert not decide(_scores(name, *good), BASE, None, LOSSES).promote
    assert not decide(_scores("lightgbm", *good), _scores("logistic", 1, 1, 1, 1), None, LOSSES).promote


def test_earnings_after_costs_can_be_asked_for() -> None:
    rule = PromotionRule(min_net_return=0.0, risk=None)
    assert decide(_scores("lightgbm", 0.9, 0.9, 0.9, 0.9, net=0.001), BASE, None, rule).promote
    poor = decide(_scores("lightgbm", 0.9, 0.9, 0.9, 0.9, net=-0.001), BASE, None, rule)
    assert not poor.promote
    assert "-0.1000% per signal" in poor.reasons[0]
    assert not decide(_scores("lightgbm", 0.9, 0.9, 0.9, 0.9), BASE, None, rule).promote  # no signals, no evidence


def test_the_gate_is_closed_by_default_and_sound_evidence_opens_it() -> None:
    challenger = _scores("lightgbm", 0.9, 0.9, 0.9, 0.9, net=0.001)
    assert decide(challenger, BASE, None, evidence=SOUND).promote
    unknown = decide(challenger, BASE, None)
    assert not unknown.promote
    assert "total return is not known, needed at least 0" in unknown.reasons


@pytest.mark.parametrize(
    ("figure", "bad"),
    [
        ("total_return", -0.01),
        ("drawdown", 0.51),
        ("drawdown", -0.3),  # another convention
        ("trades", 19),
        ("deflated_sharpe", 0.4),
        ("pbo", 0.6),
        ("spa_p_value", 0.06),
    ],
)
def test_each_limit_of_risk_closes_the_gate(figure: str, bad: float) -> None:
    challenger = _scores("lightgbm", 0.9, 0.9, 0.9, 0.9, net=0.001)
    rule = PromotionRule(risk=RiskRule(max_spa_p_value=0.05))
    assert decide(challenger, BASE, None, rule, evidence=SOUND).promote
    for value in (bad, None, math.nan, math.inf, -math.inf):
        decision = decide(challenger, BASE, None, rule, evidence=replace(SOUND, **{figure: value}))
        assert not decision.promote
        assert decision.reasons[0].startswith(figure.replace("_", " "))


def test_a_much_deeper_drawdown_than_the_champions_closes_the_gate() -> None:
    challenger = _scores("lightgbm", 0.9, 0.9, 0.9, 0.9, net=0.001)
    champion = _scores("logistic", 0.95, 0.95, 0.95, 0.95)
    calm, wild = replace(SOUND, drawdown=0.05), replace(SOUND, drawdown=0.3)
    assert decide(challenger, BASE, champion, evidence=wild, champion_evidence=wild).promote
    decision = decide(challenger, BASE, champion, evidence=wild, champion_evidence=calm)
    assert not decision.promote
    assert decision.reasons[0] == "drawdown beside the champion's 0.3, needed at most 0.15"
    assert not decide(
        challenger, BASE, champion, evidence=SOUND, champion_evidence=replace(SOUND, drawdown=math.nan)
    ).promote


FIGURE = st.none() | st.floats(allow_nan=True, allow_infinity=True)


@given(evidence=st.builds(Evidence, *[FIGURE] * 9))
def test_whatever_passes_the_default_gate_is_within_every_limit(evidence: Evidence) -> None:
    challenger = _scores("lightgbm", 0.9, 0.9, 0.9, 0.9, net=0.001)
    limits = RiskRule()
    known = {name: getattr(evidence, name) for name in ("total_return", "drawdown", "trades", "deflated_sharpe", "pbo")}
    sound = all(value is not None and math.isfinite(value) for value in known.values()) and (
        known["total_return"] >= limits.min_total_return
        and 0 <= known["drawdown"] <= limits.max_drawdown
        and known["trades"] >= limits.min_trades
        and known["deflated_sharpe"] >= limits.min_deflated_sharpe
        and 0 <= known["pbo"] <= limits.max_pbo
    )
    assert decide(challenger, BASE, None, evidence=evidence).promote == sound


@given(
    mine=st.lists(st.floats(0.1, 3), min_size=3, max_size=3),
    champions=st.lists(st.floats(0.1, 3), min_size=3, max_size=3),
)
def test_whatever_is_promoted_is_better_than_both(mine: list[float], champions: list[float]) -> None:
    baseline, challenger, champion = _scores("baseline", 1, 1, 1), _scores("x", *mine), _scores("y", *champions)
    if decide(challenger, baseline, champion, LOSSES).promote:
        assert challenger.log_loss < baseline.log_loss
        assert challenger.log_loss < champion.log_loss
        assert sum(loss < 1 for loss in mine) >= 2


@pytest.mark.parametrize(
    "rule",
    [
        lambda: PromotionRule(min_skill=-1),
        lambda: PromotionRule(min_gain_errors=math.inf),
        lambda: PromotionRule(min_net_return=math.nan),
        lambda: RiskRule(max_drawdown=math.nan),
    ],
)
def test_rules_out_of_range_are_refused(rule: Callable[[], object]) -> None:
    with pytest.raises(InvalidRequest):
        rule()
