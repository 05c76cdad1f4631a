"""How much of a Sharpe ratio is luck? Of one track record, and of the best of many trials.

Conventions, for every function here. A Sharpe ratio is *per observation* (mean over deviation, ddof 1,
risk-free rate 0) unless a name or a docstring says annual. Skew and kurtosis are the plain moment ratios
(ddof 0), the kurtosis is **raw**: 3 for a normal distribution, not 0. A matrix has observations in rows, in
order of time, and trials (configurations) in columns.

Sources:
    Lo 2002, The Statistics of Sharpe Ratios; Mertens 2002, Comments on Lo's paper
    Bailey and López de Prado 2012, The Sharpe Ratio Efficient Frontier
    Bailey and López de Prado 2014, The Deflated Sharpe Ratio
    Bailey, Borwein, López de Prado and Zhu 2014, Pseudo-Mathematics and Financial Charlatanism
    Bailey, Borwein, López de Prado and Zhu 2017, The Probability of Backtest Overfitting
    Hansen 2005, A Test for Superior Predictive Ability
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations, islice
from statistics import NormalDist
from typing import Final

import numpy as np

from trading.errors import InsufficientHistory, InvalidRequest

_NORMAL: Final = NormalDist()
# a deviation below this share of the largest value is rounding, not spread
_SPREAD: Final = 1e-12
_BATCH: Final = 50


@dataclass(frozen=True)
class Moments:
    """Mean and deviation (ddof 1) per observation, skew and raw kurtosis (ddof 0) of ``count`` returns."""

    count: int
    mean: float
    deviation: float
    skew: float
    kurtosis: float


def moments(returns: np.ndarray) -> Moments:
    """Moments of returns, shape (n,); skew 0 and kurtosis 3 where they do not spread.

    Raises:
        InvalidRequest: fewer than two returns, or some that are not finite.
    """
    values = np.asarray(returns, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise InvalidRequest(f"returns of shape {values.shape} must be one row of two or more finite numbers")
    mean = float(values.mean())
    if not has_spread(values[:, None])[0]:
        return Moments(len(values), mean, 0.0, 0.0, 3.0)
    apart = (values - mean) / values.std()
    deviation = float(values.std(ddof=1))
    return Moments(len(values), mean, deviation, float((apart**3).mean()), float((apart**4).mean()))


def has_spread(matrix: np.ndarray) -> np.ndarray:
    """Whether each column of ``matrix`` (n, k) varies by more than rounding: bool (k,)."""
    return np.asarray(matrix.std(axis=0) > _SPREAD * np.abs(matrix).max(axis=0))


def sharpe_ratio(returns: np.ndarray) -> float:
    """Sharpe ratio per observation; NaN where the returns (n,) do not spread. Raises: as ``moments``."""
    found = moments(returns)
    return found.mean / found.deviation if found.deviation > 0 else math.nan


def annualised(sharpe: float, per_year: float) -> float:
    """A Sharpe ratio (or its standard error) per observation times the root of observations per year (Lo 2002).

    Right where returns are not autocorrelated.
    """
    return sharpe * math.sqrt(per_year)


def sharpe_error(sharpe: float, observations: int, skew: float = 0.0, kurtosis: float = 3.0) -> float:
    """Standard error of a Sharpe ratio per observation (Mertens 2002; with n - 1 as Bailey and López de Prado 2012).

        sqrt((1 - skew SR + (kurtosis - 1) / 4 SR^2) / (n - 1))

    With the default moments this is Lo's error for independent normal returns.

    Raises:
        InvalidRequest: fewer than two observations, or moments that no distribution has.
    """
    if observations < 2:
        raise InvalidRequest(f"the error of a Sharpe ratio needs two observations or more; there are {observations}")
    # of any distribution, kurtosis >= 1 + skew^2, and then this is never negative; excess kurtosis often breaks it
    if not kurtosis >= (1 + skew**2) * (1 - 1e-9):
        raise InvalidRequest(
            f"skew {skew} with kurtosis {kurtosis} is impossible: raw kurtosis is at least 1 + skew^2 "
            "(3 for the normal distribution); was excess kurtosis passed?"
        )
    return math.sqrt(max(1 - skew * sharpe + (kurtosis - 1) / 4 * sharpe**2, 0.0) / (observations - 1))


def probabilistic_sharpe(
    sharpe: float, observations: int, *, benchmark: float = 0.0, skew: float = 0.0, kurtosis: float = 3.0
) -> float:
    """Probability that the true Sharpe ratio lies above ``benchmark``, both per observation (PSR, 2012).

    Raises: as ``sharpe_error``.
    """
    error = sharpe_error(sharpe, observations, skew, kurtosis)
    if error == 0:
        return 0.5 if sharpe == benchmark else float(sharpe > benchmark)
    return _NORMAL.cdf((sharpe - benchmark) / error)


def expected_max_sharpe(trials: int, variance: float = 1.0) -> float:
    """Sharpe ratio that the best of ``trials`` independent trials without any skill is expected to show (2014).

        sqrt(V) ((1 - g) Z(1 - 1 / N) + g Z(1 - 1 / (N e))),  g Euler's constant, Z the normal quantile

    Args:
        variance: of the Sharpe ratios over trials; the result has its unit (per observation or annual).

    Returns:
        0 for a single trial, of which nothing was selected.

    Raises:
        InvalidRequest: fewer than one trial, or a negative variance.
    """
    if trials < 1 or not 0 <= variance < math.inf:
        raise InvalidRequest(f"{trials} trials with a variance of {variance}: one trial and a variance of 0 at least")
    if trials == 1:
        return 0.0
    last, tail = _NORMAL.inv_cdf(1 - 1 / trials), _NORMAL.inv_cdf(1 - 1 / (trials * math.e))
    return math.sqrt(variance) * ((1 - np.euler_gamma) * last + np.euler_gamma * tail)


def deflated_sharpe(
    sharpe: float, observations: int, *, trials: int, variance: float, skew: float = 0.0, kurtosis: float = 3.0
) -> float:
    """Probability that the true Sharpe ratio lies above what the best of ``trials`` shows by luck (DSR 2014).

    Args:
        sharpe: of the chosen trial, per observation, like ``variance``, that of the Sharpe ratios over trials.
        trials: independent ones; counting correlated trials in full makes the result smaller, so safer.

    Raises: as ``sharpe_error`` and ``expected_max_sharpe``.
    """
    luck = expected_max_sharpe(trials, variance)
    return probabilistic_sharpe(sharpe, observations, benchmark=luck, skew=skew, kurtosis=kurtosis)


def min_track_record(
    sharpe: float, *, benchmark: float = 0.0, confidence: float = 0.95, skew: float = 0.0, kurtosis: float = 3.0
) -> float:
    """Observations after which ``probabilistic_sharpe`` reaches ``confidence`` (MinTRL 2012), not rounded.

    Infinite where the Sharpe ratio (per observation) is not above the benchmark.

    Raises:
        InvalidRequest: a confidence outside (0.5, 1), or as ``sharpe_error``.
    """
    if not 0.5 < confidence < 1:
        raise InvalidRequest(f"confidence is {confidence}; it must lie between 0.5 and 1")
    if not sharpe > benchmark:
        return math.inf
    spread = sharpe_error(sharpe, 2, skew, kurtosis)
    return 1 + (_NORMAL.inv_cdf(confidence) * spread / (sharpe - benchmark)) ** 2


def min_backtest_years(trials: int, sharpe: float = 1.0) -> float:
    """Years of backtest below which the best of ``trials`` without skill is expected to show ``sharpe`` (annual).

    MinBTL (Notices of the AMS 2014); 0 for a single trial.

    Raises:
        InvalidRequest: fewer than one trial, or a Sharpe ratio that is not positive.
    """
    if not sharpe > 0:
        raise InvalidRequest(f"the annual Sharpe ratio to be reached by luck is {sharpe}; it must be above zero")
    return (expected_max_sharpe(trials) / sharpe) ** 2


@dataclass(frozen=True, eq=False)
class Overfit:
    """What ``overfitting_probability`` found.

    ``probability``: share of the splits in which the trial that was best in one half was no better than the
    median of all in the other (PBO). ``loss``: share in which it had a Sharpe ratio below zero there.
    ``logits``: of the relative rank there, one per split, float64 (splits,). ``blocks``: S.
    """

    probability: float
    loss: float
    logits: np.ndarray
    blocks: int


def overfitting_probability(returns: np.ndarray, blocks: int = 16) -> Overfit:
    """Probability of backtest overfitting by combinatorially symmetric cross-validation (2017).

    The rows are cut into ``blocks`` parts of equal length (one row more for the first ones where that does
    not come out even); every half of them chooses the best trial by Sharpe ratio, which is then ranked in
    the other half. Ties share their mean rank. A trial without spread in a half has the Sharpe ratio 0 there.

    Args:
        returns: (observations, trials), per observation, rows in order of time.
        blocks: S, even; S = 16 gives 12,870 splits.

    Raises:
        InvalidRequest: fewer than two trials, values that are not finite, an odd S, or more trials than
            observations, which is nearly always a transposed matrix.
        InsufficientHistory: fewer than two rows per block.
    """
    values = _matrix(returns)
    rows, trials = values.shape
    if trials < 2:
        raise InvalidRequest("overfitting is about choosing: two trials or more are needed, and there is one")
    if blocks < 2 or blocks % 2 or blocks > 20:
        raise InvalidRequest(f"blocks={blocks} must be even, from 2 to 20 (20 give 184,756 splits)")
    if rows < 2 * blocks:
        raise InsufficientHistory(f"{rows} observations do not fill {blocks} blocks of two or more; use fewer blocks")
    scale = np.abs(values).max(axis=0)
    values = values / np.where(scale > 0, scale, 1.0)
    starts = np.cumsum([0] + [len(part) for part in np.array_split(np.arange(rows), blocks)[:-1]])
    # a Sharpe ratio needs sums alone, and the sums of a half are those of its blocks
    sums, squares = (np.add.reduceat(part, starts, axis=0) for part in (values, values**2))
    counts = np.diff(np.append(starts, rows))[:, None].astype(np.float64)
    halves = np.zeros((math.comb(blocks, blocks // 2), blocks))
    np.put_along_axis(halves, np.array(list(combinations(range(blocks), blocks // 2))), 1.0, axis=1)
    # some halves at a time: of all 12,870 and a thousand trials the matrices alone take a gigabyte
    ranks, lost = [], []
    for some in np.array_split(halves, math.ceil(len(halves) * trials / 1_000_000)):
        inside, outside = (_sharpes(part @ sums, part @ squares, part @ counts) for part in (some, 1 - some))
        there = np.take_along_axis(outside, inside.argmax(axis=1)[:, None], axis=1)
        ranks.append((outside < there).sum(axis=1) + ((outside == there).sum(axis=1) + 1) / 2)
        lost.append(there[:, 0] < 0)
    rank = np.concatenate(ranks) / (trials + 1)
    logits = np.log(rank / (1 - rank))
    return Overfit(float(np.mean(logits <= 1e-12)), float(np.concatenate(lost).mean()), logits, blocks)


@dataclass(frozen=True)
class Superiority:
    """p-values of "no trial beats the benchmark": ``consistent`` is the one to use, between its two bounds.

    ``block``: mean length of the resampled blocks, in observations; ``draws``: number of resamples.
    """

    lower: float
    consistent: float
    upper: float
    block: int
    draws: int


def superior_ability(excess: np.ndarray, *, seed: int, block: int | None = None, draws: int = 1000) -> Superiority:
    """Hansen's test of superior predictive ability: is the best of all trials better than the benchmark?

    Studentised, with the stationary bootstrap. arch resamples; its own SPA is not used because arch 8
    computes the deviations and does not divide by them, so that the wildest trial drowns the others.

    Args:
        excess: (observations, trials), return of the trial less that of the benchmark (0 for cash).
        block: mean block length; the cube root of the observations, rounded up, where None. At least as
            long as a position is held.

    Raises:
        InvalidRequest: a transposed matrix, values that are not finite, trials without spread.
        InsufficientHistory: fewer than 20 observations.
    """
    values = _matrix(excess)
    rows = len(values)
    if rows < 20:
        raise InsufficientHistory(f"superior ability is not tested on {rows} observations; 20 are needed")
    block = math.ceil(rows ** (1 / 3)) if block is None else block
    if not 1 <= block < rows or draws < 1:
        raise InvalidRequest(f"block={block} must be from 1 to below {rows} observations, and draws={draws} positive")
    flat = ~has_spread(values)
    if flat.any():
        raise InvalidRequest(f"trials {np.flatnonzero(flat).tolist()} never differ from the benchmark; leave them out")
    from arch.bootstrap import StationaryBootstrap

    scaled = values / _long_run_deviations(values, block)
    means = scaled.mean(axis=0)
    resampling = StationaryBootstrap(block, np.arange(rows), seed=seed)
    # how often each row was drawn gives the mean of a resample without copying its rows; many at once, for
    # matrices multiply ten times as fast as vectors
    counts = (np.bincount(drawn[0][0], minlength=rows).astype(np.float64) for drawn in resampling.bootstrap(draws))
    batches = iter(lambda: list(islice(counts, _BATCH)), [])
    resampled = np.concatenate([np.stack(batch) @ scaled for batch in batches]) / rows
    # trials clearly worse than the benchmark must not make the best one look like luck
    hopeless = means < -math.sqrt(2 * math.log(math.log(rows)) / rows)
    found = max(float(means.max()), 0.0)
    p_values = []
    for centre in (np.maximum(means, 0), np.where(hopeless, 0, means), means):
        best = np.maximum((resampled - centre).max(axis=1), 0)
        # the sample itself is one more draw, so that no p-value is 0
        p_values.append((1 + int(np.sum(best >= found))) / (1 + draws))
    lower, consistent, upper = p_values
    return Superiority(lower, consistent, upper, block, draws)


def _matrix(returns: np.ndarray) -> np.ndarray:
    values = np.asarray(returns, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise InvalidRequest(f"returns have the shape {values.shape}; (observations, trials) is needed")
    if values.shape[1] > values.shape[0]:
        raise InvalidRequest(
            f"returns of shape {values.shape} hold more trials than observations; rows are observations, "
            "columns are trials: transpose the matrix, or leave trials out"
        )
    if not np.isfinite(values).all():
        raise InvalidRequest("some returns are not finite; align the trials on the same bars first")
    return values


def _sharpes(sums: np.ndarray, squares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sharpe ratios from sums over observations of values scaled into [-1, 1]; 0 where there is no spread."""
    mean = sums / counts
    variance = (squares - sums * mean) / (counts - 1)
    # what is left of a constant after subtraction is rounding
    spreads = variance > 1e-14 * squares / counts
    return np.asarray(np.where(spreads, mean / np.sqrt(np.where(spreads, variance, 1.0)), 0.0))


def _long_run_deviations(values: np.ndarray, block: int) -> np.ndarray:
    """Roots of the long-run variances of columns under the stationary bootstrap (Politis and Romano 1994): (k,)."""
    rows = len(values)
    apart = values - values.mean(axis=0)
    # autocovariances at all lags at once
    power = np.abs(np.fft.rfft(apart, 2 * rows, axis=0)) ** 2
    covariances = np.fft.irfft(power, 2 * rows, axis=0)[:rows] / rows
    lag = np.arange(rows)
    keep = 1 - 1 / block
    weights = 2 * ((1 - lag / rows) * keep**lag + lag / rows * keep ** (rows - lag))
    weights[0] = 1.0
    return np.asarray(np.sqrt(weights @ covariances))
