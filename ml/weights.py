"""Sample weights: labels that overlap tell the same story several times.

López de Prado, Advances in Financial Machine Learning (Wiley 2018), sections 4.4 and 4.5.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from trading.errors import InvalidRequest


def uniqueness(t0: np.ndarray, t1: np.ndarray, symbol: np.ndarray) -> np.ndarray:
    """Average uniqueness of each label among those of its symbol: 1 where it stands alone.

    At any moment a label shares the market with as many labels as are alive then, itself included; its
    uniqueness is the mean of one over that number during its life. A label lives on ``[t0, t1)``: one that
    starts where another ends does not overlap it, just as ``ml.splits`` has it. The mean is over time; on
    bars without gaps that is the book's mean over bars. A label without duration counts as a millisecond.

    Args:
        t0, t1: int64 ms UTC (n,), start and end of each label, in any order.
        symbol: (n,), whose label it is; labels of different symbols do not overlap.

    Returns:
        float64 (n,), in (0, 1]. Time O(n log n).

    Raises:
        InvalidRequest: lengths differ, or an end is before its start.
    """
    if not len(t0) == len(t1) == len(symbol) or (t1 < t0).any():
        raise InvalidRequest(
            f"{len(t0)} starts, {len(t1)} ends and {len(symbol)} symbols are not labels of which none ends early"
        )
    if not len(t0):
        return np.empty(0)
    ends = np.maximum(t1, t0 + 1)
    # one axis for all: each symbol's times follow those of the one before, so that none meet
    codes, _ = pd.factorize(symbol)
    shift = codes.astype(np.int64) * (ends.max() - t0.min()) - t0.min()
    times, at = np.unique(np.concatenate([t0 + shift, ends + shift]), return_inverse=True)
    started, ended = at[: len(t0)], at[len(t0) :]
    alive = np.cumsum(np.bincount(started, minlength=len(times)) - np.bincount(ended, minlength=len(times)))[:-1]
    # what a label alive since the first moment would have had to itself, in ms; nothing where none is alive
    own = np.concatenate([[0.0], np.cumsum(np.diff(times) * (alive > 0) / np.maximum(alive, 1))])
    return np.asarray(np.minimum((own[ended] - own[started]) / (ends - t0), 1.0))
