"""Strategies decide on what has happened, and say what they looked at."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trading.analysis import Opinion, Signal, combine
from trading.candles import frame_of
from trading.errors import InvalidRequest
from trading.indicators import rsi as rsi_values
from trading.strategies import RULES, buy_and_hold, explain, hold, rsi, rule, sma_cross


@pytest.fixture(scope="module")
def sessions() -> pd.DataFrame:
    import arch.data.sp500

    table = arch.data.sp500.load()
    values = table[["Open", "High", "Low", "Close", "Volume"]].to_numpy(dtype="float64")
    return frame_of(table.index.as_unit("ms").asi8, values)


def with_closes(closes: list[float]) -> pd.DataFrame:
    close = np.array(closes)
    return frame_of(np.arange(len(close)) * 3_600_000, np.c_[close, close, close, close, np.ones(len(close))])


@pytest.mark.parametrize("name", RULES)
def test_cutting_off_the_future_changes_no_decision(name: str, sessions: pd.DataFrame) -> None:
    whole = RULES[name](sessions)
    assert whole.dtype == np.int8
    assert set(np.unique(whole)) <= {-1, 0, 1}
    assert len(np.unique(whole)) > 1
    for cut in (60, 333, 1_000, 4_999):
        np.testing.assert_array_equal(RULES[name](sessions.iloc[:cut]), whole[:cut])


def test_an_average_that_is_above_from_the_start_has_not_crossed() -> None:
    rising = with_closes([100.0 + at for at in range(80)])
    assert not sma_cross(rising, 5, 20).any()
    turned = with_closes(
        [100.0 + at for at in range(80)] + [180.0 - 3 * at for at in range(40)] + [60.0 + 3 * at for at in range(60)]
    )
    targets = sma_cross(turned, 5, 20, long_only=False)
    assert targets[79] == 0
    assert targets[119] == -1
    assert targets[-1] == 1
    assert sma_cross(turned, 5, 20).min() == 0


def test_rsi_holds_from_the_extreme_to_the_middle(sessions: pd.DataFrame) -> None:
    targets, value = rsi(sessions), rsi_values(sessions["close"].to_numpy())
    assert (targets[value < 30] == 1).all()
    assert (targets[value > 70] == -1).all()
    # long is never carried past the middle, nor short below it
    assert not ((targets == 1) & (value >= 50)).any()
    assert not ((targets == -1) & (value <= 50)).any()


@pytest.mark.parametrize("name", RULES)
def test_the_explanation_is_of_the_last_decision(name: str, sessions: pd.DataFrame) -> None:
    for cut in range(200, 5_000, 401):
        target, reason = explain(name, sessions.iloc[:cut])
        assert target == RULES[name](sessions.iloc[:cut])[-1]
        assert any(character.isdigit() for character in reason)


def test_buy_and_hold_and_unknown_rules(sessions: pd.DataFrame) -> None:
    assert buy_and_hold(sessions).all()
    with pytest.raises(InvalidRequest, match="'astrology' is not a rule; use one of rsi, macd, sma_cross"):
        rule("astrology")


@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=40), st.integers(1, 6))
def test_hold_keeps_a_signal_for_its_bars_or_until_the_opposite(signals: list[int], bars: int) -> None:
    expected, side, left = [], 0, 0
    for signal in signals:
        side, left = (signal, bars) if signal else (side, left - 1)
        expected.append(side if left > 0 else 0)
    assert hold(np.array(signals, dtype=np.int8), bars).tolist() == expected


def opinion(signal: Signal, confidence: float, who: str = "x") -> Opinion:
    return Opinion(who, signal, confidence, ("because",))


def test_with_nobody_available_the_answer_is_neutral() -> None:
    analysis = combine([], {}, absent=["model"])
    assert (analysis.signal, analysis.confidence) == (Signal.NEUTRAL, 0.0)
    assert analysis.reasons == ("model was not available", "no analyst was available")


def test_agreement_adds_up_and_disagreement_cancels() -> None:
    both = combine([opinion(Signal.LONG, 0.8), opinion(Signal.LONG, 0.4)], {})
    assert (both.signal, both.confidence) == (Signal.LONG, pytest.approx(0.6))
    against = combine([opinion(Signal.LONG, 0.8), opinion(Signal.SHORT, 0.8)], {})
    assert (against.signal, against.confidence) == (Signal.NEUTRAL, 0.5)
    weighed = combine([opinion(Signal.LONG, 0.8, "model"), opinion(Signal.SHORT, 0.8)], {"model": 3.0})
    assert (weighed.signal, weighed.confidence) == (Signal.LONG, pytest.approx(0.4))


@given(st.lists(st.tuples(st.sampled_from(list(Signal)), st.floats(0, 1)), max_size=6))
def test_a_mirrored_world_gives_the_mirrored_answer(spoken: list[tuple[Signal, float]]) -> None:
    mirror = {Signal.LONG: Signal.SHORT, Signal.SHORT: Signal.LONG, Signal.NEUTRAL: Signal.NEUTRAL}
    here = combine([opinion(signal, sure) for signal, sure in spoken], {})
    there = combine([opinion(mirror[signal], sure) for signal, sure in spoken], {})
    assert there.signal is mirror[here.signal]
    assert 0 <= here.confidence <= 1
    assert there.confidence == pytest.approx(here.confidence)
