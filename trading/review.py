"""What a review decides from figures alone: who must stop at once, what is proposed, and what the market did.

A strategy's word on neighbouring bars shares most of its future, and markets move together, so the trials counted
here are spans of time (``trading.scoring.cluster_of``): the mean of everything that was said within one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import numpy as np
import pandas as pd

from trading.candles import open_times_ms
from trading.errors import InvalidRequest
from trading.scoring import means
from trading.window import Timeframe

DAY: Final = timedelta(days=1)
USUAL: Final = timedelta(days=30)


class Action(StrEnum):
    """What a review may propose; it does none of it."""

    RETRAIN = "retrain"
    DISABLE = "disable"
    WEIGHTS = "weights"


@dataclass(frozen=True)
class Proposal:
    """Something for a person to decide: what, about which model, strategy or analyst, why, and on what evidence."""

    action: Action
    subject: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    origin: str = "figures"


@dataclass(frozen=True)
class Limits:
    """Hard thresholds; each of them alone takes a strategy out.

    A strategy without any edge, right on half of its spans, loses ``streak`` of 10 in a row once in 2,046 spans on
    average, and has a hit rate below 0.35 after 40 spans in one of 50 cases.

    Attributes:
        drawdown: fall of the summed profits below their highest, as a share of the notional of a trade.
        streak: spans in a row with a loss, the newest included.
        hit_rate: least share of right words, once there are ``count`` spans.
    """

    drawdown: float = 0.2
    streak: int = 10
    hit_rate: float = 0.35
    count: int = 40

    def __post_init__(self) -> None:
        if not (self.drawdown > 0 and self.streak >= 2 and 0 <= self.hit_rate < 1 and self.count >= 1):
            raise InvalidRequest(
                f"{self} makes no sense: drawdown above 0, streak from 2, hit_rate 0 to 1, count from 1"
            )


@dataclass(frozen=True)
class Record:
    """What a strategy did: ``spans`` of time with ``signals`` in them, figures as shares of the notional.

    ``drawdown``: of the sum of the spans' mean profits, at its worst; ``streak``: losing spans in a row up to now.
    """

    spans: int
    signals: int
    hit_rate: float
    profit: float
    drawdown: float
    streak: int


def record(profit: np.ndarray, hit: np.ndarray, cluster: np.ndarray) -> Record:
    """The record of signals that took a side.

    Args:
        profit: after costs, float64 (n,).
        hit: whether the side was right before costs, (n,) booleans.
        cluster: span of time, int64 (n,); spans with greater numbers came later.

    Raises:
        InvalidRequest: arrays of different lengths, or profits that are not finite.
    """
    if not len(profit) == len(hit) == len(cluster):
        raise InvalidRequest(f"{len(profit)} profits, {len(hit)} hits and {len(cluster)} spans; there is one of each")
    if not np.isfinite(profit).all():
        raise InvalidRequest("a profit is not a finite number; settle only what has prices")
    if not len(profit):
        return Record(0, 0, 0.0, 0.0, 0.0, 0)
    earned = means(np.asarray(profit, dtype=np.float64), cluster)
    right = means(np.asarray(hit, dtype=np.float64), cluster)
    sums = np.concatenate([[0.0], np.cumsum(earned)])
    fall = np.maximum.accumulate(sums) - sums
    won = np.flatnonzero(earned >= 0)
    return Record(
        spans=len(earned),
        signals=len(profit),
        hit_rate=float(right.mean()),
        profit=math.fsum(earned),
        drawdown=float(fall.max()),
        streak=len(earned) - 1 - int(won[-1]) if len(won) else len(earned),
    )


def emergency(found: Record, limits: Limits) -> tuple[str, ...]:
    """Why a strategy must stop at once, as sentences; none where it may go on."""
    reasons = []
    if found.drawdown >= limits.drawdown:
        reasons.append(f"a drawdown of {found.drawdown:.1%} of the notional; {limits.drawdown:.1%} is the limit")
    if found.streak >= limits.streak:
        reasons.append(f"{found.streak} losing spans in a row; {limits.streak} is the limit")
    if found.spans >= limits.count and found.hit_rate < limits.hit_rate:
        reasons.append(
            f"right in {found.hit_rate:.1%} of {found.spans} spans; {limits.hit_rate:.1%} is the least after "
            f"{limits.count}"
        )
    return tuple(reasons)


def proposals(
    drifted: Mapping[str, Sequence[str]],
    records: Mapping[str, Record],
    weights: Mapping[str, float],
    disabled: Sequence[str],
    *,
    spans: int = 20,
    little: float = 0.25,
) -> list[Proposal]:
    """What the figures alone propose, by action and subject.

    Args:
        drifted: reasons by model that has drifted.
        records: by strategy; who lost money over ``spans`` or more is proposed to be disabled.
        weights: of each analyst, as measured (``trading.scoring.weight``, 1 for nothing known); one below ``little``
            is proposed to count nothing.
        disabled: strategies that are out already.
    """
    found = [
        Proposal(Action.RETRAIN, model, f"{model} has drifted: {'; '.join(reasons)}", {"reasons": list(reasons)})
        for model, reasons in drifted.items()
    ]
    found += [
        Proposal(
            Action.DISABLE,
            name,
            f"{name} lost {-one.profit:.2%} of the notional over {one.spans} spans of time, "
            f"right in {one.hit_rate:.0%} of them",
            vars(one),
        )
        for name, one in records.items()
        if one.spans >= spans and one.profit < 0 and name not in disabled
    ]
    found += [
        Proposal(
            Action.WEIGHTS,
            name,
            f"{name} counts {weight:.2f} by what it earned, where 1 is usual; let it count nothing",
            {"weight": weight, "proposed": 0.0},
        )
        for name, weight in weights.items()
        if weight < little
    ]
    return sorted(found, key=lambda one: (one.action, one.subject))


@dataclass(frozen=True)
class MarketState:
    """The last 24 hours of a market against the 30 days before them.

    Attributes:
        at: end of the last bar, UTC.
        change: return from the first open to the last close.
        range: highest high less lowest low, as a share of the first open.
        volatility: standard deviation of log returns between bars, scaled to a day of as many bars as there are on
            average in a day that has any; ``usual_volatility`` that of the 30 days before, None where they have
            fewer than 3 bars.
        volume: sum; ``usual_volume`` the mean of a day in the 30 days before.
    """

    symbol: str
    timeframe: str
    at: datetime
    price: float
    change: float
    range: float
    volatility: float
    usual_volatility: float | None
    volume: float
    usual_volume: float | None
    data_mode: str


def market_state(
    symbol: str, timeframe: Timeframe, candles: pd.DataFrame, end: datetime, data_mode: str
) -> MarketState | None:
    """The state of a market at ``end``; None where the 24 hours before have fewer than 2 bars.

    Args:
        candles: of 31 days before ``end`` or more; those that open at ``end`` or later are not looked at.
    """
    opens = open_times_ms(candles)
    last, first, usual = (int(moment.timestamp() * 1000) for moment in (end, end - DAY, end - DAY - USUAL))
    today = (opens >= first) & (opens < last)
    before = (opens >= usual) & (opens < first)
    if today.sum() < 2:
        return None
    now = candles[today]
    start = float(now["open"].iloc[0])
    volume = candles["volume"].to_numpy(dtype=np.float64)
    close = candles["close"].to_numpy(dtype=np.float64)
    # days that there are candles of: a series may be younger, or its market closed at times
    every, days = (len(np.unique((opens[part] - usual) // 86_400_000)) for part in (before | today, before))
    bars_a_day = (before | today).sum() / every
    newest = int(opens[today][-1]) / 1000
    return MarketState(
        symbol=symbol,
        timeframe=timeframe.value,
        at=datetime.fromtimestamp(newest, tz=end.tzinfo) + timeframe.delta,
        price=float(close[today][-1]),
        change=float(close[today][-1]) / start - 1,
        range=(float(now["high"].max()) - float(now["low"].min())) / start,
        volatility=_deviation(close[today]) * math.sqrt(bars_a_day),
        usual_volatility=_deviation(close[before]) * math.sqrt(bars_a_day) if before.sum() > 2 else None,
        volume=math.fsum(volume[today]),
        usual_volume=math.fsum(volume[before]) / days if days else None,
        data_mode=data_mode,
    )


def _deviation(close: np.ndarray) -> float:
    """Standard deviation (ddof 0) of the log returns between closes."""
    return float(np.diff(np.log(close)).std()) if len(close) > 1 else 0.0
