"""How good were opinions, once their horizon was over: figures with their errors, and the weights that follow.

An opinion given on the close of a bar is settled as a trade: filled at the next open, given up at the open
``horizon`` bars later, each side paying its costs. Opinions on neighbouring bars share most of their future,
and markets move together: counted one by one they would make chance look like certainty. So everything within
one span of time is one cluster, and standard errors are those of clusters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from trading.analysis import Signal
from trading.errors import InvalidRequest

# trials that the prior belief "earns nothing" is worth, and how many typical moves one trial can count
PRIOR_TRIALS: Final = 20.0
LIMIT: Final = 2.0
# upper edges of the confidence buckets
EDGES: Final = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Bucket:
    """Opinions of like confidence, ``low`` to ``high``: how sure they were on average, and how often right."""

    low: float
    high: float
    confidence: float
    hit_rate: float
    count: int


@dataclass(frozen=True)
class Score:
    """What a group of settled opinions was worth; None where a figure is not defined.

    Attributes:
        count: settled opinions; ``signals`` of them took a side.
        clusters: spans of time that these lie in; the standard errors are over them.
        hit_rate: share of signals whose side was right before costs; ``hit_error`` its standard error.
        profit: mean profit of a signal after costs, a share of the notional; ``profit_error`` its standard error.
        total: sum of the profits.
        brier: mean squared difference of confidence and outcome (1 right, 0 wrong) of the signals (Brier 1950).
        calibration_error: mean difference of confidence and hit rate over ``buckets``, by their counts.
        neutral_right: share of Neutral opinions after which neither side would have earned its costs.
        useful: signals that earned something after costs.
        usd: what asking cost; ``usd_per_useful`` per useful signal.
        weight: what such an opinion counts, see ``weight``.
    """

    count: int
    signals: int
    clusters: int
    hit_rate: float | None
    hit_error: float | None
    profit: float | None
    profit_error: float | None
    total: float
    brier: float | None
    calibration_error: float | None
    neutral_right: float | None
    useful: int
    usd: float
    usd_per_useful: float | None
    weight: float
    buckets: tuple[Bucket, ...] = ()

    def document(self) -> dict[str, Any]:
        """The score as JSON values."""
        return {**asdict(self), "buckets": [asdict(bucket) for bucket in self.buckets]}

    def metrics(self) -> dict[str, float]:
        """The figures by name, of what is defined."""
        return {name: float(value) for name, value in asdict(self).items() if isinstance(value, int | float)}


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Settled opinions as arrays (n,).

    ``direction``: int8, -1, 0 or +1. ``confidence``: 0 to 1. ``moved``: return of the market over the horizon.
    ``profit``: after costs, 0 without a side (``settle``). ``idle``: whether neither side would have earned its
    costs. ``usd``: paid for asking. ``cluster``: int64, equal for opinions whose futures overlap (``cluster_of``).

    Raises:
        InvalidRequest: arrays of different lengths.
    """

    direction: np.ndarray
    confidence: np.ndarray
    moved: np.ndarray
    profit: np.ndarray
    idle: np.ndarray
    usd: np.ndarray
    cluster: np.ndarray

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in vars(self).items()}
        if len(set(lengths.values())) > 1:
            raise InvalidRequest(f"outcomes of different lengths: {lengths}")


def settle(signal: Signal, entry: float, leave: float, cost_per_side: float) -> float:
    """Profit of acting on a signal, as a share of the notional: 0 for Neutral.

    Args:
        entry: open at which it was filled; ``leave``: open at which it was given up.
        cost_per_side: fees and slippage, each side's as a share of that side's own notional.

    Raises:
        InvalidRequest: prices that are none, or costs outside 0 to 1.
    """
    if not (0 < entry < math.inf and 0 < leave < math.inf):
        raise InvalidRequest(f"filled at {entry} and given up at {leave}; prices are above 0")
    if not 0 <= cost_per_side < 1:
        raise InvalidRequest(f"costs of {cost_per_side} per side; they are from 0 to 1")
    if signal is Signal.NEUTRAL:
        return 0.0
    return signal.direction * (leave / entry - 1) - cost_per_side * (1 + leave / entry)


def cluster_of(filled_ms: int, span_ms: int) -> int:
    """Begin (ms UTC) of the span of time that a fill lies in; with two horizons a span, neighbours share little.

    Spans of different horizons are in the order of time, too.
    """
    return filled_ms // (2 * span_ms) * (2 * span_ms)


def version_of(provenance: Mapping[str, str]) -> str:
    """What an opinion's record is kept under: the model and its version, so that a new one starts afresh."""
    return " ".join(provenance[name] for name in ("model", "version") if provenance.get(name))


