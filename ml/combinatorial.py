"""Combinatorial purged evaluation: how much of a result hangs on which part of history was kept back.

A walk-forward is one path through the market, and one path may be lucky. Here time is cut into groups and
every choice of some of them is tested once (``ml.splits.combinatorial_folds``), so that each row has several
predictions, each by models that did not learn from it. They are strung together to paths: a path holds
every row once, and each path is traded as if it were a walk-forward of its own. López de Prado, Advances in
Financial Machine Learning (Wiley 2018), sections 12.3 and 12.4: of N groups and k tested at once there are
C(N, k) splits and C(N - 1, k - 1) = k / N * C(N, k) paths.

The models have seen what came after their test rows, and paths share most of their training rows. So the
spread says how steady a result is; the figures are not what trading would have earned, and the gate does
not read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from ml.economics import Economics
from ml.evaluation import log_loss
from ml.splits import Fold
from ml.training import Progress, TrainingTable, Walk, out_of_sample, walk_forward
from trading.errors import InvalidRequest

Earn = Callable[[pd.DataFrame], Economics]


@dataclass(frozen=True)
class PathSpread:
    """One estimator on every path, in the order of the paths.

    ``log_losses``: mean over the rows of a path. ``returns``: total net return, a fraction of the start.
    ``sharpes``: annual, as in ``ml.economics.Figures``; None for a path without spread in its returns (no trades).
    ``splits``: how often the estimator was fitted.
    """

    estimator: str
    splits: int
    log_losses: tuple[float, ...]
    returns: tuple[float, ...]
    sharpes: tuple[float | None, ...]

    @property
    def profitable(self) -> float:
        """Share of the paths with a net return above zero."""
        return sum(earned > 0 for earned in self.returns) / len(self.returns)

    def metrics(self) -> dict[str, float]:
        """count (of paths), profitable, and least, median and largest log loss and Sharpe ratio, of what is defined."""
        found = {"count": float(len(self.returns)), "profitable": self.profitable}
        sharpes = [value for value in self.sharpes if value is not None]
        for name, values in (("log_loss", self.log_losses), ("sharpe", sharpes)):
            if values:
                found |= {f"{name}_min": min(values), f"{name}_median": median(values), f"{name}_max": max(values)}
        return found


def paths(walk: Walk, name: str) -> list[pd.DataFrame]:
    """The out-of-sample rows of an estimator as paths through all rows of the table, each in order of time.

    The first path takes the first prediction of each row in the order of the folds, the second path the
    second, and so on; rows of one group are tested by the same folds, so a path changes its model between groups.

    Args:
        walk: through the folds of ``ml.splits.combinatorial_folds``, all of them.

    Returns:
        Frames as ``ml.training.out_of_sample`` gives, one for each path, ``row`` counting from 0 to the last.

    Raises:
        InvalidRequest: the estimator did not take part, or the folds do not test each row equally often.
    """
    unseen = out_of_sample(walk, name)
    tested = np.bincount(unseen["row"].to_numpy(), minlength=len(walk.table))
    if tested.min() != tested.max():
        raise InvalidRequest(
            f"{len(walk.folds)} folds test the rows {tested.min()} to {tested.max()} times; paths need every fold of "
            "ml.splits.combinatorial_folds, which test each row equally often"
        )
    path = unseen.groupby("row", sort=False).cumcount().to_numpy()
    return [unseen[path == number].sort_values("row", ignore_index=True) for number in range(int(tested.max()))]


def spread(walk: Walk, name: str, earn: Earn) -> PathSpread:
    """Score and trade every path of an estimator.

    Args:
        walk: as for ``paths``.
        earn: trades out-of-sample signals: ``ml.economics.trade`` with candles and costs.

    Raises:
        InvalidRequest: as ``paths``, and as ``earn``.
    """
    losses, earned = [], []
    for number, path in enumerate(paths(walk, name), start=1):
        probabilities = path[["p_short", "p_neutral", "p_long"]].to_numpy()
        losses.append(log_loss(probabilities, path["label"].to_numpy()))
        # a fold tests groups that need not lie side by side; a path is one account from its start to its end
        earned.append(earn(path.assign(fold=number)).pooled)
    return PathSpread(
        name,
        len(walk.folds),
        tuple(losses),
        tuple(one.total_return for one in earned),
        tuple(one.sharpe for one in earned),
    )


def spreads(
    table: TrainingTable,
    folds: Sequence[Fold],
    estimators: Mapping[str, Mapping[str, Any]],
    earn: Earn,
    *,
    seed: int,
    progress: Progress | None = None,
) -> tuple[PathSpread, ...]:
    """Fit each estimator on every one of the combinatorial ``folds``, and the spread of each; none without folds.

    Args:
        estimators, seed, progress: as for ``ml.training.walk_forward``.
        earn: as for ``spread``.

    Raises:
        InvalidRequest, InsufficientHistory: as ``ml.training.walk_forward`` and ``paths``.
    """
    if not folds:
        return ()
    walk = walk_forward(table, folds, estimators=estimators, seed=seed, progress=progress)
    return tuple(spread(walk, name, earn) for name in estimators)
