"""Parameters are written, read and enumerated, and what a rule does not allow is refused by name."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trading.errors import InvalidRequest
from trading.strategies import RULES
from trading.strategy_grids import neighbourhood, parameter_sets, parse, written


@pytest.mark.parametrize("name", RULES)
def test_every_set_of_a_grid_is_allowed_and_there_once(name: str) -> None:
    chosen = RULES[name]
    sets = parameter_sets(chosen)
    assert chosen.defaults in sets
    assert len({written(name, each) for each in sets}) == len(sets) > 20
    assert all(chosen.checked(each) == each for each in sets)
    assert set(chosen.heat) <= set(chosen.parameters)
    assert chosen.description.endswith(".")


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_what_is_written_is_read(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(RULES)))
    parameters = data.draw(st.sampled_from(parameter_sets(RULES[name])))
    for key, parameter in RULES[name].parameters.items():
        if isinstance(parameter.default, float):
            # any float within the allowed range keeps its last digit
            parameters = parameters | {key: data.draw(st.floats(parameter.lowest, parameter.highest))}
    if all(parameters[lower] < parameters[upper] for lower, upper in RULES[name].ordered):
        assert parse(written(name, parameters)) == (name, parameters)


def test_what_is_not_written_has_its_default() -> None:
    defaults = {"fast": 20, "slow": 50, "long_only": True}
    assert parse("sma_cross") == parse(" sma_cross ( ) ") == ("sma_cross", defaults)
    assert parse("sma_cross(slow = 30,fast=10)") == ("sma_cross", {"fast": 10, "slow": 30, "long_only": True})
    assert parse("sma_cross(long_only=False)")[1]["long_only"] is False
    assert parse("bollinger(width=3)") == ("bollinger", {"period": 20, "width": 3.0})
    assert isinstance(parse("bollinger(width=3)")[1]["width"], float)
    assert RULES["macd"].checked({"fast": np.int64(5)}) == {"fast": 5, "slow": 26, "signal": 9}
    assert list(parse("sma_cross(slow=30, fast=10)")[1]) == ["fast", "slow", "long_only"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("astrology", "'astrology' is not a rule; use one of rsi, macd"),
        ("", "'' is not a strategy; write it like"),
        ("sma_cross(fast=1", "is not a strategy; write it like"),
        ("sma_cross(fast=(1))", "is not a strategy"),
        ("sma_cross(10, 30)", "'10' in 'sma_cross.10, 30.' is not a parameter; write it like"),
        ("sma_cross(fast=10,)", "'' in "),
        ("sma_cross(fast=5, fast=6)", "has fast twice"),
        ("sma_cross(quick=5)", "sma_cross has no parameter 'quick'; it takes fast, slow, long_only"),
        ("sma_cross(quick=x)", "quick=x; it takes fast, slow, long_only"),
        ("sma_cross(fast=ten)", "sma_cross: fast=ten; it is a whole number from 1 to 10000"),
        ("sma_cross(fast=)", "sma_cross: fast=; it is a whole number"),
        ("sma_cross(fast=5.5)", "fast=5.5; it is a whole number from 1 to 10000"),
        ("sma_cross(fast=true)", "fast=True; it is a whole number"),
        ("sma_cross(fast=-3)", "fast=-3; it is a whole number from 1"),
        ("sma_cross(long_only=1)", "long_only=1; it is true or false"),
        ("sma_cross(fast=50)", "fast=50 and slow=50; fast is below slow"),
        ("rsi(low=nan)", "low=nan; it is a number from 0 to 50"),
        ("rsi(high=inf)", "high=inf; it is a number from 50 to 100"),
        ("breakout(exit=30)", "exit=30 and entry=20; exit is below entry"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        parse(text)


def test_a_grid_of_ones_own() -> None:
    chosen = RULES["sma_cross"]
    assert parameter_sets(chosen, {"fast": [10, 30, 10], "slow": [20, 40]}) == [
        {"fast": 10, "slow": 20, "long_only": True},
        {"fast": 10, "slow": 40, "long_only": True},
        {"fast": 30, "slow": 40, "long_only": True},
    ]
    assert parameter_sets(chosen, {}) == [chosen.defaults]
    with pytest.raises(InvalidRequest, match=r"no set of the grid .* fast is below slow"):
        parameter_sets(chosen, {"fast": [60], "slow": [20, 60]})
    with pytest.raises(InvalidRequest, match=r"has no parameter 'quick'"):
        parameter_sets(chosen, {"quick": [1]})
    with pytest.raises(InvalidRequest, match=r"fast=0; it is a whole number"):
        parameter_sets(chosen, {"fast": [5, 0]})
    for empty in ([], "12"):
        with pytest.raises(InvalidRequest, match=r"the grid of fast is .*; give a list"):
            parameter_sets(chosen, {"fast": empty})  # type: ignore[dict-item]


@pytest.mark.parametrize("name", RULES)
def test_a_neighbourhood_is_a_grid_around_the_chosen_set(name: str) -> None:
    chosen = RULES[name]
    own = chosen.defaults | ({"width": 2.25} if name == "bollinger" else {})
    grid = neighbourhood(chosen, own)
    assert own in parameter_sets(chosen, grid)
    for key, values in grid.items():
        assert all(lower < upper for lower, upper in pairwise(values))
        assert (len(values) > 1) == (key in chosen.heat)
