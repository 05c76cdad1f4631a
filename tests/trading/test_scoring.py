"""Settled opinions: the trade by hand, errors against simulation, and weights that no luck can buy."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trading.analysis import Signal
from trading.errors import InvalidRequest
from trading.scoring import (
    EDGES,
    LIMIT,
    PRIOR_TRIALS,
    Outcomes,
    cluster_of,
    clustered_error,
    means,
    reliability,
    score,
    settle,
    typical_move,
    version_of,
    weight,
)

profits = st.lists(st.floats(-0.5, 0.5), max_size=60)


def test_a_signal_is_settled_as_the_trade_that_it_is() -> None:
    # 100 units of money at 50 are two pieces, sold at 55: 110, less 0.15 % of 100 and of 110
    assert settle(Signal.LONG, 50.0, 55.0, 0.0015) == pytest.approx((110 - 100 - 0.15 - 0.165) / 100)
    assert settle(Signal.SHORT, 50.0, 55.0, 0.0015) == pytest.approx((100 - 110 - 0.15 - 0.165) / 100)
    assert settle(Signal.NEUTRAL, 50.0, 55.0, 0.0015) == 0.0
    for entry, leave, cost in ((0.0, 1.0, 0.0), (1.0, math.inf, 0.0), (1.0, math.nan, 0.0), (1.0, 1.0, 1.0)):
        with pytest.raises(InvalidRequest):
            settle(Signal.LONG, entry, leave, cost)


def test_it_is_what_the_backtest_earns_on_the_same_bars() -> None:
    from trading.backtest.engine import Costs, Execution, Rules, run
    from trading.candles import frame_of

    rng = np.random.default_rng(3)
    opens = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, 40)))
    stamps = 1_577_836_800_000 + 3_600_000 * np.arange(40)
    candles = frame_of(stamps, np.column_stack([opens, opens * 1.02, opens * 0.98, opens, np.full(40, 1e9)]))
    for side in (1, -1):
        targets = np.zeros(40, dtype=np.int8)
        targets[10:22] = side  # decided on the close of bar 10, filled at the open of 11, left at the open of 23
        result = run(candles, targets, Rules(Costs(0.001, 0.0), execution=Execution(close_at_end=True)), strategy="x")
        equity = result.equity.to_numpy()
        earned = equity[-1] / result.start_cash - 1
        # the backtest stakes what is left after the fee, which is a thousandth less
        assert earned == pytest.approx(settle(Signal.of(side), opens[11], opens[23], 0.001), rel=0.02, abs=1e-4)


@settings(max_examples=150, deadline=None)
@given(profits, st.floats(0.001, 0.1))
def test_weights_are_bounded_equal_without_a_record_and_of_the_published_form(
    earned: list[float], scale: float
) -> None:
    found = weight(np.array(earned), scale)
    assert 0 <= found <= 2
    cut = [min(max(one / scale, -LIMIT), LIMIT) for one in earned]
    z = sum(cut) / math.sqrt(len(cut) + PRIOR_TRIALS)
    assert found == pytest.approx(2 * NormalDist().cdf(z), abs=1e-9)
    assert weight(np.zeros(len(earned)), scale) == 1.0
    assert found + weight(-np.array(earned), scale) == pytest.approx(2.0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=60), st.floats(0, 10), st.data())
def test_more_profit_never_weighs_less_and_one_lucky_trade_does_not_dominate(
    earned: list[float], more: float, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(earned) - 1))
    luckier = [*earned[:at], earned[at] + more, *earned[at + 1 :]]
    before, after = weight(np.array(earned), 0.02), weight(np.array(luckier), 0.02)
    assert after >= before
    # however lucky, it moves the argument of the normal distribution by no more than this
    most = 2 * LIMIT / math.sqrt(len(earned) + PRIOR_TRIALS)
    assert after - before <= 2 * most * NormalDist().pdf(0) + 1e-12


def test_one_jackpot_does_not_pay_for_a_year_of_losses() -> None:
    losses = np.full(100, -0.004)
    assert weight(losses, 0.02) < 0.1
    assert weight(np.append(losses, 1000.0), 0.02) < 0.15
    assert weight(np.array([1000.0]), 0.02) < 1.35
    assert weight(np.full(100, 0.004), 0.02) > 1.9
    # a few trials say little, whatever they say
    assert 0.7 < weight(np.full(3, -0.01), 0.02) < 1


def test_with_a_known_edge_the_weight_is_as_often_right_as_it_says() -> None:
    # means drawn from the prior itself: among analysts that weigh w, w / 2 earn money in truth
    rng = np.random.default_rng(8)
    means_ = rng.normal(0, 1 / math.sqrt(PRIOR_TRIALS), 4000)
    draws = rng.normal(means_[:, None], 1.0, (4000, 60))
    found = np.array([weight(row, 1.0, limit=50.0) for row in draws]) / 2
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.7), (0.7, 0.9), (0.9, 1.0)):
        mine = (found >= low) & (found <= high)
        assert float((means_[mine] > 0).mean()) == pytest.approx(float(found[mine].mean()), abs=0.05)


@pytest.mark.parametrize(("earned", "scale"), [([0.1], 0.0), ([0.1], math.nan), ([math.nan], 1.0), ([math.inf], 1.0)])
def test_what_cannot_be_weighed_is_refused(earned: list[float], scale: float) -> None:
    with pytest.raises(InvalidRequest):
        weight(np.array(earned), scale)


def test_the_error_of_a_mean_is_that_of_clusters_and_not_of_rows() -> None:
    # 30 spans, in each of which all twenty opinions share one outcome: a simulation knows the true error
    rng = np.random.default_rng(4)
    cluster = np.repeat(np.arange(30), 20)
    found = []
    drawn = []
    for _ in range(400):
        values = np.repeat(rng.normal(0, 1, 30), 20)
        drawn.append(values.mean())
        found.append(clustered_error(values, cluster))
    true = float(np.std(drawn))
    assert float(np.mean(np.array(found))) == pytest.approx(true, rel=0.1)
    naive = 1 / math.sqrt(600)
    assert true > 4 * naive
    # with one row in a cluster it is the textbook's
    values = rng.normal(0, 1, 50)
    assert clustered_error(values, np.arange(50)) == pytest.approx(values.std(ddof=1) / math.sqrt(50))
    assert clustered_error(values, np.zeros(50)) is None
    assert clustered_error(np.zeros(0), np.zeros(0)) is None


def outcomes(direction: list[int], confidence: list[float], moved: list[float], usd: float = 0.0) -> Outcomes:
    count = len(direction)
    sides, moves = np.array(direction, dtype=np.int8), np.array(moved)
    earned = np.array(
        [settle(Signal.of(side), 100, 100 * (1 + move), 0.001) for side, move in zip(direction, moved, strict=True)]
    )
    return Outcomes(
        sides, np.array(confidence), moves, earned, np.abs(moves) < 0.002, np.full(count, usd), np.arange(count)
    )


def test_the_figures_of_a_handful_of_opinions_by_hand() -> None:
    rows = outcomes([1, -1, 1, 0, 0], [0.8, 0.6, 0.5, 0.4, 0.3], [0.02, 0.01, 0.001, 0.001, 0.05], usd=0.01)
    found = score(rows, 0.02)
    assert (found.count, found.signals, found.clusters, found.useful) == (5, 3, 3, 1)
    assert found.hit_rate == pytest.approx(2 / 3)
    assert found.brier == pytest.approx((0.2**2 + 0.6**2 + 0.5**2) / 3)
    net = [0.02 - 0.001 * 2.02, -0.01 - 0.001 * 2.01, 0.001 - 0.001 * 2.001]
    assert found.profit == pytest.approx(sum(net) / 3)
    assert found.total == pytest.approx(sum(net))
    assert found.profit_error == pytest.approx(np.std(net, ddof=1) / math.sqrt(3))
    assert found.neutral_right == pytest.approx(0.5)
    assert found.usd == pytest.approx(0.05)
    assert found.usd_per_useful == pytest.approx(0.05)
    assert found.weight == pytest.approx(weight(np.array(net), 0.02))
    assert [(one.low, one.high, one.count) for one in found.buckets] == [(0.4, 0.6, 2), (0.6, 0.8, 1)]
    gaps = [2 * abs(0.55 - 0.5), abs(0.8 - 1.0)]
    assert found.calibration_error == pytest.approx(sum(gaps) / 3)
    assert found.metrics()["signals"] == 3.0
    assert found.document()["buckets"][0]["count"] == 2


def test_who_took_no_side_has_no_rate_and_who_was_not_heard_has_no_figures() -> None:
    quiet = score(outcomes([0, 0], [0.5, 0.5], [0.0, 0.1]), 0.02)
    assert (quiet.hit_rate, quiet.profit, quiet.brier, quiet.usd_per_useful) == (None, None, None, None)
    assert (quiet.neutral_right, quiet.weight, quiet.buckets) == (0.5, 1.0, ())
    nobody = score(outcomes([], [], []), 0.02)
    assert (nobody.count, nobody.neutral_right, nobody.weight) == (0, None, 1.0)
    with pytest.raises(InvalidRequest, match="different lengths"):
        replace(outcomes([0, 0], [0.5, 0.5], [0.0, 0.1]), cluster=np.zeros(3))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_every_opinion_is_in_one_bucket(said: list[tuple[float, bool]]) -> None:
    sure, hits = np.array([one for one, _ in said]), np.array([float(hit) for _, hit in said])
    buckets = reliability(sure, hits)
    assert sum(bucket.count for bucket in buckets) == len(said)
    assert sum(bucket.count * bucket.hit_rate for bucket in buckets) == pytest.approx(hits.sum())
    for bucket in buckets:
        assert bucket.low - 1e-12 <= bucket.confidence <= bucket.high + 1e-12
        assert bucket.high in EDGES


def test_neighbouring_futures_share_a_cluster_and_records_belong_to_a_version() -> None:
    hour = 3_600_000
    first = cluster_of(0, 12 * hour)
    assert cluster_of(23 * hour, 12 * hour) == first
    assert cluster_of(24 * hour, 12 * hour) == 24 * hour
    # in the order of time, whatever the horizons: the newest is the last
    assert cluster_of(100 * hour, 24 * hour) > cluster_of(40 * hour, 12 * hour)
    assert means(np.array([1.0, 3.0, 5.0]), np.array([7, 7, 9])).tolist() == [2.0, 5.0]
    assert typical_move(np.array([0.03, -0.04])) == pytest.approx(math.sqrt(0.00125))
    assert typical_move(np.zeros(0)) == 1.0
    assert version_of({"model": "BTC-1h", "version": "7", "run_id": "x"}) == "BTC-1h 7"
    assert version_of({}) == ""
