"""The measurement of the monitor measures: a quiet market seldom alarms, a wild one does, and power is as stated."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from deployments.bench_monitor import Rate, drift_rates, hit_rates
from ml.hits import Trials


@pytest.mark.integration
def test_a_quiet_market_is_left_alone_and_a_wild_one_is_seen_and_a_second_look_counts_the_same() -> None:
    quiet, wild = drift_rates(7, 1, 12, days=(7,), larger=(1.0, 3.0))
    assert (quiet.of, wild.of) == (12, 12)
    assert quiet.seen <= 3
    assert wild.seen >= 10
    assert drift_rates(7, 1, 12, days=(7,), larger=(1.0, 3.0)) == [quiet, wild]


def test_the_power_that_is_stated_is_the_one_that_is_drawn() -> None:
    wrong, seen = hit_rates(7, 4_000, trained=Trials(110, 200), live=(60,))
    assert wrong.share <= wrong.stated == 0.01
    assert seen.stated is not None
    assert seen.interval[0] <= seen.stated <= seen.interval[1]


def test_the_interval_is_wilson_s() -> None:
    for alarms, windows in ((0, 10), (3, 40), (40, 40)):
        exact = stats.binomtest(alarms, windows).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose(Rate("x", alarms, windows).interval, (exact.low, exact.high), atol=1e-4)
