"""The barrier search against hand-made bars and a plain walk along every bar's worst path."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.barriers import Sides, classify, follow, volatility

Bar = tuple[float, float, float]  # open, high, low
ENTRY: Bar = (100, 101, 99)
QUIET: Bar = (100, 100.5, 99.5)


def _follow(bars: list[Bar], target: float, stop: float, horizon: int) -> Sides:
    opens, highs, lows = np.array(bars, dtype=np.float64).T.copy()
    return follow(opens, highs, lows, np.full(len(bars), target), np.full(len(bars), stop), horizon)


def _walk(bars: list[Bar], at: int, side: int, target: float, stop: float, horizon: int) -> tuple[float, int, int]:
    """Move, end and touched barrier (+1 upper, -1 lower) of one position, price by price, the bad extreme first."""
    entry = bars[at + 1][0]
    up, down = (target, stop) if side == 1 else (stop, target)
    above, below = entry * (1 + up), entry * (1 - down)
    for bar in range(at + 1, at + 1 + horizon):
        opened, high, low = bars[bar]
        for price, inside in ((opened, False), *(((low, True), (high, True))[::side])):
            reached = [hit for hit, yes in ((-1, price <= below), (1, price >= above))[::side] if yes]
            if reached:
                barrier = up if reached[0] == 1 else -down
                return (barrier if inside else price / entry - 1), bar + 1, reached[0]
    return bars[at + 1 + horizon][0] / entry - 1, at + 1 + horizon, 0


def _label(
    long: tuple[float, int, int], short: tuple[float, int, int], buy: float, sell: float
) -> tuple[int, float, int]:
    winners = sorted([(long[1], 1)] * (long[2] == 1) + [(short[1], -1)] * (short[2] == -1))
    both = (long[0] + short[0]) / 2
    if len(winners) == 2 and winners[0][0] == winners[1][0]:
        return 0, both, long[1]
    if winners:
        side = winners[0][1]
        return side, (long if side == 1 else short)[0], winners[0][0]
    last = max(long[1], short[1])
    if long[2] == 0 and long[0] > buy:
        return 1, long[0], last
    if short[2] == 0 and short[0] < sell:
        return -1, short[0], last
    return 0, both, last


@st.composite
def _bars(draw: st.DrawFn) -> list[Bar]:
    """Bars on a coarse grid of prices, so that exact touches, gaps and bars over both barriers are common."""
    random = np.random.default_rng(draw(st.integers(0, 1_000_000)))
    close, bars = 100, []
    for _ in range(draw(st.integers(0, 40))):
        opened = close + int(random.choice([0, 0, 0, -3, 3]))
        close = opened + int(random.integers(-2, 3))
        bars.append(
            (opened, max(opened, close) + int(random.integers(0, 3)), min(opened, close) - int(random.integers(0, 3)))
        )
    return [tuple(map(float, bar)) for bar in bars]  # type: ignore[misc]


WIDTHS = st.sampled_from([0.0, 0.01, 0.02, 0.03, 0.05])


@settings(max_examples=120, deadline=None)
@given(bars=_bars(), target=WIDTHS, stop=WIDTHS, horizon=st.integers(1, 12), least=WIDTHS)
def test_agrees_with_a_walk_along_every_bar(
    bars: list[Bar], target: float, stop: float, horizon: int, least: float
) -> None:
    sides = _follow(bars, target, stop, horizon) if bars else follow(*(np.empty(0) for _ in range(5)), horizon)
    labels, moves, ends = classify(sides, least, -least)
    assert len(labels) == max(len(bars) - horizon - 1, 0)
    for at in range(len(labels)):
        long, short = (_walk(bars, at, side, target, stop, horizon) for side in (1, -1))
        assert (sides.long_end[at], sides.long_touch[at]) == long[1:]
        assert (sides.short_end[at], sides.short_touch[at]) == short[1:]
        np.testing.assert_allclose([sides.long_move[at], sides.short_move[at]], [long[0], short[0]], atol=1e-12)
        label, move, end = _label(long, short, least, -least)
        assert (labels[at], ends[at]) == (label, end)
        assert moves[at] == pytest.approx(move, abs=1e-12)


@pytest.mark.parametrize(
    ("bars", "label", "move", "end"),
    [
        ([ENTRY, (100, 102, 99.5), QUIET], 1, 0.02, 3),  # touched exactly, filled at the barrier
        ([ENTRY, (100, 100.5, 98), QUIET], -1, -0.02, 3),
        ([(100, 102.5, 99), QUIET, QUIET], 1, 0.02, 2),  # in the bar of the fill already
        ([ENTRY, (100, 103, 97), QUIET], 0, 0.0, 3),  # both in one bar: both sides take their stop
        ([ENTRY, (104, 105, 90), QUIET], 1, 0.04, 3),  # opened beyond the target: filled at the open, first
        ([ENTRY, (95, 110, 94), QUIET], -1, -0.05, 3),
        ([ENTRY, QUIET, QUIET], 0, 0.009, 4),  # given up at 100.9: less than what counts
        ([ENTRY, QUIET, (100, 103, 99)], 1, 0.02, 4),  # in the last bar held
    ],
)
def test_by_hand(bars: list[Bar], label: int, move: float, end: int) -> None:
    # decided on bar 0, filled at 100 at the open of bar 1, held for three bars, given up at the open of bar 4
    found = classify(_follow([QUIET, *bars, (100.9, 120, 80)], 0.02, 0.02, 3), 0.01, -0.01)
    assert [values[0] for values in found] == [label, pytest.approx(move, abs=1e-12), end]


def test_given_up_above_the_least_that_counts_is_a_label_of_that_side() -> None:
    sides = _follow([QUIET, ENTRY, QUIET, (101.5, 103, 101)], 0.02, 0.02, 2)
    assert [classify(sides, least, -least)[0].tolist() for least in (0.014, 0.016)] == [[1], [0]]


def test_target_and_stop_of_different_width_are_followed_for_both_sides() -> None:
    # up by 1.5 %, then down by 4: with a near stop both are stopped; with a far one the short earns 3 %
    bars = [QUIET, (100, 101.5, 100), (100, 100, 96), (98, 98, 98), (98, 98, 98)]
    near = _follow(bars, 0.03, 0.01, 3)
    assert (near.long_touch.tolist(), near.short_touch.tolist()) == ([-1], [1])
    assert [values[0] for values in classify(near, 0.005, -0.005)] == [0, 0.0, 3]
    # stopped, and back above the least that counts when the horizon ends: the long earned nothing
    back = _follow([QUIET, QUIET, (100, 100.5, 98.9), (100, 102, 100), (101.5, 101.5, 101.5)], 0.03, 0.01, 3)
    assert classify(back, 0.005, -0.005)[0].tolist() == [0]
    back = _follow([QUIET, QUIET, (100, 100.5, 98.9), (100, 100.5, 100), (100.9, 101, 100.9)], 0.03, 0.01, 3)
    assert [values[0] for values in classify(back, 0.005, -0.005)] == [0, pytest.approx((-0.01 + 0.009) / 2), 4]
    far = _follow(bars, 0.03, 0.05, 3)
    assert (far.long_move[0], far.long_end[0]) == (pytest.approx(-0.02), 4)
    assert [values[0] for values in classify(far, 0.005, -0.005)] == [-1, -0.03, 3]


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 60), span=st.integers(2, 30), seed=st.integers(0, 1000))
def test_volatility_is_the_weighted_mean_of_what_is_past(rows: int, span: int, seed: int) -> None:
    closes = 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.01, rows)))
    found = volatility(closes, span)
    assert len(found) == rows
    assert (found[:1] == 0).all()
    for at in range(1, rows):
        moves = [np.log(closes[bar] / closes[bar - 1]) for bar in range(at, 0, -1)]
        weights = [(1 - 2 / (span + 1)) ** age for age in range(at)]
        expected = np.sqrt(sum(w * m * m for w, m in zip(weights, moves, strict=True)) / sum(weights))
        assert found[at] == pytest.approx(expected, rel=1e-9)
    np.testing.assert_array_equal(volatility(closes[: rows // 2], span), found[: rows // 2])
