"""The hit rate of signals: what counts as one trial, and whether live trials do worse than those of the training.

Signals on neighbouring bars share most of their future, and markets move together. Counted one by one
they would make chance look like certainty. So all signals of one moment are one trial (a hit if their
mean return in the direction of the signal is positive, before costs), and a trial begins only when the
one before it is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from trading.errors import InvalidRequest

WORSE: Final = "worse than in training"
HOLDING: Final = "not worse than in training"
TOO_FEW: Final = "too few settled signals to say"


@dataclass(frozen=True)
class Trials:
    """Trials that do not overlap, and how many of them were hits.

    Raises:
        InvalidRequest: more hits than trials, or negative ones.
    """

    hits: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.count:
            raise InvalidRequest(f"{self.hits} hits of {self.count} trials cannot be")

    @property
    def rate(self) -> float | None:
        """Hits per trial; None without trials."""
        return self.hits / self.count if self.count else None


@dataclass(frozen=True)
class Performance:
    """A one-sided test of the live hit rate against the training's.

    ``power`` is the probability that this many live trials would have shown a hit rate ``effect`` below
    the training's; None where there are too few to show anything.
    """

    state: str
    live: Trials
    trained: Trials
    p_value: float | None
    level: float
    effect: float
    power: float | None

    def sentence(self) -> str:
        """What a person should know of it."""
        figures = f"{self.live.hits} of {self.live.count} live trials hit, {self.trained.hits} of {self.trained.count}"
        if self.p_value is None or self.power is None:
            return f"hit rate: {self.state} ({figures} in training)"
        return (
            f"hit rate: {self.state} ({figures} out of sample in training, p = {self.p_value:.3g}; "
            f"a drop of {self.effect:.0%} would be seen with probability {self.power:.0%})"
        )


def trials_of(signals: np.ndarray, forward_return: np.ndarray, t0: np.ndarray, t1: np.ndarray) -> Trials:
    """The trials among settled signals, earliest first.

    Args:
        signals: int8 (n,), -1, 0 or +1; ``forward_return``: float64 (n,), before costs; ``t0`` and
            ``t1``: int64 ms UTC (n,), fill and end of each; rows of several symbols in any order.
    """
    taken = signals != 0
    moments, row = np.unique(t0[taken], return_inverse=True)
    gains = np.bincount(row, weights=(signals * forward_return)[taken], minlength=len(moments))
    ends = np.full(len(moments), np.iinfo(np.int64).min)
    np.maximum.at(ends, row, t1[taken])
    hits = count = at = 0
    while at < len(moments):
        hits += int(gains[at] > 0)
        count += 1
        at = max(int(np.searchsorted(moments, ends[at], side="left")), at + 1)
    return Trials(hits, count)


def performance(live: Trials, trained: Trials, level: float, effect: float, minimum: int) -> Performance:
    """Fisher's exact test (1935), one-sided: are live hits fewer than equal rates allow?

    Unlike a binomial test against the training's rate it knows that this rate was itself measured on a
    finite number of trials. The power is exact for the training's trials as they are.

    Args:
        level: probability of a false alarm, at most.
        effect: drop of the hit rate that the power is for.
        minimum: fewer trials, live or in training, say nothing.
    """
    rate = trained.rate
    if min(live.count, trained.count) < minimum or rate is None:
        return Performance(TOO_FEW, live, trained, None, level, effect, None)
    logs = _log_factorials(live.count + trained.count)
    p_values = np.array([_fisher(hits, live.count, trained, logs) for hits in range(live.count + 1)])
    rejected = p_values <= level
    if not rejected.any():
        return Performance(TOO_FEW, live, trained, None, level, effect, None)
    chances = _binomial(live.count, max(rate - effect, 0.0))
    state = WORSE if rejected[live.hits] else HOLDING
    return Performance(state, live, trained, float(p_values[live.hits]), level, effect, float(chances[rejected].sum()))


def _fisher(hits: int, count: int, trained: Trials, logs: np.ndarray) -> float:
    """P(at most ``hits`` of ``count``), given the hits of both together."""
    good, all_ = hits + trained.hits, count + trained.count
    k = np.arange(max(0, count - (all_ - good)), hits + 1)
    bad = all_ - good
    ways = logs[good] - logs[k] - logs[good - k] + logs[bad] - logs[count - k] - logs[bad - count + k]
    total = logs[all_] - logs[count] - logs[all_ - count]
    return float(min(np.exp(ways - total).sum(), 1.0))


def _binomial(count: int, rate: float) -> np.ndarray:
    """Probabilities of 0 to ``count`` hits: float64 (count + 1,)."""
    k = np.arange(count + 1)
    if rate <= 0:
        return np.asarray(k == 0, dtype=np.float64)
    logs = _log_factorials(count)
    if rate >= 1:
        return np.asarray(k == count, dtype=np.float64)
    return np.asarray(
        np.exp(logs[count] - logs[k] - logs[count - k] + k * np.log(rate) + (count - k) * np.log1p(-rate))
    )


def _log_factorials(largest: int) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, largest + 1)))])
