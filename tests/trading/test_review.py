"""What a review decides from figures: against plain loops, and for properties that must hold whatever the figures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trading.candles import frame_of
from trading.errors import InvalidRequest
from trading.review import Action, Limits, Record, emergency, market_state, proposals, record
from trading.window import Timeframe

TRIALS = st.lists(st.tuples(st.floats(-0.5, 0.5), st.booleans(), st.integers(0, 12)), max_size=40)
RECORDS = st.builds(
    Record,
    spans=st.integers(0, 200),
    signals=st.integers(0, 500),
    hit_rate=st.floats(0, 1),
    profit=st.floats(-1, 1),
    drawdown=st.floats(0, 1),
    streak=st.integers(0, 50),
)
END = datetime(2024, 3, 1, tzinfo=UTC)


def arrays(trials: list[tuple[float, bool, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    profit, hit, cluster = zip(*trials, strict=True) if trials else ((), (), ())
    return np.array(profit, dtype=float), np.array(hit, dtype=bool), np.array(cluster, dtype=np.int64)


@settings(max_examples=60)
@given(TRIALS)
def test_a_record_is_that_of_the_spans_one_by_one(trials: list[tuple[float, bool, int]]) -> None:
    found = record(*arrays(trials))
    spans = sorted({span for *_, span in trials})
    total = peak = worst = 0.0
    streak = 0
    rights = []
    for span in spans:
        mine = [one for one in trials if one[2] == span]
        earned = sum(one[0] for one in mine) / len(mine)
        rights.append(sum(one[1] for one in mine) / len(mine))
        total += earned
        peak = max(peak, total)
        worst = max(worst, peak - total)
        streak = streak + 1 if earned < 0 else 0
    assert (found.spans, found.signals, found.streak) == (len(spans), len(trials), streak)
    assert found.profit == pytest.approx(total, abs=1e-12)
    assert found.drawdown == pytest.approx(worst, abs=1e-12)
    assert found.hit_rate == pytest.approx(sum(rights) / len(rights) if rights else 0.0)


@settings(max_examples=60)
@given(RECORDS, st.floats(0, 0.2), st.integers(0, 5), st.floats(0, 0.2))
def test_who_must_stop_must_stop_with_a_worse_record_too(
    found: Record, deeper: float, longer: int, rarer: float
) -> None:
    limits = Limits()
    worse = Record(
        found.spans + longer,
        found.signals,
        max(found.hit_rate - rarer, 0.0),
        found.profit,
        found.drawdown + deeper,
        found.streak + longer,
    )
    assert len(emergency(worse, limits)) >= len(emergency(found, limits))
    # each threshold by itself, and nothing else
    expected = [found.drawdown >= 0.2, found.streak >= 10, found.spans >= 40 and found.hit_rate < 0.35]
    assert len(emergency(found, limits)) == sum(expected)


def test_nobody_is_stopped_by_one_bad_span_however_many_signals_were_in_it() -> None:
    profit = np.full(500, -0.05)
    found = record(profit, profit > 0, np.zeros(500, dtype=np.int64))
    assert found.spans == 1
    assert emergency(found, Limits()) == ()
    assert emergency(record(*arrays([])), Limits()) == ()


def test_the_false_alarms_of_a_strategy_without_edge_are_as_rare_as_told() -> None:
    rng = np.random.default_rng(3)
    # right after 40 spans below 0.35: one of 52
    low = [(rng.random(40) < 0.5).mean() < 0.35 for _ in range(20_000)]
    assert 1 / 65 < np.mean(low) < 1 / 42
    # ten heads in a row are first seen after 2,046 throws on average
    waited = []
    for throws in rng.random((60, 40_000)) < 0.5:
        runs = np.convolve(throws, np.ones(10, dtype=int))[9:]
        waited.append(int(np.argmax(runs == 10)) + 10)
    assert 1_400 < np.mean(waited) < 2_800


@pytest.mark.parametrize("wrong", [{"drawdown": 0.0}, {"streak": 1}, {"hit_rate": 1.0}, {"count": 0}])
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match="makes no sense"):
        Limits(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        record(np.array([np.nan]), np.array([True]), np.array([0]))
    with pytest.raises(InvalidRequest):
        record(np.array([0.1]), np.array([]), np.array([0]))


@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(st.text(max_size=5), max_size=2)),
    st.dictionaries(st.sampled_from(["rsi", "macd", "volume"]), RECORDS),
    st.dictionaries(st.sampled_from(["model", "llm"]), st.floats(0, 2)),
    st.sets(st.sampled_from(["rsi", "macd"])),
)
def test_proposals_have_a_reason_and_evidence_and_leave_alone_who_is_out(
    drifted: dict[str, list[str]], records: dict[str, Record], weights: dict[str, float], out: set[str]
) -> None:
    found = proposals(drifted, records, weights, sorted(out))
    assert {one.subject for one in found if one.action is Action.RETRAIN} == set(drifted)
    assert {one.subject for one in found if one.action is Action.DISABLE} == {
        name for name, one in records.items() if one.spans >= 20 and one.profit < 0 and name not in out
    }
    assert {one.subject for one in found if one.action is Action.WEIGHTS} == {
        name for name, weight in weights.items() if weight < 0.25
    }
    assert all(one.reason and one.evidence for one in found)
    assert found == sorted(found, key=lambda one: (one.action, one.subject))


def candles(hours: int) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, hours)))
    open_ = np.concatenate([[100.0], close[:-1]])
    values = [open_, np.maximum(open_, close) * 1.01, np.minimum(open_, close) / 1.01, close, rng.uniform(1, 9, hours)]
    first = int((END - timedelta(hours=hours)).timestamp() * 1000)
    return frame_of(first + 3_600_000 * np.arange(hours), np.column_stack(values))


def test_the_state_of_a_market_is_that_of_its_last_day_against_the_thirty_before() -> None:
    frame = candles(24 * 40)
    found = market_state("BTCSIM", Timeframe.H1, frame, END, "simulated")
    assert found is not None
    today, before = frame.iloc[-24:], frame.iloc[-24 * 31 : -24]
    assert (found.at, found.price, found.data_mode) == (END, today["close"].iloc[-1], "simulated")
    assert found.change == pytest.approx(today["close"].iloc[-1] / today["open"].iloc[0] - 1)
    assert found.range == pytest.approx((today["high"].max() - today["low"].min()) / today["open"].iloc[0])
    returns = np.log(today["close"]).diff().dropna()
    assert found.volatility == pytest.approx(returns.std(ddof=0) * np.sqrt(24))
    assert found.usual_volatility == pytest.approx(np.log(before["close"]).diff().std(ddof=0) * np.sqrt(24))
    assert found.volume == pytest.approx(today["volume"].sum())
    assert found.usual_volume == pytest.approx(before["volume"].sum() / 30)


def test_a_day_of_a_session_market_has_the_bars_of_its_session() -> None:
    hours = candles(24 * 40)
    # New York: 14:30 to 21:00 UTC, seven bars of an hour, on weekdays
    frame = hours[(hours.index.hour >= 14) & (hours.index.hour < 21) & (hours.index.dayofweek < 5)]
    found = market_state("AAPL", Timeframe.H1, frame, END, "sample")
    assert found is not None
    today, before = frame[frame.index >= END - timedelta(days=1)], frame[frame.index < END - timedelta(days=1)]
    before = before[before.index >= END - timedelta(days=31)]
    assert len(today) == 7
    assert found.volatility == pytest.approx(np.log(today["close"]).diff().std(ddof=0) * np.sqrt(7))
    assert found.usual_volatility == pytest.approx(np.log(before["close"]).diff().std(ddof=0) * np.sqrt(7))


def test_bars_after_the_end_and_before_the_month_do_not_count() -> None:
    frame = candles(24 * 40)
    earlier = END - timedelta(days=2)
    full = market_state("A", Timeframe.H1, frame, earlier, "sample")
    cut = frame[frame.index < pd.Timestamp(earlier)].iloc[-24 * 31 :]
    assert full == market_state("A", Timeframe.H1, cut, earlier, "sample")
    assert market_state("A", Timeframe.H1, frame, END + timedelta(days=2), "sample") is None
    young = market_state("A", Timeframe.H1, candles(24), END, "sample")
    assert young is not None
    assert (young.usual_volatility, young.usual_volume) == (None, None)
