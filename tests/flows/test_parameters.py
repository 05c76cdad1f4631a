"""What flows take as parameters, beyond what their forms can say."""

from __future__ import annotations

import pytest
from prefect.exceptions import ParameterTypeError
from prefect.utilities.schema_tools import ValidationError, validate
from pydantic import TypeAdapter

from deployments import show
from deployments.forms import form_of
from flows.cycle import cycle
from flows.ingest import ingest
from flows.parameters import Symbols
from flows.settle import settle
from flows.train import train
from trading.errors import InvalidRequest

TWICE = ["BTCUSDT", "ETHUSDT", "BTCUSDT"]
SAID = "BTCUSDT given more than once; give each symbol once"


def test_symbols_keep_their_order() -> None:
    assert TypeAdapter(Symbols).validate_python(["ETHUSDT", "BTCUSDT"]) == ["ETHUSDT", "BTCUSDT"]


@pytest.mark.parametrize("flow", [ingest, train, settle])
def test_a_symbol_given_twice_is_refused_by_its_name(flow: object) -> None:
    with pytest.raises(ParameterTypeError, match=SAID):
        flow.validate_parameters({"symbols": TWICE})  # type: ignore[attr-defined]
    # and by the server, before there is a run
    form = form_of(flow)
    assert form["properties"]["symbols"]["uniqueItems"] is True
    with pytest.raises(ValidationError, match=r"'symbols'.*has non-unique elements"):
        validate({"symbols": TWICE}, form, raise_on_error=True)
    validate({"symbols": TWICE[:2]}, form, raise_on_error=True)


def test_a_symbol_given_twice_in_a_group_is_refused() -> None:
    with pytest.raises(ParameterTypeError, match=SAID):
        cycle.validate_parameters({"groups": [{"symbols": TWICE}]})
    with pytest.raises(ValidationError, match="has non-unique elements"):
        validate({"groups": [{"symbols": TWICE}]}, form_of(cycle), raise_on_error=True)


def test_the_command_line_says_the_same() -> None:
    with pytest.raises(InvalidRequest, match=f"symbols: Value error, {SAID}"):
        show.watched(lambda: train(TWICE))
