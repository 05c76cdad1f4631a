"""Drift: what a training looked like, so that live rows can be held against it.

``reference`` describes the training: for each feature, and for what the model said of unseen rows, the
bins and the share of rows in each. ``judge`` holds live rows against it by the population stability index
(``ml.stability``), and live trials against the out-of-sample ones (``ml.hits``).

The rows of a market are not independent: a quiet week fills few bins, and its PSI is large without any
drift. So the reference keeps what was usual in the training itself. Windows of several lengths are cut
from its rows in order of time, each is held against the whole, and the ``limit`` of a column at a length is
what no column of the group passed in all but ``level`` of those windows; it is never below the quantile of
independent rows. A column has drifted when its PSI is both unusual (above the limit) and large (above
0.25). All columns of a group together thereby cry wolf in about a share ``level`` of quiet windows, not
each of them (the idea of Westfall and Young 1993, with their maximum taken over windows instead of
permutations). That is of windows like the training's; what it comes to on new bars is measured by
``deployments.bench_monitor``. The longest windows fit into the training only ``LEAST_WINDOWS`` times, so that there the
share is nearer to 1 in ``LEAST_WINDOWS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ml.hits import Trials, trials_of
from ml.signals import SignalRule
from ml.signals import signals as signals_of
from ml.stability import counts_of, edges_of, expected_shares, null_quantile, psi
from trading.errors import InvalidRequest

if TYPE_CHECKING:
    import pandas as pd

    from ml.estimators import Fitted
    from ml.training import TrainingTable

SCHEMA: Final = 1
# the shortest window of training rows that limits are made for, and the least windows in the training
SHORTEST: Final = 24
LEAST_WINDOWS: Final = 30
STEP: Final = 1.5
PREDICTIONS: Final = ("p_long", "p_short", "signal")
_MOST_CUTS: Final = 400


def reference(
    x: np.ndarray,
    names: Sequence[str],
    probabilities: np.ndarray,
    signals: np.ndarray,
    trials: Trials,
    *,
    own: tuple[np.ndarray, np.ndarray] | None = None,
    bins: int = 10,
    level: float = 0.01,
) -> dict[str, Any]:
    """What a training looked like, as JSON values, for ``judge`` to hold live rows against.

    Args:
        x: float64 (n, k), the training rows in order of time (rows of several symbols side by side), of
            the columns ``names``.
        probabilities: float64 (m, 3), of -1, 0, +1, out of sample and in order of time; ``signals``:
            int8 (m,), what became of them.
        trials: how the out-of-sample signals came out (``ml.hits.trials_of``).
        own: the same, probabilities (n, 3) and signals (n,), of the final model on its training rows. The
            models of the folds have seen less and speak differently, the final one is surer of rows that it
            knows: predictions have drifted when they are unlike both.
        bins: by quantiles of the training; a value that fills a bin alone has one of its own.
        level: share of the training's own windows that may pass the limits.

    Raises:
        InvalidRequest: shapes that do not fit, or values that are not finite.
    """
    if x.ndim != 2 or x.shape[1] != len(names) or not len(x):
        raise InvalidRequest(f"a reference of {len(names)} features needs rows of as many, and x is {x.shape}")
    if probabilities.shape != (len(signals), 3) or not len(signals):
        raise InvalidRequest(
            f"a reference needs (m, 3) probabilities for {len(signals)} signals: {probabilities.shape}"
        )
    if bins < 2 or not 0 < level < 1:
        raise InvalidRequest(f"a reference has at least 2 bins and a level in (0, 1), not {bins} and {level}")
    said = [answers(probabilities, signals), *([answers(*own)] if own is not None else [])]
    return {
        "schema": SCHEMA,
        "level": level,
        "features": [_group(x, names, bins, level)],
        "predictions": [_group(rows, PREDICTIONS, bins, level) for rows in said],
        "trials": {"hits": trials.hits, "count": trials.count},
    }


def reference_of(
    table: TrainingTable, unseen: pd.DataFrame, fitted: Fitted, rule: SignalRule, *, bins: int = 10, level: float = 0.01
) -> dict[str, Any]:
    """``reference`` of a training: its table, its out-of-sample rows, the final model and its signal rule.

    Args:
        unseen: what ``ml.training.out_of_sample`` gave.

    Raises: as ``reference``.
    """
    ordered = unseen.sort_values("row", kind="stable")
    rows, signals = ordered["row"].to_numpy(), ordered["signal"].to_numpy()
    trials = trials_of(signals, ordered["forward_return"].to_numpy(), table.t0[rows], table.t1[rows])
    probabilities = ordered[["p_short", "p_neutral", "p_long"]].to_numpy(dtype=np.float64)
    known = fitted.predict_proba(table.x)
    own = known, signals_of(known, rule)
    return reference(table.x, table.names, probabilities, signals, trials, own=own, bins=bins, level=level)


def answers(probabilities: np.ndarray, signals: np.ndarray) -> np.ndarray:
    """The columns ``PREDICTIONS``: the share of each signal is the share of rows at its value."""
    return np.column_stack([probabilities[:, 2], probabilities[:, 0], signals.astype(np.float64)])


def _group(rows: np.ndarray, names: Sequence[str], bins: int, level: float) -> dict[str, Any]:
    """Bins and shares of each column, and the limits that hold for all of them together."""
    require_finite(rows, names)
    lengths = _lengths(len(rows))
    columns, own = [], np.zeros((len(names), len(lengths)))
    # the largest PSI of any column, in units of its own limit, in each window
    strain = [np.ones(len(_cuts(len(rows), length))) for length in lengths]
    for at, name in enumerate(names):
        edges = edges_of(rows[:, at], bins)
        counts = counts_of(rows[:, at], edges)
        shares = expected_shares(counts)
        columns.append(
            {"name": name, "edges": edges.tolist(), "shares": shares.tolist(), "filled": int((counts > 0).sum())}
        )
        for number, windows in enumerate(_windows(rows[:, at], edges, shares, lengths)):
            independent = null_quantile(columns[-1]["filled"], lengths[number], len(rows), level)
            own[at, number] = max(float(np.quantile(windows, 1 - level)), independent)
            strain[number] = np.maximum(strain[number], windows / own[at, number])
    together = [float(np.quantile(largest, 1 - level)) for largest in strain]
    for column, limits in zip(columns, own, strict=True):
        column["limits"] = [float(limit * factor) for limit, factor in zip(limits, together, strict=True)]
    return {"rows": len(rows), "lengths": lengths, "columns": columns}


def _lengths(rows: int) -> list[int]:
    """Window lengths, each half as long again, of which the training holds ``LEAST_WINDOWS`` side by side."""
    lengths = [SHORTEST]
    while lengths[-1] * STEP * LEAST_WINDOWS <= rows:
        lengths.append(int(lengths[-1] * STEP))
    return lengths if rows >= SHORTEST * LEAST_WINDOWS else []


def _cuts(rows: int, length: int) -> np.ndarray:
    """Where windows begin: evenly spread, overlapping by three quarters, not more than are of use."""
    return np.linspace(0, rows - length, min(4 * rows // length, _MOST_CUTS)).astype(np.int64)


def _windows(values: np.ndarray, edges: np.ndarray, shares: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """PSI of the training's own windows, by length."""
    rows = len(values)
    inside = np.zeros((rows + 1, len(shares)), dtype=np.int32)
    inside[np.arange(1, rows + 1), np.searchsorted(edges, values, side="left")] = 1
    np.cumsum(inside, axis=0, out=inside)
    found = []
    for length in lengths:
        cuts = _cuts(rows, length)
        # a window is part of what it is held against; rows from outside differ by this much more
        outside = (rows + length) / (rows - length)
        found.append(psi(shares, inside[cuts + length] - inside[cuts]) * outside)
    return found


def require_finite(values: np.ndarray, names: Sequence[str]) -> None:
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=0)
    if bad.any():
        raise InvalidRequest(f"{', '.join(np.array(names)[bad])} holds values that are not finite; drift needs numbers")