def score(rows: Outcomes, scale: float) -> Score:
    """Figures of the opinions.

    Args:
        scale: what a typical move of the market is, for ``weight``; see ``typical_move``.
    """
    sided = rows.direction != 0
    cluster, profit = rows.cluster[sided], rows.profit[sided]
    hits = (rows.direction * rows.moved > 0)[sided].astype(np.float64)
    sure = rows.confidence[sided]
    buckets = reliability(sure, hits)
    signals, useful = int(sided.sum()), int((profit > 0).sum())
    gaps = [bucket.count * abs(bucket.confidence - bucket.hit_rate) for bucket in buckets]
    usd = math.fsum(rows.usd)
    return Score(
        count=len(rows.direction),
        signals=signals,
        clusters=len(np.unique(cluster)),
        hit_rate=float(hits.mean()) if signals else None,
        hit_error=clustered_error(hits, cluster),
        profit=float(profit.mean()) if signals else None,
        profit_error=clustered_error(profit, cluster),
        total=math.fsum(profit),
        brier=float(np.mean((sure - hits) ** 2)) if signals else None,
        calibration_error=math.fsum(gaps) / signals if signals else None,
        neutral_right=float(rows.idle[~sided].mean()) if signals < len(sided) else None,
        useful=useful,
        usd=usd,
        usd_per_useful=usd / useful if useful else None,
        weight=weight(means(profit, cluster), scale),
        buckets=buckets,
    )


def reliability(confidence: np.ndarray, hits: np.ndarray, edges: Sequence[float] = EDGES) -> tuple[Bucket, ...]:
    """Hit rate by confidence; buckets without opinions are left out. Edges are the upper ends, inclusive."""
    at = np.minimum(np.searchsorted(np.asarray(edges), confidence, side="left"), len(edges) - 1)
    found = []
    for bucket, high in enumerate(edges):
        mine = at == bucket
        if mine.any():
            low = edges[bucket - 1] if bucket else 0.0
            found.append(Bucket(low, high, float(confidence[mine].mean()), float(hits[mine].mean()), int(mine.sum())))
    return tuple(found)


def clustered_error(values: np.ndarray, cluster: np.ndarray) -> float | None:
    """Standard error of the mean of values that are alike within clusters; None below two clusters.

    The sandwich estimator of Liang and Zeger (1986) for a mean, with the factor G / (G - 1) for G clusters.
    """
    numbers, row = np.unique(cluster, return_inverse=True)
    if len(numbers) < 2:
        return None
    sums = np.bincount(row, weights=values - values.mean())
    factor = len(numbers) / (len(numbers) - 1)
    return float(math.sqrt(factor * float(np.sum(sums**2))) / len(values))


def means(values: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """The mean of each cluster, float64 (clusters,), in their order."""
    _, row = np.unique(cluster, return_inverse=True)
    return np.bincount(row, weights=values) / np.bincount(row) if len(values) else np.zeros(0)


def typical_move(moved: np.ndarray) -> float:
    """Root mean square of the market's returns over the horizon, whoever said what of them; 1 where there are none."""
    size = float(np.sqrt(np.mean(moved**2))) if len(moved) else 0.0
    return size if size > 0 else 1.0


def weight(profits: np.ndarray, scale: float, prior: float = PRIOR_TRIALS, limit: float = LIMIT) -> float:
    """What an analyst counts: twice the probability that it earns money, given what it earned so far. 0 to 2.

    Trials are taken for normal with the market's own ``scale`` as their deviation, and the mean for normal around
    zero beforehand, worth ``prior`` trials (conjugate normal model; Gelman et al., Bayesian Data Analysis, 3rd
    edition, 2.5). Then P(mean > 0) = Phi(sum(x) / sqrt(n + prior)) with x = profit / scale, cut to ``limit``
    either way. So nobody without a record counts more or less than another (1), few trials move little, one trial
    moves the argument of Phi by ``2 x limit / sqrt(n + prior)`` at most, more profit never lowers the weight, and
    who keeps losing goes to 0.

    Args:
        profits: mean profit after costs of each cluster, float64 (n,).
        scale: above 0.

    Raises:
        InvalidRequest: a scale, prior or limit that is not above 0, or profits that are not finite.
    """
    if not (0 < scale < math.inf and prior > 0 and limit > 0):
        raise InvalidRequest(f"scale={scale}, prior={prior} and limit={limit} are above 0")
    if not np.isfinite(profits).all():
        raise InvalidRequest("a profit is not a finite number; settle only what has prices")
    trials = np.clip(np.asarray(profits, dtype=np.float64) / scale, -limit, limit)
    z = math.fsum(trials) / math.sqrt(len(trials) + prior)
    return math.erfc(-z / math.sqrt(2))  # 2 Phi(z)
