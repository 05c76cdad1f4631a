"""The technical analyst: the selected strategies on the bars of the series and on coarser ones, as one opinion.

Only the selected strategies speak. Each votes once per timeframe: long +1, short -1, nothing 0. What they say
together is ``(votes for - votes against) / (votes + 2)``, the difference of the two sides' shares by Laplace's
rule of succession: one lone voter is never sure, and many who agree come close to it. A strategy that has lost
money has less of a vote (``trading.scoring.weight``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from trading.analysis import TECHNICAL, Abstention, Opinion, Signal, judged
from trading.scoring import version_of
from trading.window import Timeframe

if TYPE_CHECKING:
    import pandas as pd

USUAL: Final = ("rsi", "macd", "volume", "bollinger")
# the coarser bars that are looked at, too
ALSO: Final[Mapping[Timeframe, Timeframe]] = {Timeframe.H1: Timeframe.H4}
# a weight by analyst and version, see ``trading.scoring``; 1 for those it does not name
Weights = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Selected:
    """A strategy that may speak, with all its parameters, on bars of these ``timeframes``; on all if there are none."""

    rule: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    timeframes: tuple[Timeframe, ...] = ()

    @property
    def version(self) -> str:
        """Parameters and timeframes as text: with others it is another strategy, with a record of its own."""
        said = [f"{name}={value}" for name, value in self.parameters.items()]
        limit = [f"timeframes={'+'.join(map(str, self.timeframes))}"] if self.timeframes else []
        return ",".join(said + limit)


def within(one: Selected, timeframe: Timeframe) -> Selected | None:
    """The strategy in an analysis of bars of ``timeframe``; None where it is limited to others than are looked at.

    A limit that keeps it from none of them is left out, so that it is the same strategy with and without.
    """
    looked_at = [timeframe, *([ALSO[timeframe]] if timeframe in ALSO else [])]
    may = tuple(each for each in looked_at if not one.timeframes or each in one.timeframes)
    if not may:
        return None
    return replace(one, timeframes=() if len(may) == len(looked_at) else may)


def selection(
    names: Sequence[str] = USUAL, parameters: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Selected, ...]:
    """The strategies of these names, with all parameters checked; a name given twice counts once.

    Raises:
        InvalidRequest: an unknown strategy or parameter, or parameters of a strategy that is not selected.
    """
    from trading.errors import InvalidRequest
    from trading.strategies import rule

    given = parameters or {}
    idle = sorted(set(given) - set(names))
    if idle:
        raise InvalidRequest(f"there are parameters of {', '.join(idle)}, which is not selected; select it, too")
    return tuple(Selected(name, rule(name).checked(given.get(name, {}))) for name in dict.fromkeys(names))


def opinion(
    candles: pd.DataFrame,
    timeframe: Timeframe,
    selected: Sequence[Selected],
    weights: Weights,
    *,
    until: datetime,
    threshold: float = 0.2,
) -> Opinion | Abstention:
    """What the strategies say at the close of the last bar; each is one of the opinion's ``parts``.

    Args:
        candles: finished ones, of ``timeframe``.
        until: how far they are known to reach: a coarser bar that ends later is not finished, and not looked at.
        threshold: a score nearer to zero is Neutral.
    """
    views = _views(candles, timeframe, until)
    heard = [_part(one, views, threshold) for one in selected]
    parts = [part for part in heard if isinstance(part, Opinion)]
    if not parts:
        why = "; ".join(f"{part.analyst}: {part.reason}" for part in heard if isinstance(part, Abstention))
        return Abstention(TECHNICAL, why or "no strategy is selected")
    votes = {part.analyst: _votes(part) for part in parts}
    shares = {part.analyst: weights.get((part.analyst, version_of(part.provenance)), 1.0) for part in parts}
    count = sum(map(len, votes.values()))
    spoken = sum(shares[name] * len(mine) for name, mine in votes.items())
    score = sum(shares[name] * sum(mine) for name, mine in votes.items()) / (max(spoken, count) + 2)
    signal, confidence = judged(score, threshold)
    return Opinion(
        TECHNICAL,
        signal,
        confidence,
        (_tally(votes, score, shares), *(f"{part.analyst}: {'; '.join(part.reasons)}" for part in parts)),
        {"version": _digest(selected, views)},
        parts=tuple(parts),
    )


def _views(candles: pd.DataFrame, timeframe: Timeframe, until: datetime) -> dict[Timeframe, pd.DataFrame]:
    from trading.candles import resample

    views = {timeframe: candles}
    if timeframe in ALSO:
        views[ALSO[timeframe]] = resample(candles, timeframe, ALSO[timeframe], until)
    return views


def _part(one: Selected, views: Mapping[Timeframe, pd.DataFrame], threshold: float) -> Opinion | Abstention:
    """One strategy over all timeframes that it may look at and on which it has enough bars."""
    from trading.strategies import explain, rule

    may = {timeframe: candles for timeframe, candles in views.items() if timeframe in (one.timeframes or views)}
    if not may:
        limit = ", ".join(map(str, one.timeframes))
        return Abstention(one.rule, f"is limited to {limit}, and {', '.join(map(str, views))} are looked at")
    needed = rule(one.rule).bars_needed(**one.parameters)
    votes, reasons, short = {}, [], []
    for timeframe, candles in may.items():
        if len(candles) < needed:
            short.append(f"needs {needed} bars of {timeframe} and there are {len(candles)}")
            continue
        target, reason = explain(one.rule, candles, one.parameters)
        votes[timeframe] = target
        reasons.append(f"{timeframe} {Signal.of(target)}: {reason}")
    if not votes:
        return Abstention(one.rule, "; ".join(short))
    signal, confidence = judged(sum(votes.values()) / (len(votes) + 2), threshold)
    provenance = {"version": one.version, **{str(timeframe): str(vote) for timeframe, vote in votes.items()}}
    return Opinion(one.rule, signal, confidence, (*reasons, *short), provenance)


def _votes(part: Opinion) -> list[int]:
    return [int(part.provenance[timeframe]) for timeframe in map(str, Timeframe) if timeframe in part.provenance]


def _tally(votes: Mapping[str, list[int]], score: float, shares: Mapping[str, float]) -> str:
    every = [vote for mine in votes.values() for vote in mine]
    weighed = ", ".join(f"{name} {share:.2f}" for name, share in shares.items() if share != 1.0)
    said = f"{every.count(1)} for Long, {every.count(-1)} for Short, {every.count(0)} for neither: score {score:+.2f}"
    return f"{said} (weights: {weighed})" if weighed else said


def _digest(selected: Sequence[Selected], views: Mapping[Timeframe, pd.DataFrame]) -> str:
    parts = [[one.rule, one.version] for one in selected] + [list(map(str, views))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
