"""What the engine's strategy settings look like, and what is made of them.

    GET {ENGINE_URL}{TRADEFLOWS_ENGINE_SETTINGS_PATH}
    {
      "strategies": [
        {"name": "rsi", "enabled": true, "parameters": {"period": 14, "low": 30}, "timeframes": ["1h", "4h"]},
        {"name": "macd", "enabled": false}
      ],
      "indicators": {"rsi": {"period": 14}},
      "analysis": {"confidenceThreshold": 0.2, "timeToLiveMinutes": 15}
    }

``strategies`` is needed, all else has a default. A strategy is one of ``trading.strategies.RULES``; ``indicators``
has parameters by rule, over which those of the strategy itself go. One with ``timeframes`` votes on bars of those
alone, whichever bars are analysed; without, on all that are looked at. What this version does not know is passed over,
unless it is a selected strategy, a parameter or a value: then the settings as a whole are refused, and the last
good ones stay.

The digest is that of what was understood, not of the reply's bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec

from tasks.documents import Document
from tasks.technical_analyst import USUAL, Selected, selection
from trading.errors import InvalidRequest, MalformedResponse
from trading.strategies import RULES
from trading.window import Timeframe

BUILT_IN: Final = "built-in"
ENGINE: Final = "engine"
# the built-in ones beside an engine that has none to tell
NOT_SERVED: Final = "built-in (the engine serves none)"
Origin = Literal["engine", "built-in", "built-in (the engine serves none)"]
_MOST: Final = 100

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Minutes = Annotated[int, msgspec.Meta(ge=0, le=1440)]


class _Strategy(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    enabled: bool = True
    parameters: dict[str, Any] = {}
    timeframes: Annotated[list[str], msgspec.Meta(max_length=12)] = []


class _Analysis(msgspec.Struct, rename="camel"):
    confidence_threshold: Share = 0.2
    time_to_live_minutes: Minutes = 15


class _Told(msgspec.Struct):
    """The engine's reply."""

    strategies: Annotated[list[_Strategy], msgspec.Meta(max_length=_MOST)]
    indicators: dict[str, dict[str, Any]] = {}
    analysis: _Analysis = msgspec.field(default_factory=_Analysis)


@dataclass(frozen=True)
class EngineSettings:
    """What may speak, and within which limits.

    Attributes:
        strategies: the selected ones, with all their parameters and the timeframes that they are limited to.
        confidence_threshold: a score nearer to zero is Neutral.
        time_to_live: for how long an analysis of the same candles is good.
        origin: ``engine``, ``built-in``, or ``NOT_SERVED`` where there is an engine that has none to tell.
        number: of the version; 0 for the built-in ones.
        read_at: when the engine last told these (UTC); None for the built-in ones.
    """

    strategies: tuple[Selected, ...]
    confidence_threshold: float
    time_to_live: timedelta
    origin: Origin
    digest: str
    number: int = 0
    read_at: datetime | None = None

    @property
    def version(self) -> str:
        """Names them in analyses, such as ``engine 3 1f0c2a77``."""
        return f"{self.origin} {self.number} {self.digest[:8]}" if self.number else f"{self.origin} {self.digest[:8]}"


def built_in(origin: Origin = BUILT_IN) -> EngineSettings:
    """What counts where no engine tells any: RSI, MACD, volume and Bollinger with their usual parameters."""
    return settings_of(_content(_Told(strategies=[_Strategy(name) for name in USUAL])), origin)


def content_of(reply: Any) -> Document:
    """What was understood of the engine's reply, as JSON values: equal contents, equal digests.

    Args:
        reply: the JSON of it.

    Raises:
        MalformedResponse: not what the protocol says, or a strategy, parameter or value that there is not.
    """
    try:
        return _content(msgspec.convert(reply, _Told))
    except msgspec.ValidationError as error:
        raise MalformedResponse(f"the engine's settings are not as they should be: {error}") from None
    except InvalidRequest as error:
        raise MalformedResponse(f"the engine's settings cannot be used: {error}; correct them there") from None


def settings_of(
    content: Mapping[str, Any],
    origin: Origin,
    number: int = 0,
    read_at: datetime | None = None,
) -> EngineSettings:
    """Settings from what ``content_of`` understood, as a version with that number, read then."""
    limits = content["timeframes"]
    return EngineSettings(
        strategies=tuple(
            Selected(one["rule"], one["parameters"], tuple(map(Timeframe, limits.get(one["rule"], ()))))
            for one in content["strategies"]
        ),
        confidence_threshold=content["confidence_threshold"],
        time_to_live=timedelta(minutes=content["time_to_live_minutes"]),
        origin=origin,
        digest=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        number=number,
        read_at=read_at,
    )


def _content(told: _Told) -> Document:
    chosen = [one for one in told.strategies if one.enabled]
    names = [one.name for one in chosen]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidRequest(f"the strategy {twice[0]} is selected twice")
    # an engine may have indicators, and strategies that are not selected, of which this version knows nothing
    shared = {name: told.indicators[name] for name in told.indicators if name in RULES}
    selected = selection(names, {one.name: {**shared.get(one.name, {}), **one.parameters} for one in chosen})
    return {
        "strategies": [{"rule": one.rule, "parameters": dict(one.parameters)} for one in selected],
        "timeframes": {
            one.name: [Timeframe.parse(each).value for each in dict.fromkeys(one.timeframes)]
            for one in chosen
            if one.timeframes
        },
        "confidence_threshold": told.analysis.confidence_threshold,
        "time_to_live_minutes": told.analysis.time_to_live_minutes,
    }
