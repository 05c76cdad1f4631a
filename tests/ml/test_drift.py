"""Drift: quiet markets stay quiet, planted drift is found, and the hit-rate test keeps its word."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ml.drift import LEAST_WINDOWS, SHORTEST, reference
from ml.hits import HOLDING, TOO_FEW, WORSE, Trials, performance, trials_of
from ml.monitoring import DRIFTED, STABLE, UNKNOWN, DriftRule, Verdict, judge
from ml.stability import counts_of, edges_of, expected_shares, null_mean, null_quantile, psi
from trading.errors import InvalidRequest

NAMES = tuple(f"f{at}" for at in range(10))
RULE = DriftRule()
NONE = Trials(0, 0)


def persistent(rng: np.random.Generator, rows: int, columns: int, memory: float) -> np.ndarray:
    """Standard normal columns, each row like the one before it with this correlation."""
    shocks = rng.normal(size=(rows + 300, columns)) * np.sqrt(1 - memory**2)
    for at in range(1, len(shocks)):
        shocks[at] += memory * shocks[at - 1]
    return shocks[300:]


def spoken(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weights = np.exp(0.5 * np.column_stack([-z, np.zeros(len(z)), z]))
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    lead = probabilities[:, 2] - probabilities[:, 0]
    return probabilities, (np.sign(lead) * (np.abs(lead) > 0.2)).astype(np.int8)


@cache
def trained(memory: float) -> dict[str, Any]:
    rows = persistent(np.random.default_rng(1), 9000, len(NAMES) + 1, memory)
    made = reference(rows[:, :-1], NAMES, *spoken(rows[:, -1]), Trials(330, 600))
    return json.loads(json.dumps(made))  # as it comes back from its file


def seen(memory: float, rows: int, seed: int, *, scale: float = 1.0, tilt: float = 0.0, one: float = 0.0) -> Verdict:
    live = persistent(np.random.default_rng([2, seed]), rows, len(NAMES) + 1, memory) * scale
    live[:, 0] += one
    return judge(trained(memory), live[:, :-1], NAMES, *spoken(live[:, -1] + tilt), NONE, RULE)


@pytest.mark.parametrize(("memory", "rows"), [(0.0, 48), (0.9, 48), (0.9, 250), (0.97, 48)])
def test_no_drift_hardly_ever_cries_wolf(memory: float, rows: int) -> None:
    alarms = sum(seen(memory, rows, seed).retrain for seed in range(100))
    # two groups of columns, each of which may be wrong about one quiet window in a hundred
    assert alarms <= 5


def test_the_textbook_threshold_would_cry_wolf_on_the_same_rows() -> None:
    verdicts = [seen(0.9, 48, seed) for seed in range(20)]
    assert all(any(column.psi > RULE.large for column in verdict.columns) for verdict in verdicts)


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_planted_drift_is_found_and_named(memory: float) -> None:
    wild = [seen(memory, 250, seed, scale=3) for seed in range(20)]
    assert all(verdict.retrain and verdict.state == DRIFTED for verdict in wild)
    assert all("drifted: f" in verdict.reasons[0] for verdict in wild)
    tilted = [seen(memory, 250, seed, tilt=2.5) for seed in range(20)]
    assert all(verdict.predictions_drifted and not verdict.features_drifted for verdict in tilted)


def test_one_feature_among_many_is_enough() -> None:
    assert {seen(0.9, 250, seed, one=3.0).features_drifted for seed in range(10)} == {("f0",)}


def test_a_long_window_is_judged_by_its_newest_rows() -> None:
    longest = trained(0.9)["features"][0]["lengths"][-1]
    rng = np.random.default_rng(3)
    quiet = persistent(rng, 2 * longest, len(NAMES), 0.9)
    both = np.concatenate([quiet, 3 * persistent(rng, longest, len(NAMES), 0.9)])
    verdicts = [
        judge(trained(0.9), rows, NAMES, *spoken(quiet[: len(rows), 0]), NONE, RULE) for rows in (both, both[-longest:])
    ]
    assert verdicts[0].features_drifted
    assert verdicts[0].features_drifted == verdicts[1].features_drifted


def test_too_little_is_unknown_by_name() -> None:
    verdict = seen(0.0, RULE.minimum_rows - 1, 0)
    assert (verdict.state, verdict.retrain, verdict.columns) == (UNKNOWN, False, ())
    assert verdict.reasons[0] == "features: too few live rows to say, 23 of at least 24"
    assert TOO_FEW in verdict.reasons[2]
    short = SHORTEST * LEAST_WINDOWS - 1
    x = np.random.default_rng(1).normal(size=(short, 1))
    small = reference(x, ("a",), *spoken(x[:, 0]), NONE)
    found = judge(small, x, ("a",), *spoken(x[:, 0]), NONE, RULE)
    assert found.state == UNKNOWN
    assert "the training had 719 rows and 720 are needed to know what is usual" in found.reasons[0]


def test_a_bad_hit_rate_alone_is_a_reason_to_train() -> None:
    live = persistent(np.random.default_rng(5), 100, len(NAMES) + 1, 0.0)
    arguments = (trained(0.0), live[:, :-1], NAMES, *spoken(live[:, -1]))
    verdict = judge(*arguments, Trials(15, 50), RULE)
    assert (verdict.state, verdict.retrain) == (DRIFTED, True)
    assert verdict.features_drifted == verdict.predictions_drifted == ()
    assert "15 of 50 live trials hit, 330 of 600 out of sample" in verdict.reasons[2]
    assert judge(*arguments, Trials(27, 50), RULE).state == STABLE


def test_predictions_drift_when_they_are_unlike_the_folds_and_unlike_the_final_model() -> None:
    rng = np.random.default_rng(6)
    x = persistent(rng, 4000, 1, 0.5)
    # the final model speaks more boldly than those of the folds
    folds, own = spoken(x[:2000, 0] - 1.5), spoken(x[:, 0])
    both = reference(x, ("a",), *folds, NONE, own=own)
    alone = reference(x, ("a",), *folds, NONE)
    live = persistent(rng, 60, 1, 0.5)
    said = spoken(live[:, 0])
    assert judge(alone, live, ("a",), *said, NONE, RULE).predictions_drifted
    assert not judge(both, live, ("a",), *said, NONE, RULE).predictions_drifted
    assert judge(both, live, ("a",), *spoken(live[:, 0] + 3), NONE, RULE).predictions_drifted


def test_the_calendar_moves_by_itself() -> None:
    x = np.column_stack([np.random.default_rng(7).normal(size=2000), np.zeros(2000)])
    made = reference(x, ("a", "month"), *spoken(x[:, 0]), NONE)
    live = x[:60] + np.array([0.0, 1.0])
    assert judge(made, live, ("a", "month"), *spoken(live[:, 0]), NONE, RULE).features_drifted == ("month",)
    found = judge(made, live, ("a", "month"), *spoken(live[:, 0]), NONE, RULE, calendar={"month"})
    assert (found.features_drifted, "month" in {column.name for column in found.columns}) == ((), False)


def test_what_does_not_fit_is_refused() -> None:
    live = np.zeros((50, len(NAMES)))
    said = spoken(np.zeros(50))
    with pytest.raises(InvalidRequest, match="schema 7"):
        judge({**trained(0.0), "schema": 7}, live, NAMES, *said, NONE, RULE)
    with pytest.raises(InvalidRequest, match="the live rows g0"):
        judge(trained(0.0), live[:, :1], ("g0",), *said, NONE, RULE)
    live[3, 4] = np.nan
    with pytest.raises(InvalidRequest, match="f4 holds values that are not finite"):
        judge(trained(0.0), live, NAMES, *said, NONE, RULE)
    with pytest.raises(InvalidRequest, match="0 <= moderate <= large"):
        DriftRule(moderate=0.3, large=0.2)


# --- the index -----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 300), min_size=2, max_size=12).filter(any), st.integers(1, 1000))
def test_psi_is_never_negative_and_zero_for_the_same_shares(counts: list[int], factor: int) -> None:
    shares = expected_shares(np.array(counts))
    assert shares.sum() == pytest.approx(1)
    assert (shares > 0).all()
    assert float(psi(shares, shares * factor)) == pytest.approx(0, abs=1e-12)
    assert float(psi(shares, np.array(counts[::-1]))) >= 0


def test_psi_is_the_textbook_sum_where_bins_are_full() -> None:
    expected, actual = np.array([0.2, 0.3, 0.5]), np.array([0.3, 0.3, 0.4])
    textbook = 0.1 * np.log(1.5) + 0.1 * np.log(1.25)
    assert float(psi(expected, actual * 1e9)) == pytest.approx(textbook, rel=1e-6)
    # a bin without rows counts as half a row per bin, spread as expected
    assert float(psi(np.full(4, 0.25), np.array([0, 4, 4, 4]))) == pytest.approx(
        (0.5 / 14 - 0.25) * np.log(0.5 / 14 / 0.25) + 3 * (4.5 / 14 - 0.25) * np.log(4.5 / 14 / 0.25)
    )


@given(st.lists(st.sampled_from([-2.5, 0.0, 0.0, 1.0, 3.25]) | st.floats(-1e6, 1e6), min_size=1, max_size=80))
def test_every_value_has_a_bin_and_heavy_ones_their_own(values: list[float]) -> None:
    column = np.array(values)
    edges = edges_of(column, 5)
    assert (np.diff(edges) > 0).all()
    counts = counts_of(column, edges)
    assert counts.sum() == len(column)
    for value in set(values):
        if values.count(value) * 5 >= len(values):
            assert counts[np.searchsorted(edges, value)] == values.count(value)


def test_a_constant_that_changes_and_a_new_value_are_seen() -> None:
    x = np.column_stack([np.full(3000, 7.0), np.tile([0.0, 1.0], 1500)])
    probabilities, sides = spoken(np.zeros(3000))
    made = reference(x, ("constant", "switch"), probabilities, sides, NONE)
    same = judge(made, x[:100], ("constant", "switch"), probabilities[:100], sides[:100], NONE, RULE)
    assert same.state == STABLE
    assert max(column.psi for column in same.columns) < 0.01
    other = judge(made, x[:100] + 1e-9, ("constant", "switch"), probabilities[:100], sides[:100], NONE, RULE)
    assert set(other.features_drifted) == {"constant", "switch"}
    assert [column.ks for column in other.columns[:2]] == pytest.approx([1, 0.5], abs=0.02)


@pytest.mark.parametrize(("rows", "trained_rows"), [(48, 5000), (300, 900)])
def test_the_index_without_drift_is_distributed_as_stated(rows: int, trained_rows: int) -> None:
    rng = np.random.default_rng(4)
    drawn = []
    for _ in range(250):
        column = rng.normal(size=trained_rows)
        edges = edges_of(column, 10)
        drawn.append(psi(expected_shares(counts_of(column, edges)), counts_of(rng.normal(size=rows), edges)))
    # the half rows per bin pull towards no drift: a tenth where there are five rows in a bin
    assert 0.8 * null_mean(10, rows, trained_rows) < np.mean(drawn) < 1.1 * null_mean(10, rows, trained_rows)
    passed = np.mean(np.array(drawn) > null_quantile(10, rows, trained_rows, 0.05))
    assert 0.004 <= passed <= 0.08


@pytest.mark.parametrize("bins", [3, 10, 20])
@pytest.mark.parametrize("level", [0.05, 0.01])
def test_the_quantile_is_that_of_chi_squared(bins: int, level: float) -> None:
    exact = stats.chi2.ppf(1 - level, bins - 1) * (1 / 50 + 1 / 2000)
    assert null_quantile(bins, 50, 2000, level) == pytest.approx(exact, rel=0.012)


# --- the hit rate --------------------------------------------------------------------------------


def test_trials_do_not_overlap_and_a_moment_is_one() -> None:
    hour = 3_600_000
    t0 = np.array([0, 0, 1, 2, 3, 3, 6, 7]) * hour
    t1 = t0 + 3 * hour
    signals = np.array([1, -1, 1, 1, -1, 1, 0, -1], dtype=np.int8)
    returns = np.array([0.03, 0.01, -1, -1, -0.01, -0.03, -1, -0.02])
    # at 0 the mean is +1 %: a hit; 1 and 2 overlap it; at 3 it is -1 %; 6 says nothing; 7 is a hit
    assert trials_of(signals, returns, t0, t1) == Trials(2, 3)
    shuffled = np.random.default_rng(1).permutation(len(t0))
    assert trials_of(signals[shuffled], returns[shuffled], t0[shuffled], t1[shuffled]) == Trials(2, 3)
    assert trials_of(signals[:0], returns[:0], t0[:0], t1[:0]) == NONE


@given(st.integers(20, 80), st.integers(20, 300), st.data())
def test_the_p_value_is_fisher_s(count: int, trained_count: int, data: st.DataObject) -> None:
    live = Trials(data.draw(st.integers(0, count)), count)
    then = Trials(data.draw(st.integers(1, trained_count)), trained_count)
    found = performance(live, then, 0.05, 0.1, 20)
    exact = stats.fisher_exact(
        [[live.hits, count - live.hits], [then.hits, trained_count - then.hits]], alternative="less"
    )
    if found.p_value is not None:
        assert found.p_value == pytest.approx(exact.pvalue, rel=1e-8)
        assert (found.state == WORSE) == (exact.pvalue <= 0.05)


def test_the_test_is_seldom_wrong_and_its_power_is_the_one_stated() -> None:
    rng = np.random.default_rng(8)
    then, count, effect = Trials(110, 200), 120, 0.15
    drawn = rng.binomial(count, 0.55 - effect, 4000)
    # the verdict falls once for each number of hits, and is monotone in it
    states = [performance(Trials(hits, count), then, 0.05, effect, 20).state for hits in range(count)]
    worst = states.index(HOLDING) - 1
    stated = performance(Trials(60, count), then, 0.05, effect, 20).power
    assert stated == pytest.approx(np.mean(drawn <= worst), abs=0.03)
    pairs = zip(rng.binomial(count, 0.55, 200), rng.binomial(200, 0.55, 200), strict=True)
    wrong = [performance(Trials(int(a), count), Trials(int(b), 200), 0.05, 0.1, 20).state == WORSE for a, b in pairs]
    assert np.mean(wrong) <= 0.05


def test_too_few_trials_say_nothing_and_a_good_model_holds() -> None:
    few = performance(Trials(0, 19), Trials(330, 600), 0.01, 0.1, 20)
    assert (few.state, few.p_value, few.power) == (TOO_FEW, None, None)
    # with hardly any hits to lose, not even none at all would prove a thing
    assert performance(Trials(0, 20), Trials(2, 40), 0.01, 0.1, 20).state == TOO_FEW
    held = performance(Trials(28, 50), Trials(330, 600), 0.01, 0.1, 20)
    assert held.state == HOLDING
    assert "a drop of 10% would be seen with probability" in held.sentence()
    with pytest.raises(InvalidRequest, match="3 hits of 2 trials"):
        Trials(3, 2)
