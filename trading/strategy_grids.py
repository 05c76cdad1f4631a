"""Parameters of rules: written and read, and the sets of a sweep or of a heat map."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Final

from trading.errors import InvalidRequest
from trading.strategies import Parameters, Rule, Value, rule

_WRITTEN: Final = re.compile(r"\s*([\w-]+)\s*(?:\(([^()]*)\))?\s*")
_WHOLE: Final = re.compile(r"[+-]?[0-9]+")
_HOW: Final = "write it like sma_cross or sma_cross(fast=10, slow=30)"


def parse(text: str) -> tuple[str, Parameters]:
    """A rule and all its parameters from ``sma_cross(fast=10, slow=30)``; what is not written has its default.

    Raises:
        InvalidRequest: it cannot be read, or names a rule, a parameter or a value that is not allowed.
    """
    matched = _WRITTEN.fullmatch(text)
    if matched is None:
        raise InvalidRequest(f"{text!r} is not a strategy; {_HOW}")
    chosen = rule(matched[1])
    given: Parameters = {}
    for part in (matched[2] or "").split(",") if (matched[2] or "").strip() else []:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name:
            raise InvalidRequest(f"{part.strip()!r} in {text!r} is not a parameter; {_HOW}")
        if name in given:
            raise InvalidRequest(f"{text!r} has {name} twice; {_HOW}")
        given[name] = _read(chosen, name, value)
    return chosen.name, chosen.checked(given)


def written(name: str, parameters: Mapping[str, Value]) -> str:
    """What ``parse`` reads as this rule and these parameters; all of them are written, in the rule's order.

    Raises:
        InvalidRequest: as ``parse``.
    """
    full = rule(name).checked(parameters)
    return f"{name}({', '.join(f'{key}={_said(value)}' for key, value in full.items())})"


def parameter_sets(chosen: Rule, grid: Mapping[str, Sequence[Value]] | None = None) -> list[Parameters]:
    """Every set of a grid that the rule allows, without repetition; the last parameter changes fastest.

    Sets in which parameters are not in their order (``Rule.ordered``) are left out.

    Args:
        grid: values by parameter; what it lacks keeps its default. None: the rule's own grid.

    Raises:
        InvalidRequest: an unknown parameter, a value that is not allowed, or a grid without an allowed set.
    """
    wanted = chosen.grid if grid is None else grid
    values: dict[str, list[Value]] = {name: [value] for name, value in chosen.defaults.items()}
    for name, given in wanted.items():
        if name not in values:
            raise InvalidRequest(f"{chosen.name} has no parameter {name!r}; it takes {', '.join(values)}")
        if isinstance(given, str) or not isinstance(given, Sequence) or not len(given):
            raise InvalidRequest(f"{chosen.name}: the grid of {name} is {given!r}; give a list of values")
        values[name] = list(dict.fromkeys(_allowed(chosen, name, value) for value in given))
    sets = [dict(zip(values, each, strict=True)) for each in product(*values.values())]
    sets = [each for each in sets if all(each[lower] < each[upper] for lower, upper in chosen.ordered)]
    if not sets:
        said = " and ".join(f"{lower} is below {upper}" for lower, upper in chosen.ordered)
        raise InvalidRequest(f"no set of the grid {dict(wanted)} is one of {chosen.name}: {said}")
    return sets


def neighbourhood(chosen: Rule, parameters: Mapping[str, Value]) -> dict[str, list[Value]]:
    """The grid of the heat map around ``parameters``, for ``parameter_sets``.

    The two parameters of ``Rule.heat`` take the rule's values and the chosen one, rising; all others stay.

    Raises:
        InvalidRequest: parameters that the rule does not take.
    """
    full = chosen.checked(parameters)
    return {
        name: sorted({*chosen.parameters[name].values, value}) if name in chosen.heat else [value]
        for name, value in full.items()
    }


def _allowed(chosen: Rule, name: str, value: Value) -> Value:
    plain = chosen.parameters[name].checked(value)
    if plain is None:
        raise InvalidRequest(f"{chosen.name}: {name}={value!r}; it is {chosen.parameters[name].allowed}")
    return plain


def _read(chosen: Rule, name: str, text: str) -> Value:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    if _WHOLE.fullmatch(text):
        return int(text)
    try:
        return float(text)
    except ValueError as error:
        parameter = chosen.parameters.get(name)
        allowed = f"it is {parameter.allowed}" if parameter else f"it takes {', '.join(chosen.parameters)}"
        raise InvalidRequest(f"{chosen.name}: {name}={text}; {allowed}") from error


def _said(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0")
