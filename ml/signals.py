"""From probabilities to a signal: the one rule that training, the backtest and shadow share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from trading.errors import InvalidRequest


@dataclass(frozen=True)
class SignalRule:
    """When a probability is worth a position.

    The direction is the likelier one of Long and Short. It becomes the signal if it leads the other
    direction by ``min_edge`` and is itself at least as likely as its own minimum; else Neutral. That
    Neutral is likelier still does not forbid a signal: where most bars are quiet it nearly always is.

    Raises:
        InvalidRequest: a value outside [0, 1].
    """

    min_edge: float
    min_long: float
    min_short: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise InvalidRequest(f"signal rule has {name}={value}; it is a probability in [0, 1]")

    def definition(self) -> dict[str, Any]:
        """The parameters as JSON values."""
        return asdict(self)

    @classmethod
    def from_definition(cls, definition: Mapping[str, Any]) -> SignalRule:
        """The rule that ``definition`` describes.

        Raises:
            InvalidRequest: a parameter is unknown, missing or out of range.
        """
        known = {field.name for field in fields(cls)}
        if set(definition) != known:
            raise InvalidRequest(f"signal rule has parameters {sorted(definition)}; exactly {sorted(known)} are needed")
        return cls(**definition)


def default_rule(classes: np.ndarray, *, lift: float = 1.1, min_edge: float = 0.05) -> SignalRule:
    """A direction must be ``lift`` times as likely as it was among the training ``classes`` (-1, 0, +1).

    Relative to the priors, because a fixed minimum such as 0.5 never fires where three classes are
    about as frequent, and always does where one of them is the rule.
    """
    frequency = {side: float(np.mean(classes == side)) if len(classes) else 1.0 for side in (1, -1)}
    return SignalRule(min_edge, *(min(lift * frequency[side], 0.9) for side in (1, -1)))


def signals(probabilities: np.ndarray, rule: SignalRule) -> np.ndarray:
    """Signals -1, 0, +1 (int8, shape (n,)) of probabilities of -1, 0, +1 (n, 3); rows with NaN give 0."""
    short, long_ = probabilities[:, 0], probabilities[:, 2]
    buys = (long_ > short) & (long_ - short >= rule.min_edge) & (long_ >= rule.min_long)
    sells = (short > long_) & (short - long_ >= rule.min_edge) & (short >= rule.min_short)
    return np.asarray(buys.astype(np.int8) - sells.astype(np.int8))
