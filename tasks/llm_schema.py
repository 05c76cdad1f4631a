"""What a reply must look like: from a pydantic class the schema that the endpoint is given, and the check of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

T = TypeVar("T", bound=BaseModel)

# what strict mode of every endpoint knows; bounds are told in descriptions and checked here
_KEYWORDS: Final = frozenset(
    {"type", "properties", "items", "enum", "const", "required", "description", "$defs", "$ref", "anyOf"}
)
LARGEST: Final = 20_000
PROBLEMS: Final = 5
SHOWN: Final = 400
_ODD: Final = re.compile(r"[^\w .,:;'()-]+")


@lru_cache(maxsize=16)
def response_format(reply: type[BaseModel]) -> Mapping[str, Any]:
    """The ``response_format`` of a chat completion that must be a ``reply``: strict, no further fields."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", reply.__name__).lower()
    schema = _strict(reply.model_json_schema())
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


def problem_of(text: str, reply: type[T], *, cut: bool = False) -> tuple[T | None, str]:
    """The reply that ``text`` is, or None and what is wrong with it.

    Args:
        cut: it ended at the most tokens that it may have.
    """
    if not text.strip():
        return None, "it was empty"
    if len(text) > LARGEST:
        return None, f"it has {len(text)} characters, and {LARGEST} are the most"
    try:
        return reply.model_validate_json(text), ""
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
    said = [f"{'.'.join(map(str, one['loc'])) or 'reply'}: {one['msg']}" for one in found[:PROBLEMS]]
    # names of fields are the model's words, and people are shown this
    plain = _ODD.sub(" ", "; ".join(said))[:SHOWN]
    return None, plain + (" (it was cut off, be shorter)" if cut else "")


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: value for name, value in schema.items() if name in _KEYWORDS}
    for name in ("properties", "$defs"):
        if name in made:
            made[name] = {key: _strict(part) for key, part in made[name].items()}
    for name in ("items", "anyOf"):
        if name in made:
            made[name] = _strict(made[name])
    if made.get("type") == "object":
        made |= {"required": list(made.get("properties", {})), "additionalProperties": False}
    return made
