"""Statistics of Sharpe ratios: published worked examples, other people's libraries, simulation, and laws."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trading.errors import InsufficientHistory, InvalidRequest
from trading.statistics import (
    annualised,
    deflated_sharpe,
    expected_max_sharpe,
    has_spread,
    min_backtest_years,
    min_track_record,
    moments,
    overfitting_probability,
    probabilistic_sharpe,
    sharpe_error,
    sharpe_ratio,
    superior_ability,
)

RETURNS = arrays(np.float64, st.integers(3, 40), elements=st.floats(-0.2, 0.2).map(lambda value: round(value, 6)))
RATIOS = st.floats(-1, 1)


# --- published worked examples -------------------------------------------------------------------


def test_deflated_sharpe_of_the_paper() -> None:
    """Bailey and López de Prado 2014, section "A numerical example": 2.5 a year over five years of 250 days."""
    given_ = {"sharpe": 2.5 / math.sqrt(250), "observations": 1250, "variance": 0.5 / 250}
    moments_ = {"skew": -3.0, "kurtosis": 10.0}
    assert expected_max_sharpe(100, 0.5 / 250) == pytest.approx(0.113172, abs=5e-7)
    assert deflated_sharpe(**given_, trials=100, **moments_) == pytest.approx(0.900397, abs=5e-7)
    assert deflated_sharpe(**given_, trials=46, **moments_) == pytest.approx(0.950502, abs=5e-7)
    assert deflated_sharpe(**given_, trials=88) == pytest.approx(0.950491, abs=5e-7)


def test_probabilistic_sharpe_of_the_paper() -> None:
    """Bailey and López de Prado 2012: two years of monthly returns, without and with their skew and kurtosis."""
    assert probabilistic_sharpe(0.458, 24) == pytest.approx(0.981675, abs=5e-7)
    assert probabilistic_sharpe(0.458, 24, skew=-2.448, kurtosis=10.164) == pytest.approx(0.913361, abs=5e-7)


@pytest.mark.parametrize(
    ("per_year", "skew", "kurtosis", "years"),
    [(250, 0, 3, 2.731), (52, 0, 3, 2.829), (12, 0, 3, 3.240), (12, -0.72, 5.78, 4.991)],
)
def test_min_track_record_of_the_paper(per_year: int, skew: float, kurtosis: float, years: float) -> None:
    """Bailey and López de Prado 2012: an annual Sharpe ratio of 2 against 1, at 95 %."""
    root = math.sqrt(per_year)
    found = min_track_record(2 / root, benchmark=1 / root, skew=skew, kurtosis=kurtosis)
    assert found / per_year == pytest.approx(years, abs=1e-3)


@pytest.mark.parametrize(("trials", "years"), [(7, 1.923), (10, 2.479), (45, 4.998), (100, 6.404)])
def test_min_backtest_of_the_paper(trials: int, years: float) -> None:
    """Bailey, Borwein, López de Prado and Zhu 2014: an annual Sharpe ratio of 1 by luck; 45 trials in five years."""
    assert min_backtest_years(trials) == pytest.approx(years, abs=1e-3)


def test_the_recorded_examples(shared: Path) -> None:
    known = json.loads((shared / "oracles" / "statistics.json").read_text())
    deflated, inputs = known["deflated_sharpe_2014"]["expected"], known["deflated_sharpe_2014"]["inputs"]
    year = inputs["per_year"]
    variance = inputs["variance_of_trial_sr_annual"] / year
    assert expected_max_sharpe(inputs["trials"], variance) == pytest.approx(deflated["sr0_daily"], abs=5e-7)
    found = deflated_sharpe(
        inputs["sr_annual"] / math.sqrt(year), inputs["observations"], trials=inputs["trials"], variance=variance,
        skew=inputs["skew"], kurtosis=inputs["kurtosis_raw"],
    )  # fmt: skip
    assert found == pytest.approx(deflated["dsr"], abs=5e-7)
    for name, years in known["minimum_backtest_length_years"]["expected"].items():
        assert min_backtest_years(int(name.removeprefix("trials_"))) == pytest.approx(years, abs=1e-3)
    cscv = known["pbo_cscv"]["expected"]
    noise = overfitting_probability(np.random.default_rng(11).standard_normal((960, 20)), 16)
    assert (len(noise.logits), noise.probability) == (cscv["splits"], pytest.approx(cscv["pbo"], rel=1e-12))
    returns = np.array([1, 10, -4, 2, 3, 2, 1, -10]) / 100
    expected = known["returns"]["expected"]["sharpe_annualised_252_ddof1"]
    assert annualised(sharpe_ratio(returns), 252) == pytest.approx(expected, rel=1e-12)


# --- other people's libraries --------------------------------------------------------------------


def test_moments_are_those_of_scipy() -> None:
    from scipy import stats

    values = np.random.default_rng(0).standard_t(5, 500) + 0.1
    found = moments(values)
    assert found.skew == pytest.approx(stats.skew(values), rel=1e-10)
    assert found.kurtosis == pytest.approx(stats.kurtosis(values, fisher=False), rel=1e-10)
    assert found.deviation == pytest.approx(stats.tstd(values), rel=1e-12)


def test_closed_forms_are_those_of_purgedcv() -> None:
    import purgedcv

    random = np.random.default_rng(1)
    values = random.normal(0.001, 0.01, 300)
    for trials in (1, 2, 50):
        theirs = purgedcv.deflated_sharpe_ratio_full(values, trials, 0.01)
        assert expected_max_sharpe(trials, 0.01) == pytest.approx(theirs.sr_star, rel=1e-12)
        # it takes the deviation with ddof 0 and corrects the moments' bias: given those, the formula is ours
        ours = deflated_sharpe(
            theirs.observed_sr, 300, trials=trials, variance=0.01, skew=theirs.skew, kurtosis=theirs.kurt
        )
        assert ours == pytest.approx(theirs.dsr, rel=1e-12)
        assert min_backtest_years(trials, 0.7) == pytest.approx(purgedcv.minimum_backtest_length(trials, 0.7))
    assert math.ceil(min_track_record(0.12, benchmark=0.05, skew=-0.5, kurtosis=5)) == (
        purgedcv.min_track_record_length(0.12, 0.05, 0.05, -0.5, 5)
    )


def test_overfitting_is_that_of_purgedcv_the_other_way_round() -> None:
    import purgedcv

    random = np.random.default_rng(2)
    for trials in (2, 6, 12):
        returns = random.standard_normal((96, trials)) + np.linspace(0, 0.2, trials)
        theirs = purgedcv.probability_of_backtest_overfitting(returns.T, n_splits=6)
        ours = overfitting_probability(returns, 6)
        assert ours.probability == pytest.approx(theirs.pbo)
        np.testing.assert_allclose(np.sort(ours.logits), np.sort(theirs.logits), atol=1e-12)


def test_superior_ability_is_that_of_arch_once_trials_are_studentised() -> None:
    from arch.bootstrap import SPA

    random = np.random.default_rng(7)
    # from good to hopeless: at these means the three ways to centre the resamples differ
    means = np.array([0.12, 0.05, -0.1, -0.15, -0.19, -1.0])
    wild = (random.standard_normal((150, 6)) + means) * np.geomspace(1, 20, 6)
    ours = superior_ability(wild, seed=5, block=4, draws=200)
    plain = SPA(np.zeros(150), -wild, block_size=4, reps=200, seed=5)
    plain.compute()
    scaled = SPA(np.zeros(150), -wild / np.sqrt(plain._loss_diff_var), block_size=4, reps=200, seed=5)
    scaled.compute()
    found = [(p * 201 - 1) / 200 for p in (ours.lower, ours.consistent, ours.upper)]
    assert found == pytest.approx(scaled.pvalues.tolist())
    assert ours.lower < ours.consistent < ours.upper
    # why arch's own test is not used: it does not divide by the deviations that it computes
    assert scaled.pvalues.tolist() != plain.pvalues.tolist()


# --- simulation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_the_standard_error_is_how_much_sharpe_ratios_scatter(shape: str) -> None:
    random = np.random.default_rng(4)
    if shape == "normal":
        returns, skew, kurtosis = random.normal(0.3, 1, (4000, 200)), 0.0, 3.0
    else:  # one less an exponential variable, so that gains are small and losses large
        returns, skew, kurtosis = 1.3 - random.exponential(1, (4000, 200)), -2.0, 9.0
    ratios = returns.mean(axis=1) / returns.std(axis=1, ddof=1)
    assert ratios.std() == pytest.approx(sharpe_error(0.3, 200, skew, kurtosis), rel=0.05)


def test_the_best_of_many_without_skill_shows_what_is_expected() -> None:
    best = np.random.default_rng(5).standard_normal((4000, 50)).max(axis=1).mean()
    assert expected_max_sharpe(50, 4.0) == pytest.approx(2 * best, rel=0.02)


def test_superior_ability_rejects_noise_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(6)
    found = [superior_ability(random.standard_normal((100, 5)), seed=at, draws=60).consistent for at in range(80)]
    assert 1 <= sum(p < 0.1 for p in found) <= 18
    skilled = random.standard_normal((200, 5)) + np.array([0, 0, 0.4, 0, -3])
    assert superior_ability(skilled, seed=1, draws=99).consistent == 0.01


def test_superior_ability_of_losers_is_none_at_all() -> None:
    losers = np.random.default_rng(7).standard_normal((100, 4)) - 2
    assert superior_ability(losers, seed=1, draws=50).consistent == 1.0


def test_a_real_edge_is_not_called_overfitting_and_a_curve_fit_is() -> None:
    random = np.random.default_rng(8)
    returns = random.standard_normal((320, 10))
    returns[:, 4] += 1.0
    assert overfitting_probability(returns, 8).probability == 0.0
    # each trial is good in one block and as bad in another: what was best before is the worst after
    bumps = np.kron(np.eye(8) - np.roll(np.eye(8), 1, axis=1), np.ones((40, 1)))
    found = overfitting_probability(0.1 * random.standard_normal((320, 8)) + bumps, 8)
    assert found.probability > 0.8
    assert found.loss > 0.8


# --- laws ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(RETURNS, st.floats(0.01, 100), RATIOS)
def test_ratios_do_not_depend_on_the_stake(returns: np.ndarray, stake: float, benchmark: float) -> None:
    found, scaled = moments(returns), moments(returns * stake)
    assert found.kurtosis >= (1 + found.skew**2) * (1 - 1e-9)
    if found.deviation == 0:
        assert math.isnan(sharpe_ratio(returns))
        return
    sharpe = sharpe_ratio(returns)
    assert sharpe_ratio(returns * stake) == pytest.approx(sharpe, rel=1e-6, abs=1e-9)
    assert (scaled.skew, scaled.kurtosis) == pytest.approx((found.skew, found.kurtosis), rel=1e-6, abs=1e-6)
    chance = probabilistic_sharpe(
        sharpe, found.count, benchmark=benchmark, skew=found.skew, kurtosis=found.kurtosis
    )  # fmt: skip
    assert 0 <= chance <= 1
    assert (chance >= 0.5) == (sharpe >= benchmark) or chance == pytest.approx(0.5)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 1), st.floats(-2, 2), st.floats(0, 10), st.floats(0.6, 0.99))
def test_the_track_record_is_just_long_enough(sharpe: float, skew: float, more: float, confidence: float) -> None:
    kurtosis = 1 + skew**2 + more
    length = min_track_record(sharpe, confidence=confidence, skew=skew, kurtosis=kurtosis)
    enough = max(math.ceil(length), 2)
    assert probabilistic_sharpe(sharpe, enough, skew=skew, kurtosis=kurtosis) >= confidence - 1e-9
    if enough > 2:
        assert probabilistic_sharpe(sharpe, enough - 1, skew=skew, kurtosis=kurtosis) < confidence + 1e-9
    assert min_track_record(-sharpe) == math.inf


@settings(max_examples=60, deadline=None)
@given(RATIOS, st.integers(2, 5000), st.integers(1, 500), st.floats(0, 0.1))
def test_more_trials_never_convince_more(sharpe: float, observations: int, trials: int, variance: float) -> None:
    fewer, more = (
        deflated_sharpe(sharpe, observations, trials=count, variance=variance) for count in (trials, trials + 1)
    )
    assert more <= fewer <= probabilistic_sharpe(sharpe, observations) + 1e-12


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(12, 60))
def test_overfitting_does_not_depend_on_order_or_stakes_of_the_trials(seed: int, trials: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    returns = random.standard_normal((rows, trials))
    found = overfitting_probability(returns, 4)
    mixed = overfitting_probability((returns * random.uniform(0.1, 10, trials))[:, random.permutation(trials)], 4)
    assert found.probability == mixed.probability
    assert 0 <= found.probability <= 1
    assert len(found.logits) == 6


def test_trials_that_rest_and_trials_that_are_the_same_are_ranked() -> None:
    returns = np.random.default_rng(9).standard_normal((80, 3))
    returns[:, 2] = 0
    returns[:40, 1] = 0
    assert 0 <= overfitting_probability(returns, 8).probability <= 1
    twins = np.repeat(returns[:, :1], 4, axis=1)
    assert overfitting_probability(twins, 8).probability == 1.0  # no better than the median


# --- refusals ------------------------------------------------------------------------------------


def test_a_transposed_matrix_is_refused() -> None:
    returns = np.random.default_rng(10).standard_normal((100, 7))
    for ask in (lambda given_: overfitting_probability(given_, 8), lambda given_: superior_ability(given_, seed=0)):
        ask(returns)
        with pytest.raises(InvalidRequest, match="transpose"):
            ask(returns.T)


def test_excess_kurtosis_is_noticed_where_it_can_be() -> None:
    with pytest.raises(InvalidRequest, match="excess kurtosis"):
        probabilistic_sharpe(0.1, 100, skew=0.0, kurtosis=0.0)


def test_nonsense_is_refused() -> None:
    good = np.random.default_rng(11).standard_normal((100, 3))
    holed = good.copy()
    holed[3, 1] = np.nan
    for wrong in (
        lambda: moments(np.array([0.1])),
        lambda: moments(np.array([0.1, np.inf])),
        lambda: sharpe_error(0.1, 1),
        lambda: expected_max_sharpe(0),
        lambda: expected_max_sharpe(5, -1.0),
        lambda: min_track_record(0.1, confidence=0.5),
        lambda: min_backtest_years(10, 0.0),
        lambda: overfitting_probability(good, 7),
        lambda: overfitting_probability(good[:, :1], 8),
        lambda: overfitting_probability(good[:, 0], 8),
        lambda: overfitting_probability(holed, 8),
        lambda: superior_ability(holed, seed=0),
        lambda: superior_ability(good, seed=0, block=100),
        lambda: superior_ability(good * [1, 1, 0], seed=0),
    ):
        with pytest.raises(InvalidRequest):
            wrong()
    for short in (lambda: overfitting_probability(good[:30], 16), lambda: superior_ability(good[:19], seed=0)):
        with pytest.raises(InsufficientHistory):
            short()


def test_rounding_is_no_spread() -> None:
    assert has_spread(np.array([[0.1, 0.1], [0.1, 0.2], [0.1, 0.3]])).tolist() == [False, True]
    assert math.isnan(sharpe_ratio(np.full(7, 0.1)))
