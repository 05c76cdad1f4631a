"""Strategies decide on what has happened, and say what they looked at."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trading import strategies
from trading.analysis import Opinion, Signal, combine
from trading.backtest.rules import Decisions
from trading.candles import frame_of
from trading.errors import InvalidRequest
from trading.indicators import rsi as rsi_values
from trading.strategies import RULES, buy_and_hold, explain, from_probabilities, hold, rsi, rule, sma_cross


@pytest.fixture(scope="module")
def sessions() -> pd.DataFrame:
    import arch.data.sp500

    table = arch.data.sp500.load()
    values = table[["Open", "High", "Low", "Close", "Volume"]].to_numpy(dtype="float64")
    return frame_of(table.index.as_unit("ms").asi8, values)


def with_closes(closes: list[float]) -> pd.DataFrame:
    close = np.array(closes)
    return frame_of(np.arange(len(close)) * 3_600_000, np.c_[close, close, close, close, np.ones(len(close))])


def targets_of(decided: np.ndarray | Decisions) -> np.ndarray:
    return decided.targets if isinstance(decided, Decisions) else decided


def walk(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """A market on a coarse grid of prices, so that equal closes, highs and lows happen."""
    close = np.maximum(100 + np.cumsum(rng.integers(-2, 3, rows)), 1.0)
    opened = np.concatenate([close[:1], close[:-1]])
    high, low = np.maximum(opened, close) + rng.integers(0, 2, rows), np.minimum(opened, close)
    volume = rng.integers(0, 6, rows).astype(float)
    return frame_of(np.arange(rows) * 3_600_000, np.c_[opened, high, low, close, volume])


@pytest.mark.parametrize("name", RULES)
def test_rules_take_every_side_and_only_sides(name: str, sessions: pd.DataFrame) -> None:
    targets = targets_of(RULES[name](sessions))
    assert targets.dtype == np.int8
    assert set(np.unique(targets)) == ({0, 1} if name == "sma_cross" else {-1, 0, 1})


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
        assert target == targets_of(RULES[name](sessions.iloc[:cut]))[-1]
        assert any(character.isdigit() for character in reason)


def test_buy_and_hold_and_unknown_rules(sessions: pd.DataFrame) -> None:
    assert buy_and_hold(sessions).all()
    with pytest.raises(InvalidRequest, match="'astrology' is not a rule; use one of rsi, macd, sma_cross"):
        rule("astrology")


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=40), st.integers(1, 6))
def test_hold_keeps_a_signal_for_its_bars_or_until_the_opposite(signals: list[int], bars: int) -> None:
    expected, side, left = [], 0, 0
    for signal in signals:
        side, left = (signal, bars) if signal else (side, left - 1)
        expected.append(side if left > 0 else 0)
    assert hold(np.array(signals, dtype=np.int8), bars).tolist() == expected


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_flat_until_it_has_its_bars_and_no_longer(name: str) -> None:
    chosen = RULES[name]
    sooner = {"combination": {"threshold": 0.3}, "sma_cross": {"long_only": False}}.get(name, {})
    needed, rng = chosen.bars_needed(**sooner), np.random.default_rng(5)
    markets = [walk(rng, needed) for _ in range(80)]
    decided = np.array([targets_of(chosen(market, **sooner)) for market in markets])
    assert not decided[:, :-1].any()
    assert decided[:, -1].any()
    assert explain(name, markets[0].iloc[:-1]) == (
        0, f"{name} needs {chosen.bars_needed()} bars and there are {needed - 1}",
    )  # fmt: skip
    assert not len(targets_of(chosen(markets[0].iloc[:0])))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 6), st.sampled_from([0.5, 1.0, 1.5]))
def test_bollinger_is_what_its_sentence_says(seed: int, period: int, width: float) -> None:
    candles = walk(np.random.default_rng(seed), 40)
    close = candles["close"].tolist()
    expected, state = [], 0
    for at, price in enumerate(close):
        window = close[max(0, at - period + 1) : at + 1]
        mean = sum(window) / period
        deviation = (sum((value - mean) ** 2 for value in window) / period) ** 0.5
        if at + 1 >= period:
            # prices are whole numbers: what is this close to a band or the middle is on it
            apart = 0.0 if abs(price - mean) < 1e-9 else price - mean
            outside = abs(apart) - width * deviation > 1e-9
            if outside:
                state = -1 if apart > 0 else 1
            elif apart * state >= 0:
                state = 0
        expected.append(state)
    on_a_band = [
        abs(abs(close[at] - np.mean(close[at - period + 1 : at + 1])) - width * np.std(close[at - period + 1 : at + 1]))
        for at in range(period - 1, len(close))
    ]
    if min(on_a_band) > 1e-9:
        assert strategies.bollinger(candles, period, width).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 6), st.sampled_from([0.5, 1.0, 1.5]))
def test_volume_is_what_its_sentence_says(seed: int, period: int, ratio: float) -> None:
    candles = walk(np.random.default_rng(seed), 40)
    close, volume = candles["close"].tolist(), candles["volume"].tolist()
    flow, expected, state = [volume[0]], [], 0
    for at in range(1, len(close)):
        flow.append(flow[-1] + volume[at] * ((close[at] > close[at - 1]) - (close[at] < close[at - 1])))
    for at in range(len(close)):
        if at + 1 >= period:
            # volumes are whole numbers: sums are exact
            above = period * flow[at] - sum(flow[at - period + 1 : at + 1])
            side = (above > 0) - (above < 0)
            if side != state:
                state = side if period * volume[at] > ratio * sum(volume[at - period + 1 : at + 1]) else 0
        expected.append(state)
    found = strategies.volume(candles, period, ratio)
    # a volume of exactly ``ratio`` times its average may be taken for more or less
    tied = any(
        period * volume[at] == ratio * sum(volume[at - period + 1 : at + 1]) for at in range(period - 1, len(close))
    )
    assert tied or found.tolist() == expected


def test_volume_takes_no_side_where_nothing_moves() -> None:
    # 0.1 + 0.2 + ...: the running average of equal values is not that value
    volume = np.r_[0.1, 0.2, 0.7, np.random.default_rng(0).uniform(0.1, 1.0, 200)]
    close = np.r_[100.0, 101.0, 100.0, np.full(200, 100.0)]
    candles = frame_of(np.arange(203) * 3_600_000, np.c_[close, close, close, close, volume])
    for period in (3, 7, 20):
        assert not strategies.volume(candles, period)[period + 3 :].any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 8), st.integers(2, 4))
def test_breakout_is_what_its_sentence_says(seed: int, entry: int, leave: int) -> None:
    candles = walk(np.random.default_rng(seed), 60)
    high, low, close = (candles[name].tolist() for name in ("high", "low", "close"))
    decided = strategies.breakout(candles, entry, leave, atr=3, stop=1.5)
    expected, state, ranges = [], 0, [np.nan]
    for at in range(1, len(close)):
        ranges.append(max(high[at], close[at - 1]) - min(low[at], close[at - 1]))
    average = [np.nan] * 3 + [sum(ranges[1:4]) / 3]
    for at in range(4, len(close)):
        average.append((2 * average[-1] + ranges[at]) / 3)
    for at, price in enumerate(close):
        if at >= max(entry, 3):
            if price > max(high[at - entry : at]):
                state = 1
            elif price < min(low[at - entry : at]):
                state = -1
            elif (state > 0 and price < min(low[at - leave : at])) or (
                state < 0 and price > max(high[at - leave : at])
            ):
                state = 0
        expected.append(state)
    assert decided.targets.tolist() == expected
    stops = [
        price - side * 1.5 * atr if side else np.nan for price, side, atr in zip(close, expected, average, strict=True)
    ]
    wanted = np.where(np.array(stops) > 0, stops, np.nan)
    np.testing.assert_allclose(decided.stop_price, wanted, rtol=1e-12)


def test_rules_read_the_candles_and_change_nothing(sessions: pd.DataFrame) -> None:
    with pytest.raises(InvalidRequest, match=r"sma_cross: fast=0; it is a whole number from 1 to 10000"):
        RULES["sma_cross"](sessions, fast=0)
    with pytest.raises(InvalidRequest, match=r"fast=50 and slow=20; fast is below slow"):
        RULES["sma_cross"](sessions, fast=50, slow=20)
    np.testing.assert_array_equal(RULES["sma_cross"](sessions, fast=5, slow=20), sma_cross(sessions, 5, 20))
    assert explain("sma_cross", sessions, {"fast": 5, "slow": 20})[1].startswith("SMA(5) ")


def test_probabilities_become_positions_held_for_their_bars() -> None:
    long = np.array([0.6, 0.2, np.nan, 0.1, 0.45, 0.55, 0.3, 0.3])
    short = np.array([0.1, 0.3, np.nan, 0.8, 0.40, 0.45, 0.3, 0.3])
    assert from_probabilities(short, long, 2).tolist() == [1, 1, 0, -1, -1, 1, 1, 0]
    assert from_probabilities(short, long, 2, edge=0.2).tolist() == [1, 1, 0, -1, -1, 0, 0, 0]
    assert from_probabilities(short, long, 1, at_least=0.4).tolist() == [1, 0, 0, -1, 1, 1, 0, 0]
    with pytest.raises(InvalidRequest, match=r"the long probability of bar 1 is 1\.5"):
        from_probabilities(np.zeros(3), np.array([0, 1.5, 0]), 2)
    with pytest.raises(InvalidRequest, match=r"shapes \(3,\) and \(2,\)"):
        from_probabilities(np.zeros(3), np.zeros(2), 2)


def test_votes_are_weighed() -> None:
    votes = {"a": np.array([1, 1, -1, 0, -1]), "b": np.array([1, -1, 1, 0, -1]), "c": np.array([0.0, 1.0, 0.4, 1, 0])}
    assert strategies.combine(votes, {}, 1 / 3).tolist() == [1, 1, 0, 1, -1]
    assert strategies.combine(votes, {"b": 3}, 0.4).tolist() == [1, 0, 1, 0, -1]
    # 0.1 + 0.1 + 0.1 is not 0.3: a vote that just reaches the threshold reaches it with any weights
    assert strategies.combine(votes, dict.fromkeys(votes, 0.1), 1 / 3).tolist() == [1, 1, 0, 1, -1]
    wrong: list[tuple[dict[str, np.ndarray], dict[str, float], float, str]] = [
        (votes, {}, 0.0, "threshold=0.0"),
        (votes, {"d": 1.0}, 0.5, "no targets of d"),
        (votes, {"a": -1.0}, 0.5, "0 or more"),
        (votes, dict.fromkeys(votes, 0.0), 0.5, "one of them is above 0"),
        (votes | {"c": np.zeros(3)}, {}, 0.5, "different lengths"),
        ({}, {}, 0.5, "one of them is above 0"),
    ]
    for targets, weights, threshold, said in wrong:
        with pytest.raises(InvalidRequest, match=said):
            strategies.combine(targets, weights, threshold)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.01, 1))
def test_the_opposite_votes_give_the_opposite_side(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    votes = {name: rng.integers(-1, 2, 30) for name in "abc"}
    weights = dict(zip("abc", rng.uniform(0.1, 1, 3), strict=True))
    opposite = {name: -values for name, values in votes.items()}
    found = strategies.combine(votes, weights, threshold)
    np.testing.assert_array_equal(found, -strategies.combine(opposite, weights, threshold))
    together = [sum(weights[name] * votes[name][at] for name in "abc") / sum(weights.values()) for at in range(30)]
    for score, side in zip(together, found, strict=True):
        assert abs(abs(score) - threshold) < 1e-9 or side == np.sign(score) * (abs(score) >= threshold)


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
