"""The population stability index: how far the shares of live rows in some bins are from those of the training.

    PSI = sum over bins of (actual - expected) * ln(actual / expected)

(Siddiqi 2006, Credit Risk Scorecards; there below 0.1 is read as no shift, above 0.25 as a large one).
Without any drift it is not zero: of n independent rows against m it is distributed as (1/n + 1/m) *
chi-squared with bins - 1 degrees of freedom (Yurdakul 2018, Statistical Properties of the Population
Stability Index).

Zero bins: an expected share counts half a row for each bin, and the live rows count, beside themselves,
half a row per bin spread as expected. No share is zero, and the correction itself never looks like drift.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

import numpy as np

from trading.errors import InvalidRequest

HALF: Final = 0.5


def expected_shares(counts: np.ndarray) -> np.ndarray:
    """Positive shares of the training's ``counts`` (bins,), half a row more in each: float64, sum one."""
    return np.asarray((counts + HALF) / (counts.sum() + HALF * len(counts)))


def psi(expected: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The population stability index of ``counts`` (..., bins) against positive ``expected`` shares (bins,).

    See the top of the module for bins without rows.

    Raises:
        InvalidRequest: shares that are not positive or do not sum to one, or no rows.
    """
    rows = counts.sum(axis=-1, keepdims=True)
    if not (expected > 0).all() or not math.isclose(float(expected.sum()), 1, abs_tol=1e-6) or not (rows > 0).all():
        raise InvalidRequest("PSI needs positive expected shares with the sum one, and at least one live row")
    extra = HALF * len(expected)
    actual = (counts + extra * expected) / (rows + extra)
    return np.asarray(((actual - expected) * np.log(actual / expected)).sum(axis=-1))


def null_mean(bins: int, rows: int, reference_rows: int) -> float:
    """The mean PSI of independent rows without drift."""
    return (bins - 1) * (1 / rows + 1 / reference_rows)


def null_quantile(bins: int, rows: int, reference_rows: int, level: float) -> float:
    """The PSI that independent rows without drift pass with probability ``level``.

    The chi-squared quantile is that of Wilson and Hilferty 1931, good to 1 % from three bins on.
    """
    freedom = max(bins - 1, 1)
    part = 2 / (9 * freedom)
    chi_squared = freedom * (1 - part + NormalDist().inv_cdf(1 - level) * math.sqrt(part)) ** 3
    return chi_squared * (1 / rows + 1 / reference_rows)


def edges_of(values: np.ndarray, bins: int) -> np.ndarray:
    """Upper edges of quantile bins ``(edge before, edge]``; the last bin lies above the last edge.

    A value that holds a bin's worth of rows gets a bin of its own, so a constant has three: below it,
    itself, and above it.
    """
    quantiles = np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf")
    found, times = np.unique(values, return_counts=True)
    heavy = found[times * bins >= len(values)]
    return np.unique(np.concatenate([quantiles, heavy, np.nextafter(heavy, -np.inf)]))


def counts_of(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Rows in each bin of ``edges_of``: int64 (len(edges) + 1,)."""
    return np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
