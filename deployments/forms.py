"""The form of a deployment: what Prefect makes of a flow's annotations, with the limits in words.

Prefect's pages show the title and the description of a field and hold back its limits until a value is refused.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any


def form_of(flow: Any) -> dict[str, Any]:
    """The JSON schema that the server shows and holds parameters to.

    A parameter that the flow does not have is refused: otherwise the server takes it, and the run crashes.
    """
    from prefect.utilities.callables import parameter_schema

    schema = parameter_schema(flow).model_dump_for_openapi()
    definitions = {name: _told(one) for name, one in schema.get("definitions", {}).items()}
    return {**_told(schema), "definitions": definitions, "additionalProperties": False}


def limits(field: Mapping[str, Any]) -> str:
    """What a field's value may be, such as ``from 1 to 20,000``; nothing where it is chosen from a list, or free."""
    for one in (field, *field.get("anyOf", ())):
        low = _bound(one, "minimum", "exclusiveMinimum", "at least", "above")
        high = _bound(one, "maximum", "exclusiveMaximum", "at most", "below")
        few, many = one.get("minItems"), one.get("maxItems") or one.get("maxProperties")
        if low or high:
            both = "minimum" in one and "maximum" in one
            return (
                f"from {_number(one['minimum'])} to {_number(one['maximum'])}"
                if both
                else ", ".join(filter(None, (low, high)))
            )
        if many:
            return f"from {few:,} to {many:,} of them" if few else f"at most {many:,} of them"
        if one.get("type") == "string" and one.get("maxLength"):
            return f"at most {one['maxLength']:,} characters"
    return ""


def _bound(field: Mapping[str, Any], inclusive: str, exclusive: str, *words: str) -> str:
    for key, word in zip((inclusive, exclusive), words, strict=True):
        if key in field:
            return f"{word} {_number(field[key])}"
    return ""


def _number(value: float) -> str:
    return f"{value:,.15g}"


def _told(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with limits and an example in the description of each property."""
    told = copy.deepcopy(dict(schema))
    for field in told.get("properties", {}).values():
        field["description"] = " ".join(filter(None, (field.get("description", ""), *_sentences(field))))
    return told


def _sentences(field: Mapping[str, Any]) -> Iterable[str]:
    bounds = limits(field)
    if bounds:
        yield f"{bounds[0].upper()}{bounds[1:]}."
    kinds = {one.get("type") for one in (field, *field.get("anyOf", ()))}
    # of a number or a choice the default says enough
    if field.get("examples") and kinds & {"object", "array"}:
        yield f"For example {json.dumps(field['examples'][0])}."
