"""Strategies by name: what each rule is called, which parameters it takes, and what it says of a market.

A strategy turns candles into targets, int8 or float64 (n,), -1 (short) over 0 (flat) to +1 (long), or into
``Decisions`` with price levels; decided on the close of each bar, from that bar and earlier ones only. The
rules themselves stand in ``trading.technical``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Final, Protocol

import numpy as np
import pandas as pd

from trading import reasons, technical
from trading.backtest.rules import Decisions
from trading.errors import InvalidRequest
from trading.positions import combine, from_probabilities, hold
from trading.technical import bollinger, breakout, buy_and_hold, combination, macd, rsi, sma_cross, volume

__all__ = [
    "RULES", "Parameter", "Parameters", "Rule", "Strategy", "bollinger", "breakout", "buy_and_hold", "combination",
    "combine", "explain", "from_probabilities", "hold", "macd", "rsi", "rule", "sma_cross", "volume",
]  # fmt: skip

Value = bool | int | float
Parameters = dict[str, Value]


class Strategy(Protocol):
    """Candles to targets, shape (n,), or to ``Decisions``."""

    def __call__(self, candles: pd.DataFrame, /) -> np.ndarray | Decisions: ...


@dataclass(frozen=True)
class Parameter:
    """One parameter of a rule: its kind is that of ``default``.

    ``lowest`` to ``highest`` is allowed; ``values`` are those worth trying.
    """

    default: Value
    lowest: float
    highest: float
    values: tuple[Value, ...]

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        if isinstance(self.default, bool):
            return "true or false"
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        return f"{kind} from {self.lowest:g} to {self.highest:g}"

    def checked(self, value: object) -> Value | None:
        """``value`` as this parameter's kind, or None where it is not allowed."""
        if isinstance(self.default, bool):
            return bool(value) if isinstance(value, bool | np.bool_) else None
        if isinstance(value, bool | np.bool_):
            return None
        plain: Value
        if isinstance(self.default, int) and isinstance(value, Integral):
            plain = int(value)
        elif isinstance(self.default, float) and isinstance(value, Real):
            plain = float(value)
        else:
            return None
        return plain if self.lowest <= plain <= self.highest else None


@dataclass(frozen=True, eq=False)
class Rule:
    """A strategy with a name and declared parameters. Calling it with candles runs it.

    Attributes:
        decide: candles and all parameters by name, to targets or ``Decisions``; checks no parameter.
        reason: candles, the last target and all parameters, to one sentence.
        needed: all parameters, to the bars without which it wants nothing.
        heat: the two parameters that a heat map of the neighbourhood shows.
        ordered: pairs of parameters, the first of which must be below the second.
        description: one sentence for users.
    """

    name: str
    decide: Callable[..., np.ndarray | Decisions]
    reason: Callable[..., str]
    needed: Callable[..., int]
    parameters: Mapping[str, Parameter]
    heat: tuple[str, str]
    description: str
    ordered: tuple[tuple[str, str], ...] = ()

    def __call__(self, candles: pd.DataFrame, /, **parameters: Value) -> np.ndarray | Decisions:
        """What the rule wants, with the defaults for parameters that are not given.

        Raises:
            InvalidRequest: as ``checked``.
        """
        return self.decide(candles, **self.checked(parameters))

    @property
    def defaults(self) -> Parameters:
        """The default of every parameter."""
        return {name: parameter.default for name, parameter in self.parameters.items()}

    @property
    def grid(self) -> dict[str, tuple[Value, ...]]:
        """The values worth trying, by parameter."""
        return {name: parameter.values for name, parameter in self.parameters.items()}

    def bars_needed(self, **parameters: Value) -> int:
        """Bars without which the rule wants nothing; with more, what it wants may depend on all of them.

        Raises:
            InvalidRequest: as ``checked``.
        """
        return self.needed(**self.checked(parameters))

    def checked(self, parameters: Mapping[str, Any]) -> Parameters:
        """All parameters, in the rule's order, as plain values.

        Raises:
            InvalidRequest: an unknown parameter, or a value that is not allowed; says which, and what is.
        """
        unknown = [name for name in parameters if name not in self.parameters]
        if unknown:
            raise InvalidRequest(f"{self.name} has no parameter {unknown[0]!r}; it takes {', '.join(self.parameters)}")
        found = self.defaults
        for name, value in parameters.items():
            plain = self.parameters[name].checked(value)
            if plain is None:
                raise InvalidRequest(f"{self.name}: {name}={value!r}; it is {self.parameters[name].allowed}")
            found[name] = plain
        for lower, upper in self.ordered:
            if not found[lower] < found[upper]:
                raise InvalidRequest(
                    f"{self.name}: {lower}={found[lower]!r} and {upper}={found[upper]!r}; {lower} is below {upper}"
                )
        return found


_LONGEST: Final = 10_000  # bars


def _bars(default: int, *values: int, lowest: int = 2) -> Parameter:
    return Parameter(default, lowest, _LONGEST, values)


