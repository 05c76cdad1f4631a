"""Who spoke, what it counted, and that nobody is invented."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trading.analysis import Abstention, Cost, Opinion, Signal, combine, judged
from trading.errors import InvalidRequest

NAMES = ("model", "technical", "llm")


def opinion(who: str, signal: Signal = Signal.LONG, confidence: float = 0.6) -> Opinion:
    return Opinion(who, signal, confidence, ("because",))


@pytest.mark.parametrize(
    ("spoke", "absent", "basis"),
    [
        (["model", "technical", "llm"], [], "all"),
        (["technical"], [], "all"),  # nobody else was wanted
        (["technical", "model"], ["llm"], "model+technical"),
        (["technical"], ["llm", "model"], "technical"),
        (["llm", "technical"], ["model"], "technical+llm"),
        ([], ["llm", "model", "technical"], "neutral"),
        (["llm"], ["model", "technical"], "neutral"),
    ],
)
def test_the_basis_names_who_spoke_and_a_missing_part_is_named(spoke: list[str], absent: list[str], basis: str) -> None:
    gone = [Abstention(name, f"{name} has no key") for name in absent]
    found = combine([opinion(name) for name in spoke], {}, abstentions=gone)
    assert found.basis == basis
    assert found.absent == tuple(absent)
    assert found.degraded == bool(absent)
    assert [f"{name} was not available" for name in absent] == list(found.reasons[: len(absent)])
    assert {f"{name} has no key" for name in absent} <= set(found.reasons)
    assert (found.signal is Signal.NEUTRAL) == (basis == "neutral")


def test_an_llm_alone_moves_nothing_also_where_the_others_weigh_nothing() -> None:
    sure = opinion("llm", confidence=1.0)
    alone = combine([sure], {})
    assert (alone.signal, alone.confidence, alone.weights) == (Signal.NEUTRAL, 0.0, {"llm": 0.0})
    assert alone.reasons[-1] == "nobody whose word counts has spoken"
    among_losers = combine([sure, opinion("model")], {"model": 0.0})
    assert (among_losers.signal, among_losers.basis) == (Signal.NEUTRAL, "neutral")


def test_who_is_only_compared_counts_nothing() -> None:
    rival = opinion("challenger", Signal.SHORT, 1.0)
    with_, without = (combine([opinion("model")], {}, compared=rivals) for rivals in ([rival], []))
    assert with_.compared == (rival,)
    assert replace(with_, compared=()) == without


def test_where_everybody_lost_money_nobody_is_followed() -> None:
    spoken = [opinion("model", Signal.LONG, 0.9), opinion("technical", Signal.LONG, 0.8)]
    assert combine(spoken, {}).signal is Signal.LONG
    losers = combine(spoken, {"model": 0.1, "technical": 0.1})
    assert losers.signal is Signal.NEUTRAL
    assert sum(losers.weights.values()) == pytest.approx(0.1)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_or_a_confidence_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(InvalidRequest, match="the weight of model is"):
        combine([opinion("model")], {"model": weight})
    with pytest.raises(InvalidRequest, match=r"model is .* sure; it is from 0 to 1"):
        combine([opinion("model", confidence=1.5 if weight < 0 else weight)], {})


spoken = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(list(Signal)), st.floats(0, 1), st.floats(0, 2)),
    max_size=3,
    unique_by=lambda one: one[0],
)


@settings(max_examples=150, deadline=None)
@given(spoken, st.floats(0.01, 0.99))
def test_the_combination_is_bounded_and_its_parts_add_up(
    said: list[tuple[str, Signal, float, float]], threshold: float
) -> None:
    opinions = [opinion(name, signal, sure) for name, signal, sure, _ in said]
    weights = {name: weight for name, *_, weight in said}
    found = combine(opinions, weights, threshold=threshold)
    assert -1 <= found.score <= 1
    assert 0 <= found.confidence <= 1
    assert sum(found.weights.values()) <= 1 + 1e-12
    # an independent way to the same number
    shares = np.array([found.weights[one.analyst] for one in opinions])
    towards = np.array([one.signal.direction * one.confidence for one in opinions])
    assert found.score == pytest.approx(float(shares @ towards) if opinions else 0.0, abs=1e-12)
    assert found.signal is (Signal.of(found.score) if abs(found.score) >= threshold else Signal.NEUTRAL)
    assert set(found.weights) == {one.analyst for one in opinions}


@settings(max_examples=100, deadline=None)
@given(st.floats(0.05, 1), st.floats(0.05, 1), st.floats(0.1, 2), st.floats(0.1, 2))
def test_disagreement_lowers_confidence(one: float, other: float, mine: float, theirs: float) -> None:
    weights = {"model": mine, "technical": theirs}
    together, apart = (
        combine([opinion("model", Signal.LONG, one), opinion("technical", side, other)], weights)
        for side in (Signal.LONG, Signal.SHORT)
    )
    assert abs(apart.score) < abs(together.score)
    # and more weight for one side moves the score its way
    heavier = combine(list(apart.opinions), {**weights, "model": mine + 1})
    assert heavier.score > apart.score


def test_below_the_threshold_it_is_half_sure_at_most() -> None:
    assert judged(0.2, 0.2) == (Signal.LONG, 0.2)
    assert judged(-0.2, 0.2) == (Signal.SHORT, 0.2)
    assert judged(0.0, 0.2) == (Signal.NEUTRAL, 0.5)
    signal, confidence = judged(0.1999, 0.2)
    assert signal is Signal.NEUTRAL
    assert confidence == pytest.approx(0.00025)


def test_what_analysts_said_before_these_fields_were_there_reads_as_before() -> None:
    plain = Opinion("rsi", Signal.LONG, 0.5, ("low",))
    assert (plain.horizon, plain.cost, plain.latency, plain.parts, dict(plain.provenance)) == (0, None, None, (), {})
    assert Cost(0.1) == Cost(0.1, 0, 0)
