"""Labels: the fill is at the next open, the cost counts, the future must be there, for both kinds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.barriers import follow, volatility
from ml.labels import CLASSES, LabelDefinition, labels, meta_labels
from trading.candles import frame_of, open_times_ms
from trading.errors import InvalidRequest

BARRIERS = LabelDefinition(12, 0.004, -0.004, 0.002, kind="triple_barrier", target=1.0, stop=0.7, volatility_span=30)


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
    for label in (LabelDefinition(8, 0.01, -0.02, 0.001), BARRIERS):
        assert LabelDefinition.from_definition(json.loads(json.dumps(label.definition()))) == label
    with pytest.raises(InvalidRequest, match="scale"):
        LabelDefinition.from_definition({**label.definition(), "scale": 50})


@pytest.mark.parametrize(
    "wrong",
    [{"horizon": 0}, {"horizon": 1.5}, {"buy_threshold": -0.1}, {"sell_threshold": 0.1}, {"round_trip_cost": -1},
     {"buy_threshold": float("nan")}, {"kind": "tripple"}, {"target": 0.0}, {"stop": float("inf")},
     {"target": float("nan")}, {"volatility_span": 1}, {"volatility_span": 20.0}],
)  # fmt: skip
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest):
        LabelDefinition(**wrong)  # type: ignore[arg-type]


def test_triple_barrier_by_hand() -> None:
    # flat closes, so that the barriers lie at the least width: 1 % away from the fill
    bars = [(100, 100, 100), (100, 100.5, 99.5), (100, 101.2, 99.8), (100, 100, 98), (100, 104, 96), (100, 100, 100)]
    prices = np.array([(opened, high, low, 100, 1) for opened, high, low in bars], dtype=np.float64)
    label = LabelDefinition(2, 0.01, -0.005, kind="triple_barrier")
    found = labels(frame_of(3_600_000 * np.arange(6), prices), label)
    assert found["label"].tolist() == [1, 1, -1]
    np.testing.assert_allclose(found["forward_return"], [0.01, 0.01, -0.01], atol=1e-12)
    assert (pd.DatetimeIndex(found["t0"]).asi8 // 3_600_000).tolist() == [1, 2, 3]
    assert (pd.DatetimeIndex(found["t1"]).asi8 // 3_600_000).tolist() == [3, 3, 4]


def test_both_kinds_have_the_same_layout(random_candles: Callable[..., pd.DataFrame]) -> None:
    for rows in (0, 5, 13, 14, 80):
        candles = random_candles(80, 2).iloc[:rows]
        forward, barrier = labels(candles, LabelDefinition(12)), labels(candles, BARRIERS)
        assert forward.dtypes.to_dict() == barrier.dtypes.to_dict()
        pd.testing.assert_index_equal(forward.index, barrier.index)
        pd.testing.assert_series_equal(forward["t0"], barrier["t0"])
        assert (barrier["t1"] <= forward["t1"]).all()
        assert (barrier["t1"] > barrier["t0"]).all()
    assert (BARRIERS.past_rows, LabelDefinition(12).past_rows) == (30, 0)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    horizon=st.integers(1, 30),
    target=st.floats(0.1, 3),
    stop=st.floats(0.1, 3),
    cost=st.floats(0, 0.03),
)
def test_what_is_labelled_pays_for_its_costs(
    random_candles: Callable[..., pd.DataFrame], seed: int, horizon: int, target: float, stop: float, cost: float
) -> None:
    label = LabelDefinition(horizon, 0.002, -0.001, cost, "triple_barrier", target, stop, 20)
    assert label.least_width == max(0.002, cost)
    assert LabelDefinition(horizon, 0.001, -0.002, cost).least_width == max(0.002, cost)
    found = labels(random_candles(150, seed), label)
    earned = found["label"] * found["forward_return"] - cost
    assert earned[found["label"] != 0].min() >= -1e-12 or not (found["label"] != 0).any()
    # so it does for the account that follows: meta-labels of the labels themselves
    pays = meta_labels(found["label"].to_numpy(), found["forward_return"].to_numpy(), max(cost - 1e-9, 0))
    assert (pays == (found["label"] != 0)).all()


@pytest.mark.parametrize("label", [LabelDefinition(12), BARRIERS], ids=lambda label: label.kind)
def test_a_label_needs_no_more_than_its_declared_future(
    random_candles: Callable[..., pd.DataFrame], label: LabelDefinition
) -> None:
    candles = random_candles(160, 11)
    whole = labels(candles, label)
    for rows in (14, 50, 99, 159):
        pd.testing.assert_frame_equal(labels(candles.iloc[:rows], label), whole.iloc[: rows - label.future_rows])
    # and nothing after its end: the bars from t1 on may be anything
    for at in range(40, 140, 7):
        end = candles.index.get_loc(whole["t1"].iloc[at])
        other = candles.copy()
        other.iloc[end + 1 :] *= 3
        pd.testing.assert_frame_equal(labels(other, label).iloc[[at]], whole.iloc[[at]])


def test_the_volatility_knows_no_close_after_the_decision(random_candles: Callable[..., pd.DataFrame]) -> None:
    candles = random_candles(120, 3)
    other = candles.copy()
    other.iloc[80:, 3] *= 3  # fills are at opens, highs and lows: closes reach a label through its widths only
    before, after = labels(candles, BARRIERS), labels(other, BARRIERS)
    pd.testing.assert_frame_equal(before.iloc[:80], after.iloc[:80])
    assert (before["t1"].iloc[80:] < after["t1"].iloc[80:]).any()


def test_triple_barrier_on_real_candles(shared: Path) -> None:
    rows = pd.read_parquet(shared / "data" / "binance_BTCUSDT_1h.parquet")
    columns = ["open", "high", "low", "close", "volume"]
    candles = frame_of(rows["timestamp"].to_numpy(), rows[columns].to_numpy(dtype=np.float64))
    label = LabelDefinition(24, 0.003, -0.003, 0.002, "triple_barrier")
    found = labels(candles, label)
    known = len(found)
    # a second way to the same labels: which bar's running extreme first left the barriers
    opens, highs, lows, closes = (candles[name].to_numpy(copy=True) for name in ("open", "high", "low", "close"))
    width = np.maximum(volatility(closes, label.volatility_span)[:known] * np.sqrt(24), 0.003)
    entry = opens[1 : known + 1]
    held = np.lib.stride_tricks.sliding_window_view
    over = held(highs[1:], 24)[:known] >= (entry * (1 + width))[:, None]
    under = held(lows[1:], 24)[:known] <= (entry * (1 - width))[:, None]
    first_over, first_under = (np.where(hit.any(1), hit.argmax(1), 24) for hit in (over, under))
    touched = np.minimum(first_over, first_under) < 24
    clear = touched & (first_over != first_under)
    expected = np.where(first_over < first_under, 1, -1)
    assert (found["label"].to_numpy()[clear] == expected[clear]).all()
    left = opens[25 : known + 25] / entry - 1
    given_up = np.where(left > 0.003, 1, np.where(left < -0.003, -1, 0))
    assert (found["label"].to_numpy()[~touched] == given_up[~touched]).all()
    assert clear.mean() > 0.4
    # every class is there, and the sides are about as frequent
    shares = [float((found["label"] == side).mean()) for side in CLASSES]
    assert min(shares) > 0.02
    assert abs(shares[0] - shares[2]) < 0.1
    sides = follow(opens, highs, lows, width, width, 24)
    assert (sides.long_end == sides.short_end).all()  # the same barriers for both, so the same bars


def test_meta_labels_by_hand() -> None:
    side = np.array([1, 1, -1, -1, 0, 1])
    moves = np.array([0.01, 0.002, -0.01, 0.01, 0.5, -0.5])
    found = meta_labels(side, moves, 0.002)
    assert found.tolist() == [1, 0, 1, 0, 0, 0]
    assert found.dtype == np.int8
    assert meta_labels(side[:0], moves[:0], 0.002).shape == (0,)


@pytest.mark.parametrize(
    ("side", "moves", "cost"),
    [([1, 0], [0.1], 0.0), ([2], [0.1], 0.0), ([1], [float("nan")], 0.0), ([1], [0.1], 1.0), ([1], [0.1], -0.1)],
)
def test_meta_labels_of_what_makes_no_sense_are_refused(side: list[int], moves: list[float], cost: float) -> None:
    with pytest.raises(InvalidRequest):
        meta_labels(np.array(side), np.array(moves), cost)
