"""How good a series is: coverage, and whether its newest bars look like those of the month before."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import numpy as np
import pandas as pd

RECENT: Final = timedelta(days=1)
TRAILING: Final = timedelta(days=30)
LEAST_RECENT: Final = 12
LEAST_TRAILING: Final = 20


@dataclass(frozen=True)
class Drift:
    """The newest bars against those of the trailing month.

    Attributes:
        volume_ratio, range_ratio: median volume, and median of log(high / low), newest over trailing.
        volume_ks, range_ks: two-sample Kolmogorov-Smirnov distance, 0 (alike) to 1 (nothing in common).
        bars: how many of the newest were compared.
    """

    volume_ratio: float
    range_ratio: float
    volume_ks: float
    range_ks: float
    bars: int


def drift(candles: pd.DataFrame) -> Drift | None:
    """Volume and range of the last day against the 30 days before; None where there are too few bars to say.

    The last day is the last ``LEAST_RECENT`` bars where those are more.
    """
    if len(candles) < LEAST_RECENT + LEAST_TRAILING:
        return None
    index = pd.DatetimeIndex(candles.index)
    cut = min(int(index.searchsorted(index[-1] - RECENT, side="right")), len(candles) - LEAST_RECENT)
    first = int(index.searchsorted(index[cut] - TRAILING))
    trailing, recent = candles.iloc[first:cut], candles.iloc[cut:]
    if len(trailing) < LEAST_TRAILING:
        return None
    ranges = [np.log(part["high"].to_numpy() / part["low"].to_numpy()) for part in (trailing, recent)]
    volumes = [part["volume"].to_numpy() for part in (trailing, recent)]
    return Drift(_ratio(*volumes), _ratio(*ranges), distance(*volumes), distance(*ranges), len(recent))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Two-sample Kolmogorov-Smirnov statistic: the largest distance of the two empirical distributions."""
    from scipy.stats import ks_2samp

    return float(ks_2samp(one, other, method="asymp").statistic)


def _ratio(before: np.ndarray, now: np.ndarray) -> float:
    usual = float(np.median(before))
    return float(np.median(now)) / usual if usual > 0 else float("nan")
