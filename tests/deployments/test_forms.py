"""The forms of all deployments: every field says what it is and what it may be, and holds values to that."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from prefect.utilities.schema_tools import ValidationError, validate

from deployments import declared, forms

DEPLOYMENTS = {one.name: one for one in declared.read()}
SCHEMAS = {name: forms.form_of(declared.flow_of(one.entrypoint)) for name, one in DEPLOYMENTS.items()}


def fields(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of a form, those in groups of parameters among them."""
    for group, one in {"": schema, **schema.get("definitions", {})}.items():
        for name, field in one.get("properties", {}).items():
            yield f"{path}{group}.{name}".lstrip("."), field


EVERY = [pytest.param(field, id=f"{name}:{at}") for name, schema in SCHEMAS.items() for at, field in fields(schema)]


def variants(field: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a value may be, but for nothing."""
    keys = {key: value for key, value in field.items() if key == "propertyNames"}
    return [{**keys, **one} for one in field.get("anyOf", [field]) if one.get("type") != "null"]


def limited(one: Mapping[str, Any]) -> bool:
    """Whether a value has limits: a list of choices, a range, a pattern, a largest size."""
    if "$ref" in one or "enum" in one or "const" in one:
        return True
    match one.get("type"):
        case "boolean":
            return True
        case "integer" | "number":
            return bool({"minimum", "exclusiveMinimum"} & set(one) and {"maximum", "exclusiveMaximum"} & set(one))
        case "string":
            return bool({"pattern", "maxLength"} & set(one))
        case "array":
            return "maxItems" in one and all(map(limited, variants(one["items"])))
        case "object":
            return "maxProperties" in one and "propertyNames" in one
    return False


@pytest.mark.parametrize("field", EVERY)
def test_every_field_has_a_title_a_description_and_limits(field: dict[str, Any]) -> None:
    # one that refers to a group of parameters may have the group's
    title, description = field.get("title", "Group" if "$ref" in field else ""), field["description"]
    assert title and "_" not in title and title[0].isupper()
    assert description[0].isupper() and description.endswith(".") and "\n" not in description
    assert all(map(limited, variants(field)))


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_not_required_has_a_default_that_fits_and_so_do_the_examples(name: str) -> None:
    schema = SCHEMAS[name]
    for part in (schema, *schema.get("definitions", {}).values()):
        for at, field in part.get("properties", {}).items():
            assert at in part.get("required", []) or "default" in field, at
            for value in [*([field["default"]] if "default" in field else []), *field.get("examples", [])]:
                alone = {"properties": {at: field}, "definitions": schema.get("definitions", {}), "type": "object"}
                validate({at: value}, alone, raise_on_error=True)
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("name", SCHEMAS)
def test_no_two_fields_of_a_form_have_one_title(name: str) -> None:
    titles = [field["title"] for field in SCHEMAS[name]["properties"].values() if "title" in field]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_docstring_of_a_flow_does_not_say_it_again(name: str) -> None:
    """The description is in one place: what the docstring says, Prefect would show where nothing else does."""
    assert "Args:" not in (declared.flow_of(DEPLOYMENTS[name].entrypoint).fn.__doc__ or "")


@pytest.mark.parametrize(
    ("name", "parameters", "told"),
    [
        ("analyse", {"symbols": ["A"], "day": 3}, "'day' was unexpected"),
        ("analyse", {}, "'symbols' is a required property"),
        ("analyse", {"symbols": []}, "should be non-empty"),
        ("analyse", {"symbols": ["A b"]}, r"'symbols\[0\]'.*'A b' does not match"),
        ("analyse", {"symbols": ["A"] * 2_001}, "'symbols'.*is too long"),
        ("analyse", {"symbols": ["A"], "days": 0}, "'days'.*0 is less than the minimum of 1"),
        ("analyse", {"symbols": ["A"], "threshold": 1}, "'threshold'.*1 is greater than or equal to the maximum of 1"),
        ("analyse", {"symbols": ["A"], "timeframe": "7m"}, "'timeframe'.*'7m' is not one of .*'15m'"),
        ("analyse", {"symbols": ["A"], "strategies": ["rzi"]}, "'rzi' is not one of .*'rsi'"),
        ("analyse", {"symbols": ["A"], "strategy_parameters": {"rzi": {}}}, "'rzi' is not one of .*'rsi'"),
        ("analyse", {"symbols": ["A"], "start": "2026-01-01"}, "'start'.*'2026-01-01' does not match"),
        ("analyse", {"symbols": ["A"], "start": "2026-01-01T00:00:00"}, "does not match"),
        ("train", {"symbols": ["A"], "parameters": {"xgboost": {}}}, "'xgboost' is not one of"),
        ("train", {"symbols": ["A"], "rolling_days": 0}, "'rolling_days'.*less than the minimum of 1"),
        ("backtest", {"symbols": ["A"], "strategies": ["rsi", "rzi(period=3)"]}, r"'strategies\[1\]'.*'rzi"),
        ("backtest", {"symbols": ["A"], "sizing": {"risk": 1}}, "'sizing.risk'.*maximum of 1"),
        ("backtest", {"symbols": ["A"], "sizing": {"rsk": 0.1}}, "'sizing'.*'rsk' was unexpected"),
        ("cycle", {"groups": [{"symbols": ["A"], "days": 0}]}, r"'groups\[0\].days'.*minimum of 1"),
        ("costs", {"day": "yesterday"}, "'day'.*does not match"),
        ("notify", {"flow_run_id": "7", "kind": "failed", "severity": "info"}, "'flow_run_id'.*does not match"),
        ("maintain", {"llm_calls_days": 61}, "'llm_calls_days'.*minimum of 62"),
        ("review", {"lift_reason": "x" * 501}, "'lift_reason'.*is too long"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name_and_limit(name: str, parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        validate(parameters, SCHEMAS[name], raise_on_error=True)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # as the date picker of Prefect's pages says it, and as programs do
        ("analyse", {"symbols": ["A"], "start": "2026-11-21T15:38:00Z", "end": "2026-11-21T15:38:00.123456+00:00"}),
        ("analyse", {"symbols": ["BTC/USDT:perp"[:8], "BRK.B"], "threshold": None, "strategies": None}),
        ("backtest", {"symbols": ["A"], "strategies": ["champion", "sma_cross(fast=10, slow=30)", " walk_forward "]}),
        ("costs", {"day": "2026-11-21"}),
        ("costs", {}),
    ],
)
def test_a_right_value_is_taken(name: str, parameters: dict[str, Any]) -> None:
    validate(parameters, SCHEMAS[name], raise_on_error=True)
    # and the flow takes what the server does
    declared.flow_of(DEPLOYMENTS[name].entrypoint).validate_parameters(copy.deepcopy(parameters))


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ({"minimum": 1, "maximum": 20_000}, "from 1 to 20,000"),
        ({"minimum": 0, "exclusiveMaximum": 1}, "at least 0, below 1"),
        ({"exclusiveMinimum": 0, "maximum": 1e12}, "above 0, at most 1,000,000,000,000"),
        ({"anyOf": [{"minimum": 1, "maximum": 3}, {"type": "null"}]}, "from 1 to 3"),
        ({"minItems": 1, "maxItems": 100}, "from 1 to 100 of them"),
        ({"maxProperties": 50}, "at most 50 of them"),
        ({"type": "string", "maxLength": 500}, "at most 500 characters"),
        ({"enum": ["a"]}, ""),
    ],
)
def test_limits_in_words(field: dict[str, Any], told: str) -> None:
    assert forms.limits(field) == told
