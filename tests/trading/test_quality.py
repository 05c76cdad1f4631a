"""Drift on series that were made to drift, or not."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from trading.candles import empty, frame_of
from trading.quality import LEAST_RECENT, LEAST_TRAILING, distance, drift

ORIGIN = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp() * 1000)
HOUR, DAY = 3_600_000, 86_400_000


def candles(count: int, step: int = HOUR, seed: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    middle = 100 + rng.normal(0, 1, count)
    width = rng.lognormal(-5, 0.3, count)
    values = np.column_stack(
        [middle, middle * np.exp(width / 2), middle * np.exp(-width / 2), middle, rng.lognormal(3, 0.5, count)]
    )
    return frame_of(ORIGIN + step * np.arange(count), values)


def last(frame: pd.DataFrame, bars: int, **scale: float) -> pd.DataFrame:
    changed = frame.copy()
    for column, factor in scale.items():
        changed.iloc[-bars:, changed.columns.get_loc(column)] *= factor
    return changed


def test_the_same_distribution_is_no_drift() -> None:
    found = drift(candles(40 * 24 * 12, step=HOUR // 12))
    assert found is not None
    assert found.bars == 288
    assert found.volume_ratio == pytest.approx(1, abs=0.1)
    assert found.range_ratio == pytest.approx(1, abs=0.1)
    assert found.volume_ks < 0.1
    assert found.range_ks < 0.1


def test_a_series_that_repeats_itself_every_day_does_not_drift_at_all() -> None:
    day = candles(24)
    values = np.tile(day.to_numpy(), (31, 1))
    found = drift(frame_of(ORIGIN + HOUR * np.arange(24 * 31), values))
    assert found is not None
    assert (found.volume_ratio, found.range_ratio, found.volume_ks, found.range_ks, found.bars) == pytest.approx(
        (1, 1, 0, 0, 24)
    )


def test_doubled_volume_is_a_ratio_of_two() -> None:
    day = candles(24)
    frame = frame_of(ORIGIN + HOUR * np.arange(24 * 31), np.tile(day.to_numpy(), (31, 1)))
    found = drift(last(frame, 24, volume=2.0))
    assert found is not None
    assert found.volume_ratio == pytest.approx(2)
    assert found.volume_ks > 0.4
    assert (found.range_ratio, found.range_ks) == pytest.approx((1, 0))


def test_wider_bars_are_a_ratio_of_ranges_and_leave_the_volume() -> None:
    day = candles(24)
    frame = frame_of(ORIGIN + HOUR * np.arange(24 * 31), np.tile(day.to_numpy(), (31, 1)))
    ranges = np.log(frame["high"] / frame["low"]).to_numpy()[-24:]
    wide = frame.copy()
    wide.iloc[-24:, wide.columns.get_loc("high")] *= np.exp(2 * ranges)
    found = drift(wide)
    assert found is not None
    assert found.range_ratio == pytest.approx(3)
    assert (found.volume_ratio, found.volume_ks) == pytest.approx((1, 0))


def test_volumes_with_nothing_in_common_are_at_distance_one() -> None:
    found = drift(last(candles(31 * 24), 24, volume=1e6))
    assert found is not None
    assert found.volume_ks == 1


def test_a_change_before_the_last_day_is_not_recent_and_one_before_the_month_does_not_count() -> None:
    frame = candles(60 * 24)
    found = drift(frame)
    old = frame.copy()
    old.iloc[: 29 * 24, old.columns.get_loc("volume")] *= 1000
    assert drift(old) == found
    inside = frame.copy()
    inside.iloc[29 * 24 : -24, inside.columns.get_loc("volume")] *= 1000
    changed = drift(inside)
    assert changed is not None
    assert found is not None
    assert changed.volume_ratio == pytest.approx(found.volume_ratio / 1000)


def test_too_few_bars_say_nothing() -> None:
    assert drift(empty()) is None
    least = LEAST_RECENT + LEAST_TRAILING
    assert drift(candles(least - 1)) is None
    assert drift(candles(least)) is None  # the last day is 24 of them
    assert drift(candles(LEAST_TRAILING + 24)) is not None
    assert drift(candles(LEAST_TRAILING + LEAST_RECENT, step=DAY)) is not None
    assert drift(candles(LEAST_TRAILING + LEAST_RECENT - 1, step=DAY)) is None


def test_of_long_bars_the_newest_few_are_compared() -> None:
    found = drift(candles(400, step=4 * HOUR))
    assert found is not None
    assert found.bars == LEAST_RECENT


def test_no_usual_volume_is_no_ratio() -> None:
    frame = candles(31 * 24)
    frame.iloc[:-24, frame.columns.get_loc("volume")] = 0.0
    found = drift(frame)
    assert found is not None
    assert math.isnan(found.volume_ratio)
    assert found.volume_ks == 1


def test_the_distance_is_the_largest_one_of_the_distributions() -> None:
    rng = np.random.default_rng(8)
    one, other = rng.normal(0, 1, 200), rng.normal(0.5, 1, 77)
    points = np.concatenate([one, other])
    largest = max(abs((one <= point).mean() - (other <= point).mean()) for point in points)
    assert distance(one, other) == pytest.approx(largest)
    assert distance(one, one) == 0
    assert distance(one, other) == distance(other, one)
