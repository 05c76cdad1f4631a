"""Which features does a fitted estimator lean on, on rows it has not seen?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import pandas as pd

from ml.evaluation import log_loss
from trading.errors import InvalidRequest

_MOST_ROWS: Final = 4_000


class Predicts(Protocol):
    """Anything with probabilities; see ``ml.fitted.Fitted``."""

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """Probabilities of -1, 0 and +1 for ``rows`` (n, k): float64 (n, 3)."""


def permutation_importance(
    fitted: Predicts,
    rows: np.ndarray,
    classes: np.ndarray,
    names: Sequence[str],
    *,
    seed: int,
    repeats: int = 5,
    most_rows: int = _MOST_ROWS,
) -> pd.DataFrame:
    """By how much the log loss rises when one feature's values are shuffled over the rows (Breiman 2001).

    Features that say the same share the credit: shuffling one of them may cost nothing. Below zero is chance.

    Args:
        rows, classes: float64 (n, k) and -1, 0, +1 (n,), which the estimator was **not** fitted on.
        names: of the k features.
        repeats: shuffles of each feature; one call of the estimator does them all.
        most_rows: of more rows than that, so many are drawn.

    Returns:
        Index ``feature``, the most important first; columns ``importance`` (mean rise over the repeats) and
        ``deviation`` of the repeats (ddof 1; 0 for a single one), in nats.

    Raises:
        InvalidRequest: shapes that do not match, no rows, or no repeats.
    """
    if rows.ndim != 2 or rows.shape != (len(classes), len(names)) or not len(classes) or repeats < 1:
        raise InvalidRequest(
            f"cannot shuffle rows {rows.shape} of {len(classes)} classes and {len(names)} features {repeats} times"
        )
    random = np.random.default_rng(seed)
    if len(rows) > most_rows:
        chosen = np.sort(random.choice(len(rows), most_rows, replace=False))
        rows, classes = rows[chosen], classes[chosen]
    before = log_loss(fitted.predict_proba(rows), classes)
    # the same shuffles for every feature, so that chance does not tell features apart
    orders = np.concatenate([random.permutation(len(rows)) for _ in range(repeats)])
    shuffled = np.tile(rows, (repeats, 1))
    rises = np.empty((len(names), repeats))
    for column in range(len(names)):
        shuffled[:, column] = rows[orders, column]
        parts = np.split(fitted.predict_proba(shuffled), repeats)
        rises[column] = [log_loss(part, classes) - before for part in parts]
        shuffled[:, column] = np.tile(rows[:, column], repeats)
    table = pd.DataFrame(
        {"importance": rises.mean(axis=1), "deviation": rises.std(axis=1, ddof=1) if repeats > 1 else 0.0},
        index=pd.Index(names, name="feature"),
    )
    return table.sort_values("importance", ascending=False, kind="stable")
