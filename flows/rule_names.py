"""The names of the trading rules, as a form offers them and the server holds values to them.

Beside ``flows.parameters``, because to know the rules is to import them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import Field

from flows.parameters import form, names
from tasks.backtest_requests import HOLD, MODELS
from trading.strategies import RULES

NAMES: Final = tuple(RULES)
# the flow checks them again, so that an unknown one is its own error
RuleName = Annotated[str, Field(json_schema_extra={"enum": [*NAMES]})]
# such as rsi, sma_cross(fast=10, slow=30), champion
STRATEGY: Final = rf"^\s*({'|'.join((*MODELS, HOLD))}|({'|'.join(NAMES)})(\s*\(.*\))?)\s*$"
StrategyText = Annotated[str, Field(max_length=200, json_schema_extra={"pattern": STRATEGY})]

RuleNames = Annotated[
    Annotated[Sequence[RuleName], Field(max_length=50)] | None,
    form(
        "Strategies",
        "Strategies that may speak as the technical analyst, on these bars and (for 1h) on those of 4h. Empty: those "
        "that the engine's settings select; rsi, macd, volume and bollinger where there is no engine.",
        ["rsi", "macd"],
    ),
]
RuleParameters = Annotated[
    dict[str, dict[str, Any]],
    Field(max_length=50),
    names(NAMES),
    form("Parameters of strategies", "Parameters by strategy, instead of the engine's.", {"rsi": {"period": 9}}),
]
