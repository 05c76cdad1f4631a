"""Generated markets: hourly, never closed, quiet and wild by turns. Labelled ``simulated`` wherever they go.

Returns follow a GARCH(1,1) process (Bollerslev 1986) with Student-t shocks (six degrees of freedom):

    variance[t] = omega + alpha * return[t-1]^2 + beta * variance[t-1]

so that large moves follow large moves, as on real markets, and nothing foretells their direction. The
logarithm of a price has no drift, so that its median stays where it starts and no chart visibly decays;
the mean price rises, by about half the variance an hour (7 % a year at a volatility of 0.004). A share
of each shock is common to all markets of a seed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

ALPHA: Final = 0.08
BETA: Final = 0.90
FREEDOM: Final = 6.0
COMMON_SHARE: Final = 0.6  # correlation of the shocks of two markets
STEPS: Final = 12  # prices drawn inside each bar, for its high and low


@dataclass(frozen=True)
class Recipe:
    """One generated market: where its price starts, how wild an hour is on average, how much is traded."""

    symbol: str
    price: float
    hourly_volatility: float
    volume: float
    decimals: int


RECIPES: Final = (
    Recipe("BTCSIM", 9_000.0, 0.004, 900.0, 2),
    Recipe("ETHSIM", 700.0, 0.005, 8_000.0, 2),
    Recipe("SOLSIM", 25.0, 0.006, 60_000.0, 3),
)


def generate(recipes: Sequence[Recipe], count: int, seed: int) -> dict[str, np.ndarray]:
    """``count`` hourly bars of each recipe: float64 (count, 5), columns open, high, low, close, volume.

    The same seed gives the same bars, whichever other recipes are generated with one, and more bars
    begin with the fewer.
    """
    common = _shocks(_generator(seed, "common"), count)
    return {recipe.symbol: _market(recipe, common, seed) for recipe in recipes}


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def _shocks(rng: np.random.Generator, count: int) -> np.ndarray:
    # scaled to variance one
    return np.asarray(rng.standard_t(FREEDOM, count) * math.sqrt((FREEDOM - 2) / FREEDOM))


def _market(recipe: Recipe, common: np.ndarray, seed: int) -> np.ndarray:
    count = len(common)
    # a generator for each use, so that what one draws does not depend on how much another drew
    uses = ("returns", "paths", "volume")
    of_returns, of_paths, of_volume = (_generator(seed, f"{recipe.symbol} {use}") for use in uses)
    own = _shocks(of_returns, count)
    shocks = math.sqrt(COMMON_SHARE) * common + math.sqrt(1 - COMMON_SHARE) * own
    volatility = _volatility(shocks, recipe.hourly_volatility)
    returns = volatility * shocks
    close = recipe.price * np.exp(np.cumsum(returns))
    open_ = np.concatenate([[recipe.price], close[:-1]])
    # a Brownian bridge from open to close gives the high and the low
    steps = of_paths.standard_normal((count, STEPS)) / math.sqrt(STEPS)
    path = np.cumsum(steps, axis=1)
    bridge = path - np.arange(1, STEPS + 1) / STEPS * path[:, -1:]
    inside = np.log(open_)[:, None] + np.arange(1, STEPS + 1) / STEPS * np.log(close / open_)[:, None]
    inside = inside + volatility[:, None] * bridge
    values = np.column_stack([open_, open_, open_, close]).round(recipe.decimals)
    inner = np.exp(inside[:, :-1]).round(recipe.decimals)
    values[:, 1] = np.maximum(inner.max(axis=1), np.maximum(values[:, 0], values[:, 3]))
    values[:, 2] = np.minimum(inner.min(axis=1), np.minimum(values[:, 0], values[:, 3]))
    busy = (volatility / recipe.hourly_volatility) * of_volume.lognormal(0.0, 0.4, count)
    volume = (recipe.volume * busy * (1 + np.abs(shocks))).round(5)
    return np.column_stack([values, np.maximum(volume, 0.00001)])


def _volatility(shocks: np.ndarray, level: float) -> np.ndarray:
    """Standard deviation of each bar's return; its long-run mean square is ``level`` squared."""
    omega = level**2 * (1 - ALPHA - BETA)
    variances = np.empty(len(shocks))
    variance = level**2
    for at, shock in enumerate(shocks.tolist()):
        variances[at] = variance
        variance = omega + (ALPHA * shock * shock + BETA) * variance
    return np.sqrt(variances)