RULES: Final[Mapping[str, Rule]] = {
    each.name: each
    for each in (
        Rule(
            "rsi", rsi, reasons.of_rsi, technical.rsi_bars,
            {
                "period": _bars(14, 5, 7, 9, 11, 14, 18, 21, 28),
                "low": Parameter(30.0, 0.0, 50.0, (15.0, 20.0, 25.0, 30.0, 35.0, 40.0)),
                "high": Parameter(70.0, 50.0, 100.0, (60.0, 65.0, 70.0, 75.0, 80.0, 85.0)),
            },
            ("period", "low"),
            "Against the crowd: long below a low RSI, short above a high one, until it is back across 50.",
            (("low", "high"),),
        ),
        Rule(
            "macd", macd, reasons.of_macd, technical.macd_bars,
            {
                "fast": _bars(12, 5, 8, 12, 16, 20, 26),
                "slow": _bars(26, 13, 17, 21, 26, 34, 52, 78),
                "signal": _bars(9, 3, 5, 7, 9, 12, 18, lowest=1),
            },
            ("fast", "slow"),
            "With the trend: long while the MACD line is above its signal line, short while it is below.",
            (("fast", "slow"),),
        ),
        Rule(
            "sma_cross", sma_cross, reasons.of_sma_cross, technical.sma_cross_bars,
            {
                "fast": _bars(20, 5, 8, 10, 15, 20, 30, 40, 50, lowest=1),
                "slow": _bars(50, 20, 30, 40, 50, 75, 100, 150, 200),
                "long_only": Parameter(True, False, True, (True, False)),
            },
            ("fast", "slow"),
            "With the trend: long once the fast average of closes crosses above the slow one, until it crosses below.",
            (("fast", "slow"),),
        ),
        Rule(
            "bollinger", bollinger, reasons.of_bollinger, technical.bollinger_bars,
            {
                "period": _bars(20, 10, 14, 20, 30, 40, 50, 75),
                "width": Parameter(2.0, 0.1, 10.0, (1.0, 1.5, 2.0, 2.5, 3.0)),
            },
            ("period", "width"),
            "Back to the mean: long below the lower Bollinger band, short above the upper, until the middle.",
        ),
        Rule(
            "volume", volume, reasons.of_volume, technical.volume_bars,
            {
                "period": _bars(20, 5, 10, 15, 20, 30, 50, 75, 100),
                "ratio": Parameter(1.0, 0.0, 100.0, (0.5, 1.0, 1.25, 1.5, 2.0, 3.0)),
            },
            ("period", "ratio"),
            "With a confirmed trend: the side of on-balance volume against its average, taken on high volume.",
        ),
        Rule(
            "breakout", breakout, reasons.of_breakout, technical.breakout_bars,
            {
                "entry": _bars(20, 10, 15, 20, 30, 40, 55, 80, 100),
                "exit": _bars(10, 5, 7, 10, 15, 20, 30, 40),
                "atr": _bars(14, 7, 14, 20, lowest=1),
                "stop": Parameter(2.0, 0.1, 100.0, (1.0, 1.5, 2.0, 3.0, 4.0)),
            },
            ("entry", "exit"),
            "Out of the channel: long above the high of the bars before, until below their shorter low; with a stop.",
            (("exit", "entry"),),
        ),
        Rule(
            "combination", combination, reasons.of_combination, technical.combination_bars,
            {
                "trend": Parameter(1.0, 0.01, 100.0, (0.5, 1.0, 2.0)),
                "reversion": Parameter(1.0, 0.0, 100.0, (0.0, 0.5, 1.0, 2.0)),
                "threshold": Parameter(0.5, 0.01, 1.0, (0.2, 0.3, 0.4, 0.5, 0.6, 0.75)),
            },
            ("reversion", "threshold"),
            "The weighted vote of the other rules: long or short where enough of them are.",
        ),
    )
}  # fmt: skip


def rule(name: str) -> Rule:
    """The rule of that name.

    Raises:
        InvalidRequest: there is none; lists those there are.
    """
    if name not in RULES:
        raise InvalidRequest(f"{name!r} is not a rule; use one of {', '.join(RULES)}")
    return RULES[name]


def explain(name: str, candles: pd.DataFrame, parameters: Mapping[str, Value] | None = None) -> tuple[int, str]:
    """What a rule wants after the last bar, and why, with the numbers it looked at.

    Raises:
        InvalidRequest: an unknown rule, or parameters that it does not take.
    """
    chosen = rule(name)
    full = chosen.checked(parameters or {})
    needed = chosen.needed(**full)
    if len(candles) < needed:
        return 0, f"{name} needs {needed} bars and there are {len(candles)}"
    decided = chosen.decide(candles, **full)
    targets = decided.targets if isinstance(decided, Decisions) else decided
    target = int(targets[-1])
    return target, chosen.reason(candles, target, **full)
