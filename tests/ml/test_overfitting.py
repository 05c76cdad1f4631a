"""Overfitting: a real edge convinces, the best of much noise does not, and what is not defined is None."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ml.overfitting import overfitting
from trading import statistics
from trading.errors import InvalidRequest


def trials(rows: int, count: int, seed: int) -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(0, 0.01, (rows, count))
    index = pd.date_range("2020-01-01", periods=rows, freq="h", tz="UTC", unit="ms")
    return pd.DataFrame(values, index=index, columns=[f"t{at}" for at in range(count)])


def test_a_real_edge_convinces() -> None:
    returns = trials(800, 12, 0)
    returns["t5"] += 0.003
    found = overfitting(returns, "t5", seed=1)
    assert found.deflated_sharpe is not None
    assert found.deflated_sharpe > 0.99
    assert found.pbo == 0
    assert found.spa is not None
    assert found.spa < 0.01
    assert (found.trials, found.observations) == (12, 800)
    assert found.metrics().keys() == {"deflated_sharpe", "pbo", "spa", "trials"}


def test_the_best_of_noise_does_not_convince() -> None:
    returns = trials(400, 40, 2)
    ratios = returns.mean() / returns.std()
    best = str(ratios.idxmax())
    found = overfitting(returns, best, seed=1)
    # alone it would have looked good
    assert statistics.probabilistic_sharpe(ratios.max(), 400) > 0.95
    assert found.deflated_sharpe is not None
    assert found.deflated_sharpe < 0.9
    assert found.spa is not None
    assert found.spa > 0.05
    assert found.pbo is not None
    assert found.pbo > 0.1
    assert found == overfitting(returns, best, seed=1)


def test_the_deflated_sharpe_ratio_is_that_of_purgedcv_but_for_its_bias_corrections() -> None:
    import purgedcv

    returns = trials(2000, 10, 3)
    # few large losses: skew and kurtosis count
    returns["t4"] = 0.0111 - 0.01 * np.random.default_rng(3).exponential(1, 2000)
    variance = float((returns.mean() / returns.std()).var())
    theirs = purgedcv.deflated_sharpe_ratio(returns["t4"].to_numpy(), 10, variance)
    found = overfitting(returns, "t4", seed=0)
    assert found.deflated_sharpe == pytest.approx(theirs, abs=2e-3)
    assert found.sharpe is not None
    assert found.luck is not None
    assert abs(statistics.probabilistic_sharpe(found.sharpe, 2000, benchmark=found.luck) - theirs) > 0.01


def test_what_is_not_defined_is_none_and_says_why() -> None:
    one = overfitting(trials(300, 1, 4), "t0", seed=1)
    assert one.pbo is None
    assert one.sharpe is not None
    assert one.spa is not None  # one trial can still be tested against cash
    assert sum(reason.startswith("no ") for reason in one.reasons) == 1

    idle = trials(300, 5, 5)
    idle[["t1", "t3"]] = [0.0, 0.001]
    chosen = overfitting(idle, "t3", seed=1)
    assert (chosen.sharpe, chosen.deflated_sharpe) == (None, None)
    assert "2 of 5 trials have constant returns" in chosen.reasons[0]
    other = overfitting(idle, "t0", seed=1)
    assert other.deflated_sharpe is not None
    # a trial that never traded was still a trial
    assert other.luck == pytest.approx(
        statistics.expected_max_sharpe(5, float((idle.mean() / idle.std())[["t0", "t2", "t4"]].var()))
    )

    none = overfitting(trials(300, 3, 6) * 0, "t0", seed=1)
    assert (none.sharpe, none.deflated_sharpe, none.pbo, none.spa) == (None, None, None, None)

    short = overfitting(trials(15, 4, 7), "t0", seed=1)
    assert (short.pbo, short.spa) == (None, None)
    wide = overfitting(trials(40, 50, 8), "t0", seed=1)
    assert (wide.pbo, wide.spa) == (None, None)


def test_the_luck_of_one_trial_is_none_and_trials_elsewhere_count() -> None:
    returns = trials(300, 1, 4)
    alone = overfitting(returns, "t0", seed=1)
    assert (alone.trials, alone.luck) == (1, 0.0)
    assert alone.deflated_sharpe == pytest.approx(
        statistics.probabilistic_sharpe(
            statistics.sharpe_ratio(returns["t0"].to_numpy()),
            300,
            skew=statistics.moments(returns["t0"].to_numpy()).skew,
            kurtosis=statistics.moments(returns["t0"].to_numpy()).kurtosis,
        )
    )
    many = overfitting(returns, "t0", seed=1, elsewhere=40)
    assert (many.trials, many.luck) == (41, pytest.approx(statistics.expected_max_sharpe(41, 1 / 300)))
    several = trials(300, 4, 4)
    least, most = (overfitting(several, "t0", seed=1, elsewhere=more).deflated_sharpe for more in (0, 40))
    assert least is not None
    assert most is not None
    assert most < least


def test_a_benchmark_takes_its_share() -> None:
    returns = trials(500, 4, 9) + 0.002
    assert overfitting(returns, "t0", seed=1).spa == pytest.approx(0.001, abs=0.002)
    beaten = overfitting(returns, "t0", seed=1, benchmark=pd.Series(0.004, index=returns.index))
    assert beaten.spa is not None
    assert beaten.spa > 0.9
    same = overfitting(returns[["t0"]], "t0", seed=1, benchmark=returns["t0"])
    assert same.spa is None


def test_nonsense_is_refused() -> None:
    returns = trials(100, 3, 10)
    holed = returns.copy()
    holed.iloc[5, 1] = np.nan
    twice = returns.set_axis(["t0", "t0", "t2"], axis=1)
    for wrong, chosen in ((returns, "other"), (holed, "t0"), (twice, "t0"), (returns.iloc[:0], "t0")):
        with pytest.raises(InvalidRequest):
            overfitting(wrong, chosen, seed=1)
    with pytest.raises(InvalidRequest, match="other bars"):
        overfitting(returns, "t0", seed=1, benchmark=returns["t1"].iloc[1:])
