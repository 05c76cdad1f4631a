"""Screening finds what was planted, and only that."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trading.candles import check
from trading.masks import Reason, screen
from trading.window import Timeframe, Window

WINDOW = Window("BTCUSDT", Timeframe.H1, datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 11, tzinfo=UTC))
HOUR = 3_600_000


def raw_rows(window: Window = WINDOW, seed: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    step = int(window.timeframe.delta.total_seconds() * 1000)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.004, window.slots)))
    open_ = np.r_[100.0, close[:-1]]
    return pd.DataFrame(
        {
            "open_time": np.arange(window.slots) * step + int(window.start.timestamp() * 1000),
            "open": open_,
            "high": np.maximum(open_, close) * 1.002,
            "low": np.minimum(open_, close) * 0.998,
            "close": close,
            "volume": rng.uniform(1, 10, window.slots),
        }
    )


def test_clean_rows_all_pass_and_keep_the_contract() -> None:
    raw = raw_rows()
    screening = screen(raw, WINDOW, "24/7")
    check(screening.good)
    assert len(screening.good) == screening.expected == len(raw)
    assert (len(screening.bad), len(screening.missing), screening.flags) == (0, 0, {})


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("close", np.nan, Reason.NULL),
        ("high", np.inf, Reason.INFINITE),
        ("low", 0.0, Reason.NON_POSITIVE),
        ("open", -3.0, Reason.NON_POSITIVE),
        ("volume", -1.0, Reason.NEGATIVE_VOLUME),
        ("high", 1.0, Reason.INCONSISTENT),
        ("low", 1e6, Reason.INCONSISTENT),
        ("volume", 0.0, Reason.UNTRADED_MOVE),
    ],
)
def test_a_planted_value_is_put_aside_with_its_reason(column: str, value: float, reason: Reason) -> None:
    raw = raw_rows()
    raw.loc[40, column] = value
    screening = screen(raw, WINDOW, "24/7")
    assert screening.bad["open_time"].tolist() == [raw.loc[40, "open_time"]]
    assert reason.value in screening.bad["reasons"][0]
    assert screening.missing.tolist() == [raw.loc[40, "open_time"]]
    assert screening.impossible == (reason is not Reason.UNTRADED_MOVE)
    check(screening.good)


def test_times_off_the_grid_and_outside_the_window() -> None:
    raw = raw_rows()
    raw.loc[3, "open_time"] += 60_000
    raw.loc[len(raw) - 1, "open_time"] += 5 * HOUR
    screening = screen(raw, WINDOW, "24/7")
    assert screening.quarantined == {"misaligned": 1, "outside_window": 1}


def test_equal_copies_keep_the_first_and_differing_ones_none() -> None:
    raw = raw_rows()
    other = raw.iloc[[20]].assign(close=lambda rows: rows["close"] * 1.0001, high=lambda rows: rows["high"] * 1.01)
    screening = screen(pd.concat([raw, raw.iloc[[10]], other], ignore_index=True), WINDOW, "24/7")
    assert screening.quarantined == {"conflicting": 2, "duplicate": 1}
    assert screening.missing.tolist() == [raw.loc[20, "open_time"]]


def test_an_impossible_copy_does_not_taint_the_good_row() -> None:
    raw = raw_rows()
    broken = raw.iloc[[10]].assign(high=1.0)
    screening = screen(pd.concat([broken, raw], ignore_index=True), WINDOW, "24/7")
    assert screening.quarantined == {"inconsistent": 1}
    assert len(screening.missing) == 0


def test_gaps_are_found_no_more_no_less() -> None:
    raw = raw_rows()
    gone = [0, 17, 18, len(raw) - 1]
    screening = screen(raw.drop(index=gone), WINDOW, "24/7")
    assert screening.missing.tolist() == raw.loc[gone, "open_time"].tolist()


def test_flat_bars_without_trades_stand_and_long_runs_are_flagged() -> None:
    raw = raw_rows()
    raw.loc[50:80, ["open", "high", "low", "close"]] = 101.0
    raw.loc[50:80, "volume"] = 0.0
    screening = screen(raw, WINDOW, "24/7")
    assert len(screening.bad) == 0
    assert screening.flags["stale"] == 31


def test_a_jump_is_flagged_and_stays() -> None:
    raw = raw_rows()
    raw.loc[100:, ["open", "high", "low", "close"]] *= 1.6
    screening = screen(raw, WINDOW, "24/7")
    assert screening.flags == {"jump": 1}
    assert len(screening.good) == len(raw)


def test_stock_sessions() -> None:
    week = Window("SP500", Timeframe.D1, datetime(2018, 12, 24, tzinfo=UTC), datetime(2018, 12, 31, tzinfo=UTC))
    screening = screen(raw_rows(week), week, "XNYS")
    # Christmas and a week-end: a bar there is not of this market
    assert screening.quarantined == {"off_session": 3}
    assert screening.expected == len(screening.good) == 4


@settings(max_examples=60)
@given(st.permutations(range(48)), st.sets(st.integers(0, 47)), st.sets(st.integers(0, 47)))
def test_order_and_copies_never_change_the_outcome(order: list[int], copied: set[int], dropped: set[int]) -> None:
    window = WINDOW.within(WINDOW.start, datetime(2024, 1, 3, tzinfo=UTC))
    raw = raw_rows(window)
    kept = raw.drop(index=sorted(dropped))
    shuffled = pd.concat([raw.loc[[row for row in order if row not in dropped]], raw.loc[sorted(copied - dropped)]])
    screening = screen(shuffled.reset_index(drop=True), window, "24/7")
    np.testing.assert_array_equal(screening.good.to_numpy(), kept.drop(columns="open_time").to_numpy())
    assert screening.quarantined.get("duplicate", 0) == len(copied - dropped)
    assert len(screening.missing) == len(dropped)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("quiet", [0.0, 0.5])
def test_jumps_are_measured_against_the_rolling_median_range(seed: int, quiet: float) -> None:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.standard_t(2, WINDOW.slots) * 0.004))
    spread = np.where(rng.random(WINDOW.slots) < quiet, 1.0, 1 + rng.uniform(0, 0.001, WINDOW.slots))
    raw = raw_rows().assign(open=close, close=close, high=close * spread, low=close / spread)
    usual = pd.Series(2 * np.log(spread)).rolling(50, min_periods=20).median().shift(1)
    move = np.abs(np.diff(np.log(close), prepend=np.nan))
    assert screen(raw, WINDOW, "24/7").flags["jump"] == (move > 15 * np.maximum(usual, 1e-4)).sum() > 0
