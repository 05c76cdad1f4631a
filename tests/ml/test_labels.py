"""Labels: the fill is at the next open, the cost counts, the future must be there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.labels import LabelDefinition, labels
from trading.candles import frame_of, open_times_ms
from trading.errors import InvalidRequest


def _opens(*prices: float) -> pd.DataFrame:
    at = np.array(prices)
    return frame_of(
        3_600_000 * np.arange(len(at)), np.column_stack([at, at * 1.5, at * 0.5, at * 1.2, np.ones(len(at))])
    )


def test_by_hand_from_open_of_the_next_bar_to_the_open_a_horizon_later() -> None:
    # decided on bar 0, filled at 100, given up two bars later at 101; then 110 to 100, then 101 to 101
    found = labels(_opens(50, 100, 110, 101, 100, 101), LabelDefinition(horizon=2))
    assert found["label"].tolist() == [1, -1, 0]
    np.testing.assert_allclose(found["forward_return"], [0.01, 100 / 110 - 1, 0.0], atol=1e-12)
    assert found["label"].dtype == np.int8
    assert (pd.DatetimeIndex(found["t0"]).asi8 // 3_600_000).tolist() == [1, 2, 3]
    assert (pd.DatetimeIndex(found["t1"]).asi8 // 3_600_000).tolist() == [3, 4, 5]


def test_thresholds_are_strict_and_no_lower_than_the_cost() -> None:
    exactly = _opens(100, 1000, 1005, 1000)
    assert labels(exactly, LabelDefinition(1))["label"].tolist() == [0, 0]
    assert labels(exactly, LabelDefinition(1, 0.004, -0.004))["label"].tolist() == [1, -1]
    assert labels(exactly, LabelDefinition(1, 0.004, -0.004, round_trip_cost=0.01))["label"].tolist() == [0, 0]
    dear = LabelDefinition(1, 0.004, -0.02, round_trip_cost=0.01)
    assert (dear.effective_buy, dear.effective_sell) == (0.01, -0.02)


def test_across_a_gap_the_end_of_the_label_is_the_true_time() -> None:
    candles = _opens(1, 2, 3, 4).drop(index=pd.Timestamp("1970-01-01T02:00Z"))
    found = labels(candles, LabelDefinition(1))
    assert found["t1"].tolist() == [pd.Timestamp("1970-01-01T03:00Z")]


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(0, 40), horizon=st.integers(1, 12), seed=st.integers(0, 1000))
def test_rows_without_a_full_future_have_no_label(
    random_candles: Callable[..., pd.DataFrame], rows: int, horizon: int, seed: int
) -> None:
    candles = random_candles(50, seed).iloc[:rows]
    found = labels(candles, LabelDefinition(horizon))
    assert len(found) == max(rows - horizon - 1, 0)
    stamps = open_times_ms(candles)
    for at in range(len(found)):
        assert found["t0"].iloc[at].value // 10**6 == stamps[at + 1]
        assert found["t1"].iloc[at].value // 10**6 == stamps[at + 1 + horizon]
        expected = candles["open"].iloc[at + 1 + horizon] / candles["open"].iloc[at + 1] - 1
        assert found["forward_return"].iloc[at] == pytest.approx(expected, abs=1e-12)


def test_a_changed_bar_changes_only_labels_known_after_it(random_candles: Callable[..., pd.DataFrame]) -> None:
    candles = random_candles(100, 7)
    altered = candles.copy()
    altered.iloc[60:] *= 2
    before, after = labels(candles, LabelDefinition(5)), labels(altered, LabelDefinition(5))
    changed = np.flatnonzero(before["forward_return"].to_numpy() != after["forward_return"].to_numpy())
    assert changed.tolist() == [54, 55, 56, 57, 58]


def test_round_trip_of_the_definition() -> None:
    label = LabelDefinition(8, 0.01, -0.02, 0.001)
    assert LabelDefinition.from_definition(label.definition()) == label
    with pytest.raises(InvalidRequest, match="scale"):
        LabelDefinition.from_definition({**label.definition(), "scale": 50})


@pytest.mark.parametrize(
    "wrong",
    [{"horizon": 0}, {"horizon": 1.5}, {"buy_threshold": -0.1}, {"sell_threshold": 0.1}, {"round_trip_cost": -1},
     {"buy_threshold": float("nan")}],
)  # fmt: skip
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest):
        LabelDefinition(**wrong)  # type: ignore[arg-type]
