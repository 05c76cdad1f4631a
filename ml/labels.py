"""Labels: did the market move enough, within a number of bars, to pay for a trade?

A decision falls on the close of bar i and is filled at the open of bar i + 1; the position is given
up at the open of bar i + 1 + horizon. So, with open prices O, for a label of kind "forward"

    forward_return[i] = O[i + 1 + horizon] / O[i + 1] - 1
    t0[i] = open time of bar i + 1            (the fill; the close of bar i, or later across a gap)
    t1[i] = open time of bar i + 1 + horizon  (when the label becomes known)

and the label is +1 above the effective buy threshold, -1 below the effective sell threshold, else 0.
A threshold below the cost of a round trip would teach losing trades, so the larger of the two holds.

A label of kind "triple_barrier" asks what a position would have met first: its target, its stop, or the
end of the horizon (López de Prado, Advances in Financial Machine Learning, Wiley 2018, chapter 3). Target
and stop lie ``target`` and ``stop`` times the recent volatility away from the fill, scaled to the horizon,
and never nearer than the effective thresholds: a target that is reached pays for its trade. How fills are
taken and what is labelled says ``ml.barriers``; ``forward_return`` is then the move of the price up to the
exit of the labelled side's position, and ``t1`` the end of the bar in which that exit fell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, get_args

import numpy as np
import pandas as pd

from trading.errors import InvalidRequest

Kind = Literal["forward", "triple_barrier"]

CLASSES: Final = (-1, 0, 1)


@dataclass(frozen=True)
class LabelDefinition:
    """Three classes of what the price does within ``horizon`` bars.

    Thresholds and cost are fractions of the price (0.005 is half a percent); the cost is that of
    getting in and out: fees, spread and slippage on both sides. ``target``, ``stop`` and ``volatility_span``
    are for the triple barrier only: widths as multiples of the volatility of ``horizon`` bars (that of one
    bar times the root of the horizon), and the span of its exponential weights in bars.

    Raises:
        InvalidRequest: a value out of range.
    """

    horizon: int = 5
    buy_threshold: float = 0.005
    sell_threshold: float = -0.005
    round_trip_cost: float = 0.002
    kind: Kind = "forward"
    target: float = 1.0
    stop: float = 1.0
    volatility_span: int = 100

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
        if self.kind not in get_args(Kind):
            raise InvalidRequest(f"label kind is {self.kind!r}; it is one of {', '.join(get_args(Kind))}")
        if not (0 < self.target < math.inf and 0 < self.stop < math.inf):
            raise InvalidRequest(
                f"label target is {self.target} and stop {self.stop} times the volatility; both must be positive"
            )
        if not isinstance(self.volatility_span, int) or self.volatility_span < 2:
            raise InvalidRequest(f"volatility span is {self.volatility_span!r}; it must be at least two whole bars")

    @property
    def effective_buy(self) -> float:
        """The forward return above which the label is +1."""
        return max(self.buy_threshold, self.round_trip_cost)

    @property
    def effective_sell(self) -> float:
        """The forward return below which the label is -1."""
        return -max(-self.sell_threshold, self.round_trip_cost)

    @property
    def least_width(self) -> float:
        """The nearest that a barrier may lie to the fill: the larger effective threshold, so never below the cost."""
        return max(self.effective_buy, -self.effective_sell)

    @property
    def future_rows(self) -> int:
        """Bars after the labelled one that must be there."""
        return self.horizon + 1

    @property
    def past_rows(self) -> int:
        """Bars before the labelled one that should be there; with fewer, the volatility is that of a few bars."""
        return self.volatility_span if self.kind == "triple_barrier" else 0

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

    A barrier that was touched early does not change that: near the end only bars with a touch could be
    labelled, and they would not be like the rest.

    Returns:
        Indexed by the open time of the bar decided on, with columns ``label`` (int8, -1, 0 or +1),
        ``forward_return`` (float64, before costs), ``t0`` and ``t1`` (datetime64[ms, UTC], fill and
        end of the label). The horizon counts bars; where bars are missing, ``t1`` shows it.
    """
    index = pd.DatetimeIndex(candles.index)
    known = max(len(candles) - label.future_rows, 0)
    of = _triple_barrier if label.kind == "triple_barrier" else _forward
    classes, forward, ends = of(candles, label, known)
    return pd.DataFrame(
        {"label": classes, "forward_return": forward, "t0": index[1 : 1 + known], "t1": index[ends]},
        index=index[:known],
    )


def meta_labels(side: np.ndarray, forward_return: np.ndarray, round_trip_cost: float) -> np.ndarray:
    """Whether the side that a primary signal took pays for its costs (López de Prado 2018, section 3.6).

    A row without a side has nothing to pay for and is 0; leave such rows out (``side != 0``) when a model
    is to learn which signals to follow, or it learns where there are none.

    Args:
        side: (n,), -1, 0 or +1.
        forward_return: float64 (n,), move of the price up to the exit, before costs.
        round_trip_cost: fraction of the price, as in ``LabelDefinition``.

    Returns:
        int8 (n,): 1 where ``side * forward_return > round_trip_cost``, else 0.

    Raises:
        InvalidRequest: lengths differ, another side, a return that is not a number, a cost out of range.
    """
    if side.shape != forward_return.shape or not np.isin(side, CLASSES).all():
        raise InvalidRequest(
            f"meta-labels need a side of -1, 0 or +1 for each return; there are {side.shape} sides "
            f"(from {np.unique(side)[:5]}) and {forward_return.shape} returns"
        )
    if np.isnan(forward_return).any() or not 0 <= round_trip_cost < 1:
        raise InvalidRequest(
            f"{int(np.isnan(forward_return).sum())} of {len(side)} returns are NaN and the round trip cost is "
            f"{round_trip_cost}; leave out rows without a return, and give the cost as a fraction in [0, 1)"
        )
    return np.asarray((side * forward_return > round_trip_cost).astype(np.int8))


def _forward(candles: pd.DataFrame, label: LabelDefinition, known: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes, returns and positions of the ends of the first ``known`` bars."""
    opens = candles["open"].to_numpy(dtype=np.float64)
    entry, leave = opens[1 : 1 + known], opens[label.future_rows : label.future_rows + known]
    forward = leave / entry - 1
    classes = np.where(forward > label.effective_buy, 1, np.where(forward < label.effective_sell, -1, 0))
    return classes.astype(np.int8), forward, np.arange(known) + label.future_rows


def _triple_barrier(
    candles: pd.DataFrame, label: LabelDefinition, known: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same by the barrier touched first."""
    from ml import barriers  # it compiles: half a second that other labels need not pay

    # copies, as columns of a frame are read-only and would be compiled for once more
    opens, highs, lows, closes = (
        candles[name].to_numpy(dtype=np.float64, copy=True) for name in ("open", "high", "low", "close")
    )
    expected = barriers.volatility(closes[:known], label.volatility_span) * math.sqrt(label.horizon)
    target, stop = (np.maximum(multiple * expected, label.least_width) for multiple in (label.target, label.stop))
    sides = barriers.follow(opens, highs, lows, target, stop, label.horizon)
    return barriers.classify(sides, label.effective_buy, label.effective_sell)
