"""Labels: did the market move enough, within a number of bars, to pay for a trade?

A decision falls on the close of bar i and is filled at the open of bar i + 1; the position is given
up at the open of bar i + 1 + horizon. So, with open prices O,

    forward_return[i] = O[i + 1 + horizon] / O[i + 1] - 1
    t0[i] = open time of bar i + 1            (the fill; the close of bar i, or later across a gap)
    t1[i] = open time of bar i + 1 + horizon  (when the label becomes known)

and the label is +1 above the effective buy threshold, -1 below the effective sell threshold, else 0.
A threshold below the cost of a round trip would teach losing trades, so the larger of the two holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import numpy as np
import pandas as pd

from trading.errors import InvalidRequest

CLASSES: Final = (-1, 0, 1)


@dataclass(frozen=True)
class LabelDefinition:
    """Three classes of the forward return over ``horizon`` bars.

    Thresholds and cost are fractions of the price (0.005 is half a percent); the cost is that of
    getting in and out: fees, spread and slippage on both sides.

    Raises:
        InvalidRequest: a value out of range.
    """

    horizon: int = 5
    buy_threshold: float = 0.005
    sell_threshold: float = -0.005
    round_trip_cost: float = 0.002

    def __post_init__(self) -> None:
        if not isinstance(self.horizon, int) or self.horizon < 1:
            raise InvalidRequest(f"label horizon is {self.horizon!r}; it must be at least one whole bar")
        if not (0 <= self.buy_threshold < math.inf and -1 < self.sell_threshold <= 0):
            raise InvalidRequest(
                f"label thresholds are {self.sell_threshold} and {self.buy_threshold}; "
                "the first must lie in (-1, 0], the second must be finite and not negative"
            )
        if not 0 <= self.round_trip_cost < 1:
            raise InvalidRequest(f"round trip cost is {self.round_trip_cost}; it is a fraction in [0, 1)")

    @property
    def effective_buy(self) -> float:
        """The forward return above which the label is +1."""
        return max(self.buy_threshold, self.round_trip_cost)

    @property
    def effective_sell(self) -> float:
        """The forward return below which the label is -1."""
        return -max(-self.sell_threshold, self.round_trip_cost)

    @property
    def future_rows(self) -> int:
        """Bars after the labelled one that must be there."""
        return self.horizon + 1

    def definition(self) -> dict[str, Any]:
        """The parameters as JSON values."""
        return asdict(self)

    @classmethod
    def from_definition(cls, definition: Mapping[str, Any]) -> LabelDefinition:
        """The label that ``definition`` describes.

        Raises:
            InvalidRequest: a parameter is unknown, missing or out of range.
        """
        known = {field.name for field in fields(cls)}
        if set(definition) != known:
            raise InvalidRequest(
                f"label definition has parameters {sorted(definition)}; exactly {sorted(known)} are needed"
            )
        return cls(**definition)


def labels(candles: pd.DataFrame, label: LabelDefinition) -> pd.DataFrame:
    """Labels of the bars whose whole future is there: the last ``label.future_rows`` bars have none.

    Returns:
        Indexed by the open time of the bar decided on, with columns ``label`` (int8, -1, 0 or +1),
        ``forward_return`` (float64, before costs), ``t0`` and ``t1`` (datetime64[ms, UTC], fill and
        end of the label). The horizon counts bars; where bars are missing, ``t1`` shows it.
    """
    index = pd.DatetimeIndex(candles.index)
    known = max(len(candles) - label.future_rows, 0)
    opens = candles["open"].to_numpy(dtype=np.float64)
    entry, leave = opens[1 : 1 + known], opens[label.future_rows : label.future_rows + known]
    forward = leave / entry - 1
    classes = np.where(forward > label.effective_buy, 1, np.where(forward < label.effective_sell, -1, 0))
    return pd.DataFrame(
        {
            "label": classes.astype(np.int8),
            "forward_return": forward,
            "t0": index[1 : 1 + known],
            "t1": index[label.future_rows : label.future_rows + known],
        },
        index=index[:known],
    )
