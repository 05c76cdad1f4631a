"""How much of the chosen trial's result may be the luck of having tried many?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from trading import statistics
from trading.errors import InvalidRequest

_BLOCKS: Final = 16


@dataclass(frozen=True)
class Overfitting:
    """How much of the chosen trial's result may be the luck of having tried many.

    ``sharpe``: of the chosen trial, per observation; ``luck``: what the best of as many trials without skill
    would show. ``deflated_sharpe``: probability that the true Sharpe ratio is above that luck (DSR 2014).
    ``pbo``: probability of backtest overfitting (CSCV). ``spa``: p-value of "no trial beats the
    benchmark" (Hansen's consistent one). None where a figure is not defined; ``reasons`` say why, and what
    the others mean, in plain words.
    """

    chosen: str
    trials: int
    observations: int
    sharpe: float | None
    luck: float | None
    deflated_sharpe: float | None
    pbo: float | None
    spa: float | None
    reasons: tuple[str, ...]

    def metrics(self) -> dict[str, float]:
        """deflated_sharpe, pbo, spa, trials: of what is defined."""
        named = {"deflated_sharpe": self.deflated_sharpe, "pbo": self.pbo, "spa": self.spa, "trials": self.trials}
        return {name: float(value) for name, value in named.items() if value is not None}


def overfitting(
    returns: pd.DataFrame,
    chosen: str,
    *,
    seed: int,
    elsewhere: int = 0,
    block: int | None = None,
    benchmark: pd.Series | None = None,
) -> Overfitting:
    """Deflated Sharpe ratio, PBO and superior predictive ability of ``chosen`` among all trials.

    Trials that never traded count as trials, and take no part in the figures otherwise.

    Args:
        returns: net returns per bar of *every* trial that was looked at, one column each, rows in order of
            time (``ml.economics.Economics.returns`` of each, aligned).
        elsewhere: further trials that were looked at on other bars, such as those of a tuning on earlier ones;
            they count for the luck of the deflated Sharpe ratio.
        block: mean length of the resampled blocks in bars, at least as long as a position is held; see
            ``trading.statistics.superior_ability``.
        benchmark: returns per bar that the trials must beat, on the same index; None: cash, that is 0.

    Raises:
        InvalidRequest: ``chosen`` is not a column or is one twice, returns that are not finite, or a
            benchmark with another index.
    """
    if list(returns.columns).count(chosen) != 1 or returns.empty:
        raise InvalidRequest(f"{chosen!r} is not one of the trials {list(returns.columns)[:20]}, or there are no rows")
    if benchmark is not None and not benchmark.index.equals(returns.index):
        raise InvalidRequest("the benchmark is on other bars than the trials; align it first")
    values = returns.to_numpy(dtype=np.float64)
    against = values - (0.0 if benchmark is None else benchmark.to_numpy(dtype=np.float64)[:, None])
    if not np.isfinite(against).all():
        raise InvalidRequest("some returns are not finite; align the trials on the same bars first")
    moving = statistics.has_spread(values)
    reasons = []
    if not moving.all():
        reasons.append(f"{int((~moving).sum())} of {len(moving)} trials have constant returns (no trades)")
    sharpe, luck, deflated = _deflated(values, list(returns.columns).index(chosen), moving, elsewhere, reasons)
    pbo = _pbo(values[:, moving], reasons)
    spa = _spa(against, seed, block, "cash" if benchmark is None else "the benchmark", reasons)
    return Overfitting(
        chosen, values.shape[1] + elsewhere, len(values), sharpe, luck, deflated, pbo, spa, tuple(reasons)
    )


def _deflated(
    values: np.ndarray, at: int, moving: np.ndarray, elsewhere: int, reasons: list[str]
) -> tuple[float | None, float | None, float | None]:
    if not moving[at]:
        reasons.append("no Sharpe ratio: the chosen trial has constant returns")
        return None, None, None
    chosen = statistics.moments(values[:, at])
    sharpe = chosen.mean / chosen.deviation
    trials = values.shape[1] + elsewhere
    if moving.sum() < 2:
        # what the Sharpe ratios of trials without skill scatter by, where those of the trials are not known
        variance = 1 / chosen.count
    else:
        ratios = np.array([statistics.sharpe_ratio(column) for column in values[:, moving].T])
        variance = float(ratios.var(ddof=1))
    luck = statistics.expected_max_sharpe(trials, variance)
    deflated = statistics.deflated_sharpe(
        sharpe, chosen.count, trials=trials, variance=variance, skew=chosen.skew, kurtosis=chosen.kurtosis
    )
    reasons.append(
        f"deflated Sharpe ratio {deflated:.3f}: the probability that the true Sharpe ratio is above {luck:.4f} per "
        f"bar, which the best of {trials} trials shows by luck (seen: {sharpe:.4f}); above 0.95 convinces"
    )
    return sharpe, luck, deflated


def _pbo(values: np.ndarray, reasons: list[str]) -> float | None:
    rows, trials = values.shape
    if trials < 2:
        reasons.append("no probability of overfitting: nothing was chosen among fewer than two trials that traded")
        return None
    if rows < max(2 * _BLOCKS, trials):
        reasons.append(
            f"no probability of overfitting: {rows} bars are too few for {trials} trials in {_BLOCKS} blocks"
        )
        return None
    found = statistics.overfitting_probability(values, _BLOCKS).probability
    reasons.append(
        f"probability of overfitting {found:.3f}: in that share of {math.comb(_BLOCKS, _BLOCKS // 2):,} splits "
        "the best trial of one half was no better than the median in the other; 0.5 is chance"
    )
    return found


def _spa(against: np.ndarray, seed: int, block: int | None, rival: str, reasons: list[str]) -> float | None:
    values = against[:, statistics.has_spread(against)]
    rows, trials = values.shape
    if not trials or rows < max(20, trials) or (block is not None and block >= rows):
        reasons.append(f"no test of superior ability: {rows} bars of {trials} trials that differ from {rival}")
        return None
    found = statistics.superior_ability(values, seed=seed, block=block)
    reasons.append(
        f"superior ability p = {found.consistent:.3f}: how often the best of {trials} trials would beat {rival} "
        f"as clearly if none were better (blocks of {found.block} bars); below 0.05 convinces"
    )
    return found.consistent
